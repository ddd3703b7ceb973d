"""What `random_rounding` does not see, what it sees all the same, and the note on it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from morphbits import random_rounding
from morphbits.engines.native.rules import table
from morphbits.errors import UserError

NOTES = Path(__file__).parents[3] / "notes"


def test_the_page_of_operators_is_that_of_today() -> None:
    """If not: make operators."""
    assert (NOTES / "operators.md").read_text() == table.markdown()


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


def test_a_step_and_a_backward_pass_that_were_compiled_before_are_perturbed() -> None:
    """The operators are those of the same code that was never compiled."""
    weight, x = torch.nn.Parameter(torch.rand(20)), torch.rand(20)
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)

    def train() -> None:
        (weight * x).sin().sum().backward()
        optimizer.step()

    def operators(function: Callable[[], None]) -> dict[str, int]:
        with random_rounding() as stats:
            function()
        return stats.operators

    compiled = torch.compile(train, backend="aot_eager")
    step = torch.compile(optimizer.step, backend="eager")
    train(), compiled(), step()
    forward = torch.compile(lambda w: (w * x).sin().sum(), backend="aot_eager")
    other = torch.rand(20, requires_grad=True)
    outside, plain = forward(other), (other * x).sin().sum()
    assert operators(compiled) == operators(train) and operators(train)["mul"] >= 20
    assert operators(step) == operators(optimizer.step) != {}
    compiled_before, eager = operators(outside.backward), operators(plain.backward)
    assert {"mul", "cos"} <= compiled_before.keys() & eager.keys()
    assert operators(plain.detach) == {}
    assert torch.compiler.is_compiling() is False
    assert torch._dynamo.eval_frame._stance.stance == "default"


def test_a_region_inside_of_a_compiled_function() -> None:
    x = torch.rand(10)
    scale = torch.compile(_scale, backend="eager")
    expected = scale(x)

    @torch.compile(backend="eager")
    def inside(x: Tensor) -> tuple[Tensor, int]:
        with random_rounding("upward") as stats:
            y = scale(x)
        return y, stats.operations

    for _ in range(2):
        y, count = inside(x)
        assert count == 10 and (y.double() >= x.double() * float(torch.tensor(0.1))).all()
    assert torch.equal(scale(x), expected)


@pytest.mark.slow
def test_a_backward_pass_that_the_compiler_generated_is_an_error() -> None:
    x = torch.rand(20, requires_grad=True)
    compiled = torch.compile(lambda v: (v * 0.1).sin().sum())
    compiled(x).backward()
    outside = compiled(x)
    with random_rounding(), pytest.raises(UserError, match=r"torch\.compile generated"):
        outside.backward()
    with random_rounding() as stats:
        compiled(x).backward()
    assert {"mul", "sin", "cos"} <= stats.operators.keys()
    compiled(x).backward()  # outside again: compiled


def test_a_refusal_inside_of_torchscript_is_the_engines() -> None:
    x = torch.rand(4)
    scripted = torch.jit.trace(lambda v: torch.fft.rfft(v).abs(), (x,))
    with pytest.raises(UserError, match="_fft_r2c"), random_rounding():
        scripted(x)


def test_onednns_layout_is_refused_by_name() -> None:
    x = torch.rand(3, 4)
    laid_out = x.to_mkldnn()
    for call in (x.to_mkldnn, lambda: laid_out * 2, laid_out.to_dense):
        with random_rounding(), pytest.raises(UserError, match="oneDNN's own layout"):
            call()


LOADER = """
import torch
from morphbits import random_rounding

class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, i):
        return torch.full((1, 100_000), 0.7) * 0.1

torch.set_num_threads(2)
layer = torch.nn.Conv1d(1, 2, 3)
expected = Data()[0]
with random_rounding(seed=1) as stats:
    torch.rand(300_000) * 0.1
    for epoch in range(2):
        for x in torch.utils.data.DataLoader(Data(), num_workers=2):
            layer(x).sum().backward()
            assert x[0].numpy().tobytes() == expected.numpy().tobytes()
assert stats.operators["mul"] == 300_000, stats.operators
"""
CHILD = """
import os
import torch
from morphbits import random_rounding

torch.set_num_threads(2)
x = torch.rand(300_000)
with random_rounding(seed=1):
    expected = (x * 0.1).numpy().tobytes()
child = os.fork()
if not child:
    with random_rounding(seed=1):
        found = (x * 0.1).numpy().tobytes()
    os._exit(found != expected)
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.parametrize("program", [LOADER, CHILD], ids=["loader", "child"])
def test_a_forked_process_is_outside_and_does_not_wait_for_threads(program: str) -> None:
    """A data loader's workers inside of the region compute as torch does; a region that a forked
    process opens itself gives the same bytes."""
    environment = os.environ | {"OMP_NUM_THREADS": "2", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=120)


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


def test_fused_paths_come_back_after_the_last_of_several_threads() -> None:
    """The regions of two threads that overlap: the first that opened closes first."""
    first, second = random_rounding(), random_rounding()
    entered, left = threading.Event(), threading.Event()

    def other() -> None:
        with second:
            entered.set()
            left.wait(30)

    thread = threading.Thread(target=other)
    with first:
        thread.start()
        assert entered.wait(30)
    assert not torch._C._get_mkldnn_enabled()
    left.set()
    thread.join()
    assert torch._C._get_mkldnn_enabled() and torch.backends.mha.get_fastpath_enabled()


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


def test_what_the_note_says_is_not_covered_is_an_error_that_names_it() -> None:
    x, lengths = torch.rand(4), torch.tensor([2, 2])
    calls: dict[str, Callable[[], object]] = {
        "polar": lambda: torch.polar(x, x),
        "fake_quantize": lambda: torch.fake_quantize_per_tensor_affine(x, 0.1, 0, 0, 255),
        "zeta": lambda: torch.special.zeta(x + 2, x),
        "polygamma": lambda: torch.polygamma(2, x),
        "bartlett_window": lambda: torch.bartlett_window(5),
        "kaiser_window": lambda: torch.kaiser_window(5),
        "conv_tbc": lambda: torch.conv_tbc(x.view(4, 1, 1), x[:3].view(3, 1, 1), x[:1]),
        "segment_reduce": lambda: torch.segment_reduce(x, "sum", lengths=lengths),
    }
    note = " ".join((NOTES / "native-engine-limits.md").read_text().split())
    for name, call in calls.items():
        with random_rounding(), pytest.raises(UserError, match=name):
            call()
        assert name.replace("fake_quantize", "fake quantization") in note
