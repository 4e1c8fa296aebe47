"""Files of tables: what is found by looking, and the same file written back."""

import gzip
import math

import numpy as np
import pandas as pd
import pytest
import torch
from support import close, seeded
from torch.special import ndtr

import gradlogp as glp
from gradlogp.interfaces.tables.coding import decode, encode
from gradlogp.interfaces.tables.columns import recognise
from gradlogp.interfaces.tables.files import Marks, read
from gradlogp.interfaces.tables.forms import Form, suffix_of, written

SAME = {
    "plain.csv": "a,b\n1,x\n2,y\n",
    "semicolon.csv": "x;y;n\n1,5;a;1.234,5\n2,25;b;12,0\n-3,0;;1.000.000,25\n",
    "points.csv": "m;p\n1.234;1,5\n12.500;2,0\n7;3,5\n",
    "tabs.tsv": "name\t2010\t2011\t2012\nA\t1\t2.5\t3\nB\tNA\t4.0\t9\n",
    "grouped.csv": 'id,price\n1,"1,234"\n2,"5,678,901"\n3,17\n',
    "spaces.csv": "id,price\n1,1 234.5\n2,5 678 901.25\n3,17.0\n",
    "american.csv": "d,v\n1/2/2020,1\n12/13/2020,2\n",
    "german.csv": "d;v\n31.12.2020;1\n01.02.2021;2\n",
    "numbered.csv": "day,v\n20200131,1\n20200229,2\n",
    "words.csv": "d\nJan 1 2000\nFeb 1 2000\nMar 12 2000\n",
    "months.csv": "d,v\n2000-01,1\n2000-02,2\n",
    "clock.csv": "t,v\n10:30,1\n23:59,2\n",
    "holes.csv": "a,b,c\n1,NA,True\n2,3,NA\nNA,4,False\n",
    "index.csv": ",a\n0,1.5\n1,2.5\n",
    "nameless.csv": "5.1,setosa\n4.9,virginica\n",
    "quoted.csv": 'a,b\n"x, y",1\n"say ""no""",2\n',
    "large.csv": "a,b\n9007199254740993,36893488147419103232\n9007199254740995,36893488147419103233\n",
}  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_what_is_read_is_written_back(name, tmp_path):
    path = tmp_path / name
    path.write_text(SAME[name])
    frame, _ = read(path)
    assert written(frame, suffix_of(path)).decode() == SAME[name]
    assert Form.of(frame.attrs["form"]).kept() == frame.attrs["form"]


def test_what_columns_are_read_as(tmp_path):
    kinds = {}
    for name, text in SAME.items():
        (tmp_path / name).write_text(text)
        frame, _ = read(tmp_path / name)
        kinds[name] = "".join(frame[c].dtype.kind for c in frame)
    assert kinds["semicolon.csv"] == "fOf"
    assert kinds["points.csv"] == "if"
    assert kinds["tabs.tsv"] == "Oifi"
    assert kinds["grouped.csv"] == "ii"
    assert kinds["holes.csv"] == "iib"
    for name in ("american", "german", "numbered", "words", "months", "clock"):
        assert kinds[f"{name}.csv"][0] == "M", name
    assert kinds["nameless.csv"] == "fO"
    assert read(tmp_path / "points.csv")[0]["m"].tolist() == [1234, 12500, 7]
    assert read(tmp_path / "semicolon.csv")[0]["n"].tolist() == [1234.5, 12.0, 1000000.25]


def test_packed_marked_and_binary_files(tmp_path):
    text = "a,b\n1,2020-01-02\n2,2020-01-03\n"
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "bom.csv").write_text("\ufeff" + text)
    (tmp_path / "wide.csv").write_bytes(text.encode("utf-16"))
    frames = [read(tmp_path / name)[0] for name in ("a.csv.gz", "bom.csv", "wide.csv")]
    for frame in frames:
        pd.testing.assert_frame_equal(frame, frames[0])
        assert list(frame) == ["a", "b"]
    assert gzip.decompress(written(frames[0], ".csv.gz")).decode() == text
    (tmp_path / "a.parquet").write_bytes(written(frames[0], ".parquet"))
    back, _ = read(tmp_path / "a.parquet")
    assert back["b"].tolist() == ["2020-01-02", "2020-01-03"] or back["b"].dtype.kind == "M"


