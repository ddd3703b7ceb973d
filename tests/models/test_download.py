"""`make models` against a server on loopback: whole, broken off, changed, absent."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from morphbits.errors import UserError
from morphbits.models import download, mri_synthmorph
from morphbits.models.download import SUMS, Published, main, obtain, read_sums

WEIGHTS = download.MAGIC[".h5"] + bytes(range(256)) * 9000  # 2.3 MB, more than one block


class Server(ThreadingHTTPServer):
    """Serves `body` under any name, but `sent` bytes of it at most."""

    body: bytes = WEIGHTS
    sent: int = len(WEIGHTS)

    def published(self, name: str = "model.h5") -> Published:
        return Published(name, f"http://127.0.0.1:{self.server_port}/{name}", "a model")


class Answer(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        if self.path.startswith("/absent"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body[: self.server.sent])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_first_use_records_the_checksum_and_later_use_checks_it(
    server: Server, tmp_path: Path
) -> None:
    file = server.published()
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    assert "recorded in" in obtain(file, tmp_path)
    assert (tmp_path / "model.h5").read_bytes() == WEIGHTS
    assert read_sums(tmp_path) == {"model.h5": digest}
    server.sent = 0  # a second run does not ask the server again
    assert obtain(file, tmp_path) == "sha256 as recorded"
    assert (tmp_path / SUMS).read_text() == f"{digest}  model.h5\n"


@pytest.mark.parametrize("sent", [0, 100, (1 << 20) + 7])
def test_a_broken_connection_leaves_nothing_and_the_next_run_completes(
    server: Server, tmp_path: Path, sent: int
) -> None:
    server.sent = sent
    with pytest.raises(UserError, match=rf"not downloaded: .*elsewhere.*{tmp_path}/model.h5"):
        obtain(server.published(), tmp_path)
    assert list(tmp_path.iterdir()) == []
    server.sent = len(WEIGHTS)
    obtain(server.published(), tmp_path)
    assert (tmp_path / "model.h5").read_bytes() == WEIGHTS


def test_the_remains_of_a_killed_download_are_replaced(server: Server, tmp_path: Path) -> None:
    (tmp_path / "model.h5.part").write_bytes(b"half")
    obtain(server.published(), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [SUMS, "model.h5"]


def test_another_file_than_recorded_is_refused(server: Server, tmp_path: Path) -> None:
    obtain(server.published(), tmp_path)
    (tmp_path / "model.h5").unlink()
    server.body = WEIGHTS[:-1] + b"!"
    with pytest.raises(UserError, match=r"has sha256 .* records"):
        obtain(server.published(), tmp_path)
    assert not (tmp_path / "model.h5").exists()


def test_another_file_than_published_is_refused_and_not_recorded(
    server: Server, tmp_path: Path
) -> None:
    known = dataclasses.replace(server.published(), sha256="0" * 64)
    with pytest.raises(UserError, match=rf"the published file {known.sha256}"):
        obtain(known, tmp_path)
    assert list(tmp_path.iterdir()) == []
    right = dataclasses.replace(known, sha256=hashlib.sha256(WEIGHTS).hexdigest())
    assert "recorded in" in obtain(right, tmp_path)


def test_a_damaged_file_on_disk_is_refused_and_left_alone(server: Server, tmp_path: Path) -> None:
    obtain(server.published(), tmp_path)
    damaged = WEIGHTS[:-1] + b"!"
    (tmp_path / "model.h5").write_bytes(damaged)
    with pytest.raises(UserError, match=r"delete that file"):
        obtain(server.published(), tmp_path)
    assert (tmp_path / "model.h5").read_bytes() == damaged


def test_a_web_page_is_no_model_and_is_not_recorded(server: Server, tmp_path: Path) -> None:
    server.body = b"<html>log in, please" + bytes(len(WEIGHTS))
    server.sent = len(server.body)
    with pytest.raises(UserError, match=r"not a \.h5 file"):
        obtain(server.published(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_the_user_brought_is_recorded(tmp_path: Path) -> None:
    file = Published("image.mgz", None, "an image")
    assert "put it at" in obtain(file, tmp_path)
    (tmp_path / "image.mgz").write_bytes(b"\x1f\x8b rest")
    assert "recorded in" in obtain(file, tmp_path)


def test_every_file_gets_a_line_when_there_is_no_network(
    server: Server,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dead = Published("dead.h5", "http://127.0.0.1:9/dead.h5", "nobody listens there")
    monkeypatch.setattr("sys.argv", ["download", "--data", str(tmp_path)])
    assert main((dead, server.published("absent.h5"), server.published())) == 2
    captured = capsys.readouterr()
    errors = captured.err.splitlines()
    assert [line.split(": ")[1] for line in errors] == ["dead.h5", "absent.h5"]
    assert "refused" in errors[0] and "Not Found" in errors[1]
    assert all(f"put it at {tmp_path}/models/" in line for line in errors)
    assert captured.out.startswith("model.h5: sha256")


def test_what_is_published_has_an_address_on_the_authors_site() -> None:
    assert [file.name for file in download.PUBLISHED if not file.sha256] == [
        "shapes-dice-vel-3-res-8-16-32-256f.h5",
        "brains-dice-vel-0.5-res-16-256f.h5",
        "norm-average_mni305.mgz",
    ]
    known = {file.name for file in download.PUBLISHED if len(file.sha256) == 64}
    assert known == {file for files in mri_synthmorph.FILES.values() for file in files}
    for file in download.PUBLISHED[:2]:
        assert file.url is not None and file.url.endswith("/synthmorph/" + file.name)
