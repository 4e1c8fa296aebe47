"""Checkpoints that were edited: each is read as what it was, or refused in one readable line."""

import json
import math
import os
import random
import shutil
from collections import Counter

import pytest
import torch
from checkpoint_support import both, estimator, make_sums, outcomes, sampled, trained_on

from gradlogp.interfaces.cli import main
from gradlogp.learn import checkpoint

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
    pytest.mark.usefixtures("float32"),
]
NO = "missing"
VALUES = (
    NO,
    None,
    True,
    -1,
    0,
    0.5,
    2**40,
    10**400,
    1e300,
    math.nan,
    "text",
    "",
    [],
    ["a"],
    {},
    {"a": 1},
)
"""What a field of JSON, or a number of the training state, becomes."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A checkpoint of a training that stopped two steps before its end."""
    torch.set_default_dtype(torch.float32)
    path = tmp_path_factory.mktemp("whole") / "run"

    def stop(record):
        if record.step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        estimator(path, callback=stop)
    return path


def places(tree, at=()):
    """The way to each field of nested dicts and lists, the inner ones too."""
    items = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    for key, value in items:
        yield (*at, key)
        if isinstance(value, dict) or (isinstance(value, list) and len(value) < 8):
            yield from places(value, (*at, key))


def edited(tree, at, value):
    """Return a copy with one field changed, gone, or (a way that ends nowhere) new."""
    if len(at) > 1:
        copy = tree.copy()
        copy[at[0]] = edited(tree[at[0]], at[1:], value)
        return copy
    copy = tree.copy()
    if value is NO and isinstance(tree, list):
        del copy[at[0]]
    elif value is NO:
        copy.pop(at[0])
    else:
        copy[at[0]] = value
    return copy


def dicts(tree, at=()):
    """The way to each dict."""
    yield at
    for way in places(tree, at):
        inner = tree
        for key in way:
            inner = inner[key]
        if isinstance(inner, dict):
            yield way


def of_config(path):
    """Edits of config.json: every field becomes everything, every object gets one more field."""
    config = json.loads((path / "config.json").read_text())
    changes = [(at, value) for at in places(config) for value in VALUES]
    changes += [((*at, "surprise"), 1) for at in dicts(config)]
    changes += [
        (("format_version",), 3),
        (("extra", "estimator", "parameters", "checkpoint"), "/tmp/x"),
    ]

    def case(at, value):
        text = json.dumps(edited(config, at, value))
        return lambda path: (path / "config.json").write_text(text)

    return [
        (f"config.json {'.'.join(map(str, at))} = {value!r:.30}", case(at, value))
        for at, value in changes
    ]


def strange(value):
    """What a tensor becomes."""
    yield from (NO, None, "text", 3, [], value.flatten()[:0], torch.cat([value.reshape(-1)] * 2))
    yield value.bool() if value.dtype != torch.uint8 else value.float()
    yield value.to(torch.complex64)
    yield torch.zeros(()).expand(2**20, 2**20)  # four TiB, of four bytes
    if value.is_floating_point():
        yield from (torch.full_like(value, bad) for bad in (math.nan, math.inf, 1e38, -1.0))
    else:
        yield from (torch.full_like(value, bad) for bad in (0, 255, 7))
    yield torch.empty(value.shape, device="meta")
    yield value.to_sparse() if value.ndim else value[None]


def of_training(path):
    """Edits of training.pt: every number, container and tensor becomes everything."""
    state = torch.load(path / "training.pt", weights_only=True)
    changes = []
    for at in places(state):
        value = state
        for key in at:
            inside, value = value, value[key]
        alike = (
            [k for k, v in inside.items() if isinstance(v, torch.Tensor)]
            if isinstance(inside, dict)
            else []
        )
        if at[-1] in alike[2:]:
            continue  # two of many weights stand for all
        changes += [
            (at, v) for v in (strange(value) if isinstance(value, torch.Tensor) else VALUES)
        ]
    changes += [((*at, "surprise"), 1) for at in dicts(state)]

    def case(at, value):
        return lambda path: torch.save(edited(state, at, value), path / "training.pt")

    def name(value):
        return (
            f"{value.dtype} {tuple(value.shape)}"
            if isinstance(value, torch.Tensor)
            else f"{value!r:.30}"
        )

    return [
        (f"training.pt {'.'.join(map(str, at))} = {name(v)}", case(at, v)) for at, v in changes
    ]


def at_random(path, other, rng):
    """One random damage of a file: flipped bytes, truncation, bytes lost or repeated, a swap."""
    files = sorted(f.name for f in path.iterdir())
    name, kind = (
        rng.choice(files),
        rng.choice(
            ["flip", "flip", "flip", "cut", "gone", "twice", "zeros", "other", "swap", "delete"]
        ),
    )
    content = (path / name).read_bytes()
    i, j = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    spots, more = (
        [
            (rng.randrange(len(content)), 1 << rng.randrange(8))
            for _ in range(rng.choice([1, 1, 3]))
        ],
        rng.choice(files),
    )

    def case(path):
        data = bytearray(content)
        if kind == "flip":
            for spot, bit in spots:
                data[spot] ^= bit
        elif kind == "swap":
            (path / more).rename(path / "x")
            if name != more:
                (path / name).rename(path / more)
            (path / "x").rename(path / name)
            return
        elif kind == "delete":
            (path / name).unlink()
            return
        elif kind == "other":
            data = (other / name).read_bytes()
        else:
            data[i:j] = {"cut": b"", "gone": b"", "twice": data[i:j] * 2, "zeros": bytes(j - i)}[
                kind
            ]
            data = data[:i] if kind == "cut" else data
        (path / name).write_bytes(data)

    return f"{name} {kind} {i}:{j} {spots}", case


