"""Networks: shapes, seeded weights, a silent start, and no sample that sees another."""

import pytest
import torch

from gradlogp.scores.networks import (
    MLP,
    NO_CLASS,
    UNet,
    drop_labels,
)
from gradlogp.scores.networks.embeddings import Conditioning, Fourier

MAKE = {
    "mlp": lambda **k: MLP(5, width=16, depth=2, **k),
    "mlp-images": lambda **k: MLP((1, 4, 3), width=16, depth=1, **k),
    "unet": lambda **k: UNet((1, 8, 8), channels=(8, 16), **k),
    "unet-colour": lambda **k: UNet((3, 4, 8), channels=(8,), blocks=2, **k),
    "unet-patches": lambda **k: UNet((1, 8, 16), channels=(8, 16), patch=2, **k),
    "unet-deep": lambda **k: UNet((2, 8, 8), channels=(8, 8, 16), blocks=2, **k),
}
every_network = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE.keys())


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def awake(network, seed=1):
    """Give the zero output layer weights, so that there is something to see."""
    torch.nn.init.normal_(network.outlet.weight, 0.0, 0.3, generator=seeded(seed))
    return network


def inputs(network, n, g):
    x = torch.randn(n, *network.event_shape, generator=g)
    return x, torch.randn(n, generator=g)


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


@every_network
def test_weights_come_from_the_generator_alone(make):
    torch.manual_seed(1)
    one = make(generator=seeded(5), n_classes=3)
    torch.manual_seed(2)
    two, three = make(generator=seeded(5), n_classes=3), make(generator=seeded(6), n_classes=3)
    a, b, c = (n.state_dict() for n in (one, two, three))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert any(not torch.equal(a[key], c[key]) for key in a)
    for name, p in one.named_parameters():
        assert p.isfinite().all()
        drawn = name.endswith("weight") and "norm" not in name and "outlet" not in name
        assert (len(p.unique()) > 1) == drawn, name


@every_network
def test_the_config_rebuilds_the_network(make, generator):
    network = awake(make(generator=generator, n_classes=2))
    again = type(network)(**network.config)
    again.load_state_dict(network.state_dict())
    x, c = inputs(network, 3, generator)
    labels = torch.tensor([0, 1, 1])
    assert torch.equal(again(x, c, labels), network(x, c, labels))
    assert again.event_shape == network.event_shape
    assert again.n_classes == 2


@every_network
def test_samples_do_not_see_each_other(make, generator):
    network = awake(make(generator=generator, n_classes=4))
    x, c = inputs(network, 4, generator)
    labels = torch.arange(4)
    out = network(x, c, labels)
    for i in range(4):
        one = network(x[i : i + 1], c[i : i + 1], labels[i : i + 1])
        torch.testing.assert_close(one[0], out[i], rtol=1e-12, atol=1e-12)


@every_network
def test_input_noise_coordinate_and_label_all_matter(make, generator):
    network = awake(make(generator=generator, n_classes=4))
    x, c = inputs(network, 2, generator)
    labels = torch.tensor([0, 3])
    out = network(x, c, labels)
    assert (network(x + 0.1, c, labels) - out).abs().max() > 1e-4
    assert (network(x, c + 0.1, labels) - out).abs().max() > 1e-4
    assert (network(x, c, 3 - labels) - out).abs().max() > 1e-4


@every_network
def test_every_parameter_is_trained(make, generator):
    network = awake(make(generator=generator, n_classes=2))
    x, c = inputs(network, 4, generator)
    (network(x, c, torch.tensor([0, 1, 0, 1])) - x).square().sum().backward()
    for name, p in network.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().max() > 0, name


def test_a_unet_sees_the_whole_image(generator):
    """A change in one corner reaches the other through the coarser levels, the middle and back."""
    network = awake(UNet((1, 8, 8), channels=(8, 8, 8), generator=generator))
    x, c = inputs(network, 1, generator)
    y = x.clone()
    y[..., 0, 0] += 1.0
    assert (network(x, c) - network(y, c)).abs()[..., -1, -1].min() > 0


