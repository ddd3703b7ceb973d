"""The stability test: its level, its power, its exit status, and what it writes."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import stats
from support.small_experiment import make_dataset, make_experiment

from morphbits import bids, cli, images
from morphbits.errors import UserError
from morphbits.studies.stability_test import results
from morphbits.studies.stability_test.verdict import (
    CANNOT_TELL,
    DIFFERENT,
    SAME,
    chance,
    compare_file,
    enough,
    judge,
    judge_subject,
)


def subject_of(a: np.ndarray, b: np.ndarray, samples: np.ndarray, name: str = "sub-1"):  # type: ignore[no-untyped-def]
    return judge_subject(name, [compare_file("f", a, b, samples)], len(samples))


def drawn(random: np.random.Generator, n: int, tail: float) -> np.ndarray:
    """n results of 64 numbers, dependent (a common factor and a size of each result)."""
    common = random.standard_normal((n, 1)) + 0.5 * random.standard_normal((n, 64))
    return (1 + 1e-6 * common * np.exp(tail * random.standard_normal((n, 1)))).astype(np.float64)


@pytest.mark.parametrize("tail", [0, 1.0])
def test_results_from_the_samples_distribution_are_beyond_at_most_as_often_as_stated(
    tail: float,
) -> None:
    """200 pairs, also where some results are far noisier than others. The bound holds for the
    probability; the count may exceed it by chance, at 1e-4 here."""
    random = np.random.default_rng(1)
    n, tries = 6, 200
    beyond = 0
    for _ in range(tries):
        x = drawn(random, n + 2, tail)
        beyond += subject_of(x[0], x[1], x[2:]).beyond
    assert beyond <= stats.binom.isf(1e-4, tries, 2 / (n + 2))
    assert beyond > 0  # a test that never alarms would pass too


def test_a_shift_of_some_spreads_is_beyond_and_one_local_fault_too() -> None:
    random = np.random.default_rng(2)
    x = 1 + 1e-5 * random.standard_normal((12, 1000))
    assert not subject_of(x[0], x[1], x[2:]).beyond
    assert subject_of(x[0], x[1] + 5e-5, x[2:]).beyond
    local = x[1].copy()
    local[7] += 1e-3
    assert subject_of(x[0], local, x[2:]).beyond


def test_what_a_and_b_have_in_common_does_not_count() -> None:
    random = np.random.default_rng(3)
    x = 1 + 1e-5 * random.standard_normal((12, 1000))
    assert not subject_of(x[0] + 1, x[1] + 1, x[2:]).beyond


def test_plain_results_lie_closer_than_perturbed_ones() -> None:
    """Of a rounding with fraction f the plain error has mean square 1/12, the perturbed one 1/3
    (see the module): two plain results differ by 1/2 of what two samples do, a plain and a
    perturbed one by √(5/8). The squares are F of 1 and n − 3 = 17 degrees of freedom
    (relative standard deviation 1.57), so a distance over 4000 numbers has a relative standard
    error of 1.57 / (2 √4000) = 1.24 % and a ratio 1.75 %: 7 % is four of them."""
    random = np.random.default_rng(4)
    n, terms, numbers = 20, 12, 4000

    def total(perturbed: bool) -> np.ndarray:
        """Sums of 12 rounding errors, in ulp; each run with fractions of its own, as when runs
        differ in the order of their sums."""
        f = random.random((terms, numbers))
        up = random.random((terms, numbers)) < 0.5 if perturbed else f >= 0.5
        return 8.0 + 2.0**-20 * np.where(up, 1 - f, -f).sum(axis=0)

    samples = np.stack([total(True) for _ in range(n)])
    usual = subject_of(total(True), total(True), samples)
    plain = subject_of(total(False), total(False), samples)
    mixed = subject_of(total(False), total(True), samples)
    assert plain.distance / usual.distance == pytest.approx(1 / 2, rel=0.07)
    assert mixed.distance / usual.distance == pytest.approx(math.sqrt(5 / 8), rel=0.07)
    # F of 1 and n − 3 degrees of freedom has the mean (n − 3) / (n − 5)
    assert usual.distance == pytest.approx(math.sqrt((n - 3) / (n - 5)), rel=0.07)


def test_distances_are_what_a_simple_computation_gives() -> None:
    random = np.random.default_rng(5)
    x = 3 + 1e-3 * random.standard_normal((7, 50_000))  # more than one slab
    file = compare_file("f", x[0], x[1], x[2:])
    of_samples, of_results = file.distances.root_mean_squares()
    for p, (i, j) in enumerate(file.distances.pairs):
        rest = np.delete(x[2:], [i, j], axis=0).std(axis=0, ddof=1)
        z = (x[2 + i] - x[2 + j]) / (math.sqrt(2) * rest)
        assert of_samples[p] == pytest.approx(np.sqrt(np.square(z).mean()), rel=1e-6)
        z = (x[0] - x[1]) / (math.sqrt(2) * rest)
        assert of_results[p] == pytest.approx(np.sqrt(np.square(z).mean()), rel=1e-6)
    assert file.outside == pytest.approx(0.05, abs=0.004)  # 4 standard errors of 50000
    assert file.beyond_bonferroni <= 1


def test_chance_is_binomial_and_enough_samples_are_the_fewest() -> None:
    assert chance(1, 1, 38) == pytest.approx(0.05)
    assert chance(3, 3, 10) == pytest.approx(6**-3)
    assert enough(1, 1, 0.05) == 38
    assert enough(2, 2, 0.05) == 7 and chance(2, 2, 6) > 0.05 >= chance(2, 2, 7)
    assert enough(1, 5, 1e-9) is None


def verdict_of(shifts: list[float], n: int, alpha: float = 0.05, floor: float | None = None):  # type: ignore[no-untyped-def]
    """Of subjects whose B is shifted by so many spreads."""
    random = np.random.default_rng(6)
    subjects = []
    for k, shift in enumerate(shifts):
        x = 1 + 1e-5 * random.standard_normal((n + 2, 500))
        subjects.append(subject_of(x[0], x[1] + shift * 1e-5, x[2:], f"sub-{k}"))
    return judge(subjects, alpha, floor)


def test_the_verdict_and_how_many_samples_would_do() -> None:
    assert verdict_of([0, 0, 0], 10).status == SAME
    found = verdict_of([9, 9, 9], 10)
    assert found.status == DIFFERENT and found.p == pytest.approx(6**-3)
    few = verdict_of([9], 10)
    assert few.status == CANNOT_TELL and few.samples_needed == 38
    assert verdict_of([9], 38).status == DIFFERENT
    one = verdict_of([9, 0, 0], 10)
    assert one.status == CANNOT_TELL and one.samples_needed == enough(1, 3, 0.05)
    assert verdict_of([0, 0, 0], 10, floor=20).status == DIFFERENT
    assert verdict_of([0, 0, 0], 10, floor=10).status == SAME


def test_numbers_that_are_not_finite_or_have_no_spread() -> None:
    samples = np.ones((6, 4), np.float32)
    samples[:, 1] = np.nan
    a = samples[0]
    assert not subject_of(a, a.copy(), samples).beyond
    lost = a.copy()
    lost[0] = np.inf
    assert subject_of(a, lost, samples).beyond
    next_up = np.nextafter(a, np.float32(2))
    found = subject_of(a, next_up, samples)  # one ulp where all samples agree
    assert found.beyond and math.isfinite(found.distance)


def test_labels_are_compared_by_the_share_that_differs() -> None:
    random = np.random.default_rng(7)
    base = random.integers(0, 4, 1000)

    def flipped(share: float) -> np.ndarray:
        return np.where(random.random(1000) < share, base + 1, base)

    samples = np.stack([flipped(0.01) for _ in range(8)])
    assert not subject_of(flipped(0.01), flipped(0.01), samples).beyond
    assert subject_of(flipped(0.01), flipped(0.1), samples).beyond


# ------------------------------------------------------------------- from folders to exit status


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two subjects, ten samples of the reference; `other` has samples of another seed's noise."""
    root = tmp_path_factory.mktemp("stability")
    dataset = make_dataset(root / "data", 2, (10, 12, 8))
    make_experiment(root / "results", "reference", dataset, 12)
    for name in ("11", "12"):  # taken out: never used by the reference
        source = root / "results/reference" / f"sample-{name}"
        shutil.move(source, root / f"results-{name}")
    for path in root.rglob("*_xfm.nii.gz"):  # described as real samples' warps are
        bids.sidecar(path).write_text(json.dumps({"Units": "voxel", "GeneratedBy": [{"a": 1}]}))
    for folder in (*root.glob("results-*"), *root.glob("results/reference/sample-*")):
        (folder / "dataset_description.json").write_text(json.dumps({"Name": "samples"}))
    return root


