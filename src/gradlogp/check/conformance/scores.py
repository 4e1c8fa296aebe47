"""Is a noisy score consistent: gradient, Tweedie, one time for all or for each, calibration."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...calculus.reverse import jacobian_trace, score_from_log_prob
from ...core import Estimate, NoisyScore, check_points, mean_and_error
from ...noise import least_time, perturb
from ...noise.score_base import check_noisy_score
from .report import BEYOND, ROUNDED, ConformanceError, Report, coarsest, off_by, require, seeded

TIMES = (0.15, 0.5, 0.85)

SLACK = 0.1
"""How far a learned score may be off its calibration, beside its standard errors."""

FEWEST = 10
"""Points below which an error bar means little."""

SAID = 0.1
"""The part of the noise that a score must know of before the slope on it means something."""


def check_score(s: NoisyScore, *, data: Tensor | None = None) -> Report:
    r"""Check a noisy score against its schedule, its own parts, and data if given.

    - One time for all gives the same as one time for each, rows depend only on themselves, and σ = 0
      is refused.
    - `denoise` is E[z_0 | z_t], so that by Tweedie α E[z_0 | z] − z = σ² s(z, t).
    - If there is a log-density, the score is its gradient; and over time, only for the right schedule,
      ∂_t log p_t = −f (d + z·s) + ½ g² (∇·s + ‖s‖²).
    - If the score knows its law, `law(t)` has this score.
    - With data: at each of eight noise levels −E[z·s] = d, by Stein, and E[ε + σ s] = 0; if the score
      predicts a tenth of the noise or more, the regression slope of the noise on the prediction is 1.
      This holds for E[ε | z_t], and not for a score that is too large, too small or of the wrong
      sign. A learned score may be off by 0.1, in units of the noise.

    References:
        | A Connection Between Score Matching and Denoising Autoencoders (Vincent, 2011)
        | https://doi.org/10.1162/NECO_a_00142

    Arguments:
        s: The noisy score.
        data: Points of its law in the units of the data, `(n, *event)`; held-out points for a
            learned score.

    Returns:
        Name -> measured value. `print` shows one line each.

    Raises:
        ConformanceError: An `AssertionError` with the right number and the likeliest mistake.
        ValueError: For an object that is not a noisy score, or data that do not fit it.

    Examples:
        >>> found = glp.check.check_score(glp.ExactScore(glp.Gaussian([1.0]), glp.schedules.VP()))
        >>> round(found["Tweedie at t = 0.5: (α E[z_0|z] − z) over σ² s"].value, 6)
        1.0
    """
    check_noisy_score(s, "s")
    if data is not None:
        check_points(data, "data", s.event_shape)
        if len(data) < FEWEST:
            raise ValueError(
                f"data must have at least {FEWEST} points for a meaningful error bar, "
                f"got {len(data)}; a few hundred detect a deviation of 10 %"
            )
    report = Report()
    z = _points(s, data)
    times = _times(s)
    report.eps = _precision(s, z, times[0])
    for t in times:
        _one_time(report, s, z, t)
        _tweedie(report, s, z, t)
        _law(report, s, z, t)
    _rows(report, s, z, times)
    _no_noise(s, z)
    _over_time(report, s, z)
    if data is not None:
        _calibration(report, s, data)
    return report


def _points(s: Any, data: Tensor | None, n: int = 6) -> Tensor:
    like = getattr(s, "like", torch.empty(0))
    shape = s.event_shape if data is None else data.shape[1:]
    n = getattr(s, "n_rows", None) or n
    dtype = like.dtype if getattr(s, "fixed_dtype", False) else torch.float64
    z = torch.randn(n, *((2,) if shape is None else shape), generator=seeded(1)).to(dtype)
    return z.to(like.device)


def _times(s: Any) -> list[Tensor]:
    ladder = s.schedule.times
    if ladder is None:
        return [torch.tensor(t, dtype=torch.float64) for t in TIMES]
    return [ladder[int(t * (len(ladder) - 1))] for t in TIMES]


def _precision(s: Any, z: Tensor, t: Tensor) -> float:
    """Return the rounding of its own tensors, as its states and the draws of its law show it."""
    own = [z, getattr(s, "like", z)]
    law = s.law(t)
    if hasattr(law, "sample"):
        try:
            own.append(law.sample(1, generator=seeded()))
        except ValueError:  # a law for each row, which does not draw
            pass
    return coarsest(*own)


def _one_time(report: Report, s: Any, z: Tensor, t: Tensor) -> None:
    before = z.clone()
    for name, f in (("score", s), ("denoise", s.denoise)):
        one, each = f(z, t), f(z, t.expand(len(z)))
        require(
            torch.equal(z, before), f"z after {name}(z, t)", "changed", "as it was",
            "an in-place operation",
        )  # fmt: skip
        require(
            one.shape == z.shape and one.dtype == z.dtype, f"{name}(z, t)",
            f"{tuple(one.shape)} in {one.dtype}", f"{tuple(z.shape)} in {z.dtype}",
            "a broadcast time, or a coefficient that changes the dtype",
        )  # fmt: skip
        report.small(
            f"{name}: a time for each row, off one for all", off_by(each, one), report.allows(1e-9),
            "a time broadcast over the wrong dimension",
        )  # fmt: skip


def _tweedie(report: Report, s: Any, z: Tensor, t: Tensor) -> None:
    a, b = (float(v) for v in s.schedule(t))
    score, x0 = s(z, t).detach().flatten(1).double(), s.denoise(z, t).detach().flatten(1).double()
    flat, v = z.flatten(1).double(), b**2
    if not bool(score.any()):  # as of a network that has not begun to learn
        return
    gain = float(((a * x0 - flat) * score).sum() / score.square().sum())
    report.hold(
        f"Tweedie at t = {float(t):.2g}: (α E[z_0|z] − z) over σ² s", gain / v, 1.0,
        5 * report.allows(2e-7) + report.cancelled(flat, score) / v,
        {"a wrong sign": -1.0, "σ for σ²": 1 / b, "σ³ for σ²": b, "ε̂ in place of the score": -b},
    )  # fmt: skip


def _law(report: Report, s: Any, z: Tensor, t: Tensor) -> None:
    law = s.law(t)
    if law is not None:
        report.small(
            "score, off that of law(t)", off_by(s(z, t), law.score(z)), report.allows(1e-9),
            "a law at a different noise level, or of a different model",
        )  # fmt: skip
    log_prob = _log_prob_of(s, z, t)
    if log_prob is None:
        return
    right = score_from_log_prob(log_prob)(z).detach().flatten().double()
    found = s(z, t).detach().flatten().double()
    slips = {"a wrong sign: the gradient of the energy": -1.0}
    size = float(found @ right / (right @ right))
    report.hold("score over the gradient of log_prob", size, 1.0, report.allows(1e-6), slips)
    report.small(
        "score, off the gradient of log_prob", off_by(found, right), report.allows(1e-6),
        "a term that is left out of one of the two",
    )  # fmt: skip


def _log_prob_of(s: Any, z: Tensor, t: Tensor) -> Any:
    """Return z -> log p_t(z), or None where there is none."""
    if not hasattr(s, "log_prob"):
        return None
    try:
        s.log_prob(z, t)
    except (ValueError, AttributeError):
        return None
    return lambda y: s.log_prob(y, t)


def _rows(report: Report, s: Any, z: Tensor, times: list[Tensor]) -> None:
    t = torch.stack([times[i % len(times)] for i in range(len(z))])
    if len(z) < 3:
        return
    whole, part = s(z, t), s.rows(slice(1, 3))(z[1:3], t[1:3])
    report.small(
        "what other rows change", off_by(part, whole[1:3]), report.allows(1e-10),
        "a coupled batch, or conditions that do not follow their rows",
    )  # fmt: skip


def _no_noise(s: Any, z: Tensor) -> None:
    zero = torch.zeros((), dtype=torch.float64)
    if s.schedule.times is not None or float(s.schedule(zero)[1]) > 0:
        return
    try:
        s(z, zero)
    except ValueError:
        return
    raise ConformanceError(
        "the score where σ = 0", "a number", "a ValueError", "a division by 0 that goes unnoticed"
    )


def _over_time(report: Report, s: Any, z: Tensor) -> None:
    """The Fokker–Planck equation, whose coefficients only the right schedule has."""
    t = torch.tensor(0.5, dtype=torch.float64)
    if s.schedule.times is not None or _log_prob_of(s, z, t) is None or z.dtype != torch.float64:
        return
    law, h = s.law(t), max(1e-4, report.eps**0.4)  # further apart where a difference is rounded
    if law is None:  # whose log-density is known but for a constant at each time
        return
    after, before = (s.log_prob(z, t + k).detach() for k in (h, -h))
    slope, rounded = (
        (after - before) / (2 * h),
        ROUNDED / 16 * report.eps * float(after.norm()) / h,
    )
    score, trace = jacobian_trace(lambda y: s(y, t), z)
    score, d = score.detach().flatten(1), z[0].numel()
    f, g2 = float(s.schedule.f(t)), float(s.schedule.g2(t))
    drift = -f * (d + (z.flatten(1) * score).sum(1))
    spread = g2 / 2 * (trace.detach() + score.square().sum(1))
    right, parts = drift + spread, float((drift.abs() + spread.abs()).norm())
    if parts == 0:  # a law that no noise changes, or points where nothing happens
        return
    # compared with both parts, which cancel where a law is stationary, as N(0, I) under VP
    off, most = float((slope - right).norm()) / parts, report.allows(1e-4) + rounded / parts
    backwards = float((slope + right).norm()) / parts <= most
    report.small(
        "∂ log p/∂t, off what the schedule says, over its parts", off, most,
        "time running backwards" if backwards
        else "a schedule other than this score's",
    )  # fmt: skip


def _calibration(report: Report, s: Any, data: Tensor) -> None:
    ladder, g, slack = s.schedule.times, seeded(2), SLACK if _learned(s) else 0.0
    means: dict[str, Estimate] = {}
    if ladder is None:
        low = max(float(least_time(s.schedule)), 1e-3)
        times = torch.linspace(1.0, low, 8, dtype=torch.float64)
        times = times[s.schedule(times)[0] > 0]
    else:
        times = ladder[torch.linspace(0, len(ladder) - 1, min(8, len(ladder))).long()]
    for t in times:
        t = t.to(data.device)
        a, b = (float(v) for v in s.schedule(t))
        z = perturb(s, data, t, generator=g)
        z0 = s.coordinates.encode(data).to(z)
        eps = (z - a * z0).flatten(1).double() / b
        said = -b * s(z, t).detach().flatten(1).double()
        where, rest = f"σ = {b / a:.3g}", eps - said
        means[f"mean of ε + σ s, {where}"] = mean_and_error(rest.mean(1))
        centred = said - said.mean(0)
        known = float(centred.square().mean())
        along = (z - z.mean(0)).flatten(1).double() / b
        # E[ε·z] = σ d: what the score says of it, by the rest, which varies less
        name = f"−E[z·s]/d, {where}"
        wide = slack * max(1.0, float(along.square().mean()) ** 0.5)
        _calibrated(report, name, 1 - (rest * along).mean(1), wide, {
            "a wrong sign": -1.0, "a score half as large: a factor 2": 0.5,
            "a score twice as large: a factor 2": 2.0, "a score without information": 0.0,
            "ε̂ in place of the score, or σ twice": b, "a division by σ too many": 1 / b,
            f"a mean over d = {along.shape[1]} where a sum belongs": 1 / along.shape[1],
        })  # fmt: skip
        if known > SAID:
            name = f"slope of the noise on what the score says of it, {where}"
            _calibrated(report, name, 1 + (rest * centred).mean(1) / known, slack, {})
    for name, found in means.items():
        report[name] = found
        require(
            abs(found.value) < BEYOND * found.standard_error + slack, name, found.value, 0.0,
            "a score of shifted data: a missing mean, or coordinates that were not encoded",
        )  # fmt: skip


def _calibrated(
    report: Report, name: str, values: Tensor, slack: float, slips: dict[str, float]
) -> None:
    found = mean_and_error(values)
    error = BEYOND * found.standard_error + slack
    likely = "a schedule other than this score's, or a model that has not been trained"
    report.hold(name, found.value, 1.0, error, slips, else_=likely)
    report[name] = found


def _learned(s: Any) -> bool:
    """Return whether there is a network in it."""
    parts = (s, *(getattr(s, name, None) for name in ("score", "network")))
    return any(isinstance(part, nn.Module) for part in parts)
