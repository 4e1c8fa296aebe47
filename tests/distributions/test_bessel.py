"""Bessel ratios and logarithms against arbitrary precision, their limits and their derivatives."""

import mpmath as mp
import pytest
import torch
from support import close

from gradlogp.distributions.analytic.bessel import bessel_ratio, log_bessel

ARGUMENTS = [0.0, 1e-8, 1e-3, 0.3, 0.99, 1.0, 3.0, 20.0, 47.0, 60.0, 300.0, 1e4, 1e6, 1e8]
DIMS = [2, 3, 4, 5, 10, 33, 97, 98, 99, 100, 250, 1000, 1001]


def reference(dim, k):
    """A, 1 − A, A/k, A' and L with 60 digits."""
    order, k = mp.mpf(dim) / 2 - 1, mp.mpf(k)
    if k == 0:
        return [mp.mpf(0), mp.mpf(1), mp.mpf(1) / dim, mp.mpf(1) / dim, mp.mpf(0)]
    low, high = (mp.besseli(order + j, k, maxterms=10**6) for j in (0, 1))
    A = high / low
    L = mp.loggamma(order + 1) + order * mp.log(2 / k) + mp.log(low) - k
    return [A, 1 - A, A / k, 1 - A * A - (dim - 1) * A / k, L]


@pytest.mark.parametrize("dim", DIMS)
def test_against_sixty_digits(dim):
    # A, 1 − A, A/k, A', L: double precision, then single
    bounds = {torch.float64: [1e-13, 1e-13, 1e-13, 1e-10, 1e-12], torch.float32: [2e-7] * 5}
    with mp.workdps(60):
        for dtype, tolerances in bounds.items():
            k = torch.tensor(ARGUMENTS, dtype=dtype)
            found = [*bessel_ratio(dim, k), log_bessel(dim / 2 - 1, k)]
            assert all(v.dtype == dtype for v in found)
            for i, value in enumerate(k.tolist()):
                exacts = reference(dim, value)
                for v, exact, tolerance in zip(found, exacts, tolerances, strict=True):
                    error = abs(mp.mpf(float(v[i])) - exact)
                    assert error <= tolerance * abs(exact), (value, exact, float(v[i]))


def test_three_dimensions_are_elementary():
    k = torch.tensor([0.2, 0.5, 2.0, 30.0])  # the elementary forms cancel below
    close(bessel_ratio(3, k).A, 1 / torch.tanh(k) - 1 / k, 1e-12)
    close(bessel_ratio(3, k).slope, 1 / k**2 - 1 / torch.sinh(k) ** 2, 1e-12)


@pytest.mark.parametrize("dim", [2, 5, 300])
def test_derivatives_in_every_mode(dim):
    """dA/dk = A' and dL/dk = A − 1, also under transforms, and finite at 0."""
    k = torch.tensor([0.0, 1e-3, 0.7, 5.0, 80.0, 1e4])
    A = lambda k: bessel_ratio(dim, k).A
    L = lambda k: log_bessel(dim / 2 - 1, k)
    ratio = bessel_ratio(dim, k)
    reverse = torch.func.vmap(torch.func.grad(A))(k)
    forward = torch.func.jvp(A, (k,), (torch.ones_like(k),))[1]
    close(reverse / ratio.slope, torch.ones(6), 1e-9)
    close(forward / ratio.slope, torch.ones(6), 1e-9)
    close(torch.func.vmap(torch.func.grad(L))(k), ratio.A - 1, 1e-11)
    second = torch.func.vmap(torch.func.grad(torch.func.grad(L)))(k)
    close(second[1:] / ratio.slope[1:], torch.ones(5), 1e-7)
    assert torch.autograd.gradcheck(A, k[1:5].clone().requires_grad_())


def test_the_ratio_is_a_ratio():
    """Bounds of Amos, and 1 − A that 1 minus A does not have."""
    k = torch.logspace(-3, 8, 23)
    for dim in (2, 3, 40):
        order, ratio = dim / 2 - 1, bessel_ratio(dim, k)
        upper = k / (order + 0.5 + (k**2 + (order + 0.5) ** 2).sqrt())
        lower = k / (order + 0.5 + (k**2 + (order + 1.5) ** 2).sqrt())
        assert ((lower * (1 - 1e-14) <= ratio.A) & (ratio.A <= upper * (1 + 1e-14))).all()
        naive = ((1 - ratio.A) / ratio.complement - 1).abs().max()
        assert naive > 1e-10  # what the careful form avoids
        assert (ratio.slope > 0).all()


def test_rows_are_alone():
    """The value at one k does not depend on the others, to the last bit."""
    k = torch.tensor([0.0, 0.5, 1e8, 30.0])
    together = bessel_ratio(4, k)
    for i in range(4):
        for a, b in zip(bessel_ratio(4, k[i : i + 1]), together, strict=True):
            close(a[0], b[i], 1e-15)


def test_bad_input():
    with pytest.raises(ValueError, match="at least 2"):
        bessel_ratio(1, torch.ones(1))
    with pytest.raises(ValueError, match="at least 0"):
        log_bessel(-0.5, torch.ones(1))
