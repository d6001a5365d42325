"""What a Sampler promises about its arguments: state, noise, devices, callbacks, trajectories, the caller's own loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pyflowcore as pfc
from reference import fields
from reference import paths as reference
from reference.torch_fields import as_net, drift

EULER = pfc.Sampler(pfc.plan("euler", 5))
NOISELESS = [name for name in sorted(pfc.solvers()) if not pfc.plan(name, 2).draws]


def test_x0_is_never_modified():
    for solver in pfc.solvers():
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            x0 = pfc.randn(range(3), (4, 5), dtype=dtype)
            before = x0.clone()
            pfc.Sampler(pfc.plan(solver, 4))(drift, x0=x0)
            assert torch.equal(x0, before)


def test_dtype_of_the_state():
    for x0, asked, wanted in (
        (torch.float32, None, torch.float32), (torch.float64, None, torch.float64), (torch.bfloat16, None, torch.float32),
        (torch.float16, None, torch.float32), (torch.float32, torch.float64, torch.float64),
        (torch.float64, torch.float32, torch.float32),
    ):  # fmt: skip
        assert EULER(drift, x0=torch.zeros(2, 3, dtype=x0), dtype=asked).dtype == wanted
    assert EULER(drift, shape=(3,), seeds=[1]).dtype == torch.float32
    assert EULER(drift, shape=(3,), seeds=[1], dtype=torch.float64).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("solver", NOISELESS)
def test_a_half_precision_field_keeps_a_float32_state(dtype, solver):
    seen = []

    def net(x, t):
        seen.append((x.dtype, t.dtype))
        return torch.full_like(x, 1e-4)  # far below the resolution of a half-precision state near 1

    x1 = pfc.Sampler(pfc.plan(solver, 100))(pfc.Field(net, dtype=dtype), x0=torch.ones(1, 7))
    assert set(seen) == {(dtype, torch.float32)}
    np.testing.assert_allclose(x1, 1 + float(torch.tensor(1e-4, dtype=dtype)), atol=1e-5)


def test_seeds_are_the_initial_noise():
    x1 = EULER(lambda x, t: 0 * x, shape=(2, 3), seeds=[5, -1, 2**64 - 1])
    assert torch.equal(x1, pfc.randn([5, -1, 2**64 - 1], (2, 3)))
    assert torch.equal(x1[1], x1[2])


@pytest.mark.parametrize(
    "make", [lambda: range(4), lambda: [0, 1, 2, 3], lambda: np.arange(4), lambda: torch.arange(4), lambda: iter(range(4))]
)  # fmt: skip
def test_seeds_of_any_kind(make):
    wanted = EULER(drift, shape=(3,), seeds=[0, 1, 2, 3])
    assert torch.equal(EULER(drift, shape=(3,), seeds=make()), wanted)
    run = EULER.start(shape=(3,), seeds=make())
    for step in run:
        run.step(drift(step.x, step.time))
    assert torch.equal(run.x, wanted)


def test_without_seeds_noise_comes_from_torch():
    def sample():
        return EULER(drift, shape=(5,), batch=3)

    torch.manual_seed(4)
    first, second = sample(), sample()
    torch.manual_seed(4)
    assert torch.equal(sample(), first)
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])


def test_batch_follows_cond():
    x1 = EULER(lambda x, t, y: x * y[:, None], shape=(2,), cond={"y": torch.ones(6)})
    assert x1.shape == (6, 2)
    assert EULER(drift, shape=(2,), batch=0).shape == (0, 2)
    assert EULER(drift, shape=(), seeds=[1, 2]).shape == (2,)


@pytest.mark.parametrize("layout", ["expanded", "transposed", "channels_last", "offset"])
@pytest.mark.parametrize("solver", ["euler", "heun", "rk4"])
def test_x0_and_outputs_of_any_layout(layout, solver):
    x0 = pfc.randn(range(2), (3, 6, 6))
    change = {
        "expanded": lambda v: v[:, :1].expand_as(v),
        "transposed": lambda v: v.transpose(2, 3),
        "channels_last": lambda v: v.contiguous(memory_format=torch.channels_last),
        "offset": lambda v: torch.cat([v.new_zeros(1), v.flatten()])[1:].view(v.shape),
    }[layout]
    sampler = pfc.Sampler(pfc.plan(solver, 4))
    found = sampler(lambda x, t: change(drift(x, t)), x0=change(x0))
    wanted = sampler(lambda x, t: change(drift(x, t)).contiguous(), x0=change(x0).contiguous())
    assert torch.equal(found, wanted)
    assert found.is_contiguous()


def test_times_are_float64_until_cast_once():
    """1000 (1 - t) of a float64 t; a field of a float64 state gets it whole."""
    plan = pfc.plan("euler", 7)
    for dtype in (torch.float32, torch.float64):
        seen = []

        def net(x, t, seen=seen):
            seen.append(t.clone())
            return 0 * x

        pfc.Sampler(plan)(pfc.Field(net, time=lambda t: 1000 * (1 - t)), x0=torch.zeros(2, 1, dtype=dtype))
        exact = torch.tensor([1000 * (1 - t) for t in plan.times[:-1]], dtype=torch.float64).to(dtype)
        assert torch.equal(torch.stack(seen), exact[:, None].expand(7, 2))


def test_scalar_time_and_negative_sign():
    seen = []

    def net(x, t):
        seen.append(t.shape)
        return -drift(x, t)

    x0 = pfc.randn(range(2), (4,))
    for solver in pfc.solvers():
        sampler = pfc.Sampler(pfc.plan(solver, 4))
        found = sampler(pfc.Field(net, sign=-1, time_shape="scalar"), x0=x0, seeds=[1, 2])
        torch.testing.assert_close(found, sampler(drift, x0=x0, seeds=[1, 2]))
    assert set(seen) == {torch.Size([])}


@pytest.mark.parametrize("path", reference.NAMES)
@pytest.mark.parametrize("solver", sorted(pfc.solvers()))
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_callback(path, solver, dtype, poison):
    """Once a step; `denoised` is the exact field's data prediction at the step's last evaluation."""
    exact = fields.gaussian(path)
    grid = np.linspace(0.05, 0.95, 6)
    plan = pfc.plan(solver, grid=grid, path=path)
    evaluated, calls = [], []
    velocity = as_net(exact.of("velocity"))

    def net(x, t):
        evaluated.append((x.double().numpy().copy(), float(t[0])))
        return velocity(x, t)

    def callback(step, nfe, t, x, denoised):
        point, time = evaluated[-1]
        calls.append((step, nfe, t))
        tolerance = 1e-4 if dtype is None else 6e-2
        np.testing.assert_allclose(denoised.numpy(), exact.means(point, time)[0], atol=tolerance)
        states.append(x.clone())

    states = []
    field = pfc.Field(net, path=path, dtype=dtype)
    x1 = pfc.Sampler(plan)(field, x0=pfc.randn([3], (9,)), callback=callback)
    stages = plan.nfe // 5
    assert calls == [(i, stages * (i + 1), plan.times[i + 1]) for i in range(5)]
    assert torch.equal(states[-1], x1)


def test_a_callback_changes_no_bit():
    sampler = pfc.Sampler(pfc.plan("heun", 5))
    field = pfc.Field(lambda x, t: x.float().cos(), dtype=torch.bfloat16)
    plain = sampler(field, shape=(333,), seeds=range(3))
    assert torch.equal(sampler(field, shape=(333,), seeds=range(3), callback=lambda *a: None), plain)
    assert torch.equal(sampler(field, shape=(333,), seeds=range(3), progress=True), plain)


def test_denoised_is_none_where_it_is_undetermined():
    seen = []
    plan = pfc.plan("euler", 2, prediction="noise", grid=[0.3, 0.6, 1.0])
    pfc.Sampler(plan)(
        pfc.Field(lambda x, t: 0 * x, "noise"), x0=torch.ones(1, 1), callback=lambda *a: seen.append(a[4])
    )
    assert all(value is not None for value in seen)
    # Written by hand: at t = 0 alpha is 0, and the noise says nothing of the data.
    entry = {"t": 0.0, "step": 0, "b_new": 0.1, "completes_step": True}
    description = plan.to_dict() | {"times": [0.0, 1.0], "working": "noise", "slots": 0, "rows": [entry]}
    pfc.Sampler(pfc.Plan.from_dict(description))(
        pfc.Field(lambda x, t: 0 * x, "noise"), x0=torch.ones(1, 1), callback=lambda *a: seen.append(a[4])
    )
    assert seen[-1] is None


@pytest.mark.parametrize("solver", sorted(pfc.solvers()))
def test_trajectory(solver):
    sampler = pfc.Sampler(pfc.plan(solver, 6))
    x0 = pfc.randn(range(2), (3,))
    found = sampler(drift, x0=x0, seeds=[1, 2], return_trajectory=True)
    assert found.states.shape == (7, 2, 3)
    assert found.times.dtype == torch.float64
    assert found.times.tolist() == list(sampler.plan.times)
    assert torch.equal(found.states[0], x0)
    assert torch.equal(found.states[-1], sampler(drift, x0=x0, seeds=[1, 2]))


def test_a_field_that_writes_into_its_input_is_refused():
    for solver in ("euler", "heun"):
        for dtype in (None, torch.bfloat16):
            with pytest.raises(ValueError, match="wrote into its input"):
                pfc.Sampler(pfc.plan(solver, 3))(
                    pfc.Field(lambda x, t: x.mul_(2), dtype=dtype), x0=torch.ones(2, 3)
                )


def test_inference_mode_and_no_grad():
    plain = EULER(drift, shape=(4,), seeds=range(3))
    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            assert torch.equal(EULER(drift, shape=(4,), seeds=range(3)), plain)
            run = EULER.start(shape=(4,), seeds=range(3))
            for step in run:
                run.step(drift(step.x, step.time))
            assert torch.equal(run.x, plain)


def test_no_gradient_unless_asked_for():
    net = torch.nn.Linear(4, 4)
    x0 = torch.ones(2, 4, requires_grad=True)
    assert not EULER(lambda x, t: net(x), x0=x0).requires_grad
    assert not EULER(lambda x, t: net(x), x0=x0, return_trajectory=True).states.requires_grad
    run = EULER.start(x0=x0)
    for step in run:
        run.step(net(step.x))
    assert not run.x.requires_grad
    assert torch.is_grad_enabled()
