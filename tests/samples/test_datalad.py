"""A results folder that is a DataLad dataset: `datalad run` around `make inference`."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from support.toy_experiment import Toy

from morphbits import cli
from morphbits.config import to_arguments
from morphbits.samples.verify import verify

IDENTITY = {
    f"GIT_{who}_{what}": value
    for who in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "A Tester"), ("EMAIL", "tester@example.org"))
}
# datalad and git-annex lie beside the Python that runs the tests
SEARCH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"


def call(*words: str, cwd: Path) -> str:
    environment = os.environ | IDENTITY | {"PATH": SEARCH, "HOME": str(cwd.parent)}
    done = subprocess.run(
        words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_datalad_run_records_the_verb_and_what_it_made(toy: Toy, tmp_path: Path) -> None:
    results = tmp_path / "results"
    here = toy.but(subjects=1, results=results)
    call("datalad", "create", "-c", "text2git", "results", cwd=tmp_path)
    options = to_arguments(here.settings) + to_arguments(here.execution)
    verb = shlex.join([*cli.command("inference"), *options])
    call("datalad", "run", "-m", "two samples", "-o", "toy", verb, cwd=results)
    assert len(here.finished()) == 6
    assert call("git", "status", "--porcelain", cwd=results) == ""
    record = call("git", "log", "-1", "--format=%B", cwd=results)
    command = json.loads(record[record.index("{") : record.rindex("}") + 1])
    assert "morphbits inference" in command["cmd"] and command["exit"] == 0
    (moved,) = here.folder.glob("sample-01/sub-001/anat/*_T1w.nii.gz")
    assert moved.is_symlink() and "annex/objects" in str(moved.readlink())

    # more runs: what is done is recognized behind its links, and stays
    before = {path: path.readlink() for path in here.folder.glob("sample-*/*/anat/*.nii.gz")}
    more = verb.replace("--runs=2", "--runs=3")
    call("datalad", "run", "-m", "one more", "-o", "toy", more, cwd=results)
    assert len(here.finished()) == 7
    assert {path: path.readlink() for path in before} == before
    assert call("git", "status", "--porcelain", cwd=results) == ""
    findings = verify(results, "toy", 1, 1)
    assert {finding.verdict for finding in findings} == {"right"}
