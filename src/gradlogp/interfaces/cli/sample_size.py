"""The command that says how many points a score needs: sample-size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .common import Misuse, load, print_json

if TYPE_CHECKING:
    from ...check.sample_size import SampleSize

CAVEAT = (
    "Parametric only: estimates that know the form of the law. A network does not, and has no such "
    "guarantee; compare its denoising loss on training and held-out data."
)
NOISES = (1.0, 2.0, 4.0)


def sample_size(
    *,
    accuracy: float = 0.1,
    dim: int | None = None,
    data: str | None = None,
    columns: str | None = None,
    label: str | None = None,
    separation: float | None = None,
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Print how many points a score needs for an accuracy, with the formulas used.

    The error of a score is the root mean square of its distance to the true one, relative to the
    size of the true one; that of a location or weight is its standard error.

    Args:
        accuracy: The error, 0.1 for ten percent.
        dim: Number of dimensions.
        data: Data to take the dimension from; also told is what its number of points is good for.
        columns: Columns to use, separated by commas.
        label: Column with the class of each row, which is left out.
        separation: Half the distance of two modes in their standard deviations: adds what it takes
            to tell their weights.
        json: Print as JSON.
        quiet: Do not say what was dropped from the data.
    """
    if (dim is None) == (data is None):
        raise Misuse("sample-size needs --dim or --data, and not both")
    if not 1e-9 <= accuracy <= 1e9:
        raise Misuse(f"--accuracy must be positive, from 1e-9 to 1e9, got {accuracy}")
    if dim is not None and dim < 1:
        raise Misuse(f"--dim must be at least 1, got {dim}")
    from ...check import sample_size as needs

    facts: dict[str, Any] = {}
    if data is not None:
        dim, facts = _from_data(data, columns, label, quiet)
    assert dim is not None
    rows = [needs.gaussian(accuracy, dim=dim), needs.gaussian_limit(accuracy, dim=dim)]
    rows += _slopes(accuracy)
    rows += _location(accuracy)
    if separation is not None:
        rows += _weights(accuracy, separation)
    if json:
        print_json({"accuracy": accuracy, "dim": dim, **facts,
                    "rows": [row._asdict() for row in rows], "caveat": CAVEAT})  # fmt: skip
    else:
        _print(rows, dim, facts)
    return 0


def _from_data(
    data: str, columns: str | None, label: str | None, quiet: bool
) -> tuple[int, dict[str, Any]]:
    import torch

    from ...check import sample_size as needs

    x = load(data, columns, label, quiet=quiet).x.flatten(1).double()
    n, dim = x.shape
    spread = x.std(0)
    varies = spread > 0
    z = (x - x.mean(0))[:, varies] / spread[varies]  # the rank does not depend on units
    w = torch.linalg.eigvalsh(torch.cov(z.T).reshape(z.shape[1], z.shape[1]))
    rank = int((w > 1e-12 * dim * w[-1]).sum()) if len(w) else 0
    if rank < min(dim, n - 1):
        raise ValueError(
            f"the data span {rank} of {dim} dimensions, where they have no score without noise; "
            "give --dim with the number of dimensions that count (gradlogp geometry estimates it), "
            "or --columns"
        )
    error = needs.gaussian_error(n, dim=dim)
    return dim, {"n": n, "relative_error_of_a_gaussian_fit": error}


def _slopes(accuracy: float) -> list[SampleSize]:
    import math

    from ...check import sample_size as needs

    rows = []
    for sigma in (1.0, 0.1):
        what = f"slope of the score of N(0, τ²) noised by σ = {sigma:g} τ, by denoising"
        for draws, how, formula in ((None, "fresh noise for ever", "2τ⁴/(v²ε²), v = τ² + σ²"),
                                    (1, "one draw of noise a point", "τ²/(σ²ε²)")):  # fmt: skip
            n = math.ceil(needs.denoising_slope(sigma, draws=draws) / accuracy**2 - 1e-9)
            name = f"{what}, {how}" if draws is None else f"… {how}"
            rows.append(needs.SampleSize(name, n, formula, "one dimension, large n"))
    return rows


def _location(accuracy: float) -> list[SampleSize]:
    import torch

    from ...check import sample_size as needs

    law = needs.location(lambda x: -2 * torch.log(torch.cosh(x[:, 0] / 2)), -40.0, 40.0)
    what = f"location of a logistic law to a standard error of {accuracy:g} scales"
    return [
        needs.SampleSize(f"{what}, score matching", law.n(accuracy),
                         "E[(s'' + s s')²]/(E[s'²]² ε²)", f"efficiency {law.value:.3g}, large n"),
        needs.SampleSize("… maximum likelihood", law.n_likelihood(accuracy), "1/(E[s²] ε²)", "large n"),
    ]  # fmt: skip


def _weights(accuracy: float, separation: float) -> list[SampleSize]:
    from ...check import sample_size as needs

    if not 0 < separation <= 5:
        raise Misuse(
            f"--separation must lie in (0, 5], got {separation}; weights of modes further apart "
            "are not to be had from a score without noise"
        )
    plain = needs.mixture_weight(separation)
    what = f"weight of modes at ±{separation:g} to a standard error of {accuracy:g}"
    rows = [
        needs.SampleSize(f"{what}, maximum likelihood", plain.n_likelihood(accuracy),
                         "1/(I ε²), I the Fisher information", "equal weights, large n"),
        needs.SampleSize("… score matching without noise", plain.n(accuracy),
                         "Var(∂s' + s ∂s)/(E[(∂s)²]² ε²)", f"efficiency {plain.value:.3g}"),
    ]  # fmt: skip
    for sigma in NOISES:
        found = needs.mixture_weight(separation, sigma)
        rows.append(
            needs.SampleSize(f"… denoising at σ = {sigma:g}", found.n(accuracy),
                             "the same at p_σ, averaged over the noise",
                             f"efficiency {found.value:.3g}")
        )  # fmt: skip
    return rows


def _print(rows: list[SampleSize], dim: int, facts: dict[str, Any]) -> None:
    import math
    import sys

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("what", box=None, pad_edge=False)
    table.add_column("points", justify="right", no_wrap=True)
    table.add_column("formula")
    table.add_column("holds for")
    for row in rows:
        cells = (row.quantity, f"{row.n:,}", row.formula, row.conditions)
        table.add_row(*(Text(cell) for cell in cells))
    width = None if sys.stdout.isatty() else 150
    Console(width=width, highlight=False).print(table)
    if facts:
        error = facts["relative_error_of_a_gaussian_fit"]
        told = f"{error:.3g}" if math.isfinite(error) else f"infinite: it takes {dim + 5} points"
        print(
            f"The data have {facts['n']:,} points in {dim} dimensions: "
            f"relative error of a fitted Gaussian {told}"
        )
    print(CAVEAT)
