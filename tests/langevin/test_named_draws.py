"""Chains of named parameters: what is stored are the values, what moves are the free numbers."""

import math

import numpy as np
import pytest
import torch
from support import close, z_score
from torch.distributions import Normal, constraints

from gradlogp import Chain, as_target, run
from gradlogp.distributions import Observed
from gradlogp.interfaces.cli import main
from gradlogp.langevin import HMC, MALA, ULA

SPEC = {"sigma": constraints.positive, "p": ((3,), constraints.simplex), "b": (2, 2)}
NAMES = ["sigma", "p[0]", "p[1]", "p[2]", "b[0,0]", "b[0,1]", "b[1,0]", "b[1,1]"]


def log_prob(sigma, p, b):
    return sigma.log() - sigma + 2 * p.log().sum(1) - 0.5 * b.square().sum((1, 2))


TARGET = as_target(log_prob=log_prob, parameters=SPEC)
FREE = as_target(log_prob=TARGET.log_prob)
"""The same density, without names for its numbers."""


def chains(target=TARGET, n_steps=12, seed=0, **options):
    x0 = 0.3 * torch.randn(5, 7, generator=torch.Generator().manual_seed(1))
    options = {"x0": x0, "generator": torch.Generator().manual_seed(seed)} | options
    return run(MALA(0.2), target, n_steps=n_steps, **options)


def test_draws_are_the_values_and_the_state_is_free():
    named, free = chains(), chains(FREE)
    assert named.parameters is TARGET.parameters
    assert free.parameters is None
    assert torch.equal(named.state.x, free.state.x)
    values = TARGET.constrain(free.draws.flatten(0, 1))
    assert torch.equal(named.draws, values.reshape(5, 12, 8))
    assert torch.equal(named["sigma"], named.draws[..., 0])
    assert torch.equal(named["b"], named.draws[..., 4:].reshape(5, 12, 2, 2))
    close(named["p"].sum(-1), torch.ones(5, 12), 1e-13)
    assert torch.equal(named.info.log_prob, free.info.log_prob)


