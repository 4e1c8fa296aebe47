"""Demonstrations: the main job from end to end, each leaving a report."""

from . import digits as digits
from . import mixture as mixture
from . import mnist as mnist
from . import stars as stars
from .common import Outcome as Outcome
