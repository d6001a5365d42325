"""pfc.fuse: small networks of all styles, against the modules themselves in float64."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from small_modules import (
    CfmMLP,
    CfmWrapper,
    FlowMatchingMLP,
    FourierField,
    OneLayerBlocks,
    PosteriorField,
    PreActivation,
    Swish,
    TimestepField,
)  # fmt: skip
from torch import Tensor, nn

import pyflowcore as pfc
from pyflowcore import network
from pyflowcore.models.mlp import MLP

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def points(field: pfc.FusedField, batch: int = 7, **cond: Tensor) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, field.dim, dtype=torch.float64), torch.rand(batch, dtype=torch.float64)


def fused_values(field: pfc.FusedField, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
    """The packed network's, whatever the call would run."""
    c = field.condition(cond, len(x), x.dtype)
    return network.forward(x, t.expand(len(x)), c, field.params(x.dtype), field.layers, field.features)


def assert_close(a: Tensor, b: Tensor, tolerance: float = 1e-12) -> None:
    assert a.shape == b.shape and a.dtype == b.dtype
    assert float((a - b).abs().max()) <= tolerance * (1 + float(b.abs().max()))


def check(field: pfc.FusedField, module, **cond: Tensor) -> None:
    """``module(x, t)`` in float64 against the packed network and the field's call."""
    x, t = points(field)
    with torch.no_grad():
        want = module(x, t)
        assert_close(fused_values(field, x, t, **cond), want)
        assert_close(field(x, t, **cond), want)
        # float32: within twice the error of the module in float32, with room for the few values here
        assert (
            float(
                (
                    field(
                        x.float(),
                        t,
                        **{k: v.float() if v.is_floating_point() else v for k, v in cond.items()},
                    )
                    - want
                )
                .abs()
                .max()
            )
            < 1e-3
        )


ACTIVATIONS = [
    nn.SiLU(), nn.GELU(), nn.GELU(approximate="tanh"), nn.ReLU(), nn.ReLU(inplace=True), nn.SELU(), nn.Tanh(), nn.Softplus(),
    nn.Softplus(beta=3.0), nn.ELU(), nn.ELU(0.3), nn.Sigmoid(), nn.LeakyReLU(), nn.LeakyReLU(0.3), nn.PReLU(), Swish(),
    nn.SiLU(inplace=True),
]  # fmt: skip


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=repr)
def test_every_activation(activation):
    net = nn.Sequential(nn.Linear(4, 17), activation, nn.Linear(17, 5), activation, nn.Linear(5, 3))
    reference = copy.deepcopy(net).double()
    check(pfc.fuse(net), lambda x, t: reference(torch.cat([x, t[:, None]], -1)))


