"""Options: one dataclass field is one option, with one name, everywhere.

Field ``mode`` is ``--mode`` on the command line, ``MODE=`` for make, ``mode = "random"`` in a TOML
file and ``"mode": "random"`` in a JSON record. Help, choices and limits are written once, beside
the field.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import re
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from morphbits import stages
from morphbits.errors import UserError

FRAMEWORKS = ("torch", "tensorflow")
ENGINES = ("ieee", "native", "verrou")
MODES = ("nearest", "random", "nearness", "upward", "downward", "toward_zero")
STOCHASTIC_MODES = ("random", "nearness")
SUBNORMALS = ("keep", "flush")
REGIONS = ("registration", "process")
LIBM = ("perturbed", "excluded")
ALIGNMENTS = ("auto", "header", "centre")
DEMO_MODEL = Path(__file__).parent / "models" / "demo.h5"

Config = TypeVar("Config")


def option(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    pattern: str = "",
    minimum: int | None = None,
) -> Any:
    """A dataclass field with what argparse, TOML and JSON need to know about it."""
    metadata = {"help": help, "choices": choices, "pattern": pattern, "minimum": minimum}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Arithmetic:
    """How numbers are computed: shared by one registration and by a whole experiment."""

    framework: str = option("torch", "computes the network", choices=FRAMEWORKS)
    engine: str = option(
        "ieee",
        "who rounds: ieee (nothing is perturbed), native (compiled random rounding of torch), "
        "verrou (Valgrind's tool, on any framework)",
        choices=ENGINES,
    )
    mode: str = option(
        "random", "rounding of the native and verrou engines, Verrou's names", choices=MODES
    )
    accumulation: str = option(
        "sequential",
        "native: order in which a convolution adds its products: sequential (TensorFlow's), "
        "direct (torch's on AVX-512), blocked:K (a gemm cut into K terms) or probe (torch's own "
        "here, read off each layer's kernel)",
        pattern=r"sequential|direct|probe|blocked:[1-9]\d*",
    )
    subnormals: str = option(
        "keep",
        "native: keep subnormal numbers (torch, Valgrind) or flush them to zero (TensorFlow)",
        choices=SUBNORMALS,
    )
    precision: str = option(
        "24",
        "native: significant bits of each result, 2 to 24, or float16, bfloat16 (what operators "
        "read and write), tf32 (what convolutions multiply)",
        pattern=r"[2-9]|1\d|2[0-4]|float16|bfloat16|tf32",
    )
    perturb: str = option(
        "all",
        "native: stages of the model that mode and precision act on: all, only:NAME,… or "
        "except:NAME,… of encoder-1 …, decoder-1 …, flow, network (these together), integration, "
        "rescaling, sampling; the rest is float32 to nearest",
        pattern=stages.PATTERN,
    )
    seed: int = option(1, "of the random roundings", minimum=0)
    region: str = option(
        "registration",
        "verrou: perturb the registration, or the whole process from its start",
        choices=REGIONS,
    )
    libm: str = option(
        "perturbed",
        "verrou: round the results of libm too, by Interlibmath, or leave them",
        choices=LIBM,
    )
    onednn: str = option(
        "on",
        "tensorflow: oneDNN's kernels, which users run, or off: TensorFlow's own",
        choices=("on", "off"),
    )
    align: str = option(
        "auto",
        "how moving meets fixed: header (both affines), centre (centres of mass), or auto "
        "(header where both files have an affine)",
        choices=ALIGNMENTS,
    )
    crop: bool = option(
        False,
        "leave out the borders of the fixed grid where both images are at their minimum: a brain "
        "in a conformed 256³ then costs less than half",
    )


@dataclass(frozen=True)
class RegisterConfig(Arithmetic):
    """One registration."""

    threads: int = option(1, "threads of the computation", minimum=1)
    plain: bool = option(
        False,
        "tensorflow: what model.predict gives by default, instead of the same bytes as eager "
        "(grappler's arithmetic optimization off)",
    )

    def __post_init__(self) -> None:
        _check_combination(self)
        if self.engine == "verrou" and self.threads > 1:
            raise UserError(
                f"threads {self.threads}: engine verrou computes on one thread (Valgrind runs one "
                "at a time, and another number makes other bytes); leave it out"
            )
        if self.plain and self.framework != "tensorflow":
            raise UserError(
                "--plain chooses between TensorFlow's two results and needs --framework "
                "tensorflow; torch has one, which --engine ieee gives"
            )


@dataclass(frozen=True)
class ExperimentConfig(Arithmetic):
    """What an experiment is: subjects × runs, and all that can change a byte of its samples."""

    engine: str = option(
        "auto",
        "who rounds: native, verrou, ieee, or auto (verrou where it can be started, else native)",
        choices=("auto", *ENGINES),
    )
    dataset: str = option(
        "auto",
        "phantom, corr, corr-freesurfer, the folder of a BIDS dataset, or auto (corr where it is "
        "installed)",
    )
    fixed: Path | None = option(
        None,
        "fixed image for the folder of a BIDS dataset; left out: the one in derivatives/*/tpl-*/",
    )
    bids_filter: str = option(
        "",
        "which images of a BIDS dataset, by entities of their names: 'ses-1 acq-mprage'; "
        "'no-run run-1' takes names without run, or with run 1",
    )
    size: str = option("2mm", "voxels of the phantom dataset", choices=("4mm", "2mm", "1mm"))
    model: Path = option(DEMO_MODEL, "voxelmorph .h5 weights; the default is the demo model")
    subjects: int = option(3, "how many subjects, the first of the dataset", minimum=1)
    runs: int = option(5, "perturbed samples of each subject", minimum=1)

    def __post_init__(self) -> None:
        _check_combination(self)
        if self.runs > 1 and self.engine != "ieee" and self.mode not in STOCHASTIC_MODES:
            raise UserError(
                f"mode {self.mode} is deterministic, so all runs would be the same sample: "
                "ask for RUNS=1, or for MODE=random or nearness"
            )


@dataclass(frozen=True)
class ExecutionConfig:
    """How an experiment is run here: nothing that can change a byte of a sample."""

    experiment: str = option(
        "",
        "name of the results folder; settings are read from python/experiments/NAME.toml where "
        "there is one; made from engine, dataset and model where left out",
        pattern=r"([A-Za-z0-9][A-Za-z0-9._-]*)?",
    )
    results: Path = option(Path("results"), "folder of all experiments")
    data: Path = option(Path("data"), "folder of the datasets")
    jobs: int | None = option(
        None, "worker processes; left out: as many as cores and memory allow", minimum=1
    )
    threads: int | None = option(
        None, "threads of each worker; left out: cores divided by jobs", minimum=1
    )
    executor: str = option(
        "local", "who runs the samples: local (this machine) or slurm", choices=("local", "slurm")
    )
    slurm_options: str = option(
        "", "slurm: more options for sbatch, such as '--partition=long --account=me'"
    )
    slurm_container: str = option(
        "",
        "slurm: run the tasks in the image of 'make docker' ($IMAGE) by this program",
        choices=("", "apptainer", "podman", "docker"),
    )
    task_samples: int | None = option(
        None, "slurm: samples of one task; left out: ten minutes' worth", minimum=1
    )
    wait: bool = option(
        True, "slurm: return when the samples are submitted; the same command again collects"
    )
    dry_run: bool = option(False, "list what would run, with an estimate, and stop")
    yes: bool = option(False, "start although the estimate is above two hours")


def _check_combination(config: Arithmetic) -> None:
    if config.region == "process" and config.engine not in ("verrou", "auto"):
        raise UserError(
            f"engine {config.engine} knows no region but the registration; only verrou perturbs a "
            "whole process"
        )
    if config.framework == "tensorflow" and config.engine == "native":
        raise UserError(
            "the native engine perturbs torch only: give --framework torch (the port, which in "
            "sequential order reproduces TensorFlow's operations), or --engine ieee for "
            "TensorFlow itself"
        )
    for name, value, default in (
        ("precision", config.precision, "24"),
        ("perturb", config.perturb, "all"),
    ):
        if value != default and config.engine not in ("native", "auto"):
            raise UserError(f"{name} {value} is the native engine's: give --engine native")
    if config.precision != "24" and config.subnormals == "flush":
        raise UserError(f"precision {config.precision} needs --subnormals keep")


# ---------------------------------------------------------------------- values


def _type_of(cls: type, name: str) -> tuple[type, bool]:
    """The plain type of a field and whether it may be None."""
    hint = typing.get_type_hints(cls)[name]
    if isinstance(hint, types.UnionType):
        plain = [part for part in typing.get_args(hint) if part is not type(None)]
        return plain[0], True
    return hint, False


def _checked(cls: type, spec: dataclasses.Field[Any], value: Any) -> Any:
    """The value in its field's type; ValueError with the reason where it does not fit."""
    kind, optional = _type_of(cls, spec.name)
    value = Path(value) if kind is Path and isinstance(value, str) else value
    value = float(value) if kind is float and type(value) is int else value
    if value is None and optional:
        return None
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        names = {
            int: "a whole number",
            float: "a number",
            bool: "true or false",
            str: "a text",
            Path: "a path",
        }
        raise ValueError(f"must be {names[kind]}, not {value!r}")
    choices, pattern, minimum = (spec.metadata[key] for key in ("choices", "pattern", "minimum"))
    if choices and value not in choices:
        known = ", ".join(choices)
        raise ValueError(f"must be one of {known}, not {value!r}{_hint(value, choices)}")
    if pattern and not re.fullmatch(pattern, str(value)):
        raise ValueError(f"must look like {pattern}, not {value!r}")
    if minimum is not None and value < minimum:
        raise ValueError(f"must be at least {minimum}, not {value}")
    return value


