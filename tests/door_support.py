"""Walk all public names with hostile arguments: the names, valid arguments, hostile ones, the judge.

The names are found, not listed. Each is called with valid arguments, of which one at a time is
replaced. What may come of it is our refusal, which names the argument, or a finite result.
"""

import dataclasses
import functools
import importlib
import inspect
import itertools
import linecache
import math
import pkgutil
import re
import traceback
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import sklearn
import torch
from torch import Tensor

import gradlogp as glp
from gradlogp.check.conformance.report import ConformanceError

SOURCE = (str(Path(glp.__file__).parent), str(Path(sklearn.__file__).parent))
"""Whose refusals count: ours, and scikit-learn's, which checks the tables of an estimator."""

# ---------------------------------------------------------------------------- the names

APART = {
    "gradlogp.interfaces.cli": "its own tests misuse it, with exit codes",
    "gradlogp.interfaces.demos": "scripts with the options of the command line",
    "gradlogp.check.theory": "claims, which take no arguments of a user's",
    "gradlogp.show": "figures draw what they are given",
    "gradlogp.langevin.fused": "an engine behind `run`, which compiles",
    "gradlogp.core": "what the doors ask",
    "gradlogp.calculus.jets": "derivatives inside loops, behind `calculus`",
}
"""Rooms that are not walked, and why."""

LOOP = re.compile(
    "score|log_prob.*|log_det|init|denoise|denoise_given|forward|posterior_mean|posterior_cov|hessian|"
    "responsibilities|encode|decode|pull_back|apply|adjoint|product|solve|residual|pointwise|divergence|"
    "log_likelihood|log_prior|sqrt|inv_sqrt|inv_quadratic|momentum|noised|features|predict|step|refresh|"
    "draw|gram|law|rows|take|linearised|minibatch_score|f|g2|log_snr|log_alpha|rates"
)
"""Methods that run inside a loop: they look at the shape of a batch, and not at values."""

LOOP_PATHS = re.compile(
    "calculus|noise.predictions|noise.schedules.invert_log_snr|scores.networks.embeddings.drop|"
    "learn.objectives.times.draw_times|diffusion.transitions.annealed_kernels.*at$"
)
"""Functions that run inside one: derivatives, paths, conversions of a prediction, times of a batch."""

UNUSED = {
    "check_score.data": "what is not of the score's law fails the check, as it should",
    "facts_of.kernel": "no kernel has no facts, whatever it is",
    "LogisticRegression.reference": "a record, for comparisons",
    "Observed.constrain.x": "the identity without parameters",
    "evolve.out": "what is in it is overwritten",
    "dequantise.like": "only its dtype is looked at",
    "fit.extra": "stored with a checkpoint, and there is none",
    "PreconditionedSteps.kernel": "a function, called when the transition is",
    "tweedie_variance.n_probes": "with one probe the error is NaN, as it says",
    "log_likelihood.n_steps": "with a number of steps the solver's error is NaN, as it says",
    "forward": "what drivers compile: the score around it asks",
    "windows": "the schedule of a warm-up, which asked",
    "rate": "the schedule of a training, which asked",
    "Target": "holds functions",
    "ScoreModel.denoise.z": "in another precision than the weights: a network may cast, or says so",
    "GradientField.log_prob.x": "the function itself, which knows what it takes",
    "Observed.log_prob.x": "likewise",
    "Observed.log_prob_and_score.x": "likewise",
    "Observed.score.x": "likewise",
    "Observed.minibatch_score.x": "likewise",
    "sample.random_state": "what scikit-learn takes",
    "ScoreEstimator.score.y": "ignored without a condition, as scikit-learn has it",
    "ScoreEstimator.fit.y": "likewise",
    "WithHoles.given.condition": "NaN is what a hole is",
    "Mask.fit": "the training to which it belongs asked",
    "Mask.null": "the model to which it belongs asked",
    "Mask.drop": "likewise",
    "Condition.fit": "the training to which it belongs asked",
    "Condition.null": "the model to which it belongs asked",
    "Condition.drop": "likewise",
}
"""Arguments that are not judged, and why."""

BATCH = {"x", "z", "x_t"}
"""What such a method looks at."""


def modules():
    for found in pkgutil.walk_packages(glp.__path__, "gradlogp."):
        if found.ispkg and not found.name.startswith(tuple(APART)):
            yield importlib.import_module(found.name)
    yield from (v for n in glp.__all__ if isinstance(v := getattr(glp, n), types.ModuleType))


