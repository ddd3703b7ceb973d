"""Samples as tasks of a Slurm array: one array over the samples that are not done.

Nothing is remembered here: which samples are done, their files say; whether an array is at work,
Slurm says (its name is made from the experiment's folder). So the same command again waits for an
array that is at work, and submits another for what is still missing. The folder must be one that
the nodes see by the same path, as must the suite's own.

Below the experiment's folder, ``.slurm/`` holds the latest array's tasks and their logs; it is
gone when every sample is done.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

import morphbits
from morphbits import bids
from morphbits.config import ExecutionConfig
from morphbits.engines.verrou import script_path
from morphbits.errors import UserError
from morphbits.models.model import open_model
from morphbits.samples.matrix import Unit, read_state
from morphbits.samples.runner import Outcome, key_of, reads, remove_leftovers, without_links
from morphbits.samples.worker import to_task
from morphbits.wording import gigabytes

WORTH_A_TASK = 600  # seconds: shorter samples share a task, which imports and loads once
ARRAY_SIZE = 1001  # Slurm's MaxArraySize where nobody changed it: one more than the last number
# What a user may not give to sbatch: by these the suite finds its array, tasks and logs again.
RESERVED = {
    "--array": "a", "--job-name": "J", "--output": "o", "--open-mode": "", "--parsable": "",
    "--clusters": "M", "--wait": "W", "--wrap": "", "--test-only": "",
}  # fmt: skip
MEMORY = ("--mem", "--mem-per-cpu", "--mem-per-gpu")  # of which sbatch takes one
STARTING = 900  # seconds added to what the samples of a task take; under Valgrind start-up is slow


@dataclass(frozen=True)
class Request:
    """What the array asks for. An array has one limit for all its tasks, so the most demanding
    engine sets it."""

    tasks: list[list[Unit]]
    at_once: int | None
    cpus: int
    megabytes: int
    minutes: int
    extra: list[str]  # the user's own options, which come last and so win

    def options(self, folder: Path) -> list[str]:
        """The options of sbatch."""
        cap = f"%{self.at_once}" if self.at_once else ""
        own_memory = any(_named(word, name) for word in self.extra for name in MEMORY)
        return [
            f"--job-name={job_name(folder)}",
            f"--array=1-{len(self.tasks)}{cap}",
            f"--cpus-per-task={self.cpus}",
            *([] if own_memory else [f"--mem={self.megabytes}M"]),
            f"--time={self.minutes}",
            "--requeue",
            "--open-mode=append",
            f"--output={_logs(folder)}/%a.log",
            *self.extra,
        ]

    def __str__(self) -> str:
        cap = f", {self.at_once} at a time" if self.at_once else ""
        own = f"; then {shlex.join(self.extra)}" if self.extra else ""
        return (
            f"{len(self.tasks)} tasks of up to {len(self.tasks[0])} samples{cap}; each "
            f"{self.cpus} cores, {gigabytes(self.megabytes * 2**20)}, {self.minutes} min{own}"
        )


def request(
    todo: Sequence[Unit], seconds: Mapping[str, float], voxels: int, execution: ExecutionConfig
) -> Request:
    """Tasks and limits for these samples; ``seconds`` are what one sample of each engine takes.

    The time is twice the estimate and a quarter of an hour, the memory a quarter more and 1 GB.
    """
    extra, most = shlex.split(execution.slurm_options), _most_tasks()
    for option, letter in RESERVED.items():
        given = [word for word in extra if _named(word, option, letter)]
        if given:
            raise UserError(
                f"SLURM_OPTIONS: {given[0]} is set by the suite, which finds its array, tasks and "
                "logs by it; leave it out (another cluster: SLURM_CLUSTERS in the environment, "
                "tasks at a time: JOBS=)"
            )
    alike = sorted(todo, key=key_of)  # samples that one process can make follow each other
    longest = max(seconds[unit.config.engine] for unit in todo)
    share = execution.task_samples or int(WORTH_A_TASK / max(longest, 1e-3))
    share = min(max(share, math.ceil(len(todo) / most), 1), len(todo))
    engines = {unit.config.engine for unit in todo}
    model = open_model(todo[0].model, todo[0].config)
    memory = max(model.memory(voxels, engine) for engine in engines)
    return Request(
        tasks=[alike[start : start + share] for start in range(0, len(alike), share)],
        at_once=execution.jobs,
        cpus=execution.threads or 1,
        megabytes=math.ceil(1.25 * memory / 2**20) + 1024,
        minutes=math.ceil((2 * longest * share + STARTING) / 60),
        extra=extra,
    )


def _named(word: str, option: str, letter: str = "") -> bool:
    """Whether a word of a command line is this option; sbatch takes long ones cut short."""
    name = word.partition("=")[0]
    if name == option or (letter and word.startswith(f"-{letter}")):
        return True
    return len(name) > 4 and option.startswith(name) and name not in MEMORY


@functools.cache
def _most_tasks() -> int:
    """As many tasks as an array may have here."""
    size = str(ARRAY_SIZE)
    if shutil.which("scontrol"):
        words = ["scontrol", "show", "config"]
        said = subprocess.run(words, capture_output=True, text=True, check=False).stdout
        size = dict(re.findall(r"^(MaxArraySize)\s*=\s*(\d+)", said, re.M)).get(
            "MaxArraySize", size
        )
    return max(1, min(int(size), ARRAY_SIZE) - 1)


def run(
    folder: Path,
    wanted: Callable[[Sequence[Unit]], Request],
    units: Sequence[Unit],
    total: int,
    execution: ExecutionConfig,
    say: Callable[[str], None] = print,
) -> Outcome:
    """Wait for an array that is at work here, then submit what is missing and wait for that.

    ``wanted`` makes the request; ``units`` are those that were missing at first. Without
    waiting it returns as soon as an array is at work.
    """
    done, wait = total - len(units), execution.wait
    array = at_work(folder)
    if array:
        say(f"array    {array} is at work on this experiment")
        if not wait:
            return Outcome()
        _wait(folder, units, done)
    missing = [unit for unit in units if read_state(unit).kind != "done"]
    if missing:
        asked = wanted(missing)
        say(f"array    {submit(folder, asked, execution.slurm_container)}: {asked}")
        if not wait:
            return Outcome()
        _wait(folder, units, done)
    return collect(folder, units)


def collect(folder: Path, units: Sequence[Unit]) -> Outcome:
    """What became of these samples, by their files; why one failed, by its task's log."""
    failed = {unit: "" for unit in units if read_state(unit).kind != "done"}
    if not failed:
        shutil.rmtree(_logs(folder), ignore_errors=True)
        return Outcome(finished=len(units))
    for number, line in enumerate(_tasks(folder).read_text(encoding="utf-8").splitlines(), 1):
        log = _logs(folder) / f"{number}.log"
        mine = {(task["sample"], task["subject"]) for task in json.loads(line)}
        for unit in failed:
            if (unit.sample, unit.subject.entities) in mine:
                failed[unit] = _last_words(log, unit)
    return Outcome(finished=len(units) - len(failed), failed=failed)