def test_what_is_said_of_choices(tmp_path):
    def said(text, name="a.csv"):
        (tmp_path / name).write_text(text)
        return "; ".join(read(tmp_path / name)[1])

    assert "'d' may be %m/%d/%Y or %d/%m/%Y, and is read as %m/%d/%Y" in said(
        "d\n1/2/2020\n3/4/2020\n"
    )
    assert said(SAME["grouped.csv"]) == "',' groups digits in price"
    assert "',' is the decimal mark and '.' groups digits in n" in said(SAME["semicolon.csv"])
    assert "is read as column names: pass --no-header" in said(SAME["tabs.tsv"])
    assert said(SAME["plain.csv"]) == ""


def test_comments_above_a_table_are_left_out(tmp_path):
    path = tmp_path / "a.csv"
    table = "x;y;t\n1,5;2;a\n3,25;4;b\n"
    for above, lines in (("# made by R\n", 1), ('#\n\n# of "2020;\n', 3), ("# a;b;c\n", 1)):
        path.write_text(above + table)
        frame, notes = read(path)
        what = "the first line, which begins with #, is left out"
        assert notes[0] == what if lines == 1 else notes[0].startswith("the first 3 lines, which")
        assert written(frame).decode() == table
    whole = {
        "#chrom\tstart\nc1\t2\nc2\t3\n": ["#chrom", "start"], "# x\n1\n2\n": ["# x"],
        "#ff0000,red\n#00ff00,green\nblack,x\n": ["#ff0000", "red"],
        "# made\n# by R\n": ["# made"],
    }  # fmt: skip
    for text, names in whole.items():  # a cell, or a name
        path.write_text(text)
        frame, notes = read(path)
        assert (list(frame), len(frame)) == (names, text.count("\n") - 1)
        assert "is read as column names: pass --no-header if it is a row" in notes[0]
    path.write_text("\n\nx,y\n1,2\n")
    assert read(path)[1] == []
    path.write_text("# a,b\nx,y\n1,2\n")
    assert len(read(path, header=False)[0]) == 3
    for text, says in (
        ("# made by R\na,b\n1,2\n3\n", "line 4 has 1 cells instead of 2$"),
        ("Prices of 2020\na,b\n1,2\n", "line 2 has 2 cells instead of 1; what stands above a "
         "table is left out if it begins with #"),
        ("# a\nx,y\n1,\0\n", "line 3 contains a NUL"),
    ):  # fmt: skip
        path.write_text(text)
        with pytest.raises(ValueError, match=says):
            read(path)


