r"""A log-density and its gradient as a list of operations, recorded once and then repeated.

With few chains, most of the time of a gradient is not arithmetic but Python and the construction
and traversal of a graph, three quarters of the time on a small posterior. The operations of both
directions are recorded below differentiation. Those that do not depend on x are done once, those
that repeat another one or multiply by 1 are omitted, and the rest is passed to an interpreter; for
the score alone, without those that only the value needs. The results have the same bits: each
recording is compared with the function itself before it is used, and from time to time afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .reverse import GradientField

FIRST, COMPARED = 8, 8
"""Calls with one shape before a recording is made, and those on which it is then only compared."""

EVERY = 256
"""Calls between two comparisons of a recording in use."""

MOST = 8
"""Shapes for which there are recordings."""

Both = tuple[Tensor, Tensor]

Play = Callable[[Tensor, bool], tuple[Tensor, ...]]
"""Repeats a recording at x: value and score, or the score alone."""


class Recorded(GradientField):
    """A gradient field whose operations are recorded, once for each shape of x, and repeated.

    A function is not recorded if it looks at values of x to decide what to do, draws random
    numbers, or writes into tensors of others: it is called as usual. So is every function if
    gradients of gradients are needed, and at points where a repetition fails.

    Arguments:
        f: The log-density, or energy.
        sign: 1, or −1 for an energy.

    Raises:
        TypeError: When called, if the values of a function have changed, so that it depends on
            something besides x. This is not a `ValueError`, which would count as a proposal
            outside the support.
    """

    def __init__(self, f: Callable[[Tensor], Tensor], sign: float = 1.0) -> None:
        super().__init__(f, sign)
        self._tapes: dict[Any, _Tape] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """Return the score, shape of x."""
        return self._asked(x, super().__call__, True)[-1]

    def log_prob_and_score(self, x: Tensor) -> Both:
        """Return log p(x), `(B,)`, and its score from one evaluation."""
        value, score = self._asked(x, super().log_prob_and_score, False)
        return value, score

    def _asked(self, x: Tensor, plain: Callable[[Tensor], Any], alone: bool) -> tuple[Tensor, ...]:
        """Return value and score at x, or the score alone."""
        if not (
            torch.is_grad_enabled()
            or x.requires_grad
            or x.device.type != "cpu"
            or x.is_inference()
            or torch._C._functorch.is_functorch_wrapped_tensor(x)
        ):
            key = x.shape, x.stride(), x.dtype  # views depend on how x lies in memory
            tape = self._tapes.get(key)
            if tape is None and len(self._tapes) < MOST:
                tape = self._tapes[key] = _Tape()
            if tape is not None:
                return tape.call(x, super().log_prob_and_score, alone)
        found = plain(x)
        return (found,) if alone else found


class _Tape:
    """What has been recorded for one shape of x, and how often it was requested."""

    def __init__(self) -> None:
        self.calls = 0
        self.play: Play | None = None

    def call(self, x: Tensor, both: Callable[[Tensor], Both], alone: bool) -> tuple[Tensor, ...]:
        """Return value and score at x: first from the function, later from the recording.

        If only the score is requested, only the score is repeated.
        """
        self.calls += 1
        n = self.calls - FIRST
        if n == 0:
            found, self.play = recording(both, x)
            return found if self.play is None else both(x)
        if n < 0 or self.play is None:
            return both(x)
        used = n > COMPARED and n % EVERY
        try:
            if used:
                return self.play(x, alone)
            played = *self.play(x, False), *self.play(x, True)
        except RuntimeError:  # a factorisation, say: the function has the message of PyTorch
            return both(x)
        found = both(x)
        expected = *found, found[1]
        if not all(map(_same, played, expected)):
            self.play = None
            if n > COMPARED and not all(map(_close, played, expected)):
                raise TypeError(
                    "the log-density changed during the run: at one point it gives different "
                    "numbers from "
                    "the operations recorded earlier; it must depend on x alone, through PyTorch "
                    "operations, not through .tolist(), .numpy() or variables that change"
                )
        return found


def _same(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors have the same numbers, or both NaN."""
    return torch.equal(a, b) or bool(((a == b) | (a.isnan() & b.isnan())).all())


