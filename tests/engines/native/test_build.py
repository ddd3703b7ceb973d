"""How the kernels are built at the first region: what is said, by whom, and where to.

A script stands in for the compiler: it writes down each call and leaves an empty file.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from morphbits.engines.native.kernels import build, library
from morphbits.errors import UserError

COMPILER = """#!/bin/sh
for word; do [ "$last" = -o ] && out=$word; last=$word; done
echo "$out" >>{calls}
sleep 0.3
touch "$out"
"""


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Its calls are lines of the file `calls` beside it; a package folder where nothing is."""
    path = tmp_path / "my-cc"
    path.write_text(COMPILER.format(calls=tmp_path / "calls"))
    path.chmod(0o755)
    monkeypatch.setenv("CC", f"{path} --an-option")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("MORPHBITS_SANITIZE", raising=False)
    (tmp_path / "native").mkdir()
    monkeypatch.setattr(build, "__file__", str(tmp_path / "native" / "build.py"))
    return path


def start(folder: Path) -> subprocess.Popen[str]:
    """Builds in a process that does not import torch."""
    if not (folder / "csrc").exists():
        shutil.copytree(build.SOURCES, folder / "csrc")
        shutil.copy(build.SOURCES.parent / "build.py", folder)
    return subprocess.Popen(
        [sys.executable, "-P", folder / "build.py"],
        env={**os.environ, "PYTHONPATH": str(build.SOURCES.parents[4])},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def calls(compiler: Path) -> list[str]:
    lines = compiler.with_name("calls").read_text().splitlines()
    return sorted(Path(line).name for line in lines)


def test_of_two_processes_one_compiles_and_says_so(compiler: Path, tmp_path: Path) -> None:
    both = [start(tmp_path / "native") for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    path = build.library_path()
    assert path.exists() and [out for out, _ in outputs] == [f"{path}\n"] * 2
    assert len(calls(compiler)) == len(set(calls(compiler))) == len(build.UNITS) + 1
    said = sorted(line for _, err in outputs for line in err.splitlines())
    assert said[0] == (
        f"morphbits: compiling the kernels, once, into {path.parent}; this takes a minute"
    )
    waiting = "morphbits: waiting for another process, which compiles the kernels"
    assert said[1:] in ([], [waiting])
    assert start(tmp_path / "native").communicate(timeout=60) == (f"{path}\n", "")
    assert [p.suffix for p in path.parent.iterdir() if p != path] == [".lock"]


def test_who_waits_says_so_and_a_lock_of_a_process_that_has_died_is_none(
    compiler: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = build.library_path()
    path.parent.mkdir()
    program = f"import fcntl, time; f = open('{path.with_suffix('.lock')}', 'a')\n"
    program += "fcntl.flock(f, fcntl.LOCK_EX); print('locked', flush=True); time.sleep(300)"
    holder = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert holder.stdout and holder.stdout.readline() == b"locked\n"
    waiting = start(tmp_path / "native")
    assert waiting.stderr and "waiting for another process" in waiting.stderr.readline()
    holder.kill()
    out, err = waiting.communicate(timeout=120)
    assert out == f"{path}\n" and "compiling the kernels, once" in err
    assert build.build() == path and capfd.readouterr().err == ""


def test_without_locks_of_the_file_system_it_is_built_all_the_same(
    compiler: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise OSError("no locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    assert build.build().exists()


def test_where_the_package_cannot_be_written_it_goes_to_the_cache(
    compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    access = os.access
    denied = str(tmp_path / "native")
    monkeypatch.setattr(
        build.os, "access", lambda p, m: not str(p).startswith(denied) and access(p, m)
    )
    assert build.build().parent == tmp_path / "cache" / "morphbits"
    (tmp_path / "native" / "_build").mkdir()  # of another user
    assert build.library_path().parent == tmp_path / "cache" / "morphbits"
    monkeypatch.setenv("XDG_CACHE_HOME", str(compiler))  # no folder
    with pytest.raises(UserError, match=r"my-cc/morphbits: cannot be written to \(Not a dir"):
        build.build()
    monkeypatch.delenv("XDG_CACHE_HOME")

    def homeless() -> Path:
        raise RuntimeError

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(UserError, match="name a folder by XDG_CACHE_HOME"):
        build.build()


@pytest.mark.parametrize(
    "script, message",
    [
        ("echo 'x.c:1: fatal error: omp.h: No such file' >&2; exit 1", "fatal error: omp.h"),
        ("echo 'out of ideas' >&2; exit 3", "failed: out of ideas"),
        ("exit 1", "failed: it printed nothing"),
        ("kill -9 $$", "ended by SIGKILL"),
    ],
)
def test_a_compiler_that_fails_is_one_sentence(compiler: Path, script: str, message: str) -> None:
    compiler.write_text(f"#!/bin/sh\n{script}\n")
    with pytest.raises(UserError, match=message) as error:
        build.build()
    assert "\n" not in str(error.value) and f"{compiler} --an-option -std" in str(error.value)
    assert [path.suffix for path in build.library_path().parent.iterdir()] == [".lock"]


def test_no_compiler_is_one_sentence(compiler: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "/nowhere/cc -O1")
    with pytest.raises(UserError, match="that CC names, /nowhere/cc, was not found"):
        build.build()
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="no C compiler found; install one"):
        build.build()


def test_kernels_that_do_not_load_are_named(compiler: Path) -> None:
    """An empty file is no library."""
    library.load.cache_clear()
    with pytest.raises(UserError, match="cannot be loaded") as error:
        library.load()
    assert str(build.library_path()) in str(error.value)
