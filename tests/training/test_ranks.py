"""Training in several processes: the sums, the replicas, and what happens when one is lost."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.toy_training import TOY, ToySource, outputs, train_ranks

from morphbits.errors import UserError
from morphbits.models.synthmorph_torch import init_model
from morphbits.synthesis.settings import Ranks
from morphbits.training import RunConfig, checkpoint, loop, meeting, network, optimizers
from morphbits.training.rounding import TrainingEngine

ROOT = Path(__file__).resolve().parents[2]
PATHS = os.pathsep.join(str(ROOT / name) for name in ("tests", "python"))
TOY_PROGRAM = str(ROOT / "tests" / "support" / "toy_training.py")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of two ranks."""
    folder = tmp_path_factory.mktemp("two")
    assert train_ranks(2, folder) == ["", ""]
    return folder


@pytest.mark.parametrize("size, engine", [(2, "ieee"), (3, "ieee"), (2, "native")])
def test_ranks_are_one_process_that_averages_their_gradients_in_order(
    size: int, engine: str, two: Path, tmp_path: Path
) -> None:
    """Byte for byte: what several processes train is what one does by taking turns. Perturbed,
    each rank draws for itself, and all alike for the sum of each kernel and for Adam (Keras')."""
    config, folder = TOY, two
    if engine == "native":
        config = replace(TOY, engine=engine, epochs=1, steps=3, optimizer="keras-adam")
    if (size, engine) != (2, "ieee"):
        folder = tmp_path
        assert train_ranks(size, folder, config) == [""] * size
    source, rounding = ToySource(config, Ranks(size=size)), TrainingEngine(config, 1)
    with network.deterministic(1), ExitStack() as stack:
        if engine == "ieee":
            stack.enter_context(network.OneDnnConvolution())
        model = init_model(config.architecture(), config.seed, loop.FLOW_STD)
        model.to(memory_format=loop.layout(config))
        model.architecture = replace(
            model.architecture, orientation=source.orientation, inshape=source.shape
        )
        parameters, adam = list(model.parameters()), optimizers.build(model, config)
        for step in range(config.total_steps):
            gradients = []
            for rank in range(size):
                pair = source.pair(*divmod(step, config.steps), rank)
                pair = loop._on(torch.device("cpu"), pair, loop.layout(config))
                with rounding.of_rank(step, rank):
                    loss = network.registration_loss(model, pair, config)["loss"]
                    gradients.append(torch.autograd.grad(loss, parameters))
            for number, (parameter, (first, *others)) in enumerate(
                zip(parameters, zip(*gradients, strict=True), strict=True)
            ):
                with rounding.of_sum(step, number):
                    total = in_memory(first, parameter)
                    for other in others:
                        total = total + in_memory(other, parameter)
                    mean = total / float(size)
                parameter.grad = mean.as_strided(parameter.shape, parameter.stride())
            optimizers.set_rate(adam, config.rate(step), config.flow_rate)
            with rounding.of_all(step):
                adam.step()
    model.save(tmp_path / "alone.h5")
    assert (tmp_path / "alone.h5").read_bytes() == outputs(folder)[0]


