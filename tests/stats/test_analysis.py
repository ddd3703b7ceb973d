"""Tables and maps of a small experiment against numbers computed here, directly."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from support.small_experiment import make_dataset, make_experiment

from morphbits import bids, images
from morphbits.bids import Dataset, Subject
from morphbits.errors import UserError
from morphbits.stats.analysis import analyse, jobs_that_fit, read_table, tissue_masks, write_table
from morphbits.stats.significance import significant_bits

NAME = "small"
SUBJECT = Subject("001")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Dataset]:
    """Two subjects, four samples; sub-002 lacks its last two samples and its IEEE reference."""
    root = tmp_path_factory.mktemp("analysis")
    dataset = make_dataset(root / "data", 2)
    skip = (("03", "002"), ("04", "002"), ("ieee", "002"))
    make_experiment(root / "results", NAME, dataset, 4, skip=skip)
    analyse(root / "results", NAME, dataset)
    return root / "results", dataset


def table(results: Path, name: str) -> list[dict]:
    return read_table(bids.experiment_file(results, NAME, name))


def test_columns_are_those_promised(made: tuple[Path, Dataset]) -> None:
    path = bids.experiment_file(made[0], NAME, "significance.csv")
    with path.open() as file:
        header = next(csv.reader(file))
    keys = ["subject", "tissue", "quantity", "method", "reference", "n", "mean"]
    quantiles = ["q05", "q25", "median", "q75", "q95"]
    assert header[:14] == [*keys, *quantiles, "voxels", "background_excluded"]


def test_rows_equal_the_bits_of_the_samples(made: tuple[Path, Dataset]) -> None:
    results, dataset = made
    units = [bids.sample_folder(results, NAME, f"{k:02d}", SUBJECT) for k in range(1, 5)]
    samples_SXYZ = np.stack(
        [images.load(bids.moved_path(unit, SUBJECT, dataset.space)).data for unit in units]
    )
    bits_XYZ = significant_bits(samples_SXYZ, None)
    rows = {
        row["tissue"]: row
        for row in table(results, "significance.csv")
        if (row["subject"], row["quantity"]) == ("sub-001", "image")
        and (row["method"], row["reference"]) == ("general", "mean")
    }
    labels_XYZ = images.load_labels(dataset.fixed_labels()).data  # type: ignore[arg-type]
    assert rows["all"]["mean"] == pytest.approx(np.nanmean(bits_XYZ, dtype=np.float64))
    assert rows["GM"]["mean"] == pytest.approx(bits_XYZ[labels_XYZ == 2].mean(dtype=np.float64))
    assert rows["all"]["background_excluded"] == np.count_nonzero(labels_XYZ == 0)
    assert rows["all"]["voxels"] + rows["all"]["background_excluded"] == labels_XYZ.size
    assert rows["all"]["n"] == 4
    # noise grows outwards in the small experiment
    assert rows["WM"]["mean"] > rows["GM"]["mean"] > rows["CSF"]["mean"]

    saved = nibabel.load(bids.map_path(results, NAME, SUBJECT, dataset.space, "image"))
    np.testing.assert_array_equal(saved.get_fdata(), bits_XYZ)
    np.testing.assert_array_equal(saved.affine, images.load(dataset.fixed()).affine)


def test_warp_is_the_mean_of_its_components(made: tuple[Path, Dataset]) -> None:
    for method in ("general", "cnh"):
        means = {
            row["quantity"]: row["mean"]
            for row in table(made[0], "significance.csv")
            if (row["subject"], row["tissue"]) == ("sub-001", "all")
            and (row["method"], row["reference"]) == (method, "mean")
        }
        components = [means[f"warp_{axis}"] for axis in "xyz"]
        # bits are float32: a mean of three is rounded at 2^-24 of at most 24
        assert means["warp"] == pytest.approx(np.mean(components), abs=2e-6)


def test_an_unfinished_subject_has_its_own_n_and_no_ieee_reference(
    made: tuple[Path, Dataset],
) -> None:
    rows = [row for row in table(made[0], "significance.csv") if row["subject"] == "sub-002"]
    assert {row["n"] for row in rows} == {2}
    assert {row["reference"] for row in rows} == {"mean"}


def test_repeatability_counts_what_differs(made: tuple[Path, Dataset]) -> None:
    rows = {
        (row["comparison"], row["quantity"]): row
        for row in table(made[0], "repeatability.csv")
        if row["subject"] == "sub-001"
    }
    assert rows["again", "image"]["differing"] == rows["threads", "warp"]["differing"] == 0
    plain = rows["plain", "warp"]
    assert plain["against"] == "ieee"
    assert plain["differing"] == plain["elements"]
    assert plain["max_ulps"] == plain["median_ulps"] == 1


def test_variability_in_mm_is_voxels_times_their_size(made: tuple[Path, Dataset]) -> None:
    rows = {
        row["unit"]: row
        for row in table(made[0], "variability.csv")
        if (row["subject"], row["tissue"]) == ("sub-001", "brain")
    }
    assert rows["mm"]["mean"] == pytest.approx(2 * rows["voxels"]["mean"])  # 2 mm voxels
    assert 0 < rows["intensity"]["mean"] <= rows["intensity"]["q95"] <= rows["intensity"]["max"]


def test_accuracy_of_a_known_warp(made: tuple[Path, Dataset]) -> None:
    """Moving and fixed are the same here and the true warp is zero, so before is perfect."""
    results, dataset = made
    rows = {
        (row["measure"], row["tissue"]): row
        for row in table(results, "accuracy.csv")
        if row["subject"] == "sub-001"
    }
    assert rows["dice", "WM"]["before"] == 1 > rows["dice", "WM"]["after"] > 0.5
    for measure in ("surface", "surface_p95"):  # mm, voxels of 2
        assert rows[measure, "WM"]["before"] == 0 < rows[measure, "WM"]["after"] < 4
    unit = bids.sample_folder(results, NAME, "ieee", SUBJECT)
    warp_XYZV = images.load_warp(bids.warp_path(unit, SUBJECT, dataset.space)).data
    brain = images.load_labels(dataset.fixed_labels()).data > 0  # type: ignore[arg-type]
    error_mm = 2 * np.linalg.norm(warp_XYZV[brain].astype(np.float64), axis=-1).mean()
    assert rows["warp_error", "brain"]["before"] == 0
    assert rows["warp_error", "brain"]["after"] == pytest.approx(error_mm)
    assert rows["folding", "all"]["before"] == rows["folding", "all"]["after"] == 0
    assert {row["subject"] for row in table(results, "accuracy.csv")} == {"sub-001"}


def test_parallel_equals_serial(made: tuple[Path, Dataset], tmp_path: Path) -> None:
    results, dataset = made
    shutil.copytree(results, tmp_path / "again")
    analyse(tmp_path / "again", NAME, dataset, jobs=2)
    for name in ("significance.csv", "variability.csv", "repeatability.csv", "accuracy.csv"):
        one, other = (bids.experiment_file(r, NAME, name) for r in (results, tmp_path / "again"))
        assert one.read_bytes() == other.read_bytes()


def test_jobs_are_no_more_than_memory_holds() -> None:
    assert jobs_that_fit(4, 1000) == 4
    assert jobs_that_fit(4, 10**15) == 1


def test_one_sample_is_refused_in_a_sentence(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", 1)
    make_experiment(tmp_path / "results", NAME, dataset, 1)
    with pytest.raises(UserError, match="no subject with 2 finished samples"):
        analyse(tmp_path / "results", NAME, dataset)


def test_without_labels_the_brain_is_where_the_fixed_image_is(made: tuple[Path, Dataset]) -> None:
    _, dataset = made
    bare = Dataset(dataset.root, "bare", dataset.space, dataset.fixed())
    masks = tissue_masks(bare, images.load(dataset.fixed()))
    assert list(masks) == ["all", "brain"]
    labels_XYZ = images.load_labels(dataset.fixed_labels()).data  # type: ignore[arg-type]
    np.testing.assert_array_equal(masks["brain"], labels_XYZ > 0)


def test_images_are_read_as_the_experiment_read_them(tmp_path: Path) -> None:
    """Without codes and with NaN for 0, and the options that say what they are: the same rows."""
    dataset = make_dataset(tmp_path / "data", 1)
    options = {"orientation": "RAS", "nan": 0.0}
    make_experiment(tmp_path / "results", "x", dataset, 2, settings=options)
    expected = analyse(tmp_path / "results", "x", dataset)
    for path in (dataset.fixed(), dataset.moving(dataset.subjects()[0])):
        data = images.load(path).data
        bare = nibabel.Nifti1Image(np.where(data > 0, data, np.nan), None)
        bare.header.set_zooms((2, 2, 2))
        nibabel.save(bare, path)
    found = analyse(tmp_path / "results", "x", dataset)
    assert found.accuracy == expected.accuracy and found.significance == expected.significance


def test_tables_come_back_as_written(tmp_path: Path) -> None:
    rows = [{"subject": "sub-001", "n": 3, "mean": 0.1 + 0.2, "q05": float("inf")}]
    write_table(tmp_path / "t.csv", rows)
    assert read_table(tmp_path / "t.csv") == rows
    assert read_table(tmp_path / "none.csv") == []
    text = (tmp_path / "t.csv").read_text()
    (tmp_path / "t.csv").write_text(text.replace("1", "7", 1))
    with pytest.raises(UserError, match=r"t\.csv: was changed or damaged"):
        read_table(tmp_path / "t.csv")