@functools.cache
def public_names():
    """Every public function and class, `{path: object}`, under the name of where it is written."""
    found = {}
    for module in (*modules(), glp):
        names = getattr(module, "__all__", None) or [n for n in vars(module) if n[0] != "_"]
        for name in names:
            value = getattr(module, name)
            home = str(getattr(value, "__module__", ""))
            if (
                callable(value)
                and home.startswith("gradlogp")
                and not home.startswith(tuple(APART))
            ):
                found[f"{home.removeprefix('gradlogp.')}.{value.__name__}"] = value
    return found


RECORDS = {
    "Blurred", "Chain", "Comparison", "ConditionalMixture", "ConditionedScore", "Evidence",
    "ExponentialFit", "Facts", "KernelScore", "MaskedScore", "Modes", "ScoreBase", "ScoreEstimator",
    "Target", "WarmUp", "Welford",
}  # fmt: skip
"""Classes that the library fills with what it has computed, that are there to be derived from, or whose
constructor only stores: scikit-learn asks that of an estimator, and its methods are walked."""


def is_record(value):
    """Whether this is a result or a protocol, and so not an entry point."""
    return inspect.isclass(value) and (
        value.__name__ in RECORDS
        or issubclass(value, tuple | Exception)
        or getattr(value, "_is_protocol", False)
        or inspect.isabstract(value)
    )


# ---------------------------------------------------------------------------- valid arguments


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


N = 12
FRAME = pd.DataFrame(
    {
        "a": [0.5, 1.5, 2.25, 3.0, 4.0, 5.5],
        "kind": list("xyxyxx"),
        "n": [1.0, 2.0, float("nan"), 3.0, 1.0, 2.0],
    }
)
X = torch.randn(N, 2, generator=seeded(), dtype=torch.float64) * 0.7 + 0.3
TIMES = torch.linspace(0.2, 0.9, N, dtype=torch.float64)
EYE = torch.eye(2, dtype=torch.float64)


class Law(glp.Gaussian):
    """A Gaussian that has all that kernels of minibatches ask for."""

    n_data = 5

    def minibatch_score(self, x, index):
        return self.score(x)


LAW = Law(torch.tensor([0.3, -0.2], dtype=torch.float64), 0.6)
SEGMENT = glp.distributions.AffineSubspace(EYE[:, :1])
VP = glp.schedules.VP()
SCORE = glp.ExactScore(LAW, VP)
WITH_HOLES = glp.ExactScore(glp.distributions.WithHoles(LAW), VP)
MASKED = glp.ScoreModel(glp.MLP(2, 4, 1, holes=True), VP, "v").double()


def linear(x):
    return 0.3 - x


def square(x):
    return -x.square().sum(1)


def model():
    net = glp.MLP(2, width=4, depth=1, generator=seeded())
    return glp.ScoreModel(net, VP, event_shape=(2,)).double()


def observation():
    return glp.inverse.observe(X, glp.inverse.Matrix(EYE), 0.3, generator=seeded())


def sphere():
    return X / X.norm(dim=1, keepdim=True)


def inpainting():
    mask = torch.tensor([True, False])
    return glp.inverse.observe(X, glp.inverse.Inpainting(mask), 0.0, generator=seeded())


def chain():
    return glp.run(glp.langevin.ULA(0.1), LAW, X, 20, generator=seeded())


class Denoiser:
    """A denoiser that says what it knows."""

    sigma_min, sigma_max = 0.1, 10.0

    def __call__(self, z, sigma):
        return z / 2


BY_TYPE = {
    r"^Float\[Tensor, ' batch'\]": lambda: TIMES,
    r"^Float\[Tensor, 'n_probes": lambda: torch.ones(1, N, 2).double(),
    r"^Float\[Tensor, 'batch D m": lambda: (X / X.norm(dim=1, keepdim=True)).unsqueeze(2),
    r"^Float\[Tensor, '1 ": lambda: X[:1],
    r"^Float\[Tensor, 'd d": lambda: EYE,
    r"^Float\[Tensor": lambda: X,
    r"^Generator|^torch.Generator": seeded,
    r"ScoreFn|^Field": lambda: linear,
    r"^Callable\[\[Tensor\], Tensor\]": lambda: linear,
    r"^NoisyScore": lambda: SCORE,
    r"^ScoreModel": model,
    r"^Density|^Analytic|^Gaussian|^Law": lambda: LAW,
    r"^Sequence\[(LawOfXY|Analytic)": lambda: [LAW, LAW],
    r"^Kernel": lambda: glp.langevin.ULA(0.1),
    r"^Transition": lambda: glp.diffusion.DDIM(),
    r"^Schedule": lambda: VP,
    r"^Observation": observation,
    r"^LinearOperator": lambda: glp.inverse.Matrix(EYE),
    r"^Preconditioner": lambda: glp.langevin.Preconditioner(1.0),
    r"^Chain": chain,
    r"^StepSize|^float|^Tensor \| float": lambda: 0.5,
    r"^int": lambda: 3,
    r"^Kind|^Network": lambda: "epsilon",
}
"""Valid arguments by annotation."""

