"""Scores given a condition, and levels of columns: closed forms that a model must reproduce."""

import copy
import math
import pickle

import pytest
import torch
from support import close, seeded
from torch import nn

from gradlogp import (
    MLP,
    ExactScore,
    Gaussian,
    GaussianMixture,
    GuidedScore,
    ScoreModel,
    UNet,
    evolve,
    fit,
    log_likelihood,
    time_grid,
)
from gradlogp.diffusion import Ancestral, ProbabilityFlow
from gradlogp.distributions.analytic.conditional import Classes, Joint
from gradlogp.learn import checkpoint
from gradlogp.learn.objectives.masked import Masks
from gradlogp.noise import AffineCoordinates
from gradlogp.noise.schedules import VE, VP, Cosine
from gradlogp.scores.conditioned import NULL, Condition, ConditionedScore
from gradlogp.scores.levels import SEEN, Levels
from gradlogp.scores.networks import NO_CLASS

T = torch.tensor(0.4, dtype=torch.float64)
KINDS = {"classes": 3, "vectors": (2,), "sequences": (2, 5), "images": (1, 4, 4)}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())


def values(kind, n, g):
    """n conditions of a kind, floats not in standard units."""
    if isinstance(kind, int):
        return torch.arange(n) % kind
    return 40 + 3 * torch.randn(n, *kind, generator=g)


def awake(kind, dropout=0.0):
    """A model of that condition, fitted to conditions, whose output depends on all it is given."""
    if kind == (1, 4, 4):
        network = UNet((1, 4, 4), (8,), condition=kind, generator=seeded())
    else:
        network = MLP(3, 16, 1, kind, generator=seeded())
    nn.init.normal_(network.outlet.weight, 0.0, 0.3, generator=seeded(1))
    model = ScoreModel(network, VP())
    model.condition.fit(values(kind, 50, seeded(2)), dropout)
    return model.requires_grad_(False)


# ---------------------------------------------------------------------------- what is taken


@every_kind
def test_given_is_the_network_at_the_standardised_condition(kind, generator):
    model = awake(kind)
    z, y = torch.randn(4, *model.event_shape, generator=generator), values(kind, 4, generator)
    fitted = values(kind, 50, seeded(2))
    inside = y
    if not isinstance(kind, int):
        axes = (0, *range(2, fitted.ndim))
        mean, std = fitted.mean(axes, keepdim=True), fitted.std(axes, keepdim=True, correction=0)
        inside = (y - mean) / std
    score = model.given(y)
    assert isinstance(score, ConditionedScore)
    assert score.n_rows == 4
    close(score(z, T), model.forward(z, T, inside), 1e-12)
    close(score.denoise(z, T), model.denoise_given(z, T, inside), 1e-12)
    alpha, sigma = VP()(T)
    close(score.denoise(z, T), (z + sigma**2 * score(z, T)) / alpha, 1e-9)
    assert (score(z, T) - model.given(y.flip(0))(z, T)).abs().max() > 1e-4


@every_kind
def test_one_row_serves_all_and_each_row_its_sample(kind, generator):
    model = awake(kind)
    z, y = torch.randn(4, *model.event_shape, generator=generator), values(kind, 4, generator)
    t = torch.tensor([0.1, 0.4, 0.7, 0.9])
    each = model.given(y)
    for name in ("__call__", "denoise"):
        out = getattr(each, name)(z, t)
        for i in range(4):
            one = model.given(y[i : i + 1])
            assert one.n_rows == 1
            close(getattr(one, name)(z, t)[i], out[i], 1e-12)
        for index in (slice(1, 3), torch.tensor([3, 0]), slice(2, None)):
            close(getattr(each.rows(index), name)(z[index], t[index]), out[index], 1e-12)
    one = model.given(y[:1])
    assert one.rows(slice(2, 4)) is one
    if isinstance(kind, int):
        close(model.given(2)(z, t), model.given(torch.tensor([2]))(z, t), 0)
    close(each.given(y[:1])(z, t), one(z, t), 0)  # another condition in place of this one
    for n in (3, 5):
        with pytest.raises(
            ValueError, match=f"holds 4 rows of conditions .* got {n} samples; pass as many"
        ):
            each(torch.zeros(n, *model.event_shape), T)


