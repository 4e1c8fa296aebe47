"""No step of a driver makes the host wait for a device: counted on one that is played.

What is left out: kernels that need more than a density (minibatches, a sphere); one whose derivative by
`torch.func` takes no tensors that only play another device; and what looks at numbers by its nature,
`NUTS` where a path ends and `AdaptiveFlow` at its errors.
"""

import inspect
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from far_support import DEVICE, LATE, Elsewhere, arrive, far
from kernel_support import KERNELS, make
from torch import nn

import gradlogp as glp
from gradlogp.diffusion import DDIM, transitions
from gradlogp.langevin import HMC, AdjustedMCLMC, ParallelTempering
from gradlogp.noise.coordinates import AffineCoordinates
from gradlogp.noise.predictions import predict

TRANSITIONS = [v for v in vars(transitions).values() if inspect.isclass(v)]
LEFT_OUT = {
    "AdaptiveFlow", "NUTS", "PositionDependentULA", "PSGLD", "SGHMC", "SGLD", "SphereMALA", "SphereULA",
}  # fmt: skip


class OnHost(torch.Generator):
    """A generator of the played device, which draws on the host."""

    def __new__(cls, device="cpu"):
        return super().__new__(cls, "cpu")

    def __init__(self, device="cpu"):
        pass


@pytest.fixture(autouse=True)
def played(monkeypatch):
    monkeypatch.setattr(torch, "Generator", OnHost)
    monkeypatch.setattr(import_module("gradlogp.langevin.run.rounds"), "ROUND_SECONDS", 1e9)
    monkeypatch.setattr("gradlogp.learn.training.adamw", under_way)
    monkeypatch.setattr("gradlogp.learn.record.AHEAD", (DEVICE.type,))
    there = SimpleNamespace(synchronize=arrive)
    monkeypatch.setattr("gradlogp.learn.record.arrival", lambda device: there)


def under_way(parameters, settings):
    """An optimiser that has moments already; how it makes them knows real devices alone."""
    optimizer = torch.optim.AdamW(list(parameters))
    for p in optimizer.param_groups[0]["params"]:
        optimizer.state[p] = {
            "step": far(torch.zeros(())), "exp_avg": torch.zeros_like(p),
            "exp_avg_sq": torch.zeros_like(p),
        }  # fmt: skip
    return optimizer


def waits(run):
    """Return the waits of a step by their places: those of two steps less those of one."""
    found = []
    for n in (1, 2):
        with Elsewhere() as elsewhere:
            run(n)
        found.append(elsewhere.waits)
    return found[1] - found[0]


def model(predicts="v", condition=None, base=None):
    """A model on the played device, weight by weight."""
    network = glp.MLP(2, 8, 1, condition)
    score = glp.ScoreModel(network, glp.schedules.VP(), predicts, base=base).float().eval()
    with Elsewhere():
        for part in score.modules():
            if isinstance(part, AffineCoordinates):
                continue
            for name, weight in part._parameters.items():
                part._parameters[name] = weight if weight is None else nn.Parameter(far(weight))
            for name, buffer in part._buffers.items():
                part._buffers[name] = buffer if buffer is None else far(buffer)
    return score


@pytest.fixture
def start():
    return far(torch.linspace(-1, 1, 8, dtype=torch.float32).reshape(4, 2))


def every(kinds):
    kept = [kind for kind in kinds if kind.__name__ not in LEFT_OUT]
    return pytest.mark.parametrize("kind", kept, ids=lambda c: c.__name__)


def grid(n):
    return torch.linspace(0.6, 0.3, n + 1, dtype=torch.float64)


@every(TRANSITIONS)
def test_transitions(kind, start):
    score = model()
    assert not waits(lambda n: glp.evolve(kind(), score, start, grid(n)))


def guided():
    score = model(condition=3)
    with Elsewhere():
        score.condition.dropout.fill_(0.1)
    return glp.GuidedScore(score.given(torch.tensor([0, 1, 2, 0])), score.unconditional(), 2.0)


def exact():
    return glp.ExactScore(
        glp.Gaussian(far(torch.zeros(2).float()), far(torch.eye(2).float())), glp.schedules.VP()
    )


def mixture(*cov):
    with Elsewhere():
        law = glp.GaussianMixture(
            *(far(v.float()) for v in (torch.ones(2) / 2, torch.eye(2), *cov))
        )
    return glp.ExactScore(law, glp.schedules.VP())


