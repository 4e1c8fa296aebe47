"""Derivatives in time: one answer in every mode of differentiation."""

import math

import pytest
import torch
from support import close

from gradlogp.core.protocols import derivatives
from gradlogp.noise.schedules import VP


def pair(t):
    return torch.sin(3 * t), torch.ones_like(t)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_a_constant(dtype):
    t = torch.tensor([0.1, 0.7], dtype=dtype)
    first, second = derivatives(pair, t)
    close(first, 3 * torch.cos(3 * t), 1e-6)
    assert torch.equal(second, torch.zeros_like(t))
    assert first.dtype == second.dtype == dtype
    number = derivatives(pair, torch.tensor(0.1, dtype=dtype))[0]
    assert (number.shape, number.dtype) == ((), dtype)


def test_within_every_mode():
    t = torch.tensor([0.2, 0.9])
    expected = 3 * torch.cos(3 * t)
    with torch.no_grad():
        close(derivatives(pair, t)[0], expected, 1e-12)
    with torch.inference_mode():
        close(derivatives(pair, t.clone())[0], expected, 1e-12)
    close(torch.func.vmap(lambda u: derivatives(pair, u)[0])(t), expected, 1e-12)
    first = lambda u: derivatives(pair, u)[0]
    close(torch.func.jvp(first, (t,), (torch.ones(2),))[0], expected, 1e-12)


def test_second_derivative():
    t = torch.tensor(0.3, requires_grad=True)
    first, _ = derivatives(pair, t)
    close(torch.autograd.grad(first, t)[0], -9 * math.sin(0.9), 1e-12)
    beta = -2 * VP().f(t)  # linear in t
    close(torch.autograd.grad(beta, t)[0], 19.9, 1e-9)
