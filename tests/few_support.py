"""What follows the last step of a training, roughly, where only its being there is looked at."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def at_few_levels() -> Iterator[None]:
    """Let models that are made meanwhile have shares at few levels, fitted to few rows.

    A checkpoint is loaded with as many levels as it was made with.
    """
    with pytest.MonkeyPatch.context() as patch:
        for module in ("scores.shared", "scores.waves", "learn.share"):
            patch.setattr(f"gradlogp.{module}.LEVELS", 4)
        patch.setattr("gradlogp.learn.share.ENTRIES", 2**8)
        for name, few in (("STEPS", 8), ("ROWS", 64), ("COMPONENTS", (2,))):
            patch.setattr(f"gradlogp.interfaces.base.{name}", few)
        yield
