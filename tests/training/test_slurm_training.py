"""Training by Slurm: one job, a torchrun for each of its tasks, on a real Slurm of one node."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from support.toy_training import outputs

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
SMALL = ("--enc=2 2", "--dec=2 2", "--threads=1", "--epochs=3", "--steps=10")


def submit(folder: Path, environment: dict[str, str], *words: str, options: str = "") -> str:
    """Submit to the one node, which stands for two machines: two tasks of one process each."""
    where = f"--nodes=1 --ntasks-per-node=2 --time=10 --output={folder}.log"
    done = subprocess.run(
        [str(SCRIPTS / "train_slurm.sh"), *SMALL, f"--model-dir={folder}", *words],
        env={**os.environ, **environment, "NPROC": "1", "SLURM_OPTIONS": f"{where} {options}"},
        text=True, capture_output=True, timeout=400,
    )  # fmt: skip
    log = Path(f"{folder}.log")
    assert done.returncode == 0, done.stderr + (log.read_text() if log.exists() else "")
    return done.stdout.strip()


@pytest.mark.slow
def test_two_tasks_train_as_two_processes_do_and_go_on_after_a_signal(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    subprocess.run(
        [str(SCRIPTS / "train_ddp.sh"), *SMALL, f"--model-dir={tmp_path / 'here'}"],
        env={**os.environ, "NPROC": "2"}, check=True, timeout=300,
    )  # fmt: skip
    assert submit(tmp_path / "whole", cluster, options="--wait").isdigit()
    assert outputs(tmp_path / "whole") == outputs(tmp_path / "here")

    job, log = submit(tmp_path / "cut", cluster), tmp_path / "cut.log"
    end = time.monotonic() + 120
    while not (log.exists() and "epoch 1/3" in log.read_text()):
        assert time.monotonic() < end, log.read_text() if log.exists() else "no log"
        time.sleep(0.1)
    environment = {**os.environ, **cluster}
    subprocess.run(["scancel", "--signal=TERM", job], env=environment, check=True)
    while subprocess.run(
        ["squeue", "--noheader", f"--job={job}"], env=environment, capture_output=True
    ).stdout.strip():
        time.sleep(0.2)
    assert "stopped by SIGTERM after step" in log.read_text()
    assert not (tmp_path / "cut" / "model.h5").exists()
    submit(tmp_path / "cut", cluster, "--resume", options="--wait")
    assert outputs(tmp_path / "cut") == outputs(tmp_path / "here")


def test_what_cannot_be_submitted_is_one_sentence(tmp_path: Path) -> None:
    script = str(SCRIPTS / "train_slurm.sh")
    bad = subprocess.run([script], env={**os.environ, "NPROC": "many"}, capture_output=True)
    assert bad.returncode == 2 and b"NPROC and NNODES must be whole numbers" in bad.stderr
    for name in ("bash", "dirname", "env"):
        (tmp_path / name).symlink_to(shutil.which(name) or name)
    gone = subprocess.run([script], env={"PATH": str(tmp_path)}, capture_output=True)
    assert gone.returncode == 2 and b"sbatch is not on this machine" in gone.stderr
