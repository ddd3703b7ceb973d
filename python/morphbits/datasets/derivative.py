"""What makes a folder of results a BIDS derivative: each sample is one, and the maps are.

`dataset_description.json`; a sidecar at its root for all moved images (BIDS' inheritance); and
`.bidsignore` for what BIDS 1.10 has no name for: warps, maps of bits, `sample.json`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import morphbits
from morphbits import bids, transforms
from morphbits.bids import Dataset
from morphbits.files import write_atomically, write_json

GENERATED_BY = [{"Name": "morphbits", "Version": morphbits.__version__}]
IGNORED = ("*_xfm.*", "*_bits.*", "sample.json")


def describe(
    folder: Path,
    name: str,
    moved_from: Dataset | None = None,
    more: Mapping[str, object] | None = None,
    ignored: Sequence[str] = (),
) -> None:
    """Make a folder of subjects a derivative; `moved_from`: the dataset whose moved images it
    holds; `more`: fields of its description; `ignored`: what else BIDS has no name for."""
    description: dict[str, object] = {
        "Name": name,
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": GENERATED_BY,
        **(more or {}),
    }
    files: dict[str, dict[str, object]] = {"dataset_description.json": description}
    if moved_from:
        sidecar = bids.build("T1w", ".json", space=moved_from.space, desc="moved")
        files[sidecar] = {
            "Description": "The moving image, registered to the fixed image",
            "SpatialReference": str(moved_from.fixed()),
            **({"SkullStripped": True} if moved_from.skull_stripped else {}),
        }
    for file, content in files.items():
        write_json(folder / file, content)
    write_atomically(folder / ".bidsignore", ("\n".join((*IGNORED, *ignored)) + "\n").encode())


def describe_warp(path: Path, form: str, sources: Sequence[Path]) -> None:
    """Write the sidecar of a warp in one of `transforms.FORMATS`; sources: what it was made of."""
    chosen = transforms.FORMATS[form]
    content = {
        "Description": chosen.description,
        "Type": "displacement field",
        "Format": form,
        "Units": chosen.units,
        "CoordinateSystem": chosen.coordinates,
        "Direction": "from the fixed image's world to the moving image's, at the voxels of the "
        "fixed image: it resamples the moving image there",
        "Sources": [str(source) for source in sources],
        "GeneratedBy": GENERATED_BY,
    }
    write_json(bids.sidecar(path), content)
