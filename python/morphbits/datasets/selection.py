"""A BIDS folder: which of its images are registered, one of each subject, and why not the others.

Nothing is chosen in silence. An image is taken where it is the subject's only T1w image that fits
the filter, or the only one whose name has no entity but sub and ses; where several are left, none
of them is. What is not taken is named with its reason.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from morphbits import bids
from morphbits.bids import Dataset, Subject
from morphbits.errors import UserError

# entities that the name of an anatomical image may have (BIDS 1.10, raw and derivatives)
ENTITIES = (
    *("sub", "ses", "sample", "acq", "ce", "rec", "run", "echo", "part", "inv", "chunk", "mod"),
    *("space", "res", "den", "desc"),
)
_INDICES = ("run", "echo", "inv", "chunk")  # numbers: run-01 is run-1
_IMAGE = re.compile(r"\.(nii|mgh|img|hdr|mnc|nrrd|nhdr|mha)(\.gz)?$|\.mgz$", re.IGNORECASE)
_T1W = re.compile(r"T1w.*\.nii(\.gz)?$", re.IGNORECASE)
_NAMED = 3  # files named on the terminal for each reason; the report has all

Filter = dict[str, set[str | None]]


@dataclass(frozen=True)
class _Candidate:
    """An image that fits the filter, with the entities of its name."""

    path: Path
    entities: Mapping[str, str]

    @property
    def identity(self) -> frozenset[tuple[str, str]]:
        """What BIDS tells images apart by."""
        return frozenset((key, _label(key, value)) for key, value in self.entities.items())

    @property
    def is_plain(self) -> bool:
        return set(self.entities) <= {"sub", "ses"}


def parse_filter(text: str) -> Filter:
    """The values that each named entity may have, None for a name without it.

    `ses-1 acq-mprage`: session 1 and acquisition mprage. `no-run run-1`: no run, or run 1.
    """
    allowed: Filter = {}
    for word in re.split(r"[ ,]+", text.strip(" ,")) if text.strip(" ,") else ():
        key, _, value = word.partition("-")
        absent = key == "no"
        key = value if absent else key
        if key not in ENTITIES or not re.fullmatch(r"[A-Za-z0-9]+", value):
            raise UserError(
                f"BIDS_FILTER: {word!r} is no entity and label, such as ses-1, run-2, acq-mprage, "
                f"or no-acq for a name without it; entities are {', '.join(ENTITIES)}"
            )
        allowed.setdefault(key, set()).add(None if absent else _label(key, value))
    return allowed


def _label(key: str, value: str) -> str:
    return value.lstrip("0") or "0" if key in _INDICES else value


def choose(root: Path, text: str = "") -> tuple[dict[Subject, Path], dict[str, str]]:
    """The image of each subject, and what is not taken: path below the root, or its folder's, to
    the reason."""
    try:
        return _choose(root, text)
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from None


def _choose(root: Path, text: str) -> tuple[dict[Subject, Path], dict[str, str]]:
    allowed, left_out = parse_filter(text), dict[str, str]()
    candidates: dict[str, list[_Candidate]] = {}
    for folder, label in _subject_folders(root, left_out):
        found = []
        for path, session in _anatomical_files(root, folder, left_out):
            reason, entities = _reason_against(path, label, session)
            if not reason and any(
                _label(key, entities[key]) not in values if key in entities else None not in values
                for key, values in allowed.items()
            ):
                reason = f"BIDS_FILTER={text!r} leaves it out"
            if reason:
                left_out[_below(root, path)] = reason
            else:
                found.append(_Candidate(path, entities))
        if found:
            candidates[label] = found
        elif not any(name.startswith(f"{folder.name}/") for name in left_out):
            left_out[folder.name] = "no image in its folder anat"
    images = {}
    for label, found in candidates.items():
        one, reasons = _one_of(found)
        left_out.update({_below(root, path): reason for path, reason in reasons.items()})
        if one:
            images[Subject(label, one.entities.get("ses"))] = one.path
    left_out.update(_disagreements(root, {folder for folder, _ in _subject_folders(root, {})}))
    return images, left_out


def _below(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


def _subject_folders(root: Path, left_out: dict[str, str]) -> Iterator[tuple[Path, str]]:
    for folder in sorted(root.iterdir()) if root.is_dir() else ():
        match = re.fullmatch(r"sub-([A-Za-z0-9]+)", folder.name)
        if match and folder.is_dir():
            yield folder, match[1]
        elif folder.is_symlink() and not folder.exists():
            left_out[folder.name] = "a link to a folder that is not there"
        elif folder.is_dir() and (
            re.match(r"sub[-_ ]", folder.name, re.IGNORECASE) or _has_anat(folder)
        ):
            left_out[folder.name] = (
                "no BIDS name for a subject's folder: sub- (small letters), then letters or digits"
            )


def _has_anat(folder: Path) -> bool:
    return (folder / "anat").is_dir() or any(folder.glob("ses*/anat"))


def _anatomical_files(
    root: Path, folder: Path, left_out: dict[str, str]
) -> Iterator[tuple[Path, str | None]]:
    """Images in the folders anat of a subject, and the session they lie in."""
    places: list[tuple[Path, str | None]] = [(folder, None)]
    for inner in sorted(folder.iterdir()):
        match = re.fullmatch(r"ses-([A-Za-z0-9]+)", inner.name)
        if match and inner.is_dir():
            places.append((inner, match[1]))
        elif inner.is_dir() and inner.name != "anat" and _has_anat(inner):
            left_out[_below(root, inner)] = "no BIDS name for a session's folder: ses-LABEL"
    for place, session in places:
        for path in sorted(place.iterdir()):
            if not path.name.startswith(".") and path.is_file() and _T1W.search(path.name):
                left_out[_below(root, path)] = "not in a folder anat"
        anat = place / "anat"
        for path in sorted(anat.iterdir()) if anat.is_dir() else ():
            if _IMAGE.search(path.name) and not path.name.startswith(".") and not path.is_dir():
                yield path, session


def _reason_against(path: Path, label: str, session: str | None) -> tuple[str, dict[str, str]]:
    """Why a file is no T1w image of this subject and session (empty: it is one); its entities."""
    stem = re.sub(r"\.nii(\.gz)?$", "", path.name)
    if stem == path.name:
        return "no NIfTI image by its name (.nii or .nii.gz)", {}
    try:
        entities = bids.parse(stem)
    except UserError:
        return "no BIDS file name", {}
    suffix, extension = entities.pop("suffix"), entities.pop("extension")
    repeated = stem.count("_") > len(entities)
    if extension or repeated or not set(entities) <= set(ENTITIES):
        return "no BIDS file name", {}
    if suffix != "T1w":
        return "its suffix is not T1w", {}
    if (entities.get("sub"), entities.get("ses")) != (label, session):
        return "its name does not have its folder's subject and session", {}
    return "", entities


def _one_of(found: list[_Candidate]) -> tuple[_Candidate | None, dict[Path, str]]:
    """The candidate of a subject that is taken, if any, and why the others are not."""
    plain = [one for one in found if one.is_plain]
    sessions = {one.entities.get("ses") for one in found}
    if len(found) > 1 and len({one.identity for one in found}) == 1:
        names = " and ".join(one.path.name for one in found)
        return None, {one.path: f"two images of one name ({names})" for one in found}
    if len(found) == 1:
        (chosen,) = found
    elif len(plain) == 1 and len(sessions) == 1:
        (chosen,) = plain
    else:
        words = ", ".join(_what_differs(found))
        reason = f"one of several images of its subject; choose by BIDS_FILTER= ({words})"
        return None, dict.fromkeys((one.path for one in found), reason)
    reason = "its subject's image without other entities in its name is taken"
    others = {one.path: reason for one in found if one is not chosen}
    lacking = _content_lacking(chosen.path)
    return (None, {chosen.path: lacking, **others}) if lacking else (chosen, others)


def _what_differs(found: Iterable[_Candidate]) -> list[str]:
    """`ses-1`, `ses-2`, `no-acq`, `acq-mprage`: the words that tell these images apart."""
    found = list(found)
    words = []
    for key in ENTITIES:
        names = sorted({one.entities.get(key, "") for one in found})
        if len(names) > 1:
            words += [f"{key}-{name}" if name else f"no-{key}" for name in names]
    return words


def _content_lacking(path: Path) -> str:
    """Why the content of an image is not there; empty where it is."""
    if not path.exists():
        if ".git/annex" in str(path.readlink()):
            return "its content was not fetched (git-annex): datalad get"
        return "a link to a file that is not there"
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        return "an empty file"
    if start.startswith(b"/annex/objects/"):
        return "its content was not fetched (git-annex): datalad get"
    if start.startswith(b"version https://git-lfs"):
        return "its content was not fetched (git-lfs): git lfs pull"
    return ""


def _disagreements(root: Path, folders: set[Path]) -> dict[str, str]:
    """Where participants.tsv and the folders do not name the same subjects."""
    path = root / "participants.tsv"
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t")
        try:
            if "participant_id" not in (rows.fieldnames or ()):
                return {path.name: "has no column participant_id"}
            listed = {(row.get("participant_id") or "").strip() for row in rows} - {""}
        except csv.Error as error:
            return {path.name: f"is no table ({error})"}
    here = {folder.name for folder in folders}
    parts = [
        f"{words} {', '.join(sorted(names)[:_NAMED])}" + (" …" if len(names) > _NAMED else "")
        for words, names in (
            ("names subjects without a folder:", listed - here),
            ("does not name", here - listed),
        )
        if names
    ]
    return {path.name: "; ".join(parts)} if parts else {}


def in_words(left_out: Mapping[str, str]) -> list[str]:
    """A line for each reason: how many, why, and the first of them."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in left_out.items():
        by_reason.setdefault(reason, []).append(name)
    return [
        f"{len(names)}: {reason} ({', '.join(names[:_NAMED])}"
        + (f", … {len(names) - _NAMED} more)" if len(names) > _NAMED else ")")
        for reason, names in by_reason.items()
    ]


