"""Networks: shapes, seeded weights, a silent start, conditions, and no sample that sees another."""

import functools
import json

import pytest
import torch
from support import seeded
from torch import nn

from gradlogp.scores.networks import MLP, NO_CLASS, UNet, drop
from gradlogp.scores.networks.embeddings import Fourier

MAKE = {
    "mlp": lambda **k: MLP(5, width=16, depth=2, **k),
    "mlp-images": lambda **k: MLP((1, 4, 3), width=16, depth=1, **k),
    "unet": lambda **k: UNet((1, 8, 8), channels=(8, 16), **k),
    "unet-colour": lambda **k: UNet((3, 4, 8), channels=(8,), blocks=2, **k),
    "unet-patches": lambda **k: UNet((1, 8, 16), channels=(8, 16), patch=2, **k),
    "unet-odd": lambda **k: UNet((1, 9, 7), channels=(8, 8, 16), attention=True, **k),
    "unet-sequence": lambda **k: UNet((2, 13), channels=(8, 32), attention=True, **k),
    "unet-deep": lambda **k: UNet((2, 8, 8), channels=(8, 8, 16), blocks=2, **k),
}
every_network = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE.keys())

IMAGE = "image"  # two channels of the height and width of what the network works on
CONDITIONS = [None, 4, (3,), (5, 7), (2, 3, 4), IMAGE]
every_condition = pytest.mark.parametrize("condition", CONDITIONS, ids=str)


def awake(network, seed=1):
    """Give the zero output layer weights, so that there is something to see."""
    torch.nn.init.normal_(network.outlet.weight, 0.0, 0.3, generator=seeded(seed))
    return network


def inputs(network, n, g):
    """Random x, c and, where the network has one, condition."""
    x, c = torch.randn(n, *network.event_shape, generator=g), torch.randn(n, generator=g)
    if network.condition is None:
        return x, c
    if isinstance(network.condition, int):
        return x, c, (torch.arange(n) + 1) % (network.condition + 1) - 1
    return x, c, torch.randn(n, *network.condition, generator=g)


def conditional(make, condition, g):
    """A network with that condition whose output is not 0."""
    if condition == IMAGE:
        with torch.device("meta"):
            plain = make()
        condition = (2, *plain.event_shape[1:]) if isinstance(plain, UNet) else (2, 8, 8)
    return awake(make(generator=g, condition=condition))


@functools.cache
def shared(make, condition):
    """The network of seed 5 with that condition, for tests that leave its weights as they are."""
    return conditional(make, condition, seeded(5))


@every_network
def test_starts_at_zero_with_the_shape_and_dtype_of_the_input(make, generator):
    network = make(generator=generator)
    x, c = inputs(network, 3, generator)
    out = network(x, c)
    assert out.shape == x.shape
    assert out.dtype == torch.float64
    assert (out == 0).all()
    single = network.float()(x.float(), c.float())
    assert single.dtype == torch.float32
    assert awake(network)(x.float(), c.float()).abs().min() > 0


def test_where_there_are_no_numbers_none_is_drawn(monkeypatch):
    """To draw normal numbers on the meta device imports the compiler, whenever a model is loaded."""
    monkeypatch.setattr(nn.init, "normal_", lambda *_, **__: pytest.fail("numbers were drawn"))
    with torch.device("meta"):
        assert all(w.is_meta for w in MLP(2, 8, 1, 3).parameters())
    with pytest.raises(pytest.fail.Exception, match="were drawn"):
        MLP(2, 8, 1, 3)


@every_condition
@every_network
def test_weights_come_from_the_generator_alone(make, condition):
    one = shared(make, condition)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    two, three = (conditional(make, condition, seeded(seed)) for seed in (5, 6))
    assert torch.equal(before, torch.get_rng_state())
    a, b, c = (n.state_dict() for n in (one, two, three))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert any(not torch.equal(a[key], c[key]) for key in a)
    for name, p in one.named_parameters():
        assert p.isfinite().all()
        drawn = name.endswith("weight") and "norm" not in name
        assert (len(p.unique()) > 1) == drawn, name


@every_condition
@every_network
def test_the_config_rebuilds_the_network(make, condition, generator):
    network = shared(make, condition)
    again = type(network)(**json.loads(json.dumps(network.config)))
    again.load_state_dict(network.state_dict())
    given = inputs(network, 3, generator)
    assert torch.equal(again(*given), network(*given))
    assert again.event_shape == network.event_shape
    assert again.condition == network.condition