def run(root: Path, monkeypatch: pytest.MonkeyPatch, a: str, b: str, *more: str) -> int | None:
    words = ["stability-test", "--a", str(root / a), "--b", str(root / b)]
    words += ["--experiment", "reference", "--results", str(root / "results"), *more]
    monkeypatch.setattr("sys.argv", ["morphbits", *words])
    return cli.run("stability-test")


def written(root: Path) -> dict:  # type: ignore[type-arg]
    path = root / "results/reference/stability-test/verdict.json"
    return json.loads(path.read_text())  # type: ignore[no-any-return]


def test_two_new_samples_are_the_same(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(root, monkeypatch, "results-11", "results-12") == SAME
    found = written(root)
    assert found["verdict"] == "same" and found["samples"] == 10
    assert len(found["files"]) == 4  # image and warp of two subjects
    assert [s["subject"] for s in found["subjects"]] == ["sub-001", "sub-002"]
    warps = [row for row in found["files"] if "_xfm" in row["file"]]
    assert len(warps) == 2 and all(row["dice"] == 1 for row in warps)
    page = (root / "results/reference/stability-test/stability-test.html").read_text()
    assert page.count("<img") == 2 and not re.search(r"(src|href)=\"http(?!s://arxiv)", page)


def test_a_shifted_warp_is_different_in_mm(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(root / "results-12", root / "moved")
    for path in (root / "moved").rglob("*_xfm.nii.gz"):
        warp = images.load_warp(path)
        images.save(path, warp.data + np.float32([0.5, 0, 0]), warp.affine)
    masks = mock.Mock(wraps=results.tissue_masks)
    monkeypatch.setattr(results, "tissue_masks", masks)
    assert run(root, monkeypatch, "results-11", "moved") == DIFFERENT
    found = written(root)
    assert len(found["files"]) > 2 and masks.call_count == 1  # the brain of all files
    warps = [row for row in found["files"] if "_xfm" in row["file"]]
    # half a voxel of 2 mm; the samples' own noise is below 1e-3 mm (18.5 bits of 2 voxels)
    assert all(row["rms_mm"] == pytest.approx(1, abs=1e-3) for row in warps)
    # a translation: both framewise displacements are its length. The fit to 18.5 bits of 2 voxels
    # of 2 mm turns by less than 1e-5 rad, and 50 mm times three such angles are 1.5e-3 mm
    for name in ("fd_power", "fd_jenkinson"):
        assert all(row[name] == pytest.approx(1, abs=3e-3) for row in warps)
        assert not [row for row in found["files"] if row not in warps and row[name] is not None]
    assert found["p"] == pytest.approx(1 / 36)


def test_one_subject_and_ten_samples_cannot_tell(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = "sub-001/anat/sub-001_space-MNI152_desc-moved_T1w.nii.gz"
    a, b = f"results-11/{file}", f"results-12/{file}"
    assert run(root, monkeypatch, a, b) == CANNOT_TELL
    assert written(root)["samples_needed"] == 38 and "38 samples" in capsys.readouterr().out
    assert run(root, monkeypatch, a, b, "--alpha", "0.2") == SAME
    assert run(root, monkeypatch, a, a) == SAME


def test_tables_of_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(8)

    def table(folder: Path, factor: float) -> None:
        for subject in ("sub-1", "sub-2"):
            (folder / subject).mkdir(parents=True)
            noise = 1 + 1e-6 * random.standard_normal(3)
            rows = "\n".join(f"r{k},{100 * v * factor!r}" for k, v in enumerate(noise.tolist()))
            (folder / subject / "volumes.csv").write_text(f"region,volume\n{rows}\n")

    for k in range(1, 11):
        table(tmp_path / f"results/reference/sample-{k:02d}", 1)
    table(tmp_path / "a", 1)
    table(tmp_path / "b", 1.001)
    assert run(tmp_path, monkeypatch, "a", "b") == DIFFERENT
    (tmp_path / "b/sub-2/volumes.csv").unlink()
    with pytest.raises(UserError, match="csv, though the other has it"):
        run(tmp_path, monkeypatch, "a", "b")


def as_text(path: Path, matrix: np.ndarray) -> None:
    np.savetxt(path, matrix)


def as_itk(path: Path, matrix: np.ndarray) -> None:
    """In ITK's axes."""
    flipped = np.diag([-1, -1, 1, 1]) @ matrix @ np.diag([-1, -1, 1, 1])
    transform = sitk.AffineTransform(flipped[:3, :3].ravel().tolist(), flipped[:3, 3].tolist())
    sitk.WriteTransform(transform, str(path))


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("sub-1_from-T1w_to-MNI_xfm.txt", as_text),
        ("sub-1_from-T1w_to-MNI_xfm.npy", np.save),
        ("flirt.mat", as_text),
        ("itk.txt", as_itk),
        ("itk.tfm", as_itk),
        ("0GenericAffine.mat", as_itk),
    ],
)
def test_affine_files_are_compared_and_have_a_framewise_displacement(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    save: Callable[[Path, np.ndarray], None],
) -> None:
    """B turns by 0.01 rad about the third axis and moves by 0.3 and -0.4 mm: Power's is 0.3 + 0.4
    + 50 · 0.01 mm; Jenkinson's √(80²/5 · tr AᵀA + |t|²), where tr AᵀA = 4 (1 - cos 0.01)."""
    c, s = math.cos(0.01), math.sin(0.01)
    matrices = {"a": np.eye(4), "b": np.eye(4)}
    matrices["b"][:3] = [[c, -s, 0, 0.3], [s, c, 0, -0.4], [0, 0, 1, 0]]
    random = np.random.default_rng(9)
    for k in range(4):
        noisy = np.eye(4)
        noisy[:3] += 1e-9 * random.standard_normal((3, 4))
        matrices[f"results/reference/sample-{k + 1:02d}"] = noisy
    for folder, matrix in matrices.items():
        (tmp_path / folder).mkdir(parents=True)
        save(tmp_path / folder / name, matrix)
    assert run(tmp_path, monkeypatch, "a", "b", "--alpha", "0.4") == DIFFERENT
    row = written(tmp_path)["files"][0]
    assert row["fd_power"] == pytest.approx(1.2, rel=1e-9)
    assert row["fd_jenkinson"] == pytest.approx(
        math.sqrt(80**2 / 5 * 4 * (1 - c) + 0.25), rel=1e-9
    )


def test_what_cannot_be_compared_is_said(root: Path, tmp_path: Path) -> None:
    reference = root / "results/reference"
    with pytest.raises(UserError, match="has no samples"):
        results.find(root / "results-11", root / "results-12", tmp_path)
    with pytest.raises(UserError, match="is one of the samples"):
        results.find(reference / "sample-01", root / "results-12", reference)
    with pytest.raises(UserError, match="no such file"):
        results.find(root / "nowhere", root / "results-12", reference)
    (tmp_path / "x.csv").write_text("a\n1\n")
    for k in range(4):
        words = tmp_path / f"words/sample-{k}/words.csv"
        words.parent.mkdir(parents=True)
        words.write_text("name\nof a region\n")
    new = tmp_path / "new"
    shutil.copytree(words.parent, new)
    found = results.find(new, new, tmp_path / "words")
    with pytest.raises(UserError, match="no numbers"):
        results.compare_subject("all", found["all"])
    with pytest.raises(UserError, match="no file that is called"):
        results.find(tmp_path, tmp_path, reference)
