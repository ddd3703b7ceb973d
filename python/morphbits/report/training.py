"""The course of a training: loss and accuracy over its steps, from the files beside the model."""

from __future__ import annotations

import csv
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure as Canvas

from morphbits.report.figures import COLOURS, GREY, STYLE


def read_log(path: Path) -> dict[str, np.ndarray]:
    """The columns of a training's log.csv or accuracy.csv, each (rows,)."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}


def plot_loss(folder: Path) -> Path:
    """Draw loss.png in a training's folder: every step, the mean of each epoch, and the distance
    to the true warp of phantoms that it has not seen."""
    log, accuracy = (read_log(folder / name) for name in ("log.csv", "accuracy.csv"))
    epochs = np.unique(log["epoch"])
    middles = [log["step"][log["epoch"] == epoch].mean() for epoch in epochs]
    steps = len(log["step"]) / len(epochs)
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(7.2, 5.6), layout="constrained")
        loss, rough, distance = canvas.subplots(3, 1, sharex=True, height_ratios=(2, 1, 1))
        for axes, name, colour in (
            (loss, "loss", COLOURS["image"]),
            (rough, "roughness", COLOURS["warp"]),
        ):
            means = [log[name][log["epoch"] == epoch].mean() for epoch in epochs]
            axes.plot(log["step"], log[name], color=GREY, alpha=0.4, linewidth=0.7)
            axes.plot(middles, means, color=colour, marker="o", markersize=3)
            axes.set_ylabel(name)
        errors = accuracy["true_warp_error_mm"]
        distance.plot(accuracy["epoch"] * steps, errors, color="#111827", marker="o", markersize=3)
        for place, side in ((0, "left"), (-1, "right")):
            at = accuracy["epoch"][place] * steps, errors[place]
            text = f"{errors[place]:.2f}"
            distance.annotate(text, at, (0, 5), textcoords="offset points", ha=side)
        distance.set(ylabel="mm", xlabel="step")
        distance.margins(y=0.35)
        loss.set_title("Training: each step (grey), mean of each epoch", fontsize=10.5)
        distance.set_title(
            "Phantoms that it has not seen: distance to the true warp", fontsize=10.5
        )
        path = folder / "loss.png"
        canvas.savefig(path, dpi=120)
    return path
