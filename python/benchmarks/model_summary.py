"""Summaries of the published configuration: image generator, U-Net, full training model.

    make model-summary

For TensorFlow (neurite's generator, voxelmorph's network, the model that the training script puts
together) and for the torch port, layer by layer: shapes and parameters. Nothing is computed: the
Keras models are symbolic, torch runs on its meta device, so no activation is allocated. Writes
notes/model_summary/.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.harness import NOTES
from morphbits import config
from morphbits.errors import run_cli
from morphbits.models import synthmorph_tf
from morphbits.models.synthmorph_torch import SynthMorph
from morphbits.models.weights import Architecture
from morphbits.synthesis import deformation
from morphbits.synthesis.generator import GeneratorConfig
from morphbits.synthesis.labels import FS_LABELS

FOLDER = NOTES / "model_summary"
SHAPE = (160, 192, 224)
PUBLISHED = Architecture(enc=(256,) * 4, dec=(256,) * 6, int_steps=5)
LABELS = len(FS_LABELS)


def tensorflow_models() -> dict[str, Any]:
    """Generator, U-Net and full model, as voxelmorph's training script builds them."""
    import neurite as ne

    tf, vxm = synthmorph_tf.tf, synthmorph_tf.vxm
    widths = [list(PUBLISHED.enc), list(PUBLISHED.dec)]
    config = GeneratorConfig()
    values = [0, *FS_LABELS]
    generators = [
        ne.models.labels_to_image(
            SHAPE, values, FS_LABELS, warp_std=config.vel_std, blur_std=config.blur_std,
            bias_std=config.bias_std, gamma_std=config.gamma, id=number,
        )
        for number in range(2)
    ]  # fmt: skip
    (image_1, map_1), (image_2, _) = (generator.outputs for generator in generators)
    inputs = generators[0].inputs + generators[1].inputs
    registration = vxm.networks.VxmDense(
        SHAPE, widths, int_steps=PUBLISHED.int_steps, int_resolution=2, svf_resolution=2,
        input_model=tf.keras.Model(inputs, (image_1, image_2)),
    )  # fmt: skip
    warp = registration.references.pos_flow
    moved_map = vxm.layers.SpatialTransformer(name="pred")([map_1, warp])
    source, target = (tf.keras.Input((*SHAPE, 1), name=name) for name in ("moving", "fixed"))
    pair = tf.keras.Model((source, target), (source, target))
    unet = vxm.networks.Unet(input_model=pair, nb_features=widths, nb_upsample_skips=1)
    return {
        "generator": generators[0],
        "unet": unet,
        "full": tf.keras.Model(inputs, [*registration.outputs, moved_map], name="full"),
    }


def torch_layers() -> list[tuple[str, tuple[int, ...], tuple[int, ...], int]]:
    """Of the port, in order of execution: name, shape in, shape out, parameters."""
    rows: list[tuple[str, tuple[int, ...], tuple[int, ...], int]] = []

    def row(name: str, before: torch.Tensor, after: torch.Tensor, parameters: int = 0) -> None:
        rows.append((name, tuple(before.shape), tuple(after.shape), parameters))

    def hook(name: str) -> Callable[..., None]:
        def note(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
            row(name, inputs[0], output, sum(p.numel() for p in module.parameters()))

        return note

    with torch.device("meta"), torch.no_grad():
        model = SynthMorph(PUBLISHED)
        for name, layer in model.layers.items():
            layer.register_forward_hook(hook(name))
        moving, fixed = torch.empty(1, 1, *SHAPE), torch.empty(1, 1, *SHAPE)
        labels = torch.empty(1, LABELS, *SHAPE)
        svf = model.svf(moving, fixed)
        integrated = deformation.integrate(svf, PUBLISHED.int_steps)
        row("integration", svf, integrated)
        warp = deformation.rescale(integrated, PUBLISHED.int_resolution)
        row("warp at full resolution", integrated, warp)
        row("moved image", moving, deformation.transform(moving, warp))
        row("moved label maps", labels, deformation.transform(labels, warp))
    return rows


def torch_table() -> list[str]:
    """The port's layers as Markdown."""
    lines = ["| layer | in | out | parameters |", "|---|---|---|---|"]
    for name, before, after, parameters in torch_layers():
        shapes = [" × ".join(map(str, shape)) for shape in (before, after)]
        lines.append(f"| {name} | {shapes[0]} | {shapes[1]} | {parameters:,} |")
    return lines


def main() -> None:
    config.parser(__doc__).parse_args()
    FOLDER.mkdir(exist_ok=True)
    counts = {}
    for name, model in tensorflow_models().items():
        lines: list[str] = []
        model.summary(line_length=140, positions=[0.36, 0.6, 0.68, 1], print_fn=lines.append)
        text = "\n".join(line.rstrip() for line in lines) + "\n"
        (FOLDER / f"tensorflow_{name}.txt").write_text(text, encoding="utf-8")
        counts[name] = model.count_params()
    port = sum(parameters for *_, parameters in torch_layers())
    size = " × ".join(map(str, SHAPE))
    features = max(math.prod(after) for _, _, after, _ in torch_layers()) * 4 / 1e9
    (FOLDER / "README.md").write_text(
        "\n".join(
            [
                "# The published configuration",
                "",
                f"`make model-summary`: enc {PUBLISHED.enc}, dec {PUBLISHED.dec}, integration in "
                f"{PUBLISHED.int_steps} squarings at half resolution, {size} "
                f"voxels, {LABELS} labels. Nothing is computed or allocated; at run time the "
                f"largest feature map is {features:.1f} GB.",
                "",
                "| model | what it is | parameters |",
                "|---|---|---|",
                f"| [generator](tensorflow_generator.txt) | label map → image and label maps; "
                f"neurite's `labels_to_image`, one of two | {counts['generator']:,} |",
                f"| [U-Net](tensorflow_unet.txt) | two images → features at half resolution; "
                f"voxelmorph's `Unet` | {counts['unet']:,} |",
                f"| [full model](tensorflow_full.txt) | two label maps → two images → warp → "
                "moved image and label maps; the training script's "
                f"| {counts['full']:,} |",
                "| torch port (below) | two images → warp → moved image and label maps "
                f"| {port:,} |",
                "",
                "The full model has what the U-Net lacks: the last convolution, of the velocity "
                "(`…_flow`, 3 channels). Axes: TensorFlow (B, X, Y, Z, C), torch (B, C, X, Y, Z).",
                "",
                "## The torch port",
                "",
                *torch_table(),
                "",
            ]
        ),
        encoding="utf-8",
    )
    print((FOLDER / "README.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    run_cli(main)
