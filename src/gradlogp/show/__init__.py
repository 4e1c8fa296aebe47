"""Figures, reports and progress bars, drawn from given values.

Figures are loaded on first use: a progress bar does not need Matplotlib.
"""

from typing import TYPE_CHECKING, Any

from .explore import explore as explore
from .progress import bar as bar
from .report import Row as Row
from .report import Section as Section
from .report import write as write
from .strip import strip as strip

if TYPE_CHECKING:
    from .animation import animate as animate


def __getattr__(name: str) -> Any:
    if name == "animate":
        from .animation import animate

        return animate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
