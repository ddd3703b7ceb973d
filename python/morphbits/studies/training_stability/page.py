"""The page of a study of training: what spread over trainings, in one file that opens offline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure as Canvas

from morphbits.files import csv_of, write_atomically
from morphbits.report import html
from morphbits.report.figures import STYLE, Figure, svg
from morphbits.report.tables import Table, number, small
from morphbits.stats.significance import FLOAT32_BITS, general_probability
from morphbits.studies.training_stability.trainings import ARMS, StabilityTables

# of Okabe and Ito: readable with any colour vision
ARM_COLOURS = dict(zip(ARMS, ("#6b7280", "#009E73", "#0072B2", "#D55E00"), strict=True))


def build(study: StabilityTables, folder: Path) -> Path:
    """Write report.html, its tables as CSV and its figures as SVG into the study's folder."""
    drawn = {"loss": loss(study), "weights": weights(study), "accuracy": accuracy(study)}
    files = {
        "loss.csv": study.loss,
        "weights.csv": study.weights,
        "registrations.csv": study.registrations,
        "ensembles.csv": study.ensembles,
    }
    for name, rows in files.items():
        write_atomically(folder / name, _csv(rows))
    (folder / "figures").mkdir(exist_ok=True)
    for name, figure in drawn.items():
        write_atomically(folder / "figures" / f"{name}{figure.extension}", figure.content)
    path = folder / "report.html"
    write_atomically(path, render(study, drawn, list(files)).encode())
    return path


def _csv(rows: Sequence[dict[str, Any]]) -> bytes:
    return csv_of({name: _cell(value) for name, value in row.items()} for row in rows)


def _cell(value: Any) -> Any:
    if isinstance(value, list):
        return " ".join(f"{v:.6g}" for v in value)
    return f"{value:.6g}" if isinstance(value, float) else value


def render(study: StabilityTables, drawn: dict[str, Figure], downloads: list[str]) -> str:
    """The page as HTML, with everything that it shows inside it."""
    return html.render(
        "studies/training_stability/page.html",
        study=study,
        figures=drawn,
        summary=summary_table(study),
        findings=findings(study),
        loss=loss_table(study),
        weights=weights_table(study),
        registrations=registrations_table(study),
        ensembles=ensembles_table(study),
        bits=FLOAT32_BITS,
        probability=general_probability(study.runs),
        downloads=downloads,
    )


def select(rows: Sequence[dict[str, Any]], **wanted: Any) -> list[dict[str, Any]]:
    """The rows that have these values."""
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def _mean(rows: Sequence[dict[str, Any]], column: str) -> float:
    return float(np.mean([row[column] for row in rows]))


def _last_loss(study: StabilityTables, arm: str) -> dict[str, Any]:
    return select(study.loss, arm=arm, epoch=study.recipe.epochs)[0]


def _last_bits(study: StabilityTables, arm: str) -> float:
    return _mean(select(study.weights, arm=arm, epoch=study.recipe.epochs), "mean")


def findings(study: StabilityTables) -> list[str]:
    """What the numbers say of rounding, compared with the other arms, in sentences."""
    rounding, seeds = (
        _mean(select(study.registrations, arm=arm), "warp_std_mm")
        for arm in ("rounding", "initialization")
    )
    shared = {arm: f"{_last_bits(study, arm):.1f}" for arm in ARMS}
    return [
        f"With every rounding random, the trained weights share {shared['rounding']} of "
        f"{FLOAT32_BITS} bits (mean over layers); with other first weights "
        f"{shared['initialization']}, with other data {shared['data']}.",
        f"A displacement in a held-out brain varies by {small(rounding)} mm between trainings "
        f"that differ only in their roundings, and by {small(seeds)} mm between trainings from "
        f"other initial weights: "
        f"a ratio of {rounding / seeds:.2g}.",
    ]


def summary_table(study: StabilityTables) -> Table:
    """One row per arm."""
    rows = []
    for arm in ARMS:
        last, registered = _last_loss(study, arm), select(study.registrations, arm=arm)
        rows.append(
            [
                arm,
                f"{small(last['mean'])} ± {small(last['std'])}",
                number(_last_bits(study, arm), 1),
                number(_mean(registered, "bits_mean"), 1),
                small(_mean(registered, "warp_std_mm")),
                f"{number(_mean(registered, 'mean_dice_gm'), 4)} ± "
                f"{small(_mean(registered, 'std_dice_gm'))}",
                f"{number(_mean(registered, 'mean_error_mm'), 3)} ± "
                f"{small(_mean(registered, 'std_error_mm'))}",
            ]
        )
    header = [
        "varied", "loss, last epoch", "bits of weights", "bits of warps", "spread of warps, mm",
        "Dice grey matter", "distance to the true warp, mm",
    ]  # fmt: skip
    return Table(f"{study.runs} trainings of each arm: mean ± standard deviation", header, rows)


def loss_table(study: StabilityTables) -> Table:
    """Mean and spread of the loss per epoch and arm."""
    header = ["epoch", *(text for _ in ARMS for text in ("mean", "std"))]
    rows = []
    for epoch in range(1, study.recipe.epochs + 1):
        found = [select(study.loss, arm=arm, epoch=epoch)[0] for arm in ARMS]
        rows.append([str(epoch), *(small(row[key]) for row in found for key in ("mean", "std"))])
    return Table("Loss of each epoch", header, rows, groups=[("", 1), *((arm, 2) for arm in ARMS)])


