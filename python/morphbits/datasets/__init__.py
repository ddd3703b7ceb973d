"""Where the images come from: CoRR where it is installed, the phantoms made on the spot if not."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from morphbits import bids
from morphbits.bids import Dataset
from morphbits.datasets import corr, selection
from morphbits.errors import UserError


def resolve(
    name: str, data: Path, size: str = "2mm", fixed: Path | None = None, bids_filter: str = ""
) -> tuple[Dataset, str]:
    """The dataset that a name means here, and why.

    The name is auto, phantom, corr, corr-freesurfer or a folder; a fixed image goes with a folder,
    a filter of images with a folder or CoRR.

    A phantom dataset need not have been made yet; `phantom.make_dataset` does that.
    """
    phantom = bids.phantom_dataset(data, size)
    if name not in ("auto", "phantom", *corr.ROUTES):
        return selection.folder_dataset(Path(name), fixed, bids_filter), "as asked"
    if fixed:
        raise UserError(f"FIXED={fixed}: the dataset {name} has its fixed image; name a folder")
    if name == "phantom":
        return _unfiltered(phantom, bids_filter), "as asked"
    route = corr.ROUTES.get(name, "open")
    lacking = corr.lacking(data, route)
    if name != "auto" and lacking:
        raise UserError(f"DATASET={name}: {lacking}; or use DATASET=phantom")
    if lacking:
        why = f"auto: {lacking}; the other: DATASET=corr"
        return _unfiltered(phantom, bids_filter), why
    why = "as asked" if name != "auto" else "auto: CoRR is ready; the other: DATASET=phantom"
    return _chosen(bids.corr_dataset(data, route), bids_filter), why


def option_of(name: str) -> str:
    """What to call the phantoms or CoRR as an option, by the name of the dataset."""
    routes = ((option, bids.corr_dataset(Path(), route)) for option, route in corr.ROUTES.items())
    return next((option for option, dataset in routes if dataset.name == name), "phantom")


def at(root: Path, fixed: Path | None = None, bids_filter: str = "") -> Dataset:
    """The dataset whose root this is: preprocessed CoRR, a phantom dataset, or a user's folder,
    which one with a fixed image of the user's always is."""
    if fixed:
        return selection.folder_dataset(root, fixed, bids_filter)
    for route in corr.ROUTES.values():
        dataset = bids.corr_dataset(root.parent, route)
        if dataset.root == root:
            return _chosen(dataset, bids_filter)
    if match := re.fullmatch(r"phantom-(\d+mm)", root.name):
        return bids.phantom_dataset(root.parent, match[1])
    return selection.folder_dataset(root, None, bids_filter)


def _chosen(dataset: Dataset, bids_filter: str) -> Dataset:
    images, left_out = selection.choose(dataset.root, bids_filter)
    return replace(dataset, images=images, left_out=left_out)


def _unfiltered(phantom: Dataset, bids_filter: str) -> Dataset:
    if bids_filter:
        raise UserError(
            f"BIDS_FILTER={bids_filter!r}: each phantom has one image, so there is nothing to "
            "choose; name a DATASET"
        )
    return phantom
