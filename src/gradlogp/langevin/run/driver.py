r"""The driver `run`.

Every chain has its own noise (`core.Streams`), so that the same generator state yields the same
draws for any chunk size, and a stopped run continues as if nothing had happened.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...core import (
    ALONE,
    Density,
    Generator,
    Kernel,
    NoiseSource,
    Processes,
    Progress,
    Update,
    check_count,
    check_function,
    check_generator,
    check_kernel,
    check_points,
    check_target,
    count_chunks,
    shares,
)
from ...distributions.parameters import parameters_of
from ..chain import Chain
from ..guard import Guarded
from ..tuning import Adaptation
from .engines import Engine, compiled
from .reading import plain, plain_start, start_of
from .resume import begin, check_saved, gathered
from .rounds import Round, Thinning
from .stream import Keep, Place, Store, Stream, check_keep
from .walk import Asked, Walk, check_alone, go_on
from .warmup import check_adapt, retuned

NOTE_SECONDS = 0.5
"""Between changes of the note beside a progress bar."""


@torch.no_grad()
def run(
    kernel: Kernel[Any, Any],
    target: Density,
    x0: Float[Tensor, "chain *event"] | None = None,
    n_steps: int = 0,
    burn_in: int = 0,
    thin: int = 1,
    *,
    generator: Generator | None = None,
    resume: Chain | Mapping[str, Any] | str | os.PathLike[str] | None = None,
    keep: Keep | Place = "memory",
    progress: Update | Progress | None = None,
    chunk_size: int | None = None,
    engine: Engine = "auto",
    adapt: bool | Adaptation = False,
    processes: Processes = ALONE,
) -> Chain:
    """Run a kernel on every chain (the batch dimension) and keep the draws.

    Of the states after steps 1 … n_steps the first `burn_in` are dropped and then every `thin`-th
    is kept: ⌊(n_steps − burn_in) / thin⌋ draws.

    Ctrl-C ends the run: the draws so far are returned, with `complete=False`. All chains have then
    taken the same number of steps, for which up to a tenth of a second of work in each chunk is
    repeated; the fused engine ends within a fifth of a second. A second Ctrl-C, or one before the
    first step or while the kernel is tuned, is raised; so is any Ctrl-C with the caller's own
    `NoiseSource`.

    Arguments:
        kernel: A kernel such as `ULA(h)` or `MALA(h)`.
        target: A density; any callable becomes one with `as_target`.
        x0: Starting points, `(chain, *event)`; omitted with `resume`. For a target with named
            parameters the unconstrained numbers `(chain, n_free)`:
            `target.parameters.unconstrain(values)`.
        n_steps: Number of steps, burn-in included.
        burn_in: Number of steps dropped at the start, in which the kernel is tuned with `adapt`.
        thin: Keep every `thin`-th draw.
        generator: Source of the noise; the same state gives the same draws, in chunks of any size.
        resume: A `Chain`, or its `resume` from a file: continues where that run ended, with its
            noise, its tuned kernel and, unless there is a burn-in, its thinning: 50 steps and 50
            more are 100. Or the path that an earlier run had as `keep`: performs the remaining
            steps of that run, or its whole burn-in again, however it ended. Its other arguments
            are known; kernel and target must be the same.
        keep: Where to store draws: `memory`, on the device of the chains; `cpu`; or the path of a
            new `.npy` file `(chain, draw, *event)`, of which `Chain.draws` is then a view that is
            read from disk on use. Space for all draws is reserved before the first step, filled
            with NaN. What each step reports is written to a second file, and every
            `stream.SAVE_SECONDS` the state from which the run can continue. Neither Ctrl-C nor
            SIGTERM nor SIGHUP loses a draw, and `Chain.open` reads the draws so far at any time.
        progress: Called as progress(done, total, note=...) after every step of every chunk, with
            stage, speed, mean acceptance and the divergent steps of the stage in the note; as
            progress(done, total) if it has no argument `note`, and by the fused engine, about five
            times a second.
        chunk_size: Number of chains moved together; all by default.
        engine: `torch`, for any kernel, target and device; `fused`, compiled loops on the CPU for
            ULA, Leimkuhler–Matthews, MALA, HMC and BAOAB on Gaussians, mixtures, `densities`,
            `Jitted` functions, and functions whose PyTorch operations it can translate; `auto`, the
            fused engine where it supports this and saves more than it takes to compile, which is
            some ten seconds once in a process, otherwise `torch` and a line in the log. What it
            saves follows from n_steps, the chains, D and the operations of a function, never from
            a clock. The draws of the two engines have the same law and different noise:
            `engine="torch"` gives the same draws for any n_steps, `keep`, `adapt` and `processes`. A
            run is resumed by the engine that began it.
        adapt: Whether to tune the step size of a Metropolis kernel to the acceptance that is best
            in high dimension; or an `Adaptation` with the acceptance, and whether to tune a
            preconditioner too. Nothing changes during the draws that are kept: `Chain.kernel` is
            the tuned kernel.
        processes: Processes that divide the chains among them, `core.Processes.here()`: each moves
            its share of the same chains, bit for bit if these are whole chunks, and all draws are
            returned in every process. A kernel is tuned on all chains in each process. Draws stay
            in memory.

    Returns:
        `Chain` with draws `(chain, draw, *event)`, of named parameters their values, info with
        entries `(chain, draw)`, and the last state.

    Raises:
        ValueError: If no draw would be kept, for a wrong shape, an unknown `keep`, a file that
            exists or that another run writes to, a `resume` that does not fit, an engine that
            cannot run this, or a kernel or burn-in with which there is nothing to adapt.
        OSError: If there is no room for the draws, or their file is truncated or replaced during
            the run.

    Examples:
        >>> target, g = glp.Gaussian([1.0]), torch.Generator().manual_seed(0)
        >>> x0 = torch.zeros(50, 1)
        >>> chain = glp.run(glp.langevin.MALA(0.5), target, x0, 200, burn_in=50, generator=g)
        >>> chain.draws.shape
        torch.Size([50, 150, 1])
        >>> abs(float(chain.draws.mean()) - 1.0) < 0.1
        True
    """
    check_kernel(kernel)
    check_target(target)
    check_generator(generator, NoiseSource)
    check_progress(progress)
    check_keep(keep, torch.get_default_dtype())
    how = check_adapt(adapt, burn_in, engine)
    Processes.check(processes)
    alone = processes.alone
    processes.same_noise(generator)
    for name, count in (("n_steps", n_steps), ("burn_in", burn_in), ("thin", thin)):
        check_count(count, name, 0)
    simple = keep in ("memory", "cpu") and alone and how is None
    fast = compiled(
        engine, kernel, target, x0, n_steps, burn_in, thin, generator, resume, simple,
        None if progress is None else lambda done, total: progress(done, total),
    )  # fmt: skip
    if fast is not None:
        chain, (done, total, kept) = fast
        _warn(chain.divergences, done, total, kept, interrupted=not chain.complete)
        return dataclasses.replace(chain, kernel=kernel, target=target)
    if not alone and (isinstance(resume, str | os.PathLike) or keep not in ("memory", "cpu")):
        raise ValueError(
            "several processes return their draws in memory: drop the file, or start a separate "
            "run in each"
        )
    if isinstance(resume, str | os.PathLike):
        check_alone(resume, x0, keep)
        with Stream(resume) as stream:
            asked = Asked(n_steps, Thinning(burn_in, thin), how)
            walk = go_on(stream, kernel, target, asked, generator, chunk_size)
            tell = meter(
                progress, walk.asked.n_steps, walk.asked.thinning.burn_in, len(walk.end.parts),
                walk.end.done,
            )  # fmt: skip
            chain = dataclasses.replace(walk.go(stream, tell), start=start_of(stream.saved))
        _warn(chain.divergences, *walk.counts)
        return chain
    saved = None if resume is None else check_saved(resume, x0, generator)
    x0 = x0 if saved is None else saved["state"]["x"]
    if x0 is None:
        raise ValueError("x0 is missing: pass starting points, or resume= to continue a run")
    check_points(x0, "x0", getattr(target, "event_shape", None))
    thinning = Thinning(burn_in, thin, saved["since"] if saved and not burn_in else 0)
    if not (0 <= burn_in < n_steps and thin >= 1 and thinning.kept(n_steps) >= 1):
        raise ValueError(
            f"n_steps={n_steps}, burn_in={burn_in}, thin={thin} keep no draw: expected "
            "0 <= burn_in < n_steps and 1 <= thin <= n_steps - burn_in"
        )
    given, guarded = kernel, Guarded(target)
    tell = meter(progress, n_steps, burn_in, count_chunks(len(x0), chunk_size))
    tuned = saved.get("tuned") if saved else None
    kernel = retuned(kernel, tuned)
    parts = begin(kernel, guarded, x0, saved, generator, chunk_size)
    parameters, n_draws = parameters_of(guarded), thinning.kept(n_steps)
    place = check_keep(keep, x0.dtype)
    asked = Asked(n_steps, thinning, how)
    mine = shares(len(x0), chunk_size, processes)
    walk = Walk(kernel, guarded, asked, Round(0, parts, None), tuned, mine=None if alone else mine)
    if place is None:
        device = x0.device if keep == "memory" else torch.device("cpu")
        own = x0[mine[0].start : mine[-1].stop]
        store = Store(device, own, n_draws, parameters)
        go = lambda: (walk.go(store, tell), walk.end.parts)
        chain = go()[0] if alone else gathered(go, processes)
    else:
        with Stream(place.path) as stream:
            plan = asked.plain() | {"kernel": plain(given), "start": plain_start(place.start)}
            stream.create(x0, n_draws, parameters, plan, walk.moving())
            chain = walk.go(stream, tell)
    _warn(chain.divergences, *walk.counts)
    return chain


def _warn(
    diverged: Tensor | None,
    done: int,
    n_steps: int,
    thinning: Thinning,
    first: int = 0,
    interrupted: bool = False,
) -> None:
    """Warn of chains that diverged after the first steps, and of an interrupt."""
    if diverged is not None and bool(diverged.any()):
        chains, steps = int((diverged > 0).sum()), int(diverged.sum())
        warnings.warn(
            f"{chains} of {len(diverged)} chains diverged, in {steps} of "
            f"{len(diverged) * (done - first)} "
            "steps: see Chain.divergences, and use a smaller step_size",
            RuntimeWarning,
            stacklevel=4,
        )
    if interrupted or done < n_steps:
        warnings.warn(
            f"interrupted after {done} of {n_steps} steps: {thinning.kept(done)} draws are kept",
            RuntimeWarning,
            stacklevel=4,
        )


def meter(
    progress: Update | Progress | None, n_steps: int, burn_in: int, n_chunks: int, first: int = 0
) -> Callable[..., None] | None:
    """Return the callback of every step after the first ones: it counts them, and says how it goes."""
    if progress is None:
        return None
    total, noted = n_steps * n_chunks, _takes_note(progress)
    done, note, stage, diverged, began = first * n_chunks, "", "", 0, time.monotonic()
    last = began  # when the note was changed; the lists hold what has come since
    accepted, diverging = list[Tensor](), list[Tensor]()

    def tell(info: Any, steps: int = 1) -> None:
        nonlocal done, note, stage, diverged, last
        done += steps
        if not noted:
            progress(done, total)
            return
        now, before = time.monotonic(), stage
        stage = "warm-up" if done <= burn_in * n_chunks else "draws"
        if stage != before:
            diverged = 0
            accepted.clear()
            diverging.clear()
        if (acceptance := getattr(info, "acceptance", None)) is not None:
            accepted.append(acceptance.mean())
        if (flags := getattr(info, "diverging", None)) is not None:
            diverging.append(flags.sum())
        if now - last > NOTE_SECONDS or stage != before or done == total:
            note, last = (
                f"{stage}, {(done - first * n_chunks) / max(now - began, 1e-9):.3g} steps/s",
                now,
            )
            if accepted:
                note += f", acceptance {float(torch.stack(accepted).mean()):.2f}"
            if diverging:
                diverged += int(torch.stack(diverging).sum())
                note += f", {diverged} divergent"
            accepted.clear()
            diverging.clear()
        progress(done, total, note=note)  # type: ignore[call-arg]

    return tell


def check_progress(progress: Callable[..., None] | None) -> None:
    """Raise `ValueError` unless this can be called with done, total and a note, or without the note."""
    if progress is not None and not _takes_note(progress):
        check_function(progress, "progress", takes=2)


def show(progress: Update | Progress, done: int, total: int, note: str) -> None:
    """Show what is under way before the first step, with the note if there is a place for it."""
    if _takes_note(progress):
        progress(done, total, note=note)  # type: ignore[call-arg]
    else:
        progress(done, total)


def _takes_note(progress: Callable[..., None]) -> bool:
    try:
        inspect.signature(progress).bind(0, 1, note="")
    except (TypeError, ValueError):  # other arguments, or a builtin that does not tell
        return False
    return True
