"""What a training is: all that can change a byte of the model, but for the number of processes.

The defaults are those of voxelmorph's SynthMorph training script (version 0.2), the published run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from morphbits import choices
from morphbits.config import Perturbation, check_combination, option, to_mapping
from morphbits.errors import UserError
from morphbits.models.weights import Architecture
from morphbits.synthesis.settings import SourceConfig

WIDTHS = choices.numbers(int, 1, 65_536)


@dataclass(frozen=True)
class TrainConfig(Perturbation, SourceConfig):
    """One training."""

    enc: str = option("64 64 64 64", "widths of the encoder", parse=WIDTHS)
    dec: str = option("64 64 64 64 64 64", "widths of the decoder", parse=WIDTHS)
    int_steps: int = option(5, "squarings of the integration", minimum=1, maximum=100)
    epochs: int = option(1500, "training epochs", minimum=1, maximum=1_000_000)
    loss: str = option(
        "dice",
        "minimized together with the warp's roughness: dice (1 - overlap, as SynthMorph does), "
        "or tissues (squared difference of tissue maps over four scales)",
        choices=("dice", "tissues"),
    )
    smoothness: float = option(
        1.0, "weight of the warp's roughness in the loss", minimum=0, maximum=1e6
    )
    optimizer: str = option(
        "keras-adam",
        "Adam as in Keras (1e-7 added to the root of its second moment), by which SynthMorph was "
        "trained, or torch-adam (1e-8 added to the corrected root): larger first steps",
        choices=("keras-adam", "torch-adam"),
    )
    learning_rate: float = option(1e-4, "highest learning rate of Adam", minimum=1e-12, maximum=1)
    schedule: str = option(
        "constant",
        "course of the learning rate: constant, or cosine (falls to zero along half a cosine)",
        choices=("constant", "cosine"),
    )
    warm_up: int = option(0, "steps over which the learning rate rises", minimum=0, maximum=10**9)
    flow_rate: float = option(
        1.0, "share of the learning rate that the last layer gets", minimum=1e-6, maximum=1000
    )
    threads: int | None = option(
        None,
        "threads of each process; by default cores of the machine divided by processes",
        minimum=1,
        maximum=1024,
    )
    init_seed: int | None = option(
        None, "seed of the initial weights; by default --seed", minimum=0, maximum=2**63
    )
    rounding_seed: int | None = option(
        None, "seed of the random roundings; by default --seed", minimum=0, maximum=2**63
    )

    def __post_init__(self) -> None:
        check_combination(self)
        if self.accumulation == "probe":
            raise UserError(
                "--accumulation probe is for registrations: the orders of a backward pass are not "
                "measured; give sequential, direct or blocked:K"
            )
        if self.precision not in ("24", "tf32"):
            raise UserError(
                f"--precision {self.precision} is for registrations: the sums of losses and "
                "gradients have no rule in fewer bits; give 24 or tf32"
            )
        if self.perturb != "all":
            raise UserError(
                f"--perturb {self.perturb} is for registrations: the backward pass of a stage and "
                "the optimizer belong to none; leave it out"
            )

    @staticmethod
    def recorded(mapping: Mapping[str, Any]) -> dict[str, Any]:
        """A recipe as a file has it, with the options that are younger than the file."""
        return {**to_mapping(TrainConfig()), "optimizer": "torch-adam", **mapping}

    def architecture(self) -> Architecture:
        """The network to be trained."""
        enc, dec = (tuple(int(width) for width in text.split()) for text in (self.enc, self.dec))
        return Architecture(enc, dec, int_steps=self.int_steps)

    @property
    def total_steps(self) -> int:
        """Updates of the weights from start to end."""
        return self.epochs * self.steps

    def rate(self, step: int) -> float:
        """The learning rate at `step`, counted from the start of the training."""
        rise = min(1.0, (step + 1) / max(1, self.warm_up))
        fall = 1.0
        if self.schedule == "cosine":
            fall = 0.5 * (1 + math.cos(math.pi * step / self.total_steps))
        return self.learning_rate * rise * fall
