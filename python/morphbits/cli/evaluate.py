"""Evaluate registrations: overlap or surface distance of label maps, or distance of two warps.

    morphbits evaluate --pairs pairs.csv --measure dice --output dice.csv

pairs.csv has a line for each pair: `a,b` are two label maps on one grid (dice; surface, the mean
distance; hausdorff95, the 95 % Hausdorff distance), or a warp and the true warp (warp; a third
column, `mask`, names the label map whose non-zero voxels count). Warps are this suite's or
voxelmorph's; those of other programs are refused. Paths are relative to the list.
One line comes out for each pair and label, in mm where not Dice. Label maps are brought onto the
fixed grid by `morphbits warp --labels`.
"""

from __future__ import annotations

import csv
from pathlib import Path

from morphbits import config, images
from morphbits.errors import UserError
from morphbits.files import csv_of, write_atomically
from morphbits.stats import accuracy

COLUMNS = ("a", "b", "measure", "label", "value")
MEASURES = ("dice", "surface", "hausdorff95", "warp")


def evaluate(measure: str, pair: dict[str, Path]) -> dict[str, float]:
    """Each number of a pair, by its label or name."""
    load = images.load_warp if measure == "warp" else images.load_labels
    a, b = load(pair["a"]), load(pair["b"])
    mask = images.load_labels(pair["mask"]) if measure == "warp" else a
    if not (images.same_grid(a, b) and images.same_grid(a, mask)):
        raise UserError(
            f"{a.path} and {b.path} are not on one grid: bring them there (morphbits warp)"
        )
    if measure == "warp":
        for warp in (a, b):
            images.say_if_unnamed(warp)
        shift = images.shift_between(a, b)
        error = accuracy.warp_error(a.data, b.data, a.affine, mask.data > 0, shift)
        return {"mean_mm": error.mean, "p95_mm": error.p95}
    if measure == "dice":
        values = accuracy.dice(a.data, b.data)
    else:
        found = accuracy.surface_distance(a.data, b.data, a.voxel_sizes)
        values = {k: d.mean if measure == "surface" else d.p95 for k, d in found.items()}
    return {str(label): value for label, value in values.items()}


def read_pairs(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read the list of pairs {path}: {error}") from error
    if not rows or any(not row.get(column) for row in rows for column in columns):
        raise UserError(
            f"{path} needs a first line {','.join(columns)}, then a line for each pair"
        )
    return rows


def main() -> None:
    parser = config.parser(__doc__)
    parser.add_argument("--pairs", type=Path, required=True, help="CSV with columns a,b[,mask]")
    parser.add_argument("--measure", choices=MEASURES, default="dice", help="default: dice")
    parser.add_argument("--output", type=Path, help="CSV to write (default: print it)")
    args = parser.parse_args()

    if args.output and args.output.resolve() == args.pairs.resolve():
        raise UserError(f"{args.output}: --output must not replace the list of pairs")
    columns = ("a", "b", "mask") if args.measure == "warp" else ("a", "b")
    rows = []
    for row in read_pairs(args.pairs, columns):
        paths = {column: args.pairs.parent / row[column] for column in columns}
        for label, value in evaluate(args.measure, paths).items():
            named = {"a": row["a"], "b": row["b"], "measure": args.measure, "label": label}
            rows.append(named | {"value": f"{value:.6g}"})
    table = csv_of(rows, COLUMNS)
    if args.output:
        write_atomically(args.output, table)
    print(args.output or table.decode().rstrip())
