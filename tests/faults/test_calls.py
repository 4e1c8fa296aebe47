"""Random calls of all public names, sense and nonsense in several arguments at a time.

Each has to end in a finite result of the shape that its signature says, or in our refusal, which names
an argument; and whatever it ends in, the process and what was handed over are as before.
"""

import datetime
import decimal
import fractions
import inspect
import io
import math
import os
import random
import resource
import signal
import sys
import threading
import types
from contextlib import contextmanager, redirect_stdout

import numpy as np
import pandas as pd
import pytest
import torch
from attempts import Hang
from door_support import (
    HOSTILE,
    INFINITE,
    REFUSED,
    Hostile,
    X,
    call,
    called,
    doors,
    finite,
    in_loop,
    judged,
    met,
    public_names,
)
from jaxtyping import config
from torch import Tensor

import gradlogp as glp
from gradlogp.check.metrics import frechet_distance, log_density_difference, mean_score
from gradlogp.check.sample_size import gaussian_limit, mixture_weight
from gradlogp.geometry import project, tangent_normal_split
from gradlogp.langevin.kernels import Preconditioner
from gradlogp.learn.objectives import gaussian_precision, generalised, nu_method
from gradlogp.noise import tweedie_product, tweedie_variance
from gradlogp.noise.predictions import predict

pytestmark = [pytest.mark.usefixtures("as_user"), pytest.mark.timeout(0)]

SEED = int(os.environ.get("SEED", "0"))
SECONDS = 60
ROOM = 6 << 30
"""Bytes that a call may ask for beyond what the process has."""

INFINITE_RESULTS = (
    "Classes.given",  # the log-weights of the other classes
    "Churn",  # r_max, by default
    "gaussian_error",  # for few points, as it says
)
"""Where a result holds infinities that are right."""

# ---------------------------------------------------------------------------- arguments

DTYPES = (
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32, torch.uint8, torch.bool,
    torch.complex64,
)  # fmt: skip
WORDS = "epsilon", "v", "x0", "score", "gaussian", "é", "\0", "x" * 5000, "1e5", " ", "auto"
OBJECTS = (
    lambda: decimal.Decimal("0.5"), lambda: fractions.Fraction(1, 2), lambda: datetime.date(2020, 1, 1),
    lambda: range(3), lambda: iter([1.0, 2.0]), lambda: {1.0, 2.0}, lambda: np.float64(0.5),
    lambda: np.int64(3), lambda: np.float32(2), lambda: np.bool_(True), lambda: np.array(["a", "b"]),
    lambda: np.array([object()]), lambda: pd.DataFrame({"a": [1.0, 2.0]}), lambda: pd.Series([1.0]),
    lambda: slice(None), lambda: ..., lambda: NotImplemented, lambda: ValueError("x"), lambda: torch,
    lambda: torch.float32, lambda: torch.device("cpu"), lambda: torch.Size([2]),
    lambda: torch.nn.Identity(), lambda: [[1.0], [2.0, 3.0]], lambda: [None], lambda: ["a"],
    lambda: ("a", 1), lambda: {"a": 1}, lambda: [X, X], lambda: bytearray(b"x"),
    lambda: memoryview(b"x"), lambda: types.SimpleNamespace(), lambda: len,
)  # fmt: skip
"""Values that are not tensors, numbers or words."""

SPOILT = (
    lambda y: y[:1], lambda y: y.unsqueeze(-1), lambda y: y.sum(), lambda y: None, lambda y: [y],
    lambda y: y.float(), lambda y: y.long(), lambda y: y.detach().numpy(), lambda y: y * math.nan,
    lambda y: y * math.inf, lambda y: y * 1e200, lambda y: y.to(torch.complex128),
)  # fmt: skip
"""What a function may return in place of y."""


def tensor(right):
    return right if isinstance(right, Tensor) and right.is_floating_point() else X