class ByHand(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function
        self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.b(self.function(self.a(torch.cat([x, t[:, None]], -1))))


FUNCTIONS = {
    "x sigmoid(x)": (lambda h: h * torch.sigmoid(h), "silu"),
    "sigmoid(x) x": (lambda h: h.sigmoid() * h, "silu"),
    "mul_": (lambda h: torch.mul(h, F.sigmoid(h)), "silu"),
    "swish with beta": (lambda h: h * torch.sigmoid(1.7 * h), "silu"),
    "half swish": (lambda h: 0.5 * h * torch.special.expit(h), "silu"),
    "gelu by erf": (lambda h: 0.5 * h * (1 + torch.erf(h / math.sqrt(2))), "gelu"),
    "gelu by erf, factors apart": (lambda h: h * 0.5 * (1.0 + torch.erf(h * 0.7071067811865476)), "gelu"),
    "gelu by tanh": (
        lambda h: 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3))),
        "gelu_tanh",
    ),
    "gelu by tanh, otherwise": (
        lambda h: h * (0.5 + 0.5 * torch.tanh((0.044715 * torch.pow(h, 3.0) + h) * 0.7978845608028654)),
        "gelu_tanh",
    ),
    "x / (1 + exp(-x))": (lambda h: h / (1 + torch.exp(-h)), "silu"),
    "1 / (1 + exp(-x))": (lambda h: 1 / (1 + (-h).exp()), "sigmoid"),
    "log(1 + exp(x))": (lambda h: torch.log(1 + torch.exp(h)), "softplus"),
    "log1p(exp(2 x)) / 2": (lambda h: torch.log1p(torch.exp(2 * h)) / 2, "softplus"),
    "-logsigmoid(-x)": (lambda h: -F.logsigmoid(-h), "softplus"),
    "2 sigmoid(2 x) - 1": (lambda h: 2 * torch.sigmoid(2 * h) - 1, "sigmoid"),
    "maximum": (lambda h: torch.maximum(h, torch.zeros_like(h)), "relu"),
    "clamp": (lambda h: h.clamp(min=0), "relu"),
    "relu": (lambda h: h.relu(), "relu"),
    "relu_": (lambda h: h.relu_(), "relu"),
    "F.relu in place": (lambda h: F.relu(h, inplace=True), "relu"),
    "F.elu": (lambda h: F.elu(h, alpha=0.4), "elu"),
    "F.leaky_relu": (lambda h: F.leaky_relu(h, 0.3), "leaky_relu"),
    "torch.selu": (torch.selu, "selu"),
    "F.softplus": (lambda h: F.softplus(h, 0.5), "softplus"),
    "F.tanh": (F.tanh, "tanh"),
    "h.tanh": (lambda h: h.tanh(), "tanh"),
    "F.gelu": (F.gelu, "gelu"),
    "F.gelu tanh": (lambda h: F.gelu(h, approximate="tanh"), "gelu_tanh"),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_activations_as_functions(name):
    function, known = FUNCTIONS[name]
    net = ByHand(function)
    field = pfc.fuse(net)
    assert [layer.activation for layer in field.network.layers] == [known, "identity"]
    check(field, copy.deepcopy(net).double())


def test_flow_matchings_example():
    net = FlowMatchingMLP(2, 32)
    field = pfc.fuse(net)
    assert [layer.activation for layer in field.network.layers] == ["silu"] * 4 + ["identity"]
    check(field, lambda x, t: copy.deepcopy(net).double().main(torch.cat([x, t[:, None]], 1)))


def test_torchcfms():
    net = CfmMLP(2, time_varying=True)
    reference = copy.deepcopy(net).double()
    field = pfc.fuse(net)
    assert field.dim == 2 and [f.kind for f in field.network.features] == ["linear"]
    check(field, lambda x, t: reference(torch.cat([x, t[:, None]], -1)))
    wrapped = pfc.fuse(CfmWrapper(net), inputs=("t", "x"))
    check(wrapped, lambda x, t: reference(torch.cat([x, t[:, None]], -1)))
    still = CfmMLP(3)  # without a time
    check(pfc.fuse(still, inputs=("x",)), lambda x, t: copy.deepcopy(still).double()(x))


@pytest.mark.parametrize(
    "order", [("x", "t", "theta"), ("theta", "x", "t"), ("t", "theta", "x"), ("theta", "t", "x")]
)
def test_one_tensor_in_any_order(order):
    net = nn.Sequential(nn.Linear(2 + 1 + 4, 11), nn.SiLU(), nn.Linear(11, 2))
    field = pfc.fuse(net, inputs=order)
    theta = torch.randn(7, 4, dtype=torch.float64)

    def reference(x: Tensor, t: Tensor) -> Tensor:
        named = {"x": x, "t": t[:, None], "theta": theta}
        return copy.deepcopy(net).double()(torch.cat([named[name] for name in order], -1))

    assert field.network.conditions == 4
    check(field, reference, theta=theta)


