"""A user's own torch network as a model: a module of three lines in a folder."""

from __future__ import annotations

from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from morphbits import registration
from morphbits.config import Arithmetic, RegisterConfig
from morphbits.engines.native.dispatch import RandomRounding
from morphbits.errors import UserError
from morphbits.images import Image
from morphbits.models.model import open_model, word

MODULE = '''
import torch
from torch import nn


class Shift(nn.Module):
    """Moves by what a convolution of both images gives."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv3d(2, 3, 3, padding=1)

    def forward(self, moving, fixed):
        warp = self.convolution(torch.cat([moving, fixed], 1))
        return moving * 0.9 + fixed * 0.1, warp


def network():
    return Shift()


class Narrow(Shift):
    def forward(self, moving, fixed):
        return super().forward(moving, fixed)[1]


class Short(Shift):
    def forward(self, moving, fixed):
        moved, warp = super().forward(moving, fixed)
        return moved, warp[..., :-1]


class Deep(Shift):
    multiple = 32

    def forward(self, moving, fixed):
        if any(n % 32 for n in moving.shape[2:]):
            raise RuntimeError("sizes of tensors must match")
        return super().forward(moving, fixed)


def shallow():
    network = Deep()
    network.multiple = 16
    return network


def odd():
    network = Deep()
    network.multiple = "32"
    return network


class Uneven(Shift):
    def forward(self, moving, fixed):
        return super().forward(moving, fixed[..., :-1])


def uneven():
    return Uneven()


def number():
    return 3


def broken():
    return Shift(7)
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plugin")
    (path / "bad_of_a_test.py").write_text("import torch\ntorch.absent\n", encoding="utf-8")
    (path / "plugin_of_a_test.py").write_text(MODULE, encoding="utf-8")
    return path


@pytest.fixture
def pair() -> tuple[Image, Image]:
    random = np.random.default_rng(1)
    moving, fixed = (random.random((20, 24, 17), dtype=np.float32) for _ in range(2))
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    return Image(moving, affine, True), Image(fixed, affine, True)


def test_it_is_registered_and_perturbed_as_every_model(
    folder: Path, pair: tuple[Image, Image]
) -> None:
    where = folder / "plugin_of_a_test:network"
    prepared = registration.prepare(*pair, where, RegisterConfig())
    plain = registration.register(prepared, where, RegisterConfig())
    assert plain.moved_XYZ.shape == (20, 24, 17) and plain.warp_XYZV.shape == (20, 24, 17, 3)
    one, again, other = (
        registration.register(prepared, where, RegisterConfig(engine="native", seed=seed))
        for seed in (1, 1, 2)
    )
    assert np.array_equal(one.warp_XYZV, again.warp_XYZV)
    assert 0 < np.abs(one.warp_XYZV - other.warp_XYZV).max() < 1e-5
    assert set(one.record["operators"]) == {"convolution", "mul", "add"}


def test_its_identity_is_its_code_and_its_numbers(folder: Path) -> None:
    model = open_model(folder / "plugin_of_a_test:network", Arithmetic())
    found = model.identity(lambda path: f"checksum of {path.name}")
    assert found["model"] == "plugin_of_a_test:network"
    assert found["model_code"] == "checksum of plugin_of_a_test.py"
    assert found["model_weights"].startswith("sha256:") and found["model_packages"] == {}
    assert model.files == (folder / "plugin_of_a_test.py",)
    assert word(Path("package.module:function")) == "package.module:function"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("plugin_nowhere:network", "module plugin_nowhere cannot be imported"),
        ("plugin_of_a_test:absent", "has no function absent"),
        ("plugin_of_a_test:number", "returned a int, no torch module"),
        (
            "plugin_of_a_test:broken",
            r"cannot be made: TypeError: .* takes 1 .*plugin_of_a_test.py, line \d+\)",
        ),
        ("bad_of_a_test:network", r"importing it failed: AttributeError: .*, line 2\)"),
    ],
)
def test_what_is_no_network_is_one_sentence(folder: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_model(folder / name, Arithmetic()).network()


@pytest.mark.parametrize("kind", ["Narrow", "Short"])
def test_a_network_that_gives_something_else_is_one_sentence(
    folder: Path, pair: tuple[Image, Image], kind: str
) -> None:
    where, config = folder / f"plugin_of_a_test:{kind}", RegisterConfig()
    prepared = registration.prepare(*pair, where, config)
    with pytest.raises(UserError, match="not a moved image and a warp"):
        registration.register(prepared, where, config)


def test_the_grid_is_a_multiple_of_what_the_network_asks_for(
    folder: Path, pair: tuple[Image, Image]
) -> None:
    where, config = folder / "plugin_of_a_test:Deep", RegisterConfig()
    prepared = registration.prepare(*pair, where, config)
    assert prepared.fixed.shape == (32, 32, 32)
    assert open_model(where, config).voxels((20, 24, 17)) == 32**3
    assert registration.register(prepared, where, config).warp_XYZV.shape == (20, 24, 17, 3)


def test_a_network_that_takes_no_such_images_is_one_sentence(
    folder: Path, pair: tuple[Image, Image]
) -> None:
    where, config = folder / "plugin_of_a_test:shallow", RegisterConfig()
    prepared = registration.prepare(*pair, where, config)
    says = (
        r"failed on images of 32 × 32 × 32 voxels: RuntimeError: sizes of tensors must match "
        r"\(.*plugin_of_a_test.py, line \d+\); if it needs other sizes, .*: multiple = 32"
    )
    small = registration.prepare(
        *(replace(i, data=i.data[:16, :16, :16]) for i in pair), where, config
    )
    assert prepared.fixed.shape == (32, 32, 32) and small.fixed.shape == (16, 16, 16)
    registration.register(prepared, where, config)
    with pytest.raises(UserError, match=says.replace("32 × 32 × 32", "16 × 16 × 16")):
        registration.register(small, where, config)
    with pytest.raises(UserError, match="attribute multiple is '32', not a whole number"):
        registration.prepare(*pair, folder / "plugin_of_a_test:odd", config)


def test_only_what_the_network_does_wrong_is_said_of_it(
    folder: Path, pair: tuple[Image, Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the engine too, whose operators raise the errors of both."""
    config = RegisterConfig(engine="native")
    where = folder / "plugin_of_a_test:uneven"
    prepared = registration.prepare(*pair, where, config)
    with pytest.raises(UserError, match=r"RuntimeError: Sizes .*plugin_of_a_test.py, line \d+\);"):
        registration.register(prepared, where, config)

    def faulty(*words: object) -> None:
        raise RuntimeError("a fault of the engine")

    for way in ("_by_rule", "_by_plan"):
        monkeypatch.setattr(RandomRounding, way, faulty)
    with pytest.raises(RuntimeError, match="a fault of the engine"):
        registration.register(prepared, folder / "plugin_of_a_test:network", config)


def test_weights_of_every_type_have_a_checksum(folder: Path) -> None:
    (folder / "half_of_a_test.py").write_text(
        "from torch import bfloat16, nn\ndef network(): return nn.Linear(2, 2).to(bfloat16)\n"
    )
    where = folder / "half_of_a_test:network"
    assert open_model(where, Arithmetic()).identity(str)["model_weights"].startswith("sha256:")


def test_what_its_module_imports_from_the_folder_is_part_of_it(folder: Path) -> None:
    (folder / "user_of_a_test.py").write_text(
        "from helper_of_a_test import SIZE\nfrom torch import nn\n"
        "def network(): return nn.Linear(SIZE, SIZE)\n"
    )
    (folder / "helper_of_a_test.py").write_text("SIZE = 2\n")
    (folder / "other_of_a_test.py").write_text("SIZE = 3\n")
    model = open_model(folder / "user_of_a_test:network", Arithmetic())
    found = model.identity(lambda path: f"checksum of {path.name}")
    assert found["model_code"] == "checksum of user_of_a_test.py"
    assert found["model_imports"] == {"helper_of_a_test.py": "checksum of helper_of_a_test.py"}


def test_so_is_what_it_imports_from_its_package(folder: Path) -> None:
    package = folder / "package_of_a_test"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "net.py").write_text(
        "def network():\n    from . import layers\n    return layers.network()\n"
    )
    (package / "layers.py").write_text("from torch import nn\ndef network(): return nn.ReLU()\n")
    model = open_model(folder / "package_of_a_test.net:network", Arithmetic())
    assert [path.name for path in model.files] == ["net.py", "__init__.py", "layers.py"]


@pytest.mark.slow
@pytest.mark.skipif(
    not metadata.version("voxelmorph").startswith("0.3."),
    reason="needs voxelmorph 0.3, in an environment of its own: notes/inference.md",
)
def test_voxelmorphs_own_network_is_registered_and_perturbed(pair: tuple[Image, Image]) -> None:
    where = Path(__file__).parent / "vxm_pairwise:network"
    prepared = registration.prepare(*pair, where, RegisterConfig())
    assert prepared.fixed.shape == (32, 32, 32)
    plain = registration.register(prepared, where, RegisterConfig())
    assert 0.1 < np.abs(plain.warp_XYZV).max() < 20
    one, again, other, nearest = (
        registration.register(
            prepared, where, RegisterConfig(engine="native", mode=mode, seed=seed)
        )
        for mode, seed in (("random", 1), ("random", 1), ("random", 2), ("nearest", 1))
    )
    assert np.array_equal(one.warp_XYZV, again.warp_XYZV)
    assert 0 < np.abs(one.warp_XYZV - other.warp_XYZV).max() < 1e-3
    assert np.abs(nearest.warp_XYZV - plain.warp_XYZV).max() < 1e-3
    assert {"convolution", "grid_sampler_3d"} <= set(one.record["operators"])
    found = open_model(where, Arithmetic()).identity(str)
    assert found["model_weights"].startswith("sha256:")
