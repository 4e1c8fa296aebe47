"""The command line. Data goes to standard output, messages to standard error.

Exit codes: 0 success, 1 failure (a check, a file, a full disk), 2 usage error, 130 interrupted.
"""

from .main import main as main
