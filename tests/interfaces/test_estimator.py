"""The estimator: scikit-learn's contract, and what it promises beyond."""

import inspect
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.utils.estimator_checks import parametrize_with_checks
from support import MIXTURE, close, seeded

import gradlogp as glp
from gradlogp import ScoreEstimator
from gradlogp.interfaces.base import EXACT, Judge, base_for, held_out_rows, mixture_of
from gradlogp.interfaces.cli.learn import fit as cli_fit
from gradlogp.interfaces.conditions import repeated
from gradlogp.noise.schedules import VE
from gradlogp.scores.exact import ExactScore

pytestmark = pytest.mark.usefixtures("as_user")  # scikit-learn passes values of every type


@pytest.mark.usefixtures("few_levels")
@parametrize_with_checks(
    [glp.ScoreEstimator(max_iter=3, n_likelihood_steps=4, width=8, random_state=0)]
)
def test_scikit_learn_contract(estimator, check):
    check(estimator)


LAW = glp.GaussianMixture([0.3, 0.7], [[-2.0, 10.0], [1.0, 12.0]], 0.5)


@pytest.fixture(scope="module")
def fitted():
    x = LAW.sample(3000, generator=torch.Generator().manual_seed(0)).float()
    steps = {"n_sample_steps": 20, "n_likelihood_steps": 24}
    estimator = glp.ScoreEstimator(max_iter=120, width=64, random_state=0, **steps)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gradlogp.learn.share.ENTRIES", 2**13)
        patch.setattr("gradlogp.interfaces.base.COMPONENTS", (2,))
        return estimator.fit(x.numpy()), x


def test_it_learns_the_density(fitted):
    estimator, _ = fitted
    held = LAW.sample(300, generator=torch.Generator().manual_seed(1))
    found = estimator.score_samples(held.numpy())
    gap = found - LAW.log_prob(held).numpy()
    assert abs(gap.mean()) < 0.05  # nats; a Gaussian fitted to this data loses 0.19
    gaussian = glp.Gaussian(LAW.sample(20_000).mean(0), LAW.sample(20_000).T.cov())
    assert (gaussian.log_prob(held) - LAW.log_prob(held)).mean() < -0.1
    assert estimator.score(held[:50].numpy()) == pytest.approx(found[:50].mean())
    assert estimator.held_out_loss_.standard_error > 0


def test_gradient_points_uphill(fitted):
    estimator, x = fitted
    shift, scale = (estimator.model_.coordinates.shift, estimator.model_.coordinates.scale)
    standard = glp.GaussianMixture(
        LAW.weights, (LAW.means - shift) / scale, (0.5 / scale**2).expand(2, 2)
    )
    points = x[:500].double()
    exact = standard.noised(1.0, 0.2).score((points - shift) / scale) / scale
    learned = torch.from_numpy(estimator.grad_log_prob(points.numpy(), sigma=0.2))
    cosine = torch.nn.functional.cosine_similarity(learned.flatten(), exact.flatten(), dim=0)
    assert cosine > 0.97
    assert not torch.allclose(learned, -exact, atol=1.0)


def test_samples_and_denoising(fitted):
    estimator, x = fitted
    samples = estimator.sample(4000, random_state=1)
    assert isinstance(samples, np.ndarray)
    weight = float((samples[:, 1] < 11).mean())
    assert abs(weight - 0.3) < 0.05
    assert np.array_equal(samples, estimator.sample(4000, random_state=1))
    noisy = x.numpy() + 0.3 * estimator.model_.coordinates.scale.numpy() * np.random.default_rng(
        0
    ).normal(size=x.shape)
    better = estimator.denoise(noisy, 0.3)
    assert ((better - x.numpy()) ** 2).mean() < 0.9 * ((noisy - x.numpy()) ** 2).mean()
    with pytest.raises(ValueError, match="outside the noise levels"):
        estimator.denoise(noisy, 1e6)