def test_what_cannot_be_a_table(tmp_path):
    path = tmp_path / "a.csv"
    marks = "\n".join(f"{i if i % 20 else '?'},{i if i % 30 else '-'}" for i in range(1, 101))
    for text, says in (
        ("", "the file is empty"), ("a,b\n", "a header but no row below it"),
        ("a,b\n1,2\n3\n", "line 3 has 1 cells instead of 2"), ("a,a\n1,2\n", "names repeat: a, a"),
        (f"hp,w\n{marks}\n", r"'hp' has 5 of 100 cells that are not numbers \('\?', the first in row 20"
         r".*'w' has 3 of 100 .*marks=\['-', '\?'\] reads them as missing values"),
    ):  # fmt: skip
        path.write_text(text)
        with pytest.raises(ValueError, match=says):
            read(path)
    frame, _ = read(path, marks=["?", "-"])
    assert frame.isna().sum().tolist() == [5, 3]
    assert written(frame).decode().count("?") == 8
    with pytest.raises(Marks):
        read(path, skip=["hp"])
    assert read(path, skip=["hp", "w"])[0]["hp"].nunique() == 96
    path.write_bytes("größe,b\n1,2\n".encode("latin-1"))
    with pytest.raises(ValueError, match="save it as UTF-8"):
        read(path)
    with pytest.raises(ValueError, match="no such file"):
        read(tmp_path / "none.csv")
    pd.DataFrame({"a": [[1], [2, 3]]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="lists or tables in their cells: a"):
        read(tmp_path / "a.parquet")


def test_a_form_is_read_with_distrust():
    good = Form(dates=(("d", "%Y-%m-%d", True),), numbers=(("x", ",", "."),)).kept()
    assert Form.of(good) == Form(**good)
    for change in (
        {"separator": "ab"}, {"dates": [["d", "%s", True]]}, {"dates": [3]}, {"hole": 3},
        {"numbers": [["x", "x", ""]]}, {"header": "yes"}, {"more": 1},
    ):  # fmt: skip
        with pytest.raises(ValueError, match="this is not a known way to write a table"):
            Form.of(good | change)


def test_random_tables_come_back(tmp_path):
    """Numbers, holes and texts of any kind, through every separator."""
    rng = np.random.default_rng(0)
    for trial in range(6):
        n = 30
        frame = pd.DataFrame({
            "i": pd.array(rng.integers(-(10**6), 10**6, n), dtype="Int64"),
            "f": rng.normal(size=n).round(3), "t": rng.choice(["a b", "c;d", "e,f", 'g"h'], n),
        })  # fmt: skip
        frame.loc[rng.random(n) < 0.2, "i"] = pd.NA
        frame.loc[rng.random(n) < 0.2, "t"] = None
        path = tmp_path / f"{trial}.csv"
        frame.to_csv(path, index=False, sep=",;\t|"[trial % 4])
        back, _ = read(path)
        assert back["i"].equals(frame["i"])
        assert back["f"].astype(float).equals(frame["f"])
        assert back["t"].isna().equals(frame["t"].isna())
        assert written(back).decode() == path.read_text()


N = 4000


def wages():
    """Two decimals, a third of the rows are integers."""
    rng = np.random.default_rng(0)
    x = np.exp(rng.normal(2.2, 0.5, N))
    return pd.Series(np.where(rng.random(N) < 0.35, x.round(), x.round(2)).clip(0.5), name="wage")


def ages():
    """Integers on a coarse grid, more of those that end in 0."""
    rng = np.random.default_rng(1)
    x = rng.normal(42, 12, N).round()
    heaped = rng.random(N) < 0.25
    return pd.Series(np.where(heaped, 10 * (x / 10).round(), x).clip(18).astype(int), name="age")


def floats():
    """On no grid, and half of the rows with one of twenty values."""
    rng = np.random.default_rng(3)
    x, often = rng.gamma(3.0, 2.0, N), np.sort(rng.gamma(3.0, 2.0, 20))
    return pd.Series(np.where(rng.random(N) < 0.5, rng.choice(often, N), x), name="dose")


COLUMNS = {"wage": wages(), "age": ages(), "dose": floats()}


@pytest.mark.parametrize("name", COLUMNS)
def test_heaps_come_back(name):
    """Every value, to the bit; numbers that are normal; and as often as they are met, if z is."""
    series = COLUMNS[name]
    column = recognise(series)
    assert sum(a for _, a in column.atoms) > 0.15
    unit = {"wage": 1, "age": 10}.get(name)
    large = [v for v, a in column.atoms if a > 0.005]
    assert all(unit is None or v % unit == 0 for v in large)
    z, _ = encode(column, series, seeded())
    again = decode(column, z, seeded())
    pd.testing.assert_series_equal(again, series, rtol=1e-9)
    heaped = series.isin([v for v, _ in column.atoms])
    assert (again[heaped] == series[heaped]).all()
    order = z[:, -1].sort().values
    uniform = (torch.arange(N) + 0.5) / N
    assert float((ndtr(order) - uniform).abs().max()) < 0.03  # also where heaps are large
    drawn = decode(column, torch.randn(N, 1, generator=seeded(1)).double(), seeded())
    for value, _ in column.atoms:
        p, ours = (series == value).mean(), (drawn == value).mean()
        assert abs(p - ours) < 4.5 * math.sqrt(2 * p * (1 - p) / N)
    other = set(series) - {
        v for v, _ in column.atoms
    }  # a negative control: the rest is not heaped
    rest = series[series.isin(other)].value_counts().iloc[0] / N
    assert rest < max(share for _, share in column.atoms)


def test_the_probability_of_a_value_is_that_of_the_law():
    """On a wide grid: the mean of φ(z) e^nats over draws is a_k + (1 − A)(Φ(T(v+1)) − Φ(T(v)))."""
    column = recognise(COLUMNS["age"])
    T, A = column.transform, sum(a for _, a in column.atoms)
    total = 0.0
    for value in (40, 43, 50, 57):
        z, nats = encode(column, pd.Series([value] * 40_000, name="age"), seeded(value))
        log_p = -0.5 * z[:, 0].square() - 0.5 * math.log(2 * math.pi) + nats
        found = log_p.exp()
        own = dict(column.atoms).get(float(value), 0.0)
        cell = T(torch.tensor([value, value + 1.0]).double())
        right = own + (1 - A) * float(ndtr(cell[1]) - ndtr(cell[0]))
        error = float(found.std()) / math.sqrt(len(found))
        assert abs(float(found.mean()) - right) < 4.5 * error + 1e-9
        assert own == 0 or own > 20 * error  # a negative control: without the heap
        total += right
    assert 0.05 < total < 0.5


def test_a_smooth_column_has_next_to_none():
    rng = np.random.default_rng(2)
    for values in (rng.normal(size=N), rng.normal(60, 9, N).round(), rng.gamma(2, 3, N).round(2)):
        column = recognise(pd.Series(values, name="x"))
        assert sum(a for _, a in column.atoms) < 0.01


def test_a_step_of_a_heap_has_its_density():
    """Where the grid is fine, a heap's row has log a_k in all: log φ(z) + nats is constant."""
    column = recognise(COLUMNS["wage"])
    value, share = column.atoms[4]
    z, nats = encode(column, pd.Series([value] * 100, name="wage"), seeded())
    log_p = -0.5 * z[:, 0].square() - 0.5 * math.log(2 * math.pi) + nats
    close(log_p, torch.full((100,), math.log(share)).double(), 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("places", [None, 2])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_heavy_tails(seed, places):
    """exp(2 N): quantiles within a tenth, 5 standard errors of so many rows; and nothing negative."""
    rng = np.random.default_rng(seed)
    n = 20_000
    z = rng.normal(size=(n, 2)) @ np.array([[1.0, 0.6], [0.0, 0.8]])
    x = np.exp(2 * z[:, 0])
    frame = pd.DataFrame({"x": x if places is None else x.round(places), "y": z[:, 1]})
    new = glp.TableEstimator(glp.ScoreEstimator(random_state=seed)).fit(frame).sample(n)
    for p, exact in ((0.25, 0.25949), (0.5, 1.0)):
        assert abs(new["x"].quantile(p) / exact - 1) < 0.1
        assert abs(new["x"].quantile(p) / frame["x"].quantile(p) - 1) < 0.1
    assert (new["x"] >= 0).all()
    assert (places is not None) or (new["x"] > 0).all()
    assert (
        abs(np.log(new["x"] + 0.01).corr(new["y"]) - np.log(frame["x"] + 0.01).corr(frame["y"]))
        < 0.03
    )
