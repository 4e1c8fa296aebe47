"""Annotations are checked when a function is called, here and in every module of the library."""

import dataclasses
from contextlib import nullcontext
from functools import partial
from typing import Protocol, runtime_checkable

import pytest
import torch
import typed
from beartype import beartype
from jaxtyping import Float, TypeCheckError
from torch import Tensor
from typed import jaxtyped

from gradlogp import tweedie
from gradlogp.langevin.diagnostics import ess

checked = partial(jaxtyped, typechecker=beartype)
ones = torch.ones


@checked
def product(x: Float[Tensor, "b c"], y: Float[Tensor, "c d"]) -> Float[Tensor, "b d"]:
    return x @ y


@checked
def doubled(x: Float[Tensor, "b"], n: int, *more: int, twice: bool = True) -> Float[Tensor, "b"]:
    return 2 * x if twice else n  # type: ignore[return-value]


@checked
def shapeless(n: int) -> int:
    return n


@checked
def nested(x: Float[Tensor, "b c"]) -> Float[Tensor, "c b"]:
    return product(ones(5, 7), ones(7, 9))[: len(x.mT), : len(x)]  # axes of the same names


@checked
def later(x: "Float[Tensor, 'b 2']") -> "Later":
    return Later(x[:, 0])


@checked
def rows(x: Float[Tensor, "b 2"]):
    yield from x


@checked
@dataclasses.dataclass
class Later:
    x: Float[Tensor, "b"]

    @checked
    def times(self, n: int) -> Float[Tensor, "2"]:
        return self.x * n

    @classmethod
    @checked
    def of(cls, x: Float[Tensor, "2"]) -> "Later":
        return cls(x)

    @property
    @checked
    def row(self) -> Float[Tensor, "1 b"]:
        return self.x


@checked
@dataclasses.dataclass
class Other:  # the code of its constructor is that of the one above
    x: Float[Tensor, "b b"]


def adding(k, result=None):
    @checked
    def add(x: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        return x + k if result is None else result

    return add


def test_what_is_right_goes_through():
    assert product(ones(2, 3), ones(3, 4)).shape == (2, 4)
    assert doubled(ones(1), 4, 5) == doubled(n=2, x=ones(1)) == 2
    assert nested(ones(2, 3)).shape == (3, 2)
    assert later(ones(2, 2)).x.equal(Later.of(ones(2)).x)
    assert Later(ones(2)).times(3).shape == (2,)
    assert Other(ones(2, 2)).x.shape == (2, 2)
    assert len(list(rows(ones(3, 2)))) == 3
    assert [float(adding(k)(ones(1))) for k in (1, 5)] == [2, 6]


@pytest.mark.parametrize(
    "call",
    [
        lambda: product(ones(2, 3), ones(4, 4)),  # an axis of two arguments
        lambda: product(ones(2, 3), ones(3, 4).long()),
        lambda: product(ones(2, 3), ones(3)),
        lambda: nested(ones(2, 10)),  # an axis of an argument and the result
        lambda: doubled(ones(1), "3"), lambda: doubled(ones(1), 3, "4"),
        lambda: doubled(ones(1), 3, twice=1), lambda: doubled("3", 3),
        lambda: doubled(ones(1), 3, twice=False),  # the result
        lambda: later(ones(5, 3)), lambda: Later("3"), lambda: Later(ones(2, 2)),
        lambda: Other(ones(2)), lambda: Other(ones(2, 3)), lambda: Later(ones(2)).times(2.0),
        lambda: Later(ones(3)).times(2), lambda: Later.of(ones(3)), lambda: Later(ones(2)).row,
        lambda: list(rows(ones(3))), lambda: adding(2)("3"), lambda: adding(2, "3")(ones(1)),
        lambda: tweedie(lambda x: x, "3", 1.0, 1.0), lambda: ess(ones(2, 3)),  # of the library
    ],
)  # fmt: skip
def test_what_is_wrong_does_not(call):
    with pytest.raises(TypeCheckError):
        call()


def test_the_library_is_checked_in_this_way():
    """Or its functions have slower checks of jaxtyping's own."""
    assert ess.__code__ is doubled.__code__


def test_a_function_without_shapes_is_left_alone():
    assert shapeless("3") == "3"


def test_a_user_has_no_checks(as_user):
    assert doubled("3", 1) == "33"
    assert adding(2, "3")(3) == "3"


def test_of_a_loop_the_first_calls_are_checked():
    for i in range(typed.MOST + 1):
        with pytest.raises(TypeCheckError) if i < typed.MOST else nullcontext():
            doubled("3", 1)
    assert doubled("3", 1) == "33"
    typed.begin()
    with pytest.raises(TypeCheckError):
        doubled("3", 1)


def test_an_answer_is_kept_with_the_sizes_that_it_found():
    x = ones(11, 13)
    assert isinstance(x, Float[Tensor, "b c"])  # outside of a function, whose axes it must not be
    for _ in range(2):
        assert product(x, x.mT).shape == (11, 11)
        with pytest.raises(TypeCheckError):
            product(x, x)


def test_each_object_is_checked_for_what_its_class_does_not_have():
    evaluated = []

    @runtime_checkable
    class Named(Protocol):
        name: str

        @property
        def size(self): ...

    class Thing:
        size = property(evaluated.append)

        def __init__(self, **has):
            vars(self).update(has)

    assert all(isinstance(Thing(name="a"), Named) for _ in range(3))
    assert len(evaluated) == 1
    assert not isinstance(Thing(), Named)
    assert not isinstance("a", Named)
