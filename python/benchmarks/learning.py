"""Learning curves: voxelmorph's own training, and this suite's with either Adam.

    make bench-learning

The same first weights, the same pairs (phantoms of 48³ voxels, one a step), loss (Dice and
gradient, λ = 1) and learning rate (1e-4), those of voxelmorph 0.2's SynthMorph script, on a small
network. Two trainings of the same rule part too, by the order in which their operations add: how
far, a second training of voxelmorph's tells, with TensorFlow's own kernels in place of oneDNN's.
Prints a Markdown table and writes it, with a figure, to notes/benchmarks/.
"""

from __future__ import annotations

import contextlib
import csv
import io
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure as Canvas

from benchmarks.harness import Report, measured, note, processor
from benchmarks.training import ONE_THREAD, SHAPE, reference
from morphbits import config
from morphbits.errors import run_cli
from morphbits.models.weights import Architecture, init_weights, read_weights
from morphbits.report.figures import GREY, STYLE, Figure, svg

ENC, DEC = (8, 16, 16, 16), (16, 16, 16, 16, 8, 8)
RATE, SEED, EPOCH = 1e-4, 1, 50
OURS = ("keras-adam", "torch-adam")
THEIRS = {"voxelmorph": "1", "voxelmorph again": "0"}  # TF_ENABLE_ONEDNN_OPTS
COLOURS = dict(zip((*THEIRS, *OURS), ("#111827", GREY, "#0072B2", "#D55E00"), strict=True))


def first_weights() -> dict[str, np.ndarray]:
    """As a training of this suite starts."""
    from morphbits.training.loop import FLOW_STD

    return init_weights(Architecture(ENC, DEC), SEED, FLOW_STD)


def torch_curve(rule: str, epochs: int, folder: str) -> list[float]:
    """The loss of each step; leaves models after steps 1, 50, 100 …"""
    from morphbits.training import RunConfig, TrainConfig, train

    widths = {"enc": " ".join(map(str, ENC)), "dec": " ".join(map(str, DEC))}
    asked = TrainConfig(**widths, size="4mm", optimizer=rule, threads=1, seed=SEED)  # type: ignore[arg-type]
    with contextlib.redirect_stdout(io.StringIO()):
        for name, length in (("one", (1, 1)), ("all", (epochs, EPOCH))):
            recipe = replace(asked, epochs=length[0], steps=length[1])
            train(recipe, Path(folder) / rule / name, RunConfig(keep_every=1))
    with (Path(folder) / rule / "all" / "log.csv").open(newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def tensorflow_curve(epochs: int, folder: str) -> list[float]:
    """The same of voxelmorph's network, losses and optimizer; leaves weights in a row."""
    from morphbits.synthesis import phantom_pairs

    model = reference((ENC, DEC), 1, RATE)
    layers = {layer.name: layer for layer in model.layers}
    weights = first_weights()
    names = [layer.name for layer in Architecture(ENC, DEC).convolutions()]
    for name in names:
        layers[name].set_weights([weights[f"{name}/{part}"] for part in ("kernel", "bias")])
    losses = []
    for step in range(epochs * EPOCH):
        pair = phantom_pairs.draw(SEED, step, "4mm")
        inputs = (pair.moving, pair.fixed, pair.moving_tissues, pair.fixed_tissues)
        losses.append(float(model.train_on_batch([x.movedim(1, -1).numpy() for x in inputs])))
        if step == 0 or (step + 1) % EPOCH == 0:
            values = [x.ravel() for name in names for x in layers[name].get_weights()]
            Path(folder).mkdir(exist_ok=True)
            np.save(Path(folder) / f"step-{step + 1}.npy", np.concatenate(values))
    return losses


def vector(weights: dict[str, np.ndarray]) -> np.ndarray:
    """All weights in a row."""
    return np.concatenate([x.ravel() for x in weights.values()])


def main() -> None:
    parser = config.parser(__doc__)
    parser.add_argument(
        "--epochs", type=config.whole(1), default=10, help=f"of {EPOCH} steps each"
    )
    parser.add_argument("--output", type=Path, help="Markdown file (default: notes/benchmarks/…)")
    arguments = parser.parse_args()
    report = Report(
        arguments.output or note("learning", processor()),
        f"Learning curves, this suite and voxelmorph, {processor()}",
        "make bench-learning",
        *("torch", "tensorflow-cpu", "voxelmorph"),
    )
    report.add(
        f"Network {ENC}, {DEC}; pairs of {' x '.join(map(str, SHAPE))} voxels, the same for all; "
        f"Dice and gradient loss, learning rate {RATE:g}. Loss: mean over {EPOCH} steps. Weights: "
        "how far they have moved, and how far they are from voxelmorph's, root mean squares in "
        "learning rates. *voxelmorph again*: without oneDNN."
    )
    steps = [1, *range(EPOCH, arguments.epochs * EPOCH + 1, EPOCH)]
    with tempfile.TemporaryDirectory() as folder:
        curves, weights = {}, {}
        for name, one_dnn in THEIRS.items():
            place = Path(folder) / name
            curves[name] = measured(
                tensorflow_curve,
                arguments.epochs,
                str(place),
                environment=ONE_THREAD | {"TF_ENABLE_ONEDNN_OPTS": one_dnn},
            )
            for step in steps:
                weights[name, step] = np.load(place / f"step-{step}.npy")
        for name in OURS:
            curves[name] = measured(
                torch_curve, name, arguments.epochs, folder, environment=ONE_THREAD
            )
            for step in steps:
                file = "one/model.h5" if step == 1 else f"all/epoch-{step // EPOCH:04d}.h5"
                weights[name, step] = vector(read_weights(Path(folder) / name / file))
    start, (first, *others) = vector(first_weights()), curves
    moved = {key: _size(x - start) for key, x in weights.items()}
    distant = {(n, s): _size(weights[n, s] - weights[first, s]) for n in others for s in steps}
    report.table(
        *("steps", *(f"loss, {name}" for name in curves), *(f"moved, {name}" for name in curves)),
        *(f"distance, {name}" for name in others),
    )
    for step in steps:
        block = slice(max(0, step - EPOCH), step)
        report.row(
            f"{step}",
            *(f"{np.mean(curve[block]):.4f}" for curve in curves.values()),
            *(f"{moved[name, step]:.3g}" for name in curves),
            *(f"{distant[name, step]:.3g}" for name in others),
        )
    picture = report.path.with_suffix(".svg")
    picture.write_bytes(draw(curves, distant, steps).content)
    report.add("", f"![Loss, and distance of weights, by step]({picture.name})")


def draw(
    curves: Mapping[str, Sequence[float]],
    distant: Mapping[tuple[str, int], float],
    steps: list[int],
) -> Figure:
    """Loss of each training, means over ten steps; and distance of weights to voxelmorph's."""
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(7.2, 5.2), layout="constrained")
        loss, distance = canvas.subplots(2, 1, sharex=True)
        for name, curve in curves.items():
            means = np.reshape(curve, (-1, 10)).mean(1)
            style = {"color": COLOURS[name], "label": name, "linewidth": 1.4}
            loss.plot(np.arange(len(means)) * 10 + 5, means, **style)
            if (name, 1) in distant:
                distance.plot(steps, [distant[name, step] for step in steps], marker="o", **style)
        loss.set_ylabel("loss")
        loss.legend(frameon=False, ncols=2)
        distance.set(xlabel="step", ylabel="distance of weights to\nvoxelmorph's, learning rates")
        return svg(canvas, "learning curves")


def _size(difference: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(difference, dtype=np.float64)))) / RATE


if __name__ == "__main__":
    run_cli(main)
