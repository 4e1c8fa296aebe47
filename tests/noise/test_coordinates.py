"""Between data and model coordinates: exact to rounding, kept in float64 whatever happens."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import close, seeded

from gradlogp import MLP, Gaussian, ScoreModel
from gradlogp.noise import IDENTITY, AffineCoordinates, Identity, coordinates
from gradlogp.noise.coordinates import Rows, affine_part, mean_and_std, same_coordinates, subset
from gradlogp.noise.schedules import VP

EVENTS = [(3,), (2, 5), (3, 4, 2)]
every_event = pytest.mark.parametrize("event", EVENTS, ids=str)


def some(event, g):
    """Coordinates of which no two entries are alike."""
    return AffineCoordinates(
        torch.randn(event, generator=g), torch.rand(event, generator=g) + 0.2, torch.float64
    )


def far(event, n=200):
    """1e7 ± 1, to a multiple of 2^-20, so that subtracting the shift is exact."""
    x = torch.randn(n, *event, generator=seeded(1))
    return 1e7 + (x * 2**20).round() / 2**20


# ---------------------------------------------------------------------------- the map


@every_event
def test_encode_and_decode_are_inverse_far_from_zero(event):
    x = far(event)
    c = AffineCoordinates.fit(x, torch.Size(event))
    z = c.encode(x)
    assert abs(float(z.mean())) < 1e-9
    assert abs(float(z.std()) - 1) < 0.1
    spacing = 2.0**-30  # of float64 at 1e7 it is 2^-29
    assert (c.decode(z) - x).abs().max() <= 2 * spacing
    assert (c.encode(c.decode(z)) - z).abs().max() <= 4 * spacing / float(c.scale.min())
    # the digits that a cast before centring loses are those of the data
    assert ((x.float().double() - c.shift) / c.scale - z).abs().max() > 0.3


@every_event
def test_the_determinant_and_the_pull_back_are_those_of_autograd(event, generator):
    c = some(event, generator)
    d = c.shift.numel()
    x = torch.randn(4, *event, generator=generator)
    flat = lambda y: c.encode(y.reshape(1, *event)).flatten()
    J = torch.func.jacrev(flat)(x[0].flatten())
    close(c.log_det(x), torch.linalg.slogdet(J).logabsdet.expand(4), 1e-12)
    A = torch.randn(d, d, generator=generator)
    law = Gaussian(torch.randn(d, generator=generator), A @ A.mT + torch.eye(d))
    log_p = lambda y: law.log_prob(c.encode(y).flatten(1)) + c.log_det(y)
    expected = torch.func.grad(lambda y: log_p(y).sum())(x)
    s_z = law.score(c.encode(x).flatten(1)).reshape(x.shape)
    close(c.pull_back(x, s_z), expected, 1e-12)
    # that is the law of x = shift + scale z, a Gaussian again
    m, s = c.shift.flatten(), c.scale.flatten()
    of_x = Gaussian(m + s * law.mean, s[:, None] * law.cov * s)
    close(log_p(x), of_x.log_prob(x.flatten(1)), 1e-10)
    close(c.pull_back(x, s_z).flatten(1), of_x.score(x.flatten(1)), 1e-10)


@settings(deadline=None, derandomize=True, max_examples=30)
@given(
    event=st.lists(st.integers(1, 3), min_size=1, max_size=3), unit=st.floats(-6, 6),
    zero=st.floats(-1e3, 1e3), seed=st.integers(0, 999),
)  # fmt: skip
def test_model_coordinates_do_not_depend_on_units(event, unit, zero, seed):
    """Data in a unit 10^unit with another zero have the same z, and a score in that unit."""
    event, scale = torch.Size(event), 10.0**unit
    x = torch.randn(20, *event, generator=seeded(seed))
    y = scale * (x + zero)
    c, d = AffineCoordinates.fit(x, event), AffineCoordinates.fit(y, event)
    rounding = 1e-13 * (1 + abs(zero)) / min(1.0, float(c.scale.min()))
    z = c.encode(x)
    close(d.encode(y), z, rounding)
    close(d.decode(z) / scale, x + zero, rounding)
    close(d.log_det(y), c.log_det(x) - event.numel() * math.log(scale), 1e3 * rounding)
    close(scale * d.pull_back(y, -z), c.pull_back(x, -z), 10 * rounding)


def test_the_identity(generator):
    x, s = torch.randn(2, 3, 2, generator=generator)
    for got, expected in (
        (IDENTITY.encode(x), x),
        (IDENTITY.decode(x), x),
        (IDENTITY.pull_back(x, s), s),
        (IDENTITY.log_det(x), torch.zeros(3)),
    ):
        assert torch.equal(got, expected)


# ---------------------------------------------------------------------------- what keeps it


CHANGES = {
    "float": lambda m: m.float(),
    "bfloat16": lambda m: m.to(torch.bfloat16),
    "half and back": lambda m: m.half().double(),
    "deepcopy": copy.deepcopy,
    "a copy in float": lambda m: copy.deepcopy(m).float(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_it_is_kept_bit_for_bit(change):
    """By everything that converts the model, and by a state dict of the model in any dtype."""
    x = far((2,)) * torch.tensor([1.0, 3.0])
    model = ScoreModel(MLP(2, 4, 1, generator=seeded()), VP())
    model.fit_frame(x, "each")
    shift, scale = (v.clone() for v in (model.coordinates.shift, model.coordinates.scale))
    changed = change(model)
    again = ScoreModel(MLP(2, 4, 1), VP()).float()
    again.load_state_dict(changed.state_dict())
    for m in (changed, again):
        c = m.coordinates
        assert c.shift.dtype == c.scale.dtype == torch.float64
        assert torch.equal(c.shift, shift)
        assert torch.equal(c.scale, scale)
        z = c.encode(x).float()
        back = c.decode(z)
        assert back.dtype == torch.float64  # that of the data, whatever that of the model
        assert (back - x).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("data", "z", "decoded"),
    [
        (torch.float64, torch.float32, torch.float64),
        (torch.float32, torch.float32, torch.float32),
        (torch.float32, torch.float64, torch.float64),
        (torch.float16, torch.float32, torch.float32),
        (torch.int64, torch.float32, torch.float64),
        (torch.int32, torch.float32, torch.float64),
        (torch.uint8, torch.float32, torch.float32),
        (torch.uint8, torch.bfloat16, torch.float32),
    ],
)
def test_what_is_decoded_has_the_digits_of_the_data(data, z, decoded):
    x = torch.arange(20).reshape(10, 2).to(data)
    for source in (x, x.numpy()):
        c = AffineCoordinates.fit(source, torch.Size([2]))
        assert c.decode(torch.zeros(1, 2, dtype=z)).dtype == decoded
    assert c.encode(torch.zeros(1, 2, dtype=z)).dtype == z


# ---------------------------------------------------------------------------- fitting


@pytest.mark.parametrize("read", [1, 7, 2**23])
@every_event
def test_moments_of_columns_and_channels(event, read, monkeypatch):
    """Columns of (D,), channels of (C, L) and (C, H, W): axis 1 of the data in each case."""
    monkeypatch.setattr(coordinates, "READ", read)
    g = seeded()
    shape = (-1, *[1] * (len(event) - 1))
    unit = torch.randn(40, *event, generator=g)
    x = unit * torch.tensor([1.0, 40.0, 0.1])[: event[0]].reshape(shape) + 1e3
    axes = (0, *range(2, x.ndim))
    mean, std = x.mean(axes).reshape(shape), x.std(axes, correction=0).reshape(shape)
    view = coordinates.Subset(x.numpy(), torch.arange(40).flip(0))
    for data in (x, x.numpy(), view, view):  # of a view they are found once
        got = mean_and_std(data, torch.Size(event))
        for value, expected in zip(got, (mean, std), strict=True):
            assert (value.shape, value.dtype) == (torch.Size(event), torch.float64)
            torch.testing.assert_close(value, expected.expand(event), rtol=1e-11, atol=0)
            value.zero_()
        got = mean_and_std(data, torch.Size(event), "one")
        for value, expected in zip(got, (x.mean(), x.std(correction=0)), strict=True):
            torch.testing.assert_close(value, expected.expand(event), rtol=1e-11, atol=0)
    assert not AffineCoordinates.fit(x, torch.Size(event)).one_scale
    one = AffineCoordinates.fit(x, torch.Size(event), "one")
    assert one.one_scale
    assert len(one.shift.unique()) == 1


def test_moments_far_from_zero_are_exact():
    """The mean of 1e7 ± 1 to the last digit, and its deviation to twelve."""
    x = far((2,), 5000)
    mean, std = mean_and_std(x, torch.Size([2]))
    near = x - 1e7  # exact
    close(mean - 1e7, near.mean(0), 2e-9)
    close(std, near.std(0, correction=0), 1e-12)


def test_times_of_one_minute_are_not_constant():
    """Seconds since 1970: their deviation is 1e-8 of their size."""
    seconds = 1_700_000_000 + 60 * torch.rand(500, 1, generator=seeded())
    for x in (seconds, seconds.long(), seconds.numpy(), seconds.long().numpy()):
        c = AffineCoordinates.fit(x, torch.Size([1]))
        assert abs(float(c.scale) - 60 / 12**0.5) < 1
        z = c.encode(torch.as_tensor(x).double())
        assert abs(float(z.std(correction=0)) - 1) < 1e-9


def test_what_is_constant_is_refused_and_named():
    x = torch.randn(10, 4, generator=seeded(0))
    x[:, 1], x[:, 3] = 0.1, 1e8
    with pytest.raises(ValueError, match=r"^column\(s\) \[1, 3\] are constant.*drop them"):
        AffineCoordinates.fit(x, torch.Size([4]))
    for event in ((3, 5), (3, 2, 2)):
        x = torch.randn(10, *event, generator=seeded(0))
        x[:, 2] = 7.3
        with pytest.raises(ValueError, match=r"^channel\(s\) \[2\] are constant"):
            AffineCoordinates.fit(x, torch.Size(event))
        AffineCoordinates.fit(x, torch.Size(event), "one")  # as a whole it is not
    with pytest.raises(ValueError, match=r"^the data is constant"):
        mean_and_std(torch.full((5, 1, 2, 2), 7.0), torch.Size([1, 2, 2]), "one")
    x = torch.rand(5, 1, 2, 2, generator=seeded(0))
    x[:, 0, 0, 0] = 0  # the corner of an image may well be black in all
    AffineCoordinates.fit(x, torch.Size([1, 2, 2]))


@pytest.mark.parametrize("value", [0.1, 1e7 + 0.1, 1e-30])
def test_many_equal_values_are_constant(value):
    """Sums of them round in one direction: what looks like a deviation is rounding."""
    x = np.full((3_000_000, 1), value)
    with pytest.raises(ValueError, match=r"column\(s\) \[0\] are constant"):
        AffineCoordinates.fit(x, torch.Size([1]))


def test_what_makes_no_coordinates_is_refused(as_user):
    ones = torch.ones(2)
    for shift, scale, match in (
        (ones, torch.ones(3), r"one shape, got \(2,\) and \(3,\)"),
        (ones, 0 * ones, "scale must be positive, got a minimum of 0"),
        (ones, -ones, "scale must be positive, got a minimum of -1"),
    ):
        with pytest.raises(ValueError, match=match):
            AffineCoordinates(shift, scale)
    c = AffineCoordinates(ones, ones)
    with pytest.raises(ValueError, match=r"x must have shape \(B, 2\)"):
        c.encode(torch.ones(4, 3))
    with pytest.raises(ValueError, match=r"z must have shape \(B, 2\)"):
        c.decode(torch.ones(4, 1, 2))
    with pytest.raises(ValueError, match="too large for float64"):
        AffineCoordinates.fit(torch.tensor([[1e300], [-1e300]]), torch.Size([1]))


# ---------------------------------------------------------------------------- comparing


@pytest.mark.usefixtures("as_user")
def test_same_coordinates(generator):
    c = some((2,), generator)
    unit = AffineCoordinates(torch.zeros(2), torch.ones(2))
    same = [(c, c), (c, copy.deepcopy(c)), (IDENTITY, Identity()), (unit, IDENTITY)]
    moved = AffineCoordinates(c.shift + 1e-12, c.scale)
    wider = AffineCoordinates(c.shift, c.scale * (1 + 1e-12))
    longer = AffineCoordinates(torch.zeros(3), torch.ones(3))
    other = [(c, moved), (c, wider), (c, IDENTITY), (unit, longer), (c, object())]
    for pairs, expected in ((same, True), (other, False)):
        for a, b in pairs:
            assert same_coordinates(a, b) is expected
            assert same_coordinates(b, a) is expected


@pytest.mark.usefixtures("as_user")
def test_the_affine_part(generator):
    c = some((2,), generator)
    assert affine_part(c) is c
    assert affine_part(Identity()) is None
    with pytest.raises(ValueError, match="needs affine coordinates, and those of the score are"):
        affine_part(object())


def test_rows_of_large_data_are_read_when_asked_for(monkeypatch, tmp_path):
    """A view gives what the rows in memory give: moments, and rows by slices and numbers."""
    x = torch.randn(50, 3, generator=seeded(0))
    np.save(tmp_path / "x.npy", x.numpy())
    index = torch.tensor([7, 3, 3, 49, 0])
    for data in (x, x.numpy(), np.load(tmp_path / "x.npy", mmap_mode="r")):
        assert torch.equal(subset(data, index), x[index])
        with monkeypatch.context() as small:
            small.setattr("gradlogp.noise.coordinates.HELD", 100)
            view = subset(data, index)
        assert isinstance(view, Rows)
        assert view.shape == (5, 3)
        assert torch.equal(view[1:4], x[index[1:4]])
        assert torch.equal(view[torch.tensor([4, 0])], x[[0, 7]])
        for ours, theirs in zip(
            mean_and_std(view, x.shape[1:]), mean_and_std(x[index], x.shape[1:]), strict=True
        ):
            torch.testing.assert_close(ours, theirs)
