"""scripts/setup.sh in a small copy of the project, with packages of a few bytes.

What it does once, what it does twice, and the one line it says when something is missing.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# what setup.sh imports to see that the packages load together
MODULES = ["datalad/api", "h5py", "matplotlib/pyplot", "nibabel", "nilearn/datasets", "numpy",
           "pytest", "scipy/ndimage", "scipy/stats", "significantdigits", "SimpleITK",
           "tf_keras"]  # fmt: skip
CRASH = "import os, signal, sys\nif {!r} in sys.modules: os.kill(os.getpid(), signal.SIGSEGV)\n"
TORCH = ["torch/_dynamo", "torch/fx/experimental/symbolic_shapes", "torch/optim"]
HANG = "import os, time\nif 'HANG' in os.environ: time.sleep(60)\n"


def wheel(folder: Path, name: str, version: str, modules: dict[str, str]) -> str:
    """Write a wheel of the given modules (path without .py → source); returns its sha256."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    files = {f"{module}.py": text for module, text in modules.items()}
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    files[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{info}/RECORD"] = "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Project:
    """A copy of Makefile and setup.sh whose locks list two tiny packages in a folder of wheels."""

    def __init__(self, root: Path, python: str) -> None:
        self.root = root
        self.base = python
        self.wheels = root / "wheels"
        self.kernels = root / "python/morphbits/engines/native/kernels"
        (self.kernels / "csrc").mkdir(parents=True)
        (root / "scripts").mkdir()
        self.wheels.mkdir()
        shutil.copy(ROOT / "Makefile", root)
        shutil.copy(ROOT / "scripts/setup.sh", root / "scripts")
        for package in (self.kernels.parents[1], self.kernels.parent, self.kernels):
            (package / "__init__.py").touch()
        (self.kernels / "build.py").write_text("print('built', file=open('built', 'a'))\n")
        (self.kernels / "csrc/kernel.c").touch()
        # as with torch's CUDA build: TensorFlow and torch's compiler crash each other
        modules = dict.fromkeys(MODULES, HANG) | {"tf_keras": HANG + CRASH.format("torch._dynamo")}
        stack = wheel(self.wheels, "stack", "1", modules)
        parts = dict.fromkeys(TORCH, "") | {"torch/_dynamo": CRASH.format("tf_keras")}
        cpu = wheel(self.wheels, "torch", "2.0+cpu", {"torch/__init__": "cuda = False"} | parts)
        cuda = wheel(self.wheels, "torch", "2.0", {"torch/__init__": "cuda = True"} | parts)
        self.lock("requirements", f"stack==1 --hash=sha256:{stack}")
        self.lock("torch", f"torch==2.0+cpu\n{cpu}  torch-2.0+cpu-py3-none-any.whl")
        self.lock("torch-cuda", f"torch==2.0 --hash=sha256:{cuda}")

    def lock(self, name: str, text: str) -> None:
        (self.root / f"python/{name}.lock").write_text(text + "\n")

    def start(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        keep = {"PATH": os.environ["PATH"], "HOME": str(self.root), "PYTHON": self.base}
        pip = {
            "PIP_CONFIG_FILE": "/dev/null",
            "PIP_INDEX_URL": "http://127.0.0.1:9/simple",  # nobody listens: a dead network
            "PIP_RETRIES": "0",
            "PIP_FIND_LINKS": str(self.wheels),
        }
        return subprocess.Popen(
            ["make", "--no-print-directory", *words], cwd=self.root, env=keep | pip | environment,
            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip

    def make(self, *words: str, **environment: str) -> tuple[int, str, str]:
        process = self.start(*words, **environment)
        out, err = process.communicate(timeout=120)
        return process.returncode, out, err

    def error(self, *words: str, **environment: str) -> str:
        """The one line that a failing setup says (make adds its own below)."""
        status, _, err = self.make("setup", *words, **environment)
        assert status != 0
        lines = [line for line in err.splitlines() if not line.startswith("make")]
        assert len(lines) == 1 and lines[0].startswith("error: "), err
        return lines[0]

    def python(self, code: str) -> str:
        python = self.root / ".venv/bin/python"
        return subprocess.run(
            [python, "-c", code], text=True, capture_output=True, check=True
        ).stdout.strip()

    @property
    def built(self) -> int:
        return (self.root / "built").read_text().count("built")


@pytest.fixture(scope="session")
def fast_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """This Python, but `-m venv` copies an environment made once: that spares five seconds."""
    folder = tmp_path_factory.mktemp("python")
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    python = folder / "python3"
    python.write_text(
        f"""#!/bin/sh
if [ "$2" = venv ]; then exec cp -a {folder}/venv "$3"; fi
exec {sys.executable} "$@"
"""
    )
    python.chmod(0o755)
    return str(python)


@pytest.fixture
def project(tmp_path: Path, fast_python: str) -> Project:
    return Project(tmp_path, fast_python)


def test_setup_works_once_and_costs_nothing_twice(project: Project) -> None:
    status, _, err = project.make("setup")
    assert (status, err) == (0, "")
    assert project.python("import h5py, torch; print(torch.cuda)") == "False"
    assert project.built == 1

    start = time.monotonic()
    assert project.make("setup") == (0, "", "")
    assert time.monotonic() - start < 2
    assert project.make("-q", ".venv/.stamp")[0] == 0

    # a changed kernel is compiled again, without touching the packages
    time.sleep(0.01)
    (project.kernels / "csrc/kernel.c").write_text("/* changed */")
    assert project.make("-q", ".venv/.stamp")[0] == 1
    before = (project.root / ".venv").resolve()
    assert project.make("setup")[0] == 0
    assert project.built == 2 and (project.root / ".venv").resolve() == before

    # the CUDA build stays until the other one is asked for by name
    status, _, err = project.make("setup", "TORCH=cuda")
    assert (status, err) == (0, "")
    assert project.python("import torch; print(torch.cuda)") == "True"
    assert project.make("setup") == (0, "", "")
    assert project.python("import torch; print(torch.cuda)") == "True"
    assert len(list((project.root / ".cache").glob("venv-*"))) == 1


@pytest.mark.slow
def test_a_killed_setup_leaves_no_environment_and_the_next_one_completes(
    project: Project,
) -> None:
    process = project.start("setup", HANG="1")
    log = project.root / ".cache/setup.log"
    deadline = time.monotonic() + 60
    while not (log.exists() and "Successfully installed torch" in log.read_text()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (project.root / ".venv").exists()
    assert project.make("setup")[0] == 0
    assert project.python("import torch") == ""


def test_setup_removes_nothing_but_old_environments_that_nothing_runs_in(
    project: Project,
) -> None:
    yours = project.root / ".venv/lib/yours.py"
    yours.parent.mkdir(parents=True)
    yours.write_text("a user's own")
    running, old = (project.root / f".cache/venv-{name}/library" for name in ("running", "old"))
    for library in (running, old):
        library.parent.mkdir(parents=True)
        library.write_text("code")
    with running.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ):
        status, out, err = project.make("setup")
    assert (status, err) == (0, "")
    (aside,) = project.root.glob(".venv-yours-*")
    assert (aside / "lib/yours.py").read_text() == "a user's own" and aside.name in out
    assert (running.exists(), old.exists()) == (True, False)


def test_a_failed_update_leaves_the_environment_that_worked(project: Project) -> None:
    assert project.make("setup")[0] == 0
    project.lock("requirements", f"stack==2 --hash=sha256:{'0' * 64}")
    message = project.error()
    assert "stack==2" in message and "network" in message and ".cache/setup.log" in message
    assert project.python("import h5py") == ""


def test_another_file_than_the_locks_list_is_refused(project: Project) -> None:
    lock = project.root / "python/torch.lock"
    good = lock.read_text()
    lock.write_text(good.replace(good.split()[1], "0" * 64))
    assert "not the file that python/torch.lock lists" in project.error()
    lock.write_text(good)
    project.lock("requirements", f"stack==1 --hash=sha256:{'0' * 64}")
    assert "not the one in the lock file" in project.error()


def test_a_build_that_the_lock_does_not_list_is_named(project: Project) -> None:
    project.lock("torch", "torch==2.0+cpu")
    status, out, _ = project.make("setup")
    assert status == 0
    assert "does not list torch-2.0+cpu-py3-none-any.whl yet; its sha256 is" in out


def test_only_a_cuda_build_to_be_had(project: Project) -> None:
    (project.wheels / "torch-2.0+cpu-py3-none-any.whl").unlink()
    # PyTorch's own index, which setup.sh names, is behind a proxy that nobody runs
    message = project.error(HTTPS_PROXY="http://127.0.0.1:9", PIP_TIMEOUT="1")
    assert "no CPU build of torch (2.0+cpu)" in message and "make setup TORCH=cuda" in message


def test_dead_index(project: Project) -> None:
    (project.wheels / "stack-1-py3-none-any.whl").unlink()
    message = project.error()
    assert "could not be installed: No matching distribution found for stack==1" in message
    assert "check the network" in message


def stub(project: Project, name: str, text: str) -> str:
    path = project.root / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("version", ["3.10", "3.14", "2.7"])
def test_wrong_python(project: Project, version: str) -> None:
    python = stub(project, "python", f"echo {version}")
    message = project.error(PYTHON=python)
    assert f"{python} is {version}" in message and "apt install python3 python3-venv" in message


def test_no_python(project: Project) -> None:
    assert "no /nowhere/python3 found" in project.error(PYTHON="/nowhere/python3")


def test_python_without_venv(project: Project) -> None:
    (project.root / "ensurepip.py").write_text("raise ImportError")
    python = stub(project, "python", f'PYTHONPATH={project.root} exec {sys.executable} "$@"')
    version = ".".join(map(str, sys.version_info[:2]))
    assert f"'apt install python{version}-venv'" in project.error(PYTHON=python)


def test_no_compiler(project: Project) -> None:
    commands = project.root / "commands"  # all of PATH but the compilers
    commands.mkdir()
    for folder in reversed(os.environ["PATH"].split(":")):
        for tool in Path(folder).glob("*") if Path(folder).is_dir() else ():
            if not any(part in tool.name for part in ("gcc", "cc", "clang")):
                (commands / tool.name).unlink(missing_ok=True)
                (commands / tool.name).symlink_to(tool)
    message = project.error(PATH=str(commands))
    assert "no C compiler (gcc)" in message and "apt install gcc libc6-dev" in message


def test_compiler_without_headers(project: Project) -> None:
    message = project.error(CC=stub(project, "cc", 'exec gcc -nostdinc "$@"'))
    assert "does not build a small OpenMP program" in message and "libc6-dev" in message


def test_kernels_that_do_not_compile(project: Project) -> None:
    (project.kernels / "build.py").write_text("raise SystemExit('kernel.c:7: no such thing')")
    assert "kernel.c:7: no such thing" in project.error()
    assert project.make("-q", ".venv/.stamp")[0] == 1


def test_unknown_torch(project: Project) -> None:
    assert "TORCH=rocm: cpu or cuda" in project.error("TORCH=rocm")
