"""The orders in which one machine's kernels add, in a file that another machine follows.

    with random_rounding(mode="nearest", accumulation="probe"):
        network(image)
    recorded.write(Path("orders.json.gz"))

    with recorded.replay(Path("orders.json.gz")):  # on any machine
        with random_rounding(mode="nearest", accumulation="probe"):
            network(image)  # the bytes that the first machine's kernels give

An order belongs to the shapes and strides of its operands, so the same network has to see images
of the same size. The second machine needs neither the first one's processor nor its version of
torch. If an order could not be measured or proven there, its description says so, and torch's
bytes are not guaranteed.

The file is JSON, compressed; it holds no numbers of images or networks.
"""

from __future__ import annotations

import functools
import gzip
import json
import operator
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from morphbits.engines.native.kernels.library import Terms
from morphbits.engines.native.orders import store
from morphbits.engines.native.orders.probe import Found
from morphbits.engines.native.orders.probe_sums import FoundProduct, FoundSum, Products
from morphbits.engines.native.orders.trees import TreeOrder
from morphbits.errors import UserError
from morphbits.files import write_atomically
from morphbits.machine import cpu

FORMAT = 1
_KINDS = {kind.__name__: kind for kind in (Found, Terms, FoundSum, FoundProduct, Products)} | {
    "Plan": TreeOrder
}
_NAMES: dict[type, str] = {kind: name for name, kind in _KINDS.items()}  # in the files


@dataclass(frozen=True)
class RecordedOrders:
    """A file's orders by layout, and where they were measured."""

    path: Path
    processor: str
    torch: str
    threads: int
    orders: dict[str, Any]
    _read: dict[tuple, Any] = field(default_factory=dict)

    @property
    def words(self) -> str:
        """Where it was measured."""
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"{self.processor}, {threads}, torch {self.torch}"

    def order(self, layout: tuple, fits: Callable[[Any], bool]) -> Any:
        """See `store.Source`. UserError if the file has no whole order of this layout."""
        if layout not in self._read:
            name = _name(layout)
            if name not in self.orders:
                raise UserError(
                    f"{self.path}: has no order of a sum that is computed here ({name}); it "
                    "belongs to another network or to images of another size"
                )
            try:
                found = _decoded(self.orders[name])
                whole = fits(found)
            except (TypeError, ValueError, KeyError, AttributeError, IndexError):
                whole = False
            if not whole:
                raise UserError(f"{self.path}: is damaged; its order for {name} is not whole")
            self._read[layout] = found
        return self._read[layout]


def write(path: Path) -> None:
    """All orders that this process has measured with torch's present number of threads."""
    threads = torch.get_num_threads()
    orders = {
        _name(layout): _encoded(found)
        for (layout, number), found in store.measured.items()
        if number == threads
    }
    _save(RecordedOrders(path, cpu()["name"], torch.__version__, threads, orders))


def merge(files: Sequence[Path], path: Path) -> None:
    """Join files of one machine, with the same threads and torch, into one."""
    first, *others = (read(file) for file in files)
    orders = functools.reduce(operator.or_, (other.orders for other in others), first.orders)
    _save(replace(first, path=path, orders=orders))


def _save(recording: RecordedOrders) -> None:
    content = {
        "format": FORMAT,
        "processor": recording.processor,
        "torch": recording.torch,
        "threads": recording.threads,
        "orders": recording.orders,
    }
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False)
    write_atomically(recording.path, gzip.compress(text.encode(), mtime=0))


def read(path: Path) -> RecordedOrders:
    """The file's orders; UserError where it is no such file."""
    try:
        packed = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        content = json.loads(gzip.decompress(packed))
        if content["format"] != FORMAT:
            raise UserError(f"{path}: has orders in format {content['format']!r}, not {FORMAT}")
        threads, orders = int(content["threads"]), dict(content["orders"])
        return RecordedOrders(
            path, str(content["processor"]), str(content["torch"]), threads, orders
        )
    except (gzip.BadGzipFile, zlib.error, EOFError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{path}: has no recorded orders; morphbits register --record-orders writes them"
        ) from None


@contextmanager
def replay(path: Path) -> Iterator[RecordedOrders]:
    """Inside, `accumulation="probe"` measures nothing and takes this file's orders."""
    recording = read(path)
    with store.taken_from(recording):
        yield recording


def _name(layout: Any) -> str:
    """A layout as a key of the file."""
    return json.dumps(_plain(layout), separators=(",", ":"), ensure_ascii=False)


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return [_plain(getattr(value, one.name)) for one in fields(value)]
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, torch.dtype) else value


def _encoded(value: Any) -> Any:
    if is_dataclass(value):
        named = {one.name: _encoded(getattr(value, one.name)) for one in fields(value)}
        return {"kind": _NAMES[type(value)], **named}
    if isinstance(value, np.ndarray | torch.Tensor):
        kind = "array" if isinstance(value, np.ndarray) else "tensor"
        return {"kind": kind, "shape": list(value.shape), "values": value.reshape(-1).tolist()}
    return [_encoded(one) for one in value] if isinstance(value, tuple) else value


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_decoded, value))
    if not isinstance(value, dict):
        return value
    kind = value["kind"]
    if kind in ("array", "tensor"):
        numbers = np.array(value["values"], dtype=np.int64).reshape(value["shape"])
        return numbers if kind == "array" else torch.from_numpy(numbers)
    return _KINDS[kind](**{name: _decoded(one) for name, one in value.items() if name != "kind"})
