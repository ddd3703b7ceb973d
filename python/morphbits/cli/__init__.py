"""The command `morphbits`: a table of verbs, each in a module that is imported when it is used.

    morphbits register --help

A verb's module has a docstring, which `--help` prints, and a function `main`, which reads
`sys.argv` and returns the exit status. To add a verb, write its module and name it in `VERBS`.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import NamedTuple

from morphbits import __version__, choices
from morphbits.errors import UserError, run_cli


class Verb(NamedTuple):
    """What `morphbits --help` prints of a verb, and where it is."""

    summary: str
    module: str  # below morphbits; its function `main` is called


GROUPS: dict[str, dict[str, Verb]] = {
    "Images and warps": {
        "register": Verb("register one image to another, perturbed or not", "cli.register"),
        "warp": Verb("apply a saved warp to an image or a label map", "cli.warp"),
        "evaluate": Verb("overlap and distance of label maps, error of warps", "cli.evaluate"),
        "normalize": Verb("scale the images of a folder to values from 0 to 1", "cli.normalize"),
    },
    "Experiments": {
        "inference": Verb("make the samples of an experiment, then its report", "cli.inference"),
        "significance": Verb("significant bits of an experiment: maps, CSV", "cli.significance"),
        "report": Verb("the HTML page of an experiment", "cli.report"),
        "archive": Verb("an experiment as a folder to publish: BIDS, RO-Crate", "cli.archive"),
        "verify": Verb("check an experiment's files, make some samples again", "cli.verify"),
        "layers": Verb("where bits are lost; one-run, flips, precision, orders", "cli.layers"),
        "stability-test": Verb("do two results differ beyond rounding?", "cli.stability_test"),
        "machines": Verb("what moves a result: kernels, threads, instructions", "cli.machines"),
        "compare": Verb("compare the native engine with Verrou", "cli.compare"),
        "methods": Verb("compare registration methods on the same images", "cli.methods"),
        "localize": Verb("which part loses the bits, by Verrou", "cli.localize"),
        "paper": Verb("the published study, from CoRR's images to its table", "cli.paper"),
        "verrou-sanity": Verb("check that Verrou perturbs what it should", "cli.verrou_sanity"),
    },
    "Other programs": {
        "run": Verb("repeat any PyTorch program under perturbation and compare", "cli.run"),
    },
    "Training": {
        "train": Verb("train a model in one process", "cli.train"),
        "train-ddp": Verb("one of several training processes, under torchrun", "cli.train_ddp"),
        "training-stability": Verb("repeat a training and compare", "cli.training_stability"),
    },
    "Data and models": {
        "phantom": Verb("make synthetic subjects with a known registration", "cli.phantom"),
        "corr": Verb("get the study's CoRR images by DataLad", "cli.corr"),
        "preprocess": Verb("CoRR's raw heads into brains on the template", "cli.preprocess"),
        "models": Verb("download the published SynthMorph models", "models.download"),
        "make-model": Verb("write an untrained network", "cli.make_model"),
    },
}  # fmt: skip
VERBS = {name: verb for group in GROUPS.values() for name, verb in group.items()}
TENSORFLOW = ("tensorflow", "keras", "tf_keras", "voxelmorph", "neurite", "pystrum")


def usage() -> str:
    """What `morphbits --help` prints."""
    groups = (
        f"{heading}:\n" + "".join(f"  {name:<20}{verb.summary}\n" for name, verb in verbs.items())
        for heading, verbs in GROUPS.items()
    )
    return (
        f"usage: morphbits VERB [OPTION]...\n       morphbits VERB --help\n\n"
        f"morphbits {__version__}: how many bits of a brain registration are significant?\n\n"
        + "\n".join(groups)
        + "\nAll verbs need packages of the extra `suite`: pip install 'morphbits[suite]'.\n"
        "--framework tensorflow and training with --labels also need 'morphbits[tensorflow]'.\n"
        "Verrou, Slurm and training in several processes need a clone of the repository, where\n"
        "`make` has the same verbs and more."
    )


def command(verb: str) -> list[str]:
    """The words that run a verb in another process, installed or not."""
    return [sys.executable, str(Path(__file__).parents[1]), verb]


def run(verb: str) -> int | None:
    """Run a verb on the words that follow it on the command line."""
    if verb not in VERBS:
        hint = choices.did_you_mean(verb, VERBS)
        raise UserError(f"there is no verb {verb}{hint}; morphbits --help lists them")
    sys.argv[:2] = [f"morphbits {verb}"]
    try:
        status: int | None = importlib.import_module(f"morphbits.{VERBS[verb].module}").main()
        return status
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package == "morphbits":
            raise
        extra = "tensorflow" if package in TENSORFLOW else "suite"
        raise UserError(
            f"morphbits {verb} needs the package {package}, which is not installed: "
            f"pip install 'morphbits[{extra}]'"
        ) from error


def main() -> None:
    """What the command `morphbits` runs."""
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help"):
        print(usage())
    elif words[0] == "--version":
        print(f"morphbits {__version__}")
    else:
        run_cli(lambda: run(words[0]))
