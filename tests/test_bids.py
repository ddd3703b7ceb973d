"""Entities to paths and back."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from morphbits import bids
from morphbits.bids import Subject
from morphbits.errors import UserError

LABEL = st.text("abcXYZ0123456789", min_size=1, max_size=8)


@given(label=LABEL, session=st.none() | LABEL, space=LABEL)
def test_parse_inverts_build(label: str, session: str | None, space: str) -> None:
    name = bids.build("T1w", sub=label, ses=session, space=space, from_="T1w", to="MNI152")
    expected = {"sub": label, "space": space, "from": "T1w", "to": "MNI152"}
    expected |= {"suffix": "T1w", "extension": ".nii.gz"} | ({"ses": session} if session else {})
    assert bids.parse(name) == expected
    assert Subject.parse(name) == Subject(label, session)
    assert Subject.parse(Subject(label, session).entities) == Subject(label, session)


def test_sample_paths_are_those_of_the_documented_layout() -> None:
    subject = Subject("0003002", "1")
    unit = bids.sample_folder(Path("results"), "smoke", "03", subject)
    assert unit.as_posix() == "results/smoke/sample-03/sub-0003002"
    assert bids.moved_path(unit, subject, "MNI305").relative_to(unit).as_posix() == (
        "ses-1/anat/sub-0003002_ses-1_space-MNI305_desc-moved_T1w.nii.gz"
    )
    assert bids.warp_path(unit, Subject("001"), "MNI152").relative_to(unit).as_posix() == (
        "anat/sub-001_from-T1w_to-MNI152_mode-image_xfm.nii.gz"
    )
    assert bids.map_path(Path("r"), "e", subject, "MNI305", "image").as_posix() == (
        "r/e/maps/sub-0003002/ses-1/sub-0003002_ses-1_space-MNI305_desc-image_bits.nii.gz"
    )


@pytest.mark.parametrize("label", ["", "a b", "../x", "003/", "é"])
def test_labels_cannot_leave_their_folder(label: str) -> None:
    with pytest.raises(UserError):
        Subject(label)
    with pytest.raises(UserError):
        bids.experiment_folder(Path("results"), "../" + label)


def test_parse_refuses_names_that_are_not_bids() -> None:
    with pytest.raises(UserError, match="not a BIDS file name"):
        bids.parse("some_scan.nii.gz")
    with pytest.raises(ValueError, match="colour"):
        bids.build("T1w", sub="1", colour="red")


def test_phantom_dataset_lists_what_is_there(tmp_path: Path) -> None:
    dataset = bids.phantom_dataset(tmp_path, "2mm")
    assert dataset.subjects() == []
    for label in ("010", "002"):
        path = dataset.moving(Subject(label))
        path.parent.mkdir(parents=True)
        path.touch()
    (dataset.root / "sub-004" / "anat").mkdir(parents=True)  # has no image
    assert dataset.subjects() == [Subject("002"), Subject("010")]
    assert dataset.moving_labels(Subject("002")) is None
    assert dataset.fixed_labels() is None
    assert dataset.fixed().relative_to(tmp_path).as_posix() == (
        "phantom-2mm/derivatives/phantom/tpl-MNI152/tpl-MNI152_T1w.nii.gz"
    )


def test_corr_dataset_knows_sessions(tmp_path: Path) -> None:
    dataset = bids.corr_dataset(tmp_path)
    subject = Subject("0003002", "1")
    path = dataset.moving(subject)
    assert path.relative_to(tmp_path).as_posix() == (
        "corr-preprocessed/sub-0003002/ses-1/anat/"
        "sub-0003002_ses-1_space-MNI152_desc-norm_T1w.nii.gz"
    )
    path.parent.mkdir(parents=True)
    path.touch()
    (path.parent / "sub-0003002_ses-1_T1w.nii.gz").touch()  # raw
    assert dataset.subjects() == [subject]
    assert dataset.true_warp(subject) is None


def test_finished_units_are_listed_from_the_files(tmp_path: Path) -> None:
    subject = Subject("7", "2")
    for sample in ("10", "02", "ieee", "plain"):
        unit = bids.sample_folder(tmp_path, "smoke", sample, subject)
        bids.moved_path(unit, subject, "MNI152").parent.mkdir(parents=True)
        if sample != "plain":  # a unit without sample.json is not finished
            bids.sample_json(unit).touch()
    assert bids.list_samples(tmp_path, "smoke") == ["02", "10", "ieee"]
    assert bids.list_subjects(tmp_path, "smoke", "02") == [subject]
    assert bids.list_subjects(tmp_path, "smoke", "plain") == []
