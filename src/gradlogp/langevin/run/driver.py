r"""The driver `run`.

Every chain has its own noise (`core.Streams`), so that the same generator state yields the same
draws whatever the chunk size, and a run that is stopped goes on as if nothing had happened.
"""

from __future__ import annotations

import dataclasses
import inspect
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...core import (
    Density,
    Generator,
    Kernel,
    NoiseSource,
    Progress,
    Update,
    check_count,
    check_function,
    check_generator,
    check_kernel,
    check_points,
    check_target,
    count_chunks,
)
from ...distributions.parameters import parameters_of
from ..chain import Chain
from ..guard import Guarded
from ..tuning import Adaptation
from .engines import Engine, compiled
from .resume import (
    VERSION,
    begin,
    check_saved,
    merge,
    noise_of,
)
from .rounds import Round, Thinning, rounds
from .store import Keep, Store, check_keep
from .warmup import Walkers, check_adapt, retuned, tune, tuned_values

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
    resume: Chain | Mapping[str, Any] | None = None,
    keep: Keep = "memory",
    progress: Update | Progress | None = None,
    chunk_size: int | None = None,
    engine: Engine = "torch",
    adapt: bool | Adaptation = False,
) -> Chain:
    """Run a kernel on every chain (the batch dimension) and keep the draws.

    Of the states after steps 1 … n_steps the first `burn_in` are dropped and then every `thin`-th
    is kept: ⌊(n_steps − burn_in) / thin⌋ draws.

    Ctrl-C ends the run: the draws so far come back, with `complete=False`. All chains have then
    taken the same number of steps, for which up to a tenth of a second of work in each chunk is done
    again; the fused engine ends with what it does within a fifth of a second, and has no `resume`. A
    second Ctrl-C, or one before the first step or while the kernel is tuned, is raised; so is any on
    a caller's own `NoiseSource`.

    Arguments:
        kernel: Such as `ULA(h)` or `MALA(h)`.
        target: A density; any callable becomes one by `as_target`.
        x0: Starting points, `(chain, *event)`; none with `resume`. Of a target with named parameters
            the free numbers, `(chain, n_free)`: `target.parameters.unconstrain(values)`.
        n_steps: Steps taken, burn-in included.
        burn_in: Steps dropped at the start, in which the kernel is tuned if it is to `adapt`.
        thin: Keep one draw in so many.
        generator: Where the noise comes from; the same state gives the same draws, in chunks of
            any size.
        resume: A `Chain`, or its `resume` from a file: goes on where that run ended, with its
            noise, what it had tuned of the kernel and, unless there is a burn-in, its thinning: 50
            steps and 50 more are 100.
        keep: Where draws go: `memory`, beside the chains; `cpu`; or the path of a new `.npy` file
            `(chain, draw, *event)` of which `Chain.draws` is then a view, read from the disk as it
            is used. They are stored a few at a time, so that a device holds only these. After
            Ctrl-C the rows that were never drawn are NaN in the file.
        progress: Called as progress(done, total, note=...) after every step of every chunk, with
            stage, speed, mean acceptance and the divergent steps of the stage in the note; as
            progress(done, total) if it takes no note.
        chunk_size: Chains moved together; all where not given.
        engine: `torch`, for any kernel, target and device; `fused`, compiled loops on the CPU for
            ULA, Leimkuhler–Matthews, MALA and BAOAB on Gaussians, mixtures, `densities` and `Jitted`
            functions, with other noise of the same law; `auto`, the fused one where it can and
            compiling is worth it, and a line in the log where not.
        adapt: Whether to tune the step size of a Metropolis kernel to the acceptance that is best
            in high dimension; or an `Adaptation` that says to which, and whether a
            preconditioner too. With the kept draws nothing changes any more: `Chain.kernel` tells
            what came of it.

    Returns:
        `Chain` with draws `(chain, draw, *event)`, of named parameters their values, info with
        entries `(chain, draw)`, and the last state.

    Raises:
        ValueError: If nothing would be kept, for a wrong shape, for an unknown `keep` or a file
            that exists, for a `resume` that does not fit, an engine that cannot run this, or
            a kernel or burn-in with which there is nothing to adapt.
    """
    check_kernel(kernel)
    check_target(target)
    check_generator(generator, NoiseSource)
    if progress is not None:
        check_function(progress, "progress")
    check_keep(keep, torch.get_default_dtype())
    how = check_adapt(adapt, burn_in, engine)
    plain = resume is None and keep == "memory" and chunk_size is None
    fast = compiled(
        engine, kernel, target, x0, n_steps, burn_in, thin, generator, plain and how is None,
        None if progress is None else lambda done, total: progress(done, total),
    )  # fmt: skip
    if fast is not None:
        chain, found = fast
        ended = found.n_steps, n_steps, Thinning(burn_in, thin, 0)
        _warn(chain.divergences, *ended, interrupted=found.interrupted)
        return dataclasses.replace(chain, kernel=kernel, target=target)
    saved = None if resume is None else check_saved(resume, x0, generator)
    x0 = x0 if saved is None else saved["state"]["x"]
    if x0 is None:
        raise ValueError("x0 is missing: pass starting points, or resume= to go on with a run")
    check_points(x0, "x0", getattr(target, "event_shape", None))
    for name, count in (("n_steps", n_steps), ("burn_in", burn_in), ("thin", thin)):
        check_count(count, name, 0)
    thinning = Thinning(burn_in, thin, saved["since"] if saved and not burn_in else 0)
    if not (0 <= burn_in < n_steps and thin >= 1 and thinning.kept(n_steps) >= 1):
        raise ValueError(
            f"n_steps={n_steps}, burn_in={burn_in}, thin={thin} keep no draw: needs "
            "0 <= burn_in < n_steps and 1 <= thin <= n_steps - burn_in"
        )
    target = Guarded(target)
    tell = meter(progress, n_steps, burn_in, count_chunks(len(x0), chunk_size))
    tuned = saved.get("tuned") if saved else None
    kernel = retuned(kernel, tuned)
    parts = begin(kernel, target, x0, saved, generator, chunk_size)
    target.lenient, warmup = True, None
    parameters = parameters_of(target)
    check_keep(keep, x0.dtype)
    first = 0
    if how is not None:
        walkers = Walkers(parts, target, tell)
        warmup = tune(how, kernel, walkers, burn_in)
        kernel, parts = warmup.kernel, walkers.parts
        tuned, first = tuned_values(kernel), burn_in
        target.failures.clear()
    store, end = Store(keep, x0, thinning.kept(n_steps), parameters), Round(first, parts, None)
    for new in rounds(kernel, target, parts, thinning, n_steps, store, tell, first):
        if end.diverged is not None and new.diverged is not None:
            new = new._replace(diverged=end.diverged + new.diverged)
        end = new
    done, parts, diverged = end
    _warn(diverged, done, n_steps, thinning, first)
    draws, info = store.finish(thinning.kept(done))
    state = merge(parts)
    step_size = getattr(kernel, "step_size", None)
    return Chain(
        draws,
        info,
        state,
        complete=done == n_steps,
        divergences=diverged,
        step_size=float(step_size) if isinstance(step_size, float | int) else None,
        resume={
            "version": VERSION,
            "state": state._asdict(),
            "noise": noise_of(parts),
            "device": x0.device.type,
            "since": thinning.left_over(done),
            **({} if tuned is None else {"tuned": tuned}),
        },
        kernel=kernel,
        target=target.target,
        failures=dict(target.failures),
        warmup=warmup,
        parameters=parameters,
    )


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
            "steps: see Chain.divergences, and take a smaller step_size",
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
    progress: Update | Progress | None, n_steps: int, burn_in: int, n_chunks: int
) -> Callable[..., None] | None:
    """Return the callback of every step: it counts them, and says how the stage goes."""
    if progress is None:
        return None
    total, noted = n_steps * n_chunks, _takes_note(progress)
    done, note, stage, diverged, began = 0, "", "", 0, time.monotonic()
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
            note, last = f"{stage}, {done / max(now - began, 1e-9):.3g} steps/s", now
            if accepted:
                note += f", acceptance {float(torch.stack(accepted).mean()):.2f}"
            if diverging:
                diverged += int(torch.stack(diverging).sum())
                note += f", {diverged} divergent"
            accepted.clear()
            diverging.clear()
        progress(done, total, note=note)  # type: ignore[call-arg]

    return tell


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
