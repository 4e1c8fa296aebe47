"""Chunks of chains: where they begin or go on, what of them is saved, which process moves them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...core import (
    Density,
    Generator,
    Kernel,
    NoiseSource,
    Processes,
    Streams,
    block_of,
    chunks,
)
from ..chain import Chain
from ..kernels import started

VERSION = 2
"""Of what is saved of a run."""

RESUME_KEYS = {"version", "state", "noise", "device", "since"}
"""What is saved of a run; `tuned` if it tuned its kernel, `engine` if that was not PyTorch."""


class Part(NamedTuple):
    """A chunk of chains: where they stand among all, their noise, and their state."""

    where: slice
    noise: NoiseSource
    state: Any
    streams: Streams | None
    """The noise, if it is the run's own: only that can be saved."""


def check_saved(
    resume: Chain | Mapping[str, Any], x0: Tensor | None, generator: Generator | None
) -> Mapping[str, Any]:
    """Return the saved state of a run, if it can be continued.

    Raises:
        ValueError: If it is not such a state, or if starting points or noise are passed too.
    """
    saved = resume.resume if isinstance(resume, Chain) else resume
    if not isinstance(saved, Mapping) or saved.keys() - {"tuned", "engine"} != RESUME_KEYS:
        raise ValueError("resume must be a Chain from gradlogp.run, or its .resume")
    if saved["version"] != VERSION:
        raise ValueError(
            f"resume has version {saved['version']}, but this library reads {VERSION}, whose "
            "noise is drawn differently; start from x0=resume['state']['x']"
        )
    if x0 is not None:
        raise ValueError("pass x0= or resume=, not both: a resumed run starts where it ended")
    if saved["noise"] is not None and generator is not None:
        raise ValueError(
            "omit generator= with resume=, which continues its own noise; for different noise "
            "start from x0=chain.state.x"
        )
    if saved["noise"] is None and not isinstance(generator, NoiseSource):
        raise ValueError("that run used your own noise source: pass it as generator=")
    if saved["noise"] is not None and saved["device"] != saved["state"]["x"].device.type:
        raise ValueError(
            f"the noise is that of a {saved['device']} device but the chains are on "
            f"{saved['state']['x'].device}; load them with map_location={saved['device']!r}"
        )
    return saved


def begin(
    kernel: Kernel[Any, Any],
    target: Density,
    x0: Tensor,
    saved: Mapping[str, Any] | None,
    generator: Generator | None,
    chunk_size: int | None,
) -> list[Part]:
    """Return the chunks, at their start or in their saved state.

    Raises:
        ValueError: If the saved state belongs to a different kernel.
    """
    parts: list[Part] = []
    if saved is None:
        for where, noise in chunks(x0, chunk_size, generator):
            state = started(kernel, x0[where], target, noise)
            parts.append(Part(where, noise, state, _own(noise, generator)))
        return parts
    fields = saved["state"]
    if not isinstance(generator, NoiseSource):
        generator = torch.Generator()  # the seed is not used
    for where, noise in chunks(x0, chunk_size, generator):
        streams = _own(noise, generator)
        if streams is not None:
            streams.set_state(saved["noise"][streams.blocks].cpu())
        part = {name: value[where] for name, value in fields.items()}
        state = check_state(kernel, kernel.init(x0[where], target), part)
        parts.append(Part(where, noise, state, streams))
    return parts


def check_state(kernel: Any, found: Any, fields: Mapping[str, Tensor]) -> Any:
    """Return a saved state, of the type of the one found at its points.

    Raises:
        ValueError: If it is that of a different kernel or target.
    """
    if found._fields != tuple(fields):
        raise ValueError(
            f"resume holds a state of {tuple(fields)}, but {type(kernel).__name__} has "
            f"one of {found._fields}: continue with the kernel of that run"
        )
    state = type(found)(**fields)
    check_target(found, state)
    return state


def check_target(found: Any, saved: Any) -> None:
    """Raise `ValueError` where log-density or score of the target are not those that were saved."""
    for name, what in (("log_prob", "log-density"), ("score", "score")):
        if name not in saved._fields:
            continue
        new, old = getattr(found, name).double(), getattr(saved, name).double()
        size = old.abs().amax() + new.abs().amax()
        if float((new - old).abs().max()) > 1e-3 * float(size):
            raise ValueError(
                f"resume holds a different target: its {what} differs at the saved points by "
                f"{float((new - old).abs().max()):.3g}; continue with that target, or start from "
                "x0=chain.state.x"
            )


def _own(noise: NoiseSource, generator: Generator | None) -> Streams | None:
    return noise if noise is not generator and isinstance(noise, Streams) else None


def noise_of(parts: list[Part]) -> Tensor | None:
    """Return where the noise of every block of chains stands; None for a caller's noise."""
    blocks: dict[int, Tensor] = {}
    for part in parts:
        if part.streams is None:
            return None
        blocks |= dict(enumerate(part.streams.get_state(), part.streams.blocks.start))
    return torch.stack([blocks[i] for i in sorted(blocks)])


def merge(parts: list[Part]) -> Any:
    """Return the state of all chains."""
    fields = zip(*(part.state for part in parts), strict=True)
    return type(parts[0].state)(*map(torch.cat, fields))


def narrowed(parts: list[Part], mine: list[slice]) -> list[Part]:
    """Return the chains of these chunks, numbered from 0, with state and noise as they stand."""
    state, noise = merge(parts), noise_of(parts)
    assert noise is not None  # no source of a caller's own is divided
    total, block = len(state.x), block_of(state.x.shape[1:], state.x.device)
    found = []
    for rows in mine:
        streams = Streams(0, rows.start, rows.stop, total, state.x.device, block)
        streams.set_state(noise[streams.blocks])
        where = slice(rows.start - mine[0].start, rows.stop - mine[0].start)
        found.append(Part(where, streams, type(state)(*(v[rows] for v in state)), streams))
    return found


def gathered(go: Callable[[], tuple[Chain, list[Part]]], processes: Processes) -> Chain:
    """Return the chains of all processes; `go` runs those of this one, and says where they end."""
    made: list[Chain] = []

    def work() -> tuple[list[Tensor], tuple[Any, ...]]:
        chain, parts = go()
        made.append(chain)
        streams = parts[0].streams
        assert streams is not None
        assert chain.resume is not None
        noise = dict(enumerate(chain.resume["noise"], streams.blocks.start))
        device = chain.state[0].device  # also of numbers of steps, as a group of GPUs needs it
        fields = [chain.draws, *chain.info, *(v.to(device) for v in chain.state)]
        fields += [] if chain.divergences is None else [chain.divergences]
        return fields, (noise, dict(chain.failures), chain.complete)

    (draws, *joined), rests = processes.gather(work)
    (chain,) = made
    n = len(chain.info)
    info, state = (
        type(chain.info)(*joined[:n]),
        type(chain.state)(*joined[n : n + len(chain.state)]),
    )
    noise: dict[int, Tensor] = {}
    failures = Counter[str]()
    for blocks, failed, _ in rests:
        noise |= blocks
        failures.update(failed)
    resume = {"state": state._asdict(), "noise": torch.stack([noise[i] for i in sorted(noise)])}
    return dataclasses.replace(
        chain, draws=draws, info=info, state=state, resume={**(chain.resume or {}), **resume},
        failures=dict(failures), divergences=None if chain.divergences is None else joined[-1],
        complete=all(complete for *_, complete in rests),
    )  # fmt: skip
