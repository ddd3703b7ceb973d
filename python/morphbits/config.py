"""Options: one dataclass field is one option, with one name, everywhere.

Field ``mode`` is ``--mode`` on the command line, ``MODE=`` for make, ``mode = "random"`` in a TOML
file and ``"mode": "random"`` in a JSON record. Help, choices and limits are written once, beside
the field.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import re
import tomllib
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

from morphbits import choices
from morphbits.choices import MODES, STOCHASTIC_MODES, SUBNORMALS
from morphbits.errors import UserError
from morphbits.wording import alternatives

FRAMEWORKS = ("torch", "tensorflow")
ENGINES = ("ieee", "native", "verrou")
PERTURBING = ("native", "verrou")
REGIONS = ("registration", "process")
LIBM = ("perturbed", "excluded")
ALIGNMENTS = ("auto", "header", "centre")
FREESURFER_MODELS = ("joint", "affine", "rigid", "deform")  # of mri_synthmorph
DEMO_MODEL = Path(__file__).parent / "models" / "demo.h5"
# in a clone a link to python/experiments
EXPERIMENTS = (Path(__file__).parent / "experiments").resolve()

Config = TypeVar("Config")
Hashed = Literal["always", "changed", "never"] | Callable[[Any], bool]


def option(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    parse: Callable[[Any], object] | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    engines: tuple[str, ...] = (),
    frameworks: tuple[str, ...] = (),
    modes: tuple[str, ...] = (),
    models: tuple[str, ...] = (),
    harmless: Callable[[Any], bool] = lambda value: False,
    hashed: Hashed = "always",
    named: str | Callable[[Any], str] = "",
    label: str = "",
) -> Any:
    """A dataclass field with all that there is to know about an option.

    Values: one of `choices`; what `parse` takes (it raises ValueError with what is allowed in
    words); numbers from `minimum` to `maximum`.

    Where it has an effect: under these `engines`, in these `frameworks`, in these `modes`, with
    these `models` (empty: in all). Elsewhere it is neither in hash nor name, and another value
    than the default is refused, unless it is `harmless`.

    What is made of it where it has an effect: a key of the configuration's hash (`hashed`: always,
    never, or only where it is changed from its default, which keeps the hashes there are when an
    option is added; or what a function of the configuration says); a word of the experiment's
    default name where it is changed (`named`: with {} for the value); a row of the report, under
    `label`.
    """
    metadata = {key: value for key, value in locals().items() if key != "default"}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Perturbation:
    """Who rounds, and how: shared by registrations, experiments and trainings."""

    engine: str = option(
        "ieee",
        "what perturbs the roundings: ieee (nothing), native (compiled random rounding in torch), "
        "verrou (a tool of Valgrind, for any framework)",
        choices=ENGINES,
        label="engine",
    )
    mode: str = option(
        "random",
        "how the native and verrou engines round; the names are Verrou's",
        choices=MODES,
        engines=PERTURBING,
        harmless=lambda value: value == "nearest",  # which is what ieee does
        label="rounding mode",
    )
    accumulation: str = option(
        "sequential",
        "native: order in which a convolution adds its products: sequential (TensorFlow's), "
        "direct (torch's on AVX-512), blocked:K (a gemm in blocks of K terms) or probe (torch's "
        "own, measured on this machine for each layer)",
        parse=choices.accumulation,
        engines=("native",),
        named=lambda value: value.replace(":", ""),
        label="order of accumulation",
    )
    subnormals: str = option(
        "keep",
        "native: keep subnormal numbers (torch, Valgrind) or flush them to zero (TensorFlow)",
        choices=SUBNORMALS,
        engines=("native",),
        named="{}",
        label="subnormal numbers",
    )
    precision: str = option(
        "24",
        "native: significant bits of each result, 2 to 24, or float16, bfloat16 (what operators "
        "read and write), tf32 (what convolutions multiply)",
        parse=choices.precision,
        engines=("native",),
        hashed="changed",
        named="precision-{}",
        label="precision",
    )
    perturb: str = option(
        "all",
        "native: stages of the model that mode and precision apply to: all, only:NAME,… or "
        "except:NAME,… with encoder-1 …, decoder-1 …, flow, network (these together), "
        "integration, rescaling, sampling; the others compute in float32 to nearest",
        parse=choices.stages,
        engines=("native",),
        hashed="changed",
        named="{}",
        label="perturbed stages",
    )


@dataclass(frozen=True)
class Reading:
    """How images are read that leave something open."""

    orientation: str = option(
        "",
        "where the axes point in images whose files do not say so (NIfTI without codes, "
        "Analyze), such as LAS: left, anterior, superior; by default such images are refused",
        parse=choices.orientation,
        hashed="changed",
        named="orientation-{}",
        label="axes of images that do not say them",
    )
    nan: float | None = option(
        None,
        "number that replaces NaN and infinite voxels; by default such images are refused",
        minimum=-1e30,
        maximum=1e30,
        hashed="changed",
        named="nan-{:g}",
        label="value for NaN",
    )


@dataclass(frozen=True)
class Writing:
    """How warps are written."""

    warp_format: str = option(
        "voxels",
        "numbers of the warp's file, each the whole transform: voxels (this suite's; the header "
        "says so), ras (mm; FreeSurfer, nitransforms), itk (LPS mm; ITK, ANTs, elastix) or fsl "
        "(its scaled voxels, relative)",
        choices=choices.WARP_FORMATS,
        hashed="changed",
    )


@dataclass(frozen=True)
class Arithmetic(Perturbation, Reading):
    """How numbers are computed: shared by one registration and by a whole experiment."""

    framework: str = option(
        "torch",
        "framework that computes the network",
        choices=FRAMEWORKS,
        named="{}",
        label="framework",
    )
    align: str = option(
        "auto",
        "how moving and fixed image are aligned first: header (both affines), centre (centres of "
        "mass), or auto (header where both files have an affine)",
        choices=ALIGNMENTS,
        named="align-{}",
        label="alignment",
    )
    region: str = option(
        "registration",
        "verrou: perturb the registration, or the whole process from its start",
        choices=REGIONS,
        engines=("verrou",),
        hashed=lambda config: config.engine in PERTURBING,
        named="{}",
        label="perturbed region",
    )
    libm: str = option(
        "perturbed",
        "verrou: whether results of the C library's functions are perturbed too (by Interlibmath)",
        choices=LIBM,
        engines=("verrou",),
        named="libm-{}",
        label="libm",
    )
    onednn: str = option(
        "on",
        "tensorflow: on: oneDNN's kernels, which users run; off: TensorFlow's own",
        choices=("on", "off"),
        frameworks=("tensorflow",),
        named="onednn-{}",
        label="oneDNN",
    )
    seed: int = option(
        1,
        "seed of the random roundings",
        minimum=0,
        maximum=2**63,
        engines=PERTURBING,
        modes=STOCHASTIC_MODES,
        harmless=lambda value: True,
        named="seed-{}",
        label="seed",
    )
    model_orientation: str = option(
        "auto",
        "axes of the images that the model was trained on, such as RAS or LIA; images are brought "
        "to these axes and results back; fixed: those of the fixed file; auto: as recorded with "
        "the model",
        parse=choices.model_orientation,
        hashed="never",  # what it comes to is, as `provenance.inputs` says it
        named="axes-{}",
        label="the model's axes",
    )
    extent: int = option(
        256,
        "joint, affine, rigid, deform: edge of the cube of 1 mm voxels that the network sees; "
        "mri_synthmorph has 256 or 192, multiples of 32 are possible",
        parse=choices.extent,
        minimum=64,
        maximum=512,
        models=FREESURFER_MODELS,
        hashed="never",  # it is, with the model, as `Model.identity` says it
        named="extent-{}",
        label="edge of the network's cube, mm",
    )
    regularization: float = option(
        0.5,
        "joint, deform: how smooth the warp is, 0 to 1, for which the hypernetwork is evaluated",
        minimum=0,
        maximum=1,
        models=("joint", "deform"),
        hashed="never",  # as extent
        named="regularization-{:g}",
        label="regularization",
    )
    crop: bool = option(
        False,
        "leave out the borders of the fixed grid where both images are at their minimum; with a "
        "brain in a conformed 256³ image this saves more than half of the time",
        hashed="changed",
        named="crop",
        label="borders left out",
    )


def _threads_matter(config: RegisterConfig) -> bool:
    """Whether the bytes depend on the number of threads, as the framework's own do."""
    return config.engine != "native" or config.accumulation == "probe"


