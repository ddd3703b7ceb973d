"""checkpoint.pt: all that a training needs to go on, replaced whole.

Nothing random outlives a step: pairs and roundings are functions of (seed, epoch, step, rank), so
that the number of steps is the state of every random stream. All of it is under a digest: torch
reads its own files without a look at their checksums.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from morphbits import bids, engines
from morphbits.config import to_mapping
from morphbits.engines import verrou
from morphbits.errors import UserError
from morphbits.files import locked, write_atomically
from morphbits.provenance import file_sha256, versions
from morphbits.training.network import layout
from morphbits.training.recipe import TrainConfig

NAME = "checkpoint.pt"
Versions = Mapping[str, str]


@dataclass(frozen=True)
class State:
    """Where a training is: updates done, the states of model and optimizer, and the digests of its
    logs up to there, by their names."""

    step: int
    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    logs: Mapping[str, str]


def made_with(config: TrainConfig) -> dict[str, str]:
    """What else decides a training's bytes: versions of what computes, the engine's code, the
    files of its label maps, and the memory layout, which was channels last in 0.2.0."""
    found = versions("torch")
    if layout(config) is torch.contiguous_format:
        found = found | {"memory layout": "contiguous"}
    if config.source == "synthmorph":
        found = found | versions("tensorflow")
    if config.engine == "native" or (config.engine == "verrou" and verrou.found()):
        version = engines.get(config.engine).version()
        found = found | {f"engine {config.engine}": str(version)}
    if files := _label_files(config):
        digest = hashlib.sha256()
        for path in files:
            digest.update(f"{path.name} {file_sha256(path)}\n".encode())
        found = found | {"label maps": digest.hexdigest()[:16]}
    return found


def _label_files(config: TrainConfig) -> list[Path]:
    if config.source != "synthmorph" or config.labels in ("", "phantom", "shapes"):
        return []
    if config.labels == "corr":
        return bids.corr_segmentations(config.data)
    folder = Path(config.labels)
    return sorted(p for p in folder.glob("[!.]*") if p.is_file())


@contextmanager
def opened(folder: Path, resume: bool) -> Iterator[None]:
    """The folder of one training, ours alone (a lock that the system takes back when its holder
    dies): made, or seen to be one that can be resumed."""
    checkpoint = folder / NAME
    if resume and not checkpoint.exists():
        raise UserError(
            f"{checkpoint}: there is no training to resume; leave RESUME (--resume) out"
        )
    with locked(
        folder / ".lock",
        "give another MODEL_DIR (--model-dir)",
        "another training is at work here; wait for it to end, or give another MODEL_DIR "
        "(--model-dir)",
    ):
        if checkpoint.exists() and not resume:
            raise UserError(
                f"{folder}: holds a training already; RESUME=1 (--resume) continues it, "
                "another MODEL_DIR (--model-dir) starts a new one"
            )
        yield


def save(folder: Path, config: TrainConfig, ranks: int, made: Versions, state: State) -> None:
    """Replace the folder's checkpoint: on disk before it gets its name."""
    content = {
        "config": to_mapping(config),
        "made": dict(made),
        "ranks": ranks,
        "epoch": state.step // config.steps,
        "step": state.step,
        "weights": dict(state.weights),
        "optimizer": dict(state.optimizer),
        "logs": dict(state.logs),
    }
    content["digest"] = digest(content)
    written = io.BytesIO()  # torch's writer has errors of its own for a disk that is full
    torch.save(content, written)
    try:
        write_atomically(folder / NAME, written.getbuffer())
    except UserError as error:
        raise UserError(
            f"{error}; the last checkpoint, if there is one, is unchanged: RESUME=1 (--resume) "
            "continues from it"
        ) from None


def digest(content: Mapping[str, Any]) -> str:
    """A hash of all numbers, words and tensors in nested mappings and lists."""
    found = hashlib.sha256()

    def described(x: Tensor) -> list[Any]:
        found.update(x.cpu().numpy().tobytes())
        return [str(x.dtype), list(x.shape)]

    found.update(json.dumps(content, default=described).encode())
    return found.hexdigest()


def differing(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs, in words; empty where nothing does."""
    keys = [key for key in {**then, **now} if then.get(key) != now.get(key)]
    return ", ".join(f"{key} {then.get(key)} (now {now.get(key)})" for key in keys)


def load(folder: Path, config: TrainConfig, ranks: int, made: Versions) -> State:
    """The folder's checkpoint, made by this configuration, number of processes and software."""
    path, content = folder / NAME, {}
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content.pop("digest") != digest(content):
            raise ValueError("other bytes than were written")
        then, was_made = TrainConfig.recorded(content["config"]), dict(content["made"])
        then["processes"] = content["ranks"]
        state = State(*(content[name] for name in ("step", "weights", "optimizer", "logs")))
    except Exception as error:  # torch and pickle raise many kinds for a damaged file
        what = f"is damaged or no checkpoint of this suite ({type(error).__name__})"
        if "moments" in content:  # of one vector of all weights
            what = "was written by an earlier version of this suite, whose trainings end with it"
        raise UserError(
            f"{path}: {what}; start again in another MODEL_DIR (--model-dir)"
        ) from None
    now = {**to_mapping(config), "processes": ranks}
    if config.schedule == "constant":  # more epochs, or fewer, change no step
        then["epochs"] = now["epochs"]
    for one, other in ((then, now), (was_made, made)):
        if was := differing(one, other):
            raise UserError(
                f"{folder}: was started with {was}; resume with that, or start in another "
                "MODEL_DIR (--model-dir)"
            )
    if state.step > config.total_steps:
        raise UserError(
            f"{folder}: is at step {state.step} already, beyond the {config.total_steps} steps "
            "asked for"
        )
    return state
