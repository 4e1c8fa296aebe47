"""The command that writes a page to explore a score in the plane: explore."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .common import (
    Misuse,
    claim_output,
    generator_of,
    is_checkpoint,
    print_json,
    refuse,
    say,
    set_threads,
)
from .langevin import doubles, known, of_file

if TYPE_CHECKING:
    from ...distributions.analytic import GaussianMixture, VonMisesCircle
    from ..estimator import ScoreEstimator

Picture = Literal["level", "levels", "loss", "particles", "annealed", "split"]
"""As of `show.explore`, which is imported when it is needed."""

IMAGES = 8
"""Images that the page of a model of images shows."""

NODES = 48
"""Gaussians along each moon, at Gauss–Legendre nodes: the density is right to 1e-7 of its maximum."""


def explore(
    source: str = "mixture",
    *,
    target: str | None = None,
    picture: Picture = "level",
    out: Path = Path("explore.html"),
    force: bool = False,
    threads: int | None = None,
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Make a page to explore a score in the plane: its field at every noise level, and samplers.

    The page is one self-contained HTML file: open it in a browser. A click drops walkers, which
    follow Langevin dynamics (plain, annealed or with momentum), MALA, the reverse SDE or the
    probability flow, and their moments are shown beside the exact ones.

    Args:
        source: What to show: mixture, ring, moons, circle or another two-dimensional target that
            `gradlogp targets` lists; a checkpoint folder with two columns, or with images, some of
            which are then drawn, noised and denoised level by level; or file.py:function, a
            log-density of a batch (B, 2) or a density. Such a file is run, with all that is in it:
            name only files that you trust.
        target: The law that a checkpoint should have learned, given in the same way: it is shown
            beside the learned one, with the difference.
        picture: What the page shows first: one level, many levels, the denoising loss against σ,
            particles, plain against annealed Langevin, or the split into normal and tangent parts
            of ring and circle.
        out: The page to write, .html.
        force: Replace an existing page.
        threads: PyTorch threads.
        json: Print what was written as JSON.
        quiet: No messages.
    """
    set_threads(threads)
    if out.suffix != ".html":
        raise Misuse(f"cannot write {out}: use a name that ends in .html")
    claim_output(out, force=force)
    from ...show import explore as write_page

    estimator = _load(source) if is_checkpoint(source) else None
    title = f"The score of {_called(source)}"
    if estimator is not None and len(estimator.model_.event_shape) == 3:
        refuse({"--target": target}, "is for a checkpoint of two columns")
        _strip(estimator, out, title, quiet)
    else:
        with doubles():
            names, exact = ("x", "y"), None
            if estimator is not None:
                field, names = _checkpoint(estimator, source)
                exact = None if target is None else _law(target, "--target")
            else:
                refuse({"--target": target}, f"is for a checkpoint, and {source} is not one")
                field = _law(source, "the source")
            around = (0.0, 0.0) if source in ("ring", "circle") else None
            write_page(
                field, out, exact=exact, title=title, names=names, around=around, picture=picture
            )
    size = out.stat().st_size
    if json:
        print_json({"page": out, "bytes": size})
    else:
        say(f"{out}: a page of {size / 1e6:.2g} MB, open it in a browser", quiet=quiet)
    return 0


def moons() -> GaussianMixture:
    """Return the law of the toy set "moons": two half circles, blurred by 0.1."""
    import numpy as np
    import torch

    from ...distributions.analytic import GaussianMixture

    u, w = np.polynomial.legendre.leggauss(NODES)
    angle = torch.as_tensor(math.pi * (u + 1) / 2)
    arc = torch.stack([angle.cos(), angle.sin()], 1)
    means = torch.cat([arc, torch.tensor([1.0, 0.5]) - arc])
    return GaussianMixture(torch.as_tensor(w).repeat(2) / 4, means, 0.1**2)


def circle() -> VonMisesCircle:
    """Return a law on the unit circle, denser on its right."""
    from ...distributions.analytic import VonMisesCircle

    return VonMisesCircle(1.0, 2.0)


def _law(source: str, option: str) -> Any:
    """Return a law in the plane by its name, or from a file; a score where nothing else is known."""
    import torch

    from ...core import nearest
    from ...distributions.analytic import Gaussian, GaussianMixture
    from ...distributions.as_target import has_log_prob

    named, (path, _, name) = {**known(), "moons": moons, "circle": circle}, source.rpartition(":")
    if source in named:
        law = named[source]()
    elif path.endswith(".py"):
        law = of_file(Path(path), name, 2).law
    else:
        plane = [n for n, make in named.items() if tuple(make().event_shape) == (2,)]
        raise Misuse(
            f"{option} {source!r} is not a target{nearest(source, plane)}; or give "
            f"file.py:function, or a checkpoint"
        )
    if tuple(getattr(law, "event_shape", (2,))) != (2,):
        raise Misuse(
            f"{source} has events of shape {tuple(law.event_shape)}, but the page shows two columns"
        )
    if isinstance(law, Gaussian):
        return GaussianMixture(torch.ones(1), law.mean[None], law.cov[None])
    return law if has_log_prob(law) or hasattr(law, "noised") else law.score


def _load(source: str) -> ScoreEstimator:
    from .loading import load_estimator

    return load_estimator(Path(source))


def _strip(estimator: ScoreEstimator, out: Path, title: str, quiet: bool) -> None:
    """Write the page of a model of images: of draws of its own, their classes as in the data."""
    from ...show import strip
    from ..pipeline import draw
    from .given import class_labels

    g = generator_of(0)
    labels = class_labels(estimator, None, IMAGES, g)
    model = estimator.model_
    score = model if labels is None else model.given(labels)
    images = draw(score, IMAGES, 24, generator=g, title="drawing", quiet=quiet)
    strip(score, images, out, title=title, generator=g)


def _checkpoint(estimator: ScoreEstimator, source: str) -> tuple[Any, tuple[str, str]]:
    """Return the noisy score of a checkpoint of two columns, and their names."""
    model = estimator.model_
    if tuple(model.event_shape) != (2,):
        raise Misuse(
            f"{source} learned samples of shape {tuple(model.event_shape)}, but the page shows two "
            "columns; choose two with `gradlogp fit --columns`"
        )
    if estimator.condition is not None:
        raise Misuse(
            f"{source} is conditional, but the page shows a single law; fit without conditions"
        )
    a, b = (f"x{c}" if str(c).isdigit() else str(c) for c in model.columns or ("x", "y"))
    return model.cpu().double().requires_grad_(False), (a, b)


def _called(source: str) -> str:
    path, _, name = source.rpartition(":")
    return name if path.endswith(".py") else Path(source).name or source
