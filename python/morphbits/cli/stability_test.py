"""Whether two results differ by more than rounding: same, different, or cannot tell.

    morphbits stability-test --a here/ --b there/ --experiment smoke
    morphbits stability-test --a old_T1w.nii.gz --b new_T1w.nii.gz --experiment smoke --alpha 0.1

A and B: two results of the same computation (two machines, versions, numbers of threads), as
folders or files: NIfTI or MGH images, warps, label maps, affine transforms (.txt, .tfm, .mat),
.npy, .npz, .pt, .csv, .tsv or .json. results/EXPERIMENT is the reference: perturbed samples of the
same subjects, in sample-01, sample-02, …; A's and B's files have the samples' paths or names.

Exit status: 0 same, 1 different, 2 cannot tell (too few samples: it says how many are needed; or
an error in the command or a file), 70 an internal error of morphbits. Under `make` it is 2 for all
but same: a program asks `morphbits`, or reads verdict.json.
Writes verdict.json, files.csv and stability-test.html into results/EXPERIMENT/stability-test/.
"""

from __future__ import annotations

from pathlib import Path

from morphbits import bids, config
from morphbits.samples.experiment import recorded_dataset
from morphbits.studies.stability_test import page, results
from morphbits.studies.stability_test.verdict import judge


def main() -> int:
    parser = config.parser(__doc__)
    parser.add_argument("--a", type=Path, required=True, help="a result: a folder or a file")
    parser.add_argument("--b", type=Path, required=True, help="the other one")
    parser.add_argument("--experiment", required=True, help="name of the folder in results/")
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="folder of all experiments"
    )
    parser.add_argument(
        "--alpha", type=config.real(1e-6, 0.5), default=0.05,
        help="false-alarm level: how often results that differ by rounding alone may be called "
        "different (default: 0.05)",
    )  # fmt: skip
    parser.add_argument(
        "--floor", type=config.real(0, 53),
        help="significant bits in which A and B must agree in the mean, whatever the samples do",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, help="folder to write to (default: in the experiment's)"
    )
    given = parser.parse_args()
    reference = bids.experiment_folder(given.results, given.experiment)
    files = results.find(given.a, given.b, reference)
    if rest := results.left_out(given.a, given.b, files):
        print(f"not compared, no sample has these names: {', '.join(map(str, rest))}", flush=True)
    subjects = []
    for subject, compared in files.items():
        subjects.append(results.compare_subject(subject, compared))
        print(f"{subject}: distance {subjects[-1].distance:.3g}, of two samples at most "
              f"{subjects[-1].largest:.3g}", flush=True)  # fmt: skip
    verdict = judge(subjects, given.alpha, given.floor)
    recorded = (reference / "experiment.json").is_file()
    written = page.write(
        given.output or reference / "stability-test",
        verdict,
        files,
        recorded_dataset(given.results, given.experiment) if recorded else None,
        {"a": str(given.a), "b": str(given.b), "reference": str(reference)},
    )
    print(f"{verdict.word}: {verdict.why}")
    print(written)
    return verdict.status
