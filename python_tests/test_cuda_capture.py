"""Captured trajectories on a GPU, and proof by CUDA's sync debug mode that neither they nor the eager loop stop the host."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from cuda_cases import DEVICE

import pyflowcore as pfc
from reference import catalogue
from reference.torch_fields import drift

pytestmark = pytest.mark.gpu

CASES: dict[str, tuple[str, dict[str, float]]] = {name: (name, {}) for name in pfc.solvers()}
CASES["edm_heun-churn"] = catalogue.STOCHASTIC["edm_heun-churn"]
SHAPE = (4, 33)
SEEDS = torch.arange(3, dtype=torch.int64)


def conditional(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
    y = torch.zeros_like(t) if y is None else y
    wide = (-1, *[1] * (x.dim() - 1))
    return (x.float() * (t.float() - 0.7).reshape(wide) + y.float().reshape(wide)).to(x.dtype)


@contextmanager
def no_sync() -> Iterator[None]:
    """Any call that makes the host wait for the device raises."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_debug_mode_bites() -> None:
    x = torch.ones(3, device=DEVICE)
    with pytest.raises(RuntimeError), no_sync():
        x.sum().item()


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_a_graph_has_the_bits_of_the_eager_call(name: str, dtype: torch.dtype | None) -> None:
    solver, options = CASES[name]
    sampler = pfc.Sampler(pfc.plan(solver, 5, **options), pfc.CFG(2.0, (0.2, 0.8)))
    field = pfc.Field(conditional, dtype=dtype)
    y, null = torch.tensor([0.5, -1.0, 2.0], device=DEVICE), torch.tensor(0.1, device=DEVICE)
    with warnings.catch_warnings():
        warnings.simplefilter("error", pfc.PyflowcoreWarning)
        graph = sampler.capture(field, shape=SHAPE, cond={"y": y}, uncond={"y": null})
    assert graph.captured and graph.device.type == "cuda"
    out = torch.empty(3, *SHAPE, device=DEVICE)
    seeds = SEEDS.to(DEVICE)
    x0 = pfc.randn(seeds + 9, SHAPE)
    # A graph keeps its branches, so the eager call is given a scale on the device, which is not looked at either.
    scales = torch.tensor([1.5, 0.0, -2.0], device=DEVICE)
    for start, condition, scale in (
        ({"seeds": seeds}, y, None), ({"seeds": seeds + 5}, y + 1, None), ({"x0": x0, "seeds": seeds}, y - 1, 3.5),
        ({"seeds": seeds}, y, scales), ({"seeds": seeds}, y, 2.0),
    ):  # fmt: skip
        found = graph(cond={"y": condition}, guidance_scale=scale, out=out, **start)
        shape = {} if "x0" in start else {"shape": SHAPE}
        wanted = sampler(
            field, cond={"y": condition}, uncond={"y": null}, guidance_scale=scale, **shape, **start
        )
        assert found is out and torch.equal(out, wanted) and torch.equal(graph.x, wanted)


@pytest.mark.parametrize("name", CASES)
def test_replays_stop_nothing_and_allocate_nothing(name: str) -> None:
    solver, options = CASES[name]
    sampler = pfc.Sampler(pfc.plan(solver, 5, **options), pfc.CFG(2.0))
    y = torch.ones(3, device=DEVICE)
    graph = sampler.capture(conditional, shape=SHAPE, cond={"y": y}, uncond={"y": torch.zeros_like(y)})
    out, seeds, x0 = torch.empty_like(graph.x), SEEDS.to(DEVICE), torch.ones_like(graph.x)
    scale = torch.full((3,), 3.0, device=DEVICE)
    graph(x0=x0, seeds=seeds, out=out)
    before = torch.cuda.memory_allocated()
    with no_sync():
        for _ in range(3):
            graph(x0=x0, seeds=seeds, cond={"y": y}, out=out)
            graph(x0=x0, seeds=seeds, guidance_scale=scale, out=out)
            graph(seeds=seeds, out=out)
    assert torch.cuda.memory_allocated() == before


@pytest.mark.parametrize(
    "kind", ["plain", "guided", "callback", "generator", "hook", "mask", "soft mask, fresh", "bfloat16"]
)
@pytest.mark.parametrize("name", CASES)
def test_the_eager_loop_stops_nothing(name: str, kind: str) -> None:
    """From the first evaluation to the last; what is before, the times' way to the device for instance, is not the loop."""
    solver, options = CASES[name]
    sampler = pfc.Sampler(pfc.plan(solver, 5, **options), pfc.CFG(2.0) if kind == "guided" else None)
    known = torch.ones(3, *SHAPE, device=DEVICE)
    more: dict[str, object] = {"seeds": SEEDS}
    if kind == "generator":
        more = {"noise": torch.Generator(device=DEVICE).manual_seed(1)}
    elif kind == "hook":
        more["hook"] = lambda step, t, x: x.mul_(0.9)
    elif kind == "mask":
        more |= {"mask": torch.ones(1, 1, 33, device=DEVICE) > 0, "known": known}
    elif kind == "soft mask, fresh":
        more |= {"mask": torch.full((1, 1, 33), 0.3, device=DEVICE), "known": known, "known_noise": "fresh"}
    elif kind == "guided":
        more |= {"cond": {"y": torch.ones(3, device=DEVICE)}, "uncond": {"y": torch.zeros(3, device=DEVICE)}}
    elif kind == "callback":
        more["callback"] = lambda *a: None

    def net(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        torch.cuda.set_sync_debug_mode("error")
        return conditional(x, t, y)

    field = pfc.Field(net, dtype=torch.bfloat16 if kind == "bfloat16" else None)
    x0 = pfc.randn(SEEDS.to(DEVICE), SHAPE)
    sampler(pfc.Field(conditional, dtype=field.dtype), x0=x0, **more)  # type: ignore[arg-type]  # loads the kernels
    try:
        sampler(field, x0=x0, **more)  # type: ignore[arg-type]
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_call_on_another_stream_waits() -> None:
    """The first call's copy of the samples is made before the second call, elsewhere, writes the buffers."""
    sampler = pfc.Sampler(pfc.plan("euler", 3))

    def slow(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        torch.cuda._sleep(5_000_000)
        return drift(x, t)

    graph = sampler.capture(slow, shape=SHAPE, batch=3, device=DEVICE)
    seeds = SEEDS.to(DEVICE)
    torch.cuda.synchronize()
    one = graph(seeds=seeds)
    other = torch.cuda.Stream()
    with torch.cuda.stream(other):
        two = graph(seeds=seeds + 7)
    torch.cuda.synchronize()
    assert torch.equal(one, sampler(drift, shape=SHAPE, seeds=seeds))
    assert torch.equal(two, sampler(drift, shape=SHAPE, seeds=seeds + 7))


def test_a_field_that_looks_is_refused_by_the_capture() -> None:
    def net(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x if x.sum().item() > 0 else -x

    with pytest.raises(RuntimeError):
        pfc.Sampler(pfc.plan("euler", 3)).capture(net, shape=SHAPE, batch=3, device=DEVICE)
    # The device is usable afterwards.
    assert torch.ones(3, device=DEVICE).sum().item() == 3.0


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_second_device() -> None:
    sampler = pfc.Sampler(pfc.plan("heun", 3))
    graph = sampler.capture(drift, shape=SHAPE, batch=3, device="cuda:1")
    assert torch.equal(graph(seeds=SEEDS), sampler(drift, shape=SHAPE, seeds=SEEDS.to("cuda:1")))
    assert torch.cuda.current_device() == 0
