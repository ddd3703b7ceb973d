"""Register one image to another, with or without perturbing the arithmetic.

    morphbits register --moving sub-001_T1w.nii.gz --fixed template.nii.gz \
        --moved out/moved.nii.gz --warp out/warp.nii.gz --engine native --mode random --seed 1

Reads NIfTI, Analyze, MGZ, npz and npy (notes/images.md); writes the moved image and the warp on
the fixed image's grid, and sample.json (configuration, checksums, versions, timings) in the folder
of the moved image. --moved is the image that the network computed, of which significant bits are
measured; --resampled is the one to go on working with.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from morphbits import config
from morphbits.config import DEMO_MODEL, RegisterConfig, add_arguments, from_arguments
from morphbits.samples.single import Files, register_files


def main() -> None:
    parser = config.parser(__doc__)
    parser.add_argument("--moving", type=Path, required=True, help="image to be moved")
    parser.add_argument("--fixed", type=Path, required=True, help="image it is moved to")
    parser.add_argument(
        "--model",
        type=Path,
        default=DEMO_MODEL,
        help="voxelmorph .h5 weights; joint, affine, rigid or deform (FreeSurfer 8's "
        "mri_synthmorph); classical (no network); or package.module:function (default: demo)",
    )
    parser.add_argument(
        "--moved",
        type=Path,
        required=True,
        help="output image, .nii.gz: what the network gives, intensities in [0, 1]",
    )
    parser.add_argument("--warp", type=Path, required=True, help="output warp, .nii.gz")
    parser.add_argument(
        "--resampled",
        type=Path,
        help="one more output image: the moving image in its own intensities, interpolated once "
        "through the warp",
    )
    parser.add_argument(
        "--batch-with",
        type=Path,
        help="another moving image, registered in the same batch, to see whether that changes "
        "the result; its own result is not saved",
    )
    parser.add_argument(
        "--record-orders",
        type=Path,
        help="with --accumulation probe: file for the measured orders of additions, to be used by "
        "--orders on another machine",
    )
    parser.add_argument(
        "--orders",
        type=Path,
        help="with --accumulation probe: file of orders recorded on another machine, used instead "
        "of those of this machine's kernels",
    )
    add_arguments(parser, RegisterConfig)
    arguments = parser.parse_args()
    files = Files(*(getattr(arguments, name) for name in Files.__annotations__))
    chosen = from_arguments(RegisterConfig, arguments)
    print(register_files(files, chosen, say=partial(print, flush=True)))
