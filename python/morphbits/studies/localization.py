"""Which part of the network loses the bits: Verrou's delta debugging on a small case.

Verrou's own tools (verrou_dd_task, verrou_dd_sym; method: Zeller, "Isolating cause-effect chains",
FSE 2002, made stochastic by Févotte & Lathuilière 2019) run a program many times with ever other
parts perturbed and look for the smallest sets of parts that, perturbed alone, already make the
result bad. A part is a task (a layer of the network, or a step after it, set off by markers) or a
symbol (a compiled function). Bad means: fewer bits of the warp agree with the unperturbed one than
when all is perturbed, less `LEEWAY`.

``run`` and ``compare`` are what the tools call, through two small scripts.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import subprocess
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np

from morphbits import images, stages
from morphbits.config import RegisterConfig
from morphbits.engines.verrou import markers, script_path
from morphbits.errors import UserError
from morphbits.registration import prepare, register

LEEWAY = 1.0  # bits: a part that loses all but this much of what the whole loses is to blame
WARP, BITS = "warp.npy", "bits.txt"


def run(folder: Path, case: tuple[Path, Path, Path]) -> None:
    """One run: register under the tasks that the environment names, save the warp (X, Y, Z, V)."""
    moving, fixed, model = case
    config = RegisterConfig()
    pair = prepare(images.load(moving), images.load(fixed), model, config)
    register(pair, model, config)  # unperturbed: what only a first call does
    tasks = _Tasks()
    with stages.listening(tasks.begin), stages.observed(tasks.end):
        result = register(pair, model, config)
    np.save(folder / WARP, result.warp_XYZV)


class _Tasks:
    """Verrou's tasks (libverrouTask), one for each stage of the network, from its first to the
    finished warp. Where the environment names tasks these switch the perturbation; where it does
    not (the reference run, or a search by symbol) it is on for all."""

    def __init__(self) -> None:
        prefix = os.environ.get("VERROU_PREFIX", "")
        found = sorted(Path(prefix).glob("lib*/valgrind/libverrouTask.so"))
        if not found:
            raise UserError(f"{prefix}: holds no libverrouTask.so, which comes with Verrou 2.6")
        self._library = ctypes.CDLL(str(found[0]))
        self._region: AbstractContextManager[object] = nullcontext()
        if "TASK_LIST" not in os.environ:
            self._region = markers.perturbed(int(os.environ.get("VERROU_SEED", "1")))

    def begin(self, name: str) -> None:
        """A stage starts: what follows belongs to its task; the steps of the integration belong
        to one."""
        if name == "network":
            self._region.__enter__()
            self._library.verrou_task_init()
        elif name != "sampling" and "integration" not in stages.current():
            self._library.verrou_task(name.encode(), 0)

    def end(self, name: str, result: object) -> None:
        """A stage has ended; the warp is done after the last but one."""
        if name == "rescaling":
            self._library.verrou_task_finalize()
            self._region.__exit__(None, None, None)


def bits(reference: np.ndarray, result: np.ndarray) -> float:
    """Bits of agreement: −log2 of the relative root mean square difference; 24 where equal."""
    difference = np.sqrt(np.mean((result.astype(np.float64) - reference) ** 2))
    scale = np.sqrt(np.mean(reference.astype(np.float64) ** 2))
    return float(min(24.0, -np.log2(difference / scale))) if difference > 0 else 24.0


def is_good(reference: Path, folder: Path, threshold: float) -> bool:
    """Whether enough bits of a run agree; their number is written into its folder."""
    found = bits(np.load(reference / WARP), np.load(folder / WARP))
    (folder / BITS).write_text(f"{found:.3f}\n", encoding="ascii")
    return found >= threshold


def localize(by: str, runs: int, case: tuple[Path, Path, Path], folder: Path) -> str:
    """Search, and say what was found: the smallest sets of parts to blame, with their bits."""
    tool = {"task": "verrou_dd_task", "symbol": "verrou_dd_sym"}[by]
    prefix = Path(os.environ.get("VERROU_PREFIX") or "/nowhere")
    if not (prefix / "bin" / tool).is_file():
        raise UserError(f"{tool} is not in {prefix}/bin: VERROU_PREFIX must name Verrou's folder")
    folder.mkdir(parents=True, exist_ok=True)
    scripts = _write_scripts(folder, case)
    # how bad is bad: nothing perturbed against everything
    trial = folder / "trial"
    for name, mode in (("reference", "nearest"), ("all", "random")):
        (trial / name).mkdir(parents=True, exist_ok=True)
        environment = os.environ | {"VERROU_ROUNDING_MODE": mode}
        _call([scripts[0], str(trial / name)], environment)
    print("now the search: PASS is as good as wanted, FAIL loses as much as all parts together")
    whole = bits(np.load(trial / "reference" / WARP), np.load(trial / "all" / WARP))
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, prefix.glob("lib/python3*/*-packages/valgrind"))),
        "MORPHBITS_THRESHOLD": str(whole + LEEWAY),
    }
    cache = folder / f"dd.{by}"
    words = [str(prefix / "bin" / tool), f"--nruns={runs}", "--seed=1", f"--rep={cache}"]
    _call([*words, *scripts], environment, folder)
    return _summary(cache, whole)


def _write_scripts(folder: Path, case: tuple[Path, Path, Path]) -> list[str]:
    """The two scripts that Verrou's tools call: run DIR, and compare REFERENCE DIR."""
    me = [sys.executable, "-m", "morphbits.studies.localization"]
    path = f"export PYTHONPATH={shlex.quote(str(Path(__file__).parents[2]))}\n"
    under_verrou = [script_path("with_verrou.sh"), "--localize", "--mode", "random", "--", *me]
    files = [str(file.resolve()) for file in case]
    texts = {
        "run.sh": f'{shlex.join(under_verrou)} run "$1" {shlex.join(files)}',
        "compare.sh": f'{shlex.join(me)} compare "$1" "$2" "$MORPHBITS_THRESHOLD"',
    }
    paths = []
    for name, text in texts.items():
        script = (folder / name).resolve()
        script.write_text(f"#!/usr/bin/env bash\n{path}{text}\n", encoding="utf-8")
        script.chmod(0o755)
        paths.append(str(script))
    return paths


