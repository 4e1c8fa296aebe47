"""One thread, float64 by default, and a separate generator for every test."""

import gc
import os
import zlib
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import torch
    import typed

os.environ.pop("COLUMNS", None)  # the width of the terminal in which tests are run
gc.disable()  # until all tests are collected: until then hardly anything is garbage


def pytest_configure(config):
    """Prepare PyTorch, but not where tests are only dealt out to workers, who wait for it."""
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        return
    global torch, typed
    import torch
    import typed

    typed.install()
    torch.set_num_threads(1)


def pytest_collection_finish():
    """Let the collector pass over modules and tests, which live as long as the process."""
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _float64():
    typed.begin()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def compiling():
    """The compiler of PyTorch, which switches the checks of `torch.distributions` off for good."""
    torch._dynamo.reset()
    yield
    torch.distributions.Distribution.set_default_validate_args(True)


@pytest.fixture
def float32():
    """What PyTorch itself has by default, until the test ends."""
    torch.set_default_dtype(torch.float32)


@pytest.fixture(autouse=True, scope="session")
def _no_waiting_for_the_disk():
    """What tests write need not outlive a power cut; that it would is tested by what is called."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda number: None)
        yield


@pytest.fixture
def generator(request):
    """A generator seeded by the test's name, wherever its file lies: fixed, another for each test."""
    name = "tests/" + request.node.nodeid.rpartition("/")[2]
    return torch.Generator().manual_seed(zlib.crc32(name.encode()))


@pytest.fixture
def coarse_pictures(monkeypatch):
    """Let the pictures of a report have few pixels, where only their being there is looked at."""
    monkeypatch.setattr("gradlogp.show.report._DPI", 30)


@pytest.fixture
def quick_pictures(coarse_pictures, monkeypatch):
    """Likewise, and do not arrange what is in them, which takes longer than to draw it."""
    engine = "matplotlib.layout_engine.ConstrainedLayoutEngine.execute"
    monkeypatch.setattr(engine, lambda layout, figure: None)


@pytest.fixture
def bare_pictures(quick_pictures, monkeypatch):
    """Likewise, and draw no axes, which is most of the work."""
    monkeypatch.setattr("matplotlib.axis.Axis.draw", lambda axis, renderer: None)
    monkeypatch.setattr("matplotlib.axis.Axis.get_tightbbox", lambda axis, *_, **__: None)


@pytest.fixture
def few_steps(monkeypatch):
    """Measure no steps, and shares roughly, where only their being there is looked at."""
    monkeypatch.setattr("gradlogp.interfaces.pipeline.sample_levels", lambda model: 16)
    monkeypatch.setattr("gradlogp.interfaces.pipeline.likelihood_steps", lambda model: 12)
    monkeypatch.setattr("gradlogp.interfaces.base.STEPS", 8)
    monkeypatch.setattr("gradlogp.interfaces.base.ROWS", 64)
    monkeypatch.setattr("gradlogp.interfaces.base.COMPONENTS", (2,))
    monkeypatch.setattr("gradlogp.learn.share.ENTRIES", 2**12)


@pytest.fixture
def few_levels(few_steps):
    """Likewise, and have shares at few noise levels."""
    from few_support import at_few_levels

    with at_few_levels():
        yield


@pytest.fixture
def as_user():
    """Switch the run-time shape checks off, to see the errors that a user sees."""
    from jaxtyping import config

    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
