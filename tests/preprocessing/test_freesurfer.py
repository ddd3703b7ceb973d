"""The study's route: exact command lines, the crop, what is said where a part is missing."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from morphbits import bids, images
from morphbits.datasets.corr_table import select
from morphbits.errors import UserError
from morphbits.images import Image
from morphbits.preprocessing import freesurfer, preprocess
from morphbits.preprocessing.freesurfer import FreeSurfer

# the study's recon-all, word for word
FLAGS = "-motioncor -talairach -nuintensitycor -normalization -skullstrip -gcareg -canorm"


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without FreeSurfer, license or containers; a folder to put them in."""
    for name in ("FREESURFER_HOME", "FS_LICENSE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()
    return tmp_path


def executable(path: Path, text: str = "#!/bin/sh\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def raw_image(path: Path, *shape: int) -> Path:
    """An image of 4 mm voxels."""
    volume = np.indices(shape or (8, 8, 8)).sum(0).astype(np.float32)
    images.save(path, volume, np.diag([4.0, 4, 4, 1]))
    return path


def test_the_command_of_a_local_installation(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executable(bare / "fs/bin/recon-all")
    monkeypatch.setenv("FREESURFER_HOME", str(bare / "fs"))
    with pytest.raises(UserError, match=r"license in .*fs/license\.txt.*registration\.html"):
        FreeSurfer.found()
    (bare / "fs/license.txt").touch()
    raw = raw_image(bare / "raw.nii.gz")
    command = FreeSurfer.found().command(raw, "sub-1_ses-1", Path("out"))
    assert " ".join(command) == (
        f"{bare}/fs/bin/recon-all -sd out -s sub-1_ses-1 -i {raw} {FLAGS}"
    )


def test_a_wider_field_of_view_than_the_conformed_volume_is_cut(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executable(bare / "fs/bin/recon-all")
    monkeypatch.setenv("FREESURFER_HOME", str(bare / "fs"))
    (bare / "fs/license.txt").touch()
    for shape, cut in (((64, 64, 64), False), ((64, 65, 64), True)):  # 256 and 260 mm
        raw = raw_image(bare / "raw.nii.gz", *shape)
        command = FreeSurfer.found().command(raw, "sub-1_ses-1", Path("out"))
        assert (command[-1] == "-cw256") is cut


def test_a_license_named_by_its_folder(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executable(bare / "bin/podman")
    monkeypatch.setenv("FS_LICENSE", str(bare))
    with pytest.raises(UserError, match=rf"no FreeSurfer license in {bare}/license\.txt"):
        FreeSurfer.found()
    (bare / "license.txt").touch()
    assert FreeSurfer.found().license == bare / "license.txt"


def installed(folder: Path, monkeypatch: pytest.MonkeyPatch, recon_all: str) -> FreeSurfer:
    """A FreeSurfer whose recon-all is this shell script, in the folder $subject."""
    monkeypatch.setenv("FREESURFER_HOME", str(folder / "fs"))
    monkeypatch.setenv("PATH", os.defpath)
    text = f"#!/bin/sh\nsubject=$2/$4; mkdir -p $subject/scripts $subject/mri\n{recon_all}\n"
    executable(folder / "fs/bin/recon-all", text)
    (folder / "fs/license.txt").touch()
    return FreeSurfer.found()


# as recon-all's own scripts end
END = """
recon-all -s sub-1 exited with ERRORS at Sat Nov 28 20:00:00 UTC 2026

For more details, see the log file $subject/scripts/recon-all.log
To report a problem, see http://surfer.nmr.mgh.harvard.edu/fswiki/BugReporting
"""


@pytest.mark.parametrize(
    ("log", "printed", "reason", "machine"),
    [
        ("mri_convert --conform\nERROR! FOV=280.000 > 256\n{END}", "{END}", "FOV=280", False),
        ("could not open GCA\n{END}", "{END}", "could not open GCA", False),
        ("mri_ca_normalize\nKilled\n{END}", "{END}", "Killed", True),
        ("", "ERROR: FreeSurfer license file /x not found.\n  Get one\n", "license file", True),
        ("write: No space left on device\n{END}", "{END}", "No space left", True),
    ],
)
def test_why_recon_all_failed(
    bare: Path, monkeypatch: pytest.MonkeyPatch, log: str, printed: str, reason: str, machine: bool
) -> None:
    ends = f"cat <<END\n{printed.replace('{END}', END)}END\nexit 1"
    if log:
        ends = f"cat >$subject/scripts/recon-all.log <<END\n{log.replace('{END}', END)}END\n{ends}"
    tool = installed(bare, monkeypatch, ends)
    raw = raw_image(bare / "raw.nii.gz")
    with pytest.raises(UserError, match=rf"ended with 1 \(.*{reason}") as failure:
        tool.norm(raw, "sub-1", bare / "recon-all")
    assert isinstance(failure.value, freesurfer.Unready) is machine
    assert ("recon-all.log" in str(failure.value)) is bool(log)


def test_a_subjects_folder_that_is_there_is_never_changed(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw, folder = raw_image(bare / "raw.nii.gz"), bare / "recon-all"
    tool = installed(bare, monkeypatch, "exit 1")
    brought = folder / "sub-1/surf/lh.white"
    brought.parent.mkdir(parents=True)
    brought.write_text("days of work")
    with pytest.raises(freesurfer.Unready, match=r"sub-1: has no mri/norm\.mgz; move it away"):
        tool.norm(raw, "sub-1", folder)
    assert brought.read_text() == "days of work"
    (folder / "sub-1/mri").mkdir()
    (folder / "sub-1/mri/norm.mgz").write_text("from elsewhere")
    assert tool.norm(raw, "sub-1", folder).read_text() == "from elsewhere"

    with pytest.raises(UserError):
        tool.norm(raw, "sub-2", folder)  # begun …
    once = "[ ! -e $subject/begun ] || exit 1; touch $subject/begun; echo 1 >$subject/mri/norm.mgz"
    tool = installed(bare, monkeypatch, once)
    assert tool.norm(raw, "sub-2", folder).is_file()  # … and made afresh
    assert not (folder / "unfinished/sub-2").exists()
    raw_image(raw, 9, 9, 9)
    with pytest.raises(freesurfer.Unready, match="sub-2: was made from another image"):
        tool.norm(raw, "sub-2", folder)


def test_the_command_of_a_container(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw_image(bare / "raw.nii.gz")
    license = bare / "license.txt"
    license.touch()
    monkeypatch.setenv("FS_LICENSE", str(license))
    with pytest.raises(UserError, match=r"neither FreeSurfer .* nor docker or podman"):
        FreeSurfer.found()
    executable(bare / "bin/podman")
    command = FreeSurfer.found().command(bare / "raw.nii.gz", "sub-1_ses-1", bare / "out")
    assert " ".join(command) == (
        f"podman run --rm --network none --user {os.getuid()}:{os.getgid()} "
        f"-e FS_LICENSE=/license.txt -v {license}:/license.txt:ro "
        f"-v {bare}/raw.nii.gz:/raw/raw.nii.gz:ro -v {bare}/out:/subjects "
        "freesurfer/freesurfer:7.3.1 recon-all -sd /subjects -s sub-1_ses-1 -i /raw/raw.nii.gz "
        f"{FLAGS}"
    )


def test_the_crop_keeps_every_voxel_where_it_was() -> None:
    data = np.zeros(freesurfer.CONFORMED, np.float32)
    data[40, 20, 20], data[100, 100, 150], data[199, 211, 243] = 1, 2, 3
    conformed = Image(data, images.conformed_affine(data.shape))
    cropped = freesurfer.crop(conformed)
    assert cropped.data.shape == (160, 192, 224)
    for value in (1, 2, 3):
        before, after = (np.argwhere(i.data == value)[0] for i in (conformed, cropped))
        worlds = [i.affine @ [*v, 1] for i, v in ((conformed, before), (cropped, after))]
        assert np.array_equal(*worlds)
    with pytest.raises(UserError, match="not the conformed"):
        freesurfer.crop(cropped)


def test_the_route_end_to_end_with_a_recon_all_that_copies(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, scan = bare / "data", select("sub-0025531")[0]
    volume = np.zeros(freesurfer.CONFORMED, np.float32)
    volume[80:90, 80:90, 80:90] = np.random.default_rng(0).random((10, 10, 10))
    affine = images.conformed_affine(volume.shape)
    images.save(bids.corr_raw(data) / scan.path, volume[80:84, 80:84, 80:84], affine)
    (bare / "fs").mkdir()
    (bare / "fs/license.txt").touch()
    monkeypatch.setenv("FREESURFER_HOME", str(bare / "fs"))
    images.save(bare / "norm.mgz", volume, affine)
    monkeypatch.setenv("PATH", os.defpath)
    copies = f'#!/bin/sh\nmkdir -p "$2/$4/mri" && cp {bare}/norm.mgz "$2/$4/mri/"\n'
    executable(bare / "fs/bin/recon-all", copies)
    with pytest.raises(UserError, match=r"put norm-average_mni305\.mgz, which its authors"):
        preprocess(data, [scan], "freesurfer")
    images.save(bids.study_fixed_image(data), volume, affine)
    (outcome,) = preprocess(data, [scan], "freesurfer")
    assert outcome.excluded == ""
    dataset = bids.corr_dataset(data, "freesurfer")
    assert dataset.subjects() == [scan.subject]
    moving, fixed = images.load(dataset.moving(scan.subject)), images.load(dataset.fixed())
    expected = images.normalize(volume[40:200, 20:212, 20:244])
    assert np.array_equal(moving.data, expected) and images.same_grid(moving, fixed)

    # label maps come later, here on SAMSEG's own grid: 2 mm, the corner moved by half a voxel
    assert dataset.moving_labels(scan.subject) is None
    mri = bids.recon_all_folder(data) / scan.subject.entities / "mri"
    labels = np.zeros((128, 128, 128), np.int32)
    labels[40:45, 40:45, 40:45] = 17
    coarse = affine @ np.diag([2.0, 2, 2, 1])
    coarse[:3, 3] += affine[:3, :3] @ [0.5, 0.5, 0.5]
    images.save(mri / "seg.mgz", labels, coarse)
    preprocess(data, [scan], "freesurfer")
    path = dataset.moving_labels(scan.subject)
    assert path is not None and images.same_grid(images.load_labels(path), moving)
    expected_labels = np.zeros(freesurfer.CONFORMED, np.int32)
    expected_labels[80:90, 80:90, 80:90] = 17
    assert np.array_equal(images.load_labels(path).data, expected_labels[freesurfer.CROP])
    assert bids.corr_segmentations(data) == [mri / "seg.mgz"]

    executable(bare / "fs/bin/recon-all", "#!/bin/sh\necho mri_em_register failed >&2; exit 1\n")
    images.save(
        bids.corr_raw(data) / scan.path, volume[80:85, 80:85, 80:85], affine
    )  # another image
    with pytest.raises(UserError, match="was made from another image"):
        preprocess(data, [scan], "freesurfer")
    subject = dataset.root / f"recon-all/{scan.subject.entities}"
    subject.rename(bare / "away")
    (outcome,) = preprocess(data, [scan], "freesurfer", say=lambda text: None)
    assert outcome.excluded == "recon-all ended with 1 (mri_em_register failed)"
    assert dataset.subjects() == []

    image = dataset.moving(scan.subject)  # a user's own, or its record was removed
    bids.quality_json(dataset.truth or bare, scan.subject).unlink()
    images.save(image, volume[:8, :8, :8], affine)
    with pytest.raises(UserError, match="was not made by 'make preprocess'"):
        preprocess(data, [scan], "freesurfer")
    assert image.is_file()
