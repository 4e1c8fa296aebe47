"""Tables and pictures of the page on what to take, made from the records of the benchmarks.

python docs/_ext/choosing.py     writes the tables into docs/choosing.md

The pictures are drawn when the site is built, each below its table.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

import gradlogp as glp
from gradlogp.show.plots import LIGHT, Theme, png
from gradlogp.show.plots.style import legend, log_axis, new_figure

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ROOT = Path(__file__).parents[2]
KERNELS = ("ULA", "BAOAB", "MALA", "HMC", "ParallelTempering")
OBJECTIVES = ("denoising", "finite_difference", "sliced", "sliced_vr", "implicit")
DIMENSIONS = (2, 16, 64, 256, 1024)
SOLVERS = {
    "DDIM": "DDIM", "Heun": "Heun", "DPM-Solver++ 2M": "DPMSolver",
    "exponential AB 4, epsilon, extrapolated": "ExponentialAB(4)",
}  # fmt: skip
"""Names in the record, and what they are called here."""
MODELS = {
    "gradlogp": "learned score",
    "GMM": "best mixture",
    "KDE": "kernel density",
    "NSF": "spline flow",
}


def record(name: str) -> Any:
    """Return what a benchmark left."""
    return json.loads((ROOT / "benchmarks" / f"{name}.json").read_text(encoding="utf-8"))


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a table, the best of each row set in bold by the caller."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def best(values: dict[str, float], shown: dict[str, str], least: bool) -> list[str]:
    """Return the cells of a row, the best one in bold; without a value a dash."""
    top = (min if least else max)(values.values(), default=None)
    return [
        f"**{shown[key]}**" if key in values and values[key] == top else text
        for key, text in shown.items()
    ]


def samplers() -> dict[str, dict[str, float]]:
    """Return effective draws per second, by target and kernel, where they can be trusted."""
    found: dict[str, dict[str, float]] = {}
    for row in record("samplers")["rows"]:
        if row["kernel"] in KERNELS:
            own = found.setdefault(f"{row['target']}, d = {row['dim']}", {})
            if not row["diverged"] and row["r_hat"] < 1.05:
                own[row["kernel"]] = row["ess_per_second"]
    return found


def sampler_table() -> str:
    """Return the table of samplers."""
    rows = []
    for target, values in samplers().items():
        shown = {k: f"{values[k]:,.0f}" if k in values else "–" for k in KERNELS}
        rows.append([target, *best(values, shown, least=False)])
    return table(["target", *(f"`{k}`" for k in KERNELS)], rows)


def objectives() -> dict[str, dict[int, float]]:
    """Return the cost of a step over that of a forward and backward pass, by dimension."""
    found: dict[str, dict[int, float]] = {}
    for row in record("objectives")["rows"]:
        if row["network"] == "score" and row["batch"] == 128 and row["objective"] in OBJECTIVES:
            found.setdefault(row["objective"], {})[row["d"]] = row["over_floor"]
    return {name: found[name] for name in OBJECTIVES}


def objective_table() -> str:
    """Return the table of objectives."""
    costs = objectives()
    rows = []
    for name in OBJECTIVES:
        rows.append([f"`{name}`", *(f"{costs[name][d]:.1f}" for d in DIMENSIONS)])
    return table(["cost of a step", *(f"d = {d:,}" for d in DIMENSIONS)], rows)


def solvers() -> dict[str, dict[int, float]]:
    """Return the median error on the second law, the better of two grids, by evaluations."""
    found: dict[str, dict[int, float]] = {}
    for row in record("diffusion")["results"]["50 modes, d = 64"]:
        name = SOLVERS.get(row["solver"].removeprefix("gradlogp "))
        if name and row["solver"].startswith("gradlogp"):
            own = found.setdefault(name, {})
            own[row["budget"]] = min(row["median"], own.get(row["budget"], float("inf")))
    return found


def solver_table() -> str:
    """Return the table of solvers."""
    errors = solvers()
    rows = []
    for budget in sorted(next(iter(errors.values()))):
        values = {k: v[budget] for k, v in errors.items() if budget in v}
        shown = {k: f"{values[k]:.2g}" if k in values else "–" for k in errors}
        rows.append([str(budget), *best(values, shown, least=True)])
    return table(["evaluations", *(f"`{k}`" for k in errors)], rows)


def sizes() -> dict[float, dict[int, int]]:
    """Return the points that the score of a Gaussian needs, by accuracy and dimension."""
    return {
        accuracy: {d: glp.sample_size.gaussian(accuracy, dim=d).n for d in (1, 2, 10, 50, 200)}
        for accuracy in (0.3, 0.1, 0.03)
    }


def size_table() -> str:
    """Return the table of sample sizes."""
    found = sizes()
    dims = list(found[0.1])
    rows = [[f"{a:.0%}", *(f"{found[a][d]:,}" for d in dims)] for a in found]
    return table(["relative error of the score", *(f"d = {d}" for d in dims)], rows)


def models() -> dict[str, dict[str, tuple[float, float]]]:
    """Return held-out nats and their errors, the mean over seeds, by data and model."""
    found = {}
    for data, runs in record("time_to_quality")["runs"].items():
        n, d = runs[0]["shape"]
        own = {}
        for model in MODELS:
            nats = [run[model]["nats"] for run in runs]
            mean = sum(nats) / len(nats)
            spread = (
                sum((v - mean) ** 2 for v in nats) / max(len(nats) - 1, 1) / len(nats)
            ) ** 0.5
            own[model] = (mean, spread if len(nats) > 1 else runs[0][model]["error"])
        found[f"{data}, {n:,} × {d}"] = own
    return found


def model_table() -> str:
    """Return the table of models."""
    rows = []
    for data, own in models().items():
        shown = {k: f"{v:.2f} ± {e:.2f}".replace("-", "−") for k, (v, e) in own.items()}
        rows.append([data, *best({k: v for k, (v, _) in own.items()}, shown, least=False)])
    seeds = {k: len(runs) for k, runs in record("time_to_quality")["runs"].items()}
    names = {data: data.split(",")[0] for data in models()}
    behind = [names[k] for k, own in models().items() if is_behind(own, seeds[names[k]])]
    listed = f", behind on {' and '.join(behind)}" if behind else ""
    level = f"{len(rows) - len(behind)} of {len(rows)}"
    text = (
        f"The learned score is level with the best or ahead on {level}{listed}, by two standard "
        "errors of the difference. Errors of a single seed are those of the same rows for all, so that "
        "there any difference counts."
    )
    return f"{table(['data', *MODELS.values()], rows)}\n\n{text}"


def is_behind(own: dict[str, tuple[float, float]], seeds: int) -> bool:
    """Return whether another model is ahead by more than two standard errors of the difference.

    With one seed whether one is ahead at all: the errors are over rows, which are the same.
    """
    nats, error = own["gradlogp"]
    many = 2 if seeds > 1 else 0
    return any(v - nats > many * (e**2 + error**2) ** 0.5 for v, e in own.values())


def lines(series: dict[str, dict[int, float]], x: str, y: str, theme: Theme) -> Figure:
    """Draw lines on logarithmic axes."""
    colours = [theme.model, theme.real, theme.muted, theme.ink, theme.time[2]]
    with new_figure(theme, 7.2, 3.4) as figure:
        axes = figure.add_subplot(xlabel=x, ylabel=y, xscale="log", yscale="log")
        axes.grid(True)
        for colour, (name, values) in zip(colours, series.items(), strict=False):
            axes.plot(list(values), list(values.values()), "o-", ms=3.5, color=colour, label=name)
        ends = [k for values in series.values() for k in values]
        log_axis(axes.xaxis, min(ends), max(ends))
        legend(axes)
    return figure


def bars(series: dict[str, dict[str, float]], x: str, theme: Theme, log: bool = False) -> Figure:
    """Draw bars beside a name, a colour for each kind."""
    colours = [theme.model, theme.real, theme.muted, theme.ink, theme.time[0]]
    kinds = list({kind: None for own in series.values() for kind in own})
    with new_figure(theme, 7.2, 0.7 + 0.42 * len(series)) as figure:
        axes = figure.add_subplot(xlabel=x, xscale="log" if log else "linear")
        for i, kind in enumerate(kinds):
            at = [k + 0.8 * (i + 0.5) / len(kinds) - 0.4 for k in range(len(series))]
            values = [own.get(kind, float("nan")) for own in series.values()]
            axes.barh(at, values, 0.8 / len(kinds), color=colours[i], label=kind)
        axes.set_yticks(range(len(series)), list(series))
        axes.set_ylim(len(series) - 0.5, -0.5)
        axes.grid(axis="x")
        legend(axes)
    return figure


def above_mixture() -> dict[str, dict[str, float]]:
    """Return nats above those of the best mixture, cut off below −4."""
    return {
        data: {MODELS[k]: max(v - own["GMM"][0], -4.0) for k, (v, _) in own.items() if k != "GMM"}
        for data, own in models().items()
    }


TABLES: dict[str, Callable[[], str]] = {
    "samplers": sampler_table, "objectives": objective_table, "solvers": solver_table,
    "sizes": size_table, "models": model_table,
}  # fmt: skip
PICTURES: dict[str, Callable[[Theme], Figure]] = {
    "samplers": lambda t: bars(samplers(), "effective draws per second", t, log=True),
    "objectives": lambda t: lines(
        {k: dict(sorted(v.items())) for k, v in objectives().items()},
        "dimension d", "cost over a bare step", t,
    ),
    "solvers": lambda t: lines(
        {k: dict(sorted(v.items())) for k, v in solvers().items()}, "evaluations", "median error", t
    ),
    "sizes": lambda t: lines(
        {f"{a:.0%}": {d: float(n) for d, n in v.items()} for a, v in sizes().items()},
        "dimension d", "points", t,
    ),
    "models": lambda t: bars(above_mixture(), "nats per row above the best mixture (cut at −4)", t),
}  # fmt: skip


def filled(text: str) -> str:
    """Return a page with its tables as the records have them."""
    for name, make in TABLES.items():
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        head, rest = text.split(begin)
        text = f"{head}{begin}\n{make()}\n{end}{rest.split(end)[1]}"
    return text


def draw(app: Sphinx) -> None:
    """Draw the pictures."""
    folder = Path(app.srcdir) / "choosing"
    folder.mkdir(exist_ok=True)
    for name, make in PICTURES.items():
        (folder / f"{name}.png").write_bytes(png(make(LIGHT)))


def put(app: Sphinx, page: str, text: list[str]) -> None:
    """Put each picture below its table."""
    if page == "choosing":
        for name in PICTURES:
            end = f"<!-- {name}: end -->"
            text[0] = text[0].replace(
                end, f"{end}\n\n![The table as a picture](choosing/{name}.png)"
            )


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.connect("builder-inited", draw)
    app.connect("source-read", put)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


if __name__ == "__main__":
    page = ROOT / "docs" / "choosing.md"
    page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
