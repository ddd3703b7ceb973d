"""What the SynthMorph generator draws, without TensorFlow: options, and the choices for each pair.

Method: Hoffmann et al. 2022, doi:10.1109/TMI.2021.3116879; names and defaults are those of
voxelmorph's training script (train_synthmorph.py). The images are made by `generator_tf`.

Everything random about pair `item` of a step is a function of (seed, epoch, step, item). `item`
counts the pairs of all ranks, so that N ranks draw in a step what one process with an N times
larger batch draws.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from morphbits import choices
from morphbits.config import option
from morphbits.errors import UserError

SPACINGS = choices.numbers(float, 1, 1000)


@dataclass(frozen=True)
class GeneratorConfig:
    """Label maps, and how images are synthesized from them. Lengths are voxels of the maps."""

    labels: str = option(
        "", "synthmorph: label maps: shapes (also where left out), phantom, corr or a folder"
    )
    maps: int = option(
        40, "synthmorph: how many phantoms or shapes to draw", minimum=1, maximum=1_000_000
    )
    data: Path = option(Path("data"), "synthmorph: folder of the datasets, for corr")
    targets: str = option(
        "auto",
        "synthmorph: labels to optimize: fs (SynthMorph's 26), all, numbers such as '2 41', or "
        "auto (fs for corr, else all but the background)",
        parse=choices.numbers(int, 0, 2**31 - 1, ("auto", "fs", "all")),
    )
    same_subj: bool = option(False, "synthmorph: both images of a pair from one label map")
    flip: bool = option(
        True, "synthmorph: random flips of the axes (on unless --no-flip), the same in both images"
    )
    vel_std: float = option(
        0.5, "synthmorph: largest std. dev. of the velocity, voxels", minimum=0, maximum=1000
    )
    vel_res: str = option("16", "synthmorph: spacings of the velocity's nodes", parse=SPACINGS)
    blur_std: float = option(
        1.0, "synthmorph: largest std. dev. of the blur", minimum=0, maximum=100
    )
    gamma: float = option(
        0.25, "synthmorph: std. dev. of the logarithm of the exponent", minimum=0, maximum=10
    )
    bias_std: float = option(
        0.3, "synthmorph: largest std. dev. of the bias field's logarithm", minimum=0, maximum=10
    )
    bias_res: str = option("40", "synthmorph: spacings of the bias field's nodes", parse=SPACINGS)
    zero_background: float = option(
        0.2, "synthmorph: how often the background is exactly 0", minimum=0, maximum=1
    )


@dataclass(frozen=True)
class Choice:
    """What one pair is made of.

    moving, fixed: numbers of label maps. flips: axes that both are flipped along. moving_key,
    fixed_key: keys of TensorFlow's draws, two 63-bit numbers for each image.
    """

    moving: int
    fixed: int
    flips: tuple[int, ...]
    moving_key: tuple[int, int]
    fixed_key: tuple[int, int]


def choose(
    config: GeneratorConfig, count: int, seed: int, epoch: int, step: int, item: int
) -> Choice:
    """The choice for pair `item` of a step, from `count` label maps.

    Two different maps, unless `same_subj`; voxelmorph's generator draws the two independently, so
    that now and then they are the same. Flips as there: first how many axes, then which.
    """
    if count < 2 and not config.same_subj:
        raise UserError(
            f"{config.labels}: pairs from different subjects need two label maps or more, there "
            "is one: add maps, or ask for --same-subj"
        )
    key = f"synthmorph {seed} {epoch} {step} {item}"
    digest = hashlib.sha256(key.encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest, "big"))
    moving = int(rng.integers(count))
    other = int(rng.integers(1, max(count, 2)))
    fixed = moving if config.same_subj else (moving + other) % count
    axes = rng.permutation(3)[: rng.integers(4)]
    keys = rng.integers(2**63, size=(2, 2)).tolist()
    return Choice(
        moving,
        fixed,
        tuple(sorted(int(axis) for axis in axes)) if config.flip else (),
        (keys[0][0], keys[0][1]),
        (keys[1][0], keys[1][1]),
    )
