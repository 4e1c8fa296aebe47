"""Tables on the command line: fit, interrupt, resume, sample, rank, judge, and what is refused."""

import gzip
import io
import json
import os
import signal

import numpy as np
import pandas as pd
import pytest
import torch
from few_support import at_few_levels

from gradlogp.interfaces.cli import main
from gradlogp.interfaces.tables import TableEstimator
from gradlogp.learn import checkpoint

pytestmark = pytest.mark.usefixtures("as_user", "float32", "few_levels", "bare_pictures")
QUICK = ("--steps", "30", "--width", "16", "--quiet")


def people(n=120, seed=0):
    rng = np.random.default_rng(seed)
    height = rng.normal(170, 9, n)
    return pd.DataFrame({
        "height": height.round().astype(int), "weight": (0.9 * height - 90).round(1),
        "town": rng.choice(["Bern", "Chur", None], n, p=[0.6, 0.3, 0.1]),
        "since": pd.Timestamp("2020-01-01") + pd.to_timedelta(rng.integers(0, 300, n), unit="D"),
    })  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.set_default_dtype(torch.float32)
    path = tmp_path_factory.mktemp("tables")
    written = {"sep": ";", "decimal": ",", "index": False}
    people().to_csv(path / "real.csv", date_format="%d.%m.%Y", **written)
    people(60, 1).to_csv(path / "held.csv", date_format="%d.%m.%Y", **written)
    with at_few_levels():
        assert main(["fit", str(path / "real.csv"), "--out", str(path / "m"), *QUICK]) == 0
    return path


def call(capsys, folder, line, code=0):
    got = main(line.replace("@", f"{folder}{os.sep}").split())
    out, err = capsys.readouterr()
    assert got == code, (got, out, err)
    return out, err


def test_fit_says_what_columns_are_taken_for(capsys, folder, tmp_path):
    line = (
        f"fit @real.csv --out {tmp_path}/m --steps 2 --width 8 --drop weight,since "
        "--as height=category"
    )
    out, err = call(capsys, folder, line)
    assert out.startswith(f"{tmp_path}/m: trained on 120 rows, held-out loss ")
    said = err.splitlines()
    assert "real.csv: columns are separated by ';'" in said
    assert any(row.startswith("height: category of ") for row in said)
    assert "town: category of 2 levels, apart from missing" in said
    assert not any(row.startswith(("weight", "since")) for row in said)
    out, _ = call(capsys, folder, f"fit @real.csv --out {tmp_path}/n --columns town,height --json "
                  "--steps 2 --width 8 --quiet")  # fmt: skip
    assert json.loads(out)["n"] == 120
    assert [c.name for c in TableEstimator.load(tmp_path / "n").columns_] == ["town", "height"]


@pytest.mark.parametrize("name", ["new.csv", "new.tsv", "new.csv.gz", "new.parquet"])
def test_sample_writes_the_same_columns(capsys, folder, tmp_path, name):
    out = tmp_path / name
    call(capsys, folder, f"sample @m --n 40 --out {out} --quiet")
    assert sorted(os.listdir(tmp_path)) == sorted([name, "new.png"])
    if name.endswith(".parquet"):
        new = pd.read_parquet(out)
    else:
        text = gzip.decompress(out.read_bytes()) if name.endswith("gz") else out.read_bytes()
        sep = "\t" if "tsv" in name else ";"
        new = pd.read_csv(io.BytesIO(text), sep=sep, decimal=",")
        new["since"] = pd.to_datetime(new["since"], format="%d.%m.%Y")
    assert list(new) == list(people())
    assert [new[c].dtype.kind for c in new][:2] == ["i", "f"]
    assert set(new["town"].dropna()) <= {"Bern", "Chur"}
    assert (new["weight"] - new["weight"].round(1)).abs().max() < 1e-9
    before = out.read_bytes()
    _, err = call(capsys, folder, f"sample @m --n 40 --out {out} --quiet", 2)
    assert "replace it with --force" in err
    call(capsys, folder, f"sample @m --n 40 --out {out} --quiet --force")
    if not name.endswith(".parquet"):
        assert out.read_bytes() == before


