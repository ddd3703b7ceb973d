"""How far the output files of repeated runs agree: significant bits and spread of each array."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from morphbits import files
from morphbits.errors import UserError
from morphbits.stats.significance import quantiles, significant_bits
from morphbits.stats.values import Values, read
from morphbits.studies.program.repetitions import PLAIN, matching

Row = dict[str, Any]


def compare(folders: list[Path], patterns: Sequence[str]) -> list[Row]:
    """A row for each array of each file that the plain run wrote and a pattern names.

    values: how many; bits, bits_median, bits_5: significant bits over the values that are not 0
    (mean, median, 5 % are below), `general` and relative to the mean of the perturbed runs; of:
    bits of the type; spread: the largest standard deviation over the runs, in the values' unit;
    differing: the share of values that are not equal in all perturbed runs; plain_repeats:
    whether two plain runs gave the same values. Bits and spread are NaN for integers, and where
    runs gave arrays of several shapes. UserError where a run lacks a file or an array.
    """
    plain = [folder for folder in folders if folder.name in PLAIN]
    runs = [folder for folder in folders if folder.name not in PLAIN]
    outputs = plain[0] / "outputs"
    written = [path.relative_to(outputs) for path in matching(patterns, outputs)]
    rows = []
    for file in written:
        first, second = (_read(folder, file) for folder in plain)
        samples = [_read(folder, file) for folder in runs]
        for name, value in first.items():
            same = name in second and np.array_equal(
                value.array, second[name].array, equal_nan=bool(value.bits)
            )
            given = [
                _array(sample, name, folder / file)
                for sample, folder in zip(samples, runs, strict=True)
            ]
            row, bits = _row(value, given)
            rows.append({"file": str(file), "array": name, **row, "plain_repeats": same})
            if value.affine is not None and bits is not None:
                _save_map(plain[0].parent / "maps" / file, bits, value.affine)
    return rows


def without_nan(rows: list[Row]) -> list[Row]:
    """The rows for JSON, which has no NaN and no infinity: null instead."""
    return [
        {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        for row in rows
    ]


def _read(folder: Path, file: Path) -> dict[str, Values]:
    path = folder / "outputs" / file
    if not path.is_file():
        raise UserError(f"{path}: is missing, though {folder.parent / PLAIN[0]} has it")
    return read(path)


def _array(sample: dict[str, Values], name: str, path: Path) -> np.ndarray:
    if name not in sample:
        raise UserError(f"{path}: has no {name}, though the plain run has it")
    return sample[name].array


def _row(plain: Values, given: list[np.ndarray]) -> tuple[Row, np.ndarray | None]:
    """The row of an array, and the bits of each of its values."""
    row: Row = {
        "type": str(plain.array.dtype),
        "values": plain.array.size,
        "runs": len(given),
        **dict.fromkeys(("bits", "bits_median", "bits_5"), math.nan),
        "of": plain.bits,
        "spread": math.nan,
        "differing": math.nan,
    }
    if len({array.shape for array in (plain.array, *given)}) > 1:
        return row | {"differing": 1.0}, None
    samples = np.stack(given)
    equal = samples == samples[0]
    if plain.bits:
        equal |= np.isnan(samples) & np.isnan(samples[0])
    row["differing"] = 1 - float(equal.all(axis=0).mean())
    if not plain.bits or len(given) < 2:
        return row, None
    bits = significant_bits(samples, None, most=plain.bits)
    found = quantiles(bits)
    row |= {"bits": found["mean"], "bits_median": found["median"], "bits_5": found["q05"]}
    with np.errstate(invalid="ignore", over="ignore"):
        row["spread"] = float(np.max(samples.std(axis=0, dtype=np.float64, ddof=1)))
    return row, bits


def _save_map(path: Path, bits: np.ndarray, affine: np.ndarray) -> None:
    """Bits of each voxel as NIfTI, NaN in the background."""
    path = path.with_name(path.name.partition(".")[0] + "_bits.nii.gz")
    content = nibabel.Nifti1Image(bits.astype(np.float32), affine).to_bytes()
    files.write_atomically(path, gzip.compress(content, mtime=0))


def _record(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    return record


def perturbed_operators(folders: list[Path]) -> Row:
    """The records of the perturbed runs, summed: operators, those let pass, processes forked."""
    total: Row = {"operations": 0, "operators": {}, "unperturbed": {}, "forked_processes": 0}
    for folder in folders:
        if folder.name in PLAIN:
            continue
        record = _record(folder)
        total["operations"] += record["operations"]
        total["forked_processes"] += record["forked_processes"]
        for key in ("operators", "unperturbed"):
            for name, count in record[key].items():
                total[key][name] = total[key].get(name, 0) + count
    return total


def seconds(folders: list[Path]) -> tuple[float, float]:
    """Seconds of a run in the mean: plain, perturbed."""
    times: dict[bool, list[float]] = {True: [], False: []}
    for folder in folders:
        times[folder.name in PLAIN].append(_record(folder)["seconds"])
    return float(np.mean(times[True])), float(np.mean(times[False]))
