"""opcheck for every operator, and torch.compile(fullgraph=True) of functions that call them."""

from __future__ import annotations

import pytest
import torch

import pyflowcore as pfc
from reference.tables import table

OPS = torch.ops.pyflowcore
ROW = table(p=0.3, q=-1.7, a=0.93, b_new=0.2, e_new=-0.6, b={0: 0.4}, s={0: 0.5}, store=1, in_scale=0.5)


def values(*shape, dtype=torch.float32, grad=False):
    return torch.randn(*shape, dtype=torch.float64).to(dtype).requires_grad_(grad)


def guided(grad=False, state=torch.float32, out=torch.float32):
    outs = [values(4, 3, dtype=out, grad=grad)]
    slots = [values(2, 3, dtype=state, grad=grad) for _ in range(2)]
    y, guidance = values(2, 3, dtype=state, grad=grad), values(1, 1, dtype=state, grad=grad)
    return values(2, 3, dtype=state, grad=grad), y, slots, outs, guidance, torch.tensor([1, 2]), ROW, 0


SAMPLES = {
    "randn": (OPS.randn.default, [(torch.tensor([1, 2]), [3, 5], 0, 0, dtype) for dtype in (torch.float32, torch.bfloat16)]),
    "interpolate": (
        OPS.interpolate.default,
        [
            (values(2, 3, grad=True), torch.rand(2), values(2, 3, grad=True), None, 2, 0.1, 20.0, 0, 3, 0),
            (values(2, 3, dtype=torch.float16), torch.rand(2).double(), None, torch.tensor([1, 2]), 1, 0.0, 0.0, 4, 3, 0),
        ],
    ),
    "combine": (
        OPS.combine.default,
        [guided(), guided(grad=True), guided(grad=True, state=torch.float64, out=torch.bfloat16),
         (values(2, 3), None, [], [values(2, 3)], None, None, table(b_new=0.5), 0)],
    ),
    "combine_": (
        OPS.combine_.default,
        [
            (values(2, 3), values(2, 3), values(2, 3), values(4, 3, dtype=torch.bfloat16), values(2, 2, 3), values(4, 3),
             None, values(1, 2), torch.tensor([1, 2]), ROW, 0),
            (values(2, 3), None, None, None, None, values(2, 3), None, None, None, table(b_new=0.5), 0),
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SAMPLES)
def test_opcheck(name):
    operator, samples = SAMPLES[name]
    for arguments in samples:
        torch.library.opcheck(operator, arguments)


def compiled(function, *arguments):
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager")(*arguments)


def check(function, *arguments):
    """The compiled function gives the eager one's bits."""
    copies = [[a.clone() if isinstance(a, torch.Tensor) else a for a in arguments] for _ in range(2)]
    eager, found = function(*copies[0]), compiled(function, *copies[1])
    for mine, theirs in zip(found, eager, strict=True):
        assert torch.equal(mine, theirs)


def test_randn():
    check(
        lambda seeds: (2 * pfc.randn(seeds, (3, 5)), OPS.randn(seeds, [7], 1, 2, torch.float64)),
        torch.arange(4),
    )


@pytest.mark.parametrize("path", ["linear", "trigonometric", "vp", pfc.paths.VP(0.2, 12.0)])
def test_interpolate(path):
    def loss(data, t, seeds):
        found = pfc.interpolate(data + 1, t, seeds=seeds, path=path, prediction="v")
        return found.x_t * 2, found.target

    check(loss, values(3, 5), torch.rand(3), torch.arange(3))


def test_combine():
    def step(x, out, slot, seeds):
        x, y, d = pfc.ops.combine(x * 1, ROW, 0, outs=[out.sin()], slots=[slot, slot], seeds=seeds)
        return x + 1, y, d

    check(step, values(2, 3), values(2, 3), values(2, 3), torch.tensor([1, 2]))


def test_combine_in_place():
    def step(x, out, inp, slots, seeds):
        pfc.ops.combine_(x, ROW, 0, out=out.sin(), inp=inp, slots=slots, seeds=seeds)
        return x, inp * 2, slots

    check(
        step,
        values(2, 3),
        values(2, 3),
        values(4, 3, dtype=torch.bfloat16),
        values(2, 2, 3),
        torch.tensor([1, 2]),
    )


def test_guidance_by_sample():
    rules = torch.tensor([[0.0, 0.2, 1.5, -0.5, 0.3, 1.0, 0.7]], dtype=torch.float64)
    copy = table(a=0.0, b_new=1.0)

    def step(x, out, m, mix, scratch, guidance):
        out = out.sin()
        pfc.ops.guide_(x, rules, 0, out=out, guidance=guidance, m=m, mix=mix, scratch=scratch)
        pfc.ops.combine_mixed_(x, copy, 0, out=out, mix=mix, m=m)
        return x, m, mix * 2

    scratch = torch.zeros(18, dtype=torch.float64)
    check(step, values(2, 3), values(4, 3), values(2, 3), torch.zeros(4, 2), scratch, torch.full((1, 1), 3.0))


def test_changing_shapes():
    """The batch as a symbol: one graph serves both."""

    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def training_step(data, t, seeds):
        found = pfc.interpolate(data, t, seeds=seeds)
        return (found.x_t - found.target).square().mean()

    for batch in (2, 5):
        data, t, seeds = values(batch, 7), torch.rand(batch), torch.arange(batch)
        found = pfc.interpolate(data, t, seeds=seeds)
        wanted = (found.x_t - found.target).square().mean()
        torch.testing.assert_close(training_step(data, t, seeds), wanted)


def test_gradients_through_a_compiled_function():
    def loss(x, out):
        state, _, _ = pfc.ops.combine(x, table_row, 0, outs=[out])
        return state.square().sum()

    table_row = table(a=0.5, b_new=2.0)
    grads = []
    for run in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        x, out = torch.ones(2, 3, requires_grad=True), torch.full((2, 3), 3.0, requires_grad=True)
        run(x, out).backward()
        grads.append((x.grad, out.grad))
    assert torch.equal(grads[0][0], grads[1][0])
    assert torch.equal(grads[0][1], grads[1][1])
    assert grads[0][1][0, 0] == 2 * 6.5 * 2.0


def table_gradient(run, seeds=None):
    learned = table(a=0.5, b_new=2.0, b={0: 0.3}).requires_grad_()
    x, out, slot = torch.ones(2, 3), torch.full((2, 3), 3.0), torch.full((2, 3), -1.0)

    def loss(x, out, slot, learned):
        state, _, _ = pfc.ops.combine(x, learned, 0, outs=[out], slots=[slot], seeds=seeds)
        return state.square().sum()

    run(loss)(x, out, slot, learned).backward()
    return learned.grad


def test_the_gradient_of_a_table_through_a_compiled_function():
    found = table_gradient(lambda f: torch.compile(f, fullgraph=True, backend="aot_eager"))
    assert torch.equal(found, table_gradient(lambda f: f))
    assert found.abs().max() > 0.0


@pytest.mark.filterwarnings("ignore:Error detected in")
def test_the_gradient_of_a_table_with_noise_is_refused_by_the_compiler():
    torch._dynamo.reset()
    with pytest.raises(Exception, match=r"outside torch\.compile"):
        table_gradient(lambda f: torch.compile(f, fullgraph=True, backend="aot_eager"), torch.tensor([1, 2]))


def test_a_compiled_network_inside_a_sampler():
    net = torch.compile(lambda x, t: x * t[:, None], fullgraph=True, backend="aot_eager")
    sampler = pfc.Sampler(pfc.plan("heun", 4))
    x0 = pfc.randn(range(2), (5,))
    assert torch.equal(sampler(net, x0=x0), sampler(lambda x, t: x * t[:, None], x0=x0))
