"""Is a loss a score-matching loss: its value on affine scores, its minimiser, its rows and times."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...core import Injected, Streams, check_function, mean_and_error, shown
from ...noise import least_time
from ...noise.schedules import VP
from ...scores import as_score
from .laws import COV, GAUSSIAN, MEAN, hermite, product
from .report import (
    BEYOND,
    ConformanceError,
    Report,
    Watched,
    off_by,
    parameters_of,
    require,
    seeded,
)

Loss = Callable[..., Tensor]

D = len(MEAN)
SIGMA = 0.6
DRAWS = 60_000
SCHEDULE = VP()
TIME = torch.tensor(0.3, dtype=torch.float64)


def check_objective(o: Loss) -> Report:
    r"""Check an objective against its value on affine scores, where everything is known.

    For s_θ(x) = W x + c on N(μ, S) every score-matching loss has the mean

    .. math:: w \left( \tfrac12 E\|s_θ\|^2 + \mathrm{tr}\, W + \text{const} \right)

    over the law of the (noised) data, with w = 1 for losses without a weight. Both coefficients
    and the constant are determined from seven scores, all of them wrong, by quadrature if noise
    and probes allow it. The ratio of the coefficients determines the minimiser: if tr W is counted
    k times, it is k times the score. Also checked: one number per sample, summed over the event,
    independent samples, and for a loss over noise levels that drawn times have the mean of uniform
    ones.

    References:
        | Estimation of Non-Normalized Statistical Models by Score Matching (Hyvärinen, 2005)
        | https://jmlr.org/papers/v6/hyvarinen05a.html
        | A Connection Between Score Matching and Denoising Autoencoders (Vincent, 2011)
        | https://doi.org/10.1162/NECO_a_00142

    Arguments:
        o: A loss (score, x) -> `(B,)`. It receives arguments by the names of its parameters: `t`,
            in which case the score is a noisy one, `sigma`, `target_score`, `generator`. Bind all
            other arguments yourself: `partial(objectives.generalised, weight=torch.ones_like)`.

    Returns:
        Name -> measured value. `print` shows one line each.

    Raises:
        ConformanceError: An `AssertionError` with the right number and the likeliest mistake.
        ValueError: For an object that cannot be called.

    Examples:
        >>> found = glp.check.check_objective(glp.objectives.implicit)
        >>> round(found["coefficient of ½ E‖s‖²"].value, 6)
        1.0
    """
    check_function(o, "o")
    given = {"generator", "t", "sigma", "target_score"} & parameters_of(o).keys()
    check_function(o, "o", takes=2, by_name=tuple(sorted(given)))
    report, call = Report(), _Call(o)
    _rows(report, call)
    _events(report, call)
    _gradients(call)
    _value(report, call)
    if call.noisy:
        _times(report, call)
    return report


class _Call:
    """The loss, called as its parameters ask."""

    def __init__(self, o: Loss) -> None:
        self.o, self.names = o, parameters_of(o)
        self.noisy = "t" in self.names

    def __call__(
        self, score: Callable[[Tensor], Tensor], x: Tensor, g: Any = None, **more: Any
    ) -> Tensor:
        """Return the loss of a score of x alone, at one noise level unless `t` says otherwise."""
        given: dict[str, Any] = {"generator": g} if "generator" in self.names else {}
        if self.noisy:
            given["t"] = TIME.to(x.dtype).expand(len(x))
        if "sigma" in self.names and self.names["sigma"].default is self.names["sigma"].empty:
            given["sigma"] = SIGMA
        if "target_score" in self.names:
            given["target_score"] = lambda y: (MEAN.to(y).mean() - y) if y.shape[1:] != (D,) else (
                GAUSSIAN.score(y)
            )  # fmt: skip
        given |= more
        model = as_score(lambda z, t: score(z), "score", SCHEDULE) if self.noisy else score
        loss = self.o(model, x, **{k: v for k, v in given.items() if v is not None})
        if not isinstance(loss, Tensor):
            raise ValueError(f"o must return a tensor, one number per sample, got {shown(loss)}")
        return loss

    @property
    def level(self) -> tuple[float, float]:
        """α and σ of the noise that is added."""
        if self.noisy:
            return float(SCHEDULE(TIME)[0]), float(SCHEDULE(TIME)[1])
        sigma = self.names.get("sigma")
        if sigma is None:
            return 1.0, 0.0
        return 1.0, SIGMA if sigma.default is sigma.empty else float(sigma.default)


def wave(x: Tensor) -> Tensor:
    """A score of any event, coordinate by coordinate."""
    return -x.sin() - 0.3 * x


# ---------------------------------------------------------------------------- conduct


def _rows(report: Report, call: _Call) -> None:
    for event in ((2,), (1, 3, 3)):
        for dtype in (torch.float64, torch.float32):
            x = torch.randn(6, *event, generator=seeded(1), dtype=torch.float64).to(dtype)
            before = x.clone()
            whole = call(wave, x, Streams(3, 0, 6, 6))
            require(
                whole.shape == (6,) and whole.dtype == dtype,
                f"the loss of x {tuple(x.shape)} in {dtype}", f"{tuple(whole.shape)} in {whole.dtype}",
                f"(6,) in {dtype}", _likeliest_shape(whole, x, dtype),
            )  # fmt: skip
            require(
                torch.equal(x, before) and not x.requires_grad, "x after the loss", "changed",
                "as it was", "an in-place operation, or x.requires_grad_() on the argument",
            )  # fmt: skip
            mates = torch.cat([3 - 2 * x[:4], x[4:]])
            with_others = call(wave, mates, Streams(3, 0, 6, 6))
            part = call(wave, x[4:], Streams(3, 4, 6, 6))
            exact = 1e-11 if dtype == torch.float64 else 1e-4
            for off in (off_by(part, whole[4:]), off_by(with_others[4:], whole[4:])):
                report.small(
                    "what other samples change in a loss", off, exact,
                    "a coupled batch: a mean over samples, or noise that is shared",
                )  # fmt: skip


def _likeliest_shape(loss: Tensor, x: Tensor, dtype: torch.dtype) -> str:
    """Return the likeliest mistake behind a loss that is not one number per sample."""
    if loss.shape == x.shape[:1]:
        return f"a constant that changes the dtype: make it one of x, {dtype}"
    if loss.shape[:1] != x.shape[:1]:
        return "a mean over the batch: each sample has its own loss"
    if loss.shape == x.shape:
        return "no sum over the event: sum over all dimensions but the first"
    if loss.ndim < x.ndim:
        return "a sum over one event dimension only: use sum over all dimensions but the first"
    return "a dimension that the sum over the event keeps: sum over all dimensions but the first"


def _events(report: Report, call: _Call) -> None:
    x = torch.randn(6, 4, generator=seeded(2), dtype=torch.float64)
    flat, square = (call(wave, v, Watched()) for v in (x, x.reshape(6, 1, 2, 2)))
    report.small(
        "loss of an event (1, 2, 2), off that of (4,)", off_by(square, flat), 1e-10,
        "a mean or sum over only one dimension of the event",
    )  # fmt: skip


def _gradients(call: _Call) -> None:
    scale = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    x = torch.randn(6, 2, generator=seeded(3), dtype=torch.float64)
    loss = call(lambda y: scale * wave(y), x, seeded())
    require(
        loss.requires_grad, "the gradient of the loss in the parameters", "none", "one",
        "a detach() or no_grad() around the score",
    )  # fmt: skip
    (slope,) = torch.autograd.grad(loss.sum(), scale)
    require(
        bool(torch.isfinite(slope)) and float(slope) != 0, "the gradient of the loss", float(slope),
        "a number that is not 0", "a detach() around a part of the loss",
    )  # fmt: skip


# ---------------------------------------------------------------------------- value


def _scores() -> list[tuple[Tensor, Tensor]]:
    g = seeded(4)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)
    return [(0.6 * draw(D, D) - torch.eye(D).double() * k / 3, draw(D)) for k in range(7)]


def _affine(W: Tensor, c: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda y: y @ W.mT.to(y) + c.to(y)


def _value(report: Report, call: _Call) -> None:
    a, b = call.level
    mean, cov = a * MEAN, a**2 * COV + b**2 * torch.eye(D).double()
    rows, found, errors = [], [], []
    for W, c in _scores():
        v = W @ mean + c
        square = ((W @ cov @ W.mT).trace() + v @ v) / 2
        rows.append(torch.stack([W.trace(), square, torch.ones(()).double()]))
        value = _mean(call, _affine(W, c))
        found.append(value[0])
        errors.append(value[1])
    A = torch.stack(rows)
    y, sd = (torch.tensor(v, dtype=torch.float64) for v in (found, errors))
    fit = torch.linalg.lstsq(A, y[:, None]).solution[:, 0]
    # how far errors of the values move what is fitted
    spread = torch.linalg.pinv(A).square() @ sd.square()
    trace, square, constant = fit.tolist()
    error = [BEYOND * float(e) ** 0.5 + 1e-7 for e in spread]
    weight = report.measure("coefficient of ½ E‖s‖²", square, float(spread[1]) ** 0.5)
    named = {
        "½ left out": 2.0, "½ twice": 0.5, "a wrong sign": -1.0,
        f"a mean over d = {D} where a sum belongs": 1 / D, f"a factor d = {D} too many": float(D),
    }  # fmt: skip
    if not call.noisy:
        report.hold("coefficient of ½ E‖s‖²", square, 1.0, error[1], named)
    slips = {
        "a wrong sign: of the trace, or of the noise in the target −ε/σ": -1.0,
        "a factor 2: ½ of one term alone": 2.0, "a factor 2: ½ of both terms": 0.5,
        f"a trace divided by d = {D}, or probes on the unit sphere": 1 / D,
        f"a factor d = {D}": float(D), "no divergence at all": 0.0,
        "ε/σ² for ε/σ": 1 / b if b else float("inf"), "ε for ε/σ": b if b else float("inf"),
    }  # fmt: skip
    ratio, wide = trace / weight, (error[0] + error[1] * abs(trace / weight)) / abs(weight)
    report.hold("minimiser over the score, coefficient of tr W over that of ½ E‖s‖²", ratio, 1.0,
                wide, slips)  # fmt: skip
    off = float((A @ fit - y).abs().max())
    report.small(
        "value on affine scores, off w (½ E‖s‖² + tr W + const)", off,
        BEYOND * float(sd.max()) * 2 + 1e-7 * (1 + abs(weight)),
        "a constant that depends on θ, or a score evaluated somewhere other than at x",
    )  # fmt: skip
    report.measure("constant", constant / weight, float(spread[2]) ** 0.5)


def _mean(call: _Call, score: Callable[[Tensor], Tensor]) -> tuple[float, float]:
    """Return the mean over x and noise, and its standard error: 0 where quadrature is exact."""
    source = Watched()
    call(score, MEAN[None].clone(), source)
    coarse, fine = (_by_quadrature(call, score, source.asked, n) for n in (3, 4))
    if coarse is not None and fine is not None and abs(coarse - fine) < 1e-9 * (1 + abs(fine)):
        return fine, 0.0
    x = GAUSSIAN.sample(DRAWS, generator=seeded(5)).double()
    found = mean_and_error(call(score, x, seeded(6)))
    return found.value, found.standard_error


def _by_quadrature(
    call: _Call, score: Callable[[Tensor], Tensor], asked: list[Any], n: int
) -> float | None:
    """Return the mean by a rule over x, over normal numbers, and over signs of uniform ones."""
    size = sum(shape.numel() for _, shape in asked)
    if size > D or n ** (D + size) > 50_000:
        return None
    halves = torch.tensor([0.25, 0.75]).double(), torch.tensor([0.5, 0.5]).double()
    rules = [hermite(n)] * D
    for law, shape in asked:
        rules += [hermite(n) if law is torch.randn else halves] * shape.numel()
    points, weight = product(*rules)
    x = MEAN + points[:, :D] @ torch.linalg.cholesky(COV).mT
    noise, at = [], D
    for _, shape in asked:
        noise.append(points[:, at : at + shape.numel()].reshape(-1, *shape[1:]))
        at += shape.numel()
    return float((call(score, x, Injected(*noise)).detach() * weight).sum())


# ---------------------------------------------------------------------------- times


def _times(report: Report, call: _Call) -> None:
    """Times that a loss draws have the mean of uniform ones, at any weight of its own."""
    score = _affine(torch.eye(D).double() / 2, torch.ones(D).double())  # whose loss grows with t
    x = GAUSSIAN.sample(DRAWS, generator=seeded(7)).double()
    low = max(float(least_time(SCHEDULE)), 1e-3)
    u = (torch.arange(DRAWS, dtype=torch.float64) + 0.5) / DRAWS
    uniform = mean_and_error(call(score, x, seeded(8), t=low + (1 - low) * u))
    report["mean over uniform times"] = uniform
    drawn = mean_and_error(call(score, x, seeded(9), t=None))
    report["mean over drawn times"] = drawn
    off = abs(drawn.value - uniform.value)
    error = BEYOND * (drawn.standard_error**2 + uniform.standard_error**2) ** 0.5
    if not off <= error:
        raise ConformanceError(
            "mean over drawn times", drawn.value, uniform.value,
            "times from a different law whose density is not divided out",
        )  # fmt: skip
