"""Apply a saved warp to an image (linear) or, with --labels, to a label map (nearest).

    morphbits warp --moving data/phantom-2mm/sub-001/anat/sub-001_T1w.nii.gz \
        --warp data/phantom-2mm/derivatives/phantom/sub-001/anat/\
sub-001_from-T1w_to-MNI152_mode-image_xfm.nii.gz --moved moved.nii.gz

The result lies on the warp's grid: voxel x, which lies at affine · x, shows what the moving image
has at affine · (x + warp(x)) + shift, interpolated once. The shift, of registrations that aligned
centres, stands in the warp's own header; for files from before it did, in the sample.json beside
them, or in the one that --sample names. Warps of other programs (FSL, ITK …) are refused.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import numpy as np

from morphbits import config, images
from morphbits.config import Reading, add_arguments, from_arguments
from morphbits.errors import UserError
from morphbits.images import Image
from morphbits.provenance import data_sha256


def main() -> None:
    parser = config.parser(__doc__)
    parser.add_argument("--moving", type=Path, required=True, help="image or label map to move")
    parser.add_argument("--warp", type=Path, required=True, help="X × Y × Z × 3, in voxels")
    parser.add_argument("--moved", type=Path, required=True, help="the file to write")
    parser.add_argument("--labels", action="store_true", help="moving is a label map")
    parser.add_argument("--sample", type=Path, help="sample.json of the registration")
    add_arguments(parser, Reading)
    args = parser.parse_args()
    reading = from_arguments(Reading, args)

    load = images.load_labels if args.labels else images.load
    moving = images.known_axes(load(args.moving, reading.orientation, reading.nan))
    warp = images.known_axes(images.load_warp(args.warp, reading.orientation))
    find_shift(warp, args.sample)
    images.say_if_unnamed(warp)
    moved = images.move(moving, warp, 0 if args.labels else 1)
    if moved.data.min() == moved.data.max() and moving.data.min() < moving.data.max():
        raise UserError(
            f"the warp leads nowhere into {moving.name}: it belongs to another image, or to a "
            "registration that aligned centres (then give its --sample)"
        )
    images.save(args.moved, moved.data, moved.affine, moved.codes)
    print(args.moved)


def find_shift(warp: Image, sample: Path | None) -> None:
    """Give a warp whose file does not say it the shift that its sample.json records: the one that
    is named, else the one beside it or in one of the folders that it lies in."""
    assert warp.path is not None
    if sample:
        shift = recorded_shift(warp, sample)
        if shift is None:
            raise UserError(f"{sample} is not the record of {warp.path}: give its own sample.json")
    elif warp.shift is None:
        shift = None
        for record in (p for up in list(warp.path.parents)[:4] for p in up.glob("*sample.json")):
            with suppress(UserError):  # of something else
                shift = recorded_shift(warp, record) if shift is None else shift
    else:
        return
    if shift is not None:
        warp.shift = shift


def recorded_shift(warp: Image, sample: Path) -> np.ndarray | None:
    """From the fixed image's world to the moving image's, (3,) mm, as the record of this very warp
    has it; None where it is of another."""
    try:
        record = json.loads(sample.read_text(encoding="utf-8"))
        if record["outputs"]["warp"]["sha256"] != data_sha256(warp.data):
            return None
        return np.array(record["provenance"]["alignment"], np.float64)[:3, 3]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"{sample} is no sample.json of a registration ({error!r})") from error
