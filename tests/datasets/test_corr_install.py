"""Installing CoRR for real, from a stand-in with its layout: local and over HTTP on loopback."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.corr_standin import LABELS, git, make_source, served, small_image

from morphbits import cli, images
from morphbits.datasets import corr_install
from morphbits.datasets.corr_table import scans, select
from morphbits.errors import UserError

PYTHON = Path(__file__).parents[2] / "python"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corr")
    make_source(root, {label: small_image(k) for k, label in enumerate(LABELS)})
    return root


@pytest.fixture
def source(pristine: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy that a test may damage."""
    root = tmp_path / "source"
    shutil.copytree(pristine, root, symlinks=True)
    yield root
    writable(root)


@pytest.fixture(scope="module")
def fetched_once(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fetched") / "source"
    shutil.copytree(pristine, root, symlinks=True)
    assert run(root).returncode == 0
    (root / "RawDataBIDS").rename(root / "gone")
    return root.parent


@pytest.fixture
def fetched(fetched_once: Path, tmp_path: Path) -> Iterator[Path]:
    """The source of an installation, which a test may damage; what is in `data/` beside it can be
    fetched no more."""
    shutil.copytree(fetched_once, tmp_path, symlinks=True, dirs_exist_ok=True)
    yield tmp_path / "source"
    writable(tmp_path)


def writable(root: Path) -> None:
    """git-annex makes its folders read-only, which stands in the way of removing them."""
    for folder in [root, *(path for path in root.rglob("*") if path.is_dir())]:
        if not folder.is_symlink():
            folder.chmod(0o755)


def command(root: Path, *words: str, source: str = "") -> list[str]:
    script = [*cli.command("corr"), "--data", "data"]
    place = ["--source", source or str(root / "RawDataBIDS"), "--table", str(root / "table.csv")]
    return [*script, *place, *words]


def run(
    root: Path, *words: str, source: str = "", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(root, *words, source=source),
        cwd=root.parent,
        env=env,
        text=True,
        capture_output=True,
        check=False,
    )


def installed(root: Path) -> list[Path]:
    found = (root.parent / "data/corr/RawDataBIDS").glob("*/sub-*/ses-*/anat/*.nii.gz")
    return sorted(path for path in found if path.is_file())


def damaged(path: Path) -> None:
    """Other bytes of the same number behind an annexed file."""
    content = path.resolve()
    content.parent.chmod(0o755)
    content.chmod(0o644)
    content.write_bytes(bytes(content.stat().st_size))


def test_exactly_what_the_table_lists_comes_and_is_verified(source: Path) -> None:
    done = run(source)
    assert done.returncode == 0, done.stderr
    assert "3 of 3 images are in" in done.stdout and "verified" in done.stdout
    assert "sub-0027393_ses-1 (DC_1): orientation uncertain" in done.stdout
    found = installed(source)
    assert [path.name[4:11] for path in found] == list(LABELS)
    for path in found:
        k = LABELS.index(path.name[4:11])
        assert (images.load(path).data == small_image(k).data).all()
    times = [path.stat().st_mtime_ns for path in found]

    damaged(found[1])  # on the user's own disk, later
    again = run(source)
    assert again.returncode == 0, again.stderr
    assert (images.load(found[1]).data == small_image(1).data).all()
    assert [path.stat().st_mtime_ns for path in found[::2]] == times[::2]


def test_what_is_missing_or_corrupt_is_named_and_the_rest_kept(source: Path) -> None:
    bmb, dc = (next(source.glob(f"RawDataBIDS/{site}/sub-*/ses-*/anat/sub-*")) for site in
               ("BMB_1", "DC_1"))  # fmt: skip
    damaged(bmb)
    gone = dc.resolve()
    gone.parent.chmod(0o755)
    gone.unlink()
    done = run(source, "--jobs", "1")
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("sub-")]
    assert [line.split()[0] for line in lines] == ["sub-0003002_ses-1", "sub-0027393_ses-1"]
    assert done.stderr.splitlines()[-1].startswith("error: images are missing, as listed above")
    assert [path.name for path in installed(source)] == ["sub-0025531_ses-1_run-1_T1w.nii.gz"]