def spotted(right, at, value):
    """Return a tensor with one entry replaced."""
    x = tensor(right).clone()
    if x.numel():
        x.view(-1)[at % x.numel()] = value
    return x


def strided(right):
    x = tensor(right)
    return x.repeat_interleave(2, 0)[::2] if x.ndim else x


def expanded(right):
    x = tensor(right)
    return x.mean(0, keepdim=True).expand_as(x) if x.ndim else x


def spoilt(right, spoil):
    """Return a function that answers wrongly, where a function is wanted."""

    def wrong(*arguments, **options):
        out = right(*arguments, **options)
        return spoil(out) if isinstance(out, Tensor) else None

    return wrong if callable(right) else spoil


def drawn(rng):
    """Draw an argument: one of the hostile ones, or one that is made by chance."""
    if rng.random() < 0.4:
        return rng.choice(HOSTILE)
    factor = rng.choice([-1, 1]) * 10.0 ** rng.uniform(-320, 300)
    wild, at = rng.choice([math.nan, math.inf, -math.inf]), rng.randrange(1000)
    n, dtype, word = (
        rng.choice([0, 1, 2, 3, 4, 5, 12, 13, 50]),
        rng.choice(DTYPES),
        rng.choice(WORDS),
    )
    shape = [rng.choice([0, 1, 1, 2, 2, 3, 4, 12]) for _ in range(rng.randrange(5))]
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    which, spoil = rng.randrange(len(OBJECTS)), rng.randrange(len(SPOILT))
    makers = (
        (f"times {factor:.3g}", lambda right: tensor(right) * factor),
        (f"plus {factor:.3g}", lambda right: tensor(right) + factor),
        (f"entry {at} is {factor:.3g}", lambda right: spotted(right, at, factor)),
        (f"entry {at} is {wild}", lambda right: spotted(right, at, wild)),
        (f"{factor:.3g}", lambda right: factor),
        (f"{n}", lambda right: n),
        (f"a tensor {shape}", lambda right: torch.randn(shape, generator=generator).double()),
        (f"{dtype}", lambda right: tensor(right).to(dtype)),
        ("strided", strided),
        ("expanded", expanded),
        ("with a gradient", lambda right: tensor(right).clone().requires_grad_()),
        ("on meta", lambda right: tensor(right).to("meta")),
        ("sparse", lambda right: tensor(right).to_sparse()),
        (f"{word!r:.9}", lambda right: word),
        (f"object {which}", lambda right: OBJECTS[which]()),
        (f"function {spoil}", lambda right: spoilt(right, SPOILT[spoil])),
        ("right", lambda right: right),
    )
    chosen = rng.randrange(len(makers))
    return Hostile(*makers[chosen], wild=chosen == 3)


def changes(rng, path, f, given):
    """Draw which arguments are replaced, by what: at most three, and often the generator."""
    able = [name for name in given if judged(path, f, name)]
    chosen = rng.sample(able, min(len(able), rng.choice([0, 1, 1, 2, 2, 3])))
    found = {name: drawn(rng) for name in chosen}
    found = {n: h for n, h in found.items() if judged(path, f, n, h.wild)}
    if "generator" in given and rng.random() < 0.7:
        noise = torch.Generator().manual_seed(rng.randrange(2**31))
        found["generator"] = Hostile("a generator", lambda right: noise)
    return found


# ---------------------------------------------------------------------------- what must not change


def world():
    """Return what belongs to the process, and no call may change."""
    return {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "gradients": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "anomalies": torch.is_anomaly_enabled(),
        "threads of PyTorch": torch.get_num_threads(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "precision of products": torch.get_float32_matmul_precision(),
        "NumPy's errors": np.geterr(),
        "NumPy's noise": np.random.get_state()[1].tobytes(),  # noqa: NPY002
        "Python's noise": random.getstate(),
        "handlers": [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)],
        "environment": dict(os.environ),
        "the folder": (os.getcwd(), os.listdir()),
        "depth of calls": sys.getrecursionlimit(),
        "threads": threading.active_count(),
        "open files": len(os.listdir("/proc/self/fd")),
        "output": (sys.stdout, sys.stderr),
    }


