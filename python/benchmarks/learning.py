"""Learning curves: voxelmorph's own training, and this suite's with either Adam.

    make bench-learning

The same first weights, the same pairs (phantoms of 48³ voxels, one a step), loss (Dice and
gradient, λ = 1) and learning rate (1e-4), those of voxelmorph 0.2's SynthMorph script, on a small
network. Two trainings of the same rule part too, by the order in which their operations add; the
distance of weights tells how much of it is the rule. Prints Markdown tables and writes them to
notes/benchmarks/.
"""

from __future__ import annotations

import contextlib
import csv
import io
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.harness import Report, measured, note, processor
from benchmarks.training import ONE_THREAD, SHAPE, reference
from morphbits import config
from morphbits.errors import run_cli
from morphbits.models.weights import Architecture, init_weights, read_weights

ENC, DEC = (8, 16, 16, 16), (16, 16, 16, 16, 8, 8)
RATE, SEED, EPOCH = 1e-4, 1, 50
RULES = ("keras-adam", "torch-adam")


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
    """The same of voxelmorph's network, losses and optimizer."""
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
        "learning rates."
    )
    with tempfile.TemporaryDirectory() as folder:
        curves = {
            "voxelmorph": measured(
                tensorflow_curve, arguments.epochs, folder, environment=ONE_THREAD
            )
        }
        for rule in RULES:
            curves[rule] = measured(
                torch_curve, rule, arguments.epochs, folder, environment=ONE_THREAD
            )
        steps = [1, *range(EPOCH, arguments.epochs * EPOCH + 1, EPOCH)]
        moved, distant = {}, {}
        start = vector(first_weights())
        for step in steps:
            theirs = np.load(Path(folder) / f"step-{step}.npy")
            moved["voxelmorph", step] = _size(theirs - start)
            for rule in RULES:
                name = "one/model.h5" if step == 1 else f"all/epoch-{step // EPOCH:04d}.h5"
                ours = vector(read_weights(Path(folder) / rule / name))
                moved[rule, step] = _size(ours - start)
                distant[rule, step] = _size(ours - theirs)
    report.table(
        *("steps", "loss, voxelmorph", *(f"loss, {rule}" for rule in RULES)),
        *("moved, voxelmorph", *(f"moved, {rule}" for rule in RULES)),
        *(f"distance, {rule}" for rule in RULES),
    )
    for step in steps:
        block = slice(max(0, step - EPOCH), step)
        report.row(
            f"{step}",
            *(f"{np.mean(curve[block]):.4f}" for curve in curves.values()),
            *(f"{moved[name, step]:.3g}" for name in curves),
            *(f"{distant[rule, step]:.3g}" for rule in RULES),
        )


def _size(difference: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(difference, dtype=np.float64)))) / RATE


if __name__ == "__main__":
    run_cli(main)
