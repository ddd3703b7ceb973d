"""Forward and backward: the loss of a batch, on operators that are fast for small batches."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from morphbits import losses
from morphbits.engines.native.kernels import plain
from morphbits.models.synthmorph_torch import SynthMorph
from morphbits.synthesis import deformation
from morphbits.synthesis.pair import Pair
from morphbits.training.recipe import TrainConfig

TERMS = ("loss", "mismatch", "roughness")
# below it (batch × channels × depth × height), and for a batch of one, torch leaves oneDNN
_SMALL = 20_480


def layout(config: TrainConfig) -> torch.memory_format:
    """The memory layout of images and weights in which a step is fastest: channels last for
    several pairs, contiguous for one pair and under the native engine."""
    one = config.batch == 1 or config.engine == "native"
    return torch.contiguous_format if one else torch.channels_last_3d


class OneDnnConvolution(TorchFunctionMode):
    """Send every conv3d on the CPU, and its derivatives, to oneDNN.

    torch leaves it wherever batch × channels × depth × height is 20,480 or less, and for the
    derivatives of a batch of one with as few, for a path up to seven times slower.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.conv3d and args[0].is_cpu and torch.backends.mkldnn.is_available():
            return _ByOneDnn.apply(*args)  # always 3×3×3 with padding 1: `Convolution.forward`
        return func(*args, **(kwargs or {}))


class _ByOneDnn(torch.autograd.Function):
    """A 3×3×3 convolution with padding 1 by oneDNN, forward and backward."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(image, weight)
        return torch.mkldnn_convolution(image, weight, bias, (1,) * 3, (1,) * 3, (1,) * 3, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        image, weight = ctx.saved_tensors
        if len(image) == 1 and image.shape[1:4].numel() <= _SMALL:
            image, gradient = image.to_mkldnn(), gradient.to_mkldnn()
        results = torch.ops.aten.convolution_backward(
            gradient, image, weight, [len(weight)], [1] * 3, [1] * 3, [1] * 3, False, [0] * 3, 1,
            list(ctx.needs_input_grad),
        )  # fmt: skip
        return tuple(x.to_dense() if x is not None and x.is_mkldnn else x for x in results)


class CompiledSampling(TorchFunctionMode):
    """Inside, linear sampling of volumes and its derivatives are computed by the compiled kernel
    (`kernels.plain`), where there is one; it gives torch's bytes."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.grid_sample and kwargs == deformation.SAMPLING and plain.takes(*args):
            return _Sampling.apply(*args)
        return func(*args, **kwargs)


class _Sampling(torch.autograd.Function):
    """The image (B, C, X, Y, Z) at points (B, D, H, W, 3): see `kernels.plain`."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, points: Tensor) -> Tensor:
        ctx.save_for_backward(image, points)
        return plain.sampled(image, points)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        image, points = ctx.saved_tensors
        return plain.gradients(image, points, gradient, ctx.needs_input_grad)


@contextmanager
def deterministic(threads: int) -> Iterator[None]:
    """Reproducible operators only, on `threads` threads; what was set before comes back.

    On a GPU, torch warns of the derivative of pooling: it may add in any order, but blocks do not
    overlap here, and it adds nothing.
    """
    memory: Any = torch.utils.deterministic
    enabled, cores = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    filling = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    torch.set_num_threads(threads)
    # it fills what is about to be overwritten, and costs an eighth of a step
    memory.fill_uninitialized_memory = False
    # with it cuBLAS adds in one order; torch reads it at the first product on a GPU
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled)
        torch.set_num_threads(cores)
        memory.fill_uninitialized_memory = filling


class Objective(nn.Module):
    """The network and what its training minimizes: batch of pairs → TERMS.

    `begin` is called first: what wraps this module, and computes before it, is not perturbed.
    """

    def __init__(self, model: SynthMorph, config: TrainConfig) -> None:
        super().__init__()
        self.model, self.config = model, config

    def forward(self, pair: Pair, begin: Callable[[], object] = lambda: None) -> dict[str, Tensor]:
        begin()
        return registration_loss(self.model, pair, self.config)


def registration_loss(model: SynthMorph, pair: Pair, config: TrainConfig) -> dict[str, Tensor]:
    """The loss of a batch and its TERMS: how far the labels, moved by the full-resolution warp,
    are from the fixed image's, plus `smoothness` times the warp's roughness."""
    svf_BVXYZ = model.svf(pair.moving, pair.fixed)
    warp_BVXYZ = deformation.integrate(svf_BVXYZ, model.architecture.int_steps)
    warp_BVXYZ = deformation.rescale(warp_BVXYZ, model.architecture.int_resolution)
    moved_BCXYZ = deformation.transform(pair.moving_tissues, warp_BVXYZ)
    mismatch = (losses.dice if config.loss == "dice" else losses.tissue_mismatch)(
        moved_BCXYZ, pair.fixed_tissues
    )
    roughness = losses.roughness(warp_BVXYZ)
    loss = mismatch + config.smoothness * roughness
    return dict(zip(TERMS, (loss, mismatch, roughness), strict=True))