def held(value):
    """Return what a tensor, an array or a list holds, to be compared."""
    if isinstance(value, Tensor) and value.layout is torch.strided and value.device.type == "cpu":
        flags = value.requires_grad, value.grad is None, value.dtype, tuple(value.shape)
        wide = torch.complex128 if value.is_complex() else torch.float64
        return flags, value.detach().to(wide).numpy().tobytes()
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape, value.tobytes()
    return repr(value) if isinstance(value, list | dict | pd.DataFrame) else None


def may_draw(f, arguments):
    """Whether a call may draw from PyTorch's generator: where it could have had one, and has not."""
    passes_on = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(f).parameters.values())
    own = [arguments[n] for n in ("generator", "random_state") if n in arguments]
    return passes_on or bool(own and not isinstance(own[0], torch.Generator))


@contextmanager
def limits():
    """Stop what takes too long, refuse memory without bounds, and keep what is printed."""

    def stop(number, frame):
        raise Hang(f"not done after {SECONDS} s")

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        has = int(file.read().split()[0]) * resource.getpagesize()
    before = signal.signal(signal.SIGALRM, stop)
    resource.setrlimit(resource.RLIMIT_AS, (has + ROOM, hard))
    signal.alarm(SECONDS)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


# ---------------------------------------------------------------------------- the judge


def mistake(path, f, given, replaced):
    """Make one call; return what is wrong with it, or None."""
    arguments = given | {name: h.make(given[name]) for name, h in replaced.items()}
    holds = {name: held(value) for name, value in arguments.items()}
    before, noise = world(), torch.get_rng_state()
    try:
        with limits():
            result, wrong = met(f, arguments, *replaced)
    except Hang as hang:
        return str(hang)
    if changed := [name for name, value in world().items() if value != before[name]]:
        return f"changed {', '.join(changed)}"
    if not may_draw(f, arguments) and not torch.equal(noise, torch.get_rng_state()):
        return "drew from PyTorch's generator"
    if changed := [name for name, value in arguments.items() if held(value) != holds[name]]:
        return f"changed its argument {', '.join(changed)}"
    if wrong or result is REFUSED:
        return wrong
    last = path.rpartition(".")[2]
    if accepted := [n for n, h in replaced.items() if h.wild and (last, n) not in INFINITE]:
        return f"accepted {accepted[0]}"
    said = getattr(getattr(result, "verdict", None), "ok", True) is False  # an error bar of inf
    of_model = path.startswith("learn.objectives") and replaced.get(
        "score"
    )  # `fit` looks at losses
    asked = not in_loop(path, f) and not (of_model and of_model.name.startswith("function"))
    if asked and not finite(result, infinite=said or may_be_infinite(path)):
        return "a result that is not finite, without a word"
    return misshapen(f, arguments)


def may_be_infinite(path):
    rooms = "learn.objectives", "langevin.kernels.underdamped"  # losses, and infinite friction
    return path.startswith(rooms) or path.endswith(INFINITE_RESULTS)


def misshapen(f, arguments):
    """Call once more with the run-time checks: is the result what the signature says?"""
    config.update("jaxtyping_disable", False)
    try:
        with limits():
            call(f, arguments)
    except Hang as hang:
        return str(hang)
    except Exception as error:
        if "return value" in str(error).split("\n")[0]:
            return "a result of another shape: " + " ".join(str(error).split())
    finally:
        config.update("jaxtyping_disable", True)
    return None