def in_memory(gradient: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """The gradient's numbers in a row, as those of the kernel lie in memory: roundings depend on
    that order."""
    laid_out = torch.empty_like(parameter, requires_grad=False).copy_(gradient)
    return laid_out.as_strided((gradient.numel(),), (1,))


@pytest.mark.parametrize("kind", ["dice", "tissues"])
def test_the_mean_of_gradients_is_the_gradient_of_the_whole_batch(kind: str) -> None:
    """In float64, where nothing but the order of sums can differ.

    A derivative is a sum over n = 2·16³ places, of products that went through layers of sums of 81
    terms, eight in all. Roundings of 2^-53 add up to about √n of them; allowed are n, the worst
    case of one chain, which leaves a factor of √n = 94 for terms that cancel.
    """
    config = replace(TOY, loss=kind)

    def of(batch: int, rank: int) -> list[torch.Tensor]:
        pair = ToySource(replace(config, batch=batch), Ranks()).pair(0, 0, rank)
        double = type(pair)(*(x.double() for x in vars(pair).values()))
        model = init_model(config.architecture(), 1).double()
        network.registration_loss(model, double, config)["loss"].backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    whole, first, second = of(2, 0), of(1, 0), of(1, 1)
    assert len(whole) == 10
    for w, a, b in zip(whole, first, second, strict=True):
        assert ((a + b) / 2 - w).abs().max() <= 2**-53 * (2 * 16**3 + 8 * 81) * w.abs().max()


def test_shared_moments_change_no_byte(two: Path, tmp_path: Path) -> None:
    """ZeRO-1, interrupted after an epoch and resumed without."""
    assert train_ranks(2, tmp_path, replace(TOY, epochs=2), RunConfig(zero=True)) == ["", ""]
    assert train_ranks(2, tmp_path, TOY, RunConfig(resume=True, zero=True)) == ["", ""]
    assert outputs(tmp_path) == outputs(two)
    content = [torch.load(folder / "checkpoint.pt") for folder in (tmp_path, two)]
    digests = {checkpoint.digest(c["weights"] | c["optimizer"]["state"]) for c in content}
    assert len(digests) == 1


def test_resumed_ranks_equal_uninterrupted_ones(two: Path, tmp_path: Path) -> None:
    assert train_ranks(2, tmp_path, replace(TOY, epochs=1)) == ["", ""]
    assert train_ranks(2, tmp_path, TOY, RunConfig(resume=True)) == ["", ""]
    assert outputs(tmp_path) == outputs(two)


def test_resume_refuses_another_number_of_processes(two: Path) -> None:
    said = train_ranks(3, two, TOY, RunConfig(resume=True))
    assert all("was started with processes 2" in message for message in said), said


def test_machines_with_other_software_or_label_maps_are_named(tmp_path: Path) -> None:
    said = train_ranks(2, tmp_path, other_made=(1, {"label maps": "9f"}), machines=2)
    expected = "label maps: None on the machine of rank 0, 9f on that of rank 1; the machines"
    assert all(message.startswith(expected) for message in said), said


def test_replicas_that_differ_in_one_bit_end_the_training(tmp_path: Path) -> None:
    said = train_ranks(2, tmp_path, differ=(1, 5))
    assert all("the weights of rank 1 differ from those of rank 0" in m for m in said), said
    content = torch.load(tmp_path / "checkpoint.pt")
    assert content["step"] == 4  # the last one before


def test_every_rank_hears_of_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    said = train_ranks(2, tmp_path, infinite=(1, 2))
    assert all("the loss is not finite" in message for message in said), said


def test_ranks_hear_that_another_has_died(two: Path, tmp_path: Path) -> None:
    start = time.monotonic()
    said = train_ranks(3, tmp_path, die=(1, 6))
    assert said[1] == f"exit status {-signal.SIGKILL}"
    assert all("another process of the training has ended" in said[r] for r in (0, 2)), said
    assert time.monotonic() - start < 120  # and not the ten minutes of a rank that is silent
    assert torch.load(tmp_path / "checkpoint.pt")["step"] == 4


@pytest.mark.slow
def test_a_rank_that_does_not_answer_ends_the_training_in_a_sentence(tmp_path: Path) -> None:
    said = train_ranks(2, tmp_path, silent=(1, 5), patience=5)
    assert "another process of the training does not answer" in said[0], said
    assert torch.load(tmp_path / "checkpoint.pt")["step"] == 4


# ------------------------------------------------------------ as users start them


def test_a_dead_rank_ends_the_job_and_resume_goes_on(two: Path, tmp_path: Path) -> None:
    step = 4 + int.from_bytes(os.urandom(4), "big") % 8
    assert train_ranks(2, tmp_path, die=(1, step))[1] == f"exit status {-signal.SIGKILL}"
    assert train_ranks(2, tmp_path, TOY, RunConfig(resume=True)) == ["", ""]
    assert outputs(tmp_path) == outputs(two), step


@pytest.mark.slow
def test_two_machines_give_the_bytes_of_one(two: Path, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    meeting = (
        "--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}",
        "--rdzv-id", "test", "--local-addr", "127.0.0.1",
    )  # fmt: skip
    command = [sys.executable, "-m", "torch.distributed.run", *meeting, "--nproc-per-node", "1"]
    environment = {**os.environ, "PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1"}
    hosts = [
        subprocess.Popen([*command, TOY_PROGRAM, str(tmp_path)], env=environment) for _ in range(2)
    ]
    assert [host.wait(300) for host in hosts] == [0, 0]
    assert outputs(tmp_path) == outputs(two)


def script(folder: Path, *words: str, stderr: int | None = None) -> subprocess.Popen[str]:
    """scripts/train_ddp.sh on small phantoms."""
    small = ["--enc=2 2", "--dec=2 2", "--threads=1", f"--model-dir={folder}"]
    return subprocess.Popen(
        [str(ROOT / "scripts" / "train_ddp.sh"), *small, *words],
        env={**os.environ, "NPROC": "2"}, text=True, stdout=subprocess.PIPE, stderr=stderr,
    )  # fmt: skip


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--experiment=nope"], "there is no such recipe"),
        (["--source=phantom-pairs", "--labels=shapes"], "are for the source synthmorph"),
        pytest.param([], "holds a training already; RESUME=1", marks=pytest.mark.slow),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(
    words: list[str], sentence: str, tmp_path: Path
) -> None:
    """Found before any rank is started, by all ranks, or by the first one."""
    if not words:
        (tmp_path / "checkpoint.pt").write_bytes(b"")
    job = script(tmp_path, *words, stderr=subprocess.PIPE)
    _, said = job.communicate(timeout=300)
    assert job.returncode == 2
    assert [line for line in said.splitlines() if "error: " in line] == [said.strip()]
    assert sentence in said


def test_a_rank_that_is_killed_is_named(tmp_path: Path) -> None:
    job = script(tmp_path, stderr=subprocess.PIPE)
    assert job.stdout is not None and job.stderr is not None
    job.stdout.readline()  # of the first rank: all have been started
    os.kill(max(processes_of(tmp_path, b"train-ddp")), signal.SIGKILL)
    said = job.communicate(timeout=120)[1]
    assert job.returncode == 128 + signal.SIGKILL
    assert "was ended by SIGKILL (often memory ran out" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    "killed",
    ["morphbits.training.launch", pytest.param("scripts/train_ddp.sh", marks=pytest.mark.slow)],
)
def test_ranks_save_and_end_when_what_started_them_is_killed(killed: str, tmp_path: Path) -> None:
    job = script(tmp_path, "--epochs=50", "--steps=2")
    assert job.stdout is not None
    while not job.stdout.readline().startswith("epoch 1/"):
        assert job.poll() is None
    ranks = processes_of(tmp_path, b"train-ddp")
    assert len(ranks) == 2
    (parent,) = {*processes_of(tmp_path, killed.encode())} - {*ranks}
    os.kill(parent, signal.SIGKILL)
    said = job.communicate(timeout=120)[0]  # when nobody has its standard output any more
    end = time.monotonic() + 60
    while processes_of(tmp_path):
        assert time.monotonic() < end, "ranks train on"
        time.sleep(0.1)
    with (tmp_path / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    saved = torch.load(tmp_path / "checkpoint.pt")["step"]
    assert f"stopped by SIGTERM after step {saved} of 100" in said


@pytest.mark.parametrize("known", [True, False])
def test_a_process_hears_of_its_parents_death_before_it_asked(known: bool, tmp_path: Path) -> None:
    """Through a parent that dies at once, and a child that waits for that before it asks."""
    child = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: os.write(1, b'told') and os._exit(0))\n"
        "while os.getppid() == int(sys.argv[1]): time.sleep(0.01)\n"
        "from morphbits.parent import end_with_parent\n"
        f"end_with_parent({'int(sys.argv[1])' if known else ''}); os.write(1, b'not told')\n"
    )
    parent = (
        "import os, subprocess, sys\n"
        "os.environ['MORPHBITS_PARENT'] = str(os.getpid())\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}, str(os.getpid())])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", parent], env=os.environ | {"PYTHONPATH": PATHS},
        capture_output=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout == b"told"