def _close(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors are the same but for rounding."""
    most = torch.finfo(a.dtype).eps ** 0.5
    size = float(torch.where(torch.isfinite(b), b.abs(), 0.0).max())
    return torch.allclose(a, b, most, most * size, equal_nan=True)


# ---------------------------------------------------------------------------- recording


class _Slot(NamedTuple):
    """Stands for a tensor: the input 0, what came of an operation, or one from outside."""

    place: int


class _Call(NamedTuple):
    """A function, its arguments, and what it returned, or the slots of the tensors in that."""

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any


class _Unfit(Exception):
    """The operations cannot be repeated at another x."""


SHAPE_ONLY = frozenset(
    f"aten.{name}.default"
    for name in ("ones_like", "zeros_like", "full_like", "new_ones", "new_zeros", "new_full")
)
"""Operations on a tensor of which only shape and kind matter."""

BY_ONE = torch.ops.aten.pow.Tensor_Scalar, torch.ops.aten.mul.Tensor, torch.ops.aten.mul.Scalar
"""Operations that change nothing where their second argument is 1."""

CHECKS = torch.ops.aten._linalg_check_errors.default
"""What raises where a factorisation fails; an interpreter leaves it out, as it returns nothing."""


class _Recorder(TorchDispatchMode):
    """Keeps all operations below differentiation, with the tensors themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[_Call] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or the compiler, a second of imports, is loaded to be kept out

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        self.calls.append(_Call(func, args, kwargs, out))
        return out


def recording(both: Callable[[Tensor], Both], x: Tensor) -> tuple[Both, Play | None]:
    """Return value and score at x, and a function that repeats them at other points, or None.

    A few derivatives have a different formula when they are recorded, and a different rounding.
    """
    with _Recorder() as recorder:
        found = both(x)
    try:
        program = _Program(recorder.calls, x)
        ends = [program.slot(t) for t in found]
        whole, part = program.interpreter(ends, x), program.interpreter(ends[1:], x)
    except _Unfit:
        return found, None
    return found, lambda x, alone: part(x) if alone else whole(x)


class _Program:
    """Calls in order, between numbered places.

    If a call writes into a tensor, all calls are repeated as they were; otherwise only those that
    depend on x, each once.
    """

    def __init__(self, calls: list[_Call], x: Tensor) -> None:
        self.places = {id(x): 0}
        self.outside: list[tuple[int, Tensor]] = []
        self.n, self.steps = 1, list[_Call]()
        self.writes = writes = any(call.function._schema.is_mutable for call in calls)
        known = dict[str, list[int]]()  # places of what came of a call
        moving, made = {id(x)}, set[int]()  # what depends on x, and all that calls have made
        for call in calls:
            function, args, kwargs, out = call
            ins, outs = _tensors((args, kwargs)), _tensors(out)
            follows = writes or any(id(t) in moving for t in ins)
            self._check(call, outs, follows, made)
            made.update(map(id, outs))
            if not follows or (not writes and str(function) in SHAPE_ONLY):
                continue  # the same for every x: comes from outside where it is used
            moving.update(map(id, outs))
            if not writes and _is_identity(function, args, out):
                self.places[id(out)] = self.slot(args[0]).place
                continue
            args, kwargs = _filled((args, kwargs), self.slot)
            if not writes and (again := known.get(key := repr((function, args, kwargs)))):
                self.places.update(zip(map(id, outs), again, strict=True))
                continue
            places = [self._place(t) for t in outs]
            if not writes:
                known[key] = places
            self.steps.append(_Call(function, args, kwargs, places))

    def _check(self, call: _Call, outs: list[Tensor], follows: bool, made: set[int]) -> None:
        """Raise `_Unfit` for a call that is not determined by its tensors, or continues in Python."""
        function, tags = call.function, call.function.tags
        if torch.Tag.nondeterministic_seeded in tags:
            raise _Unfit
        goes_on = not outs and function is not CHECKS
        if follows and (goes_on or torch.Tag.dynamic_output_shape in tags):
            raise _Unfit
        if function._schema.is_mutable and not (
            _is_in_place(function)
            and isinstance(call.args[0], Tensor)
            and id(call.args[0]) in made
        ):
            raise _Unfit

    def _place(self, tensor: Tensor) -> int:
        """Return the place of a tensor, a new one for one that is new."""
        if id(tensor) not in self.places:
            self.places[id(tensor)], self.n = self.n, self.n + 1
        return self.places[id(tensor)]

    def slot(self, tensor: Tensor) -> _Slot:
        """Return where a tensor is; one that no step makes comes from outside."""
        if id(tensor) not in self.places:
            self.outside.append((self._place(tensor), tensor.detach()))
        return _Slot(self._place(tensor))

    def _needed(self, ends: list[_Slot]) -> list[_Call]:
        """Return the steps that lead to the ends, and those that check something."""
        if self.writes:
            return self.steps
        live, kept = {end.place for end in ends}, list[_Call]()
        for step in reversed(self.steps):
            if step.function is CHECKS or not live.isdisjoint(step.out):
                live.update(slot.place for slot in _slots((step.args, step.kwargs)))
                kept.append(step)
        return kept[::-1]

    def interpreter(self, ends: list[_Slot], x: Tensor) -> Callable[[Tensor], tuple[Tensor, ...]]:
        """Return a compiled function of x that returns the final values.

        Raises:
            _Unfit: If no final value depends on x, or PyTorch cannot compile the function.
        """
        where, given = [place for place, _ in self.outside], [t for _, t in self.outside]
        if any(end.place in (0, *where) for end in ends):
            raise _Unfit
        steps, n = self._needed(ends), len(ends)

        def play(x: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
            values: dict[int, Tensor] = {0: x, **dict(zip(where, given, strict=True))}
            failed = []
            for function, args, kwargs, out in steps:
                args, kwargs = _filled((args, kwargs), lambda slot: values[slot.place])
                if function is CHECKS:
                    failed.append(args[0].any())
                else:
                    values.update(zip(out, _tensors(function(*args, **kwargs)), strict=True))
            return *(values[end.place] for end in ends), *failed

        try:
            with torch.no_grad():
                graph, _ = torch._C._create_graph_by_tracing(
                    play, (x, *given), lambda _: "", True, False, None, []
                )
            # `torch.jit.trace` would keep every function as long as the process lives
            compiled: Any = torch._C._create_function_from_graph("play", graph)
        except (AttributeError, NotImplementedError, RuntimeError, TypeError):
            raise _Unfit from None

        def played(x: Tensor) -> tuple[Tensor, ...]:
            # optimising costs more than it gains
            with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
                found = compiled(x, *given)
            found = found if isinstance(found, tuple) else (found,)
            if any(map(bool, found[n:])):
                raise RuntimeError("a factorisation failed")
            return found[:n]

        return played


def _is_in_place(function: Any) -> bool:
    """Return whether a function writes into its first argument, and into no other."""
    first, *others = (a.alias_info for a in function._schema.arguments)
    return bool(first and first.is_write) and not any(a and a.is_write for a in others)


def _is_identity(function: Any, args: Any, out: Any) -> bool:
    """Whether a call returns its first argument: also x¹, from the derivative of x², and 1 · x."""
    if function in BY_ONE:
        alike = out.dtype == args[0].dtype and out.stride() == args[0].stride()
        return not isinstance(args[1], Tensor) and bool(args[1] == 1) and alike
    return function is torch.ops.aten.detach.default


def _tensors(value: Any) -> list[Tensor]:
    """Return the tensors among arguments or results.

    Raises:
        _Unfit: For a generator of random numbers.
    """
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, torch.Generator):
        raise _Unfit
    if isinstance(value, dict):
        value = list(value.values())
    return [t for part in value for t in _tensors(part)] if isinstance(value, list | tuple) else []


def _slots(value: Any) -> list[_Slot]:
    """Return the slots among arguments."""
    if isinstance(value, _Slot):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [s for part in value for s in _slots(part)] if isinstance(value, list | tuple) else []


def _filled(value: Any, change: Callable[[Any], Any]) -> Any:
    """Return arguments in which tensors, or the slots in their place, are changed."""
    if isinstance(value, Tensor | _Slot):
        return change(value)
    if isinstance(value, list | tuple):
        return type(value)(_filled(part, change) for part in value)
    if isinstance(value, dict):
        return {name: _filled(part, change) for name, part in value.items()}
    return value