@every_kind
def test_chunks_are_the_whole(kind, generator):
    """Conditions follow their samples through a driver, in chunks of any size."""
    model = awake(kind)
    model.fit_frame(2 + 3 * torch.randn(50, *model.event_shape, generator=generator), "each")
    score, times = model.given(values(kind, 7, generator)), time_grid(VP(), 6)
    draw = lambda s, chunk: evolve(Ancestral(), s, 7, times, chunk_size=chunk, generator=seeded(5))
    whole = draw(score, None)
    for chunk in (1, 3, 7):
        close(draw(score, chunk), whole, 1e-10)
    assert (draw(model.given(values(kind, 8, generator)[1:]), None) - whole).abs().max() > 1e-4
    if model.event_shape == (3,):
        x = whole + 1
        likely = lambda chunk: log_likelihood(score, x, n_steps=4, chunk_size=chunk).log_prob
        close(likely(3), likely(None), 1e-10)


def test_the_dtype_of_a_condition_is_no_matter(generator):
    """A model in float32 takes float64 conditions far from 0, and loses none of their digits."""
    model = awake((2,))
    y = 1e7 + torch.randn(50, 2, generator=generator)
    model.condition.fit(y, 0.0)
    z = torch.randn(50, 3, generator=generator)
    exact = model.given(y)(z, T)
    single = model.float().given(y)(z.float(), T)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact, rtol=1e-4, atol=1e-4)
    assert (
        model.given(y.float())(z.float(), T) - single
    ).abs().max() > 0.01  # rounded by the user


# ---------------------------------------------------------------------------- what is refused


BAD = {
    "classes": [
        (1.0, "got 1.0"),
        (True, "got True"),
        ([0, 1], "got list"),
        (None, "got None"),
        (3, "from 0 to 3 - 1; got 3"),
        (-1, "from 0 to 3 - 1; got -1"),
        (torch.tensor([0, 3]), "got 3"),
        (torch.tensor([NO_CLASS, 2]), "got -1"),
        (torch.tensor(1), r"got torch.int64 of shape \(\)"),
        (torch.tensor([[1]]), r"got torch.int64 of shape \(1, 1\)"),
        (torch.tensor([1], dtype=torch.int32), "got torch.int32"),
        (torch.tensor([1.0]), "got torch.float"),
        (torch.zeros(2, 2), "got torch.float"),
        (torch.tensor([True]), "got torch.bool"),
        (torch.empty(0, dtype=torch.int64), r"of shape \(0,\)"),
    ],
    "values": [
        (1.0, "got 1.0"),
        (1, "got torch.int64"),
        ([[1.0, 2.0]], "got list"),
        (lambda k: torch.zeros(k), "got torch.float64 of shape"),  # without the row
        (lambda k: torch.zeros(2, *k, 1), "got torch.float64 of shape"),
        (lambda k: torch.zeros(2, *k[:-1], k[-1] + 1), "got torch.float64 of shape"),
        (lambda k: torch.zeros(2, *k).long(), "got torch.int64"),
        (lambda k: torch.zeros(2, *k).bool(), "got torch.bool"),
        (lambda k: torch.zeros(0, *k), r"of shape \(0, "),
        (lambda k: torch.full((2, *k), torch.nan), "entries that are not finite"),
        (lambda k: torch.full((2, *k), -torch.inf), "entries that are not finite"),
        (lambda k: torch.zeros(2, *k, dtype=torch.complex128), "got torch.complex128"),
    ],
}


@pytest.mark.usefixtures("as_user")
@every_kind
def test_every_wrong_condition_is_refused(kind):
    model = awake(kind)
    classes = isinstance(kind, int)
    for bad, got in BAD["classes" if classes else "values"]:
        bad = bad(kind) if callable(bad) else bad
        with pytest.raises(ValueError, match=got) as caught:
            model.given(bad)
        if "not finite" not in got:
            wanted = (
                "a class, as an int or int64" if classes else "float values of shape (1 or B, "
            )
            assert str(caught.value).startswith(f"the condition must be {wanted}")
            assert classes or ", ".join(map(str, kind)) in str(caught.value)


@pytest.mark.usefixtures("as_user")
def test_kinds_that_are_none_are_refused():
    for kind in (0, -2, (), (0,), (3, -1), True, (True,)):
        with pytest.raises(ValueError, match=r"condition.* number of classes"):
            Condition(kind)