BY_NAME = {
    "x": lambda: X, "x0": lambda: X, "x_t": lambda: X, "z": lambda: X, "like": lambda: X,
    "v": lambda: X, "y": lambda: X, "eps": lambda: X, "data": lambda: X, "draws": lambda: X,
    "s": lambda: linear, "t": lambda: TIMES, "log_prob": lambda: square, "n": lambda: 4,
    "network": lambda: lambda z, t: -z, "noise_input": lambda: "time", "index": lambda: torch.arange(2),
    "denoise": lambda: linear, "denoiser": lambda: Denoiser(), "condition": lambda: 0,
    "event_shape": lambda: torch.Size([2]), "event": lambda: 2, "n_condition": lambda: 1,
    "basis": lambda: EYE[:, :1], "cov": lambda: EYE, "A": lambda: EYE, "shift": lambda: EYE[0],
    "scale": lambda: EYE[0] + 1, "mask": lambda: torch.tensor([True, False]), "noise": lambda: 0.3,
    "statistics": lambda: lambda x: torch.cat([x, x.square()], 1), "value": lambda: X,
    "X": lambda: X.numpy(), "s_z": lambda: X,
    "x_star": lambda: X, "log_snr": lambda: TIMES, "m": lambda: EYE[0], "correction": lambda: "exact",
}  # fmt: skip
"""By the name of the parameter."""

