"""The command line. Data goes to standard output, messages to standard error.

Exit codes: 0 done, 1 failed (a check, a file, a full disk), 2 misuse, 130 interrupted.
"""

from .main import main as main