@dataclass(frozen=True)
class RegisterConfig(Arithmetic, Writing):
    """One registration."""

    threads: int = option(
        1, "threads of the computation", minimum=1, maximum=1024, hashed=_threads_matter
    )
    plain: bool = option(
        False,
        "tensorflow: what model.predict gives by default; otherwise grappler's arithmetic "
        "optimization is off, which gives the bytes of eager mode",
        frameworks=("tensorflow",),
    )

    def __post_init__(self) -> None:
        check_combination(self)
        if self.engine == "verrou" and self.threads > 1:
            raise UserError(
                f"threads {self.threads}: engine verrou computes on one thread (Valgrind runs one "
                "at a time, and another number makes other bytes); leave it out"
            )


@dataclass(frozen=True)
class ExperimentConfig(Arithmetic):
    """What an experiment is: subjects × runs, and all that can change a byte of its samples."""

    engine: str = option(
        "auto",
        "what perturbs the roundings: native, verrou, ieee (nothing), or auto (verrou if it can "
        "be started, else native)",
        choices=("auto", *ENGINES),
        label="engine",
    )
    dataset: str = option(
        "auto",
        "phantom, corr, corr-freesurfer, the folder of a BIDS dataset, or auto (corr where it is "
        "installed)",
    )
    fixed: Path | None = option(
        None,
        "fixed image for a BIDS dataset; by default the one in its derivatives/*/tpl-*/",
        named=lambda path: f"fixed-{path.name.partition('.')[0]}",
    )
    bids_filter: str = option(
        "",
        "which images of a BIDS dataset, by entities of their names: 'ses-1 acq-mprage'; "
        "'no-run run-1' takes names without run, or with run 1",
        named="{}",
    )
    size: str = option("2mm", "voxel size of the phantom dataset", choices=("4mm", "2mm", "1mm"))
    model: Path = option(
        DEMO_MODEL,
        "voxelmorph .h5 weights; joint, affine, rigid or deform (FreeSurfer 8's mri_synthmorph); "
        "classical (a registration without a network); or package.module:function for another "
        "network; the default is the demo model",
    )
    subjects: int = option(
        3, "number of subjects, from the first of the dataset", minimum=1, maximum=100_000
    )
    runs: int = option(5, "perturbed samples of each subject", minimum=1, maximum=100_000)

    def __post_init__(self) -> None:
        check_combination(self)
        if self.runs > 1 and self.engine != "ieee" and self.mode not in STOCHASTIC_MODES:
            raise UserError(
                f"mode {self.mode} is deterministic, so all runs would be the same sample: "
                "ask for RUNS=1, or for MODE=random or nearness"
            )

    def registration(self, **changes: Any) -> RegisterConfig:
        """One registration of the experiment, with `changes`; what their engine and framework do
        not know is left at its default."""
        shared = {name: getattr(self, name) for name in _fields(Arithmetic)} | changes
        return RegisterConfig(**effective(RegisterConfig, shared) | changes)


