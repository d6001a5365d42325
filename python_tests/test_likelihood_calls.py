"""Calls of log_prob: images, sources, conditions, chunks, batches, gradients, fields of every kind, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from test_likelihood import back, grown, growth
from torch.distributions import Independent, MultivariateNormal, Normal, Uniform

import pyflowcore as pfc
from pyflowcore.likelihood.divergence import Trace

EULER, RK4 = back("euler", 2), back("rk4", 3)
FORWARD = pfc.plan("rk4", 3, last="full")


class Net(torch.nn.Module):
    """A small convolution with a condition [B, 1] and a time."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = torch.nn.Conv2d(2, 4, 3, padding=1), torch.nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, x, t, y=None):
        h = torch.tanh(self.one(x) + t.reshape(-1, 1, 1, 1))
        return self.two(h if y is None else h * y.reshape(-1, 1, 1, 1))


def dense_trace(net, x, *args):
    jacobian = torch.autograd.functional.jacobian(lambda at: net(at, *args), x)
    rows = jacobian.reshape(x.shape[0], x[0].numel(), x.shape[0], x[0].numel())
    return torch.stack([rows[i, :, i].diagonal().sum() for i in range(len(x))])


def test_images():
    """[B, C, H, W]: the exact trace of every evaluation is that of the dense Jacobian."""
    net, x = Net().double(), pfc.randn(range(3), (2, 4, 3), dtype=torch.float64)
    t = torch.tensor([0.3, 0.5, 0.9], dtype=torch.float64)
    out, traces = Trace(None)(net, x, t, {})
    assert (traces[:, 0] - dense_trace(net, x, t)).abs().max() < 1e-12
    assert torch.allclose(out, net(x, t))
    found = pfc.log_prob(net, x, plan=EULER)
    half = x - 0.5 * net(x, torch.ones(3))
    x0 = half - 0.5 * net(half, torch.full((3,), 0.5))
    divergence = dense_trace(net, x, torch.ones(3)) + dense_trace(net, half, torch.full((3,), 0.5))
    wanted = Normal(0.0, 1.0).log_prob(x0).flatten(1).sum(1) - 0.5 * divergence
    assert (found.value - wanted).abs().max() < 1e-12


class OpaqueSine(torch.autograd.Function):
    """A function with a backward pass and no forward derivative."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0].cos()


def opaque(x, t):
    return OpaqueSine.apply(x) * x.roll(1, -1)


class ForwardSine(OpaqueSine):
    """One with both, which vmap cannot look into."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)
        return x.sin()

    @staticmethod
    def jvp(ctx, tangent):
        return tangent * ctx.saved_tensors[0].cos()


def forward_only(x, t):
    return ForwardSine.apply(x) * x.roll(1, -1)


@pytest.mark.parametrize(
    "net, engine",
    [
        (lambda x, t: x.sin() * x.roll(1, -1), "forward mode, vmap"),
        (forward_only, "forward mode, batch repeated"),
        (opaque, "reverse mode"),
    ],
)
@pytest.mark.parametrize("probes", [None, 3])
@pytest.mark.parametrize("differentiable", [False, True])
def test_every_way_to_a_product(net, engine, probes, differentiable):
    """vmap, the repeated batch and reverse mode give one number, and one gradient."""
    x = pfc.randn(range(4), (5,), dtype=torch.float64).requires_grad_(differentiable)
    v = None if probes is None else pfc.Hutchinson(probes, seeds=range(4)).draw(x)
    trace = Trace(v, chunk=2, differentiable=differentiable)
    out, found = trace(net, x, torch.ones(4), {})
    assert trace.engine.startswith(engine)
    s, c = x.detach().sin(), x.detach().cos()
    y = x.detach().roll(1, -1)
    jacobian = torch.diag_embed(c * y) + torch.diag_embed(s).roll(-1, 2)
    if v is None:
        wanted = jacobian.diagonal(dim1=1, dim2=2).sum(1, keepdim=True)
    else:
        wanted = torch.einsum("kbi,bij,kbj->bk", v, jacobian, v)
    assert (found - wanted).abs().max() < 1e-13
    assert torch.allclose(out, s * y)
    assert found.requires_grad == out.requires_grad == differentiable
    if differentiable and probes is None:
        (grad,) = torch.autograd.grad(found.sum(), x)
        # Of sum_i cos(x_i) x_{i-1}.
        assert (grad - (-s * y + c.roll(-1, -1))).abs().max() < 1e-13


