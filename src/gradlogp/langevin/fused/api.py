"""What the fused engine supports, and the driver that passes it to compiled code."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...core import check_batch, check_count, check_points
from ...distributions import targets as densities
from ...distributions.analytic import Gaussian, GaussianMixture
from ...distributions.as_target import Target, has_log_prob
from ..kernels import HMC, MALA, ULA, LeimkuhlerMatthews
from ..kernels.hamiltonian import HamiltonianInfo
from ..kernels.preconditioner import IDENTITY
from ..kernels.steps import LangevinInfo, MetropolisInfo, jittered_length, started
from ..kernels.underdamped import BAOAB
from .functions import Translated, same, translated
from .tracing import CannotCompile

SLICE_SECONDS = 0.2
"""About how long compiled code runs between two calls of progress, and two looks at Ctrl-C."""

FEWEST = 10
"""Steps in between at least: what a tile is comes from memory once for all of them."""

KNOWN = (
    densities.Banana, densities.Funnel, densities.Ring, densities.DoubleWell, densities.ManyWell,
    densities.LogCosh, densities.SkewedGumbel, densities.LogisticRegression,
)  # fmt: skip
"""Densities whose score the engine has."""

DTYPES = {torch.float32: np.float32, torch.float64: np.float64}


class Fused(NamedTuple):
    """Draws `(chain, draw, D)`, info `(chain, draw)`, the last state, diverging steps, steps taken.

    `interrupted` says whether Ctrl-C was pressed, even if the run was already complete.
    """

    draws: Float[Tensor, "chain draw D"]
    info: LangevinInfo | MetropolisInfo | HamiltonianInfo
    state: Any
    divergences: Int[Tensor, " chain"]
    n_steps: int
    interrupted: bool
    noise: Int[Tensor, "chain 4"]
    """Where the noise of every chain stands."""


@dataclass(frozen=True, eq=False)
class Jitted:
    """A density from functions of one chain, compiled by `numba.njit`: a target of either engine.

    Arguments:
        score_fn: score(x, out) fills out `(D,)` with ∇ log p at x `(D,)`.
        log_prob_fn: log_prob(x) returns log p(x) + const; `MALA` and `HMC` need it.
    """

    score_fn: Callable[[Any, Any], None]
    log_prob_fn: Callable[[Any], float] | None = None

    @cached_property
    def of_tiles(self) -> Any:
        """The same for tiles of chains, see `engine.of_chain`; compiled once for each target."""
        from .engine import of_chain

        return of_chain(self.score_fn, self.log_prob_fn)

    def score(self, x: Float[Tensor, "batch D"]) -> Float[Tensor, "batch D"]:
        """Return ∇ log p(x), one chain after another."""
        check_batch(x)
        rows = np.ascontiguousarray(x.detach().cpu().numpy())
        out = np.empty_like(rows)
        for row, value in zip(rows, out, strict=True):
            self.score_fn(row, value)
        return torch.from_numpy(out).to(x)

    def log_prob(self, x: Float[Tensor, "batch D"]) -> Float[Tensor, " batch"]:
        """Return log p(x) + const, one chain after another.

        Raises:
            ValueError: If only the score is known.
        """
        check_batch(x)
        if self.log_prob_fn is None:
            raise ValueError("this target has no log-density; pass Jitted(score, log_prob)")
        rows = np.ascontiguousarray(x.detach().cpu().numpy())
        return torch.tensor([self.log_prob_fn(row) for row in rows], dtype=x.dtype).to(x.device)


def objection(kernel: object, target: object, x0: Tensor | None = None) -> str | None:
    """Return why the fused engine cannot run this, None if it can.

    Arguments:
        kernel: A kernel.
        target: A density.
        x0: Starting points, to check their dtype and device too; for a target of functions, to
            translate its operations there.
    """
    try:
        prepared(kernel, target, x0)
    except CannotCompile as reason:
        return str(reason)
    return None


def prepared(kernel: object, target: object, x0: Tensor | None) -> object:
    """Return a target as the engine takes it: one of functions is translated.

    Raises:
        CannotCompile: If the engine cannot run this, with the reason.
    """
    for reason in (_kernel_objection(kernel), _target_objection(kernel, target)):
        if reason is not None:
            raise CannotCompile(reason)
    if x0 is not None and (x0.device.type != "cpu" or x0.dtype not in DTYPES or x0.ndim != 2):
        raise CannotCompile(
            f"the fused engine has chains (chain, D) in float32 or float64 on the CPU, got "
            f"{tuple(x0.shape)}, {x0.dtype}, {x0.device}"
        )
    if type(target) is not Target:
        return target
    if x0 is None:
        raise CannotCompile("a function is translated at its starting points: pass x0")
    return translated(target, x0)


def _kernel_objection(kernel: object) -> str | None:
    if find_spec("numba") is None:
        return 'the fused engine needs Numba: pip install "gradlogp[fast]"'
    if type(kernel) not in (ULA, LeimkuhlerMatthews, MALA, BAOAB, HMC):
        return (
            f"the fused engine has ULA, LeimkuhlerMatthews, MALA, HMC and BAOAB, not "
            f"{type(kernel).__name__}"
        )
    if isinstance(kernel, MALA | HMC) and kernel.preconditioner is not IDENTITY:
        return f"the fused engine has {type(kernel).__name__} only without a preconditioner"
    if isinstance(kernel, HMC) and isinstance(kernel.step_size, Tensor):
        return "the fused engine has one step size for all chains"
    return None


def _target_objection(kernel: Any, target: Any) -> str | None:
    if type(target) in (Gaussian, GaussianMixture):
        if target._singular:
            return "the covariance is singular, so there is no density"
        if target._cov.w.ndim > (1 if isinstance(target, Gaussian) else 2):
            return "this law was noised for several samples: it is a different law for each chain"
        return None
    if type(target) in (Jitted, Translated, Target):
        if kernel.facts.needs_log_prob and not has_log_prob(target):
            return (
                f"{type(kernel).__name__} needs a log-density: pass fused.Jitted(score, log_prob)"
            )
        return None
    if type(target) in KNOWN:
        return None
    return (
        "the fused engine has Gaussian, GaussianMixture, the densities of gradlogp.distributions, "
        f"as_target and fused.Jitted targets, not {type(target).__name__}"
    )


def slower(target: Any, x0: Tensor) -> str | None:
    """Return why PyTorch is faster, by its matrix products; None if it is not."""
    n, D = x0.shape
    if isinstance(target, Translated):
        size = target.program.size
        return None if gain(target, x0) > 0 else f"a density of {size} numbers is faster there"
    if isinstance(target, densities.LogisticRegression) and n < 16:
        return f"{n} chains of a regression, each lane of a tile with all rows, are faster there"
    cov = getattr(target, "_cov", None)
    if D < 16 or cov is None or cov.U is None or bool((cov.w == cov.w[..., :1]).all()):
        return None
    if n < 16 or D > 64:
        return f"{n} chains in {D} dimensions with full covariances are faster there"
    return None


def gain(target: Any, x0: Tensor) -> float:
    """Return about how many seconds the engine saves for each score, from counts alone.

    The times were measured on one core of a server, for nine posteriors and 4 to 512 chains.
    """
    n = len(x0)
    if not isinstance(target, Translated):
        return 5e-5 + 1e-8 * x0.numel()
    p, tile = target.program, 16 if n <= 16 else 64
    lanes = -(-n // tile) * min(tile, 4 * -(-n // 4))
    ours = p.size * (1.6e-9 * -(-n // tile) + 5e-10 * lanes)
    return 1.4e-6 * p.calls + 2e-10 * p.size * n - ours


def supports(kernel: object, target: object, x0: Tensor | None = None) -> bool:
    """Return whether the fused engine can run this; `objection` says why not."""
    return objection(kernel, target, x0) is None


@torch.no_grad()
def run(
    kernel: Any,
    target: Any,
    x0: Float[Tensor, "chain D"],
    n_steps: int,
    burn_in: int = 0,
    thin: int = 1,
    *,
    seed: int = 0,
    threads: int = 1,
    progress: Callable[[int, int], None] | None = None,
    since: int = 0,
    go_on: tuple[Any, Tensor] | None = None,
) -> Fused:
    """Run a kernel on every chain in compiled code; on Ctrl-C the draws so far are kept.

    Arguments:
        kernel: `ULA`, `LeimkuhlerMatthews`, `BAOAB`, or `MALA` or `HMC` without preconditioner.
        target: A `Gaussian`, a `GaussianMixture`, one of `densities`, a `Jitted`, or a `Target` of
            functions whose operations have a rule.
        x0: Starting points, float32 or float64; the noise is float32 in either case.
        n_steps: Number of steps, burn-in included.
        burn_in: Number of steps dropped at the start.
        thin: Keep every `thin`-th draw.
        seed: Seed of the noise; chain k has the same noise in every run with this seed.
        threads: Number of threads; the draws do not depend on it.
        progress: Called as progress(done, total) now and then.
        since: Steps that had passed since the last draw, without burn-in.
        go_on: State and noise of an earlier run, which this one continues.

    Raises:
        ValueError: If the engine does not support this, or no draw would be kept.
        FloatingPointError: For `on_nonfinite="raise"`, if a chain became NaN or infinite.
        TypeError: If the values of a function change during the run.
    """
    check_points(x0, "x0")
    try:
        target = prepared(kernel, target, x0)
    except CannotCompile as reason:
        raise ValueError(str(reason)) from None
    kept = lambda steps: max(0, steps - burn_in + since) // thin
    if not (0 <= burn_in < n_steps and thin >= 1 and kept(n_steps) >= 1):
        raise ValueError(
            f"n_steps={n_steps}, burn_in={burn_in}, thin={thin} keep no draw: expected "
            "0 <= burn_in < n_steps and 1 <= thin <= n_steps - burn_in"
        )
    check_count(threads, "threads")
    from . import engine
    from .pack import (
        Arrays,
        Keyed,
        number,
        score_of,
        seeds,
        width,
    )

    n = len(x0)
    if go_on is None:
        start = started(kernel, x0, target, Keyed(seed))
        noise = seeds(seed, n)
    else:
        start, noise = go_on[0], go_on[1].numpy().astype(np.uint32)
    kind, c = number(kernel, DTYPES[x0.dtype])
    score, constants, rows = score_of(target, x0)
    a = Arrays.of(start, noise, kept(n_steps), kind)
    tiles = len(a.x)
    parts = [(i * tiles // threads, (i + 1) * tiles // threads) for i in range(threads)]
    parts = [part for part in parts if part[0] < part[1]]

    lengths = _lengths(kernel, start, n_steps)
    reached = np.zeros((len(parts), 1), np.int64)

    def move(i: int, done: int, steps: int) -> None:
        engine.tiles(
            width(n), kind, c, score, constants, rows, *parts[i], n, a.rng, a.x, a.score, a.extra,
            a.log_prob, a.counts, done, steps, burn_in - since, thin, a.draws, a.flags, a.accepted,
            a.acceptance, a.kept_log_prob, a.energy, lengths[done : done + steps], reached[i],
        )  # fmt: skip

    pool, done, interrupted = ThreadPoolExecutor(len(parts)) if len(parts) > 1 else None, 0, False
    with pool or nullcontext():
        try:
            steps = FEWEST
            while done < n_steps:
                steps, began = min(steps, n_steps - done), time.monotonic()
                each = partial(move, done=done, steps=steps)
                list((pool.map if pool else map)(each, range(len(parts))))
                done += steps
                _look(target, a)
                taken = max(time.monotonic() - began, SLICE_SECONDS / 100, 1e-9)
                steps = max(FEWEST, int(steps * SLICE_SECONDS / taken))
                if progress is not None:
                    progress(done, n_steps)
        except KeyboardInterrupt:
            interrupted = True
            if pool is not None:
                pool.shutdown()
            done = int(reached.max())
            for i, ended in enumerate(reached[:, 0].tolist()):
                if ended < done:
                    move(i, ended, done - ended)
    if done == 0:
        raise KeyboardInterrupt
    divergences = torch.from_numpy(a.counts)
    if kernel.on_nonfinite == "raise" and bool(divergences.any()):
        raise FloatingPointError(
            f"{int((divergences > 0).sum())} of {n} chains became NaN or infinite; "
            "use a smaller step_size"
        )
    found = a.result(start, kept(done), done)
    return Fused(*found, divergences, done, interrupted, a.noise())


def _look(target: Any, a: Any) -> None:
    """Compare the scores of a few chains with those of the function, if the target is one.

    Raises:
        TypeError: If they differ.
    """
    if not isinstance(target, Translated):
        return
    x, score = (torch.from_numpy(v[0].T[: min(4, len(a.counts))].copy()) for v in (a.x, a.score))
    if not same(score, target.score, x):
        raise TypeError(
            "the log-density changed during the run: at one point it gives different numbers from "
            "the operations recorded earlier; it must depend on x alone, through PyTorch "
            "operations, not through .tolist(), .numpy() or variables that change"
        )


def _lengths(kernel: Any, start: Any, n_steps: int) -> Any:
    """Return the leapfrog steps of each step of `HMC`, those of the plain engine."""
    if not isinstance(kernel, HMC):
        return np.ones(0, np.int64)
    n, first = kernel.n_leapfrog, int(start.number[0])
    if not kernel.jitter or n == 1:
        return np.full(n_steps, n, np.int64)
    return np.array([jittered_length(n, first + k) for k in range(n_steps)], np.int64)
