"""Files written whole or not at all, locks, checksums, JSON and CSV."""

from __future__ import annotations

import csv
import fcntl
import functools
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from morphbits.errors import UserError

TEMPORARY = ".*.tmp"  # the name of a file that is being written


class Busy(UserError):
    """Another process holds the lock."""


@contextmanager
def locked(
    path: Path, advice: str, busy: str = "", waiting: Callable[[], object] = lambda: None
) -> Iterator[IO[str]]:
    """Hold a lock, which the system takes back when this process dies; the folder is made.

    Where another process holds it: Busy with the sentence `busy`, or without one `waiting` is
    called and this process waits. `advice` is what to do where the folder cannot be written to.
    The file stays: who removes it may remove another process's. A file system without locks gives
    nobody any, and nothing is locked there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.open("a")
    except OSError as error:
        raise UserError(
            f"{path.parent}: cannot be written to ({error.strerror}); {advice}"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if busy:
                raise Busy(f"{path.parent}: {busy}") from None
            waiting()
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            pass
        yield lock


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write next to the final name, then rename: whatever happens, no partial file stays."""
    temporary = path.with_name(TEMPORARY.replace("*", f"{path.name}.{os.getpid()}"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(b"")
    except OSError as error:
        raise UserError(
            f"cannot write into {path.parent} ({error.strerror}): choose another folder or "
            "change its permissions"
        ) from error
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"cannot write {path} ({error.strerror}): make room or choose another folder"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, atomically."""
    text = json.dumps(content, indent=2, ensure_ascii=False)
    write_atomically(path, f"{text}\n".encode())


def csv_of(rows: Iterable[Mapping[str, Any]], columns: Sequence[str] = ()) -> bytes:
    """Rows as CSV under their column names; no rows and no columns: nothing."""
    rows = list(rows)
    columns = columns or list(rows[0] if rows else ())
    text = io.StringIO()
    if columns:
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue().encode()


def user_cache(what: str) -> Path:
    """The user's folder for what can be made or fetched again, which need not be there yet."""
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a user without a home
        raise UserError(
            f"no place for {what}: this user has no home; name a folder by XDG_CACHE_HOME"
        ) from None
    return home / "morphbits"


def sha256(path: Path) -> str:
    """Hexadecimal; the file is read again only when its size or time has changed."""
    status = path.stat()
    return _sha256(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=4096)
def _sha256(path: Path, size: int, modified: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