def test_save_and_load(fitted, tmp_path):
    estimator, x = fitted
    again = glp.ScoreEstimator.load(estimator.save(tmp_path / "model"))
    assert again.get_params()["width"] == 64
    assert np.array_equal(
        again.score_samples(x[:20].numpy()), estimator.score_samples(x[:20].numpy())
    )
    assert np.array_equal(again.sample(5, random_state=2), estimator.sample(5, random_state=2))
    with pytest.raises(ValueError, match="no checkpoint"):
        glp.ScoreEstimator.load(tmp_path / "nothing")


def test_settings_are_those_of_training(few_levels, tmp_path):
    """A parameter wins over `settings`, and these over the defaults; all of it is stored."""
    x = LAW.sample(60, generator=torch.Generator().manual_seed(0)).numpy()
    settings = glp.TrainingSettings(steps=4, batch_size=7, clip=2.0, ema_half_lives=(3.0,))
    seen = []
    model = glp.ScoreEstimator(
        max_iter=3, ema=0.5, width=8, settings=settings, checkpoint=tmp_path / "run",
        random_state=0, callback=seen.append,
    ).fit(x)  # fmt: skip
    used = glp.learn.checkpoint.read_run(tmp_path / "run")["settings"]
    assert used == json.loads(json.dumps(vars(replace(settings, steps=3, ema=0.5))))
    assert [r.learning_rate for r in seen] == [
        replace(settings, steps=3).rate(i) for i in range(3)
    ]
    again = glp.ScoreEstimator.load(model.save(tmp_path / "model"))
    for name in ("max_iter", "ema", "batch_size", "learning_rate", "settings"):
        assert getattr(again, name) == getattr(model, name)
    config = tmp_path / "model" / "config.json"
    for known, strange in (("max_iter", "max_itre"), ("batch_size", "batch_sise")):
        text = config.read_text()
        config.write_text(text.replace(f'"{known}"', f'"{strange}"'))
        with pytest.raises(ValueError, match=f"config.json is damaged: .*{strange}"):
            glp.ScoreEstimator.load(tmp_path / "model")
        config.write_text(text)


NOT_OF_TRAINING = {"width", "depth", "held_out_fraction", "n_sample_steps", "n_likelihood_steps"}


@pytest.mark.parametrize("face", [glp.ScoreEstimator, cli_fit])
def test_no_default_of_training_is_declared_twice(face):
    """A number in a signature would be one; what has none asks `TrainingSettings`."""
    parameters = inspect.signature(face).parameters
    numeric = {
        name
        for name, p in parameters.items()
        if isinstance(p.default, int | float) and not isinstance(p.default, bool)
    }
    assert numeric <= NOT_OF_TRAINING | {"held_out", "seed"}
    shared = parameters.keys() & vars(glp.TrainingSettings()).keys()
    assert all(parameters[name].default is None for name in shared)
    assert parameters["settings"].default in (None, glp.TrainingSettings())


def test_tensors_in_tensors_out(few_levels):
    x = LAW.sample(100, generator=torch.Generator().manual_seed(0))
    estimator = glp.ScoreEstimator(max_iter=3, random_state=0).fit(x)
    assert isinstance(estimator.sample(4), torch.Tensor)
    assert isinstance(estimator.grad_log_prob(x[:3]), torch.Tensor)


def test_large_data_on_disk_are_learned_from_as_small_ones_are(few_levels, monkeypatch, tmp_path):
    """Batch by batch, the same rows in the same order; noise levels from a part of them."""
    x = LAW.sample(300, generator=torch.Generator().manual_seed(0)).numpy()
    np.save(tmp_path / "x.npy", x)
    learn = lambda x: glp.ScoreEstimator(max_iter=5, width=16, random_state=0).fit(x).model_
    model = learn(x)
    small = model.state_dict()
    monkeypatch.setattr("gradlogp.noise.coordinates.HELD", 0)
    large = learn(np.load(tmp_path / "x.npy", mmap_mode="r")).state_dict()
    for name, value in small.items():
        torch.testing.assert_close(large[name], value, rtol=1e-4, atol=1e-5, msg=name)
    monkeypatch.setattr("gradlogp.interfaces.pipeline.LOOKED_AT", 200)
    part = learn(x).schedule.sigma_min
    assert part != model.schedule.sigma_min
    assert part == pytest.approx(model.schedule.sigma_min, rel=0.2)


