"""The orders in which the frameworks' own kernels add, measured here, into notes/benchmarks/.

    make kernel-orders            a minute or two

torch: each operator on random numbers of some shapes, under `accumulation=probe`, as this
processor's kernels do it with one and two threads, and as its kernels for AVX2 do it. TensorFlow:
the same reading, of a process of its own that computes what it is asked for. An order is listed as
proven where it gave the kernel's bytes.
"""

from __future__ import annotations

from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.harness import Report, measured, note, processor
from morphbits import config
from morphbits.errors import run_cli

if TYPE_CHECKING:
    import torch

AVX2 = {
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
}
SETTINGS: tuple[tuple[str, str, int, dict[str, str]], ...] = (
    ("torch, 1 thread", "torch", 1, {}),
    ("torch, 2 threads", "torch", 2, {}),
    ("torch, 2 threads, AVX2", "torch", 2, AVX2),
    ("TensorFlow, oneDNN on", "tensorflow", 2, {"TF_ENABLE_ONEDNN_OPTS": "1"}),
    ("TensorFlow, oneDNN off", "tensorflow", 2, {"TF_ENABLE_ONEDNN_OPTS": "0"}),
)
PROVEN = ": the same bytes"
# operator and the shapes of its tensors; a convolution's image and weight, padded by half of it
CASES: tuple[tuple[str, tuple[tuple[int, ...], ...]], ...] = (
    ("conv1d", ((2, 16, 200), (8, 16, 5))),
    ("conv2d", ((1, 3, 64, 64), (16, 3, 3, 3))),
    ("conv2d", ((1, 64, 24, 24), (64, 64, 3, 3))),
    ("conv3d", ((1, 2, 32, 32, 32), (16, 2, 3, 3, 3))),
    ("conv3d", ((1, 16, 16, 16, 16), (32, 16, 3, 3, 3))),
    ("conv3d", ((1, 64, 32, 32, 32), (32, 64, 3, 3, 3))),
    ("conv3d", ((2, 64, 8, 8, 8), (32, 64, 3, 3, 3))),
    ("conv3d", ((1, 16, 12, 16, 12), (3, 16, 3, 3, 3))),
    ("conv3d, gradient of the input", ((1, 16, 16, 16, 16), (32, 16, 3, 3, 3))),
    ("conv2d, stride 2", ((1, 64, 24, 24), (64, 64, 3, 3))),
    ("conv2d, stride 2, gradient of the input", ((1, 64, 24, 24), (64, 64, 3, 3))),
    ("conv3d, stride 2, gradient of the input", ((1, 16, 16, 16, 16), (32, 16, 3, 3, 3))),
    ("conv2d, groups 4", ((1, 32, 24, 24), (64, 8, 3, 3))),
    ("conv2d, groups 32", ((1, 32, 24, 24), (32, 1, 3, 3))),
    ("conv3d, groups 16", ((1, 16, 12, 12, 12), (16, 1, 3, 3, 3))),
    ("conv_transpose2d", ((1, 32, 12, 12), (32, 16, 3, 3))),
    ("conv_transpose2d, stride 2", ((1, 32, 12, 12), (32, 16, 3, 3))),
    ("conv_transpose3d, stride 2", ((1, 32, 8, 8, 8), (32, 16, 3, 3, 3))),
    ("matmul", ((64, 64), (64, 64))),
    ("matmul", ((128, 1000), (1000, 32))),
    ("matmul", ((1, 512), (512, 64))),
    ("matmul", ((8, 64, 32), (8, 32, 64))),
    ("linear", ((80, 256), (64, 256), (64,))),
    ("linear", ((1, 300), (10, 300), (10,))),
    ("matrix by vector", ((64, 300), (300,))),
    ("dot", ((1000,), (1000,))),
    ("sum", ((1000,),)),
    ("sum of rows", ((40, 300),)),
    ("sum of columns", ((300, 37),)),
)


def torch_orders(threads: int) -> dict[str, str]:
    """What is found for each case, in words."""
    import torch

    from morphbits.engines.native import random_rounding

    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(1)
    found = {}
    for operator, shapes in CASES:
        given = [torch.randn(shape, generator=generator) for shape in shapes]
        *forward, last = operator.split(", ")
        backward = last == "gradient of the input"
        forward += [] if backward else [last]
        given[0].requires_grad_(backward)
        with torch.set_grad_enabled(backward):
            if backward:
                result = computed(forward, given)
            with random_rounding("nearest", accumulation="probe") as stats:
                if backward:
                    result.backward(torch.ones_like(result))
                else:
                    computed(forward, given)
        # one for each remainder of a stride; the gradient of the weight is not probed
        each = {words for words in stats.orders.values() if not words.startswith("not probed")}
        found[case_name(operator, shapes)] = together(each)
    return found


