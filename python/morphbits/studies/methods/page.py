"""Bits, millimetres and Dice of several experiments on the same images, in one page.

Each experiment is one method: a network, a classical registration, another program. Only
experiments whose images, engine and mode agree are compared; another program has its own engine.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure as Canvas

from morphbits.errors import UserError
from morphbits.files import write_atomically
from morphbits.report import html
from morphbits.report.experiment import Experiment, read, select
from morphbits.report.figures import COLOURS, GREY, STYLE, Figure, svg
from morphbits.report.tables import MISSING, Table, median_of, number, small
from morphbits.samples.experiment import recorded_dataset
from morphbits.stats.significance import CONFIDENCE, general_probability
from morphbits.studies.methods import program_samples

# what must agree, or the numbers would compare something else than methods
SAME: tuple[str, ...] = ("engine", "mode", "fixed", "precision", "subnormals")
SAME_OF_PROGRAMS = ("mode", "fixed")  # the mode where it is known
TISSUE = "brain"


@dataclass(frozen=True)
class Method:
    """One experiment's numbers, a value for each subject."""

    name: str
    how: str  # engine and mode
    n: int
    image_bits: list[float]
    warp_bits: list[float]  # both: mean over the brain
    spread_mm: list[float]  # standard deviation of the warp over samples, mean over the brain
    dice: list[float]  # with the fixed image's tissues, mean over tissues
    dice_before: list[float]
    operations: float | None  # perturbed in one sample
    seconds: float | None  # of one sample
    is_program: bool  # another program, whose samples were not made by this suite


def read_all(results: Path, names: Sequence[str]) -> list[Experiment]:
    """Experiments by name; the second and later ones may be folders of another program's samples,
    of the first one's subjects."""
    experiments: list[Experiment] = []
    for name in names:
        if (results / name).is_dir() and any((results / name).glob("sample-*/sub-*/sample.json")):
            experiments.append(read(results, name))
        elif not Path(name).is_dir():
            experiments.append(read(results, name))  # which says what is missing
        elif not experiments:
            raise UserError(
                f"{name}: is a folder of another program's samples; name an experiment of this "
                "suite before it, whose subjects and fixed image it shares"
            )
        else:
            first = experiments[0]
            dataset = recorded_dataset(results, first.name)
            with tempfile.TemporaryDirectory() as work:
                experiments.append(
                    program_samples.read(Path(name), dataset, first.subjects, Path(work))
                )
    return experiments


def build(experiments: Sequence[Experiment], names: Sequence[str], folder: Path) -> Path:
    """Write methods.html and methods.svg into a folder; returns the page. names: how a user calls
    the experiments."""
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
        names=names,
        probability=general_probability,
        confidence=CONFIDENCE,
    )
    path = folder / "methods.html"
    write_atomically(path, page.encode())
    return path


def compare(experiments: Sequence[Experiment]) -> list[Method]:
    """The numbers of each; a UserError where they are not of the same images and perturbation."""
    first = experiments[0]
    for other in experiments[1:]:
        one, two = first.configuration, other.configuration
        keys = SAME
        if _is_program(other):
            keys = tuple(key for key in SAME_OF_PROGRAMS if key in two)
        differing = [key for key in keys if one.get(key) != two.get(key)]
        if _moving(first) != _moving(other):
            differing.append("moving images")
        if differing:
            raise UserError(
                f"{first.name} and {other.name} differ in {', '.join(differing)}: methods are "
                "compared on the same images, perturbed alike"
            )
    return [_method(experiment) for experiment in experiments]


def _is_program(experiment: Experiment) -> bool:
    """Whether its samples are another program's: no model of this suite made them."""
    return "model" not in experiment.configuration


def _moving(experiment: Experiment) -> dict[str, str]:
    return {r.subject.entities: r.configuration["moving"] for r in experiment.perturbed}


def _method(experiment: Experiment) -> Method:
    subjects = experiment.subjects
    spread = select(experiment.variability, quantity="warp", unit="mm", tissue=TISSUE)
    overlap = select(experiment.accuracy, measure="dice")
    if not overlap:
        why = (
            "its folder has no sample-ieee"
            if _is_program(experiment) and not experiment.of_sample("ieee")
            else "its dataset has no label maps"
        )
        raise UserError(f"{experiment.name}: {why}, so there is no Dice")

    def dice(when: str) -> list[float]:
        return [
            statistics.fmean(row[when] for row in select(overlap, subject=subject))
            for subject in subjects
        ]

    files = experiment.perturbed[0].provenance["files"]
    configuration = experiment.configuration
    return Method(
        Path(files["model"]).name.removesuffix(".h5"),
        ", ".join(filter(None, (configuration["engine"], configuration.get("mode")))),
        min(experiment.counts),
        [experiment.bits("image", TISSUE)[subject]["mean"] for subject in subjects],
        [experiment.bits("warp", TISSUE)[subject]["mean"] for subject in subjects],
        [select(spread, subject=subject)[0]["mean"] for subject in subjects],
        dice("after"),
        dice("before"),
        median_of(experiment.perturbed, "operations"),
        median_of(experiment.perturbed, "seconds"),
        _is_program(experiment),
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
        caption="Means over subjects, in the fixed image's brain; cost of one sample",
        header=[
            "method",
            "perturbed by",
            "samples",
            "bits, image",
            "bits, warp",
            "spread (mm)",
            "Dice before",
            "Dice after",
            "operations",
            "seconds",
        ],
        rows=[
            [
                method.name,
                method.how,
                str(method.n),
                number(statistics.fmean(method.image_bits)),
                number(statistics.fmean(method.warp_bits)),
                small(statistics.fmean(method.spread_mm)),
                number(statistics.fmean(method.dice_before), 3),
                number(statistics.fmean(method.dice), 3),
                MISSING if method.operations is None else small(method.operations),
                number(method.seconds, 1),
            ]
            for method in methods
        ],
        text_columns=2,
    )
