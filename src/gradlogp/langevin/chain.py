r"""The result of a run of a kernel, and how far averages over it can be trusted.

The statistics are in `diagnostics`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..core import Density, Verdict
from ..distributions.observed import Observed
from ..distributions.parameters import Parameters, coordinates, parameters_of
from .diagnostics import Mixing, mixing

if TYPE_CHECKING:
    import numpy as np

SHOWN = 20
"""Coordinates that a printed summary shows."""

SAMPLE_STATS = {
    "log_prob": "lp",
    "acceptance": "acceptance_rate",
    "diverging": "diverging",
    "energy": "energy",
    "step_size": "step_size",
}
"""ArviZ's names of the entries of info; others keep their names."""


class Row(NamedTuple):
    """One coordinate: moments over all draws, the error of the mean, and how well chains mix."""

    name: str
    mean: float
    sd: float
    mcse_mean: float
    ess_bulk: float
    ess_tail: float
    r_hat: float


@dataclass(frozen=True, repr=False)
class Summary:
    """A table with a row for each coordinate of an event; `str` prints the first of them.

    Arguments:
        rows: One for each coordinate.
        n_chains: Number of chains.
        n_draws: Number of draws of each chain.
        acceptance: Mean probability of acceptance of the draws, if the kernel has one.
        divergent_chains: Number of chains with a step that became NaN or infinite.
        divergences: Number of such steps.
        complete: Whether the run was completed.
        lowest_acceptance: The smallest mean acceptance of one chain.
        verdict: Whether the draws can be trusted, and if not, why: `Chain.verdict`.
    """

    rows: list[Row]
    n_chains: int
    n_draws: int
    acceptance: float | None
    divergent_chains: int
    divergences: int
    complete: bool = True
    lowest_acceptance: float | None = None
    verdict: Verdict | None = None

    def __str__(self) -> str:
        shown = self.rows[:SHOWN]
        width = max(len(row.name) for row in shown)
        lines = [" " * width + "".join(f"{name:>10}" for name in Row._fields[1:])]
        for row in shown:
            moments = "".join(f"{v:>10.4g}" for v in row[1:4])
            lines.append(
                f"{row.name:<{width}}{moments}{row.ess_bulk:>10.0f}{row.ess_tail:>10.0f}"
                f"{row.r_hat:>10.3f}"
            )
        if rest := self.rows[SHOWN:]:
            lines.append(
                f"and {len(rest)} more coordinates; of all {len(self.rows)} {self._worst()}"
            )
        runs = f"{self.n_chains} chains, {self.n_draws} draws each"
        accepted = "" if self.acceptance is None else f", acceptance {self.acceptance:.3f}"
        if self.lowest_acceptance is not None:
            accepted += f" (lowest of a chain {self.lowest_acceptance:.3f})"
        divergent = f"{self.divergences} divergent steps in {self.divergent_chains} chains"
        ended = "" if self.complete else ", interrupted"
        verdict = [] if self.verdict is None else [str(self.verdict)]
        return "\n".join([*lines, f"{runs}{accepted}, {divergent}{ended}", *verdict])

    __repr__ = __str__

    def _worst(self) -> str:
        r_hat = max(self.rows, key=lambda row: -math.inf if math.isnan(row.r_hat) else row.r_hat)
        ess = min(
            self.rows, key=lambda row: math.inf if math.isnan(row.ess_bulk) else row.ess_bulk
        )
        return (
            f"the largest r_hat is {r_hat.r_hat:.3f} ({r_hat.name}), "
            f"the smallest ess_bulk {ess.ess_bulk:.0f} ({ess.name})"
        )