@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("blocks", [1, 3])
def test_posterior_fields(blocks, outside):
    net = PosteriorField(blocks=blocks, outside=outside).eval()
    field = pfc.fuse(net, inputs=("x", "theta", "t"))
    assert sum(layer.residual >= 0 for layer in field.network.layers) == blocks
    assert field.network.conditions == 5 and len(field.network.features) == 6
    theta = torch.randn(7, 5, dtype=torch.float64)
    reference = copy.deepcopy(net).double()
    check(field, lambda x, t: reference(x, theta, t), theta=theta)


def test_fourier_features_projections_and_scales():
    net = FourierField()
    field = pfc.fuse(net)
    assert len(field.network.layers) == 3 and len(field.network.features) == 14
    check(field, copy.deepcopy(net).double())


def test_sinusoids_made_in_forward_and_labels():
    net = TimestepField()
    field = pfc.fuse(net, inputs=("x", "t", "y"))
    y = torch.tensor([0, 4, 1, 1, 2, 3, 0])
    reference = copy.deepcopy(net).double()
    check(field, lambda x, t: reference(x, t, y), y=y)
    assert field.condition({"y": y}, 7, torch.float32).shape == (7, 6)


@pytest.mark.parametrize("net", [PreActivation(), OneLayerBlocks()], ids=["preactivation", "one layer"])
def test_residual_streams(net):
    field = pfc.fuse(net)
    reference = copy.deepcopy(net).double()
    check(field, lambda x, t: reference(x, t[:, None] if isinstance(net, OneLayerBlocks) else t))


@pytest.mark.parametrize("classes, cond", [(0, 0), (4, 0), (0, 3), (4, 3)])
def test_models_mlp(classes, cond):
    net = MLP(3, hidden=16, depth=2, num_classes=classes, cond_dim=cond, time_dim=8)
    nn.init.normal_(net.head.weight, std=0.3)
    field = pfc.fuse(net)
    given = {}
    if classes:
        given["y"] = torch.tensor([0, 1, 2, 3, 4, 4, 0])
    if cond:
        given["c"] = torch.randn(7, 3, dtype=torch.float64)
    x, _ = points(field)
    t = torch.tensor([0.0, 1.0, 0.5, 0.25, 0.125, 0.75, 0.375], dtype=torch.float64)
    half = 4
    rates = torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float32) / half).double()
    phase = 1000 * t[:, None] * rates
    reference = copy.deepcopy(net).double()
    parts = [x, phase.cos(), phase.sin()]
    if classes:
        parts.append(reference.embed_class(given["y"]))
    if cond:
        parts.append(given["c"])
    with torch.no_grad():
        want = reference.head(reference.body(torch.cat(parts, -1)))
        assert_close(field(x, t, **given), want)
        # The module rounds its phases to float32; up to that it is the same.
        assert float((net.double()(x, t, **given) - want).abs().max()) < 1e-3
        if classes:
            null = given | {"y": torch.full((7,), classes)}
            without = {k: v for k, v in given.items() if k != "y"}
            assert torch.equal(field(x, t, **without), field(x, t, **null))


