"""Start the ranks of a training on this machine, by torchrun.

    python -m morphbits.training.launch TORCHRUN-OPTION... -- OPTION OF morphbits train-ddp...

Options are looked at once, before any rank is started. What a rank says is all that is said:
torchrun's own report of a rank that failed, with its traceback, is left out, and the exit status
is that of the rank that failed first. Ranks end with this process, and this one with the script
that started it, as at SIGTERM: the step under way is saved.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path

from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousError

from morphbits.errors import UserError, run_cli
from morphbits.parent import PARENT, end_with_parent
from morphbits.synthesis.settings import Ranks
from morphbits.training import loop
from morphbits.training import meeting as place
from morphbits.training.options import parse

ROOT = Path(__file__).parents[3]
# seconds for the step under way, once a signal has come
PATIENCE, PATIENCE_UNDER_VERROU = 120, 7200


def main() -> int:
    """The exit status: 0, or of the rank that failed first."""
    if "--" not in sys.argv:
        raise UserError(f"no -- among the options; {__doc__}")
    end_with_parent()
    at = sys.argv.index("--")
    meeting, words = sys.argv[1:at], sys.argv[at + 1 :]
    config = loop.resolve(parse(__doc__, words, "morphbits train-ddp").config, Ranks())
    patience = PATIENCE
    program = [str(ROOT / "python" / "morphbits"), "train-ddp", *words]
    if config.engine == "verrou":
        patience = PATIENCE_UNDER_VERROU
        verrou = [str(ROOT / "scripts" / "with_verrou.sh"), "--mode", config.mode, "--"]
        program = ["--no-python", *verrou, sys.executable, *program]
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # each rank sets its own number of threads
    os.environ[PARENT] = str(os.getpid())
    endpoint = ""
    if "--rdzv-endpoint" in meeting:
        endpoint = meeting[meeting.index("--rdzv-endpoint") + 1]
        meeting += place.options(endpoint)
    logging.disable(logging.CRITICAL)
    try:
        torchrun.main([*meeting, f"--shutdown-timeout={patience}", *program])
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode >= 0:
            return failure.exitcode
        number = signal.Signals(-failure.exitcode)
        often = " (often memory ran out: give a smaller NPROC)" if number == signal.SIGKILL else ""
        print(
            f"error: rank {rank} was ended by {number.name}{often}; RESUME=1 continues from the "
            "last checkpoint, if there is one",
            file=sys.stderr,
        )
        return 128 + number
    except RendezvousError as error:
        raise place.failure(endpoint, error) from None
    except SignalException as error:
        return 128 + error.sigval
    return 0


if __name__ == "__main__":
    run_cli(main)
