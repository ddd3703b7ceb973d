"""Files whole or not at all, locks, checksums."""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
from pathlib import Path

import pytest

from morphbits.errors import UserError
from morphbits.files import Busy, csv_of, locked, sha256


def test_one_at_a_time_and_the_next_one_is_told(tmp_path: Path) -> None:
    path, waited = tmp_path / "folder" / ".lock", threading.Event()
    with locked(path, "choose another folder"):
        with (
            pytest.raises(Busy, match=rf"{path.parent}: a run is here"),
            locked(path, "", "a run is here"),
        ):
            pass
        order: list[str] = []

        def second() -> None:
            with locked(path, "", waiting=waited.set):
                order.append("second")

        thread = threading.Thread(target=second)
        thread.start()
        assert waited.wait(10)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(
            UserError, match=r"file: cannot be written to \(File exists\); go elsewhere"
        ),
        locked(tmp_path / "file" / ".lock", "go elsewhere"),
    ):
        pass


def test_without_locks_of_the_file_system_work_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise OSError("no locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with locked(tmp_path / ".lock", "", "another run is here"):
        pass


def test_a_checksum_follows_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in (b"one", b"other"):
        path.write_bytes(content)
        assert sha256(path) == hashlib.sha256(content).hexdigest()
    path.write_bytes(b"OTHER")  # of the same size
    os.utime(path, ns=(0, 1))
    assert sha256(path) == hashlib.sha256(b"OTHER").hexdigest()


def test_csv_has_its_columns_even_without_rows() -> None:
    assert csv_of([{"a": 1, "b": "x,y"}]) == b'a,b\n1,"x,y"\n'
    assert csv_of([], ("a", "b")) == b"a,b\n"
    assert csv_of([]) == b""
