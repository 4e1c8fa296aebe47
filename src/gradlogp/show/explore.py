"""A page to explore a score: the field at every noise level, and walkers that follow it.

One self-contained HTML file: the mathematics in `explore.js`, the interface in `explore_page.js`,
and the fields in closed form (mixtures) or as tables.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ..core import Analytic, check_count, check_kind, check_number, check_option, check_points
from ..core.files import write_atomically
from .planes import (
    NODES,
    Blur,
    Field,
    Frame,
    Window,
    find_window,
    interpolation_error,
    noise_to_data,
    tabulate,
)
from .report import fill_page

Picture = Literal["level", "levels", "loss", "particles", "annealed", "split"]
"""What a page shows; which of them it can depends on the field."""

FEW_MODES = 6
"""Components up to which each is a mode with a weight to look at."""


class _Known(NamedTuple):
    """A law or a field: what the page reads, or what is to be tabulated; where it lies."""

    window: Window
    mean: list[float]
    cov: list[float]  # xx, xy, yy
    spec: dict[str, Any] | None = None
    field: Field | None = None
    low: float = 0.0
    high: float = math.inf
    levels: bool = True


def explore(
    field: Any,
    out: Path | str,
    *,
    exact: Any = None,
    title: str = "A score, explored",
    names: Sequence[str] = ("x", "y"),
    window: tuple[tuple[float, float], float] | None = None,
    sigmas: tuple[float, float] | None = None,
    around: tuple[float, float] | None = None,
    points: Tensor | None = None,
    invert_y: bool = False,
    picture: Picture = "level",
    size: int = 100,
    n_levels: int = 20,
    generator: torch.Generator | None = None,
) -> Path:
    """Write a page that shows a score in the plane, with walkers that follow it.

    It has up to six pictures: one level; many levels; the denoising loss against σ, if the density
    is known; particles; plain against annealed Langevin, for a mixture of two to six Gaussians;
    and with `around` the parts of the score along rays and across them.

    Noise levels are those of x + σ ε. A noisy score is shown in its model coordinates, in which the
    noise is isotropic; the axes are labelled in the units of the data.

    Arguments:
        field: A Gaussian mixture (`weights`, `means`, `covs`), which the page evaluates in closed
            form; a law with `noised`, such as one on a circle; a density with `log_prob`, which is
            blurred by quadrature; a noisy score, such as a trained model; or a function x -> s(x),
            which has one level.
        out: The file to write, .html.
        exact: The law in data units that a noisy score should have, shown beside it: a mixture or
            a density.
        title: The title of the page.
        names: Names of the two columns.
        window: Centre and half the side of the square to show; by default the region of the
            density, or from the moments of a noisy score.
        sigmas: The smallest and the largest noise level.
        around: The centre of a circle: the score is also shown split into its normal and its tangent
            part.
        points: Points of the data `(n, 2)`, in data units: if no exact density is known, walkers
            are compared with them. At most 2,000 are shown.
        invert_y: Let y grow downwards, as for magnitudes.
        picture: What the page shows first.
        size: Number of points per side of a table.
        n_levels: Number of noise levels of a table.
        generator: Source of the points at which the error of a table is measured.

    Returns:
        The path of the page.

    Raises:
        ValueError: For a field that is not in the plane, or is not finite; for arguments out of
            their range.
        OSError: If the page cannot be written.
    """
    check_count(size, "size", 16, most=160)
    check_count(n_levels, "n_levels", 4, most=32)
    check_option(picture, "picture", Picture)
    if len(names) != 2:
        raise ValueError(f"names must hold two column names, got {len(names)}")
    if window is not None:
        check_number(window[1], "window", above=0)
    if points is not None:
        check_points(points, "points", torch.Size([2]))
    frame = Frame()
    if _is_noisy(field):
        frame = _frame(field)
    elif exact is not None:
        raise ValueError("exact is for a noisy score: a density is already exact")
    law = None if exact is None else _known(exact, frame, None, 3 / size)
    given = None if window is None else Window((window[0][0], window[0][1]), window[1])
    if given is None and law is not None:
        given = law.window
    shown = _known(field, frame, given, 3 / size)
    best = law or shown
    low, high = _levels(shown, best, sigmas)
    g = torch.Generator().manual_seed(0) if generator is None else generator
    named = [("learned" if _is_noisy(field) else "exact" if shown.levels else "given", shown)]
    named += [] if law is None else [("exact", law)]
    fields = [
        _spec(known, name, shown.window, low, high, size, n_levels, g) for name, known in named
    ]
    data: dict[str, Any] = {
        "fields": fields, "names": list(names), "center": list(shown.window.center),
        "reach": shown.window.reach, "low": low, "high": high, "mean": best.mean, "cov": best.cov,
        "shift": list(frame.shift), "scale": list(frame.scale), "levels": shown.levels,
        "moments": law is not None or (shown.levels and not _is_noisy(field)),
        "around": None if around is None else [
            (at - a) / b for at, a, b in zip(around, frame.shift, frame.scale, strict=True)
        ],
        "points": None if points is None else _shown(points, frame), "flip": invert_y,
        "picture": picture, "stiff": _stiff(best, low),
    }  # fmt: skip
    data["pictures"] = _pictures(data)
    if picture not in data["pictures"]:
        has = ", ".join(data["pictures"])
        raise ValueError(
            f"picture={picture!r} needs something this field does not have: it has {has}"
        )
    page = fill_page(
        "explore", "explore.css", "explore.js", "explore_chart.js", "explore_page.js", title=title,
        data=json.dumps(data, allow_nan=False).replace("<", "\\u003c"),
        notes=_notes(fields, shown, frame), pictures=data["pictures"],
    )  # fmt: skip
    out = Path(out)
    write_atomically(out, page)
    return out


def _shown(points: Tensor, frame: Frame) -> list[float]:
    """Return points in the coordinates of the frame, an even choice of many, x and y by turns."""
    few = points.detach().cpu().double()[:: -(-len(points) // 2000)]
    shift, scale = (torch.tensor(v, dtype=torch.float64) for v in (frame.shift, frame.scale))
    return [float(f"{v:.5g}") for v in ((few - shift) / scale).flatten().tolist()]


def _pictures(data: dict[str, Any]) -> list[str]:
    """Return the pictures that a page of these fields can show."""
    last = data["fields"][-1]
    density = data["moments"] and (last["kind"] == "mixture" or last["channels"] > 2)
    possible = {
        "level": True, "levels": data["levels"], "loss": data["levels"] and density, "particles": True,
        "annealed": density and 2 <= len(last.get("weights", ())) <= FEW_MODES,
        "split": data["around"] is not None,
    }  # fmt: skip
    return [name for name in get_args(Picture) if possible[name]]


def _stiff(law: _Known, low: float) -> float:
    """Return the least variance of a mixture's components with the least noise; σ² otherwise."""
    covs = [] if law.spec is None else law.spec["covs"]
    least = [(a + d) / 2 - math.hypot((a - d) / 2, b) for a, b, d in covs]
    return min(least, default=0.0) + low**2


