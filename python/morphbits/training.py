"""The training loop: seeded, deterministic, and the same bytes whether interrupted or not.

A training is a folder: `checkpoint.pt` (model, optimizer, step; replaced whole, never half
written), `log.csv` (one row per step) and, at the end, `model.h5`. Same configuration on the same
machine and versions: same bytes of log and model. See notes/decisions/0003-demo-model.md.

Arrays: B batch, C channels, V warp component, X Y Z space; float32.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

from morphbits import losses
from morphbits.config import option, to_mapping
from morphbits.errors import UserError
from morphbits.models.synthmorph_torch import SynthMorph, init_model
from morphbits.models.weights import Architecture
from morphbits.synthesis import deformation, phantom_pairs
from morphbits.synthesis.pair import Pair, collate

LOG_COLUMNS = ("step", "learning_rate", "loss", "mismatch", "roughness")
# Of the last layer's first weights, as in voxelmorph: training starts near no warp.
FLOW_STD = 1e-5
# Adam moves every weight by about the learning rate. Hundreds of them add up in each component of
# the velocity: at the others' rate the last layer would jump by tenths of a voxel at every step.
FLOW_RATE = 0.1


@dataclass(frozen=True)
class TrainConfig:
    """One training: all that can change a byte of the model."""

    enc: str = option("16 32 32 32", "widths of the encoder", pattern=r"\d+( \d+)*")
    dec: str = option("32 32 32 32 16 16", "widths of the decoder", pattern=r"\d+( \d+)*")
    int_steps: int = option(5, "squarings of the integration", minimum=1)
    seed: int = option(1, "of the first weights and of the training pairs", minimum=0)
    steps: int = option(2000, "training steps", minimum=1)
    coarse_steps: int = option(
        0, "the first steps, on phantoms of 4 mm instead of 2 mm", minimum=0
    )
    batch: int = option(2, "pairs per step", minimum=1)
    warm_up: int = option(100, "steps over which the learning rate rises", minimum=1)
    learning_rate: float = option(1e-3, "of Adam at its highest; it falls along half a cosine")
    smoothness: float = option(
        0.1, "weight of the warp's roughness beside the mismatch of tissues"
    )
    threads: int = option(2, "threads of the computation", minimum=1)

    def architecture(self) -> Architecture:
        """The network to be trained."""
        enc, dec = (tuple(int(width) for width in text.split()) for text in (self.enc, self.dec))
        return Architecture(enc, dec, int_steps=self.int_steps)


class OneDnnConvolution(TorchFunctionMode):
    """Send every conv3d to oneDNN, which torch leaves for a much slower path wherever batch ×
    channels × depth × height is 20,480 or less. Backward it does so for a batch of one only."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.conv3d and torch.backends.mkldnn.is_available():
            image, weight, bias = args  # always 3×3×3 with padding 1: see `Convolution.forward`
            return torch.mkldnn_convolution(image, weight, bias, (1,) * 3, (1,) * 3, (1,) * 3, 1)
        return func(*args, **(kwargs or {}))


@contextmanager
def deterministic(threads: int) -> Iterator[None]:
    """Reproducible operators only, on `threads` threads; what was set before comes back."""
    memory: Any = torch.utils.deterministic
    enabled, cores = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    filling = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(threads)
    # it fills what is about to be overwritten, and costs an eighth of a step
    memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled)
        torch.set_num_threads(cores)
        memory.fill_uninitialized_memory = filling


def train(config: TrainConfig, folder: Path, resume: bool = False, save_every: int = 100) -> Path:
    """Train into `folder`, or go on from its checkpoint; returns the path of the model's `.h5`."""
    _prepare_folder(folder, resume)
    with deterministic(config.threads), OneDnnConvolution():
        model = init_model(config.architecture(), config.seed, FLOW_STD)
        model.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        optimizer = _optimizer(model)
        first = _load_checkpoint(folder, config, model, optimizer) if resume else 0
        log = _Log(folder / "log.csv", first)
        with tqdm(total=config.steps, initial=first, unit="step", disable=None) as bar:
            for step in range(first, config.steps):
                terms = _step(config, step, model, optimizer)
                log.add({"step": step, **terms})
                bar.set_postfix(
                    mismatch=f"{terms['mismatch']:.4f}", roughness=f"{terms['roughness']:.4f}"
                )
                bar.update()
                if (step + 1) % save_every == 0 or step + 1 == config.steps:
                    log.write()
                    _save_checkpoint(folder, config, step + 1, model, optimizer)
        path = folder / "model.h5"
        model.save(path)
    return path


