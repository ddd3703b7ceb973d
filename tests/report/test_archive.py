"""The archive: everything is in it, with its checksum, and nothing of the user's machine."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.small_experiment import make_dataset, make_experiment

from morphbits import bids, cli, report
from morphbits.errors import UserError
from morphbits.report import archive
from morphbits.stats.analysis import analyse


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two synthetic subjects with two samples each, analysed, with their page."""
    root = tmp_path_factory.mktemp("archive")
    dataset = make_dataset(root / "data", 2)
    make_experiment(root / "results", "small", dataset, 2)
    analyse(root / "results", "small", dataset)
    report.build(report.read(root / "results", "small"))
    return root / "results"


@pytest.fixture(scope="module")
def made(results: Path) -> Path:
    return archive.build(results, "small", licence="CC0-1.0")


@pytest.fixture(scope="module")
def graph(made: Path) -> dict[str, dict[str, Any]]:
    """The entities of the crate by their @id."""
    entities = json.loads((made / archive.CRATE).read_text())["@graph"]
    found = {one["@id"]: one for one in entities}
    assert len(found) == len(entities)
    return found


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes()
            for p in folder.rglob("*") if p.is_file()}  # fmt: skip


def test_the_crate_lists_every_file_with_its_checksum(
    made: Path, graph: dict[str, dict[str, Any]]
) -> None:
    files = files_of(made)
    del files[archive.CRATE]
    listed = {one["@id"] for one in graph["./"]["hasPart"]}
    assert listed == set(files)
    for name, content in files.items():
        assert graph[name]["sha256"] == hashlib.sha256(content).hexdigest()
        assert graph[name]["contentSize"] == str(len(content))


def test_the_crate_is_complete(graph: dict[str, dict[str, Any]]) -> None:
    assert graph[archive.CRATE]["about"] == {"@id": "./"}
    assert {"name", "description", "datePublished", "license"} <= set(graph["./"])

    def references(value: Any) -> list[str]:
        if isinstance(value, list):
            return [found for inner in value for found in references(inner)]
        return [value["@id"]] if isinstance(value, dict) else []

    named = {r for one in graph.values() for key, v in one.items() if key != "conformsTo"
             for r in references(v)}  # fmt: skip
    assert named <= set(graph)
    assert graph["./"]["license"] == {"@id": "https://spdx.org/licenses/CC0-1.0"}
    inputs = sorted(graph[one["@id"]]["name"] for one in graph["#analysis"]["object"])
    expected = ["fixed image", "model", "moving image of sub-001", "moving image of sub-002"]
    assert inputs == expected
    assert len(graph["#analysis"]["result"]) >= 4  # image and warp of two subjects


def test_maps_tables_and_page_are_those_of_the_experiment(results: Path, made: Path) -> None:
    here = files_of(bids.experiment_folder(results, "small"))
    there = files_of(made)
    for name in (n for n in here if n.startswith("maps/sub-")):
        assert there[name.removeprefix("maps/")] == here[name]
    tables = {name for name in here if "/" not in name and name.endswith(".csv")}
    assert {f"tables/{name}" for name in tables} == {n for n in there if n.startswith("tables/")}
    assert all(there[f"tables/{name}"] == here[name] for name in tables)
    assert there["report.html"] == here["report.html"]
    description = json.loads(there["dataset_description.json"])
    assert description["License"] == "CC0-1.0" and description["DatasetType"] == "derivative"


def test_each_sample_has_its_record_without_folders_of_the_user(results: Path, made: Path) -> None:
    there = files_of(made)
    records = list(results.glob("small/sample-*/sub-*/sample.json"))
    for path in records:
        name = f"provenance/{path.parent.parent.name}/{path.parent.name}.json"
        record, kept = json.loads(path.read_text()), json.loads(there[name])
        assert kept["configuration"] == record["configuration"]
        assert kept["outputs"] == record["outputs"]
        assert kept["provenance"]["files"]["fixed"] == "tpl-MNI152_T1w.nii.gz"
        assert kept["provenance"]["threads"] == 1 and "host" not in kept["provenance"]
    assert len(records) == sum(name.startswith("provenance/sample-") for name in there) == 12
    assert b'"runs": 2' in there["provenance/experiment.json"]
    private = str(results.parent).encode()
    assert [n for n, c in there.items() if private in c and n != "report.html"] == []


def test_an_archive_is_replaced_and_nothing_else_is(results: Path, tmp_path: Path) -> None:
    target = tmp_path / "x"
    archive.build(results, "small", target)
    (target / "mine.pdf").touch()
    with pytest.raises(UserError, match=r"mine\.pdf: is not of the archive"):
        archive.build(results, "small", target, page=False)
    (target / "mine.pdf").unlink()
    assert archive.build(results, "small", target, page=False) == target
    assert not (target / "report.html").exists()
    assert "report.html" not in (target / "README.md").read_text()
    assert list(tmp_path.iterdir()) == [target]
    (target / archive.CRATE).write_text('{"@graph": [{"@id": "./"}]}')  # of somebody else
    for _ in range(2):
        with pytest.raises(UserError, match="is there and no archive"):
            archive.build(results, "small", target)
        assert (target / "README.md").is_file()
        (target / archive.CRATE).unlink(missing_ok=True)


def test_what_is_missing_or_damaged_is_named(results: Path, tmp_path: Path) -> None:
    without = shutil.ignore_patterns("archive")  # that another test made
    copy = shutil.copytree(results, tmp_path / "results", ignore=without)
    folder = copy / "small"
    (folder / "report.html").unlink()
    with pytest.raises(UserError, match="morphbits report --experiment small, or leave it out"):
        archive.build(copy, "small")
    shutil.rmtree(folder / "maps")
    with pytest.raises(UserError, match="holds no maps"):
        archive.build(copy, "small")
    with (folder / "variability.csv").open("a") as table:
        table.write("1")
    with pytest.raises(UserError, match="was changed or damaged"):
        archive.build(copy, "small")
    assert not (folder / "archive").exists()


def test_a_licence_is_an_identifier_or_an_address(results: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give an SPDX identifier"):
        archive.build(results, "small", tmp_path / "x", "CC BY 4.0")
    where = "https://example.org/terms"
    made = archive.build(results, "small", tmp_path / "x", where)
    entities = json.loads((made / archive.CRATE).read_text())["@graph"]
    assert [one["license"] for one in entities if one["@id"] == "./"] == [{"@id": where}]


def test_the_verb(results: Path, tmp_path: Path) -> None:
    command = [*cli.command("archive"), "--experiment=small", f"--results={results}",
               "--output=there", "--without-page"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "there\n"), done.stderr
    assert (tmp_path / "there" / archive.CRATE).is_file()