def _last_words(log: Path, unit: Unit) -> str:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return f"its task left no log; 'sacct' may tell, or the node had no room for {log}"
    lines = [line.split("\r")[-1].strip() for line in lines if line.strip()]
    errors = [line for line in lines if "error: " in line or str(unit) in line]
    last = (errors or lines or ["(nothing; it was killed, or there was no room to write)"])[-1]
    return f"the last words of its task, {log}: {last}"


# ---------------------------------------------------------------------- Slurm


def check() -> None:
    """Refuse where jobs cannot be submitted."""
    for program in ("sbatch", "squeue"):
        if shutil.which(program) is None:
            raise UserError(
                f"EXECUTOR=slurm needs {program}, which is not on this machine: run this where "
                "jobs are submitted (a login node), or leave EXECUTOR out to run here"
            )


def job_name(folder: Path) -> str:
    """The array's name: the experiment's, and eight digits of its folder's checksum."""
    path = str(folder.resolve())
    return f"morphbits-{folder.name}-{hashlib.sha256(path.encode()).hexdigest()[:8]}"


def command(folder: Path, tasks: Sequence[Sequence[Unit]], container: str) -> list[str]:
    """What a task runs, its number still to come: on the node itself, or in the image, which sees
    the inputs and can write to the experiment's folder."""
    folder = folder.resolve() if container else folder
    module = ["-m", "morphbits.samples.array_task", str(_tasks(folder))]
    if not container:
        package = str(Path(morphbits.__file__).parents[1])
        return ["env", f"PYTHONPATH={package}", sys.executable, *module]
    units = [without_links(unit) for task in tasks for unit in task]
    inputs = {path for unit in units for path in reads(unit)}
    mounts = [word for path in sorted(inputs) for word in ("--read", str(path))]
    mounts += ["--write", str(folder)]
    start = ["env", f"CONTAINER={container}", script_path("in_container.sh")]
    return [*start, *mounts, "--", "python", *module]


