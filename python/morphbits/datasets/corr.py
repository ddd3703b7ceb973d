"""The Consortium for Reliability and Reproducibility's scans (CoRR), where the user has them.

CoRR (Zuo et al. 2014, doi:10.1038/sdata.2014.49) is installed as it is distributed, raw, by
`make corr`: `data/corr/RawDataBIDS/<SITE>/sub-X/ses-N/anat/sub-X_ses-N_run-1_T1w.nii.gz`. A
registration network needs more: brains extracted, aligned and normalized. `make preprocess` makes
such images by one of two routes, each with a dataset and a fixed image of its own (names:
`morphbits.bids`): `corr` (open route) and `corr-freesurfer` (the study's).
"""

from __future__ import annotations

from pathlib import Path

from morphbits import bids

ROUTES = {"corr": "open", "corr-freesurfer": "freesurfer"}  # by the dataset's name


def lacking(data: Path, route: str = "open") -> str | None:
    """What CoRR still needs before it can be registered, in words; None where it is ready."""
    dataset = bids.corr_dataset(data, route)
    if dataset.subjects() and dataset.fixed().is_file():
        return None
    if any(bids.corr_raw_images(data)):
        verb = "make preprocess" + ("" if route == "open" else f" ROUTE={route}")
        return f"CoRR is installed but not preprocessed, {dataset.root} has no images ({verb})"
    return f"CoRR is not installed in {bids.corr_raw(data)} (make corr, then make preprocess)"