@dataclass(frozen=True)
class ExecutionConfig:
    """How an experiment is run here: nothing that can change a byte of a sample."""

    experiment: str = option(
        "",
        "name of the results folder; settings are read from python/experiments/NAME.toml if that "
        "exists; by default the name is made of engine, dataset and model",
        parse=lambda value: _experiment_name(value),
    )
    results: Path = option(Path("results"), "folder of all experiments")
    data: Path = option(Path("data"), "folder of the datasets")
    jobs: int | None = option(
        None,
        "worker processes; by default as many as cores and memory allow",
        minimum=1,
        maximum=100_000,
    )
    threads: int | None = option(
        None, "threads of each worker; by default cores divided by jobs", minimum=1, maximum=1024
    )
    executor: str = option(
        "local", "where the samples run: local (this machine) or slurm", choices=("local", "slurm")
    )
    slurm_options: str = option(
        "", "slurm: more options for sbatch, such as '--partition=long --account=me'"
    )
    slurm_container: str = option(
        "",
        "slurm: program that runs the tasks in the image of 'make docker' ($IMAGE)",
        choices=("", "apptainer", "podman", "docker"),
    )
    task_samples: int | None = option(
        None,
        "slurm: samples of one task; by default ten minutes' worth",
        minimum=1,
        maximum=1_000_000,
    )
    wait: bool = option(
        True,
        "slurm: wait for the samples; --no-wait returns once they are submitted, and the same "
        "command later collects them",
    )
    viewer: int = option(
        0,
        "also write a page in which the volumes of the first N subjects can be looked through, "
        "report-viewer.html; its viewer, niivue, is fetched once",
        minimum=0,
        maximum=10_000,
    )
    dry_run: bool = option(False, "list what would run, with an estimate, and stop")
    yes: bool = option(False, "start although the estimate is above two hours")


