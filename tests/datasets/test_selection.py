"""Which images of a BIDS folder are registered: the only one, the filtered one, or none, never
one in silence."""

from __future__ import annotations

from pathlib import Path

import pytest

from morphbits import bids, datasets
from morphbits.bids import Subject
from morphbits.datasets import selection
from morphbits.errors import UserError

PLAIN = "its subject's image without other entities in its name is taken"


def put(root: Path, *names: str) -> None:
    """Files below the root, in the folder of their subject and session where none is given."""
    for name in names:
        path = root / name
        if "/" not in name:
            entities = bids.parse(name)
            session = f"ses-{entities['ses']}" if "ses" in entities else ""
            path = root / f"sub-{entities['sub']}" / session / "anat" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"an image")


def chosen(root: Path, text: str = "") -> tuple[list[str], dict[str, str]]:
    """Names of the images that are taken, and the reasons of the others by file name."""
    images, left_out = selection.choose(root, text)
    return [path.name for path in images.values()], {
        name.rpartition("/")[2]: reason for name, reason in left_out.items()
    }


@pytest.mark.parametrize(
    "name",
    [
        "sub-1_T1w.nii.gz",
        "sub-1_T1w.nii",
        "sub-1_run-1_T1w.nii.gz",
        "sub-1_acq-mprage_rec-norm_T1w.nii.gz",
        "sub-1_ses-pre_T1w.nii.gz",
        "sub-1_space-MNI152_desc-preproc_T1w.nii.gz",
    ],
)
def test_the_only_image_of_a_subject_is_taken_whatever_its_name(tmp_path: Path, name: str) -> None:
    put(tmp_path, name)
    assert chosen(tmp_path) == ([name], {})


def test_sessions_runs_and_acquisitions_are_chosen_by_a_filter(tmp_path: Path) -> None:
    put(tmp_path, "sub-1_ses-1_acq-a_run-01_T1w.nii.gz", "sub-1_ses-1_acq-a_run-02_T1w.nii.gz")
    put(tmp_path, "sub-1_ses-2_acq-a_T1w.nii.gz", "sub-2_ses-2_T1w.nii.gz")
    names, reasons = chosen(tmp_path)
    assert names == ["sub-2_ses-2_T1w.nii.gz"]
    assert set(reasons.values()) == {
        "one of several images of its subject; choose by BIDS_FILTER= "
        "(ses-1, ses-2, no-run, run-01, run-02)"
    }
    assert len(reasons) == 3
    second = ["sub-1_ses-2_acq-a_T1w.nii.gz", "sub-2_ses-2_T1w.nii.gz"]
    names, reasons = chosen(tmp_path, "ses-2")
    assert names == second
    assert set(reasons.values()) == {"BIDS_FILTER='ses-2' leaves it out"}
    assert chosen(tmp_path, "no-run")[0] == second
    assert chosen(tmp_path, "ses-1, run-1")[0] == ["sub-1_ses-1_acq-a_run-01_T1w.nii.gz"]
    assert chosen(tmp_path, "no-acq")[0] == ["sub-2_ses-2_T1w.nii.gz"]
    assert chosen(tmp_path, "no-run run-2 ses-2")[0] == second
    assert chosen(tmp_path, "sub-2")[0] == second[1:]


def test_a_plain_name_is_taken_before_its_variants(tmp_path: Path) -> None:
    put(tmp_path, "sub-1_T1w.nii.gz", "sub-1_rec-defaced_T1w.nii.gz", "sub-1_run-2_T1w.nii.gz")
    names, reasons = chosen(tmp_path)
    assert names == ["sub-1_T1w.nii.gz"]
    assert reasons == dict.fromkeys(
        ("sub-1_rec-defaced_T1w.nii.gz", "sub-1_run-2_T1w.nii.gz"), PLAIN
    )
    assert chosen(tmp_path, "rec-defaced")[0] == ["sub-1_rec-defaced_T1w.nii.gz"]


