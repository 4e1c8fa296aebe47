"""A density from the command line: draws, whether they can be trusted, a picture."""

from __future__ import annotations

import importlib.util
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from .common import (
    Misuse,
    claim_output,
    generator_of,
    is_checkpoint,
    positive,
    print_json,
    say,
)

if TYPE_CHECKING:
    import torch

    from ...core import Density, Update
    from ...langevin.chain import Chain

KernelName = Literal[
    "ula", "mala", "leimkuhler-matthews", "tamed", "baoab", "obabo", "hmc", "ghmc", "nuts", "mclmc",
    "adjusted-mclmc",
]  # fmt: skip
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
    draws: int,
    warmup: int,
    chains: int,
    kernel: KernelName | None,
    step_size: float | None,
    dim: int | None,
    spread: float | None,
    out: Path | None,
    force: bool,
    seed: int,
    json: bool,
    quiet: bool,
) -> int:
    """Sample a density: `gradlogp sample --target` describes the options."""
    from ...distributions.as_target import has_log_prob
    from ...show.progress import bar

    for option, value in (("--draws", draws), ("--chains", chains)):
        positive(option, value)
    if warmup < 0:
        raise Misuse(f"--warmup must be at least 0, got {warmup}")
    if out is not None and out.suffix not in FORMATS:
        raise Misuse(f"cannot write {out}: use one of {', '.join(FORMATS)}")
    if out is not None and out.suffix == ".nc" and not (_has("arviz_base") and _netcdf_engine()):
        raise Misuse("a .nc file needs more packages: pip install arviz-base h5netcdf h5py")
    claim_output(out, None if out is None else out.with_suffix(".png"), force=force)
    if step_size is not None and kernel is None:
        raise Misuse("--step-size needs --kernel: without it, both are chosen for you")
    for option, size in (("--step-size", step_size), ("--spread", spread)):
        if size is not None and not (size > 0 and math.isfinite(size)):
            raise Misuse(f"{option} must be positive and finite, got {size}")
    with doubles():
        start = _target(target, dim)
        if spread is not None and step_size is None and has_log_prob(start.law):
            raise Misuse(
                "--spread is for a checkpoint, or with --kernel and --step-size: the log-density of "
                f"{target} determines where to start"
            )
        with (
            bar("langevin", quiet=quiet) as update,
            warnings.catch_warnings(record=True) as caught,
        ):
            warnings.simplefilter("always")
            chain = _chain(
                start, draws, warmup, chains, kernel, step_size, spread or 1.0,
                generator_of(seed), update,
            )  # fmt: skip
        for warning in caught:
            say(f"gradlogp: {warning.message}")
        if not chain.draws.shape[1]:
            raise KeyboardInterrupt("no draw was kept yet, so nothing was written")
        if out is not None:
            _write(chain, start.law, out)
            shape = tuple(chain.draws.shape)
            say(f"{out} and {out.with_suffix('.png').name}: {shape} draws", quiet=quiet)
        _report(chain, start.law, json=json)
    if not chain.complete:
        return 130
    return 0 if chain.verdict.ok else 1


@contextmanager
def doubles() -> Iterator[None]:
    """Compute in float64: tensors that a file makes have the dtype of the chains."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class _Start(NamedTuple):
    """A target, the shape of its events, and what makes starting points of points around 0."""

    law: Density
    shape: torch.Size
    decode: Callable[[torch.Tensor], torch.Tensor] = lambda z: z


class _Foreign:
    """A density of a file: whatever it raises is one readable line."""

    def __init__(self, law: Any, where: str, shape: torch.Size) -> None:
        self.law, self.where, self.event_shape = law, where, shape

    def __getattr__(self, name: str) -> Any:
        return getattr(self.law, name)

    def log_prob(self, x: torch.Tensor) -> torch.Tensor:
        """Return log p(x) + const, `(B,)`."""
        return _guarded(self.law.log_prob, self.where)(x)

    def score(self, x: torch.Tensor) -> torch.Tensor:
        """Return the score, shape of x."""
        return _guarded(self.law.score, self.where)(x)

    def log_prob_and_score(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return both, from one evaluation where the density can do that."""
        from ...langevin.kernels.steps import evaluated

        return _guarded(evaluated, self.where)(x, self.law)


def _target(source: str, dim: int | None) -> _Start:
    """Return a target by its name, from a file, or of a checkpoint; --dim must not contradict it."""
    named, (path, _, name) = known(), source.rpartition(":")
    if source in named:
        law = named[source]()
        start = _Start(law, law.event_shape)
    elif path.endswith(".py"):
        start = of_file(Path(path), name, dim)
    elif is_checkpoint(source):
        start = _of_checkpoint(source)
    else:
        from ...core import nearest

        raise Misuse(
            f"{source!r} is not a target{nearest(source, list(named))}; or give file.py:function, or a "
            "checkpoint"
        )
    if dim is not None and tuple(start.shape) != (dim,):
        raise Misuse(f"{source} has events of shape {tuple(start.shape)}: drop --dim {dim}")
    return start


def of_file(path: Path, name: str, dim: int | None) -> _Start:
    """Return a density, or a function as one."""
    import torch

    from ...distributions.as_target import as_target

    if not path.is_file():
        raise Misuse(f"there is no file {path}")
    found = _load(path, name)
    if not hasattr(found, "score") and not callable(found):
        raise Misuse(f"{name} in {path} is neither a function nor a density")
    shape = getattr(found, "event_shape", None)
    if shape is None:
        if dim is None:
            raise Misuse(
                f"{name} takes a batch (B, D): state D with --dim, or with as_target(..., "
                "event_shape=) or parameters= in the file"
            )
        positive("--dim", dim)
        shape = torch.Size([dim])
    shape = torch.Size(shape)
    law = found
    if not hasattr(found, "score"):
        law = as_target(log_prob=found)
    elif not callable(getattr(found, "log_prob", None)):
        law = as_target(score=found.score)
    return _Start(_Foreign(law, f"{path}:{name}", shape), shape)


