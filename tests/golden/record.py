"""What must not move unless somebody means it to, computed anew: `make golden` writes it.

    make golden && git diff tests/golden

- ``experiments.txt``: of some forty experiments that differ in every option, the default name, the
  command that the report prints, and the configuration of each kind of sample with its hash.
  What changes with every release or edit of the engine has fixed values there: the versions of
  what computes, the engine's version, the processor, and the checksums of the input files.
- ``operators.txt``: the names of the operators that the native engine perturbs, and that pass.
- ``bytes.json``: checksums of small samples (native: every mode on every instruction set, and some
  options) and of trainings of three steps, for each kind of machine that they were made on;
  `make golden` replaces those of the machine that it runs on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from morphbits import bids, engines, provenance, registration
from morphbits.bids import Dataset, Subject
from morphbits.config import MODES, ExperimentConfig, RegisterConfig, to_mapping
from morphbits.images import Image
from morphbits.models import keras_files, vxm_dense
from morphbits.models.weights import Architecture, init_weights, read_weights, save_h5
from morphbits.report import page
from morphbits.report.experiment import Experiment, Record
from morphbits.samples import experiment, matrix

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.toy_experiment import SIZE, volume
from support.toy_training import TOY, train_toy

HERE = Path(__file__).parent
SUBJECTS = [Subject("001"), Subject("002")]
NATIVE: dict[str, Any] = {"engine": "native"}
VERROU: dict[str, Any] = {"engine": "verrou"}
TENSORFLOW: dict[str, Any] = {"framework": "tensorflow"}
EXPERIMENTS: list[dict[str, Any]] = [
    {"engine": "ieee"},
    {"engine": "ieee", **TENSORFLOW},
    {"engine": "ieee", **TENSORFLOW, "onednn": "off"},
    NATIVE,
    *(NATIVE | {"mode": mode} for mode in MODES if mode in ("nearness", "random")),
    *(NATIVE | {"mode": m, "runs": 1} for m in MODES if m not in ("nearness", "random")),
    NATIVE | {"accumulation": "direct"},
    NATIVE | {"accumulation": "blocked:192"},
    NATIVE | {"accumulation": "probe"},
    NATIVE | {"subnormals": "flush"},
    NATIVE | {"precision": "8"},
    NATIVE | {"precision": "bfloat16"},
    NATIVE | {"perturb": "only:flow"},
    NATIVE | {"perturb": "except:encoder-1,flow", "precision": "tf32"},
    NATIVE | {"seed": 7},
    NATIVE | {"seed": 7, "mode": "nearest", "runs": 1},
    NATIVE | {"align": "header"},
    NATIVE | {"align": "centre", "crop": True},
    NATIVE | {"crop": True},
    NATIVE | {"model_orientation": "LIA"},
    NATIVE | {"model": Path("other.h5")},
    NATIVE | {"model": Path("a folder/it's.h5")},
    NATIVE | {"model": Path("joint"), "extent": 192, "regularization": 0.25},
    NATIVE | {"model": Path("mine/rigid")},
    NATIVE | {"subjects": 2, "runs": 10},
    NATIVE | {"size": "4mm"},
    NATIVE | {"size": "1mm", "seed": 3, "mode": "nearness", "accumulation": "direct"},
    NATIVE | {"dataset": "phantom"},
    NATIVE | {"dataset": "corr"},
    NATIVE | {"dataset": "corr-freesurfer"},
    NATIVE | {"dataset": "/data/my images"},
    NATIVE | {"orientation": "LAS", "nan": 0.0},
    NATIVE | {"dataset": "mine", "fixed": Path("target.nii.gz"), "bids_filter": "ses-1 no-run"},
    VERROU,
    VERROU | {"mode": "nearness", "seed": 7},
    VERROU | {"region": "process"},
    VERROU | {"libm": "excluded"},
    VERROU | TENSORFLOW,
    VERROU | TENSORFLOW | {"onednn": "off", "crop": True},
]
# of the native samples whose bytes are pinned: each mode on each instruction set, and these
OPTIONS: list[dict[str, Any]] = [
    {"accumulation": "direct"},
    {"accumulation": "blocked:5"},
    {"accumulation": "probe"},
    {"subnormals": "flush"},
    {"precision": "8"},
    {"precision": "bfloat16"},
    {"precision": "tf32"},
    {"perturb": "only:flow"},
    {"seed": 2},
]
TRAININGS: list[dict[str, Any]] = [
    {},
    {"optimizer": "keras-adam"},
    NATIVE,
    NATIVE | {"mode": "nearest"},
    NATIVE | {"mode": "nearness", "seed": 2},
]


def title(changes: dict[str, Any]) -> str:
    """The options that were chosen, as make takes them."""
    return " ".join(f"{name.upper()}={value}" for name, value in changes.items()) or "nothing"


# ---------------------------------------------------------------------- experiments


@contextmanager
def fixed_versions() -> Iterator[None]:
    """Fixed values for what changes with every release, edit, processor and file."""
    with ExitStack() as stack:
        for module, name, fixed in (
            (provenance, "versions", lambda framework: {framework: "VERSION"}),
            (provenance, "cpu", lambda: {"name": "PROCESSOR"}),
            (provenance, "file_sha256", lambda path: f"sha256 of {path.name}"),
            (vxm_dense, "model_orientation", lambda path, asked: asked),
            (keras_files, "affine_layers", lambda path: path.name),
            (keras_files, "specialized", lambda path, at: f"{path.name} at {at}"),
            (keras_files, "digest", lambda layers: f"sha256 of {layers}"),
            *((engines.get(name), "version", lambda: "KERNEL") for name in ("native", "verrou")),
        ):
            stack.enter_context(mock.patch.object(module, name, fixed))
        yield


def experiments() -> str:
    """The text of experiments.txt."""
    with fixed_versions():
        return "\n".join(line for changes in EXPERIMENTS for line in _experiment(changes))


def _experiment(changes: dict[str, Any]) -> Iterator[str]:
    settings = ExperimentConfig(**changes)
    finished = as_read(settings)
    yield f"[{title(changes)}]"
    yield f"name     {finished.name}"
    yield f"command  {page.command(finished)}"
    for unit in units_of(settings):
        if unit.subject == SUBJECTS[0] and unit.sample in ("01", "ieee", "plain", "threads"):
            chosen = unit.configuration()
            yield f"{unit.sample:<9}{chosen.pop('hash')}"
            yield f"         {json.dumps(chosen, sort_keys=True)}"
    yield ""


def dataset_of(settings: ExperimentConfig) -> Dataset:
    """The dataset that the settings mean where CoRR is not installed; no file is looked at."""
    if settings.dataset in ("auto", "phantom"):
        return bids.phantom_dataset(Path("data"), settings.size)
    if settings.dataset.startswith("corr"):
        route = "freesurfer" if settings.dataset.endswith("freesurfer") else "open"
        return bids.corr_dataset(Path("data"), route)
    root = Path(settings.dataset)
    return Dataset(root, root.name, "MNI152", settings.fixed or root / "fixed.nii.gz")


def units_of(settings: ExperimentConfig) -> list[matrix.Unit]:
    """Its samples of two subjects."""
    dataset = dataset_of(settings)
    name = experiment.default_name(settings, dataset)
    threads = 1 if settings.engine == "verrou" else 3
    return matrix.expand(settings, dataset, SUBJECTS, Path("results"), name, threads)


def as_read(settings: ExperimentConfig) -> Experiment:
    """The experiment as the report reads it when all its samples are there."""
    dataset = dataset_of(settings)
    return Experiment(
        name=experiment.default_name(settings, dataset),
        results=Path("results"),
        settings=to_mapping(settings),
        dataset=dataset.name,
        records=[
            Record(unit.sample, unit.subject, unit.configuration(), {}, {})
            for unit in units_of(settings)
        ],
        significance=[{"subject": s.entities, "n": settings.runs} for s in SUBJECTS],
        variability=[],
        repeatability=[],
        accuracy=[],
        dataset_root=dataset.root,
    )


# ---------------------------------------------------------------------- operators


def operators() -> str:
    """The text of operators.txt."""
    from morphbits.engines.native import rules  # noqa: F401  (fills the table)
    from morphbits.engines.native.rules.registry import PASS, RULES

    lines = [*(f"perturbed {name}" for name in RULES), *(f"passes {name}" for name in PASS)]
    return "\n".join([*sorted(lines), ""])


# ---------------------------------------------------------------------- bytes


def machine() -> str:
    """What besides the code can change a byte here."""
    import torch

    processor, library = provenance.cpu()["name"], " ".join(platform.libc_ver())
    return f"{processor}, {library}, torch {torch.__version__}"


def checksums() -> dict[str, str]:
    """Of all samples and trainings, by name."""
    with tempfile.TemporaryDirectory(prefix="morphbits-golden-") as name:
        folder = Path(name)
        return {**_samples(folder), **_trainings(folder)}


def _samples(folder: Path) -> dict[str, str]:
    from morphbits.engines.native.kernels import library

    model = folder / "toy.h5"
    # more than 16 channels, the blocks of the order direct; subnormal biases, which flush removes
    architecture = Architecture((4, 20, 4, 4), (4,) * 6, 5, inshape=(SIZE,) * 3)
    weights = init_weights(architecture, 1)
    weights |= {k: w + np.float32(1e-40) for k, w in weights.items() if w.ndim == 1}
    save_h5(model, architecture, weights)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    pair = [Image(volume(seed), affine) for seed in (1, 0)]

    def checksum(config: RegisterConfig) -> str:
        prepared = registration.prepare(*pair, model, config)
        result = registration.register(prepared, model, config)
        arrays = result.moved_XYZ, result.warp_XYZV
        return " ".join(provenance.data_sha256(array)[7:23] for array in arrays)

    found = {"plain": checksum(RegisterConfig())}
    for variant in library.available_variants():
        with mock.patch.object(library, "default_variant", lambda variant=variant: variant):
            for mode in MODES:
                config = RegisterConfig(engine="native", mode=mode)
                found[f"native {title({'mode': mode})} {variant}"] = checksum(config)
    for changes in OPTIONS:
        found[f"native {title(changes)}"] = checksum(RegisterConfig(engine="native", **changes))
    return found


def _trainings(folder: Path) -> dict[str, str]:
    found = {}
    for number, changes in enumerate(TRAININGS):
        config = dataclasses.replace(TOY, epochs=1, steps=3, **changes)
        digest = hashlib.sha256()
        for _, weights in sorted(read_weights(train_toy(folder / str(number), config)).items()):
            digest.update(weights.astype("<f4").tobytes())
        digest.update((folder / str(number) / "log.csv").read_bytes())
        found[f"training {title(changes)}"] = digest.hexdigest()[:16]
    return found


def pinned_checksums() -> dict[str, dict[str, str]]:
    """The content of bytes.json: checksums by machine."""
    return json.loads((HERE / "bytes.json").read_text(encoding="utf-8"))


def main() -> None:
    (HERE / "experiments.txt").write_text(experiments(), encoding="utf-8")
    (HERE / "operators.txt").write_text(operators(), encoding="utf-8")
    path = HERE / "bytes.json"
    before = pinned_checksums() if path.exists() else {}
    text = json.dumps(before | {machine(): checksums()}, indent=1)
    path.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
