"""Diagnostics beside ArviZ's, and the verdict: exact draws pass, each way to be wrong is named."""

import math
import warnings
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from support import autoregression, close
from test_chain import Nothing

from gradlogp import Chain, Gaussian, as_target, run
from gradlogp.langevin import GHMC, HMC, MALA, ULA
from gradlogp.langevin.diagnostics import e_bfmi, ess, mixing, normal_scores
from gradlogp.langevin.verdict import score_gap, stein

NORMAL = as_target(log_prob=lambda x: -x.square().sum(1) / 2)


class Steps(NamedTuple):
    acceptance: torch.Tensor
    diverging: torch.Tensor
    energy: torch.Tensor


def judged(draws, info=None, **fields):
    return Chain(draws, Nothing() if info is None else info, None, **fields).verdict


def says(verdict, *words):
    assert not verdict.ok
    for word in words:
        assert any(word in reason for reason in verdict.reasons), verdict


@pytest.mark.parametrize(("m", "n", "d"), [(4, 250, 10), (2, 400, 1), (100, 8, 5)])
def test_exact_independent_draws_pass(m, n, d, generator):
    """At most 5 % of exact runs may fail: of 40, 6 or more do so with a probability of 1.4 %."""
    failed = [not judged(torch.randn(m, n, d, generator=generator)).ok for _ in range(40)]
    assert sum(failed) < 6
    shifted = torch.randn(m, n, d, generator=generator)
    shifted[: m // 2] += 1.0  # negative control: half of the chains have another mean
    assert m == 100 or not judged(shifted).ok


@pytest.mark.slow
@pytest.mark.parametrize(
    ("m", "n", "d"), [(4, 1000, 1), (4, 1000, 50), (4, 100, 10), (1000, 4, 9)]
)
def test_at_most_5_percent_of_200_exact_runs_fail(m, n, d, generator):
    failed = [not judged(torch.randn(m, n, d, generator=generator)).ok for _ in range(200)]
    assert sum(failed) <= 10


@pytest.mark.parametrize(("phi", "ok"), [(0.5, True), (0.9, True), (0.99, False)])
def test_many_short_chains(phi, ok, generator):
    """16,000 stationary chains of 20 draws, R-hat in groups of 1,000: √(1 + v/1000) over B + W = 1."""
    n = 20
    x = autoregression((16_000, n), phi, generator)[..., None]
    found = mixing(x)
    v = (n + 2 * sum((n - k) * phi**k for k in range(1, n))) / n**2
    assert abs(float(found.r_hat) - 1) < 3 * v / 2000 + 3e-4
    assert abs(float(found.ess_bulk) * v / 16_000 - 1) < 0.1
    assert abs(float(found.memory) - phi ** (n - 1)) < 0.03
    verdict = judged(x)
    assert verdict.ok == ok
    if not ok:
        says(verdict, "remember their starts")


def test_many_chains_that_have_not_settled(generator):
    x = torch.randn(500, 10, 2, generator=generator)
    says(judged(x + torch.linspace(0, 0.3, 10)[:, None]), "drifts")
    says(judged(x * torch.linspace(1, 1.3, 10)[:, None]), "drifts")


def test_what_is_wrong_with_draws_is_named(generator):
    x = torch.randn(4, 500, 2, generator=generator)
    says(judged(x[:1]), "one chain")
    says(judged(x[:, :3]), "too few")
    says(judged(torch.full_like(x, torch.nan)), "NaN")
    says(judged(x[:1].expand(4, -1, -1)[:, :1].expand(-1, 9, -1)), "no chain ever moved")
    stuck = x.clone()
    stuck[..., 1] = 0.7
    says(judged(stuck), "are equal, such as x[1]")
    far = x.clone()
    far[3, :, 0] += 4
    says(judged(far), "chains disagree", "x[0]")
    wide = x.clone()
    wide[3] *= 3  # the same means
    says(judged(wide), "chains disagree")
    slow = autoregression((4, 500), 0.99, generator)[..., None]
    says(judged(slow), "effective draws")
    assert judged(x, complete=False).ok
    assert "interrupted" in judged(x, complete=False).reasons[0]


def test_a_half_turn_is_seen_in_the_square(generator):
    """x' = ±x: the mean has many effective draws, and no chain knows the variance."""
    x0 = torch.randn(4, 1, 3, generator=generator)
    signs = torch.where(torch.rand(4, 1000, 1, generator=generator) < 0.5, -1.0, 1.0)
    verdict = judged(x0 * signs + 0.01 * torch.randn(4, 1000, 3, generator=generator))
    says(verdict, "the square of")


def steps(m=4, n=500, **changes):
    fields = {
        "acceptance": torch.full((m, n), 0.8), "diverging": torch.zeros(m, n, dtype=torch.bool),
        "energy": torch.randn(m, n, generator=torch.Generator().manual_seed(0)),
    }  # fmt: skip
    return Steps(**{**fields, **changes})


def test_what_is_wrong_with_steps_is_named(generator):
    x = torch.randn(4, 500, 2, generator=generator)
    assert judged(x, steps()).ok
    acceptance = torch.full((4, 500), 0.8)
    acceptance[2] = 0.01
    says(judged(x, steps(acceptance=acceptance)), "1 of 4 chains hardly move")
    flags = torch.zeros(4, 500, dtype=torch.bool)
    flags[:, :10] = True
    says(judged(x, steps(diverging=flags)), "40 of 2000 draws", "divergent steps")
    energy = autoregression((4, 500), 0.95, generator)
    says(judged(x, steps(energy=energy)), "E-BFMI")
    # under partial refreshment it is small by construction
    assert judged(x, steps(energy=energy), kernel=GHMC(0.1)).ok
    says(judged(x, steps(), failures={"LinAlgError: not positive definite": 50}), "LinAlgError")


def test_e_bfmi_of_exact_energies(generator):
    """d/(d/2 + Var log p) for a fresh momentum and perfect moves: 1 on N(0, I)."""
    m, n, d = 4, 50_000, 6
    p = torch.randn(m, n, d, generator=generator)
    for log_prob, exact in (
        (-torch.randn(m, n, d, generator=generator).square() / 2, 1.0),
        (torch.rand(m, n, d, generator=generator).log() * 1.0, None),
    ):
        H = p.square().sum(2) / 2 - log_prob.sum(2)
        # an energy before a step and one after share the position alone
        next_H = torch.randn(m, n, d, generator=generator).square().sum(2) / 2 - log_prob.sum(2)
        flow = torch.stack([H, next_H], 2)
        transition = (flow[..., 1] - flow[..., 0]).square().mean()
        spread = H.var()
        expected = d / (d / 2 + float(log_prob.sum(2).var()))
        assert abs(float(transition / spread) - expected) < 0.02
        assert exact is None or abs(expected - exact) < 0.02
    close(e_bfmi(torch.tensor([[1.0, 3.0, 2.0, 6.0]])), torch.tensor([21.0 / 14.0]), 1e-12)


# ---------------------------------------------------------------------------- with the target


def test_the_bias_of_an_unadjusted_step_is_seen(generator):
    """ULA on N(0, 1) has the variance 1/(1 − h/2); E[x s(x)] = −1 does not hold under it."""
    x0 = torch.randn(40, 2, generator=generator)
    for h, n, ok in ((0.4, 1000, False), (0.004, 2500, True)):
        exact = x0 / math.sqrt(1 - h / 2)
        chain = run(ULA(h), NORMAL, exact, n, thin=4, generator=generator)
        bias, z = stein(NORMAL, chain.draws)
        assert float((bias + 1 - 1 / (1 - h / 2)).abs().max()) < 0.12
        assert (float(z.max()) > 5) == (not ok)
        if not ok:
            says(chain.verdict, "biases the variance", f"{100 * float(bias.max()):+.0f} %")
        else:
            assert "not adjusted" in chain.verdict.reasons[-1]


def test_draws_outside_the_support_are_seen(generator):
    def box(x):
        inside = ((x > 0) & (x < 1)).all(1)
        return torch.where(inside, 0.0 * x.sum(1), -torch.inf)

    target = as_target(log_prob=box, score=torch.zeros_like)
    x0 = torch.rand(4, 2, generator=generator)
    chain = run(ULA(0.05), target, x0, 200, generator=generator)
    says(chain.verdict, "where the density is 0")
    assert run(MALA(0.1), target, x0, 700, generator=generator).verdict.ok


def test_a_wrong_score_is_seen(generator):
    x = torch.randn(4, 3, generator=generator)
    right = as_target(log_prob=lambda x: -x.pow(4).sum(1) / 4, score=lambda x: -(x**3))
    wrong = as_target(log_prob=lambda x: -x.pow(4).sum(1) / 4, score=lambda x: -2 * x**3)
    assert score_gap(right, x) < 1e-6
    assert abs(score_gap(wrong, x) - 0.5) < 1e-6
    chain = run(MALA(0.05), wrong, x, 400, generator=generator)
    says(chain.verdict, "differs from the gradient of the log-density by 50 %")


def test_a_target_that_fails_in_a_proposal_is_survived(generator):
    """A Cholesky factor beyond the border raises; it may not at the start."""

    def log_prob(x):
        C = torch.stack([torch.ones(len(x)), x[:, 0], x[:, 0], torch.ones(len(x))], 1)
        return torch.linalg.cholesky(C.reshape(-1, 2, 2))[:, 1, 1].log() - x[:, 0].square()

    target = as_target(log_prob=log_prob)
    x0 = torch.zeros(4, 1)
    with pytest.warns(RuntimeWarning, match="diverged"):
        chain = run(MALA(0.2), target, x0, 500, generator=generator)
    (what, count), *_ = chain.failures.items()
    assert "Cholesky" in what or "cholesky" in what
    assert count > 100
    assert float(chain.draws.abs().max()) < 1
    # p ∝ √(1 − x²) e^{−x²}: its variance by the trapezoid rule
    t = torch.linspace(-1, 1, 20_001)
    w = (1 - t**2).clamp(min=0).sqrt() * (-(t**2)).exp()
    variance = float((w * t**2).sum() / w.sum())
    assert abs(float(chain.draws.var()) / variance - 1) < 0.1
    says(chain.verdict, "failed at")
    with pytest.raises(RuntimeError):
        run(MALA(0.2), target, torch.full((4, 1), 2.0), 10, generator=generator)


@pytest.mark.parametrize(
    ("n", "d"),
    [
        (1, 20),
        (3, 20),
        *(pytest.param(n, d, marks=pytest.mark.slow) for n, d in ((3, 5), (6, 20))),
    ],
)
def test_any_path_length_is_right_or_refused(n, d, generator):
    """With paths of one length n = 3 at the tuned step is a third of a turn of N(0, I), or near it."""
    law = Gaussian(torch.zeros(d), torch.ones(d))
    x0 = law.sample(12, generator=generator)
    chain = run(HMC(0.5, n), law, x0, 700, 350, generator=generator, adapt=True)
    found = mixing(chain.draws)
    error = (2 / found.ess_square).sqrt()
    off = (chain.draws.var((0, 1)) - 1).abs() / error
    assert float(off.max()) < 4.5 or not chain.verdict.ok
    assert chain.verdict.ok or n == 1


def test_paths_of_one_length_that_return_are_refused(generator):
    law = Gaussian(torch.zeros(20), torch.ones(20))
    x0 = law.sample(4, generator=generator)
    chain = run(HMC(1.0, 3, jitter=False), law, x0, 200, generator=generator)
    assert float(chain.info.acceptance.mean()) > 0.999
    assert float((chain.draws.var((0, 1)) - 1).abs().max()) > 0.5
    assert not chain.verdict.ok
    assert run(HMC(1.0, 3), law, x0, 500, generator=generator).verdict.ok


def test_resume_refuses_another_target(generator):
    x0 = torch.randn(3, 2, generator=generator)
    one = run(MALA(0.3), NORMAL, x0, 5, generator=generator)
    again = as_target(log_prob=lambda x: -x.square().sum(1) / 2)
    run(MALA(0.3), again, resume=one, n_steps=3)
    other = as_target(log_prob=lambda x: -x.square().sum(1))
    with pytest.raises(ValueError, match="a different target"):
        run(MALA(0.3), other, resume=one, n_steps=3)
    with pytest.raises(ValueError, match="a different target"):
        run(ULA(0.3), other, resume=run(ULA(0.3), NORMAL, x0, 5), n_steps=3)


def test_a_score_that_is_nan_at_the_start_is_refused(as_user):
    target = as_target(log_prob=lambda x: x.sum(1), score=lambda x: torch.full_like(x, torch.nan))
    with pytest.raises(ValueError, match="score is not finite at 3 of 3"):
        run(MALA(0.1), target, torch.zeros(3, 2), 5)


def test_a_chain_without_a_target_is_judged_by_its_draws(generator):
    x = torch.randn(4, 300, 2, generator=generator)
    chain = SimpleNamespace(facts=None)
    assert judged(x, kernel=chain).ok


@pytest.mark.parametrize(
    ("n_chains", "n_draws", "phi"),
    [(4, 500, 0.9), (4, 501, -0.5), (2, 7, 0.0), (1, 50, 0.5), (4, 4, 0.0), (3, 5, 0.2),
     (4, 6, 0.0), (8, 33, 0.99), (4, 200, -0.95)],
)  # fmt: skip
def test_the_statistics_are_those_of_arviz(n_chains, n_draws, phi, generator):
    stats = pytest.importorskip("arviz_stats.base").array_stats
    x = autoregression((n_chains, n_draws, 6), phi, generator)
    x[..., 1], x[..., 2], x[..., 3] = (2 * x[..., 1]).round(), x[..., 2].exp(), 7.0  # ties, skew
    x[0, :, 4] += 3
    x[-1, -1, 5] = torch.nan
    y, axes = x.numpy(), {"chain_axis": 0, "draw_axis": 1}
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        square = (y - y.mean((0, 1))) ** 2
        theirs = (
            stats.rhat(y, **axes),
            stats.ess(y, method="bulk", **axes),
            stats.ess(y, method="tail", prob=(0.05, 0.95), **axes),
            stats.ess(square, method="bulk", **axes),
            stats.mcse(y, method="mean", **axes),
        )
    mine = mixing(x)
    assert mine.n_split == 2 * n_chains
    for name, a, b in zip(mine._fields[1:6], mine[1:6], theirs, strict=True):
        b = torch.as_tensor(b)
        if name == "r_hat":  # 0/0 where all the draws agree
            b[3] = a[3] = torch.nan
        torch.testing.assert_close(
            a, b, rtol=1e-10, atol=1e-12, equal_nan=True, msg=f"{name}: {a}, {b}"
        )


@pytest.mark.parametrize(("n_chains", "n_draws"), [(4, 4), (2, 7), (4, 6)])
def test_r_hat_of_few_draws_is_that_of_arviz(n_chains, n_draws, generator):
    """The two draws in the middle are equally far from the median, or not, by rounding."""
    stats = pytest.importorskip("arviz_stats.base").array_stats
    x = torch.randn(n_chains, n_draws, 100, generator=generator)
    theirs = torch.as_tensor(stats.rhat(x.numpy(), chain_axis=0, draw_axis=1))
    torch.testing.assert_close(mixing(x).r_hat, theirs, rtol=1e-10, atol=0.0)


def test_the_effective_size_of_an_autoregression(generator):
    """N (1 − φ)/(1 + φ)."""
    for phi in (0.6, 0.0, -0.4):
        x = autoregression((8, 8000, 1), phi, generator).permute(2, 0, 1)
        exact = x.numel() * (1 - phi) / (1 + phi)
        assert abs(float(ess(x)) / exact - 1) < 0.06


def test_normal_scores_of_equal_draws_are_equal():
    z = normal_scores(torch.tensor([[[1.0, 3.0, 3.0, 8.0]]]))
    ranks = (torch.tensor([1.0, 2.5, 2.5, 4.0]) - 0.375) / 4.25
    assert torch.allclose(torch.special.ndtr(z), ranks)


def test_few_draws_are_not_judged():
    found = mixing(torch.randn(4, 3, 2))
    assert all(bool(column.isnan().all()) for column in found[1:6])


def test_coordinates_do_not_depend_on_one_another(generator):
    x = autoregression((4, 100, 5), 0.5, generator)
    for whole, one in zip(mixing(x)[1:6], mixing(x[..., 2:3])[1:6], strict=True):
        assert torch.allclose(whole[2], one[0], rtol=1e-12)
