"""The native engine on networks of others, with the published figures of other tools.

    make bench-peers              an hour of a quiet machine; continues where it was stopped
    make bench-peers SMALL=1      smaller networks and inputs, minutes

The networks are those of the only published table (Fuzzy PyTorch, arXiv 2605.25991), a
registration network and a training step, with random weights (peer_networks.py). Forward pass:
plain torch and each mode in turn in one process, the least processor time. Whole process: one
for each mode, from the interpreter's start to the last pass. Packages that only this program
needs go to a folder below .cache/; where they cannot be had, their networks are left out, and
the table says why. Prints Markdown tables and writes them to notes/benchmarks/.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from benchmarks.harness import NOTES, Report, measured, note, processor
from morphbits import config, machine
from morphbits.errors import UserError, run_cli
from morphbits.files import write_json

CACHE = NOTES.parent / ".cache"
LOCK = NOTES.parent / "python" / "peers.lock"
MODES = ("plain", "random", "nearness", "nearest")
SECONDS = 10.0  # of turns at least, so that short passes have many
TRIED = 3  # units that a process computes where a published one has more than ten
PRODUCTS = ("convolution", "addmm", "mm", "bmm")  # the operators whose shapes a profile tells


def region(mode: str, seed: int) -> AbstractContextManager[Any]:
    """Where the mode's operators are computed."""
    if mode == "plain":
        return nullcontext()
    from morphbits.engines.native import random_rounding

    return random_rounding(mode, seed=seed)


def made(name: str, small: bool, threads: int) -> tuple[str, Callable[[], Any]]:
    """Description and function of a network, the same weights and input in each process."""
    import torch

    from benchmarks.peer_networks import NETWORKS

    torch.set_num_threads(threads)
    torch.manual_seed(1)
    return NETWORKS[name].make(small)


def passes(name: str, small: bool, threads: int, turns: int) -> dict[str, Any]:
    """Least seconds of a pass by mode, of the processor (all threads) and elapsed."""
    title, compute = made(name, small, threads)
    least = {mode: [float("inf")] * 2 for mode in MODES}
    operations = dict.fromkeys(MODES, 0)
    turn, begin = 0, time.process_time()
    while turn < turns or time.process_time() < begin + SECONDS:
        for mode in MODES:
            with region(mode, turn) as stats:
                start = time.process_time(), time.perf_counter()
                compute()
                taken = time.process_time() - start[0], time.perf_counter() - start[1]
            least[mode] = [min(pair) for pair in zip(least[mode], taken, strict=True)]
            operations[mode] = stats.operations if stats is not None else 0
        turn += 1
    return {"title": title, "least": least, "operations": operations}


def whole(name: str, small: bool, threads: int, mode: str) -> float:
    """Processor seconds of this whole process, with as many units as the published one has: those
    that are not computed count as much as the cheapest that is."""
    from benchmarks.peer_networks import NETWORKS

    _, compute = made(name, small, threads)
    units, seconds = NETWORKS[name].units, []
    computed = units if units <= 10 else TRIED
    for unit in range(computed):
        with region(mode, unit):
            start = time.process_time()
            compute()
            seconds.append(time.process_time() - start)
    return time.process_time() + (units - computed) * min(seconds)


def profile(name: str, small: bool) -> dict[str, dict[str, float]]:
    """Processor seconds of one thread in each operator, by mode: the least of two passes."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        """Adds up what each operator takes, under the mode outside."""

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            start = time.thread_time()
            result = function(*args, **(kwargs or {}))
            operator = function.overloadpacket.__name__
            if operator in PRODUCTS:
                shapes = ["×".join(map(str, a.shape)) for a in args if isinstance(a, torch.Tensor)]
                operator += f" {', '.join(shapes)}"
            seconds[operator] = seconds.get(operator, 0) + time.thread_time() - start
            return result

    _, compute = made(name, small, 1)
    found = dict[str, dict[str, float]]()
    for mode in MODES:
        both = []
        for turn in range(2):
            seconds = dict[str, float]()
            with region(mode, turn), Watch():
                compute()
            both.append(seconds)
        # an operator that only the first pass has made something once
        found[mode] = {o: min(s[o] for s in both) for o in both[0].keys() & both[1].keys()}
    return found


class Kept:
    """Measurements by what was measured, in a file until the benchmark is through: the same
    command continues after a stop, on the same kernels."""

    def __init__(self, path: Path, packages: str) -> None:
        from morphbits.engines.native.kernels.build import library_path

        self.path = path
        self.conditions = [processor(), library_path().name, LOCK.read_text(encoding="utf-8")]
        self.environment = {"PYTHONPATH": os.pathsep.join([packages, str(LOCK.parent)])}
        kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        same = kept.get("conditions") == self.conditions
        self.results: dict[str, Any] = kept["results"] if same else {}

    def measured(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What the function returns, in a process of its own or from the file."""
        key = json.dumps([function.__name__, *arguments])
        if key not in self.results:
            self.results[key] = measured(function, *arguments, environment=self.environment)
            write_json(self.path, {"conditions": self.conditions, "results": self.results})
        return self.results[key]


