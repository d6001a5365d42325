"""Prepared fields: the fused evaluation of a reference model against the model itself, whose float64 form is the truth."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn

import pyflowcore as pfc
from pyflowcore import models
from pyflowcore.prepare import steering

SMALL = {"size": 6, "channels": 3, "patch": 2, "width": 64, "depth": 3, "heads": 2, "num_classes": 5}
OPTIONS = {
    "plain": {},
    "lightning": {"mlp": "swiglu", "norm": "rms", "norm_affine": True, "rope": True, "positions": "none"},
    "qk rms": {"qk_norm": "rms", "positions": "learned", "norm_affine": True},
    "qk layer, rope": {"qk_norm": "layer", "rope": True, "mlp": "swiglu"},
    "vector": {"cond_dim": 7, "num_classes": 0, "outputs": 6},
    "both": {"cond_dim": 3},
    "time alone": {"num_classes": 0},
}


def trained(model: nn.Module, scale: float = 0.08, seed: int = 0) -> nn.Module:
    """Weights as after training: nothing is zero any more."""
    made = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=made).to(parameter.dtype))
    return model.eval()


def dit(**options: object) -> models.DiT:
    return trained(models.DiT(**(SMALL | options)))  # type: ignore[arg-type, return-value]


def conditions(model: models.DiT, batch: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    made = torch.Generator().manual_seed(1)
    cond: dict[str, Tensor] = {}
    if model.num_classes:
        cond["y"] = torch.randint(0, model.num_classes + 1, (batch,), generator=made)
    if model.cond_dim:
        cond["c"] = torch.randn(batch, model.cond_dim, generator=made, dtype=torch.float64).to(dtype)
    return cond


def points(model: nn.Module, batch: int) -> tuple[Tensor, Tensor]:
    made = torch.Generator().manual_seed(2)
    x = torch.randn(batch, *model.shape, generator=made, dtype=torch.float64)  # type: ignore[misc]
    return x, torch.rand(batch, generator=made, dtype=torch.float64)


def error(value: Tensor, truth: Tensor) -> float:
    return float((value.double() - truth).norm() / truth.norm())


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("name", OPTIONS)
def test_error_is_at_most_twice_the_models_own(name: str, batch: int) -> None:
    model = dit(**OPTIONS[name])
    x, t = points(model, batch)
    cond = conditions(model, batch)
    exact = {key: value.double() if value.is_floating_point() else value for key, value in cond.items()}
    with torch.no_grad():
        truth = copy.deepcopy(model).double()(x, t.float().double(), **exact)
        own = error(model(x.float(), t.float(), **cond), truth)
        ours = error(pfc.prepare(model)(x.float(), t.float(), **cond), truth)
    assert ours <= 2 * own, (ours, own)
    assert own < 1e-5, own


# (side, patch, width, heads): 1, 9, 25 and 64 tokens, heads of 32, 64, 72, 96 and 128.
SHAPES = [(2, 2, 64, 2), (6, 2, 128, 2), (5, 1, 72, 1), (8, 1, 96, 1), (6, 2, 256, 2)]


@pytest.mark.parametrize("batch", [1, 2, 33])
@pytest.mark.parametrize("side, patch, width, heads", SHAPES)
def test_shapes(side: int, patch: int, width: int, heads: int, batch: int) -> None:
    """Odd numbers of tokens, every size of head, and inputs whose elements do not follow one another."""
    made = {"size": side, "patch": patch, "width": width, "heads": heads, "depth": 2}
    model = dit(**made, qk_norm="rms", rope=True, mlp="swiglu")
    x, t = points(model, batch)
    given = x.float().permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1)
    assert batch == 1 or not given.is_contiguous()
    y = conditions(model, 2 * batch)["y"][::2]
    with torch.no_grad():
        truth = copy.deepcopy(model).double()(x, t.float().double(), y=y)
        own = error(model(given, t.float(), y=y), truth)
        assert error(pfc.prepare(model)(given, t.float(), y=y), truth) <= 2 * own


@pytest.mark.parametrize("name", OPTIONS)
def test_bfloat16(name: str) -> None:
    model = dit(**OPTIONS[name])
    x, t = points(model, 3)
    cond = conditions(model, 3)
    half = copy.deepcopy(model).bfloat16()
    weights = copy.deepcopy(half).double()
    exact = {key: value.double() if value.is_floating_point() else value for key, value in cond.items()}
    x = x.bfloat16().double()
    with torch.no_grad():
        truth = weights(x, t.float().double(), **exact)
        own = error(half(x.bfloat16(), t.float(), **cond), truth)
        ours = error(pfc.prepare(model, dtype=torch.bfloat16)(x.float(), t.float(), **cond), truth)
    assert ours <= 2 * own, (ours, own)


@pytest.mark.parametrize("name", OPTIONS)
def test_float64_agrees_to_rounding(name: str) -> None:
    model = dit(**OPTIONS[name]).double()
    x, t = points(model, 3)
    cond = conditions(model, 3, torch.float64)
    with torch.no_grad():
        assert error(pfc.prepare(model)(x, t, **cond), model(x, t, **cond)) < 1e-13


GUIDANCE = {
    "none": None,
    "cfg": pfc.CFG(2.5),
    "interval": pfc.CFG(2.5, interval=(0.3, 0.8)),
    "zero": pfc.CFGZero(2.5),
}


@pytest.mark.parametrize("guidance", GUIDANCE)
@pytest.mark.parametrize("solver", ["euler", "heun", "ab2", "unipc"])
def test_samples_are_the_models(solver: str, guidance: str) -> None:
    model = dit().double()
    sampler = pfc.Sampler(pfc.plan(solver, steps=6), GUIDANCE[guidance])
    y = torch.tensor([0, 3, 1])
    null = {"y": torch.tensor(model.null_class)} if guidance != "none" else None
    arguments = {
        "seeds": [4, 5, 6],
        "shape": model.shape,
        "cond": {"y": y},
        "uncond": null,
        "dtype": torch.float64,
    }
    with torch.no_grad():
        want = sampler(model, **arguments)
    assert error(sampler(pfc.prepare(model), **arguments), want) < 1e-12


def test_modulations_ahead_are_those_in_place_to_the_bit() -> None:
    """Of the same product shape: one row at a time against all rows made as one row at a time."""
    model = dit()
    layers = [block.modulation for block in model.blocks] + [model.head.modulation]
    times = torch.randn(9, 64)
    conditions = torch.randn(4, 64)
    ahead = steering.Steering(layers, times, conditions, most_bytes=1)  # type: ignore[arg-type]
    for row in (0, 8, 3, 3):
        for layer, made in zip(layers, ahead.at(row, 4), strict=True):
            assert torch.equal(made, layer(nn.functional.silu(times[row] + conditions)))


@pytest.mark.parametrize("most", [1, 40_000, 1 << 30])
def test_modulations_ahead_are_those_in_place_within_rounding(most: int) -> None:
    model = dit().double()
    layers = [block.modulation for block in model.blocks] + [model.head.modulation]
    made = torch.Generator().manual_seed(3)
    times, each = (torch.randn(n, 64, dtype=torch.float64, generator=made) for n in (9, 4))
    for conditions, n in itertools.product((each, None), (4, 2)):
        ahead = steering.Steering(layers, times, conditions, most_bytes=most)  # type: ignore[arg-type]
        for row in range(9):
            steer = times[row] if conditions is None else times[row] + conditions[:n]
            for layer, found in zip(layers, ahead.at(row, n), strict=True):
                torch.testing.assert_close(
                    found, layer(nn.functional.silu(steer)).expand(n, -1), rtol=1e-12, atol=1e-13
                )


def test_gradients_go_through_the_model() -> None:
    model = dit()
    x, t = points(model, 2)
    field = pfc.prepare(model)
    x0 = x.float().requires_grad_()
    cond = conditions(model, 2)
    field(x0, t.float(), **cond).square().sum().backward()
    assert x0.grad is not None and model.head.out.weight.grad is not None
    found = x0.grad.clone()
    x0.grad = None
    model(x0, t.float(), **cond).square().sum().backward()
    assert torch.equal(found, x0.grad)
    sampler = pfc.Sampler(pfc.plan("euler", steps=2))
    for fast in (field, pfc.prepare(model, dtype=torch.bfloat16)):
        x0.grad = None
        sampler(fast, x0=x0, cond=cond, enable_grad=True).sum().backward()
        assert float(x0.grad.norm()) > 0


def test_weights_in_another_dtype_are_copies() -> None:
    model = dit()
    own, copied = pfc.prepare(model), pfc.prepare(model, dtype=torch.bfloat16)
    x, t = points(model, 2)
    cond = conditions(model, 2)
    assert not own.stale() and not copied.stale()
    with torch.no_grad():
        before = [field(x.float(), t.float(), **cond) for field in (own, copied)]
        model.head.out.weight.mul_(2.0)
        assert copied.stale() and not own.stale()
        assert not torch.equal(own(x.float(), t.float(), **cond), before[0])
        assert torch.equal(copied(x.float(), t.float(), **cond), before[1])
        copied.refresh()
        assert not copied.stale()
        assert not torch.equal(copied(x.float(), t.float(), **cond), before[1])


def test_captured_runs_take_new_conditions() -> None:
    model = dit()
    sampler = pfc.Sampler(pfc.plan("ab2", steps=4), pfc.CFG(2.0))
    field = pfc.prepare(model)
    null = {"y": torch.tensor([model.null_class])}
    with pytest.warns(pfc.PyflowcoreWarning, match="no CUDA graphs"):
        run = sampler.capture(
            field, shape=model.shape, batch=2, cond={"y": torch.tensor([0, 1])}, uncond=null
        )
    for labels in ([0, 1], [3, 2]):
        want = sampler(field, shape=model.shape, seeds=[7, 8], cond={"y": torch.tensor(labels)}, uncond=null)
        assert torch.equal(run(seeds=[7, 8], cond={"y": torch.tensor(labels)}), want)


def test_facts_of_the_field_are_kept() -> None:
    model = dit()
    field = pfc.Field(model, prediction="data", path="trigonometric", sign=-1, time=lambda t: 1 - t)
    prepared = pfc.prepare(field)
    assert (prepared.prediction, prepared.path, prepared.sign) == (field.prediction, field.path, -1)
    sampler = pfc.Sampler(pfc.plan("euler", steps=3, path="trigonometric", prediction="data"))
    cond = {"y": torch.tensor([1, 2])}
    with torch.no_grad():
        want = sampler(field, shape=model.shape, seeds=[1, 2], cond=cond)
    torch.testing.assert_close(
        sampler(prepared, shape=model.shape, seeds=[1, 2], cond=cond), want, rtol=1e-4, atol=1e-5
    )


def test_explain_says_what_runs() -> None:
    field = pfc.prepare(dit(mlp="swiglu"))
    cond, null = {"y": torch.tensor([1])}, {"y": torch.tensor([5])}
    plan = pfc.plan("euler", steps=2)
    plain = pfc.Sampler(plan).explain(field, cond=cond)
    assert {"qk_norm_rope", "swiglu", "norm_modulate", "gate_residual_norm_"} <= set(plain.operators)
    assert "once for all rows" in dict(plain.parts)["network"]
    apart = pfc.Sampler(plan, pfc.CFG(2.0), branches="calls").explain(field, cond=cond, uncond=null)
    assert "once an evaluation" in dict(apart.parts)["network"]
    learning = pfc.Sampler(plan).explain(field, cond=cond, enable_grad=True)
    assert (
        "gradient is wanted" in dict(learning.parts)["network"] and "qk_norm_rope" not in learning.operators
    )


def test_refusals() -> None:
    with pytest.raises(TypeError, match=r"model must be one of .*DiT.*got Linear"):
        pfc.prepare(nn.Linear(2, 2))
    model = dit()
    with pytest.raises(TypeError, match="dtype must be"):
        pfc.prepare(model, dtype=torch.int64)
    field = pfc.prepare(model)
    with pytest.raises(TypeError, match="prepared field already"):
        pfc.prepare(field)
    with pytest.raises(TypeError, match="takes y, c; got label"):
        pfc.Sampler(pfc.plan("euler", steps=2))(
            field, shape=model.shape, batch=2, cond={"label": torch.zeros(2)}
        )
    for labels in (torch.zeros(2, 2).long(), torch.zeros(3).long(), torch.zeros(1).long()):
        with pytest.raises(ValueError, match=r"y must hold one label a sample, \[2\]"):
            pfc.Sampler(pfc.plan("euler", steps=2))(field, shape=model.shape, batch=2, cond={"y": labels})


def test_modulations_in_several_pieces_of_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all rows' modulations are too many, a few rows' are made at a time, and the views of the last are not taken."""
    model = dit().double()
    sampler = pfc.Sampler(pfc.plan("heun", steps=5), pfc.CFG(2.0, interval=(0.3, 0.7)))
    arguments = {
        "seeds": [4, 5], "shape": model.shape, "dtype": torch.float64, "cond": {"y": torch.tensor([0, 3])},
        "uncond": {"y": torch.tensor(model.null_class)},
    }  # fmt: skip
    made = []
    one = steering.Steering._make

    def few(self: steering.Steering, first: int, last: int) -> list[Tensor]:
        made.append(first)
        return one(self, first, last)

    monkeypatch.setattr(steering.Steering.__init__, "__defaults__", (200_000,))
    monkeypatch.setattr(steering.Steering, "_make", few)
    with torch.no_grad():
        found = sampler(pfc.prepare(model), **arguments)
        assert error(found, sampler(model, **arguments)) < 1e-12
    assert len(made) > 2