# ---------------------------------------------------------------------------- without a condition


@every_kind
def test_unconditional_needs_condition_dropout(kind, generator):
    model = awake(kind)
    z = torch.randn(4, *model.event_shape, generator=generator)
    match = "never trained on its null condition: .*model.given.*condition_dropout=0.1"
    for call in (model.unconditional, model.given(values(kind, 1, generator)).unconditional):
        with pytest.raises(ValueError, match=match):
            call()
    for call in (model, model.denoise):
        with pytest.raises(ValueError, match=match):
            call(z, T)
    model = awake(kind, dropout=0.2)
    free = model.unconditional()
    if isinstance(kind, int):
        null = torch.full((4,), NO_CLASS)
    else:
        null = model.condition.null_value.expand(4, *kind)
    close(free(z, T), model.forward(z, T, null), 1e-12)
    close(free.denoise(z, T), model.denoise_given(z, T, null), 1e-12)
    close(model(z, T), free(z, T), 0)
    close(model.denoise(z, T), free.denoise(z, T), 0)
    assert (free.n_rows, free.pooled, free.rows(slice(0, 1))) == (None, False, free)
    given = model.given(values(kind, 4, generator))
    assert given.pooled  # the model's moments are those of all conditions
    guided = GuidedScore(given, free, 1.5)
    close(guided(z, T), 2.5 * given(z, T) - 1.5 * free(z, T), 1e-12)
    close(guided.rows(slice(1, 3))(z[1:3], T), guided(z, T)[1:3], 1e-12)
    again = awake(kind)
    again.load_state_dict(model.state_dict())  # that it was trained so is stored
    close(again.unconditional()(z, T), free(z, T), 0)


@pytest.mark.parametrize("kind", [(1,), (2,), (2, 5), (1, 4, 4)], ids=str)
def test_the_null_condition_is_none_of_the_data(kind, generator):
    """In every entry it begins beyond all conditions; of 17 values one of which is 1 that is 4 σ."""
    rare = (
        (torch.arange(17 * 5) % 17 == 0).double().reshape(-1, *[1] * len(kind)).expand(-1, *kind)
    )
    for y in (
        rare,
        values(kind, 300, generator),
        torch.randn(300, *kind, generator=generator).exp(),
    ):
        condition = Condition(kind)
        condition.fit(y, 0.1)
        seen = condition.encode(y)
        assert (condition.null_value >= seen.amax(0) + 1 - 1e-12).all()
        assert (condition.null_value >= NULL).all()
        dropped = torch.arange(len(y)) % 3 == 0
        out = condition.drop(seen, dropped)
        assert torch.equal(out[~dropped], seen[~dropped])
        assert torch.equal(out[dropped], condition.null(int(dropped.sum()), seen))
    one = Condition(kind)
    one.fit(rare, 0.0)
    close(one.encode(rare).amax(), torch.tensor(4.0), 1e-9)  # what would have met NULL itself


def test_no_class_is_no_class():
    condition = Condition(3)
    condition.fit(torch.arange(9) % 3, 0.1)
    seen, dropped = torch.arange(6) % 3, torch.tensor([True, False] * 3)
    assert condition.drop(seen, dropped).tolist() == [NO_CLASS, 1, NO_CLASS, 0, NO_CLASS, 2]
    assert condition.null(2, torch.zeros(1)).tolist() == [NO_CLASS] * 2


# ---------------------------------------------------------------------------- closed forms

TWO = Gaussian(
    torch.tensor([0.5, -1.0, 20.0, 300.0], dtype=torch.float64),
    torch.tensor(
        [
            [1.0, 0.3, 2.0, -9.0],
            [0.3, 0.8, 1.0, 20.0],
            [2.0, 1.0, 9.0, 0.0],
            [-9.0, 20.0, 0.0, 900.0],
        ],
        dtype=torch.float64,
    ),
)
MIXED = GaussianMixture(
    [0.4, 0.6],
    torch.tensor([[-2.0, 0.0, 15.0, 280.0], [1.0, 1.0, 24.0, 310.0]], dtype=torch.float64),
    torch.stack([0.5 * TWO.cov, 0.7 * TWO.cov]),
)
JOINTS = {"gaussian": Joint(TWO, 2), "mixture": Joint(MIXED, 2)}
SCHEDULES = [VP(), VE(0.05, 30.0), Cosine()]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)


