r"""Densities to sample from: any callable becomes a target.

A target is a log-density up to a constant, and its score (`core.Density`). A missing score is
computed by automatic differentiation; a missing log-density raises an error when it is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from ..calculus.recording import Recorded
from ..calculus.reverse import GradientField, score_from_log_prob
from ..core import (
    Density,
    ScoreFn,
    asked,
    check_batch,
    check_event_shape,
    check_function,
    check_same_shape,
)
from .parameters import Function, Parameters, as_parameters


@dataclass(frozen=True)
class Target:
    """A density made from functions.

    Arguments:
        score_fn: x -> ∇ log p(x).
        log_prob_fn: x -> log p(x) + const; None if only the score is known.
        event_shape: The shape of one x; None if any shape is allowed.
        parameters: Named parameters; then x are the unconstrained numbers `(B, n_free)` behind
            their values, and p is the density of x, including the Jacobian. None for a plain x.
    """

    score_fn: ScoreFn
    log_prob_fn: Callable[[Tensor], Tensor] | None = None
    event_shape: torch.Size | None = None
    parameters: Parameters | None = None

    def score(self, x: Tensor) -> Tensor:
        """Return ∇ log p(x), shape of x."""
        check_batch(x, self.event_shape)
        value = asked(self.score_fn, x, "the score")
        check_same_shape(value, x, "the score")
        return value

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x) + const, shape `(B,)`.

        Raises:
            ValueError: If only the score is known.
        """
        check_batch(x, self.event_shape)
        if self.log_prob_fn is None:
            raise ValueError(
                "this target has a score but no log-density, which Metropolis corrections and "
                "tempering need; pass as_target(log_prob=...) or use an unadjusted kernel (ULA)"
            )
        value = asked(self.log_prob_fn, x, "the log-density")
        if not isinstance(value, Tensor) or value.shape != x.shape[:1]:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"the log-density must return shape ({len(x)},), got {got}; if it takes a single "
                "point, pass vectorized=False"
            )
        return value

    def log_prob_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return both, from one evaluation where the score is the gradient of the log-density."""
        if isinstance(self.score_fn, GradientField) and self.score_fn.f is self.log_prob_fn:
            check_batch(x, self.event_shape)
            return self.score_fn.log_prob_and_score(x)
        return self.log_prob(x), self.score(x)

    def recorded(self) -> Target:
        """Return the same density, for one run: operations of gradients are recorded and repeated."""
        field = self.score_fn
        if type(field) is not GradientField or field.f is not self.log_prob_fn:
            return self
        return replace(self, score_fn=Recorded(field.f, field.sign))

    def constrain(self, x: Tensor) -> Tensor:
        """Return what draws of x are stored as: the values of the parameters, `(B, n_flat)`."""
        return x if self.parameters is None else self.parameters.constrain(x)


def has_log_prob(target: Density) -> bool:
    """Return whether a density says its log-density, or only a score."""
    return callable(getattr(target, "log_prob", None)) and (
        getattr(target, "log_prob_fn", True) is not None
    )


def as_target(
    score: ScoreFn | None = None,
    log_prob: Function | None = None,
    energy: Function | None = None,
    *,
    distribution: Distribution | None = None,
    event_shape: tuple[int, ...] | None = None,
    parameters: Parameters | Mapping[str, Any] | nn.Module | None = None,
    vectorized: bool = True,
) -> Target:
    r"""Make a target of a score, a log-density, an energy E = −log p, or a law of PyTorch.

    With `parameters` the function takes named tensors in their own spaces, and the target is the
    density of the unconstrained numbers z behind them,

    .. math:: \log p(T(z)) + \log|\det \partial T / \partial z|

    so that `score`, `log_prob`, starting points and modes are those of z, `(B, n_free)`, while
    `Chain.draws`, `Chain["name"]`, summaries and files have the values.

    Arguments:
        score: x -> ∇ log p(x), shape of x; by default computed by automatic differentiation.
        log_prob: x -> log p(x) + const, `(B, *event) -> (B,)`; with `parameters` a function that
            takes them by keyword, each `(B, *shape)`.
        energy: E, as `log_prob`, with the opposite sign.
        distribution: A law of `torch.distributions` instead of a function; a batch of laws is
            their product. Its support becomes the constraint of one parameter `x`.
        event_shape: The shape of one x, so that other shapes are refused and starting points can
            be found.
        parameters: For each name a shape, a constraint of `torch.distributions.constraints` (a
            number), or both: `{"beta": (3,), "sigma": constraints.positive, "p": ((4,),
            constraints.simplex)}`; see `Parameters`. For an `nn.Module` the function takes one
            dictionary, as `torch.func.functional_call` does.
        vectorized: Whether functions take a batch of chains. False for a function of one chain
            that returns one number, without batch dimensions; it runs in `torch.func.vmap`.

    A run does not call the function for each gradient: it records its operations and repeats them
    (`calculus.recording`). Side effects of a function, such as counting its calls, then happen
    only now and then; a target object with its own `log_prob` and `score` is always called.

    Raises:
        ValueError: If no function is given, or several that exclude each other; for a score
            with parameters; for a discrete law, or a support without bijection; or, when called, if
            a log-density or energy returns more than one number per sample.
        TypeError: When called, if the function is computed by NumPy or SciPy and has no gradient.

    Examples:
        >>> target = glp.as_target(log_prob=lambda x: -x.pow(4).sum(1), event_shape=(2,))
        >>> target.score(torch.tensor([[1.0, -0.5]]))
        tensor([[-4.0000,  0.5000]])
    """
    if event_shape is not None:
        check_event_shape(event_shape)
    for name, f in (("score", score), ("log_prob", log_prob), ("energy", energy)):
        if f is not None:
            check_function(f, name)
    if distribution is not None:
        if any(x is not None for x in (score, log_prob, energy, event_shape, parameters)):
            raise ValueError(
                "pass distribution= alone: it already has a density, shape and support"
            )
        parameters, log_prob = _of_law(distribution)
    if energy is not None and log_prob is not None:
        raise ValueError("pass log_prob or energy, not both: energy = -log_prob")
    if score is log_prob is energy is None:
        raise ValueError("as_target needs score=, log_prob=, energy= or distribution=")
    if parameters is not None:
        return _named(score, log_prob, energy, as_parameters(parameters), event_shape, vectorized)
    if energy is not None:
        potential = energy

        def log_prob(x: Tensor) -> Tensor:
            return -potential(x)

    if not vectorized:
        score, log_prob = (None if f is None else torch.func.vmap(f) for f in (score, log_prob))
    if score is None:
        assert log_prob is not None
        score = score_from_log_prob(log_prob)
    return Target(score, log_prob, None if event_shape is None else torch.Size(event_shape))


def _named(
    score: ScoreFn | None,
    log_prob: Function | None,
    energy: Function | None,
    parameters: Parameters,
    event_shape: tuple[int, ...] | None,
    vectorized: bool,
) -> Target:
    if score is not None:
        raise ValueError(
            "parameters= needs log_prob= or energy=, without score=: automatic differentiation "
            "gives the score of the unconstrained parameters, including the Jacobian"
        )
    if event_shape is not None:
        raise ValueError(
            "pass event_shape= or parameters=, not both: parameters already have shapes"
        )
    f, sign, name = (log_prob, 1, "log_prob") if energy is None else (energy, -1, "energy")
    assert f is not None
    parameters.check_function(f, name)

    def of_values(named: dict[str, Tensor]) -> Tensor:
        value = parameters.call(f, named, vectorized=vectorized)
        n = len(next(iter(named.values())))
        if not isinstance(value, Tensor) or value.shape != (n,):
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            one = "one number per chain; if it takes one chain, pass vectorized=False"
            raise ValueError(f"{name} must return shape ({n},), {one}; got {got}")
        return sign * value

    def density(z: Tensor) -> Tensor:
        return parameters.log_prob(of_values, z)

    shape = torch.Size([parameters.n_free])
    return Target(score_from_log_prob(density), density, shape, parameters)


def _of_law(law: Distribution) -> tuple[Parameters, Callable[[Tensor], Tensor]]:
    """Return a law of PyTorch as one parameter and its log-density."""
    if not isinstance(law, Distribution):
        raise ValueError(
            f"distribution must be one of torch.distributions, got {type(law).__name__}; an object "
            "with log_prob and score is already a target"
        )
    try:
        support = law.support
    except NotImplementedError:
        support = None
    if support is None:
        raise ValueError(f"{law} does not state its support; pass log_prob= and parameters=")
    if support.is_discrete:
        raise ValueError(f"{law} has no density: discrete distributions have no score")

    def log_prob(x: Tensor) -> Tensor:
        return law.log_prob(x).reshape(len(x), -1).sum(1)

    return Parameters({"x": (tuple(law.batch_shape + law.event_shape), support)}), log_prob
