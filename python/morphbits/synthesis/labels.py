"""Label maps to synthesize images from: phantoms, shapes, CoRR's segmentations, any folder.

All maps of one source have one shape, padded with background to what the network takes, and hold
indices: 0 is the background (value 0), 1 … the other values in ascending order. Some values are
*targets*: those whose overlap a training optimizes.

| `labels` | maps | targets unless told otherwise |
|---|---|---|
| phantom | of `morphbits.datasets.phantom`, never those of a dataset on disk | its three tissues |
| shapes | smooth random shapes drawn from noise; no data needed | all 26, there is no background |
| corr | CoRR's subjects by SAMSEG or recon-all, else the open route's tissues | `FS_LABELS` |
| a folder | all NIfTI, MGZ and npz files in it | all but 0 |

Phantoms and shapes are drawn when first asked for: map k is a pure function of (seed, k, size).

Shapes follow the recipe of SynthMorph (Hoffmann et al. 2022, doi:10.1109/TMI.2021.3116879): for
each label a smooth noise image, moved by a smooth random displacement of its own; a voxel's label
is that of the largest. Lengths are millimetres, so that shapes are as large at every size.

Axes: X Y Z voxels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from morphbits import bids, images
from morphbits.datasets import phantom
from morphbits.errors import UserError
from morphbits.images import Image, NetworkGrid
from morphbits.preprocessing import freesurfer

# The 26 structures whose overlap SynthMorph's "brains" model optimizes, in FreeSurfer's numbers:
# fs-labels.npy beside the published models (surfer.nmr.mgh.harvard.edu/ftp/data/voxelmorph).
FS_LABELS = (
    2, 3, 4, 7, 8, 10, 11, 12, 13, 16, 17, 18, 24, 28,  # left, brainstem (16), CSF (24)
    41, 42, 43, 46, 47, 49, 50, 51, 52, 53, 54, 60,  # right
)  # fmt: skip
SHAPES = 26
SHAPE_SCALES = (32.0, 64.0)  # mm between the nodes of a label's noise image
SHAPE_WARP_SCALES = (16.0, 32.0, 64.0)  # mm between the nodes of its displacement …
SHAPE_WARP_STD = 16.0  # … and the largest standard deviation of each, mm

Indices = NDArray[np.unsignedinteger[Any]]
Values = NDArray[np.int32]


class LabelMaps:
    """`count` label maps of one `shape`, drawn or read at their first use and kept in memory.

    shape: (X, Y, Z), multiples of 16. values: the label of each index. targets: the labels whose
    overlap counts, in the order of a pair's channels.
    """

    def __init__(
        self,
        name: str,
        count: int,
        shape: tuple[int, ...],
        values: tuple[int, ...],
        targets: tuple[int, ...],
        draw: Callable[[int], Values],
    ) -> None:
        self.name, self.count, self.values, self.targets = name, count, values, targets
        self.grid = NetworkGrid.around(shape)
        self.shape = self.grid.size
        self._draw = draw
        self._map = cache(self._indices)

    def __getitem__(self, number: int) -> Indices:
        """Map `number` as indices into `values`, (X, Y, Z), in the smallest unsigned type."""
        return self._map(number)

    def _indices(self, number: int) -> Indices:
        kind = np.min_scalar_type(len(self.values) - 1)
        drawn = self.grid.pad(self._draw(number))
        indices = np.searchsorted(np.array(self.values), drawn).astype(kind)
        indices.flags.writeable = False
        return indices


def open_labels(
    labels: str, targets: str, count: int, seed: int, size: str, data: Path
) -> LabelMaps:
    """The label maps that `labels` names: phantom, shapes, corr or a folder.

    targets: "auto" (see the table above), "fs", "all" (also 0), or numbers such as "2 41 3 42".
    count, seed and size concern phantoms and shapes, `data` CoRR.
    """
    if labels == "phantom":
        shape, values = phantom.SIZES[size].voxels, tuple(sorted(phantom.LABELS))
        stream = _stream_number("label maps", seed)
        wanted = _targets(targets, values, values[1:], labels)
        return LabelMaps(
            labels, count, shape, values, wanted,
            lambda number: phantom.make_phantom(stream, number, size).labels,
        )  # fmt: skip
    if labels == "shapes":
        values, voxel = tuple(range(SHAPES)), float(phantom.SIZES[size].factor)
        shape = NetworkGrid.around(phantom.SIZES[size].voxels).size
        wanted = _targets(targets, values, values, labels)
        return LabelMaps(
            labels, count, shape, values, wanted,
            lambda number: draw_shapes(seed, number, shape, voxel),
        )  # fmt: skip
    if labels == "corr":
        paths = bids.corr_segmentations(data)
        if not paths:
            raise UserError(
                f"there are no segmentations of CoRR below {bids.recon_all_folder(data)}: put "
                "each subject's seg.mgz (SAMSEG) or aseg.mgz (recon-all) into "
                "SUBJECT/mri/, make the open route's tissues (make preprocess), or choose "
                "phantom, shapes or a folder of label maps"
            )
        if paths[0].suffix == ".mgz":
            return _from_files(labels, paths, targets, FS_LABELS, freesurfer.segmentation)
        return _from_files(labels, paths, targets, ())
    return _from_files(labels, _label_files(Path(labels)), targets, ())


def _stream_number(name: str, seed: int) -> int:
    """A seed that no dataset on disk has: 256 bits from its name and the user's seed."""
    return int.from_bytes(hashlib.sha256(f"{name} {seed}".encode()).digest(), "big")


