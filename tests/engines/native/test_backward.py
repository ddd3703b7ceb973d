"""Training under perturbation: gradients counted, accumulated and stepped, and nothing escapes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.exact_replay import same_bytes
from support.witness import Witness
from torch.utils._python_dispatch import TorchDispatchMode

from morphbits.engines.native import random_rounding
from morphbits.models.synthmorph_torch import SynthMorph, init_model
from morphbits.models.weights import Architecture
from morphbits.synthesis.pair import Pair
from morphbits.training.network import OneDnnConvolution, registration_loss
from morphbits.training.recipe import TrainConfig


def products(
    size: Sequence[int], kernel: int, stride: int, padding: int, dilation: int, out: Sequence[int]
) -> int:
    """(output voxel, tap) pairs inside the image, by walking over all of them."""
    return sum(
        all(
            0 <= v * stride - padding + t * dilation < n
            for v, t, n in zip(voxel, tap, size, strict=True)
        )
        for voxel in product(*(range(n) for n in out))
        for tap in product(range(kernel), repeat=len(size))
    )


@pytest.mark.parametrize(
    "stride, padding, dilation, groups", [(1, 1, 1, 1), (2, 1, 1, 1), (1, 3, 2, 2), (3, 0, 2, 1)]
)
def test_counts_the_gradients_of_a_convolution_analytically(
    stride: int, padding: int, dilation: int, groups: int
) -> None:
    """Input: a product for each of the forward pass; weight: the same, and an addition for each
    row of the output after the first; bias: an addition for each output after the first."""
    batch, channels, outputs, size = 2, 4, 6, (7, 6, 8)
    x = torch.randn(batch, channels, *size, requires_grad=True)
    w = torch.randn(outputs, channels // groups, 3, 3, 3, requires_grad=True)
    b = torch.randn(outputs, requires_grad=True)
    y = F.conv3d(x, w, b, stride, padding, dilation, groups)
    out = y.shape[2:]
    multiplications = batch * outputs * channels // groups
    multiplications *= products(size, 3, stride, padding, dilation, out)
    rows, voxels = batch * out[0] * out[1], batch * out.numel()
    with random_rounding(accumulation="sequential") as stats:
        y.backward(torch.ones_like(y))
    assert stats.operators == {
        "convolution_backward (input)": multiplications,
        "convolution_backward (weight)": multiplications + (rows - 1) * w.numel(),
        "convolution_backward (bias)": (voxels - 1) * outputs,
    }


def test_backward_runs_on_the_calling_thread_with_the_mode() -> None:
    seen = set()

    class Threads(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            seen.add(threading.get_ident())
            return func(*args, **(kwargs or {}))

    x = torch.rand(100, requires_grad=True)
    with Threads():
        (x * x).sum().backward()
    assert seen == {threading.get_ident()}


def test_every_addition_of_gradients_is_seen() -> None:
    """A tensor used n times receives n − 1 additions; a gradient that is there, one more."""
    x = torch.rand(7, requires_grad=True)
    with random_rounding() as stats:
        torch.stack([x, x.view(7, 1).view(7), -x, x.flip(0)]).backward(torch.rand(4, 7))
    assert sum(n for name, n in stats.operators.items() if name.startswith("add")) == 3 * 7
    for _ in range(2):
        with random_rounding("upward") as stats:
            before = x.grad.clone()
            x.clone().backward(torch.full((7,), 1e-9))
        assert sum(stats.operators.values()) == 7 and (x.grad > before).all()
    y = torch.rand(3, requires_grad=True)
    z = y * 1.0
    with random_rounding() as stats, torch.no_grad():
        total = torch.zeros(3)
        for _ in range(3):
            total += z
    assert stats.operators == {"add_": 9}


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "Adam": lambda p, **o: torch.optim.Adam(p, lr=1e-2, weight_decay=0.1, **o),
    "Adam with amsgrad": lambda p, **o: torch.optim.Adam(p, lr=1e-2, amsgrad=True, **o),
    "AdamW": lambda p, **o: torch.optim.AdamW(p, lr=1e-2, maximize=True, **o),
    "SGD": lambda p, **o: torch.optim.SGD(p, lr=1e-2, **o),
    "SGD with momentum": lambda p, **o: torch.optim.SGD(
        p, lr=1e-2, momentum=0.9, nesterov=True, weight_decay=0.1, **o
    ),
    "Adagrad": lambda p, **o: torch.optim.Adagrad(p, lr=1e-2, lr_decay=0.1, **o),
    "RMSprop": lambda p, **o: torch.optim.RMSprop(p, lr=1e-2, centered=True, momentum=0.5, **o),
    "NAdam": lambda p, **o: torch.optim.NAdam(p, lr=1e-2, weight_decay=0.1, **o),
    "RAdam": lambda p, **o: torch.optim.RAdam(p, lr=1e-2, **o),
    "Adadelta": lambda p, **o: torch.optim.Adadelta(p, **o),
    "Adamax": lambda p, **o: torch.optim.Adamax(p, lr=1e-2, **o),
    "ASGD": lambda p, **o: torch.optim.ASGD(p, lr=1e-2, **o),
    "Rprop": lambda p, **o: torch.optim.Rprop(p, lr=1e-2, **o),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_three_forms_of_an_optimizer_take_one_step_of_one_algorithm(name: str) -> None:
    """Tolerance: three steps of some ten operations, each off by a last place of float32."""

    def steps(region: Any, **options: Any) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        parameters = [
            torch.randn(5, 3, generator=generator).requires_grad_(),
            torch.randn(9, generator=generator).requires_grad_(),
        ]
        optimizer = OPTIMIZERS[name](parameters, **options)
        for _ in range(3):
            for p in parameters:
                p.grad = torch.randn(p.shape, generator=generator)
            with region():
                optimizer.step()
        return [p.detach() for p in parameters]

    plain = steps(nullcontext)
    forms = [{"foreach": False}, {"foreach": True}]
    if name.startswith(("Adam", "SGD", "Adagrad")) and name != "Adamax":
        forms.append({"fused": True})
    for form in forms:
        for mode in ("nearest", "random"):
            found = steps(lambda m=mode: random_rounding(m), **form)
            for one, other in zip(found, plain, strict=True):
                torch.testing.assert_close(one, other, rtol=2**-18, atol=2**-18)
        assert not all(
            torch.equal(a, b)
            for a, b in zip(found, steps(lambda: random_rounding(seed=8), **form), strict=True)
        )


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD with momentum", "Adagrad"])
def test_a_fused_step_of_sixteen_bits_is_kept(name: str) -> None:
    """Against the steps in float64: parameter, gradient and moments are rounded once a step to 8
    bits. (torch's own fused SGD of bfloat16 is further off.)"""

    def steps(region: Any, dtype: torch.dtype, **form: Any) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        p = torch.randn(50, generator=generator).bfloat16().to(dtype).requires_grad_()
        optimizer = OPTIMIZERS[name]([p], **form)
        for _ in range(2):
            p.grad = torch.randn(50, generator=generator).bfloat16().to(dtype)
            with region():
                optimizer.step()
        return p.detach().double()

    def fused(mode: str) -> torch.Tensor:
        return steps(lambda: random_rounding(mode), torch.bfloat16, fused=True)

    exact = steps(nullcontext, torch.float64, foreach=False)
    torch.testing.assert_close(fused("nearest"), exact, rtol=2**-7, atol=2**-7)
    assert not torch.equal(fused("nearest"), fused("random"))


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD", "Adagrad"])
@pytest.mark.parametrize("form", [{"foreach": True}, {"fused": True}], ids=["foreach", "fused"])
def test_a_gradient_scaler_is_perturbed_and_leaves_out_a_step(name: str, form: Any) -> None:
    """A scale of 1000 is divided out of the gradients: two operations more, each off by at most a
    last place; of two steps the second has an infinite gradient."""

    def steps(region: Any) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        p = torch.randn(50, generator=generator).requires_grad_()
        x = torch.randn(50, generator=generator)
        optimizer = OPTIMIZERS[name]([p], **form)
        scaler = torch.amp.GradScaler("cpu", init_scale=1000.0)
        after = []
        with region:
            for factor in (1.0, float("inf")):
                optimizer.zero_grad()
                scaler.scale((p * x * factor).square().sum()).backward()
                scaler.step(optimizer)
                scaler.update()
                after.append(p.detach().clone())
            after.append(torch.tensor(scaler.get_scale()))
        return after

    plain = steps(nullcontext())
    with random_rounding("random") as stats:
        found = steps(nullcontext())
    assert torch.equal(found[0], found[1]) and found[2] == plain[2] == 500
    torch.testing.assert_close(found[0], plain[0], rtol=2**-18, atol=2**-18)
    assert not torch.equal(found[0], plain[0]) and stats.operations > 0


def network() -> tuple[SynthMorph, Pair]:
    generator = torch.Generator().manual_seed(0)

    def image(channels: int) -> torch.Tensor:
        return torch.rand(2, channels, 8, 8, 16, generator=generator)

    model = init_model(Architecture((3, 4), (4, 3), int_steps=2), 1, 1e-2)
    return model, Pair(image(1), image(1), image(2), image(2))


def train_steps(region: Any, steps: int = 2, loss: str = "tissues") -> list[torch.Tensor]:
    """Forward, backward and Adam of a small network, all in one region."""
    config = TrainConfig(loss=loss, smoothness=0.1)
    model, pair = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with OneDnnConvolution(), region:
        for _ in range(steps):
            optimizer.zero_grad()
            registration_loss(model, pair, config)["loss"].backward()
            optimizer.step()
    return [p.detach() for p in model.parameters()]


def test_training_is_perturbed_whole() -> None:
    """Two steps: near torch's own in mode nearest, moved by the seed, the same on any threads."""
    plain = train_steps(nullcontext())
    nearest = train_steps(random_rounding("nearest"))
    # Adam divides the gradient by its own size: where it is near zero, another order of additions
    # may turn a whole step of 1e-2; so the mean over a network's weights is compared
    moved = torch.cat([(a - b).abs().flatten() for a, b in zip(nearest, plain, strict=True)])
    assert moved.mean() < 1e-2 / 20
    one = train_steps(random_rounding(seed=1, threads=1))
    again = train_steps(random_rounding(seed=1, threads=2))
    other = train_steps(random_rounding(seed=2))
    assert all(same_bytes(a, b) for a, b in zip(one, again, strict=True))
    assert not any(same_bytes(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("loss", ["tissues", "dice"])
def test_nothing_of_a_training_step_escapes(loss: str) -> None:
    witness = Witness()
    with witness:
        train_steps(random_rounding("random"), steps=1, loss=loss)
    assert witness.rounded == []
    assert {"convolution_backward", "mkldnn_convolution", "pow"}.isdisjoint(witness.seen)
    with witness:  # and it would have seen it
        torch.rand(9) * 0.1
    assert witness.rounded == ["aten.mul.Tensor"]
