r"""Scores and divergences by automatic differentiation.

For s: R^d -> R^d with Jacobian ∇s the divergence is tr ∇s. Probes v with E[v vᵀ] = I give the
unbiased estimate vᵀ(∇s)v. All functions can be differentiated again, in the parameters of s and in
x, sample by sample, in reverse mode (s may differentiate inside); the exact trace uses `jets` if
possible.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..core import (
    Generator,
    ScoreFn,
    along,
    asked,
    check_batch,
    check_count,
    check_function,
    check_kind,
    check_number,
    check_option,
    check_same_shape,
    rand_like,
    randn_like,
    sum_event,
)
from . import jets

Probe = Literal["gaussian", "rademacher", "sphere"]
"""The laws of a probe: `probe` says what they are."""

CHUNK_ENTRIES = 2**22
"""Entries of a batch of derivatives that are computed together: 16 MiB in float32."""

SINGLE = 16
"""Rows of a Jacobian up to which each is a backward pass: setting up a batched one costs more."""

KEPT_ENTRIES = 2**24
"""Entries of all chunks up to which what differentiation needs is kept, and not computed again."""


class GradientField:
    """The score x -> sign · ∇f(x) of a log-density f (sign 1) or an energy (−1)."""

    def __init__(self, f: Callable[[Tensor], Tensor], sign: float = 1.0) -> None:
        check_function(f, "f")
        check_number(sign, "sign")
        self.f, self.sign = f, sign

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x), up to a constant."""
        return self.f(x) if self.sign == 1 else self.sign * self.f(x)

    def log_prob_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return log p(x), `(B,)`, and its score from one evaluation."""
        check_batch(x)
        values: list[Tensor] = []
        total = lambda x: self._keep(x, values)
        score = _pull_back(at := _evaluate(total, x, "the log-density"), None)
        return self.sign * (values[0] if at.graph else values[0].detach()), score

    def _keep(self, x: Tensor, values: list[Tensor]) -> Tensor:
        """Return the sum over the batch, and keep the values."""
        values.append(self._values(x))
        return self.sign * values[-1].sum() if self.sign != 1 else values[-1].sum()

    def _values(self, x: Tensor) -> Tensor:
        value = asked(self.f, x, "the log-density")
        if not isinstance(value, Tensor) or value.shape != x.shape[:1]:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"a log-density (or energy) must return shape ({x.shape[0]},), one number per "
                f"sample, got {got}; if the function takes a single point, pass vectorized=False in "
                "as_target; if it returns a vector field, pass it as score="
            )
        return value

    def __call__(self, x: Tensor) -> Tensor:
        """Return the score, shape of x."""
        if torch._C._functorch.is_functorch_wrapped_tensor(x):  # inside a torch.func transform
            return self.sign * torch.func.grad(lambda y: self._values(y).sum())(x)
        return self.log_prob_and_score(x)[1]


def score_from_log_prob(log_prob: Callable[[Tensor], Tensor]) -> GradientField:
    """Return x -> ∇ log p(x) for a log-density `(B, *event) -> (B,)`.

    Raises:
        ValueError: When called, if the function does not return one number per sample (a
            vector-valued "log-density" has no gradient; pass it as a score), or if its result does
            not depend on x through differentiable operations.
    """
    return GradientField(log_prob)


class _At(NamedTuple):
    """A function at y, a variable that stands for x; whether its results are differentiated on."""

    name: str
    y: Tensor
    value: Tensor
    graph: bool

    @property
    def given(self) -> Tensor:
        """The value, with a graph only where the caller can use it."""
        return self.value if self.graph else self.value.detach()


def _evaluate(f: Callable[[Tensor], Tensor], x: Tensor, name: str) -> _At:
    """Evaluate f at x without touching x itself."""
    own = x.requires_grad and torch.is_grad_enabled()  # else a view may say so and have no graph
    with torch.inference_mode(False), torch.enable_grad():
        y = x if own else (x + 0 if x.is_inference() else x.detach()).requires_grad_()
        value = f(y)
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} must return a torch.Tensor, got {type(value).__name__}")
    if not value.requires_grad:
        raise ValueError(_unrelated(name))
    return _At(name, y, value, torch.is_grad_enabled() and (y is x or _has_leaf_besides(value, y)))


def _has_leaf_besides(value: Tensor, y: Tensor) -> bool:
    """Whether the graph of a value ends in a variable other than y, such as a parameter."""
    left, seen = [value.grad_fn], set()
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if getattr(node, "variable", y) is not y:
            return True
        left.extend(parent for parent, _ in node.next_functions)
    return False


def _unrelated(name: str) -> str:
    return (
        f"{name} does not depend on x through differentiable operations, so its derivative would be "
        "0; check for .detach(), torch.no_grad() or .numpy() (a constant can be written c + 0 * x)"
    )


def _pull_back(at: _At, v: Tensor | None, *, batched: bool = False) -> Tensor:
    """Return vᵀ ∂value/∂y, with its own graph on request."""
    value = at.value
    if v is not None and not batched and not v.requires_grad:
        value, v = along(v, value), None
    gradient = torch.autograd.grad(
        value, at.y, v, create_graph=at.graph, retain_graph=True, is_grads_batched=batched,
        allow_unused=True,
    )[0]  # fmt: skip
    if gradient is None:
        raise ValueError(_unrelated(at.name))
    return gradient


def probe(law: Probe, like: Tensor, generator: Generator | None = None) -> Tensor:
    """Draw v with E[v vᵀ] = I: standard normal, ±1, or uniform on the sphere of radius √d.

    References:
        | Sliced Score Matching: A Scalable Approach to Density and Score Estimation (Song et al., 2019)
        | https://arxiv.org/abs/1905.07088
    """
    check_option(law, "probe", Probe)
    check_kind(like, "like", Tensor, "a tensor")
    if law == "rademacher":
        return rand_like(like, generator).lt_(0.5).mul_(-2).add_(1)
    v = randn_like(like, generator)
    if law == "gaussian":
        return v
    if law == "sphere":
        norm = v.flatten(1).norm(dim=1).reshape(-1, *[1] * (v.ndim - 1))
        return v * (v[0].numel() ** 0.5 / norm)
    raise AssertionError(law)


def _chunks(x: Tensor, chunk_size: int | None, entries: int | None = None) -> tuple[Tensor, ...]:
    """Split the coordinates 0 … d − 1 into chunks; `entries` are those of one tangent."""
    if x.numel() == 0:
        raise ValueError(f"x is empty, shape {tuple(x.shape)}: there is nothing to differentiate")
    if chunk_size is None:
        chunk_size = max(1, min(64, CHUNK_ENTRIES // (entries or x.numel())))
    check_count(chunk_size, "chunk_size")
    return torch.arange(x.shape[1:].numel(), device=x.device).split(chunk_size)


def _field_at(s: ScoreFn, x: Tensor) -> _At:
    at = _evaluate(s, x, "the score (a vector field)")
    check_same_shape(at.value, x, at.name)
    return at


def _rows(at: _At, index: Tensor) -> Tensor:
    """Return the rows ∇s_i of the Jacobian for i in `index`, `(k, B, *event)`."""
    units = F.one_hot(index, at.y.shape[1:].numel()).to(at.y).reshape(-1, 1, *at.y.shape[1:])
    units = units.expand(-1, *at.y.shape)
    if len(units) <= SINGLE:
        with torch.inference_mode(False), torch.enable_grad():
            entries = at.value.flatten(1)
            alone = [at._replace(value=entries[:, i].sum()) for i in index.tolist()]
        return torch.stack([_pull_back(each, None) for each in alone])
    try:
        return _pull_back(at, units, batched=True)
    except RuntimeError:  # a derivative in it that PyTorch cannot batch
        return torch.stack([_pull_back(at, v) for v in units])


def _reverse_trace(s: ScoreFn, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Return s(x) and Σ ∂_i s_i over the coordinates in `index`, by reverse differentiation."""
    at = _field_at(s, x)
    places = index.reshape(-1, 1, 1).expand(-1, len(x), 1)
    return at.given, _rows(at, index).flatten(2).gather(2, places).sum((0, 2))