def test_fourier_features():
    fourier = Fourier(3, 0.5, 8.0)
    c = torch.tensor([0.0, 0.7])
    phase = c[:, None] * torch.tensor([0.5, 2.0, 8.0])
    expected = torch.cat([phase.sin(), phase.cos()], 1)
    torch.testing.assert_close(fourier(c), expected, rtol=1e-12, atol=1e-12)
    assert fourier.state_dict() == {}


@pytest.mark.usefixtures("as_user")
@every_network
def test_labels_missing_unwanted_out_of_range_or_too_few(make, generator):
    plain, conditional = make(generator=generator), make(generator=generator, n_classes=3)
    x, c = inputs(plain, 2, generator)
    with pytest.raises(ValueError, match="labels were given to a network with n_classes=0"):
        plain(x, c, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="conditional on 3 classes: pass labels"):
        conditional(x, c)
    for labels in ([0, 3], [-2, 0]):
        with pytest.raises(ValueError, match="labels must lie in 0 … 2"):
            conditional(x, c, torch.tensor(labels))
    for labels in ([0], [0, 1, 2], [[0], [1]]):
        with pytest.raises(ValueError, match=r"labels must have shape \(2,\), one a sample"):
            conditional(x, c, torch.tensor(labels))


@every_network
def test_the_label_of_no_class_adds_nothing(make, generator):
    """Its embedding is 0: the answer of the same network without its label embedding."""
    network = awake(make(generator=generator, n_classes=3))
    x, c = inputs(network, 3, generator)
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


def test_labels_are_dropped_independently_with_the_probability_asked_for(generator):
    labels = torch.arange(20_000) % 7
    for p in (0.0, 0.1, 0.7):
        dropped = drop_labels(labels, p, generator)
        gone = dropped == NO_CLASS
        assert abs(float(gone.double().mean()) - p) <= 5 * (p * (1 - p) / 20_000) ** 0.5
        assert torch.equal(dropped[~gone], labels[~gone])
        pairs = (gone[1:] & gone[:-1]).double().mean()  # neighbours: p² if independent
        assert abs(float(pairs) - p**2) <= 5 * (p**2 / 20_000) ** 0.5
    assert torch.equal(labels, torch.arange(20_000) % 7)  # its input is left alone


def test_conditioning_adds_the_embedding_of_the_label(generator):
    conditioning = Conditioning(8, 2)
    c = torch.randn(2, generator=generator)
    off = conditioning.label.weight.detach().clone()
    conditioning.label.weight.data.zero_()
    plain = conditioning.noise(conditioning.fourier(c))
    conditioning.label.weight.data.copy_(off)
    expected = torch.nn.functional.silu(plain + off[[1, 0]])
    torch.testing.assert_close(conditioning(c, torch.tensor([1, 0])), expected)


@pytest.mark.usefixtures("as_user")
@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: MLP(0), "MLP needs positive sizes, got event=0"),
        (lambda: MLP(()), "MLP needs positive sizes"),
        (lambda: MLP(2, width=0), "width=0"),
        (lambda: MLP(2, depth=0), "depth=0"),
        (lambda: MLP(2, n_classes=-1), "n_classes=-1"),
        (lambda: UNet((8, 8)), r"UNet needs an event shape \(C, H, W\), got \(8, 8\)"),
        (lambda: UNet((0, 8, 8)), r"UNet needs an event shape \(C, H, W\)"),
        (lambda: UNet((1, 9, 8)), "9x8 images cannot be halved 1 times .* multiples of 2"),
        (lambda: UNet((1, 8, 8), patch=3), "folding 3x3 patches: .* multiples of 6"),
        (lambda: UNet((1, 8, 8), channels=(8, 12)), r"multiples of 8, got \(8, 12\)"),
        (lambda: UNet((1, 8, 8), channels=()), r"positive sizes, got channels=\(\)"),
        (lambda: UNet((1, 8, 8), patch=0), "positive sizes.*patch=0"),
        (lambda: UNet((1, 8, 8), blocks=0), "positive sizes.*blocks=0"),
        (lambda: UNet((1, 8, 8), n_classes=-1), "positive sizes.*n_classes=-1"),
    ],
)
def test_refuses_bad_sizes(make, match):
    with pytest.raises(ValueError, match=match):
        make()
