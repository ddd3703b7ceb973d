"""Bring every image of a folder to values in [0, 1] (min–max), as registration networks expect.

    morphbits normalize --input data/phantom-2mm --output data/phantom-2mm-normalized

Keeps the folder's structure and each image's grid. Without --pattern: all T1-weighted images.
"""

from __future__ import annotations

from pathlib import Path

from morphbits import config, images
from morphbits.config import Reading, add_arguments, from_arguments
from morphbits.errors import UserError


def main() -> None:
    parser = config.parser(__doc__)
    parser.add_argument("--input", type=Path, required=True, help="folder, searched recursively")
    parser.add_argument("--output", type=Path, required=True, help="another folder")
    parser.add_argument(
        "--pattern", default="*T1w.nii.gz", help="pattern of file names (default: *T1w.nii.gz)"
    )
    add_arguments(parser, Reading)
    args = parser.parse_args()
    reading = from_arguments(Reading, args)

    paths = sorted(args.input.rglob(args.pattern))
    if not paths:
        raise UserError(f"no file in {args.input} matches {args.pattern}: give another --pattern")
    if args.input.resolve() == args.output.resolve():
        raise UserError(f"{args.output} is the input folder: name another one")
    for path in paths:
        image = images.load(path, reading.orientation, reading.nan)
        out = args.output / path.relative_to(args.input)
        images.save(out, images.normalize(image.data), image.affine, image.codes)
        print(f"{out}: {image.data.min():g} … {image.data.max():g} to 0 … 1")
