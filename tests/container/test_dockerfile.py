"""The Dockerfile's COPY and the files they name, without an engine: each stage is laid out in a
folder as the engine would, and the step that compiles the kernels runs there.

Nothing is downloaded: the folder's environment is the one that runs these tests.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SETUP = "scripts/setup.sh"


def instructions(dockerfile: str) -> dict[str, list[tuple[str, str]]]:
    """The (instruction, arguments) of each stage, in their order."""
    lines = [line for line in dockerfile.splitlines() if not line.startswith("#")]
    stages: dict[str, list[tuple[str, str]]] = {}
    stage: list[tuple[str, str]] = []
    for line in filter(None, "\n".join(lines).replace("\\\n", "").splitlines()):
        name, _, arguments = line.partition(" ")
        if name == "FROM":
            stage = stages.setdefault(arguments.split()[-1], [])
        stage.append((name, arguments.strip()))
    return stages


def as_regular_expression(pattern: str) -> str:
    """A line of .dockerignore: it names a file or folder, and with it all that is inside."""
    parts = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    words = re.split(r"(\*\*/|\*\*|\*|\?)", pattern.strip("/"))
    return "".join(parts.get(word) or re.escape(word) for word in words) + "(?:/.*)?"


def sent(path: str, dockerignore: str) -> bool:
    """Whether a file is part of what the engine is given: the last line that names it decides."""
    last = False
    for line in dockerignore.splitlines():
        pattern = line.strip().removeprefix("!")
        if pattern and pattern[0] != "#" and re.fullmatch(as_regular_expression(pattern), path):
            last = line[0] != "!"
    return not last


def copied(source: str, dockerignore: str) -> Iterator[tuple[Path, str]]:
    """The files that a COPY of `source` takes, and their names below the destination."""
    path = ROOT / source
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file() and sent(file.relative_to(ROOT).as_posix(), dockerignore):
            yield file, file.relative_to(path if path.is_dir() else path.parent).as_posix()


def copy(arguments: str, to: Path, dockerignore: str) -> None:
    """What the instruction COPY does with files of the checkout."""
    *sources, destination = arguments.split()
    for source in sources:
        folder = destination.endswith("/") or (ROOT / source).is_dir()
        files = list(copied(source, dockerignore))
        assert files, f"COPY {arguments}: the image's build is sent no {source}"
        for file, name in files:
            target = to / destination / name if folder else to / destination
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, target)


def environment(image: Path) -> None:
    """Where setup.sh finds a finished environment of the locks that were copied: this Python's."""
    version = "{}.{}\n".format(*sys.version_info).encode()
    locks = [image / "python" / f"{name}.lock" for name in ("requirements", "torch")]
    key = hashlib.sha256(version + b"".join(lock.read_bytes() for lock in locks)).hexdigest()[:12]
    new = image / ".cache" / f"venv-{key}"
    new.mkdir(parents=True)
    for part in Path(sys.prefix).resolve().iterdir():
        if part.name not in (".stamp", ".complete"):
            (new / part.name).symlink_to(part)
    (new / ".complete").touch()


@pytest.fixture
def quick_compiler(tmp_path: Path) -> str:
    """gcc, told last not to optimize."""
    compiler = tmp_path / "cc"
    compiler.write_text('#!/bin/sh\nexec gcc "$@" -O0\n')
    compiler.chmod(0o755)
    return str(compiler)


def test_the_kernels_compile_from_what_the_image_has_then(
    tmp_path: Path, quick_compiler: str
) -> None:
    """And what is copied later does not ask for other kernels: the image has no compiler."""
    dockerignore = (ROOT / ".dockerignore").read_text(encoding="utf-8")
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    image, clean = tmp_path / "image", {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    steps = 0
    for name, arguments in instructions(dockerfile)["packages"]:
        if name == "COPY":
            copy(arguments, image, dockerignore)
        elif name == "RUN" and SETUP in arguments:
            environment(image)
            done = subprocess.run(
                ["/bin/sh", "-c", arguments],
                cwd=image,
                env=clean | {"CC": quick_compiler, "PYTHON": sys.executable},
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stdout + done.stderr
            assert "packages and torch" not in done.stdout  # nothing was installed
            steps += 1
    assert steps == 1
    built = list(image.rglob("kernels-*.so"))
    wanted = subprocess.run(
        [sys.executable, "-P", "-c", "from morphbits.engines.native.kernels import build as b\n"
         "print(b.library_path())"],
        env=clean | {"PYTHONPATH": str(image / "python")},
        capture_output=True,
        text=True,
        check=True,
    )  # fmt: skip
    assert [str(path) for path in built] == [wanted.stdout.strip()]


@pytest.mark.parametrize("stage", ["verrou", "runtime", "test"])
def test_every_file_that_a_stage_copies_is_there(stage: str, tmp_path: Path) -> None:
    dockerignore = (ROOT / ".dockerignore").read_text(encoding="utf-8")
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    for name, arguments in instructions(dockerfile)[stage]:
        if name == "COPY" and not arguments.startswith("--from="):
            copy(arguments.replace(" /", " "), tmp_path, dockerignore)


def test_the_image_runs_the_tests_that_make_test_selects() -> None:
    selected = [
        re.findall(r"'(not slow and not network[^']*)'", (ROOT / name).read_text(encoding="utf-8"))
        for name in ("Makefile", "Dockerfile")
    ]
    assert selected[0] and selected[0] == selected[1]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("python/morphbits/config.py", True),
        ("python/morphbits/__pycache__/config.pyc", False),
        ("python/morphbits/engines/native/kernels/_build/kernels.so", False),
        ("python/.mypy_cache/x/y", False),
        ("results/corr/sample.json", False),
        (".venv/bin/python", False),
        ("Dockerfile", True),
        ("Dockerfile.old", False),
    ],
)
def test_what_dockerignore_leaves_out(path: str, expected: bool) -> None:
    dockerignore = (ROOT / ".dockerignore").read_text(encoding="utf-8")
    assert sent(path, dockerignore) == expected
