"""The command under "Do it again": read by make and by the real options, the same experiment."""

from __future__ import annotations

import dataclasses
import os
import shlex
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from golden import record

from morphbits import config
from morphbits.config import ExecutionConfig, ExperimentConfig
from morphbits.report import page
from morphbits.samples import experiment

ROOT = Path(__file__).resolve().parents[2]


def parsed(command: str) -> tuple[ExperimentConfig, ExecutionConfig]:
    """What `morphbits inference` is asked for when a shell runs this command."""
    variables = {word.partition("=")[0] for word in shlex.split(command)[2:]}
    environment = {k: v for k, v in os.environ.items() if k not in variables and "MAKE" not in k}
    done = subprocess.run(
        ["bash", "-c", command.replace("make ", "make --no-print-directory -n ", 1)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    (line,) = (x for x in done.stdout.splitlines() if "morphbits inference" in x)
    words = shlex.split(line.partition("morphbits inference")[2])
    parser = config.parser("")
    config.add_arguments(parser, ExperimentConfig)
    config.add_arguments(parser, ExecutionConfig)
    return experiment.from_options(parser.parse_args(words))


def identity(settings: ExperimentConfig) -> list[object]:
    """Name, and of each sample its name and hash."""
    units = record.units_of(settings)
    found = [(str(unit), unit.configuration()["hash"]) for unit in units]
    return [experiment.default_name(settings, record.dataset_of(settings)), *found]


def test_the_command_gives_the_same_hash_whatever_option_was_chosen() -> None:
    """Every option is in EXPERIMENTS at another value than its default (test_golden)."""
    with record.fixed_versions():
        asked = [ExperimentConfig(**changes) for changes in record.EXPERIMENTS]
        commands = [page.command(record.as_read(settings)) for settings in asked]
        with ThreadPoolExecutor() as pool:
            found = list(pool.map(parsed, commands))
        for settings, (again, execution) in zip(asked, found, strict=True):
            assert identity(again) == identity(settings)
            assert execution.experiment == identity(settings)[0]
            assert (again.subjects, again.runs) == (settings.subjects, settings.runs)
            assert again.dataset != "auto" and again.engine == settings.engine


def test_it_names_the_folders_of_results_and_data_where_they_are_not_the_usual_ones() -> None:
    settings = ExperimentConfig(engine="native", dataset="phantom")
    with record.fixed_versions():
        read = record.as_read(settings)
    assert not {"RESULTS", "DATA"} & set(page.command(read).replace("=", " ").split())
    root = Path("/disk/$big one/it's #1")
    elsewhere = dataclasses.replace(
        read, results=root / "results", dataset_root=root / "data/phantom-2mm"
    )
    _, execution = parsed(page.command(elsewhere))
    assert (execution.results, execution.data) == (root / "results", root / "data")


def test_a_model_that_is_called_as_the_demo_model_is_named() -> None:
    with record.fixed_versions():
        read = record.as_read(ExperimentConfig(engine="native", dataset="phantom"))
    for path, named in (("/own/models/demo.h5", True), ("/a/morphbits/models/demo.h5", False)):
        settings = {**read.settings, "model": path}
        command = page.command(dataclasses.replace(read, settings=settings))
        assert (f"MODEL={path}" in command.split()) == named


def test_an_older_record_without_settings_has_a_command_too() -> None:
    with record.fixed_versions():
        read = record.as_read(ExperimentConfig(engine="native", mode="nearness", crop=True))
    again, _ = parsed(page.command(dataclasses.replace(read, settings={"dataset": "auto"})))
    assert (again.engine, again.mode, again.crop, again.dataset) == (
        "native", "nearness", True, "phantom"
    )  # fmt: skip