class Knows(nn.Module):
    """The network of a model of x given y, which turns everything back by hand.

    It sees z̃ = (z − α m)/√(α² c² + σ²), the coordinate −log(α c̄/σ)/4 and the standardised y, finds
    α and σ, and answers with ε of the exact law of z given y.
    """

    def __init__(self, model_of, law, schedule):
        super().__init__()
        self.event_shape, self.law, self.model_of, self.schedule = (
            law.event_shape,
            law,
            model_of,
            schedule,
        )

    def forward(self, z_unit, coordinate, y_unit):
        model = self.model_of()
        c, m = model.z_std, model.z_mean
        r = torch.exp(4 * coordinate) * c.square().mean().sqrt()  # σ/α
        if isinstance(self.schedule, VE):
            a, b = torch.ones_like(r), r
        else:
            a = 1 / (1 + r**2).sqrt()
            b = r * a
        a, b = a[:, None], b[:, None]
        z = z_unit * (a**2 * c**2 + b**2).sqrt() + a * m
        y = y_unit if y_unit.dtype == torch.int64 else model.condition.coordinates.decode(y_unit)
        shift, scale = model.coordinates.shift, model.coordinates.scale
        law = in_model_units(self.law.given(y), shift, scale).noised(a[:, 0], b[:, 0])
        return -b * law.score(z)


def in_model_units(law, shift, scale):
    """The law of (x − shift)/scale with one scale for all, as a law of the same kind."""
    s = scale[0]
    return type(law)(law.log_weights, (law.means - shift) / s, law.variances / s**2, law.basis)


def knowing(law, schedule, condition, fitted=None):
    """A model whose network knows the law of x given y; frame and condition are not trivial."""
    made = []
    network = Knows(lambda: made[0], law, schedule)
    model = ScoreModel(network, schedule, "epsilon", condition=condition)
    made.append(model)
    d = model.event_shape.numel()
    model.coordinates = AffineCoordinates(
        torch.linspace(-0.4, 0.7, d), torch.full((d,), 1.7), torch.float64
    )
    model.z_mean.copy_(torch.linspace(0.3, -0.6, d))
    model.z_std.copy_(torch.linspace(0.8, 1.3, d))
    if fitted is not None:
        model.condition.fit(fitted, 0.0)
        assert not torch.allclose(model.condition.encode(fitted), fitted)
    return model


def case(name, schedule, g):
    """A model that knows, and x, y, and the law of x given each y."""
    if name == "classes":
        laws = [Gaussian([-2.0, 0.0], 0.3), MIXED_XS, Gaussian([1.5, 1.0], [0.6, 0.2])]
        joint, kind = Classes(laws, [0.2, 0.5, 0.3]), 3
        y, fitted = torch.tensor([2, 0, 1, 1, 0]), None
    else:
        joint, kind = JOINTS[name], (2,)
        fitted = (TWO if name == "gaussian" else MIXED).sample(200, generator=g)[:, 2:]
        y = fitted[:5]
    law = joint.given(y)
    return knowing(joint, schedule, kind, fitted), law.sample(5, generator=g), y, law


MIXED_XS = GaussianMixture(
    [0.5, 0.5], torch.tensor([[0.0, 2.0], [1.0, -2.0]], dtype=torch.float64), 0.2
)
every_case = pytest.mark.parametrize("name", ["gaussian", "mixture", "classes"])


