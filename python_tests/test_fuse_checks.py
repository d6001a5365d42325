"""What pfc.fuse makes sure of: casts, finite weights, buffers, labels, the order of inputs, and outputs of unlike sizes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import pyflowcore as pfc
from pyflowcore.models.mlp import MLP

pytestmark = pytest.mark.usefixtures("one_thread")
F64 = torch.float64


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def small(inputs: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 8), nn.SiLU(), nn.Linear(8, 2))


class Steps(nn.Module):
    """The time in whole steps, as ``how`` makes them."""

    def __init__(self, how) -> None:
        super().__init__()
        self.net, self.how = small(), how
        self.register_buffer("steps", torch.arange(10))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.net(torch.cat([x, self.how(self, t[:, None] * 10).to(x.dtype) / 10], -1))


TO_INTEGERS = {
    "type of a class": lambda m, v: v.type(torch.LongTensor),
    "type of a name": lambda m, v: v.type("torch.LongTensor"),
    "type of a dtype": lambda m, v: v.type(torch.int32),
    "type by name": lambda m, v: v.type(dtype=torch.int64),
    "type_as": lambda m, v: v.type_as(m.steps),
    "type_as, by name": lambda m, v: v.type_as(other=m.steps),
    "to a tensor": lambda m, v: v.to(m.steps),
    "to a dtype": lambda m, v: v.to(dtype=torch.int64),
    "to a device and a dtype": lambda m, v: v.to("cpu", torch.int64),
    "long": lambda m, v: v.long(),
}


@pytest.mark.parametrize("how", TO_INTEGERS)
def test_casts_to_integers_are_refused(how):
    with pytest.raises(pfc.CannotFuse, match="a cast to integers of values that are no condition's"):
        pfc.fuse(Steps(TO_INTEGERS[how]))


@pytest.mark.parametrize("dtype", [torch.int16, torch.uint8, torch.bool])
def test_casts_to_small_integers_are_refused(dtype):
    with pytest.raises(pfc.CannotFuse, match=f"a cast to {dtype}"):
        pfc.fuse(Steps(lambda m, v: v.to(torch.ones(1, dtype=dtype))))


BETWEEN_FLOATS = {
    "float": lambda m, v: v.float(),
    "half": lambda m, v: v.half(),
    "type of a class": lambda m, v: v.type(torch.FloatTensor),
    "type_as": lambda m, v: v.type_as(m.net[0].weight),
    "to a tensor": lambda m, v: v.to(m.net[0].weight),
    "to a device and a dtype": lambda m, v: v.to("cpu", torch.float32),
    "a constant as x": lambda m, v: m.steps[:1].type_as(v) * v,
    "a constant to labels' dtype": lambda m, v: torch.tensor([1.7]).to(m.steps) * v,
}


@pytest.mark.parametrize("how", BETWEEN_FLOATS)
def test_casts_between_float_dtypes_count_for_nothing(how):
    net = Steps(BETWEEN_FLOATS[how])
    field = pfc.fuse(net)
    t = torch.rand(5, dtype=F64)
    x = torch.randn(5, 2, dtype=F64)
    rest = {"a constant as x": 0.0}.get(how, 1.0)
    with torch.no_grad():
        want = copy.deepcopy(net).double().net(torch.cat([x, rest * t[:, None]], -1))
        assert torch.allclose(field(x, t), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(value):
    net = small()
    field = pfc.fuse(net)
    x, t = torch.randn(4, 2), torch.rand(4)
    with torch.no_grad():
        before = field(x, t)
        net[2].weight[1, 3] = value
    with pytest.raises(pfc.CannotFuse, match=r"^2\.weight: it has values that are not finite"):
        field.refresh()
    with torch.no_grad():
        assert torch.equal(field(x, t), before)  # what it had
    with pytest.raises(pfc.CannotFuse, match=r"^2\.weight: it has values that are not finite"):
        pfc.fuse(net)


class Scaled(nn.Module):
    """A buffer that the forward uses, or does not."""

    def __init__(self, value: float, used: bool) -> None:
        super().__init__()
        self.net, self.used = small(), used
        self.register_buffer("scale", torch.tensor(value))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        out = self.net(torch.cat([x, t[:, None]], -1))
        return out * self.scale if self.used else out


def test_buffers_are_finite_where_they_are_used():
    with pytest.raises(pfc.CannotFuse, match=r"^scale: it has values that are not finite"):
        pfc.fuse(Scaled(float("nan"), True))
    pfc.fuse(Scaled(float("-inf"), False))
    with pytest.raises(pfc.CannotFuse, match="a constant with values that are not finite"):
        pfc.fuse(Steps(lambda m, v: v / 0.0))


class TwoTables(nn.Module):
    def __init__(self, first: int, second: int) -> None:
        super().__init__()
        self.a, self.b = nn.Embedding(first, 3), nn.Embedding(second, 3)
        self.net = small(9)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return self.net(torch.cat([x, t[:, None], self.a(y), self.b(y)], -1))


@pytest.mark.parametrize("sizes", [(4, 9), (9, 4)])
def test_labels_of_two_tables(sizes):
    net = TwoTables(*sizes)
    field = pfc.fuse(net, ("x", "t", "y"))
    x, t, y = torch.randn(4, 2, dtype=F64), torch.rand(4, dtype=F64), torch.tensor([0, 3, 1, 2])
    with torch.no_grad():
        assert torch.allclose(field(x, t, y=y), copy.deepcopy(net).double()(x, t, y), rtol=1e-12, atol=1e-12)
        with pytest.raises(ValueError, match="y must be labels from 0 to 3, got 0 to 4"):
            field(x, t, y=torch.tensor([0, 4, 1, 2]))


def test_labels_under_torch_compile():
    """Nobody looks at them there; the look-up itself takes none that are out of range, -1 included."""
    net = MLP(2, hidden=8, depth=1, num_classes=3)
    nn.init.normal_(net.head.weight)
    field = pfc.fuse(net)
    x, t, y = torch.randn(4, 2), torch.rand(4), torch.tensor([0, 3, 1, 2])
    with torch.no_grad():
        compiled = torch.compile(field, backend="eager", fullgraph=True)
        assert torch.equal(compiled(x, t, y=y), field(x, t, y=y))
        for wrong in (-1, 4):
            with pytest.raises(IndexError):
                compiled(x, t, y=torch.tensor([0, wrong, 1, 2]))
    with pytest.raises(IndexError):
        field.net.lowered.condition({"y": torch.tensor([-1])}, torch.float32, torch.device("cpu"))


class Ordered(nn.Module):
    def __init__(self, parameters: str, joined: int = 3) -> None:
        super().__init__()
        self.net = small(joined)
        names = parameters.split(", ")
        scope: dict[str, object] = {}
        exec(f"def forward(self, {parameters}): return self.join({', '.join(names)})", scope)
        self.forward = scope["forward"].__get__(self)

    def join(self, *values: Tensor) -> Tensor:
        return self.net(torch.cat([v.reshape(len(v), -1) for v in values], -1))


ORDERS = [
    ("t, x", ("x", "t"), r"inputs is \('x', 't'\), and forward takes \(t, x\).*Give inputs=\('t', 'x'\)"),
    ("x, c, t", ("x", "t", "c"), r"t and c would arrive in other places. Give inputs=\('x', 'c', 't'\)"),
    ("t, x, y", ("x", "t", "label"), r"Give inputs in forward's order, the conditions by its names"),
]


@pytest.mark.parametrize("parameters, inputs, message", ORDERS)
def test_inputs_in_another_order_than_forwards(parameters, inputs, message):
    with pytest.raises(ValueError, match=message):
        pfc.fuse(
            Ordered(parameters, 2 + len(inputs) - 1),
            inputs,
            sizes={name: 1 for name in inputs if name in ("c", "label")},
        )


def test_an_x_that_is_not_the_state():
    """What was observed is often called x; the state is another parameter then."""
    net = Ordered("theta, x, t", 2 + 4 + 1)
    field = pfc.fuse(net, ("x", "observed", "t"), sizes={"x": 2, "observed": 4})
    state, observed, t = torch.randn(5, 2, dtype=F64), torch.randn(5, 4, dtype=F64), torch.rand(5, dtype=F64)
    with torch.no_grad():
        want = copy.deepcopy(net.net).double()(torch.cat([state, observed, t[:, None]], -1))
        assert torch.allclose(field(state, t, observed=observed), want, rtol=1e-12, atol=1e-12)


class Counting(nn.Module):
    def __init__(self, replaced: bool = False) -> None:
        super().__init__()
        self.net, self.replaced = small(), replaced
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        if self.replaced:
            self.calls = self.calls + 1
        else:
            self.calls += 1
        return self.net(torch.cat([x, t[:, None]], -1))


def test_a_forward_that_writes_buffers():
    for replaced in (False, True):
        with pytest.raises(
            pfc.CannotFuse, match=r"^calls: forward writes this buffer, and a fused network is the same"
        ):
            pfc.fuse(Counting(replaced).eval())
    net = small()
    nn.utils.parametrizations.spectral_norm(net[0])
    with pytest.raises(
        pfc.CannotFuse, match=r"^0\.parametrizations\.weight\.0\._u: .*call the module's eval\(\) first"
    ):
        pfc.fuse(net)
    x, t = torch.randn(5, 2, dtype=F64), torch.rand(5, dtype=F64)
    field = pfc.fuse(net.eval())
    with torch.no_grad():
        want = copy.deepcopy(net).double()(torch.cat([x, t[:, None]], -1))
        assert torch.allclose(field(x, t), want, rtol=1e-12, atol=1e-12)


class Unlike(nn.Module):
    """A first output of millions and a second of thousandths, the second with noise of a percent."""

    def __init__(self, noise: float) -> None:
        super().__init__()
        self.net, self.noise = small(), noise
        self.register_buffer("scale", torch.tensor([1e6, 1e-3]))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        shift = self.noise * torch.randn(1).to(x.dtype) * torch.tensor([0.0, 1e-5])
        return self.net(torch.cat([x, t[:, None]], -1)) * self.scale + shift


def test_every_output_is_compared_at_its_own_size():
    pfc.fuse(Unlike(0.0))
    with pytest.raises(
        pfc.CannotFuse,
        match=r"not recognised: the fused network differs by \S*e-0[56] \(of values up to 0\.00",
    ):
        pfc.fuse(Unlike(1.0))


MLP_ARGUMENTS = [
    ({"sizes": {"x": 5}}, r"sizes\['x'\] is 5, and this models.MLP takes 2 of x"),
    ({"inputs": ("x", "t", "c"), "sizes": {"c": 5}}, r"sizes\['c'\] is 5, and this models.MLP takes 3 of c"),
    (
        {"inputs": ("x", "t", "y"), "sizes": {"y": 5}},
        r"sizes\['y'\] is 5, and this models.MLP takes y as labels",
    ),
    ({"inputs": ("x", "t", "c"), "labels": ("c",)}, "labels has c, and the labels of a models.MLP are y"),
    ({"shape": (1, 2)}, r"shape is \(1, 2\), and this models.MLP takes x of shape \(2,\)"),
]


@pytest.mark.parametrize("given, message", MLP_ARGUMENTS, ids=[m[:9] for _, m in MLP_ARGUMENTS])
def test_arguments_that_a_models_mlp_contradicts(given, message):
    net = MLP(2, hidden=8, depth=1, num_classes=4, cond_dim=3)
    with pytest.raises(ValueError, match=message):
        pfc.fuse(net, **given)
    pfc.fuse(net, ("x", "t", "y", "c"), sizes={"x": 2, "c": 3}, labels=("y",), shape=(2,))


def test_an_empty_batch_with_conditions():
    field = pfc.fuse(small(6), ("x", "t", "c"))
    x, none = torch.randn(0, 2), torch.zeros(0, 3)
    with torch.no_grad():
        assert field(x, torch.zeros(0), c=none).shape == (0, 2)
        assert field(x, torch.zeros(()), c=torch.zeros(1, 3)).shape == (0, 2)
    assert field(x, torch.zeros(0), c=none).shape == (0, 2)
    assert pfc.Sampler(pfc.plan("euler", 2))(field, x0=x, cond={"c": none}).shape == (0, 2)


def test_a_module_that_moves_its_inputs_to_a_device():
    """To follow it, everything is on the CPU, wherever the module says that it is."""
    for device in ("meta", torch.device("meta")):
        pfc.fuse(Steps(lambda m, v, device=device: v.to(device)))
