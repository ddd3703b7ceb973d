"""Entities to paths and back: the only module that builds a path.

Names follow the Brain Imaging Data Structure (Gorgolewski et al. 2016, doi:10.1038/sdata.2016.44;
BIDS specification 1.10 for derivatives). A perturbed sample is a folder, not an entity, because
CoRR's `run-1` belongs to the scanner: all samples hold the same file names, and stacking them is
one glob.

    data/phantom-2mm/                          a phantom dataset (made on the spot)
        dataset_description.json participants.tsv README
        sub-001/anat/sub-001_T1w.nii.gz                                           moving image
        derivatives/phantom/
            sub-001/anat/sub-001_dseg.nii.gz                                      its tissues
            sub-001/anat/sub-001_from-T1w_to-MNI152_mode-image_xfm.nii.gz         the true warp
            tpl-MNI152/tpl-MNI152_{T1w,dseg}.nii.gz                fixed image and its tissues
    data/models/                               published models, the study's fixed image
    data/corr-preprocessed/                    CoRR by the open route, ready to register
        sub-X/ses-N/anat/sub-X_ses-N_space-MNI152_desc-norm_T1w.nii.gz
        derivatives/open/
            sub-X/ses-N/anat/sub-X_ses-N_{dseg.nii.gz,desc-quality_T1w.json,desc-quality_T1w.png}
            tpl-MNI152/tpl-MNI152_{T1w,dseg}.nii.gz                fixed image and its tissues
    data/corr-freesurfer/                      CoRR by the study's route, laid out alike
        sub-X/ses-N/anat/sub-X_ses-N_desc-norm_T1w.nii.gz    conformed axes, not moved to MNI305
        recon-all/sub-X_ses-N/mri/{norm,aseg,seg}.mgz        FreeSurfer's own; seg is SAMSEG's
    results/<experiment>/sample-NN/sub-X/      one sample; the unit is renamed into place whole
        sample.json
        [ses-N/]anat/sub-X[_ses-N]_space-MNI152_desc-moved_T1w.nii.gz
        [ses-N/]anat/sub-X[_ses-N]_from-T1w_to-MNI152_mode-image_xfm.nii.gz
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from morphbits.errors import UserError

ENTITY_ORDER = ("tpl", "sub", "ses", "acq", "run", "from", "to", "mode", "space", "desc")
_ALPHANUMERIC = re.compile(r"[A-Za-z0-9]+")
_EXPERIMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def _label(kind: str, value: str) -> str:
    if not _ALPHANUMERIC.fullmatch(value):
        raise UserError(f"{kind} label {value!r} is not a BIDS label; use letters and digits only")
    return value


def build(suffix: str, extension: str = ".nii.gz", **entities: str | None) -> str:
    """A BIDS file name, entities in the standard's order; entities that are None are left out.

    `from` is a Python keyword: write `from_="T1w"`.
    """
    values = {key.rstrip("_"): value for key, value in entities.items() if value is not None}
    unknown = set(values) - set(ENTITY_ORDER)
    if unknown:
        raise ValueError(f"unknown BIDS entities {sorted(unknown)}")
    parts = [f"{key}-{_label(key, values[key])}" for key in ENTITY_ORDER if key in values]
    return "_".join([*parts, suffix]) + extension


def parse(path: str | Path) -> dict[str, str]:
    """Entities, `suffix` and `extension` of a BIDS file name: the inverse of `build`."""
    name = Path(path).name
    stem, dot, extension = name.partition(".")
    *pairs, suffix = stem.split("_")
    entities = {}
    for pair in pairs:
        key, dash, value = pair.partition("-")
        if not dash or not _ALPHANUMERIC.fullmatch(value):
            raise UserError(f"{name} is not a BIDS file name: {pair!r} is not key-value")
        entities[key] = value
    return {**entities, "suffix": suffix, "extension": dot + extension}


@dataclass(frozen=True)
class Subject:
    """One image to register: a subject, and a session where the dataset has them."""

    label: str
    session: str | None = None

    def __post_init__(self) -> None:
        _label("subject", self.label)
        if self.session is not None:
            _label("session", self.session)

    @classmethod
    def parse(cls, text: str | Path) -> Subject:
        """From `003`, `sub-003`, `sub-003_ses-1`, or any BIDS file name with these entities."""
        name = Path(text).name
        if not name.startswith("sub-"):
            return cls(name)
        entities = parse(name if "." in name else f"{name}_T1w")
        return cls(entities["sub"], entities.get("ses"))

    @property
    def entities(self) -> str:
        """`sub-003` or `sub-003_ses-1`."""
        return f"sub-{self.label}" + (f"_ses-{self.session}" if self.session else "")

    @property
    def anat(self) -> Path:
        """`sub-003/anat` or `sub-003/ses-1/anat`, relative to a dataset's root."""
        return Path(f"sub-{self.label}") / self._anat_in_unit

    @property
    def _anat_in_unit(self) -> Path:
        return Path(f"ses-{self.session}", "anat") if self.session else Path("anat")

    def file(self, suffix: str, extension: str = ".nii.gz", **entities: str | None) -> str:
        """A file name of this subject."""
        return build(suffix, extension, sub=self.label, ses=self.session, **entities)