@every_condition
@every_network
def test_samples_do_not_see_each_other(make, condition, generator):
    """Neither in a batch nor under vmap, where each is a separate batch."""
    network = shared(make, condition)
    given = inputs(network, 5, generator)
    out = network(*given)
    alone = [network(*(value[i : i + 1] for value in given))[0] for i in range(5)]
    torch.testing.assert_close(torch.stack(alone), out, rtol=1e-12, atol=1e-12)
    one = lambda *row: network(*(value.unsqueeze(0) for value in row)).squeeze(0)
    torch.testing.assert_close(torch.func.vmap(one)(*given), out, rtol=1e-12, atol=1e-12)


@every_network
def test_one_level_for_all_is_a_row_of_each(make, generator):
    """What was expanded from one number is embedded once; numbers of which each counts are not."""
    network = awake(make(generator=generator))
    x = torch.randn(3, *network.event_shape, generator=generator)
    c = torch.tensor([0.3, -0.7, 1.1])
    torch.testing.assert_close(network(x, c[1].expand(3)), network(x, c[1].repeat(3)))
    for i in range(3):
        torch.testing.assert_close(network(x, c)[i], network(x, c[i].repeat(3))[i])


@every_condition
@every_network
def test_all_that_it_is_given_matters(make, condition, generator):
    """Every entry of x and of the values, the noise coordinate, and the class."""
    network = shared(make, condition)
    x, c, *rest = (
        value.requires_grad_(value.is_floating_point()) for value in inputs(network, 2, generator)
    )
    out = network(x, c, *rest)
    weights = torch.randn(out.shape, generator=generator)
    (out * weights).sum().backward()
    for value in (x, c, *rest):
        if value.is_floating_point():
            assert value.grad.abs().min() > 0
        else:
            assert (network(x, c, 3 - value) - out).abs().max() > 1e-4


@every_condition
@every_network
def test_every_parameter_is_trained(make, condition, generator):
    network = shared(make, condition)
    network.zero_grad()
    given = inputs(network, 5, generator)
    (network(*given) - given[0]).square().sum().backward()
    for name, p in network.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().max() > 0, name


@pytest.mark.parametrize("patch", [1, 2])
def test_an_image_joins_the_channels_of_the_inlet(patch, generator):
    """Pixel by pixel: what the first convolution sees is x and the condition, folded alike."""
    network = awake(UNet((1, 8, 8), (8,), patch=patch, condition=(2, 8, 8), generator=generator))
    seen = []
    network.inlet.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x, c, image = inputs(network, 3, generator)
    network(x, c, image.float())  # of any floating dtype
    folded = [
        torch.stack([v[:, :, i::patch, j::patch] for i in range(patch) for j in range(patch)], 2)
        for v in (x, image.float().double())
    ]
    assert torch.equal(seen[0], torch.cat([v.flatten(1, 2) for v in folded], 1))


@pytest.mark.parametrize("condition", [(2, 8, 4), (8, 8), (64,)])
def test_another_shape_enters_as_a_vector(condition, generator):
    """In the order of its entries: a sequence, or an image of another size."""
    network = awake(UNet((1, 8, 8), (8,), condition=condition, generator=generator))
    _, c, values = inputs(network, 2, generator)
    first, _, second = network.conditioning.values
    h = torch.nn.functional.silu(values.reshape(2, -1) @ first.weight.mT + first.bias)
    emb = network.conditioning.noise(network.conditioning.fourier(c))
    expected = torch.nn.functional.silu(emb + h @ second.weight.mT + second.bias)
    torch.testing.assert_close(network.conditioning(c, values), expected, rtol=1e-12, atol=1e-12)
    assert network.inlet.in_channels == 1


def test_a_unet_sees_the_whole_image(generator):
    """A change in one corner reaches the other through the coarser levels, the middle and back."""
    network = awake(UNet((1, 8, 8), channels=(8, 8, 8), generator=generator))
    x, c = inputs(network, 1, generator)
    y = x.clone()
    y[..., 0, 0] += 1.0
    assert (network(x, c) - network(y, c)).abs()[..., -1, -1].min() > 0


@pytest.mark.parametrize(
    ("event", "sides"),
    [((2, 9, 7), {(9, 7), (5, 4), (3, 2)}), ((2, 8, 4), {(8, 4), (4, 2), (2, 1)}),
     ((2, 11), {(11,), (6,), (3,)})],
)  # fmt: skip
def test_no_layer_sees_a_place_outside_the_image(event, sides, generator):
    """Were it filled up to sides that can be halved, what is filled in would change means."""
    network = UNet(event, channels=(8, 8, 8), generator=generator)
    seen = set()
    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv1d | torch.nn.Conv2d | torch.nn.GroupNorm):
            layer.register_forward_pre_hook(lambda _, inputs: seen.add(tuple(inputs[0].shape[2:])))
    network(*inputs(network, 2, generator))
    assert seen == sides


