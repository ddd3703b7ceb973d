"""Writing what a registration gives: the moved image, the warp, and ``sample.json`` last."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from morphbits import images
from morphbits.errors import UserError
from morphbits.images import Image
from morphbits.provenance import data_sha256
from morphbits.registration import Result


def save_result(
    result: Result,
    moved: Path,
    warp: Path,
    warp_format: str = "voxels",
    resampled: Path | None = None,
    moving: Image | None = None,
) -> dict[str, Any]:
    """Write the images; returns the ``outputs`` of ``sample.json``: file, bytes and sha256.

    resampled: where to write the moving image (`moving`, as it was loaded) in its own intensities.
    """
    outputs = {}
    affine, codes = result.fixed_affine, result.fixed_codes
    files = {"moved": (moved, result.moved_XYZ), "warp": (warp, result.warp_XYZV)}
    if resampled and moving:
        transform = Image(result.warp_XYZV, affine, shift=result.shift)
        files["resampled"] = resampled, images.move(moving, transform).data
    for name, (path, array) in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        data = np.ascontiguousarray(array, dtype=np.float32)
        if name == "warp":
            data = images.save_warp(path, data, affine, result.shift, codes, warp_format, moving)
        else:
            images.save(path, data, affine, codes, noisy=True)
        outputs[name] = {
            "file": path.name,
            "bytes": path.stat().st_size,
            "sha256": data_sha256(data),
        }
    return outputs


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """A temporary folder inside ``folder``, made where missing; gone at the end with its content.

    What is written in it can be renamed to its place in ``folder`` in one step.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(
            dir=folder, prefix=".partial-", ignore_cleanup_errors=True
        )
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written to ({error.strerror}); choose another folder"
        ) from error
    with temporary as name:
        yield Path(name)


def replace_all(moves: dict[Path, Path]) -> None:
    """Rename each file to its place, in order."""
    for source, target in moves.items():
        os.replace(source, target)
