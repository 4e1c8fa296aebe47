"""The claims on high dimension hold, and fail where the kernels are wrong."""

import dataclasses

import pytest
import torch
from support import close

from gradlogp.check.theory import dimension, verify
from gradlogp.langevin.kernels import ULA, PreconditionedULA


@pytest.mark.parametrize("check", dimension.CHECKS, ids=lambda check: check.__name__)
def test_claims(check):
    (claim,) = verify(quick=True, checks=(check,))
    assert claim.verdict == "pass", claim


def test_they_are_told_from_wrong_kernels():
    """The bias that is measured is that of the kernel handed in, step size and all."""
    w = dimension.spectrum(50)
    right = dimension.bias(PreconditionedULA(0.1, w), w)
    close(right, dimension.BIAS * float(w.sum().sqrt()), 1e-12)
    for wrong in (PreconditionedULA(0.2, w), PreconditionedULA(0.1, 1.1 * w), ULA(1e-4)):
        assert abs(dimension.bias(wrong, w) / right - 1) > 0.01
    hot = dataclasses.replace(PreconditionedULA(0.1, w), temperature=1.1)
    assert abs(dimension.bias(hot, w) / right - 1) > 0.01
    a, b = dimension.moved(ULA(0.25), torch.tensor([1.0, 2.0]))
    close(a, torch.tensor([0.75, 0.875]), 1e-12)
    close(b, torch.full((2,), 0.5**0.5), 1e-12)
