"""Parsing and exit codes; heavy imports wait until a command runs."""

from __future__ import annotations

import codecs
import os
import signal
import sys
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cyclopts

from ... import __version__
from .check import info, sample_size, verify
from .common import Misuse
from .explore import explore
from .geometry import geometry
from .langevin import targets
from .learn import demo, fit
from .restore import impute, restore
from .use import evaluate, sample

IN_ASCII = {
    "−": "-", "–": "-", "—": "-", "±": "+/-", "×": "x", "·": "*", "✓": "ok", "✗": "x", "…": "...",
    "≤": "<=", "≥": ">=", "≈": "~", "∞": "inf", "√": "sqrt", "∇": "grad ", "∂": "d", "Σ": "sum ",
    "→": "->", "‖": "|", "⟨": "<", "⟩": ">", "½": "1/2", "“": '"', "”": '"',
    "’": "'", "‘": "'", "━": "-", "╸": "-", "│": "|", "─": "-", "╭": "+", "╮": "+", "╰": "+", "╯": "+",
}  # fmt: skip
"""What this library prints; powers, accents and Greek letters are taken apart by Unicode itself."""

NAME = "gradlogp"


def in_ascii(text: str) -> str:
    """Return text in ASCII: a minus for a minus, 10^2 for 10², a question mark for unknown characters.

    Examples:
        >>> in_ascii("−1.743 ± 0.021, 10⁻⁷, σ²")
        '-1.743 +/- 0.021, 10^-7, sigma^2'
    """
    out, raised = [], False
    for character in text:
        above = unicodedata.decomposition(character).startswith("<super>")
        out.append("^" if above and not raised else "")
        raised = above
        plain = unicodedata.normalize("NFKD", IN_ASCII.get(character, character))
        for part in plain:
            if not unicodedata.combining(part):
                out.append(part if part.isascii() else IN_ASCII.get(part) or _greek(part) or "?")
    return "".join(out)


def _greek(letter: str) -> str:
    """Return the name of a Greek letter, Sigma for Σ."""
    words = unicodedata.name(letter, "").split()
    if words[:1] != ["GREEK"]:
        return ""
    name = "lambda" if words[-1] == "LAMDA" else words[-1].lower()
    return name.capitalize() if words[1] == "CAPITAL" else name


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return in_ascii(error.object[error.start : error.end]), error.end


@contextmanager
def printable(*streams: Any) -> Iterator[None]:
    """Write to these streams what they can encode, and the rest in ASCII; strict again afterwards."""
    codecs.register_error(NAME, _replace)
    strict = [
        s for s in streams if getattr(s, "errors", "") == "strict" and hasattr(s, "reconfigure")
    ]
    for stream in strict:
        stream.reconfigure(errors=NAME)
    try:
        yield
    finally:
        for stream in strict:
            if not stream.closed:
                stream.reconfigure(errors="strict")


HELP = """Learn the score of a distribution, sample with it, and check both.

Start with `gradlogp demo`. Every command has a --help page.
Options may come from a TOML file, --config run.toml, with one table per command:

    [fit]
    steps = 4000

Checkpoints, data and options contain no code. A Python file named by --target file.py:function, or
by explore file.py:function, is executed as a whole: name only files that you trust.
"""

app = cyclopts.App(
    name="gradlogp",
    help=HELP,
    version=__version__,
    help_format="markdown",
    suppress_keyboard_interrupt=False,
    help_epilogue="With --config FILE, options come from a TOML file: see gradlogp --help.",
)
for _command in (
    demo, fit, sample, evaluate, impute, explore, restore, geometry, sample_size, targets, verify, info,
):  # fmt: skip
    app.command(_command)


LOWER = {
    "demo": "--threads", "fit": "--batch-size or --width", "evaluate": "--n", "restore": "--n",
    "sample": "--n, or with --target --draws or --chains", "geometry": "--points or --perturbations",
    "impute": "--n-draws",
}  # fmt: skip
"""What to lower where memory is short."""