def folder_dataset(root: Path, fixed: Path | None = None, text: str = "") -> Dataset:
    """A user's BIDS folder, the images that fit a filter.

    Its fixed image is the file given, or the only `derivatives/<any>/tpl-<space>/tpl-<space>_T1w`.
    """
    if not root.is_dir():
        raise UserError(f"{root} is no dataset; DATASET is auto, phantom, corr or a BIDS folder")
    if fixed is None:
        found = sorted(root.glob("derivatives/*/tpl-*/tpl-*_T1w.nii*"))
        if len(found) != 1:
            names = f" ({', '.join(_below(root, path) for path in found[:_NAMED])})"
            raise UserError(
                f"{root} needs one fixed image, derivatives/<any>/tpl-<space>/"
                f"tpl-<space>_T1w.nii.gz, and has {len(found)}{names if found else ''}: name one "
                "with FIXED=path"
            )
        fixed = found[0]
    elif not fixed.is_file():
        raise UserError(f"FIXED={fixed}: there is no such file")
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", root.resolve().name)
    template = re.fullmatch(r"tpl-([A-Za-z0-9]+)", fixed.parent.name)
    stem = fixed.name.partition(".")[0]
    space = template[1] if template else re.sub(r"[^A-Za-z0-9]", "", stem) or "fixed"
    truth = fixed.parents[1] if template else None
    images, left_out = choose(root, text)
    return Dataset(root, name, space, fixed, truth=truth, images=images, left_out=left_out)
