"""Repetitions of a program: each a process with a seed, in a folder that is complete or absent.

FOLDER/program.json              what is repeated: command, options, versions
FOLDER/plain-1, plain-2          two runs without perturbation: do they agree?
FOLDER/run-01 …                  perturbed
FOLDER/one-run                   to nearest, with a float64 shadow, where asked for
  outputs/                       the files that are compared
  stdout.txt, stderr.txt, record.json
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import morphbits
from morphbits import files, machine, provenance
from morphbits.choices import STOCHASTIC_MODES
from morphbits.config import Perturbation, option
from morphbits.engines.native import engine_version
from morphbits.errors import UserError
from morphbits.parent import PARENT
from morphbits.stats import values

OUT = "{out}"
STDOUT = "stdout.txt"
PLAIN = ("plain-1", "plain-2")
ONE_RUN = "one-run"
_MODULE = (".py", "/__main__.py")
_LINES = 8  # of a program that fails, repeated in the message


@dataclass(frozen=True)
class ProgramConfig(Perturbation):
    """How the operators of a program are perturbed."""

    engine: str = option("native", "who rounds: native", choices=("native",))
    perturb: str = option(
        "all",
        "what is perturbed: all, or only:NAME,… or except:NAME,… of the parts that the program "
        "runs by morphbits.stages.run(NAME, function, …); the rest is float32 to nearest",
    )
    seed: int = option(1, "seed of the first run; each next run has the next", minimum=0)

    def region(self, run: int) -> dict[str, Any]:
        """The arguments of `random_rounding` for a run, counted from 1."""
        names = [field.name for field in fields(Perturbation) if field.name != "engine"]
        return {**{name: getattr(self, name) for name in names}, "seed": self.seed + run - 1}


@dataclass(frozen=True)
class Program:
    """What is repeated.

    command: script and words, with {out} for the folder of a run; compare: patterns of the files
    that are compared, relative to that folder, or to the working folder where no word has {out};
    stdout.txt is what the program prints.
    """

    command: list[str]
    compare: list[str]
    config: ProgramConfig
    allow: list[str]

    @property
    def into_out(self) -> bool:
        """Whether each run writes into a folder of its own."""
        return any(OUT in word for word in self.command)

    def _files(self) -> list[Path]:
        """The script or module, and the files that the command line names."""
        first, *rest = map(Path, self.command)
        if self.command[0] == "-m":
            module = self.command[1].replace(".", "/")
            places = (Path(p) / f"{module}{end}" for p in ("", *sys.path) for end in _MODULE)
            first = next(filter(Path.is_file, places), first)
        return [path for path in (first, *rest) if path.is_file()]

    def identity(self) -> dict[str, Any]:
        """What runs must agree in to be compared."""
        return {
            "command": self.command,
            "compare": self.compare,
            "options": self.config.region(1) | {"allow": self.allow},
            "files": {str(path): files.sha256(path) for path in self._files()},
            "versions": provenance.versions("torch"),
            "engine": engine_version(),
        }


def parse_command(words: Sequence[str]) -> list[str]:
    """The program of a command line: a script, `python` and a script, `-m` and a module, or a
    command that is a Python script. UserError where it is none of these."""
    if not words:
        raise UserError("no program: give it after --, as in: morphbits run -- python script.py")
    first, *rest = words
    if os.path.basename(first).rstrip("0123456789.") == "python":
        if not rest or (rest[0].startswith("-") and rest[0] != "-m"):
            raise UserError("after python give a script, or -m and a module: no other option")
        first, *rest = rest
    if first == "-m":
        if not rest:
            raise UserError("-m needs the name of a module")
        return [first, *rest]
    path = Path(first)
    if not path.is_file():
        path = Path(shutil.which(first) or first)
    if not path.is_file():
        raise UserError(f"{first}: there is no such script")
    if path.suffix != ".py":
        with path.open("rb") as file:
            line = file.readline()
        if not (line.startswith(b"#!") and b"python" in line):
            raise UserError(f"{first}: only Python programs can be perturbed (or use Verrou)")
    return [str(path), *rest]


def repeat(
    program: Program, folder: Path, runs: int, jobs: int, say: Callable[[str], None]
) -> list[Path]:
    """Make what is missing of two plain and `runs` perturbed runs; the folders of all.

    Without {out} the runs follow each other in the working folder, and the files that they write
    are moved away after each. UserError where a run fails, or results are of something else.
    """
    if runs > 1 and program.config.mode not in STOCHASTIC_MODES:
        raise UserError(
            f"mode {program.config.mode} is deterministic, so all runs would be the same: give "
            "-n 1, or --mode random or nearness"
        )
    advice, busy = "choose another folder by --output", "another command makes runs there"
    with files.locked(folder / ".lock", advice, busy):
        return _repeat(program, folder, runs, jobs, say)


def _repeat(
    program: Program, folder: Path, runs: int, jobs: int, say: Callable[[str], None]
) -> list[Path]:
    _claim(program, folder)
    todo = [*PLAIN, *(f"run-{run:02d}" for run in range(1, runs + 1))]
    missing = [name for name in todo if not (folder / name).is_dir()]
    if len(missing) < len(todo):
        say(f"{folder}: {len(todo) - len(missing)} of {len(todo)} runs are there")
    if missing and not program.into_out:
        jobs = 1
        _refuse_existing(program, folder)
    for leftover in folder.glob(".partial-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    threads = max(1, machine.cores() // jobs) if jobs > 1 else None
    with ThreadPoolExecutor(jobs) as pool, _stopped(pool):
        if missing[:1] == [PLAIN[0]]:
            say(f"{missing[0]}: {_run(program, folder, missing.pop(0), threads)}")
        # what cannot be compared is found before all else is run
        for path in matching(program.compare, folder / PLAIN[0] / "outputs"):
            values.read(path)
        futures = [pool.submit(_run, program, folder, name, threads) for name in missing]
        for name, future in zip(missing, futures, strict=True):
            say(f"{name}: {future.result()}")
    return [folder / name for name in todo]


@contextmanager
def _stopped(pool: ThreadPoolExecutor) -> Iterator[None]:
    """After an error no further run is started."""
    try:
        yield
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise


def _claim(program: Program, folder: Path) -> None:
    """Note in the folder what is repeated there; UserError if that is something else."""
    identity, path = program.identity(), folder / "program.json"
    if path.is_file():
        with suppress(ValueError):
            before = json.loads(path.read_text(encoding="utf-8"))
            if keys := provenance.differing_keys(before, identity):
                raise UserError(
                    f"{folder}: holds runs that differ in {', '.join(keys)}; give another folder "
                    "by --output, or remove this one"
                )
            return
        raise UserError(f"{path}: is damaged; remove {folder}, or give another by --output")
    files.write_json(path, identity)


def _refuse_existing(program: Program, folder: Path) -> None:
    if found := _here(program, folder):
        raise UserError(
            f"{found[0]}: exists already, and each run is to write it: move it away, or have the "
            f"program write into {OUT}, which stands for a folder that each run has for itself"
        )


def _here(program: Program, folder: Path) -> list[Path]:
    """The files in the working folder that are compared, without the results of other runs."""
    results = folder.resolve()
    found = matching(program.compare, Path())
    return [path for path in found if not path.resolve().is_relative_to(results)]


def matching(patterns: Sequence[str], root: Path) -> list[Path]:
    """The files below a folder that are compared."""
    found = {path for pattern in patterns for path in root.glob(pattern)}
    return sorted(path for path in found if path.is_file())


def one_run(program: Program, folder: Path, runs: int, say: Callable[[str], None]) -> dict:
    """What one run with a float64 shadow records; it is made unless it is there. `runs`: of the
    samples whose bits are estimated."""
    path = folder / ONE_RUN / "record.json"
    if path.is_file():
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if record.get("estimated_for") == {"mode": program.config.mode, "runs": runs}:
            return record
    if not program.into_out:
        _refuse_existing(program, folder)
    shutil.rmtree(path.parent, ignore_errors=True)  # of another number of runs
    say(f"{ONE_RUN}: {_run(program, folder, ONE_RUN, None, runs)}")
    return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def _run(program: Program, folder: Path, name: str, threads: int | None, runs: int = 1) -> str:
    """One run, into its folder; what to say of it."""
    options: dict[str, Any] | None = None
    if name == ONE_RUN:
        options = program.config.region(1) | {"allow": program.allow, "mode": "nearest"}
        options["shadow"] = {"mode": program.config.mode, "runs": runs}
    elif name not in PLAIN:
        options = program.config.region(int(name.partition("-")[2])) | {"allow": program.allow}
    partial = Path(tempfile.mkdtemp(dir=folder, prefix=".partial-"))
    outputs = partial / "outputs"
    outputs.mkdir()
    record_file = partial / "record.json"
    words = [word.replace(OUT, str(outputs.resolve())) for word in program.command]
    environment = os.environ | {
        PARENT: str(os.getpid()),
        "PYTHONPATH": os.pathsep.join(
            [
                str(Path(morphbits.__file__).parents[1]),
                *filter(None, [os.environ.get("PYTHONPATH")]),
            ]
        ),
    }
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    here = [sys.executable, "-m", "morphbits.studies.program.perturbed"]
    with (partial / "stdout.txt").open("wb") as out, (partial / "stderr.txt").open("wb") as error:
        done = subprocess.run(
            [*here, json.dumps(options), str(record_file.resolve()), *words],
            stdin=subprocess.DEVNULL, stdout=out, stderr=error, env=environment,
        )  # fmt: skip
    record = json.loads(record_file.read_text(encoding="utf-8")) if record_file.is_file() else {}
    if done.returncode:
        raise UserError(_failure(folder, partial, name, done.returncode, record))
    if not record:
        raise UserError(
            f"{name}: the program ended Python by os._exit, or became another program by exec, so "
            "nothing is known of its operations: have it end by sys.exit"
        )
    if options is not None and not record["operations"]:
        raise UserError(
            f"{name}: nothing was perturbed: the program ran no operator of torch that rounds, or "
            "only in processes that it started"
        )
    if not program.into_out:
        for path in _here(program, folder):
            (outputs / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.move(path, outputs / path)
    if STDOUT in program.compare:
        shutil.copy(partial / "stdout.txt", outputs / STDOUT)
    for pattern in program.compare:
        if not any(path.is_file() for path in outputs.glob(pattern)):
            raise UserError(f"{name}: the program wrote no file {pattern}: see --compare")
    os.replace(partial, folder / name)
    perturbed = f", {record['operations']:.3g} operations perturbed" if options else ""
    return f"{record['seconds']:.1f} s{perturbed}"


def _failure(folder: Path, partial: Path, name: str, status: int, record: dict[str, Any]) -> str:
    """What a run that fails says; its files are kept."""
    kept = folder / f"failed-{name}"
    shutil.rmtree(kept, ignore_errors=True)
    os.replace(partial, kept)
    if refused := record.get("refused"):
        return f"{name}: {refused} (here: --allow NAME)"
    lines = (kept / "stderr.txt").read_text(errors="replace").strip().splitlines()[-_LINES:]
    said = "".join(f"\n    {line}" for line in lines)
    how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
    return f"{name}: the program {how}; all that it printed is in {kept}{said}"
