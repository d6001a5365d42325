"""models.UNet prepared: the fused evaluation against the model itself, whose float64 form is the truth."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pyflowcore as pfc
from pyflowcore import models
from pyflowcore.models.unet_blocks import ResBlock
from pyflowcore.prepare.convolutions import enlarged
from pyflowcore.prepare.products import Products
from pyflowcore.prepare.steering import Steering

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {
    "size": 8, "channels": 2, "width": 16, "multipliers": (1, 2), "blocks": 1, "attention": (2,), "head_channels": 8,
}  # fmt: skip
OPTIONS: dict[str, dict[str, object]] = {
    "plain": {},
    "classes": {"num_classes": 3},
    "shifts": {"scale_shift": False},
    "shifts, classes": {"scale_shift": False, "num_classes": 3},
    "conv": {"resample": "conv", "attention": (1, 2)},
    "pool, variances": {"resample": "pool", "outputs": 4, "num_classes": 3},
    "one head": {"head_channels": 0, "attention": (1,)},
    "one wide head": {"head_channels": 0, "width": 2, "multipliers": (1, 130), "attention": ()},
    "three levels, two blocks": {"multipliers": (1, 2, 1), "blocks": 2, "attention": (), "time_scale": 1.0},
    "one level": {"multipliers": (2,), "attention": (1,)},
    "dropout, odd groups": {"dropout": 0.3, "groups": 6, "width": 18, "head_channels": 6},
    "heads of 32": {"width": 32, "head_channels": 32, "channels": 1, "groups": 4},
}


def unet(**options: object) -> models.UNet:
    """Weights as after training: nothing is zero any more."""
    model = models.UNet(**(SMALL | options))  # type: ignore[arg-type]
    made = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=made))
    return model.eval()


def given(
    model: models.UNet, batch: int, sides: tuple[int, int] | None = None
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """x and t, which float32 holds, in float64, and the labels, the null class among them."""
    made = torch.Generator().manual_seed(1)
    x = torch.randn(batch, model.shape[0], *(sides or model.shape[1:]), generator=made)
    t = torch.rand(batch, generator=made)
    labels = torch.randint(0, model.num_classes + 1, (batch,), generator=made)
    return x.double(), t.double(), {"y": labels} if model.num_classes else {}


def error(value: Tensor, truth: Tensor) -> float:
    return float((value.double() - truth).norm() / truth.norm())


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", OPTIONS)
def test_error_is_at_most_twice_the_models_own(name: str, batch: int) -> None:
    model = unet(**OPTIONS[name])
    x, t, cond = given(model, batch)
    with torch.no_grad():
        truth = copy.deepcopy(model).double()(x, t, **cond)
        own = error(model(x.float(), t.float(), **cond), truth)
        ours = error(pfc.prepare(model)(x.float(), t.float(), **cond), truth)
    assert ours <= 2 * own, (ours, own)
    assert own < 1e-5, own


@pytest.mark.parametrize("name", OPTIONS)
def test_bfloat16(name: str) -> None:
    model = unet(**OPTIONS[name])
    x, t, cond = given(model, 3)
    half = copy.deepcopy(model).bfloat16()
    rounded = x.bfloat16()
    with torch.no_grad():
        truth = copy.deepcopy(half).double()(rounded.double(), t, **cond)
        own = error(half(rounded, t.float(), **cond), truth)
        ours = error(pfc.prepare(model, dtype=torch.bfloat16)(x.float(), t.float(), **cond), truth)
    assert ours <= 2 * own, (ours, own)


@pytest.mark.parametrize("name", OPTIONS)
def test_float64_agrees_to_rounding(name: str) -> None:
    model = unet(**OPTIONS[name]).double()
    x, t, cond = given(model, 3)
    with torch.no_grad():
        assert error(pfc.prepare(model)(x, t, **cond), model(x, t, **cond)) < 1e-13


@pytest.mark.parametrize("batch", [1, 2, 33])
@pytest.mark.parametrize("sides", [(4, 12), (6, 2), (10, 10)])
def test_batches_and_sides(batch: int, sides: tuple[int, int]) -> None:
    for name in ("classes", "conv"):
        model = unet(**OPTIONS[name]).double()
        x, t, cond = given(model, batch, sides)
        with torch.no_grad():
            torch.testing.assert_close(
                pfc.prepare(model)(x, t, **cond), model(x, t, **cond), rtol=1e-11, atol=1e-12
            )


@pytest.mark.parametrize("name", ["classes", "conv"])
def test_layouts_of_input_and_weights_do_not_matter(name: str) -> None:
    model = unet(**OPTIONS[name])
    x, t, cond = given(model, 2)
    x, t = x.float(), t.float()
    with torch.no_grad():
        want = model(x, t, **cond)
        field = pfc.prepare(model)
        for other in (
            x.to(memory_format=torch.channels_last),
            x.transpose(2, 3).contiguous().transpose(2, 3),
        ):
            torch.testing.assert_close(field(other, t, **cond), want, rtol=1e-4, atol=1e-5)
        last = copy.deepcopy(model).to(memory_format=torch.channels_last)
        torch.testing.assert_close(pfc.prepare(last)(x, t, **cond), want, rtol=1e-4, atol=1e-5)


def test_modulations_ahead_are_those_in_place() -> None:
    """To the bit where the product has the same shape, one row at a time; else within rounding."""
    model = unet(**OPTIONS["classes"])
    layers = [module.modulation for module in model.modules() if isinstance(module, ResBlock)]
    assert len(layers) > 6
    with torch.no_grad():
        steer = model.time_steer(torch.tensor([0.0, 0.3, 0.9]), torch.float32)
        classes = model.condition_steer(torch.tensor([0, 3, 1]), torch.empty(3))
        assert classes is not None
        each, at_once = (Steering(layers, steer, classes, most_bytes=most) for most in (1, 1 << 30))
        for row in (0, 2, 1):
            c = F.silu(steer[row] + classes)
            for layer, one, all_rows in zip(layers, each.at(row, 3), at_once.at(row, 3), strict=True):
                assert torch.equal(one, layer(c))
                torch.testing.assert_close(all_rows, layer(c), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "guidance", [None, pfc.CFG(2.5), pfc.CFG(2.5, interval=(0.3, 0.8)), pfc.CFGZero(2.0)]
)
@pytest.mark.parametrize("name", ["classes", "shifts, classes", "pool, variances"])
def test_samples_are_the_models(name: str, guidance: pfc.CFG | None) -> None:
    model = unet(**OPTIONS[name]).double()
    sampler = pfc.Sampler(pfc.plan("ab2", steps=5), guidance)
    arguments = {
        "seeds": [4, 5, 6], "shape": model.shape, "dtype": torch.float64, "cond": {"y": torch.tensor([0, 2, 1])},
        "uncond": {"y": torch.tensor(3)} if guidance else None,
    }  # fmt: skip
    with torch.no_grad():
        want = sampler(model, **arguments)
    assert error(sampler(pfc.prepare(model), **arguments), want) < 1e-12


@pytest.mark.parametrize("name", ["plain", "shifts"])
def test_without_classes_all_samples_share_what_is_said(name: str) -> None:
    model = unet(**OPTIONS[name]).double()
    sampler = pfc.Sampler(pfc.plan("heun", steps=3))
    with torch.no_grad():
        want = sampler(model, seeds=[1, 2], shape=model.shape, dtype=torch.float64)
    found = sampler(pfc.prepare(model), seeds=[1, 2], shape=model.shape, dtype=torch.float64)
    assert error(found, want) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 5, 4, 6), (3, 5, 1, 1), (2, 5, 7, 3)])
def test_enlarging_by_parities(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    layer = nn.Conv2d(5, 6, 3, padding=1)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    exact, other = copy.deepcopy(layer).double(), torch.randn(6)
    large = F.interpolate(x.double(), scale_factor=2.0, mode="nearest")
    layer = layer.to(dtype)
    rtol, atol = {torch.float32: (1e-5, 1e-6), torch.float64: (1e-6, 1e-6), torch.bfloat16: (2e-2, 2e-2)}[
        dtype
    ]
    with torch.no_grad():
        found = enlarged(Products(layer), layer, x.to(dtype))
        torch.testing.assert_close(found.double(), exact(large), rtol=rtol, atol=atol)
        assert found.is_contiguous() and found.dtype == dtype
        with_other = enlarged(Products(layer), layer, x.to(dtype), bias=other.to(dtype))
        want = F.conv2d(large, exact.weight, other.double(), padding=1)
        torch.testing.assert_close(with_other.double(), want, rtol=rtol, atol=atol)


def test_points_of_other_sides_in_one_trajectory() -> None:
    model = unet(**OPTIONS["classes"]).double()
    times = torch.tensor([0.1, 0.4, 0.9], dtype=torch.float64)
    labels = torch.tensor([1, 3])
    evaluate = pfc.prepare(model).trajectory(times, {"y": labels}, 2)
    for row, sides in enumerate(((8, 8), (4, 6), (8, 8))):
        for n in (2, 1):
            x = given(model, n, sides)[0]
            with torch.no_grad():
                want = model(x, times[row].expand(n), labels[:n])
                torch.testing.assert_close(evaluate(x, row), want, rtol=1e-11, atol=1e-12)


def test_training_is_seen() -> None:
    model = unet(**OPTIONS["classes"])
    x, t, cond = given(model, 1)
    field = pfc.prepare(model)
    with torch.no_grad():
        before = field(x.float(), t.float(), **cond)
        for parameter in model.parameters():
            parameter.mul_(1.1)
        after = field(x.float(), t.float(), **cond)
        assert not torch.equal(after, before)
        assert torch.equal(after, pfc.prepare(model)(x.float(), t.float(), **cond))


def test_gradients_go_through_the_model() -> None:
    model = unet(**OPTIONS["classes"])
    x, t, cond = given(model, 2)
    x = x.float().requires_grad_()
    pfc.prepare(model)(x, t.float(), **cond).square().sum().backward()
    assert x.grad is not None and model.out.weight.grad is not None
    found = x.grad.clone()
    x.grad = None
    model(x, t.float(), **cond).square().sum().backward()
    assert torch.equal(found, x.grad)


def test_a_compiler_traces_it_whole() -> None:
    model = unet(**OPTIONS["classes"])
    x, t, cond = given(model, 2)
    field = pfc.prepare(model)
    compiled = torch.compile(lambda x, t, y: field(x, t, y=y), backend="eager", fullgraph=True)
    with torch.no_grad():
        want = model(x.float(), t.float(), **cond)
        torch.testing.assert_close(compiled(x.float(), t.float(), cond["y"]), want, rtol=1e-4, atol=1e-5)


def test_captured_runs_take_new_classes() -> None:
    model = unet(**OPTIONS["classes"])
    sampler = pfc.Sampler(pfc.plan("euler", steps=2), pfc.CFG(2.0))
    field, null = pfc.prepare(model), {"y": torch.tensor([3])}
    with pytest.warns(pfc.PyflowcoreWarning, match="no CUDA graphs"):
        run = sampler.capture(
            field, shape=model.shape, batch=2, cond={"y": torch.tensor([0, 1])}, uncond=null
        )
    for labels in ([0, 1], [2, 0]):
        cond = {"y": torch.tensor(labels)}
        want = sampler(field, shape=model.shape, seeds=[7, 8], cond=cond, uncond=null)
        assert torch.equal(run(seeds=[7, 8], cond=cond), want)


def test_the_operators_named_are_those_that_run() -> None:
    for name in ("classes", "conv", "one wide head"):
        model = unet(**OPTIONS[name])
        x, t, cond = given(model, 2)
        field = pfc.prepare(model)
        with (
            torch.no_grad(),
            torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile,
        ):
            field(x.float(), t.float(), **cond)
        keys = [event.key for event in profile.key_averages()]
        seen = {key.removeprefix("pyflowcore::") for key in keys if key.startswith("pyflowcore::")}
        assert seen == set(field.net.packed.operators)


def test_refusals() -> None:
    field = pfc.prepare(unet(**OPTIONS["classes"]))
    x, t = torch.zeros(2, 2, 8, 8), torch.zeros(2)
    with torch.no_grad():
        with pytest.raises(ValueError, match=r"x must be \[B, 2, H, W\], H and W multiples of 2"):
            field(torch.zeros(2, 2, 8, 7), t)
        with pytest.raises(ValueError, match=r"y must hold one label a sample, \[2\]"):
            field(x, t, y=torch.zeros(3).long())
        with pytest.raises(ValueError, match="y was given to a UNet without classes"):
            pfc.prepare(unet())(x, t, y=torch.zeros(2).long())
        with pytest.raises(TypeError, match="UNet takes y; got c"):
            field(x, t, c=t)
        with pytest.raises(ValueError, match="x has 2 samples, the conditions have 1"):
            field.trajectory(torch.zeros(1), {}, 1)(x, 0)
