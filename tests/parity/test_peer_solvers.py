"""The wrappers of the benchmark: every solver converges to the exact flow, at the price it names."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from peers_diffusion import GRIDS, Counted, solvers

HIGH, LOW = 80.0, 1e-3
MEAN = torch.tensor([0.5, -1.0, 0.0, 2.0], dtype=torch.float64)
VAR = torch.tensor([0.05, 0.3, 1.0, 4.0], dtype=torch.float64)
SOLVERS = solvers()
pytestmark = [
    pytest.mark.skipif(not SOLVERS, reason="none of the libraries is installed"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
ORDER = {
    "euler": 1, "heun": 2, "lms": 4, "dpmpp_2m": 2, "dpmpp_2s": 2,
    "DDIM": 1, "Heun": 2, "zAB3": 3, "zEAB2": 2, "zEAB3": 3, "xEAB2": 2, "xEAB3": 3,
    "DPM++ 2M": 2, "DPM++ 3M": 2, "UniPC 2": 3, "UniPC 3": 4, "EDM-DPM++ 2M": 2, "EDM-DPM++ 3M": 2,
}  # fmt: skip


def denoise(x, sigma):
    assert sigma.shape == ()
    return MEAN + (x - MEAN) * VAR / (VAR + sigma**2)


@pytest.mark.parametrize("name", SOLVERS)
def test_converges_to_the_flow(name, generator):
    """On a Gaussian the flow is x_0 − m = sqrt(v/(v + σ²)) (x − m)."""
    x = MEAN + HIGH * torch.randn(8, 4, generator=generator)
    exact = MEAN + (VAR / (VAR + HIGH**2)).sqrt() * (x - MEAN)
    errors = []
    for nfe in (16, 63, 127, 255):
        counted = Counted(denoise)
        out = SOLVERS[name](counted, x, HIGH, LOW, nfe)
        assert counted.calls == nfe or (counted.calls == nfe - 1 and nfe % 2 == 0)
        assert out.dtype == x.dtype
        errors.append(float((out - exact).abs().max()))
    order = ORDER[name.split(" ", 1)[1].split(",")[0]]
    floor = 2e-5  # denoising at σ_min in place of the flow below it, and their float32
    assert errors[3] < max(1.25 * errors[2] / 2**order, floor), errors
    assert errors[3] < {1: 0.1, 2: 1e-2}.get(order, 1e-3), errors


@pytest.mark.parametrize("grid", GRIDS)
def test_grids(grid):
    ends = GRIDS[grid](torch.tensor([1.0, 0.0], dtype=torch.float64), HIGH, LOW)
    torch.testing.assert_close(
        ends, torch.tensor([HIGH, LOW], dtype=torch.float64), rtol=1e-12, atol=0
    )


def test_too_few_evaluations_are_refused():
    for name, solver in SOLVERS.items():
        with pytest.raises(ValueError, match="nfe must be at least"):
            solver(denoise, torch.zeros(1, 4), HIGH, LOW, 1)
        assert name.endswith(tuple(GRIDS))