# --------------------------------------------------------------------------- datasets


@dataclass(frozen=True)
class Dataset:
    """A folder of images ready to register, each against the same fixed image.

    `moving_desc` and `moving_space` are the entities that the moving images carry; `truth` is
    the folder of the derivatives that hold labels and true warps, where the dataset knows them.
    `images` are the moving images where they were chosen among others (`datasets.selection`), and
    `left_out` what was not taken, with reasons.
    """

    root: Path
    name: str
    space: str
    fixed_image: Path
    moving_space: str | None = None
    moving_desc: str | None = None
    truth: Path | None = None
    images: Mapping[Subject, Path] | None = field(default=None, compare=False)
    left_out: Mapping[str, str] = field(default_factory=dict, compare=False)

    def moving(self, subject: Subject) -> Path:
        """The moving image of a subject."""
        if self.images is not None:
            if subject not in self.images:
                raise UserError(f"{self.root}: no image of {subject.entities} can be taken")
            return self.images[subject]
        return self.root / subject.anat / self._moving_name(subject)

    def fixed(self) -> Path:
        """The fixed image."""
        return self.fixed_image

    @property
    def skull_stripped(self) -> bool:
        """Whether the moving images are known to be: phantoms and preprocessed CoRR are."""
        return self.images is None or self.moving_desc is not None

    def subjects(self) -> list[Subject]:
        """Subjects whose moving image is there, in order of label and session."""
        if self.images is not None:
            return _in_order(self.images)
        found = {
            Subject.parse(path)
            for pattern in ("sub-*/anat/*_T1w.nii.gz", "sub-*/ses-*/anat/*_T1w.nii.gz")
            for path in self.root.glob(pattern)
        }
        return _in_order(subject for subject in found if self.moving(subject).is_file())

    def moving_labels(self, subject: Subject) -> Path | None:
        """Label map on the moving image's grid, or None where the dataset has none."""
        return self.truth and _existing(labels_in(self.truth, subject))

    def fixed_labels(self) -> Path | None:
        """Label map on the fixed image's grid, or None where the dataset has none."""
        return self.truth and _existing(template_in(self.truth, self.space, "dseg"))

    def true_warp(self, subject: Subject) -> Path | None:
        """The warp that a perfect registration would find (fixed grid, voxels), or None."""
        return self.truth and _existing(true_warp_in(self.truth, subject, self.space))

    def _moving_name(self, subject: Subject) -> str:
        return subject.file("T1w", space=self.moving_space, desc=self.moving_desc)


def _existing(path: Path) -> Path | None:
    return path if path.is_file() else None


def labels_in(truth: Path, subject: Subject) -> Path:
    """Where a folder of derivatives keeps a subject's label map."""
    return truth / subject.anat / subject.file("dseg")


def true_warp_in(truth: Path, subject: Subject, space: str) -> Path:
    """Where a folder of derivatives keeps a subject's true warp."""
    return truth / subject.anat / xfm_name(subject, space)


def template_in(truth: Path, space: str, suffix: str, extension: str = ".nii.gz") -> Path:
    """Where a folder of derivatives keeps the template of a space: its T1w, its dseg, …"""
    return truth / f"tpl-{space}" / build(suffix, extension, tpl=space)


def sidecar(path: Path) -> Path:
    """The JSON file beside an image that describes it."""
    return path.with_name(path.name.partition(".")[0] + ".json")


def phantom_dataset(data: Path, size: str) -> Dataset:
    """The phantom dataset of one size under the data folder; it need not have been made yet."""
    root = data / f"phantom-{size}"
    truth = phantom_truth(root)
    fixed = template_in(truth, "MNI152", "T1w")
    return Dataset(root, root.name, "MNI152", fixed, truth=truth)


def phantom_truth(root: Path) -> Path:
    """The derivatives of a phantom dataset: template, labels and true warps."""
    return root / "derivatives" / "phantom"


def models_folder(data: Path) -> Path:
    """Where `make models` puts the published models and the study's fixed image."""
    return data / "models"


def corr_dataset(data: Path, route: str = "open") -> Dataset:
    """CoRR after preprocessing by a route, open or freesurfer; it need not have been made yet.

    Fixed image: the MNI152 template (open), or the study's, cropped as the study did (freesurfer).
    """
    name, folder, space = {
        "open": ("corr", "corr-preprocessed", "MNI152"),
        "freesurfer": ("corr-freesurfer", "corr-freesurfer", "MNI305"),
    }[route]
    moving_space = space if route == "open" else None
    truth = data / folder / "derivatives" / route
    fixed = template_in(truth, space, "T1w")
    return Dataset(data / folder, name, space, fixed, moving_space, "norm", truth)


def study_fixed_image(data: Path) -> Path:
    """The study's fixed image, where its authors' file has been put."""
    return models_folder(data) / "norm-average_mni305.mgz"


