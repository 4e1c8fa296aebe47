"""Checkpoints: what is in them, what comes back, and that no failure loses the old one."""

import contextlib
import errno
import hashlib
import json
import os
import sys
import tempfile
import traceback

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import seeded
from torch import nn

import gradlogp as glp
from gradlogp import schedules
from gradlogp.learn import checkpoint, folders
from gradlogp.learn.checkpoint import load, read_config, read_run, save

FILES = ["SHA256SUMS", "config.json", "model.safetensors", "run.json", "training.pt"]


def mlp(seed=0, schedule=None):
    network = glp.MLP(2, 8, 1, generator=seeded(seed))
    nn.init.normal_(network.outlet.weight, generator=seeded(seed + 1))
    return glp.ScoreModel(network, schedule or schedules.VP(), "v").eval()


def unet():
    network = glp.UNet((1, 8, 8), (8, 16), condition=3, generator=seeded(0))
    nn.init.normal_(network.outlet.weight, generator=seeded(1))
    return glp.ScoreModel(network, schedules.Cosine(), "epsilon").eval()


class Own(nn.Module):
    """A network of the user's, with two names for one weight and a view of a larger tensor."""

    def __init__(self, seed=0):
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.second = nn.Linear(2, 2)
        self.second.weight = self.first.weight
        whole = torch.randn(3, 4, generator=seeded(seed))
        self.register_buffer("part", whole[:2, :2].mT)

    def forward(self, x, c):
        return self.second(self.first(x).tanh()) @ self.part + c[:, None]


def own(seed=0):
    return glp.ScoreModel(Own(seed), schedules.VP(), event_shape=(2,)).eval()


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(a, b):
    """Check that two models are the same, bit for bit."""
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert (a.schedule, a.predicts, a.event_shape) == (b.schedule, b.predicts, b.event_shape)
    x = torch.randn(5, *a.event_shape, generator=seeded(3)).to(a.like)
    if a.condition is not None:
        a, b = (model.given(torch.tensor([0, 1, 2, 1, 0])) for model in (a, b))
    for t in (torch.tensor(0.3).to(x), torch.linspace(0.1, 1, 5).to(x)):
        assert torch.equal(a(x, t), b(x, t))
        assert torch.equal(a.denoise(x, t), b.denoise(x, t))


def trained(path, **options):
    """Train a little with a checkpoint at path and return the model."""
    model = mlp()
    x = torch.randn(50, 2, generator=seeded(0)) * 3 + 1
    list(glp.fit(model, x, checkpoint=path, steps=5, batch_size=10, **options))
    return model


def contents(folder):
    return {
        str(item.relative_to(folder)): item.read_bytes()
        for item in folder.rglob("*")
        if item.is_file()
    }


