"""Langevin dynamics from the command line: a target, a kernel, draws, diagnostics, a picture."""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from .common import (
    Misuse,
    generator_of,
    positive,
    print_json,
    say,
)

if TYPE_CHECKING:
    import torch

    from ...core import Density, Kernel
    from ...langevin.chain import Chain

KernelName = Literal[
    "ula", "mala", "leimkuhler-matthews", "tamed", "baoab", "obabo", "hmc", "ghmc"
]
FORMATS = (".npz", ".npy", ".nc")
MODULES = {"h5netcdf": ("h5netcdf", "h5py"), "netcdf4": ("netCDF4",)}
"""The engines of xarray that write groups, and the modules that each needs."""


def known() -> dict[str, Callable[[], Any]]:
    """Return the targets that have a name: what makes each."""
    import torch

    from ...distributions import targets as d
    from ...distributions.analytic import Gaussian, GaussianMixture

    return {
        "gaussian": lambda: Gaussian(torch.tensor([0.7, -1.2]), torch.tensor([[1.5, 0.6], [0.6, 0.5]])),
        "mixture": lambda: GaussianMixture([0.3, 0.7], torch.tensor([[-2.0, 0.0], [2.0, 0.0]]), 0.5),
        "banana": d.Banana,
        "funnel": lambda: d.Funnel(5),
        "ring": d.Ring,
        "double-well": lambda: d.DoubleWell(2),
        "many-well": d.ManyWell,
        "log-cosh": lambda: d.LogCosh(2),
        "gumbel": lambda: d.SkewedGumbel(2),
        "logistic": d.LogisticRegression.breast_cancer,
    }  # fmt: skip


def targets(*, json: bool = False) -> int:
    """List the targets that `gradlogp sample --target` knows by name.

    Args:
        json: Print as JSON.
    """
    rows: list[dict[str, Any]] = []
    for name, make in known().items():
        law = make()
        normalizer = getattr(law, "log_normalizer", 0.0)
        rows.append(
            {
                "name": name,
                "shape": tuple(law.event_shape),
                "log_normalizer": normalizer,
                "exact_draws": hasattr(law, "sample"),
                "what": (type(law).__doc__ or "").strip().splitlines()[0].removeprefix("r"),
            }
        )
    if json:
        print_json(rows)
    else:
        for row in rows:
            shape = "×".join(str(n) for n in tuple(row["shape"]))
            what = str(row["what"]).replace(":math:", "").replace("`", "")
            print(f"{row['name']:<12}{shape:>5}  {what}")
    return 0