@pytest.mark.parametrize("options", [{"chunk_size": 2}, {"keep": "cpu"}, {"keep": "draws.npy"}])
def test_chunks_and_files_hold_the_same_values(options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole, other = chains(burn_in=2, thin=3), chains(burn_in=2, thin=3, **options)
    assert torch.equal(whole.draws, other.draws)
    assert torch.equal(whole["b"], other["b"])


def test_a_run_goes_on_from_free_numbers(tmp_path):
    whole, half = chains(), chains(n_steps=5)
    torch.save(half.resume, tmp_path / "half.pt")
    saved = torch.load(tmp_path / "half.pt", weights_only=True)
    rest = run(MALA(0.2), TARGET, n_steps=7, resume=saved)
    assert torch.equal(torch.cat([half.draws, rest.draws], 1), whole.draws)
    assert rest.parameters is TARGET.parameters


def test_starting_points_are_made_of_values():
    values = {
        "sigma": torch.full((3,), 2.0),
        "p": torch.full((3, 3), 1 / 3),
        "b": torch.ones(3, 2, 2),
    }
    start = TARGET.parameters.unconstrain(values)
    chain = run(ULA(1e-12), TARGET, start, 1)
    close(chain["sigma"], torch.full((3, 1), 2.0), 1e-4)
    with pytest.raises(ValueError, match=r"x0 must have shape \(B, 7\)"):
        run(ULA(0.1), TARGET, TARGET.constrain(start), 5)


def test_derived_quantities():
    chain = chains()

    def ratio(sigma, p, b):
        return {"ratio": p[:, 0] / sigma, "both": b.sum(2)}

    found = chain.derived(ratio)
    assert torch.equal(found["ratio"], chain["p"][..., 0] / chain["sigma"])
    assert torch.equal(found["both"], chain["b"].sum(-1))
    alone = chain.derived(lambda sigma, p, b: {"ratio": p[0] / sigma}, vectorized=False)
    close(alone["ratio"], found["ratio"], 1e-14)


@pytest.mark.usefixtures("as_user")
def test_refusals():
    chain = chains()
    with pytest.raises(ValueError, match="no parameter 'tau', only sigma, p, b"):
        chain["tau"]
    for wrong in (lambda sigma, p, b: sigma, lambda sigma, p, b: {"m": sigma.mean()}):
        with pytest.raises(ValueError, match=r"dictionary of tensors \(60, …\)"):
            chain.derived(wrong)
    for call in (lambda c: c["x"], lambda c: c.derived(lambda x: {"x": x})):
        with pytest.raises(ValueError, match=r"no named parameters: use chain\.draws"):
            call(chains(FREE))
    with pytest.raises(ValueError, match="predict= needs observed="):
        chain.to_arviz(predict=lambda rows: rows)
    with pytest.raises(ValueError, match="observed must have the parameters of these draws"):
        chain.to_arviz(observed=posterior(torch.zeros(3, 2), torch.zeros(3)))


def test_the_engine_is_found_by_itself():
    assert torch.equal(chains(engine="auto").draws, chains().draws)


def test_a_summary_has_the_names():
    rows = chains(n_steps=40).summary().rows
    assert [row.name for row in rows] == NAMES
    assert chains().summary([str(i) for i in range(8)]).rows[0].name == "0"


def test_tuning_works_on_free_numbers(generator):
    x0 = 0.3 * torch.randn(16, 7, generator=generator)
    chain = run(MALA(0.01), TARGET, x0, 300, 250, adapt=True, generator=generator)
    assert abs(float(chain.info.acceptance.mean()) - 0.574) < 0.08


# ---------------------------------------------------------------------------- ArviZ


def test_arviz_has_a_variable_for_each_parameter():
    chain = chains()
    posterior = chain.to_arviz()["posterior"]
    assert {k: v.shape for k, v in posterior.items()} == {
        "sigma": (5, 12), "p": (5, 12, 3), "b": (5, 12, 2, 2),
    }  # fmt: skip
    for name, value in posterior.items():
        assert np.array_equal(value, chain[name].numpy())


NOISE = 0.5


def posterior(x, y):
    """Linear regression with noise 0.5 and a prior N(0, I); rows are features and outcome."""
    return Observed(
        lambda w: Normal(0.0, 1.0).log_prob(w).sum(1),
        lambda rows, w: Normal(w @ rows[:, :-1].mT, NOISE).log_prob(rows[:, -1]),
        torch.cat([x, y[:, None]], 1),
        parameters={"w": (2,)},
    )


def regression(generator):
    x = torch.randn(25, 2, generator=generator)
    y = x @ torch.tensor([1.0, -0.5]) + NOISE * torch.randn(25, generator=generator)
    precision = torch.eye(2) + x.T @ x / NOISE**2
    return x, y, torch.linalg.solve(precision, x.T @ y / NOISE**2), precision.inverse()


def left_out(x, y, mean, cov):
    """log p(y_i | all others), exactly: the Gaussian posterior with one observation taken away."""
    spread = (x @ cov * x).sum(1)
    leverage = spread / NOISE**2
    center = (x @ mean - leverage * y) / (1 - leverage)
    return Normal(center, (NOISE**2 + spread / (1 - leverage)).sqrt()).log_prob(y)


def exact_chain(generator):
    x, y, mean, cov = regression(generator)
    z = torch.randn(4, 2000, 2, generator=generator)
    draws = mean + z @ torch.linalg.cholesky(cov).mT
    target = posterior(x, y)
    info = run(ULA(0.1), target, torch.zeros(4, 2), 1).info
    info = type(info)(info.diverging.expand(4, 2000))
    return (
        Chain(draws, info, None, parameters=target.parameters),
        target,
        left_out(x, y, mean, cov),
    )


def test_the_formula_of_leaving_one_out(generator):
    """Against regressions without the observation."""
    x, y, mean, cov = regression(generator)
    for i in (0, 7):
        keep = torch.arange(25) != i
        precision = torch.eye(2) + x[keep].T @ x[keep] / NOISE**2
        fitted = torch.linalg.solve(precision, x[keep].T @ y[keep] / NOISE**2)
        spread = x[i] @ precision.inverse() @ x[i]
        exact = Normal(x[i] @ fitted, (NOISE**2 + spread).sqrt()).log_prob(y[i])
        close(left_out(x, y, mean, cov)[i], exact, 1e-12)


def test_leaving_one_out_by_arviz_is_the_closed_form(generator):
    array_stats = pytest.importorskip("arviz_stats.base").array_stats
    chain, target, exact = exact_chain(generator)
    groups = chain.to_arviz(observed=target)
    likelihood = groups["log_likelihood"]["y"]
    assert likelihood.shape == (4, 2000, 25)
    assert np.array_equal(groups["observed_data"]["y"], target.data.numpy())
    found, k, _ = array_stats.loo(likelihood, chain_axis=0, draw_axis=1)
    assert k.max() < 0.5
    # 1/p is averaged over draws: its relative error is that of the estimate of log p
    inverse = np.exp(-likelihood).reshape(-1, 25)
    error = inverse.std(0) / inverse.mean(0) / math.sqrt(len(inverse))
    assert np.abs((found - exact.numpy()) / error).max() < 4.5
    # negative control: without leaving anything out it is another number
    within = np.log(np.exp(likelihood).mean((0, 1)))
    assert np.abs((within - exact.numpy()) / error).max() > 20


def test_leaving_one_out_by_a_tree(generator):
    pytest.importorskip("arviz_base")
    arviz_stats = pytest.importorskip("arviz_stats")
    chain, target, exact = exact_chain(generator)
    tree = chain.to_arviz(tree=True, observed=target)
    assert tree["posterior"]["w"].dims == ("chain", "draw", "w_dim_0")
    found = arviz_stats.loo(tree, var_name="y", pointwise=True)
    close(torch.as_tensor(found.elpd_i.values), exact, 0.02)


def test_predictions_have_the_law_of_new_outcomes(generator):
    """y' ~ N(xᵀμ, xᵀΣx + σ²) over draws of the posterior."""
    chain, target, _ = exact_chain(generator)
    x, _, mean, cov = regression_of(target)

    def predict(rows, w):
        noise = torch.randn(len(w), len(rows), generator=generator)
        return w @ rows[:, :-1].mT + NOISE * noise

    groups = chain.to_arviz(observed=target, predict=predict)
    y = torch.as_tensor(groups["posterior_predictive"]["y"]).flatten(0, 1)
    assert y.shape == (8000, 25)
    spread = (x @ cov * x).sum(1) + NOISE**2
    for i in (0, 12, 24):
        assert abs(z_score(y[:, i], x[i] @ mean)) < 4
        assert abs(z_score((y[:, i] - x[i] @ mean) ** 2, spread[i])) < 4
        assert abs(z_score((y[:, i] - x[i] @ mean) ** 2, spread[i] - NOISE**2)) > 20


def regression_of(target):
    x, y = target.data[:, :2], target.data[:, 2]
    precision = torch.eye(2) + x.T @ x / NOISE**2
    return x, y, torch.linalg.solve(precision, x.T @ y / NOISE**2), precision.inverse()


def test_hmc_on_observations_is_the_exact_posterior(generator):
    x, y, mean, cov = regression(generator)
    x0 = mean + torch.randn(50, 2, generator=generator) @ torch.linalg.cholesky(cov).mT
    chain = run(HMC(0.1, 8), posterior(x, y), x0, 30, generator=generator)
    w = chain["w"].mean(1)
    error = w.std(0) / math.sqrt(50)
    assert float(((w.mean(0) - mean).abs() / error).max()) < 4


# ---------------------------------------------------------------------------- the command line

POSTERIOR = """
import torch, gradlogp
from torch.distributions import constraints

target = gradlogp.as_target(
    log_prob=lambda rate: rate.log() - rate, parameters={"rate": constraints.positive}
)
plain = gradlogp.as_target(log_prob=lambda x: -x.square().sum(1))
"""


def test_the_command_line_prints_names(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text(POSTERIOR)
    few = ["--draws", "150", "--warmup", "100", "--seed", "1", "--quiet"]
    assert main(["sample", "--target", "model.py:target", *few]) == 0
    assert "\nrate " in capsys.readouterr().out
    assert main(["sample", "--target", "model.py:plain", *few]) == 2
    assert "state D with --dim" in capsys.readouterr().err
    assert main(["sample", "--target", "model.py:plain", "--dim", "2", *few]) == 0
    assert "x[1]" in capsys.readouterr().out