def _of_checkpoint(source: str) -> _Start:
    """Return the score of a checkpoint at its lowest noise level."""
    from ...distributions.as_target import as_target
    from ...learn import checkpoint as ckpt
    from ...noise import blurred
    from .tables import refuse_table

    refuse_table(source)
    model = ckpt.load(source)
    if model.condition is not None:
        how = "class" if isinstance(model.condition.kind, int) else "given"
        raise Misuse(f"{source} is conditional; sample it without --target, with --{how}")
    start = lambda z: model.coordinates.decode(z).to(z)
    return _Start(as_target(score=blurred(model).score), model.event_shape, start)


def _load(path: Path, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"gradlogp_target_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look up their annotations
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


def makers(d: int) -> dict[str, Callable[[float], Any]]:
    """Return what makes each kernel of a step size, in d dimensions."""
    from ...langevin import kernels as k

    return {
        "ula": k.ULA, "mala": k.MALA, "leimkuhler-matthews": k.LeimkuhlerMatthews,
        "tamed": k.TamedULA, "baoab": k.BAOAB, "obabo": k.OBABO, "ghmc": k.GHMC,
        "hmc": lambda h: k.HMC(h, n_leapfrog=5), "nuts": k.NUTS,
        "mclmc": lambda h: k.MCLMC(h, decoherence_length=math.sqrt(d)),
        "adjusted-mclmc": lambda h: k.AdjustedMCLMC(h, n_steps=5),
    }  # fmt: skip


def _chain(
    start: _Start, draws: int, warmup: int, chains: int, name: KernelName | None,
    step_size: float | None, spread: float, g: torch.Generator, update: Update,
) -> Chain:  # fmt: skip
    """Run the chains: `sample`, or `run` where kernel and step size are both given."""
    import torch

    from ...distributions.as_target import has_log_prob
    from ...langevin import MCLMC, find_start, run, sample
    from ...langevin.kernels import facts_of
    from ...langevin.tuning import choose_step

    def around() -> torch.Tensor:
        return start.decode(spread * torch.randn(chains, *start.shape, generator=g))

    law, n_steps = start.law, warmup + draws
    x = None if has_log_prob(law) else around()
    kernel = None
    if name is not None:
        make = makers(start.shape.numel())[name]
        kernel = make(step_size or 0.1)
        if step_size is not None:
            x = around() if x is None else x
            return run(kernel, law, x, n_steps, warmup, generator=g, progress=update)
        biased = facts_of(kernel).target_acceptance is None  # its step is chosen, not tuned
        if biased and not isinstance(kernel, MCLMC):
            update(0, n_steps, note="finding a start")
            x = find_start(law, chains, generator=g).x if x is None else x
            kernel = choose_step(make, law, x, generator=g)
    return sample(
        law, draws, chains, n_warmup=warmup, start=x, kernel=kernel, generator=g, progress=update
    )


def _report(chain: Chain, law: Density, *, json: bool) -> None:
    """Print the summary with the verdict, and what is known of the law."""
    summary, kernel, h = chain.summary(), type(chain.kernel).__name__, chain.kernel.step_size
    if json:
        print_json(
            {
                "kernel": kernel,
                "step_size": h,
                "rows": [row._asdict() for row in summary.rows],
                "acceptance": summary.acceptance,
                "divergences": summary.divergences,
                "verdict": {"ok": chain.verdict.ok, "reasons": chain.verdict.reasons},
            }
        )
        return
    print(f"{kernel}, step size {h:.4g}")
    print(summary)
    _compare(chain, law)


def _compare(chain: Chain, law: Density) -> None:
    """Print the exact mean and deviation where they are known."""
    mean, cov = getattr(law, "mean", None), getattr(law, "cov", None)
    if mean is None or cov is None:
        return
    shown = chain.draws.flatten(2).shape[2]
    mean, sd = mean.flatten().tolist(), cov.diagonal().sqrt().tolist()
    pairs = [f"{m:.4g} ± {s:.4g}" for m, s in zip(mean, sd, strict=True)][: min(shown, 8)]
    print(f"exact means ± standard deviations: {', '.join(pairs)}{', …' if shown > 8 else ''}")


def _write(chain: Chain, law: Density, out: Path) -> None:
    """Write the draws, and a picture: over their density in the plane, else over time."""
    import numpy as np
    import torch

    from ...core.files import replacing
    from ...distributions.as_target import has_log_prob
    from ...show.plots import over_density, png, trace

    kept = torch.as_tensor(chain.draws)
    draws = kept.cpu().numpy()
    if kept.shape[2:] == (2,) and chain.parameters is None and has_log_prob(law):
        figure = over_density(kept, law.log_prob, names=chain.names())
    else:
        figure = trace(kept.flatten(2)[..., :4], names=chain.names()[:4])
    with replacing(out, out.with_suffix(".png")) as (array, picture):
        picture.write_bytes(png(figure))
        if out.suffix == ".nc":
            chain.to_arviz(tree=True).to_netcdf(array, engine=_netcdf_engine())
        elif out.suffix == ".npy":
            np.save(array, draws)
        else:
            info = {k: v.cpu().numpy() for k, v in chain.info._asdict().items()}
            np.savez(array, draws=draws, names=np.array(chain.names()), **info)


def _has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _netcdf_engine() -> str | None:
    """Return what xarray is to write groups with, or None where nothing can."""
    return next((name for name, needs in MODULES.items() if all(map(_has, needs))), None)