def install() -> tuple[str, str]:
    """Folder of the packages of peers.lock, and why they could not be installed, if so."""
    folder = CACHE / f"peers-{hashlib.sha256(LOCK.read_bytes()).hexdigest()[:12]}"
    if not folder.exists():
        new = folder.with_suffix(".new")
        shutil.rmtree(new, ignore_errors=True)
        options = ["--quiet", "--no-deps", "--only-binary", ":all:", "--require-hashes"]
        options += ["--target", str(new), "-r", str(LOCK)]
        command = [sys.executable, "-m", "pip", "install", *options]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            return str(folder), (errors or [f"pip ended with {done.returncode}"])[-1]
        new.rename(folder)
    return str(folder), ""


def rows(report: Report, kept: Kept, name: str, small: bool, threads: int, turns: int) -> None:
    """The rows of one network on so many threads."""
    from benchmarks.peer_networks import NETWORKS

    found = kept.measured(passes, name, small, threads, turns)
    processes = {mode: kept.measured(whole, name, small, threads, mode) for mode in MODES}
    network, plain = NETWORKS[name], found["least"]["plain"]
    published = network.published if threads == 1 and not small else None
    for mode in MODES:
        cpu, elapsed = found["least"][mode]
        at = {"random": 0, "nearness": 1}.get(mode)
        others = (
            [f"{published[at + tool]}×" for tool in (2, 0)]
            if published and at is not None
            else ["", ""]
        )
        report.row(
            *(found["title"], threads, mode, f"{cpu:.3g}", f"{cpu / plain[0]:.2f}"),
            *(f"{elapsed / plain[1]:.2f}", f"{processes[mode]:.3g}"),
            *(f"{processes[mode] / processes['plain']:.2f}", *others),
            f"{found['operations'][mode] / 1e9:.3g}" if mode != "plain" else "",
        )


def profiles(report: Report, kept: Kept, names: list[str], small: bool) -> None:
    """What each network's time goes to: the operators that take a twentieth of it in a mode."""
    report.add("", "## By operator", "", "One thread, milliseconds of one unit.")
    report.table("network", "operator", *MODES, "random / plain", "nearness / plain")
    for name in names:
        try:
            found = kept.measured(profile, name, small)
        except UserError as error:
            report.row(name, f"failed: {error}", *[""] * 6)
            continue
        by_name = {mode: Counter[str]() for mode in MODES}
        for mode in MODES:
            for operator, seconds in found[mode].items():
                by_name[mode][operator.split()[0]] += 1e3 * seconds
        for operator, _ in by_name["random"].most_common():
            times = [by_name[mode][operator] for mode in MODES]
            if any(t > by_name[m].total() / 20 for t, m in zip(times, MODES, strict=True)):
                ratios = [f"{times[i] / times[0]:.1f}" if times[0] else "" for i in (1, 2)]
                report.row(name, f"`{operator}`", *(f"{t:.3g}" for t in times), *ratios)


def main() -> None:
    from benchmarks.peer_networks import NETWORKS

    parser = config.parser(__doc__)
    parser.add_argument("--small", action="store_true", help="smaller networks and inputs")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument(
        "--threads", type=config.whole(1, 1024), nargs="+", help="default: one, and all cores"
    )
    parser.add_argument("--turns", type=config.whole(1), default=3, help="of each mode, at least")
    parser.add_argument("--output", type=Path, help="Markdown file (default: notes/benchmarks/…)")
    arguments = parser.parse_args()
    small = arguments.small
    folder, failure = install()
    kept = Kept(CACHE / "peers.json", folder)
    report = Report(
        arguments.output or note("peers", processor()),
        f"Random rounding of other networks, {processor()}",
        f"make bench-peers{' SMALL=1' if small else ''}",
        "torch",
    )
    report.add(METHOD)
    report.table(
        *("network", "threads", "mode", "pass, s", "ratio", "elapsed, ratio"),
        *("process, s", "ratio", "PRISM", "Verrou", "operations, 10⁹"),
    )
    names = []
    for name in arguments.networks:
        if failure and NETWORKS[name].package:
            report.row(name, "", f"left out: needs {NETWORKS[name].package}. {failure}", *[""] * 8)
            continue
        names.append(name)
        for threads in arguments.threads or sorted({1, machine.cores()}):
            try:
                rows(report, kept, name, small, threads, arguments.turns)
            except UserError as error:  # out of memory, most likely: the others go on
                report.row(name, threads, f"failed: {error}", *[""] * 8)
    profiles(report, kept, names, small)
    kept.path.unlink(missing_ok=True)


METHOD = """\
Random weights. A pass is 1,000 images of MNIST, one slice of FastSurferVINN, one recording of
WavLM with its ECAPA-TDNN head (base instead of large where memory is short), one pair of images,
one training step of GPT-2. Seconds are of the processor (all threads together), the least of turns
in one process; elapsed: of the wall clock, which tells something only on a quiet machine. Process:
all processor seconds of a process that starts, imports, makes the network and computes as many
passes as the published process does (10 of MNIST; 768 slices of FastSurfer, of which three are
computed and the rest counted at the least of their times). Ratios are to plain torch.

PRISM and Verrou: time of the perturbed process over that of the unperturbed one, one thread, from
Fuzzy PyTorch (arXiv 2605.25991; perf-DL-stats.csv of its repository): up or down in the rows of
mode `random`, stochastic rounding in those of `nearness`. They are whole processes on another
machine, with data to load. PRISM's PyTorch is rebuilt without oneDNN on reference BLAS; it leaves
sums and the vectorized exp and log unperturbed; its up-down mode moves exact results too."""


if __name__ == "__main__":
    run_cli(main)
