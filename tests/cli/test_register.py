"""morphbits register: what it writes, and one sentence for each thing a user gets wrong."""

from __future__ import annotations

import gzip
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from morphbits import cli, images
from morphbits.models.weights import Architecture, init_weights, save_h5

PYTHON = Path(__file__).parents[2] / "python"
AFFINE = np.array([[-2.0, 0, 0, 30], [0, 0, 2, -20], [0, -2, 0, 25], [0, 0, 0, 1]])

Register = Callable[..., int]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with moving.nii.gz, fixed.nii.gz (20 × 22 × 20) and model.h5."""
    random = np.random.default_rng(0)
    for name in ("moving", "fixed"):
        images.save(tmp_path / f"{name}.nii.gz", random.random((20, 22, 20), "f4"), AFFINE)
    architecture = Architecture((4, 4, 4, 4), (4,) * 6, 5)
    save_h5(tmp_path / "model.h5", architecture, init_weights(architecture, 1))
    return tmp_path


def arguments(folder: Path, **changes: str | Path) -> list[str]:
    options = {
        "moving": folder / "moving.nii.gz",
        "fixed": folder / "fixed.nii.gz",
        "model": folder / "model.h5",
        "moved": folder / "out/moved.nii.gz",
        "warp": folder / "out/warp.nii.gz",
    } | changes
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


@pytest.fixture
def register(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Register:
    """Runs the script in this process; returns its exit status."""

    def run(**changes: str | Path) -> int:
        monkeypatch.setattr(sys, "argv", ["morphbits", "register", *arguments(folder, **changes)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0)

    return run


def test_it_writes_moved_warp_and_record_on_the_fixed_grid(
    folder: Path, register: Register, capsys: pytest.CaptureFixture[str]
) -> None:
    assert register() == 0
    said = capsys.readouterr().out
    assert "order of operations: torch's own" in said and "nothing perturbed" in said
    steps = ("reading ", "preparing", "  moving: ", "  axes: ", "registering 32,768", "engine")
    places = [said.index(step) for step in steps]
    assert places == sorted(places) and "thread(s): about 1 s" in said
    assert sorted(p.name for p in (folder / "out").iterdir()) == [
        "moved.nii.gz",
        "sample.json",
        "warp.nii.gz",
    ]
    moved, warp = (nibabel.load(folder / f"out/{name}.nii.gz") for name in ("moved", "warp"))
    assert moved.shape == (20, 22, 20) and warp.shape == (20, 22, 20, 3)
    assert np.array_equal(moved.affine, AFFINE) and np.array_equal(warp.affine, AFFINE)
    record = json.loads((folder / "out/sample.json").read_text())
    assert record["configuration"]["engine"] == "ieee"
    assert record["outputs"]["moved"]["file"] == "moved.nii.gz"
    assert record["outputs"]["warp"]["bytes"] == (folder / "out/warp.nii.gz").stat().st_size


def test_an_image_in_the_same_batch_is_recorded(folder: Path, register: Register) -> None:
    """It can change bytes, so the configuration has its checksum."""
    assert register() == 0
    alone = json.loads((folder / "out/sample.json").read_text())
    assert register(**{"batch-with": folder / "fixed.nii.gz"}) == 0
    record = json.loads((folder / "out/sample.json").read_text())
    configurations = record["configuration"], alone["configuration"]
    assert configurations[0].pop("batch_with") == configurations[1]["fixed"]
    assert configurations[0].pop("hash") != configurations[1].pop("hash")
    assert configurations[0] == configurations[1]
    assert record["provenance"]["files"]["batch_with"] == str(folder / "fixed.nii.gz")


def test_orders_are_recorded_and_followed(
    folder: Path, register: Register, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file is an input: its checksum stands for the processor, on which nothing depends."""
    probe = {"engine": "native", "mode": "nearest", "accumulation": "probe"}
    orders = folder / "out/orders.json.gz"
    assert register(**probe, **{"record-orders": orders}) == 0
    warp = (folder / "out/warp.nii.gz").read_bytes()
    here = json.loads((folder / "out/sample.json").read_text())["configuration"]
    assert register(**probe, orders=orders) == 0
    assert (folder / "out/warp.nii.gz").read_bytes() == warp
    record = json.loads((folder / "out/sample.json").read_text())
    assert set(record["configuration"]) ^ set(here) == {"orders", "cpu", "instructions"}
    assert record["provenance"]["order"].endswith("as recorded there")
    assert record["provenance"]["files"]["orders"] == str(orders)
    capsys.readouterr()
    assert register(orders=orders) == 2
    assert "need --engine native --accumulation probe" in capsys.readouterr().err
    assert register(**probe, orders=folder / "fixed.nii.gz") == 2
    assert "fixed.nii.gz: has no recorded orders" in capsys.readouterr().err