def sample_target(
    target: str,
    *,
    kernel: KernelName,
    step_size: float | None,
    chains: int,
    steps: int,
    burn_in: int | None,
    thin: int,
    dim: int | None,
    spread: float,
    out: Path | None,
    seed: int,
    json: bool,
    quiet: bool,
) -> int:
    """Sample a density with Langevin dynamics: `gradlogp sample --target` describes the options."""
    import torch

    from ...langevin import run
    from ...show.progress import bar

    for option, value in (("--chains", chains), ("--steps", steps), ("--thin", thin)):
        positive(option, value)
    if out is not None and out.suffix not in FORMATS:
        raise Misuse(f"cannot write {out}: use one of {', '.join(FORMATS)}")
    if out is not None and out.suffix == ".nc" and not (_has("arviz_base") and _netcdf_engine()):
        raise Misuse("a .nc file needs more packages: pip install arviz-base h5netcdf h5py")
    if step_size is not None and not (step_size > 0 and math.isfinite(step_size)):
        raise Misuse(f"--step-size must be positive, got {step_size}")
    if not (spread > 0 and math.isfinite(spread)):
        raise Misuse(f"--spread must be positive and finite, got {spread}")
    burn_in = steps // 2 if burn_in is None else burn_in
    if not 0 <= burn_in < steps or thin > steps - burn_in:
        raise Misuse(
            f"--burn-in {burn_in} and --thin {thin} leave no draw of --steps {steps}; the burn-in must "
            "be at least 0"
        )
    law, shape, decode = _target(target, dim)
    generator = generator_of(seed)
    x = decode(spread * torch.randn(chains, *shape, generator=generator))
    moved, tuned = _kernel(kernel, step_size, law, x, max(50, burn_in // 2), generator)
    say(f"{kernel}, step size {moved.step_size:.4g} ({tuned})", quiet=quiet)  # type: ignore[attr-defined]
    with bar("langevin", quiet=quiet) as update, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        chain = run(moved, law, x, steps, burn_in, thin, generator=generator, progress=update)
    for warning in warned:
        say(f"gradlogp: {warning.message}")
    if not chain.draws.shape[1]:
        raise KeyboardInterrupt("no draw was kept yet, so nothing is written")
    summary = chain.summary()
    if json:
        print_json({"step_size": moved.step_size, "rows": [r._asdict() for r in summary.rows],  # type: ignore[attr-defined]
                    "acceptance": summary.acceptance, "divergences": summary.divergences})  # fmt: skip
    else:
        print(summary)
        _compare(chain, law)
    if out is not None:
        _write(chain, out)
        say(
            f"{out} and {out.with_suffix('.png').name}: {tuple(chain.draws.shape)} draws",
            quiet=quiet,
        )
    if not chain.complete:
        return 130
    return 1 if summary.divergent_chains == chains else 0  # draws of which none moved freely


class _Start(NamedTuple):
    """A target, the shape of its events, and what makes starting points of points around 0."""

    law: Density
    shape: torch.Size
    decode: Callable[[torch.Tensor], torch.Tensor] = lambda z: z


def _target(source: str, dim: int | None) -> _Start:
    """Return a target by its name, from a file, or of a checkpoint."""
    import torch

    from ...distributions.as_target import as_target
    from ...distributions.parameters import parameters_of

    named = known()
    if source in named:
        law = named[source]()
        return _Start(law, law.event_shape)
    path, _, name = source.rpartition(":")
    if path.endswith(".py"):
        if not Path(path).is_file():
            raise Misuse(f"there is no file {path}")
        found = _load(Path(path), name)
        if not hasattr(found, "score") and not callable(found):
            raise Misuse(f"{name} in {path} is neither a function nor a density")
        if parameters_of(found) is not None:
            return _Start(found, found.event_shape)
        shape = getattr(found, "event_shape", None)
        if shape is None:
            if dim is None or dim < 1:
                raise Misuse(f"{name} takes a batch (B, D): give D with --dim")
            shape = [dim]
        score, log_prob = (getattr(found, part, None) for part in ("score", "log_prob"))
        if score is None:
            log_prob = found
        guarded = (None if f is None else _guarded(f, source) for f in (score, log_prob))
        return _Start(as_target(*guarded), torch.Size(shape))
    if (Path(source) / "config.json").exists():
        from ...learn import checkpoint as ckpt
        from ...noise import blurred

        model = ckpt.load(source)
        if model.condition is not None:
            raise Misuse(f"{source} is conditional; sample it without --target, with --class")
        field = blurred(model)
        start = lambda z: model.coordinates.decode(z).to(z)
        return _Start(as_target(score=field.score), model.event_shape, start)
    raise Misuse(
        f"{source!r} is no target: a name of {', '.join(named)}, file.py:function, or a checkpoint"
    )


def _load(path: Path, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    _guarded(spec.loader.exec_module, str(path))(module)
    if not hasattr(module, name):
        raise Misuse(f"{path} has no {name}")
    return getattr(module, name)


def _guarded(function: Callable[..., Any], where: str) -> Callable[..., Any]:
    """Turn whatever a foreign file raises into one readable line."""

    def call(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except Exception as error:
            raise ValueError(f"{where} failed: {type(error).__name__}: {error}") from error

    return call


def _kernel(
    name: str, h: float | None, law: Density, x: torch.Tensor, n: int, g: torch.Generator
) -> tuple[Kernel[Any, Any], str]:
    """Return the kernel and how its step size came about."""
    from functools import partial

    from ...langevin import kernels as k
    from ...langevin.tuning import choose_step

    makers: dict[str, Callable[[float], Any]] = {
        "ula": k.ULA, "mala": k.MALA, "leimkuhler-matthews": k.LeimkuhlerMatthews,
        "tamed": k.TamedULA, "baoab": k.BAOAB, "obabo": k.OBABO,
        "hmc": partial(k.HMC, n_leapfrog=5), "ghmc": k.GHMC,
    }  # fmt: skip
    make = makers[name]
    if h is not None:
        return make(h), "given"
    from ...langevin import warm_up

    kernel = make(0.1)
    if kernel.facts.target_acceptance is not None:
        return warm_up(kernel, law, x, n, generator=g).kernel, "adapted"
    return choose_step(make, law, x, generator=g), "from the curvature at the starting points"


def _compare(chain: Chain, law: Density) -> None:
    """Print the exact mean and deviation where they are known."""
    mean, cov = getattr(law, "mean", None), getattr(law, "cov", None)
    if mean is None or cov is None:
        return
    shown = chain.draws.flatten(2).shape[2]
    mean, sd = mean.flatten().tolist(), cov.diagonal().sqrt().tolist()
    pairs = [f"{m:.4g} ± {s:.4g}" for m, s in zip(mean, sd, strict=True)][: min(shown, 8)]
    print(f"exact means ± standard deviations: {', '.join(pairs)}{', …' if shown > 8 else ''}")


def _write(chain: Chain, out: Path) -> None:
    """Write the draws and a picture of the first coordinates."""
    import numpy as np
    import torch

    from ...show.plots import png, trace

    draws = torch.as_tensor(chain.draws).cpu().numpy()
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".nc":
        chain.to_arviz(tree=True).to_netcdf(out, engine=_netcdf_engine())
    elif out.suffix == ".npy":
        np.save(out, draws)
    else:
        told = {k: v.cpu().numpy() for k, v in chain.info._asdict().items()}
        np.savez(out, draws=draws, **told)
    first = torch.as_tensor(chain.draws).flatten(2)[..., :4]
    out.with_suffix(".png").write_bytes(png(trace(first)))


def _has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _netcdf_engine() -> str | None:
    """Return what xarray is to write groups with, or None where nothing can."""
    return next((name for name, needs in MODULES.items() if all(map(_has, needs))), None)