def every_file(root: Path) -> dict[str, bytes | str]:
    """What lies in a dataset, with git's and git-annex's own files: path → bytes, or a link's
    goal."""
    return {
        str(path.relative_to(root)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


@pytest.fixture
def own_git(tmp_path: Path) -> dict[str, str]:
    """The environment of a user whose git allows no folder of another's."""
    hidden = ("GIT_CONFIG", "SUDO_", "XDG_CONFIG")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(hidden)}
    home = tmp_path / "home"
    home.mkdir()
    return kept | {"HOME": str(home), "GIT_CONFIG_SYSTEM": "/dev/null"}


def test_a_dataset_of_another_user_keeps_its_images(
    fetched: Path, own_git: dict[str, str]
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give folders to another user")
    data, other = fetched.parent / "data/corr", 12345
    before = every_file(data)
    for path in (data, *data.rglob("*")):
        os.chown(path, other, other, follow_symlinks=False)
    done = run(fetched, env=own_git)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert f"error: {data}/RawDataBIDS belongs to user {other} and you are root" in done.stderr
    assert "git config --global --add safe.directory" in done.stderr
    assert all(f"{data}/RawDataBIDS/{site}" in done.stderr for site in ("BMB_1", "DC_1"))
    assert every_file(data) == before

    allow = done.stderr.partition("allow it (")[2].partition("), or take")[0]
    subprocess.run(["bash", "-euc", allow], check=True, env=own_git)
    again = run(fetched, env=own_git)
    assert again.returncode == 0, again.stderr
    assert len(installed(fetched)) == 3


@pytest.mark.parametrize("broken", ["HEAD", "config"])
def test_a_clone_that_git_cannot_read_keeps_its_images(fetched: Path, broken: str) -> None:
    site = fetched.parent / "data/corr/RawDataBIDS/DC_1"
    (site / ".git" / broken).write_text("")
    before = every_file(site)
    done = run(fetched)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"error: {site}: ")
    assert "nothing in it was changed" in done.stderr
    assert every_file(site) == before


@pytest.mark.slow
def test_killed_over_http_and_run_again(source: Path) -> None:
    with served(source) as server:
        address = f"{server.address}/RawDataBIDS/.git"
        server.gate.clear()
        words = command(source, "--jobs", "1", source=address)
        first = subprocess.Popen(
            words, cwd=source.parent, start_new_session=True, stderr=subprocess.DEVNULL
        )
        assert server.reached.wait(60), "the second image was never asked for"
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
        server.gate.set()
        kept = installed(source)
        assert len(kept) == 1
        time = kept[0].stat().st_mtime_ns
        done = run(source, "--jobs", "2", source=address)
    assert done.returncode == 0, done.stderr
    assert len(installed(source)) == 3 and kept[0].stat().st_mtime_ns == time


@pytest.mark.slow
def test_a_network_that_is_lost_on_the_way(source: Path) -> None:
    with served(source) as server:
        address = f"{server.address}/RawDataBIDS/.git"
        server.lost = True
        done = run(source, "--jobs", "1", source=address)
        assert done.returncode == 2 and "Traceback" not in done.stderr
        lines = [line for line in done.stderr.splitlines() if line.startswith("sub-")]
        assert [line.split()[0] for line in lines] == ["sub-0027393_ses-1", "sub-0025531_ses-1"]
        assert "1 of 3 images are in" in done.stdout
        (kept,) = installed(source)
        time = kept.stat().st_mtime_ns
        server.lost = False
        done = run(source, "--jobs", "1", "--subjects", "0027393", source=address)
        assert done.returncode == 0, done.stderr
    gone = run(source, "--jobs", "1", source=address)  # nobody answers any more
    assert gone.returncode == 2 and "2 of 3 images are in" in gone.stdout
    mirror = run(source)  # the same dataset, from a disk
    assert mirror.returncode == 0, mirror.stderr
    assert len(installed(source)) == 3 and kept.stat().st_mtime_ns == time


@pytest.mark.slow
def test_killed_while_cloning(source: Path) -> None:
    data = source.parent / "data/corr"
    (data / ".RawDataBIDS.part/.git/objects").mkdir(parents=True)
    git(source, "clone", "-q", "RawDataBIDS", str(data / "RawDataBIDS"))
    site = data / "RawDataBIDS/IPCAS_2"
    (site / ".git/objects").mkdir(parents=True)  # a site's clone, cut short
    (site / "notes.txt").write_text("a user's")
    done = run(source)
    assert done.returncode == 0, done.stderr
    assert len(installed(source)) == 3
    assert f"{site}: a clone that was cut short" in done.stdout
    (aside,) = data.glob(".IPCAS_2.cut-short-*")
    assert (aside / "notes.txt").read_text() == "a user's"


@pytest.mark.parametrize("dead", ["nowhere", "http://127.0.0.1:9/corr"])
def test_a_dead_source_is_one_line(source: Path, dead: str) -> None:
    done = run(source, source=dead)
    assert done.returncode == 2
    assert done.stderr.startswith("error: CoRR cannot be cloned from") and "SOURCE=" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_dry_run_lists_the_study_and_touches_nothing(tmp_path: Path) -> None:
    (tmp_path / "python").symlink_to(PYTHON)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    script = shutil.copy(PYTHON.parent / "install-corr.sh", tmp_path)
    said = subprocess.run([script, "--dry-run"], text=True, capture_output=True, check=True).stdout
    assert len(said.splitlines()) == 35
    assert said.count("acq-uni") == 1 and said.startswith("RawDataBIDS/BMB_1/sub-0003002/ses-1/")
    assert not (tmp_path / "data").exists()


def test_words_for_subjects() -> None:
    sizes = {words: len(select(words)) for words in ("inference", "training", "all", "4")}
    assert sizes == {"inference": 35, "training": 5, "all": 40, "4": 4}
    assert [s.subject.label for s in select("sub-0025531, 0027393")] == ["0025531", "0027393"]
    with pytest.raises(UserError, match=r"99999999 is not in corr_subjects\.csv"):
        select("0025531,99999999")
    with pytest.raises(UserError, match="the table has 35"):
        select("36")
    flagged = [scan for scan in scans() if scan.orientation_uncertain]
    assert {scan.site for scan in flagged} == {"DC_1"} and len(flagged) == 2
    assert sum(scan.status == "Success" for scan in scans()) == 32


def test_content_that_is_no_image_or_has_another_shape(tmp_path: Path) -> None:
    path = tmp_path / "image.nii.gz"
    images.save(path, small_image(0).data, small_image(0).affine)
    assert corr_install.problem(path, None) == ""
    assert "the study's was (160, 240, 256)" in corr_install.problem(path, (160, 240, 256))
    path.write_bytes(path.read_bytes()[:-200])
    assert "cut short" in corr_install.problem(path, None)
