"""A compiled function that calls a sampler, in one graph, has the eager call's bits where the backend keeps the arithmetic."""

from __future__ import annotations

import pytest
import torch

import pyflowcore as pfc

SEEDS = torch.arange(3)
X0 = pfc.randn(range(3), (5,))
Y, NULL = torch.tensor([1.0, -1.0, 0.5]), torch.zeros(3)
KNOWN, MASK = torch.linspace(-1, 1, 15).reshape(3, 5), torch.tensor([[1.0, 0.0, 0.5, 0.0, 1.0]])


def drift(x, t):
    return x * (t[:, None] - 0.7) + 0.3 * t[:, None]


def conditional(x, t, y):
    return x * (t[:, None] - 0.7) + y[:, None]


def half(x, t):
    return drift(x.float(), t).to(x.dtype)


def check(function, *arguments):
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for values in (arguments, [a + 1 if a.dtype == torch.int64 else 0.7 * a for a in arguments]):
        wanted = function(*values)
        assert torch.equal(compiled(*values), wanted)
    assert bool(torch.isfinite(wanted).all())


@pytest.mark.parametrize("solver", ["heun", "unipc", "edm_heun", "stochastic_heun"])
def test_solvers(solver):
    sampler = pfc.Sampler(pfc.plan(solver, 3))
    check(lambda x0, seeds: 2 * sampler(drift, x0=x0 + 1, seeds=seeds), X0, SEEDS)


GUIDED = pfc.Sampler(pfc.plan("dpmpp_2m", 3), pfc.CFG(2.0, (0.2, 0.8)))
BY_CALLS = pfc.Sampler(pfc.plan("heun", 2), pfc.CFG(2.0), branches="calls")
HEUN = pfc.Sampler(pfc.plan("heun", 2))
SDE = pfc.Sampler(pfc.plan("dpmpp_2m_sde", 3))
INSIDE = pfc.Sampler(pfc.plan("heun", 2, grid=pfc.grids.uniform().partial(0.5)))


def guided(sampler, x0, y, **more):
    return sampler(conditional, x0=x0, cond={"y": y}, uncond={"y": NULL}, **more)


def callers_loop(x0):
    run = HEUN.start(x0=x0)
    for step in run:
        run.step(drift(step.x, step.time))
    return run.x


def watched(x0):
    seen = []
    x1 = HEUN(drift, x0=x0, callback=lambda step, nfe, t, x, denoised: seen.append(x + denoised))
    return x1 + seen[0]


