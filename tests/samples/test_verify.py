"""`make verify`: what it sees, and that it sees nothing where nothing is wrong."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from support.toy_experiment import Toy

from morphbits import bids, cli, images, provenance
from morphbits.errors import UserError
from morphbits.samples.verify import Finding, verify


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, toy_files: Path) -> Toy:
    """A finished native experiment: one subject, two perturbed samples, four references."""
    from morphbits.config import ExecutionConfig, ExperimentConfig

    toy = Toy(
        ExperimentConfig(
            engine="native",
            dataset=str(toy_files / "data"),
            model=toy_files / "model.h5",
            subjects=1,
            runs=2,
        ),
        ExecutionConfig(
            experiment="toy", results=tmp_path_factory.mktemp("made"), jobs=1, threads=1
        ),
    )
    done = toy.run()
    assert done.returncode == 0, done.stderr
    return toy


@pytest.fixture
def copy(made: Toy, tmp_path: Path) -> Toy:
    """A copy of it that a test may damage."""
    shutil.copytree(made.execution.results, tmp_path / "results")
    return made.but(results=tmp_path / "results")


def wrong(toy: Toy, again: int = 0, seed: int = 1) -> list[tuple[str, str]]:
    findings = verify(toy.execution.results, "toy", again, seed)
    return [(f.sample, f.check) for f in findings if f.verdict == "wrong"]


def unit(toy: Toy) -> Path:
    return toy.folder / "sample-01" / "sub-001"


def edit(toy: Toy, old: str, new: str) -> None:
    path = bids.sample_json(unit(toy))
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_nothing_is_wrong_with_what_was_just_made(made: Toy) -> None:
    words = [*cli.command("verify"), "--experiment=toy", "--again=2"]
    words += [f"--results={made.execution.results}"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["moved", "6", "0", "0"] in rows and ["made", "again", "2", "0", "0"] in rows
    assert "6 samples, none wrong" in done.stdout


def test_a_sample_tells_what_it_was_made_with(made: Toy) -> None:
    record = json.loads(bids.sample_json(unit(made)).read_text())
    facts, build = record["provenance"], record["provenance"]["kernel_build"]
    assert build["instructions"] in ("portable", "avx2", "avx512", "avx512_ifma")
    assert build["sha256"].startswith("sha256:") and build["file"].endswith(".so")
    assert facts["container"] is None and facts["cpu"]["name"]
    assert facts["peak_memory_bytes"] > 2**20 and 0 < facts["seconds"] < facts["seconds_total"]
    assert set(facts["code"]) == {"revision", "dirty"}
    plain = json.loads((made.folder / "sample-plain/sub-001/sample.json").read_text())
    assert plain["provenance"]["kernel_build"] is None


def test_a_flipped_byte_is_seen(copy: Toy) -> None:
    (moved,) = unit(copy).rglob("*_T1w.nii.gz")
    content = bytearray(gzip.decompress(moved.read_bytes()))
    content[-5] ^= 1  # of a voxel, in a file that is whole otherwise
    moved.write_bytes(gzip.compress(bytes(content), mtime=0))
    assert wrong(copy) == [("sample-01/sub-001", "moved")]


def test_a_flipped_byte_of_the_compressed_file_is_seen(copy: Toy) -> None:
    (warp,) = unit(copy).rglob("*_xfm.nii.gz")
    content = bytearray(warp.read_bytes())
    content[len(content) // 2] ^= 16
    warp.write_bytes(content)
    assert wrong(copy) == [("sample-01/sub-001", "warp")]


def test_a_truncated_and_a_missing_file_are_seen(copy: Toy) -> None:
    (moved,) = unit(copy).rglob("*_T1w.nii.gz")
    (warp,) = unit(copy).rglob("*_xfm.nii.gz")
    moved.write_bytes(moved.read_bytes()[:-100])
    warp.unlink()
    assert wrong(copy) == [("sample-01/sub-001", "moved"), ("sample-01/sub-001", "warp")]


def test_an_edited_record_is_seen(copy: Toy) -> None:
    edit(copy, '"mode": "random"', '"mode": "nearness"')
    assert wrong(copy) == [("sample-01/sub-001", "record")]
    bids.sample_json(unit(copy)).write_text("{")
    assert wrong(copy) == [("sample-01/sub-001", "record")]


def test_what_was_changed_with_its_checksum_is_seen_when_made_again(copy: Toy) -> None:
    path = bids.sample_json(unit(copy))
    record = json.loads(path.read_text())
    record["configuration"]["seed"] += 1
    record["configuration"]["hash"] = provenance.configuration_hash(record["configuration"])
    path.write_text(json.dumps(record))

    (moved,) = copy.folder.glob("sample-02/sub-001/anat/*_T1w.nii.gz")
    image = images.load(moved)
    before = provenance.data_sha256(image.data)
    image.data[3, 3, 3] = np.nextafter(image.data[3, 3, 3], np.float32(1))
    images.save(moved, image.data, image.affine)
    path = copy.folder / "sample-02/sub-001/sample.json"
    path.write_text(path.read_text().replace(before, provenance.data_sha256(image.data)))

    assert wrong(copy) == []
    assert sorted(wrong(copy, again=6)) == [
        ("sample-01/sub-001", "made again"),
        ("sample-02/sub-001", "made again"),
    ]


@pytest.mark.parametrize(
    ("key", "other"),
    [("model", "sha256:other"), ("model_orientation", "LIA"), ("nan", 0.0), ("crop", True)],
)
def test_another_experiments_sample_is_seen(copy: Toy, key: str, other: object) -> None:
    path = copy.folder / "experiment.json"
    content = json.loads(path.read_text())
    content["configuration"][key] = other
    path.write_text(json.dumps(content))
    assert {check for _, check in wrong(copy)} == {"configuration"}


def test_a_changed_model_is_seen_and_an_absent_one_is_unknown(copy: Toy, tmp_path: Path) -> None:
    model = tmp_path / "model.h5"
    edit(copy, str(copy.settings.model), str(model))
    findings = verify(copy.execution.results, "toy", 0, 1)
    verdicts = [f for f in findings if f.check == "inputs" and f.verdict != "right"]
    assert verdicts == [Finding("sample-01/sub-001", "inputs", "unknown", f"{model} is not there")]
    model.write_bytes(copy.settings.model.read_bytes() + b"\0")
    assert wrong(copy) == [("sample-01/sub-001", "inputs")]


def test_the_seed_chooses_which_are_made_again(copy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    from morphbits.samples import verify as module

    def right(folders: list[Path]) -> list[Finding]:
        return [Finding(str(folder), "made again", "right") for folder in folders]

    monkeypatch.setattr(module, "_make_again", right)

    def chosen(seed: int) -> list[str]:
        findings = verify(copy.execution.results, "toy", 2, seed)
        return [f.sample for f in findings if f.check == "made again"]

    assert chosen(1) == chosen(1) and len(chosen(1)) == 2
    assert len({tuple(chosen(seed)) for seed in range(8)}) > 1


def test_an_experiment_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no samples; 'make inference EXPERIMENT=gone'"):
        verify(tmp_path, "gone", 2, 1)
