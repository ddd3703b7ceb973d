"""Train a registration model in several processes: what `scripts/train_ddp.sh` starts on each.

    torchrun --standalone --nproc-per-node 2 -m morphbits train-ddp --experiment train-demo

Options and results are those of `morphbits train`. Each process draws its own pairs and computes
their gradient; all update the same weights with the mean. With several machines give torchrun the
same rendezvous on each: see notes/training.md.
"""

from __future__ import annotations

from morphbits.cli.train import train
from morphbits.training.group import processes


def main() -> None:
    with processes() as ranks:
        train(__doc__, ranks)
