"""The table and the figure of native against Verrou."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from morphbits.studies.agreement.tables import table, write_maps


def arm(seed: int, spread: float) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)

    def results(*shape: int) -> np.ndarray:
        return (1 + spread * random.standard_normal((10, *shape))).astype(np.float32)

    return {"image": results(8, 9, 10), "warp": results(8, 9, 10, 3)}


ARMS = {"verrou-torch": arm(1, 1e-4), "native-direct": arm(2, 1e-4), "native-far": arm(3, 4e-4)}
FACTS = {"verrou-torch": (12.0, 1000), "native-direct": (0.05, 1001), "native-far": (0.06, 1002)}


def test_the_verdict_is_on_the_matching_order_alone() -> None:
    text, agrees = table(ARMS, FACTS)
    assert agrees
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| native-")]
    assert [(row[0], row[1], row[-1]) for row in rows[:4]] == [
        ("| native-direct", "image", "yes |"),
        ("| native-direct", "warp", "yes |"),
        ("| native-far", "image", "no |"),
        ("| native-far", "warp", "no |"),
    ]
    assert "| native-direct | 1,001 | 0.05 | 240 |" in text
    reordered = {name: ARMS[name] for name in ("verrou-torch", "native-far", "native-direct")}
    assert not table(reordered, FACTS)[1]


def test_the_figure_has_a_row_for_each_native_arm(tmp_path: Path) -> None:
    path = write_maps(ARMS, tmp_path)
    assert path == tmp_path / "verrou-torch.png"
    assert path.read_bytes().startswith(b"\x89PNG")
