"""Random command lines: none ends in a traceback, another exit code, or files where none belong."""

import os
import random
import shlex
import shutil
import types
import typing

import numpy as np
import pytest
import torch
from attempts import attempt, complaints
from few_support import at_few_levels
from PIL import Image

from gradlogp.interfaces.cli.main import app

pytestmark = [
    pytest.mark.usefixtures("as_user", "float32", "few_levels"), pytest.mark.timeout(0),
]  # fmt: skip

SEED = int(os.environ.get("SEED", "0"))
NUMBERS = {
    int: ["1", "2", "3", "7", "0", "-1", "1.5", "many", "", "nan", "1e3", "9" * 20, "٣"],
    float: ["0.1", "0.5", "2", "1", "0", "-1", "nan", "inf", "1e-300", "1e400", "much", ""],
}
"""Sense and nonsense of every type; none so large that it is work for hours."""

DATA = [
    "../in/points.csv", "../in/classes.csv", "../in/points.npy", "../in/images.npy", "../in/odd.npy",
    "../in/broken.npy", "../in/empty.csv", "../in/folder", "../in/missing.csv", "digitz", "", ".",
    "../in/model", "../in/table.csv", "../in/whole",
]  # fmt: skip
MODELS = [
    "../in/model",
    "../in/classes",
    "../in/given",
    "../in/pictures",
    "../in/whole",
    "../in/table.csv",
    "../in/points.csv",
    "missing",
    "",
    ".",
]
WORDS = {
    "data": DATA, "train": DATA, "what": [*DATA, *MODELS], "checkpoint": MODELS, "start": MODELS,
    "columns": ["a,b", "a", "b,zz", "", ",", "a,a", "kind"], "label": ["kind", "a", "zz", ""],
    "class": ["left", "right", "lefd", "", "3"], "device": ["cpu", "cuda:99", "meta", "gpu", ""],
    "target": ["gaussian", "ring", "rang", "../in/target.py:f", "../in/target.py:none",
               "../in/target.py:raises", "../in/target.py:wrong", "missing.py:f", "../in/model",
               "../in/classes", ":", ""],
    "source": ["mixture", "moons", "gaussian", "../in/target.py:wrong", "../in/target.py:raises",
               "funnel", "../in/classes", "../in/whole", "../in/missing.csv", "", "."],
    "out": ["new", "new.npy", "new.npz", "new.csv", "new.png", "new.txt", "deep/er/new.png",
            "/dev/null/x.png", "../in/points.csv/x.npy", "", ".", "new.npz/x.npz"],
    "image": ["../in/one.png", "../in/one.npy", "../in/colour.png", "../in/broken.npy", "missing.png",
              "../in/model", ""],
    "mask": ["../in/one.png", "../in/colour.png", "../in/empty.csv", "missing.png"],
    "only": ["statistics.weight_at_4", "statistics.wait", ""], "name": ["strs", "", "moons"],
    "box": ["2 6 2 6", "0 8 0 8", "6 2 2 6", "-1 3 0 4", "1 2 3", "x y z w"],
    "values": ["0 16", "nan 1", "1 0", "1"], "ema-half-lives": ["2", "0", "2 2", "x"],
    "as": ["kind=category", "a=number", "a", "b=x", "=", "kind=number", "zz=date"],
    "drop": ["a", "a,b", "zz", "", "kind"], "missing": ["?", "inf", "", "x,y"],
    "rank": ["new.csv", "new.parquet", "new.csv.gz", "new.npy", "", ".", "../in/points.csv"],
    "condition": ["b", "a,b", "zz", "kind", ""],
    "given": ["b=1", "b=1,a=2", "../in/points.csv", "b=x", "missing.csv", "../in", ""],
    "seed": ["0", "1", "-1", "9" * 20, "x"], "threads": ["1", "0", "-3", "x"],
    "size": ["8", "8x8", "0", "x", ""],
    "config": ["../in/good.toml", "../in/bare.toml", "../in/typo.toml", "../in/empty.csv", "none.toml",
               "."],
}  # fmt: skip
NEVER = {"compile", "burn-in", "thin"}
"""What takes minutes, and what is refused whatever it is."""

