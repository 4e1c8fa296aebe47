"""The command that describes things: info."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .common import load, print_json


def info(what: str | None = None, *, json: bool = False) -> int:
    """Describe a checkpoint, a data set, or this installation.

    Args:
        what: A checkpoint folder or anything `fit` takes; nothing for the installation.
        json: Print as JSON.
    """
    facts = _installation() if what is None else _describe(what)
    if json:
        print_json(facts)
    else:
        for key, value in facts.items():
            print(f"{key:>16}  {value}")
    return 0


def _installation() -> dict[str, Any]:
    import platform
    from importlib.metadata import version

    import torch

    packages = ("gradlogp", "torch", "numpy", "scipy", "scikit-learn", "safetensors")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU only"
    return {name: version(name) for name in packages} | {
        "python": platform.python_version(), "threads": torch.get_num_threads(), "device": device,
    }  # fmt: skip


def _describe(what: str) -> dict[str, Any]:
    from ...learn import checkpoint as ckpt

    if (Path(what) / "config.json").exists():
        config = ckpt.read_config(what)
        run = ckpt.read_run(what)
        run.pop("history", None)
        return {k: v for k, v in config.items() if k != "extra"} | config["extra"] | run
    found = load(what, quiet=True)
    return {
        "name": found.name, "samples": len(found.x), "event shape": tuple(found.x.shape[1:]),
        "columns": ", ".join(found.columns), "classes": ", ".join(found.classes),
        "mean": float(found.x.mean()), "std": float(found.x.std()), "notes": "; ".join(found.notes),
    }  # fmt: skip
