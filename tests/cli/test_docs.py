"""The pages of `make docs`: their examples run, and they show each public name."""

from __future__ import annotations

import doctest
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import morphbits

ROOT = Path(__file__).resolve().parents[2]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
API = re.findall(r"^api := (.*)", MAKEFILE, re.M)[0].replace("'", "").split()


@pytest.mark.parametrize(
    "name", [*(n for n in API if not n.startswith("!")), "morphbits.engines.native.region"]
)
def test_examples(name: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert tried and not failed


def test_the_pages(tmp_path: Path) -> None:
    pytest.importorskip("pdoc", reason="pdoc is not installed: make setup")
    program = re.findall(r"^define pdoc\n(.*?)endef$", MAKEFILE, re.M | re.S)[0]
    done = subprocess.run(
        [sys.executable, "-c", program, "-o", str(tmp_path), *API],
        cwd=ROOT / "python", env={**os.environ, "PDOC_ALLOW_EXEC": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and "Warn" not in done.stderr, done.stderr
    page = (tmp_path / "morphbits.html").read_text(encoding="utf-8")
    assert [name for name in morphbits.__all__ if f'id="{name}"' not in page] == []
    assert (tmp_path / "morphbits" / "registration.html").is_file()
