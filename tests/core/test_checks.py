"""What the doors ask: one wording for each refusal, and nothing that is right is refused."""

import math
import re
import sys
import warnings
from fractions import Fraction
from typing import Literal

import numpy as np
import pytest
import torch

from gradlogp.core import (
    Estimate,
    check_count,
    check_device,
    check_event_shape,
    check_finite,
    check_function,
    check_generator,
    check_kind,
    check_level,
    check_number,
    check_option,
    check_points,
    evaluate,
    finite_result,
    per_sample,
    rows_held,
    warn_of_cost,
)

pytestmark = pytest.mark.usefixtures("as_user")

NAN, INF = math.nan, math.inf
X = torch.arange(6.0).reshape(3, 2)
BAD = torch.tensor([[1.0, NAN], [0.0, 1.0], [INF, 1.0]])


@pytest.mark.parametrize(
    "x", [X, X.float(), X[:1], X.unsqueeze(2), 1e300 * torch.ones(9, 2).double()]
)
def test_points_that_are_right_pass(x):
    check_points(x)
    check_points(x, event_shape=x.shape[1:], least=len(x))


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (X.tolist(), {}, "x must be a torch.Tensor, got list"),
        (X.numpy(), {}, "x must be a torch.Tensor, got ndarray"),
        (X.long(), {}, "x must be floating point, got torch.int64; convert it with .float()"),
        (
            X.half(),
            {},
            "x must be float32 or float64, got torch.float16; convert it with .float()",
        ),
        (X.bfloat16(), {}, "x must be float32 or float64, got torch.bfloat16"),
        (X[:, 0], {}, "x must have shape (B, *event), got (3,)"),
        (X, {"event_shape": torch.Size([3])}, "x must have shape (B, 3), got (3, 2)"),
        (X.to_sparse(), {}, "x must be dense, got torch.sparse_coo"),
        (X.to("meta"), {}, "x must hold numbers, got a tensor on the meta device"),
        (X[:0], {}, "x is empty, shape (0, 2)"),
        (X[:, :0], {}, "x is empty, shape (3, 0)"),
        (X, {"least": 4}, "x must have at least 4 rows, got 3"),
        (BAD, {}, "x has 2 of 3 rows that are not finite; remove them"),
        (-BAD, {}, "x has 2 of 3 rows that are not finite; remove them"),
    ],
)
def test_points_that_are_wrong_are_refused(x, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_points(x, **options)


def test_values_of_any_shape():
    check_finite(torch.tensor(1.0), "v")
    for value, message in (
        (torch.tensor(NAN), "v must be finite, got nan"),
        (torch.tensor([1.0, -INF]), "v must be finite, got a tensor of shape (2,)"),
        (torch.empty(0), "v is empty, shape (0,)"),
        (3.0, "v must be a torch.Tensor, got 3.0"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            check_finite(value, "v")


@pytest.mark.parametrize("value", [1, 7, np.int64(3)])
def test_counts_that_are_right_pass(value):
    check_count(value, "n")


@pytest.mark.parametrize("value", [0, -1, True, False, 2.0, 2.5, NAN, "3", None, 10**400, [1]])
def test_counts_that_are_none_are_refused(value):
    with pytest.raises(ValueError, match="n must be an integer of at least 1, got "):
        check_count(value, "n")


def test_bounds_of_counts():
    check_count(0, "n", 0)
    check_count(30, "n", most=30)
    with pytest.raises(ValueError, match="n must be an integer from 1 to 30, got 31: why"):
        check_count(31, "n", most=30, why=": why")


@pytest.mark.parametrize(
    ("bounds", "right", "wrong", "message"),
    [
        ({}, [-1e300, 0, 1], [], "be a finite number"),
        ({"above": 0}, [1e-300, 5], [0, -1], "be positive and finite"),
        ({"above": 1}, [1.1], [1], "be above 1 and finite"),
        ({"least": 0}, [0, 5], [-1e-300], "be at least 0 and finite"),
        ({"most": 2}, [2], [2.1], "be at most 2 and finite"),
        ({"below": 2}, [1.9], [2], "be below 2 and finite"),
        ({"above": 0, "below": 1}, [0.5], [0, 1], r"lie in \(0, 1\)"),
        ({"least": 0, "below": 1}, [0], [1], r"lie in \[0, 1\)"),
        ({"above": 0, "most": 1}, [1], [0], r"lie in \(0, 1\]"),
        ({"least": 0, "most": 1}, [0, 1], [1.1], r"lie in \[0, 1\]"),
    ],
)
def test_numbers(bounds, right, wrong, message):
    for value in (*right, *(torch.tensor(float(v)) for v in right), *map(np.float64, right)):
        check_number(value, "h", **bounds)
    never = (NAN, INF, -INF, True, None, "1", 1j, [1.0], torch.ones(2), 10**400)
    for value in (*wrong, *never):
        with pytest.raises(ValueError, match=f"h must {message}, got .*and why"):
            check_number(value, "h", **bounds, why=", and why")


def test_levels_come_back_in_the_shape_that_multiplies():
    assert check_level(0.5, X).shape == ()
    assert check_level(torch.tensor([0.1, 0.2, 0.3]), X).shape == (3, 1)
    assert float(check_level(0.0, X, zero=True)) == 0
    for value, message in (
        (0.0, "sigma must be positive and finite, got 0"),
        (torch.tensor([0.1, NAN, 0.3]), "sigma must be positive and finite, got a minimum of nan"),
        (torch.tensor([0.1, -1.0, 0.3]), "sigma must be positive and finite, got a minimum of -1"),
        (INF, "sigma must be positive and finite, got inf"),
        (torch.ones(2), "sigma must have shape () or (3,), got (2,)"),
        ("x", "sigma must be a number or a tensor, got 'x'"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            check_level(value, X)
    with pytest.raises(ValueError, match="sigma must be at least 0 and finite, got -1"):
        check_level(-1.0, X, zero=True)
    assert float(per_sample(2, X)) == 2


def test_words_functions_kinds_and_shapes():
    check_option("a", "way", ("a", "b"))
    check_option("a", "way", Literal["a"])
    check_function(len, "f")
    check_function(lambda x, y, z=0: x, "f", takes=2)
    check_function(torch.add, "f", takes=7)  # of what has no signature nothing is known
    check_kind(3, "k", int, "an integer")
    check_kind(X, "k", ("shape", "dtype"), "a tensor")
    check_event_shape((2, 3))
    check_generator(None)
    for call, message in (
        (lambda: check_option("c", "way", ("a", "b")), "way must be 'a' or 'b', got 'c'"),
        (lambda: check_option(X, "way", ("a",)), "way must be 'a', got a tensor of shape (3, 2)"),
        (lambda: check_function(3, "f", "; why"), "f must be a function, got 3; why"),
        (lambda: check_kind("3", "k", int, "an integer"), "k must be an integer, got '3'"),
        (
            lambda: check_kind(torch.Tensor, "k", ("shape",), "a tensor"),
            "k must be a tensor, got ",
        ),
        (lambda: check_event_shape((2, 0)), "event_shape must be a tuple of positive sizes"),
        (lambda: check_event_shape(3), "event_shape must be a tuple of positive sizes"),
        (lambda: check_generator(3), "generator must be a torch.Generator, got int: pass"),
        (
            lambda: check_function(lambda x: x, "f", takes=2),
            "f must be a function of 2 arguments: too",
        ),
        (lambda: check_number(Fraction(1, 2), "f"), "f must be a finite number, got Fraction"),
        (
            lambda: evaluate(lambda x: x + 0j, X),
            "score must return real numbers, got torch.complex",
        ),
        (lambda: evaluate(3, X), "score must be a function, got 3"),
        (lambda: evaluate(lambda x: x[:, :1], X), "score returned shape (3, 1) for x of (3, 2)"),
        (lambda: evaluate(lambda x: None, X), "score returned shape NoneType"),  # type: ignore[return-value]
        (lambda: evaluate(lambda x: x / 0, X, "f", finite=True), "f has 3 of 3 rows that are not"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            call()


# ---------------------------------------------------------------------------- costs


def test_what_holds_no_numbers_is_refused_at_every_door():
    for bad in (torch.tensor(0.5, device="meta"), torch.tensor(0.5).to_sparse()):
        for check in (check_number, per_sample_of, check_tensor, check_finite):
            with pytest.raises(ValueError, match="n must"):
                check(bad, "n")


def per_sample_of(value, name):
    per_sample(value, X, name)


def check_tensor(value, name):
    check_kind(value, name, torch.Tensor, "a tensor")


def test_devices():
    check_device("cpu")
    check_device(torch.device("cpu"))
    for bad in ("gpu", "meta", "cuda:99", []):
        with pytest.raises(ValueError, match="device must be one of this machine such as 'cpu'"):
            check_device(bad)


def test_a_result_that_is_not_finite_is_refused():
    good = Estimate(1.0, 0.5)
    assert finite_result(good) is good
    assert finite_result((good, 2.0, "word", None)) == (good, 2.0, "word", None)
    for bad in (NAN, Estimate(1.0, INF), (good, Estimate(NAN, 1.0))):
        with pytest.raises(ValueError, match="became NaN or infinite; rescale x"):
            finite_result(bad)


def test_what_is_held_at_a_time():
    held = sys.modules["gradlogp.core.chunks"].HELD
    for columns in (1, 7, 1000, held, 10 * held):
        rows = rows_held(columns)
        assert rows == 1 or rows * columns <= held < (rows + 1) * columns


def test_a_cost_is_warned_of_above_its_number_and_not_at_it():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_cost(10, 10, "it", "take less")
    with pytest.warns(UserWarning, match="it with 11 points is slow, above 10: take less"):
        warn_of_cost(11, 10, "it", "take less")