def walk(found, n, seed):
    """Make n random calls; return what is wrong with them, a line each."""
    wrong = []
    for number in range(n):
        rng = random.Random(f"{seed} {number}")
        torch.manual_seed(number)
        path, f, given = rng.choice(found)
        replaced = changes(rng, path, f, given)
        if what := mistake(path, f, given, replaced):
            said = ", ".join(f"{name}={h.name}" for name, h in replaced.items())
            wrong.append(f"seed {seed}, call {number}: {path}({said}): {what[:400]}")
    return wrong


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_random_calls():
    rng, every = random.Random(SEED), sorted(public_names().items())
    found = [d for d in doors(dict(rng.sample(every, 30))) if isinstance(d[2], dict)]
    wrong = walk(found, 125, SEED)
    assert not wrong, f"SEED={SEED}\n" + "\n".join(wrong)


@pytest.mark.slow
def test_six_thousand_random_calls():
    wrong = walk(called()[0], 6000, SEED + 1)
    assert not wrong, f"SEED={SEED}: {len(wrong)} of 6000\n" + "\n".join(wrong)


# ---------------------------------------------------------------------------- found by it

META = torch.ones(2, 2, dtype=torch.bool, device="meta")


FAR = torch.tensor([1.0, 1e40], dtype=torch.float64)
MANY = torch.randn(30, 2, generator=torch.Generator().manual_seed(0)).double()
FINE = MANY * 1e-40
LAW = glp.Gaussian(torch.zeros(2).double())
EXACT = glp.ExactScore(LAW, glp.schedules.VP())
ENDLESS = lambda alpha, sigma: sigma / 0.0
ONE = {"progress": lambda done: None}
FOLLOWED = (
    lambda: glp.evolve(glp.diffusion.DDIM(), EXACT, X, **ONE),
    lambda: glp.log_likelihood(EXACT, X, **ONE),
    lambda: glp.run(glp.langevin.ULA(0.1), LAW, X, 5, **ONE),
    lambda: glp.sample(LAW, **ONE),
)


def small():
    return glp.ScoreModel(glp.MLP(2, 4, 1).double(), glp.schedules.VP(), "v")


def averaged(score, z, generator=None):
    return glp.objectives.multilevel(score, z, generator=generator).mean()