def submit(folder: Path, asked: Request, container: str = "") -> str:
    """Submit the array; returns its number."""
    logs = _logs(folder)
    shutil.rmtree(logs, ignore_errors=True)
    logs.mkdir()
    seen = without_links if container else _absolute
    lines = [json.dumps([to_task(seen(unit)) for unit in task]) for task in asked.tasks]
    _tasks(folder).write_text("\n".join(lines) + "\n", encoding="utf-8")
    words = [*asked.options(folder), "--", *command(folder, asked.tasks, container)]
    answer = subprocess.run(
        [script_path("submit_slurm.sh"), *words], capture_output=True, text=True
    )
    if answer.returncode:
        reason = answer.stderr.strip().splitlines() or ["no reason given"]
        raise UserError(f"sbatch refused the array: {reason[-1]}; SLURM_OPTIONS= changes it")
    return answer.stdout.strip()


def at_work(folder: Path) -> str:
    """The number of this experiment's array where Slurm still has one; empty where it has none,
    or where this machine has no Slurm."""
    if not _logs(folder).exists() or shutil.which("squeue") is None:
        return ""
    answer = _squeue(folder)
    if answer is None:
        raise UserError("squeue does not answer, so an array may be at work; try again later")
    return answer


def _squeue(folder: Path) -> str | None:
    """The array's number or nothing; None where Slurm does not answer."""
    words = ["squeue", "--me", "--noheader", f"--name={job_name(folder)}", "--format=%F"]
    answer = subprocess.run(words, capture_output=True, text=True)
    return None if answer.returncode else (answer.stdout.split() or [""])[0]


def _wait(folder: Path, units: Sequence[Unit], done: int) -> None:
    """Until the array is gone; the bar counts finished samples. While Slurm does not answer, as
    when its controller is restarted, this waits too."""
    pause = 1.0
    try:
        with tqdm(
            total=done + len(units),
            initial=done,
            unit="sample",
            dynamic_ncols=True,
            mininterval=0.1 if sys.stderr.isatty() else 30,
        ) as bar:
            while _squeue(folder) != "":
                bar.n = done + sum(bids.sample_json(unit.folder).exists() for unit in units)
                bar.refresh()
                time.sleep(pause)
                pause = min(1.5 * pause, 30)
        remove_leftovers(folder)
    except KeyboardInterrupt:
        print(
            "the array keeps running: the same command waits for it again, "
            f"'scancel --name={job_name(folder)}' ends it",
            file=sys.stderr,
        )
        raise


def _absolute(unit: Unit) -> Unit:
    """The same unit with paths that mean the same on another machine; links are kept."""
    paths = {name: getattr(unit, name).absolute() for name in ("moving", "fixed", "model")}
    return dataclasses.replace(unit, folder=unit.folder.absolute(), **paths)


def _logs(folder: Path) -> Path:
    return Path(os.path.abspath(folder)) / ".slurm"


def _tasks(folder: Path) -> Path:
    return _logs(folder) / "tasks.jsonl"
