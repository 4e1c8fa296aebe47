"""Which base an estimator takes, and that what is learned is never worse than it."""

import numpy as np
import pytest
import torch
from support import MIXTURE, close, seeded

import gradlogp as glp
from gradlogp.interfaces.base import Judge, base_for, held_out_rows, mixture_of
from gradlogp.noise.schedules import VE
from gradlogp.scores.exact import ExactScore

pytestmark = pytest.mark.usefixtures("as_user")


def autoregression(d, rho=0.9):
    at = torch.arange(d)
    return glp.Gaussian(torch.zeros(d).double(), rho ** (at[:, None] - at).abs().double())


def own_law(estimator):
    """The law of the base alone, blurred by the smallest noise level, in model coordinates."""
    B = estimator.model_.base
    V, w = B.vectors.double(), B.values.double()
    covs = V @ torch.diag_embed(w) @ V.mT
    weights = B.weights.double() / B.weights.double().sum()
    law = glp.GaussianMixture(weights, B.means.double(), (covs + covs.mT) / 2)
    return law.noised(1.0, estimator.sigma_min_)


def against_the_base(d, n, rows, divergence, n_steps=24):
    """Held-out nats above the fitted Gaussian's own, per row, and the estimator."""
    g, true = seeded(d), autoregression(d)
    x, new = true.sample(n, generator=g).double(), true.sample(rows, generator=g).double()
    estimator = glp.ScoreEstimator(max_iter=30, width=64, depth=2, random_state=0)
    estimator.fit(x.numpy())
    model = estimator.model_.double()
    found = glp.log_likelihood(
        model, new, n_steps=n_steps, divergence=divergence, generator=seeded(1), n_probes=4
    )
    own = own_law(estimator).log_prob(model.coordinates.encode(new))
    own = own + model.coordinates.log_det(new)
    return estimator, found.log_prob - own, own - true.log_prob(new)


def test_gaussian_data_are_as_likely_as_under_their_gaussian():
    """A network of width 64 adds nothing to it and takes nothing away."""
    d, n = 8, 1000
    estimator, above, loss = against_the_base(d, n, 50, "exact", n_steps=40)
    assert abs(float(above.mean())) < 3 * float(above.std()) / 50**0.5 + 0.02
    # the Gaussian itself loses d(d + 3)/(4 n) nats to the truth, and the blur
    w = torch.linalg.eigvalsh(autoregression(d).cov)
    blur = 0.5 * ((1 + estimator.sigma_min_**2 / w).log() - estimator.sigma_min_**2 / w).sum()
    expected = -d * (d + 3) / (4 * 0.9 * n) + float(blur)
    assert abs(float(loss.mean()) - expected) < 4 * float(loss.std()) / 50**0.5


@pytest.mark.slow
@pytest.mark.parametrize("d", [100, 400])
def test_many_correlated_columns(d):
    """And none of 100 or 400 directions comes out too wide."""
    estimator, above, _ = against_the_base(d, 8000, 100, "hutchinson")
    assert abs(float(above.mean())) < 4 * float(above.std()) / 100**0.5 + 0.1
    drawn = torch.as_tensor(estimator.sample(4000)).double()
    w, U = torch.linalg.eigh(autoregression(d).cov)
    spread = ((drawn @ U).square().mean(0) / w).sqrt()
    assert float(spread.max()) < 1.2
    assert float(spread.min()) > 0.8


def test_a_planted_mixture_is_found_and_kept():
    x, new = (MIXTURE.sample(n, generator=seeded(n)).double() for n in (3000, 400))
    estimator = glp.ScoreEstimator(max_iter=30, width=16, random_state=0).fit(x.numpy())
    assert estimator.model_.base.config == {"components": 2, "rank": 2, "follows": False}
    gap = torch.as_tensor(estimator.score_samples(new.numpy())) - MIXTURE.log_prob(new)
    # 11 numbers cost 11/(2 n) nats, and the blur of σ = 0.02 no more
    assert float(gap.mean()) > -0.01 - 3 * float(gap.std()) / 400**0.5
    assert estimator.correction_.gain.value > -0.01
    again = glp.ScoreEstimator(max_iter=2, width=16, base="gaussian", random_state=0).fit(x)
    assert again.model_.base.follows


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_correction_that_makes_the_flow_worse_is_left_out(sign):
    """The right correction is kept; the same with the wrong sign is not, and the base remains."""
    base = glp.Gaussian(MIXTURE.mean, MIXTURE.cov)

    class Planted(glp.ScoreModel):
        def forward(self, z, t, condition=None):
            right, known = (ExactScore(law, self.schedule)(z, t) for law in (MIXTURE, base))
            return known + self._share(self._noise_input(t), z) * sign * (right - known)

        def denoise_given(self, z, t, condition=None):
            alpha, sigma = self.schedule(t)
            return (z + sigma**2 * self(z, t)) / alpha

    made = Planted(glp.MLP(2, 4, 1).double(), VE(0.1, 20.0), "v", base=base)
    x = MIXTURE.sample(60, generator=seeded(2)).double()
    judge = Judge(x, None, 0)
    judge(made)
    assert judge.found.kept is (sign > 0)
    assert (float(judge.found.gain.value) > 0) is (sign > 0)
    assert float(made.base.share.max()) == (1.0 if sign > 0 else 0.0)
    gap = MIXTURE.noised(1.0, 0.1).log_prob(x) - base.noised(1.0, 0.1).log_prob(x)
    if sign > 0:
        assert judge.found.gain.value == pytest.approx(float(gap.mean()), abs=0.02)
    text = str(judge.found)
    assert text.endswith("kept" if sign > 0 else "left out")


def test_how_many_rows_are_held_out():
    assert [held_out_rows(n, None) for n in (10, 40, 178, 569, 10_000)] == [0, 10, 44, 64, 1000]
    assert held_out_rows(178, 0.1) == 17


def test_what_base_is_chosen():
    g = seeded(0)
    x = MIXTURE.sample(600, generator=g).double()
    ask = lambda name, x=x, condition=None: base_for(
        name, x[:500], x[500:], condition=condition, standardize=True, seed=0
    )
    images = torch.rand(600, 1, 4, 4, generator=g)
    normal = torch.randn(600, 2, generator=g).double()
    assert isinstance(ask("auto"), glp.GaussianMixture)
    assert isinstance(ask("mixture", condition="classes"), glp.GaussianMixture)
    assert ask("auto", condition="classes") == ask("gaussian") == "gaussian"
    assert ask("auto", images) is None
    assert ask("none") is None
    assert ask("auto", condition="values") is None
    assert ask("gaussian", images) == "gaussian"
    assert ask("auto", normal) == "gaussian"
    found, gain = mixture_of(x[:500], x[500:], 0)
    assert len(found.weights) == 2
    one = glp.Gaussian(x[:500].mean(0), x[:500].T.cov(correction=0))
    close(gain.value, (found.log_prob(x[500:]) - one.log_prob(x[500:])).mean(), atol=1e-4)
    with pytest.raises(ValueError, match="base must be 'auto', 'gaussian', 'mixture' or 'none'"):
        glp.ScoreEstimator(base="normal").fit(np.zeros((30, 2)))
