"""`pip install ./python`: what it installs, and that torch and NumPy alone run the engine."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
import venv
from importlib.metadata import distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
# torch, and what it needs itself to be imported
NEEDED = (
    "torch numpy typing_extensions filelock sympy mpmath networkx jinja2 markupsafe fsspec"
).split()
PROJECT = tomllib.loads((ROOT / "python" / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_file_of_the_package_is_installed() -> None:
    package = ROOT / "python" / "morphbits"
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["morphbits"]
    installed = {path for pattern in patterns for path in package.glob(pattern)}
    made = {"__pycache__", "_build"}
    files = {path for path in package.rglob("*") if path.is_file() and path.suffix != ".py"}
    assert {path for path in files if not made & {*path.parts}} - installed == set()
    assert package / "experiments" / "train-demo.toml" in installed
    for name in PROJECT["project"]["license-files"]:
        assert (ROOT / "python" / name).samefile(ROOT / name)


def test_what_an_extra_installs_is_what_the_suite_is_tested_with() -> None:
    """`tensorflow-cpu` is tensorflow without CUDA."""
    text = (ROOT / "python" / "requirements.in").read_text(encoding="utf-8")
    required = {line.split("#")[0].strip() for line in text.replace("-cpu", "").splitlines()}
    extras = PROJECT["project"]["optional-dependencies"]
    assert {*extras["suite"], *extras["tensorflow"]} <= required


@pytest.mark.network
@pytest.mark.slow
def test_the_example_runs_where_only_torch_and_numpy_are(tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    site = next((tmp_path / "env" / "lib").glob("python*/site-packages"))
    for name in NEEDED:
        for file in distribution(name).files or ():
            top = Path(file.parts[0])
            if top.parts[0] in ("..", "__pycache__") or (site / top).exists():
                continue
            (site / top).symlink_to(Path(str(distribution(name).locate_file(top))).resolve())
    note = (ROOT / "notes" / "native-engine.md").read_text()
    example = re.search(r"```python\n(import torch.*?)```", note, re.S)
    assert example
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    # its build needs setuptools 77, which pip fetches
    command = [python, "-m", "pip", "install", "--quiet", "--no-deps", ROOT / "python"]
    subprocess.run(command, check=True, env=environment)
    packages = "{'tensorflow', 'nibabel', 'scipy'}"
    code = f"{example[1]}\nimport sys, morphbits; print(sorted({packages} & set(sys.modules)))"
    code += "\nprint(morphbits.__file__)"
    done = subprocess.run(
        [python, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("morphbits: compiling the kernels, once, into") == 1
    operations, loaded, where = done.stdout.split("\n")[:3]
    assert int(operations) == 4 * 8 * (64 + 1) and loaded == "[]"
    assert where.startswith(str(tmp_path))

    command = [tmp_path / "env" / "bin" / "morphbits"]
    helped = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert helped.returncode == 0 and "pip install 'morphbits[suite]'" in helped.stdout
    words = [*command, "evaluate", "--pairs", "none.csv"]
    refused = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert refused.returncode == 2 and "needs the package" in refused.stderr
    assert "morphbits[suite]" in refused.stderr and refused.stderr.count("\n") == 1
    installed = {file.name for file in site.glob("morphbits*/**/*")}
    assert {"LICENSE", "NOTICE", "py.typed", "demo.h5", "train-demo.toml"} <= installed