def report(cases, found, *, accept):
    """Print the counts; fail with every case that went wrong."""
    counts = Counter(word for word, _ in found)
    print(f"{len(found)} edits: {dict(counts)}")
    for word in ("accepted", "same"):
        print(word, [name for (name, _), (w, _) in zip(cases, found, strict=True) if w == word])
    wrong = [
        f"{word}: {name}: {text[:150]}"
        for (name, _), (word, text) in zip(cases, found, strict=True)
        if word not in ("same", "refused", *accept)
    ]
    assert not wrong, "\n".join([f"{len(wrong)} of {len(found)}", *wrong])


def try_all(cases, look, whole, folder, *, resums):
    found = outcomes(look, [case for _, case in cases], whole, folder, resums=resums)
    # with digests made anew, what can be true is taken for true: another number of the same kind
    report(cases, found, accept=("accepted",) if resums else ())
    return found


def some(cases, n, seed):
    return random.Random(seed).sample(cases, n)


def random_cases(whole, folder, n, seed):
    other = folder / "other"
    if not other.exists():
        shutil.copytree(whole, other)
        estimator(other, resume=True)
    rng = random.Random(seed)
    return [at_random(whole, other, rng) for _ in range(n)]


@pytest.mark.parametrize("resums", [False, True], ids=["an accident", "on purpose"])
def test_some_edits(whole, tmp_path, resums):
    for look, make in ((sampled, of_config), (trained_on, of_training)):
        cases = some(make(whole), 8, 1)
        folder = tmp_path / look.__name__
        folder.mkdir()
        try_all(cases, look, whole, folder, resums=resums)
    if not resums:
        try_all(random_cases(whole, tmp_path, 4, 2), both, whole, tmp_path, resums=False)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("resums", [False, True], ids=["an accident", "on purpose"])
@pytest.mark.parametrize(("look", "make"), [(sampled, of_config), (trained_on, of_training)])
def test_every_edit(whole, tmp_path, look, make, resums):
    cases = make(whole)
    assert len(cases) >= 394
    try_all(cases, look, whole, tmp_path, resums=resums)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_200_random_edits(whole, tmp_path):
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    try_all(random_cases(whole, tmp_path, 200, seed), both, whole, tmp_path, resums=False)


def test_the_harness_sees_a_reader_that_believes(whole, tmp_path, monkeypatch):
    """Negative control: without digests a flipped weight is taken for true."""
    weights = (whole / "model.safetensors").read_bytes()

    def flip(path):
        (path / "model.safetensors").write_bytes(
            weights[:-2] + bytes([weights[-2] ^ 1]) + weights[-1:]
        )

    cases = [("flip", flip)]
    assert outcomes(sampled, [flip], whole, tmp_path, resums=False)[0][0] == "refused"
    shutil.rmtree(tmp_path / "right")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "verify", lambda _: None)
        with pytest.raises(AssertionError, match="accepted: flip"):
            try_all(cases, sampled, whole, tmp_path, resums=False)


def test_the_harness_sees_hangs_and_deaths(whole, tmp_path):
    """Negative control: a reader that hangs, dies, or raises an unexpected error."""

    def look(path):
        text = (path / "run.json").read_text()
        if text == "hang":
            while True:
                pass
        if text == "die":
            os._exit(9)
        if text == "large":
            bytearray(2**31)
        return text

    cases = [
        lambda path, t=t: (path / "run.json").write_text(t) for t in ("hang", "die", "large", "x")
    ]
    found = outcomes(look, cases, whole, tmp_path, resums=False, seconds=1)
    assert [word for word, _ in found] == ["hang", "died", "traceback", "accepted"]
    assert found[2][1].startswith("MemoryError")


def test_paths_of_a_stranger_are_not_obeyed(whole, tmp_path, capsys):
    """A checkpoint that says where a refit writes is refused, and so by the command line."""
    path = shutil.copytree(whole, tmp_path / "run")
    file = path / "config.json"
    config = json.loads(file.read_text())
    for name, value in (
        ("checkpoint", str(tmp_path / "pwned")),
        ("resume", True),
        ("device", "cuda"),
    ):
        parameters = config["extra"]["estimator"]["parameters"] | {name: value}
        kept = config["extra"]["estimator"] | {"parameters": parameters}
        file.write_text(json.dumps(config | {"extra": {"estimator": kept}}))
        make_sums(path)
        assert main(["sample", str(path), "--n", "2", "--quiet"]) == 1
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert f"config.json is damaged: extra.estimator.parameters: {name} cannot be" in said
    assert not (tmp_path / "pwned").exists()
