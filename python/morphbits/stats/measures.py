"""What studies measure of a registration: volumes, displacements, local growth, overlap, motion.

One sample at a time: numbers by (region, measure). Measures in UNITS:

- volume: of each label of the moving image, brought to the fixed grid by the warp (nearest voxel).
- dice: of such a label and the fixed image's own.
- displacement: mean length of the displacements in a region of the fixed image.
- jacobian: mean Jacobian determinant there; above 1 where the moving image is larger.
- dice_ieee: of a label brought by this sample's warp and by the unperturbed one.
- fd_power, fd_jenkinson: framewise displacement from the unperturbed warp's affine part to this
  one's. An affine model's warp is its affine part.

Shape legend: X Y Z space (voxels of the fixed grid), N voxels of a region in a row, V component.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from morphbits import images
from morphbits.images import Image
from morphbits.stats import accuracy, aseg

UNITS = {
    "volume": "mm³",
    "dice": "",
    "displacement": "mm",
    "jacobian": "",
    "dice_ieee": "",
    "fd_power": "mm",
    "fd_jenkinson": "mm",
}
# distances from the unperturbed result: they have no spread over a population
FROM_REFERENCE = ("dice_ieee", "fd_power", "fd_jenkinson")
TISSUES = {1: "CSF", 2: "GM", 3: "WM"}
POWER_RADIUS, JENKINSON_RADIUS = 50.0, 80.0  # mm, of a head, as their authors have them

Values = dict[tuple[str, str], float]


def region_names(labels: Iterable[int], path: Path) -> dict[int, str]:
    """Names of a label map's labels, without 0: tissues where there are no others than 1 to 3,
    otherwise those of the table next to the file (BIDS: `_dseg.tsv`), otherwise FreeSurfer's names
    if the map is FreeSurfer's (`aseg`), otherwise `label 17`."""
    found = sorted({int(label) for label in labels} - {0})
    if set(found) <= set(TISSUES):
        return {label: TISSUES[label] for label in found}
    table = path.with_name(path.name.partition(".")[0] + ".tsv")
    names = {str(k): name for k, name in aseg.names().items()} if aseg.is_freesurfers(path) else {}
    if table.is_file():
        rows = csv.DictReader(table.read_text(encoding="utf-8").splitlines(), delimiter="\t")
        names |= {
            row["index"]: row["name"] for row in rows if row.get("index") and row.get("name")
        }
    return {label: names.get(str(label), f"label {label}") for label in found}


@dataclass(frozen=True)
class Sample:
    """Values of one sample, and what the others are compared with: its labels on the fixed grid
    (X, Y, Z) and the affine part of its warp (4, 4)."""

    values: Values
    labels_XYZ: np.ndarray | None
    affine_part: np.ndarray


@dataclass(frozen=True)
class Regions:
    """What a subject's samples are measured in.

    masks: regions of the fixed image, bool (X, Y, Z): `brain`, and parts of it; affine: (4, 4) of
    the fixed image; moving_labels: the moving image's label map, with its labels' names;
    fixed_labels: the fixed image's, (X, Y, Z).
    """

    masks: Mapping[str, np.ndarray]
    affine: np.ndarray
    moving_labels: Image | None = None
    names: Mapping[int, str] | None = None
    fixed_labels: np.ndarray | None = None

    def measure(self, warp: Image, ieee: Sample | None = None) -> Sample:
        """Values of the sample with this warp (X, Y, Z, 3), in voxels of the fixed grid."""
        values: Values = {}
        brain = self.masks["brain"]
        displacements_NV = displacements(warp, brain)
        lengths_N = np.sqrt(np.square(displacements_NV).sum(axis=-1))
        box = self._box
        determinants_N = images.jacobian_determinant(warp.data[box])[brain[box]]
        for region, part_N in self._parts.items():
            values[region, "displacement"] = float(lengths_N[part_N].mean())
            values[region, "jacobian"] = float(determinants_N[part_N].mean())
        labels_XYZ = None
        if self.moving_labels is not None and self.names:
            labels_XYZ = accuracy.moved_labels(self.moving_labels, warp)
            x, y, z = self.affine[:3, :3].T
            voxel = abs(float(np.dot(np.cross(x, y), z)))  # not det, whose 8 mm³ are 7.999…
            for label, name in self.names.items():
                values[name, "volume"] = voxel * np.count_nonzero(labels_XYZ == label)
            others = {"dice": self.fixed_labels, "dice_ieee": ieee.labels_XYZ if ieee else None}
            for measure, other_XYZ in others.items():
                if other_XYZ is not None:
                    overlap = accuracy.dice(labels_XYZ, other_XYZ, self.names)
                    values |= {(self.names[x], measure): dice for x, dice in overlap.items()}
        matrix = self._fit.affine_part(displacements_NV)
        if ieee:
            pair = matrix, ieee.affine_part, self._fit.middle_V
            values["brain", "fd_power"] = framewise_displacement_power(*pair)
            values["brain", "fd_jenkinson"] = framewise_displacement_jenkinson(*pair)
        return Sample(values, labels_XYZ, matrix)

    @cached_property
    def _parts(self) -> dict[str, np.ndarray]:
        """Which of the brain's voxels are in each region, bool (N,)."""
        return {region: mask[self.masks["brain"]] for region, mask in self.masks.items()}

    @cached_property
    def _fit(self) -> Fit:
        """Of affine transforms to displacements of the brain's voxels."""
        return Fit.of(
            np.argwhere(self.masks["brain"]) @ self.affine[:3, :3].T + self.affine[:3, 3]
        )

    @cached_property
    def _box(self) -> tuple[slice, ...]:
        """Around the brain, with the neighbours that its derivatives need."""
        found = ndimage.find_objects(self.masks["brain"].astype(np.uint8))[0]
        return tuple(slice(max(side.start - 1, 0), side.stop + 1) for side in found)


