"""scripts/with_verrou.sh: the command lines it builds (golden) and what it refuses.

A stand-in for Valgrind prints what it was started with; Verrou itself is not needed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "with_verrou.sh"
PYTHON = str(Path(sys.executable))


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """A folder that looks as if Verrou were installed there."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "lib").mkdir()
    shutil.copy(ROOT / "tests" / "support" / "verrou_stand_in.sh", tmp_path / "bin" / "valgrind")
    (tmp_path / "lib" / "morphbits-markers.so").touch()
    return tmp_path


def run(prefix: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("VERROU_")}
    return subprocess.run(
        [str(SCRIPT), *words],
        capture_output=True,
        text=True,
        env=inherited | {"VERROU_PREFIX": str(prefix), "TMPDIR": str(prefix)} | environment,
        stdin=subprocess.DEVNULL,
    )


CURRENT = """\
--tool=verrou
--rounding-mode=random
--vr-seed=1
--exclude=RUN/exclusions
--instr-atstart=no
--count-op=yes
--check-nan=no
--check-inf=no
--trace-children=no
--child-silent-after-fork=yes
--error-limit=no
--fair-sched=try
--log-file=RUN/log
--libm=instrumented
"""


def test_default_command(prefix: Path) -> None:
    result = run(prefix, "--", PYTHON, "work.py", "--seed", "two words")
    assert result.returncode == 0, result.stderr
    assert result.stdout == (
        f"{CURRENT}{PYTHON}\nwork.py\n--seed\ntwo words\n"
        f"OMP_NUM_THREADS=1\nTF_ENABLE_ONEDNN_OPTS=1\n"
    )


def test_every_option_reaches_verrou(prefix: Path) -> None:
    options = "--mode nearness --seed 9 --region process --libm excluded --onednn off"
    result = run(prefix, *options.split(), "--symbols", "all.txt", "--", PYTHON)
    words = result.stdout.splitlines()
    for word in (
        "--rounding-mode=nearness",
        "--vr-seed=9",
        "--instr-atstart=yes",
        "--libm=auto_exclude",
        "--gen-exclude=all.txt",
        "TF_ENABLE_ONEDNN_OPTS=0",
    ):
        assert word in words


def test_the_studys_verrou_preloads_interlibmath_and_calls_nearness_average(prefix: Path) -> None:
    (prefix / "lib" / "interlibmath.so").touch()
    old = {"STAND_IN_VERSION": "valgrind-3.20.0.+verrou-2.4.0"}
    result = run(prefix, "--mode", "nearness", "--", PYTHON, **old)
    words = result.stdout.splitlines()
    assert "--rounding-mode=average" in words
    assert "VERROU_LIBM_ROUNDING_MODE=average" in words
    assert "LD_PRELOAD=PREFIX/interlibmath.so" in words
    assert not any(word.startswith("--libm=") for word in words)
    result = run(prefix, "--libm", "excluded", "--", PYTHON, **old)
    assert "LD_PRELOAD" not in result.stdout


def test_verrous_variables_of_the_user_change_nothing_unless_localizing(prefix: Path) -> None:
    hidden = {"VERROU_ROUNDING_MODE": "nearest"}  # would win over the command line's option
    assert "VERROU_ROUNDING_MODE" not in run(prefix, "--", PYTHON, **hidden).stdout
    result = run(prefix, "--localize", "--", PYTHON, **hidden)
    assert "VERROU_ROUNDING_MODE=nearest" in result.stdout


def test_describe_names_all_that_can_change_a_result(prefix: Path) -> None:
    result = run(prefix, "--describe", "--", PYTHON)
    keys = [line.split("=")[0] for line in result.stdout.splitlines()]
    assert keys[:7] == [
        "version",
        "mode",
        "seed",
        "region",
        "libm",
        "onednn",
        "exclusions",
    ]
    assert "exclude=_Py_dg_dtoa\t*" in result.stdout.splitlines()
    more = prefix / "more.tsv"
    more.write_text("f\t*\tbecause it is an example\n")
    other = run(prefix, "--describe", "--exclude", str(more), "--", PYTHON)
    checksum = [line for line in result.stdout.splitlines() if line.startswith("exclusions=")]
    assert checksum[0] not in other.stdout


def test_a_failing_program_shows_the_logs_end_and_leaves_nothing(prefix: Path) -> None:
    result = run(prefix, "--", PYTHON, STAND_IN_STATUS="7")
    assert result.returncode == 7
    assert "the end of the log" in result.stderr
    assert not list(prefix.glob("morphbits-verrou*"))