def test_classes():
    g = torch.Generator().manual_seed(0)
    y = np.array(["left", "right"] * 1000)
    centre = torch.from_numpy(np.where(y == "left", -5.0, 5.0)).unsqueeze(1)
    x = (centre + torch.randn(2000, 2, generator=g)).numpy()
    estimator = glp.ScoreEstimator(max_iter=50, width=32, condition="classes", random_state=0)
    estimator.set_params(n_sample_steps=16, learning_rate=0.01).fit(x, y)
    left = estimator.sample(200, y=["left"] * 200)
    assert (left[:, 0] < 0).mean() > 0.95
    right = estimator.sample(200, y=["right"] * 200)
    assert (right[:, 0] > 0).mean() > 0.95
    with pytest.raises(ValueError, match=r"unknown class.*up"):
        estimator.sample(1, y=["up"])
    with pytest.raises(ValueError, match="needs y"):
        estimator.score_samples(x[:3])


def test_interrupted_and_resumed_is_unbroken(few_levels, tmp_path):
    x = LAW.sample(300, generator=torch.Generator().manual_seed(0)).numpy()
    make = lambda **k: glp.ScoreEstimator(max_iter=12, width=16, random_state=5, **k)
    whole = make().fit(x)

    def stop(record):
        if record.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(checkpoint=tmp_path / "run", callback=stop).fit(x)
    resumed = make(checkpoint=tmp_path / "run", resume=True).fit(x)
    for a, b in zip(
        whole.model_.state_dict().values(), resumed.model_.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match="random_state"):
        glp.ScoreEstimator(checkpoint=tmp_path / "run", resume=True).fit(x)
    for change, says in (
        ({"width": 17}, "width=16, got 17"), ({"predicts": "x0"}, "predicts=v, got x0"),
        ({"schedule": glp.schedules.VP()}, "schedule=VE.*, got VP"),
        ({"objective": glp.objectives.multilevel}, "objective=.*stratified=True"),
    ):  # fmt: skip
        options = {"max_iter": 12, "width": 16, "random_state": 5} | change
        with pytest.raises(ValueError, match=says):
            glp.ScoreEstimator(checkpoint=tmp_path / "run", resume=True, **options).fit(x)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones((1, 2)), "1 sample"),
        (np.array([[1.0, np.nan], [2.0, 3.0]]), "NaN"),
        (np.array([[1.0, np.inf], [2.0, 3.0]]), "infinity"),
        (np.c_[np.arange(30.0), np.ones(30)], r"column\(s\) \[1\] are constant"),
        (np.array([["a", "b"], ["c", "d"]]), "could not convert string"),
    ],
)
def test_data_that_cannot_be_learned_from(x, message):
    with pytest.raises(ValueError, match=message):
        glp.ScoreEstimator(max_iter=2).fit(x)


def test_scoring_draws_no_noise(fitted):
    before = torch.get_rng_state()
    fitted[0].score(np.zeros((3, 2)))
    assert torch.equal(before, torch.get_rng_state())


def test_what_cannot_be_trained_on_or_with(as_user):
    x = np.random.default_rng(0).normal(size=(20, 2))
    with pytest.raises(ValueError, match="device must be one of this machine"):
        ScoreEstimator(device="meta").fit(x)
    with pytest.raises(ValueError, match="masks must be Masks"):
        ScoreEstimator().fit(x, masks=torch.zeros(20, 2))
    with pytest.raises(ValueError, match="settings must be TrainingSettings"):
        ScoreEstimator(settings=torch.zeros(2)).fit(x)
    with pytest.raises(ValueError, match="objective must be a function"):
        ScoreEstimator(objective=torch.zeros(2)).fit(x)
    with pytest.raises(ValueError, match="random_state must be None, an integer"):
        ScoreEstimator(random_state=torch.zeros(2)).fit(x)
    with pytest.raises(ValueError, match="X must hold numbers"):
        ScoreEstimator().fit(torch.zeros(20, 2, device="meta"))


