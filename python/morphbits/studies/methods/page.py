"""Bits, millimetres and Dice of several experiments on the same images, in one page.

Each experiment is one method (a network, a classical registration). Only experiments whose images,
engine, mode and seed agree are compared.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure as Canvas

from morphbits.errors import UserError
from morphbits.files import write_atomically
from morphbits.report import html
from morphbits.report.experiment import Experiment, select
from morphbits.report.figures import COLOURS, GREY, STYLE, Figure, svg
from morphbits.report.tables import Table, number, small

# what must agree, or the numbers would compare something else than methods
SAME = ("engine", "mode", "fixed", "precision", "subnormals")
TISSUE = "brain"


@dataclass(frozen=True)
class Method:
    """One experiment's numbers, a value for each subject."""

    name: str
    n: int
    image_bits: list[float]
    warp_bits: list[float]  # both: mean over the brain
    spread_mm: list[float]  # standard deviation of the warp over samples, mean over the brain
    dice: list[float]  # with the fixed image's tissues, mean over tissues
    dice_before: list[float]
    seconds: float  # of one sample


def build(experiments: Sequence[Experiment], folder: Path) -> Path:
    """Write methods.html and methods.svg into a folder; returns the page."""
    methods = compare(experiments)
    figure = draw(methods)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / f"methods{figure.extension}", figure.content)
    page = html.render(
        "studies/methods/page.html",
        methods=methods,
        figure=figure,
        table=table(methods),
        subjects=experiments[0].subjects,
        configuration=experiments[0].configuration,
        names=[experiment.name for experiment in experiments],
    )
    path = folder / "methods.html"
    write_atomically(path, page.encode())
    return path


def compare(experiments: Sequence[Experiment]) -> list[Method]:
    """The numbers of each; a UserError where they are not of the same images and perturbation."""
    first = experiments[0]
    for other in experiments[1:]:
        differing = [
            key for key in SAME if first.configuration.get(key) != other.configuration.get(key)
        ]
        if _moving(first) != _moving(other):
            differing.append("moving images")
        if differing:
            raise UserError(
                f"{first.name} and {other.name} differ in {', '.join(differing)}: methods are "
                "compared on the same images, perturbed alike"
            )
    return [_method(experiment) for experiment in experiments]


def _moving(experiment: Experiment) -> dict[str, str]:
    return {r.subject.entities: r.configuration["moving"] for r in experiment.perturbed}


def _method(experiment: Experiment) -> Method:
    subjects = experiment.subjects
    spread = select(experiment.variability, quantity="warp", unit="mm", tissue=TISSUE)
    overlap = select(experiment.accuracy, measure="dice")
    if not overlap:
        raise UserError(f"{experiment.name}: its dataset has no label maps, so there is no Dice")

    def dice(when: str) -> list[float]:
        return [
            statistics.fmean(row[when] for row in select(overlap, subject=subject))
            for subject in subjects
        ]

    files = experiment.perturbed[0].provenance["files"]
    return Method(
        Path(files["model"]).name.removesuffix(".h5"),
        min(experiment.counts),
        [experiment.bits("image", TISSUE)[subject]["mean"] for subject in subjects],
        [experiment.bits("warp", TISSUE)[subject]["mean"] for subject in subjects],
        [select(spread, subject=subject)[0]["mean"] for subject in subjects],
        dice("after"),
        dice("before"),
        statistics.median(r.provenance["seconds"] for r in experiment.perturbed),
    )


def draw(methods: Sequence[Method]) -> Figure:
    """Three panels; a dot for each subject, a line for the mean."""
    names = [method.name for method in methods]
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(3.4 + 1.9 * len(methods), 3.6), layout="constrained")
        bits, spread, dice = canvas.subplots(1, 3)
        for place, method in enumerate(methods):
            _dots(bits, place - 0.15, method.image_bits, COLOURS["image"])
            _dots(bits, place + 0.15, method.warp_bits, COLOURS["warp"])
            _dots(spread, place, method.spread_mm, COLOURS["warp"])
            _dots(dice, place - 0.15, method.dice_before, GREY)
            _dots(dice, place + 0.15, method.dice, COLOURS["image"])
        for axes, title in (
            (bits, "significant bits"),
            (spread, "spread of the warp, mm"),
            (dice, "Dice"),
        ):
            axes.set_title(title, fontsize=10.5)
            axes.set_xticks(range(len(names)), names)
            axes.set_xlim(-0.6, len(names) - 0.4)
        spread.set_yscale("log")
        bits.set_ylim(bottom=0)
        dice.set_ylim(0, 1)
        for axes, words in (
            (bits, (("moved image", COLOURS["image"]), ("warp", COLOURS["warp"]))),
            (dice, (("before", GREY), ("after", COLOURS["image"]))),
        ):
            marks = [axes.plot([], [], "o", color=colour)[0] for _, colour in words]
            axes.legend(
                marks,
                [text for text, _ in words],
                loc="upper center",
                bbox_to_anchor=(0.5, -0.08),  # below the axis, where no value lies
                ncols=2,
                columnspacing=0.8,
                handletextpad=0.1,
                frameon=False,
                fontsize=9,
            )
        said = "; ".join(
            f"{m.name}: image {number(statistics.fmean(m.image_bits))} bits, warp "
            f"{number(statistics.fmean(m.warp_bits))} bits, spread "
            f"{small(statistics.fmean(m.spread_mm))} mm, Dice {number(statistics.fmean(m.dice))}"
            for m in methods
        )
        return svg(canvas, f"Means over subjects. {said}.")


def _dots(axes: matplotlib.axes.Axes, place: float, values: Sequence[float], colour: str) -> None:
    axes.plot([place] * len(values), values, "o", color=colour, alpha=0.75, markersize=6)
    mean = statistics.fmean(values)
    axes.plot([place - 0.13, place + 0.13], [mean, mean], color=colour, linewidth=2)


def table(methods: Sequence[Method]) -> Table:
    """The figure's means, and what a sample costs."""
    return Table(
        caption="Means over subjects, in the fixed image's brain",
        header=[
            "method",
            "samples",
            "bits, moved image",
            "bits, warp",
            "spread of the warp (mm)",
            "Dice before",
            "Dice after",
            "seconds per sample",
        ],
        rows=[
            [
                method.name,
                str(method.n),
                number(statistics.fmean(method.image_bits)),
                number(statistics.fmean(method.warp_bits)),
                small(statistics.fmean(method.spread_mm)),
                number(statistics.fmean(method.dice_before), 3),
                number(statistics.fmean(method.dice), 3),
                number(method.seconds, 1),
            ]
            for method in methods
        ],
    )