CHEAP: dict[str, dict[str, str | None]] = {
    "fit": {"steps": "2", "quiet": None}, "evaluate": {"n": "12", "quiet": None},
    "sample": {"n": "4", "steps": "2"}, "target": {"draws": "5", "warmup": "5", "chains": "2"},
    "restore": {"n": "1", "steps": "2"}, "geometry": {"points": "2"}, "verify": {"quick": None},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Inputs in in/, from which nothing may be taken and to which nothing may be added; and run/."""
    torch.set_default_dtype(torch.float32)
    root = tmp_path_factory.mktemp("lines")
    (root / "run").mkdir()
    at, rng = root / "in", np.random.default_rng(0)
    (at / "folder").mkdir(parents=True)
    x = rng.normal(size=(40, 2))
    lines = [f"{a:.4f},{b:.4f}" for a, b in x]
    (at / "points.csv").write_text("\n".join(["a,b", *lines]))
    kinds = [
        f"{line},{'left' if a < 0 else 'right'}" for line, a in zip(lines, x[:, 0], strict=True)
    ]
    (at / "classes.csv").write_text("\n".join(["a,b,kind", *kinds]))
    (at / "empty.csv").touch()
    mixed = [
        "a;b;kind;when",
        *(f"{i},5;{'' if i % 5 else i};x{i % 3};{i + 1}.1.2020" for i in range(24)),
    ]
    (at / "table.csv").write_text("\n".join(mixed))
    (at / "broken.npy").write_bytes(b"\x93NUMPY\x01\x00")
    np.save(at / "points.npy", x)
    np.save(at / "images.npy", rng.random((24, 1, 8, 8)).astype(np.float32))
    np.save(at / "odd.npy", rng.random((24, 1, 3, 3)).astype(np.float32))
    np.save(at / "one.npy", rng.random((1, 8, 8)))
    for name, shape in (
        ("one", (8, 8)),
        ("colour", (8, 8, 3)),
        ("folder/a", (8, 8)),
        ("folder/b", (8, 8)),
    ):
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(at / f"{name}.png")
    (at / "target.py").write_text(
        "def f(x):\n    return -x.square().sum(1) / 2\n"
        "def raises(x):\n    raise KeyError('no')\ndef wrong(x):\n    return x\n"
    )
    (at / "good.toml").write_text("[fit]\nsteps = 1\n[sample]\nseed = 3\n")
    (at / "bare.toml").write_text("steps = 1\n")
    (at / "typo.toml").write_text("[fit]\nstepz = 1\n")
    for name, data, *more in (
        ("model", "points.csv", "--width", "4", "--no-table"), ("pictures", "images.npy"),
        ("classes", "classes.csv", "--label", "kind", "--width", "4"),
        ("whole", "table.csv", "--width", "4"),
        ("given", "points.csv", "--condition", "b", "--width", "4"),
    ):  # fmt: skip
        with at_few_levels():
            done = attempt("fit", at / data, "--out", at / name, "--steps", "2", "--quiet", *more)
        assert done.code == 0, done
    return root


def options(command):
    """Return the options of a command: their names, each with its type."""
    found = {}
    for argument in app[command].assemble_argument_collection():
        name = argument.names[0].removeprefix("--")
        if argument.names[0] != "*" and name not in NEVER:
            found[name] = argument.hint
    return found


def value(rng, name, hint):
    """Draw a value: None for a switch that is set."""
    if name in WORDS:
        return rng.choice(WORDS[name][: rng.choice([2, None])])
    parts = [part for part in typing.get_args(hint) if part is not types.NoneType] or [hint]
    if bool in parts:
        return None
    for kind in (int, float):
        if kind in parts:
            return rng.choice(NUMBERS[kind][: rng.choice([3, None])])
    words = [w for part in parts for w in typing.get_args(part) or (part,)]
    slips = [words[0][:-1], ""] if rng.random() < 0.2 else words
    return rng.choice(slips)


def tokens(name, found):
    return [f"--{name}", *([] if found is None else shlex.split(found) or [""])]


def draw(rng):
    """Return one random command line."""
    command = rng.choice([c for c in app if not c.startswith("-")])
    known = options(command)
    first = [
        n for n in ("name", "checkpoint", "task", "data", "image", "only", "source") if n in known
    ]
    if command == "sample" and rng.random() < 0.5:
        first = ["target"]
    if command == "sample-size":
        first = [rng.choice(["dim", "data"])]
    if "out" in known and rng.random() < 0.7:
        first.append("out")
    chosen: dict[str, str | None] = {name: None for name in first if rng.random() < 0.95}
    for name in rng.sample(sorted(known), min(len(known), rng.choice([0, 0, 1, 1, 2, 3, 5]))):
        chosen[name] = None
    for name in chosen:  # half of the time something sensible, so that commands go on
        sense = name in first and name in WORDS and name != "name" and rng.random() < 0.6
        chosen[name] = WORDS[name][rng.randrange(3)] if sense else value(rng, name, known[name])
    cheap = CHEAP.get("target" if "target" in chosen else command, {})
    chosen = {**cheap, **chosen}
    if command == "demo":
        chosen["name"] = rng.choice(WORDS["name"])  # a demonstration itself takes a minute
    if command == "verify" and not chosen.get("only"):
        chosen["only"] = "statistics.weight_at_4"
    line = [command, *(t for name, v in chosen.items() for t in tokens(name, v))]
    if rng.random() < 0.1:  # a slip of the finger, somewhere
        at = rng.randrange(len(line))
        line[at] = line[at][:-1] if rng.random() < 0.7 and line[at] else line[at] + "x"
    if rng.random() < 0.05:
        line.append(rng.choice(["extra", "--help", "-h", "--version", "--", "-x", "--=", "-1"]))
    if rng.random() < 0.1:
        line = ["--config", rng.choice(WORDS["config"]), *line]
    return line


def listing(path):
    return {p: (p.lstat().st_size, p.lstat().st_mtime_ns) for p in path.rglob("*")}


def walk(folder, monkeypatch, n, seed):
    """Run n random command lines; return what is wrong with them, and how many had each exit code."""
    shutil.rmtree(folder / "run")  # what others have left would be refused, not replaced
    (folder / "run").mkdir()
    monkeypatch.chdir(folder / "run")
    rng, wrong, codes = random.Random(seed), [], {}
    inputs, outside = listing(folder / "in"), set(folder.iterdir())
    for number in range(n):
        line = draw(rng)
        before = listing(folder / "run")
        outcome = attempt(*line)
        found = complaints(outcome)
        if listing(folder / "in") != inputs or set(folder.iterdir()) != outside:
            found.append("wrote outside its folder")
            inputs, outside = listing(folder / "in"), set(folder.iterdir())
        if outcome.code == 2 and listing(folder / "run") != before:
            found.append("wrote something, and was misuse")
        wrong += [f"seed {seed}, line {number}: {shlex.join(line)}: {text}" for text in found]
        codes[outcome.code] = codes.get(outcome.code, 0) + 1
    return wrong, codes


def test_random_command_lines(folder, monkeypatch):
    wrong, codes = walk(folder, monkeypatch, 20, SEED)
    print(f"SEED={SEED}: {codes}")
    assert not wrong, "\n".join(wrong)
    assert min(codes[0], codes[2]) >= 2, codes  # not all the same


@pytest.mark.slow
def test_five_thousand_random_command_lines(folder, monkeypatch):
    wrong, codes = walk(folder, monkeypatch, 5000, SEED + 1)
    print(f"SEED={SEED}: {codes}")
    assert not wrong, f"{len(wrong)} of 5000\n" + "\n".join(wrong)


def test_the_harness_sees_commands_that_break(folder, monkeypatch):
    """Negative control: an unforeseen error, a stray file, and another exit code."""
    from gradlogp.interfaces.cli import check, learn, use

    def broken(*arguments, **options):
        raise KeyError("x")

    def stray(*arguments, **options):
        (folder / "stray").touch()
        raise ValueError("no")

    monkeypatch.setattr(use, "load_estimator", broken)
    monkeypatch.setattr(learn, "table_to_learn", stray)
    monkeypatch.setattr(check, "print_table", lambda *a, **k: (_ for _ in ()).throw(SystemExit(7)))
    seen = "\n".join(walk(folder, monkeypatch, 30, 2)[0])
    (folder / "stray").unlink()
    for complaint in ("nobody foresaw", "wrote outside its folder", "raised SystemExit(7)"):
        assert complaint in seen