def displacements(warp: Image, mask: np.ndarray) -> np.ndarray:
    """(N, 3) RAS mm, float64: from each voxel of the mask to where its value is taken."""
    shift = 0.0 if warp.shift is None else warp.shift
    return warp.data[mask].astype(np.float64) @ warp.affine[:3, :3].T + shift


@dataclass(frozen=True)
class Fit:
    """Least squares fits of affine transforms to displacements of the same N points: the mean of
    the points (V,), the points less their mean (N, V), and the normal matrix (V, V); RAS mm."""

    middle_V: np.ndarray
    centred_NV: np.ndarray
    normal: np.ndarray

    @classmethod
    def of(cls, points_NV: np.ndarray) -> Fit:
        middle_V = points_NV.mean(axis=0)
        centred_NV = points_NV - middle_V
        return cls(middle_V, centred_NV, centred_NV.T @ centred_NV)

    def affine_part(self, displacements_NV: np.ndarray) -> np.ndarray:
        """(4, 4), RAS mm of the fixed image to RAS mm of the moving one: the least squares fit to
        the displacements of the points, in RAS mm."""
        moments = self.centred_NV.T @ displacements_NV
        slope = np.linalg.lstsq(self.normal, moments, rcond=None)[0].T
        matrix = np.eye(4)
        matrix[:3, :3] += slope
        matrix[:3, 3] = displacements_NV.mean(axis=0) - slope @ self.middle_V
        return matrix


def framewise_displacement_power(
    matrix: np.ndarray, reference: np.ndarray, centre: np.ndarray
) -> float:
    """|Δx| + |Δy| + |Δz| + 50 mm · (|Δα| + |Δβ| + |Δγ|), in mm (Power et al. 2012,
    doi:10.1016/j.neuroimage.2011.10.018).

    matrix, reference: (4, 4) mm to mm; centre: (3,) mm, of the head, where translations are
    measured. Angles are those of the rotation from one to the other; shears and scales do not
    count.
    """
    change, centre = _change(matrix, reference, centre)
    left, _, right = np.linalg.svd(change[:3, :3])  # the nearest rotation is left @ right
    angles = Rotation.from_matrix(left @ right).as_euler("xyz")
    translation = change[:3, :3] @ centre + change[:3, 3] - centre
    return float(np.abs(translation).sum() + POWER_RADIUS * np.abs(angles).sum())


def framewise_displacement_jenkinson(
    matrix: np.ndarray, reference: np.ndarray, centre: np.ndarray
) -> float:
    """Root mean square displacement over a ball of 80 mm, in mm: √(R²/5 · tr AᵀA + |t + A c|²)
    (Jenkinson 1999, FMRIB technical report TR99MJ1; FSL's rmsdiff).

    matrix, reference: (4, 4) mm to mm; centre: (3,) mm, the ball's. A and t are those of the
    change from one to the other, less the identity: shears and scales count.
    """
    change, centre = _change(matrix, reference, centre)
    linear = change[:3, :3] - np.eye(3)
    middle = linear @ centre + change[:3, 3]
    return float(np.sqrt(JENKINSON_RADIUS**2 / 5 * np.sum(linear**2) + middle @ middle))


def _change(
    matrix: np.ndarray, reference: np.ndarray, centre: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """From where the reference leads to where the matrix leads, and where it leads the centre."""
    return matrix @ np.linalg.inv(reference), reference[:3, :3] @ centre + reference[:3, 3]