@dataclass(frozen=True, eq=False)
class Chain:
    """The result of `gradlogp.run`.

    Arguments:
        draws: `(chain, draw, *event)`; on the CPU or in a file if `run` was called with `keep=`.
            For named parameters their values, flattened and concatenated; `chain["name"]` has one.
        info: What the kernel reports about each draw, a named tuple with entries `(chain, draw)`.
        state: The last state of every chain.
        complete: False if Ctrl-C ended the run early.
        divergences: How many steps of each chain became NaN or infinite, `(chain,)`, including
            burn-in and thinned steps, but not a burn-in in which the kernel was tuned; None for a
            kernel that does not report them.
        step_size: The step size of the kernel, if it is one number.
        resume: The state from which `run(..., resume=...)` continues: tensors, numbers and
            strings, which `torch.save` writes and `torch.load(..., weights_only=True)` reads.
        kernel: The kernel of the draws: the given one, or its tuned version after `adapt`.
        target: The density that was sampled.
        failures: The number of proposals at which the target failed, for each error.
        warmup: The result of tuning the kernel, a `WarmUp`.
        start: The starting points of `sample`, a `Start`.
        parameters: Names and shapes of the parameters, if the target has them; `state` has the
            unconstrained numbers behind them.
    """

    draws: Tensor
    info: Any
    state: Any
    complete: bool = True
    divergences: Tensor | None = None
    step_size: float | None = None
    resume: Mapping[str, Any] | None = field(default=None, repr=False)
    kernel: Any = None
    target: Any = field(default=None, repr=False)
    failures: Mapping[str, int] = field(default_factory=dict)
    warmup: Any = field(default=None, repr=False)
    start: Any = field(default=None, repr=False)
    parameters: Parameters | None = None

    @classmethod
    def open(cls, path: str | os.PathLike[str], target: Density | None = None) -> Chain:
        """Open the draws that `run` or `sample` keep in a file, even during the run.

        The chain has the complete draws, with their information, up to the last time that the run
        saved. The files are read on use, and changes to the tensors are not written. `resume`
        continues from there in memory or in another file; to complete the run itself, pass its
        path to `run` or `sample` as `resume`.

        Arguments:
            path: The file of the draws.
            target: The density that was sampled, which the file does not contain: the verdict
                needs it, and so do constraints of named parameters.

        Returns:
            The chain as `run` returns it; `kernel` is None if it consists of functions, and the
            last state of the warm-up is missing.

        Raises:
            ValueError: If it is not the file of a run, is damaged or truncated, or the target has
                different parameters.
        """
        from .run.reading import open_chain

        return open_chain(path, target)

    @cached_property
    def verdict(self) -> Verdict:
        """Whether the draws can be trusted, and why not: see `langevin.judge`."""
        from .verdict import judge

        return judge(self)

    @cached_property
    def mixing(self) -> Mixing:
        """How well the chains mix, one entry for each coordinate of an event, flattened."""
        return mixing(self._flat())

    def _flat(self) -> Tensor:
        """Return the draws as doubles on the CPU, `(chain, draw, d)`."""
        draws = self.draws.detach()
        return (draws.flatten(2) if draws.ndim > 2 else draws[..., None]).cpu().double()

    def names(self) -> list[str]:
        """Return a name for each coordinate of an event, flattened."""
        if self.parameters is not None:
            return self.parameters.names()
        return coordinates("x", self.draws.shape[2:])

    def __getitem__(self, name: str) -> Tensor:
        """Return the draws of one parameter, `(chain, draw, *shape)`.

        Raises:
            ValueError: If the target has no named parameters, or none with this name.
        """
        named = self._named()
        if name not in named:
            raise ValueError(f"there is no parameter {name!r}, only {', '.join(named)}")
        return named[name]

    def derived(self, f: Callable[..., Any], *, vectorized: bool = True) -> dict[str, Tensor]:
        """Return draws of quantities that are functions of the parameters.

        Arguments:
            f: Takes the parameters by keyword (of a module, as one dictionary), all draws of all
                chains at once, each `(N, *shape)`; returns a dictionary of tensors `(N, *event)`.
            vectorized: False for a function of one draw, without N; it runs in `torch.func.vmap`.

        Returns:
            For each name in that dictionary draws `(chain, draw, *event)`.

        Raises:
            ValueError: If the target has no named parameters, or f does not return such a
                dictionary.
        """
        named = {name: x.flatten(0, 1) for name, x in self._named().items()}
        assert self.parameters is not None
        found, lead = self.parameters.call(f, named, vectorized=vectorized), self.draws.shape[:2]
        if not isinstance(found, Mapping) or any(
            not isinstance(x, Tensor) or x.shape[:1] != (lead.numel(),) for x in found.values()
        ):
            raise ValueError(
                f"a function of {lead.numel()} draws must return a dictionary of tensors "
                f'({lead.numel()}, …), such as {{"ratio": a / b}}'
            )
        return {name: x.unflatten(0, lead) for name, x in found.items()}

    def _named(self) -> dict[str, Tensor]:
        if self.parameters is None:
            raise ValueError(
                "these draws have no named parameters: use chain.draws, or make the target with "
                "as_target(log_prob=..., parameters=...)"
            )
        return self.parameters.split(self.draws)

    def summary(self, names: Sequence[str] | None = None) -> Summary:
        r"""Return mean, error and mixing of every coordinate, and the verdict.

        R-hat is rank-normalised, split and folded; the effective sample sizes are those of the
        bulk and of the quantiles 0.05 and 0.95. R-hat should be below 1.01, and effective sizes
        above 100 per chain. R-hat of one chain, and everything for fewer than 4 draws, is NaN; so
        is R-hat if all draws are equal.

        References:
            | Rank-Normalization, Folding, and Localization: An Improved R-hat for Assessing
              Convergence of MCMC (Vehtari, Gelman, Simpson, Carpenter & Bürkner, 2021)
            | https://doi.org/10.1214/20-BA1221

        Arguments:
            names: One for each coordinate of an event, flattened; by default those of the
                parameters, or x[0], x[1] ….

        Raises:
            ValueError: For a wrong number of names.
        """
        x = self._flat()
        n_chains, n_draws, d = x.shape
        names = self.names() if names is None else list(names)
        if len(names) != d:
            raise ValueError(f"names must hold {d} names, one per coordinate, got {len(names)}")
        nothing = torch.full((d,), torch.nan, dtype=torch.float64)
        columns = [nothing] * 6
        if n_chains * n_draws:
            found = self.mixing
            columns = [
                x.mean((0, 1)),
                x.std((0, 1), correction=min(1, n_chains * n_draws - 1)),
                found.mcse_mean, found.ess_bulk, found.ess_tail, found.r_hat,
            ]  # fmt: skip
        values = torch.stack(columns, 1).tolist()
        rows = [Row(name, *row) for name, row in zip(names, values, strict=True)]
        acceptance = getattr(self.info, "acceptance", None)
        diverged = self.divergences
        if diverged is None and (flags := getattr(self.info, "diverging", None)) is not None:
            diverged = flags.sum(1)
        return Summary(
            rows,
            n_chains,
            n_draws,
            None if acceptance is None else float(acceptance.mean()),
            0 if diverged is None else int((diverged > 0).sum()),
            0 if diverged is None else int(diverged.sum()),
            self.complete,
            None if acceptance is None else float(acceptance.double().mean(1).min()),
            self.verdict,
        )

    def to_arviz(
        self,
        name: str = "x",
        *,
        tree: bool = False,
        observed: Observed | None = None,
        predict: Callable[..., Tensor] | None = None,
    ) -> Any:
        """Return the draws under the names of ArviZ, in the form of `arviz.from_dict` of ArviZ 1.

        Arguments:
            name: The name of the variable, if the target has no named parameters; otherwise each
                parameter is a variable with its own shape.
            tree: Whether to return a DataTree of xarray, which needs arviz-base; otherwise a dict
                `{"posterior": {name: draws}, "sample_stats": {...}}` of NumPy arrays, with lp,
                acceptance_rate, diverging, energy and step_size if they are known; lp is the
                log-density of the unconstrained numbers, with the Jacobian of named parameters.
            observed: The target, for the groups `observed_data` and `log_likelihood`, `(chain,
                draw, N)`, each with one variable `y`, which `arviz.loo` reads.
            predict: Draws new outcomes, see `Observed.predict`, for a group `posterior_predictive`.

        Raises:
            ValueError: If a tree is requested and arviz-base is not installed; for `predict`
                without `observed`, or an `observed` whose parameters are not those of the draws.
        """
        stats = {
            SAMPLE_STATS.get(key, key): _numpy(value) for key, value in self.info._asdict().items()
        }
        if self.step_size is not None and "step_size" not in stats:
            steps = torch.full(self.draws.shape[:2], self.step_size, dtype=torch.float64)
            stats["step_size"] = _numpy(steps)
        named = {name: self.draws} if self.parameters is None else self._named()
        posterior = {name: _numpy(x) for name, x in named.items()}
        groups = {"posterior": posterior, "sample_stats": stats}
        groups |= self._of_observations(observed, predict)
        if not tree:
            return groups
        try:
            from arviz_base import from_dict
        except ImportError as error:
            raise ValueError("tree=True needs arviz-base: pip install arviz-base") from error
        return from_dict(groups)

    def _of_observations(
        self, observed: Observed | None, predict: Callable[..., Tensor] | None
    ) -> dict[str, dict[str, np.ndarray[Any, Any]]]:
        """Return the groups of ArviZ that hold one entry for each observation."""
        if observed is None:
            if predict is not None:
                raise ValueError("predict= needs observed=, the target with the observations")
            return {}
        theirs, ours = (p and p.shapes for p in (parameters_of(observed), self.parameters))
        if theirs != ours:
            raise ValueError(
                f"observed must have the parameters of these draws, {ours}, but has {theirs}"
            )
        flat, lead = self.draws.flatten(0, 1), self.draws.shape[:2]
        found = {"observed_data": observed.data}
        found["log_likelihood"] = observed.pointwise(flat).unflatten(0, lead)
        if predict is not None:
            found["posterior_predictive"] = observed.predict(flat, predict).unflatten(0, lead)
        return {group: {"y": _numpy(x)} for group, x in found.items()}


def _numpy(x: Tensor) -> np.ndarray[Any, Any]:
    return x.detach().cpu().numpy()
