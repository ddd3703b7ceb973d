"""Significant bits from one run: its float64 shadow, and what was counted on the way, by stage.

Shape legend: X Y Z space (voxels of the fixed grid), V warp component.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from scipy import ndimage
from torch import Tensor
from torch.nn.modules.module import register_module_forward_hook

from morphbits import provenance, stages
from morphbits.engines.shadow import Shadow
from morphbits.errors import UserError
from morphbits.models.model import open_model
from morphbits.registration import check_memory, register
from morphbits.stats.analysis import Row, read_table
from morphbits.stats.one_run import check, counter_row, estimated_bits
from morphbits.stats.significance import FLOAT32_BITS, quantiles, significant_bits
from morphbits.studies.layers.computation import Case, Samples, is_one_array, shape_of

WINDOW = 5  # voxels along each axis over which a map is averaged


def averaged(bits_XYZ: np.ndarray) -> np.ndarray:
    """Mean over a cube of WINDOW voxels about each, of those that are not NaN."""
    there_XYZ = np.isfinite(bits_XYZ)
    sums, counts = (
        ndimage.uniform_filter(array, WINDOW, mode="constant")
        for array in (np.where(there_XYZ, bits_XYZ, 0.0), there_XYZ.astype(float))
    )
    return np.where(there_XYZ, sums / np.maximum(counts, 1e-9), np.nan)


@dataclass
class OneRun:
    """What one run tells."""

    tables: dict[str, list[Row]]
    """one_run: bits of each stage's result, and of image and warp. counters: what was counted.
    decisions: how many, and how many of them float64 takes otherwise."""
    maps: dict[str, np.ndarray]  # bits (X, Y, Z) of image and warp, averaged
    record: dict[str, Any]
    """configuration and provenance of the run; unshadowed: calls of operators that float64 could
    not follow; lost: by stage, how many additions and sums lost 0, 1, …, 24 and all bits"""


def one_run(case: Case, runs: int) -> OneRun:
    """Register the case once, rounded to nearest, with a shadow; `runs`: of the samples whose
    bits are estimated."""
    mode = case.settings.mode
    check(mode, runs)
    shadow, started = Shadow(), provenance.Start()
    rows: dict[str, Row] = {}
    outputs: list[np.ndarray] = []

    def observe(name: str, result: Any) -> None:
        if is_one_array(result):
            values, exact = result.detach().numpy(), shadow.of(result).numpy()
            bits = estimated_bits(values, exact, runs, mode)
            rows[name] = _row(name, values, exact, bits)

    def hook(module: Any, inputs: Any, results: Any) -> None:
        """Called after every module; the outermost one, whose results count, returns last."""
        if isinstance(results, tuple | list) and all(isinstance(x, Tensor) for x in results):
            outputs[:] = [shadow.of(x)[0].numpy() for x in results]

    config = case.config(mode="nearest")
    memory = open_model(case.settings.model, config).memory(case.prepared.fixed.size, "native")
    # float32, its shadow of twice the size, and a float64 result while it is copied
    check_memory(case.settings.model, 4 * memory, case.prepared)
    handle = register_module_forward_hook(hook)
    try:
        with stages.observed(observe):
            result = register(case.prepared, case.settings.model, config, watch=shadow)
    finally:
        handle.remove()
    rows.pop("network", None)  # the same numbers as flow
    exact_image_XYZ = case.prepared.moved_back(outputs[0][0])
    exact_warp_XYZV = case.prepared.warp_back(np.moveaxis(outputs[1], 0, -1))
    image_XYZ = estimated_bits(result.moved_XYZ, exact_image_XYZ, runs, mode)
    warp_XYZV = estimated_bits(result.warp_XYZV, exact_warp_XYZV, runs, mode)
    for name, *row in (
        ("result: image", result.moved_XYZ, exact_image_XYZ, image_XYZ),
        ("result: warp", result.warp_XYZV, exact_warp_XYZV, warp_XYZV),
    ):
        rows[name] = _row(name, *row)
    counted = {name: counts for name, counts in shadow.counts.items() if counts.results}
    decisions = [
        {"stage": name, "kind": kind, "decisions": number, "float64": counts.flipped[kind]}
        for name, counts in shadow.counts.items()
        for kind, number in counts.decisions.items()
    ]
    files = {"moving": case.dataset.moving(case.subject), "fixed": case.dataset.fixed()}
    inputs = provenance.inputs(files, case.settings.model, config)
    return OneRun(
        {
            "one_run": list(rows.values()),
            "counters": [counter_row(name, counts) for name, counts in counted.items()],
            "decisions": decisions,
        },
        {
            "image, one run": averaged(image_XYZ),
            "warp, one run": averaged(_mean_component(warp_XYZV)),
        },
        {
            "configuration": provenance.configuration(config, inputs),
            "provenance": provenance.provenance(config, started, result.record),
            "estimated_for": {"mode": mode, "runs": runs},
            "unshadowed": dict(shadow.unshadowed),
            "lost": {
                name: {"additions": counts.lost.tolist(), "sums": counts.sums_lost.tolist()}
                for name, counts in counted.items()
            },
        },
    )


def _mean_component(bits_XYZV: np.ndarray) -> np.ndarray:
    """NaN where no component has bits."""
    there_XYZV = np.isfinite(bits_XYZV)
    sums, counts = np.where(there_XYZV, bits_XYZV, 0).sum(axis=-1), there_XYZV.sum(axis=-1)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _row(name: str, values: np.ndarray, exact: np.ndarray, bits: np.ndarray) -> Row:
    error = values.astype(np.float64) - exact
    return {
        "stage": name,
        "shape": shape_of(values),
        "one_run": min(float(FLOAT32_BITS), quantiles(bits)["mean"]),
        "error_rms": float(np.sqrt(np.mean(error**2))),
        "error_max": float(np.abs(error).max()),
        "without_error": float(np.mean(error == 0)),
    }


def with_samples(found: OneRun, activations: list[Row], samples: Samples) -> None:
    """Add to a run's table and maps what perturbed samples give."""
    warp_bits = [significant_bits(of, None) for of in np.moveaxis(samples.warp_SXYZV, -1, 0)]
    warp_XYZV = np.stack(warp_bits, axis=-1)
    image_XYZ = significant_bits(samples.image_SXYZ, None)
    known = {row["stage"]: row["mean"] for row in activations}
    known |= {
        "result: image": quantiles(image_XYZ)["mean"],
        "result: warp": quantiles(warp_XYZV)["mean"],
    }
    for row in found.tables["one_run"]:
        _compare(row, known[row["stage"]], len(samples.image_SXYZ))
    found.maps["image, samples"] = averaged(image_XYZ)
    found.maps["warp, samples"] = averaged(_mean_component(warp_XYZV))


