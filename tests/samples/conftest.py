"""Fixtures of the toy experiment; see support/toy_experiment.py."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.toy_experiment import SIZE, Toy, volume

from morphbits import images
from morphbits.config import ExecutionConfig, ExperimentConfig
from morphbits.models.weights import Architecture, init_weights, save_h5


@pytest.fixture(scope="session")
def toy_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``data`` (three subjects, a fixed image) and ``model.h5``."""
    root = tmp_path_factory.mktemp("toy")
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    images.save(root / "data/derivatives/truth/tpl-TOY/tpl-TOY_T1w.nii.gz", volume(0), affine)
    for k in (1, 2, 3):
        images.save(root / f"data/sub-{k:03d}/anat/sub-{k:03d}_T1w.nii.gz", volume(k), affine)
    architecture = Architecture((4, 4, 4, 4), (4,) * 6, 5, inshape=(SIZE,) * 3)
    save_h5(root / "model.h5", architecture, init_weights(architecture, 1))
    return root


def toy_in(results: Path, toy_files: Path) -> Toy:
    return Toy(
        ExperimentConfig(
            engine="ieee",
            dataset=str(toy_files / "data"),
            model=toy_files / "model.h5",
            subjects=2,
            runs=2,
        ),
        ExecutionConfig(experiment="toy", results=results, jobs=1),
    )


@pytest.fixture
def toy(toy_files: Path, tmp_path: Path) -> Toy:
    """One experiment in a results folder of its own: engine ieee, 2 subjects × (2 + 4) samples,
    one worker, whose start takes longer than all of them."""
    return toy_in(tmp_path / "results", toy_files)


@pytest.fixture(scope="session")
def toy_results(toy_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The experiment's folder after its run."""
    once = toy_in(tmp_path_factory.mktemp("results"), toy_files)
    assert once.run().returncode == 0
    return once.folder


@pytest.fixture
def made_toy(toy: Toy, toy_results: Path) -> Toy:
    """The experiment, already run."""
    shutil.copytree(toy_results, toy.folder)
    return toy


@pytest.fixture
def wait_for() -> Callable[[Callable[[], bool]], None]:
    """Wait until something is so, at most a minute."""

    def wait(condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < end, "waited a minute in vain"
            time.sleep(0.005)

    return wait
