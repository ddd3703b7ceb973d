"""What TensorFlow's ways of training in parallel do on CPUs: why the trainer here is torch.

    make tf-parallelism

Trains a small VxmDense for a few steps under each strategy, on two pairs per step and two threads
altogether; kills a worker; asks the Slurm resolver where a CPU cluster is. Every case is a process
of its own (or two). Writes the table into notes/findings/tf_parallelism.md.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import statistics
import subprocess
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.harness import NOTES, heading, result, start
from morphbits import config
from morphbits.errors import run_cli

NOTE = NOTES / "findings" / "tf_parallelism.md"
BEGIN, END = "<!-- begin make tf-parallelism -->", "<!-- end make tf-parallelism -->"
SHAPE = (32, 32, 32)
WIDTHS = [[16, 32, 32, 32], [32, 32, 32, 32, 16, 16]]
STEPS, WARM_UP = 6, 2
STRATEGIES = {
    "default": "none: one process, two threads",
    "mirrored": "MirroredStrategy()",
    "logical": "MirroredStrategy over two logical CPUs that the script has made",
}
SLURM = {
    "SLURM_PROCID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
}
PATIENCE = 180  # seconds for a case, of which most take twenty
LOST = 30  # seconds to wait for the end of a worker whose partner was killed


def train(strategy: str, threads: int, steps: int) -> dict[str, Any]:
    """Train under default, mirrored, logical (two logical CPUs) or workers (TF_CONFIG)."""
    from morphbits.models import synthmorph_tf

    tf, vxm = synthmorph_tf.tf, synthmorph_tf.vxm
    import numpy as np

    if strategy == "logical":
        cpus = tf.config.list_physical_devices("CPU")
        halves = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(cpus[0], halves)
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    make = {
        "default": tf.distribute.get_strategy,
        "mirrored": tf.distribute.MirroredStrategy,
        "logical": lambda: tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]),
        "workers": tf.distribute.MultiWorkerMirroredStrategy,
    }[strategy]
    parallel = make()
    tf.keras.utils.set_random_seed(1)
    with parallel.scope():
        model = vxm.networks.VxmDense(SHAPE, WIDTHS, int_steps=5, reg_field="warp")
        losses = [vxm.losses.MSE().loss, vxm.losses.Grad("l2").loss]
        model.compile(tf.keras.optimizers.Adam(1e-3), losses, loss_weights=[1, 0.1])
    random = np.random.default_rng(1)
    images = [random.random((2, *SHAPE, 1), np.float32) for _ in range(2)]
    none = np.zeros((2, *SHAPE, 3), np.float32)
    pairs = tf.data.Dataset.from_tensor_slices(((images[0], images[1]), (images[1], none)))
    options = tf.data.Options()
    off = tf.data.experimental.AutoShardPolicy.OFF
    options.experimental_distribute.auto_shard_policy = off
    pairs = pairs.batch(2).repeat().with_options(options)
    ends: list[float] = []

    def note(batch: int, logs: object) -> None:
        ends.append(time.perf_counter())
        print(f"step {batch}", flush=True)

    watch = tf.keras.callbacks.LambdaCallback(on_batch_end=note)
    model.fit(pairs, steps_per_epoch=steps, epochs=1, verbose=0, callbacks=[watch])
    weights = b"".join(weight.tobytes() for weight in model.get_weights())
    seconds = [b - a for a, b in zip(ends[WARM_UP:], ends[WARM_UP + 1 :], strict=False)]
    return {
        "devices": len(tf.config.list_physical_devices("CPU")),
        "replicas": parallel.num_replicas_in_sync,
        "seconds": statistics.median(seconds) if seconds else 0.0,
        "weights": hashlib.sha256(weights).hexdigest()[:12],
    }


def resolve() -> list[str]:
    """What TensorFlow's Slurm resolver finds, without and with GPUs that are not there."""
    from morphbits.models import synthmorph_tf

    resolver = synthmorph_tf.tf.distribute.cluster_resolver.SlurmClusterResolver
    rows = []
    for arguments in ({}, {"gpus_per_node": 0}, {"gpus_per_node": 2}):
        try:
            tasks = resolver(**arguments).cluster_spec().as_dict()["worker"]
            gpus = os.environ["CUDA_VISIBLE_DEVICES"]
            found = f"{len(tasks)} tasks, and sets CUDA_VISIBLE_DEVICES={gpus}"
        except Exception as error:
            found = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        words = ", ".join(f"{name}={value}" for name, value in arguments.items())
        rows.append(f"| SlurmClusterResolver({words}) | {found} |")
    return rows


