"""How many points: finite-sample laws against simulation, their inversion, and copies found out."""

import json
import math

import pytest
import torch
from support import COV, MEAN, close, z_score

from gradlogp import Empirical, Gaussian, GaussianMixture, sample_size
from gradlogp.check.metrics.memorisation import denoising_gap
from gradlogp.check.theory import statistics
from gradlogp.interfaces.cli.check import sample_size as command

# ---------------------------------------------------------------------------- a Gaussian


def fitted_errors(law, n, fits, generator):
    """E‖ŝ − s‖² over the law, exactly, of Gaussians fitted to n points each."""
    P, S = torch.linalg.inv(law.cov), law.cov
    x = law.sample(n * fits, generator=generator).reshape(fits, n, -1)
    mean = x.mean(1)
    centred = x - mean[:, None]
    L = torch.linalg.inv(centred.mT @ centred / n)
    shift = (L @ (mean - law.mean)[:, :, None])[:, :, 0]
    W = P - L
    return (W @ S @ W).diagonal(dim1=1, dim2=2).sum(1) + shift.square().sum(1)


@pytest.mark.parametrize("n", [14, 60])
def test_error_of_a_gaussian_fit(n, generator):
    law = Gaussian(MEAN, COV)
    errors = fitted_errors(law, n, 20_000, generator)
    assert abs(z_score(errors, sample_size.gaussian_error(n, cov=law.cov) ** 2)) < 4.5
    trace = float(torch.linalg.inv(law.cov).trace())
    relative = errors / trace
    assert abs(z_score(relative, sample_size.gaussian_error(n, dim=2) ** 2)) < 4.5
    # the limit alone is not the law of so few points
    assert n > 14 or abs(z_score(relative, 4 / n)) > 10


@pytest.mark.parametrize("d", [1, 2, 30])
@pytest.mark.parametrize("accuracy", [3.0, 0.5, 0.1, 1e-3])
def test_the_least_number_of_points(d, accuracy):
    n = sample_size.gaussian(accuracy, dim=d).n
    assert sample_size.gaussian_error(n, dim=d) <= accuracy
    assert sample_size.gaussian_error(n - 1, dim=d) > accuracy
    limit = sample_size.gaussian_limit(accuracy, dim=d).n
    assert limit <= n
    if accuracy == 1e-3:
        close(n / limit, 1.0, 1e-3)
    assert sample_size.gaussian_error(d + 4, dim=d) == math.inf


def test_absolute_accuracy():
    cov = torch.diag(torch.tensor([0.01, 4.0]))
    trace = 100.25
    relative = sample_size.gaussian(0.2, dim=2).n
    assert sample_size.gaussian(0.2 * math.sqrt(trace), cov=cov).n == relative
    assert sample_size.gaussian_limit(1.0, cov=cov).n == 401
    close(
        sample_size.gaussian_error(50, cov=cov),
        math.sqrt(trace) * sample_size.gaussian_error(50, dim=2), 1e-12,
    )  # fmt: skip


# ---------------------------------------------------------------------------- efficiency


def test_location_efficiency():
    logistic = sample_size.location(lambda x: -2 * torch.log(torch.cosh(x[:, 0] / 2)), -40, 40)
    close(torch.tensor(logistic), torch.tensor([30 / 7, 3.0]), 1e-9)
    close(logistic.value, 0.7, 1e-9)
    assert (logistic.n_likelihood(0.1), logistic.n(0.1)) == (300, 429)
    gaussian = sample_size.location(lambda x: -x[:, 0].square() / 8, -30, 30)
    close(torch.tensor(gaussian), torch.tensor([4.0, 4.0]), 1e-9)
    cosh = sample_size.location(lambda x: -torch.log(torch.cosh(x[:, 0])), -40, 40)
    assert cosh.value < 1


def test_location_by_simulation(generator):
    """n Var of the ISM location of a logistic law: the root of mean(s s' + s'') is near x̄'s scale."""
    n, fits = 1500, 400
    u = torch.rand(fits, n, generator=generator)
    x = torch.log(u / (1 - u))
    theta = torch.zeros(fits, 1)
    for _ in range(30):  # Newton's method on E[½ s² + s'] in θ
        t = torch.tanh((x - theta) / 2)
        s, s1 = -t, -(1 - t**2) / 2
        s2, s3 = t * (1 - t**2) / 2, (1 - t**2) * (1 - 3 * t**2) / 4
        gradient = -(s * s1 + s2).mean(1, keepdim=True)
        curvature = (s1.square() + s * s2 + s3).mean(1, keepdim=True)
        theta = theta - gradient / curvature
    assert abs(z_score(n * theta[:, 0].square(), 30 / 7)) < 4.5