SCORES = {
    "epsilon": lambda: model("epsilon"),
    "x0": lambda: model("x0"),
    "beside a Gaussian": lambda: model(base=glp.Gaussian(torch.zeros(2))),
    "beside a mixture": lambda: model(base=glp.GaussianMixture([0.3, 0.7], torch.eye(2), 0.5)),
    "of classes, guided": guided,
    "given values": lambda: model(condition=(2,)).given(torch.randn(4, 2)),
    "exact": exact,
    "of a mixture": lambda: mixture(torch.tensor(0.5)),
    "of any mixture": lambda: mixture(
        torch.stack([torch.eye(2), torch.ones(2, 2) + torch.eye(2)])
    ),
    "empirical": lambda: glp.EmpiricalScore(far(torch.randn(50, 2).float()), glp.schedules.VP()),
}


@pytest.mark.parametrize("kind", [HMC, AdjustedMCLMC, ParallelTempering], ids=lambda c: c.__name__)
def test_a_number_of_steps_that_was_moved_returns_to_the_host(kind, start):
    """As that of a run that goes on from its files: then it is waited for once."""
    with Elsewhere() as elsewhere:
        law = glp.Gaussian(far(torch.zeros(2).float()), far(torch.eye(2).float()))
        kernel, generator = make(kind, 0.1), OnHost()
        state = kernel.init(start, law)
        moved = type(state)(*state[:-1], far(state[-1]))
        moved, _ = kernel.step(moved, law, generator=generator)
        before = elsewhere.waits.copy()
        kernel.step(moved, law, generator=generator)
        assert elsewhere.waits == before
    assert moved[-1].device.type == "cpu"
    assert moved[-1].tolist() == [1] * len(start)


def test_a_chain_that_froze_on_a_device_is_no_sample(start):
    """Elsewhere the step raises; there it is known at the end."""

    def broken(z, t):
        return torch.where(t < 0.5, torch.nan, -z)  # below, chains stay where they were

    score = glp.as_score(broken, "score", glp.schedules.VP(), event_shape=(2,))
    with Elsewhere(), pytest.raises(FloatingPointError, match="4 of 4 samples became NaN"):
        glp.evolve(glp.diffusion.AnnealedLangevin(2), score, start, grid(3), denoise=False)


@pytest.mark.parametrize("made", SCORES.values(), ids=SCORES)
def test_scores(made, start):
    with Elsewhere():
        score = made()
    assert not waits(lambda n: glp.evolve(DDIM(), score, start, grid(n)))


@every(KERNELS)
def test_kernels(kind, start):
    with Elsewhere():
        law = glp.Gaussian(far(torch.zeros(2).float()), far(torch.eye(2).float()))
    kernel = make(kind, 0.1)
    assert not waits(lambda n: glp.run(kernel, law, start, n))


def trained(score, n, **options):
    data = torch.randn(64, 2).float()
    records = glp.fit(score, data, steps=100, batch_size=8, check_every=100, **options)
    return [next(records) for _ in range(n)]


def test_training():
    """Losses and norms reach the host while the next step is prepared."""
    score, kept = model(), []
    assert not waits(lambda n: kept.append(trained(score, n)))
    found = torch.tensor([[step.loss, step.gradient_norm] for step in kept[1]])
    assert found.isfinite().all()
    assert len(found.unique(dim=0)) == 2


def test_what_comes_back_from_a_device_is_waited_for(start):
    """Nothing is read on the host that is still on its way there."""
    data, t = torch.randn(50, 2).float(), far(torch.tensor(0.5).float())
    with Elsewhere():
        for law in (far(data), data):
            score = glp.EmpiricalScore(law, glp.schedules.VP())
            assert score.law(t)._sigma.isfinite()
        assert (
            glp.ExactScore(glp.Gaussian([1.0, 2.0]), glp.schedules.VP())
            .law(t)
            .mean.isfinite()
            .all()
        )
    assert not LATE


@pytest.mark.parametrize("kind", ["classes", "values", "base", "parts"])
def test_training_of_other_models(kind):
    base = glp.GaussianMixture([0.3, 0.7], torch.eye(2), 0.5) if kind == "base" else None
    condition = {"classes": 3, "values": (2,)}.get(kind)
    given = {"classes": torch.arange(64) % 3, "values": torch.randn(64, 2)}.get(kind)
    options = {} if given is None else {"condition": given, "condition_dropout": 0.2}
    if kind == "parts":
        options = {"accumulate": 2, "ema_half_lives": (3,)}
    score = model(condition=condition, base=base)
    assert not waits(lambda n: trained(score, n, **options))


def test_what_waits_is_seen(start):
    """The negative control: a read, a copy there and one back are each counted, once a step."""
    score = model()

    def reads(z, t, s, score, *, generator=None):
        return z * float(z.sum())

    def copies(z, t, s, score, *, generator=None):
        return predict(score, z, t)[0] * torch.ones(4, 2).to(z)

    def looks(z, t, s, score, *, generator=None):
        return z * z.cpu().mean()

    for step in (reads, copies, looks):
        found = waits(lambda n, step=step: glp.evolve(step, score, start, grid(n)))
        assert sum(found.values()) == 1
