"""What the page cites, as text and as BibTeX."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reference:
    """A work; authors are `Family, Given`, or one name alone."""

    key: str
    cited: str  # in running text
    authors: tuple[str, ...]
    title: str
    year: str
    link: str
    venue: str = ""
    volume: str = ""
    kind: str = "article"  # of BibTeX

    @property
    def text(self) -> str:
        """An entry of a list of references, without the link."""
        names = ", ".join(author.partition(",")[0] for author in self.authors)
        where = " ".join(filter(None, (self.venue, self.volume)))
        return f"{names}. {self.title}. {where}{', ' if where else ''}{self.year}."

    @property
    def bibtex(self) -> str:
        """The entry, in UTF-8; {{…}} keeps the capitals of a title and the name of a group."""
        where = {"article": "journal", "inproceedings": "booktitle"}.get(self.kind, "howpublished")
        doi = self.link.removeprefix("https://doi.org/")
        fields = {
            "author": " and ".join(a if "," in a else f"{{{a}}}" for a in self.authors),
            "title": f"{{{self.title}}}",
            where: self.venue,
            "volume": self.volume,
            "year": self.year,
            **({"doi": doi} if doi != self.link else {"url": self.link}),
        }
        lines = (f"  {name} = {{{value}}}" for name, value in fields.items() if value)
        return f"@{self.kind}{{{self.key},\n" + ",\n".join(lines) + "\n}"


MORPHBITS = Reference(
    "morphbits",
    "The morphbits developers, 2026",
    ("The morphbits developers",),
    "morphbits: how many bits of a brain registration are significant?",
    "2026",
    "",
    "software",
    kind="misc",
)
STUDY = Reference(
    "gonzalezpepe2023",
    "Gonzalez Pepe et al., 2023",
    (
        "Gonzalez Pepe, Inés",
        "Sivakolunthu, Vinuyan",
        "Park, Hae Lang",
        "Chatelain, Yohan",
        "Glatard, Tristan",
    ),
    "Numerical Uncertainty of Convolutional Neural Networks Inference for Structural Brain MRI"
    " Analysis",
    "2023",
    "https://doi.org/10.1007/978-3-031-44336-7_7",
    "Uncertainty for Safe Utilization of Machine Learning in Medical Imaging (UNSURE)",
    kind="inproceedings",
)
INTERVALS = Reference(
    "sohier2021",
    "Sohier et al., 2021",
    (
        "Sohier, Devan",
        "de Oliveira Castro, Pablo",
        "Févotte, François",
        "Lathuilière, Bruno",
        "Petit, Eric",
        "Jamond, Olivier",
    ),
    "Confidence Intervals for Stochastic Arithmetic",
    "2021",
    "https://doi.org/10.1145/3432184",
    "ACM Transactions on Mathematical Software",
    "47",
)
SYNTHMORPH = Reference(
    "hoffmann2022",
    "Hoffmann et al., 2022",
    (
        "Hoffmann, Malte",
        "Billot, Benjamin",
        "Greve, Douglas N.",
        "Iglesias, Juan Eugenio",
        "Fischl, Bruce",
        "Dalca, Adrian V.",
    ),
    "SynthMorph: Learning Contrast-Invariant Registration Without Acquired Images",
    "2022",
    "https://doi.org/10.1109/TMI.2021.3116879",
    "IEEE Transactions on Medical Imaging",
    "41",
)
JOINT = Reference(
    "hoffmann2024",
    "Hoffmann et al., 2024",
    (
        "Hoffmann, Malte",
        "Hoopes, Andrew",
        "Greve, Douglas N.",
        "Fischl, Bruce",
        "Dalca, Adrian V.",
    ),
    "Anatomy-aware and acquisition-agnostic joint registration with SynthMorph",
    "2024",
    "https://doi.org/10.1162/imag_a_00197",
    "Imaging Neuroscience",
    "2",
)
CORRELATION = Reference(
    "avants2008",
    "Avants et al., 2008",
    ("Avants, Brian B.", "Epstein, Charles L.", "Grossman, Murray", "Gee, James C."),
    "Symmetric diffeomorphic image registration with cross-correlation",
    "2008",
    "https://doi.org/10.1016/j.media.2007.06.004",
    "Medical Image Analysis",
    "12",
)
VERROU = Reference(
    "fevotte2016",
    "Févotte and Lathuilière, 2016",
    ("Févotte, François", "Lathuilière, Bruno"),
    "VERROU: a CESTAC evaluation without recompilation",
    "2016",
    "https://github.com/edf-hpc/verrou",
    "International Symposium on Scientific Computing, Computer Arithmetics and Verified Numerics"
    " (SCAN)",
    kind="inproceedings",
)
CORR = Reference(
    "zuo2014",
    "Zuo et al., 2014",
    ("Zuo, Xi-Nian", "The Consortium for Reliability and Reproducibility (CoRR)"),
    "An open science resource for establishing reliability and reproducibility in functional"
    " connectomics",
    "2014",
    "https://doi.org/10.1038/sdata.2014.49",
    "Scientific Data",
    "1",
)
TEMPLATE = Reference(
    "fonov2011",
    "Fonov et al., 2011",
    (
        "Fonov, Vladimir",
        "Evans, Alan C.",
        "Botteron, Kelly",
        "Almli, C. Robert",
        "McKinstry, Robert C.",
        "Collins, D. Louis",
    ),
    "Unbiased average age-appropriate atlases for pediatric studies",
    "2011",
    "https://doi.org/10.1016/j.neuroimage.2010.07.033",
    "NeuroImage",
    "54",
)
RATIOS = Reference(
    "chatelain2026",
    "Chatelain et al., 2026",
    (
        "Chatelain, Yohan",
        "Sokołowski, Andrzej",
        "Sharp, Madeleine",
        "Poline, Jean-Baptiste",
        "Glatard, Tristan",
    ),
    "The practical impact of numerical variability on structural MRI measures of Parkinson's"
    " disease",
    "2026",
    "https://doi.org/10.64898/2026.01.09.698203",
    "bioRxiv",
)
POWER = Reference(
    "power2012",
    "Power et al., 2012",
    (
        "Power, Jonathan D.",
        "Barnes, Kelly A.",
        "Snyder, Abraham Z.",
        "Schlaggar, Bradley L.",
        "Petersen, Steven E.",
    ),
    "Spurious but systematic correlations in functional connectivity MRI networks arise from"
    " subject motion",
    "2012",
    "https://doi.org/10.1016/j.neuroimage.2011.10.018",
    "NeuroImage",
    "59",
)
JENKINSON = Reference(
    "jenkinson1999",
    "Jenkinson, 1999",
    ("Jenkinson, Mark",),
    "Measuring Transformation Error by RMS Deviation",
    "1999",
    "https://www.fmrib.ox.ac.uk/datasets/techrep/tr99mj1/tr99mj1/index.html",
    "FMRIB Technical Report TR99MJ1",
    kind="misc",
)
ALL = (
    *(STUDY, INTERVALS, SYNTHMORPH, JOINT, CORRELATION, VERROU, CORR, TEMPLATE),
    *(RATIOS, POWER, JENKINSON),
)