def test_mixture_weights():
    """The efficiencies themselves are claims of `theory.statistics`."""
    close(sample_size.mixture_weight(1).value, 0.6013, 1e-4)
    close(sample_size.mixture_weight(4, 2.0).value, 0.86, 0.006)
    # far modes: one Bernoulli draw a point, n Var = π(1 − π)
    close(sample_size.mixture_weight(4).likelihood, 0.25, 1e-3)


@pytest.mark.parametrize("draws", [1, 4, None])
@pytest.mark.parametrize("sigma", [0.01, 0.5, 1.0])
def test_denoising_slope(sigma, draws):
    """The law of the slope at τ = 1 is a claim, by simulation; it has no other scale than τ."""
    law = lambda m: statistics._slope_law(sigma, m) * (1 + sigma**2) ** 2
    slope = sample_size.denoising_slope(sigma, 1.0, draws)
    close(slope, law(draws or math.inf), 1e-12)
    close(sample_size.denoising_slope(1.3 * sigma, 1.3, draws), slope, 1e-12)


# ---------------------------------------------------------------------------- copies


LAW = GaussianMixture([0.4, 0.6], [[-1.0, 0.0, 0.5], [1.0, 0.5, 0.0]], 0.3)


@pytest.fixture
def split(generator):
    return LAW.sample(300, generator=generator), LAW.sample(300, generator=generator)


def test_a_copy_and_the_truth(split, generator):
    train, held = split
    sigma = 0.05
    truth = denoising_gap(
        lambda y: LAW.posterior_mean(y, 1.0, sigma), train, held, sigma, generator=generator
    )
    assert truth.verdict == "generalises"
    assert abs(truth.copied.value) < 4.5 * truth.copied.standard_error < 0.5
    # the loss of the truth is its mmse over σ²: E tr(I + σ² H)
    y = LAW.noised(1.0, sigma).sample(100_000, generator=generator)
    mmse = (
        3 + sigma**2 * LAW.noised(1.0, sigma).hessian(y).diagonal(dim1=1, dim2=2).sum(1)
    ).mean()
    for loss in (truth.train, truth.held_out):
        assert abs(loss.value - float(mmse)) < 4.5 * loss.standard_error
    copy = denoising_gap(
        lambda y: Empirical(train).posterior_mean(y, 1.0, sigma), train, held, sigma,
        generator=generator,
    )  # fmt: skip
    assert copy.verdict == "memorises"
    assert copy.copied.value == 1
    assert copy.ratio.value < 0.1
    assert copy.held_out.value > 3 * truth.held_out.value


def test_in_between(split, generator):
    """An eighth of a copy has a loss on training data in between, and is judged to overfit."""
    train, held = split
    sigma, law = 0.08, Empirical(split[0])
    shares = {}
    for weight in (0.0, 0.12, 1.0):
        mix = lambda y, w=weight: (
            w * law.posterior_mean(y, 1.0, sigma) + (1 - w) * LAW.posterior_mean(y, 1.0, sigma)
        )
        shares[weight] = denoising_gap(mix, train, held, sigma, generator=generator)
    assert [s.verdict for s in shares.values()] == ["generalises", "overfits", "memorises"]
    assert shares[0.0].copied.value < shares[0.12].copied.value < shares[1.0].copied.value


def test_what_cannot_be_told(split, generator):
    train, held = split
    large = denoising_gap(
        lambda y: LAW.posterior_mean(y, 1.0, 5.0), train, held, 5.0, generator=generator
    )
    assert large.verdict == "undecided"
    few = denoising_gap(
        lambda y: LAW.posterior_mean(y, 1.0, 0.3), train[:12], held[:12], 0.3, generator=generator
    )
    assert few.verdict == "undecided"


def test_error_bars_cover(generator):
    """The share copied of the truth, over independent data: errors in units of their error bars."""
    sigma, z = 0.1, []
    for _ in range(60):
        found = denoising_gap(
            lambda y: LAW.posterior_mean(y, 1.0, sigma),
            LAW.sample(200, generator=generator), LAW.sample(150, generator=generator), sigma,
            generator=generator,
        )  # fmt: skip
        z.append(found.copied.value / found.copied.standard_error)
    z = torch.tensor(z)
    assert abs(z_score(z, 0.0)) < 4.5
    assert 0.7 < float(z.std()) < 1.4


