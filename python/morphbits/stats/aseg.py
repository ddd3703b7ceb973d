"""Names of FreeSurfer's labels: from its colour table or, without FreeSurfer, the common ones.

The numbers of `aseg.mgz`, which recon-all, SAMSEG and SynthSeg share, are facts of
FreeSurferColorLUT.txt (https://surfer.nmr.mgh.harvard.edu/fswiki/FsTutorial/AnatomicalROI/FreeSurferColorLUT).
Names of cortical parcels (1001 …) need the colour table itself.
"""

from __future__ import annotations

import os
from pathlib import Path

_SIDES = {  # left, right
    "Cerebral-White-Matter": (2, 41),
    "Cerebral-Cortex": (3, 42),
    "Lateral-Ventricle": (4, 43),
    "Inf-Lat-Vent": (5, 44),
    "Cerebellum-White-Matter": (7, 46),
    "Cerebellum-Cortex": (8, 47),
    "Thalamus": (10, 49),
    "Caudate": (11, 50),
    "Putamen": (12, 51),
    "Pallidum": (13, 52),
    "Hippocampus": (17, 53),
    "Amygdala": (18, 54),
    "Accumbens-area": (26, 58),
    "VentralDC": (28, 60),
    "vessel": (30, 62),
    "choroid-plexus": (31, 63),
}
_MIDDLE = {
    14: "3rd-Ventricle",
    15: "4th-Ventricle",
    16: "Brain-Stem",
    24: "CSF",
    72: "5th-Ventricle",
    77: "WM-hypointensities",
    80: "non-WM-hypointensities",
    85: "Optic-Chiasm",
    251: "CC_Posterior",
    252: "CC_Mid_Posterior",
    253: "CC_Central",
    254: "CC_Mid_Anterior",
    255: "CC_Anterior",
}
COMMON = _MIDDLE | {
    number: f"{side}-{name}"
    for name, pair in _SIDES.items()
    for side, number in zip(("Left", "Right"), pair, strict=True)
}
_SIGNS = ("aseg", "aparc", "samseg", "synthseg")


def is_freesurfers(path: Path) -> bool:
    """Whether a label map is FreeSurfer's, by its name or by a folder `freesurfer` above it."""
    return "freesurfer" in path.parts or any(sign in path.name.lower() for sign in _SIGNS)


def names() -> dict[int, str]:
    """Names by label: the common ones, and those of $FREESURFER_HOME/FreeSurferColorLUT.txt where
    that file exists."""
    home = os.environ.get("FREESURFER_HOME")
    table = Path(home, "FreeSurferColorLUT.txt") if home else None
    if table is None or not table.is_file():
        return COMMON
    found = dict(COMMON)
    for line in table.read_text(encoding="utf-8", errors="replace").splitlines():
        number, name, *_ = [*line.split()[:2], "", ""]
        if number.isdigit() and name:
            found[int(number)] = name
    return found
