"""What pfc.fuse refuses, and how it says so: the part by its name, the reason, and what is allowed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pyflowcore as pfc
from pyflowcore.models.dit import DiT
from pyflowcore.models.mlp import MLP

pytestmark = pytest.mark.usefixtures("one_thread")


def between(layer: nn.Module, width: int = 8) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, width), layer, nn.SiLU(), nn.Linear(width, 2))


class Made(nn.Module):
    """Two layers and a function between them, of the hidden vector and the inputs."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function
        self.a, self.b, self.c = nn.Linear(3, 8), nn.Linear(8, 2), nn.Linear(8, 8)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        joined = torch.cat([x, t[:, None]], -1)
        return self.b(self.function(self, torch.tanh(self.a(joined)), joined))


LAYERS = {
    "LayerNorm": (nn.LayerNorm(8), r"^1 \(LayerNorm\): .*layer_norm is not a part of a small network.*Linear layers; SiLU"),
    "BatchNorm": (nn.BatchNorm1d(8), r"^1 \(BatchNorm1d\): .*batch_norm"),
    "GroupNorm": (nn.GroupNorm(2, 8), r"^1 \(GroupNorm\): .*group_norm"),
    "dropout": (nn.Dropout(0.1), r"^1 \(Dropout\): dropout in training mode: call the module's eval\(\) first"),
    "Mish": (nn.Mish(), r"^1 \(Mish\): .*mish"),
    "Hardswish": (nn.Hardswish(), r"^1 \(Hardswish\): .*hardswish"),
    "softmax": (nn.Softmax(dim=-1), r"^1 \(Softmax\): .*softmax"),
    "softplus": (nn.Softplus(threshold=10), r"^1 \(Softplus\): softplus with threshold=10, where 20 can be fused"),
    "PReLU": (nn.PReLU(8), r"^1 \(PReLU\): PReLU with a slope for each channel"),
    "GLU": (nn.GLU(), r"^1 \(GLU\): .*glu"),
    "Bilinear": (nn.Hardtanh(), r"^1 \(Hardtanh\): .*hardtanh"),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name):
    layer, message = LAYERS[name]
    with pytest.raises(pfc.CannotFuse, match=message):
        pfc.fuse(between(layer))


def test_a_part_is_named_by_its_path():
    net = nn.Sequential(
        nn.Linear(3, 8), nn.Sequential(nn.SiLU(), nn.Linear(8, 8), nn.LayerNorm(8)), nn.Linear(8, 2)
    )
    with pytest.raises(pfc.CannotFuse, match=r"^1\.2 \(LayerNorm\)"):
        pfc.fuse(net)


FUNCTIONS = {
    "data-dependent": (lambda m, h, i: h if h.sum() > 0 else -h, "is not a part|control flow that depends on data"),
    "item": (lambda m, h, i: h * h[0, 0].item(), r"^the module \(Made\): .*\(item\): control flow that depends on data"),
    "bool": (lambda m, h, i: h if bool(h[0, 0]) else -h, "control flow that depends on data"),
    "numpy": (lambda m, h, i: torch.from_numpy(h.numpy()), "depends on data"),
    "product": (lambda m, h, i: h * m.c(h), "a product of two values that both depend on the inputs"),
    "square": (lambda m, h, i: h * h, "a product of two values"),
    "power": (lambda m, h, i: h**2, "pow is not a part"),
    "division": (lambda m, h, i: h / (1 + h.tanh()), "a division by a value that depends on the inputs"),
    "inverse": (lambda m, h, i: 1 / h, "a division by a value"),
    "sine of x": (lambda m, h, i: torch.sin(h), r"a sine of something else than frequency \* t \+ phase"),
    "mean": (lambda m, h, i: h - h.mean(), "mean is not a part"),
    "over the batch": (lambda m, h, i: h + h.flip(0), "different samples"),
    "linear over the batch": (lambda m, h, i: F.linear(h.mT, torch.ones(11, 11))[:, :1].mT, "different samples|forward failed"),
    "erf": (lambda m, h, i: m.c(torch.erf(h)), "erf outside an activation that is written by hand"),
    "exp": (lambda m, h, i: m.c(torch.exp(h)), "exp outside an activation that is written by hand"),
    "log": (lambda m, h, i: torch.log(2 + torch.exp(h)), r"a logarithm of something else than 1 \+ exp\(x\)"),
    "cube": (lambda m, h, i: m.c(h**3), "cube outside an activation"),
    "maximum": (lambda m, h, i: torch.maximum(h, m.c(h)), "a maximum with something else than zeros"),
    "another tanh gate": (lambda m, h, i: 0.5 * h * (1 + torch.tanh(0.8 * (h + 0.044715 * h**3))), "a product of two values"),
    "clamp": (lambda m, h, i: h.clamp(-1, 1), r"a clamp other than clamp\(min=0\)"),
    "complex": (lambda m, h, i: (h + 0j).real, "complex numbers"),
    "complex cast": (lambda m, h, i: h.to(torch.complex64).abs(), "complex numbers"),
    "attention": (lambda m, h, i: F.scaled_dot_product_attention(*[h[:, None]] * 3)[:, 0], "scaled_dot_product_attention"),
    "convolution": (lambda m, h, i: F.conv1d(h[:, None], torch.ones(1, 1, 1))[:, 0], "conv1d"),
    "inputs again": (lambda m, h, i: torch.tanh(m.c(h) + F.pad(i, (0, 5))), "pad is not a part"),
    "time again": (lambda m, h, i: torch.tanh(m.c(h) + i[:, 2:]), "the inputs are used again after the first activation"),
    "scaled residual": (lambda m, h, i: torch.tanh(2 * h + m.c(F.silu(m.c(h)))), "a residual adds a layer's input as it is"),
    "projected residual": (lambda m, h, i: torch.tanh(m.c(h) + m.c(F.silu(m.c(h)))), r"it adds what c \(Linear\) makes of"),
    "nested": (lambda m, h, i: h + m.c(F.silu((g := F.silu(m.c(h))) + m.c(F.silu(m.c(g))))), "a residual block inside another"),
    "one hot": (lambda m, h, i: F.one_hot(h.long()), "a cast to integers of values that are no condition's"),
    "setitem": (lambda m, h, i: h.__setitem__((slice(None), 0), 0.0) or h, "setitem"),
    "gelu kind": (lambda m, h, i: F.gelu(h, approximate="sigmoid"), "GELU with approximate='sigmoid'"),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name):
    function, message = FUNCTIONS[name]
    with pytest.raises(pfc.CannotFuse, match=message):
        pfc.fuse(Made(function))


