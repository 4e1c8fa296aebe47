"""A score given any part of x: exact laws through the code of learned ones, and a learned one."""

import itertools
import math

import pytest
import torch
from support import close, seeded
from torch import nn

from gradlogp import (
    MLP,
    ExactScore,
    Gaussian,
    GaussianMixture,
    ScoreModel,
    evolve,
    fit,
    log_likelihood,
    time_grid,
)
from gradlogp.diffusion import (
    Ancestral,
    ProbabilityFlow,
    conditional_log_likelihood,
    marginal_log_likelihood,
)
from gradlogp.distributions import WithHoles
from gradlogp.learn import checkpoint
from gradlogp.learn.objectives.masked import condition_on, draw_known, masked
from gradlogp.learn.objectives.times import times_of
from gradlogp.noise import AffineCoordinates
from gradlogp.noise.schedules import VE, VP
from gradlogp.scores import MaskedScore
from gradlogp.scores import masked as laws
from gradlogp.scores.masked import gaussian_with_holes, spread_given_all

NAN = math.nan
FREE = (False, False, False)
MIXTURE = GaussianMixture(
    [0.3, 0.7],
    torch.tensor([[-1.0, 0.5, 0.2], [1.0, -0.3, 0.4]], dtype=torch.float64),
    torch.tensor(
        [
            [[1.0, 0.3, 0.5], [0.3, 0.8, -0.2], [0.5, -0.2, 0.6]],
            [[0.5, -0.1, 0.2], [-0.1, 0.7, 0.3], [0.2, 0.3, 1.0]],
        ],
        dtype=torch.float64,
    ),
)
NORMAL = Gaussian(MIXTURE.mean, MIXTURE.cov)
LAWS = {"gaussian": NORMAL, "mixture": MIXTURE}
HOLES = torch.tensor(
    [[NAN, -0.4, 0.7], [0.3, NAN, NAN], [NAN, NAN, NAN], [1.2, -0.4, NAN], [0.1, 0.2, 0.3]],
    dtype=torch.float64,
)
every_law = pytest.mark.parametrize("law", LAWS.values(), ids=LAWS.keys())
every_schedule = pytest.mark.parametrize("schedule", [VE(0.02, 30.0), VP()], ids=["VE", "VP"])


def over(law, index):
    """The law of these entries."""
    if isinstance(law, Gaussian):
        return Gaussian(law.mean[index], law.cov[index][:, index])
    return GaussianMixture(law.weights, law.means[:, index], law.covs[:, index][:, :, index])


def as_mixture(law):
    """A Gaussian as a mixture of one."""
    return (
        GaussianMixture([1.0], law.mean[None], law.cov[None]) if isinstance(law, Gaussian) else law
    )


def test_a_conditional_law_is_joint_over_marginal(generator):
    """At three points, and by the numbers worked out apart from this code."""
    x = torch.randn(3, 3, generator=generator)
    for law in LAWS.values():
        for index in ([2], [0, 2], [2, 0], [1, 0]):
            rest = [i for i in range(3) if i not in index]
            part = over(law, index)
            for row in x:
                found = law.conditional(index, row[index]).log_prob(row[rest][None])
                close(found, law.log_prob(row[None]) - part.log_prob(row[index][None]), 1e-10)
    given = MIXTURE.conditional([2], torch.tensor([0.7]).double()).noised(0.8, 0.6)
    here = torch.tensor([[0.4, -0.9]], dtype=torch.float64)
    close(given.log_prob(here), torch.tensor([-2.356634254]).double(), 1e-9)
    close(given.score(here), torch.tensor([[0.60104421, 1.18442444]]).double(), 1e-8)
    for index in ([3], [0, 0], [0, 1, 2], []):
        with pytest.raises(ValueError, match="index"):
            NORMAL.conditional(index, torch.zeros(len(index)))