def registration_loss(model: SynthMorph, pair: Pair, smoothness: float) -> dict[str, Tensor]:
    """The loss of a batch and its terms: tissues moved by the full-resolution warp against the
    template's, plus `smoothness` times the warp's roughness."""
    svf_BVXYZ = model.svf(pair.moving, pair.fixed)
    warp_BVXYZ = deformation.integrate(svf_BVXYZ, model.architecture.int_steps)
    warp_BVXYZ = deformation.rescale(warp_BVXYZ, model.architecture.int_resolution)
    moved_BCXYZ = deformation.transform(pair.moving_tissues, warp_BVXYZ)
    mismatch = losses.tissue_mismatch(moved_BCXYZ, pair.fixed_tissues)
    roughness = losses.roughness(warp_BVXYZ)
    return {
        "loss": mismatch + smoothness * roughness,
        "mismatch": mismatch,
        "roughness": roughness,
    }


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up times half a cosine, down to nothing at the end."""
    warm_up = min(1.0, (step + 1) / config.warm_up)
    return config.learning_rate * warm_up * 0.5 * (1 + math.cos(math.pi * step / config.steps))


def training_pair(config: TrainConfig, step: int) -> Pair:
    """The batch of one step: a pure function of the seed and the step."""
    size = "4mm" if step < config.coarse_steps else "2mm"
    first = step * config.batch
    return collate([phantom_pairs.draw(config.seed, first + k, size) for k in range(config.batch)])


def _optimizer(model: SynthMorph) -> torch.optim.Adam:
    *body, flow = model.layers.values()
    groups = [
        {"params": [p for layer in body for p in layer.parameters()], "share": 1.0},
        {"params": list(flow.parameters()), "share": FLOW_RATE},
    ]
    return torch.optim.Adam(groups)


def _step(
    config: TrainConfig, step: int, model: SynthMorph, optimizer: torch.optim.Optimizer
) -> dict[str, float]:
    """One update of the weights; returns the row for the log."""
    rate = learning_rate(config, step)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["share"]
    terms = registration_loss(model, training_pair(config, step), config.smoothness)
    if not torch.isfinite(terms["loss"]):
        raise UserError(
            f"the loss is not finite at step {step} of the training: "
            f"lower learning_rate, which is {config.learning_rate:g}"
        )
    optimizer.zero_grad()
    terms["loss"].backward()
    optimizer.step()
    return {
        "learning_rate": rate,
        **{name: float(value.detach()) for name, value in terms.items()},
    }


# ---------------------------------------------------------------------- folder


def _prepare_folder(folder: Path, resume: bool) -> None:
    checkpoint = folder / "checkpoint.pt"
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


def _save_checkpoint(
    folder: Path,
    config: TrainConfig,
    step: int,
    model: SynthMorph,
    optimizer: torch.optim.Optimizer,
) -> None:
    state = {
        "config": to_mapping(config),
        "step": step,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    partial = folder / f".checkpoint.{os.getpid()}.part"
    try:
        torch.save(state, partial)
        os.replace(partial, folder / "checkpoint.pt")
    finally:
        partial.unlink(missing_ok=True)


def _load_checkpoint(
    folder: Path, config: TrainConfig, model: SynthMorph, optimizer: torch.optim.Optimizer
) -> int:
    """Put model and optimizer where the checkpoint left them; returns the next step."""
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    wanted = to_mapping(config)
    differing = [key for key, value in state["config"].items() if wanted[key] != value]
    if differing:
        raise UserError(
            f"{folder}: was started with another {', '.join(differing)}; "
            "resume with the same, or choose another folder"
        )
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


class _Log:
    """log.csv: rows of steps that a checkpoint holds, and none after it."""

    def __init__(self, path: Path, first: int) -> None:
        self.path = path
        self.rows: list[dict[str, str]] = []
        if first:
            with path.open(newline="") as file:
                self.rows = list(csv.DictReader(file))[:first]

    def add(self, row: dict[str, float]) -> None:
        self.rows.append({name: f"{row[name]:.8g}" for name in LOG_COLUMNS})

    def write(self) -> None:
        partial = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, LOG_COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
        os.replace(partial, self.path)
