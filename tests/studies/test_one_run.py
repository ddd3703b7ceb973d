"""Bits from one run and its shadow, and decisions that flip, next to what samples give."""

from __future__ import annotations

import functools
import json
import math
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.small_experiment import make_dataset

from morphbits import stages
from morphbits.config import ExecutionConfig, ExperimentConfig
from morphbits.engines.decisions import Decisions
from morphbits.engines.native import random_rounding
from morphbits.engines.shadow import Shadow
from morphbits.errors import UserError
from morphbits.files import write_json
from morphbits.models import classical_torch
from morphbits.models.synthmorph_torch import init_model
from morphbits.models.weights import Architecture
from morphbits.registration import register
from morphbits.stats.analysis import write_table
from morphbits.stats.one_run import check
from morphbits.studies.layers import computation, flips, one_run, one_run_page, page
from morphbits.studies.layers.computation import Case


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A ball of three tissues and a network of four features, on a grid of two cubes of 16."""
    root = tmp_path_factory.mktemp("one-run")
    dataset = make_dataset(root / "data", 1, (16, 16, 32))
    init_model(Architecture((4, 4), (4, 4), 2), seed=1, flow_std=0.3).save(root / "m.h5")
    settings = ExperimentConfig(dataset=str(dataset.root), model=root / "m.h5")
    return computation.open_case(settings, ExecutionConfig(threads=1), 1)


def test_a_map_is_a_mean_over_the_voxels_that_have_bits() -> None:
    bits_XYZ = np.full((9, 9, 9), np.nan)
    bits_XYZ[4, 4, 2:7] = 10, 20, 30, 40, 50
    found = one_run.averaged(bits_XYZ)
    assert found[4, 4, 4] == pytest.approx(30) and found[4, 4, 2] == pytest.approx(20)
    assert np.isnan(found[0, 0, 0])


def test_one_run_is_within_a_bit_of_samples(case: Case, tmp_path: Path) -> None:
    found = one_run.one_run(case, 6)
    one_run.with_samples(found, *computation.activations(case, 6))
    rows = {row["stage"]: row for row in found.tables["one_run"]}
    assert {"encoder-1", "flow", "squaring-1", "rescaling", "result: warp"} <= set(rows)
    assert all(abs(row["difference"]) < 1 for row in rows.values()), rows
    assert rows["result: image"]["without_error"] > 0  # the background
    counters = {row["stage"]: row for row in found.tables["counters"]}
    assert counters["encoder-1"]["sums"] == 2 * 4 * 16**3 and not found.record["unshadowed"]
    assert counters["integration"]["exact"] == 1  # divided by a power of two
    assert 0 < counters["sampling"]["additions_lost_mean"] < 24
    folder = page.folder(ExecutionConfig(results=tmp_path), case)
    for name, table in found.tables.items():
        write_table(folder / f"{name}.csv", table)
    json.dumps(found.record, allow_nan=False)
    one_run_page.save_maps(folder, "bits", found.maps, case)
    image = nibabel.load(folder / "bits_image-one-run.nii.gz")
    assert image.shape == case.fixed.data.shape and np.allclose(image.affine, case.fixed.affine)
    html = Path(page.write(folder, case)).read_text()
    assert "Bits from one run" in html and "6 samples" in html and ">nan<" not in html
    write_json(folder / "one_run.json", found.record)
    _without_samples_again(case, folder, found)


def _without_samples_again(case: Case, folder: Path, found: one_run.OneRun) -> None:
    """Another run keeps the samples' columns and maps, if it is of the same configuration."""
    again = one_run.one_run(case, 6)
    assert "keeps the bits of 6 samples" in one_run.keep_samples(again, folder)
    assert again.tables["one_run"] == found.tables["one_run"]
    for name, bits_XYZ in found.maps.items():
        assert np.array_equal(np.float32(again.maps[name]), np.float32(bits_XYZ), equal_nan=True)
    again.record["configuration"]["subnormals"] = "flush"
    said = one_run.keep_samples(again, folder)
    assert "no longer has the bits of 6 samples" in said
    assert "made with another configuration.subnormals;" in said
    (folder / "bits_warp-samples.nii.gz").unlink()
    assert "without the bits of samples (" in one_run.keep_samples(again, folder)
    (folder / "one_run.csv").unlink()
    assert one_run.keep_samples(again, folder) == ""