def test_under_verrou_the_script_between_passes_it_on(tmp_path: Path) -> None:
    """The stand-in for Valgrind runs its program; both end with whoever started the script."""
    (tmp_path / "bin").mkdir()
    valgrind = tmp_path / "bin/valgrind"
    valgrind.write_text(
        "#!/bin/bash\n[ $2 = --version ] && echo verrou-2.7.0 && exit\n"
        "trap 'echo saved; exit' TERM\necho started\nwhile :; do sleep 0.1; done\n"
    )
    valgrind.chmod(0o755)
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/morphbits-markers.so").touch()
    words = [str(ROOT / "scripts/with_verrou.sh"), "--", sys.executable, str(tmp_path)]
    starter = (
        "import os, subprocess, time\n"
        "os.environ['MORPHBITS_PARENT'] = str(os.getpid())\n"
        f"subprocess.Popen({words!r}); time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", starter], text=True, stdout=subprocess.PIPE,
        env=os.environ | {"VERROU_PREFIX": str(tmp_path), "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert parent.stdout is not None
    assert parent.stdout.readline() == "started\n"
    parent.kill()
    assert parent.communicate(timeout=60)[0] == "saved\n"  # and then nobody writes any more


@pytest.mark.parametrize("wrong", ["nowhere.invalid:29400", "node1", "127.0.0.1:port"])
def test_a_meeting_place_that_is_none_is_named(wrong: str) -> None:
    with pytest.raises(UserError, match=f"RDZV={wrong}: this machine knows no such place"):
        meeting.options(wrong)


def test_on_one_machine_torch_is_told_nothing() -> None:
    for place in ("127.0.0.1:29400", "localhost:29400", "[::1]:29400"):
        assert meeting.options(place) == []


@pytest.fixture
def two_networks() -> Iterator[tuple[str, str]]:
    """Two machines' networks (10.77.0.1 and .2), a cable between them, no names."""
    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("networks of their own need root and iproute2")
    names = tuple(f"morphbits-{os.getpid()}-{k}" for k in (1, 2))
    ends = [f"mb{os.getpid()}.{k}" for k in (1, 2)]
    cable = f"link add {ends[0]} netns {names[0]} type veth peer name {ends[1]} netns {names[1]}"
    commands = [*(f"netns add {name}" for name in names), cable]
    for k, (name, end) in enumerate(zip(names, ends, strict=True), 1):
        commands += [f"-n {name} link set lo up", f"-n {name} addr add 10.77.0.{k}/24 dev {end}"]
        commands += [f"-n {name} link set {end} up"]
    try:
        for command in commands:
            done = subprocess.run(["ip", *command.split()], capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"no networks of their own here: {done.stderr.strip()}")
        yield names[0], names[1]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def on_machine(network: str, folder: Path, place: str) -> subprocess.Popen[str]:
    small = ["--enc=2 2", "--dec=2 2", "--threads=1", "--epochs=1", "--steps=2"]
    kept = {name: value for name, value in os.environ.items() if "_SOCKET_IFNAME" not in name}
    return subprocess.Popen(
        ["ip", "netns", "exec", network, str(ROOT / "scripts/train_ddp.sh"), *small,
         f"--model-dir={folder}"],
        env=kept | {"NPROC": "1", "NNODES": "2", "RDZV": place, "RUN_ID": "test"},
        text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.slow
def test_machines_meet_by_an_address(two_networks: tuple[str, str], tmp_path: Path) -> None:
    jobs = [on_machine(network, tmp_path, "10.77.0.2:29433") for network in two_networks]
    said = [job.communicate(timeout=300) for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], said
    assert "in each of 2 processes" in said[0][0] + said[1][0]
    assert (tmp_path / "model.h5").exists()


@pytest.mark.slow
def test_machines_that_do_not_meet_say_so(two_networks: tuple[str, str], tmp_path: Path) -> None:
    for place, sentence in (
        ("10.77.0.2:29433", "the machines did not meet"),  # nobody is there
        ("10.88.0.1:29433", "there is no way from this machine to 10.88.0.1"),
    ):
        job = on_machine(two_networks[0], tmp_path, place)
        said = job.communicate(timeout=300)[1]
        assert job.returncode == 2
        assert len(said.splitlines()) == 1 and said.startswith(f"error: RDZV={place}: ")
        assert sentence in said


def processes_of(folder: Path, *words: bytes) -> list[int]:
    """Processes whose command line has this folder and these words."""
    return [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if all(word in _content(path) for word in (str(folder).encode(), *words))
    ]


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # that process has ended
        return b""


@pytest.mark.slow
def test_the_script_saves_at_sigterm_and_resumes(tmp_path: Path) -> None:
    sizes = ("--epochs=3", "--steps=10")
    whole = script(tmp_path / "whole", *sizes)
    said = whole.communicate(timeout=300)[0]
    assert whole.returncode == 0
    assert said.startswith("train-demo: ")
    assert "registers with it" in said
    assert (tmp_path / "whole" / "loss.png").stat().st_size > 10_000

    cut = script(tmp_path / "cut", *sizes)
    assert cut.stdout is not None
    for line in cut.stdout:
        if line.startswith("epoch 1/3"):
            cut.send_signal(signal.SIGTERM)
            break
    said = cut.communicate(timeout=300)[0]
    assert cut.returncode == 143
    assert "stopped by SIGTERM after step" in said
    assert not (tmp_path / "cut" / "model.h5").exists()
    on = script(tmp_path / "cut", *sizes, "--resume")
    on.communicate(timeout=300)
    assert on.returncode == 0
    assert outputs(tmp_path / "cut") == outputs(tmp_path / "whole")
