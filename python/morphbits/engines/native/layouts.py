"""The strides of an operator's results: torch's, by which views are taken and kernels chosen.

The kernels of this engine write in row-major order. Where some operand has other strides, torch
is asked what it would return for tensors without data (device "meta"); where its answer is not
what its kernels on the CPU do, that is said here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

# Kernels that return new tensors in row-major order, and those that keep the image's channels last
# but no other order.
ROW_MAJOR = frozenset(
    """
    _upsample_lanczos2d_aa_backward huber_loss_backward log_sigmoid_forward mse_loss_backward
    rrelu_with_noise smooth_l1_loss_backward
    """.split()
)
CHANNELS_LAST = frozenset(
    """
    _native_batch_norm_legit _native_batch_norm_legit_no_training native_batch_norm
    native_batch_norm_backward native_group_norm_backward reflection_pad2d_backward
    reflection_pad3d_backward replication_pad2d_backward replication_pad3d_backward
    """.split()
)
# torch's kernels for these are vectorized over channels, and only in this layout.
POOLING = {
    "max_pool2d_with_indices": torch.channels_last,
    "max_pool3d_with_indices": torch.channels_last_3d,
}
Strides = tuple[int, ...]

ANSWERS = 4096  # of torch are remembered: each takes a fifth of a millisecond
_answers: dict[tuple, list[Strides | None]] = {}


@lru_cache(maxsize=4096)
def row_major(shape: Sequence[int]) -> Strides:
    """The strides of a new tensor."""
    return torch.empty(shape, device="meta").stride()


def in_order(x: Any) -> bool:
    """Whether `x` has the strides of a new tensor, also along axes of one element."""
    return not isinstance(x, torch.Tensor) or x.stride() == row_major(x.shape)


def on_meta(func: Any, args: Any, kwargs: Any) -> Any:
    """What torch returns, in shape, strides and type only."""

    def empty(x: Any) -> Any:
        if isinstance(x, torch.Tensor):
            return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")
        return torch.device("meta") if isinstance(x, torch.device) else x

    without_data = tree_map(empty, (args, kwargs))
    return func(*without_data[0], **without_data[1])


def laid_out(result: Any, func: Any, args: Any, kwargs: Any) -> Any:
    """The result with the strides that torch gives it, values as they are; as it is where torch
    does not say, and what was written in place."""
    given = tree_leaves((args, kwargs))
    leaves, structure = tree_flatten(result)
    key = (func, torch._C._get_mkldnn_enabled(), *map(_described, (*given, *leaves)))
    if key not in _answers:
        if len(_answers) >= ANSWERS:
            _answers.clear()
        _answers[key] = _strides(leaves, func, args, kwargs)
    for n, strides in enumerate(_answers[key]):
        x = leaves[n]
        if strides is None or x.stride() == strides or any(x is one for one in given):
            continue
        strided = torch.empty_strided(x.shape, strides, dtype=x.dtype, device=x.device)
        leaves[n] = strided.copy_(x)
    return tree_unflatten(leaves, structure)


def _described(x: Any) -> Any:
    """What of an argument the strides of results can depend on."""
    if isinstance(x, torch.Tensor):
        return x.shape, x.stride(), x.dtype, x.device
    return x if isinstance(x, (int, str, torch.dtype, torch.memory_format)) else type(x)


def _strides(leaves: list[Any], func: Any, args: Any, kwargs: Any) -> list[Strides | None]:
    """Of each of the results, where it is a tensor and torch says."""
    name, known = func.overloadpacket.__name__, None
    if name in ROW_MAJOR:
        known = torch.contiguous_format
    elif name == "convolution":
        known = _of_convolution(*args)
    elif name in CHANNELS_LAST:
        known = suggested(args[name.endswith("_backward")])
    if known is not None:
        return [None if x is None else _strides_in(known, x.shape) for x in leaves]
    try:
        expected = tree_leaves(on_meta(func, args, kwargs))
    except (NotImplementedError, RuntimeError):  # it knows only tensors with data
        return []
    return [
        like.stride() if isinstance(x, torch.Tensor) and x.shape == like.shape else None
        for x, like in zip(leaves, expected, strict=False)
    ]


def _strides_in(format: torch.memory_format, shape: Sequence[int]) -> Strides:
    if format == torch.contiguous_format or len(shape) not in (4, 5):
        return row_major(shape)
    return torch.empty(shape, device="meta", memory_format=format).stride()


def _of_convolution(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *settings: Any
) -> torch.memory_format:
    """The format in which torch's kernel of a convolution writes."""
    backend = torch._C._select_conv_backend(x, weight, bias, *settings)
    if weight.dim() == 3:  # has none of its own
        return torch.contiguous_format
    return torch._C._conv_determine_backend_memory_format(x, weight, backend)


def pooled(func: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """What an operator of POOLING returns for x (B, C, X, Y, Z) or (B, C, X, Y), in a third of the
    time of torch's slower kernel."""
    last = POOLING[func.overloadpacket.__name__]
    batched = x.dim() == (4 if last == torch.channels_last else 5)
    floating = x.is_cpu and x.is_floating_point()
    if not (batched and floating and x.shape[1] >= 4 and x.is_contiguous()):
        return func(x, *args, **kwargs)
    values, indices = func(x.contiguous(memory_format=last), *args, **kwargs)
    # of a window of nothing but -inf, the two kernels name other indices in three axes
    if last == torch.channels_last_3d and (values == -torch.inf).any():
        return func(x, *args, **kwargs)
    return values.contiguous(), indices.contiguous()


def suggested(x: torch.Tensor) -> torch.memory_format:
    """The format that torch's kernels take a tensor to have: Tensor::suggest_memory_format."""
    format = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    if format is None or x.stride(1) == 0:
        return torch.contiguous_format
    least = 0
    for d in (1, *range(x.dim() - 1, 1, -1), 0):
        step = x.stride(d)
        if x.shape[d] == 0 or step < least or (d == 0 and least == x.stride(1)):
            return torch.contiguous_format
        least = step * x.shape[d]
    return format
