"""Chains divided among processes: each moves its own, with the same noise as in a single process."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...core import Processes, Streams, block_of
from ..chain import Chain
from .resume import Part, merge, noise_of


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
        fields = [chain.draws, *chain.info, *chain.state]
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
