"""The engine's CUDA kernels, every thread of every block run on the CPU: against float64 mathematics, and rows against the
CPU's combine_ over the same network, to the bit."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from engine_on_cpu import DEVICES, Layout, library, network, trajectory
from torch import Tensor

import pyflowcore as pfc
from pyflowcore.network import ACTIVATIONS, Dense, Feature, Network, forward
from reference.networks import small_network

F32, F64 = torch.float32, torch.float64
DTYPES = {"float32": F32, "float64": F64}
ERROR = {F32: 2e-6, F64: 4e-15}


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def error(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected).norm() / expected.norm()).item()


def compare(
    net: Network, batch: int, dtype: torch.dtype, device: str = "H100", tolerance: float | None = None, precision: int = 0
) -> Layout:  # fmt: skip
    """One evaluation at a time for each sample, at one on the device and at one on the host."""
    x = randn(batch, net.dim, dtype=dtype)
    cond = randn(batch, net.conditions, seed=1, dtype=dtype) if net.conditions else None
    t = torch.rand(batch, generator=torch.Generator().manual_seed(2), dtype=F64).to(dtype)
    packed = net.pack(dtype), net.layer_table(), net.feature_table()
    wide = packed[0].double(), *packed[1:]
    for time in (t, t[0], float(t[0])) if net.dim < 500 else (t,):
        each = time if isinstance(time, Tensor) and time.dim() else t[:1].expand(batch)
        expected = forward(x.double(), each, None if cond is None else cond.double(), *wide)
        found, layout = network(x, time, cond, *packed, precision=precision, device=device)
        assert error(found, expected) < (tolerance or ERROR[dtype]), (batch, dtype, device, layout)
    return layout


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("batch", [1, 7, 8, 9, 15, 16, 17, 63, 64, 65, 200])
def test_network_at_every_batch(batch: int, dtype: torch.dtype) -> None:
    """On one multiprocessor, so that batches of two large tiles take the large ones, and blocks take several."""
    layout = compare(small_network(3, 2, 20, 3, residual=True), batch, dtype, "one of an H100")
    assert layout.large == (batch >= 2 * (64 if dtype is F32 else 32))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("width", [1, 15, 16, 17, 64, 100])
def test_network_of_every_width(width: int, dtype: torch.dtype) -> None:
    for dim, conditions in ((1, 0), (5, 3), (33, 0)):
        compare(small_network(dim, conditions, width, 2), 20, dtype)


def largest_network() -> Network:
    """Everything at its bound, and a residual that waits over a layer."""
    wide = small_network(512, 1024, 512, 3, residual=True, seed=3)
    features = tuple(Feature("sine", 0.1 * k, 0.01 * k) for k in range(1024))
    first = wide.layers[0]
    weight = torch.cat([randn(512, 1024, seed=5) / 40, first.weight[:, 3:]], dim=1)
    layers = (
        replace(first, weight=weight),
        wide.layers[1],
        replace(wide.layers[2], residual=1),
        wide.layers[3],
    )
    return Network(layers, features, 1024, 512)


@pytest.mark.parametrize(("dtype", "device"), [(F32, "A100"), (F32, "one of an RTX 5090"), (F64, "RTX 5090")])
def test_the_largest_network(dtype: torch.dtype, device: str) -> None:
    layout = compare(largest_network(), 11, dtype, device)
    assert not layout.large and layout.remote and not layout.resident


def test_weights_and_states_lie_where_there_is_room() -> None:
    """The same bits wherever they lie."""
    net = small_network(40, 0, 128, 4)
    x, t = randn(64, 40, dtype=F32), torch.tensor(0.3)
    packed = net.pack(F32), net.layer_table(), net.feature_table()
    found = {name: network(x, t, None, *packed, device=name) for name in DEVICES}
    outs = [out for out, _ in found.values()]
    assert all(torch.equal(outs[0], out) for out in outs)
    assert [found[name][1].resident for name in ("H100", "A100", "RTX 5090")] == [4, 3, 2]


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_a_sample_does_not_depend_on_its_batch(dtype: torch.dtype) -> None:
    """Alone, in small tiles and in large ones, in any place."""
    net = small_network(5, 2, 33, 3, residual=True)
    packed = net.pack(dtype), net.layer_table(), net.feature_table()
    x, cond, t = randn(150, 5, dtype=dtype), randn(150, 2, seed=1, dtype=dtype), torch.rand(150, dtype=F64)
    whole, layout = network(x, t, cond, *packed, device="one of an H100")
    small, other = network(x, t, cond, *packed)
    assert layout.large and not other.large and torch.equal(whole, small)
    for i in (0, 1, 63, 64, 149):
        alone, _ = network(x[i : i + 1], t[i : i + 1], cond[i : i + 1], *packed)
        assert torch.equal(alone[0], whole[i])


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation(name: str, dtype: torch.dtype) -> None:
    """As a layer's activation, and after a residual."""
    net = small_network(4, 0, 20, 3, seed=7)
    layers = [
        replace(layer, activation=name, parameter=0.7, residual=number if 0 < number < 3 else -1)
        for number, layer in enumerate(net.layers)
    ]
    layers[2] = replace(layers[2], activation="identity", after=name, after_parameter=1.3)
    compare(Network(tuple(layers), net.features, 0, 4), 40, dtype)


