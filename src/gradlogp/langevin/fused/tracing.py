r"""The value and score of a user's density as a list of instructions on numbers.

The function is called once, at one point, and each PyTorch operation below differentiation is
translated as it runs, those of the gradient as well. What stands in the memory of a tensor is
known number by number: a reference r ≥ 0 to a number that is computed, or r < 0 to the constant
−r − 1. Views, transposes and writes into a part of a tensor then need no instruction, and copies
(`torch.cat`, indices, padding) are the same operation on references. What `rules` has no entry for
is refused, with its name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from . import operations as op

UNKNOWN = np.iinfo(np.int64).min
"""Reference to a number that no rule has computed."""

MAX_NUMBERS = 2_000_000
"""Numbers that one instruction may read, and constants of a program: beyond, PyTorch is faster."""

MAX_PLACES = 200_000
"""Numbers that a program computes for one chain: 100 MB for a tile."""

LEAVES = Tensor.numpy, Tensor.tolist, Tensor.__array__, Tensor.__dlpack__
"""Methods that hand numbers to Python or NumPy, of which no operation tells."""

Refs = Any
"""References, an integer array of the shape of a tensor."""


class CannotCompile(ValueError):
    """A density cannot be translated, for the reason given."""


class Program(NamedTuple):
    """Instructions `(k, 16)`, tables of references, constants, and where the results are.

    An instruction is: operation, n, R, place of its results, then for each of three operands a
    start, the steps along n and R, and a table (−1 for none, otherwise its first entry).
    """

    code: Any
    tables: Any
    numbers: Any
    ends: Any
    """Where the score and then the value are, `(D + 1, 4)`: addresses as in the code."""
    for_score: int
    """The first so many instructions are those of the score alone."""
    places: int
    size: int
    """Numbers that all instructions compute."""
    calls: int
    """Operations of PyTorch on what depends on x."""


class _Instruction(NamedTuple):
    kind: int
    out: int
    operands: tuple[Refs, ...]
    """Each `(n, R)`."""


class Tracer(TorchDispatchMode):
    """Translates what PyTorch does to tensors that depend on x, `(1, D)`."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.dtype = x.dtype
        self.steps: list[_Instruction] = []
        self.numbers = [0.0]
        self.places = x.numel()
        self.where: dict[Any, int] = {}
        self.memory: dict[int, Refs] = {_storage(x): np.arange(x.numel())}
        self.constants: dict[Any, tuple[Tensor, Refs]] = {}
        self.known: dict[Any, Refs] = {}
        self.conditions: list[Refs] = []  # without which the function raises an error
        self.alive: list[Any] = [x]  # or memory would be used again
        self.refused: CannotCompile | None = None
        self.calls = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from .rules import apply

        kwargs = kwargs or {}
        found = None
        try:
            if torch.Tag.nondeterministic_seeded in func.tags:
                raise CannotCompile("it draws random numbers")
            if any(map(self.depends, tensors((args, kwargs)))):
                self.calls += 1
                found = apply(self, func, args, kwargs)
        except CannotCompile as refused:  # a function may catch it
            self.refused = refused
            raise
        out = func(*args, **kwargs)
        self.alive.append(out)
        if found is not None:
            outs = tensors(out)
            for tensor, refs in zip(outs, found, strict=True):
                self.put(tensor, refs)
        return out

    # ------------------------------------------------------------------ memory

    def put(self, tensor: Tensor, refs: Refs | None) -> None:
        """Note what stands in a tensor; None for what no rule needs."""
        if tensor.dtype not in (self.dtype, torch.bool, torch.int64) and refs is not None:
            raise CannotCompile(f"it computes in {tensor.dtype}, x in {self.dtype}")
        key = _storage(tensor)
        if key not in self.memory:
            n = tensor.untyped_storage().nbytes() // tensor.element_size()
            self.memory[key] = np.full(n, UNKNOWN)
        if refs is not None:
            if np.shape(refs) != tensor.shape:
                raise CannotCompile("one of its operations has a shape that no rule tells")
            _strided(self.memory[key], tensor)[...] = refs

    def __call__(self, value: Any) -> Refs:
        """Return the references of a tensor or number."""
        if not isinstance(value, Tensor):
            return np.array(self.number(float(value)))
        if (kept := self.memory.get(_storage(value))) is not None:
            refs = _strided(kept, value)
            if (refs == UNKNOWN).any():
                raise CannotCompile("it uses what no rule computes")
            return refs
        if value.is_complex():
            raise CannotCompile("it computes with complex numbers")
        return self._constant(value)

    def _constant(self, value: Tensor) -> Refs:
        """Return the references of a tensor that does not depend on x, as it is now."""
        whole = value.untyped_storage().nbytes() // value.element_size() <= 4 * value.numel() + 16
        n = value.untyped_storage().nbytes() // value.element_size()
        base = value.as_strided((n,), (1,), 0) if whole else value
        key = _storage(value), None if whole else (value.storage_offset(), value.shape)
        before, refs = self.constants.get(key, (None, np.empty(0, np.int64)))
        if before is None or not torch.equal(before, base):
            if len(self.numbers) + base.numel() > MAX_NUMBERS:
                raise CannotCompile("it has too many constants")
            numbers = base.flatten().tolist()
            if len(numbers) <= 16 or len(set(numbers)) == 1:
                refs = np.array([self.number(v) for v in numbers], np.int64)
            else:  # in order, so that they need no table
                refs = -1 - np.arange(len(self.numbers), len(self.numbers) + len(numbers))
                self.numbers += map(float, numbers)
            self.constants[key] = base.clone(), refs
        if whole:
            return _strided(refs, value)
        return refs.reshape(value.shape)

    def number(self, value: float) -> int:
        """Return the reference of a constant."""
        key = value if value == value and value != 0 else repr(value)
        if value == 0 and key == "0.0":
            return -1
        if key not in self.where:
            self.numbers.append(float(value))
            self.where[key] = -len(self.numbers)
        return self.where[key]

    def own(self, tensor: Tensor) -> None:
        """Note what stands in the memory of a tensor, of which a part is about to be written."""
        if not self.depends(tensor):
            n = tensor.untyped_storage().nbytes() // tensor.element_size()
            self.memory[_storage(tensor)] = np.array(
                self._constant(tensor.as_strided((n,), (1,), 0))
            )

    def depends(self, tensor: Tensor) -> bool:
        """Return whether a tensor was computed from x."""
        return _storage(tensor) in self.memory

    # ------------------------------------------------------------------ instructions

    def do(self, kind: int, *operands: Refs) -> Refs:
        """Return the results of an operation on numbers; shapes are those of broadcasting."""
        operands = tuple(np.broadcast_arrays(*operands))
        if kind == op.ADD:
            a, b = operands
            return self._partly(kind, operands, [(a == -1, b), (b == -1, a)])
        if kind == op.SUB:
            return self._partly(kind, operands, [(operands[1] == -1, operands[0])])
        if kind in (op.MUL, op.DIV):
            a, b = operands
            one = self.number(1.0)
            cases = [(b == one, a), (a == one, b)]
            return self._partly(kind, operands, cases[:1] if kind == op.DIV else cases)
        return self._emit(kind, operands)

    def _partly(self, kind: int, operands: tuple[Refs, ...], cases: Any) -> Refs:
        """Do an operation only where none of the cases, in which the result is known, holds."""
        out, left = np.full(operands[0].shape, UNKNOWN), np.ones(operands[0].shape, bool)
        for holds, value in cases:
            holds = holds & left
            out[holds], left = value[holds], left & ~holds
        if left.all():
            return self._emit(kind, operands)
        if left.any():
            out[left] = self._emit(kind, tuple(v[left] for v in operands))
        return out

    def _emit(self, kind: int, operands: tuple[Refs, ...]) -> Refs:
        shape = operands[0].shape
        if 0 in shape:
            return operands[0]
        rows = np.stack([v.ravel() for v in operands], 1)
        _, first, back = np.unique(rows, axis=0, return_index=True, return_inverse=True)
        order = np.argsort(first)
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        return self.fill(kind, *rows[first[order]].T[..., None])[rank[back.ravel()]].reshape(shape)

    def fill(self, kind: int, *operands: Refs) -> Refs:
        """Return n results `(n,)` of operands `(n, R)`, over which a reduction goes."""
        n = len(operands[0])
        if kind in (op.MUL, op.DOT) and (operands[0] < 0).all():  # constants come last
            operands = operands[::-1]
        if operands[0].size > MAX_NUMBERS:
            raise CannotCompile("one of its operations reads too many numbers")
        key = kind, n, *(v.tobytes() for v in operands)
        if key not in self.known:
            out = self.places
            self.places += n
            self.steps.append(_Instruction(kind, out, operands))
            self.known[key] = np.arange(out, out + n)
        return self.known[key]

    def reduce(self, kind: int, refs: Refs, axes: tuple[int, ...], keep: bool = False) -> Refs:
        """Return a reduction over axes."""
        axes = tuple(a % refs.ndim for a in axes) if axes else tuple(range(refs.ndim))
        rest = [a for a in range(refs.ndim) if a not in axes]
        lines = refs.transpose(*rest, *axes).reshape(
            int(np.prod([refs.shape[a] for a in rest])), -1
        )
        shape = [refs.shape[a] for a in rest]
        if keep:
            shape = [1 if a in axes else n for a, n in enumerate(refs.shape)]
        if lines.shape[1] == 0:
            raise CannotCompile("it reduces over nothing")
        found = lines[:, 0] if lines.shape[1] == 1 else self.fill(kind, lines)
        return found.reshape(shape)

    # ------------------------------------------------------------------ the program

    def program(self, score: Refs, value: Refs) -> Program:
        """Return the instructions that lead to the results, those of the score first."""
        if self.conditions:
            fails = self.do(op.SUB, np.array(self.number(1.0)), np.concatenate(self.conditions))
            holds = self.do(op.EQ, self.reduce(op.SUM, fails, ()), np.array(-1))
            nothing = np.array(self.number(float("nan")))
            score, value = (self.do(op.WHERE, holds, v, nothing) for v in (score, value))
        first = self._needed(score)
        done = {step.out for step in first}
        rest = [step for step in self._needed(value) if step.out not in done]
        steps = first + rest
        moved = np.arange(self.places)  # x stays where it is
        places, start = len(np.ravel(score)), {}
        for step in steps:
            n = len(step.operands[0])
            moved[step.out : step.out + n] = np.arange(places, places + n)
            start[step.out] = places
            places += n
        if places > MAX_PLACES:
            raise CannotCompile("it computes too many numbers")
        new = lambda refs: np.where(refs < 0, refs, moved[np.maximum(refs, 0)])
        tables, known, code = [np.zeros(1, np.int64)], dict[bytes, int](), []
        for step in steps:
            line = [step.kind, *step.operands[0].shape, start[step.out]]
            for refs in step.operands:
                line += _address(new(refs), tables, known)
            code.append(line + [0] * (16 - len(line)))
        results = new(np.append(score, value))
        ends = np.stack([results, *[np.zeros_like(results)] * 2, np.full_like(results, -1)], 1)
        return Program(
            np.array(code, np.int64).reshape(-1, 16), np.concatenate(tables),
            np.array(self.numbers), ends, len(first), places,
            sum(step.operands[0].size for step in steps), self.calls,
        )  # fmt: skip

    def _needed(self, ends: Refs) -> list[_Instruction]:
        live = np.zeros(self.places, bool)
        live[ends[ends >= 0]] = True
        kept = []
        for step in reversed(self.steps):
            if live[step.out : step.out + len(step.operands[0])].any():
                kept.append(step)
                for refs in step.operands:
                    live[refs[refs >= 0]] = True
        return kept[::-1]


