"""Recorded evaluations: the function's bits for every input of the signature, and nothing remembered but the calls."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import pyflowcore as pfc
from pyflowcore import models, ops
from pyflowcore.prepare.packing import MOST_LINES
from pyflowcore.prepare.straight import record, signature, watched

WEIGHT = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


def products(x: Tensor, y: Tensor) -> Tensor:
    return F.linear(x, WEIGHT).add_(y).sin()


def in_place(x: Tensor, y: Tensor) -> Tensor:
    out = x.new_zeros(x.shape[0], 6)
    out[:, :4] = x
    out[:, 4:].copy_(y[:, :2])
    out += y
    return out.mul_(2.0)


def pieces(x: Tensor, y: Tensor) -> Tensor:
    first, second = x.chunk(2, 1)
    a, b, c, d = y[:, :4].unbind(1)
    return torch.cat([first, second.flip(1)], dim=1) * torch.stack((a, b, c, d), dim=-1).to(torch.float64)


def operators(x: Tensor, y: Tensor) -> Tensor:
    h = ops.gelu(F.linear(x, WEIGHT), approximate="tanh")
    return ops.gate_residual_norm_(y[:, None], h[:, None], x.new_ones(len(x), 6), h, h)[:, 0] + y


def attention(x: Tensor, y: Tensor) -> Tensor:
    q = F.linear(x, WEIGHT).reshape(1, 2, -1, 3)
    return F.scaled_dot_product_attention(q, q, q).transpose(1, 2).flatten(2).reshape(y.shape) * float("inf")


FUNCTIONS: list[Callable[[Tensor, Tensor], Tensor]] = [products, in_place, pieces, operators, attention]


def points(seed: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(3, 4, generator=draw), torch.randn(3, 6, generator=draw)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_line_has_the_functions_bits(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    result, line = record(function, points(0))
    assert torch.equal(result, function(*points(0)))
    assert line is not None
    for seed in (0, 1, 2):
        assert torch.equal(line(*points(seed)), function(*points(seed)))


def test_a_line_does_not_run_the_function() -> None:
    runs = []

    def counted(x: Tensor) -> Tensor:
        runs.append(1)
        return x + len(runs)

    _, line = record(counted, [torch.zeros(2)])
    assert line is not None
    for _ in range(3):
        assert torch.equal(line(torch.zeros(2)), torch.ones(2))
    assert len(runs) == 1


@pytest.mark.parametrize(
    "ask", [lambda x: x.sum().item(), lambda x: x.tolist(), lambda x: bool(x.any()), lambda x: float(x[0])]
)
def test_values_on_the_host_are_not_recorded(ask: Callable[[Tensor], object]) -> None:
    def asking(x: Tensor) -> Tensor:
        return x + (1 if ask(x) else 2)

    result, line = record(asking, [torch.ones(2)])
    assert line is None and torch.equal(result, torch.full((2,), 2.0))


def test_what_is_passed_on_is_let_go() -> None:
    seen: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = func(*args, **(kwargs or {}))
            alive.append(sum(ref() is not None for ref in seen))
            seen.append(weakref.ref(result))
            return result

    def deep(x: Tensor) -> Tensor:
        for _ in range(40):
            x = x.sin()
        return x

    _, line = record(deep, [torch.ones(5)])
    assert line is not None
    gc.collect()
    seen.clear()
    alive.clear()
    given = torch.ones(5)
    with Watch():
        line(given)
    assert len(alive) == 40 and max(alive) <= 2, alive


def test_a_signature_tells_shapes_strides_and_dtypes_apart() -> None:
    base = torch.zeros(4, 4)
    ones = [base, base.t()[:, :], base[:2], base.double(), base[::2]]
    made = [signature([one]) for one in ones]
    assert made[0] == signature([torch.ones(4, 4)])
    assert len({*made}) == 4 + (base.t().stride() != base.stride())


def small(**options: int) -> models.DiT:
    torch.manual_seed(0)
    model = models.DiT(size=4, channels=2, width=32, depth=2, heads=2, num_classes=3, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.requires_grad_(False)


def test_rows_of_any_number_of_branches_and_batches() -> None:
    model = small()
    field = pfc.prepare(model)
    sampler = pfc.Sampler(pfc.plan("heun", steps=6), pfc.CFG(2.0, interval=(0.3, 0.7)))
    null = {"y": torch.tensor(model.null_class)}
    for batch in (1, 3, 1, 2):
        given = {
            "seeds": range(batch),
            "shape": model.shape,
            "cond": {"y": torch.arange(batch) % 3},
            "uncond": null,
        }
        torch.testing.assert_close(sampler(field, **given), sampler(model, **given), rtol=1e-4, atol=1e-5)


def test_no_weight_is_packed_while_steps_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first evaluation packs; neither it, recorded, nor its line does so again."""
    module = __import__("pyflowcore.prepare.products", fromlist=["Products"])
    monkeypatch.setattr(module, "LEAST_OPERATIONS", 1)
    field = pfc.prepare(small())
    if field.net.packed.products.reason:
        pytest.skip(field.net.packed.products.reason)

    def packed(seed: int) -> int:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
            sampler(field, shape=field.model.shape, seeds=[seed], cond={"y": torch.tensor([1])})
        return sum(event.count for event in seen.key_averages() if "_reorder_linear_weight" in event.key)

    sampler = pfc.Sampler(pfc.plan("euler", steps=5))
    assert [packed(seed) for seed in (1, 2, 3)] == [2 * 4 + 1, 0, 0]


