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
    "extent": st.sampled_from([64, 192, 256]),
    "model_orientation": st.sampled_from(["auto", "fixed", "RAS", "PIL"]),
    "orientation": st.sampled_from(["", "LAS", "RAS", "PIR"]),
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
        found = st.integers(spec.metadata["minimum"], spec.metadata["maximum"])
    elif kind is float:
        found = st.floats(spec.metadata["minimum"], spec.metadata["maximum"])
    else:
        found = _TEXT.map(Path) if kind is Path else _TEXT
    return st.none() | found if optional else found


def another_value(spec: dataclasses.Field[Any]) -> Any:
    """A valid value of an option that is not its default."""
    examples = {"accumulation": "blocked:192", "precision": "bfloat16", "perturb": "only:flow"}
    examples |= {"extent": 192, "regularization": 0.25}
    if spec.name in examples:
        return examples[spec.name]
    if spec.metadata["choices"]:
        return next(value for value in spec.metadata["choices"] if value != spec.default)
    return (not spec.default) if isinstance(spec.default, bool) else spec.default + 1


@st.composite
def configs(draw: st.DrawFn) -> Any:
    """A valid configuration of any class."""
    cls = draw(st.sampled_from(CLASSES))
    values = {spec.name: draw(values_of(cls, spec)) for spec in dataclasses.fields(cls)}
    try:
        return cls(**values)
    except UserError:  # a combination that is refused: make it one that is not
        limited = [
            spec
            for spec in dataclasses.fields(cls)
            if spec.name in ("framework", "mode", "threads")
            or spec.metadata["engines"]
            or spec.metadata["frameworks"]
        ]
        return cls(**values | {spec.name: spec.default for spec in limited})


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
        ("accumulation = 'blocked:0'", ["accumulation must be sequential, direct, blocked:K"]),
        ("precision = '25'", ["precision must be 2 to 24 bits, or float16", "not '25'"]),
        ("perturb = 'flow'", ["perturb must be all, only:NAME,…", "not 'flow'"]),
        ("seed = 10000000000000000000", ["seed must be at most 9223372036854775808"]),
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


@pytest.mark.parametrize(
    ("engine", "option", "known"),
    [
        ("verrou", "accumulation probe", "native"),
        ("verrou", "subnormals flush", "native"),
        ("verrou", "precision 8", "native"),
        ("verrou", "perturb only:flow", "native"),
        ("native", "libm excluded", "verrou"),
        ("native", "region process", "verrou"),
        ("ieee", "mode upward", "native or verrou"),
        ("ieee", "accumulation direct", "native"),
        ("ieee", "region process", "verrou"),
    ],
)
@pytest.mark.parametrize("cls", [RegisterConfig, ExperimentConfig])
def test_an_option_that_would_do_nothing_is_refused(
    cls: type, engine: str, option: str, known: str
) -> None:
    name, value = option.split()
    with pytest.raises(UserError) as caught:
        cls(**{"engine": engine, name: value})
    sentence = f"--{option} does nothing with engine {engine}; it is for {known}: give --engine "
    assert sentence in str(caught.value)


def test_every_option_of_some_engine_or_framework_is_refused_with_another() -> None:
    """So is one that is added later."""
    for cls in (RegisterConfig, ExperimentConfig):
        for spec in dataclasses.fields(cls):
            for kind, every in (("engine", config.ENGINES), ("framework", config.FRAMEWORKS)):
                known = spec.metadata[f"{kind}s"]
                for other in set(every) - set(known) if known else ():
                    value = another_value(spec)
                    if spec.metadata["harmless"](value):
                        continue
                    with pytest.raises(UserError, match=f"nothing with {kind} {other}; it is for"):
                        cls(**{"engine": "ieee", kind: other, spec.name: value})


def test_what_does_no_harm_is_taken() -> None:
    RegisterConfig(engine="ieee", mode="nearest", seed=7)
    RegisterConfig(engine="native", mode="nearest", seed=7)


def test_what_cannot_go_together_is_refused() -> None:
    with pytest.raises(UserError, match="native engine perturbs torch only"):
        RegisterConfig(framework="tensorflow", engine="native")
    with pytest.raises(UserError, match="--plain does nothing with framework torch"):
        RegisterConfig(plain=True)
    RegisterConfig(framework="tensorflow", plain=True)
    with pytest.raises(UserError, match="--onednn off does nothing with framework torch; it is"):
        RegisterConfig(onednn="off")
    with pytest.raises(UserError, match="no engine knows --perturb only:flow and --libm excluded"):
        ExperimentConfig(perturb="only:flow", libm="excluded")
    with pytest.raises(UserError, match="precision 8 needs --subnormals keep"):
        RegisterConfig(engine="native", precision="8", subnormals="flush")


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


def test_with_another_engine_what_that_one_does_not_know_is_at_its_default() -> None:
    verrou = ExperimentConfig(engine="verrou", libm="excluded", mode="nearness", align="centre")
    native = config.with_engine(verrou, "native")
    assert native == ExperimentConfig(engine="native", mode="nearness", align="centre")
    assert config.with_engine(native, "ieee") == ExperimentConfig(engine="ieee", align="centre")
