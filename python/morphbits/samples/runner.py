"""Fill a matrix: worker processes make the units that are not done, whatever happens to them.

All state is in files: killed at any point and started again, it makes what is missing. One run at
a time works on an experiment (a lock that the system takes back when its holder dies).
"""

from __future__ import annotations

import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

import morphbits
from morphbits import engines, provenance
from morphbits.engines import verrou
from morphbits.errors import UserError
from morphbits.files import locked, write_json
from morphbits.models.model import open_model
from morphbits.samples.matrix import Unit, read_state
from morphbits.samples.worker import PATHS, to_task

ATTEMPTS = 2  # a unit whose worker dies this often is given up
DEATHS_IN_A_ROW = 4  # workers that die without a finished unit between them end the run


@dataclass
class Outcome:
    """What a run did. ``stopped`` says why it ended before the last unit."""

    finished: int = 0
    failed: dict[Unit, str] = field(default_factory=dict)
    stopped: str = ""


@contextmanager
def opened(
    folder: Path, identity: Mapping[str, Any], record: Mapping[str, Any], sweep: bool = True
) -> Iterator[None]:
    """The experiment's folder, ours alone: refused where another run works in it, or where it
    holds an experiment with another identity; ``experiment.json`` written, leftovers removed
    (``sweep``: not while an array of ours is at work on other machines)."""
    with locked(
        folder / ".lock",
        "give RESULTS=another-folder",
        "another run is working here; wait for it to end, or give EXPERIMENT=another-name",
    ):
        check_identity(folder, identity)
        write_json(folder / "experiment.json", {**record, "configuration": identity})
        if sweep:
            remove_leftovers(folder)
        yield