@pytest.mark.skipif(pfc._library.cpu_isa() in (None, "baseline"), reason="needs CPU kernels that fuse")
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_float32_has_the_bits_of_the_cpu(name: str) -> None:
    net = small_network(5, 2, 33, 3, activation=name, residual=True)
    x, cond, t = randn(70, 5, dtype=F32), randn(70, 2, seed=1, dtype=F32), torch.rand(70, dtype=F64)
    packed = net.pack(F32), net.layer_table(), net.feature_table()
    found, _ = network(x, t, cond, *packed)
    expected = pfc.ops.network(x, t, cond, *packed)
    if name in ("silu", "sigmoid"):  # their quotient begins from an estimate of the machine's
        torch.testing.assert_close(found, expected, rtol=2e-6, atol=2e-6)
    else:
        assert torch.equal(found, expected)


def test_a_time_of_every_dtype() -> None:
    net = small_network(3)
    packed = net.pack(F32), net.layer_table(), net.feature_table()
    x = randn(5, 3, dtype=F32)
    t = torch.tensor([0.0, 0.1, 0.5, 0.7, 1.0], dtype=F64)
    for dtype in (F64, F32, torch.bfloat16, torch.float16):
        found, _ = network(x, t.to(dtype), None, *packed)
        expected, _ = network(x, t.to(dtype).double(), None, *packed)
        assert torch.equal(found, expected)


def test_features_of_time_to_the_last_places() -> None:
    make = torch.Generator().manual_seed(0)
    scales = 10.0 ** torch.linspace(-8, 9, 3000, dtype=F64)
    for value in (torch.randn(3000, generator=make, dtype=F64) * scales).tolist():
        for kind, function in ((0, float), (1, math.sin), (2, math.cos)):
            found, expected = library().pfc_test_feature(kind, value, 0.0, 1.0), function(value)
            # Beyond 2^20 quarters the bound is what the angle's own last place makes of the result.
            bound = 4e-16 * abs(expected) if abs(value) < 1.6e6 else math.ulp(value) / 2
            assert abs(found - expected) <= bound, (value, kind)
    for kind in (1, 2):
        assert math.isnan(library().pfc_test_feature(kind, math.inf, 0.0, 1.0))
        assert math.isnan(library().pfc_test_feature(kind, math.nan, 0.0, 1.0))


# ------------------------------------------------------------------------------------------------------------- whole plans
def looped(
    net: Network, plan: pfc.Plan, x0: Tensor, branches: list[int], cond: Tensor | None, guidance: Tensor | None,
    seeds: Tensor | None, keep: list[int], precision: int = 0, device: str = "H100",
) -> tuple[Tensor, list[Tensor], list[Tensor]]:  # fmt: skip
    """The rows one by one: the network's kernel, then the CPU's combine."""
    batch, packed = len(x0), (net.pack(x0.dtype), net.layer_table(), net.feature_table())
    x, y, scale = x0, None, 1.0
    slots, states, points = [x0] * max(plan.slots, 1), [], []
    for row, facts in enumerate(plan.facts):
        outs: list[Tensor] = []
        if branches[row]:
            point = x if y is None else y
            points.append(point)
            shown = torch.cat([point if scale == 1.0 else scale * point] * branches[row])
            c = None if cond is None else cond[: len(shown)]
            outs = [
                network(shown, float(plan.row_times[row]), c, *packed, precision=precision, device=device)[0]
            ]
        x, y, d = pfc.ops.combine(
            x, plan.table, row, outs=outs, y=y, slots=slots, guidance=guidance, seeds=seeds
        )
        slots = [d if k == facts.store else slot for k, slot in enumerate(slots)]
        y, scale = None if facts.point_is_state else y, facts.in_scale
        if row in keep:
            states.append(x)
    assert len(x) == batch
    return x, states, points