def _call(words: list[str], environment: dict[str, str], folder: Path | None = None) -> None:
    """Run a command whose own progress the user sees; the end of its errors if it fails."""
    answer = subprocess.run(
        words, env=environment, cwd=folder, stderr=subprocess.PIPE, text=True, check=False
    )
    if answer.returncode:
        last = answer.stderr.strip().splitlines()[-1:]
        raise UserError(f"{words[0]} failed: {' '.join(last)}")


def _summary(cache: Path, whole: float) -> str:
    """The sets that Verrou's tool found, each with the bits of its runs."""
    lines = [f"all parts perturbed: {whole:.1f} bits of the warp agree"]
    for found in sorted(cache.glob("ddmin*")):
        (include,) = found.glob("dd.*.include")
        names = [line.split("\t")[0] for line in include.read_text().splitlines() if line]
        own = [float(file.read_text()) for file in sorted(found.glob(f"dd.run*/{BITS}"))]
        least = f"{min(own):.1f} bits" if own else "no run"
        lines.append(f"{found.name}: {', '.join(names)} alone: {least}")
    if len(lines) == 1:
        lines.append("no smaller set of parts loses as much")
    return "\n".join(lines)


def main() -> None:
    """``run FOLDER MOVING FIXED MODEL`` or ``compare REFERENCE FOLDER THRESHOLD``."""
    what, *words = sys.argv[1:]
    if what == "run":
        folder, moving, fixed, model = map(Path, words)
        run(folder, (moving, fixed, model))
    else:
        sys.exit(0 if is_good(Path(words[0]), Path(words[1]), float(words[2])) else 1)


if __name__ == "__main__":
    main()
