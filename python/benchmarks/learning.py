"""Learning curves: voxelmorph's own training, and this suite's with either Adam.

    make bench-learning

The same first weights, the same pairs (phantoms of 48³ voxels, one a step), loss (Dice and
gradient, λ = 1) and learning rate (1e-4), those of voxelmorph 0.2's SynthMorph script, on a small
network. Trainings by the same rule diverge, too, because their operations add in different orders:
a second training of voxelmorph, with TensorFlow's own kernels in place of oneDNN's, shows how far.
SynthMorph's own network is trained for one step only. Prints Markdown tables and writes them, with
a figure, to notes/benchmarks/.
"""

from __future__ import annotations

import contextlib
import csv
import io
import tempfile
from collections.abc import Iterable, Mapping, Sequence
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

NETWORKS = {
    "small": ((8, 16, 16, 16), (16, 16, 16, 16, 8, 8)),
    "SynthMorph": ((64,) * 4, (64,) * 6),
}
RATE, SEED, EPOCH = 1e-4, 1, 50
OURS = ("keras-adam", "torch-adam")
THEIRS = {"voxelmorph": "1", "voxelmorph again": "0"}  # TF_ENABLE_ONEDNN_OPTS
Curves = tuple[dict[str, list[float]], dict[tuple[str, int], np.ndarray]]
COLOURS = dict(zip((*THEIRS, *OURS), ("#111827", GREY, "#0072B2", "#D55E00"), strict=True))


def first_weights(network: str) -> dict[str, np.ndarray]:
    """As a training of this suite starts."""
    from morphbits.training.loop import FLOW_STD

    return init_weights(Architecture(*NETWORKS[network]), SEED, FLOW_STD)


def torch_curve(network: str, rule: str, steps: int, folder: str) -> list[float]:
    """The loss of each step; leaves weights after steps 1, 50, 100 … in a row."""
    from morphbits.training import RunConfig, TrainConfig, train

    enc, dec = (" ".join(map(str, widths)) for widths in NETWORKS[network])
    asked = TrainConfig(enc=enc, dec=dec, size="4mm", optimizer=rule, threads=1, seed=SEED)
    losses: list[float] = []
    for epochs, each in ((1, 1), (steps // EPOCH, EPOCH)):
        if epochs:
            recipe = replace(asked, epochs=epochs, steps=each)
            place = Path(folder) / f"steps of {each}"
            with contextlib.redirect_stdout(io.StringIO()):
                train(recipe, place, RunConfig(keep_every=1))
            for epoch in range(1, epochs + 1):
                values = vector(read_weights(place / f"epoch-{epoch:04d}.h5"))
                np.save(Path(folder) / f"step-{epoch * each}.npy", values)
            with (place / "log.csv").open(newline="") as file:
                losses = [float(row["loss"]) for row in csv.DictReader(file)]
    return losses


def tensorflow_curve(network: str, steps: int, folder: str) -> list[float]:
    """The same of voxelmorph's network, losses and optimizer."""
    from morphbits.synthesis import phantom_pairs

    model = reference(NETWORKS[network], 1, RATE)
    layers = {layer.name: layer for layer in model.layers}
    weights = first_weights(network)
    names = [layer.name for layer in Architecture(*NETWORKS[network]).convolutions()]
    for name in names:
        layers[name].set_weights([weights[f"{name}/{part}"] for part in ("kernel", "bias")])
    losses = []
    Path(folder).mkdir()
    for step in range(steps):
        pair = phantom_pairs.draw(SEED, step, "4mm")
        inputs = (pair.moving, pair.fixed, pair.moving_tissues, pair.fixed_tissues)
        losses.append(float(model.train_on_batch([x.movedim(1, -1).numpy() for x in inputs])))
        if step == 0 or (step + 1) % EPOCH == 0:
            values = [x.ravel() for name in names for x in layers[name].get_weights()]
            np.save(Path(folder) / f"step-{step + 1}.npy", np.concatenate(values))
    return losses


def trained(network: str, steps: int, folder: str, names: Iterable[str]) -> Curves:
    """The losses of each training, and where its weights are after steps 1, 50, 100 …, counted
    in learning rates from where all began."""
    start = vector(first_weights(network))
    losses, weights = {}, {}
    for name in names:
        place = f"{folder}/{network} {name}"
        if name in THEIRS:
            environment = ONE_THREAD | {"TF_ENABLE_ONEDNN_OPTS": THEIRS[name]}
            losses[name] = measured(
                tensorflow_curve, network, steps, place, environment=environment
            )
        else:
            losses[name] = measured(
                torch_curve, network, name, steps, place, environment=ONE_THREAD
            )
        for step in (1, *range(EPOCH, steps + 1, EPOCH)):
            weights[name, step] = (np.load(f"{place}/step-{step}.npy") - start) / RATE
    return losses, weights


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
    small = ", ".join(map(str, NETWORKS["small"]))
    report.add(
        f"Network {small}; pairs of {' x '.join(map(str, SHAPE))} voxels, the same for all; Dice "
        f"and gradient loss, learning rate {RATE:g}. Loss: mean over {EPOCH} steps. Weights: how "
        "far they have moved, and how far they are from voxelmorph's, root mean squares in "
        "learning rates. *voxelmorph again*: without oneDNN."
    )
    with tempfile.TemporaryDirectory() as folder:
        curves, weights = trained("small", arguments.epochs * EPOCH, folder, COLOURS)
        _, wide = trained("SynthMorph", 1, folder, ("voxelmorph", *OURS))
    first, *others = curves
    steps = [step for name, step in weights if name == first]
    moved = {key: size(x) for key, x in weights.items()}
    distant = {(n, s): size(weights[n, s] - weights[first, s]) for n in others for s in steps}
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
    first_steps = (f"{name} {size(x):.3g}" for (name, _), x in wide.items())
    report.add(
        "",
        "SynthMorph's own network (64 features) is moved by its first step, in learning rates: "
        f"{', '.join(first_steps)}.",
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
        distance.set(xlabel="step", ylabel="distance of weights to\nvoxelmorph's, learning rates")
        canvas.legend(*loss.get_legend_handles_labels(), loc="outside upper center", ncols=4)
        return svg(canvas, "learning curves")


def size(difference: np.ndarray) -> float:
    """Its root mean square."""
    return float(np.sqrt(np.mean(np.square(difference, dtype=np.float64))))


if __name__ == "__main__":
    run_cli(main)
