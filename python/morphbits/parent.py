"""A process that is told when the one that started it has died, also of SIGKILL (Linux).

Whoever starts it says who that is, in the environment (`PARENT`) or as an argument, so that also a
death before the process could ask to be told is found. The kernel watches the *thread* that
started it: a thread which ends before its process does must not start what calls this.
"""

from __future__ import annotations

import ctypes
import os
import signal

PARENT = "MORPHBITS_PARENT"  # process id of the one that has set it
_PR_SET_PDEATHSIG = 1  # its number in linux/prctl.h


def end_with_parent(parent: int | None = None, number: int = signal.SIGTERM) -> None:
    """Have this process sent the signal when its parent dies, or now where that is dead."""
    told = os.environ.pop(PARENT, None)
    expected = parent or int(told or os.getppid())
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != expected:
        os.kill(os.getpid(), number)