# ------------------------------------------------------------------------------ processes


def workers(steps: int) -> list[subprocess.Popen[str]]:
    """Two workers of MultiWorkerMirroredStrategy, one thread each, on this machine."""
    sockets = [socket.create_server(("localhost", 0)) for _ in range(2)]
    addresses = [f"localhost:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    started = []
    for index in range(2):
        task = {"type": "worker", "index": index}
        cluster = json.dumps({"cluster": {"worker": addresses}, "task": task})
        started.append(start(train, "workers", 1, steps, environment={"TF_CONFIG": cluster}))
    return started


def lost_worker() -> str:
    """What becomes of a worker whose partner is killed after a few steps."""
    left, killed = workers(10_000)
    assert killed.stdout is not None
    while (line := killed.stdout.readline()) and "step 3" not in line:
        pass
    killed.send_signal(signal.SIGKILL)
    began = time.monotonic()
    try:
        left.communicate(timeout=LOST)
    except subprocess.TimeoutExpired:
        left.kill()
        left.communicate()
        return f"the other still hangs after {LOST} s"
    seconds = time.monotonic() - began
    return f"the other ends after {seconds:.0f} s with status {left.returncode}"


def table(lines: list[str]) -> Iterator[None]:
    """Run the cases one by one, and add what each gives to the note's block."""
    lines += [
        heading("make tf-parallelism", "tensorflow-cpu", "voxelmorph"),
        "",
        "VxmDense "
        f"(enc 16 32 32 32, dec 32·4 16 16), {'×'.join(map(str, SHAPE))}, two pairs a step, two "
        "threads altogether.",
        "",
        "| Slurm: 2 nodes × 2 tasks, no GPU | finds |",
        "|---|---|",
        *result(start(resolve, environment=SLURM), PATIENCE),
        "",
        "| strategy | CPU devices | replicas | seconds per step |",
        "|---|---|---|---|",
    ]
    yield
    for strategy, name in STRATEGIES.items():
        found = result(start(train, strategy, 2, STEPS + WARM_UP), PATIENCE)
        lines.append(_row(name, found))
        yield
    pair = [result(each, PATIENCE) for each in workers(STEPS + WARM_UP)]
    name = "MultiWorkerMirroredStrategy, two processes of one thread (TF_CONFIG)"
    lines.append(_row(name, pair[0]))
    if None not in pair:
        alike = "the same" if pair[0]["weights"] == pair[1]["weights"] else "different"
        lines += ["", f"- The two workers end with {alike} weights."]
    yield
    lines.append(f"- One of two workers killed in mid-training: {lost_worker()}.")
    yield


def _row(name: str, found: dict[str, Any] | None) -> str:
    if found is None:
        return f"| {name} | | | did not end within {PATIENCE} s |"
    return f"| {name} | {found['devices']} | {found['replicas']} | {found['seconds']:.2f} |"


def main() -> None:
    config.parser(__doc__).parse_args()
    before, _, rest = NOTE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    lines: list[str] = []
    for _ in table(lines):
        block = "\n".join(["", *lines, ""])
        NOTE.write_text(f"{before}{BEGIN}{block}{END}{after}", encoding="utf-8")
        print(lines[-1], flush=True)
    print(f"written into {NOTE}")


if __name__ == "__main__":
    run_cli(main)