@every_law
def test_rows_with_other_holes_go_together(law, generator):
    """Each row is its own conditional law, times the normal law of what is known."""
    given = WithHoles(law).given(HOLES)
    x = torch.randn(5, 3, generator=generator)
    for i, row in enumerate(HOLES):
        known = (~row.isnan()).nonzero()[:, 0].tolist()
        rest = [j for j in range(3) if j not in known]
        apart = Gaussian(law.mean[known], law.cov.diagonal()[known]) if known else None
        expected = 0 if apart is None else apart.log_prob(x[i, known][None])
        if rest:
            inner = law.conditional(known, row[known]) if known else law
            expected = expected + inner.log_prob(x[i, rest][None])
        close(given.log_prob(x)[i : i + 1], expected, 1e-10)
        close(given.rows(slice(i, i + 1)).score(x[i : i + 1]), given.score(x)[i : i + 1], 1e-12)


def test_exact_draws_have_the_exact_law():
    """The flow takes quantiles of the start to those of the law: of one open entry, in every row."""
    u = torch.tensor([0.003, 0.05, 0.3, 0.5, 0.8, 0.99], dtype=torch.float64)
    schedule = VE(0.002, 200.0)
    for law in LAWS.values():
        score = ExactScore(WithHoles(law), schedule).given(HOLES[:1].expand(len(u), 3))
        z = torch.zeros(len(u), 3).double()
        exact = as_mixture(law.conditional([1, 2], HOLES[0, 1:]))
        z[:, 0] = quantile(exact.noised(1.0, 200.0), u)
        x = evolve(ProbabilityFlow(), score, z, time_grid(schedule, 300))
        close(x[:, 0], quantile(exact, u), 1e-3)
        marginal = quantile(as_mixture(over(law, [0])), u)
        assert (x[:, 0] - marginal).abs().max() > 0.1  # negative control


def quantile(law, u):
    """Quantiles of a one-dimensional mixture, by bisection."""
    low, high = torch.full_like(u, -1e4), torch.full_like(u, 1e4)
    m, s = law.means[:, 0], law.covs[:, 0, 0].sqrt()
    for _ in range(80):
        middle = (low + high) / 2
        below = (law.weights * torch.special.ndtr((middle[:, None] - m) / s)).sum(1)
        low, high = torch.where(below < u, middle, low), torch.where(below < u, high, middle)
    return (low + high) / 2


@every_law
def test_densities_of_rows_with_holes(law, generator):
    """log p(unknown | known) and log p(known), of the law blurred at t_min: to the solver's error."""
    schedule = VE(2e-3, 20.0)
    score = ExactScore(WithHoles(law), schedule)
    x = HOLES.clone()
    full = torch.where(x.isnan(), torch.randn(5, 3, generator=generator), x)
    known = ~HOLES.isnan()
    found = conditional_log_likelihood(score, full, known, tolerance=5e-4)
    marginal = marginal_log_likelihood(
        score,
        HOLES[[0, 1, 3, 4]],
        times=time_grid(schedule, 12),
        generator=generator,
        tolerance=5e-4,
    )
    j = 0
    for i, row in enumerate(HOLES):
        k = known[i].nonzero()[:, 0].tolist()
        rest = [q for q in range(3) if q not in k]
        joint = float(law.log_prob(full[i : i + 1]))
        inner = law.conditional(k, row[k]) if 0 < len(k) < 3 else law
        right = 0.0 if not rest else float(inner.log_prob(full[i, rest][None]))
        assert float(found[i]) == pytest.approx(right, abs=1e-3)
        if k:
            assert float(marginal[j]) == pytest.approx(joint - right, abs=1e-3)
            j += 1
    with pytest.raises(ValueError, match="at least one known entry"):
        marginal_log_likelihood(score, HOLES)


def untrained(rows, schedule, scale=None):
    """A model that has seen nothing but mean and covariance of rows with holes."""
    model = ScoreModel(MLP(3, 8, 1, holes=True, generator=seeded()), schedule, "v").double()
    nn.init.zeros_(model.network.outlet.bias)
    filled = torch.where(rows.isnan(), rows.nanmean(0), rows)
    model.fit_frame(filled, "each")
    model.fit_condition(filled, rows, 0.0)
    return model


