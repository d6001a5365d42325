"""Products with packed weights: the layer's own, whatever happens to its weights and whoever watches."""

from __future__ import annotations

import copy
import pickle
import sys
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

import pyflowcore as pfc
from pyflowcore import models
from pyflowcore.prepare.products import Products, why_not_packed

PACKS = not why_not_packed(torch.device("cpu"), torch.float32)
packs = pytest.mark.skipif(not PACKS, reason="this PyTorch packs no weights for oneDNN")


@pytest.fixture(autouse=True)
def every_product_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small ones too, which are left to the BLAS elsewhere."""
    monkeypatch.setattr(sys.modules[Products.__module__], "LEAST_OPERATIONS", 1)


def layer(inputs: int, outputs: int, dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(inputs * 1000 + outputs)
    return nn.Linear(inputs, outputs, dtype=dtype).requires_grad_(False)


def products(*layers: nn.Linear) -> Products:
    return Products(nn.ModuleList(layers))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("inputs, outputs", [(1, 1), (7, 3), (64, 192), (129, 65)])
def test_a_product_is_the_layers(inputs: int, outputs: int, dtype: torch.dtype) -> None:
    """Within the bound of a sum of as many terms, at every batch, from the same packed weights."""
    one = layer(inputs, outputs, dtype)
    made = products(one)
    eps = torch.finfo(dtype).eps
    sums = eps if dtype == torch.float64 else torch.finfo(torch.float32).eps
    for shape in ((5,), (1,), (2, 33), (3, 1, 4), (0,)):
        x = torch.randn(*shape, inputs, dtype=dtype)
        for bias in (False, True):
            found = made(one, x, bias=bias)
            assert found.shape == (*shape, outputs) and found.dtype == dtype
            weight, added = one.weight.double(), one.bias.double() if bias else torch.zeros(outputs)
            exact = x.double() @ weight.T + added
            size = x.double().abs() @ weight.abs().T + added.abs()
            assert bool(
                ((found.double() - exact).abs() <= eps * exact.abs() + (inputs + 2) * sums * size).all()
            )


def test_strided_inputs() -> None:
    one = layer(24, 16)
    made = products(one)
    wide = torch.randn(6, 5, 48)
    for x in (
        wide[..., ::2],
        wide[..., 24:],
        wide[::2, :, :24],
        wide.transpose(0, 1)[..., :24],
        wide[:, :1, :24],
    ):
        torch.testing.assert_close(made(one, x), one(x) - one.bias, rtol=1e-5, atol=1e-5)


@packs
def test_weights_that_were_written_are_packed_again() -> None:
    one, other = layer(8, 8), layer(8, 8)
    made = products(one, other)
    x = torch.randn(3, 8)
    first = made(one, x)
    made.follow()
    assert torch.equal(made(one, x), first)
    with torch.no_grad():
        one.weight.mul_(2.0)
    # Until a trajectory begins: its steps share one set of weights.
    assert torch.equal(made(one, x), first)
    made.follow()
    torch.testing.assert_close(made(one, x), 2 * first)
    assert not made.reason


def test_float64_and_devices_without_packed_weights_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "float64" in why_not_packed(torch.device("cpu"), torch.float64)
    assert "cuda" in why_not_packed(torch.device("cuda"), torch.float32)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert why_not_packed(torch.device("cpu"), torch.float32) == "this PyTorch has no oneDNN"
    one = layer(4, 4)
    x = torch.randn(3, 4)
    assert torch.equal(products(one)(one, x, bias=True), one(x))


SMALL = {"size": 4, "channels": 2, "width": 32, "depth": 2, "heads": 2, "num_classes": 0}


def dit() -> models.DiT:
    torch.manual_seed(0)
    model = models.DiT(**SMALL).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("again", [copy.deepcopy, lambda field: pickle.loads(pickle.dumps(field))])
def test_prepared_fields_are_copied_without_what_is_packed(again: object) -> None:
    field = pfc.prepare(dit())
    x, t = torch.randn(2, 2, 4, 4), torch.rand(2)
    with torch.no_grad():
        want = field(x, t)
        made = again(field)  # type: ignore[operator]
        assert torch.equal(made(x, t), want)
        made.model.head.out.weight.zero_()
        made.model.head.out.bias.zero_()
        assert not bool(made(x, t).any())
        assert torch.equal(field(x, t), want)


@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"fused": True}], ids=str)
def test_a_training_step_is_seen_by_the_next_trajectory(options: dict[str, bool]) -> None:
    model = dit()
    field = pfc.prepare(model)
    sampler = pfc.Sampler(pfc.plan("euler", steps=3))
    half = pfc.prepare(model, dtype=torch.bfloat16)
    learner = torch.optim.AdamW(model.parameters(), lr=0.1, **options)
    for _ in range(2):
        x, t = torch.randn(2, 2, 4, 4), torch.rand(2)
        learner.zero_grad()
        model(x, t).square().mean().backward()
        before = sampler(field, shape=model.shape, seeds=[1, 2])
        assert not half.stale()
        learner.step()
        assert half.stale()
        half.refresh()
        found = sampler(field, shape=model.shape, seeds=[1, 2])
        torch.testing.assert_close(
            found, sampler(model, shape=model.shape, seeds=[1, 2]), rtol=1e-4, atol=1e-5
        )
        assert not torch.allclose(found, before, rtol=1e-3)


def test_a_moved_or_replaced_weight_is_seen() -> None:
    model = dit()
    field = pfc.prepare(model)
    x, t = torch.randn(2, 2, 4, 4), torch.rand(2)
    with torch.no_grad():
        field(x, t)
        model.load_state_dict({k: 2 * v for k, v in model.state_dict().items()}, assign=True)
        torch.testing.assert_close(field(x, t), model(x, t), rtol=1e-4, atol=1e-5)


CHANGES = {
    "a layer": lambda m: setattr(m.blocks[0].attention, "out", scaled(m.blocks[0].attention.out)),
    "a block": lambda m: m.blocks.__setitem__(1, copy.deepcopy(m.blocks[0])),
    "a parametrisation": lambda m: register_parametrization(m.blocks[0].attention.out, "weight", Twice()),
    "a parametrisation's weight": lambda m: m.blocks[1].attention.out.parametrizations.weight[0].by.mul_(3.0),
    "a buffer, written": lambda m: m.positions.mul_(2.0),
    "a buffer": lambda m: setattr(m, "positions", m.positions.flip(0)),
    "the dtype": lambda m: m.double(),
}


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.tensor(2.0))

    def forward(self, weight: Tensor) -> Tensor:
        return self.by * weight


def scaled(one: nn.Linear) -> nn.Linear:
    made = copy.deepcopy(one)
    made.weight.mul_(2.0)
    return made


@pytest.mark.parametrize("name", CHANGES)
def test_whatever_changes_in_the_model_is_seen(name: str) -> None:
    model = dit()
    register_parametrization(model.blocks[1].attention.out, "weight", Twice())
    field = pfc.prepare(model)
    sampler = pfc.Sampler(pfc.plan("euler", steps=2))
    x = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        before = sampler(field, x0=x)
        CHANGES[name](model)
        dtype = next(model.parameters()).dtype
        found, want = sampler(field, x0=x.to(dtype)), sampler(model, x0=x.to(dtype))
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)
    assert name == "the dtype" or not torch.allclose(found, before, rtol=1e-3)


def test_weights_whose_writes_are_not_counted_are_not_kept() -> None:
    with torch.inference_mode():
        model, other = dit(), dit()
        for parameter in other.parameters():
            parameter.mul_(1.5)
        field = pfc.prepare(model)
        x, t = torch.randn(2, 2, 4, 4), torch.rand(2)
        field(x, t)
        model.load_state_dict(other.state_dict())
        torch.testing.assert_close(field(x, t), model(x, t), rtol=1e-4, atol=1e-5)
        assert "inference mode" in field.net.packed.products.reason


def operators_compiled(field: pfc.Field) -> tuple[Tensor, list[str]]:
    names: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> object:
        names.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    sampler = pfc.Sampler(pfc.plan("euler", steps=2))
    run = torch.compile(lambda x: sampler(field, x0=x), backend=backend, fullgraph=True)
    with torch.no_grad():
        return run(torch.ones(2, 2, 4, 4)), names


def test_a_compiler_sees_plain_products() -> None:
    model = dit()
    field = pfc.prepare(model)
    sampler = pfc.Sampler(pfc.plan("euler", steps=2))
    with torch.no_grad():
        want = sampler(model, x0=torch.ones(2, 2, 4, 4))
        sampler(field, x0=torch.ones(2, 2, 4, 4))  # packed and recorded
    found, names = operators_compiled(field)
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)
    assert any("linear" in name for name in names) and not any("mkldnn" in name for name in names), names


def test_explain_names_the_products() -> None:
    sampler = pfc.Sampler(pfc.plan("euler", steps=2))
    parts = dict(sampler.explain(pfc.prepare(dit())).parts)
    assert ("on packed weights" in parts["products"]) == PACKS
    moving = pfc.prepare(dit())
    moving.model.double()
    assert "float64" in dict(sampler.explain(moving).parts)["products"]
    double = dict(sampler.explain(pfc.prepare(dit().double())).parts)
    assert "PyTorch's, since" in double["products"] and "float64" in double["products"]
    assert "products" not in dict(sampler.explain(dit()).parts)


class Adapted(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1.0


def test_layers_that_compute_something_else_are_refused() -> None:
    model = dit()
    field = pfc.prepare(model)
    model.blocks[0].attention.out = Adapted(32, 32)
    with pytest.raises(TypeError, match=r"blocks.0.attention.out is a Adapted.*allowed is Linear"):
        pfc.prepare(model)
    with torch.no_grad(), pytest.raises(TypeError, match="Adapted"):
        field(torch.randn(1, 2, 4, 4), torch.rand(1))
    model = dit()
    hook = model.blocks[1].register_forward_hook(lambda *_: None)
    with pytest.raises(TypeError, match=r"blocks.1 has a forward hook"):
        pfc.prepare(model)
    hook.remove()
    pfc.prepare(model)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda field: pickle.loads(pickle.dumps(field))])
def test_copies_of_fields_in_another_dtype_keep_their_weights(again: object) -> None:
    model = dit()
    field = pfc.prepare(model, dtype=torch.bfloat16)
    x, t = torch.randn(2, 2, 4, 4), torch.rand(2)
    with torch.no_grad():
        want = field(x, t)
        made = again(field)  # type: ignore[operator]
        assert not made.stale()
        made.model.head.out.weight.mul_(2.0)
        assert made.stale() and torch.equal(made(x, t), want)
        assert again(made).stale()  # type: ignore[operator]
        made.refresh()
        assert not torch.equal(made(x, t), want)


def test_who_keeps_addresses_can_keep_what_is_there() -> None:
    """What a captured graph reads outlives a write to the weights."""
    model = dit()
    field = pfc.prepare(model)
    x, t = torch.randn(2, 2, 4, 4), torch.rand(2)
    with torch.no_grad():
        field(x, t)
        held = field.held()
        places = [weakref.ref(tensor) for tensor in field.net.packed._kept.values()]
        assert places
        model.embed.bias.add_(1.0)
        field(x, t)
        assert all(ref() is not None for ref in places)
        del held
        assert all(ref() is None for ref in places)