def refused(call, *parts):
    """Check that a call is refused with one line that has all these parts."""
    with pytest.raises(ValueError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    for part in parts:
        assert str(part) in message
    return message


# ---------------------------------------------------------------------------- contents


def test_a_trained_checkpoint_has_five_files_and_averaged_weights(tmp_path):
    model = trained(tmp_path / "run", standardize=True)
    assert sorted(contents(tmp_path)) == [f"run/{name}" for name in FILES]
    stored = load_file(tmp_path / "run" / "model.safetensors")
    assert stored.keys() == model.state_dict().keys()
    assert all(torch.equal(stored[k], v) for k, v in model.state_dict().items())  # averaged
    raw = torch.load(tmp_path / "run" / "training.pt", weights_only=True)["model"]
    assert not torch.equal(raw["network.inlet.weight"], stored["network.inlet.weight"])
    equal(load(tmp_path / "run"), model)


def test_a_base_comes_back_and_what_it_cannot_be_is_refused(tmp_path, as_user):
    law = glp.GaussianMixture([0.3, 0.7], [[-2.0, 0.5], [1.0, -1.0]], [[0.5, 1.0], [0.8, 0.3]])
    network = glp.MLP(2, 8, 1, generator=seeded(0))
    model = glp.ScoreModel(network, schedules.VP(), "v", base=law).eval()
    model.base.share.copy_(torch.linspace(0, 1, len(model.base.share)))
    save(tmp_path / "run", model)
    equal(load(tmp_path / "run"), model)
    for name, value in (
        ("weights", torch.tensor([0.3, 0.8])), ("values", -torch.ones(2, 2)),
        ("share", torch.full_like(model.base.share, 1.5)), ("span", torch.tensor([1.0, 1.0])),
    ):  # fmt: skip
        state = model.state_dict() | {f"base.{name}": value}
        save(tmp_path / name, model, weights=state)
        refused(lambda name=name: load(tmp_path / name), f"damaged: base.{name} is out of range")


def test_averages_of_several_half_lives(tmp_path, as_user):
    x = torch.randn(50, 2, generator=seeded(0)) * 3 + 1
    options = {"steps": 400, "batch_size": 10, "learning_rate": 0.02, "warm_up": 2}
    model, raw = mlp(), []
    lives, path = (1.0, 2.5, 100.0), tmp_path / "run"
    for _ in glp.fit(
        model, x, checkpoint=path, ema_half_lives=lives, standardize=True, generator=seeded(1),
        **options,
    ):  # fmt: skip
        raw.append(weights(model))
        if len(raw) == 90:  # while the learning rate is high, and averages differ
            break
    assert sorted(contents(path)) == sorted([*FILES, "averages.safetensors"])
    equal(load(path), model)  # what was there before stays what it was
    for life in lives:
        expected = dict(raw[0])
        for n, theta in enumerate(raw[1:], 1):
            d = min(0.5 ** (1 / life), (1 + n) / (10 + n))
            averaged = {k for k in theta if k.startswith("network.")}
            expected = {k: d * expected[k] + (1 - d) * theta[k] for k in averaged}
        got = load(path, ema=life)
        for name, value in got.state_dict().items():
            right = expected[name] if name in expected else raw[-1][name]
            torch.testing.assert_close(value, right, rtol=1e-10, atol=1e-12)
        assert not got.training
    ends = [load(path, ema=life).network.outlet.weight for life in lives]
    assert (ends[0] - ends[1]).abs().max() > 1e-3
    assert (ends[1] - ends[2]).abs().max() > 1e-3
    shift = torch.nn.utils.parameters_to_vector(load(path, ema=1).network.parameters())
    last = torch.cat([v.flatten() for k, v in raw[-1].items() if k.startswith("network.")])
    slow = torch.nn.utils.parameters_to_vector(load(path, ema=100).network.parameters())
    assert (shift - last).norm() < (slow - last).norm()  # the shorter one is nearer to the end
    refused(lambda: load(path, ema=3), "no average of half-life 3; it has 1, 2.5, 100")
    save(path, model)  # an old file of averages does not outlive its checkpoint
    assert "averages.safetensors" not in contents(path)
    refused(lambda: load(path, ema=2), "only one average")


def test_a_damaged_file_of_averages(tmp_path, as_user):
    trained(tmp_path / "run", ema_half_lives=(3,))
    load(tmp_path / "run", ema=3)
    (tmp_path / "run" / "averages.safetensors").write_bytes(b"half")
    refused(lambda: load(tmp_path / "run", ema=3), "averages.safetensors is damaged")


def test_coordinates_condition_and_columns_come_back(tmp_path):
    """What was fitted to data far from 0 comes back bit for bit, in float64."""
    g = seeded(0)
    x = 1e7 + torch.randn(60, 2, dtype=torch.float64, generator=g) * torch.tensor([1.0, 1e-3])
    y = 5 + 3 * torch.randn(60, 4, dtype=torch.float64, generator=g)
    network = glp.MLP(2, 8, 1, condition=(4,), generator=seeded(1)).float()
    model = glp.ScoreModel(network, schedules.VE(0.1, 5.0), "v").float()
    model.columns = ("a", "π")
    run = {"condition": y, "batch_size": 10, "condition_dropout": 0.5, "standardize": True}
    list(glp.fit(model, x, steps=3, checkpoint=tmp_path / "run", **run))
    back = load(tmp_path / "run")
    assert back.columns == ("a", "π")
    assert back.coordinates.scale.dtype == torch.float64
    assert weights(back).keys() == weights(model).keys()
    for name, value in weights(model).items():
        assert torch.equal(value, weights(back)[name]), name
    z = torch.randn(5, 2, dtype=torch.float32, generator=g)
    assert torch.equal(back.coordinates.decode(z), model.coordinates.decode(z))
    assert back.coordinates.decode(z).dtype == torch.float64
    t = torch.tensor(0.5)
    assert torch.equal(back.given(y[:1])(z, t), model.given(y[:1])(z, t))
    assert torch.equal(back.unconditional()(z, t), model.unconditional()(z, t))
    resumed = glp.ScoreModel(glp.MLP(2, 8, 1, condition=(4,)).float(), model.schedule, "v").float()
    list(glp.fit(resumed, x, steps=3, checkpoint=tmp_path / "run", resume=True, **run))
    for name, value in weights(model).items():
        assert torch.equal(value, weights(resumed)[name]), name


def test_config_says_what_rebuilds_the_model(tmp_path):
    save(tmp_path / "a", mlp(), extra={"seed": 3})
    config = {
        "format": "gradlogp",
        "format_version": 2,
        "library_version": glp.__version__,
        "network": mlp_of(),
        "schedule": {"name": "VP", "beta_min": 0.1, "beta_max": 20.0},
        "predicts": "v",
        "event_shape": [2],
        "condition": None,
        "base": None,
        "columns": [],
        "extra": {"seed": 3},
    }
    assert json.loads((tmp_path / "a" / "config.json").read_text()) == config
    assert read_config(tmp_path / "a") == config
    save(tmp_path / "b", own())
    assert read_config(tmp_path / "b")["network"] == {"name": "Own"}


def test_run_says_what_was_run(tmp_path):
    trained(tmp_path / "run", held_out=torch.randn(9, 2, generator=seeded(1)), check_every=2)
    run = read_run(tmp_path / "run")
    assert run["step"] == run["settings"]["steps"] == 5
    settings = vars(glp.TrainingSettings(steps=5, batch_size=10, check_every=2))
    assert run["settings"] == json.loads(json.dumps(settings))  # a tuple is a list there
    assert run["seconds"] > 0
    names = ["step", "loss", "held_out", "held_out_error", "excess", "excess_error"]
    assert run["history"]["columns"] == names
    rows = run["history"]["rows"]
    assert [row[0] for row in rows] == [1, 2, 3, 4, 5]
    assert [row[2] is not None for row in rows] == [False, True, False, True, True]
    save(tmp_path / "mine", mlp(), run={"note": "π"})
    assert read_run(tmp_path / "mine") == {"note": "π"}
    assert sorted(contents(tmp_path / "mine")) == FILES[:4]


# ---------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("make", [mlp, unet])
def test_load_gives_an_equal_model(tmp_path, make):
    model = make()
    scales = model.coordinates
    for owner, name in ((model, "z_mean"), (model, "z_std"), (scales, "shift"), (scales, "scale")):
        getattr(owner, name).copy_(torch.rand(model.event_shape, generator=seeded(9)) + 0.5)
    assert save(tmp_path / "a" / "b", model) == tmp_path / "a" / "b"  # the parent is made
    loaded = load(str(tmp_path / "a" / "b"))
    assert not loaded.training
    equal(loaded, model)
    save(tmp_path / "c", loaded)
    for name in ("model.safetensors", "config.json"):
        assert contents(tmp_path / "a" / "b")[name] == contents(tmp_path / "c")[name]


@pytest.mark.parametrize("stored", [torch.float32, torch.float64])
@pytest.mark.parametrize("default", [torch.float32, torch.float64])
def test_the_dtype_is_that_of_the_checkpoint(tmp_path, stored, default):
    model = mlp().to(stored)
    save(tmp_path / "run", model)
    torch.set_default_dtype(default)
    loaded = load(tmp_path / "run")
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    kept = {"coordinates.shift", "coordinates.scale", "coordinates.bits"}
    assert {p.dtype for k, p in theirs.items() if k not in kept} == {stored}
    assert loaded.coordinates.scale.dtype == torch.float64


def test_other_weights_than_the_models_own(tmp_path):
    model, other = mlp(0), mlp(5)
    save(tmp_path / "run", model, weights=other.state_dict())
    equal(load(tmp_path / "run"), other)


@pytest.mark.parametrize(
    "schedule",
    [
        schedules.VE(0.02, 30.0), schedules.VP(0.2, 15.0), schedules.SubVP(0.3, 10.0),
        schedules.Cosine(0.01, 1e-2), schedules.Rectified(),
        schedules.DDPM(torch.linspace(1e-4, 0.02, 50)), schedules.Levels([3.0, 1.0, 0.1]),
        schedules.EDM(0.01, 20.0, 5.0),
    ],
    ids=lambda s: type(s).__name__,
)  # fmt: skip
def test_every_schedule_comes_back(tmp_path, schedule):
    save(tmp_path / "run", mlp(schedule=schedule))
    equal(load(tmp_path / "run"), mlp(schedule=schedule))


def test_these_are_all_schedules():
    case = test_every_schedule_comes_back.pytestmark[0].args[1]
    assert {type(s) for s in case} == set(schedules.SCHEDULES)


def test_a_schedule_of_ones_own_is_refused_at_once(tmp_path):
    class Mine(schedules.VP):
        pass

    refused(lambda: save(tmp_path / "run", mlp(schedule=Mine())), "own schedule Mine")
    assert list(tmp_path.iterdir()) == []


def test_what_could_not_be_read_again_is_not_saved(tmp_path, as_user):
    model = mlp()
    model.columns = ("a", "b", "c")
    refused(lambda: save(tmp_path / "run", model), "this model cannot be saved: columns are 3")
    assert list(tmp_path.iterdir()) == []
    save(tmp_path / "run", mlp(schedule=schedules.VP(0.1, 1000.0)))  # α is 0 to float32
    load(tmp_path / "run")


def test_networks_of_ones_own(tmp_path):
    model = own()
    save(tmp_path / "run", model)
    refused(lambda: load(tmp_path / "run"), "network 'Own' of your own", "pass network=")
    loaded = load(tmp_path / "run", Own(seed=5))
    equal(loaded, model)
    assert loaded.network.first.weight is loaded.network.second.weight
    refused(lambda: load(tmp_path / "run", nn.Linear(2, 2)), "does not fit", "Missing key")

    class MLP(Own):
        pass

    save(tmp_path / "run", glp.ScoreModel(MLP(), schedules.VP(), event_shape=(2,)))
    refused(lambda: load(tmp_path / "run"), "network 'MLP' of your own", "pass network=")


# ---------------------------------------------------------------------------- damage


def test_nothing_there(tmp_path):
    for path in (tmp_path / "x", str(tmp_path / "x")):
        refused(lambda path=path: load(path), f"there is no checkpoint at {tmp_path / 'x'}")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for name in ("empty", "file"):
        refused(lambda name=name: load(tmp_path / name), "config.json is missing")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "is not valid JSON"),
        ('{"format": "gradlogp", ', "is not valid JSON"),
        ("[1, 2]", "does not hold a JSON object"),
        ("{}", "does not belong to a gradlogp checkpoint"),
        ('{"architectures": ["BertModel"]}', "does not belong to a gradlogp checkpoint"),
        ('{"format": "gradlogp"}', "checkpoint format None, this version reads 2"),
        (
            '{"format": "gradlogp", "format_version": 1, "library_version": "0.1.0"}',
            "checkpoint format 1, this version reads 2; it was written by gradlogp 0.1.0",
        ),
        (
            '{"format": "gradlogp", "format_version": 2}',
            "fields missing or unknown: base, columns, ",
        ),
    ],
)
def test_damaged_config(tmp_path, text, part):
    trained(tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text(text)
    refused(lambda: load(tmp_path / "run"), tmp_path / "run", part)
    before = contents(tmp_path)
    if '"format"' not in text or text.endswith(" "):  # nor is it replaced
        refused(lambda: save(tmp_path / "run", mlp()), "is not a gradlogp checkpoint")
        assert contents(tmp_path) == before


def test_config_that_is_not_text(tmp_path):
    trained(tmp_path / "run")
    (tmp_path / "run" / "config.json").write_bytes(b"\xff\xfe\x00{")
    refused(lambda: load(tmp_path / "run"), "is not valid JSON")
    (tmp_path / "run" / "run.json").write_bytes(b"\xff\xfe\x00{")
    refused(lambda: read_run(tmp_path / "run"), "run.json is not valid JSON")


def mlp_of(**changes):
    """What config.json says of the network of `mlp`, changed."""
    same = {
        "name": "MLP",
        "event": [2],
        "width": 8,
        "depth": 1,
        "condition": None,
        "frequencies": [],
    }
    return same | changes


@pytest.mark.parametrize(
    ("key", "value", "part"),
    [
        ("network", mlp_of(widht=8), "network: fields missing or unknown: widht"),
        ("network", {"name": "MLP", "event": [2]}, "missing or unknown: condition, depth, freq"),
        ("network", mlp_of(width=-8), "width must be an integer of at least 1"),
        ("network", mlp_of(width=9), "does not fit the network"),
        ("network", {"name": "Linear", "in_features": 2}, "pass network="),
        ("network", "MLP", "damaged"),
        ("network", {}, "damaged"),
        ("schedule", {"name": "VX"}, "unknown schedule: 'VX'; one of VE, EDM"),
        ("schedule", {"name": "VP", "beta": 1}, "damaged"),
        ("schedule", None, "damaged"),
        ("schedule", {"name": "VP", "beta_min": 0.1, "beta_max": 1e300}, "not finite"),
        ("schedule", {"name": "VP", "beta_min": 0.1}, "missing or unknown: beta_max"),
        ("predicts", "x0", "config.json is damaged: its SHA-256"),  # a right value, but not ours
        ("predicts", "noise", "predicts cannot be 'noise'"),
        ("network", mlp_of(depth=2**40), "depth = 1099511627776 is too much"),
        ("network", mlp_of(event=[2**40]), "too much"),
        ("network", mlp_of(width=1.5), "width cannot be 1.5"),
        ("network", mlp_of(width=True), "width cannot be True"),
        ("network", mlp_of(frequencies=[1.0]), "does not fit the network"),
        ("network", mlp_of(frequencies=[-1.0]), "each of frequencies must be positive and finite"),
        ("network", mlp_of(frequencies=["a"]), "frequencies cannot be"),
        ("columns", [1], "columns cannot be"),
        ("columns", ["a"], "columns are 1, of 2 entries"),
        ("columns", ["a", "\ud800"], "columns cannot be"),
        ("condition", "ten", "condition cannot be"),
        ("base", "gaussian", "base cannot be"),
        ("base", {"components": 2, "rank": 1, "follows": False}, "base cannot be"),
        (
            "base",
            {"components": 1, "rank": 2, "follows": True},
            "base.means has shape None, by base",
        ),
        ("condition", 3, "does not fit the network"),
        ("extra", [], "extra cannot be"),
        ("surprise", 1, "fields missing or unknown: surprise"),
        ("event_shape", [3], "does not fit the network"),
        ("event_shape", 2, "damaged"),
    ],
)
def test_config_with_wrong_entries(tmp_path, as_user, key, value, part):
    path = save(tmp_path / "run", mlp()) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    refused(lambda: load(tmp_path / "run"), part)


@pytest.mark.parametrize("name", FILES[1:])
def test_missing_files(tmp_path, name):
    trained(tmp_path / "run")
    (tmp_path / "run" / name).unlink()
    call = {"run.json": read_run, "training.pt": lambda path: trained(path, resume=True)}
    refused(lambda: call.get(name, load)(tmp_path / "run"), tmp_path / "run")


def test_damaged_weights(tmp_path):
    path = save(tmp_path / "run", mlp()) / "model.safetensors"
    whole = path.read_bytes()
    cuts = [whole[:n] for n in (0, 1, 7, 8, 100, len(whole) // 2, len(whole) - 1)]
    for content in (*cuts, b"\xff" * len(whole), whole + b"\0", b"PK\x03\x04" + whole):
        path.write_bytes(content)
        refused(lambda: load(tmp_path / "run"), path, "is damaged")
    stored = weights(mlp())
    stored["network.inlet.weight"][0, 0] = float("nan")
    save_file(stored, path)
    refused(lambda: load(tmp_path / "run"), path, "network.inlet.weight has entries that are not")
    save_file({}, path)
    refused(lambda: load(tmp_path / "run"), path, "does not fit the network")
    save_file({"x": torch.zeros(2)}, path)
    refused(lambda: load(tmp_path / "run"), path, "does not fit the network")


def resume(path):
    return refused(lambda: trained(path, resume=True), "training.pt")


def test_damaged_training_state(tmp_path):
    trained(tmp_path / "run")
    path = tmp_path / "run" / "training.pt"
    whole = path.read_bytes()
    for n in (0, 1, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:n])
        resume(tmp_path / "run")
    for content in (b"\x80\x02garbage", b"\0" * 5000, b"not a checkpoint"):
        path.write_bytes(content)
        resume(tmp_path / "run")
    for content in ({}, {"setup": {}}, [1, 2], torch.zeros(3)):
        torch.save(content, path)
        resume(tmp_path / "run")
    load(tmp_path / "run")  # the model itself is whole


class Malice:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class Harmless:
    pass


def test_nothing_is_unpickled(tmp_path):
    trained(tmp_path / "run")
    path = tmp_path / "run" / "training.pt"
    state = torch.load(path, weights_only=True)
    for content in (state | {"model": Malice(tmp_path / "pwned")}, Malice(tmp_path / "pwned")):
        torch.save(content, path)
        assert "weights_only" not in resume(tmp_path / "run")  # PyTorch advises to switch it off
        assert not (tmp_path / "pwned").exists()
    torch.save(state | {"extra": Harmless()}, path)
    assert "more than tensors and numbers: refused" in resume(tmp_path / "run")


# ---------------------------------------------------------------------------- what is replaced


def test_what_is_no_checkpoint_is_not_replaced(tmp_path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "anna.txt").write_text("Dear Anna")
    (tmp_path / "bert").mkdir()  # has files of the same names
    (tmp_path / "bert" / "config.json").write_text('{"architectures": ["BertModel"]}')
    (tmp_path / "bert" / "model.safetensors").write_bytes(b"weights of a week")
    (tmp_path / "file").write_text("a file")
    before = contents(tmp_path)
    for name in ("letters", "bert", "file"):
        refused(lambda name=name: save(tmp_path / name, mlp()), name, "choose another directory")
    assert contents(tmp_path) == before
    (tmp_path / "empty").mkdir()
    save(tmp_path / "empty", mlp())
    equal(load(tmp_path / "empty"), mlp())


def test_a_checkpoint_is_replaced_as_a_whole_but_for_files_of_other_names(tmp_path):
    trained(tmp_path / "run")
    (tmp_path / "run" / "report.html").write_text("kept")
    (tmp_path / "run" / "samples").mkdir()
    (tmp_path / "run" / "samples" / "1.png").write_bytes(b"kept")
    save(tmp_path / "run", mlp(5))
    equal(load(tmp_path / "run"), mlp(5))
    names = [*FILES[:3], "report.html", "run.json", "samples/1.png"]  # no state of the old run
    assert sorted(contents(tmp_path)) == [f"run/{name}" for name in names]
    assert [item.name for item in tmp_path.iterdir()] == ["run"]


def test_a_checkpoint_of_another_version_may_be_replaced(tmp_path):
    path = save(tmp_path / "run", mlp()) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 0}))
    save(tmp_path / "run", mlp(5))
    equal(load(tmp_path / "run"), mlp(5))


