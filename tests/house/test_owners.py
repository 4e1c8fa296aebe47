"""A noisy score owns its schedule: nothing public takes both, but what joins them."""

import importlib
import inspect
import pkgutil

import pytest

import gradlogp

JOINS = {
    "as_score", "ExactScore", "EmpiricalScore", "ScoreModel", "ForeignScore", "FunctionScore",
    "RescheduledScore", "build_model", "ScoreEstimator",
}  # fmt: skip
"""What makes a noisy score of a schedule and something else, beside those named `from_…`."""

SCORES, SCHEDULES = {"score", "model", "network", "denoiser", "free", "exact"}, {"schedule"}


def modules():
    """Every module of the package that can be imported, by name."""
    yield gradlogp
    for info in pkgutil.walk_packages(gradlogp.__path__, "gradlogp."):
        if not info.name.rpartition(".")[2].startswith("_"):
            yield importlib.import_module(info.name)


def parameters(function):
    try:
        return set(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # a callable written in C
        return set()


def callables(module):
    """What is public in a module and was written there: functions, classes, and public methods."""
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(value) or inspect.isclass(value):
            yield name, value
        if inspect.isclass(value):
            for inner, method in vars(value).items():
                function = getattr(method, "__func__", method)  # class and static methods
                if (not inner.startswith("_") or inner == "__call__") and callable(function):
                    yield f"{name}.{inner}", function


def takes_both(function):
    """Whether a score and a schedule are parameters side by side."""
    found = parameters(function)
    return bool(found & SCORES) and bool(found & SCHEDULES)


def joins(name):
    head = name.split(".")[0]
    return head in JOINS or head.startswith("from_")


def test_nobody_takes_the_schedule_of_a_score_again():
    seen, wrong = 0, []
    for module in modules():
        for name, value in callables(module):
            seen += 1
            if takes_both(value) and not joins(name):
                wrong.append(f"{module.__name__}.{name}")
    assert not wrong, wrong
    assert seen > 700  # the walk has found the package


def test_the_exceptions_take_a_schedule():
    """Each that is named exists, and needs to be: nothing is left here that is gone."""
    takers = {n for m in modules() for n, v in callables(m) if "schedule" in parameters(v)}
    assert takers >= JOINS | {"from_epsilon"}


def bad(score, x, schedule=None):
    """Negative control: a function of the old kind."""
    return score, x, schedule


class Bad:
    """Negative control: a method of the old kind."""

    def run(self, model, schedule):
        """Return nothing."""


@pytest.mark.parametrize("wrong", [bad, Bad.run])
def test_the_walk_sees_what_it_looks_for(wrong):
    assert takes_both(wrong)
    assert not joins(wrong.__name__)
    assert not takes_both(lambda score, x: x)
    assert not takes_both(lambda schedule, n: n)


def test_the_walk_looks_into_modules_and_classes(monkeypatch):
    monkeypatch.setattr(bad, "__module__", "gradlogp.core")
    monkeypatch.setattr(Bad, "__module__", "gradlogp.core")
    monkeypatch.setattr(gradlogp.core, "bad", bad, raising=False)
    monkeypatch.setattr(gradlogp.core, "Bad", Bad, raising=False)
    found = {n for n, v in callables(gradlogp.core) if takes_both(v)}
    assert found == {"bad", "Bad.run"}