def _experiment_name(value: str) -> None:
    if not re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9._-]*)?", value):
        raise ValueError(
            "must be a name of letters, digits, dots, underscores and hyphens, the first one a "
            f"letter or a digit, not {value!r}"
        )


# ---------------------------------------------------------------------- what options mean together


def has_effect(config: Any, spec: dataclasses.Field[Any]) -> bool:
    """Whether the option does anything in this configuration: see `option`."""
    belongs = {"engine": "engines", "framework": "frameworks", "mode": "modes"}
    models = spec.metadata["models"]
    told = hasattr(config, "model")  # a registration's is told elsewhere; None: the demo model
    return all(
        not spec.metadata[names] or getattr(config, key) in spec.metadata[names]
        for key, names in belongs.items()
    ) and (not models or not told or Path(config.model or DEMO_MODEL).name in models)


def effective(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The options of ``cls`` that do anything with these values, by name; what is not among the
    values is at its default."""
    specs = _fields(cls)
    every = types.SimpleNamespace(**{n: values.get(n, spec.default) for n, spec in specs.items()})
    return {name: v for name, v in vars(every).items() if has_effect(every, specs[name])}


def with_engine(config: Config, engine: str) -> Config:
    """The same with another engine; what that one does not know is left at its default."""
    values = {name: getattr(config, name) for name in _fields(type(config))} | {"engine": engine}
    return type(config)(**effective(type(config), values))


def labelled(cls: type, values: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
    """What a report says of these values: label and value of the options that have a label and do
    anything, by name."""
    specs = _fields(cls)
    labels = {name: specs[name].metadata["label"] for name in specs}
    return {n: (labels[n], v) for n, v in effective(cls, values).items() if labels[n]}


def to_variables(cls: type, values: Mapping[str, Any]) -> dict[str, str]:
    """The variables of make that give these values; what does nothing with them is left out."""
    found = {}
    for name, value in effective(cls, values).items():
        default = _fields(cls)[name].default
        if isinstance(default, bool):
            if value != default:
                found[name.upper()] = str(int(value))
        elif value not in (None, ""):
            found[name.upper()] = str(value)
    return found


def hashed(config: Any) -> dict[str, Any]:
    """The options that belong to the hash of this configuration, by name."""

    def belongs(spec: dataclasses.Field[Any]) -> bool:
        rule = spec.metadata["hashed"]
        if callable(rule):
            return bool(rule(config))
        changed = getattr(config, spec.name) != spec.default
        return has_effect(config, spec) and (rule == "always" or (rule == "changed" and changed))

    specs = _fields(type(config))
    return {name: getattr(config, name) for name, spec in specs.items() if belongs(spec)}


def name_words(config: Any) -> list[str]:
    """Words for what was changed from its default, of the options that are named."""
    words = []
    for name, spec in _fields(type(config)).items():
        named, value = spec.metadata["named"], getattr(config, name)
        if named and value != spec.default and has_effect(config, spec):
            words.append(named(value) if callable(named) else named.format(value))
    return words


def engines_for(config: Perturbation) -> list[str]:
    """The perturbing engines that know every option which was changed from its default."""
    known = set(PERTURBING)
    for spec, _ in _changed(config):
        known &= set(spec.metadata["engines"] or PERTURBING)
    return [engine for engine in PERTURBING if engine in known]


def _changed(config: Any) -> list[tuple[dataclasses.Field[Any], Any]]:
    """Options of another value than their default, without those that are harmless anywhere."""
    specs = _fields(type(config))
    values = [(spec, getattr(config, name)) for name, spec in specs.items()]
    return [(s, v) for s, v in values if v != s.default and not s.metadata["harmless"](v)]


def check_combination(config: Perturbation) -> None:
    """Refuse values that an option does not have, and what does not go together, above all an
    option that would do nothing."""
    for name, spec in _fields(type(config)).items():
        try:
            _checked(type(config), spec, getattr(config, name))
        except ValueError as error:
            raise UserError(f"{name} {error}") from None
    framework = getattr(config, "framework", "torch")
    if framework == "tensorflow" and config.engine == "native":
        raise UserError(
            "the native engine perturbs torch only: give --framework torch (the port, which in "
            "sequential order reproduces TensorFlow's operations), or --engine ieee for "
            "TensorFlow itself"
        )
    for spec, value in _changed(config):
        for kind, chosen in (("engine", config.engine), ("framework", framework)):
            known = spec.metadata[f"{kind}s"]
            if known and chosen not in (*known, "auto"):
                raise UserError(
                    f"{_said(spec, value)} does nothing with {kind} {chosen}; it is for "
                    f"{alternatives(known)}: give --{kind} {known[0]}, or leave it out"
                )
    if config.engine == "auto" and not engines_for(config):
        asked = [
            _said(spec, value) for spec, value in _changed(config) if spec.metadata["engines"]
        ]
        raise UserError(f"no engine knows {' and '.join(asked)} together: leave one of them out")
    if config.precision != "24" and config.subnormals == "flush":
        raise UserError(f"precision {config.precision} needs --subnormals keep")


def _said(spec: dataclasses.Field[Any], value: Any) -> str:
    """``--libm excluded``, ``--plain``."""
    flag = "--" + spec.name.replace("_", "-")
    return flag if isinstance(value, bool) else f"{flag} {value}"


# ---------------------------------------------------------------------- values


@functools.cache
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
    known, parse = spec.metadata["choices"], spec.metadata["parse"]
    if known and isinstance(value, str):
        choices.one_of(known, value)
    if isinstance(value, int | float):
        check_number(value, spec.metadata["minimum"], spec.metadata["maximum"])
    if parse:
        parse(value)
    return value


def check_number(value: float, minimum: float | None, maximum: float | None) -> None:
    """ValueError with the reason where the number is not finite or beyond its limits."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"must be a finite number, not {value}")
    if minimum is not None and value < minimum:
        raise ValueError(f"must be at least {minimum}, not {value}")
    if maximum is not None and value > maximum:
        raise ValueError(f"must be at most {maximum}, not {value}")


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
            hint = choices.did_you_mean(key, specs) or f"; known are {', '.join(specs)}"
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


class Parser(argparse.ArgumentParser):
    """argparse's, but a wrong value is one sentence, without a list of all options before it."""

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ").split("=")[0].split(" ")[0]
        if unknown != message.split("=")[0].split(" ")[0]:
            hint = choices.did_you_mean(unknown, self._option_string_actions)
            message = f"there is no option {unknown} here{hint}; --help lists them"
        raise UserError(message)


def parser(description: str | None, program: str | None = None) -> Parser:
    """A parser for a script: its description as it is written, options written out whole."""
    return Parser(
        prog=program,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def whole(minimum: int, maximum: int = 1_000_000) -> Callable[[str], int]:
    """The type of a script's own option that is a whole number."""
    return lambda text: int(_limited(int, text, minimum, maximum))


def real(minimum: float, maximum: float) -> Callable[[str], float]:
    """The type of a script's own option that is a number."""
    return lambda text: _limited(float, text, minimum, maximum)


def _limited(kind: type, text: str, minimum: float, maximum: float) -> float:
    value = _number(kind, text)
    try:
        check_number(value, minimum, maximum)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return value


def _number(kind: type, text: str) -> float:
    """The number that is written there; argparse's error for a type where it is none."""
    try:
        return float(text) if kind is float else int(text)
    except ValueError:
        name = "whole number" if kind is int else "number"
        raise argparse.ArgumentTypeError(f"must be a {name}, not {text!r}") from None


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
            metavar="|".join(filter(None, choices)) if choices else name.upper(),
            help=(help + default).replace("%", "%%"),
        )


def _argument_type(cls: type, spec: dataclasses.Field[Any]) -> typing.Callable[[str], Any]:
    kind, _ = _type_of(cls, spec.name)

    def parse(text: str) -> Any:
        value = _number(kind, text) if kind in (int, float) else text
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
