"""What the official validator says of the phantoms and of a run's results.

It is `bids-validator-deno` on PyPI (146 MB, so that it is in no lock file): install it into any
environment and put it on the PATH, or name it in BIDS_VALIDATOR.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from morphbits import cli

VALIDATOR = os.environ.get("BIDS_VALIDATOR") or shutil.which("bids-validator-deno")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(VALIDATOR is None, reason="no bids-validator-deno on the PATH"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two phantoms and an experiment on them."""
    root = tmp_path_factory.mktemp("validator")
    words = ["--engine=ieee", "--dataset=phantom", "--size=4mm", "--subjects=2", "--runs=2"]
    command = [*cli.command("inference"), *words, "--experiment=here"]
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    subprocess.run(
        [*cli.command("archive"), "--experiment=here", "--license=CC0-1.0"],
        cwd=root, check=True, capture_output=True,
    )  # fmt: skip
    return root


def errors(root: Path) -> list[str]:
    """The validator's errors. Its --recursive reads no .bidsignore of what lies inside (3.0.2), so
    each dataset is asked about by itself."""
    command = [str(VALIDATOR), str(root), "--format", "json"]
    said = subprocess.run(command, capture_output=True, text=True).stdout
    return [
        f"{issue['code']} {issue.get('subCode', '')} {issue.get('location', '')}"
        for issue in json.loads(said)["issues"]["issues"]
        if issue["severity"] == "error"
    ]


def test_the_phantoms_are_a_valid_dataset_with_valid_derivatives(made: Path) -> None:
    assert errors(made / "data/phantom-4mm") == []
    assert errors(made / "data/phantom-4mm/derivatives/phantom") == []


@pytest.mark.parametrize("folder", ["sample-01", "sample-ieee", "sample-plain", "maps", "archive"])
def test_each_folder_of_results_is_a_valid_derivative(made: Path, folder: str) -> None:
    assert errors(made / "results/here" / folder) == []


def test_the_committed_archive_is_a_valid_derivative() -> None:
    assert errors(Path(__file__).resolve().parents[1] / "shapes/archive") == []


def test_the_validator_sees_what_is_wrong(made: Path) -> None:
    """That the tests above can fail."""
    folder = made / "results/here/sample-02"
    (folder / ".bidsignore").unlink()
    assert any(error.startswith("NOT_INCLUDED") for error in errors(folder))