def test_a_link_stays_a_link(tmp_path):
    save(tmp_path / "disk" / "run", mlp())
    (tmp_path / "run").symlink_to(tmp_path / "disk" / "run")
    for seed in (3, 4):
        save(tmp_path / "run", mlp(seed))
        equal(load(tmp_path / "disk" / "run"), mlp(seed))
        assert (tmp_path / "run").is_symlink()
    assert [item.name for item in (tmp_path / "disk").iterdir()] == ["run"]


def test_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    save(".", mlp())
    equal(load(tmp_path / "here"), mlp())


# ---------------------------------------------------------------------------- failures


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (checkpoint, "save_file"), (folders.Path, "write_text"), (folders.Path, "mkdir"),
        (folders, "exchange"), (folders.os, "rename"), (folders, "sync"),
    ],
    ids=["weights", "json", "folder", "exchange", "rename", "sync"],
)  # fmt: skip
@pytest.mark.parametrize("there", [True, False])
def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch, module, name, there):
    if there:
        save(tmp_path / "run", mlp())
    elif name == "exchange":
        return
    before = contents(tmp_path)
    with monkeypatch.context() as patch:
        if name == "rename":
            patch.setattr(folders, "exchange", lambda *_: False)
        patch.setattr(module, name, no_space)
        with pytest.raises(OSError) as caught:
            save(tmp_path / "run", mlp(5), training={"step": 1})
    assert "\n" not in str(caught.value)
    assert contents(tmp_path) == before
    assert [item.name for item in tmp_path.iterdir()] == (["run"] if there else [])
    if there:
        equal(load(tmp_path / "run"), mlp())