BY_BOTH = {
    "affine_map.step": lambda: lambda x, g: 0.5 * x + glp.core.randn_like(x, g),
    "affine_map.d": lambda: 2,
    "kernel_map.d": lambda: 2,
    "integrate.field": lambda: lambda y, t: -y,
    "integrate.start": lambda: 0.0,
    "integrate.rtol": lambda: 1e-3,
    "integrate.atol": lambda: 1e-3,
    "minimise.x0": lambda: X[:1],
    "minimise.f": lambda: lambda x: (x.square().sum(1), 2 * x),
    "minimise_each.f": lambda: lambda x: (x.square().sum(1), 2 * x),
    "GradientField.f": lambda: square,
    "conditional_log_likelihood.score": lambda: WITH_HOLES,
    "conditional_log_likelihood.known": lambda: X > 0,
    "marginal_log_likelihood.score": lambda: WITH_HOLES,
    "masked.score": lambda: MASKED.given(X),
    "masked.groups": lambda: (0, 1),
    "masked.flags": lambda: (False, False),
    "conditional.index": lambda: [0],
    "conditional.values": lambda: torch.zeros(1).double(),
    "WithHoles.given.condition": lambda: X,
    "TableEstimator.fit.X": lambda: FRAME,
    "TableEstimator.impute.X": lambda: FRAME,
    "TableEstimator.score_samples.X": lambda: FRAME,
    "compare.samples": lambda: torch.cat([X, -X]),
    "compare.held_out": lambda: torch.cat([X.flip(1), -X]),
    "compare.train": lambda: torch.cat([X, -X.flip(1)]),
    "compare.names": lambda: ["a", "b"],
    "compare.log_prob": lambda: torch.zeros(2 * N, dtype=torch.float64),
    "compare.sample_weight": lambda: torch.ones(2 * N, dtype=torch.float64),
    "compare.baselines": lambda: False,
    "Splitting.scheme": lambda: "BAOAB",
    "probe.law": lambda: "gaussian",
    "Classifier.labels": lambda: torch.arange(N) % 2,
    "Classifier.epochs": lambda: 1,
    "c2st.x": lambda: torch.cat([X, X + 0.1]),
    "c2st.y": lambda: torch.cat([X, X - 0.1]),
    "gaussian.dim": lambda: 2,
    "gaussian_error.dim": lambda: 2,
    "gaussian_limit.dim": lambda: 2,
    "location.log_density": lambda: square,
    "location.low": lambda: -20.0,
    "location.high": lambda: 20.0,
    "check_kernel.make": lambda: glp.langevin.ULA,
    "check_transition.t": lambda: glp.diffusion.DDIM(),
    "check_objective.o": lambda: glp.objectives.implicit,
    "check_score.s": lambda: SCORE,
    "sbc.prior": lambda: lambda n, g: torch.randn(n, 1, generator=g),
    "sbc.simulate": lambda: lambda theta, g: theta,
    "sbc.posterior": lambda: lambda y, n, g: torch.randn(n, 1, generator=g),
    "sbc.n_simulations": lambda: 10,
    "sbc.n_draws": lambda: 4,
    "mmd.n_permutations": lambda: 3,
    "ksd.n_bootstrap": lambda: 3,
    "bits_per_dim.log_prob": lambda: TIMES,
    "bits_per_dim.event_shape": lambda: (2,),
    "dequantise.k": lambda: torch.arange(12).reshape(6, 2),
    "log_likelihood.tolerance": lambda: 1e-2,
    "plan_likelihood.tolerance": lambda: 1.0,
    "plan_likelihood.n_draws": lambda: 4,
    "plan_levels.tolerance": lambda: 1.0,
    "plan_levels.n_draws": lambda: 4,
    "log_density_difference.n_nodes": lambda: 4,
    "log_density_difference.n_panels": lambda: 2,
    "variational_bound.n_strata": lambda: 4,
    "evolve.times": lambda: torch.tensor([1.0, 0.5, 0.1]).double(),
    "Gaussian.mean": lambda: [0.0, 0.5],
    "Gaussian.cov": lambda: 0.5,
    "GaussianMixture.weights": lambda: [0.4, 0.6],
    "GaussianMixture.means": lambda: [[0.0, 0.5], [1.0, -1.0]],
    "Embedded.basis": lambda: torch.eye(3).double()[:, :2],
    "as_target.log_prob": lambda: square,
    "bijection.constraint": lambda: torch.distributions.constraints.positive,
    "Observed.log_prior": lambda: square,
    "Observed.log_likelihood": lambda: lambda x, rows: -(x @ rows.mT).square(),
    "Parameters.declared": lambda: {"a": (2,), "b": torch.distributions.constraints.positive},
    "LogisticRegression.labels": lambda: (torch.arange(N) % 2).double(),
    "recommend_sigma.score_at": lambda: lambda sigma: SEGMENT.noised(1.0, sigma).score,
    "recommend_sigma.x": lambda: X * EYE[0],
    "recommend_sigma.sigmas": lambda: [0.01, 0.02, 0.05, 0.1],
    "posterior.observation": lambda: glp.inverse.observe(X[:1], glp.inverse.Matrix(EYE), 0.3),
    "Blur.kernel": lambda: torch.tensor([0.25, 0.5, 0.25]),
    "RePaint.observation": inpainting,
    "find_modes.max_steps": lambda: 50,
    "evidence.n_particles": lambda: 20,
    "evidence.n_steps": lambda: 1,
    "evidence.draws": lambda: torch.cat([X, X + 0.1, X - 0.1]),
    "polynomial_decay.a": lambda: 0.1,
    "weighted_average.step_sizes": lambda: TIMES[:2],
    "facts_of.kernel": lambda: glp.langevin.ULA(0.1),
    "started.kernel": lambda: glp.langevin.ULA(0.1),
    "Preconditioner.value": lambda: 0.5,
    "ParallelTempering.step_size": lambda: 0.1,
    "run.n_steps": lambda: 4,
    "run.x0": lambda: X,
    "warm_up.kernel": lambda: glp.langevin.MALA(0.1),
    "warm_up.n_steps": lambda: 50,
    "sample.n_draws": lambda: 4,
    "sample.n_warmup": lambda: 4,
    "choose_step.make": lambda: glp.langevin.ULA,
    "fisher_divergence.s": lambda: -X,
    "find_start.n_chains": lambda: 2,
    "tune_mclmc.kernel": lambda: glp.langevin.MCLMC(0.3, 1.0),
    "tune_mclmc.n_steps": lambda: 60,
    "Blur.gaussian.shape": lambda: (1, 8, 8),
    "Condition.fit.values": lambda: X,
    "SphereMALA.init.x": sphere,
    "SphereULA.init.x": sphere,
    "toy.name": lambda: "moons",
    "train_held_out.dataset": lambda: glp.data.toy("moons", 20, seeded()),
    "box.low": lambda: 0.0,
    "generalised.x": lambda: X.abs(),
    "half_line.x": lambda: X.abs(),
    "noised.matching": lambda: glp.objectives.sliced,
    "implicit_on_sphere.x": lambda: X / X.norm(dim=1, keepdim=True),
    "von_mises_fisher.x": lambda: X / X.norm(dim=1, keepdim=True),
    "ImportanceTimes.density": lambda: lambda schedule, t: 1 + t,
    "ImportanceTimes.n_cells": lambda: 10,
    "fit.settings": lambda: glp.TrainingSettings(steps=2, batch_size=4),
    "noise_levels.tell": lambda: None,
    "DDPM.betas": lambda: [0.1, 0.2],
    "Levels.sigmas": lambda: [1.0, 0.5, 0.1],
    "from_config.config": lambda: {"name": "VP"},
    "time_grid.n": lambda: 4,
    "ScoreModel.network": lambda: glp.MLP(2, width=4, depth=1, generator=seeded()),
    "UNet.event": lambda: (1, 4, 4),
    "UNet.channels": lambda: (8,),
    "MLP.width": lambda: 4,
    "conjugate_gradients.product": lambda: lambda v: 2 * v,
    "nu_method.iterations": lambda: 3,
    "spectral_stein.n_eigen": lambda: 3,
    "stein_gradient.regularization": lambda: 0.1,
    "kernel_exponential_family.regularization": lambda: 0.1,
}
"""By function and parameter, where the default takes long or the name is not enough."""