class _Numbers(TorchFunctionMode):
    """Refuses what hands numbers that depend on x to Python or NumPy."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in LEAVES and self.tracer.depends(args[0]):
            self.tracer.refused = CannotCompile("it looks at values of x to decide what to do")
            raise self.tracer.refused
        return func(*args, **(kwargs or {}))


def traced(f: Callable[[Tensor], tuple[Tensor, ...]], x: Tensor) -> Program:
    """Return value and score at one point as a program.

    Arguments:
        f: Returns value `(1,)` and score `(1, D)`, or the score alone.
        x: A point, `(1, D)`.

    Raises:
        CannotCompile: With the reason.
    """
    tracer = Tracer(x)
    try:
        with _Numbers(tracer), tracer:
            *value, score = f(x)
    except CannotCompile:
        raise
    except Exception as error:  # PyTorch may run it: with more points than one, say
        raise CannotCompile(
            f"at a single point it raises {type(error).__name__}: {error}"
        ) from error
    if tracer.refused is not None:
        raise tracer.refused
    return tracer.program(tracer(score), tracer(value[0]) if value else np.array([-1]))


def tensors(value: Any) -> list[Tensor]:
    """Return the tensors among arguments or results."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for part in value for t in tensors(part)] if isinstance(value, list | tuple) else []


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _strided(memory: Refs, tensor: Tensor) -> Refs:
    """Return the entries of a memory that a tensor has."""
    strides = [8 * s for s in tensor.stride()]
    part = memory[tensor.storage_offset() :]
    return np.lib.stride_tricks.as_strided(part, tensor.shape, strides)


def _address(refs: Refs, tables: list[Any], known: dict[bytes, int]) -> list[int]:
    """Return start, steps and table of references `(n, R)`."""
    start = int(refs[0, 0])
    down = int(refs[1, 0]) - start if len(refs) > 1 else 0
    right = int(refs[0, 1]) - start if refs.shape[1] > 1 else 0
    n, R = refs.shape
    if (refs == start + down * np.arange(n)[:, None] + right * np.arange(R)).all():
        return [start, down, right, -1]
    key = refs.tobytes()
    if key not in known:
        known[key] = sum(map(len, tables))
        tables.append(refs.ravel())
    return [0, R, 1, known[key]]
