"""A chain's summary against autoregressions of known autocorrelation, and its export."""

import builtins
import importlib.util
import math
import sys
import types
from typing import NamedTuple

import numpy as np
import pytest
import torch
from support import autoregression, close

from gradlogp import Chain, as_target, run
from gradlogp.interfaces.cli import main
from gradlogp.langevin import HMC, MALA, ULA

NORMAL = as_target(log_prob=lambda x: -x.square().flatten(1).sum(1) / 2)


class Nothing(NamedTuple):
    pass


def chain(draws):
    return Chain(draws, Nothing(), None)


@pytest.mark.parametrize("a", [0.0, 0.5, 0.9, -0.4])
def test_effective_size_and_error_of_an_autoregression(a, generator):
    """ESS = n (1 − a)/(1 + a), MCSE² = 1/ESS; an estimate of ESS is good to some 5 % here."""
    x = autoregression((8, 4000), a, generator)
    row = chain(x[..., None]).summary().rows[0]
    ess = x.numel() * (1 - a) / (1 + a)
    assert abs(row.ess_bulk / ess - 1) < 0.2
    assert abs(row.mcse_mean * math.sqrt(ess) - 1) < 0.1
    assert abs(row.mean) < 4.5 / math.sqrt(ess)
    assert abs(row.r_hat - 1) < 0.01
    close(row.mean, float(x.mean()), 1e-12)
    close(row.sd, float(x.std()), 1e-12)


def test_effective_size_of_ula(generator):
    """ULA on N(0, 1) is an autoregression with a = 1 − h."""
    h = 0.4
    x0 = torch.randn(32, 1, generator=generator) / math.sqrt(1 - h / 2)
    row = run(ULA(h), NORMAL, x0, 1000, generator=generator).summary().rows[0]
    assert abs(row.ess_bulk / (32 * 1000 * h / (2 - h)) - 1) < 0.2
    assert abs(row.sd**2 * (1 - h / 2) - 1) < 0.05


def test_r_hat_sees_chains_apart(generator):
    x = torch.randn(4, 500, 3, generator=generator)
    x[0, :, 1] += 1.5  # a location that differs
    x[0, :, 2] *= 5  # a scale that differs
    rows = chain(x).summary(["iid", "shifted", "scaled"]).rows
    assert [row.name for row in rows] == ["iid", "shifted", "scaled"]
    assert abs(rows[0].r_hat - 1) < 0.01
    assert rows[1].r_hat > 1.1
    assert rows[2].r_hat > 1.1


def test_coordinates_are_told_apart(generator):
    x = torch.randn(4, 50, 2, 3, generator=generator) * torch.arange(1.0, 7).reshape(2, 3)
    rows = chain(x).summary().rows
    assert [row.name for row in rows] == [f"x[{i},{j}]" for i in range(2) for j in range(3)]
    close([row.sd for row in rows], x.flatten(0, 1).std(0).flatten(), 1e-12)


def test_the_table(generator):
    kernel = MALA(0.5)
    result = run(kernel, NORMAL, torch.zeros(4, 30), 50, generator=generator)
    summary = result.summary()
    lines = str(summary).splitlines()
    assert lines[0].split() == ["mean", "sd", "mcse_mean", "ess_bulk", "ess_tail", "r_hat"]
    assert lines[1].startswith("x[0] ")
    assert lines[23:] == str(result.verdict).splitlines()
    assert len({len(line) for line in lines[:21]}) == 1
    worst = max(summary.rows, key=lambda row: row.r_hat)
    assert lines[21].startswith("and 10 more coordinates; of all 30 the largest r_hat is ")
    assert f"{worst.r_hat:.3f} ({worst.name})" in lines[21]
    accepted = float(result.info.acceptance.mean())
    lowest = min(one.mean() for one in result.info.acceptance.numpy())
    assert lowest < accepted
    assert lines[22] == (
        f"4 chains, 50 draws each, acceptance {accepted:.3f} (lowest of a chain {lowest:.3f}), "
        "0 divergent steps in 0 chains"
    )
    assert summary.verdict is result.verdict
    assert "verdict: not ok" in lines[23]  # 200 draws that are correlated, of 30 coordinates
    assert repr(summary) == str(summary)
    assert len(summary.rows) == 30


def test_divergences_are_those_of_every_step(generator):
    x0 = torch.tensor([[1e200], [0.5]])
    with pytest.warns(RuntimeWarning, match="1 of 2 chains diverged, in 12 of 24 steps"):
        result = run(ULA(0.1), as_target(score=lambda x: -(x**3)), x0, 12, 4, 4)
    assert result.divergences.tolist() == [12, 0]
    summary = result.summary()
    assert (summary.divergent_chains, summary.divergences) == (1, 12)
    assert summary.acceptance is None


def test_what_cannot_be_said_is_nan():
    few = chain(torch.zeros(2, 3, 1)).summary().rows[0]
    assert math.isnan(few.r_hat)
    assert math.isnan(few.ess_bulk)
    constant = chain(torch.ones(2, 30, 1)).summary().rows[0]
    assert constant.mean == 1
    assert constant.sd == 0
    assert math.isnan(constant.r_hat)
    none = chain(torch.zeros(2, 0, 1)).summary()
    assert math.isnan(none.rows[0].mean)
    assert "nan" in str(none)


