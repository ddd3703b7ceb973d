"""Where the bits go: tables of stages, activations, precisions and orders, and their page."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from support.small_experiment import make_dataset

from morphbits.config import ExecutionConfig, ExperimentConfig
from morphbits.errors import UserError
from morphbits.models.synthmorph_torch import init_model
from morphbits.models.weights import Architecture
from morphbits.stats.analysis import write_table
from morphbits.studies.layers import computation, page
from morphbits.studies.layers.computation import Case

STAGES = [
    *("encoder-1", "encoder-2", "decoder-1", "decoder-2", "flow", "network"),
    *("squaring-1", "squaring-2", "integration", "rescaling", "sampling"),
]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A ball of three tissues and a network of four features."""
    root = tmp_path_factory.mktemp("layers")
    dataset = make_dataset(root / "data", 1)
    init_model(Architecture((4, 4), (4, 4), 2), seed=1, flow_std=0.3).save(root / "m.h5")
    settings = ExperimentConfig(dataset=str(dataset.root), model=root / "m.h5")
    return computation.open_case(settings, ExecutionConfig(threads=1), 1)


def test_every_stage_has_a_row_and_the_page_shows_it(case: Case, tmp_path: Path) -> None:
    said: list[str] = []
    rows = computation.stage_costs(case, 2, said.append)
    assert [row["stage"] for row in rows] == ["all", *STAGES] and len(said) == len(STAGES)
    whole, *parts = rows
    assert all(row["warp_only"] >= whole["warp_only"] for row in parts)
    sampling = parts[-1]
    assert sampling["warp_only"] == 24 and sampling["warp_share"] == 0  # comes after the warp
    assert sampling["warp_except"] == whole["warp_only"]
    leaves = page._leaves(rows)
    assert {row["stage"] for row in leaves} == {*STAGES} - {"network", "integration"}
    write_table(tmp_path / "stages.csv", rows)
    write_table(tmp_path / "activations.csv", computation.activations(case, 2)[0])
    html = Path(page.write(tmp_path, case)).read_text()
    assert "What each stage costs" in html and "At how many bits" not in html
    assert all(re.search(f">{name}( \\(in|<)", html) for name in STAGES)
    assert "None" not in html and "nan" not in html


def test_activations_are_those_of_the_samples(case: Case) -> None:
    rows, samples = computation.activations(case, 3)
    assert [row["stage"] for row in rows] == [name for name in STAGES if name != "network"]
    found = computation.bits(samples)
    last = {row["stage"]: row for row in rows}
    # the page's numbers are over the padded grid, these over the fixed one
    assert abs(last["sampling"]["mean"] - found["image"]) < 1
    assert abs(last["rescaling"]["mean"] - found["warp"]) < 1
    assert all(0 <= row["q05"] <= row["median"] <= row["q95"] <= 24 for row in rows)


def test_precision_costs_bits_and_then_the_registration(case: Case, tmp_path: Path) -> None:
    rows = computation.precisions(case, 2, lambda text: None, (24, 16, 4))
    by_name = {(str(row["precision"]), row["perturb"]): row for row in rows}
    full, half, few = (by_name[p, "all"] for p in ("24", "16", "4"))
    assert full["moved_mm"] == 0 < half["moved_mm"] < few["moved_mm"]
    assert abs(full["warp"] - half["warp"] - 8) < 1
    assert by_name["float16", "only:network"]["moved_mm"] < by_name["bfloat16", "all"]["moved_mm"]
    assert page.fewest_bits(rows) in (24, 16)
    write_table(tmp_path / "precision.csv", rows)
    html = Path(page.write(tmp_path, case)).read_text()
    assert "At how many bits it breaks" in html and "bfloat16, network" in html


def test_a_sweep_that_fails_says_from_where_on() -> None:
    def row(bits: int, dice: float) -> dict:
        return {"precision": bits, "perturb": "all", "dice": dice, "error_mm": 1, "moved_mm": 0}

    rows = [row(24, 0.8), row(16, 0.8), row(12, 0.795), row(10, 0.7), row(8, 0.8)]
    assert page.fewest_bits(rows) == 12


def test_orders_are_compared_by_one_measure(case: Case, tmp_path: Path) -> None:
    pairs, schemes, found = computation.orders(case, 2, lambda text: None)
    assert [row["order"] for row in schemes] == list(computation.ORDERS)
    assert len(pairs) == 10 and len(found) == 5
    probed = next(r for r in pairs if (r["order"], r["against"]) == ("probe", "plain"))
    if all("the same bytes" in row["found"] for row in found):
        assert probed["warp_equal"] == 1 and probed["warp_agreement"] == 24
    for name, rows in (("orders", pairs), ("schemes", schemes), ("found", found)):
        write_table(tmp_path / f"{name}.csv", rows)
    html = Path(page.write(tmp_path, case)).read_text()
    assert "What the order of sums moves" in html and "measured from torch" in html
    note = page.markdown(
        case, {n: page.read_table(tmp_path / f"{n}.csv") for n in page.TABLES}, "cpu"
    )
    assert note.count("|---|") >= 3


def test_settings_are_those_of_the_experiment(tmp_path: Path) -> None:
    assert computation.settings_of(tmp_path, "x") is None
    assert computation.settings_of(tmp_path, "") is None
    (tmp_path / "x").mkdir()
    text = '{"settings": {"dataset": "phantom", "accumulation": "direct", "seed": 7}}'
    (tmp_path / "x" / "experiment.json").write_text(text)
    settings = computation.settings_of(tmp_path, "x")
    assert settings is not None and (settings.accumulation, settings.seed) == ("direct", 7)


def test_a_subject_that_is_not_there_is_an_error(case: Case) -> None:
    with pytest.raises(UserError, match="has 1 subjects, no number 2"):
        computation.open_case(case.settings, ExecutionConfig(), 2)
    assert not math.isnan(computation.bits(computation.make(case, 2))["warp"])