@every_schedule
def test_what_is_gaussian_is_known_before_any_training(schedule, generator):
    """Moments of the rows, in other units: the score given any part, beside the closed form."""
    raw = torch.randn(600, 3, generator=generator)
    raw = (raw - raw.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(raw.T.cov(correction=0))).T
    raw = raw @ torch.linalg.cholesky(NORMAL.cov).T + NORMAL.mean  # exactly these moments
    units, shift = torch.tensor([1e3, 1.0, 1e-3]).double(), torch.tensor([5e4, 0.0, 2.0]).double()
    model = untrained(raw * units + shift, schedule)
    c = model.coordinates
    A = units / c.scale
    in_z = Gaussian((NORMAL.mean * units + shift - c.shift) / c.scale, A[:, None] * NORMAL.cov * A)
    exact = ExactScore(WithHoles(in_z), schedule)
    z = torch.randn(5, 3, generator=generator)
    rows = HOLES * units + shift
    inside = (rows - c.shift) / c.scale
    for t in (torch.tensor(0.05).double(), torch.linspace(0.1, 0.9, 5).double()):
        found, right = model.given(rows), exact.given(inside)
        one, other = model.given(rows[1:2]), exact.given(inside[1:2])
        a, sigma = schedule(t)[0].reshape(-1, 1), float(schedule(t)[1].min())
        close(found.denoise(a * z, t), right.denoise(a * z, t), 4e-3)
        close(one(z, t), other(z, t), 4e-3 / sigma**2)
        close(model.denoise(a * z, t), exact.denoise(a * z, t), 4e-3)  # nothing known
        if t.ndim:  # where there is noise, what is known matters
            wrong = exact.given(inside.roll(1, 0)).denoise(a * z, t)
            assert (found.denoise(a * z, t) - wrong).abs().max() > 0.05
    t = torch.tensor(0.3).double()
    part = model.given(rows).rows(slice(1, 3))
    close(part.denoise(z[1:3], t), model.given(rows).denoise(z, t)[1:3], 1e-12)
    assert bool(log_likelihood(model, rows[4:], n_steps=4).log_prob.isfinite().all())


def test_what_is_refused():
    model = untrained(MIXTURE.sample(50, generator=seeded()), VP())
    for wrong in (
        3, torch.zeros(2).double(), torch.zeros(2, 2).double(), torch.tensor([[math.inf, 0.0, 0.0]]),
        torch.zeros(2, 3, dtype=torch.int64),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="the condition"):
            model.given(wrong)
    with pytest.raises(ValueError, match="holes=True"):
        MLP(3, 8, 1, 2, holes=True)
    with pytest.raises(ValueError, match="must be conditioned on something"):
        masked(MaskedScore(model, None), torch.zeros(2, 3).double(), groups=(0, 1, 2), flags=FREE)
    z = torch.zeros(2, 3).double()
    with pytest.raises(ValueError, match=r"dropout must lie in \[0, 1\]"):
        masked(model.given(z), z, groups=(0, 1, 2), flags=FREE, dropout=1.5)


def test_what_is_missing_is_filled_from_the_conditional_law(generator):
    """Draws beside the Gaussian given the rest, in other units; and their density, exactly."""
    model = untrained(NORMAL.sample(500, generator=generator) * 100 + 7, VP())
    mask, c = model.condition, model.condition.coordinates
    law = Gaussian(
        c.shift + c.scale * mask.mean, torch.outer(c.scale, c.scale) * mask.cov.reshape(3, 3)
    )
    n = 20_000
    row = torch.tensor([NAN, -40.0, NAN]).double()
    given = torch.tensor([[True, True, True]]).expand(n, 3)
    drawn, nats = mask.fill(row.expand(n, 3), given, generator)
    exact = law.conditional([1], row[1:2])
    assert bool((drawn[:, 1] == -40).all())
    close(nats, exact.log_prob(drawn[:, [0, 2]]), 1e-3)
    sd = exact.cov.diagonal().sqrt()
    assert float(((drawn[:, [0, 2]].mean(0) - exact.mean) / sd).abs().max()) < 4.5 / math.sqrt(n)
    assert float((drawn[:, [0, 2]].T.cov() / exact.cov - 1).abs().max()) < 4.5 * 3 / math.sqrt(n)
    alone, nats = mask.fill(row.expand(n, 3), given & torch.tensor([True, False, True]), generator)
    marginal = over(law, [0, 2])  # what is there and not to be looked at is passed over
    close(nats, marginal.log_prob(alone[:, [0, 2]]), 1e-3)
    assert float(((marginal.mean - exact.mean) / sd).abs().max()) > 0.1  # negative control