def test_ten_lines(few_levels):
    """Train, sample and evaluate in at most ten lines."""
    program = """
import gradlogp as glp
from gradlogp import data, metrics
train, held_out = data.train_held_out(data.load("moons"))
estimator = glp.ScoreEstimator(max_iter=20, width=32, random_state=0).fit(train.x[:2000])
samples = estimator.sample(500)
print(estimator.score(held_out.x[:20]))
print(metrics.sliced_wasserstein(samples, held_out.x[:500]))
"""
    assert len(program.strip().splitlines()) <= 10
    exec(program, {})


def test_whole_weights_are_repeated_samples(generator):
    """Coordinates and moments to rounding; what is learned in law."""
    x = torch.randn(60, 2, generator=generator).numpy()
    weight = np.arange(60) % 4
    quick = {"max_iter": 1, "width": 8, "held_out_fraction": 0.0, "random_state": 0}
    ours = ScoreEstimator(**quick).fit(x, sample_weight=weight).model_
    theirs = ScoreEstimator(**quick).fit(np.repeat(x, weight, axis=0)).model_
    for name in ("shift", "scale"):
        close(getattr(ours.coordinates, name), getattr(theirs.coordinates, name), 1e-6)
    close(ours.z_mean, theirs.z_mean, 0.0, 1e-6)


def test_weights_tilt_a_normal_law(generator):
    """Weights e^{a·x} on N(0, I) give N(a, I): mean and variance of what is drawn, within 4 errors.

    The effective number of samples is (Σw)²/Σw²; unweighted, the mean would be 0, 20 errors off.
    """
    x = torch.randn(3000, 2, generator=generator)
    tilt = torch.tensor([0.8, 0.0])
    weight = (x @ tilt).exp()
    steps = {"max_iter": 60, "n_sample_steps": 16}
    found = ScoreEstimator(width=16, random_state=0, **steps).fit(x, sample_weight=weight)
    drawn = found.sample(3000)
    n = float(weight.sum() ** 2 / weight.square().sum())
    error = (1 / n + 1 / 3000) ** 0.5
    assert float((drawn.mean(0) - tilt).abs().max()) < 4 * error
    assert float((drawn.var(0) - 1).abs().max()) < 4 * (2 / n + 2 / 3000) ** 0.5 + 0.05


def test_copies_of_a_row_are_as_many_as_its_weight_says(generator):
    """|n_i − m w_i/W| < 1, the mean over u is exact; whole weights are counts."""
    weight = torch.rand(50, generator=generator) + 0.01
    counts = torch.stack(
        [torch.bincount(repeated(weight, generator), minlength=50) for _ in range(400)]
    ).double()
    wanted = 200 * weight / weight.sum()
    assert (counts.sum(1) == 200).all()
    assert float((counts - wanted).abs().max()) < 1
    part = wanted - wanted.floor()
    z = (counts.mean(0) - wanted) / (part * (1 - part) / 400).sqrt()
    assert float(z.abs().max()) < 4.5
    whole = torch.tensor([3.0, 0, 2, 1])
    assert torch.bincount(repeated(whole)).tolist() == [3, 0, 2, 1]


