"""The one exception that a user meets: a sentence, never a traceback."""

from __future__ import annotations

import errno
import sys
import traceback
from collections.abc import Callable

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FAULT = 70  # exit status of a fault of the program (BSD's EX_SOFTWARE): Python's 1 is an answer


class UserError(Exception):
    """Something the user can put right: what is wrong, with which file, and what to do."""


class ReportedElsewhere(UserError):
    """A UserError of several processes, which another one of them prints."""


def disk_full(error: BaseException | None) -> OSError | None:
    """This error, or the one behind it, that is a disk, a quota or a file size that ran out."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return error
        error = error.__cause__ or error.__context__
    return None


def in_words(full: OSError) -> str:
    """A disk that is full, for its user."""
    where = f"{full.filename}: " if full.filename else ""
    return f"{where}cannot be written ({full.strerror}); make room, then give the command again"


def run_cli(main: Callable[[], int | None]) -> None:
    """Run an entry script, whose result is the exit status. A UserError, and a full disk whoever
    met it, become one line on stderr and exit status 2, any other exception a traceback and
    FAULT."""
    try:
        sys.exit(main() or 0)
    except ReportedElsewhere:
        sys.exit(2)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if isinstance(error, OSError) and (full := disk_full(error)):
            print(f"error: {in_words(full)}", file=sys.stderr)
            sys.exit(2)
        traceback.print_exc()
        sys.exit(FAULT)