@pytest.mark.parametrize(
    "chunk, memory", [(1, None), (3, None), (8, None), (100, None), (None, 1), (None, 400)]
)
@pytest.mark.parametrize("divergence", ["exact", pfc.Hutchinson(5, seeds=range(3))])
def test_chunks(chunk, memory, divergence):
    net, x = Net().double(), pfc.randn(range(3), (2, 2, 2), dtype=torch.float64)
    options = {"plan": EULER, "divergence": divergence}
    whole = pfc.log_prob(net, x, **options)
    part = pfc.log_prob(net, x, **options, chunk=chunk, **({} if memory is None else {"memory": memory}))
    assert (part.value - whole.value).abs().max() < 1e-12
    assert torch.allclose(part.stderr, whole.stderr, rtol=1e-10, atol=1e-14)


def test_a_chunk_bounds_the_tangents():
    seen = []

    def net(x, t):
        seen.append(len(x))
        return ForwardSine.apply(x) * t[:, None]

    pfc.log_prob(net, torch.zeros(3, 8), plan=EULER, chunk=2)
    assert max(seen) == 6
    seen.clear()
    pfc.log_prob(net, torch.zeros(3, 8), plan=EULER, memory=3 * 8 * 4 * 5)
    assert max(seen) == 15


@pytest.mark.parametrize("divergence", ["exact", pfc.Hutchinson(2)])
def test_samples_do_not_depend_on_their_batch(divergence):
    seeds = torch.arange(7)
    x = pfc.randn(seeds, (6,), dtype=torch.float64)
    for number, rows in enumerate([slice(None), slice(2, 3), slice(0, 5, 2)]):
        if not isinstance(divergence, str):
            divergence = pfc.Hutchinson(2, seeds=seeds[rows])
        found = pfc.log_prob(opaque, x[rows], plan=RK4, divergence=divergence)
        if number == 0:
            whole = found
        assert torch.equal(found.value, whole.value[rows])
        assert torch.equal(found.stderr, whole.stderr[rows])


def test_conditions():
    """Batched conditions follow the repeated batch; shared ones are passed as they are."""

    def net(x, t, y, scale, table):
        assert table.shape == (4,) and len(y["a"]) == len(x)
        return ForwardSine.apply(x) * y["a"][:, None] * scale * table[0]

    a, x = torch.tensor([0.1, 0.5, -1.0, 2.0]), torch.zeros(4, 3)
    cond, shared = {"y": {"a": a}}, {"scale": 2.0, "table": torch.ones(4)}
    found = pfc.log_prob(net, x, plan=EULER, cond=cond, shared=shared)
    wanted = -0.5 * 3 * math.log(2 * math.pi) - 2.0 * 3 * a.double()
    assert (found.value - wanted).abs().max() < 1e-6
    assert found.engine.endswith("batch repeated per tangent")


def test_sources():
    x1 = pfc.randn(range(5), (3,), dtype=torch.float64)
    deviation = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    mean = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64)
    one = Independent(Normal(mean, deviation), 1)
    two = MultivariateNormal(mean, torch.diag(deviation**2))
    x0 = x1 * math.exp(-1.0 / 3.0)
    for source in (one, two):
        found = pfc.log_prob(growth, x1, plan=back("dopri8", 8), source=source)
        assert (found.value - (source.log_prob(x0) - 1.0)).abs().max() < 1e-11
        torch.manual_seed(3)
        drawn = pfc.sample_with_log_prob(
            growth, plan=pfc.plan("dopri8", 8, last="full"), source=source, batch=6
        )
        torch.manual_seed(3)
        start = source.sample((6,))
        assert (drawn.x - start * math.exp(1.0 / 3.0)).abs().max() < 1e-11
        assert (drawn.value - (source.log_prob(start) - 1.0)).abs().max() < 1e-11
    outside = pfc.log_prob(
        growth, x1, plan=EULER, source=Independent(Uniform(torch.zeros(3), torch.ones(3), False), 1)
    )
    assert (outside.value == -math.inf).any()


def test_given_starts():
    x0 = pfc.randn(range(4), (2,), dtype=torch.float64)
    found = pfc.sample_with_log_prob(growth, plan=FORWARD, x0=x0)
    drawn = pfc.sample_with_log_prob(growth, plan=FORWARD, shape=(2,), seeds=range(4), dtype=torch.float64)
    assert torch.equal(found.x, drawn.x) and torch.equal(found.value, drawn.value)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("time_shape", ["batch", "scalar"])