def test_derivatives_and_transforms_do_not_meet_a_line() -> None:
    model = small()
    field = pfc.prepare(model)
    x, t, y = torch.randn(2, 2, 4, 4), torch.rand(2), torch.tensor([0, 2])
    with torch.no_grad():
        field(x, t, y=y)  # recorded
    tangent = torch.randn_like(x)
    with sdpa_kernel(SDPBackend.MATH):  # PyTorch's fast attention has no forward-mode derivative on a CPU
        _, found = torch.func.jvp(lambda z: field(z, t, y=y), (x,), (tangent,))
        _, want = torch.func.jvp(lambda z: model(z, t, y=y), (x,), (tangent,))
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "view", [lambda x: x.T, lambda x: x.mT, lambda x: x.data, lambda x: x[1:, None], lambda x: x.real]
)
def test_attributes_that_are_tensors_are_recorded(view: Callable[[Tensor], Tensor]) -> None:
    _, line = record(lambda x: view(x) * 2.0, [torch.ones(3, 3)])
    x = torch.randn(3, 3)
    assert line is not None and torch.equal(line(x), view(x) * 2.0)


def test_recording_takes_no_more_memory_than_running() -> None:
    seen: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def deep(x: Tensor) -> Tensor:
        for _ in range(40):
            x = x.sin()
            alive.append(sum(ref() is not None for ref in seen))
            seen.append(weakref.ref(x))
        return x

    record(deep, [torch.ones(5)])
    assert max(alive) <= 2, alive


WATCHERS = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "dispatch mode": lambda: FlopCounterMode(display=False),
    "function mode": torch.overrides.BaseTorchFunctionMode,
    "no torch function": torch._C.DisableTorchFunction,
    "forward mode": torch.autograd.forward_ad.dual_level,
    "fake tensors": FakeTensorMode,
}


@pytest.mark.parametrize("name", WATCHERS)
def test_nothing_is_recorded_or_kept_where_something_watches(name: str) -> None:
    model = small()
    field = pfc.prepare(model)
    packed = field.net.packed
    x, t, y = torch.randn(2, 2, 4, 4), torch.rand(2), torch.tensor([0, 2])
    assert not watched()
    with torch.no_grad():
        with WATCHERS[name]():
            assert watched()
            try:
                packed.start(t.reshape(1, 2), {"y": y}, 2)(x, 0)
            except Exception:  # what such a mode cannot do is its own affair
                assert name in ("fake tensors", "autocast")
        assert not packed._lines and not packed._kept and not packed.products._kept
        torch.testing.assert_close(field(x, t, y=y), model(x, t, y=y), rtol=1e-4, atol=1e-5)
        assert packed._lines and packed._kept


def test_a_default_device_is_no_watcher() -> None:
    with torch.device("cpu"):
        assert not watched()


def test_gradients_of_the_state_are_not_lost_to_a_recording() -> None:
    field = pfc.prepare(small())
    x, y = torch.randn(2, 2, 4, 4), torch.tensor([0, 2])
    with torch.no_grad():
        evaluate = field.trajectory(torch.linspace(0, 1, 3), {"y": y}, 2)
        evaluate(x, 0)
    with pytest.raises((ValueError, RuntimeError)):  # the operators in place refuse what is to be learnt
        evaluate(x.clone().requires_grad_(), 1)


def test_recordings_are_few_and_know_the_grad_mode() -> None:
    field = pfc.prepare(small())
    packed = field.net.packed
    sampler = pfc.Sampler(pfc.plan("euler", steps=2))
    for batch in range(1, MOST_LINES + 4):
        sampler(
            field,
            shape=field.model.shape,
            seeds=range(batch),
            cond={"y": torch.zeros(batch, dtype=torch.int64)},
        )
        assert len(packed._lines) == min(batch, MOST_LINES)
    with torch.inference_mode():
        inside = sampler(field, shape=field.model.shape, seeds=[0], cond={"y": torch.tensor([0])})
    outside = sampler(field, shape=field.model.shape, seeds=[0], cond={"y": torch.tensor([0])})
    assert torch.equal(inside, outside) and not outside.is_inference()
    assert {key[1] for key in packed._lines} == {True, False}
    with torch.no_grad():
        field(torch.randn(1, 2, 4, 4), torch.rand(1), y=torch.tensor([0]))
    assert not any(key[0] for key in packed._lines)


def test_weights_written_while_another_thread_records() -> None:
    """The recording of old weights is not found by later trajectories."""
    model = small()
    field = pfc.prepare(model)
    x, t, y = torch.randn(2, 2, 4, 4), torch.rand(2), torch.tensor([0, 2])
    original, began = F.scaled_dot_product_attention, []

    def write(*args: Tensor, **kwargs: object) -> Tensor:
        if not began:
            began.append(True)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(1.5)
            other = threading.Thread(target=lambda: field.trajectory(t[:1], {"y": y}, 2))
            other.start()
            other.join()
        return original(*args, **kwargs)  # type: ignore[arg-type]

    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", write)
        field(x, t, y=y)
    assert began
    with torch.no_grad():
        torch.testing.assert_close(field(x, t, y=y), model(x, t, y=y), rtol=1e-4, atol=1e-5)