def _is_noisy(field: Any) -> bool:
    return hasattr(field, "schedule") and callable(field)


def _frame(score: Any) -> Frame:
    """Return shift and scale of the coordinates of a noisy score."""
    z = torch.tensor([[0.0, 0.0], [1.0, 1.0], [-2.0, 3.0]], dtype=torch.float64)
    x = score.coordinates.decode(z).double()
    shift, scale = x[0], x[1] - x[0]
    if not torch.allclose(shift + scale * z, x, rtol=1e-5, atol=1e-6):
        raise ValueError("field has non-affine coordinates, which cannot be drawn")
    (a, b), (c, d) = shift.tolist(), scale.tolist()
    return Frame((a, b), (c, d))


def _known(field: Any, frame: Frame, window: Window | None, grain: float) -> _Known:
    """Return what is known about a field, in the coordinates of the frame.

    The table of a law with `noised` begins at σ = `grain` of the window: below, a circle is too thin.
    """
    shape = getattr(field, "event_shape", None)
    if shape is not None and tuple(shape) != (2,):
        raise ValueError(
            f"field must be in the plane, with events of shape (2,), got {tuple(shape)}"
        )
    if all(hasattr(field, name) for name in ("weights", "means", "covs")):
        return _mixture(field, frame, window)
    if _is_noisy(field):
        moments = getattr(field, "moments", None)
        if moments is not None:
            mean, var = (torch.as_tensor(v).expand(2).tolist() for v in moments)
        elif window is not None:
            mean, var = list(window.center), [(window.reach / 3.2) ** 2] * 2
        else:
            raise ValueError("field has no moments of its data: pass window=(center, reach)")
        (a, b), (c, d) = mean, var
        window = window or Window((a, b), 3.2 * math.sqrt(max(c, d)))
        learned, low, high = noise_to_data(field)
        return _Known(window, [a, b], [c, 0.0, d], field=learned, low=low, high=high)
    if hasattr(field, "noised") and frame == Frame():
        return _analytic(field, window, grain)
    if hasattr(field, "log_prob"):
        scale, shift = (torch.tensor(v, dtype=torch.float64) for v in (frame.scale, frame.shift))
        log_prob = lambda z: field.log_prob(shift + scale * z)
        blur = Blur(log_prob, find_window(log_prob))
        (xx, xy), (_, yy) = blur.cov.tolist()
        return _Known(
            window or blur.core, blur.mean.tolist(), [xx, xy, yy], field=blur, low=blur.least
        )
    check_kind(field, "field", ("__call__",), "a density, a noisy score or a function")
    window = window or Window((0.0, 0.0), 4.0)
    plain = lambda x, sigma: field(x).detach().double()
    spread = window.reach**2 / 4
    return _Known(window, list(window.center), [spread, 0.0, spread], field=plain, levels=False)


