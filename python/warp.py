"""Apply a saved warp to an image (linear) or, with --labels, to a label map (nearest).

    python python/warp.py --moving data/phantom-2mm/sub-001/anat/sub-001_T1w.nii.gz \
        --warp data/phantom-2mm/derivatives/phantom/sub-001/anat/\
sub-001_from-T1w_to-MNI152_mode-image_xfm.nii.gz --moved moved.nii.gz

The result lies on the warp's grid: moved(x) = moving(x + warp(x)), through both affines, with one
interpolation. Where the registration aligned centres instead of headers, give its --sample.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from morphbits import images
from morphbits.errors import UserError, run_cli


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--moving", type=Path, required=True, help="image or label map to move")
    parser.add_argument("--warp", type=Path, required=True, help="X × Y × Z × 3, in voxels")
    parser.add_argument("--moved", type=Path, required=True, help="the file to write")
    parser.add_argument("--labels", action="store_true", help="moving is a label map")
    parser.add_argument("--sample", type=Path, help="sample.json of the registration")
    args = parser.parse_args()

    moving = images.load_labels(args.moving) if args.labels else images.load(args.moving)
    if args.sample:
        moving.affine = np.linalg.inv(alignment(args.sample)) @ moving.affine
    warp = images.load_warp(args.warp)
    order = 0 if args.labels else 1
    moved = images.resample(moving, warp.data.shape, warp.affine, order, warp.data)
    images.save(args.moved, moved.data, moved.affine)
    print(args.moved)


def alignment(sample: Path) -> np.ndarray:
    """World of the fixed image to world of the moving image, (4, 4) mm, as sample.json has it."""
    try:
        return np.array(json.loads(sample.read_text())["provenance"]["alignment"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{sample} is no sample.json of a registration ({error!r})") from error


if __name__ == "__main__":
    run_cli(main)