SIGNATURES = {}


def signature(f):
    """Return the signature of f, found once: it is asked for at every call."""
    if id(f) not in SIGNATURES:
        SIGNATURES[id(f)] = f, inspect.signature(f)  # f is kept, so that no other has its id
    return SIGNATURES[id(f)][1]


def parameters(f):
    """Return the parameters of f that take one argument each."""
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p for p in signature(f).parameters.values() if p.kind not in several]


def valid(path, parameter):
    """Return a valid argument for a parameter, afresh; KeyError if the tables have none."""
    owner = ".".join(path.split(".")[-2:])
    for key in (f"{owner}.{parameter.name}", f"{path.rpartition('.')[2]}.{parameter.name}"):
        if key in BY_BOTH:
            return BY_BOTH[key]()
    if parameter.default is not parameter.empty:
        return parameter.default
    if parameter.name in BY_NAME:
        return BY_NAME[parameter.name]()
    for pattern, make in BY_TYPE.items():
        if re.search(pattern, str(parameter.annotation)):
            return make()
    raise KeyError(f"{path}: {parameter.name}: {parameter.annotation}")


def arguments(path, f):
    """Return valid arguments for all parameters of f."""
    return {p.name: valid(path, p) for p in parameters(f)}


def call(f, given):
    """Call f, and go through what it yields."""
    result = f(**given)
    return list(itertools.islice(result, 3)) if inspect.isgenerator(result) else result


def doors(names=None):
    """Yield every public function, constructor and method that can be called: path, f, arguments.

    What cannot is yielded with the reason in place of the arguments. With names, a part of
    `public_names`, only these and their methods.
    """
    for path, f in sorted((public_names() if names is None else names).items()):
        if is_record(f):
            continue
        try:
            given = arguments(path, f)
            result = call(f, given)
        except (KeyError, ValueError, TypeError) as error:
            yield path, f, str(error)
            continue
        yield path, f, given
        if inspect.isclass(f) and f is not glp.TableEstimator:
            yield from methods(path, result)
    if names is None:
        yield "fitted", fitted, arguments("fitted", fitted)
        yield from methods("ScoreEstimator", fitted(X.numpy()))
        yield from methods("TableEstimator", glp.TableEstimator(small()).fit(FRAME))


@functools.cache
def called():
    """All doors that could be called, and those that could not."""
    found = list(doors())
    return [d for d in found if isinstance(d[2], dict)], [
        d for d in found if isinstance(d[2], str)
    ]


CHEAP = {"max_iter": 2, "width": 4, "depth": 1, "batch_size": 4, "random_state": 0}


