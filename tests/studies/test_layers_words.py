"""What the page of layers says in words is what its tables show."""

from __future__ import annotations

from morphbits.studies.layers import page


def row(stage: str, within: str, share: float, left: float) -> dict[str, object]:
    return {"stage": stage, "within": within, "warp_share": share, "warp_except": left,
            "image_only": 20.0, "warp_only": 18.0}  # fmt: skip


def test_the_largest_share_is_that_of_the_outer_stages() -> None:
    """encoder-1 and flow are parts of the network: none of them is as large as rescaling, and the
    network is larger."""
    stages = [
        row("all", "", 1.0, 24.0),
        row("encoder-1", "network", 0.18, 18.1),
        row("flow", "network", 0.2, 18.2),
        row("network", "", 0.769, 19.0),
        row("rescaling", "", 0.211, 18.3),
    ]
    words = page.stages_words({"stages": stages})
    assert (
        "The largest share of the warp’s variance is network’s: 76.9 %; within it flow’s" in words
    )
    assert "single stages add up to 59.1 %. Computing rescaling without" in words
    assert "Most" not in words and "more than 100 %" not in words
    stages[4]["warp_share"] = 0.9
    words = page.stages_words({"stages": stages})
    assert "variance is rescaling’s: 90.0 %. The shares" in words
    assert "add up to 128.0 %: more than 100 %, since" in words
