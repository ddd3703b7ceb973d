"""Stages: what runs is known by name, and an engine can be told to act on some of them."""

from __future__ import annotations

import threading

import pytest
import torch

from morphbits import stages
from morphbits.engines.native import random_rounding
from morphbits.errors import UserError
from morphbits.models.synthmorph_torch import init_model
from morphbits.models.weights import Architecture

SMALL = Architecture((4, 4), (4, 4, 4), int_steps=2)
NAMES = [
    *("encoder-1", "encoder-2", "decoder-1", "decoder-2", "decoder-3", "flow", "network"),
    *("squaring-1", "squaring-2", "integration", "rescaling", "sampling"),
]


def register(perturb: str, precision: str = "24", mode: str = "random") -> tuple:
    """Moved image and warp, and what was counted."""
    model = init_model(SMALL, seed=1, flow_std=1.0)
    images = torch.rand(2, 1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(2))
    with (
        torch.no_grad(),
        random_rounding(mode, seed=3, perturb=perturb, precision=precision) as counts,
    ):
        moved, warp = model(*images)
    return moved, warp, counts


def test_nesting_threads_and_exceptions() -> None:
    seen = []

    def inner() -> tuple[str, ...]:
        thread = threading.Thread(target=lambda: seen.append(stages.current()))
        thread.start()
        thread.join()
        return stages.current()

    assert stages.run("a", stages.run, "b", inner) == ("a", "b")
    assert seen == [()]
    with pytest.raises(ZeroDivisionError):
        stages.run("a", lambda: 1 / 0)
    assert stages.current() == ()


def test_selections() -> None:
    def held(text: str, *names: str) -> bool:
        function = stages.select(text).holds
        for name in reversed(names):
            function = (lambda f, n: lambda: stages.run(n, f))(function, name)
        return function()

    assert held("all") and held("all", "a")
    assert held("only:a,b", "b") and held("only:a", "a", "c") and held("only:a", "c", "a")
    assert not held("only:a") and not held("only:a", "c")
    assert held("except:a") and held("except:a", "c") and not held("except:a", "c", "a")
    for wrong in ("", "a", "only", "only:", "only:a,", "none:a", "only:a b"):
        with pytest.raises(UserError, match="stages must be all, only:NAME,…"):
            stages.select(wrong)


def test_observers_see_every_stage_of_the_registration() -> None:
    seen = {}
    with stages.observed(lambda name, result: seen.update({name: result})):
        moved, warp, _ = register("all", mode="nearest")
    assert list(seen) == NAMES
    assert seen["sampling"] is moved and seen["rescaling"] is warp
    assert seen["network"] is seen["flow"] and seen["integration"] is seen["squaring-2"]


def test_listeners_hear_every_stage_before_it_runs() -> None:
    heard: list[str] = []
    with (
        stages.listening(heard.append),
        stages.observed(lambda name, result: heard.append(f"end of {name}")),
    ):
        register("all", mode="nearest")
    assert sorted(name for name in heard if " " not in name) == sorted(NAMES)
    assert heard[:2] == ["network", "encoder-1"] and heard[-1] == "end of sampling"
    for name in NAMES:
        assert heard.index(name) < heard.index(f"end of {name}")


def test_each_stage_alone_moves_what_follows_and_nothing_before() -> None:
    _, nearest, _ = register("all", mode="nearest")
    every = register("all")[2].operations
    leaves = [name for name in NAMES if name not in ("network", "integration")]
    total = 0
    for name in leaves:
        _, warp, counts = register(f"only:{name}")
        total += counts.operations
        assert torch.equal(warp, nearest) == (name == "sampling"), name
        rest = register(f"except:{name}")[2].operations
        assert rest == every - counts.operations > 0
    divided = every - total  # the division before the first squaring is integration's own
    assert divided == nearest.numel() // 8
    assert register("only:" + ",".join(NAMES))[2].operations == every


def test_all_stages_named_are_the_bytes_of_all() -> None:
    for one, other in zip(
        register("all")[:2], register("only:" + ",".join(NAMES))[:2], strict=True
    ):
        assert torch.equal(one, other)


def test_precision_acts_on_the_selected_stages_alone() -> None:
    seen: dict[str, torch.Tensor] = {}
    with stages.observed(lambda name, result: seen.update({name: result})):
        register("only:network", precision="bfloat16", mode="nearest")
    assert torch.equal(seen["flow"], seen["flow"].bfloat16().float())
    assert not torch.equal(seen["rescaling"], seen["rescaling"].bfloat16().float())


def test_a_stage_that_did_not_run_is_named() -> None:
    with pytest.raises(
        UserError, match=r"no stage encoder-3 was run.* are: .*encoder-2.*squaring-1"
    ):
        register("except:encoder-3")
