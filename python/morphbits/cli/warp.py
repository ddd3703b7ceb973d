"""Apply a saved warp to an image (linear) or, with --labels, to a label map (nearest); or export
it for other programs.

    morphbits warp --moving data/phantom-2mm/sub-001/anat/sub-001_T1w.nii.gz \
        --warp data/phantom-2mm/derivatives/phantom/sub-001/anat/\
sub-001_from-T1w_to-MNI152_mode-image_xfm.nii.gz --moved moved.nii.gz --export ants/ \
        --warp-format itk

The result lies on the warp's grid: voxel x, which lies at affine · x, shows what the moving image
has at affine · (x + warp(x)) + shift, interpolated once. The shift, of registrations that aligned
centres, stands in the warp's own header; for files from before it did, in the sample.json beside
them, or in the one that --sample names. Displacement fields of ITK, ANTs, FreeSurfer and FSL are
read, too, by their intent code; other programs' are refused (notes/images.md).

--export writes the whole transform, the shift included, with a JSON file that says what it is.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import numpy as np

from morphbits import config, images
from morphbits.config import Reading, Writing, add_arguments, from_arguments
from morphbits.datasets.derivative import describe_warp
from morphbits.errors import UserError
from morphbits.images import Image
from morphbits.provenance import data_sha256


def main() -> None:
    parser = config.parser(__doc__)
    parser.add_argument("--moving", type=Path, help="image or label map to move")
    parser.add_argument("--warp", type=Path, required=True, help="the warp's file")
    parser.add_argument("--moved", type=Path, help="the moved image to write")
    parser.add_argument("--labels", action="store_true", help="moving is a label map")
    parser.add_argument("--sample", type=Path, help="sample.json of the registration")
    parser.add_argument(
        "--export", type=Path, help="the warp's copy to write: a file, or a folder for its name"
    )
    add_arguments(parser, Reading)
    add_arguments(parser, Writing)
    args = parser.parse_args()
    reading, form = from_arguments(Reading, args), from_arguments(Writing, args).warp_format
    if not (args.moved or args.export) or (args.moved and not args.moving):
        raise UserError("give --moving and --moved (to move an image), or --export, or all three")

    if args.export and (args.export.is_dir() or not args.export.suffix):
        stem = args.warp.name.removesuffix(images.extension_of(args.warp))
        args.export /= f"{stem}.nii.gz"
    check_targets([args.moved, args.export], [args.moving, args.warp])
    moving = None
    if args.moving:
        load = images.load_labels if args.labels else images.load
        moving = images.known_axes(load(args.moving, reading.orientation, reading.nan))
    warp = images.known_axes(images.load_warp(args.warp, reading.orientation, moving))
    find_shift(warp, args.sample)
    images.say_if_unnamed(warp)
    if moving and args.moved:
        apply(moving, warp, args.moved, args.labels)
    if args.export:
        export(warp, args.export, form, moving)


def check_targets(targets: list[Path | None], inputs: list[Path | None]) -> None:
    """A UserError where a file would replace another one of this call."""
    read = {path.resolve() for path in inputs if path}
    for target in filter(None, targets):
        if target.resolve() in read:
            raise UserError(f"{target}: an output must not replace an input or the other output")
        read.add(target.resolve())


def export(warp: Image, target: Path, form: str, moving: Image | None) -> None:
    """Write the warp in another format, and its sidecar."""
    shift = np.zeros(3) if warp.shift is None else warp.shift
    images.save_warp(target, warp.data, warp.affine, shift, warp.codes, form, moving)
    describe_warp(target, form, [p for p in (warp.path, moving and moving.path) if p])
    print(target)


def apply(moving: Image, warp: Image, target: Path, labels: bool) -> None:
    """Write the moved image or label map."""
    moved = images.move(moving, warp, 0 if labels else 1)
    if moved.data.min() == moved.data.max() and moving.data.min() < moving.data.max():
        raise UserError(
            f"the warp leads nowhere into {moving.name}: it belongs to another image, or to a "
            "registration that aligned centres (then give its --sample)"
        )
    images.save(target, moved.data, moved.affine, moved.codes)
    print(target)


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
