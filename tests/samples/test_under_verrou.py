"""`make inference ENGINE=verrou` itself, small: on this machine, and in the image of make docker.

Each takes some minutes, nearly all of them for starting Python under Valgrind.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ON_THE_MACHINE = dict(os.environ)
IN_THE_IMAGE = {k: v for k, v in os.environ.items() if k != "VERROU_PREFIX"}


def needs(where: str, environment: dict[str, str]) -> pytest.MarkDecorator:
    """Skip where an environment's Verrou is elsewhere or nowhere."""
    code = "from morphbits.engines.verrou import found; print(found())"
    words, paths = [sys.executable, "-c", code], {"PYTHONPATH": str(ROOT / "python")}
    found = subprocess.run(words, env=environment | paths, capture_output=True, text=True)
    return pytest.mark.skipif(found.stdout.strip() != where, reason=f"no Verrou: {where}")


@pytest.mark.slow
@pytest.mark.verrou
@pytest.mark.parametrize(
    ("environment", "region"),
    [
        pytest.param(ON_THE_MACHINE, "registration", marks=needs("machine", ON_THE_MACHINE)),
        pytest.param(ON_THE_MACHINE, "process", marks=needs("machine", ON_THE_MACHINE)),
        pytest.param(IN_THE_IMAGE, "registration", marks=needs("container", IN_THE_IMAGE)),
    ],
    ids=["machine", "machine, the whole process", "image"],
)
def test_inference(
    toy_files: Path, tmp_path: Path, environment: dict[str, str], region: str
) -> None:
    """All that is named is reached by symbolic links."""
    targets = {
        "set": toy_files / "data",
        "m.h5": toy_files / "model.h5",
        "r": tmp_path / "disk",
    }
    for name, target in targets.items():
        (tmp_path / name).symlink_to(target)
    (tmp_path / "disk").mkdir()
    words = [
        f"DATASET={tmp_path / 'set'}",
        f"MODEL={tmp_path / 'm.h5'}",
        f"REGION={region}",
    ]
    words += [
        f"RESULTS={tmp_path / 'r'}",
        "EXPERIMENT=toy",
        "SUBJECTS=1",
        "RUNS=2",
        "JOBS=2",
    ]
    done = subprocess.run(
        ["make", "-o", ".venv/.stamp", "inference", "ENGINE=verrou", *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "disk" / "toy"
    records = {
        path.parent.parent.name.removeprefix("sample-"): json.loads(path.read_text())
        for path in folder.glob("sample-*/sub-001/sample.json")
    }
    assert sorted(records) == ["01", "02", "again", "ieee", "plain", "threads"]
    perturbed = [records["01"], records["02"], records["ieee"]]
    for record in perturbed:
        chosen, facts = record["configuration"], record["provenance"]
        assert (chosen["engine"], chosen["region"], chosen["threads"]) == (
            "verrou",
            region,
            1,
        )
        assert facts["operations"] > 100_000
        assert bool(facts["container"]) == (environment is IN_THE_IMAGE)
    moved = [record["outputs"]["moved"]["sha256"] for record in perturbed]
    assert len(set(moved)) == 3
    assert (folder / "report.html").is_file()
