"""No process of the suite, or of its tests, holds TensorFlow and torch's compiler: `apart`."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.apart import APART

ROOT = Path(__file__).parents[1]
TENSORFLOW = {"tensorflow", "tf_keras", "keras", "neurite", "voxelmorph"}
TORCHS_VOXELMORPH = "benchmarks/peer_networks.py"  # 0.3, in torch; in an environment of its own
PATHS = os.pathsep.join([str(ROOT / "tests"), str(ROOT / "python")])


def run(code: str) -> subprocess.CompletedProcess[str]:
    code = f"import sys; from support import apart; apart.refuse()\n{code}"
    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": PATHS}, text=True,
        capture_output=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("first", APART)
def test_the_second_is_refused(first: str) -> None:
    (second,) = set(APART) - {first}
    done = run(f"import types; sys.modules[{first!r}] = types.ModuleType('it')\nimport {second}")
    assert f"ImportError: {second}: {first} is in this process already" in done.stderr


def imported(path: Path) -> set[str]:
    """The modules that a file imports, at any place in it, by their full names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
    return found


def test_what_loads_tensorflow_asks_for_nothing_of_torchs_compiler() -> None:
    """Constructing a torch optimizer, `torch.compile` and `torch.export` load it too."""
    loads = []
    for path in sorted((ROOT / "python").rglob("*.py")):
        if path == ROOT / "python" / TORCHS_VOXELMORPH:
            continue
        if any(name.split(".")[0] in TENSORFLOW for name in imported(path)):
            loads.append(str(path.relative_to(ROOT / "python")))
            text = path.read_text(encoding="utf-8")
            for word in ("torch._dynamo", "torch.optim", "torch.compile", "torch.export"):
                assert word not in text, (path, word)
    assert {"morphbits/models/synthmorph_tf.py", "morphbits/synthesis/generator_tf.py"} <= {*loads}


REGISTRATION = """
import numpy as np
from pathlib import Path
from morphbits import images
from morphbits.config import RegisterConfig
from morphbits.models.weights import Architecture, init_weights, save_h5
from morphbits.registration import prepare, register
folder, architecture = Path({folder!r}), Architecture((2, 3), (3, 2))
save_h5(folder / "model.h5", architecture, init_weights(architecture, 1))
volumes = [np.random.default_rng(k).random((16, 16, 16), np.float32) for k in (1, 2)]
moving, fixed = (images.Image(volume, np.eye(4)) for volume in volumes)
model, config = folder / "model.h5", RegisterConfig(framework="tensorflow")
register(prepare(moving, fixed, model, config), model, config)
assert "tensorflow" in sys.modules and "torch._dynamo" not in sys.modules
"""
SYNTHESIS = """
import morphbits.synthesis.server, morphbits.synthesis.generator_tf
assert "tensorflow" in sys.modules and "torch._dynamo" not in sys.modules
"""


@pytest.mark.slow  # the guard watches every other test process as well
@pytest.mark.parametrize("code", [REGISTRATION, SYNTHESIS], ids=["registration", "synthesis"])
def test_processes_that_load_tensorflow(code: str, tmp_path: Path) -> None:
    done = run(code.replace("{folder!r}", repr(str(tmp_path))))
    assert done.returncode == 0, done.stderr