def test_what_is_not_taken_is_named_with_its_reason(tmp_path: Path) -> None:
    put(tmp_path, "sub-1_T1w.nii.gz", "sub-1_T2w.nii.gz", "sub-1_T1w.json")
    put(tmp_path, "sub-1/anat/sub-1_T1w_defaced.nii.gz", "sub-1/anat/sub-1_acq-0.8mm_T1w.nii.gz")
    put(tmp_path, "sub-1/anat/sub-2_T1w.nii.gz", "sub-1/anat/sub-1_T1w.mgz", "sub-1/anat/._x.nii")
    put(tmp_path, "sub-1/anat/sub-1_T1w.NII.GZ", "sub-1/anat/sub-1_ses-1_T1w.nii.gz")
    put(tmp_path, "sub-1/sub-1_T1w.nii.gz", "sub-1/func/sub-1_task-rest_bold.nii.gz")
    put(tmp_path, "sub-3/ses-1/func/sub-3_ses-1_task-rest_bold.nii.gz")
    put(tmp_path, "Sub-04/anat/Sub-04_T1w.nii.gz", "sub-05 (copy)/anat/sub-05_T1w.nii.gz")
    put(tmp_path, "subject8/anat/sub-8_T1w.nii.gz", "sub-7/ses1/anat/sub-7_T1w.nii.gz")
    put(tmp_path, "sub-1/anat/sub-1_acq-a_acq-b_T1w.nii.gz")
    put(tmp_path, "sub-6_T1w.nii", "sub-6_T1w.nii.gz", "derivatives/x/sub-1/anat/sub-1_T1w.nii")
    images, left_out = selection.choose(tmp_path)
    assert {who: path.name for who, path in images.items()} == {Subject("1"): "sub-1_T1w.nii.gz"}
    no_subject = (
        "no BIDS name for a subject's folder: sub- (small letters), then letters or digits"
    )
    elsewhere = "its name does not have its folder's subject and session"
    no_nifti = "no NIfTI image by its name (.nii or .nii.gz)"
    twice = "two images of one name (sub-6_T1w.nii and sub-6_T1w.nii.gz)"
    assert left_out == {
        "sub-1/anat/sub-1_T2w.nii.gz": "its suffix is not T1w",
        "sub-1/anat/sub-1_T1w_defaced.nii.gz": "no BIDS file name",
        "sub-1/anat/sub-1_acq-0.8mm_T1w.nii.gz": "no BIDS file name",
        "sub-1/anat/sub-1_acq-a_acq-b_T1w.nii.gz": "no BIDS file name",
        "subject8": no_subject,
        "sub-7/ses1": "no BIDS name for a session's folder: ses-LABEL",
        "sub-1/anat/sub-2_T1w.nii.gz": elsewhere,
        "sub-1/anat/sub-1_ses-1_T1w.nii.gz": elsewhere,
        "sub-1/anat/sub-1_T1w.mgz": no_nifti,
        "sub-1/anat/sub-1_T1w.NII.GZ": no_nifti,
        "sub-1/sub-1_T1w.nii.gz": "not in a folder anat",
        "sub-3": "no image in its folder anat",
        "Sub-04": no_subject,
        "sub-05 (copy)": no_subject,
        "sub-6/anat/sub-6_T1w.nii": twice,
        "sub-6/anat/sub-6_T1w.nii.gz": twice,
    }
    lines = selection.in_words(left_out)
    assert f"2: {twice} (sub-6/anat/sub-6_T1w.nii, sub-6/anat/sub-6_T1w.nii.gz)" in lines
    assert selection.in_words({f"sub-{k}": "why" for k in range(5)}) == [
        "5: why (sub-0, sub-1, sub-2, … 2 more)"
    ]


def test_content_that_was_not_fetched_is_named(tmp_path: Path) -> None:
    put(tmp_path, "sub-1_T1w.nii.gz", "sub-2_T1w.nii.gz", "sub-3_T1w.nii.gz", "sub-4_T1w.nii.gz")
    put(tmp_path, "sub-5_T1w.nii.gz")
    (tmp_path / "sub-5/anat/sub-5_T1w.nii.gz").write_bytes(b"")
    annex, lfs, gone, here = (tmp_path / f"sub-{k}/anat/sub-{k}_T1w.nii.gz" for k in (1, 2, 3, 4))
    annex.unlink()
    annex.symlink_to("../../.git/annex/objects/ab/cd/MD5E-s1--0.nii.gz/MD5E-s1--0.nii.gz")
    lfs.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    gone.unlink()
    gone.symlink_to("/nowhere/sub-3_T1w.nii.gz")
    moved = tmp_path / "elsewhere.nii.gz"
    here.rename(moved)
    here.symlink_to(moved)
    names, reasons = chosen(tmp_path)
    assert names == ["sub-4_T1w.nii.gz"]
    assert reasons == {
        "sub-1_T1w.nii.gz": "its content was not fetched (git-annex): datalad get",
        "sub-2_T1w.nii.gz": "its content was not fetched (git-lfs): git lfs pull",
        "sub-3_T1w.nii.gz": "a link to a file that is not there",
        "sub-5_T1w.nii.gz": "an empty file",
    }


def test_one_run_spelled_twice_is_no_choice(tmp_path: Path) -> None:
    put(tmp_path, "sub-1_run-1_T1w.nii.gz", "sub-1_run-01_T1w.nii.gz")
    names, reasons = chosen(tmp_path, "run-1")
    assert names == []
    assert set(reasons.values()) == {
        "two images of one name (sub-1_run-01_T1w.nii.gz and sub-1_run-1_T1w.nii.gz)"
    }


def test_a_folder_that_cannot_be_read_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(UserError, match=r"cannot be read \(Permission denied\)"):
        selection.choose(tmp_path)


def test_what_is_fetched_does_not_decide_which_run_is_taken(tmp_path: Path) -> None:
    put(tmp_path, "sub-1_run-1_T1w.nii.gz", "sub-1_run-2_T1w.nii.gz")
    second = tmp_path / "sub-1/anat/sub-1_run-2_T1w.nii.gz"
    second.unlink()
    second.symlink_to("../../.git/annex/objects/x")
    assert chosen(tmp_path)[0] == []
    assert chosen(tmp_path, "run-1")[0] == ["sub-1_run-1_T1w.nii.gz"]