@every_case
@every_schedule
def test_forward_and_denoise_are_the_closed_forms(name, schedule, generator):
    model, x, y, law = case(name, schedule, generator)
    score = model.given(y)
    in_z = in_model_units(law, model.coordinates.shift, model.coordinates.scale)
    z0 = model.coordinates.encode(x)
    for t in (*torch.tensor([0.02, 0.3, 0.6, 0.95]), torch.linspace(0.1, 0.9, 5)):
        alpha, sigma = schedule(t)
        a, b = (v.reshape(-1, 1) for v in (alpha, sigma))
        z = a * z0 + b * torch.randn(5, 2, generator=generator)
        exact = in_z.noised(alpha, sigma)
        torch.testing.assert_close(score(z, t), exact.score(z), rtol=1e-8, atol=1e-8)
        mean = in_z.posterior_mean(z, alpha, sigma)
        torch.testing.assert_close(score.denoise(z, t), mean, rtol=1e-8, atol=1e-8)
        tweedie = (z + b**2 * exact.score(z)) / a
        torch.testing.assert_close(mean, tweedie, rtol=1e-8, atol=1e-7)
        one = model.given(y[2:3])
        close(one(z, t)[2], score(z, t)[2], 1e-12)
        wrong = model.given(y.roll(1, 0))  # negative control: the condition of another row
        assert (wrong(z, t) - exact.score(z)).abs().max() > 1e-4


@every_case
def test_log_likelihood_is_the_conditional_density(name, generator):
    """log p(x | y) in the units of the data: that of the law blurred by the noise at t_min."""
    schedule = VP(0.1, 40.0)  # a start in moments is then that of the law to 1e-8
    model, x, y, law = case(name, schedule, generator)
    alpha, sigma = schedule(torch.tensor(1e-3))
    scale = model.coordinates.scale[0]
    shift = model.coordinates.shift
    # z_t has the law of α z_0 + σ ε: as a density of x, at α z, with the Jacobian of x -> z
    in_z = in_model_units(law, shift, model.coordinates.scale).noised(alpha, sigma)
    expected = in_z.log_prob(model.coordinates.encode(x)) - 2 * scale.log()
    found = log_likelihood(model.given(y), x, tolerance=1e-4)
    assert found.t_min == 1e-3
    close(found.log_prob, expected, 1e-4)
    swapped = log_likelihood(model.given(y.roll(1, 0)), x, tolerance=1e-2)
    assert (swapped.log_prob - expected).abs().max() > 0.1


# ---------------------------------------------------------------------------- trained

TOLERANCE = 0.12
"""Root mean square of the error of posterior means, after seconds of training; they differ by 0.7."""


@pytest.mark.usefixtures("as_user")
def test_a_linear_law_is_learned_given_y_and_without():
    """x ~ N(0, 1), y = x + 0.5 ε: E[x | y] = 0.8 y, Var = 0.2; a third of the training sees no y."""
    g = seeded(0)
    n = 4000
    x = torch.randn(n, 1, generator=g)
    y = 100 + 10 * (x + 0.5 * torch.randn(n, 1, generator=g))  # in other units
    model = ScoreModel(MLP(1, 64, 1, (1,), generator=g), VP(), "v")
    start = model.condition.null_value.detach().clone()
    options = {"steps": 450, "batch_size": 256, "learning_rate": 1e-2, "warm_up": 20}
    list(fit(model, x, condition=y, condition_dropout=0.3, generator=g, ema=0.99, **options))
    assert (model.condition.null_value - start).abs().min() > 1e-3  # it is learned
    assert model.condition.null_value.min() > model.condition.encode(y).max()
    t, spread = torch.tensor(0.5), torch.linspace(-2, 2, 31)[:, None]
    alpha, sigma = VP()(t)
    off = lambda a, b: float((a - b).square().mean().sqrt())
    with torch.no_grad():
        free = model.unconditional()
        for u in (-1.0, 0.0, 1.0):  # y = 100 + 10 u: x ~ N(0.8 u, 0.2)
            law = Gaussian([0.8 * u], 0.2)
            z = alpha * 0.8 * u + (0.2 * alpha**2 + sigma**2).sqrt() * spread  # where it is
            given = model.given(torch.tensor([[100 + 10 * u]])).denoise(z, t)
            assert off(given, law.posterior_mean(z, alpha, sigma)) < TOLERANCE
            everyone = Gaussian([0.0], 1.0).posterior_mean(z, alpha, sigma)
            assert off(free.denoise(z, t), everyone) < TOLERANCE
            if u:  # negative control: the two are far apart
                assert off(given, everyone) > 4 * TOLERANCE
    assert math.isclose(float(model.condition.dropout), 0.3, rel_tol=1e-6)


