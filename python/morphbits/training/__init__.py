"""Training: one loop for one process and for many.

    from morphbits.training import TrainConfig, train

A training is a folder: `checkpoint.pt` (all that is needed to go on; replaced whole, never half
written), `log.csv` (one row per step), `times.csv`, TensorBoard's events and, at the end,
`model.h5`. Same configuration and number of processes on the same machine and versions: same bytes
of log and model, interrupted or not. See notes/training.md.

Arrays here and in the modules: B batch, C channels, V warp component, X Y Z space; N weights;
float32 where nothing else is said.
"""

from morphbits.training.loop import RunConfig, train
from morphbits.training.recipe import TrainConfig

__all__ = ["RunConfig", "TrainConfig", "train"]
