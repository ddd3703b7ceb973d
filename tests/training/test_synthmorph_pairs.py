"""Trainings on SynthMorph's images: the synthesis process, the loop and torchrun together.

As a program it is one rank:

    python -m torch.distributed.run … tests/training/test_synthmorph_pairs.py FOLDER LABELS STOP
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from morphbits import images
from morphbits.errors import run_cli
from morphbits.synthesis.pair import Pair
from morphbits.synthesis.stream import Stream
from morphbits.training import RunConfig, TrainConfig, train
from morphbits.training.group import processes

ROOT = Path(__file__).resolve().parents[2]
SHELL = ("sh", "-c", '"$@"; exit $?', "sh")  # which does not become the program, but waits for it


def rank(folder: Path, labels: str, stop: int) -> None:
    """Train as one rank; go on where there is a checkpoint; SIGTERM at the `stop`-th pair."""
    asked, pair = 0, Stream.pair

    def counted(stream: Stream, *key: int) -> Pair:
        nonlocal asked
        asked += 1
        if asked == stop:
            os.kill(os.getpid(), signal.SIGTERM)
        return pair(stream, *key)

    Stream.pair = counted  # type: ignore[method-assign]
    config = TrainConfig(
        source="synthmorph", labels=labels, enc="2 3", dec="3 2", epochs=2, steps=4, threads=1,
        learning_rate=1e-2,
    )  # fmt: skip
    with processes() as ranks:
        train(config, folder, RunConfig(resume=(folder / "checkpoint.pt").exists()), ranks)


def train_ranks(folder: Path, labels: Path, stop: int = 0, shell: bool = False) -> str:
    """What two ranks under torchrun say, each started by a shell of its own if `shell`."""
    program = [sys.executable, __file__, str(folder), str(labels), str(stop)]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "--no-python", *(SHELL if shell else ()), *program,
    ]  # fmt: skip
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT / "python"), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert (done.returncode == 0) == (stop == 0), done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_stopped_and_resumed_ranks_equal_ranks_under_shells_of_their_own(tmp_path: Path) -> None:
    """Two trainings of the same bytes. In one, a shell stands between torchrun and each rank, as
    under Verrou: nothing but what torchrun tells them leads all ranks to one synthesis process."""
    labels = tmp_path / "labels"
    for number in range(3):
        blocks = np.random.default_rng(number).integers(0, 3, (4, 4, 4))
        labels.mkdir(exist_ok=True)
        volume = np.kron(blocks, np.ones((4, 4, 4), int))
        images.save(labels / f"{number}.nii.gz", volume, np.eye(4))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train_ranks(whole, labels, shell=True)
    said = train_ranks(cut, labels, stop=6)
    assert "stopped by SIGTERM after step" in said and not (cut / "model.h5").exists()
    train_ranks(cut, labels)
    for name in ("model.h5", "log.csv"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name


if __name__ == "__main__":
    run_cli(lambda: rank(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