def test_facts_of_the_field(sign, time_shape):
    """The sign, and a time that runs from 1000 to 0."""

    def net(x, t):
        t = 1.0 - t / 1000.0
        return sign * x * (t.reshape(-1, 1) if t.dim() else t) ** 2

    field = pfc.Field(net, sign=sign, time=lambda t: 1000.0 * (1.0 - t), time_shape=time_shape)
    x1 = pfc.randn(range(3), (2,), dtype=torch.float64)
    found = pfc.log_prob(field, x1, plan=back("dopri8", 8))
    assert (found.value - grown(x1)).abs().max() < 1e-11


def test_noise_scale_of_the_path():
    """The exploding path's source is N(0, 80^2); its field of Gaussian data is linear in x."""
    path = pfc.paths.get("ve")
    scale = path.noise_scale

    def denoised(x, t):
        _, sigma, _, _ = path.coefficients(float(t))
        return x / (1.0 + sigma**2)

    field = pfc.Field(denoised, prediction="data", path="ve", time_shape="scalar")
    grid = pfc.grids.karras(sigma_max=scale, levels="rho").reversed()
    times = pfc.plan("rk4", 80, path="ve", grid=grid).times[1:]
    plan = pfc.plan("rk4", grid=times, path="ve", prediction="data")
    x1 = pfc.randn(range(4), (2,), dtype=torch.float64)
    found = pfc.log_prob(field, x1, plan=plan)
    # The end is N(0, 1 + 80^2), which the source is but for its last ten thousandth.
    level = float(path.coefficients(times[0])[1])
    wanted = Normal(0.0, math.hypot(1.0, level)).log_prob(x1).sum(1)
    assert (found.value - wanted).abs().max() < 2e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtypes(dtype):
    x1 = pfc.randn(range(4), (3,)).to(dtype)
    found = pfc.log_prob(growth, x1, plan=back("rk4", 10))
    assert found.value.dtype == found.stderr.dtype == torch.float64 and found.nfe.dtype == torch.int64
    assert (found.value - grown(x1.double())).abs().max() < 1e-5


def test_many_elements_keep_their_digits():
    """The sum of 20,000 elements' logarithms in float64, of a float32 state."""
    x1 = pfc.randn(range(2), (20000,))
    found = pfc.log_prob(lambda x, t: 0.5 * x, x1, plan=back("dopri8", 4), divergence=pfc.Hutchinson(1))
    x0 = x1.double() * math.exp(-0.5)
    wanted = Normal(0.0, 1.0).log_prob(x0).sum(1) - 0.5 * 20000
    assert (found.value - wanted).abs().max() < 1e-7 * wanted.abs().max()


@pytest.mark.parametrize("batch, dim", [(0, 3), (3, 0)])
def test_nothing(batch, dim):
    found = pfc.log_prob(lambda x, t: x, torch.zeros(batch, dim), plan=RK4)
    assert found.value.shape == (batch,) and not found.value.any()


def test_inference_mode():
    x1 = pfc.randn(range(3), (2,), dtype=torch.float64)
    with torch.inference_mode():
        found = pfc.log_prob(growth, x1 * 1.0, plan=back("dopri8", 8))
        drawn = pfc.sample_with_log_prob(growth, plan=FORWARD, shape=(2,), seeds=[1])
    assert (found.value - grown(x1)).abs().max() < 1e-11 and drawn.value.isfinite().all()


def test_nothing_is_recorded_without_a_wish():
    net = Net()
    found = pfc.log_prob(net, torch.zeros(2, 2, 2, 2, requires_grad=True), plan=EULER)
    assert not found.value.requires_grad


@pytest.mark.parametrize("divergence", ["exact", pfc.Hutchinson(2, seeds=[4, 5])])
@pytest.mark.parametrize("way", ["log_prob", "sample"])
def test_gradients(divergence, way):
    """In the data or the start, a parameter, a condition and the source's parameters, by finite differences."""

    def call(x, weight, y, mean):
        def net(x, t, y):
            return torch.tanh(x @ weight.T + y) * (1 + t[:, None])

        source = Independent(Normal(mean, torch.ones(2, dtype=torch.float64)), 1)
        options = {"divergence": divergence, "source": source, "cond": {"y": y}, "enable_grad": True}
        if way == "log_prob":
            return pfc.log_prob(net, x, plan=back("heun", 2), **options).value
        found = pfc.sample_with_log_prob(net, x0=x, plan=pfc.plan("ab2", 2), **options)
        return found.x, found.value

    shapes = [(2, 2), (2, 2), (2, 2), (2,)]
    inputs = [
        pfc.randn(range(10 * i, 10 * i + s[0]), s[1:], dtype=torch.float64).requires_grad_()
        for i, s in enumerate(shapes)
    ]
    assert torch.autograd.gradcheck(call, inputs)