@pytest.mark.parametrize(("odd", "even"), [((1, 7, 5), (1, 8, 6)), ((2, 13), (2, 14))])
def test_what_fills_up_patches_is_zero_and_cut_off(odd, even, generator):
    """An odd image, folded, is the even one with a border of zeros, but for that border."""
    ours, other = (awake(UNet(e, (8, 16), patch=2, generator=seeded(3))) for e in (odd, even))
    x, c = inputs(ours, 2, generator)
    filled = torch.nn.functional.pad(x, (0, 1) * (len(odd) - 1))
    inside = tuple(slice(n) for n in odd)
    assert torch.equal(ours(x, c), other(filled, c)[:, *inside])


def test_a_sequence_is_an_image_of_height_one(generator):
    """A second way to the same numbers: the middle rows of 3×3 kernels are those of width 3."""
    flat = awake(UNet((2, 11), (8, 16), attention=True, generator=seeded(1)))
    high = UNet((2, 1, 11), (8, 16), attention=True, generator=seeded(2))
    state = high.state_dict()
    for name, value in flat.state_dict().items():
        if value.ndim == 3:
            state[name].zero_()[:, :, value.shape[-1] // 2 if value.shape[-1] == 3 else 0] = value
        else:
            state[name].copy_(value)
    high.load_state_dict(state)
    x, c = inputs(flat, 3, generator)
    torch.testing.assert_close(high(x[:, :, None], c)[:, :, 0], flat(x, c), rtol=1e-10, atol=1e-10)


def test_attention_is_the_mean_that_a_softmax_weighs(generator):
    """By hand, head by head and place by place."""
    layer = UNet((1, 6), (64,), attention=True, generator=generator).attention
    x = torch.randn(2, 64, 6, generator=generator)
    q, k, v = layer.seen(layer.norm(x)).unflatten(1, (3, 2, 32)).unbind(1)
    mixed = torch.zeros_like(v)
    for b, head, i in torch.cartesian_prod(torch.arange(2), torch.arange(2), torch.arange(6)):
        weight = torch.stack([q[b, head, :, i] @ k[b, head, :, j] for j in range(6)])
        weight = (weight / 32**0.5).exp()
        for j in range(6):
            mixed[b, head, :, i] += weight[j] / weight.sum() * v[b, head, :, j]
    torch.testing.assert_close(layer(x), x + layer.outlet(mixed.flatten(1, 2)))


def test_fourier_features():
    f = torch.tensor([0.5, 2.0, 8.0])
    c = torch.tensor([[0.0, 0.7], [-1.3, 2.0]])
    phase = c[..., None] * f
    expected = torch.cat([phase.sin(), phase.cos()], -1)
    torch.testing.assert_close(Fourier(f.tolist())(c), expected, rtol=1e-12, atol=1e-12)
    smooth = Fourier(f.tolist(), -0.5)
    torch.testing.assert_close(smooth(c), expected / f.sqrt().repeat(2), rtol=1e-6, atol=1e-6)
    assert smooth.state_dict() == {}


@pytest.mark.parametrize("holes", [False, True])
def test_an_mlp_is_given_sines_and_cosines_of_what_it_sees(holes, generator):
    network = MLP(3, 8, 1, frequencies=(1.0, 4.0), holes=holes, generator=generator)
    x, c = torch.randn(5, 3, generator=generator), torch.zeros(5)
    state = torch.tensor([1.0, 0.0, 1.0]).expand(5, 3)
    given = torch.stack([state, 7.0 + x], 1) if holes else None
    seen = torch.where(state == 0, x, 7.0 + x) if holes else x
    one = lambda v: torch.stack([v.sin(), (4 * v).sin() / 2, v.cos(), (4 * v).cos() / 2], -1)
    wanted = torch.cat([seen, one(seen).flatten(1), *[state] * holes], 1)
    got = []
    network.inlet.register_forward_pre_hook(lambda layer, inputs: got.extend(inputs))
    network(x, c, given)
    torch.testing.assert_close(got[0], wanted, rtol=1e-6, atol=1e-6)
    assert network.config["frequencies"] == [1.0, 4.0]


@pytest.mark.usefixtures("as_user")
@every_network
def test_a_condition_missing_unwanted_or_wrong(make, generator):
    plain, classes, values = (conditional(make, k, generator) for k in (None, 3, (5, 7)))
    x, c = inputs(plain, 2, generator)
    for wrong in (torch.tensor([0, 1]), torch.zeros(2, 3)):
        with pytest.raises(ValueError, match="was given to a network that has none"):
            plain(x, c, wrong)
    match = r"conditional on 3 classes: pass int64 labels \(2,\) from 0 to 2, or -1 .* got "
    for labels, got in (
        (None, "none"),
        (torch.zeros(2), r"torch.float64 \(2,\)"),
        (torch.zeros(2, dtype=torch.int32), r"torch.int32 \(2,\)"),
        *((torch.zeros(shape).long(), "torch.int64") for shape in ((), (1,), (3,), (2, 1))),
        (torch.tensor([0, 3]), "labels from 0 to 3"),
        (torch.tensor([-2, 0]), "labels from -2 to 0"),
    ):
        with pytest.raises(ValueError, match=match + got):
            classes(x, c, labels)
    match = r"conditional on values: pass floats \(2, 5, 7\); got "
    for wrong, got in (
        (None, "none"),
        (torch.zeros(2, 5, 7).long(), r"torch.int64 \(2, 5, 7\)"),
        *(
            (torch.zeros(shape), "torch.float64")
            for shape in ((5, 7), (1, 5, 7), (2, 7, 5), (2, 35))
        ),
    ):
        with pytest.raises(ValueError, match=match + got):
            values(x, c, wrong)


@every_network
def test_the_label_of_no_class_adds_nothing(make, generator):
    """Its embedding is 0: the answer of the same network without its label embedding."""
    network = conditional(make, 3, generator)
    x, c, _ = inputs(network, 3, generator)
    mixed = network(x, c, torch.tensor([1, NO_CLASS, 2]))
    alone = network(x, c, torch.full((3,), NO_CLASS))
    torch.testing.assert_close(mixed[1], alone[1], rtol=1e-12, atol=1e-12)
    assert (mixed[0] - alone[0]).abs().max() > 1e-4
    network.conditioning.label.weight.data.zero_()
    torch.testing.assert_close(alone, network(x, c, torch.tensor([0, 1, 2])), rtol=0, atol=0)
    network.zero_grad()
    network(x, c, torch.tensor([NO_CLASS, 1, NO_CLASS])).square().sum().backward()
    grad = network.conditioning.label.weight.grad
    assert (grad[[0, 2]] == 0).all()  # no class teaches no class
    assert grad[1].abs().max() > 0


def test_conditions_are_dropped_independently_with_the_probability_asked_for(generator):
    n = 20_000
    for p in (0.0, 0.1, 0.7):
        state = generator.get_state()
        gone = drop(p, n, generator)
        assert gone.dtype == torch.bool
        assert abs(float(gone.double().mean()) - p) <= 5 * (p * (1 - p) / n) ** 0.5
        pairs = (gone[1:] & gone[:-1]).double().mean()  # neighbours: p² if independent
        assert abs(float(pairs) - p**2) <= 5 * (p**2 / n) ** 0.5
        again = torch.Generator()
        again.set_state(state)
        assert torch.equal(gone, torch.rand(n, dtype=torch.float64, generator=again) < p)


@pytest.mark.usefixtures("as_user")
@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: MLP(0), "event must be an integer of at least 1, got 0"),
        (lambda: MLP(()), "the number of sizes of event must be an integer of at least 1, got 0"),
        (lambda: MLP(2, condition=0), "condition must be an integer of at least 1, got 0"),
        (lambda: MLP(2, condition=-1), "condition must be an integer of at least 1, got -1"),
        (
            lambda: MLP(2, condition=()),
            "the number of sizes of condition must be an integer of at least 1,",
        ),
        (lambda: UNet((8,)), r"a shape \(C, H, W\) or \(C, L\), got \(8,\)"),
        (lambda: UNet((1, 8, 8), attention=1), "attention must be True or False"),
        (
            lambda: UNet((0, 8, 8)),
            r"event must be a tuple of positive sizes such as \(3,\), got \(0, 8, 8\)",
        ),
        (
            lambda: UNet((1, 2, 2), channels=(8, 8, 8)),
            "an event of 2x2 cannot be halved often enough: channels need 2 halvings",
        ),
        (
            lambda: UNet((1, 4), channels=(8, 8), patch=4),
            "an event of 4 cannot be halved often enough",
        ),
        (lambda: UNet((1, 8, 8), channels=(8, 12)), r"multiples of 8, got \(8, 12\)"),
        (
            lambda: UNet((1, 8, 8), channels=()),
            "the number of sizes of channels must be an integer of at least 1, got",
        ),
        (
            lambda: UNet((1, 8, 8), condition=(3, 0)),
            r"condition must be a tuple of positive sizes such as \(3,\), got \(3, 0\)",
        ),
    ],
)
def test_refuses_bad_sizes(make, match):
    with pytest.raises(ValueError, match=match):
        make()
