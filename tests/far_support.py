"""Another device, played on the host: what a step of ours makes it wait for can be counted anywhere.

A `Far` tensor says that it is on a device and holds its numbers on the host. Operations take tensors
of that device and single numbers of the host, as those of a GPU do, and refuse anything else.
"""

from __future__ import annotations

import traceback
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

LATE: list[tuple[Tensor, Tensor]] = []
"""What was copied to the host without a wait and has not arrived, and its numbers."""


def arrive() -> None:
    """Let all copies to the host arrive."""
    for out, numbers in LATE:
        out.copy_(numbers)
    LATE.clear()


DEVICE = torch.device("lazy")
"""A device that PyTorch knows by name and never asks for a driver."""

COPIES = ("aten._to_copy.default", "aten.copy_.default")
READS = ("aten._local_scalar_dense.default", "aten.equal.default", "aten.nonzero.default")


class Far(Tensor):
    """A tensor that says it is elsewhere."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Far:
        far = Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(),
            dtype=held.dtype, device=DEVICE,
        )  # fmt: skip
        far.held = held
        return far

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Far({self.held!r})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise AssertionError(f"{func} of a far tensor outside of `Elsewhere`")


def far(x: Tensor) -> Tensor:
    """Return a tensor as one of that device."""
    return Far(x.detach().clone())


class Elsewhere(TorchDispatchMode):
    """Plays the device, and counts by their places what makes the host wait for it.

    A copy to the host that says non_blocking holds NaN until `arrive` is called.

    Attributes:
        waits: Numbers read on the host, and copies from or to it that do not say non_blocking.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name, flat = (
            str(func),
            [a for a in tree_flatten((args, kwargs))[0] if isinstance(a, Tensor)],
        )
        away = [isinstance(a, Far) for a in flat]
        device = kwargs.get("device")
        made = torch.device(device).type == DEVICE.type if device is not None else any(away)
        if name in READS and any(away):
            self._note("a number is read")
        elif name in COPIES:
            source = flat[-1] if name == COPIES[1] else flat[0]
            target = isinstance(flat[0], Far) if name == COPIES[1] else made
            if isinstance(source, Far) != target and not kwargs.get("non_blocking"):
                self._note("a copy from the device" if isinstance(source, Far) else "a copy to it")
        elif (
            any(away)
            and "_foreach" not in name
            and not all(f or a.ndim == 0 for f, a in zip(away, flat, strict=True))
        ):
            raise RuntimeError(f"{name}: tensors are on two devices")
        if device is not None:
            kwargs["device"] = torch.device("cpu")
        plain = lambda a: a.held if isinstance(a, Far) else a
        out = func(*tree_map(plain, args), **tree_map(plain, kwargs))
        if name.split(".")[1].endswith("_") and flat:  # in place: what was given comes back
            return None if out is None else args[0]
        if name == COPIES[0] and away[0] and not made and out.is_floating_point():
            if kwargs.get("non_blocking"):
                LATE.append((out, out.clone()))
                out.fill_(torch.nan)
        wrap = lambda a: Far(a) if made and isinstance(a, Tensor) else a
        return tree_map(wrap, out)

    def _note(self, what: str) -> None:
        ours = [f for f in traceback.extract_stack() if "/gradlogp/" in f.filename]
        places = [f"{f.filename.rpartition('/gradlogp/')[2]}:{f.lineno}" for f in ours[:-4:-1]]
        self.waits[f"{what} at {' < '.join(places)}"] += 1
