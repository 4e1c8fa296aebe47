"""One attempt of the command line in this process, and what is wrong with how it ended."""

import contextlib
import io
import signal
import warnings
from typing import NamedTuple

from gradlogp.interfaces.cli import main


class Outcome(NamedTuple):
    """An exit code, None where something was raised; what was printed; what was raised."""

    code: int | None
    out: str
    err: str
    raised: str = ""


class Hang(BaseException):
    """It took too long; no command catches this."""


def attempt(*arguments, seconds=120):
    """Run one command line."""

    def stop(number, frame):
        raise Hang(f"not done after {seconds} s")

    out, err = io.StringIO(), io.StringIO()
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            code = main([str(a) for a in arguments])
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever it is: a person would see its traceback
        return Outcome(None, out.getvalue(), err.getvalue(), repr(error))
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return Outcome(code, out.getvalue(), err.getvalue())


def complaints(outcome):
    """Say what is wrong: a traceback, another exit code, an error that is not one readable line."""
    code, out, err, raised = outcome
    if raised:
        return [f"raised {raised[:300]}"]
    wrong = []
    if code not in (0, 1, 2):
        wrong.append(f"exit code {code}")
    if "Traceback" in out + err:
        wrong.append("a traceback")
    if "bug in gradlogp" in err:
        wrong.append(f"nobody foresaw: {err[-300:]}")
    errors = [line for line in err.splitlines() if line.startswith("gradlogp: ")]
    failed_check = code == 1 and out and not errors  # a verdict, which is printed as a result
    if code and not failed_check:
        if not errors or err.strip().splitlines()[-1] != errors[-1]:
            wrong.append(f"code {code} without a last line that says why: {err[-300:]!r}")
        elif len(errors[-1]) > 1000:
            wrong.append(f"an error of {len(errors[-1])} characters")
    return wrong
