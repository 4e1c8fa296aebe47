"""The run-time checks of jaxtyping, for a fraction of their price.

`jaxtyping.jaxtyped` compiles the check of every function twice when it is defined, and then, in
Python, binds the arguments of each call, checks them, and checks them again beside the result. The
suite spent two thirds of its time there. What is checked here is the same: the types of arguments and
result, by the same type checker, and the axes of all shapes of a call against one another. But the
check is compiled when a function is first called, once for all functions of the same code, and whether
a shape is right, given the sizes of the axes so far, is asked once. A function without a shape in its
annotations is left alone: mypy checks it, without running it. And of one that a test calls in a loop
the first calls are checked: those that follow are the same with other numbers.
"""

import dataclasses
import functools
import inspect
import re
import types
import typing
from typing import Any, get_type_hints

import jaxtyping
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import AbstractArray, TypeCheckError, config
from jaxtyping._storage import _shape_storage, pop_shape_memo, push_shape_memo
from torch import Tensor

THEIRS = jaxtyping.jaxtyped

SHAPE = re.compile(r"\w\[[\w.]+, ['\"]")
"""What the text of an annotation has where a shape stands in it."""

MOST = 20
"""Calls of a function that are checked, in each test."""

test = 0
"""The number of the test, from which calls are counted anew."""

compiled = {}
"""What is checked -> the function whose check was compiled, and the one that checks.

By name and annotations beside the code: dataclasses with fields of the same names have the code of
their constructors in common.
"""


def install():
    """Put `jaxtyped` in the place of that of jaxtyping, which its import hook looks up by name.

    And let the members of a protocol be looked up once, and in the class, as from Python 3.12 on:
    before, each check of an object evaluates all its properties.
    """
    jaxtyping.jaxtyped = jaxtyped
    typing._get_protocol_attrs = functools.cache(typing._get_protocol_attrs)
    protocols = type(typing.Protocol)
    protocols.__instancecheck__ = by_class(protocols.__instancecheck__)
    arrays = type(AbstractArray)
    arrays.__instancecheck__ = remembered(arrays.__instancecheck__)


def begin():
    """Begin a test: calls are counted from here."""
    global test
    test += 1


def by_class(check):
    """Return this check of an object for a protocol, where no property of its class is evaluated.

    The first object of a class is checked as ever; of others, what the class does not have.
    """
    rest = {}

    def instancecheck(protocol, instance):
        pair = protocol, type(instance)
        if pair in rest and all(hasattr(instance, name) for name in rest[pair]):
            return True
        held = check(protocol, instance)
        if held:
            members = typing._get_protocol_attrs(protocol)
            rest[pair] = [name for name in members if not hasattr(type(instance), name)]
        return held

    return instancecheck


def remembered(check):
    """Return this check of an array for dtype and axes, with its answers kept, but for refusals."""
    answers = {}

    def instancecheck(hint, x):
        if not isinstance(x, Tensor) or not getattr(_shape_storage, "memo_stack", None):
            return check(hint, x)
        sizes, events = _shape_storage.memo_stack[-1][:2]
        question = hint, type(x), x.dtype, x.shape, *sizes.items(), *events.items()
        answer = answers.get(question)
        if answer is not None:
            sizes.update(answer[0])
            events.update(answer[1])
            return True
        held = check(hint, x)  # which adds the sizes it finds
        if held:
            answers[question] = dict(sizes), dict(events)
        return held

    return instancecheck


def jaxtyped(of=None, *, typechecker=None):
    """Return a function that is checked when called, or a dataclass whose constructor is."""
    again = functools.partial(jaxtyped, typechecker=typechecker)
    if of is None:
        return again
    if inspect.isclass(of):
        own = vars(of).get("__init__")
        if dataclasses.is_dataclass(of) and own is not None and not hasattr(own, "__wrapped__"):
            of.__init__ = again(own)
        return of
    if isinstance(of, classmethod | staticmethod):
        return type(of)(again(of.__func__))
    if isinstance(of, property):
        return property(*(f and again(f) for f in (of.fget, of.fset, of.fdel)))
    if not any(SHAPE.search(str(a)) for a in of.__annotations__.values()):
        return of
    if inspect.isgeneratorfunction(of) or not isinstance(of, types.FunctionType):
        return THEIRS(of, typechecker=typechecker)
    return checked(of, typechecker)


def checked(f, typechecker):
    """Return f with the check of its annotations, compiled at the first call."""
    check, counted, left = None, -1, 0

    @functools.wraps(f)
    def call(*args, **kwargs):
        __tracebackhide__ = True
        nonlocal check, counted, left
        if counted != test:
            counted, left = test, MOST
        if not left or config.jaxtyping_disable:
            return f(*args, **kwargs)
        left -= 1
        if check is None:
            check = check_of(f, typechecker)
        try:
            push_shape_memo({})
            try:
                return check(*args, **kwargs)
            finally:
                pop_shape_memo()
        except BeartypeCallHintViolation as error:
            raise TypeCheckError(str(error)) from None

    return call


def check_of(f, typechecker):
    """Return a function that checks and calls f."""
    key = f.__code__, f.__module__, f.__qualname__, *map(repr, f.__annotations__.values())
    if key not in compiled:
        hints = {name: hint(value, f.__globals__) for name, value in f.__annotations__.items()}
        inner = types.FunctionType(
            f.__code__, f.__globals__, f.__name__, f.__defaults__, f.__closure__
        )
        inner.__kwdefaults__, inner.__annotations__ = f.__kwdefaults__, hints
        inner.__qualname__, inner.__module__ = f.__qualname__, f.__module__
        compiled[key] = inner, typechecker(inner)
        return compiled[key][1]
    inner, outer = compiled[key]
    if outer is inner:  # nothing to check, as of Any
        return f
    # a closure that is defined again: the same check around other variables
    again = types.FunctionType(
        outer.__code__, outer.__globals__, outer.__name__, outer.__defaults__, outer.__closure__
    )
    within = {key: f if value is inner else value for key, value in outer.__kwdefaults__.items()}
    assert f in within.values(), "beartype keeps the function elsewhere: compile each anew"
    again.__kwdefaults__ = within
    return again


def hint(value, names):
    """Return an annotation as the object that a string stands for; what is not to be found is Any."""

    def holder(x: value):  # type: ignore[valid-type]
        pass

    try:
        return get_type_hints(holder, names, include_extras=True)["x"]
    except Exception:  # of a class that is imported for the type checker alone
        return Any