def _targets(
    text: str, values: tuple[int, ...], usual: tuple[int, ...], name: str
) -> tuple[int, ...]:
    """The labels to optimize, ascending; those that the maps do not hold are left out."""
    named: dict[str, tuple[int, ...]] = {"auto": usual, "fs": FS_LABELS, "all": values}
    asked = named[text] if text in named else tuple(int(word) for word in text.split())
    found = tuple(sorted(set(asked) & set(values)))
    if not found:
        raise UserError(
            f"{name}: none of the labels to optimize ({text}) is in the label maps, which hold "
            f"{', '.join(map(str, values[:30]))}{' …' if len(values) > 30 else ''}"
        )
    return found


# ------------------------------------------------------------------------------- files


def _label_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(
            f"{folder} is no folder of label maps; labels are phantom, shapes, corr or a folder"
        )
    paths = sorted(
        path
        for path in folder.iterdir()
        if path.name.lower().endswith(images.EXTENSIONS) and not path.name.startswith(".")
    )
    if not paths:
        raise UserError(
            f"{folder} holds no label maps: files that end in {', '.join(images.EXTENSIONS)}"
        )
    return paths


def _from_files(
    name: str,
    paths: list[Path],
    targets: str,
    preferred: tuple[int, ...],
    read: Callable[[Path], Image] = images.load_labels,
) -> LabelMaps:
    """Read once to learn shape and values; kept in memory in the smallest type."""
    maps: list[NDArray[Any]] = []
    for path in paths:
        volume = read(path)
        if volume.data.shape == freesurfer.CONFORMED:
            volume = freesurfer.crop(volume)
        if maps and volume.data.shape != maps[0].shape:
            raise UserError(
                f"{path} has {_by(volume.data.shape)} voxels and {paths[0]} {_by(maps[0].shape)}: "
                "label maps must lie on one grid; resample them (nearest neighbour) first"
            )
        if volume.data.min() < 0:
            raise UserError(f"{path} holds negative values; labels are 0 or more")
        maps.append(volume.data.astype(np.min_scalar_type(volume.data.max())))
    values = tuple(sorted({0, *(int(value) for each in maps for value in np.unique(each))}))
    if len(values) == 1:
        raise UserError(f"{name}: every voxel of every label map is 0")
    if len(values) > 2**16:
        raise UserError(f"{paths[0]}: {len(values)} different labels; is this an intensity image?")
    usual = tuple(sorted(set(preferred) & set(values))) or values[1:]
    wanted = _targets(targets, values, usual, name)
    return LabelMaps(name, len(maps), maps[0].shape, values, wanted, lambda number: maps[number])


def _by(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))


# ------------------------------------------------------------------------------- shapes


def draw_shapes(seed: int, number: int, shape: tuple[int, ...], voxel: float) -> Values:
    """Map `number` of random shapes, voxels of `voxel` mm: (X, Y, Z), labels 0 … 25."""
    rng = np.random.default_rng([_stream_number("shapes", seed), number])
    extent = [n * voxel for n in shape]
    centres = [(np.arange(n) + 0.5) * voxel for n in shape]
    largest, labels = np.full(shape, -np.inf, np.float32), np.zeros(shape, np.int32)
    for label in range(SHAPES):
        points = np.stack(np.meshgrid(*centres, indexing="ij")).astype(np.float32)
        for scale in SHAPE_WARP_SCALES:
            std = rng.uniform(0, SHAPE_WARP_STD)
            nodes = _nodes(rng, (3,), scale, extent) * np.float32(std)
            points += _upsampled(nodes, scale, centres)
        value = np.zeros(shape, np.float32)
        for scale in SHAPE_SCALES:
            std = rng.uniform(0, 1)
            nodes = _nodes(rng, (), scale, extent) * np.float32(std)
            value += ndimage.map_coordinates(nodes, points / scale, order=1, mode="nearest")
        labels[value > largest] = label
        np.maximum(largest, value, out=largest)
    return labels


def _nodes(
    rng: np.random.Generator, channels: tuple[int, ...], scale: float, extent: list[float]
) -> NDArray[np.float32]:
    """Standard normal values on nodes `scale` mm apart that cover `extent` mm."""
    counts = [int(length / scale) + 2 for length in extent]
    return rng.standard_normal((*channels, *counts), np.float32)


def _upsampled(
    nodes_CXYZ: NDArray[np.float32], scale: float, centres: list[NDArray[Any]]
) -> NDArray[np.float32]:
    """Linear between nodes `scale` mm apart, at the voxels' centres (mm): (C, X, Y, Z)."""
    values = nodes_CXYZ
    for axis, centre in enumerate(centres, start=1):
        position = centre / scale
        node = position.astype(int)
        t = (position - node).astype(np.float32)
        t = t.reshape([-1 if a == axis else 1 for a in range(4)])
        values = values.take(node, axis) * (1 - t) + values.take(node + 1, axis) * t
    return values
