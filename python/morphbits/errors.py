"""The one exception that a user meets: a sentence, never a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable


class UserError(Exception):
    """Something the user can put right: what is wrong, with which file, and what to do."""


class SaidElsewhere(UserError):
    """A UserError that another process has met too, and says."""


def run_cli(main: Callable[[], int | None]) -> None:
    """Run an entry script: a UserError becomes one line on stderr and exit status 2."""
    try:
        sys.exit(main() or 0)
    except SaidElsewhere:
        sys.exit(2)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
