"""The page that compares methods: each method's own numbers, and only of the same images."""

from __future__ import annotations

import dataclasses
import statistics
from pathlib import Path

import pytest
from support.small_experiment import make_dataset, make_experiment

from morphbits.errors import UserError
from morphbits.report.experiment import Experiment, read, select
from morphbits.stats.analysis import analyse
from morphbits.studies.methods import page


@pytest.fixture(scope="module")
def experiments(tmp_path_factory: pytest.TempPathFactory) -> list[Experiment]:
    """A method of many bits, and one of few, of two subjects."""
    root = tmp_path_factory.mktemp("methods")
    dataset = make_dataset(root / "data", 2)
    found = []
    for name, bits in (("many", 20.0), ("few", 8.0)):
        make_experiment(root / "results", name, dataset, 3, image_bits=bits, warp_bits=bits - 1)
        analyse(root / "results", name, dataset)
        found.append(read(root / "results", name))
    return found


def test_each_method_has_its_numbers(experiments: list[Experiment], tmp_path: Path) -> None:
    many, few = page.compare(experiments)
    for method, bits, experiment in ((many, 20, experiments[0]), (few, 8, experiments[1])):
        assert len(method.warp_bits) == 2 and method.n == 3
        # three samples: the estimate of a standard deviation scatters by half a bit
        assert statistics.fmean(method.image_bits) == pytest.approx(bits, abs=1.5)
        assert statistics.fmean(method.warp_bits) == pytest.approx(bits - 1, abs=1.5)
        rows = select(experiment.variability, quantity="warp", unit="mm", tissue="brain")
        assert method.spread_mm == [row["mean"] for row in rows]
        assert all(0 <= value <= 1 for value in method.dice)
    assert statistics.fmean(few.spread_mm) > 1000 * statistics.fmean(many.spread_mm)

    path = page.build(experiments, tmp_path / "methods")
    text = path.read_text()
    assert "morphbits methods many few" in text and "What it says" in text
    for method in (many, few):
        assert f"{statistics.fmean(method.image_bits):.2f}" in text
    assert (tmp_path / "methods/methods.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize(("key", "value"), [("fixed", "other"), ("mode", "nearness")])
def test_other_images_or_another_perturbation_are_refused(
    experiments: list[Experiment], key: str, value: str
) -> None:
    one, other = experiments
    changed = [
        dataclasses.replace(r, configuration=r.configuration | {key: value}) for r in other.records
    ]
    with pytest.raises(UserError, match=f"many and few differ in {key}"):
        page.compare([one, dataclasses.replace(other, records=changed)])
    moved = [
        dataclasses.replace(r, configuration=r.configuration | {"moving": "other"})
        for r in other.records
    ]
    with pytest.raises(UserError, match="moving images"):
        page.compare([one, dataclasses.replace(other, records=moved)])