def test_weights_of_classes_and_weights_that_cannot_be(few_levels):
    x = np.random.default_rng(0).normal(size=(80, 2))
    y = np.repeat(["a", "b"], 40)
    weight = np.where(y == "a", 1.0, 0.0)
    found = ScoreEstimator(max_iter=2, width=8, condition="classes", random_state=0)
    found.fit(x, y, sample_weight=weight)
    assert found.classes_.tolist() == ["a", "b"]
    assert found.class_prior_.tolist() == [1, 0]
    for bad, says in (
        (np.ones(3), r"sample_weight must have shape \(80,\), got \(3,\)"),
        (-np.ones(80), "non-negative"), (np.zeros(80), "weights above zero"),
        (np.full(80, np.nan), "finite"), (["x"] * 80, "must be numbers"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=says):
            found.fit(x, y, sample_weight=bad)
    found.fit(x, y, sample_weight=torch.as_tensor(weight).requires_grad_())
    assert found.class_prior_.tolist() == [1, 0]


def test_what_is_kept_of_a_whole_number_for_a_share_and_another_base(tmp_path):
    x = np.random.default_rng(0).normal(size=(40, 2))
    made = ScoreEstimator(
        max_iter=2, width=8, held_out_fraction=0, random_state=0, checkpoint=tmp_path / "m"
    ).fit(x)
    assert ScoreEstimator.load(tmp_path / "m").held_out_fraction == 0
    with pytest.raises(ValueError, match="made with base=auto, got none"):
        made.set_params(resume=True, base="none").fit(x)


def test_images_are_scored_in_bounded_time():
    """The steps are measured on a few draws, with one probe each."""
    x = np.random.default_rng(0).normal(size=(40, 1, 6, 6))
    made = ScoreEstimator(max_iter=2, channels=(8,), random_state=0).fit(x)
    assert 8 <= made.likelihood_steps() <= 256
    assert np.isfinite(made.score_samples(x[:1])).all()


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
    known = {
        "n_likelihood_steps": 64,
        "random_state": 0,
    }  # many, of a small network: cheaper than few
    estimator = glp.ScoreEstimator(max_iter=30, width=16, **known).fit(x.numpy())
    assert estimator.model_.base.config == {"components": 2, "rank": 2, "follows": False}
    gap = torch.as_tensor(estimator.score_samples(new.numpy())) - MIXTURE.log_prob(new)
    # 11 numbers cost 11/(2 n) nats, and the blur of σ = 0.02 no more
    assert float(gap.mean()) > -0.01 - 3 * float(gap.std()) / 400**0.5
    assert estimator.correction_.gain.value > -0.01
    again = glp.ScoreEstimator(max_iter=2, width=16, base="gaussian", random_state=0).fit(x[:60])
    assert again.model_.base.follows


@pytest.mark.parametrize(("sign", "part"), [(1.0, 1.0), (-1.0, 0.0), (6.0, 0.25)])
def test_a_correction_that_makes_the_flow_worse_is_left_out(sign, part):
    """The right one is kept, of one too large a part, and of the wrong sign the base remains."""
    base = glp.Gaussian(MIXTURE.mean, MIXTURE.cov)

    class Planted(glp.ScoreModel):
        def forward(self, z, t, condition=None):
            right, known = (ExactScore(law, self.schedule)(z, t) for law in (MIXTURE, base))
            return self.base.beside(known, sign * (right - known), self._noise_input(t))

        def denoise_given(self, z, t, condition=None, *, alone=False):
            alpha, sigma = self.schedule(t)
            mean = (z + sigma**2 * self(z, t)) / alpha
            return mean - self._known(z, t)[0] if alone else mean

    made = Planted(glp.MLP(2, 4, 1).double(), VE(0.1, 20.0), "v", base=base)
    x = MIXTURE.sample(24, generator=seeded(2)).double()
    judge = Judge(x, None, 0)
    judge(made)
    assert judge.found.kept is (sign > 0)
    assert (float(judge.found.gain.value) > 0) is (sign > 0)
    assert float(made.base.share.max()) == float(made.base.share.min()) == part
    gap = MIXTURE.noised(1.0, 0.1).log_prob(x) - base.noised(1.0, 0.1).log_prob(x)
    if part == 1:
        assert judge.found.gain.value == pytest.approx(float(gap.mean()), abs=0.02)
    said = {1.0: "base, kept", 0.0: "base, left out", 0.25: "base, 0.25 of it kept"}
    assert str(judge.found).endswith(said[part])


def test_what_a_model_and_its_base_have_in_common_cancels():
    """With probes, of a correction that is 0 wherever it is kept, down to rounding."""
    d = EXACT + 1
    made = glp.ScoreModel(
        glp.MLP(d, 4, 1), VE(0.1, 20.0), "v", base=glp.Gaussian(torch.zeros(d), 1.0)
    )
    made.base.share[12:] = 0
    judge = Judge(2 * torch.randn(20, d, generator=seeded(2)), None, 0)
    judge(made)
    assert abs(judge.found.gain.value) + judge.found.gain.standard_error < 1e-9


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
