"""Keras' Adam and ours, step by step on the same gradients."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.lazy_tensorflow import reference

ROOT = Path(__file__).resolve().parents[2]
STEPS, RATE = 50, 1e-3
# torch's optimizers load its compiler, which shares no process with TensorFlow
OURS = """
import sys
import numpy as np
import torch
from morphbits.training.optimizers import OPTIMIZERS
with np.load(sys.argv[1]) as given:
    start, gradients = given["start"], given["gradients"]
for name, rule in OPTIMIZERS.items():
    parameter = torch.nn.Parameter(torch.from_numpy(start.copy()))
    optimizer, rows = rule([parameter], lr=float(sys.argv[2])), []
    for gradient in gradients:
        parameter.grad = torch.from_numpy(gradient)
        optimizer.step()
        rows.append(parameter.detach().numpy().copy())
    np.save(f"{sys.argv[3]}/{name}.npy", rows)
"""


@pytest.mark.tensorflow
def test_the_rule_is_keras_adam_step_by_step(tmp_path: Path) -> None:
    """On derivatives of 1e-10 to 1, from weights as a kernel has them.

    Both compute in float32 by the same operations, so that what differs is the last place of
    1 − β^t, where TensorFlow's power differs from numpy's: 2^-24 absolute, so at most 2^-24 / 2e-3
    of it from step 2 on (at step 1 the power is exact), and half of that after the root. Steps are
    shorter than three learning rates here; their differences, and a rounding of 2^-25 of each
    weight below 1 at each step, add up over the steps.
    """
    tf = reference.tf
    random = np.random.default_rng(1)
    start = random.normal(0, 0.1, 500).astype(np.float32)
    sizes = 10 ** random.uniform(-10, 0, 500)
    gradients = (random.normal(0.5, 1, (STEPS, 500)) * sizes).astype(np.float32)
    variable = tf.Variable(start)
    keras = tf.keras.optimizers.Adam(learning_rate=RATE)
    theirs = []
    for gradient in gradients:
        keras.apply_gradients([(tf.constant(gradient), variable)])
        theirs.append(variable.numpy())

    np.savez(tmp_path / "given.npz", start=start, gradients=gradients)
    words = [sys.executable, "-c", OURS, str(tmp_path / "given.npz"), str(RATE), str(tmp_path)]
    subprocess.run(words, check=True, env=os.environ | {"PYTHONPATH": str(ROOT / "python")})
    found = {name: np.load(tmp_path / f"{name}-adam.npy") for name in ("keras", "torch")}
    steps = np.arange(1, STEPS + 1)[:, None]
    assert np.abs(np.diff(theirs, axis=0)).max() < 3 * RATE
    bound = steps * (3 * RATE * 2**-24 / 4e-3 + 2**-25)
    assert (np.abs(found["keras"] - theirs) <= bound).all()
    assert (np.abs(found["torch"] - theirs) > 100 * bound).any(axis=1).all()


@pytest.mark.parametrize("size", [1e-9, 1e-7, 1e-5, 1e-2])
def test_the_first_step_shrinks_with_a_small_derivative_as_in_keras(size: float) -> None:
    """The rate · g / (|g| + ε / √(1 − β₂)), to some roundings of float32 and of 1 − β₂ in it,
    which is known to 2^-24 / 0.001; torch's is the rate · g / (|g| + 1e-8)."""
    import torch

    from morphbits.training.optimizers import OPTIMIZERS

    for name, epsilon in (("keras-adam", 1e-7 / 0.001**0.5), ("torch-adam", 1e-8)):
        weight = torch.nn.Parameter(torch.zeros(1))
        weight.grad = torch.full((1,), size)
        OPTIMIZERS[name]([weight], lr=RATE).step()
        assert -weight.item() == pytest.approx(RATE * size / (size + epsilon), rel=1e-4), name
