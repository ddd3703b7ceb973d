"""The viewer of volumes: where it comes from, and what the page holds for it."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from support.small_experiment import make_dataset, make_experiment

from morphbits import bids, images, report
from morphbits.errors import UserError
from morphbits.report import viewer
from morphbits.stats.analysis import analyse

ROOT = Path(__file__).resolve().parents[2]
STAND_IN = b"(function(){globalThis.niivue = {}; /* </script> */})();"
COPY = shutil.which("cp")
HERE = replace(
    viewer.NIIVUE, sha256=hashlib.sha256(STAND_IN).hexdigest(), url="http://127.0.0.1:9"
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, no npm, no server, and the stand-in's checksum."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(viewer, "NIIVUE", HERE)
    return tmp_path / "cache/morphbits"


def npm(tmp_path: Path, content: bytes) -> None:
    """A program of that name, whose package holds this."""
    packed = tmp_path / "package.tgz"
    with tarfile.open(packed, "w:gz") as package:
        member = tarfile.TarInfo(f"package/{viewer.MEMBER}")
        member.size = len(content)
        package.addfile(member, io.BytesIO(content))
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/npm"
    asked = f'[ "$*" = "pack --silent {viewer.PACKAGE}" ]'
    program.write_text(f"#!/bin/sh\n{asked} && {COPY} {packed} niivue.tgz\n")
    program.chmod(0o755)


def test_npm_brings_the_viewer_once(cache: Path, tmp_path: Path) -> None:
    npm(tmp_path, STAND_IN)
    assert viewer.obtain().read_bytes() == STAND_IN
    assert viewer.obtain().parent == cache
    (tmp_path / "bin/npm").unlink()
    assert viewer.obtain().read_bytes() == STAND_IN


def test_another_content_is_refused(cache: Path, tmp_path: Path) -> None:
    npm(tmp_path, STAND_IN + b" ")
    with pytest.raises(UserError, match="holds another"):
        viewer.obtain()
    assert list(cache.iterdir()) == []
    (cache / HERE.name).write_bytes(STAND_IN + b" ")
    with pytest.raises(UserError, match=r"has sha256 .* delete it"):
        viewer.obtain()


def test_where_it_cannot_be_had_the_place_to_put_it_is_named(cache: Path) -> None:
    with pytest.raises(UserError, match=rf"not downloaded: .*put it at {cache}/{HERE.name}"):
        viewer.obtain()
    assert not [path for path in cache.iterdir() if path.name != "SHA256SUMS"]


def test_it_is_downloaded_where_there_is_no_npm(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "served.js").write_bytes(STAND_IN)
    here = replace(HERE, url=(tmp_path / "served.js").as_uri())
    monkeypatch.setattr(viewer, "NIIVUE", here)
    assert viewer.obtain().read_bytes() == STAND_IN


def test_the_notice_has_the_licence() -> None:
    """The page has it too, for the page hands niivue on."""
    licence = (ROOT / "python/morphbits/report/niivue-licence.txt").read_text()
    assert "".join(licence.split()) in "".join((ROOT / "NOTICE").read_text().split())


class Controls(HTMLParser):
    """Labels of controls, and what the page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.bare: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag in ("select", "input") and "label" not in self.open:
            self.bare.append(tag)
        if tag != "a":
            self.loads += [v or "" for k, v in attributes if k in ("src", "href", "srcset")]
        if tag not in ("input", "img", "meta", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def analysed(root: Path) -> Path:
    """Two subjects with three samples each."""
    dataset = make_dataset(root / "data", 2)
    make_experiment(root / "results", "small", dataset, 3)
    analyse(root / "results", "small", dataset)
    return root / "results"


def held(page: Path) -> dict[str, Any]:
    found = re.search(r'id="viewer-data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found
    return json.loads(found[1])


def test_the_page_holds_viewer_and_volumes(cache: Path, tmp_path: Path) -> None:
    results = analysed(tmp_path)
    cache.mkdir(parents=True)
    (cache / HERE.name).write_bytes(STAND_IN)
    light, whole = report.build(report.read(results, "small"), 1)
    assert "--viewer 1" in light.read_text() and "viewer-data" not in light.read_text()
    controls = Controls()
    controls.feed(whole.read_text())
    assert controls.open == [] and controls.bare == []
    assert all(address.startswith("data:") for address in controls.loads)
    content = held(whole)
    assert gzip.decompress(base64.b64decode(content["library"])) == STAND_IN
    assert list(content["subjects"]) == ["sub-001"]
    volumes = {one["name"]: one for one in content["subjects"]["sub-001"]}

    subject = bids.Subject("001")
    unit = bids.sample_folder(results, "small", "ieee", subject)
    moved = images.load(bids.moved_path(unit, subject, "MNI152"))
    bits = nibabel.load(bids.map_path(results, "small", subject, "MNI152", "image")).get_fdata()
    pairs = {
        "moved image, nothing perturbed": moved.data,
        "significant bits of the image": bits,
    }
    for name, expected_XYZ in pairs.items():
        volume = nibabel.Nifti1Image.from_bytes(
            gzip.decompress(base64.b64decode(volumes[name]["nifti"]))
        )
        x, y, z = np.meshgrid(*(range(n) for n in volume.shape), indexing="ij")
        world = np.stack([x, y, z], axis=-1) @ volume.affine[:3, :3].T + volume.affine[:3, 3]
        there = np.rint((world - moved.affine[:3, 3]) @ np.linalg.inv(moved.affine[:3, :3]).T)
        expected = expected_XYZ[tuple(np.moveaxis(there.astype(int), -1, 0))]
        shown = volume.get_fdata()
        if "none" in volumes[name]:  # whole thirds of a bit are kept; float32's are 1e-7 off
            excluded = np.isnan(expected)
            assert excluded.any() and (shown[excluded] < 0).all() and (shown[~excluded] >= 0).all()
            assert np.abs(shown - expected)[~excluded].max() < 1e-5
        else:  # half of 255 steps; the brightest 0.5 % are all white
            low, high = volumes[name]["limits"]
            error = np.abs(shown - np.minimum(expected, high))
            assert error.max() <= (high - low) / 255 / 2 * 1.001
    report.build(report.read(results, "small"))
    assert not whole.exists()  # its numbers may be others now
    for name, one in volumes.items():
        nodes = one["colours"]["I"]
        assert nodes[0] == 0 and nodes[-1] == 255 and nodes == sorted(set(nodes)), name
        assert {len(row) for row in one["colours"].values()} == {len(nodes)}


@pytest.mark.network
def test_a_browser_shows_the_volumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """niivue itself, in Chromium without a window, where both are to be had."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("needs Chromium")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    _, whole = report.build(report.read(analysed(tmp_path), "small"), 1)
    graphics = ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    done = subprocess.run(
        [chromium, "--headless", "--no-sandbox", *graphics, "--window-size=1200,12000",
         "--virtual-time-budget=60000", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom",
         whole.as_uri()],
        capture_output=True, text=True, timeout=300, check=True,
        env={**os.environ, "HOME": str(tmp_path)},
    )  # fmt: skip
    assert 'data-state="ready"' in done.stdout
    place = re.search(r'id="viewer-place">(.*?)</output>', done.stdout)
    assert place and re.search("mm; fixed image: [0-9.]+; moved image", place[1])