def computed(operator: list[str], given: list[torch.Tensor]) -> torch.Tensor:
    """What torch makes of an operator of CASES: its name, and settings such as "stride 2"."""
    import torch

    name, *more = operator
    if name.startswith("conv"):
        settings = {key: int(value) for key, value in map(str.split, more)}
        return getattr(torch, name)(*given, padding=given[1].shape[-1] // 2, **settings)
    if name.startswith("sum"):
        return torch.sum(given[0], 1 if name == "sum of rows" else 0)
    return torch.nn.functional.linear(*given) if name == "linear" else torch.matmul(*given)


def together(orders: set[str]) -> str:
    """The orders of an operator's parts: proven where all of them are."""
    unproven = [words for words in orders if not words.endswith(PROVEN)]
    return " · ".join(sorted(unproven or (words.removesuffix(PROVEN) for words in orders))) + (
        "" if unproven else PROVEN
    )


def tensorflow_orders(threads: int) -> dict[str, str]:
    """The same of TensorFlow's kernels, for what it has of the cases."""
    import torch

    from morphbits.engines.native.orders import probe, probe_sums

    context = get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, threads), daemon=True)
    process.start()

    def ask(operator: str, *tensors: torch.Tensor) -> torch.Tensor:
        here.send((operator, [x.numpy() for x in tensors]))
        return torch.from_numpy(here.recv())

    generator = torch.Generator().manual_seed(1)
    found = {}
    for operator, shapes in CASES:
        given = [torch.randn(shape, generator=generator) for shape in shapes]
        words = ""
        if operator in ("conv2d", "conv3d"):
            dims = given[0].dim() - 2
            pads = tuple(size // 2 for size in given[1].shape[2:])
            steps = probe.Steps((1,) * dims, pads, (1,) * dims)
            convolve = _without_bias(lambda x, w: ask("convolution", x, w))
            words = probe.order(convolve, given[0], given[1], None, steps, threads).words
        elif operator == "matmul":
            a, b = (x if x.dim() == 3 else x[None] for x in given)
            product = _without_bias(lambda x, y: ask("matmul", x, y))
            words = probe_sums.product_order(product, a, b, None, threads).words
        elif operator.startswith("sum"):
            axes = [1] if operator == "sum of rows" else [0]
            words = probe_sums.sum_order(
                lambda x, axis=axes[0]: ask(f"sum {axis}", x),  # type: ignore[misc]
                *(given[0], axes, threads),
            ).words
        found[case_name(operator, shapes)] = words
    here.send(None)
    process.join()
    return found


def _without_bias(kernel: Any) -> Any:
    return lambda x, y, bias: kernel(x, y)


def _serve(pipe: Any, threads: int) -> None:
    """TensorFlow, in a process of its own: computes each operator that it is sent."""
    from morphbits.models import synthmorph_tf

    tf = synthmorph_tf.tf
    synthmorph_tf.set_threads(threads)
    while (asked := pipe.recv()) is not None:
        operator, tensors = asked
        if operator == "convolution":  # channels last, as everywhere in voxelmorph
            x, w = (np.moveaxis(v, 1, -1) for v in tensors)
            w = np.moveaxis(w, 0, -1)
            out = tf.nn.convolution(
                np.ascontiguousarray(x), np.ascontiguousarray(w), padding="SAME"
            )
            result = np.moveaxis(out.numpy(), -1, 1)
        elif operator == "matmul":
            result = tf.linalg.matmul(*tensors).numpy()
        else:
            result = tf.reduce_sum(tensors[0], int(operator.split()[1])).numpy()
        pipe.send(np.array(result, order="C"))


def case_name(operator: str, shapes: tuple[tuple[int, ...], ...]) -> str:
    """One line of the table."""
    return f"{operator} {' by '.join('×'.join(map(str, shape)) for shape in shapes[:2])}"


def main() -> None:
    parser = config.parser(__doc__)
    parser.add_argument("--output", type=Path, help="Markdown file (default: notes/benchmarks/…)")
    arguments = parser.parse_args()
    report = Report(
        arguments.output or note("orders", processor()),
        f"Orders of sums in torch's and TensorFlow's kernels, {processor()}",
        "make kernel-orders",
        *("torch", "tensorflow-cpu"),
    )
    report.add(
        "Found by masks (FPRev, arXiv 2411.00442); *proven*: added in this order, to nearest, the "
        "engine's result has the kernel's bytes, on random numbers. Settings in which the same "
        "was found share a line."
    )
    orders = {"torch": torch_orders, "tensorflow": tensorflow_orders}
    found = {
        name: measured(orders[framework], threads, environment=variables)
        for name, framework, threads, variables in SETTINGS
    }
    report.table("operator", "settings", "order", "proven")
    for case in (case_name(*each) for each in CASES):
        by_words: dict[str, list[str]] = {}
        for setting, by_case in found.items():
            if by_case.get(case):
                by_words.setdefault(by_case[case], []).append(setting)
        for words, names in by_words.items():
            proven = "yes" if words.endswith(PROVEN) else "no"
            report.row(case, "; ".join(names), words.removesuffix(PROVEN), proven)


if __name__ == "__main__":
    run_cli(main)
