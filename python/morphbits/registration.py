"""Register one moving image to one fixed image with a network, under an engine.

    >>> import numpy as np
    >>> from morphbits.config import DEMO_MODEL, RegisterConfig
    >>> from morphbits.images import Image
    >>> rng = np.random.default_rng(1)
    >>> moving, fixed = (Image(rng.random((16, 16, 16), np.float32), np.eye(4)) for _ in range(2))
    >>> config = RegisterConfig(engine="native", mode="random", seed=1)
    >>> result = register(prepare(moving, fixed, DEMO_MODEL, config), DEMO_MODEL, config)
    >>> result.moved_XYZ.shape, result.warp_XYZV.shape
    ((16, 16, 16), (16, 16, 16, 3))
    >>> result.record["operations"] > 10**6
    True

`morphbits.images.load` reads images from files.

Arrays: X Y Z the fixed grid (or the network's, which is that grid padded to a multiple of 16),
V the warp's component, B batch, C channel.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from morphbits import engines
from morphbits.config import Arithmetic, RegisterConfig
from morphbits.errors import UserError
from morphbits.images import Image, Prepared
from morphbits.machine import memory_free
from morphbits.models.model import Model, open_model
from morphbits.wording import gigabytes

# Multiplications and additions a second of one thread (notes/benchmarks/native_amd-epyc_*.md;
# under Verrou 25 ns each): processors differ by a factor of two.
SPEEDS = {"nearest": 18e9, "random": 10e9, "nearness": 7e8, "verrou": 4e7, "ieee": 2e10}


@dataclass(frozen=True)
class Result:
    """What a registration gives; see `register`."""

    moved_XYZ: np.ndarray
    """float32, the moving image on the fixed grid, its intensities in [0, 1]"""
    warp_XYZV: np.ndarray
    """float32, fixed to moving, in voxels of the fixed grid"""
    fixed_affine: np.ndarray
    """(4, 4) float64, voxels of the fixed grid to RAS mm"""
    fixed_codes: tuple[int, int]
    """NIfTI's codes of the fixed image's sform and qform"""
    shift: np.ndarray
    """(3,) float64, RAS mm, added after the warp: where in the moving image a point lies"""
    record: dict[str, Any]
    """what happened: seconds, operations, operators, order, steps"""


def register(
    prepared: Prepared,
    model: Path,
    config: RegisterConfig,
    watch: AbstractContextManager[Any] | None = None,
    others: Sequence[Prepared] = (),
) -> Result:
    """Register a pair that `prepare` gave for this model.

    Only the network runs under the engine; its results are then cropped to the fixed grid,
    unperturbed. `config.threads` sets torch's number of threads. `watch` is entered inside of the
    engine's region (torch): a mode of torch's dispatcher that looks on (`engines.shadow`).
    `others`: pairs that the network computes in one batch with this one, after it; their results
    are dropped.
    """
    engine = engines.get(config.engine)
    opened = open_model(model, config)
    batch = [prepared, *others]
    voxels = len(batch) * int(prepared.fixed.size)
    check_memory(model, opened.memory(voxels, config.engine), prepared)
    if config.framework == "tensorflow":
        moved_XYZ, warp_XYZV, counts, seconds = _tensorflow(engine, batch, opened, config)
    else:
        moved_XYZ, warp_XYZV, counts, seconds = _torch(engine, batch, opened, config, watch)
    for name, array in (("moved image", moved_XYZ), ("warp", warp_XYZV)):
        if not np.isfinite(array).all():
            raise UserError(
                f"{model}: the network's {name} is not finite; the weights may be bad (if it was "
                "trained here, train again with a lower learning_rate)"
            )
    if config.engine != "ieee" and counts.operations == 0:
        raise RuntimeError(f"engine {config.engine} perturbed no operation: not a sample")
    record = {
        "seconds": seconds,
        "operations": counts.operations,
        "operators": counts.operators,
        "order": engine.order(config),
        **({"orders": counts.orders} if counts.orders else {}),
        "steps": list(prepared.steps),
        "alignment": prepared.alignment.tolist(),  # world of fixed to world of moving, mm
    }
    return Result(
        prepared.moved_back(moved_XYZ),
        prepared.warp_back(warp_XYZV),
        prepared.fixed_affine,
        prepared.fixed_codes,
        prepared.alignment[:3, 3],
        record,
    )


def prepare(moving: Image, fixed: Image, model: Path, config: Arithmetic) -> Prepared:
    """The pair as this model takes it."""
    opened = open_model(model, config)
    prepared = opened.prepare(moving, fixed)
    for role, image in (("moving", moving), ("fixed", fixed)):
        if doubt := opened.doubt(image):
            prepared.steps.append(f"{role}: {doubt}")
    return prepared


_Computed = tuple[np.ndarray, np.ndarray, engines.Counts, float]


def _torch(
    engine: engines.Engine,
    batch: Sequence[Prepared],
    model: Model,
    config: RegisterConfig,
    watch: AbstractContextManager[Any] | None,
) -> _Computed:
    import torch

    if config.engine == "native" and "tensorflow" in sys.modules:
        raise RuntimeError("TensorFlow and the native engine must not share a process")
    network = model.network()
    moving_BCXYZ, fixed_BCXYZ = (
        torch.from_numpy(np.stack(volumes)[:, None])
        for volumes in ([pair.moving for pair in batch], [pair.fixed for pair in batch])
    )
    torch.set_num_threads(config.threads)
    if _first_unperturbed(config):
        with torch.no_grad():
            network(moving_BCXYZ, fixed_BCXYZ)
    with torch.no_grad(), engine.region(config, config.threads) as counts:
        start = time.perf_counter()
        with watch or nullcontext():
            outputs = network(moving_BCXYZ, fixed_BCXYZ)
        seconds = time.perf_counter() - start
    moved_BCXYZ, warp_BVXYZ = _checked(outputs, fixed_BCXYZ.shape)
    warp_XYZV = np.moveaxis(warp_BVXYZ[0].numpy(), 0, -1)
    return moved_BCXYZ[0, 0].numpy(), warp_XYZV, counts, seconds


def _checked(outputs: Any, shape: tuple[int, ...]) -> Any:
    """A network's moved image and warp; UserError where it gave something else."""
    found = [tuple(x.shape) if hasattr(x, "shape") else type(x).__name__
             for x in (outputs if isinstance(outputs, tuple | list) else [outputs])]  # fmt: skip
    expected = [(shape[0], channels, *shape[2:]) for channels in (1, 3)]
    if found != expected:
        raise UserError(
            f"the network gave {found}, not a moved image and a warp, {expected}: have its "
            "forward return these two"
        )
    return outputs


