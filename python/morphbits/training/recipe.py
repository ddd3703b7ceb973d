"""What a training is: all that can change a byte of the model, but for the number of processes.

The defaults are those of voxelmorph's SynthMorph training script (version 0.2), the published run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from morphbits import choices
from morphbits.choices import MODES, SUBNORMALS
from morphbits.config import ENGINES, option
from morphbits.errors import UserError
from morphbits.models.weights import Architecture
from morphbits.synthesis.sources import SourceConfig

WIDTHS = choices.numbers(int, 1, 65_536)


@dataclass(frozen=True)
class TrainConfig(SourceConfig):
    """One training."""

    enc: str = option("64 64 64 64", "widths of the encoder", parse=WIDTHS)
    dec: str = option("64 64 64 64 64 64", "widths of the decoder", parse=WIDTHS)
    int_steps: int = option(5, "squarings of the integration", minimum=1)
    epochs: int = option(1500, "training epochs", minimum=1)
    loss: str = option(
        "dice",
        "what should vanish beside the warp's roughness: dice (1 - overlap, SynthMorph's), or "
        "tissues (squared difference over four scales)",
        choices=("dice", "tissues"),
    )
    smoothness: float = option(1.0, "weight of the warp's roughness in the loss")
    learning_rate: float = option(1e-4, "of Adam at its highest")
    schedule: str = option(
        "constant",
        "of the learning rate: constant, or cosine (falls along half a cosine to nothing)",
        choices=("constant", "cosine"),
    )
    warm_up: int = option(0, "steps over which the learning rate rises", minimum=0)
    flow_rate: float = option(1.0, "share of the learning rate that the last layer gets")
    threads: int | None = option(
        None, "threads of each process; left out: cores of the machine by processes", minimum=1
    )
    init_seed: int | None = option(None, "of the first weights; left out: seed", minimum=0)
    engine: str = option(
        "ieee",
        "who rounds: ieee (nothing is perturbed), native (compiled random rounding of torch), "
        "verrou (Valgrind's tool, a process per rank)",
        choices=ENGINES,
    )
    mode: str = option("random", "rounding of the engine, Verrou's names", choices=MODES)
    accumulation: str = option(
        "sequential",
        "native: order in which a convolution adds its products: sequential, direct or blocked:K",
        parse=choices.accumulation,
    )
    subnormals: str = option(
        "keep", "native: keep subnormal numbers or flush them to zero", choices=SUBNORMALS
    )
    rounding_seed: int | None = option(None, "of the random roundings; left out: seed", minimum=0)

    def __post_init__(self) -> None:
        if min(self.learning_rate, self.flow_rate) <= 0 or self.smoothness < 0:
            raise UserError(
                "learning_rate and flow_rate must be above 0 and smoothness at least 0, not "
                f"{self.learning_rate:g}, {self.flow_rate:g} and {self.smoothness:g}"
            )

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