def interrupted():
    """A table whose training was stopped before it had a model."""
    table = glp.TableEstimator()
    table.columns_, table.estimator_ = [], glp.ScoreEstimator()
    return table


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: project(torch.neg, X, 1e200), r"sigma squared times the score, has 12 of 12 rows"),
        (lambda: nu_method(X, 2, nu=1e300), r"became NaN or infinite at iterations = 2; .* nu are"),
        (lambda: Preconditioner.from_ensemble(X * 1e200), r"the variance of x must be finite"),
        (lambda: mean_score(lambda x: 1e200 * x, X), r"the mean score at x has .* not finite"),
        (lambda: mixture_weight(1e-300), r"separation must lie in \[1e-06, 5\]"),
        (lambda: tweedie_variance(torch.neg, X, 1e-302, 1.0), r"the covariance of x_0 at alpha and"),
        (lambda: tweedie_product(torch.neg, X, X, 1e-302, 1.0), r"the product at alpha and sigma"),
        (lambda: gaussian_precision(X, structure=META), r"structure must hold numbers"),
        (lambda: frechet_distance(X * 1e200, X), r"the covariance of x has 2 of 2 rows"),
        (lambda: glp.tweedie(lambda x: x + 0j, X, 1.0, 1.0), r"score must return real numbers, got"),
        (lambda: generalised(torch.neg, X.abs() * 1e200, lambda x: x * x), r"weight has 12 of 12"),
        (lambda: glp.inverse.observe(X, lambda x: x + 0j, 1.0), r"return value of operator"),
        (lambda: tangent_normal_split(lambda x: x + 0j, X, 0.1, 1), r"must return real numbers, got"),
        (lambda: glp.fit(small(), X, held_out=X * 1e200), r"held_out has rows so far from the data"),
        *((door, r"progress must be a function of 2 arguments: too many") for door in FOLLOWED),
        (lambda: glp.sample(torch.neg, X, resume="x.npy"), r"pass resume= without counts"),
        (lambda: glp.ScoreEstimator().fit([["a", "b"]]), r"X must be numbers, rows of one length"),
        (lambda: glp.find_modes(LAW, X * 1e250), r"log p at x0 is not finite in rows \[0, 1"),
        (lambda: glp.metrics.ksd(torch.neg, X * 1e200), r"the squared norm of x must be finite"),
        (lambda: Preconditioner.from_ensemble(X * FAR), r"x has variances from .* no matrix in"),
        (lambda: glp.compare(MANY, MANY, log_prob=MANY[:, 0] * 1e200), r"the square of log_prob"),
        (lambda: glp.compare(MANY, MANY, train=MANY * 1e250), r"train has numbers beyond 1e\+70"),
        (lambda: glp.objectives.multilevel(small(), X, weight=ENDLESS), r"weight must be finite"),
        (lambda: next(glp.fit(small(), X, objective=averaged)), r"the loss of each sample, .* average"),
        (lambda: glp.variational_bound(EXACT, X * 1e170), r"the bound of 12 of 12 points became NaN"),
        (lambda: glp.compare(FINE, FINE, train=FINE * 1e100), r"the fourth power of train, in"),
        (lambda: glp.metrics.mmd(X, X, max_points=2), r"max_points must be an? .*4"),
        (lambda: glp.objectives.noised(len, small(), X), r"matching must be a function of 2 arguments"),
        (lambda: glp.check.check_objective(torch.nn.Identity()), r"o must be a function of 2 arg"),
        (lambda: glp.ScoreEstimator().fit(np.array([["a"], [2]], object)), r"X must be numbers: could"),
        (lambda: interrupted().sample(3, guidance=X), r"guidance must be a finite number"),
        (lambda: interrupted().sample(3), r"this TableEstimator has not been fitted"),
        (lambda: predict(EXACT, [[1.0]], torch.tensor(0.5)), r"z must be a torch.Tensor, got"),
        (lambda: glp.fit(small(), X, checkpoint="\0"), r"checkpoint has a null character"),
        (lambda: next(glp.fit(small(), X, objective=lambda s, z: z)), r"objective must be a func"),
        (lambda: gaussian_limit(1e-236, dim=2), r"needs more than 10¹⁵ points"),
        (lambda: log_density_difference(torch.neg, X, X, via=X * 1e190), r"not finite"),
    ],
    ids=("project", "nu_method", "from_ensemble", "mean_score", "mixture_weight", "variance",
         "product", "gaussian_precision", "frechet", "complex", "split", "held_out", "weight",
         "operator", "evolve", "log_likelihood", "run", "sample", "resume", "text", "modes",
         "ksd", "variances", "log_prob", "train", "infinite weight", "averaged", "bound", "units",
         "mmd",
         "matching", "objective", "object",
         "guidance", "interrupted", "predict", "null", "no generator", "limit",
         "via"),
)  # fmt: skip
def test_what_random_calls_have_found(attempt, message):
    with pytest.raises((ValueError, ArithmeticError), match=message):
        attempt()


# ---------------------------------------------------------------------------- can it fail?


def careless(x: Tensor, n: int) -> float:
    """Refuses nothing, draws noise of others, and leaves traces."""
    if not isinstance(x, Tensor) or x.numel() == 0 or isinstance(n, str):
        raise KeyError("x")
    if isinstance(n, Tensor):
        torch.randn(2)
    if isinstance(n, tuple | list):
        x.view(-1)[0] += 1
    if callable(n):
        open("left behind", "w").close()
    return math.inf if isinstance(n, float) else float(x.real.double().clamp(-9, 9).sum())


def test_the_walk_sees_a_careless_function():
    wrong = walk([("here.careless", careless, {"x": X.clone(), "n": 4})], 300, 0)
    for complaint in (
        "KeyError", "accepted x", "not finite", "drew from PyTorch", "changed its argument x",
        "changed the folder",
    ):  # fmt: skip
        assert any(complaint in line for line in wrong), complaint