def small(**options):
    return glp.ScoreEstimator(**(CHEAP | options))


def fitted(X, **options):
    """Stands for the constructor of the estimator, which only stores: all is looked at in `fit`."""
    return small(**options).fit(X)


def _as_the_constructor():
    known = [*inspect.signature(glp.ScoreEstimator).parameters.values()]
    given = [p.replace(default=CHEAP.get(p.name, p.default)) for p in known]
    kept = [p for p in given if p.name not in ("checkpoint", "resume", "callback")]
    first = inspect.Parameter("X", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    fitted.__signature__ = inspect.Signature([first, *kept])


_as_the_constructor()


def methods(path, owner):
    """Yield the public methods of an object, likewise."""
    shape = getattr(owner, "event_shape", None)
    for name, written in inspect.getmembers(type(owner), inspect.isroutine):
        if name[0] == "_" or not str(written.__module__).startswith("gradlogp"):
            continue
        f = getattr(owner, name)
        try:
            given = arguments(f"{path}.{name}", f)
            for key in {"x", "x_t", "z"} & given.keys():
                if (
                    isinstance(shape, torch.Size)
                    and f"{path.rpartition('.')[2]}.{name}.{key}" not in BY_BOTH
                ):
                    given[key] = X.repeat(1, 16)[:, : shape.numel()].reshape(N, *shape)
            call(f, given)
        except Exception as error:
            yield f"{path}.{name}", f, str(error)
            continue
        yield f"{path}.{name}", f, given


# ---------------------------------------------------------------------------- hostile arguments


class Hostile(NamedTuple):
    """An argument, made from the valid one, and whether it holds numbers that are not finite."""

    name: str
    make: Callable[..., Any]
    wild: bool = False


def _edited(value):
    """X, or the valid tensor, with its last entry replaced."""

    def make(right):
        x = (right if isinstance(right, Tensor) and right.is_floating_point() else X).clone()
        return x.index_fill_(0, torch.tensor([len(x) - 1]), value) if x.ndim else x + value

    return make


def _like(change):
    return lambda right: change(right if isinstance(right, Tensor) and right.ndim else X.clone())


class Anything:
    """A class, where an object is wanted."""

    def __init__(self, *args, **kwargs):
        pass


HOSTILE = (
    *(
        Hostile(repr(v), lambda right, v=v: v, isinstance(v, float) and not math.isfinite(v))
        for v in (
            None,
            True,
            0,
            1,
            -1,
            2.5,
            -0.5,
            1j,
            math.nan,
            math.inf,
            -math.inf,
            "3",
            "",
            b"x",
        )
    ),
    Hostile("10**400", lambda right: 10**400),
    Hostile("[]", lambda right: []),
    Hostile("[1.0, 2.0]", lambda right: [1.0, 2.0]),
    Hostile("{}", lambda right: {}),
    Hostile("(2, 2)", lambda right: (2, 2)),
    Hostile("object()", lambda right: object()),
    Hostile("a class", lambda right: Anything),
    Hostile("lambda: None", lambda right: lambda *a, **k: None),
    Hostile("a generator", lambda right: seeded()),
    Hostile("numpy array", lambda right: X.numpy()),
    Hostile("nested list", lambda right: X.tolist()),
    Hostile("int64", _like(lambda x: x.long())),
    Hostile("bool", _like(lambda x: x > 0)),
    Hostile("half", _like(lambda x: x.half() if x.is_floating_point() else x.short())),
    Hostile("bfloat16", _like(lambda x: x.bfloat16())),
    Hostile("complex", _like(lambda x: x.to(torch.complex128))),
    Hostile("float32", _like(lambda x: x.float())),
    Hostile("no row", _like(lambda x: x[:0])),
    Hostile("one row", _like(lambda x: x[:1])),
    Hostile("two rows", _like(lambda x: x[:2])),
    Hostile("one row more", _like(lambda x: torch.cat([x, x[:1]]))),
    Hostile("flattened", _like(lambda x: x.flatten())),
    Hostile("number", lambda right: torch.tensor(0.5).double()),
    Hostile("one dimension more", _like(lambda x: x.unsqueeze(-1))),
    Hostile("one column more", _like(lambda x: torch.cat([x, x[..., :1]], -1))),
    Hostile("no column", _like(lambda x: x[..., :0])),
    Hostile("constant", _like(lambda x: torch.ones_like(x))),
    Hostile("zeros", _like(lambda x: torch.zeros_like(x))),
    Hostile("NaN row", _edited(math.nan), True),
    Hostile("infinite row", _edited(math.inf), True),
    Hostile("tensor(NaN)", lambda right: torch.tensor(math.nan).double(), True),
    Hostile("negative", _like(lambda x: -x.double().abs())),
)


def finite(value, depth=0, infinite=True):
    """Whether no number in a result is NaN, nor infinite unless that may be."""
    if isinstance(value, Tensor):
        bad = value.isnan() if infinite else ~value.isfinite()
        return not value.is_floating_point() or not bool(bad.any())
    if isinstance(value, float):
        return not math.isnan(value) if infinite else math.isfinite(value)
    if isinstance(value, tuple | list):
        return all(finite(v, depth, infinite) for v in value)
    if isinstance(value, dict):
        return all(finite(v, depth, infinite) for v in value.values())
    if dataclasses.is_dataclass(value) and not isinstance(value, type) and depth < 3:
        return all(
            finite(getattr(value, f.name), depth + 1, infinite) for f in dataclasses.fields(value)
        )
    return True


def raised_here(error):
    """Whether an exception was raised by a raise statement of the library, not from inside torch."""
    *_, last = traceback.walk_tb(error.__traceback__)
    name, line = last[0].f_code.co_filename, last[1]
    return name.startswith(SOURCE) and linecache.getline(name, line).strip().startswith("raise")


SYNONYMS = {
    "covariance": "preconditioner|covariance", "value": "preconditioner", "x_t": "x",
    "declared": "parameters", "kind": "condition|kind", "law": "probe|law",
    "x": "x0?|data|points|events|log-density",
    "cov": "covariance", "covs": "covariance", "data": "column", "z": "b|samples",
    "draws": "covariance|x",
    "transition": "transition|function",
    "base_log_prob": "log-density", "X": "array|column|data|x", "condition": "class",
}  # fmt: skip
"""Other words by which messages call a parameter."""


def names(message, f, name):
    """Whether a message names the argument, or another that does not go with it."""
    if re.search(rf"\b{name}\b", message):
        return True
    words = "|".join([SYNONYMS.get(name, name), *(p.name for p in parameters(f))])
    return re.search(rf"\b({words})\b", message) is not None


def judged(path, f, name, wild=False):
    """Whether f has to look at this argument."""
    if str(signature(f).parameters[name].annotation) == "bool":
        return False  # whatever Python takes for true
    if any(f"{path}.{name}".endswith(key) or path.endswith(key) for key in UNUSED):
        return False
    return not in_loop(path, f) or (not wild and name in BATCH)


def in_loop(path, f):
    """Whether f runs inside a loop."""
    method = inspect.ismethod(f) and LOOP.fullmatch(path.rpartition(".")[2])
    return bool(LOOP_PATHS.match(path) or method)


def judge(path, f, given, name, hostile):
    """Return what is wrong with how f meets a hostile argument, or None.

    Right is our ValueError or TypeError that names the argument, or a finite result of finite input.
    """
    if not judged(path, f, name, hostile.wild):
        return None
    result, wrong = met(f, given | {name: hostile.make(given[name])}, name)
    if wrong or result is REFUSED:
        return wrong
    if hostile.wild and (path.rpartition(".")[2], name) not in INFINITE:
        return "accepted"
    return None if in_loop(path, f) or finite(result) else "NaN without a word"


REFUSED = object()
"""In place of a result."""


def met(f, given, *changed):
    """Call f; return the result, or REFUSED, and what is wrong with the exception, or None."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return call(f, given), None
        except (ValueError, TypeError) as error:
            if not raised_here(error):
                return REFUSED, f"{type(error).__name__} from elsewhere: {error}"
            named = any(names(str(error), f, name) for name in changed or [""])
            return REFUSED, None if named else f"does not name {', '.join(changed)}: {error}"
        except ConformanceError:
            return REFUSED, None  # what a check is there to say
        except (ArithmeticError, NotImplementedError) as error:
            return REFUSED, None if raised_here(error) else f"{type(error).__name__}: {error}"
        except Exception as error:
            return REFUSED, f"{type(error).__name__}: {error}"


INFINITE = {
    ("Churn", "r_max"),
    ("time_grid", "rho"),
    *((k, "friction") for k in ("BAOA", "BAOAB", "GHMC", "OBABO", "Splitting")),
}
"""Parameters that may be infinite."""