def remove_leftovers(folder: Path) -> None:
    """Remove what killed workers left half written; not while workers of ours are at work."""
    for leftover in folder.glob(".partial-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def check_identity(folder: Path, identity: Mapping[str, Any]) -> None:
    """Refuse a folder that holds an experiment with another configuration."""
    path = folder / "experiment.json"
    if not path.exists():
        return
    try:
        existing = json.loads(path.read_text(encoding="utf-8"))["configuration"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path}: is damaged; move it away, finished samples stay") from None
    keys = provenance.differing_keys(existing, identity)
    if keys:
        changes = ", ".join(f"{k} {_value(existing, k)} → {_value(identity, k)}" for k in keys)
        raise UserError(
            f"{folder}: holds an experiment with another configuration ({changes}). Results of "
            "different configurations are never mixed: give EXPERIMENT=another-name"
        )


def _value(mapping: Mapping[str, Any], dotted: str) -> str:
    value: Any = mapping
    for key in dotted.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return "absent" if value is None else str(value)[:32]


# ---------------------------------------------------------------------- workers


class Worker:
    """A running worker process. What it is started with is its ``key``: a unit with another key
    needs another process."""

    def __init__(self, unit: Unit) -> None:
        self.key = key_of(unit)
        self.unit: Unit | None = None
        self._partial_line = b""
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        package_root = str(Path(morphbits.__file__).parents[1])
        paths = [package_root, os.environ.get("PYTHONPATH", "")]
        environment = {
            "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads would take the other workers' cores
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        }
        self._process = subprocess.Popen(
            [*self.key[0], "-m", "morphbits.samples.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
            start_new_session=True,  # an interrupt from the keyboard is the parent's to handle
            bufsize=0,
        )
        assert self._process.stdin and self._process.stdout
        self._tasks, self.answers = self._process.stdin, self._process.stdout

    def send(self, unit: Unit, **extra: Any) -> None:
        """Start on a unit; a worker that has just died is noticed when its answers end."""
        self.unit = unit
        with suppress(BrokenPipeError):
            self._tasks.write(json.dumps(to_task(seen(unit)) | extra).encode() + b"\n")

    def receive(self) -> dict[str, Any] | None:
        """The answer, once it is whole; ``{}`` while it is not, None when the worker is dead."""
        chunk = os.read(self.answers.fileno(), 1 << 16)
        if not chunk:
            return None
        line, newline, rest = (self._partial_line + chunk).partition(b"\n")
        self._partial_line = rest if newline else line
        return json.loads(line) if newline else {}

    def how_it_ended(self) -> str:
        """How the process ended, for a user."""
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read()[-2000:].decode(errors="replace").strip().splitlines()
        last = [line for line in lines if not line.startswith("note: ")]
        if code == -signal.SIGKILL:
            reason = "killed (SIGKILL; often memory ran out: give a smaller JOBS)"
        elif code < 0:
            reason = f"ended by signal {signal.Signals(-code).name}"
        else:
            reason = f"ended with status {code}"
        return f"its worker was {reason}" + (f": {last[-1]}" if last else "")

    def close(self) -> None:
        """End the process now; a unit in flight is lost."""
        self._process.terminate()  # what starts others (Verrou, a container) ends them
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pipe in (self._tasks, self.answers, self._errors):
            pipe.close()


def key_of(unit: Unit) -> tuple[tuple[str, ...], str, int, str]:
    """What a process is started with and cannot change: the command that starts it, its framework,
    TensorFlow's number of threads, and the unit itself where one process makes one sample."""
    unit, config = seen(unit), unit.config
    command = engines.get(config.engine).command(
        config, sys.executable, reads(unit), [unit.folder.parent.parent]
    )
    tensorflow = config.framework == "tensorflow"
    threads = config.threads if tensorflow else 0
    return tuple(command), config.framework, threads, str(unit) if alone(unit) else ""


def alone(unit: Unit) -> bool:
    """Whether the unit needs a process that makes nothing else: all of it is perturbed, from its
    start on, with the unit's seed."""
    return unit.config.engine == "verrou" and unit.config.region == "process"


def seen(unit: Unit) -> Unit:
    """The unit as its process sees it."""
    in_image = unit.config.engine == "verrou" and verrou.found() == "container"
    return without_links(unit) if in_image else unit


def without_links(unit: Unit) -> Unit:
    """The unit as the image sees it. There are no symbolic links to folders there: what is mounted
    is what they lead to."""
    paths = {name: getattr(unit, name) for name in PATHS}
    real = {name: path.parent.resolve() / path.name for name, path in paths.items()}
    return replace(unit, **real)


def reads(unit: Unit) -> list[Path]:
    """What a process that makes this unit reads: the dataset, and of fixed image, model and the
    targets of links to files (a dataset of git-annex has them) those that lie elsewhere."""
    model = open_model(unit.model, unit.config).files
    dataset, files = _dataset_of(unit.moving), [unit.fixed, *model]
    for path in (unit.moving, unit.fixed, *model):
        while path.is_relative_to(dataset) and path.is_symlink():
            files.append(path.resolve())
            path = Path(os.path.normpath(path.parent / path.readlink()))
            files.append(path)
    return [dataset, *(p for p in dict.fromkeys(files) if not p.is_relative_to(dataset))]


def _dataset_of(moving: Path) -> Path:
    """The BIDS folder that holds a moving image: what its subject's folder lies in."""
    inside = (folder.parent for folder in moving.parents if folder.name.startswith("sub-"))
    return next(inside, moving.parent)


# ---------------------------------------------------------------------- the run


def run(units: Sequence[Unit], jobs: int, total: int) -> Outcome:
    """Make these units with ``jobs`` workers; ``total`` is the size of the whole matrix.

    A unit whose worker dies is tried once more. A full disk ends the run, as does a row of dead
    workers; any other failure is that unit's own.
    """
    outcome, waiting, attempts, deaths = Outcome(), list(units), Counter[Unit](), 0
    if not units:
        return outcome
    selector = selectors.DefaultSelector()
    bar = tqdm(
        total=total,
        initial=total - len(units),
        unit="sample",
        dynamic_ncols=True,
        mininterval=0.1 if sys.stderr.isatty() else 30,  # a log file wants fewer lines
    )

    def stop(worker: Worker) -> None:
        worker.close()
        selector.unregister(worker.answers)  # last: an interrupt before it closes it once more

    def assign(worker: Worker | None) -> None:
        """Give a worker (a new one where its key does not fit) the next unit."""
        fitting = (i for i, unit in enumerate(waiting) if worker and key_of(unit) == worker.key)
        index = next(fitting, None)
        if index is None and worker:
            stop(worker)
        if not waiting:
            return
        if index is None or not worker:
            worker, index = Worker(waiting[0]), 0
            selector.register(worker.answers, selectors.EVENT_READ, worker)
        worker.send(waiting.pop(index))

    with bar, selector:
        try:
            for _ in range(min(jobs, len(units))):
                assign(None)
            while selector.get_map() and not outcome.stopped:
                for event, _ in selector.select():
                    worker: Worker = event.data
                    reply = worker.receive()
                    if reply == {}:
                        continue
                    unit = worker.unit
                    assert unit
                    if reply is None:
                        reason, deaths = worker.how_it_ended(), deaths + 1
                        stop(worker)
                        attempts[unit] += 1
                        if deaths >= DEATHS_IN_A_ROW:
                            outcome.stopped = f"{deaths} workers in a row died; {unit}: {reason}"
                            break
                        if attempts[unit] < ATTEMPTS:
                            waiting.append(unit)
                        else:
                            outcome.failed[unit] = reason
                        assign(None)
                        continue
                    state = read_state(unit) if "done" in reply else None
                    if state and state.kind == "done":
                        outcome.finished, deaths = outcome.finished + 1, 0
                        bar.update()
                        bar.set_postfix_str(unit.subject.entities, refresh=False)
                    elif state and state.kind == "foreign":
                        outcome.stopped = (
                            f"{unit.folder}: was made with another configuration than this one "
                            f"({state.reason}); if an image made it, 'make docker' rebuilds it"
                        )
                        stop(worker)
                        continue
                    elif state:
                        outcome.failed[unit] = (
                            f"its worker reports that it is finished, but in {unit.folder} it is "
                            f"{state.kind} {state.reason}".rstrip()
                        )
                    elif reply["failed"] == "disk":
                        outcome.stopped = (
                            f"the disk is full ({reply['message']}); make room and run again"
                        )
                        stop(worker)
                        continue
                    else:
                        outcome.failed[unit] = reply["message"]
                    assign(worker)
        finally:
            for event in list(selector.get_map().values()):
                event.data.close()
    return outcome


def describe_failures(failed: Mapping[Unit, str]) -> str:
    """Each message once, with the units that met it."""
    by_message: dict[str, list[Unit]] = {}
    for unit, message in failed.items():
        by_message.setdefault(message, []).append(unit)
    return "\n".join(
        f"{', '.join(map(str, units[:3]))}"
        + (f" and {len(units) - 3} more" if len(units) > 3 else "")
        + f": {message}"
        for message, units in by_message.items()
    )
