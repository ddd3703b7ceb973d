"""A toy: three subjects of 16³ voxels, a network of six thousand weights, and a run of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from morphbits.config import ExecutionConfig, ExperimentConfig, to_arguments

SIZE = 16
PYTHON = Path(__file__).resolve().parents[2] / "python"

# what `morphbits inference` does, without the estimate before it and the analysis after it
DRIVER = """
import argparse
from morphbits.config import ExecutionConfig, ExperimentConfig, add_arguments
from morphbits.errors import UserError, run_cli
from morphbits.samples import experiment
def main():
    parser = argparse.ArgumentParser()
    add_arguments(parser, ExperimentConfig)
    add_arguments(parser, ExecutionConfig)
    plan = experiment.make_plan(*experiment.from_options(parser.parse_args()), print)
    print(experiment.run(plan))
run_cli(main)
"""


def volume(seed: int) -> np.ndarray:
    """A bright ball with noise, (16, 16, 16) float32."""
    random = np.random.default_rng(seed)
    grid_VXYZ = np.indices((SIZE,) * 3) - SIZE / 2
    ball_XYZ = np.exp(-(grid_VXYZ**2).sum(axis=0) / (2 * SIZE))
    return (ball_XYZ + 0.1 * random.random((SIZE,) * 3)).astype(np.float32)


@dataclass(frozen=True)
class Toy:
    """An experiment on the toy dataset: its options, and ways to run it in another process."""

    settings: ExperimentConfig
    execution: ExecutionConfig

    @property
    def folder(self) -> Path:
        return self.execution.results / self.execution.experiment

    def but(self, **changes: object) -> Toy:
        """The same with other options."""
        settings = {k: v for k, v in changes.items() if hasattr(self.settings, k)}
        execution = {k: v for k, v in changes.items() if k not in settings}
        return Toy(replace(self.settings, **settings), replace(self.execution, **execution))

    def command(self) -> list[str]:
        options = to_arguments(self.settings) + to_arguments(self.execution)
        return [sys.executable, "-c", DRIVER, *options]

    def start(self, **options: object) -> subprocess.Popen[str]:
        """Started, not waited for; it can be interrupted, which a job in the background of a shell
        would not let it inherit."""
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            return self._popen(**options)
        finally:
            signal.signal(signal.SIGINT, before)

    def _popen(self, **options: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(PYTHON)},
            **options,  # type: ignore[call-overload]
        )

    def run(self, **options: object) -> subprocess.CompletedProcess[str]:
        """Run to its end."""
        process = self.start(**options)
        out, err = process.communicate(timeout=120)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def finished(self) -> dict[str, int]:
        """Units with a sample.json, and the time it was written (nanoseconds)."""
        paths = self.folder.glob("sample-*/sub-*/sample.json")
        return {f"{p.parts[-3]}/{p.parts[-2]}": p.stat().st_mtime_ns for p in paths}
