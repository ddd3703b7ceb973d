"""More faults, made for real: clocks that jump, images that are none, a disk that cannot be
written, two runs at once, a kill at any moment, a thousand samples."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support import disks
from support.toy_experiment import PYTHON, Toy

from morphbits import cli, images
from morphbits.config import to_arguments

# every other look at the clock is a day earlier
CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/time.h>
#include <time.h>
static unsigned looks;
int clock_gettime(clockid_t clock, struct timespec *now) {
  static int (*real)(clockid_t, struct timespec *);
  if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
  int status = real(clock, now);
  if (clock == CLOCK_REALTIME && looks++ % 2) now->tv_sec -= 86400;
  return status;
}
"""


def test_a_clock_that_jumps_changes_nothing_but_dates(toy: Toy, tmp_path: Path) -> None:
    source, library = tmp_path / "clock.c", tmp_path / "clock.so"
    source.write_text(CLOCK)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    jumping = {**os.environ, "LD_PRELOAD": str(library), "PYTHONPATH": str(PYTHON)}
    code = "import time; print(time.time() - time.time())"
    said = subprocess.run([sys.executable, "-c", code], env=jumping, capture_output=True)
    assert abs(float(said.stdout)) > 80_000, "the clock does not jump here"

    words = cli.command("inference")
    words += to_arguments(toy.settings) + to_arguments(toy.execution)
    done = subprocess.run(words, env=jumping, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    records = [json.loads(p.read_text()) for p in toy.folder.glob("sample-*/*/sample.json")]
    assert len(records) == 12
    assert all(0 < record["provenance"]["seconds_total"] < 3600 for record in records)
    finished = toy.finished()
    again = toy.run()
    assert "12 are done" in again.stdout and toy.finished() == finished


def test_subjects_without_an_image_are_named_and_the_others_are_kept(
    toy: Toy, toy_files: Path
) -> None:
    one, two = (toy_files / f"data/sub-00{k}/anat/sub-00{k}_T1w.nii.gz" for k in (1, 2))
    whole = {path: path.read_bytes() for path in (one, two)}
    image = images.load(one)
    image.data[3, 3, 3] = np.nan
    images.save(one, image.data, image.affine)
    images.save(two, np.ones_like(image.data), image.affine)
    try:
        result = toy.but(subjects=3).run()
    finally:
        for path, content in whole.items():
            path.write_bytes(content)
    assert len(toy.finished()) == 6 and "6 of 18 samples are finished" in result.stdout
    for name, said in (("sub-001", "not finite"), ("sub-002", "constant")):
        (line,) = (line for line in result.stdout.splitlines() if f"{name} and 3 more:" in line)
        assert said in line


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MB that can be made read-only."""
    with disks.small_disk(tmp_path / "disk", "16m") as folder:
        yield folder


def test_results_that_cannot_be_written_are_read_and_kept(
    toy: Toy, toy_results: Path, disk: Path
) -> None:
    here = toy.but(results=disk)
    shutil.copytree(toy_results, here.folder)
    finished = here.finished()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    more = here.but(runs=3).run()
    assert more.returncode == 2 and len(more.stderr.splitlines()) == 1
    assert "cannot be written to (Read-only file system)" in more.stderr
    words = [*cli.command("verify"), "--experiment=toy", f"--results={disk}"]
    verified = subprocess.run([*words, "--again=0"], capture_output=True, text=True)
    assert verified.returncode == 0 and "12 samples, none wrong" in verified.stdout
    words = [*cli.command("significance"), "--experiment=toy"]
    made = subprocess.run([*words, f"--results={disk}"], capture_output=True, text=True)
    assert made.returncode == 2 and len(made.stderr.splitlines()) == 1, made.stderr
    assert here.finished() == finished


def test_of_two_runs_started_at_once_one_makes_everything(toy: Toy) -> None:
    long = toy.but(runs=20)
    both = [long.start(), long.start()]
    ends = [process.communicate(timeout=120) for process in both]
    codes = [process.returncode for process in both]
    assert sorted(codes) in ([0, 2], [0, 0])  # both: one came when the other had finished
    if 2 in codes:
        assert "another run is working here" in ends[codes.index(2)][1]
    assert len(long.finished()) == 48 and not list(long.folder.glob(".partial-*"))


@pytest.mark.slow
def test_killed_at_any_moment_nothing_finished_is_lost(toy: Toy) -> None:
    """The whole verb, analysis and report included, killed with its workers at random moments."""
    words = cli.command("inference")
    long = toy.but(runs=12, engine="native", jobs=2)
    words += to_arguments(long.settings) + to_arguments(long.execution)
    moments, before = random.Random(5), {}
    for _ in range(20):
        process = subprocess.Popen(
            words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        time.sleep(moments.uniform(0.5, 12))
        process.kill()
        process.wait()
        now = long.finished()
        assert {name: now.get(name) for name in before} == before
        for path in long.folder.glob("*.csv"):
            assert path.read_text().endswith("\n")
        before = now
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(long.finished()) == 32 and (long.folder / "report.html").is_file()
    assert not list(long.folder.glob(".*partial*"))


@pytest.mark.slow
def test_a_thousand_samples(toy: Toy) -> None:
    many = toy.but(runs=496, jobs=2)
    process = many.start()
    while len(many.finished()) < 300:
        assert process.poll() is None, process.stderr
        time.sleep(0.2)
    process.kill()
    process.communicate()
    assert many.run().returncode == 0
    finished = many.finished()
    assert len(finished) == 1000
    start = time.perf_counter()
    again = many.run()
    assert "1000 are done" in again.stdout and many.finished() == finished
    assert time.perf_counter() - start < 30, "reading the state of a thousand samples"
    shutil.rmtree(many.folder)
