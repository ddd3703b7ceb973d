"""Which dataset a name means, on stand-in folders with the layout of the real ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from morphbits import bids, datasets
from morphbits.bids import Subject
from morphbits.errors import UserError

SUBJECT = Subject("0003002", "1")


def put(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"an image")


def raw_corr(data: Path, fetched: bool) -> None:
    folder = bids.corr_raw(data) / "RawDataBIDS" / "BMB_1" / SUBJECT.anat
    image = folder / "sub-0003002_ses-1_run-1_T1w.nii.gz"
    folder.mkdir(parents=True)
    if fetched:
        image.touch()
    else:  # as git-annex leaves an image whose content has not been fetched
        image.symlink_to("../../.git/annex/objects/absent")


def test_a_fresh_machine_gets_phantoms(tmp_path: Path) -> None:
    dataset, why = datasets.resolve("auto", tmp_path, "4mm")
    assert dataset == bids.phantom_dataset(tmp_path, "4mm")
    assert "CoRR is not installed" in why and "DATASET=corr" in why
    with pytest.raises(UserError, match=r"not installed in .*make corr.*; or use DATASET=phantom"):
        datasets.resolve("corr", tmp_path)


@pytest.mark.parametrize(
    ("fetched", "says"), [(True, "not preprocessed"), (False, "not installed")]
)
def test_raw_corr_cannot_be_registered(tmp_path: Path, fetched: bool, says: str) -> None:
    raw_corr(tmp_path, fetched)
    dataset, why = datasets.resolve("auto", tmp_path)
    assert dataset.name == "phantom-2mm" and says in why


def test_preprocessed_corr_is_taken(tmp_path: Path) -> None:
    corr = bids.corr_dataset(tmp_path)
    put(corr.moving(SUBJECT))
    dataset, why = datasets.resolve("auto", tmp_path)
    assert dataset.name == "phantom-2mm" and "not installed" in why
    put(corr.fixed())
    assert datasets.resolve("auto", tmp_path)[0] == corr
    assert datasets.resolve("corr", tmp_path) == (corr, "as asked")
    assert datasets.resolve("phantom", tmp_path)[0].name == "phantom-2mm"
    assert corr.subjects() == [SUBJECT]


def test_a_folder_of_the_users_own(tmp_path: Path) -> None:
    root = tmp_path / "my study"
    put(root / "sub-7" / "anat" / "sub-7_T1w.nii.gz")
    with pytest.raises(UserError, match=r"needs one fixed image.*has 0"):
        datasets.resolve(str(root), tmp_path)
    put(bids.template_in(root / "derivatives" / "mine", "OASIS", "T1w"))
    dataset, why = datasets.resolve(str(root), tmp_path)
    assert (dataset.space, dataset.name, why) == ("OASIS", "my-study", "as asked")
    assert dataset.subjects() == [Subject("7")]
    assert datasets.at(root) == dataset
    with pytest.raises(UserError, match="DATASET is auto, phantom, corr or a BIDS folder"):
        datasets.resolve(str(tmp_path / "missing"), tmp_path)


def test_a_root_says_which_dataset_it_is(tmp_path: Path) -> None:
    for dataset in (bids.corr_dataset(tmp_path), bids.phantom_dataset(tmp_path, "2mm")):
        assert datasets.at(dataset.root) == dataset