def jacobian_trace(
    s: ScoreFn, x: Float[Tensor, "batch *event"], chunk_size: int | None = None
) -> tuple[Float[Tensor, "batch *event"], Float[Tensor, " batch"]]:
    r"""Return s(x) and the exact divergence tr ∇s(x).

    .. math:: \nabla \cdot s = \sum_{i=1}^d e_i^\top (\nabla s)\, e_i

    The Laplacian of a log-density (a `GradientField`), and the trace of a network that has many
    coordinates or is trained with it, are carried forward (`jets`) if there is a rule for every
    function in it; otherwise d vector-Jacobian products are computed. `chunk_size` coordinates are
    processed at a time. If gradients are needed and all chunks are larger than some hundred
    megabytes (or a chunk size is given), each chunk is computed again in the backward pass, so
    that memory does not grow with d.

    Arguments:
        s: A vector field `(B, *event) -> (B, *event)`.
        x: Where, shape `(B, *event)`.
        chunk_size: Coordinates differentiated together; by default chosen by the size of x.

    Raises:
        ValueError: If s changes the shape, or does not depend on x differentiably.
    """
    check_batch(x)
    check_function(s, "s")
    # carried forward, a tangent has the width of a layer, not that of x
    entries = len(x) * min(x.shape[1:].numel(), 128) if x.ndim == 2 else x.numel()
    parts = _chunks(x, chunk_size, entries)
    many = chunk_size is not None or x.shape[1:].numel() * entries > KEPT_ENTRIES
    again = many and len(parts) > 1 and torch.is_grad_enabled()

    def each(f: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> tuple[list[Tensor], Tensor]:
        values, total = [], torch.zeros((), dtype=x.dtype, device=x.device)
        for k, index in enumerate(parts):
            value, trace = checkpoint(f, x, index, use_reentrant=False) if again else f(x, index)
            if k == 0 or isinstance(s, GradientField):  # a field is the same for every chunk
                values.append(value)
            total = total + trace
        return values, total

    try:
        if isinstance(s, GradientField):
            values, trace = each(lambda y, index: jets.laplacian(s.log_prob, y, index))
            return torch.cat(values).movedim(0, 1).reshape(x.shape), trace
        # a few reverse passes cost less than a forward one, unless they are differentiated again
        if torch.is_grad_enabled() or x.shape[1:].numel() > SINGLE:
            values, trace = each(lambda y, index: jets.partial_trace(s, y, index))
            return values[0], trace
    except jets.Unsupported:
        pass  # and the exception goes: checkpoints of older PyTorch stay open while it is held
    parts = _chunks(x, chunk_size)
    values, trace = each(lambda y, index: _reverse_trace(s, y, index))
    return values[0], trace


def jacobian(s: ScoreFn, x: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch d d"]:
    """Return the Jacobian ∇s at every sample, entry [b, i, j] = ∂s_i/∂x_j."""
    check_batch(x)
    check_function(s, "s")
    at = _field_at(s, x)
    return torch.cat([_rows(at, i).flatten(2) for i in _chunks(x, None)]).movedim(0, 1)


def jacobian_product(s: ScoreFn, x: Tensor, v: Tensor) -> Tensor:
    """Return (∇s)ᵀ v, which for a gradient field is (∇s) v."""
    check_batch(x)
    check_function(s, "s")
    check_same_shape(v, x, "v")
    return _pull_back(_field_at(s, x), v)


def hutchinson_trace(
    s: ScoreFn,
    x: Float[Tensor, "batch *event"],
    probes: Float[Tensor, "n_probes batch *event"],
) -> tuple[Float[Tensor, "batch *event"], Float[Tensor, "n_probes batch"]]:
    r"""Return s(x) and vᵀ(∇s)v for each probe, `(n_probes, B)`.

    .. math:: E[v^\top (\nabla s) v] = \nabla \cdot s \quad \text{if} \quad E[v v^\top] = I

    One vector-Jacobian product for each probe; s itself is evaluated once.

    Arguments:
        s: A vector field `(B, *event) -> (B, *event)`.
        x: Where, shape `(B, *event)`.
        probes: Probes from `probe`, shape `(n_probes, B, *event)`.

    Raises:
        ValueError: If a shape does not fit, or s does not depend on x differentiably.

    References:
        | A Stochastic Estimator of the Trace of the Influence Matrix for Laplacian Smoothing Splines
          (Hutchinson, 1990)
        | https://doi.org/10.1080/03610919008812866
    """
    check_batch(x)
    check_function(s, "s")
    check_batch(probes, name="probes")
    if probes.ndim != x.ndim + 1 or probes.shape[1:] != x.shape or len(probes) == 0:
        raise ValueError(
            f"probes must have shape (n_probes, {', '.join(map(str, x.shape))}), got "
            f"{tuple(probes.shape)}"
        )
    at = _field_at(s, x)
    return at.given, torch.stack([sum_event(v * _pull_back(at, v)) for v in probes])


def slices(
    s: ScoreFn,
    x: Float[Tensor, "batch *event"],
    probes: Float[Tensor, "n_probes batch *event"],
) -> tuple[Float[Tensor, "n_probes batch"], Float[Tensor, " batch"]]:
    r"""Return vᵀ s(x) for each probe, and the mean over probes of vᵀ(∇s)v.

    For a `GradientField` both are derivatives of log p along v, carried forward in one pass if
    `jets` has a rule for every function in it; otherwise computed as in `hutchinson_trace`.
    """
    check_batch(x)
    check_batch(probes, name="probes")
    if isinstance(s, GradientField) and probes.shape[1:] == x.shape:
        try:
            along, total = jets.second_derivatives(s.log_prob, x, probes)
            return along, total / len(probes)
        except jets.Unsupported:
            pass  # in reverse, below
    value, forms = hutchinson_trace(s, x, probes)
    return (probes * value).flatten(2).sum(2), forms.mean(0)
