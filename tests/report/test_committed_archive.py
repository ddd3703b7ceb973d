"""An archive of an earlier version, `tests/shapes/archive`, read by the present code."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from morphbits import bids, images, provenance
from morphbits.bids import Subject
from morphbits.config import ExperimentConfig, from_mapping
from morphbits.report import archive, page
from morphbits.report import experiment as reading
from morphbits.report.experiment import Experiment
from morphbits.stats.analysis import read_table

ARCHIVE = Path(__file__).resolve().parents[1] / "shapes/archive"
UNREADABLE = (
    "the present code cannot read an archive of an earlier version: read both formats, or, where "
    "that is meant, say so in CHANGELOG.md and run tests/shapes/record.py"
)


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """What the report reads of the experiment, its folder laid out again from the archive."""
    results = tmp_path_factory.mktemp("shapes")
    folder = bids.experiment_folder(results, "shapes")
    shutil.copytree(ARCHIVE / "tables", folder)
    shutil.copy(ARCHIVE / "provenance/experiment.json", folder)
    for subject in ARCHIVE.glob("sub-*"):
        shutil.copytree(subject, folder / "maps" / subject.name)
    for record in ARCHIVE.glob("provenance/sample-*/sub-*.json"):
        unit = folder / record.parent.name / record.stem
        unit.mkdir(parents=True)
        shutil.copy(record, bids.sample_json(unit))
    try:
        return reading.read(results, "shapes")
    except Exception as error:
        pytest.fail(f"{UNREADABLE} ({error!r})")


def test_it_is_whole() -> None:
    """Its own list of checksums has every file, and no other."""
    entities = json.loads((ARCHIVE / archive.CRATE).read_text())["@graph"]
    listed = {one["@id"]: one for one in entities if one["@type"] == "File"}
    there = {p.relative_to(ARCHIVE).as_posix(): p for p in ARCHIVE.rglob("*") if p.is_file()}
    assert set(there) == {*listed, archive.CRATE}
    for name, one in listed.items():
        file = there[name].read_bytes()
        assert (one["sha256"], one["contentSize"]) == (
            hashlib.sha256(file).hexdigest(),
            str(len(file)),
        )
    assert sum(path.stat().st_size for path in there.values()) < 400_000


def test_the_report_can_be_written_from_it(content: Experiment) -> None:
    assert content.subjects == ["sub-01", "sub-02"] and content.counts == [4]
    assert content.perturbs and len(content.of_sample("ieee")) == 2
    try:
        text = page.render(content, page.draw(content))
    except Exception as error:
        pytest.fail(f"{UNREADABLE} ({error!r})")
    for quantity in ("image", "warp"):
        assert f"{content.mean_bits(quantity):.2f}" in text
    assert text.count('<article id="sub-') == 2  # whose maps are there


def test_every_table_has_rows_and_the_columns_that_are_read_today(content: Experiment) -> None:
    for name in page.TABLES:
        assert read_table(ARCHIVE / "tables" / name), UNREADABLE
    assert {"npvr", "navr"} <= set(content.ratios[0])


@pytest.mark.parametrize("quantity", ["image", "warp"])
def test_maps_and_tables_say_the_same(content: Experiment, quantity: str) -> None:
    """The mean of a map's voxels is the table's: float32 maps of fewer than 2^15 voxels, whose
    mean in float64 is within a float32 rounding of each value, 24 · 2^-24."""
    for name, row in content.bits(quantity).items():
        bits_XYZ = images.load(content.map_path(name, quantity), nan=-1).data
        known = bits_XYZ[bits_XYZ >= 0]
        assert known.size == row["voxels"]
        assert known.mean(dtype=np.float64) == pytest.approx(row["mean"], abs=24 * 2**-24)


def test_configurations_are_understood(content: Experiment) -> None:
    """Hashes are what today's code makes of the same keys, and options are still options."""
    for record in content.records:
        hashed = {k: v for k, v in record.configuration.items() if k != "hash"}
        assert provenance.configuration_hash(hashed) == record.configuration["hash"], UNREADABLE
    settings = from_mapping(ExperimentConfig, content.settings, "experiment.json")
    assert (settings.mode, settings.runs, settings.subjects) == ("random", 4, 2)
    assert Subject.parse("sub-01_T1w.nii.gz") in [one.subject for one in content.perturbed]
