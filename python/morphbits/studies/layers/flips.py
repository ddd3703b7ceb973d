"""Which decisions of a registration flip when it is perturbed: ReLU, max-pool, floor, nearest.

Shape legend: X Y Z space (voxels of the fixed grid, or of a stage's), V warp component.
"""

from __future__ import annotations

import math
import operator
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from morphbits.engines.decisions import Decisions
from morphbits.registration import register
from morphbits.stats.analysis import Row
from morphbits.studies.layers.computation import Case

LABELS = "labels by the warp"  # the row of what no stage decides: of which voxel a label is taken


@dataclass
class Decided:
    """The decisions of one operator, over the runs."""

    stage: str
    kind: str
    unperturbed: Tensor
    first: Tensor | None = None  # of the samples
    flips: Tensor | None = None  # by element: samples that decide otherwise than the unperturbed
    unsettled: Tensor | None = None  # by element: whether two samples decide differently

    def add(self, decisions: Tensor) -> None:
        """Those of one more sample."""
        if decisions.shape != self.unperturbed.shape:
            raise RuntimeError(
                f"{self.stage}: {self.kind} takes another number of decisions than unperturbed"
            )
        differing = decisions != self.unperturbed
        if self.first is None or self.flips is None or self.unsettled is None:
            self.first, self.flips = decisions, differing.to(torch.int16)
            self.unsettled = torch.zeros_like(differing)
        else:
            self.flips += differing
            self.unsettled |= decisions != self.first


class Record:
    """The decisions of an unperturbed run, and those of perturbed ones compared with them."""

    def __init__(self) -> None:
        self.decided: list[Decided] = []
        self.samples = 0
        self._place = -1  # in `decided`, of the operator that comes next; -1: unperturbed run

    def start_sample(self) -> None:
        """What is heard from now on is of the next sample."""
        self.samples += 1
        self._place = 0

    def hear(self, stage: str, kind: str, decisions: Tensor) -> None:
        """One operator's decisions: what `Decisions` calls."""
        if self._place < 0:
            self.decided.append(Decided(stage, kind, decisions.clone()))
            return
        if self._place == len(self.decided):
            raise RuntimeError(f"{stage}: more operators decide than in the unperturbed run")
        self.decided[self._place].add(decisions)
        self._place += 1

    def rows(self, grid: tuple[int, ...], inside: Callable[[np.ndarray], np.ndarray]) -> list[Row]:
        """A row for each stage and kind, in order of execution. flipped: share of (decision,
        sample) that differ from the unperturbed run's; unsettled: share of decisions that are not
        the same in all samples; flipped_brain: of those in the voxels that `inside` picks from a
        volume of the network's grid, each voxel alike."""
        groups: dict[tuple[str, str], list[Decided]] = defaultdict(list)
        for one in self.decided:
            groups[one.stage, one.kind].append(one)
        rows = []
        for (stage, kind), members in groups.items():
            number = sum(one.unperturbed.numel() for one in members)
            flips = sum(int(one.flips.sum()) for one in members if one.flips is not None)
            open_ = sum(int(one.unsettled.sum()) for one in members if one.unsettled is not None)
            share = self.map(members, grid)
            brain = math.nan if share is None else float(inside(share).mean())
            rows.append(
                {
                    "stage": stage,
                    "kind": kind,
                    "decisions": number,
                    "flipped": flips / number / self.samples,
                    "flipped_brain": brain,
                    "unsettled": open_ / number,
                    "runs": self.samples,
                }
            )
        return rows

    def map(self, members: list[Decided], grid: tuple[int, ...]) -> np.ndarray | None:
        """Share of the decisions at each voxel of the network's grid that flip, in the mean over
        the samples; None where they have no place on it. A voxel of a coarser grid, or of an axis
        of length 1, stands for those that it covers."""
        flips, number = np.zeros(grid), np.zeros(grid)
        for one in members:
            shape = tuple(one.unperturbed.shape)
            if one.flips is None or not _divides(shape[-3:], grid):
                continue
            leading = math.prod(shape[:-3])
            flips_XYZ = one.flips.reshape(leading, *shape[-3:]).sum(dim=0).double().numpy()
            for axis, n in enumerate(grid):
                flips_XYZ = flips_XYZ.repeat(n // flips_XYZ.shape[axis], axis=axis)
            flips += flips_XYZ
            number += leading
        if not number.any():
            return None
        return flips / number / self.samples

    def maps(self, grid: tuple[int, ...]) -> dict[str, np.ndarray]:
        """`map` of all decisions of a kind."""
        kinds = dict.fromkeys(one.kind for one in self.decided)
        found = {k: self.map([one for one in self.decided if one.kind == k], grid) for k in kinds}
        return {kind: share for kind, share in found.items() if share is not None}


def flips(case: Case, runs: int) -> tuple[list[Row], dict[str, np.ndarray]]:
    """Rows of `Record.rows`, and a map (X, Y, Z) for each kind, of one unperturbed registration
    and `runs` perturbed ones with an experiment's seeds.

    Last comes what a user of the warp decides: of which voxel of the moving image, as the network
    has it, a label is taken.
    """
    network, labels = Record(), Record()
    for run in range(runs + 1):
        config = case.config(run) if run else case.config(mode="nearest")
        if run:
            network.start_sample()
            labels.start_sample()
        watch = Decisions(network.hear)
        result = register(case.prepared, case.settings.model, config, watch=watch)
        labels.hear(LABELS, "nearest", torch.from_numpy(_nearest(result.warp_XYZV)))
    brain, back = case.masks["brain"], case.prepared.moved_back
    grid, fixed = case.prepared.fixed.shape, case.fixed.data.shape
    rows = network.rows(grid, lambda share_XYZ: back(share_XYZ)[brain])
    rows += labels.rows(fixed, lambda share_XYZ: share_XYZ[brain])
    maps = {kind: back(share_XYZ) for kind, share_XYZ in network.maps(grid).items()}
    return rows, maps | {LABELS: labels.maps(fixed)["nearest"]}


def _divides(shape: tuple[int, ...], grid: tuple[int, ...]) -> bool:
    """Whether the grid is one of this shape with every voxel cut into equal parts."""
    return len(shape) == len(grid) and not any(map(operator.mod, grid, shape))


def _nearest(warp_XYZV: np.ndarray) -> np.ndarray:
    """Number of the voxel nearest to where the warp leads, (X, Y, Z) int64."""
    shape = warp_XYZV.shape[:3]
    places = np.moveaxis(np.indices(shape), 0, -1) + warp_XYZV.astype(np.float64)
    places = np.clip(np.rint(places), 0, np.array(shape) - 1).astype(np.int64)
    return np.asarray(np.ravel_multi_index(tuple(np.moveaxis(places, -1, 0)), shape))
