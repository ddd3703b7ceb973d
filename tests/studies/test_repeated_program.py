"""`morphbits run`: a program repeated under perturbation, and what its files are compared by."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from morphbits.cli import command
from morphbits.engines.native import random_rounding
from morphbits.errors import UserError
from morphbits.stats.analysis import read_table
from morphbits.stats.significance import significant_bits
from morphbits.stats.values import read
from morphbits.studies.program import perturbed
from morphbits.studies.program.comparison import compare, without_nan
from morphbits.studies.program.one_run import OneRun
from morphbits.studies.program.repetitions import Program, ProgramConfig, parse_command

SCRIPT = """
import sys, threading
import numpy as np, torch
x = torch.linspace(1, 2, 64)
found = [x.sin()]
class Exp(threading.Thread):
    def run(self):
        found.append(x.exp())
thread = Exp()
thread.start(); thread.join()
np.save(sys.argv[1] + "/main.npy", found[0].numpy())
np.save(sys.argv[1] + "/thread.npy", found[1].numpy())
"""


def test_every_kind_of_file_is_read(tmp_path: Path) -> None:
    numbers = np.linspace(0, 1, 6, dtype=np.float32)
    np.save(tmp_path / "a.npy", numbers.astype(">f8"))
    np.savez(tmp_path / "a.npz", one=numbers, two=np.arange(3))
    nibabel.save(nibabel.Nifti1Image(numbers.reshape(1, 2, 3), np.eye(4)), tmp_path / "a.nii.gz")
    half = torch.from_numpy(numbers).bfloat16()
    torch.save(
        {"net": {"w": torch.from_numpy(numbers)}, "half": [half], "n": 3}, tmp_path / "a.pt"
    )
    (tmp_path / "a.csv").write_text("name,x,y\none,1.5,2\ntwo,n/a,3\n")
    (tmp_path / "a.json").write_text('{"loss": 0.25, "list": [1, 2, 3], "name": "x", "ok": true}')

    (tmp_path / "a.txt").write_text("v2 loss: 0.25 after 7 steps, lr=1e-3, -.5x, at 10.0.0.1.")
    assert read(tmp_path / "a.txt")[""].array.tolist() == [0.25, 7, 1e-3]
    assert read(tmp_path / "a.npy")[""].array.dtype == np.float64
    assert read(tmp_path / "a.npy")[""].bits == 53
    npz = read(tmp_path / "a.npz")
    np.testing.assert_array_equal(npz["one"].array, numbers)
    assert (npz["one"].bits, npz["two"].bits) == (24, 0)
    image = read(tmp_path / "a.nii.gz")[""]
    np.testing.assert_array_equal(image.array, numbers.reshape(1, 2, 3))
    np.testing.assert_array_equal(image.affine, np.eye(4))
    saved = read(tmp_path / "a.pt")
    np.testing.assert_array_equal(saved["net/w"].array, numbers)
    np.testing.assert_array_equal(saved["half/0"].array, half.float().numpy())
    assert (saved["half/0"].bits, saved["n"].array.tolist()) == (8, [3])
    table = read(tmp_path / "a.csv")
    np.testing.assert_array_equal(table["x"].array, [1.5, np.nan])
    assert list(table) == ["x", "y"]
    found = read(tmp_path / "a.json")
    assert {name: value.array.tolist() for name, value in found.items()} == {
        "loss": [0.25],
        "list": [1, 2, 3],
    }


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.nii.gz", "a.pt", "a.json", "a.bin"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match=name):
        read(tmp_path / name)


def test_a_command_is_a_python_program(tmp_path: Path) -> None:
    script = tmp_path / "prog.py"
    script.touch()
    assert parse_command(["python3.11", str(script), "a"]) == [str(script), "a"]
    assert parse_command([str(script)]) == [str(script)]
    assert parse_command(["python", "-m", "some.module", "a"]) == ["-m", "some.module", "a"]
    for words, why in (
        ([], "no program"),
        (["python", "-u", str(script)], "no other option"),
        (["absent.py"], "no such script"),
        (["/bin/ls"], "only Python"),
        (["-m"], "needs the name"),
    ):
        with pytest.raises(UserError, match=why):
            parse_command(words)


def runs_of(tmp_path: Path, arrays: dict[str, list[np.ndarray]]) -> list[Path]:
    """Folders of two plain runs, which have the first array, and of one for each other array."""
    count = len(next(iter(arrays.values()))) - 1
    folders = [tmp_path / n for n in ("plain-1", "plain-2", *(f"run-{k}" for k in range(count)))]
    for k, folder in enumerate(folders):
        (folder / "outputs").mkdir(parents=True)
        for name, values in arrays.items():
            np.save(folder / "outputs" / name, values[max(0, k - 1)])
    return folders


def test_bits_and_spread_are_those_of_known_errors(tmp_path: Path) -> None:
    ones = np.ones(100, np.float64)
    off = [ones, *(ones + sign * 2.0**-30 for sign in (1, -1, 1, -1))]  # Z = ±2⁻³⁰ of the mean 1
    labels = [np.arange(100), *(np.arange(100) + (np.arange(100) < k) for k in (0, 10, 10, 20))]
    exact = [np.arange(4, dtype=np.float32)] * 5
    ragged = [np.ones(3), np.ones(3), np.ones(4), np.ones(3), np.ones(3)]
    folders = runs_of(tmp_path, {"off": off, "labels": labels, "exact": exact, "ragged": ragged})
    rows = {Path(row["file"]).stem: row for row in compare(folders, ["*"])}
    assert (rows["off"]["bits"], rows["off"]["of"], rows["off"]["differing"]) == (30, 53, 1)
    assert rows["off"]["spread"] == pytest.approx(2.0**-30 * np.sqrt(4 / 3), rel=1e-12)
    assert rows["labels"]["differing"] == pytest.approx(0.2, abs=1e-15)
    assert np.isnan(rows["labels"]["bits"])
    assert (rows["exact"]["bits"], rows["exact"]["differing"]) == (24, 0)
    assert rows["ragged"]["differing"] == 1 and np.isnan(rows["ragged"]["bits"])
    assert all(row["plain_repeats"] for row in rows.values())
    json.dumps(without_nan(list(rows.values())), allow_nan=False)


def test_a_program_that_does_not_repeat_itself_is_seen(tmp_path: Path) -> None:
    folders = runs_of(tmp_path, {"x": [np.ones(3, np.float32)] * 3})
    np.save(folders[1] / "outputs/x.npy", np.zeros(3, np.float32))
    assert [row["plain_repeats"] for row in compare(folders, ["*"])] == [False]


def test_only_what_a_pattern_names_is_compared(tmp_path: Path) -> None:
    folders = runs_of(tmp_path, {"x": [np.ones(3, np.float32)] * 3})
    (folders[0] / "outputs" / "figure.png").touch()
    assert [row["file"] for row in compare(folders, ["*.npy"])] == ["x.npy"]


def test_one_run_has_a_row_for_each_module() -> None:
    torch.manual_seed(1)
    network = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU())
    inputs, call = torch.randn(16, 64), torch.nn.Module.__call__
    watched = OneRun("random", 10)
    with random_rounding(mode="nearest"), torch.no_grad():
        watched.watch(lambda: network(inputs))
    assert torch.nn.Module.__call__ is call
    tables = watched.tables()
    rows = {row["stage"]: row for row in tables["one_run"]}
    assert list(rows) == ["Sequential.0", "Sequential.1", "Sequential"]
    assert [row["stage"] for row in tables["counters"]] == ["Sequential.0"]
    samples = []
    for seed in range(10):
        with random_rounding(mode="random", seed=seed), torch.no_grad():
            samples.append(network[0](inputs).numpy())
    found = significant_bits(np.stack(samples), None).mean()
    assert abs(rows["Sequential.0"]["bits"] - found) < 1
    json.dumps(tables, allow_nan=False)


@pytest.mark.slow
def test_one_run_of_a_program(tmp_path: Path) -> None:
    (tmp_path / "prog.py").write_text(
        "import numpy, torch; torch.manual_seed(1)\n"
        "numpy.save('x.npy', torch.nn.Linear(8, 4)(torch.rand(2, 8)).detach().numpy())"
    )
    options = ("-n", "2", "--compare", "x.npy", "--output", "res", "--one-run")
    done = morphbits_run(*options, "--", "prog.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "of 24  Linear, 8 numbers" in done.stdout
    (row,) = read_table(tmp_path / "res" / "counters.csv")
    assert (row["stage"], row["sums"]) == ("Linear", 8)
    of_two = read_table(tmp_path / "res" / "one_run.csv")[0]["bits"]
    done = morphbits_run("-n", "9", *options[2:], "--", "prog.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (
        read_table(tmp_path / "res" / "one_run.csv")[0]["bits"] < of_two
    )  # more runs, fewer bits
    done = morphbits_run(*options, "--mode", "upward", "--", "prog.py", cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_pattern_of_all_folders_leaves_the_results_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "prog.py").write_text(
        "import numpy, torch; numpy.save('x.npy', torch.ones(3).div(3).numpy())"
    )
    words = ("--compare", "**/*.npy", "--output", "res", "--", "prog.py")
    for runs in ("1", "2"):
        done = morphbits_run("-n", runs, *words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    found = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.npy"))
    names = ("plain-1", "plain-2", "run-01", "run-02")
    assert found == [Path("res", name, "outputs", "x.npy") for name in names]


def morphbits_run(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command("run"), *words], cwd=cwd, capture_output=True, text=True, timeout=600
    )


@pytest.mark.slow
def test_a_run_has_the_bytes_of_its_seed_in_every_thread(tmp_path: Path) -> None:
    (tmp_path / "prog.py").write_text(SCRIPT + "open(sys.argv[1] + '/figure.png', 'w')\n")
    options = ("-n", "2", "--seed", "7", "--compare", "*.npy", "--jobs", "2", "--output", "res")
    words = (*options, "--", "python", "prog.py", "{out}")
    done = morphbits_run(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for run in (1, 2):
        outputs = tmp_path / f"res/run-{run:02d}/outputs"
        with random_rounding(seed=7 + run - 1):
            x = torch.linspace(1, 2, 64)
            main = x.sin()
        with random_rounding(seed=7 + run - 1 + 2**32):  # of the first thread
            thread = x.exp()
        np.testing.assert_array_equal(np.load(outputs / "main.npy"), main.numpy())
        np.testing.assert_array_equal(np.load(outputs / "thread.npy"), thread.numpy())
    summary = json.loads((tmp_path / "res/summary.json").read_text())
    assert {name: summary["operators"][name] for name in ("sin", "exp")} == {
        "sin": 128,
        "exp": 128,
    }
    before = (tmp_path / "res/run-01/record.json").stat().st_mtime_ns
    again = morphbits_run(*words, cwd=tmp_path)
    assert again.returncode == 0 and "4 of 4 runs are there" in again.stdout
    assert (tmp_path / "res/run-01/record.json").stat().st_mtime_ns == before
    other = morphbits_run(*words[:2], "--mode", "nearness", *words[2:], cwd=tmp_path)
    assert other.returncode == 2 and "differ in options.mode" in other.stderr


@pytest.mark.slow
def test_only_a_marked_region_is_perturbed_and_a_killed_command_goes_on(tmp_path: Path) -> None:
    (tmp_path / "prog.py").write_text(
        "import numpy, sys, torch\n"
        "from morphbits import stages\n"
        "x = torch.linspace(1, 2, 64)\n"
        "numpy.save(sys.argv[1] + '/inside.npy', stages.run('part', x.sin).numpy())\n"
        "numpy.save(sys.argv[1] + '/outside.npy', x.exp().numpy())\n"
    )
    options = ("-n", "2", "--perturb", "only:part", "--compare", "*.npy", "--output", "res")
    words = (*options, "--", "prog.py", "{out}")
    done = morphbits_run(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "res/summary.json").read_text())
    differing = {row["file"]: row["differing"] for row in summary["arrays"]}
    assert differing["inside.npy"] > 0 and differing["outside.npy"] == 0
    assert set(summary["operators"]) == {"sin"}
    # as a kill in the last run leaves it
    (tmp_path / "res/run-02").rename(tmp_path / "res/.partial-killed")
    before = (tmp_path / "res/run-01/record.json").stat().st_mtime_ns
    again = morphbits_run(*words, cwd=tmp_path)
    assert again.returncode == 0 and "3 of 4 runs are there" in again.stdout
    assert (tmp_path / "res/run-01/record.json").stat().st_mtime_ns == before
    assert json.loads((tmp_path / "res/summary.json").read_text())["arrays"] == summary["arrays"]
    assert not (tmp_path / "res/.partial-killed").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("raise SystemExit('no weights')", "no weights"),
        ("import numpy; numpy.save('x.npy', 1)", "run-01: nothing was perturbed"),
        ("import torch; torch.linalg.eig(torch.eye(3))", "--allow"),
        ("pass", "wrote no file x.npy"),
        ("import os; os._exit(0)", "plain-1: the program ended Python by os._exit"),
    ],
)
def test_a_run_that_fails_says_why(tmp_path: Path, script: str, said: str) -> None:
    (tmp_path / "prog.py").write_text(script)
    if "eig" in script:
        script += "; import numpy; numpy.save('x.npy', 1)"
        (tmp_path / "prog.py").write_text(script)
    options = ("-n", "1", "--compare", "x.npy", "--output", "res")
    done = morphbits_run(*options, "--", sys.executable, "prog.py", cwd=tmp_path)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr
    if "save" not in script:
        return
    (tmp_path / "x.npy").write_text("mine")
    done = morphbits_run(*options, "--", sys.executable, "prog.py", cwd=tmp_path)
    assert "x.npy: exists already" in done.stderr
    assert (tmp_path / "x.npy").read_text() == "mine"


def test_runs_are_of_the_files_that_the_command_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pkg").mkdir()
    for name in ("pkg/__main__.py", "prog.py", "scan.npy"):
        Path(name).write_text("1")
    identities = []
    for words in (["prog.py", "scan.npy", "7"], ["-m", "pkg", "scan.npy"]):
        program = Program(words, ["*.npy"], ProgramConfig(), [])
        identities.append(list(program.identity()["files"]))
        before = program.identity()
        Path("scan.npy").write_text(words[0])
        assert program.identity() != before
    assert identities == [["prog.py", "scan.npy"], ["pkg/__main__.py", "scan.npy"]]


def test_kernels_are_compiled_before_threads_are_perturbed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The compiler's threads would wait for the kernels that they compile."""
    start, seen = threading.Thread.start, []
    monkeypatch.setattr(threading.Thread, "start", start)
    monkeypatch.setattr(perturbed, "build", lambda: seen.append(threading.Thread.start is start))
    perturbed.Perturbation({"seed": 1, "mode": "random"}).run(lambda: None)
    assert seen == [True]