def test_what_a_killed_run_left_is_removed_and_a_running_ones_is_not(prefix: Path) -> None:
    """Whether its process runs on this machine, on another one or in a container: by its lock."""
    left, running, _new = folders = [prefix / f"morphbits-verrou.{k}" for k in "abc"]
    for folder in folders:
        folder.mkdir()
        (folder / "log").touch()
    for folder in (left, running):
        os.utime(folder, (0, 0))
    lock = os.open(running, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    run(prefix, "--describe", "--", PYTHON)
    assert [folder.exists() for folder in folders] == [False, True, True]
    os.close(lock)
    os.utime(running, (0, 0))
    run(prefix, "--describe", "--", PYTHON)
    assert [folder.exists() for folder in folders] == [False, False, True]


def test_a_program_that_is_ended_has_time_to_save(prefix: Path) -> None:
    """It still needs the folder of its run, for Verrou's counters; its status is the script's."""
    valgrind = prefix / "bin" / "valgrind"
    valgrind.write_text(
        "#!/bin/bash\n[ $2 = --version ] && echo verrou-2.7.0 && exit\n"
        "trap 'sleep 1; [ -e $MORPHBITS_VERROU/settings ] && echo saved; exit 143' TERM\n"
        "echo started\nwhile :; do sleep 0.1; done\n"
    )
    script = subprocess.Popen(
        [str(SCRIPT), "--", PYTHON],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"VERROU_PREFIX": str(prefix), "TMPDIR": str(prefix)},
    )
    assert script.stdout is not None
    assert script.stdout.readline() == "started\n"
    script.terminate()
    assert script.wait(30) == 143
    assert script.stdout.read() == "saved\n"
    assert not list(prefix.glob("morphbits-verrou*"))


def test_standard_input_reaches_the_program(prefix: Path) -> None:
    (prefix / "bin" / "valgrind").write_text(
        "#!/bin/bash\n[ $2 = --version ] && echo verrou-2.7.0 && exit\ncat\n"
    )
    answer = subprocess.run(
        [str(SCRIPT), "--", PYTHON],
        input="a task\n",
        capture_output=True,
        text=True,
        env=os.environ | {"VERROU_PREFIX": str(prefix)},
    )
    assert answer.stdout == "a task\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--mode", "up", "--", PYTHON], "--mode must be one of random nearness"),
        (["--seed", "one", "--", PYTHON], "--seed must be a whole number, not 'one'"),
        (["--seed"], "--seed needs a value"),
        (["--threads", "2", "--", PYTHON], "--threads: unknown option"),
        (["--region", "all", "--", PYTHON], "--region must be one of registration process"),
        (["--what", "--", PYTHON], "--what: unknown option"),
        (["--mode", "random"], "no program given"),
        (["--", "no-such-program-anywhere"], "no such program"),
        (["--", str(SCRIPT)], "is a script that starts another program"),
    ],
)
def test_what_is_refused_and_how(prefix: Path, words: list[str], message: str) -> None:
    result = run(prefix, *words)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert not result.stdout


def test_a_valgrind_without_verrou_is_refused(prefix: Path) -> None:
    result = run(prefix, "--", PYTHON, STAND_IN_VERSION="valgrind-3.19.0")
    assert (result.returncode, "without the tool Verrou" in result.stderr) == (2, True)


def test_no_verrou_at_all(tmp_path: Path) -> None:
    folder = {path for name in ("bash", "dirname") if (path := shutil.which(name))}
    path = tmp_path / "bin"
    path.mkdir()
    for tool in (*folder, *filter(None, map(shutil.which, ("sed", "head", "readlink")))):
        (path / Path(tool).name).symlink_to(tool)
    environment = {"PATH": str(path), "HOME": str(tmp_path)}
    answer = subprocess.run(
        [str(SCRIPT), "--", PYTHON], capture_output=True, text=True, env=environment
    )
    assert answer.returncode == 2
    assert "make docker" in answer.stderr


def test_another_program_than_a_python_is_perturbed_from_its_start(prefix: Path) -> None:
    program = shutil.which("sleep") or ""
    refused = run(prefix, "--", program, "0")
    assert refused.returncode == 2 and "give --region process" in refused.stderr
    done = run(prefix, "--region", "process", "--dry-run", "--", program, "0")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-2:] == [program, "0"] and "--instr-atstart=yes" in done.stdout


def test_the_log_is_kept_where_it_is_asked_for(prefix: Path) -> None:
    words = ("--log", str(prefix / "kept"), "--", PYTHON)
    assert run(prefix, *words, STAND_IN_STATUS="7").returncode == 7
    assert (prefix / "kept").read_text() == "==1== the end of the log\n"