CASES = {
    "seeds": (lambda seeds: HEUN(drift, shape=(5,), seeds=seeds), SEEDS),
    "guided": (lambda x0, y: guided(GUIDED, x0, y), X0, Y),
    "guided by calls": (lambda x0, y: guided(BY_CALLS, x0, y), X0, Y),
    "scales": (lambda x0, y, w: guided(GUIDED, x0, y, guidance_scale=w), X0, Y, torch.tensor([2.0, 3.0, 4.0])),
    "bfloat16": (lambda x0: HEUN(pfc.Field(half, dtype=torch.bfloat16), x0=x0), X0),
    "the field's facts": (
        lambda x0: HEUN(pfc.Field(lambda x, t: x * t, sign=-1, time=lambda t: 1 - t, time_shape="scalar"), x0=x0), X0,
    ),
    "hook": (lambda x0: HEUN(drift, x0=x0, hook=lambda step, t, x: x.sin()), X0),
    "soft mask": (lambda x0, known, mask: HEUN(drift, x0=x0, known=known, mask=mask), X0, KNOWN, MASK),
    "fresh noise": (
        lambda x0, seeds: HEUN(drift, x0=x0, seeds=seeds, known=KNOWN, mask=MASK > 0.5, known_noise="fresh"), X0, SEEDS,
    ),
    "given noise": (lambda x0, noise: SDE(drift, x0=x0, noise=noise), X0, torch.linspace(-1, 1, 45).reshape(3, 3, 5)),
    "from data": (lambda data, seeds: INSIDE(drift, init=data, seeds=seeds), X0, SEEDS),
    "trajectory": (lambda x0: HEUN(drift, x0=x0, return_trajectory=True).states, X0),
    "callback": (watched, X0),
    "the caller's loop": (callers_loop, X0),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_a_call_may_have(name):
    function, *arguments = CASES[name]
    check(function, *arguments)


GUIDANCES = {
    "cfg zero": pfc.CFGZero(3.0, zero_until=0.2), "rescaled": pfc.CFG(3.0).rescaled(0.4), "apg": pfc.APG(3.0, norm=1.0),
    "momentum": pfc.APG(3.0, momentum=-0.5), "of time": pfc.CFG(lambda t: 1 + t),
    "per sample": pfc.CFG([1.0, 2.0, 3.0]), "weak": pfc.Autoguidance(pfc.Field(conditional), 2.0),
}  # fmt: skip
INSIDE_GRID = [0.1, 0.4, 0.7, 1.0]


@pytest.mark.parametrize("made", ["before", "inside"])
@pytest.mark.parametrize("name", GUIDANCES)
def test_guidance(name, made):
    plan, before = pfc.plan("dpmpp_2m", grid=INSIDE_GRID), GUIDANCES[name]
    sampler = pfc.Sampler(plan, before)
    if made == "before":
        check(lambda x0, y: guided(sampler, x0, y), X0, Y)
    else:
        check(lambda x0, y: guided(pfc.Sampler(plan, before.rescaled(0.3)), x0, y), X0, Y)


@pytest.mark.parametrize("weights", [(1.0, 0.5), (1.0, lambda t: t)])
def test_several_conditions(weights):
    sampler = pfc.Sampler(pfc.plan("heun", grid=INSIDE_GRID), pfc.CFG(3.0, weights=weights).rescaled(0.3))
    check(lambda x0, y: sampler(conditional, x0=x0, cond=[{"y": y}, {"y": 2 * y}], uncond={"y": NULL}), X0, Y)


def test_guidance_with_hooks_and_gradients():
    sampler = pfc.Sampler(pfc.plan("dpmpp_2m", 3), pfc.APG(3.0, eta=0.5))
    check(lambda x0, y: guided(sampler, x0, y, hook=lambda step, t, x: x.sin(), enable_grad=True), X0, Y)


def pull(x, t):
    return torch.tanh(x) * (0.5 + 0.01 * t[:, None])


PATHS = {
    "custom": pfc.paths.custom(lambda t: t.sin(), lambda t: 1 - t),
    "table": pfc.paths.table([0, 0.3, 0.5, 0.7, 1], [0, 0.3, 0.5, 0.7, 1], [1, 0.7, 0.5, 0.3, 0]),
    "alphas_cumprod": pfc.paths.from_alphas_cumprod(torch.linspace(0.9999, 0.01, 1000).double().numpy()),
}


@pytest.mark.parametrize("name", PATHS)
def test_paths_of_your_own(name):
    path = PATHS[name]
    field = pfc.Field(pull, "data", path)
    full = pfc.Sampler(pfc.plan("dpmpp_2m", 3, path=path, prediction="data"))
    tail = pfc.grids.uniform().partial(0.5)
    part = pfc.Sampler(pfc.plan("dpmpp_2m", 3, path=path, prediction="data", grid=tail))
    check(lambda x0, known: full(field, x0=x0, mask=MASK, known=known), X0, KNOWN)
    check(lambda data: part(field, init=data, seeds=[1, 2, 3]), X0)
    other = pfc.Field(pull, "data", pfc.paths.custom(lambda t: t, lambda t: 1 - t, name="other"))
    with pytest.raises(Exception, match="path: the plan is for"):
        check(lambda x0: full(other, x0=x0), X0)


@pytest.mark.parametrize("round_time", [False, True])
def test_times_of_the_prediction(round_time):
    field = pfc.Field(pull, pfc.EDM(0.5), "ve", round_time=round_time)
    sampler = pfc.Sampler(pfc.plan("heun", 3, path="ve", prediction=pfc.EDM(0.5)))
    check(lambda x0: sampler(field, x0=x0), X0)
    scaling = pfc.Scaled("data", lambda t: 1 / (1 + t))
    scaled = pfc.Sampler(pfc.plan("dpmpp_2m", 3, prediction=scaling))
    check(lambda x0: scaled(pfc.Field(pull, scaling), x0=x0), X0)


def test_another_plan_is_another_graph():
    """What a trace took from a plan as constant belongs to that plan."""
    torch._dynamo.reset()
    compiled = torch.compile(lambda sampler, x0: sampler(drift, x0=x0), fullgraph=True, backend="aot_eager")
    for plan in (pfc.plan("euler", 3), pfc.plan("euler", grid=[0.0, 0.1, 0.2, 1.0])):
        sampler = pfc.Sampler(plan)
        assert torch.equal(compiled(sampler, X0), sampler(drift, x0=X0))


def test_gradients():
    results = []
    torch._dynamo.reset()

    def solve(x0):
        return HEUN(drift, x0=x0, enable_grad=True).square().sum()

    for run in (solve, torch.compile(solve, fullgraph=True, backend="aot_eager")):
        x0 = X0.clone().requires_grad_()
        run(x0).backward()
        results.append(x0.grad)
    assert torch.equal(*results)