def _first_unperturbed(config: RegisterConfig) -> bool:
    """Whether to compute once before the region: under Verrou, which would else perturb what only
    a first call does (tracing, folding constants, making kernels), in a process's first sample."""
    return config.engine == "verrou" and config.region == "registration"


def _tensorflow(
    engine: engines.Engine, batch: Sequence[Prepared], model: Model, config: RegisterConfig
) -> _Computed:
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "1" if config.onednn == "on" else "0"
    from morphbits.models import synthmorph_tf

    synthmorph_tf.set_threads(config.threads)
    (path,) = model.files
    network = _tensorflow_model(path, os.stat(path).st_mtime_ns)
    moving_BXYZ, fixed_BXYZ = (
        np.stack(volumes)
        for volumes in ([pair.moving for pair in batch], [pair.fixed for pair in batch])
    )
    if _first_unperturbed(config):
        synthmorph_tf.register(network, moving_BXYZ, fixed_BXYZ, plain=config.plain)
    with engine.region(config, config.threads) as counts:
        start = time.perf_counter()
        moved_BXYZ, warp_BXYZV = synthmorph_tf.register(
            network, moving_BXYZ, fixed_BXYZ, plain=config.plain
        )
        seconds = time.perf_counter() - start
    return moved_BXYZ[0], warp_BXYZV[0], counts, seconds


@functools.lru_cache(maxsize=1)
def _tensorflow_model(model: Path, modified: int) -> Any:
    from morphbits.models import synthmorph_tf

    return synthmorph_tf.load(model)


def check_memory(model: Path, needed: int, prepared: Prepared) -> None:
    """Refuse a network grid that cannot fit, before the system ends the process for it."""
    if needed > (free := memory_free()):
        raise UserError(
            f"{model}: a grid of {prepared.fixed.size:,} voxels needs about "
            f"{gigabytes(needed)} of memory and {gigabytes(free)} are free; give a "
            "smaller fixed image or a smaller model"
        )


def seconds_estimate(model: Path, voxels: int, config: RegisterConfig) -> float | None:
    """Seconds that the network takes on a grid, within a factor of two or three; None where the
    speed is not known."""
    kind = config.mode if config.engine == "native" else config.engine
    if kind not in SPEEDS or (config.precision, config.perturb) != ("24", "all"):
        return None
    threads = 1 if config.engine == "verrou" else config.threads
    products = open_model(model, config).multiplications(voxels)
    return None if products is None else products / SPEEDS[kind] / threads
