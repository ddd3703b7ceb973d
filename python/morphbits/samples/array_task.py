"""One task of a Slurm array: ``python -m morphbits.samples.array_task TASKS NUMBER``.

TASKS is the file that `slurm.submit` wrote: line k, a JSON list, holds the samples of task k.
Those that are done already (the task was requeued) are left as they are; the others are made as
any run makes them. The last lines of the task's log say why it failed, if it did.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from morphbits.errors import UserError, run_cli
from morphbits.samples import matrix, runner
from morphbits.samples.worker import from_task


def main() -> None:
    tasks, number = Path(sys.argv[1]), sys.argv[2]
    lines = tasks.read_text(encoding="utf-8").splitlines()
    if not number.isdigit() or not 1 <= int(number) <= len(lines):
        raise UserError(f"{tasks}: has tasks 1 to {len(lines)}; there is no {number!r}")
    units = [from_task(task) for task in json.loads(lines[int(number) - 1])]
    todo = matrix.todo(units)
    outcome = runner.run(todo, 1, len(units))
    trouble = [outcome.stopped, runner.describe_failures(outcome.failed)]
    if any(trouble):
        raise UserError("\n".join(filter(None, trouble)))


if __name__ == "__main__":
    run_cli(main)