def test_a_method_whose_stages_run_again_and_return_matrices(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The classical registration: its squarings run in each step, on two grids."""
    short = functools.partial(classical_torch.Schedule, ((4, 1),), ((4, 1), (2, 1)))
    monkeypatch.setattr(classical_torch, "Schedule", short)
    settings = ExperimentConfig(dataset=str(case.dataset.root), model=Path("classical"))
    case = computation.open_case(settings, ExecutionConfig(threads=1), 1)
    found = one_run.one_run(case, 2)
    one_run.with_samples(found, *computation.activations(case, 2))
    rows = {row["stage"]: row for row in found.tables["one_run"]}
    assert rows["affine"]["shape"] == "3×4" and rows["deformable-2"]["shape"] == "3×8×8×16"
    assert rows["squaring-1"]["shape"] == "3×8×8×16" and rows["sampling"]["runs"] == 2


def test_a_network_from_elsewhere_has_a_folder(case: Case, tmp_path: Path) -> None:
    settings = ExperimentConfig(engine="native", model=Path("somewhere/module:function"))
    folder = page.folder(ExecutionConfig(results=tmp_path), replace(case, settings=settings))
    assert folder.parent.name == f"layers-{case.dataset.name}-module-function"


def test_an_experiment_of_a_mode_without_spread_is_refused(case: Case) -> None:
    settings = ExperimentConfig(engine="native", mode="upward", runs=1)
    directed = Case(**{**vars(case), "settings": settings})
    with pytest.raises(UserError, match="upward gives equal samples"):
        one_run.one_run(directed, 10)


def test_the_share_of_flips_is_that_of_the_rounding() -> None:
    """1 + 2^-25 is 1 to nearest and, at random, 1 or 1 + 2^-23 with equal chances: the sign of
    what is left after 1 is taken away flips with probability ½, in one half of the volume."""
    shape, runs = (1, 1, 8, 16, 32), 4
    tiny = torch.zeros(shape)
    tiny[..., :16] = 2.0**-25

    def part() -> torch.Tensor:
        return F.relu((torch.ones(shape) + tiny) - 1)

    record = flips.Record()
    for seed in range(runs + 1):
        if seed:
            record.start_sample()
        mode = "random" if seed else "nearest"
        with random_rounding(mode=mode, seed=seed), Decisions(record.hear):
            stages.run("part", part)
    (row,) = record.rows(shape[2:], lambda share: share[..., :16])
    n = math.prod(shape) // 2
    assert (row["stage"], row["kind"], row["decisions"]) == ("part", "ReLU", 2 * n)
    # five standard errors of a frequency over n draws in each of the samples
    assert abs(row["flipped_brain"] - 1 / 2) < 5 * 0.5 / math.sqrt(n * runs)
    assert row["flipped"] == pytest.approx(row["flipped_brain"] / 2)
    unlike = 1 - 2 * 0.5**runs  # not four times the same
    bound = 5 * math.sqrt(unlike * (1 - unlike) / n)
    assert abs(2 * row["unsettled"] - unlike) < bound
    share = record.maps(shape[2:])["ReLU"]
    assert (share[..., :16] > 0).mean() > 0.9 and not share[..., 16:].any()


def test_a_coarse_decision_stands_for_the_voxels_it_covers() -> None:
    record = flips.Record()
    record.hear("a", "max-pool", torch.tensor([[3, 1]]).view(1, 1, 2, 1))
    record.hear("a", "floor", torch.zeros(5))
    record.start_sample()
    record.hear("a", "max-pool", torch.tensor([[3, 0]]).view(1, 1, 2, 1))
    record.hear("a", "floor", torch.ones(5))
    (share,) = record.maps((2, 4, 2)).values()  # five numbers have no place on the grid
    assert share[:, 2:].all() and not share[:, :2].any()
    rows = {row["kind"]: row for row in record.rows((2, 4, 2), np.asarray)}
    assert rows["max-pool"]["flipped"] == 0.5 and rows["max-pool"]["flipped_brain"] == 0.5
    assert rows["floor"]["flipped"] == 1 and math.isnan(rows["floor"]["flipped_brain"])
    with pytest.raises(RuntimeError, match="more operators decide"):
        record.hear("a", "floor", torch.ones(5))


def test_labels_are_those_of_the_nearest_voxel() -> None:
    warp_XYZV = np.zeros((2, 3, 4, 3), np.float32)
    assert np.array_equal(flips._nearest(warp_XYZV).ravel(), np.arange(24))
    warp_XYZV[0, 0, 0] = 0.6, 1.4, 9
    assert flips._nearest(warp_XYZV)[0, 0, 0] == np.ravel_multi_index((1, 1, 3), (2, 3, 4))


def test_flips_of_a_registration(case: Case, tmp_path: Path) -> None:
    rows, maps = flips.flips(case, 2)
    assert [row["kind"] for row in rows].count("ReLU") == 4
    assert rows[-1]["stage"] == flips.LABELS and set(maps) >= {"ReLU", "floor", flips.LABELS}
    assert all(0 <= row["flipped"] <= row["unsettled"] + 1 for row in rows)
    one_run_page.save_maps(tmp_path, "flips", maps, case)
    table = one_run_page.flips_table({"flips": rows, "decisions": []})
    assert len(table.rows) == len(rows)
    figure = one_run_page.flips_figure(tmp_path)
    assert figure is None or figure.content


def test_a_registration_under_a_shadow_has_the_bytes_of_one_without(case: Case) -> None:
    config = case.config(mode="nearest")
    plain = register(case.prepared, case.settings.model, config)
    watched = register(case.prepared, case.settings.model, config, watch=Shadow())
    assert np.array_equal(plain.warp_XYZV, watched.warp_XYZV)
    assert plain.record["operations"] == watched.record["operations"]


def test_a_samplers_flip_is_on_its_voxel() -> None:
    """On a grid that 3 divides, where axes and components could be taken for one another."""
    shape = (6, 9, 12)
    unit = F.affine_grid(torch.eye(3, 4)[None], [1, 1, *shape], align_corners=True)
    record, image = flips.Record(), torch.rand(1, 1, *shape)
    for moved in (0, 0.8):
        if moved:
            record.start_sample()
        grid = unit.clone()
        grid[0, 1, 2, 3, 0] += 2 * moved / (shape[2] - 1)  # x, the last axis
        with Decisions(record.hear):
            F.grid_sample(image, grid, mode="nearest", align_corners=True)
    (share,) = record.maps(shape).values()
    assert np.argwhere(share).tolist() == [[1, 2, 3]]


@pytest.mark.parametrize(
    ("mode", "runs", "said"), [("upward", 10, "gives equal"), ("random", 1, "one sample has no")]
)
def test_what_cannot_be_estimated_is_refused(mode: str, runs: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        check(mode, runs)