def _analytic(law: Analytic, window: Window | None, grain: float) -> _Known:
    """Return a law whose noised laws are known, though it may have no density itself."""
    sigma = 1.0
    for _ in range(3):
        rough = find_window(law.noised(1.0, sigma).log_prob)
        sigma = 3 * rough.reach / NODES
    blur = Blur(law.noised(1.0, sigma).log_prob, find_window(law.noised(1.0, sigma).log_prob))
    (xx, xy), (_, yy) = (blur.cov - sigma**2 * torch.eye(2)).tolist()
    window = window or blur.core

    def field(x: Tensor, sigma: float) -> Tensor:
        noised = law.noised(1.0, sigma)
        return torch.cat([noised.score(x), noised.log_prob(x)[:, None]], 1).double()

    cov = [xx, xy, yy]
    return _Known(window, blur.mean.tolist(), cov, field=field, low=grain * window.reach)


def _mixture(law: Any, frame: Frame, window: Window | None) -> _Known:
    shift, scale = (torch.tensor(v, dtype=torch.float64) for v in (frame.shift, frame.scale))
    weights = law.weights.double()
    means: Tensor = (law.means.double() - shift) / scale
    covs: Tensor = law.covs.double() / (scale[:, None] * scale)
    if tuple(means.shape) != (len(weights), 2):
        raise ValueError(f"field must be in the plane, got means of shape {tuple(means.shape)}")
    sd = covs.diagonal(dim1=1, dim2=2).sqrt()
    low, high = (means - 3.2 * sd).min(0).values, (means + 3.2 * sd).max(0).values
    (a, b), half = ((low + high) / 2).tolist(), float((high - low).max()) / 2
    mean = weights @ means
    between = torch.einsum("k,ki,kj->ij", weights, means - mean, means - mean)
    (xx, xy), (_, yy) = (between + torch.einsum("k,kij->ij", weights, covs)).tolist()
    spec = {
        "kind": "mixture", "weights": weights.tolist(), "means": means.tolist(),
        "covs": [[c[0][0], c[0][1], c[1][1]] for c in covs.tolist()],
    }  # fmt: skip
    return _Known(window or Window((a, b), half), mean.tolist(), [xx, xy, yy], spec)


def _levels(shown: _Known, best: _Known, given: tuple[float, float] | None) -> tuple[float, float]:
    """Return the least and the largest noise level of the page."""
    spread = math.sqrt(max(best.cov[0], best.cov[2]))
    floor, top = max(shown.low, best.low), min(shown.high, best.high)
    if given is None:
        return max(floor, spread / 100), min(top, max(3 * spread, 3 * floor))
    low, high = given
    check_number(low, "sigmas", least=floor)
    check_number(high, "sigmas", above=low, most=top if math.isfinite(top) else None)
    return low, high


def _spec(
    known: _Known, name: str, window: Window, low: float, high: float, size: int, n: int,
    g: torch.Generator,
) -> dict[str, Any]:  # fmt: skip
    """Return what the page reads of one field."""
    if known.spec is not None:
        return {**known.spec, "name": name, "error": None}
    assert known.field is not None
    levels = n if known.levels else 1
    sigmas = tuple(low * (high / low) ** (i / max(levels - 1, 1)) for i in range(levels))
    table = tabulate(known.field, window, sigmas, size)
    return {
        **table.spec(), "name": name, "error": interpolation_error(table, known.field, g)
    }  # fmt: skip


def _notes(fields: list[dict[str, Any]], shown: _Known, frame: Frame) -> list[str]:
    """Return what the page says of its fields, a paragraph each."""
    notes = []
    for spec in fields:
        if spec["kind"] == "mixture":
            notes.append(
                f"The {spec['name']} field is a mixture of {len(spec['weights'])} Gaussian"
                f"{'s'[: len(spec['weights']) > 1]}, evaluated in closed form at every point and level."
            )
        else:
            n, L = spec["size"], len(spec["sigmas"])
            notes.append(
                f"The {spec['name']} field is a table of {n} × {n} points at {L} noise level"
                f"{'s'[: L > 1]}, read by cubic interpolation. At random points and levels σ²s, the "
                f"way to the denoised point, is off by {100 * spec['error']:.2g} % (root mean "
                "square, relative). Beyond its border the score is that of the border."
            )
    if not shown.levels:
        notes.append(
            "Only a score was given, not a density: there is one level, without noise, and no exact "
            "law to compare with. The prior is a normal law over the window."
        )
    if frame != Frame():
        notes.append(
            "The plane is drawn in the coordinates of the model, in which the noise is isotropic; "
            "the axes are labelled in the units of the data. σ and step sizes are in coordinates of "
            "the model."
        )
    return notes