TOO_LARGE = (
    "defaultcpuallocator",
    "out of memory",
    "calculation overflow",
    "multiplication overflow",
)
"""What PyTorch says, by a RuntimeError, of memory that is not there or cannot be."""


def _configured(tokens: Sequence[str]) -> list[str]:
    """Take --config FILE out of a command line, wherever it stands, and let options come from it."""
    left, files = [], []
    rest = iter(tokens)
    for token in rest:
        name, given, value = token.partition("=")
        if name != "--config":
            left.append(token)
        elif not (file := value if given else next(rest, "")):
            raise Misuse("--config needs the name of a TOML file")
        else:
            files.append(Path(file))
    if len(files) > 1:
        raise Misuse(f"--config is given {len(files)} times; put all options into one file")
    for path in files:
        _check_config(path)
    # that of a call before is not that of this one
    app.config = [cyclopts.config.Toml(path, must_exist=True) for path in files]
    return left


def _check_config(path: Path) -> None:
    """Refuse a file with anything but tables of commands, and in them options of theirs."""
    import tomllib

    if not path.is_file():
        raise Misuse(f"there is no configuration file {path}")
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise Misuse(f"{path} is not a TOML file: {error}") from None
    commands = [name for name in app if not name.startswith("-")]
    for name, table in found.items():
        if name not in commands:
            what = (
                f"[{name}]"
                if isinstance(table, dict)
                else f"'{name}', which is outside any table,"
            )
            _unknown(f"{path}: {what} is not a command", name, commands)
        if not isinstance(table, dict):
            raise Misuse(f"{path}: '{name}' must be a table of options, [{name}], got {table!r}")
        arguments = app[name].assemble_argument_collection()
        options = [n[2:] for a in arguments for n in a.names if n.startswith("--")]
        for key in table:
            if key.replace("_", "-") not in options:
                _unknown(f"{path}: [{name}] has no option '{key}'", key, options)


def _unknown(what: str, name: str, known: list[str]) -> None:
    from ...core import nearest

    raise Misuse(f"{what}{nearest(name, known)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Every failure becomes one line. Under `python -X dev -m gradlogp` unforeseen errors keep their
    traceback.
    """
    with printable(sys.stdout, sys.stderr), warnings.catch_warnings():
        warnings.showwarning = _warn
        return _run(arguments)


def _run(arguments: Sequence[str] | None) -> int:
    try:
        tokens = _configured(sys.argv[1:] if arguments is None else arguments)
        try:  # the options of a command may be the fields of a class that refuses values
            run, bound, _ = app.parse_args(tokens, exit_on_error=False, print_error=False)
        except ValueError as error:
            raise Misuse(error) from None
        result = run(*bound.args, **bound.kwargs)
        sys.stdout.flush()
    except (cyclopts.CycloptsError, Misuse) as error:
        return _fail(2, error)
    except KeyboardInterrupt as stop:
        code = 128 + getattr(stop, "number", signal.SIGINT)
        return _fail(code, f"interrupted{'; ' if str(stop) else ''}{stop}")
    except BrokenPipeError:  # whoever read our output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        said = str(error).lower()
        if isinstance(error, MemoryError) or any(words in said for words in TOO_LARGE):
            command = next((t for t in arguments or sys.argv[1:] if t in LOWER), None)
            advice = f"; lower {LOWER[command]}" if command else ""
            return _fail(
                1, f"out of memory{advice} ({said.splitlines()[0][:120] if said else 'no more'})"
            )
        if isinstance(error, ValueError | OSError | ArithmeticError):
            return _fail(1, error)
        if sys.flags.dev_mode:
            raise
        return _fail(
            1,
            f"{type(error).__name__}: {error}; this is a bug in gradlogp; "
            "`python -X dev -m gradlogp …` shows where",
        )
    return result if isinstance(result, int) else 0


def _warn(message: Warning | str, *where: object, **more: object) -> None:
    """Print a warning as one line, without the place in the program."""
    print(f"gradlogp: {' '.join(str(message).split())}", file=sys.stderr)


def _fail(code: int, message: object) -> int:
    line = " ".join(str(message).split())
    print(f"gradlogp: {line}", file=sys.stderr)
    return code