def test_gradients_of_reparametrized_sources():
    mean = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    found = pfc.sample_with_log_prob(
        growth,
        plan=FORWARD,
        source=Independent(Normal(mean, torch.ones(2, dtype=torch.float64)), 1),
        batch=3,
        enable_grad=True,
    )
    (grad,) = torch.autograd.grad(found.x.sum(), mean)
    assert torch.allclose(grad, torch.full((2,), 3 * math.exp(1 / 3), dtype=torch.float64), rtol=1e-3)


def call(**changes):
    return pfc.log_prob(**{"field": growth, "x1": torch.zeros(2, 3), "plan": RK4, **changes})


def sample(**changes):
    return pfc.sample_with_log_prob(
        **{"field": growth, "shape": (3,), "seeds": [1, 2], "plan": FORWARD, **changes}
    )


def numpy_net(x, t):
    return torch.from_numpy(x.detach().numpy() * 2.0)


def three(x, t):
    return x[:, :2]


REFUSED = {
    "no plan": (lambda: call(plan="rk4"), ["plan", "str"]),
    "forward": (lambda: call(plan=FORWARD), ["plan", "from data to noise", "0 to 1", "reversed()"]),
    "backward": (lambda: sample(plan=RK4), ["plan", "from noise to data", "1 to 0"]),
    "sde": (lambda: sample(plan=pfc.plan("euler_maruyama", 3)), ["plan", "euler_maruyama", "noise", "Runge-Kutta"]),
    "exponential": (lambda: call(plan=back("dpmpp_2m", 3)), ["plan", "dpmpp_2m", "scales", "velocities"]),
    "ddim": (lambda: sample(plan=pfc.plan("ddim", 3)), ["plan", "ddim"]),
    "unipc": (lambda: call(plan=back("unipc", 3)), ["plan", "unipc"]),
    "edm": (lambda: call(plan=back("edm_heun", 3)), ["plan", "edm_heun"]),
    "prediction": (lambda: call(field=pfc.Field(growth, prediction="data")), ["prediction", "data", "velocity"]),
    "path": (lambda: call(field=pfc.Field(growth, path="vp")), ["path", "VP"]),
    "x1": (lambda: call(x1=[1.0]), ["x1", "list"]),
    "scalar": (lambda: call(x1=torch.tensor(1.0)), ["x1", "batch"]),
    "integers": (lambda: call(x1=torch.zeros(2, 3).long()), ["x1", "int64"]),
    "divergence": (lambda: call(divergence="hutch"), ["divergence", "'hutch'", "exact", "Hutchinson"]),
    "probes": (lambda: call(divergence=pfc.Hutchinson(seeds=[1])), ["seeds", "1", "2"]),
    "chunk": (lambda: call(chunk=0), ["chunk", "0"]),
    "memory": (lambda: call(memory=2.5), ["memory", "float"]),
    "source": (lambda: call(source=3), ["source", "int"]),
    "elements": (lambda: call(source=Normal(torch.zeros(3), 1.0)), ["source", "[2, 3]", "[2]", "Independent"]),
    "event": (lambda: call(source=MultivariateNormal(torch.zeros(4), torch.eye(4))), ["source", "[2, 3]", "[4]"]),
    "batch shape": (
        lambda: sample(shape=None, seeds=None, batch=2, source=Normal(torch.zeros(3), 1.0)), ["source", "Independent", "[3]"]
    ),
    "cond": (lambda: call(cond=3), ["cond", "int"]),
    "twice": (lambda: call(cond={"y": 1}, shared={"y": 1}), ["shared", "cond", "y"]),
    "numpy": (lambda: call(field=numpy_net), ["field", "derivative", "NumPy"]),
    "shape of out": (lambda: call(field=three), ["[2, 2]", "[2, 3]"]),
    "how many": (lambda: sample(seeds=None), ["seeds", "batch"]),
    "both": (lambda: sample(batch=3), ["batch", "3", "seeds", "2"]),
    "no shape": (lambda: sample(shape=None), ["shape", "source"]),
    "shape and source": (lambda: sample(source=MultivariateNormal(torch.zeros(3), torch.eye(3))), ["shape", "source"]),
    "start and shape": (lambda: sample(x0=torch.zeros(2, 3)), ["x0", "shape"]),
    "dtype": (lambda: sample(dtype=torch.float16), ["dtype", "float16"]),
    "field": (lambda: call(field=3), ["callable", "int"]),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name):
    made, words = REFUSED[name]
    with pytest.raises((TypeError, ValueError)) as caught:
        made()
    assert all(word in str(caught.value) for word in words), caught.value