def _hint(word: Any, known: typing.Iterable[str]) -> str:
    close = difflib.get_close_matches(str(word), list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _fields(cls: type) -> dict[str, dataclasses.Field[Any]]:
    return {spec.name: spec for spec in dataclasses.fields(cls)}


# ---------------------------------------------------------------------- mapping, TOML, JSON


def from_mapping(
    cls: type[Config], values: Mapping[str, Any], source: str, base: Config | None = None
) -> Config:
    """``cls`` from keys and values; what is not named comes from ``base`` or the defaults.

    ``source`` names the file (or command line) in an error.
    """
    specs = _fields(cls)
    checked = {}
    for key, value in values.items():
        if key not in specs:
            hint = _hint(key, specs) or f"; known are {', '.join(specs)}"
            raise UserError(f"{source}: unknown key {key!r}{hint}")
        try:
            checked[key] = _checked(cls, specs[key], value)
        except ValueError as error:
            raise UserError(f"{source}: {key} {error}") from None
    start = {name: getattr(base, name) for name in specs} if base is not None else {}
    return cls(**{**start, **checked})


def to_mapping(config: Any) -> dict[str, Any]:
    """All fields as JSON and TOML know them (paths as text)."""
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in ((name, getattr(config, name)) for name in _fields(type(config)))
    }


