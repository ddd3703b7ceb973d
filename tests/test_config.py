"""Options: the same value by argparse, TOML and JSON, and errors that name what is wrong."""

from __future__ import annotations

import argparse
import dataclasses
import re
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from morphbits import config
from morphbits.config import ExecutionConfig, ExperimentConfig, RegisterConfig
from morphbits.errors import UserError

CLASSES = (RegisterConfig, ExperimentConfig, ExecutionConfig)
_SPECIAL = {
    "accumulation": st.sampled_from(["sequential", "direct", "blocked:1", "blocked:192", "probe"]),
    "precision": st.sampled_from(["2", "9", "10", "24", "float16", "bfloat16", "tf32"]),
    "perturb": st.sampled_from(["all", "only:flow", "except:encoder-1,flow"]),
    "experiment": st.from_regex(r"([A-Za-z0-9][A-Za-z0-9._-]*)?", fullmatch=True),
}
_TEXT = st.text(
    st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1, max_size=20
)


def values_of(cls: type, spec: dataclasses.Field[Any]) -> st.SearchStrategy[Any]:
    """Every valid value of a field."""
    kind, optional = config._type_of(cls, spec.name)
    if spec.name in _SPECIAL:
        found: st.SearchStrategy[Any] = _SPECIAL[spec.name]
    elif spec.metadata["choices"]:
        found = st.sampled_from(spec.metadata["choices"])
    elif kind is bool:
        found = st.booleans()
    elif kind is int:
        found = st.integers(spec.metadata["minimum"], 2**63)
    else:
        found = _TEXT.map(Path) if kind is Path else _TEXT
    return st.none() | found if optional else found


@st.composite
def configs(draw: st.DrawFn) -> Any:
    """A valid configuration of any class."""
    cls = draw(st.sampled_from(CLASSES))
    values = {spec.name: draw(values_of(cls, spec)) for spec in dataclasses.fields(cls)}
    try:
        return cls(**values)
    except UserError:  # a combination that is refused: make it one that is not
        allowed = {"framework": "torch", "mode": "random", "region": "registration"}
        allowed |= {"precision": "24", "perturb": "all"}
        return cls(**values | allowed | _plain(cls))


def _plain(cls: type) -> dict[str, Any]:
    return {"plain": False, "threads": 1} if cls is RegisterConfig else {}


@given(configs())
def test_toml_and_json_give_back_what_went_in(tmp_path_factory: Any, original: Any) -> None:
    path = tmp_path_factory.mktemp("config") / "x.toml"
    path.write_text(config.to_toml(original), encoding="utf-8")
    assert config.from_toml(type(original), path) == original
    assert config.from_json(type(original), config.to_json(original), "text") == original


@given(configs())
def test_the_command_line_gives_back_what_went_in(original: Any) -> None:
    parser = argparse.ArgumentParser()
    config.add_arguments(parser, type(original))
    parsed = parser.parse_args(config.to_arguments(original))
    assert config.from_arguments(type(original), parsed) == original


def test_the_command_line_goes_before_the_file_and_the_file_before_the_default(
    tmp_path: Path,
) -> None:
    path = tmp_path / "x.toml"
    path.write_text('runs = 7\nsubjects = 9\nmode = "nearness"\n')
    parser = argparse.ArgumentParser()
    config.add_arguments(parser, ExperimentConfig)
    arguments = parser.parse_args(["--runs", "3"])
    base = config.from_toml(ExperimentConfig, path)
    merged = config.from_arguments(ExperimentConfig, arguments, base)
    assert (merged.runs, merged.subjects, merged.mode, merged.seed) == (3, 9, "nearness", 1)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("mod = 'random'", ["unknown key 'mod'", "'mode'"]),
        ("zzzzz = 1", ["unknown key 'zzzzz'", "known are", "accumulation"]),
        ("mode = 'randon'", ["mode must be one of", "did you mean 'random'"]),
        ("runs = 0", ["runs must be at least 1"]),
        ("runs = '3'", ["runs must be a whole number"]),
        ("runs = true", ["runs must be a whole number"]),
        ("accumulation = 'blocked:0'", ["accumulation must look like"]),
        ("runs = ", ["is not valid TOML"]),
        ("mode = 'upward'", ["deterministic"]),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path: Path, line: str, words: list[str]) -> None:
    path = tmp_path / "x.toml"
    path.write_text(line)
    with pytest.raises(UserError) as caught:
        config.from_toml(ExperimentConfig, path)
    for word in words:
        assert word in str(caught.value)
    if "deterministic" not in words:
        assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.toml: cannot be read"):
        config.from_toml(ExperimentConfig, tmp_path / "gone.toml")


@pytest.mark.parametrize("words", [["--mode", "randon"], ["--seed", "x"], ["--threads", "0"]])
def test_a_bad_argument_names_the_option(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    config.add_arguments(parser, RegisterConfig)
    with pytest.raises(SystemExit):
        parser.parse_args(words)
    assert f"argument {words[0]}: must be" in capsys.readouterr().err


def test_what_cannot_go_together_is_refused() -> None:
    with pytest.raises(UserError, match="native engine perturbs torch only"):
        RegisterConfig(framework="tensorflow", engine="native")
    with pytest.raises(UserError, match="--plain"):
        RegisterConfig(plain=True)
    RegisterConfig(framework="tensorflow", plain=True)


def test_every_option_has_help_and_one_name() -> None:
    for cls in CLASSES:
        parser = argparse.ArgumentParser()
        config.add_arguments(parser, cls)
        text = parser.format_help()
        for spec in dataclasses.fields(cls):
            no = "no-" if spec.default is True else ""
            assert f"--{no}{spec.name.replace('_', '-')}" in text
            assert spec.metadata["help"]
            assert set(spec.name) <= set(string.ascii_lowercase + "_")


def test_every_option_of_an_experiment_is_a_variable_of_make() -> None:
    text = (Path(__file__).parents[1] / "Makefile").read_text(encoding="utf-8")
    recipe = text.partition("\ninference:")[2].partition("\n\n")[0]
    for cls in (ExperimentConfig, ExecutionConfig):
        for spec in dataclasses.fields(cls):
            name = spec.name.upper()
            assert re.search(rf"\b{name}\b", recipe), f"make inference does not pass {name}"
            assert re.search(rf"(?m)^{name} \?=", text), f"make does not list {name}"
