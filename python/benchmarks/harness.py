"""What the measuring programs share: a process for each measurement, and a report in Markdown.

    python -m benchmarks.harness native measure '["torch", "demo", [32, 32, 32], 1, 3]'

calls one function of one program and prints what it returns as JSON. `measured` does that from
inside a program, so that each measurement has its own peak memory, threads and environment.
"""

from __future__ import annotations

import datetime
import importlib
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from morphbits.errors import UserError
from morphbits.machine import cores, cpu
from morphbits.provenance import code_revision

NOTES = Path(__file__).parents[2] / "notes"


def measured(
    function: Callable[..., Any],
    *arguments: Any,
    ranks: int = 0,
    environment: Mapping[str, str] | None = None,
) -> Any:
    """What ``function`` of a program in this folder returns, computed in a process of its own.

    Arguments and result travel as JSON. ``ranks``: as many processes under torchrun, of which one
    returns something; 0 is a single process without torchrun. Raises UserError where it fails.
    """
    return result(start(function, *arguments, ranks=ranks, environment=environment))


def start(
    function: Callable[..., Any],
    *arguments: Any,
    ranks: int = 0,
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[str]:
    """The process of `measured`, while it runs."""
    program, name = Path(inspect.getfile(function)).stem, function.__name__
    torchrun = ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"]
    command = [sys.executable, "-m", *(torchrun if ranks else []), "benchmarks.harness"]
    return subprocess.Popen(
        [*command, program, name, json.dumps(arguments)],
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result(process: subprocess.Popen[str], seconds: float | None = None) -> Any:
    """What the function returned; None where it has not ended after ``seconds``."""
    try:
        output, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return None
    if process.returncode:
        *_, reason = errors.strip().splitlines() or [f"status {process.returncode}"]
        reason = "killed (out of memory?)" if process.returncode == -9 else reason
        raise UserError(f"the measurement {process.args!r} failed: {reason}")
    return json.loads(output.splitlines()[-1])


class Report:
    """A Markdown file that grows line by line and is printed as it grows.

    It opens with what a reader needs to repeat it: command, commit, hardware and versions.
    """

    def __init__(self, path: Path, title: str, command: str, *packages: str) -> None:
        self.path, self.lines = path, list[str]()
        path.parent.mkdir(parents=True, exist_ok=True)
        self.add(f"# {title}, {today()}", "", heading(command, *packages), "")

    def add(self, *lines: str) -> None:
        """Append lines, and write the file anew."""
        self.lines += lines
        self.path.write_text("\n".join(self.lines) + "\n", encoding="utf-8")
        print("\n".join(lines), flush=True)

    def table(self, *columns: str) -> None:
        """The first two lines of a table, after an empty one."""
        gap = [""] if self.lines[-1] else []
        self.add(*gap, f"| {' | '.join(columns)} |", "|---" * len(columns) + "|")

    def row(self, *cells: object) -> None:
        """A line of the table."""
        self.add(f"| {' | '.join(map(str, cells))} |")


def heading(command: str, *packages: str) -> str:
    """How the figures were made: command, commit, processor and cores, versions of packages."""
    code = code_revision()
    commit = str(code["revision"])[:10] + (" with changes" if code["dirty"] else "")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in packages)
    return f"`{command}` at commit {commit}, on {processor()}, {cores()} cores; {versions}."


def processor() -> str:
    """The processor's name."""
    return str(cpu()["name"]) or "processor"


def today() -> str:
    """The date as in a file's name."""
    return datetime.date.today().isoformat()


def note(kind: str, hardware: str) -> Path:
    """Where the figures of one kind, measured today on that hardware, are written."""
    words = "-".join("".join(c if c.isalnum() else " " for c in hardware.lower()).split())
    return NOTES / "benchmarks" / f"{kind}_{words}_{today()}.md"


def main() -> None:
    program, name, arguments = sys.argv[1:]
    function = getattr(importlib.import_module(f"benchmarks.{program}"), name)
    found = function(*json.loads(arguments))
    if found is not None:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
