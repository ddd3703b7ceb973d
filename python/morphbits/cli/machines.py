"""What moves a result: the same registration by every kernel and instruction set of this machine.

    morphbits machines --experiment smoke

torch and TensorFlow with and without oneDNN, in AVX-512, AVX2 and portable instructions as far as
the processor has them, on one thread and two, alone and in a batch, and the native engine in mode
nearest: how far each is from torch as it is installed, in bits, mm and Dice, next to the
experiment's perturbed samples. Writes machines.csv and machines.html into
results/EXPERIMENT/machines/, and orders.json.gz, the orders in which torch adds here: given as
--orders on another machine, it lets the native engine compute there what torch computes here.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from morphbits import bids, config, machine
from morphbits.files import write_atomically
from morphbits.report import html, notes
from morphbits.stats.analysis import write_table
from morphbits.studies.stability_test import machines


def main() -> None:
    parser = config.parser(__doc__)
    parser.add_argument("--experiment", required=True, help="name of the folder in results/")
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="folder of all experiments"
    )
    parser.add_argument(
        "--subject", type=config.whole(1), default=1, help="number in the dataset (default: 1)"
    )
    parser.add_argument(
        "--orders", type=Path, help="orders.json.gz of another machine: adds torch's results there"
    )
    parser.add_argument(
        "--notes", action="store_true", help="write the table to notes/benchmarks/ too"
    )
    given = parser.parse_args()
    say = partial(print, flush=True)
    folder = bids.experiment_folder(given.results, given.experiment) / "machines"
    rows = machines.measure(
        given.results, given.experiment, given.subject, folder, given.orders, say
    )
    columns = list(dict.fromkeys(key for row in rows for key in row))
    write_table(folder / "machines.csv", [{key: row.get(key) for key in columns} for row in rows])
    kernels = machines.table(rows, "torch, as installed")
    page = html.render(
        "studies/stability_test/machines.html",
        experiment=given.experiment,
        processor=machine.cpu()["name"],
        kernels=kernels,
    )
    write_atomically(folder / "machines.html", page.encode())
    say(folder / "machines.html")
    if given.notes:
        note = notes.file("machines", machine.cpu()["name"])
        settings = machines.settings_of(given.results, given.experiment)
        text = machines.in_markdown(kernels, given.experiment, settings)
        write_atomically(note, text.encode())
        say(note)
