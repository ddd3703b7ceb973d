"""Train a registration model in several processes: what `scripts/train_ddp.sh` starts on each.

    torchrun --standalone --nproc-per-node 2 python/train_ddp.py --experiment train-demo

Options and results are those of train_single.py. Each process draws its own pairs and computes
their gradient; all update the same weights with the mean. With several machines give torchrun the
same rendezvous on each: see notes/training.md.
"""

from __future__ import annotations

from morphbits.errors import run_cli
from morphbits.training.group import processes
from train_single import main


def run() -> None:
    with processes() as ranks:
        main(__doc__, ranks)


if __name__ == "__main__":
    run_cli(run)
