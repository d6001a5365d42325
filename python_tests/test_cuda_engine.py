"""network and trajectory on CUDA: against the CPU and float64, the rows to the bit, precisions, streams, graphs and launches.

What each thread does is proven on a CPU in ``test_cuda_engine_bodies.py`` and ``test_cuda_engine_mma.py``."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from cuda_cases import DEVICE
from test_cuda_engine_bodies import error, largest_network, randn
from torch import Tensor

import pyflowcore as pfc
from pyflowcore.network import ACTIVATIONS, Dense, Network, forward
from reference.networks import small_network

pytestmark = pytest.mark.gpu

F32, F64 = torch.float32, torch.float64
DTYPES = {"float32": F32, "float64": F64}
ERROR = {F32: 2e-6, F64: 4e-15}
TF32, BF16 = 1, 2
PRECISIONS = pytest.mark.parametrize("precision", [TF32, BF16], ids=["tf32", "bf16"])
EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)


def packed(
    net: Network, dtype: torch.dtype, device: torch.device | str = DEVICE
) -> tuple[Tensor, Tensor, Tensor]:
    return net.pack(dtype, device), net.layer_table(), net.feature_table()


def times(batch: int) -> Tensor:
    return torch.rand(batch, generator=torch.Generator().manual_seed(2), dtype=F64)


def compare(net: Network, batch: int, dtype: torch.dtype, per_sample: bool = True) -> None:
    x, t = randn(batch, net.dim, dtype=dtype), times(batch if per_sample else 1)
    cond = randn(batch, net.conditions, seed=1, dtype=dtype) if net.conditions else None
    wide = None if cond is None else cond.double()
    params, layers, features = packed(net, dtype, "cpu")
    expected = forward(x.double(), t.expand(batch), wide, params.double(), layers, features)
    at = t.to(DEVICE) if per_sample else t[0]
    on_device = None if cond is None else cond.to(DEVICE)
    found = pfc.ops.network(x.to(DEVICE), at, on_device, *packed(net, dtype))
    assert error(found.cpu(), expected) < ERROR[dtype], (net.dim, batch, dtype)


@pytest.mark.sanitize
@EACH_DTYPE
@pytest.mark.parametrize("batch", [1, 3, 17, 64, 65, 1000, 40_000])
def test_network_of_every_batch(batch: int, dtype: torch.dtype, poison: None) -> None:
    for width, dim in ((20, 3), (64, 2), (130, 33)):
        compare(small_network(dim, 2, width, 3, residual=True), batch, dtype)
        compare(small_network(dim, 0, width, 2), batch, dtype, per_sample=False)


@EACH_DTYPE
def test_the_largest_network(dtype: torch.dtype, poison: None) -> None:
    for batch in (5, 3000):
        compare(largest_network(), batch, dtype)


@EACH_DTYPE
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_is_the_cpus(name: str, dtype: torch.dtype) -> None:
    """To a few last places at arguments of every size, infinite ones included."""
    weight = torch.tensor([[0.0, 0.0, 0.0, 1.0]], dtype=F64)
    layer = Dense(weight, None, activation=name, parameter=0.7)
    one = Network((layer,), small_network(1).features, 0, 1)
    x = (randn(600, 1) * 10.0 ** torch.linspace(-30, 3, 600, dtype=F64)[:, None]).to(dtype)
    x[:3, 0] = torch.tensor([torch.inf, -torch.inf, torch.nan])
    zero = torch.tensor(0.0)
    expected = pfc.ops.network(x, zero, None, *packed(one, dtype, "cpu"))
    found = pfc.ops.network(x.to(DEVICE), zero, None, *packed(one, dtype)).cpu()
    eps, tiny = torch.finfo(dtype).eps, torch.finfo(dtype).tiny
    # GELU's far tail in float64: the rounding of its argument is multiplied by the argument's square.
    rtol = 2000 * eps if dtype is F64 and name.startswith("gelu") else 8 * eps
    torch.testing.assert_close(found, expected, rtol=rtol, atol=tiny, equal_nan=True)


# ------------------------------------------------------------------------------------------------------------ whole plans
def looped(
    net: Network, plan: pfc.Plan, x0: Tensor, branches: list[int], cond: Tensor | None, guidance: Tensor | None,
    seeds: Tensor | None, precision: int = 0,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:  # fmt: skip
    tables = packed(net, x0.dtype)
    x, y, scale = x0, None, 1.0
    slots, states, points = [x0] * max(plan.slots, 1), [], []
    for row, facts in enumerate(plan.facts):
        outs: list[Tensor] = []
        if branches[row]:
            point = x if y is None else y
            points.append(point)
            shown = torch.cat([point if scale == 1.0 else scale * point] * branches[row])
            c = None if cond is None else cond[: len(shown)]
            outs = [pfc.ops.network(shown, plan.row_times[row], c, *tables, precision)]
        x, y, d = pfc.ops.combine(
            x, plan.table, row, outs=outs, y=y, slots=slots, guidance=guidance, seeds=seeds
        )
        slots = [d if k == facts.store else slot for k, slot in enumerate(slots)]
        y, scale = None if facts.point_is_state else y, facts.in_scale
        states.append(x)
    return x, states, points


def run(
    plan: pfc.Plan,
    batch: int,
    dim: int,
    dtype: torch.dtype,
    several: int = 0,
    precision: int = 0,
    width: int = 40,
) -> None:
    conditions = 3 if several else 0
    net = small_network(dim, conditions, width, 3, residual=True)
    x0 = randn(batch, dim, dtype=dtype).to(DEVICE)
    cond = randn((several + 1) * batch, 3, seed=1, dtype=dtype).to(DEVICE) if several else None
    counts = torch.tensor([several + 1 if row.evaluates else 0 for row in plan.facts])
    guidance = randn(len(plan.facts), several, batch, seed=2, dtype=dtype).to(DEVICE) if several else None
    seeds = torch.arange(batch, device=DEVICE) * 7 + 3
    x, states, points = pfc.ops.trajectory(
        x0, plan.row_times, plan.table, counts, *packed(net, dtype), cond=cond, guidance=guidance, seeds=seeds,
        keep_rows=torch.arange(len(plan.facts)), keep_points=True, precision=precision,
    )  # fmt: skip
    expected, kept, at = looped(net, plan, x0, counts.tolist(), cond, guidance, seeds, precision)
    assert torch.equal(x, expected)
    assert torch.equal(states, torch.stack(kept))
    assert torch.equal(points, torch.stack(at))


@pytest.mark.sanitize
@EACH_DTYPE
@pytest.mark.parametrize("solver", pfc.solvers())
def test_a_trajectory_is_the_loop_to_the_bit(solver: str, dtype: torch.dtype, poison: None) -> None:
    run(pfc.plan(solver, 4), 77, 7, dtype)


@EACH_DTYPE
@pytest.mark.parametrize("batch", [1, 65, 30_000])
def test_a_guided_trajectory_is_the_loop_to_the_bit(batch: int, dtype: torch.dtype, poison: None) -> None:
    for several in (1, 3):
        run(pfc.plan("heun", 3), batch, 6, dtype, several)
        run(pfc.plan("stochastic_heun", 2), batch, 5, dtype, several)


def test_states_that_do_not_fit_shared_memory(poison: None) -> None:
    run(pfc.plan("unipc", 4), 20_000, 500, F32, width=200)


def test_a_plan_of_many_rows_is_carried(poison: None) -> None:
    run(pfc.plan("dpmpp_2m", 400), 33, 3, F32)


@pytest.mark.parametrize("solver", ["euler", "dpmpp_2m", "stochastic_heun"])
def test_cpu_and_cuda_agree(solver: str) -> None:
    net, plan = small_network(5, 0, 64, 3), pfc.plan(solver, 20)
    counts, seeds = torch.tensor([int(row.evaluates) for row in plan.facts]), torch.arange(50)
    for dtype, tolerance in ((F32, 2e-5), (F64, 1e-12)):
        found = []
        for device in ("cpu", DEVICE):
            x0 = randn(50, 5, dtype=dtype).to(device)
            tables = packed(net, dtype, device)
            x, _, _ = pfc.ops.trajectory(
                x0, plan.row_times, plan.table, counts, *tables, seeds=seeds.to(device)
            )
            found.append(x.cpu())
        assert error(found[1], found[0].double()) < tolerance


@pytest.mark.parametrize("precision", [0, TF32, BF16], ids=["exact", "tf32", "bf16"])
def test_a_sample_does_not_depend_on_its_batch(precision: int) -> None:
    """Alone, in small tiles, in large ones, in any place."""
    net, plan = small_network(5, 0, 64, 3), pfc.plan("heun", 4)
    counts = torch.tensor([int(row.evaluates) for row in plan.facts])
    x0 = randn(60_000, 5, dtype=F32).to(DEVICE)

    def solve(x: Tensor) -> Tensor:
        return pfc.ops.trajectory(
            x, plan.row_times, plan.table, counts, *packed(net, F32), precision=precision
        )[0]

    whole = solve(x0)
    for first, last in ((0, 1), (63, 65), (17, 1017), (59_999, 60_000)):
        assert torch.equal(solve(x0[first:last].contiguous()), whole[first:last])


# -------------------------------------------------------------------------------------------------------------- precisions
@contextmanager
def allow_tf32() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@PRECISIONS
@pytest.mark.parametrize("batch", [1, 9, 64, 1000, 40_000])
def test_the_error_is_at_most_twice_that_of_plain_pytorch(batch: int, precision: int, poison: None) -> None:
    for width, dim, depth in ((64, 2, 3), (100, 33, 4), (512, 130, 2)):
        net = small_network(dim, 2, width, depth, residual=True)
        x, cond, t = randn(batch, dim, dtype=F32), randn(batch, 2, seed=1, dtype=F32), times(batch)
        tables = packed(net, F32, "cpu")
        exact = forward(x.double(), t, cond.double(), tables[0].double(), *tables[1:])
        on = [value.to(DEVICE) for value in (x, t, cond)]
        found = pfc.ops.network(*on, *packed(net, F32), precision)
        with allow_tf32():
            low = torch.bfloat16 if precision == BF16 else F32
            plain = forward(
                on[0].to(low), on[1], on[2].to(low), tables[0].to(DEVICE, low), tables[1], tables[2]
            )
        assert error(found.cpu(), exact) < 2 * error(plain.cpu(), exact)


@PRECISIONS
@pytest.mark.parametrize("solver", ["euler", "unipc", "stochastic_heun"])
def test_a_trajectory_in_a_precision_is_the_loop_to_the_bit(
    solver: str, precision: int, poison: None
) -> None:
    for batch, width in ((5, 40), (20_000, 64), (300, 300)):
        run(pfc.plan(solver, 3), batch, 7, F32, 1, precision, width)


def test_float64_has_no_other_precision() -> None:
    net = small_network(3)
    with pytest.raises((RuntimeError, TypeError), match="precision"):
        pfc.ops.network(randn(2, 3).to(DEVICE), torch.tensor(0.1), None, *packed(net, F64), BF16)


# ------------------------------------------------------------------------------------------------- the launch, and its place
def call(batch: int = 512, width: int = 64, solver: str = "euler", steps: int = 50, precision: int = 0):
    net, plan = small_network(4, 0, width, 3), pfc.plan(solver, steps)
    counts = torch.tensor([int(row.evaluates) for row in plan.facts])
    tables = packed(net, F32)

    def solve(x0: Tensor) -> Tensor:
        return pfc.ops.trajectory(x0, plan.row_times, plan.table, counts, *tables, precision=precision)[0]

    return solve, randn(batch, 4, dtype=F32).to(DEVICE)


@pytest.mark.parametrize("precision", [0, TF32, BF16], ids=["exact", "tf32", "bf16"])
def test_a_trajectory_is_one_launch(precision: int) -> None:
    solve, x0 = call(precision=precision)
    solve(x0)
    activities = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profile:
        solve(x0)
        torch.cuda.synchronize()
    launched = [
        event
        for event in profile.events()
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.name.startswith("Activity")
    ]
    assert [event.name.count("engine_kernel") for event in launched] == [1], [e.name for e in launched]


def test_nothing_waits_for_the_device() -> None:
    solve, x0 = call()
    solve(x0)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        solve(x0)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_callers_stream_is_used() -> None:
    solve, x0 = call()
    expected = solve(x0)
    late = torch.full_like(x0, torch.nan)
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late.copy_(x0)
        found = solve(late)
        assert not stream.query(), "the call waited for the device"
    stream.synchronize()
    assert torch.equal(found, expected)


@pytest.mark.parametrize(("steps", "width", "precision"), [(50, 64, 0), (2000, 64, 0), (20, 512, BF16)])
def test_a_captured_trajectory_replays_with_new_contents(steps: int, width: int, precision: int) -> None:
    """Long plans and packed weights, whose kernels are captured with it, as well."""
    solve, x0 = call(width=width, steps=steps, precision=precision)
    fixed = x0.clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        solve(fixed)  # loads the kernels
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = solve(fixed)
    for scale in (1.0, -0.5):
        fixed.copy_(scale * x0)
        graph.replay()
        assert torch.equal(out, solve(scale * x0))


@pytest.mark.parametrize("precision", [0, BF16], ids=["exact", "bf16"])
def test_a_million_samples(precision: int) -> None:
    gc.collect()
    torch.cuda.empty_cache()
    solve, _ = call(width=128, steps=3, precision=precision)
    x0 = torch.randn(1_000_003, 4, device=DEVICE)
    whole = solve(x0)
    at = torch.tensor([0, 1, 499_999, 1_000_001, 1_000_002], device=DEVICE)
    assert torch.equal(solve(x0[at]), whole[at])
    assert bool(whole.isfinite().all())


def test_an_empty_batch_and_views(poison: None) -> None:
    solve, x0 = call()
    assert solve(x0[:0]).shape == (0, 4)
    assert torch.equal(solve(x0[::2]), solve(x0[::2].contiguous()))
    # Parameters that begin off a 16-byte boundary are copied.
    net = small_network(3)
    params, layers, features = packed(net, F32)
    shifted = torch.cat([params.new_zeros(1), params])[1:]
    x, t = randn(5, 3, dtype=F32).to(DEVICE), torch.tensor(0.3)
    assert torch.equal(
        pfc.ops.network(x, t, None, shifted, layers, features),
        pfc.ops.network(x, t, None, params, layers, features),
    )


def test_mixed_devices_are_refused() -> None:
    net = small_network(3, 2)
    params, layers, features = packed(net, F32)
    x, cond, t = (
        randn(5, 3, dtype=F32).to(DEVICE),
        randn(5, 2, dtype=F32).to(DEVICE),
        torch.rand(5, device=DEVICE),
    )
    operator = torch.ops.pyflowcore.network
    for name, arguments in {
        "params": (x, t, cond, params.cpu(), layers, features),
        "cond": (x, t, cond.cpu(), params, layers, features),
        "t": (x, t.cpu(), cond, params, layers, features),
        "x": (x.cpu(), t, cond, params, layers, features),
        "layers": (x, t, cond, params, layers.to(DEVICE), features),
    }.items():
        with pytest.raises((RuntimeError, ValueError), match=name):
            operator(*arguments)