def test_float32_is_summarised_in_doubles(generator):
    x = (1e4 + torch.randn(4, 1000, 1, generator=generator)).float()
    close(chain(x).summary().rows[0].sd, float(x.double().std()), 1e-10)


def test_wrong_names_are_refused():
    with pytest.raises(ValueError, match="names must hold 2 names"):
        chain(torch.zeros(2, 8, 2)).summary(["a"])


def test_a_target_that_fails_at_a_draw_stops_no_summary():
    def picky(x):
        if bool((x > 1).any()):
            raise ValueError("cannot compute this")
        return -x.square().sum(1) / 2

    target = as_target(log_prob=picky, event_shape=(1,))
    with pytest.warns(RuntimeWarning, match="diverged"):
        whole = run(ULA(0.1), target, torch.zeros(4, 1), 40)
    assert whole.failures
    assert whole.summary().verdict is whole.verdict


def test_a_missing_package_is_named(monkeypatch):
    for module in [m for m in sys.modules if m.split(".")[0] == "arviz_base"]:
        monkeypatch.delitem(sys.modules, module)
    original = builtins.__import__

    def absent(name, *args, **kwargs):
        if name.split(".")[0] == "arviz_base":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ValueError, match="arviz-base"):
        chain(torch.zeros(2, 8, 1)).to_arviz(tree=True)


def test_arviz_names(generator):
    result = run(HMC(0.3, 3), NORMAL, torch.zeros(3, 2), 10, thin=2, generator=generator)
    groups = result.to_arviz("theta")
    assert set(groups) == {"posterior", "sample_stats"}
    assert np.array_equal(groups["posterior"]["theta"], result.draws.numpy())
    stats = groups["sample_stats"]
    assert {"lp", "acceptance_rate", "diverging", "energy", "step_size"} <= set(stats)
    assert all(isinstance(v, np.ndarray) and v.shape == (3, 5) for v in stats.values())
    assert np.array_equal(stats["lp"], result.info.log_prob.numpy())
    assert np.array_equal(stats["acceptance_rate"], result.info.acceptance.numpy())
    assert stats["diverging"].dtype == bool
    assert (stats["step_size"] == 0.3).all()
    close(stats["lp"], NORMAL.log_prob(result.draws.flatten(0, 1)).reshape(3, 5), 1e-12)


def test_a_tree_is_that_of_arviz_base(generator, monkeypatch):
    """arviz-base is not among the packages of the tests: only that the dict is passed on."""
    module = types.ModuleType("arviz_base")
    module.from_dict = lambda groups: ("tree", groups)
    monkeypatch.setitem(sys.modules, "arviz_base", module)
    result = run(ULA(0.3), NORMAL, torch.zeros(3, 2), 4, generator=generator)
    tree, groups = result.to_arviz(tree=True)
    assert tree == "tree"
    assert groups["posterior"]["x"].shape == (3, 4, 2)


# ---------------------------------------------------------------------------- the real package


def test_a_tree_of_the_real_package(generator, tmp_path):
    """Names, dimensions and numbers, in memory and in a file."""
    pytest.importorskip("arviz_base")
    x0 = torch.randn(4, 2, 3, generator=generator)
    result = run(HMC(0.5, 3), NORMAL, x0, 60, 10, generator=generator)
    tree = result.to_arviz("theta", tree=True)
    theta = tree["posterior"]["theta"]
    assert theta.dims == ("chain", "draw", "theta_dim_0", "theta_dim_1")
    assert np.array_equal(theta.values, result.draws.numpy())
    assert np.array_equal(tree["sample_stats"]["lp"].values, result.info.log_prob.numpy())
    assert tree["sample_stats"]["diverging"].dtype == bool
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("h5py")
    pytest.importorskip("h5netcdf")
    tree.to_netcdf(tmp_path / "draws.nc", engine="h5netcdf")
    again = xarray.open_datatree(tmp_path / "draws.nc", engine="h5netcdf")
    assert np.array_equal(again["posterior"]["theta"].values, result.draws.numpy())
    again.close()


def sample(out):
    few = ["--draws", "40", "--warmup", "40", "--chains", "3", "--seed", "1", "--quiet"]
    return main(["sample", "--target", "gaussian", *few, "--out", str(out)])


def test_the_command_line_writes_netcdf(tmp_path, capsys):
    pytest.importorskip("arviz_base")
    pytest.importorskip("h5py")
    pytest.importorskip("h5netcdf")
    xarray = pytest.importorskip("xarray")
    assert sample(tmp_path / "draws.nc") == sample(tmp_path / "draws.npz") == 1  # few draws
    found = xarray.open_datatree(tmp_path / "draws.nc", engine="h5netcdf")
    with np.load(tmp_path / "draws.npz") as kept:
        assert np.array_equal(found["posterior"]["x"].values, kept["draws"])
        assert np.array_equal(found["sample_stats"]["diverging"].values, kept["diverging"])
    assert found["posterior"].sizes["chain"] == 3
    found.close()


@pytest.mark.parametrize(
    "missing", [("arviz_base",), ("h5netcdf", "netCDF4"), ("h5py", "netCDF4")]
)
def test_netcdf_without_its_packages_is_misuse(missing, tmp_path, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *args: None if name in missing else find(name, *args),
    )
    assert sample(tmp_path / "draws.nc") == 2
    told = capsys.readouterr().err.strip()
    assert "pip install arviz-base h5netcdf h5py" in told
    assert "\n" not in told
    assert not list(tmp_path.iterdir())
