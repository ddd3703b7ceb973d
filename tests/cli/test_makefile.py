"""The Makefile: what it prints, what it passes on, and that nothing it names is missing."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import subprocess
from pathlib import Path

import pytest

from morphbits import cli
from morphbits.config import ExecutionConfig, ExperimentConfig, Perturbation
from morphbits.training import RunConfig, TrainConfig

ROOT = Path(__file__).resolve().parents[2]
MAKEFILE = (ROOT / "Makefile").read_text()
VERBS = re.findall(r"^\.PHONY: (\S+)$", MAKEFILE, re.MULTILINE)
VARIABLES = re.findall(r"^([A-Z_]+) \?=", MAKEFILE, re.MULTILINE)
# a make above this one, and the user's own settings, must not show through
CLEAN = {k: v for k, v in os.environ.items() if not k.startswith("MAKE") and k not in VARIABLES}


def make(*arguments: str) -> str:
    done = subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=ROOT, env=CLEAN, text=True, capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_help_has_one_line_for_every_verb_and_variable() -> None:
    lines = [line for line in make().splitlines() if line.startswith("  ")]
    assert sorted(line.split()[0] for line in lines) == sorted(VERBS + VARIABLES)
    assert all(len(line.split()) > 2 and len(line) <= 110 for line in lines)


@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_uses_an_undefined_variable(verb: str) -> None:
    assert "warning" not in make("-n", "--warn-undefined-variables", verb)


def test_every_script_that_a_verb_runs_is_there() -> None:
    scripts = re.findall(r"(?:python|scripts)/[\w/]+\.(?:py|sh)", MAKEFILE)
    assert scripts
    assert [name for name in scripts if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_passes_on_where_data_and_results_are(verb: str) -> None:
    for line in make("-n", verb, "DATA=/d", "RESULTS=/r").splitlines():
        for name in re.findall(r"python/morphbits (\S+)", line):
            module = importlib.util.find_spec(f"morphbits.{cli.VERBS[name].module}")
            script = Path(str(module and module.origin)).read_text()
            for option in ("--data='/d'", "--results='/r'"):
                taken = f'"{option.partition("=")[0]}"' in script
                assert option in line or not taken, f"{name} is not told {option}"


def command(*arguments: str) -> list[str]:
    """The words that `make inference` hands to `morphbits inference`."""
    (line,) = (x for x in make("-n", *arguments).splitlines() if "morphbits inference" in x)
    return line.partition("morphbits inference")[2].split()


def test_only_what_the_user_sets_is_passed_on() -> None:
    assert command("inference") == []
    words = command("inference", "SUBJECTS=3", "ACCUMULATION=blocked:192", "DRY_RUN=1", "YES=0")
    assert words == ["--subjects='3'", "--accumulation='blocked:192'", "--dry-run"]


def test_every_variable_of_inference_is_an_option_of_its_script() -> None:
    passed = command("inference", *(f"{name}=1" for name in VARIABLES), "WAIT=0")
    options = {word.partition("=")[0] for word in passed if word.startswith("--")}
    others = set("PYTHON TORCH FULL SMALL SOURCE TABLE ROUTE AGAIN CONTAINER VERROU BY".split())
    others |= set(
        "EPOCHS STEPS BATCH MODEL_DIR KEEP_EVERY RESUME NPROC NNODES RDZV RUN_ID".split()
    )
    others |= set(
        "LABELS TARGETS SYNTH_PROCS SUBJECT NOTES CHECK DEVICE A B C ALPHA FLOOR LICENSE".split()
    )
    others |= set("LOSS SMOOTHNESS OPTIMIZER LEARNING_RATE ORDERS".split())
    assert len(options) == len(set(VARIABLES) - others)
    script = [*cli.command("inference"), "--help"]
    usage = subprocess.run(script, text=True, capture_output=True, check=True).stdout
    assert [option for option in options if not re.search(rf"{option}\b", usage)] == []


def test_every_variable_of_training_is_an_option_of_its_script() -> None:
    (line,) = (
        x
        for x in make("-n", "train-single", *(f"{v}=1" for v in VARIABLES)).splitlines()
        if "morphbits train" in x
    )
    options = re.findall(r"--[a-z-]+", line)
    assert {"--experiment", "--epochs", "--steps", "--model-dir", "--resume"} <= set(options)
    script = [*cli.command("train"), "--help"]
    usage = subprocess.run(script, text=True, capture_output=True, check=True).stdout
    assert [option for option in options if not re.search(rf"{option}\b", usage)] == []


def test_train_ddp_hands_processes_to_the_script_and_options_to_python() -> None:
    (line,) = (
        x for x in make("-n", "train-ddp", "NPROC=16", "EPOCHS=2").splitlines() if "train_ddp" in x
    )
    assert "NPROC='16'" in line and line.strip().endswith("train_ddp.sh --epochs='2'")


@pytest.mark.parametrize(
    "verb", ["train-single", "train-ddp", "train-slurm", "training-stability"]
)
def test_a_training_takes_every_variable_of_its_recipe(verb: str) -> None:
    given = {"LOSS": "dice", "LEARNING_RATE": "1e-3", "SMOOTHNESS": "1", "SIZE": "2mm"}
    given |= {"ENGINE": "native", "MODE": "nearness", "LABELS": "shapes", "TARGETS": "all"}
    passed = make("-n", verb, *(f"{name}={value}" for name, value in given.items()))
    for name, value in given.items():
        assert f"--{name.lower().replace('_', '-')}='{value}'" in passed


def passed_on(verb: str) -> set[str]:
    """The options that a verb hands to its script when every variable is set."""
    given = [f"{name}=1" for name in VARIABLES if name != "WAIT"] + ["WAIT=0"]
    (line,) = (x for x in make("-n", verb, *given).splitlines() if "--experiment" in x)
    return set(re.findall(r"--(?:no-)?([a-z-]+)", line))


def names(*classes: type, engine: str = "") -> set[str]:
    """Options of these classes, those that an engine on torch knows where one is given."""
    return {
        spec.name.replace("_", "-")
        for cls in classes
        for spec in dataclasses.fields(cls)
        if not engine
        or (engine in (spec.metadata["engines"] or [engine]) and not spec.metadata["frameworks"])
    }


def test_inference_passes_on_every_option_of_an_experiment() -> None:
    assert passed_on("inference") == names(ExperimentConfig, ExecutionConfig)


@pytest.mark.parametrize("verb", ["layers", "precision", "orders", "one-run", "flips"])
def test_a_study_of_layers_passes_on_what_the_native_engine_knows(verb: str) -> None:
    chosen_there = {"engine", "framework", "precision", "perturb"}
    without = chosen_there | {"subjects", "jobs", "dry-run", "yes", "wait", "executor"}
    without |= {"slurm-options", "slurm-container", "task-samples", "viewer"}
    expected = names(ExperimentConfig, ExecutionConfig, engine="native") - without
    own = {"subject", "notes"} | ({"check"} if verb == "one-run" else set())
    assert passed_on(verb) == expected | own


@pytest.mark.parametrize(
    "verb", ["train-single", "train-ddp", "train-slurm", "training-stability"]
)
def test_a_training_passes_on_every_option_of_the_arithmetic(verb: str) -> None:
    assert names(Perturbation) <= passed_on(verb)
    own = {"source", "experiment", "results", "model-dir", "runs", "jobs"}
    assert passed_on(verb) <= names(TrainConfig, RunConfig) | own


def test_help_names_every_choice_of_a_variable() -> None:
    """Where the help of make lists values, it lists all of them."""
    for spec in (*dataclasses.fields(ExperimentConfig), *dataclasses.fields(ExecutionConfig)):
        (line,) = re.findall(rf"(?m)^{spec.name.upper()} \?=.*$", MAKEFILE)
        for choice in spec.metadata["choices"]:
            assert choice in line, f"make does not say that {spec.name.upper()} may be {choice}"
