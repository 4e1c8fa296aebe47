"""Figures, reports and progress bars, drawn from given values."""

from .animation import animate as animate
from .explore import explore as explore
from .progress import bar as bar
from .report import Row as Row
from .report import Section as Section
from .report import write as write
from .strip import strip as strip