def weights_table(study: StabilityTables) -> Table:
    """Bits of each layer at the end, per arm."""
    layers = dict.fromkeys(row["layer"] for row in study.weights)
    rows = []
    for layer in layers:
        found = select(study.weights, layer=layer, epoch=study.recipe.epochs)
        rows.append([layer, *(number(row["mean"], 1) for row in found)])
    return Table("Mean significant bits of kernels after the last epoch", ["layer", *ARMS], rows)


def registrations_table(study: StabilityTables) -> Table:
    """Per arm and phantom."""
    header = ["varied", "phantom", "bits of warp", "5 %", "95 %", "spread, mm", "largest, mm"]
    header += ["Dice CSF", "Dice GM", "Dice WM", "error, mm"]
    rows = []
    for row in study.registrations:
        qualities = [
            f"{number(row[f'mean_{name}'], 3)} ± {small(row[f'std_{name}'])}"
            for name in ("dice_csf", "dice_gm", "dice_wm", "error_mm")
        ]
        numbers = [number(row[f"bits_{name}"], 1) for name in ("mean", "q05", "q95")]
        spread = [small(row["warp_std_mm"]), small(row["warp_largest_std_mm"])]
        rows.append([row["arm"], str(row["phantom"]), *numbers, *spread, *qualities])
    caption = "Warps in the brain: significant bits, spread over trainings; accuracy, mean ± std"
    return Table(caption, header, rows)


def ensembles_table(study: StabilityTables) -> Table:
    """The mean of single models, the best and the ensemble."""
    header = ["varied", "which", "Dice CSF", "Dice GM", "Dice WM", "distance to true warp, mm"]
    rows = []
    for row in study.ensembles:
        for what, words in (
            ("single", "one model (mean)"),
            ("best", "best of them"),
            ("ensemble", "ensemble"),
        ):
            names = ("dice_csf", "dice_gm", "dice_wm", "error_mm")
            rows.append([row["arm"], words, *(number(row[f"{what}_{n}"], 4) for n in names)])
    return Table("Accuracy, mean over held-out phantoms", header, rows, text_columns=2)


# ---------------------------------------------------------------------- figures


def loss(study: StabilityTables) -> Figure:
    """Loss per epoch with its range, and its relative spread."""
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(7.2, 5.0), layout="constrained")
        upper, lower = canvas.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        for arm in ARMS:
            rows, colour = select(study.loss, arm=arm), ARM_COLOURS[arm]
            epoch, mean, std, low, high = (
                np.array([row[key] for row in rows])
                for key in ("epoch", "mean", "std", "min", "max")
            )
            upper.fill_between(epoch, low, high, color=colour, alpha=0.2, linewidth=0)
            upper.plot(epoch, mean, color=colour, marker="o", markersize=3, label=arm)
            lower.plot(epoch, 100 * std / mean, color=colour, marker="o", markersize=3)
        upper.set_ylabel("loss")
        upper.legend(frameon=False)
        lower.set_ylabel("spread, %")
        lower.set_yscale("symlog", linthresh=1e-5)
        lower.set_xlabel("epoch")
        alt = "Loss of each epoch. " + "; ".join(
            f"{arm}: {_last_loss(study, arm)['mean']:.3g} ± {_last_loss(study, arm)['std']:.2g} "
            "in the last"
            for arm in ARMS
        )
        return svg(canvas, alt)


def weights(study: StabilityTables) -> Figure:
    """Bits of each layer and epoch, a panel per arm."""
    layers = list(dict.fromkeys(row["layer"] for row in study.weights))
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(9.6, 0.26 * len(layers) + 1.6), layout="constrained")
        for axes, arm in zip(canvas.subplots(1, len(ARMS), sharey=True), ARMS, strict=True):
            rows = select(study.weights, arm=arm)
            bits_LE = np.array([row["mean"] for row in rows]).reshape(-1, len(layers)).T
            shown = axes.imshow(bits_LE, cmap="cividis", vmin=0, vmax=FLOAT32_BITS, aspect="auto")
            axes.grid(False)
            axes.set_title(arm, fontsize=10.5)
            axes.set_xticks(range(study.recipe.epochs), range(1, study.recipe.epochs + 1))
            axes.set_yticks(range(len(layers)), layers)
            axes.set_xlabel("epoch")
        canvas.colorbar(shown, ax=canvas.axes, label="significant bits")
        alt = "Significant bits of weights per layer and epoch. " + "; ".join(
            f"{arm}: {_last_bits(study, arm):.1f} bits after the last epoch" for arm in ARMS
        )
        return svg(canvas, alt)


def accuracy(study: StabilityTables) -> Figure:
    """Dice of grey matter and distance to the true warp: mean ± spread per arm, and ensemble."""
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(7.2, 3.2), layout="constrained")
        for axes, name, words in zip(
            canvas.subplots(1, 2),
            ("dice_gm", "error_mm"),
            ("Dice, grey matter", "distance to the true warp, mm"),
            strict=True,
        ):
            for place, row in enumerate(study.ensembles):
                colour = ARM_COLOURS[row["arm"]]
                values = row[f"runs_{name}"]
                axes.plot([place] * len(values), values, "o", color=colour, alpha=0.6)
                axes.plot([place + 0.25], [row[f"ensemble_{name}"]], "x", color=colour)
            axes.set_xticks(range(len(ARMS)), ARMS, rotation=20)
            axes.set_xlim(-0.5, len(ARMS) - 0.5)
            axes.set_title(words, loc="left", fontsize=10.5)
        alt = "Accuracy on held-out phantoms. " + "; ".join(
            f"{row['arm']}: Dice {row['single_dice_gm']:.4f}, ensemble "
            f"{row['ensemble_dice_gm']:.4f}"
            for row in study.ensembles
        )
        return svg(canvas, alt)
