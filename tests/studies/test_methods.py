"""The page that compares methods: each method's own numbers, and only of the same images."""

from __future__ import annotations

import dataclasses
import json
import shutil
import statistics
from pathlib import Path

import numpy as np
import pytest
from support.small_experiment import make_dataset, make_experiment

from morphbits import bids, images
from morphbits.engines.verrou.counters import last_table
from morphbits.errors import UserError
from morphbits.files import write_json
from morphbits.provenance import file_sha256
from morphbits.report.experiment import Experiment, read, select
from morphbits.samples.experiment import recorded_dataset
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
        for path in (root / "results" / name).rglob("sample.json"):  # as of samples that were made
            record = json.loads(path.read_text())
            for role in ("moving", "fixed"):
                file = Path(record["provenance"]["files"][role])
                record["configuration"][role] = file_sha256(file)
            write_json(path, record)
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

    path = page.build(experiments, ["many", "few"], tmp_path / "methods")
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


LOG = (Path(__file__).parents[1] / "engines" / "verrou-2.7.log").read_text()


def program_folder(experiment: Experiment, folder: Path, form: str) -> Path:
    """What another program would have written: the experiment's warps in its own format."""
    dataset = recorded_dataset(experiment.results, experiment.name)
    for record in [*experiment.perturbed, *experiment.of_sample("ieee")]:
        name, subject = record.sample, record.subject
        unit = bids.sample_folder(experiment.results, experiment.name, name, subject)
        to = folder / f"sample-{name}" / f"sub-{subject.label}"
        to.mkdir(parents=True)
        warp = images.load_warp(bids.warp_path(unit, subject, dataset.space))
        moving = images.load(dataset.moving(subject))
        shift = np.zeros(3)
        images.save_warp(
            to / "warp.nii.gz", warp.data, warp.affine, shift, warp.codes, form, moving
        )
        shutil.copy(bids.moved_path(unit, subject, dataset.space), to / "moved.nii.gz")
        mode = "NEAREST" if name == "ieee" else "RANDOM"
        (to / "verrou.log").write_text(LOG.replace("RANDOM", mode))
    return folder


def test_a_folder_of_a_programs_samples_is_a_method(
    experiments: list[Experiment], tmp_path: Path
) -> None:
    """The warps of `few` as ITK writes them: the same bits as `few` itself, within what float32
    millimetres change in values that scatter by 2⁻⁷."""
    many, few = experiments
    folder = program_folder(few, tmp_path / "elastix", "itk")
    found = page.read_all(many.results, [many.name, few.name, str(folder)])
    _, ours, theirs = page.compare(found)
    assert (theirs.name, theirs.how, theirs.n) == ("elastix", "verrou, random", 3)
    assert theirs.is_program and not ours.is_program
    assert theirs.image_bits == ours.image_bits and theirs.dice == ours.dice
    assert theirs.warp_bits == pytest.approx(ours.warp_bits, abs=1e-3)
    assert theirs.spread_mm == pytest.approx(ours.spread_mm, rel=1e-3)
    assert theirs.operations == last_table(LOG).total > 0 and theirs.seconds is None
    text = page.build(found, ["many", "few", "elastix"], tmp_path).read_text()
    assert "“elastix” is another program" in text and "verrou, random" in text


def test_moved_images_and_logs_may_be_missing(
    experiments: list[Experiment], tmp_path: Path
) -> None:
    many, few = experiments
    folder = program_folder(few, tmp_path / "fnirt", "fsl")
    for path in (*folder.rglob("moved.nii.gz"), *folder.rglob("verrou.log")):
        path.unlink()
    _, theirs = page.compare(page.read_all(many.results, [many.name, str(folder)]))
    assert (theirs.how, theirs.operations) == ("program", None)
    assert all(0 < bits < 24 for bits in theirs.image_bits)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("sample-02/sub-002/warp.nii.gz", "sample-02/sub-002: holds no warp.nii.gz"),
        ("sample-ieee", "has no sample-ieee, so there is no Dice"),
        ("sample-*", "holds no folders sample-01"),
        ("mode", "many and program differ in mode"),
        ("log", "is not a complete log of Verrou"),
        ("grid", "the moved image is not on the grid"),
    ],
)
def test_a_folder_that_is_no_method_is_one_sentence(
    experiments: list[Experiment], tmp_path: Path, damage: str, message: str
) -> None:
    many, few = experiments
    folder = program_folder(few, tmp_path / "program", "itk")
    if damage == "mode":
        for log in folder.rglob("verrou.log"):
            log.write_text(LOG.replace("RANDOM", "UPWARD"))
    elif damage == "log":
        (folder / "sample-01/sub-001/verrou.log").write_text(LOG[:100])
    elif damage == "grid":
        path = folder / "sample-01/sub-001/moved.nii.gz"
        image = images.load(path)
        images.save(path, image.data[:-1], image.affine)
    else:
        for path in folder.glob(damage):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UserError, match=message):
        page.compare(page.read_all(many.results, [many.name, str(folder)]))


def test_a_program_comes_after_an_experiment(
    experiments: list[Experiment], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="name an experiment of this suite before it"):
        page.read_all(experiments[0].results, [str(tmp_path), experiments[0].name])
    with pytest.raises(UserError, match="there is no experiment"):
        page.read_all(experiments[0].results, [experiments[0].name, "absent"])