def test_the_same_command_gives_the_same_bytes(folder: Path, register: Register) -> None:
    assert register() == 0
    first = (folder / "out/warp.nii.gz").read_bytes()
    assert register() == 0
    assert (folder / "out/warp.nii.gz").read_bytes() == first


def test_a_second_registration_in_the_folder_gets_a_record_of_its_own(
    folder: Path, register: Register
) -> None:
    assert register() == 0
    assert register(moved=folder / "out/m2.nii.gz", warp=folder / "out/w2.nii.gz") == 0
    assert (folder / "out/sample.json").is_file()
    assert (folder / "out/m2.sample.json").is_file()


def test_a_field_of_view_of_another_kind_and_an_npz_are_taken(
    folder: Path, register: Register
) -> None:
    random = np.random.default_rng(2)
    np.savez(folder / "moving.npz", vol=random.random((18, 25, 30)))
    assert register(moving=folder / "moving.npz", warp=folder / "out/warp.npz") == 0
    assert np.load(folder / "out/warp.npz")["vol"].shape == (20, 22, 20, 3)
    record = json.loads((folder / "out/sample.json").read_text())
    assert record["configuration"]["align"] == "auto"
    assert any("no affine" in step for step in record["provenance"]["steps"])


def test_what_a_file_leaves_open_is_given_by_options_and_recorded(
    folder: Path, register: Register, capsys: pytest.CaptureFixture[str]
) -> None:
    fixed = nibabel.load(folder / "fixed.nii.gz")
    data = fixed.get_fdata(dtype=np.float32)
    data[0] = np.nan
    nibabel.save(nibabel.Nifti1Image(data, None), folder / "fixed.nii.gz")
    for changes, says in (
        ({"nan": "0"}, "left and right would be a guess: give --orientation"),
        ({"orientation": "LAS"}, "440 voxels of 8800 that are not finite"),
    ):
        assert register(**changes) == 2 and says in capsys.readouterr().err
    hashes = set()
    for axes in ("LAS", "RAS"):
        assert register(nan="0", orientation=axes) == 0
        record = json.loads((folder / "out/sample.json").read_text())
        assert record["configuration"]["orientation"] == axes
        assert record["configuration"]["nan"] == 0
        hashes.add(record["configuration"]["hash"])
        steps = [step for step in record["provenance"]["steps"] if "fixed" in step[:20]]
        assert f"mm, {axes} " in steps[0] and f"{axes}, as given" in steps[1]
        assert "set to 0" in steps[2]
    assert len(hashes) == 2


