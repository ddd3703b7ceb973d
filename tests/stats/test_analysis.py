"""Tables and maps of a small experiment against numbers computed here, directly."""

from __future__ import annotations

import csv
import math
import shutil
import statistics
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import pytest
from support.small_experiment import make_dataset, make_experiment, write_unit

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
    names = ("significance", "variability", "repeatability", "accuracy", "measures", "ratios")
    for name in (f"{name}.csv" for name in names):
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


def test_a_population_with_a_known_answer(tmp_path: Path) -> None:
    """Warps that enlarge by g about a point: the Jacobian determinant is (1 + g)³ everywhere, and
    displacements are g times the distance to the point. g is a person's plus a sample's."""
    dataset = make_dataset(tmp_path / "data", 3)
    growth = {"001": [0.02, 0.03, 0.025], "002": [0.10, 0.09, 0.11], "003": [0.05, 0.06, 0.055]}
    fixed_XYZ = images.load(dataset.fixed()).data
    middle = np.array([11.5, 13.5, 9.5])
    distance_XYZV = np.moveaxis(np.indices(fixed_XYZ.shape), 0, -1) - middle
    for label, values in growth.items():
        for k, g in enumerate(values, start=1):
            warp_XYZV = (g * distance_XYZV).astype(np.float32)
            write_unit(tmp_path, NAME, f"{k:02d}", Subject(label), dataset, fixed_XYZ, warp_XYZV)
    analyse(tmp_path, NAME, dataset)
    rows = {(row["measure"], row["tissue"]): row for row in table(tmp_path, "ratios.csv")}
    labels_XYZ = images.load_labels(dataset.fixed_labels()).data  # type: ignore[arg-type]
    away_mm = 2 * np.linalg.norm(distance_XYZV[labels_XYZ == 2], axis=-1).mean()
    known = {
        "jacobian": [[(1 + g) ** 3 for g in values] for values in growth.values()],
        "displacement": [[g * away_mm for g in values] for values in growth.values()],
    }
    for measure, values in known.items():
        row = rows[measure, "GM"]
        numerical = statistics.fmean(map(statistics.variance, values))
        population = statistics.fmean(map(statistics.variance, zip(*values, strict=True)))
        # differences of 0.01 in float32 warps of about 1 voxel: 2^-24 / 0.01
        same = partial(pytest.approx, rel=2e-5)
        assert (row["subjects"], row["n"]) == (3, 3)
        assert row["sigma_num"] == same(math.sqrt(numerical))
        assert row["sigma_pop"] == same(math.sqrt(population))
        assert row["npvr"] == same(math.sqrt(numerical / population))
        assert row["navr"] == same(math.sqrt(numerical / (population - numerical)))
        assert row["drowned"] == same(2 * math.sqrt(numerical / 3))
    # each voxel of the fixed grid has the moving label that it is led to
    volumes = {
        row["subject"]: row["value"]
        for row in table(tmp_path, "measures.csv")
        if (row["measure"], row["tissue"], row["sample"]) == ("volume", "GM", "03")
    }
    for label, values in growth.items():
        led_XYZV = np.rint(middle + (1 + values[2]) * distance_XYZV).astype(int)
        inside_XYZ = ((led_XYZV >= 0) & (led_XYZV < labels_XYZ.shape)).all(axis=-1)
        moved = labels_XYZ[tuple(led_XYZV[inside_XYZ].T)]
        assert volumes[f"sub-{label}"] == 8 * np.count_nonzero(moved == 2)
    assert len(set(volumes.values())) > 1


def test_measures_of_samples_that_all_subjects_have(made: tuple[Path, Dataset]) -> None:
    """sub-002 has two samples of four, and no unperturbed one to be compared with."""
    rows = {(row["measure"], row["tissue"]): row for row in table(made[0], "ratios.csv")}
    assert (rows["volume", "GM"]["subjects"], rows["volume", "GM"]["n"]) == (2, 2)
    assert (rows["fd_power", "brain"]["subjects"], rows["fd_power", "brain"]["n"]) == (1, 4)
    assert rows["fd_power", "brain"]["sigma_num"] > 0
    assert np.isnan(rows["fd_power", "brain"]["npvr"])
    samples = {row["sample"] for row in table(made[0], "measures.csv")}
    assert samples == {"01", "02", "03", "04", "ieee"}
