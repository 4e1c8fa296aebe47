"""Demonstrations: the main task from beginning to end, each with a report."""

from . import digits as digits
from . import mixture as mixture
from . import mnist as mnist
from . import stars as stars
from .common import Outcome as Outcome
