"""Recorded evaluations: the function's bits for every input of the signature, and nothing remembered but the calls."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import pyflowcore as pfc
from pyflowcore import models, ops
from pyflowcore.prepare.straight import record, signature

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
    packed: list[int] = []

    class Count(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            packed.append(int("_reorder_linear_weight" in str(func)))
            return func(*args, **(kwargs or {}))

    sampler = pfc.Sampler(pfc.plan("euler", steps=5))
    cond = {"y": torch.tensor([1])}
    with Count():
        sampler(field, shape=field.model.shape, seeds=[1], cond=cond)
    first = sum(packed)
    with Count():
        sampler(field, shape=field.model.shape, seeds=[2], cond=cond)
    assert first == sum(packed) == 2 * 4 + 1, packed


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