def test_what_is_linear_in_a_condition_is_exact_before_any_training(generator):
    """x = A y + b + noise, at scales that differ by 10⁶: an untrained network has the law given y."""
    A = torch.tensor([[2e3, -1e3, 5e2], [1e-3, 0.0, 2e-3]], dtype=torch.float64)
    y = torch.randn(400, 3, generator=generator)
    y[:, 2] = y[:, 0] - y[:, 1]  # columns that depend on one another
    noise = torch.randn(400, 2, generator=generator)
    Y = torch.cat([y[:, :2], torch.ones(400, 1)], 1)
    noise = torch.linalg.qr(noise - Y @ torch.linalg.lstsq(Y, noise).solution)[0]  # exactly I
    sd = torch.tensor([300.0, 4e-4], dtype=torch.float64)
    x = y @ A.T + torch.tensor([5e4, 3.0]) + 20 * noise * sd  # covariance 400 · I/400 · sd²
    model = ScoreModel(MLP(2, 8, 1, (3,), generator=seeded()), VE(0.01, 20.0), "v").double()
    nn.init.zeros_(model.network.outlet.bias)
    model.fit_frame(x, "each")
    model.fit_condition(x, y, 0.0)
    at = torch.tensor([[1.0, -2.0, 3.0], [0.5, 0.0, 0.5]], dtype=torch.float64)
    mean = at @ A.T + torch.tensor([5e4, 3.0])
    scale, T = model.coordinates.scale, torch.tensor([0.1, 0.7], dtype=torch.float64)
    alpha, sigma = VE(0.01, 20.0)(T)
    c2 = (sd / scale) ** 2 * 400 / (400 - 4)  # unbiased
    m = model.coordinates.encode(mean)
    z = m + torch.randn(2, 2, generator=generator)
    var = alpha[:, None] ** 2 * c2 + sigma[:, None] ** 2
    close(model.given(at)(z, T), -(z - alpha[:, None] * m) / var, 1e-7)
    close(model.given(at).denoise(z, T), m + c2 / var * (z - m), 1e-7)
    model.fit_condition(x, y, 0.1)  # with dropout the network must do without
    assert (model.given(at)(z, T) + (z - m) / var).abs().max() > 0.1


BLUR = 0.05
GROUPS = (0, 0, 0, 1, 2, 2)  # three levels; one entry of two; a number and whether it is there
LEVELS = (True, True, True, True, True, False)
SHARES = torch.tensor([0.01, 0.3, 0.69], dtype=torch.float64)


def rows_of(n, g):
    """Rows of such columns, independent, with exactly these shares."""
    counts = [round(n * float(p)) for p in SHARES]
    state = torch.repeat_interleave(torch.arange(3), torch.tensor(counts))
    flags = torch.nn.functional.one_hot(state, 3).double()
    two = (torch.arange(n) % 5 == 0).double()[torch.randperm(n, generator=g)]
    there = (torch.arange(n) % 4 > 0).double()[torch.randperm(n, generator=g)]
    x = torch.cat([flags, two[:, None], there[:, None]], 1)
    x = x + BLUR * torch.randn(n, 5, generator=g, dtype=torch.float64)
    return torch.cat([x, torch.randn(n, 1, generator=g, dtype=torch.float64)], 1)


def exact_of(mean, share, scale, schedule):
    """The law of one column in the frame, as a mixture."""
    cov = torch.diag((BLUR / scale).square()).expand(len(mean), -1, -1)
    return ExactScore(GaussianMixture(share, mean, cov), schedule)