def test_which_parts_are_known(generator):
    """Half know nothing; then 0 … all but one of three groups, alike; flags in half of the rest."""
    groups, flags = (0, 0, 1, 2), (True, False, False, False)
    n = 40_000
    present = torch.ones(n, 4, dtype=torch.bool)
    present[: n // 2, 1] = False
    known = draw_known(present, groups, flags, generator)
    at = lambda p: 4.5 * math.sqrt(p * (1 - p) / n)
    nothing = float((~known)[n // 2 :].all(1).double().mean())
    assert abs(nothing - (0.5 + 0.5 / 3 / 2)) < 1.5 * at(0.6)  # and no known flag
    assert not bool(known[n // 2 :].all(1).any())
    for j in (2, 3):  # a group is known with probability ½ · (0 + 1 + 2)/3 · 1/3
        assert abs(float(known[:, j].double().mean()) - 1 / 6) < at(1 / 6)
    whole = known[n // 2 :]
    assert abs(float(whole[:, 1].double().mean()) - 1 / 6) < 1.5 * at(1 / 6)
    assert bool((whole[:, 0] | ~whole[:, 1]).all())  # a value is never known without its flag
    assert abs(float(whole[:, 0].double().mean()) - (1 / 6 + 1 / 6)) < 1.5 * at(1 / 3)
    assert torch.equal(known[: n // 2, 0], known[: n // 2, 1])  # a hole goes with its flag


def test_what_is_conditioned_on_is_known_alone_or_left_out(generator):
    """In a quarter of the rows alone, of those that have it at all; left out in every fifth."""
    n, own = 40_000, torch.tensor([True, False, True, False])
    known = torch.rand(n, 4, generator=generator) < 0.5
    present = torch.ones(n, 4).bool()
    found, there = condition_on(known, present, tuple(own.tolist()), 0.2, generator)
    gone = ~there[:, 0]
    at = lambda p: 4.5 * math.sqrt(p * (1 - p) / n)
    assert abs(float(gone.double().mean()) - 0.2) < at(0.2)
    assert bool((found[gone] == own).all())
    assert torch.equal(there, torch.where(gone[:, None], ~own, present))
    alone = (found == own).all(1) & ~gone
    share = 0.8 * (0.25 + 0.75 / 16)  # by chance too
    assert abs(float(alone.double().mean()) - share) < at(share)
    assert torch.equal(found[~alone & ~gone], known[~alone & ~gone])


def test_holes_are_neither_seen_nor_asked_for(generator):
    """What stands in a hole does not change the loss of a row, once its flag is known."""
    model = untrained(MIXTURE.sample(50, generator=seeded()), VP())
    nn.init.normal_(model.network.outlet.weight, 0.0, 0.3, generator=seeded(1))
    rows = MIXTURE.sample(400, generator=generator)
    rows[:, 2] = NAN
    losses = []
    for stands in (0.0, 50.0):
        z = torch.where(rows.isnan(), stands, rows)
        score = model.given(rows)
        options = {"groups": (0, 1, 1), "flags": (False, True, False)}
        losses.append(masked(score, z, **options, generator=seeded(5)))
    reported = draw_known(~rows.isnan(), *options.values(), drawn_after_times())
    assert bool(reported[:, 2].any())
    torch.testing.assert_close(
        losses[0][reported[:, 2]], losses[1][reported[:, 2]], rtol=0, atol=0
    )
    assert (losses[0] - losses[1])[~reported[:, 2]].abs().max() > 1e-3  # elsewhere it is a target


def drawn_after_times():
    """The generator of the losses, once their times are drawn."""
    g = seeded(5)
    times_of(VP(), torch.zeros(400, 3).double(), None, g, True)
    return g


def test_replacement_is_biased_and_the_conditional_score_is_not():
    """ρ = 0.9: mean 0.9 and variance 0.19 from a trained model; 0.627 and 0.311 by replacement."""
    g = seeded(0)
    law = Gaussian(torch.zeros(2), torch.tensor([[1.0, 0.9], [0.9, 1.0]]))
    x = law.sample(3000, generator=g).float()
    known = torch.where(torch.rand(3000, 2, generator=g) < 0.3, NAN, x)
    model = ScoreModel(MLP(2, 32, 1, holes=True, generator=g), VE(0.02, 20.0), "v")
    both = ~known.isnan().any(1)  # whole rows are targets, the others know what they have
    objective = lambda score, z, generator: masked(
        score, z, groups=(0, 1), flags=(False, False), generator=generator
    )
    options = {"steps": 80, "batch_size": 256, "learning_rate": 3e-3, "standardize": True}
    list(fit(model, x[both], objective, condition=known[both], generator=g, **options))
    n, at = 2000, torch.tensor([[1.0, NAN]])
    times = time_grid(model.schedule, 60)
    drawn = evolve(ProbabilityFlow(), model.given(at), n, times, generator=g)[:, 1]
    # s.e.: of n draws and of a regression on the whole rows
    rows = int(both.sum())
    error = math.sqrt(0.19 / n + 0.19 * 2 / rows)
    assert abs(float(drawn.mean()) - 0.9) < 4.5 * error
    assert abs(float(drawn.var()) - 0.19) < 4.5 * 0.19 * math.sqrt(2 / n + 2 / rows)
    replaced = replacement(ExactScore(law, VE(0.02, 20.0)), n, g)
    assert abs(float(replaced.mean()) - 0.9) > 10 * error  # negative control
    assert float(replaced.mean()) == pytest.approx(0.627, abs=0.05)
    assert isinstance(model.given(at), MaskedScore)


def replacement(score, n, g):
    """The known entry, freshly noised, put in at every step of the unconditional score."""
    times = time_grid(score.schedule, 150)
    z = evolve(ProbabilityFlow(), score, n, times[:1], generator=g, denoise=False)
    for t, s in itertools.pairwise(times):
        z[:, 0] = 1.0 + score.schedule(t)[1] * torch.randn(n, generator=g)
        z = Ancestral()(z, t, s, score, generator=g)
    return z[:, 1]


def test_a_checkpoint_keeps_it(tmp_path, generator):
    rows = MIXTURE.sample(300, generator=generator)
    model = untrained(rows.masked_fill(torch.rand(300, 3, generator=generator) < 0.2, NAN), VP())
    again = checkpoint.load(checkpoint.save(tmp_path / "m", model.float()))
    z, t = torch.randn(5, 3, generator=generator).float(), torch.tensor(0.4)
    close(again.given(HOLES.float())(z, t), model.given(HOLES.float())(z, t), 0.0)
    assert isinstance(again.condition.coordinates, AffineCoordinates)


def test_moments_of_rows_with_holes_are_those_of_most_likelihood(generator):
    """Also where what is hidden depends on what is seen, and whole rows would mislead."""
    n = 20_000
    x = NORMAL.sample(n, generator=generator)
    known = torch.rand(n, 3, generator=generator) > 0.3
    m, S = gaussian_with_holes(x, known.double())
    close(m, NORMAL.mean, 4.5 * 1.3 / math.sqrt(n))
    close(S, NORMAL.cov, 4.5 * 2.5 / math.sqrt(n))
    full, whole = gaussian_with_holes(x, torch.ones(n, 3).double())
    close(full, x.mean(0), 1e-9)
    close(whole, x.T.cov(correction=0), 1e-3)
    late = known & (x[:, :1] < 0.5)
    late[:, 0] = True
    m, S = gaussian_with_holes(x, late.double())
    close(S, NORMAL.cov, 0.1)
    pairs = x[late[:, 1]].T.cov()
    assert abs(float(pairs[0, 0] - NORMAL.cov[0, 0])) > 0.4  # negative control: whole rows


def test_of_few_rows_conditional_laws_are_wider_than_the_fitted_one(generator):
    """By the factor that the fitted law is too narrow for rows that it was not fitted to."""
    d, n, repeats, every = 6, 35, 100, torch.ones(6, dtype=torch.bool)
    law = Gaussian(torch.zeros(d), 0.5 + 0.5 * torch.eye(d, dtype=torch.float64))
    fresh = law.sample(2000, generator=generator)
    said, true = [], []
    for _ in range(repeats):
        x = law.sample(n, generator=generator)
        said.append(spread_given_all(x, torch.ones_like(x), every))
        m, S = gaussian_with_holes(x, torch.ones_like(x))
        P = torch.linalg.inv(S)
        r = ((fresh - m) @ P / P.diagonal().sqrt()).abs()
        true.append(float(r.quantile(0.9) / 1.6449) ** 2)
    said, true = torch.tensor(said), torch.tensor(true)
    assert true.mean() > 1.3  # negative control: the effect is not rounding
    error = float((said - true).std() / repeats**0.5)
    assert abs(float((said - true).mean())) < 4 * error < 0.2
    many = law.sample(8000, generator=generator)
    assert abs(spread_given_all(many, torch.ones_like(many), every) - 1) < 0.03


def test_what_is_not_known_spreads_wider_by_a_factor_for_each_known_entry(generator):
    """In closed form: the law given the known entries, covariance times c, seen as α u + σ ε."""
    d, k = 5, torch.tensor([0, 3])
    u = torch.tensor([1, 2, 4])
    root = torch.randn(d, d, generator=generator, dtype=torch.float64)
    mask = laws.Mask(torch.Size((d,))).double()
    mask.cov.copy_(root @ root.T + torch.eye(d))
    mask.mean.copy_(torch.randn(d, generator=generator, dtype=torch.float64))
    mask.wider.copy_(0.1 + torch.rand(d, generator=generator, dtype=torch.float64))
    y = torch.randn(1, d, generator=generator, dtype=torch.float64)
    values = torch.randn(1, d, generator=generator, dtype=torch.float64)
    state = torch.zeros(1, d, dtype=torch.float64).index_fill(1, k, 1.0)
    alpha, sigma = torch.tensor([[0.7]]).double(), torch.full((1, d), 0.6, dtype=torch.float64)
    mean, sd = mask.gaussian(y, alpha, sigma, torch.stack([state, values * state], 1))
    S, m, c = mask.cov, mask.mean, float(mask.wider[k].sum().exp())
    gain = S[u][:, k] @ torch.linalg.inv(S[k][:, k] + laws.RIDGE * torch.eye(2))
    prior = m[u] + gain @ (values[0, k] - m[k])
    cov = c * (S[u][:, u] - gain @ S[k][:, u])
    gain = 0.7 * cov @ torch.linalg.inv(0.49 * cov + 0.36 * torch.eye(3))
    close(mean[0, u], prior + gain @ (y[0, u] - 0.7 * prior), 1e-9)
    close(sd[0, u], (cov - 0.7 * gain @ cov).diagonal().sqrt(), 1e-9)


@pytest.mark.parametrize("linked", [0, 12])
def test_entries_that_go_with_no_other_are_left_out_of_the_algebra(linked, monkeypatch):
    """Of many entries a few are correlated: the same as when all of them are solved for."""
    D, B, g = 60, 7, seeded()
    own = torch.randperm(D, generator=g)[:linked]
    root = torch.randn(linked, linked, generator=g)
    mask = laws.Mask(torch.Size((D,)))
    mask.cov[own[:, None], own] = (root @ root.T + torch.eye(linked)).to(mask.cov)
    mask.mean[own] = torch.randn(linked, generator=g).to(mask.mean)
    state = torch.randint(-1, 2, (B, D), generator=g).double()
    condition = torch.stack(
        [state, torch.where(state > 0.5, torch.randn(B, D, generator=g), 0.0)], 1
    )
    u, alpha = torch.randn(B, D, generator=g), torch.rand(B, 1, generator=g)
    sigma = 0.1 + torch.rand(B, D, generator=g)
    for asked in (
        (u, alpha, sigma, condition),
        (u, torch.tensor(0.7), sigma[0], condition[:1].expand(B, 2, D)),
    ):
        quick = mask.gaussian(*asked)
        with monkeypatch.context() as patch:
            patch.setattr(laws, "MOST_GAUSSIAN", D)
            whole = mask.gaussian(*asked)
        for a, b in zip(quick, whole, strict=True):
            close(a, b, 1e-8)
