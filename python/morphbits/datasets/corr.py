"""The Consortium for Reliability and Reproducibility's scans (CoRR), where the user has them.

CoRR (Zuo et al. 2014, doi:10.1038/sdata.2014.49) is installed as it is distributed, raw:
`data/corr/RawDataBIDS/<SITE>/sub-X/ses-N/anat/sub-X_ses-N_run-1_T1w.nii.gz`. A registration
network needs more: brains extracted, aligned affinely to MNI305 and normalized. Those images are
looked for in `data/corr-preprocessed` (names: `morphbits.bids`), the fixed image in `data/models`.
"""

from __future__ import annotations

from pathlib import Path

from morphbits import bids


def lacking(data: Path) -> str | None:
    """What CoRR still needs before it can be registered, in words; None where it is ready."""
    dataset = bids.corr_dataset(data)
    if dataset.subjects():
        if dataset.fixed().is_file():
            return None
        return f"its fixed image {dataset.fixed()} is not there (make models)"
    if any(bids.corr_raw_images(data)):
        return f"CoRR is installed but not preprocessed, {dataset.root} has no images"
    return f"CoRR is not installed in {bids.corr_raw(data)}"
