"""A picture to look at: does the brain lie on the template, is all of it there, and no skull?"""

from __future__ import annotations

import io

import matplotlib
import nibabel
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

SLICES = (0.35, 0.5, 0.65)  # of the template's brain, along each axis
TISSUES = ("#3b82f6", "#f59e0b", "#ef4444")  # CSF, grey, white matter

Volume = NDArray[np.float32]
Labels = NDArray[np.int32]


def png(
    image: Volume, labels: Labels, template: Volume, brain: NDArray[np.bool_], affine: NDArray
) -> bytes:
    """Three rows of slices (sagittal, coronal, axial; front to the left, left on the left): the
    template, the image with the outline of the template's brain, and the image's tissues.

    All (X, Y, Z) on one grid whose affine (4, 4) takes voxels to RAS mm; labels 1 CSF, 2 grey,
    3 white matter. Returns the file's bytes.
    """
    ras = nibabel.orientations.io_orientation(affine)
    image, labels, template, brain = (
        nibabel.orientations.apply_orientation(volume, ras)
        for volume in (image, labels, template, brain)
    )
    planes = ((1, 2), (0, 2), (0, 1))
    spans = [np.flatnonzero(brain.any(axis=plane))[[0, -1]] for plane in planes]
    cuts = [
        (axis, round(low + part * (high - low)))
        for axis, (low, high) in enumerate(spans)
        for part in SLICES
    ]

    def cut(volume: NDArray, axis: int, index: int) -> NDArray:
        plane = volume.take(index, axis).T  # rows upwards
        return plane[:, ::-1] if axis == 0 else plane

    with matplotlib.rc_context({"font.size": 8}):
        figure = Figure(figsize=(1.5 * len(cuts), 4.8), dpi=100, facecolor="black")
        FigureCanvasAgg(figure)
        axes = figure.subplots(3, len(cuts), gridspec_kw={"wspace": 0, "hspace": 0})
        figure.subplots_adjust(0, 0, 1, 1)
        for column, (axis, index) in enumerate(cuts):
            shown = [cut(v, axis, index) for v in (template, image, image)]
            outline, tissue = cut(brain, axis, index), cut(labels, axis, index)
            for row, plane in enumerate(shown):
                ax = axes[row, column]
                ax.imshow(plane, cmap="gray", origin="lower", vmin=0, vmax=1)
                ax.axis("off")
                if row == 1 and outline.any():
                    ax.contour(outline, [0.5], colors="#22c55e", linewidths=0.8)
                if row == 2:
                    for label, colour in enumerate(TISSUES, start=1):
                        if (tissue >= label).any():
                            ax.contour(tissue >= label, [0.5], colors=colour, linewidths=0.5)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