def keep_samples(found: OneRun, folder: Path) -> str:
    """Add to a run's table and maps what `with_samples` added to the earlier ones in the folder,
    if those have the same configuration. Returns a sentence on what is kept or dropped; an empty
    one where there were no samples."""
    try:
        rows = read_table(folder / "one_run.csv")
        if not rows or "samples" not in rows[0]:
            return ""
        record = json.loads((folder / "one_run.json").read_text(encoding="utf-8"))
        maps = {
            f"{quantity}, samples": nibabel.Nifti1Image.from_filename(
                folder / f"bits_{quantity}-samples.nii.gz"
            ).get_fdata(dtype=np.float32)
            for quantity in ("image", "warp")
        }
    except (UserError, OSError, ValueError, EOFError, ImageFileError) as error:
        return f"the earlier table is replaced, without the bits of samples ({error})"
    told = ("configuration", "estimated_for")
    now = json.loads(json.dumps({key: found.record[key] for key in told}))
    if keys := provenance.differing_keys({key: record.get(key) for key in told}, now):
        return (
            f"the table no longer has the bits of {rows[0]['runs']} samples, which were made with "
            f"another {', '.join(keys)}; --check (make: CHECK=1) makes samples that fit this run"
        )
    samples = {row["stage"]: row["samples"] for row in rows}
    for row in found.tables["one_run"]:
        _compare(row, samples[row["stage"]], rows[0]["runs"])
    found.maps |= maps
    return f"the table keeps the bits of {rows[0]['runs']} samples of the same configuration"


def _compare(row: Row, samples: float, runs: int) -> None:
    row |= {"samples": samples, "difference": row["one_run"] - samples, "runs": runs}
