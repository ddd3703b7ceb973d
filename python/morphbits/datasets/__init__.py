"""Where the images come from: CoRR where it is installed, the phantoms made on the spot if not."""

from __future__ import annotations

from pathlib import Path

from morphbits import bids
from morphbits.bids import Dataset
from morphbits.datasets import corr
from morphbits.errors import UserError


def resolve(name: str, data: Path, size: str = "2mm") -> tuple[Dataset, str]:
    """The dataset that a name means here, and why.

    The name is auto, phantom, corr, corr-freesurfer or a folder.

    A phantom dataset need not have been made yet; `phantom.make_dataset` does that.
    """
    phantom = bids.phantom_dataset(data, size)
    if name == "phantom":
        return phantom, "as asked"
    if name not in ("auto", *corr.ROUTES):
        return bids.folder_dataset(Path(name)), "as asked"
    route = corr.ROUTES.get(name, "open")
    lacking = corr.lacking(data, route)
    if name != "auto" and lacking:
        raise UserError(f"DATASET={name}: {lacking}; or use DATASET=phantom")
    if name != "auto":
        return bids.corr_dataset(data, route), "as asked"
    if lacking:
        return phantom, f"auto: {lacking}; the other: DATASET=corr"
    return bids.corr_dataset(data), "auto: CoRR is ready; the other: DATASET=phantom"
