"""Models that nobody here wrote, by every way in which they are run: the example of the README.

Tolerance of a perturbed pass against torch's in float32: these networks are some ten layers deep
and lose no more than 10 of 24 bits; in bfloat16, 8 bits are all there are, so only types, shapes
and the correlation of the results are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch
from monai.networks.nets import DenseNet, ResNet, UNet, ViT
from support.exact_replay import same_bytes
from support.witness import Witness
from torch import Tensor, nn

from morphbits import random_rounding


def _transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True, activation="gelu")
    return nn.TransformerEncoder(layer, 2)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "MONAI UNet": (
        lambda: UNet(3, 1, 2, channels=(4, 8, 8), strides=(2, 2), num_res_units=1, norm="batch"),
        (2, 1, 8, 8, 8),
    ),
    "MONAI DenseNet": (
        lambda: DenseNet(2, 1, 3, init_features=8, growth_rate=4, block_config=(2, 2)),
        (2, 1, 24, 24),
    ),
    "MONAI ResNet": (
        lambda: ResNet(
            "basic", (1, 1, 1, 1), [4, 8, 8, 8], n_input_channels=1, num_classes=3,
            spatial_dims=2, conv1_t_size=3,
        ),
        (2, 1, 24, 24),
    ),
    "MONAI ViT": (
        lambda: ViT(
            1, (16, 16), (8, 8), hidden_size=16, mlp_dim=32, num_layers=2, num_heads=2,
            classification=True, num_classes=3, spatial_dims=2,
        ),
        (2, 1, 16, 16),
    ),
    "torch TransformerEncoder": (_transformer, (2, 6, 16)),
}  # fmt: skip


def _output(model: nn.Module, x: Tensor) -> Tensor:
    out = model(x)
    return out[0] if isinstance(out, tuple) else out


def _run(
    name: str, way: str, region: AbstractContextManager | None = None
) -> tuple[list[Tensor], object]:
    """Outputs (and new weights, after a step of training) of a fresh model."""
    torch.manual_seed(3)
    build, shape = MODELS[name]
    model, x = build(), torch.randn(shape)
    model.train(way == "training")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    contexts: dict[str, Callable[[], AbstractContextManager]] = {
        "no_grad": torch.no_grad,
        "inference_mode": torch.inference_mode,
        "training": torch.enable_grad,
        "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    }
    with region or torch.enable_grad() as stats, contexts[way]():
        torch.manual_seed(4)
        out = _output(model, x)
        found = [out.detach().clone()]
        if way in ("training", "autocast"):
            out.float().square().mean().backward()
            optimizer.step()
            found += [p.detach().clone() for p in model.parameters()]
    return found, stats


@pytest.mark.parametrize(
    "way",
    [
        "inference_mode",
        "autocast",
        *(pytest.param(way, marks=pytest.mark.slow) for way in ("no_grad", "training")),
    ],
)
@pytest.mark.parametrize("name", MODELS)
def test_a_foreign_model_is_perturbed(name: str, way: str) -> None:
    plain, _ = _run(name, way)
    one, stats = _run(name, way, random_rounding(seed=1))
    other, _ = _run(name, way, random_rounding(seed=2))
    assert stats.operations > 10_000 and not stats.unperturbed  # type: ignore[attr-defined]
    if way == "autocast":  # the most there is: forward, backward, optimizer, two formats
        again, _ = _run(name, way, random_rounding(seed=1, threads=1))
        assert all(same_bytes(a.float(), b.float()) for a, b in zip(one, again, strict=True))
    assert not torch.equal(one[0], other[0])
    assert [x.dtype for x in one] == [x.dtype for x in plain]
    a, b = one[0].float(), plain[0].float()
    if way == "autocast":
        assert torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1] > 0.99
    else:
        torch.testing.assert_close(a, b, rtol=2**-14, atol=2**-14)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_nothing_of_a_foreign_models_step_escapes(name: str) -> None:
    witness = Witness()

    @contextmanager
    def watched() -> Iterator[None]:
        with witness, random_rounding():
            yield

    _run(name, "training", watched())
    assert witness.rounded == []
