"""A stand-in for CoRR: a superdataset, sites as subdatasets, small images in their annexes."""

from __future__ import annotations

import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from morphbits import images
from morphbits.datasets.corr_table import Scan, scans

LABELS = ("0003002", "0027393", "0025531")  # three of the study's, one of them flagged
COLUMNS = "site,subject,session,role,shape_voxels,paper_status,path,note"


def git(folder: Path, *words: str) -> str:
    return subprocess.run(
        ["git", "-C", str(folder), *words], check=True, text=True, capture_output=True
    ).stdout


def small_image(seed: int) -> images.Image:
    """(12, 14, 16) float32 noise, 1 mm."""
    data = np.random.default_rng(seed).random((12, 14, 16), np.float32)
    return images.Image(data, np.eye(4))


def rows(labels: Collection[str] = LABELS) -> list[Scan]:
    """The rows of the study's table that the stand-in holds."""
    return [scan for scan in scans() if scan.subject.label in labels]


def write_table(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """The stand-in's own table: the study's rows with the stand-in's shapes."""
    lines = [COLUMNS]
    for row in rows(shapes):
        shape = "x".join(map(str, shapes[row.subject.label]))
        subject, session = row.subject.entities.split("_")
        lines.append(
            f"{row.site},{subject},{session},{row.role},{shape},{row.status},{row.path},{row.note}"
        )
    path.write_text("\n".join(lines) + "\n")


def tools_of_the_environment() -> None:
    """datalad and git-annex lie beside the Python that runs the tests."""
    folder = str(Path(sys.executable).parent)
    if folder not in os.environ["PATH"].split(os.pathsep):
        os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"


def make_source(root: Path, contents: Mapping[str, images.Image]) -> Path:
    """`root/RawDataBIDS`, made by DataLad as CoRR is; `root/table.csv` lists its images."""
    tools_of_the_environment()
    from datalad import api

    source = root / "RawDataBIDS"
    api.create(str(source), annex=True, result_renderer="disabled")
    for row in rows(contents):
        site = source / row.site
        api.create(str(site), dataset=str(source), result_renderer="disabled")
        image = contents[row.subject.label]
        images.save(root / row.path, image.data, image.affine)
        images.save((root / row.path).with_name("unlisted.nii.gz"), image.data[::-1], image.affine)
    api.save(dataset=str(source), recursive=True, result_renderer="disabled")
    for repository in (source, *(source / row.site for row in rows(contents))):
        git(repository, "update-server-info")
    write_table(root / "table.csv", {k: image.data.shape for k, image in contents.items()})
    return source


class Server(http.server.ThreadingHTTPServer):
    """A folder over HTTP on loopback. While `gate` is closed, requests for annexed content after
    the first wait; `reached` says that one does. With `lost`, they end half way, as when a
    network is lost."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        self.gate, self.reached, self.served = threading.Event(), threading.Event(), 0
        self.gate.set()
        self.lost = False
        server = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def __init__(self, *arguments: object) -> None:
                super().__init__(*arguments, directory=str(folder))  # type: ignore[arg-type]

            def do_GET(self) -> None:
                if "annex/objects" in self.path:
                    server.served += 1
                    if server.served > 1 and not server.gate.is_set():
                        server.reached.set()
                        server.gate.wait(60)
                    if server.served > 1 and server.lost:
                        return self.send_half()
                super().do_GET()

            def send_half(self) -> None:
                content = Path(self.translate_path(self.path)).read_bytes()
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2])
                self.close_connection = True

            def log_message(self, *arguments: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def served(folder: Path) -> Iterator[Server]:
    """The folder on loopback, and git-annex allowed to ask there."""
    allowed = {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "annex.security.allowed-ip-addresses",
        "GIT_CONFIG_VALUE_0": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
    before = {key: os.environ.get(key) for key in allowed}
    os.environ.update(allowed)
    server = Server(folder)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.__setitem__(key, value)


def head(index: int, size: str = "2mm") -> tuple[images.Image, images.Image]:
    """A phantom's brain in a head of its own, and the brain's mask on the same grid.

    Around the brain: 2 mm of CSF, 5 mm of skull, 7 mm of scalp, and a neck below; noise
    everywhere. The head is turned and moved, as in a scanner, and its axes are LIA.
    """
    from scipy import ndimage

    from morphbits.datasets import phantom

    brain = phantom.make_phantom(20, index, size)
    voxel = phantom.SIZES[size].factor
    around = [(round(24 / voxel), round(24 / voxel))] * 2 + [
        (round(64 / voxel), round(24 / voxel))
    ]
    inside = np.pad(brain.labels > 0, around)
    distance = voxel * ndimage.distance_transform_edt(~inside)
    rng = np.random.default_rng(index)
    data = np.pad(brain.image, around)
    data[(distance > 0) & (distance <= 2)] = 0.2
    data[(distance > 2) & (distance <= 7)] = 0.05
    data[(distance > 7) & (distance <= 14)] = 0.9
    x, y, z = np.indices(data.shape) * voxel
    middle = [voxel * n / 2 for n in data.shape]
    neck = (x - middle[0]) ** 2 + (y - middle[1] + 20) ** 2 < 50**2
    data[neck & (z < 70) & (distance > 14)] = 0.5
    data = np.maximum(data + 0.02 * rng.standard_normal(data.shape), 0).astype(np.float32)
    affine = brain.affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ [low for low, _ in around]
    nod, turn = rng.uniform(-0.25, 0.25, 2)
    rotation = np.eye(4)
    rotation[1:3, 1:3] = [[np.cos(nod), -np.sin(nod)], [np.sin(nod), np.cos(nod)]]
    spin = np.eye(4)
    spin[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    scanner = rotation @ spin @ affine
    scanner[:3, 3] += rng.uniform(-30, 30, 3)
    left, _, inferior = (n - 1 for n in data.shape)  # axes to left, inferior, anterior
    lia = np.array([[-1, 0, 0, left], [0, 0, 1, 0], [0, -1, 0, inferior], [0, 0, 0, 1]], float)

    def turned(volume: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(volume[::-1, :, ::-1].transpose(0, 2, 1))

    return images.Image(turned(data), scanner @ lia), images.Image(turned(inside), scanner @ lia)