def test_what_writes_parquet_is_missed_before_the_work(capsys, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    _, err = call(capsys, folder, f"sample @m --n 3 --out {tmp_path}/a.parquet --quiet", 1)
    assert "pip install 'gradlogp[data]'" in err


def test_sample_prints_a_table(capsys, folder):
    out, _ = call(capsys, folder, "sample @m --n 3 --method ddim --steps 5 --quiet")
    assert out.splitlines()[0] == "height;weight;town;since"
    assert len(out.splitlines()) == 4


def test_evaluate_judges_a_model_and_a_file(capsys, folder, tmp_path):
    shifted = people(60, 1).assign(height=lambda f: f["height"] + 30)
    shifted.to_csv(tmp_path / "off.csv", index=False)
    line = f"evaluate {tmp_path}/off.csv @real.csv --out {tmp_path}/report --json --quiet"
    out, err = call(capsys, folder, line, 1)
    assert not json.loads(out)["ok"]
    assert "height" in err
    page = (tmp_path / "report" / "index.html").read_text()
    assert "Samples of off.csv compared with" in page
    code = main(
        ["evaluate", f"{folder}/m", f"{folder}/held.csv", "--n", "60", "--json", "--quiet"]
    )
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert code in (0, 1)
    assert "lower bound" in rows["log-likelihood"]["note"]
    _, err = call(capsys, folder, "evaluate @m @held.csv --label town --quiet", 2)
    assert "--label is for models of plain numbers" in err


def test_rank_puts_what_is_strange_first(capsys, folder, tmp_path):
    odd = people(40, 2)
    odd.loc[7, "weight"] = 30.0
    odd.loc[20, "town"] = "Lugano"
    odd.to_csv(tmp_path / "odd.csv", index=False)
    out = tmp_path / "rank.csv"
    call(capsys, folder, f"evaluate @m {tmp_path}/odd.csv --rank {out} --quiet")
    found = pd.read_csv(out, sep=";", decimal=",")
    assert found["row"].tolist()[:2] == [21, 8]
    assert found["rank"].tolist() == list(range(1, 41))
    nats = found["log_density"].astype(str).str.replace(",", ".").astype(float)
    assert nats.is_monotonic_increasing
    assert np.isneginf(nats[0])
    assert found["why"][0] == "column 'town' has 'Lugano', which no training row had"
    assert found["why"][1:].isna().all()
    _, err = call(capsys, folder, f"evaluate @m @held.csv --rank {out} --quiet", 2)
    assert "--force" in err
    _, err = call(capsys, folder, f"evaluate @m @held.csv --rank {out} --n 3 --quiet", 2)
    assert "--n is for judging samples" in err


def test_rank_of_numbers(capsys, tmp_path):
    x = np.random.default_rng(0).normal(size=(200, 2))
    x[11] = 6
    np.savetxt(tmp_path / "x.csv", x, "%.4f", ",")
    call(capsys, tmp_path, "fit @x.csv --out @m --steps 80 --width 16 --quiet")
    assert "table" not in checkpoint.read_config(tmp_path / "m")["extra"]  # numbers without names
    call(capsys, tmp_path, "evaluate @m @x.csv --rank @r.csv --quiet")
    found = pd.read_csv(tmp_path / "r.csv")
    assert found.columns.tolist() == ["row", "0", "1", "log_density", "rank"]
    assert found["row"][0] == 12


def test_info_of_a_table(capsys, folder):
    out, _ = call(capsys, folder, "info @m")
    assert "number in steps of 1" in out
    assert "category of 2 levels, apart from missing" in out
    for what in ("m", "real.csv"):
        found = json.loads(call(capsys, folder, f"info @{what} --json")[0])
        assert list(found["columns"]) == ["height", "weight", "town", "since"]


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="signals of POSIX")
def test_an_interrupted_table_is_saved_and_goes_on(capsys, folder, tmp_path, monkeypatch):
    """Every checkpoint holds the table, and the resumed run ends as the unbroken one, bit for bit."""
    from gradlogp.interfaces import estimator

    real = estimator.fit

    def fit(*arguments, **options):
        for record in real(*arguments, **options):
            if record.step == 10:
                os.kill(os.getpid(), signal.SIGTERM)
            yield record

    line = f"fit @real.csv --out {tmp_path}/m {' '.join(QUICK)}"
    with monkeypatch.context() as patch:
        patch.setattr(estimator, "fit", fit)
        _, err = call(capsys, folder, line, 128 + signal.SIGTERM)
    assert "is saved; continue with --resume" in err
    torch.set_default_dtype(torch.float32)
    assert checkpoint.read_run(tmp_path / "m")["step"] == 10
    out, _ = call(capsys, folder, f"sample {tmp_path}/m --n 3 --quiet")
    assert out.startswith("height;weight;town;since\n")
    _, err = call(capsys, folder, f"{line} --resume --drop town", 1)
    assert "made from a different table: columns town differ" in err
    call(capsys, folder, f"{line} --resume")
    ours, whole = (checkpoint.load(p / "m").state_dict() for p in (tmp_path, folder))
    assert all(torch.equal(v, whole[k]) for k, v in ours.items())
    out, _ = call(capsys, folder, f"{line} --resume")  # nothing is left to do
    assert "held-out loss" in out


