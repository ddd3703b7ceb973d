"""The loss of a training over its steps, from the log beside the model."""

from __future__ import annotations

import csv
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure as Canvas

from morphbits.report.figures import COLOURS, GREY, STYLE


def read_log(path: Path) -> dict[str, np.ndarray]:
    """The columns of a training's log.csv, each (steps,)."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}


def plot_loss(folder: Path) -> Path:
    """Draw loss.png in a training's folder: every step, and the mean of each epoch."""
    log = read_log(folder / "log.csv")
    epochs = np.unique(log["epoch"])
    middles = [log["step"][log["epoch"] == epoch].mean() for epoch in epochs]
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(7.2, 4.4), layout="constrained")
        loss, rough = canvas.subplots(2, 1, sharex=True, height_ratios=(2, 1))
        for axes, name, colour in (
            (loss, "loss", COLOURS["image"]),
            (rough, "roughness", COLOURS["warp"]),
        ):
            means = [log[name][log["epoch"] == epoch].mean() for epoch in epochs]
            axes.plot(log["step"], log[name], color=GREY, alpha=0.4, linewidth=0.7)
            axes.plot(middles, means, color=colour, marker="o", markersize=3)
            axes.set_ylabel(name)
        loss.set_title("Training: each step (grey), mean of each epoch", fontsize=10.5)
        rough.set_xlabel("step")
        path = folder / "loss.png"
        canvas.savefig(path, dpi=120)
    return path