def quality_json(truth: Path, subject: Subject) -> Path:
    """What preprocessing measured of a subject, also of one that it excluded."""
    return truth / subject.anat / subject.file("T1w", ".json", desc="quality")


def quality_picture(truth: Path, subject: Subject) -> Path:
    """Slices of a subject on the template, to be looked at."""
    return truth / subject.anat / subject.file("T1w", ".png", desc="quality")


def corr_raw(data: Path) -> Path:
    """Where raw CoRR is installed: `RawDataBIDS/<SITE>/sub-X/ses-N/anat/…` lies below."""
    return data / "corr"


def corr_raw_images(data: Path) -> Iterator[Path]:
    """The raw T1-weighted images of CoRR whose content is there."""
    found = corr_raw(data).glob("RawDataBIDS/*/sub-*/ses-*/anat/*_T1w.nii.gz")
    return (path for path in found if path.is_file())  # an image not fetched is a dangling link


def recon_all_folder(data: Path) -> Path:
    """Where recon-all works on CoRR: `sub-X_ses-N/mri/…` lies below."""
    return corr_dataset(data, "freesurfer").root / "recon-all"


def segmentation_in(mri: Path) -> Path | None:
    """The label map in a subject's folder `mri`: SAMSEG's, else recon-all's, else None."""
    return _existing(mri / "seg.mgz") or _existing(mri / "aseg.mgz")


def corr_segmentations(data: Path) -> list[Path]:
    """Label maps of CoRR's subjects, all of one kind: FreeSurfer's (SAMSEG's where there are any,
    else recon-all's), else the tissues that the open route took from the template."""
    for name in ("seg.mgz", "aseg.mgz"):
        found = sorted(recon_all_folder(data).glob(f"*/mri/{name}"))
        if found:
            return found
    dataset = corr_dataset(data)
    return [path for subject in dataset.subjects() if (path := dataset.moving_labels(subject))]


def xfm_name(subject: Subject, space: str) -> str:
    """The warp that brings the subject's image to `space` (BIDS: from what it moves, to where)."""
    return subject.file("xfm", from_="T1w", to=space, mode="image")


# ---------------------------------------------------------------------------- results


def experiment_name(words: Iterable[str]) -> str:
    """The words, joined by hyphens, as an experiment's name: what is not a letter (A to Z), digit,
    dot or underscore becomes a hyphen."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(words))


def experiment_folder(results: Path, experiment: str) -> Path:
    """`results/<experiment>`."""
    if not _EXPERIMENT.fullmatch(experiment):
        raise UserError(f"experiment name {experiment!r}: use letters, digits and . _ - only")
    return results / experiment


def experiment_file(results: Path, experiment: str, name: str) -> Path:
    """A file of the whole experiment: experiment.json, significance.csv, report.html, …"""
    return experiment_folder(results, experiment) / name


def sample_folder(results: Path, experiment: str, sample: str, subject: Subject) -> Path:
    """The unit of one sample, `results/<experiment>/sample-NN/sub-X`."""
    folder = f"sample-{_label('sample', sample)}"
    return experiment_folder(results, experiment) / folder / f"sub-{subject.label}"


def moved_path(unit: Path, subject: Subject, space: str) -> Path:
    """The moved image inside a unit folder."""
    return unit / subject._anat_in_unit / subject.file("T1w", space=space, desc="moved")


def warp_path(unit: Path, subject: Subject, space: str) -> Path:
    """The warp inside a unit folder."""
    return unit / subject._anat_in_unit / xfm_name(subject, space)


def sample_json(unit: Path) -> Path:
    """Configuration and provenance of a unit; written last: where it is, the unit is whole."""
    return unit / "sample.json"


def map_path(results: Path, experiment: str, subject: Subject, space: str, quantity: str) -> Path:
    """A significance map, `maps/sub-X/…_desc-<quantity>_bits.nii.gz`; quantity: image, warp, …"""
    folder = experiment_folder(results, experiment) / "maps" / subject.anat.parent
    return folder / subject.file("bits", space=space, desc=quantity)


def list_samples(results: Path, experiment: str) -> list[str]:
    """Names of the samples that have a finished unit: numbers first, then the references."""
    folders = experiment_folder(results, experiment).glob("sample-*/sub-*/sample.json")
    names = {path.parent.parent.name.removeprefix("sample-") for path in folders}
    return sorted(names, key=lambda name: (0, int(name)) if name.isdigit() else (1, name))


def list_subjects(results: Path, experiment: str, sample: str) -> list[Subject]:
    """Subjects whose unit in this sample is finished."""
    units = (experiment_folder(results, experiment) / f"sample-{sample}").glob("sub-*/sample.json")
    found = []
    for path in units:
        session = next((p.name.removeprefix("ses-") for p in path.parent.glob("ses-*")), None)
        found.append(Subject(path.parent.name.removeprefix("sub-"), session))
    return _in_order(found)


def _in_order(subjects: Iterable[Subject]) -> list[Subject]:
    return sorted(subjects, key=lambda subject: (subject.label, subject.session or ""))
