"""Animations of chains, annealed runs and flows in the plane, as GIF files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from PIL import Image
from torch import Tensor

from ..core import check_count, check_finite, check_number, check_option
from ..core.files import write_atomically
from .plots import DARK, LIGHT, Theme
from .plots.planes import QUIET, Bounds, _backdrop, _frame, _log_density, _shape
from .plots.style import Array, array, frame, new_figure

BANDS = 12
"""Shades of a density."""

DPI = 100

MOST = 1000
"""Frames of a file."""


def animate(
    states: Tensor | Mapping[str, Tensor],
    out: Path | str,
    *,
    density: Callable[[Tensor], Tensor] | Sequence[Callable[[Tensor], Tensor]] | None = None,
    captions: Sequence[str] = (),
    bounds: Bounds | None = None,
    names: tuple[str, str] = ("x₁", "x₂"),
    invert_y: bool = False,
    trail: int = 5,
    fps: int = 20,
    hold: float = 1.5,
    width: float = 3.6,
    theme: Theme = LIGHT,
) -> Path:
    """Write an animation of moving points as a GIF, one frame per state.

    States are draws of a chain, `chain.draws.transpose(0, 1)`, or the states that the callback of
    `evolve` receives: for `AnnealedLangevin` with one step per level every Langevin step, for
    `ReverseSDE` and `ProbabilityFlow` every level.

    Arguments:
        states: Positions `(frames, n, 2)`, at least 2 frames; or a dictionary of such positions by
            title, which are shown side by side.
        out: The file to write, .gif.
        density: log p for the background, `(m, 2) -> (m,)`, or one for each frame, such as the law
            at its noise level.
        captions: A line above the picture for each frame.
        bounds: The visible part of the plane; by default that of the last states.
        names: Names of the axes.
        invert_y: Let y grow downwards.
        trail: How many earlier states are drawn behind each point, as lines.
        fps: Frames per second.
        hold: How many seconds the last frame is shown.
        width: Width of a panel in inches of 100 pixels.
        theme: `LIGHT` or `DARK`.

    Returns:
        The path of the file.

    Raises:
        ValueError: For states of a wrong shape or not finite, or if the number of densities or
            captions is not that of the frames.
        OSError: If the file cannot be written.

    Examples:
        >>> law, states = glp.GaussianMixture([0.3, 0.7], [[-2.0, 0.0], [2.0, 0.0]], 0.5), []
        >>> x = glp.evolve(
        ...     glp.diffusion.ProbabilityFlow(), glp.ExactScore(law, glp.schedules.VE(0.1, 10.0)),
        ...     20, callback=lambda z, t: states.append(z),
        ... )
        >>> states = torch.stack([*states[-8:], x])
        >>> glp.show.animate(states, "flow.gif", density=law.log_prob).name
        'flow.gif'
    """
    panels = states if isinstance(states, Mapping) else {"": states}
    if not panels or len({len(x) for x in panels.values()}) > 1:
        raise ValueError("states must hold at least one panel, all with the same number of frames")
    for x in panels.values():
        check_finite(x, "states")
        if x.ndim != 3 or x.shape[2] != 2 or not x.shape[1] or not 2 <= len(x) <= MOST:
            raise ValueError(
                f"states must have shape (frames, n, 2) with 2 to {MOST} frames, got {tuple(x.shape)}"
            )
    check_count(trail, "trail", 0)
    check_count(fps, "fps", 1, most=50)
    check_number(hold, "hold", least=0)
    check_number(width, "width", above=0.5, most=20)
    check_option(theme.name, "theme", (LIGHT.name, DARK.name))
    xy = {title: array(x) for title, x in panels.items()}
    n = len(next(iter(xy.values())))
    if bounds is None:
        (x0, y0), (x1, y1) = (
            end.tolist() for end in frame(np.concatenate([x[-1] for x in xy.values()]))
        )
        bounds = (x0, x1, y0, y1)
    laws = list(density) if isinstance(density, Sequence) else [density] * n
    for given, name in ((laws, "density"), (captions or laws, "captions")):
        if len(given) != n:
            raise ValueError(
                f"{name} must have one entry for each of the {n} frames, got {len(given)}"
            )
    pictures = _pictures(xy, bounds, laws, captions, names, invert_y, trail, width, theme)
    palette = _palette(theme)
    frames = [p.quantize(palette=palette, dither=Image.Dither.NONE) for p in pictures]
    buffer, each = BytesIO(), 1000 // fps
    frames[0].save(
        buffer, "GIF", save_all=True, append_images=frames[1:], loop=0, optimize=False, disposal=1,
        duration=[*[each] * (len(frames) - 1), each + round(1000 * hold)],
    )  # fmt: skip
    out = Path(out)
    write_atomically(out, buffer.getvalue())
    return out


def _pictures(
    xy: dict[str, Array], bounds: Bounds, laws: list[Any], captions: Sequence[str],
    names: tuple[str, str], invert_y: bool, trail: int, width: float, theme: Theme,
) -> list[Image.Image]:  # fmt: skip
    """Return the frames, drawn on one figure."""
    head = 0.7 + 0.25 * bool(captions) + 0.2 * any(xy)
    movers, pictures = [], []
    with new_figure(theme, width * len(xy), (width - 0.75) * _shape(bounds)[1] + head) as figure:
        figure.set_dpi(DPI)
        line = figure.suptitle(captions[0], x=0.02, ha="left") if captions else None
        for i, (title, x) in enumerate(xy.items()):
            axes = figure.add_subplot(1, len(xy), i + 1, xlabel=names[0], title=title)
            axes.set_ylabel("" if i else names[1])
            _frame(axes, bounds)
            if invert_y:
                axes.invert_yaxis()
            trails = LineCollection([], colors=theme.model, lw=0.7, alpha=0.45)
            axes.add_collection(trails, autolim=False)
            size = float(np.clip(34 / x.shape[1] ** 0.4, 2.0, 6.0))
            dot: dict[str, Any] = {"ms": size, "mew": 0.4, "mec": theme.background, "zorder": 3}
            (dots,) = axes.plot([], [], "o", mfc=theme.model, **dot)
            movers.append((axes, x, trails, dots, (axes.get_xlim(), axes.get_ylim())))
    shown = None
    for i, law in enumerate(laws):
        back = None
        if law is not None and law is not shown:
            # few colours: what is smooth makes large files
            back = np.exp(_log_density(law, bounds, 240) / 2)
            back, shown = (np.round(back * BANDS) / BANDS) ** 2, law
        for axes, x, trails, dots, ends in movers:
            if back is not None:
                for image in [*axes.images]:
                    image.remove()
                _backdrop(axes, back, bounds, theme)
                axes.set(xlim=ends[0], ylim=ends[1])
            past = x[max(0, i - trail) : i + 1]
            trails.set_segments(list(np.stack([past[:-1], past[1:]], 2).reshape(-1, 2, 2)))
            dots.set_data(*x[i].T)
        if line is not None:
            line.set_text(captions[i])
        figure.canvas.draw()
        pixels = np.asarray(figure.canvas.buffer_rgba())  # type: ignore[attr-defined]
        pictures.append(Image.fromarray(pixels).convert("RGB"))
    return pictures


def _palette(theme: Theme) -> Image.Image:
    """Return the colours of the theme: of densities, text, points, and what lies between."""
    ground, ink, muted, point = map(
        to_rgb, (theme.background, theme.ink, theme.muted, theme.model)
    )
    shades = [theme.density_map(i / BANDS / QUIET)[:3] for i in range(BANDS + 1)]
    mixes = [(ground, ink, 6), (ground, muted, 4), (ground, point, 5), (shades[-1], point, 4)]
    colours = [*shades]
    for a, b, n in mixes:
        colours += [tuple(np.array(a) + (np.array(b) - a) * i / n) for i in range(1, n + 1)]
    palette = Image.new("P", (1, 1))
    palette.putpalette([round(255 * v) for colour in colours for v in colour])
    return palette
