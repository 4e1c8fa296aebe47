"""Rows in the order of their log-density, the least likely first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from .estimator import TableEstimator


def numbers(x: torch.Tensor, names: Sequence[str]) -> pd.DataFrame:
    """Return samples `(n, *event)` as a frame, entries by their names or numbers."""
    flat = x.flatten(1).numpy()
    return pd.DataFrame(flat, columns=[*(names or map(str, range(flat.shape[1])))])


def ranked(frame: pd.DataFrame, nats: np.ndarray) -> pd.DataFrame:
    """Return rows with the number that each has among these, its log-density and its rank, in order."""
    found = frame.reset_index(drop=True)
    order = nats.argsort(kind="stable")
    found.insert(0, _free(found, "row"), range(1, len(found) + 1))
    found[_free(found, "log_density")] = nats
    found = found.iloc[order]
    found[_free(found, "rank")] = range(1, len(found) + 1)
    return found


def rank(table: TableEstimator, frame: pd.DataFrame, random_state: int) -> pd.DataFrame:
    """Return rows of a table ranked; what has probability 0 has −inf, and the reason in words."""
    frame = table._as_learned(frame)
    why = [
        "; ".join(filter(None, reasons)) for reasons in zip(*table._impossible(frame), strict=True)
    ]
    known = np.array([not reason for reason in why])
    nats = np.full(len(frame), -np.inf)
    if known.any():
        nats[known] = table.score_samples(frame[known], random_state=random_state)
    found = ranked(frame, nats)
    found[_free(found, "why")] = [why[i] for i in found.index]
    found.attrs["form"] = table._form
    return found


def _free(frame: pd.DataFrame, name: str) -> str:
    """Return a name that no column has yet."""
    while name in frame.columns:
        name = f"{name}_"
    return name
