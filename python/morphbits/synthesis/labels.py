"""Label maps to synthesize images from: phantoms, shapes, CoRR's segmentations, any folder.

All maps of one source have one shape, padded with background to what the network takes, and hold
indices: 0 is the background (value 0), 1 … the other values in ascending order. Some values are
*targets*: those whose overlap a training optimizes. Files lie in the axes of the first one: flips
and permutations are undone, any other difference of axes or voxel sizes is refused.

| `labels` | maps | targets unless told otherwise |
|---|---|---|
| phantom | of `morphbits.datasets.phantom`, never those of a dataset on disk | its three tissues |
| shapes | smooth random shapes drawn from noise; no data needed | all 26, there is no background |
| corr | CoRR's subjects by SAMSEG or recon-all, else the open route's tissues | `FS_LABELS` |
| a folder | all NIfTI, MGZ and npz files in it | all but 0 |

Phantoms and shapes are drawn when first asked for, or all before that (`LabelMaps.draw_all`): map
k is a pure function of (seed, k, size).

Shapes follow the recipe of SynthMorph (Hoffmann et al. 2022, doi:10.1109/TMI.2021.3116879): for
each label a smooth noise image, moved by a smooth random displacement of its own; a voxel's label
is that of the largest. Lengths are millimetres, so that shapes are as large at every size.

Axes: X Y Z voxels.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from morphbits import axes, bids, images
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
# of one core (AMD EPYC) for each map, and for each of its voxels
DRAWING_SECONDS = {"shapes": (0.0, 5e-6), "phantom": (1.0, 1e-6)}
SAME_SIZE = 0.01  # of a voxel's edge: headers round in the sixth digit
SAME_AXES = 0.1  # radians: heads lie at angles in the scanner that differ as much

Indices = NDArray[np.unsignedinteger[Any]]
Values = NDArray[np.int32]


class LabelMaps:
    """`count` label maps of one `shape`, drawn or read at their first use and kept in memory.

    shape: (X, Y, Z), multiples of 16. values: the label of each index. targets: the labels whose
    overlap counts, in the order of a pair's channels. absent: labels that should count as well,
    and that no map holds. orientation: the axes they lie in (`morphbits.axes`), empty for none.
    """

    def __init__(
        self,
        name: str,
        count: int,
        shape: tuple[int, ...],
        values: tuple[int, ...],
        targets: tuple[int, ...],
        draw: Callable[[int], Values],
        absent: tuple[int, ...] = (),
        orientation: str = "",
    ) -> None:
        self.name, self.count, self.values, self.targets = name, count, values, targets
        self.orientation = orientation
        self.absent = absent
        self.grid = NetworkGrid.around(shape)
        self.shape = self.grid.size
        self._draw = draw
        self._map = cache(self._indices)

    def __getitem__(self, number: int) -> Indices:
        """Map `number` as indices into `values`, (X, Y, Z), in the smallest unsigned type."""
        return self._map(number)

    def draw_all(self, threads: int) -> None:
        """Have every map in memory, so that none is waited for later; the bytes do not change."""
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(self._map, range(self.count)))

    def describe(self) -> str:
        """How many maps and targets there are, and a warning where targets are missing; lines."""
        labels = f"{len(self.values)} labels, {len(self.targets)} of them targets"
        plural = "s" if self.count > 1 else ""
        lines = [f"{self.count} label map{plural} ({self.name}) of {labels}"]
        if self.absent:
            lines.append(
                f"warning: {len(self.absent)} of {len(self.absent) + len(self.targets)} labels to "
                f"optimize are in no label map: {_list(self.absent)}"
            )
        return "\n".join(lines)

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
        wanted, absent = _targets(targets, values, values[1:], labels, own_numbers=True)
        return LabelMaps(
            labels, count, shape, values, wanted,
            lambda number: phantom.make_phantom(stream, number, size).labels, absent,
            phantom.ORIENTATION,
        )  # fmt: skip
    if labels == "shapes":
        values, voxel = tuple(range(SHAPES)), float(phantom.SIZES[size].factor)
        shape = NetworkGrid.around(phantom.SIZES[size].voxels).size
        wanted, absent = _targets(targets, values, values, labels, own_numbers=True)
        return LabelMaps(
            labels, count, shape, values, wanted,
            lambda number: draw_shapes(seed, number, shape, voxel), absent,
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
        return _from_files(labels, paths, targets, (), own_numbers=True)
    return _from_files(labels, _label_files(Path(labels)), targets, ())


def drawing_seconds(labels: str, count: int, size: str) -> float:
    """What one core takes to draw all maps, within a factor of two; 0 for what is read."""
    each, per_voxel = DRAWING_SECONDS.get(labels, (0.0, 0.0))
    return count * (each + per_voxel * math.prod(phantom.SIZES[size].voxels))


def _stream_number(name: str, seed: int) -> int:
    """A seed that no dataset on disk has: 256 bits from its name and the user's seed."""
    return int.from_bytes(hashlib.sha256(f"{name} {seed}".encode()).digest(), "big")


