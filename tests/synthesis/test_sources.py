"""Sources of training pairs: functions of their key, in any order and however they are shared."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from morphbits.errors import UserError
from morphbits.synthesis.pair import Pair
from morphbits.synthesis.settings import Ranks, SourceConfig
from morphbits.synthesis.sources import open_source

CONFIG = SourceConfig(size="4mm", steps=3)


def as_bytes(pair: Pair) -> list[bytes]:
    return [getattr(pair, field.name).numpy().tobytes() for field in fields(Pair)]


def test_equal_keys_give_equal_bytes_in_any_order() -> None:
    keys = [(0, 0, 0), (0, 2, 1), (1, 0, 0)]
    ranks = Ranks(size=2)
    with open_source(CONFIG, ranks, 1) as source:
        first = [as_bytes(source.pair(*key)) for key in keys]
    torch.manual_seed(7)
    with open_source(CONFIG, ranks, 1) as source:
        again = [as_bytes(source.pair(*key)) for key in keys[::-1]]
    assert first == again[::-1]
    assert len({pair[0] for pair in first}) == 3


def test_ranks_share_the_batch_of_one_process() -> None:
    with open_source(SourceConfig(size="4mm", steps=3, batch=2), Ranks(), 1) as source:
        whole = source.pair(1, 2, 0)
    with open_source(CONFIG, Ranks(size=2), 1) as source:
        halves = [source.pair(1, 2, rank) for rank in (0, 1)]
    for k, half in enumerate(halves):
        for field in fields(Pair):
            assert torch.equal(getattr(whole, field.name)[k : k + 1], getattr(half, field.name)), (
                field.name
            )


def test_coarse_epochs_come_first() -> None:
    config = SourceConfig(size="2mm", coarse_epochs=1)
    with open_source(config, Ranks(), 1) as source:
        assert source.pair(0, 99, 0).moving.shape[2:] == (48, 48, 48)
        assert source.pair(1, 0, 0).moving.shape[2:] == (80, 96, 80)


def test_label_maps_belong_to_synthmorph() -> None:
    with (
        pytest.raises(UserError, match=r"labels \(shapes\) are for the source synthmorph"),
        open_source(SourceConfig(labels="shapes"), Ranks(), 1),
    ):
        pass
