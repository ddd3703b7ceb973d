"""The paragraph to paste: true of the experiment, and everything it cites has an entry."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from morphbits.bids import Subject
from morphbits.config import DEMO_MODEL
from morphbits.report import methods_text, references
from morphbits.report.experiment import Experiment, Record

CITATION = (Path(__file__).parents[2] / "CITATION.cff").read_text(encoding="utf-8")
NATIVE = {
    "engine": "native",
    "mode": "random",
    "framework": "torch",
    "accumulation": "sequential",
    "model": "sha256:" + "ab" * 32,
    "versions": {"torch": "2.13.0", "morphbits": "0.2.0"},
}


def experiment(dataset: str = "phantom-2mm", model: str = "x.h5", **changed: Any) -> Experiment:
    """Two subjects with ten samples."""
    facts = {"threads": 2, "cpu": {"name": "a processor"}, "files": {"model": model}}
    outputs = {"moved": {"file": "sub-1_space-MNI152_desc-moved_T1w.nii.gz"}}
    record = Record("01", Subject("1"), NATIVE | changed, facts, outputs)
    rows = [{"subject": subject, "n": 10} for subject in ("sub-1", "sub-2")]
    return Experiment("x", Path(), {}, dataset, [record], rows, [], [], [])


@pytest.mark.parametrize(
    ("case", "says", "cites"),
    [
        ({}, "2 phantoms made of the MNI152 template (Fonov et al., 2011) were registered",
         {"fonov2011", "hoffmann2022"}),
        ({"dataset": "corr"}, "2 preprocessed (open route) T1-weighted images of CoRR",
         {"zuo2014", "hoffmann2022"}),
        ({"dataset": "ds1"}, "2 images of the dataset ds1 were registered", {"hoffmann2022"}),
        ({"dataset": "ds1", "model": "data/models/joint"}, "the model joint of FreeSurfer's",
         {"hoffmann2024"}),
        ({"dataset": "ds1", "model": "own.net:make"}, "by the network own.net:make", set()),
        ({"dataset": "ds1", "model": "classical"}, "by the classical registration of morphbits",
         {"avants2008"}),
        ({"model": str(DEMO_MODEL)}, "by the demonstration model of morphbits",
         {"fonov2011", "hoffmann2022"}),
        ({"engine": "verrou"}, "10 times. Verrou (Févotte and Lathuilière, 2016) perturbed the",
         {"fonov2011", "hoffmann2022", "fevotte2016"}),
        ({"engine": "ieee", "mode": "nearest"}, "10 times. Nothing was perturbed. Options: ",
         {"fonov2011", "hoffmann2022"}),
        ({"mode": "upward"}, "operations: every rounding went up.", {"fonov2011", "hoffmann2022"}),
        ({"precision": "11", "perturb": "only:flow"}, "precision: 11; perturbed stages: only:flow",
         {"fonov2011", "hoffmann2022"}),
    ],
)  # fmt: skip
def test_the_paragraph_says_what_was_done_and_cites_it(
    case: dict[str, Any], says: str, cites: set[str]
) -> None:
    written = methods_text.write(experiment(**case))
    assert says in written.text
    always = {"morphbits", "sohier2021", "gonzalezpepe2023"}
    assert {one.key for one in written.cited} == cites | always
    for one in references.ALL:
        assert (one.cited in written.text) == (one in written.cited)
    assert "computed in PyTorch 2.13.0. With morphbits 0.2.0" in written.text
    assert "0.74 (n = 10)" in written.text  # 0.05^(1/10)


def test_bibtex_is_well_formed() -> None:
    entries = methods_text.write(experiment()).bibtex.strip().split("\n\n")
    assert len(entries) == 5
    for entry in entries:
        assert re.match(r"@(article|inproceedings|misc)\{\w+,\n", entry)
        assert entry.count("{") == entry.count("}")
        lines = entry.splitlines()[1:-1]
        assert all(re.fullmatch(r"  \w+ = \{.+\},?", line) for line in lines)
        assert all(line.endswith(",") for line in lines[:-1]) and not lines[-1].endswith(",")
        assert {"author", "title", "year"} <= {line.split()[0] for line in lines}


def test_references_are_those_of_the_citation_file() -> None:
    entries = CITATION.partition("references:")[2].split("  - type:")[1:]
    for one in references.ALL:
        (entry,) = (e for e in entries if one.title.lower() in e.lower())
        assert f"year: {one.year}" in entry
        doi = one.link.removeprefix("https://doi.org/")
        assert doi == one.link or f"doi: {doi}\n" in entry
        names = re.findall(r"family-names: ([^,}]+), given-names: ([^}]+)\}", entry)
        groups = re.findall(r"- name: (.+)", entry)
        assert list(one.authors) == [f"{family}, {given}" for family, given in names] + groups