class OverTheInput(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x + self.body(torch.cat([x, t[:, None]], -1))


def test_a_residual_over_the_input():
    body = nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 2))
    with pytest.raises(
        pfc.CannotFuse, match=r"^the module.*: the inputs are used again .*network's own input"
    ):
        pfc.fuse(OverTheInput(body))


def test_models_that_are_no_small_networks():
    with pytest.raises(pfc.CannotFuse):
        pfc.fuse(DiT(channels=1, size=8, patch=4, width=16, depth=1, heads=2), shape=(1, 8, 8))


class Random(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(3, 2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.net(torch.cat([x, t[:, None]], -1) + torch.randn(1))


def test_what_was_not_recognised():
    with pytest.raises(
        pfc.CannotFuse, match=r"computes something that was not recognised: the fused network differs by \d"
    ):
        pfc.fuse(Random())


def test_a_last_layer_of_zeros_hides_nothing():
    class Zero(Random):
        def __init__(self) -> None:
            super().__init__()
            nn.init.zeros_(self.net.weight)

    with pytest.raises(pfc.CannotFuse, match="not recognised"):
        pfc.fuse(Zero())


@pytest.mark.parametrize("width", [513, 600])
def test_widths(width):
    with pytest.raises(pfc.CannotFuse, match=rf"^0 \(Linear\): width {width}, at most 512"):
        pfc.fuse(between(nn.Identity(), width))


def test_sizes_beyond_the_limits():
    with pytest.raises(pfc.CannotFuse, match=r"^x: 513 elements, at most 512"):
        pfc.fuse(nn.Sequential(nn.Linear(514, 8), nn.SiLU(), nn.Linear(8, 513)))
    with pytest.raises(pfc.CannotFuse, match="1025 numbers of condition, at most 1024"):
        pfc.fuse(nn.Sequential(nn.Linear(3 + 1025, 8), nn.SiLU(), nn.Linear(8, 2)), ("x", "t", "theta"))
    with pytest.raises(pfc.CannotFuse, match="1026 features of the time, at most 1024"):
        pfc.fuse(MLP(2, hidden=8, depth=1, time_dim=1026))
    layers = [m for _ in range(34) for m in (nn.Linear(3, 3), nn.Tanh())]
    with pytest.raises(pfc.CannotFuse, match="35 layers, at most 34"):
        pfc.fuse(nn.Sequential(*layers, nn.Linear(3, 2)))


def test_dtypes_and_containers():
    with pytest.raises(pfc.CannotFuse, match=r"^0\.weight: its dtype is torch\.complex64"):
        pfc.fuse(nn.Sequential(nn.Linear(3, 2, dtype=torch.complex64)))
    with pytest.raises(pfc.CannotFuse, match="TorchScript"):
        pfc.fuse(torch.jit.trace(between(nn.Identity()), torch.randn(4, 3)))


def test_shapes_that_do_not_fit():
    net = nn.Sequential(nn.Linear(7, 8), nn.SiLU(), nn.Linear(8, 2))
    with pytest.raises(
        pfc.CannotFuse,
        match=r"^0 \(Linear\): the layer takes 7 numbers and was given 3: check inputs= and sizes=",
    ):
        pfc.fuse(net, sizes={"x": 2})
    with pytest.raises(pfc.CannotFuse, match="the sizes of a, b do not follow from the layers"):
        pfc.fuse(net, inputs=("x", "t", "a", "b"))
    with pytest.raises(pfc.CannotFuse, match=r"forward returned \[B, 8\] for x \[B, 2\]"):
        pfc.fuse(nn.Sequential(nn.Linear(3, 8), nn.SiLU()), sizes={"x": 2})

    class Pair(Random):
        def forward(self, x: Tensor, t: Tensor):
            return x, t

    with pytest.raises(pfc.CannotFuse, match="forward returned tuple"):
        pfc.fuse(Pair())

    class Broken(Random):
        def forward(self, x: Tensor, t: Tensor):
            return self.net(x.reshape(-1, 2, 2))

    with pytest.raises(
        pfc.CannotFuse,
        match=r"forward failed while it was followed, with x \[B, 2\], t \[B\] \(guessed: x; sizes= says what they are\): Run",
    ):
        pfc.fuse(Broken())


ARGUMENTS = [
    ({"module": lambda x, t: x}, TypeError, "module must be a torch.nn.Module"),
    ({"module": pfc.Field(nn.Identity())}, TypeError, "module is a pfc.Field already"),
    ({"inputs": "xt"}, TypeError, "inputs must be the names"),
    ({"inputs": ("t",)}, ValueError, "inputs must name x once"),
    ({"inputs": ("x", "x")}, ValueError, "no name twice"),
    ({"sizes": {"theta": 3}}, ValueError, "sizes has 'theta', which is no vector of inputs"),
    ({"sizes": {"x": 0}}, ValueError, r"sizes\['x'\] must be a positive integer, got 0"),
    ({"labels": ("y",)}, ValueError, "labels has 'y', which is no condition of inputs"),
    ({"shape": (0, 2)}, ValueError, "shape must be the shape of one x"),
    ({"precision": "float16"}, ValueError, "precision must be one of float32, tf32, bfloat16, got 'float16'"),
    ({"sign": 2}, ValueError, "sign must be"),
    ({"prediction": "what"}, ValueError, "prediction"),
]  # fmt: skip


@pytest.mark.parametrize("given, kind, message", ARGUMENTS, ids=[a[2][:20] for a in ARGUMENTS])
def test_arguments(given, kind, message):
    arguments = {"module": between(nn.Identity())} | given
    with pytest.raises(kind, match=message):
        pfc.fuse(**arguments)


def test_what_a_call_refuses():
    field = pfc.fuse(nn.Sequential(nn.Linear(6, 8), nn.SiLU(), nn.Linear(8, 2)), ("x", "t", "theta"))
    x, t, theta = torch.randn(4, 2), torch.rand(4), torch.randn(4, 3)
    with torch.no_grad():
        with pytest.raises(TypeError, match="condition theta is missing"):
            field(x, t)
        with pytest.raises(TypeError, match="takes no condition y; its conditions: theta"):
            field(x, t, theta=theta, y=theta)
        with pytest.raises(ValueError, match=r"theta must be \[4, 3\], got \[4, 2\]"):
            field(x, t, theta=theta[:, :2])
        with pytest.raises(ValueError, match=r"x must have 2 elements a sample, got \[4, 3\]"):
            field(torch.randn(4, 3), t, theta=theta)
        with pytest.raises(ValueError, match=r"t must be \[4\] or one time for all, got \[3\]"):
            field(x, t[:3], theta=theta)
        with pytest.raises(TypeError, match=r"x must be a floating-point tensor, got torch.int64"):
            field.net(torch.ones(4, 2, dtype=torch.int64), t, theta=theta)
    labelled = pfc.fuse(MLP(2, hidden=8, depth=1, num_classes=3))
    with torch.no_grad():
        with pytest.raises(ValueError, match="y must be labels from 0 to 3, got 0 to 4"):
            labelled(x, t, y=torch.tensor([0, 1, 2, 4]))
        with pytest.raises(TypeError, match=r"y must be integer labels, got torch.float32"):
            labelled(x, t, y=torch.zeros(4))
        with pytest.raises(ValueError, match=r"y must hold one label a sample, \[4\], got \[3\]"):
            labelled(x, t, y=torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"this models.MLP takes x, t, y"):
        pfc.fuse(MLP(2, hidden=8, num_classes=3), inputs=("x", "t", "c"))


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_reduced_precision_is_for_cuda(precision):
    field = pfc.fuse(between(nn.Identity()), precision=precision)
    with (
        torch.no_grad(),
        pytest.raises(ValueError, match=f"precision='{precision}' is for CUDA; x is on cpu"),
    ):
        field(torch.randn(4, 2), torch.rand(4))