def test_a_column_of_levels_is_the_mixture_that_it_is(generator):
    """Before any training, and where the network says that a level is e^f times as likely."""
    n = 1000
    x = rows_of(n, generator)
    x[:100, 3] = math.nan  # of rows where it is unknown nothing is learned
    frame = AffineCoordinates(x.nanmean(0), torch.tensor([0.1, 0.5, 0.4, 0.4, 0.5, 1.0]).double())
    levels = Levels(6).double()
    levels.choose(tuple(g if k else -1 for g, k in zip(GROUPS, LEVELS, strict=True)), BLUR)
    levels.fit(x, frame)
    u = 3 * torch.randn(7, 6, generator=generator, dtype=torch.float64)
    f = torch.tensor([2.0, 0.0, -1.0, 1.5, 0.0, 0.0]).double()
    two = (x[100:, 3] > 0.5).double().mean()
    three = (n * SHARES + SEEN) / (n + 3 * SEEN)
    one = (900 * two + SEEN) / (900 + 2 * SEEN)
    for schedule in (VP(), VE(0.02, 30.0)):
        for out in (torch.zeros(6).double(), f):
            odds = three * out[:3].exp()
            ones = torch.stack([1 - one, one * out[3].exp()])
            cases = ((slice(0, 3), torch.eye(3), odds), (slice(3, 4), torch.eye(2)[:, 1:], ones))
            for t in (0.05, 0.4, 0.9):
                a, s = (v.double() for v in schedule(torch.tensor(t).double()))
                found = levels.denoise(u, a, s.expand(6), out.expand_as(u))
                for own, at, share in cases:
                    shift, scale = frame.shift[own], frame.scale[own]
                    law = exact_of(
                        (at.double() - shift) / scale, share / share.sum(), scale, schedule
                    )
                    close(found[:, own], law.denoise(u[:, own], torch.tensor(t).double()), 1e-9)


def untrained(x, schedule):
    """A model that knows what its rows say before any training."""
    model = ScoreModel(MLP(6, 8, 1, holes=True, generator=seeded()), schedule, "v").double()
    nn.init.zeros_(model.network.outlet.bias)
    Masks(x, GROUPS, (False,) * 6, LEVELS, BLUR).prepare(model.condition)
    model.fit_frame(x, "each")
    model.fit_condition(x, x, 0.0)
    return model


def test_rare_levels_are_drawn_as_often_as_they_are_met(tmp_path):
    """By the flow of a model that has learned nothing, and one that a file brought back."""
    g = seeded(1)
    model = untrained(rows_of(2000, g), VE(0.01, 40.0))
    n = 4000
    drawn = evolve(ProbabilityFlow(), model, n, time_grid(model.schedule, 40), generator=g)
    met = torch.bincount(drawn[:, :3].argmax(1), minlength=3).double() / n
    assert bool(((met - SHARES).abs() < 4.5 * (SHARES * (1 - SHARES) / n).sqrt()).all()), met
    assert abs(float((drawn[:, 3] > 0.5).double().mean()) - 0.2) < 4.5 * math.sqrt(0.16 / n)
    assert float((drawn[:, :3].sort(1).values - torch.tensor([0.0, 0.0, 1.0])).abs().max()) < 0.4
    again = checkpoint.load(checkpoint.save(tmp_path / "m", model))
    z, t = drawn[:5], torch.tensor(0.6).double()
    close(again.denoise(z, t), model.denoise(z, t), 0.0)


def test_a_dependence_between_levels_is_learned():
    """Of two equal columns each says the other; alone they would agree in 0.5 of draws."""
    g = seeded(2)
    flag = (torch.rand(600, 1, generator=g) < 0.5).float().expand(600, 2)
    x = flag + BLUR * torch.randn(600, 2, generator=g)
    model = ScoreModel(MLP(2, 16, 1, holes=True, generator=g), VE(0.02, 10.0), "v")
    masks = Masks(x, (0, 1), (False, False), (True, True), BLUR)
    masks.prepare(model.condition)
    options = {"steps": 150, "batch_size": 256, "learning_rate": 1e-2, "standardize": True}
    list(fit(model, x, masks.objective(), condition=x, generator=g, **options))
    drawn = evolve(ProbabilityFlow(), model, 500, time_grid(model.schedule, 30), generator=g) > 0.5
    assert float((drawn[:, 0] == drawn[:, 1]).double().mean()) > 0.97
    assert 0.4 < float(drawn[:, 0].double().mean()) < 0.6


def test_a_null_condition_is_known_in_inference_mode_and_of_copies():
    """What was read of the buffer is read again where it may have changed."""
    with torch.inference_mode():
        inside = ScoreModel(MLP(2, 8, 1, 3), VP())
        inside.condition.dropout.fill_(0.1)
        inside.unconditional()
    model = ScoreModel(MLP(2, 8, 1, 3), VP())
    for value, known in ((0.0, False), (0.1, True), (0.0, False)):
        model.condition.dropout.fill_(value)
        for each in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            if known:
                each.unconditional()
            else:
                with pytest.raises(ValueError, match="never trained on its null condition"):
                    each.unconditional()