def random_field(seed: int) -> nn.Module:
    """A chain of layers and residual blocks of random widths and activations, over random inputs."""
    draw = torch.Generator().manual_seed(seed)

    def pick(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=draw))

    class Random(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dim, width = pick(1, 9), pick(1, 40)
            self.scaled, self.freqs = pick(0, 1), nn.Parameter(torch.randn(pick(1, 5), generator=draw))
            self.first = nn.Linear(self.dim + 2 * len(self.freqs) + 3, width)
            self.parts = nn.ModuleList()
            self.kinds: list[str] = []
            for _ in range(pick(1, 6)):
                kind, activation = (
                    ("plain", "block", "short", "outside")[pick(0, 3)],
                    copy.deepcopy(ACTIVATIONS[pick(0, len(ACTIVATIONS) - 1)]),
                )
                if kind == "plain":
                    after = pick(1, 40)
                    self.parts.append(
                        nn.Sequential(nn.Linear(width, after, bias=bool(pick(0, 1))), activation)
                    )
                    width = after
                elif kind == "short":
                    self.parts.append(nn.Sequential(nn.Linear(width, width), activation))
                else:
                    inner = pick(1, 40)
                    self.parts.append(
                        nn.Sequential(nn.Linear(width, inner), activation, nn.Linear(inner, width))
                    )
                self.kinds.append(kind)
            self.last = nn.Linear(width, self.dim)

        def forward(self, theta: Tensor, x: Tensor, t: Tensor) -> Tensor:
            phase = 2 * math.pi * t.view(-1, 1) * self.freqs
            h = self.first(
                torch.cat([phase.sin(), (x - 0.3) * 2 if self.scaled else x, theta, phase.cos()], -1)
            )
            h = F.silu(h)
            for kind, part in zip(self.kinds, self.parts, strict=True):
                h = (
                    part(h)
                    if kind == "plain"
                    else h + part(h)
                    if kind != "outside"
                    else torch.tanh(part(h) + h)
                )
            return self.last(h) * 0.7 + 0.1

    torch.manual_seed(seed)
    return Random()


@pytest.mark.parametrize("seed", range(40))
def test_random_chains(seed):
    net = random_field(seed)
    field = pfc.fuse(net, ("theta", "x", "t"))
    theta = torch.randn(7, 3, dtype=torch.float64)
    reference = copy.deepcopy(net).double()
    check(field, lambda x, t: reference(theta, x, t), theta=theta)
    assert sum(layer.residual >= 0 for layer in field.network.layers) == sum(
        kind != "plain" for kind in net.kinds
    )


def test_the_layers_do_not_depend_on_the_weights():
    """Weights that happen to be one or zero are weights."""

    class Special(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.eye, self.last = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 2)
            self.scale, self.shift = nn.Parameter(torch.ones(8)), nn.Parameter(torch.zeros(8))
            nn.init.eye_(self.eye.weight)
            nn.init.zeros_(self.eye.bias)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            h = torch.tanh(self.first(torch.cat([x, t[:, None]], -1)))
            h = torch.relu(self.eye(h))
            return self.last(torch.tanh(self.scale * h + self.shift))

    net = Special()
    field = pfc.fuse(net)
    before = field.layers.clone()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter))
    field.refresh()
    assert torch.equal(field.layers, before)
    check(field, copy.deepcopy(net).double())


def layers_of(*widths: int) -> list[list[int]]:
    between = [nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
    net = nn.Sequential(nn.Linear(3, widths[0]), nn.SiLU(), *between, nn.SiLU(), nn.Linear(widths[-1], 2))
    reference = copy.deepcopy(net).double()
    field = pfc.fuse(net)
    check(field, lambda x, t: reference(torch.cat([x, t[:, None]], -1)))
    return [list(layer.weight.shape) for layer in field.network.layers]


def test_linear_maps_in_a_row_are_folded_unless_that_is_more_work():
    assert layers_of(40, 40, 40) == [[40, 3], [40, 40], [2, 40]]
    assert layers_of(64, 4, 64) == [[64, 3], [4, 64], [64, 4], [2, 64]]


@pytest.mark.parametrize("width, depth", [(1, 1), (16, 16), (512, 2), (37, 3), (128, 4)])
def test_widths_and_depths(width, depth):
    layers = [m for i in range(depth) for m in (nn.Linear(5 if i == 0 else width, width), nn.SiLU())]
    net = nn.Sequential(*layers, nn.Linear(width, 4))
    reference = copy.deepcopy(net).double()
    field = pfc.fuse(net)
    assert len(field.network.layers) == depth + 1
    check(field, lambda x, t: reference(torch.cat([x, t[:, None]], -1)))


def test_an_input_of_512():
    net = nn.Sequential(nn.Linear(513, 16), nn.SiLU(), nn.Linear(16, 512))
    reference = copy.deepcopy(net).double()
    check(pfc.fuse(net), lambda x, t: reference(torch.cat([x, t[:, None]], -1)))