SCRIPT = """
import sys
sys.dont_write_bytecode = True  # the limit below would cut compiled modules short, for good
import resource
import torch
import gradlogp as glp
from gradlogp.learn import checkpoint, folders
from gradlogp.noise.schedules import VP

torch.save({}, "warm_up.pt")
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
for width, training in (64, None), (8, {"x": torch.zeros(100_000)}):  # weights, or state, too large
    try:
        checkpoint.save("run", glp.ScoreModel(glp.MLP(2, width, 1), VP()), training=training)
    except OSError as error:
        print("OSError", str(error).count(chr(10)))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, and a limit on the size of files")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_disk_that_is_really_full(tmp_path):
    save(tmp_path / "run", mlp())
    before = contents(tmp_path / "run")
    with tempfile.TemporaryFile("w+") as said:
        if not (number := os.fork()):
            try:
                os.chdir(tmp_path)
                with contextlib.redirect_stdout(said):
                    exec(SCRIPT, {})
            except BaseException:
                traceback.print_exc(file=said)
            finally:
                said.flush()
                os._exit(0)
        os.waitpid(number, 0)
        said.seek(0)
        assert said.read() == "OSError 0\nOSError 0\n"
    assert contents(tmp_path / "run") == before
    assert sorted(item.name for item in tmp_path.iterdir()) == ["run", "warm_up.pt"]


def crash_between_the_renames(path, model, monkeypatch):
    """Replace the checkpoint without exchanging names; the power goes when the old one has moved."""
    real, calls = os.rename, []

    def rename(a, b):
        calls.append(a)
        if len(calls) > 1:
            raise KeyboardInterrupt
        real(a, b)

    with monkeypatch.context() as patch:
        patch.setattr(folders, "exchange", lambda *_: False)
        patch.setattr(folders.os, "rename", rename)
        with pytest.raises(KeyboardInterrupt):
            save(path, model)
    assert [item.name for item in path.parent.iterdir()] == [f".{path.name}.old"]


@pytest.mark.parametrize("call", [load, read_config, read_run])
def test_a_reader_finds_the_old_one_between_two_renames_and_moves_nothing(
    tmp_path, monkeypatch, call
):
    path = save(tmp_path / "run", mlp(), run={"step": 7})
    before = contents(path)
    crash_between_the_renames(path, mlp(5), monkeypatch)
    call(path)
    assert [item.name for item in tmp_path.iterdir()] == [".run.old"]
    assert contents(tmp_path / ".run.old") == before
    equal(load(path), mlp())


@pytest.mark.parametrize("exchanges", [True, False])
def test_after_a_crash_nothing_is_lost_and_nothing_left_over(tmp_path, monkeypatch, exchanges):
    path = save(tmp_path / "run", mlp())
    (path / "report.html").write_text("kept")
    crash_between_the_renames(path, mlp(5), monkeypatch)
    if not exchanges:
        monkeypatch.setattr(folders, "exchange", lambda *_: False)
    save(path, mlp(6))
    equal(load(path), mlp(6))
    assert (path / "report.html").read_text() == "kept"
    assert [item.name for item in tmp_path.iterdir()] == ["run"]
    with monkeypatch.context() as patch:  # killed when the new one has the name, before all else
        patch.setattr(folders, "discard", lambda *_: None)
        patch.setattr(checkpoint, "discard", lambda *_: None)
        save(path, mlp(5))
    assert len(list(tmp_path.iterdir())) == 2
    assert not (path / "report.html").exists()
    equal(load(path), mlp(5))
    (tmp_path / ".run.new").mkdir(exist_ok=True)  # and one killed amid its copy
    (tmp_path / ".run.new" / "config.json").write_text("{")
    save(path, mlp(6))
    equal(load(path), mlp(6))
    assert (path / "report.html").read_text() == "kept"
    assert [item.name for item in tmp_path.iterdir()] == ["run"]


def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        path = trained(tmp_path / "run", ema_half_lives=(3,)) and tmp_path / "run"
        assert path.stat().st_mode & 0o777 == 0o750
        assert {file.stat().st_mode & 0o777 for file in path.iterdir()} == {0o640}
        path.chmod(0o700)  # who made it private wants it private
        save(path, mlp())
        assert path.stat().st_mode & 0o777 == 0o700
    finally:
        os.umask(before)


@pytest.mark.parametrize("exchanges", [True, False])
def test_all_is_on_disk_before_it_has_the_name(tmp_path, monkeypatch, exchanges):
    path, done = save(tmp_path / "run", mlp()), []
    real = {"sync": folders.sync, "exchange": folders.exchange, "rename": os.rename}

    def noted(name, at):
        done.append(f"{name} {at.name}")
        return at

    monkeypatch.setattr(folders, "sync", lambda p: real["sync"](noted("sync", p)))
    monkeypatch.setattr(
        folders, "exchange",
        lambda a, b: exchanges and real["exchange"](noted("exchange", a), b),
    )  # fmt: skip
    monkeypatch.setattr(folders.os, "rename", lambda a, b: real["rename"](noted("rename", a), b))
    save(path, mlp(5))
    named = next(i for i, what in enumerate(done) if not what.startswith("sync"))
    assert sorted(done[:named]) == sorted(f"sync {n}" for n in (*FILES[:4], ".run.new"))
    assert done[named:] == (
        ["exchange .run.new", f"sync {tmp_path.name}"] if exchanges and real["exchange"] and
        sys.platform == "linux" else ["rename run", "rename .run.new", f"sync {tmp_path.name}"]
    )  # fmt: skip


def test_what_is_read_is_of_one_version(tmp_path, monkeypatch):
    """A reader that is overtaken between two files reads again; a mixture is never seen."""
    path = save(tmp_path / "run", mlp(0, schedules.VE(0.1, 5.0)))
    real, overtaken = checkpoint.safe_open, []

    def late(*arguments):
        if not overtaken:
            overtaken.append(True)
            save(path, new)
        return real(*arguments)

    monkeypatch.setattr(checkpoint, "safe_open", late)
    new = mlp(5, schedules.VP())
    equal(load(path), new)
    new = mlp(6, schedules.EDM())
    overtaken.clear()
    mixture = checkpoint._load(path, None, None)  # what a reader without that care would see
    assert isinstance(mixture.schedule, schedules.VP)
    assert torch.equal(mixture.network.inlet.weight, new.network.inlet.weight)


# ---------------------------------------------------------------------------- hostile files


def strange(path, what):
    """Put something at a path that is not what belongs there."""
    path.unlink()
    if what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    elif what == "link to itself":
        path.symlink_to(path)
    elif what == "link to nothing":
        path.symlink_to(path.parent / "nothing")
    elif what == "device":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as file:
            file.truncate(2**41)


@pytest.mark.skipif(sys.platform == "win32", reason="needs pipes")
@pytest.mark.parametrize(
    "what", ["pipe", "folder", "link to itself", "link to nothing", "device", "2 TiB"]
)
@pytest.mark.parametrize("name", FILES)
def test_what_is_no_file_is_refused_at_once(tmp_path, what, name):
    trained(tmp_path / "run")
    strange(tmp_path / "run" / name, what)
    call = {"run.json": read_run, "training.pt": lambda path: trained(path, resume=True)}
    refused(lambda: call.get(name, load)(tmp_path / "run"), tmp_path / "run" / name)


def test_a_header_of_other_sizes_is_refused_before_anything_is_made(tmp_path):
    """Two TiB of a file that is what its header says, and that the model is not made of."""
    path = save(tmp_path / "run", mlp()) / "model.safetensors"
    n = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(path.read_bytes()[8 : 8 + n])
    last = max(header, key=lambda k: header[k]["data_offsets"][1])
    for shape, size in (([2**41], 2**41), ([2**70], 2**41), (["a"], 2**30), ([2**20], 2**20)):
        begin = header[last]["data_offsets"][0]
        part = header[last] | {"shape": shape, "data_offsets": [begin, begin + size]}
        text = json.dumps(header | {last: part}).encode()
        with path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + begin + size)
        refused(lambda: load(path.parent), path)
    for text in ("[]", "{", '{"a": 1}', "[" * 10**5, '{"a": {"shape": [2], "data_offsets": 3}}'):
        path.write_bytes(len(text).to_bytes(8, "little") + text.encode())
        refused(lambda: load(path.parent), path, "is damaged")


def test_a_link_to_a_file_is_followed(tmp_path):
    """As in the folders of a download cache."""
    path = save(tmp_path / "run", mlp())
    for name in FILES[:3]:
        os.rename(path / name, tmp_path / name)
        (path / name).symlink_to(tmp_path / name)
    equal(load(path), mlp())


def test_digests_find_a_change_and_are_those_of_sha256sum(tmp_path):
    path = save(tmp_path / "run", mlp())
    file = path / "model.safetensors"
    whole = bytearray(file.read_bytes())
    whole[-3] ^= 1  # another finite weight
    file.write_bytes(whole)
    refused(lambda: load(path), file, "SHA-256", "delete SHA256SUMS")
    sums = (path / "SHA256SUMS").read_text()
    assert (
        f"{hashlib.sha256((path / 'config.json').read_bytes()).hexdigest()}  config.json\n" in sums
    )
    for text in ("", "nonsense", sums.splitlines()[0]):
        (path / "SHA256SUMS").write_text(text)
        refused(lambda: load(path), "SHA256SUMS is damaged")
    (path / "SHA256SUMS").unlink()
    load(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [("coordinates.scale", -1.0), ("z_std", 0.0), ("coordinates.bits", 33.0)],
)
def test_scales_out_of_range(tmp_path, as_user, name, value):
    path = save(tmp_path / "run", mlp())
    (path / "SHA256SUMS").unlink()
    stored = load_file(path / "model.safetensors")
    save_file(stored | {name: torch.full_like(stored[name], value)}, path / "model.safetensors")
    refused(lambda: load(path), f"model.safetensors is damaged: {name} is out of range")
