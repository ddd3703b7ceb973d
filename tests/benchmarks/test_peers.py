"""The benchmark on other networks: what is timed, left out, kept and written."""

from pathlib import Path

import pytest
import torch

from benchmarks import peer_networks, peers
from benchmarks.peer_networks import EcapaTdnn, FastSurferVINN

install = peers.install


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Few turns in this process, nothing kept outside the test, no package from an index."""
    monkeypatch.setattr(peers, "SECONDS", 0.0)
    monkeypatch.setattr(peers, "CACHE", tmp_path)
    monkeypatch.setattr(peers, "install", lambda: ("", "ERROR: no index"))
    monkeypatch.setattr(peers, "measured", lambda function, *a, environment: function(*a))


def run(monkeypatch: pytest.MonkeyPatch, path: Path, *networks: str) -> list[list[str]]:
    """Cells of the first table that the program writes."""
    words = ["peers", "--small", "--turns", "1", "--threads", "1", "--output", str(path)]
    monkeypatch.setattr("sys.argv", [*words, "--networks", *networks])
    peers.main()
    table = path.read_text().partition("## By operator")[0]
    lines = [line for line in table.splitlines() if line.startswith("| ")]
    return [line.strip("| ").split(" | ") for line in lines[1:]]


def test_every_mode_is_timed_and_counted() -> None:
    found = peers.passes("mnist", True, 1, 1)
    assert all(0 < min(pair) < float("inf") for pair in found["least"].values())
    counts = found["operations"]
    assert counts["plain"] == 0 and counts["random"] == counts["nearness"] == counts["nearest"]
    # of 50 images: the products and additions of the second convolution alone
    assert counts["random"] > 50 * 24**2 * 64 * 32 * 9


def test_a_whole_process_counts_units_that_are_not_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter(range(100))  # a second a call
    monkeypatch.setattr(peers.time, "process_time", lambda: next(clock))
    calls = []
    network = peer_networks.Network(lambda small: ("", lambda: calls.append(small)), "", units=50)
    monkeypatch.setitem(peer_networks.NETWORKS, "mnist", network)
    total = peers.whole("mnist", True, 1, "plain")
    assert len(calls) == peers.TRIED
    assert total == 2 * peers.TRIED + (50 - peers.TRIED)


def test_a_profile_has_the_operators_of_every_mode_with_the_shapes_of_products() -> None:
    found = peers.profile("mnist", True)
    assert set(found) == set(peers.MODES)
    second = "convolution 50×32×26×26, 64×32×3×3, 64"
    assert all("addmm 128, 50×9216, 9216×128" in of and second in of for of in found.values())


def test_a_profile_leaves_out_what_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[torch.Tensor] = []

    def compute() -> torch.Tensor:
        if not made:
            made.append(torch.arange(3.0))
        return made[0] + 1

    network = peer_networks.Network(lambda small: ("", compute), "")
    monkeypatch.setitem(peer_networks.NETWORKS, "mnist", network)
    found = peers.profile("mnist", True)
    assert all("arange" not in operators and "add" in operators for operators in found.values())


def test_the_table_has_a_row_for_every_mode_and_says_what_is_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = run(monkeypatch, tmp_path / "peers.md", "mnist", "gpt2")
    assert [row[2] for row in rows[:4]] == list(peers.MODES)
    assert rows[0][4] == rows[0][7] == "1.00"
    assert rows[4][:3] == ["gpt2", "", "left out: needs transformers. ERROR: no index"]
    assert list(tmp_path.glob("*.json")) == []


def test_a_stopped_benchmark_continues(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    def stopped(function: object, *arguments: object, environment: object) -> object:
        asked.append(arguments)
        if len(asked) == 3:
            raise KeyboardInterrupt
        if function is peers.whole:
            return 7.0
        if function is peers.profile:
            return {mode: {} for mode in peers.MODES}
        return {
            "title": "MNIST",
            "least": {mode: [1.0, 1.0] for mode in peers.MODES},
            "operations": dict.fromkeys(peers.MODES, 0),
        }

    monkeypatch.setattr(peers, "measured", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(monkeypatch, tmp_path / "peers.md", "mnist")
    before = list(asked)
    rows = run(monkeypatch, tmp_path / "peers.md", "mnist")
    assert [row[6] for row in rows] == ["7"] * 4
    assert asked[3] == before[2]  # what was measured is not measured again


def test_published_figures_are_in_the_rows_of_one_thread(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kept = peers.Kept(tmp_path / "kept.json", "")
    report = peers.Report(tmp_path / "peers.md", "Times", "make bench-peers", "torch")
    nothing = peer_networks.Network(
        lambda small: ("MNIST", lambda: None), "", published=("311", "335", "7.9", "10.9")
    )
    monkeypatch.setattr(peer_networks, "NETWORKS", {"mnist": nothing})
    for threads in (1, 2):
        peers.rows(report, kept, "mnist", False, threads, 1)
    cells = [line.split(" | ")[8:10] for line in report.lines if line.startswith("| MNIST")]
    assert cells[:4] == [["", ""], ["7.9×", "311×"], ["10.9×", "335×"], ["", ""]]
    assert cells[4:] == [["", ""]] * 4


def test_packages_that_cannot_be_had_are_a_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lock = tmp_path / "peers.lock"
    lock.write_text(f"transformers==1.0 --hash=sha256:{'0' * 64}\n")
    monkeypatch.setattr(peers, "LOCK", lock)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "empty").as_uri())
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    folder, reason = install()
    assert reason == "ERROR: No matching distribution found for transformers==1.0"
    assert not Path(folder).exists()


@torch.no_grad()
def test_the_networks_are_the_published_ones() -> None:
    """FastSurferVINN v2.1.1 has 1,854,632 parameters, counted there."""
    network = FastSurferVINN().eval()
    assert sum(p.numel() for p in network.parameters()) == 1_854_632
    assert network(torch.rand(1, 7, 32, 48)).shape == (1, 79, 32, 48)


@torch.no_grad()
def test_the_head_of_wavlm_gives_cosines() -> None:
    cosines = EcapaTdnn(48, 5, channels=32, wide=96).eval()(torch.randn(2, 48, 20))
    assert cosines.shape == (2, 5)
    assert cosines.abs().max() <= 1 + 1e-6  # a rounding of each of 192 products