def spoil(folder: Path, how: str) -> dict[str, str | Path]:
    """Spoil one thing; the arguments that then differ."""
    moving = folder / "moving.nii.gz"
    volume = np.random.default_rng(3).random((20, 22, 20), "f4")
    if how == "truncated":
        whole = moving.read_bytes()
        moving.write_bytes(whole[: len(whole) // 2])
    elif how == "cut inside":
        moving.write_bytes(gzip.compress(gzip.decompress(moving.read_bytes())[:5000]))
    elif how == "nan":
        volume[3, 4, 5] = np.nan
        nibabel.save(nibabel.Nifti1Image(volume, AFFINE), moving)
    elif how == "4-D":
        four = np.stack([volume, volume], -1)
        nibabel.save(nibabel.Nifti1Image(four, AFFINE), moving)
    elif how == "constant":
        images.save(moving, np.ones((20, 22, 20), "f4"), AFFINE)
    elif how == "no model":
        (folder / "model.h5").write_text("not a model")
    elif how == "cut model":
        whole = (folder / "model.h5").read_bytes()
        (folder / "model.h5").write_bytes(whole[: len(whole) // 2])
    elif how == "a file for a folder":
        (folder / "out").write_text("in the way")
    return {
        "missing": {"moving": folder / "gone.nii.gz"},
        "missing model": {"model": folder / "gone.h5"},
        "extension": {"moved": folder / "out/moved.jpg"},
        "over an input": {"moved": moving},
        "twice the same": {"warp": folder / "out/moved.nii.gz"},
        "tensorflow and native": {"framework": "tensorflow", "engine": "native"},
        "verrou": {"engine": "verrou"},
    }.get(how, {})


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("missing", "gone.nii.gz"),
        ("truncated", "moving.nii.gz cannot be read"),
        ("cut inside", "moving.nii.gz cannot be read"),
        ("nan", "1 voxels of 8800 that are not finite"),
        ("4-D", "shape 20 × 22 × 20 × 2"),
        ("constant", "is constant"),
        ("no model", "model.h5: not an HDF5 file"),
        ("cut model", "model.h5: damaged"),
        ("missing model", "gone.h5"),
        ("a file for a folder", "cannot be written to"),
        ("extension", "moved.jpg has no extension that is known"),
        ("over an input", "must not replace"),
        ("twice the same", "must not replace"),
        ("tensorflow and native", "native engine perturbs torch only"),
        ("verrou", "scripts/with_verrou.sh"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(
    folder: Path, register: Register, capsys: pytest.CaptureFixture[str], how: str, words: str
) -> None:
    changes = spoil(folder, how)
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert register(**changes) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and words in error and error.count("\n") == 1
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    assert not list(folder.glob("out/*")) and not list(folder.glob("out/.*"))


def test_a_full_disk_keeps_what_was_there(folder: Path, register: Register) -> None:
    assert register() == 0
    before = {path: path.read_bytes() for path in (folder / "out").iterdir()}
    result = subprocess.run(
        [*cli.command("register"), *arguments(folder, engine="ieee", seed="2")],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000)),
    )
    assert result.returncode == 2
    assert "the disk is full" in result.stderr and "Traceback" not in result.stderr
    assert {path: path.read_bytes() for path in (folder / "out").iterdir()} == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_one_sentence(
    folder: Path, register: Register, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "out").mkdir(mode=0o500)
    assert register() == 2
    assert "cannot be written to (Permission denied)" in capsys.readouterr().err


ONE_AFTER_THE_OTHER = """
import json, sys
from morphbits import cli
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["morphbits", "register", *arguments]
    try:
        cli.main()
    except SystemExit as ended:
        assert not ended.code
"""


def test_tensorflow_runs_and_plain_is_another_configuration(folder: Path) -> None:
    given = arguments(folder, framework="tensorflow")
    plain = [*given, "--moved", str(folder / "plain/m.nii"), "--warp", str(folder / "plain/w.nii")]
    result = subprocess.run(
        [sys.executable, "-c", ONE_AFTER_THE_OTHER, json.dumps([given, [*plain, "--plain"]])],
        capture_output=True, text=True, check=False, cwd=PYTHON,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("order of operations: TensorFlow's own") == 2
    warps, hashes = [], []
    for warp in ("out/warp.nii.gz", "plain/w.nii"):
        warps.append(images.load_warp(folder / warp).data)
        record = json.loads((folder / warp).with_name("sample.json").read_text())
        assert "tf-keras" in record["configuration"]["versions"]
        hashes.append(record["configuration"]["hash"])
    assert hashes[0] != hashes[1]
    assert np.abs(warps[0] - warps[1]).max() < 1e-3  # same network, other order of arithmetic