@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        ("fit @real.csv --out @x --drop tone", 1, "no column 'tone'; did you mean 'town'?"),
        ("fit @real.csv --out @x --as town=thing", 2, "--as needs column=kind"),
        ("fit @real.csv --out @x --as town=number", 1, "drop them with --drop 'town'"),
        ("fit @real.csv --out @x --as town=date", 1, "column 'town' cannot be a date"),
        ("fit @real.csv --out @x --as height=date", 1, "it holds numbers, such as 1"),
        ("impute @m @mixed.csv --out @x.csv", 1, "mixed.csv lacks columns: height, weight, town"),
        ("fit @real.csv --out @x --columns tone", 1, "did you mean 'town'?"),
        ("fit @real.csv --out @x --class-conditional", 2, "name a column with --label"),
        ("fit @real.csv --out @x --label town --table", 2, "--label is for numeric data"),
        ("fit @real.csv --out @x --no-table --drop town", 2, "--drop is for table models"),
        ("fit moons --out @x --table", 2, "--table is for table files, and moons is not one"),
        ("fit moons --out @x --missing ?", 2, "--missing is for table models"),
        ("fit @none.csv --out @x", 2, "no such file"),
        ("fit @inf.csv --out @x", 1, "or read them as missing values with --missing inf,-inf"),
        (
            "fit @marks.csv --out @x",
            1,
            "--missing '?' reads them as missing values, --as hp=category",
        ),
        ("fit @mixed.csv --out @x --label kind", 1, "--columns 'a', or use"),
        ("sample @m --out @x.npy", 2, "use one of .csv, .tsv"),
        ("sample @m --class Bern", 2, "a table model has no classes"),
        ("sample --target @m", 2, "was trained on a table"),
        ("geometry @m --data @real.csv", 2, "was trained on a table"),
        ("restore @m --task denoise --image @real.csv --out @x.png", 2, "trained on a table"),
        ("evaluate @m moons", 2, "moons is not a table file"),
        ("evaluate @real.csv @held.csv --n 5", 2, "--n is for a checkpoint"),
        ("evaluate @m @mixed.csv", 1, "lacks columns: height, weight, town, since"),
    ],
)
def test_what_is_refused(capsys, folder, line, code, says):
    (folder / "inf.csv").write_text("a,b\n" + "".join(f"{i},{i}\n" for i in range(30)) + "1,inf\n")
    marks = "".join(f"{i if i % 20 else '?'},{i}\n" for i in range(90))
    (folder / "marks.csv").write_text("hp,w\n" + marks)
    (folder / "mixed.csv").write_text(
        "a,kind,t\n" + "".join(f"{i},k{i % 2},u{i % 3}\n" for i in range(30))
    )
    _, err = call(capsys, folder, f"{line} --quiet" if "--task" not in line else line, code)
    assert says in err
    assert err.count("\n") == 1
    assert not (folder / "x").exists()