def _targets(
    text: str,
    values: tuple[int, ...],
    usual: tuple[int, ...],
    name: str,
    own_numbers: bool = False,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The labels to optimize that the maps hold, and those that they do not, each ascending.

    own_numbers: the maps number their labels in their own way, so that a FreeSurfer label is
    another thing there, if it is there at all.
    """
    if text == "fs" and own_numbers:
        raise UserError(
            f"targets fs are FreeSurfer's numbers, and the label maps of {name} have numbers of "
            f"their own ({_list(values)}): leave targets out, or name some of these"
        )
    named: dict[str, tuple[int, ...]] = {"auto": usual, "fs": FS_LABELS, "all": values}
    asked = named[text] if text in named else tuple(int(word) for word in text.split())
    found = tuple(sorted(set(asked) & set(values)))
    if not found:
        raise UserError(
            f"{name}: none of the labels to optimize ({text}) is in the label maps, which hold "
            f"{_list(values)}"
        )
    return found, tuple(sorted(set(asked) - set(values)))


def _list(labels: tuple[int, ...]) -> str:
    return f"{', '.join(map(str, labels[:30]))}{' …' if len(labels) > 30 else ''}"


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
    own_numbers: bool = False,
) -> LabelMaps:
    """Read once to learn shape and values; kept in memory in the smallest type."""
    maps: list[NDArray[Any]] = []
    first: Image | None = None  # that says how it lies in the world
    for path in paths:
        volume = read(path)
        if volume.has_affine:
            first = first or volume
            volume = _in_axes_of(first, volume)
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
    wanted, absent = _targets(targets, values, preferred or values[1:], name, own_numbers)
    orientation = axes.name_of(first.affine) if first else ""
    return LabelMaps(
        name, len(maps), maps[0].shape, values, wanted, lambda number: maps[number], absent,
        orientation,
    )  # fmt: skip


def _in_axes_of(first: Image, volume: Image) -> Image:
    """`volume` with its axes in the order and direction of those of `first`."""
    to_first = nibabel.io_orientation(np.linalg.solve(first.affine, volume.affine))
    data = nibabel.apply_orientation(volume.data, to_first)
    affine = volume.affine @ nibabel.orientations.inv_ornt_aff(to_first, volume.data.shape)
    turned = Image(np.ascontiguousarray(data), affine, path=volume.path)
    sizes, expected = turned.voxel_sizes, first.voxel_sizes
    if np.abs(sizes / expected - 1).max() > SAME_SIZE:
        raise UserError(
            f"{volume.name} has voxels of {_by(sizes.round(3).tolist())} mm and {first.name} "
            f"{_by(expected.round(3).tolist())}: label maps must have voxels of one size; "
            "resample them (nearest neighbour) first"
        )
    cosines = ((affine[:3, :3] / sizes) * (first.affine[:3, :3] / expected)).sum(0)
    angle = float(np.arccos(cosines.clip(-1, 1)).max())
    if angle > SAME_AXES:
        raise UserError(
            f"the axes of {volume.name} are turned by {np.degrees(angle):.0f}° against those of "
            f"{first.name}: resample it (nearest neighbour) to the axes of the others first, or "
            "take it out of the folder"
        )
    return turned


def _by(shape: Sequence[float]) -> str:
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
