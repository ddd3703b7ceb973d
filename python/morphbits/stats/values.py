"""The numbers in a program's output files: arrays, images, tables, JSON, text."""

from __future__ import annotations

import csv
import json
import math
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import scipy.io
import torch
from nibabel.filebasedimages import ImageFileError

from morphbits.errors import UserError

_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?![\w.]*\w)")
_UNREADABLE = (
    *(OSError, ValueError, KeyError, EOFError),
    *(ImageFileError, zipfile.BadZipFile, csv.Error),
    *(scipy.io.matlab.MatReadError, NotImplementedError),  # of MATLAB 7.3
)
_HELD = {torch.float16: 11, torch.bfloat16: 8}  # significant bits


@dataclass(frozen=True)
class Values:
    """One array of a file.

    array: float32 or float64, or integers; bits: how many significant bits its type holds (0 for
    integers); affine: where its voxels are, of images.
    """

    array: np.ndarray
    bits: int
    affine: np.ndarray | None = None


def read(path: Path) -> dict[str, Values]:
    """All arrays of numbers in a file, by their names in it (empty where it holds one). UserError
    where it cannot be read, or is of no kind that is known."""
    kind = next((k for k in READERS if path.name.lower().endswith(k)), None)
    if kind is None:
        raise UserError(f"{path}: no kind of file that can be compared: {', '.join(READERS)}")
    try:
        return {name: value for name, value in READERS[kind](path) if value.array.size}
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: holds more than tensors, numbers, lists and dictionaries; have the program "
            "save a state_dict()"
        ) from error
    except _UNREADABLE as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


def _numbers(array: np.ndarray, affine: np.ndarray | None = None) -> Values:
    if array.dtype.kind in "biu":
        return Values(array, 0, affine)
    if array.dtype == np.float16:
        return Values(array.astype(np.float32), 11, affine)
    if array.dtype.newbyteorder("=") in (np.float32, np.float64):
        native = array.astype(array.dtype.newbyteorder("="))
        return Values(native, np.finfo(native.dtype).nmant + 1, affine)
    if array.dtype.kind == "c":  # real and imaginary parts
        part = np.float32 if array.dtype.itemsize == 8 else np.float64
        return _numbers(np.ascontiguousarray(array).view(part), affine)
    raise ValueError(f"its values are {array.dtype}, no numbers that can be compared")


def _npy(path: Path) -> Iterator[tuple[str, Values]]:
    yield "", _numbers(np.load(path, allow_pickle=False))


def _npz(path: Path) -> Iterator[tuple[str, Values]]:
    with np.load(path, allow_pickle=False) as arrays:
        for name in arrays.files:
            yield name, _numbers(arrays[name])


def _image(path: Path) -> Iterator[tuple[str, Values]]:
    image: Any = nibabel.load(path)
    yield "", _numbers(np.asanyarray(image.dataobj), image.affine)


def _torch(path: Path) -> Iterator[tuple[str, Values]]:
    content = torch.load(path, map_location="cpu", weights_only=True)
    for name, value in _leaves(content):
        if isinstance(value, torch.Tensor):
            dense = value.detach().to_dense() if value.layout != torch.strided else value.detach()
            bits = _HELD.get(dense.dtype)
            array = (dense.float() if bits else dense).contiguous().numpy()
            yield name, Values(array, bits) if bits else _numbers(array)
        elif isinstance(value, int | float):
            yield name, _numbers(np.array([value]))


def _table(path: Path) -> Iterator[tuple[str, Values]]:
    separator = "\t" if path.name.lower().endswith(".tsv") else ","
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter=separator))
    for column in rows[0] if rows else []:
        numbers = [_number(row[column]) for row in rows]
        if column is not None and any(number is not None for number in numbers):
            found = [math.nan if number is None else number for number in numbers]
            yield column, _numbers(np.array(found, np.float64))


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _json(path: Path) -> Iterator[tuple[str, Values]]:
    lists: dict[str, list[float]] = {}
    for name, value in _leaves(json.loads(path.read_text(encoding="utf-8"))):
        if isinstance(value, int | float) and not isinstance(value, bool):
            base, _, index = name.rpartition("/")
            lists.setdefault(base if index.isdigit() else name, []).append(float(value))
    for name, numbers in lists.items():
        yield name, _numbers(np.array(numbers, np.float64))


def _leaves(content: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """What stands in dictionaries and lists, by its path."""
    if isinstance(content, dict):
        items: Any = content.items()
    elif isinstance(content, list | tuple):
        items = enumerate(content)
    else:
        yield name, content
        return
    for key, value in items:
        yield from _leaves(value, f"{name}/{key}" if name else str(key))


def _text(path: Path) -> Iterator[tuple[str, Values]]:
    """All numbers in the order in which they stand; with the digits that were printed."""
    found = _NUMBER.findall(path.read_text(encoding="utf-8"))
    yield "", _numbers(np.array([float(word) for word in found], np.float64))


def _mat(path: Path) -> Iterator[tuple[str, Values]]:
    """FSL's are text; ITK's and MATLAB's (up to version 7.2) hold named arrays."""
    if b"\0" not in path.read_bytes():
        yield from _text(path)
        return
    for name, array in scipy.io.loadmat(path).items():
        if isinstance(array, np.ndarray) and array.dtype.kind in "biufc":
            yield name, _numbers(array)


READERS: dict[str, Callable[[Path], Iterator[tuple[str, Values]]]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".nii": _image,
    ".nii.gz": _image,
    ".mgz": _image,
    ".mgh": _image,
    ".pt": _torch,
    ".pth": _torch,
    ".csv": _table,
    ".tsv": _table,
    ".json": _json,
    ".mat": _mat,
    ".tfm": _text,
    ".txt": _text,
    ".log": _text,
}