def check_plan(
    plan: pfc.Plan, x0: Tensor, conditions: int = 0, several: int = 0, per_sample: bool = False, device: str = "H100",
    precision: int = 0, width: int = 20,
) -> Layout:  # fmt: skip
    net = small_network(x0[0].numel(), conditions, width, 2, residual=True)
    batch, dtype = len(x0), x0.dtype
    cond = randn((several + 1) * batch, conditions, seed=1, dtype=dtype) if conditions else None
    counts = torch.tensor([several + 1 if row.evaluates else 0 for row in plan.facts])
    guidance = None
    if several:
        guidance = randn(len(plan.facts), several, batch if per_sample else 1, seed=2, dtype=dtype)
        first = counts.nonzero().flatten()[0]
        counts[first] = 1  # as outside the interval of a guidance
    seeds = torch.arange(batch) * 7 + 3
    keep = [0, len(plan.facts) // 2, len(plan.facts) - 1]
    keep = sorted(set(keep))
    packed = net.pack(dtype), net.layer_table(), net.feature_table()
    (x, states, points), layout = trajectory(
        x0, plan.row_times, cond, *packed, plan.table, counts, guidance, seeds, torch.tensor(keep), True, precision, device
    )  # fmt: skip
    expected, kept, at = looped(
        net, plan, x0, counts.tolist(), cond, guidance, seeds, keep, precision, device
    )
    assert torch.equal(x, expected)
    assert torch.equal(states, torch.stack(kept))
    assert torch.equal(points, torch.stack(at))
    return layout


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("solver", pfc.solvers())
def test_a_trajectory_is_the_loop_to_the_bit(solver: str, dtype: torch.dtype) -> None:
    check_plan(pfc.plan(solver, 3), randn(5, 7, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("several", [1, 2])
def test_a_guided_trajectory_is_the_loop_to_the_bit(several: int, dtype: torch.dtype) -> None:
    for per_sample, conditions, device in itertools.product(
        (False, True), (0, 3), ("H100", "one of an RTX 5090")
    ):
        batch = 130 if device.startswith("one") else 3
        check_plan(pfc.plan("heun", 3), randn(batch, 6, dtype=dtype), conditions, several, per_sample, device)
        check_plan(
            pfc.plan("stochastic_heun", 2), randn(3, 5, dtype=dtype), conditions, several, per_sample, device
        )


def test_states_that_do_not_fit_shared_memory() -> None:
    for solver in ("ab3", "unipc"):
        layout = check_plan(
            pfc.plan(solver, 5), randn(140, 300, dtype=F32), device="one of an RTX 5090", width=130
        )
        assert not layout.states_shared


def test_a_plan_of_many_rows_is_carried() -> None:
    assert not check_plan(pfc.plan("euler", 50), randn(2, 3, dtype=F32)).remote
    assert check_plan(pfc.plan("dpmpp_2m", 400), randn(2, 3, dtype=F32)).remote


def test_a_plan_without_rows_returns_its_start() -> None:
    net, x0 = small_network(3), randn(5, 3)
    empty = torch.zeros(0, 56, dtype=F64)
    packed = net.pack(F64), net.layer_table(), net.feature_table()
    (x, _, _), _ = trajectory(x0, empty[:, 0], None, *packed, empty, torch.zeros(0, dtype=torch.int64))
    assert torch.equal(x, x0)


def test_layers_without_features_or_hidden_layers() -> None:
    single = Network((Dense(randn(4, 4), None),), (), 0, 4)
    compare(single, 9, F64)
    compare(Network((Dense(randn(4, 7), randn(4, seed=1)),), (), 3, 4), 9, F32)