def from_toml(cls: type[Config], path: Path, base: Config | None = None) -> Config:
    """``cls`` from a TOML file of plain ``key = value`` lines."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not valid TOML: {error}") from None
    return from_mapping(cls, values, str(path), base)


def to_toml(config: Any) -> str:
    """``key = value`` lines that `from_toml` reads back; a field that is None is left out."""

    def written(value: Any) -> str:
        # a JSON text is a TOML basic string but for DEL, which TOML wants escaped
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")

    lines = (f"{k} = {written(v)}\n" for k, v in to_mapping(config).items() if v is not None)
    return "".join(lines)


def from_json(cls: type[Config], text: str, source: str) -> Config:
    """``cls`` from a JSON object; ``source`` names where the text came from."""
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{source}: is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{source}: must be a JSON object")
    return from_mapping(cls, values, source)


def to_json(config: Any) -> str:
    """A JSON object of all fields."""
    return json.dumps(to_mapping(config), indent=2)


# ---------------------------------------------------------------------- command line


def add_arguments(parser: argparse.ArgumentParser, cls: type) -> None:
    """One ``--option`` for each field, ``--no-option`` for what is on by default. What the user
    leaves out stays out of the namespace."""
    for name, spec in _fields(cls).items():
        kind, _ = _type_of(cls, name)
        flag = "--" + name.replace("_", "-")
        help = spec.metadata["help"]
        if kind is bool:
            parser.add_argument(
                flag.replace("--", "--no-", 1) if spec.default else flag,
                action="store_const",
                const=not spec.default,
                dest=name,
                default=argparse.SUPPRESS,
                help=help,
            )
            continue
        choices = spec.metadata["choices"]
        default = "" if spec.default in (None, "", DEMO_MODEL) else f" (default: {spec.default})"
        parser.add_argument(
            flag,
            type=_argument_type(cls, spec),
            default=argparse.SUPPRESS,
            metavar="|".join(choices) if choices else name.upper(),
            help=(help + default).replace("%", "%%"),
        )


def _argument_type(cls: type, spec: dataclasses.Field[Any]) -> typing.Callable[[str], Any]:
    kind, _ = _type_of(cls, spec.name)

    def parse(text: str) -> Any:
        value: Any = text
        if kind in (int, float):
            try:
                value = kind(text)
            except ValueError:
                name = "whole number" if kind is int else "number"
                raise argparse.ArgumentTypeError(f"must be a {name}, not {text!r}") from None
        try:
            return _checked(cls, spec, value)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


def from_arguments(
    cls: type[Config], arguments: argparse.Namespace, base: Config | None = None
) -> Config:
    """``cls`` from a parsed command line; what it leaves out comes from ``base`` or defaults."""
    given = {name: getattr(arguments, name) for name in _fields(cls) if hasattr(arguments, name)}
    return from_mapping(cls, given, "command line", base)


def to_arguments(config: Any) -> list[str]:
    """The command line that gives this configuration."""
    words: list[str] = []
    specs = _fields(type(config))
    for name, value in to_mapping(config).items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            on = specs[name].default
            words += [flag.replace("--", "--no-", 1) if on else flag] if value != on else []
        elif value is not None:
            words.append(f"{flag}={value}")
    return words
