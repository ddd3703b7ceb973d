"""What every model says of itself is true of its network; what it cannot do is refused at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from morphbits import stages
from morphbits.config import DEMO_MODEL, Arithmetic
from morphbits.errors import UserError
from morphbits.images import NetworkGrid
from morphbits.models.model import open_model
from morphbits.models.weights import Architecture, init_weights, save_h5

NATIVE = {"engine": "native", "mode": "random"}


@pytest.mark.parametrize("where", [DEMO_MODEL, Path("classical")], ids=lambda path: path.name)
def test_its_stages_are_those_that_run(where: Path) -> None:
    model = open_model(where, Arithmetic())
    seen: list[str] = []
    generator = torch.Generator().manual_seed(1)
    pair = [torch.rand(1, 1, 16, 16, 16, generator=generator) for _ in range(2)]
    with torch.no_grad(), stages.observed(lambda stage, result: seen.append(stage)):
        model.network()(*pair)
    assert model.stages == set(seen)
    assert model.fewer_bits is None or model.fewer_bits < model.stages


@pytest.mark.parametrize(
    ("where", "options", "message"),
    [
        (DEMO_MODEL, {"perturb": "only:encoder-9"}, "has no stage encoder-9; its stages are: dec"),
        (Path("classical"), {"perturb": "except:flow"}, "has no stage flow; its stages are: affi"),
        (
            Path("classical"),
            {"precision": "12"},
            "in some stages only: .* only:integration,sampling,",
        ),
        (
            Path("classical"),
            {"precision": "bfloat16", "perturb": "only:affine-4"},
            "in some stages",
        ),
        (Path("classical"), {"precision": "12", "perturb": "except:affine"}, "in some stages"),
    ],
)
def test_what_it_cannot_do_is_refused_before_it_computes(
    where: Path, options: dict[str, str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        open_model(where, Arithmetic(**NATIVE, **options))


@pytest.mark.parametrize(
    ("where", "options"),
    [
        (DEMO_MODEL, {"precision": "12", "perturb": "only:encoder-1,squaring-2"}),
        (Path("classical"), {"perturb": "only:deformable-4"}),
        (Path("classical"), {"precision": "tf32"}),
        (Path("classical"), {"precision": "12", "perturb": "only:sampling"}),
    ],
)
def test_what_it_can_do_is_not(where: Path, options: dict[str, str]) -> None:
    open_model(where, Arithmetic(**NATIVE, **options))


def test_a_network_of_five_levels_has_a_grid_that_fits(tmp_path: Path) -> None:
    architecture = Architecture(enc=(2,) * 5, dec=(2,) * 6)
    save_h5(tmp_path / "five.h5", architecture, init_weights(architecture, seed=1))
    model = open_model(tmp_path / "five.h5", Arithmetic())
    assert model.voxels((40, 24, 32)) == 64 * 32 * 32
    assert NetworkGrid.around((40, 24, 32), multiple=32).start == (-12, -4, 0)
