"""`python -m gradlogp` is the command `gradlogp`."""

from .interfaces.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