def test_a_dataset_of_links_is_a_dataset(tmp_path: Path) -> None:
    put(tmp_path / "real", "sub-1_T1w.nii.gz")
    (tmp_path / "links").mkdir()
    (tmp_path / "links/sub-1").symlink_to(tmp_path / "real/sub-1")
    (tmp_path / "links/sub-2").symlink_to(tmp_path / "real/sub-2")
    assert chosen(tmp_path / "links") == (
        ["sub-1_T1w.nii.gz"],
        {"sub-2": "a link to a folder that is not there"},
    )


def test_participants_and_folders_that_disagree(tmp_path: Path) -> None:
    put(tmp_path, "sub-1_T1w.nii.gz", "sub-2_T1w.nii.gz")
    table = tmp_path / "participants.tsv"
    table.write_text("participant_id\tage\nsub-1\t30\nsub-2\t31\n")
    assert chosen(tmp_path)[1] == {}
    table.write_text("subject,age\n1,30\n")
    assert chosen(tmp_path)[1] == {"participants.tsv": "has no column participant_id"}
    table.write_text(f"participant_id\n{'x' * 200_000}\n")
    assert chosen(tmp_path)[1]["participants.tsv"].startswith("is no table (field larger than")
    table.write_text("\ufeffparticipant_id\tage\nsub-2\t30\nsub-9\t31\n")
    names, reasons = chosen(tmp_path)
    assert len(names) == 2
    assert reasons == {
        "participants.tsv": "names subjects without a folder: sub-9; does not name sub-1"
    }


@pytest.mark.parametrize("text", ["session-1", "1", "ses-", "no-", "ses-a_b", "ses_1"])
def test_a_filter_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is no entity and label, such as ses-1"):
        selection.parse_filter(text)


def test_the_fixed_image_is_found_or_named(tmp_path: Path) -> None:
    put(tmp_path, "sub-1_T1w.nii.gz")
    with pytest.raises(UserError, match=r"has 0: name one with FIXED=path"):
        datasets.resolve(str(tmp_path), tmp_path)
    mine = tmp_path / "MNI152_T1_1mm.nii.gz"
    with pytest.raises(UserError, match="there is no such file"):
        datasets.resolve(str(tmp_path), tmp_path, fixed=mine)
    mine.touch()
    dataset, _ = datasets.resolve(str(tmp_path), tmp_path, fixed=mine)
    assert (dataset.fixed(), dataset.space, dataset.truth) == (mine, "MNI152T11mm", None)
    templates = [
        bids.template_in(tmp_path / "derivatives" / name, "T", "T1w") for name in ("a", "b")
    ]
    for path in templates:
        put(tmp_path, str(path.relative_to(tmp_path)))
    with pytest.raises(UserError, match=r"has 2 \(derivatives/a/.*FIXED=path"):
        datasets.resolve(str(tmp_path), tmp_path)
    dataset, _ = datasets.resolve(str(tmp_path), tmp_path, fixed=templates[1])
    assert (dataset.space, dataset.truth) == ("T", tmp_path / "derivatives/b")
    with pytest.raises(UserError, match="has its fixed image"):
        datasets.resolve("phantom", tmp_path, fixed=mine)
    with pytest.raises(UserError, match="each phantom has one image"):
        datasets.resolve("phantom", tmp_path, bids_filter="ses-1")


def test_sessions_of_corr_are_chosen_too(tmp_path: Path) -> None:
    corr = bids.corr_dataset(tmp_path)
    one, two = Subject("0003002", "1"), Subject("0003002", "2")
    for path in (corr.moving(one), corr.moving(two), corr.fixed()):
        put(tmp_path, str(path.relative_to(tmp_path)))
    dataset, _ = datasets.resolve("corr", tmp_path)
    assert dataset.subjects() == [] and len(dataset.left_out) == 2
    dataset, _ = datasets.resolve("corr", tmp_path, bids_filter="ses-2")
    assert dataset.subjects() == [two] and dataset.moving(two) == corr.moving(two)
    assert datasets.at(corr.root, bids_filter="ses-2").subjects() == [two]


def test_a_fixed_image_of_the_users_is_kept_whatever_the_folder_is_called(tmp_path: Path) -> None:
    fixed = tmp_path / "target.nii.gz"
    fixed.write_bytes(b"an image")
    for name in ("phantom-mine", "phantom-2mm", bids.corr_dataset(tmp_path).name):
        root = tmp_path / name
        put(root, "sub-1/anat/sub-1_T1w.nii.gz")
        dataset, _ = datasets.resolve(str(root), tmp_path, fixed=fixed)
        assert datasets.at(root, fixed).fixed() == dataset.fixed() == fixed
    with pytest.raises(UserError, match="phantom-mine needs one fixed image"):
        datasets.at(tmp_path / "phantom-mine")
