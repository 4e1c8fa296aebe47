"""Data and conditions for a model that is there: columns by name, and what a command says of them."""

import numpy as np
import pandas as pd
import pytest
import torch
from few_support import at_few_levels

from gradlogp.interfaces.cli import main
from gradlogp.interfaces.cli.loading import load_for
from gradlogp.interfaces.estimator import ScoreEstimator

pytestmark = pytest.mark.usefixtures("as_user", "float32", "few_levels")
QUICK = ("--steps", "2", "--width", "8", "--depth", "1", "--held-out", "0", "--quiet")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of b and c given a, with and without dropout, and one of numbers without names."""
    torch.set_default_dtype(torch.float32)
    path, rng = tmp_path_factory.mktemp("columns"), np.random.default_rng(0)
    a, noise = rng.normal(size=60), rng.normal(size=(60, 2))
    table = pd.DataFrame({"b": a + 0.3 * noise[:, 0], "a": a, "c": 50 + 9 * noise[:, 1]})
    table = table.round(6)  # old versions of pandas read a 17th digit to the last bit but one
    table.assign(kind=["p", "q"] * 30).to_csv(path / "t.csv", index=False)
    table[["c", "a", "b"]].to_csv(path / "turned.csv", index=False)
    table.to_csv(path / "places.csv", index=False, header=False)
    table.rename(columns={"c": "d"}).to_csv(path / "other.csv", index=False)
    given = ("--no-table", "--columns", "b,c", "--condition", "a")
    for name, source, options in (
        ("m", "t.csv", given),
        ("loose", "t.csv", (*given, "--condition-dropout", "0.5")),
        ("plain", "t.csv", ("--no-table", "--columns", "b,a,c", "--base", "gaussian")),
        ("bare", "places.csv", ("--columns", "1,0", "--base", "gaussian")),
    ):
        line = ["fit", str(path / source), *options, "--out", str(path / name), *QUICK]
        with at_few_levels():
            assert main(line) == 0
    return path


def call(capsys, folder, line, code=0):
    got = main([*line.replace("@", f"{folder}/").split(), "--quiet"])
    out, err = capsys.readouterr()
    assert got == code, (line, out, err)
    return out if code == 0 else err


def ranked(capsys, folder, line):
    call(capsys, folder, f"evaluate {line} --rank @r.csv --force")
    return pd.read_csv(folder / "r.csv").sort_values("row", ignore_index=True)


def test_columns_go_by_name_in_any_order(folder):
    """Whatever the order of a file or of --columns, the model gets what it learned, in its order."""
    table = pd.read_csv(folder / "t.csv")
    for name, data, columns, wanted in (
        ("m", "t", None, "bc"), ("m", "t", "c,b", "bc"), ("m", "turned", None, "bc"),
        ("m", "turned", "c,b,a", "bc"), ("plain", "t", None, "bac"), ("plain", "turned", None, "bac"),
        ("plain", "t", "c,a,b", "bac"),
        # what has no names goes by place; places that were chosen, by theirs
        ("plain", "places", None, "bac"), ("plain", "places", "1,2,0", "acb"),
        ("bare", "places", "1,0", "ab"), ("bare", "places", "0,1", "ab"), ("bare", "t", "b,c", "bc"),
    ):  # fmt: skip
        estimator = ScoreEstimator.load(folder / name)
        found, y = load_for(estimator, f"{folder}/{data}.csv", columns, None, quiet=True)
        right = table[list(wanted)].to_numpy()
        np.testing.assert_array_equal(found.x, right, err_msg=f"{name} {data} {columns}")
        assert y is None or torch.equal(y, torch.tensor(table[["a"]].to_numpy()))


@pytest.mark.usefixtures("few_levels")
def test_a_row_has_one_density_in_any_order(capsys, folder):
    right = ranked(capsys, folder, "@plain @t.csv")
    assert list(right) == ["row", "b", "a", "c", "log_density", "rank"]
    pd.testing.assert_frame_equal(ranked(capsys, folder, "@plain @turned.csv"), right)
    off = ranked(capsys, folder, "@plain @places.csv --columns 0,2,1")  # the negative control
    assert (off["log_density"] < right["log_density"] - 10).all()


def test_columns_that_differ_are_named(capsys, folder):
    for line, says in (
        ("@m @other.csv", "other.csv lacks c; the model learned the columns b, c, a"),
        ("@m @t.csv --columns b", "--columns b,a lacks c; the model"),
        ("@m @other.csv --columns b,d", "lacks c and has d, which the model does not have"),
        ("@plain @t.csv --label a", "--label a: the model learned this column as numbers"),
        ("@plain @none.csv", "no such file"),
    ):
        assert says in call(capsys, folder, f"evaluate {line}", 2)
    line = "geometry @plain --out @g.png --data @t.csv --columns b,c"
    assert "lacks a" in call(capsys, folder, line, 2)


@pytest.mark.usefixtures("few_levels")
def test_rank_takes_probes(capsys, folder):
    """An estimate scatters about the exact log-density, and says the same with the same seed."""
    exact = ranked(capsys, folder, "@plain @t.csv")["log_density"]
    rough, again, other, fine = (
        ranked(capsys, folder, f"@plain @t.csv --probes {options}")["log_density"]
        for options in ("1", "1 --seed 0", "1 --seed 1", "64")
    )
    assert (rough == again).all()
    assert (rough != other).any()
    assert (rough != exact).any()
    errors = [float((found - exact).pow(2).mean() ** 0.5) for found in (rough, fine)]
    assert errors[1] < 2 * errors[0] / 8  # the root of 64 times smaller


def test_all_conditions_together_are_drawn_without_given(capsys, folder):
    drawn = call(capsys, folder, "sample @loose --n 3 --steps 3")
    assert len(drawn.splitlines()) == 3
    assert "conditional on a: sample it with --given" in call(capsys, folder, "sample @m", 2)
    said = call(capsys, folder, "sample @loose --n 3 --guidance 1", 2)
    assert "--guidance needs a model with a condition, and --given" in said


def test_conditions_are_finite_and_a_line(capsys, folder):
    (folder / "given.csv").write_text("a\n1\nnan\n")
    for value, says in (
        ("a=nan", "finite numbers"), ("a=-inf", "finite numbers"), ("a=x", "finite numbers"),
        ("@given.csv", "a row holds values that are not finite numbers"),
    ):  # fmt: skip
        err = call(capsys, folder, f"sample @m --n 2 --given {value}", 2)
        assert says in err
        assert err.count("\n") == 1
    assert "without --target, with --given" in call(capsys, folder, "sample --target @m", 2)


def test_what_belongs_to_tables_and_to_numbers(capsys, folder):
    err = call(capsys, folder, "impute @m @t.csv --out @filled.csv", 2)
    assert "only a table model can fill in missing values: train one with `gradlogp fit" in err
    for base in ("gaussian", "mixture"):
        err = call(capsys, folder, f"fit @t.csv --out @x --base {base}", 2)
        assert "--base is for plain numbers; a table with missing values" in err
    assert not (folder / "x").exists()
