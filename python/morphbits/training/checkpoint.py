"""checkpoint.pt: all that a training needs to go on, replaced whole.

Nothing random outlives a step: pairs and roundings are functions of (seed, epoch, step, rank), so
that the number of steps is the state of every random stream.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from morphbits.config import to_mapping
from morphbits.errors import UserError
from morphbits.training.recipe import TrainConfig

NAME = "checkpoint.pt"


@dataclass(frozen=True)
class State:
    """Where a training is: updates done, weights (N,) and Adam's moments (2, N)."""

    step: int
    values: Tensor
    moments: Tensor


def prepare(folder: Path, resume: bool) -> None:
    """Make the folder, or see that it can be resumed."""
    checkpoint = folder / NAME
    if resume and not checkpoint.exists():
        raise UserError(f"{checkpoint}: there is no training to resume; leave --resume out")
    if checkpoint.exists() and not resume:
        raise UserError(
            f"{folder}: holds a training already; add --resume, or choose another folder"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror})") from None


def save(folder: Path, config: TrainConfig, ranks: int, state: State) -> None:
    """Replace the folder's checkpoint: on disk before it gets its name."""
    content = {
        "config": to_mapping(config),
        "ranks": ranks,
        "epoch": state.step // config.steps,
        "step": state.step,
        "weights": state.values,
        "moments": state.moments,
    }
    partial = folder / f".checkpoint.{os.getpid()}.part"
    try:
        with partial.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, folder / NAME)
    except OSError as error:
        raise UserError(f"{folder / NAME}: cannot be written ({error.strerror})") from None
    finally:
        partial.unlink(missing_ok=True)


def load(folder: Path, config: TrainConfig, ranks: int) -> State:
    """The folder's checkpoint, made by this configuration and number of processes."""
    path = folder / NAME
    try:
        content: dict[str, Any] = torch.load(path, weights_only=True)
    except Exception as error:  # torch and pickle raise many kinds for a damaged file
        raise UserError(f"{path}: cannot be read ({error!r}); start again elsewhere") from None
    then, now = dict(content["config"]), dict(to_mapping(config))
    if config.schedule == "constant":  # more epochs, or fewer, change no step
        then["epochs"] = now["epochs"]
    then["processes"], now["processes"] = content["ranks"], ranks
    differing = [key for key in then | now if then.get(key) != now.get(key)]
    if differing:
        was = ", ".join(f"{key} {then.get(key)}" for key in differing)
        raise UserError(f"{folder}: was started with {was}; resume with that, or start elsewhere")
    if content["step"] > config.total_steps:
        raise UserError(
            f"{folder}: is at step {content['step']} already, beyond the {config.total_steps} "
            "steps asked for"
        )
    return State(content["step"], content["weights"], content["moments"])
