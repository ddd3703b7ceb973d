"""Which samples there are, their seeds, and what their folders say about them."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.toy_experiment import Toy

from morphbits import bids, datasets, engines, provenance
from morphbits.bids import Subject
from morphbits.config import EXPERIMENTS, ExperimentConfig, RegisterConfig
from morphbits.errors import UserError
from morphbits.samples import estimate, experiment, matrix
from morphbits.samples.matrix import Unit, read_state, sample_seed
from morphbits.samples.worker import from_task, run_unit, to_task


def units_of(toy: Toy) -> list[Unit]:
    dataset, _ = datasets.resolve(toy.settings.dataset, toy.execution.data)
    subjects = dataset.subjects()[: toy.settings.subjects]
    return matrix.expand(toy.settings, dataset, subjects, toy.execution.results, "toy", 3)


# ---------------------------------------------------------------------- seeds


def test_seeds_are_those_of_the_documented_rule() -> None:
    # changing these numbers changes every sample there is
    assert sample_seed(1, Subject("001"), 1) == 2080820765
    assert sample_seed(1, Subject("0003002", "1"), 10) == 1457803497


@given(st.integers(0, 2**63), st.integers(1, 10**6))
def test_seeds_fit_31_bits_and_differ_from_their_neighbours(seed: int, run: int) -> None:
    here = sample_seed(seed, Subject("001"), run)
    assert 0 <= here < 2**31
    others = [
        sample_seed(seed + 1, Subject("001"), run),
        sample_seed(seed, Subject("002"), run),
        sample_seed(seed, Subject("001", "1"), run),
        sample_seed(seed, Subject("001"), run + 1),
    ]
    assert others.count(here) <= 1  # two equal ones in four: about once in 10^18


def test_a_sample_does_not_depend_on_how_many_there_are(toy: Toy) -> None:
    few = {str(unit): unit.config for unit in units_of(toy)}
    many = {str(unit): unit.config for unit in units_of(toy.but(subjects=3, runs=120))}
    assert len(many) == 3 * 124
    assert {name: many[name] for name in few} == few


def test_the_matrix_holds_what_the_module_says(toy: Toy) -> None:
    units = units_of(toy.but(engine="native", subjects=1))
    by_name = {unit.sample: unit.config for unit in units}
    assert list(by_name) == ["01", "02", "ieee", "plain", "again", "threads"]
    assert by_name["01"].mode == "random" and by_name["01"].engine == "native"
    assert by_name["01"].seed != by_name["02"].seed
    assert (by_name["ieee"].mode, by_name["ieee"].engine) == ("nearest", "native")
    assert by_name["plain"].engine == "ieee"
    assert by_name["plain"] == by_name["again"]
    assert by_name["threads"] == dataclasses.replace(by_name["plain"], threads=2)
    assert {unit.space for unit in units} == {"TOY"}


def test_a_subject_with_two_sessions_is_refused(toy: Toy) -> None:
    dataset, _ = datasets.resolve(toy.settings.dataset, toy.execution.data)
    twice = [Subject("001", "1"), Subject("001", "2")]
    with pytest.raises(UserError, match="more than one session"):
        matrix.expand(toy.settings, dataset, twice, Path("results"), "toy", 1)


# ---------------------------------------------------------------------- configuration hash

INPUTS = {"moving": "sha256:1", "fixed": "sha256:2", "model": "sha256:3"}


def hash_of(config: RegisterConfig, **inputs: str) -> str:
    return str(provenance.configuration(config, INPUTS | inputs)["hash"])


@pytest.fixture
def native() -> RegisterConfig:
    return RegisterConfig(engine="native")


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines.get("native"), "version", lambda: "sha256:kernels")


def test_the_hash_is_of_canonical_json() -> None:
    content = {"b": 1, "a": {"y": None, "x": "ö"}, "hash": "left out"}
    canonical = b'{"a":{"x":"\\u00f6","y":null},"b":1}'
    expected = "sha256:" + hashlib.sha256(canonical).hexdigest()
    assert provenance.configuration_hash(content) == expected


@pytest.mark.parametrize(
    "change",
    [
        {"engine": "ieee"},
        {"mode": "nearness"},
        {"mode": "nearest"},
        {"accumulation": "direct"},
        {"subnormals": "flush"},
        {"precision": "12"},
        {"precision": "bfloat16"},
        {"perturb": "only:flow"},
        {"seed": 2},
        {"align": "centre"},
        {"crop": True},
    ],
)
def test_what_changes_bytes_changes_the_hash(native: RegisterConfig, change: Any) -> None:
    assert hash_of(dataclasses.replace(native, **change)) != hash_of(native)


@pytest.mark.parametrize("name", list(INPUTS))
def test_every_input_is_in_the_hash(native: RegisterConfig, name: str) -> None:
    assert hash_of(native, **{name: "sha256:other"}) != hash_of(native)


def test_kernels_and_libraries_are_in_the_hash(
    native: RegisterConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = hash_of(native)
    monkeypatch.setattr(engines.get("native"), "version", lambda: "sha256:changed")
    after_kernel = hash_of(native)
    monkeypatch.setattr(provenance, "versions", lambda framework: {"torch": "99"})
    assert len({before, after_kernel, hash_of(native)}) == 3


def test_what_cannot_change_bytes_is_not_in_the_hash(native: RegisterConfig) -> None:
    assert hash_of(dataclasses.replace(native, threads=7)) == hash_of(native)
    nearest = dataclasses.replace(native, mode="nearest")
    assert hash_of(dataclasses.replace(nearest, seed=9)) == hash_of(nearest)
    ieee = RegisterConfig(engine="ieee")
    assert hash_of(dataclasses.replace(ieee, mode="nearest", seed=9)) == hash_of(ieee)
    assert hash_of(dataclasses.replace(ieee, threads=2)) != hash_of(ieee)


@pytest.mark.parametrize("jobs", [None, 1, 2])
def test_verrou_computes_on_one_thread_whatever_jobs_and_cores_are(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, jobs: int | None
) -> None:
    """Another number makes other bytes, so it is in the hash, and refused."""
    verrou = engines.get("verrou")
    monkeypatch.setattr(verrou, "version", lambda: "2.7")
    monkeypatch.setattr(estimate, "cores", lambda: 8)
    asked = toy.but(engine="verrou", jobs=jobs)
    plan = experiment.make_plan(asked.settings, asked.execution, print)
    of_verrou = [unit for unit in plan.units if unit.config.engine == "verrou"]
    assert len(of_verrou) == 2 * 3
    for unit in of_verrou:
        assert unit.config.threads == unit.configuration()["threads"] == 1
    two = dataclasses.replace(asked.execution, threads=2)
    with pytest.raises(UserError, match="threads 2: engine verrou computes on one thread"):
        experiment.make_plan(asked.settings, two, print)


def test_differing_keys_are_named_with_dots() -> None:
    one = {"mode": "random", "versions": {"torch": "1", "numpy": "2"}, "hash": "a"}
    other = {"mode": "random", "versions": {"torch": "2", "numpy": "2"}, "seed": 1, "hash": "b"}
    assert provenance.differing_keys(one, other) == ["seed", "versions.torch"]


# ---------------------------------------------------------------------- state from files


@pytest.fixture
def unit(toy: Toy) -> Unit:
    """A finished unit."""
    first = units_of(toy)[0]
    toy.folder.mkdir(parents=True)
    run_unit(first)
    return first


def test_a_finished_unit_is_done_and_records_itself(unit: Unit) -> None:
    assert read_state(unit).kind == "done"
    record = json.loads(bids.sample_json(unit.folder).read_text())
    assert record["configuration"] == unit.configuration()
    assert record["sample"], record["subject"] == ("01", "sub-001")
    facts = record["provenance"]
    assert facts["peak_memory_bytes"] > 2**20 and facts["seconds"] > 0
    assert facts["cpu"]["name"] and facts["python"] and facts["started"].endswith("+00:00")
    for name, path in matrix.unit_outputs(unit, unit.folder).items():
        assert record["outputs"][name]["file"] == path.name
        assert record["outputs"][name]["bytes"] == path.stat().st_size


def test_the_same_unit_has_the_same_bytes_again(unit: Unit, tmp_path: Path) -> None:
    again = dataclasses.replace(unit, folder=tmp_path / "elsewhere" / "sample-01" / "sub-001")
    run_unit(again)
    for name, path in matrix.unit_outputs(unit, unit.folder).items():
        assert path.read_bytes() == matrix.unit_outputs(again, again.folder)[name].read_bytes()


def test_nothing_is_left_beside_a_unit(unit: Unit) -> None:
    assert [path.name for path in unit.folder.parents[1].iterdir()] == ["sample-01"]


def test_a_missing_unit_is_missing(toy: Toy) -> None:
    assert read_state(units_of(toy)[0]).kind == "missing"


def test_damage_is_seen_and_mended(unit: Unit) -> None:
    record, moved = bids.sample_json(unit.folder), matrix.unit_outputs(unit, unit.folder)["moved"]
    whole, image = record.read_text(), moved.read_bytes()
    damages = {
        "cut short": lambda: moved.write_bytes(image[:-1]),
        "gone": moved.unlink,
        "half a record": lambda: record.write_text(whole[:100]),
        "an edited record": lambda: record.write_text(
            whole.replace('"threads": 1', '"threads": 3')
        ),
        "no record": record.unlink,
    }
    for name, damage in damages.items():
        damage()
        assert read_state(unit).kind == "damaged", name
        run_unit(unit)
        assert read_state(unit).kind == "done", name
    assert moved.read_bytes() == image


def test_a_unit_of_another_configuration_is_refused_with_what_differs(unit: Unit) -> None:
    other = dataclasses.replace(unit, config=RegisterConfig(align="centre", threads=2))
    assert read_state(other) == matrix.UnitState("foreign", "align, threads")
    with pytest.raises(UserError, match=r"differs: align, threads\..*EXPERIMENT=another"):
        matrix.todo([other])


def test_a_changed_input_is_noticed(unit: Unit, tmp_path: Path) -> None:
    moving = tmp_path / "moving.nii.gz"
    moving.write_bytes(unit.moving.read_bytes() + b"\0")
    assert read_state(dataclasses.replace(unit, moving=moving)).reason == "moving"


def test_a_unit_crosses_to_a_worker_unchanged(toy: Toy) -> None:
    for unit in units_of(toy.but(engine="native")):
        assert from_task(json.loads(json.dumps(to_task(unit)))) == unit


# ---------------------------------------------------------------------- names and choices


def test_default_names_of_different_experiments_differ(toy: Toy) -> None:
    dataset, _ = datasets.resolve(toy.settings.dataset, toy.execution.data)
    base = dataclasses.replace(toy.settings, engine="native")
    changes: list[dict[str, Any]] = [
        {},
        {"engine": "ieee"},
        {"mode": "nearness"},
        {"accumulation": "direct"},
        {"accumulation": "blocked:192"},
        {"subnormals": "flush"},
        {"align": "centre"},
        {"crop": True},
        {"seed": 2},
        {"fixed": Path("fixed.nii.gz")},
        {"bids_filter": "ses-1"},
        {"bids_filter": "ses-2, no-run"},
        {"model": Path("other.h5")},
        {"engine": "ieee", "framework": "tensorflow"},
    ]
    names = [
        experiment.default_name(dataclasses.replace(base, **change), dataset) for change in changes
    ]
    assert len(set(names)) == len(names)
    assert names[0] == "native-random-data-model"
    for name in names:
        bids.experiment_folder(Path("results"), name)  # a valid name


@pytest.mark.parametrize(
    ("found", "engine", "says"),
    [
        (None, "native", "'make docker' builds it"),
        ("machine", "verrou", "Verrou is here (machine)"),
        ("container", "verrou", "ENGINE=native"),
    ],
)
def test_auto_engine_is_verrou_where_it_is_and_says_why(
    monkeypatch: pytest.MonkeyPatch, found: str | None, engine: str, says: str
) -> None:
    monkeypatch.setattr(engines.get("verrou"), "found", lambda: found)
    settings, why = experiment.resolve_engine(ExperimentConfig())
    assert (settings.engine, says in why) == (engine, True)


@pytest.mark.parametrize("found", [None, "machine"])
@pytest.mark.parametrize(
    ("options", "engine"),
    [
        ({"accumulation": "probe"}, "native"),
        ({"subnormals": "flush"}, "native"),
        ({"precision": "8"}, "native"),
        ({"perturb": "only:flow"}, "native"),
        ({"libm": "excluded"}, "verrou"),
        ({"region": "process"}, "verrou"),
    ],
)
def test_auto_engine_is_the_one_that_knows_the_options(
    monkeypatch: pytest.MonkeyPatch, found: str | None, options: dict[str, str], engine: str
) -> None:
    monkeypatch.setattr(engines.get("verrou"), "found", lambda: found)
    assert experiment.resolve_engine(ExperimentConfig(**options))[0].engine == engine


def test_a_reference_has_only_what_its_engine_knows(toy: Toy) -> None:
    options = {"accumulation": "direct", "subnormals": "flush", "perturb": "only:flow"}
    units = units_of(toy.but(engine="native", subjects=1, **options))
    by_name = {unit.sample: unit.config for unit in units}
    assert by_name["plain"] == RegisterConfig(framework="torch", align="auto")
    for name in ("01", "ieee"):
        assert {key: getattr(by_name[name], key) for key in options} == options


def test_named_experiments_are_valid_and_the_command_line_goes_first() -> None:
    files = EXPERIMENTS.glob("*.toml")
    names = [path.stem for path in files if "runs" in tomllib.loads(path.read_text())]
    assert {"smoke", "paper", "phantom-full-size", "paper-native"} <= set(names)
    settings, _ = experiment.from_options(argparse.Namespace(experiment="repetitions-26"))
    assert settings.runs == 26
    for name in names:
        settings, _ = experiment.from_options(argparse.Namespace(experiment=name, seed=77))
        assert settings.seed == 77
        assert settings.engine != "auto" and settings.dataset != "auto"
