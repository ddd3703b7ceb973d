"""A paragraph on the methods of an experiment, to paste, made from its configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from morphbits.config import DEMO_MODEL, ExperimentConfig, labelled
from morphbits.datasets import corr
from morphbits.models import classical
from morphbits.models.mri_synthmorph import FILES as SYNTHMORPH_FILES
from morphbits.report import references
from morphbits.report.experiment import Experiment
from morphbits.report.references import Reference
from morphbits.stats.significance import CONFIDENCE, general_probability
from morphbits.wording import numbers

FRAMEWORKS = {"torch": "PyTorch", "tensorflow": "TensorFlow"}
# what happened to every rounding, by mode
ROUNDING = {
    "random": "every rounding went up or down at random instead of to the nearest number",
    "nearness": "every rounding went up or down at random, more often to the nearer number",
    "upward": "every rounding went up",
    "downward": "every rounding went down",
    "toward_zero": "every rounding went towards zero",
    "nearest": "every rounding went to the nearest number, as usual: nothing was perturbed",
}
SAID = ("engine", "framework", "mode", "seed")  # options that the sentences name themselves


@dataclass(frozen=True)
class Methods:
    """The paragraph, and the works that it cites."""

    text: str
    cited: tuple[Reference, ...]

    @property
    def bibtex(self) -> str:
        """Entries of the works that it cites."""
        return "\n\n".join(reference.bibtex for reference in self.cited) + "\n"


def write(experiment: Experiment) -> Methods:
    """The methods of an experiment, from its configuration and the record of its first sample."""
    configuration, facts = experiment.configuration, experiment.perturbed[0].provenance
    files, versions = facts.get("files", {}), configuration.get("versions", {})

    def version(name: str, distribution: str) -> str:
        return f"{name} {versions[distribution]}" if distribution in versions else name

    images, of_images = _images(experiment)
    model, of_model = _model(files.get("model", ""), configuration.get("model", ""))
    engine, of_engine = _engine(configuration)
    framework = configuration.get("framework", "torch")
    options = labelled(ExperimentConfig, configuration)
    told = [
        f"{label}: {value}"
        for name, (label, value) in options.items()
        if name not in SAID and value not in (None, "", False)
    ]
    support = ", ".join(f"{general_probability(n):.2f} (n = {n})" for n in experiment.counts)
    threads = facts.get("threads", 1)
    sentences = [
        f"{images} registered to the fixed image (space {experiment.space}) by {model}, computed"
        f" in {version(FRAMEWORKS.get(framework, framework), framework)}.",
        f"With {version('morphbits', 'morphbits')} ({references.MORPHBITS.cited}), each"
        f" registration was repeated {numbers(experiment.counts)} times. {engine}.",
        f"Options: {'; '.join(told)}." if told else "",
        "For each voxel of the registered image and of the warp, the number of significant bits"
        " was computed by the general method of significantdigits"
        f" ({references.INTERVALS.cited}): the largest k for which every sample deviates from the"
        " mean of the samples by at most 2^−k, relative to that mean, in float32. Voxels that are"
        " zero in every sample were excluded. This follows an earlier study of numerical"
        f" uncertainty ({references.STUDY.cited}).",
        f"At {100 * CONFIDENCE:.0f} % confidence, the next sample has as many bits with a"
        f" probability of {support}.",
        f"The processor was {facts.get('cpu', {}).get('name', 'not recorded')}; each registration"
        f" used {threads} thread{'' if threads == 1 else 's'}.",
    ]
    cited = (*of_images, *of_model, references.MORPHBITS, *of_engine)
    return Methods(
        " ".join(filter(None, sentences)), (*cited, references.INTERVALS, references.STUDY)
    )


def _images(experiment: Experiment) -> tuple[str, tuple[Reference, ...]]:
    n = len(experiment.subjects)
    s, were = ("", "was") if n == 1 else ("s", "were")
    if experiment.dataset.startswith("phantom-"):
        template = references.TEMPLATE
        return f"{n} phantom{s} made of the MNI152 template ({template.cited}) {were}", (template,)
    if experiment.dataset in corr.ROUTES:
        route = corr.ROUTES[experiment.dataset]
        text = f"{n} preprocessed ({route} route) T1-weighted image{s} of CoRR"
        return f"{text} ({references.CORR.cited}) {were}", (references.CORR,)
    return f"{n} image{s} of the dataset {experiment.dataset} {were}", ()


def _model(file: str, checksum: str) -> tuple[str, tuple[Reference, ...]]:
    path = Path(file)
    if path.name in SYNTHMORPH_FILES:
        joint = references.JOINT
        return f"the model {path.name} of FreeSurfer's SynthMorph ({joint.cited})", (joint,)
    named = f"{path.name}, {checksum[:19]}…" if checksum.startswith("sha256:") else path.name
    if ":" in path.name:
        return f"the network {named}", ()
    if path.name == classical.NAME:
        similarity = references.CORRELATION
        text = (
            "the classical registration of morphbits, affine and deformable, by gradient descent"
        )
        return f"{text} on local normalized cross-correlation ({similarity.cited})", (similarity,)
    synthmorph = references.SYNTHMORPH
    text = "a network of SynthMorph's architecture"
    if path.parts[-3:] == DEMO_MODEL.parts[-3:]:
        text = "the demonstration model of morphbits, which has SynthMorph's architecture"
    return f"{text} ({synthmorph.cited}; {named})", (synthmorph,)


def _engine(configuration: dict[str, Any]) -> tuple[str, tuple[Reference, ...]]:
    mode = configuration.get("mode", "nearest")
    if configuration["engine"] == "ieee":
        return "Nothing was perturbed", ()
    cited = (references.VERROU,) if configuration["engine"] == "verrou" else ()
    who = f"Verrou ({references.VERROU.cited})" if cited else "Its native engine"
    return f"{who} perturbed the floating-point operations: {ROUNDING[mode]}", cited
