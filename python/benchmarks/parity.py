"""How far the torch port is from the TensorFlow reference, layer by layer, as a table.

PYTHONPATH=python python -m benchmarks.parity --model W.h5 --shape 80 96 80 --threads 1
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from morphbits import config
from morphbits.errors import run_cli
from morphbits.models import spatial, synthmorph_tf
from morphbits.models.synthmorph_torch import SynthMorph


def main() -> None:
    parser = config.parser(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a voxelmorph .h5 file")
    parser.add_argument(
        "--shape", type=config.whole(16, 4096), nargs=3, default=[32, 32, 32], help="X Y Z, voxels"
    )
    parser.add_argument("--threads", type=config.whole(1, 1024), default=1)
    parser.add_argument(
        "--seed", type=config.whole(0, 2**63), default=1, help="of the two images (smooth noise)"
    )
    args = parser.parse_args()
    synthmorph_tf.set_threads(args.threads)
    torch.set_num_threads(args.threads)
    random = np.random.default_rng(args.seed)
    moving, fixed = (smooth_image(random, args.shape) for _ in range(2))
    theirs = synthmorph_tf.load(args.model).layers(moving, fixed)
    alone, network = port(SynthMorph.load(args.model), theirs, moving, fixed)
    print("| | largest value | largest difference, given TensorFlow's input | in the network |")
    print("|---|---|---|---|")
    for name, ours in network.items():
        reference = np.moveaxis(theirs[f"{name}/output"], -1, 1)
        columns = [describe(values, reference) for values in (alone[name], ours)]
        print(f"| {name} | {np.abs(reference).max():.3g} | {columns[0]} | {columns[1]} |")


def smooth_image(random: np.random.Generator, shape: list[int]) -> np.ndarray:
    """Smooth noise in [0, 1] (X, Y, Z), float32."""
    noise = gaussian_filter(random.standard_normal(shape), 2, mode="wrap")
    return ((noise - noise.min()) / np.ptp(noise)).astype(np.float32)


@torch.no_grad()
def port(
    model: SynthMorph, theirs: dict[str, np.ndarray], moving: np.ndarray, fixed: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The port's layers given TensorFlow's inputs, and in their own network (B, C, X, Y, Z)."""
    alone: dict[str, np.ndarray] = {}
    network: dict[str, np.ndarray] = {}

    def first(name: str) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(theirs[name], -1, 1)))

    for name, layer in model.layers.items():
        alone[name] = layer(first(f"{name}/input")).numpy()
        layer.register_forward_hook(
            lambda _module, _input, output, name=name: network.update(
                {name: output.numpy().copy()}
            )
        )
    images = [torch.from_numpy(image)[None, None] for image in (moving, fixed)]
    moved, warp = model(*images)
    network |= {"warp": warp.numpy(), "moved": moved.numpy()}
    warp = model.warp(first("vxm_dense_flow/output"))
    alone |= {
        "warp": warp.numpy(),
        "moved": spatial.transform(images[0], first("warp/output")).numpy(),
    }
    return alone, network


def describe(ours: np.ndarray, reference: np.ndarray) -> str:
    """Largest difference, also in ulps of the largest value, and how many values differ."""
    difference = np.abs(ours.astype(np.float64) - reference)
    ulp = float(np.spacing(np.abs(reference).max()))
    differ = (ours.view(np.int32) != reference.copy().view(np.int32)).mean()
    return f"{difference.max():.1e} ({difference.max() / ulp:.1f} ulp, {differ:.0%} differ)"


if __name__ == "__main__":
    run_cli(main)
