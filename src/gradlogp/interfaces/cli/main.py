"""Parsing and exit codes; heavy imports wait until a command runs."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import cyclopts
from cyclopts import Parameter

from ... import __version__
from .check import info, sample_size, verify
from .common import Misuse
from .geometry import geometry
from .langevin import targets
from .learn import demo, fit
from .restore import restore
from .terminal import printable
from .use import evaluate, sample

HELP = """Learn the score of a distribution, sample with it, and check both.

Start with `gradlogp demo`. Every command explains itself with --help.
Options may come from a TOML file: --config run.toml, one table a command, as in

    [fit]
    steps = 4000
"""

app = cyclopts.App(
    name="gradlogp",
    help=HELP,
    version=__version__,
    help_format="plaintext",
    suppress_keyboard_interrupt=False,
)
app.meta.suppress_keyboard_interrupt = False
for _command in (
    demo, fit, sample, evaluate, restore, geometry, sample_size, targets, verify, info,
):  # fmt: skip
    app.command(_command)


@app.meta.default
def _launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    config: Path | None = None,
) -> object:
    """Run a command.

    Args:
        tokens: The command and its options.
        config: A TOML file with options, one table a command.
    """
    if config is not None:
        if not config.is_file():
            raise Misuse(f"there is no configuration file {config}")
        app.config = (cyclopts.config.Toml(config, must_exist=True),)
    else:
        app.config = ()
    try:  # the options of a command may be the fields of a class that refuses values
        command, bound, _ = app.parse_args(tokens, exit_on_error=False, print_error=False)
    except ValueError as error:
        raise Misuse(error) from None
    return command(*bound.args, **bound.kwargs)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    app.config = ()  # that of a call before is not that of this one
    with printable(sys.stdout, sys.stderr):
        return _run(arguments)


def _run(arguments: Sequence[str] | None) -> int:
    try:
        result = app.meta(
            arguments, exit_on_error=False, print_error=False, result_action="return_value"
        )
        sys.stdout.flush()
    except (cyclopts.CycloptsError, Misuse) as error:
        return _fail(2, error)
    except KeyboardInterrupt as stop:
        code = 128 + getattr(stop, "number", signal.SIGINT)
        return _fail(code, f"interrupted{'; ' if str(stop) else ''}{stop}")
    except BrokenPipeError:  # whoever read our output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, ArithmeticError, MemoryError) as error:
        return _fail(1, error)
    return result if isinstance(result, int) else 0


def _fail(code: int, message: object) -> int:
    line = " ".join(str(message).split())
    print(f"gradlogp: {line}", file=sys.stderr)
    return code