def test_loss_counts_the_dimension_and_sigma(generator):
    """The identity as denoiser loses exactly ‖ε‖², whatever σ."""
    x = torch.randn(400, 5, generator=generator)
    found = denoising_gap(lambda y: y, x, x, 0.37, n_draws=1, generator=generator)
    close(found.train.value, 5.0, 1e-12)  # the control variate knows all of it
    assert found.train.standard_error < 1e-12


# ---------------------------------------------------------------------------- the command


def test_command_prints_a_table(capsys):
    assert command(dim=2, separation=4.0, accuracy=0.1) == 0
    out = capsys.readouterr().out
    assert "417" in out
    assert "Parametric only" in out
    assert command(dim=2, accuracy=0.1, json=True) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["n"] for row in found["rows"][:2]] == [417, 400]
    assert found["caveat"].startswith("Parametric")
    by_name = {row["quantity"]: row["n"] for row in found["rows"]}
    assert by_name["… maximum likelihood"] == 300


def test_command_reads_data(tmp_path, capsys, generator):
    x = torch.randn(50, 3, generator=generator)
    path = tmp_path / "x.csv"
    path.write_text("a,b,c\n" + "\n".join(",".join(f"{v:.5f}" for v in row) for row in x.tolist()))
    assert command(data=str(path), json=True, quiet=True) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["n"], found["dim"]) == (50, 3)
    close(found["relative_error_of_a_gaussian_fit"], sample_size.gaussian_error(50, dim=3), 1e-12)
    flat = tmp_path / "flat.csv"
    rows = [f"{a:.5f},{b:.5f},{2 * round(a, 5) - round(b, 5):.5f}" for a, b, _ in x.tolist()]
    flat.write_text("a,b,c\n" + "\n".join(rows))
    with pytest.raises(ValueError, match="span 2 of 3"):
        command(data=str(flat), quiet=True)


def test_refusals(as_user, generator):
    gaussian, x = sample_size.gaussian, torch.randn(10, 2, generator=generator)
    for call, message in (
        (lambda: gaussian(0.1), "pass dim"),
        (lambda: gaussian(0.1, dim=2, cov=torch.eye(2)), "pass dim"),
        (lambda: gaussian(0.1, cov=torch.ones(2, 2)), "positive definite"),
        (lambda: gaussian(0.1, cov=torch.ones(2)), "shape"),
        (lambda: gaussian(1e-9, dim=2), "10¹⁵"),
        (
            lambda: sample_size.location(lambda x: -x[:, 0].square() / 8, -3, 3),
            "widen the interval",
        ),
        (lambda: sample_size.mixture_weight(7.0), "separation"),
        (lambda: sample_size.denoising_slope(0.0), "sigma must be positive"),
        (lambda: denoising_gap(lambda y: y, x, x, 0.0), "sigma must be positive"),
        (lambda: denoising_gap(lambda y: y, x, x[:9], 0.1), "held_out must have at least 10 rows"),
        (
            lambda: denoising_gap(lambda y: y, x, torch.ones(10, 3), 0.1),
            "held_out must have shape",
        ),
        (lambda: denoising_gap(lambda y: y[:, 0], x, x, 0.1), "denoise returned shape"),
        (lambda: command(), "--"),
        (lambda: command(dim=2, data="moons"), "--"),
        (lambda: command(dim=0), "--"),
        (lambda: command(dim=2, accuracy=0.0), "--"),
        (lambda: command(dim=2, separation=9.0), "--"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_span_counts_points_and_dimensions():
    x = torch.randn(9, 2, generator=torch.Generator().manual_seed(0))
    assert sample_size.span(x * torch.tensor([1e-6, 1e6])) == (9, 2)
    with pytest.raises(ValueError, match="span 2 of 3 dimensions"):
        sample_size.span(torch.cat([x, x.sum(1, keepdim=True)], 1))


def test_a_table_has_the_numbers_of_its_parts():
    """A row for each, by the functions that compute them; more of them with a separation."""
    rows = sample_size.table(0.1, 3)
    assert rows[0] == sample_size.gaussian(0.1, dim=3)
    assert len(sample_size.table(0.1, 3, separation=2.0)) == len(rows) + 2 + len(
        sample_size.NOISES
    )
    fresh, once = (sample_size.denoising_slope(1.0, draws=n) / 0.1**2 for n in (None, 1))
    assert [row.n for row in rows[2:4]] == [math.ceil(fresh - 1e-9), math.ceil(once - 1e-9)]
