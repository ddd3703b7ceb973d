"""The process of one repetition: a Python program inside a region of random rounding.

    python -m morphbits.studies.program.perturbed OPTIONS RECORD SCRIPT [WORD]...

OPTIONS: the arguments of `random_rounding` as JSON, or null: then nothing is perturbed. With
`shadow`, {mode, runs}, the main thread's numbers have a float64 shadow, and each module of torch
is a stage, whose results' bits are estimated for so many runs in that mode. At the end RECORD says
what was. The script runs as `python SCRIPT` would run it; `-m MODULE` as well.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from morphbits.engines.native import Statistics, random_rounding
from morphbits.engines.native.kernels.build import build
from morphbits.errors import UserError
from morphbits.parent import end_with_parent

REFUSED = 3  # the exit status where the engine has no rule for an operator


class Perturbation:
    """A region for the main thread and one for each thread that the program starts, whose stream
    is that of (seed, how many were started before)."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        self._one_run: Any = None
        if "shadow" in options:
            from morphbits.studies.program.one_run import OneRun

            self._one_run = OneRun(**options.pop("shadow"))
        self._all: list[Statistics] = []
        self._lock = threading.Lock()
        self.forked = 0

    def run(self, program: Callable[[], None]) -> None:
        """Call the program in its region."""
        build()  # it starts threads, which are not the program's
        self._perturb_threads()
        os.register_at_fork(after_in_parent=self._count_fork)
        if self._one_run:
            program = partial(self._one_run.watch, program)
        self._in_region(self._options["seed"], program)

    def _in_region(self, seed: int, function: Callable[[], None]) -> None:
        with random_rounding(**{**self._options, "seed": seed}) as statistics:
            self._all.append(statistics)
            function()

    def _perturb_threads(self) -> None:
        start, outer, started = threading.Thread.start, self, Counter[str]()

        def perturbed(thread: threading.Thread) -> None:
            with outer._lock:
                started["threads"] += 1
                seed = (outer._options["seed"] + (started["threads"] << 32)) % 2**64
            run = thread.run  # of its own class, perhaps
            thread.run = lambda: outer._in_region(seed, run)  # type: ignore[method-assign]
            start(thread)

        threading.Thread.start = perturbed  # type: ignore[method-assign, assignment]

    def _count_fork(self) -> None:
        self.forked += 1

    def record(self) -> dict[str, Any]:
        """Elementary operations by operator, what was let pass, and what could not be reached."""
        operators: Counter[str] = Counter()
        unperturbed: Counter[str] = Counter()
        for statistics in self._all:
            operators.update(statistics.operators)
            unperturbed.update(statistics.unperturbed)
        return {
            "operations": sum(operators.values()),
            "operators": dict(operators.most_common()),
            "unperturbed": dict(unperturbed.most_common()),
            "forked_processes": self.forked,
            **(self._one_run.tables() if self._one_run else {}),
        }


def main() -> None:
    end_with_parent()
    options, path, command = json.loads(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    perturbation = Perturbation(options) if options is not None else None
    started = time.perf_counter()
    record: dict[str, Any] = {}

    def write() -> None:
        record["seconds"] = time.perf_counter() - started
        record.update(perturbation.record() if perturbation else {})
        path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    with ExitStack() as end:
        end.callback(write)
        try:
            if perturbation:
                perturbation.run(lambda: _run(command))
            else:
                _run(command)
        except UserError as error:
            record["refused"] = str(error)
            print(f"error: {error}", file=sys.stderr)
            sys.exit(REFUSED)


def _run(command: list[str]) -> None:
    if command[0] == "-m":
        sys.argv = command[1:]
        sys.path[0] = os.getcwd()
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(command)
        sys.path[0] = str(Path(command[0]).resolve().parent)
        runpy.run_path(command[0], run_name="__main__")


if __name__ == "__main__":
    main()
