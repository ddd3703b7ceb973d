"""What `random_rounding` does not see, what it sees all the same, and the note on it."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from morphbits import random_rounding
from morphbits.engines.native import table
from morphbits.errors import UserError

NOTE = Path(__file__).parents[3] / "notes" / "native-engine.md"


def test_the_note_holds_the_table_of_today() -> None:
    """If not: make operators."""
    assert table.insert(NOTE.read_text()) == NOTE.read_text()


def test_other_threads_and_numpy_are_not_perturbed() -> None:
    x = torch.rand(1000)
    expected, found = x * 0.1, []
    with random_rounding() as stats:
        thread = threading.Thread(target=lambda: found.append(x * 0.1))
        thread.start()
        thread.join()
        found.append(torch.from_numpy(x.numpy() * np.float32(0.1)))
        assert 0.1 + 0.2 == 0.30000000000000004
    assert all(torch.equal(one, expected) for one in found) and stats.operations == 0


def test_compiled_functions_run_uncompiled_and_perturbed() -> None:
    x = torch.rand(10)
    compiled = torch.compile(lambda x: (x * 0.1).sin(), backend="eager")
    scripted = torch.jit.script(_scale)
    compiled(x), scripted(x)
    with random_rounding() as stats:
        compiled(x), scripted(x)
    assert stats.operators == {"mul": 20, "sin": 10}


def _scale(x: Tensor) -> Tensor:
    return x * 0.1


def test_an_operator_of_another_library_is_an_error_or_allowed() -> None:
    @torch.library.custom_op("morphbits_test::mul", mutates_args=())
    def mul(x: Tensor) -> Tensor:
        return x * 0.1

    x = torch.rand(5)
    with random_rounding(), pytest.raises(UserError, match="morphbits_test::mul"):
        mul(x)
    with random_rounding(allow=["morphbits_test::mul", "_fft_r2c"]) as stats:
        assert torch.equal(mul(x), mul(x))
        torch.fft.rfft(x)
    assert stats.unperturbed == {"morphbits_test::mul": 2, "_fft_r2c": 1}


@pytest.mark.parametrize(
    "allow, message",
    [("exp", "a list"), (["exp"], "has a rule"), (["no_such"], "no operator 'no_such'")],
)
def test_what_may_be_allowed(allow: object, message: str) -> None:
    with pytest.raises(UserError, match=message), random_rounding(allow=allow):  # type: ignore[arg-type]
        pass


def test_fused_paths_come_back() -> None:
    def switches() -> tuple[bool, ...]:
        return (
            torch._C._get_flash_sdp_enabled(),
            torch._C._get_mkldnn_enabled(),
            torch.backends.mha.get_fastpath_enabled(),
        )

    before = switches()
    with pytest.raises(ZeroDivisionError), random_rounding():
        assert not any(switches())
        raise ZeroDivisionError
    assert switches() == before and all(before)


def test_what_is_written_into_out_is_perturbed() -> None:
    x, out = torch.rand(50), torch.empty(50)
    with random_rounding("upward") as stats:
        torch.exp(x, out=out)
        torch.add(x, x, alpha=0.1, out=out)
    assert stats.operators == {"exp": 50, "add": 100}
    assert (out.double() >= x.double() * (1 + 0.1)).all()


def test_tensors_without_values_pass_and_a_trace_is_an_error() -> None:
    x = torch.rand(3, 4)
    with random_rounding() as stats:
        shape = torch.softmax(x.to("meta") * 2, 1).sum(0)
        assert shape.is_meta and shape.shape == (4,) and stats.operations == 0
        with pytest.raises(UserError, match="traces"):
            torch.func.linearize(lambda v: v.sin() * v, x.double())


def test_every_way_to_a_derivative_is_perturbed() -> None:
    """Derivatives of every kind, and a second pass over a checkpoint."""
    x = torch.rand(5, dtype=torch.float64)

    def f(v: Tensor) -> Tensor:
        return (v.sin() ** 2 * v.sum()).sum()

    calls = (
        lambda: torch.func.hessian(f)(x),
        lambda: torch.func.jvp(f, (x,), (x,))[1],
        lambda: torch.func.vmap(torch.func.grad(f))(x[:, None]),
        lambda: torch.autograd.functional.hvp(f, x, x)[1],
        lambda: torch.utils.checkpoint.checkpoint(f, x, use_reentrant=False),
        lambda: torch.jit.trace(f, x)(x),
    )
    for call in calls:
        expected = call()
        with random_rounding("nearest") as stats:
            found = call()
        torch.testing.assert_close(found, expected, rtol=2**-40, atol=2**-40)
        assert stats.operations > 0
