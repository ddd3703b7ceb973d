"""Every option that is a number has limits, and what is beyond them is refused by its name."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from morphbits import config
from morphbits.config import ExecutionConfig, ExperimentConfig, RegisterConfig
from morphbits.errors import UserError
from morphbits.training import RunConfig, TrainConfig

CLASSES = (RegisterConfig, ExperimentConfig, ExecutionConfig, TrainConfig, RunConfig)
PYTHON = Path(__file__).parents[1] / "python"


def numbers(cls: type) -> Iterator[tuple[dataclasses.Field[Any], type]]:
    for spec in dataclasses.fields(cls):
        kind, _ = config._type_of(cls, spec.name)
        if kind in (int, float):
            yield spec, kind


@pytest.mark.parametrize("cls", CLASSES)
def test_a_number_that_is_none_or_beyond_its_limits_is_refused_by_name(cls: type) -> None:
    parser = config.parser("")
    config.add_arguments(parser, cls)
    for spec, kind in numbers(cls):
        least, most = spec.metadata["minimum"], spec.metadata["maximum"]
        flag = "--" + spec.name.replace("_", "-")
        below, above = least - 1 if kind is int else 2 * least - 1, 2 * most + 1
        wrong = ["nan", "inf", "-inf", "", "many", str(below), str(above), f"1{'0' * 400}"]
        for value in [*wrong, *(["0"] if least > 0 else [])]:
            with pytest.raises(UserError, match=rf"^argument {flag}: must be "):
                parser.parse_args([f"{flag}={value}"])
        for number in (below, above, *((math.nan, math.inf) if kind is float else ())):
            with pytest.raises(UserError, match=f"^x: {spec.name} must be "):
                config.from_mapping(cls, {spec.name: number}, "x")
        for right in (least, most):
            assert getattr(parser.parse_args([f"{flag}={right!r}"]), spec.name) == right


@pytest.mark.parametrize("cls", [RegisterConfig, ExperimentConfig, TrainConfig])
def test_so_it_is_in_python(cls: type) -> None:
    for spec, _ in numbers(cls):
        with pytest.raises(UserError, match=rf"^{spec.name} must be at most"):
            cls(**{spec.name: 2 * spec.metadata["maximum"] + 1})


def test_numbers_in_a_text_are_checked_each() -> None:
    for name, wrong in (
        ("targets", "1,2"), ("targets", "-1"), ("enc", "16 0"), ("dec", "16  16"), ("enc", ""),
        ("vel_res", "16 nan"), ("vel_res", "..."), ("bias_res", "0"), ("bias_res", "inf"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"{name} must be .*separated by blanks, such as"):
            TrainConfig(**{name: wrong})
    assert TrainConfig(targets="2 41", vel_res="16 32.5", enc="8 16").targets == "2 41"


def test_scripts_speak_of_a_wrong_option_in_one_sentence() -> None:
    """They use `config.parser`, and `config.whole` or `config.real` for numbers of their own."""
    folders = ("morphbits", "benchmarks")
    for path in (path for f in folders for path in (PYTHON / f).rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if path.name != "config.py":
            assert "ArgumentParser(" not in text, path
        assert not re.search(r"type=(int|float)\b", text), path
