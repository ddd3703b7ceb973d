"""Nothing moves unmeant: hashes, names, commands, operators and bytes are those that are recorded.

What each file holds, and how it is recorded anew, is in record.py.
"""

from __future__ import annotations

import dataclasses

import pytest
from golden import record

from morphbits.config import ExperimentConfig

MEANT = "where this is meant: make golden, and commit what `git diff tests/golden` shows"


def sections(text: str) -> dict[str, list[str]]:
    """The lines of each experiment in experiments.txt, by its title."""
    parts = [part.splitlines() for part in text.split("\n\n") if part]
    return {lines[0]: lines[1:] for lines in parts}


def test_hashes_names_and_commands_of_experiments_are_the_recorded_ones() -> None:
    pinned = sections((record.HERE / "experiments.txt").read_text(encoding="utf-8"))
    found = sections(record.experiments())
    assert found.keys() == pinned.keys(), MEANT
    for experiment, lines in pinned.items():
        assert found[experiment] == lines, f"{experiment}: {MEANT}"


def test_every_option_of_an_experiment_is_in_one_at_another_value_than_its_default() -> None:
    defaults = ExperimentConfig()
    covered = {
        name
        for changes in record.EXPERIMENTS
        for name, value in changes.items()
        if value != getattr(defaults, name)
    }
    missing = {field.name for field in dataclasses.fields(ExperimentConfig)} - covered
    assert not missing, "add an experiment with it to EXPERIMENTS in tests/golden/record.py"


def test_the_operators_are_the_recorded_ones() -> None:
    pinned = (record.HERE / "operators.txt").read_text(encoding="utf-8")
    assert record.operators().splitlines() == pinned.splitlines(), MEANT


def test_samples_and_trainings_have_the_recorded_bytes() -> None:
    here, pinned = record.machine(), record.pinned_checksums()
    if here not in pinned:
        pytest.skip(f"no bytes are recorded for {here}: `make golden` does it")
    assert record.checksums() == pinned[here], MEANT
