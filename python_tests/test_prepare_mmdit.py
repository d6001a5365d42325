"""models.MMDiT prepared: the fused evaluation against the model itself, whose float64 form is the truth."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import pyflowcore as pfc
from pyflowcore import models, ops
from pyflowcore.prepare.mmdit import PackedMMDiT
from pyflowcore.prepare.slices import Slice
from pyflowcore.prepare.steering import Steering

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {
    "size": 6, "channels": 3, "patch": 2, "width": 64, "heads": 2, "double": 2, "text_width": 12, "time_dim": 16,
}  # fmt: skip
ROPE = {"positions": "rope", "axes": (8, 8, 12)}
OPTIONS: dict[str, dict[str, object]] = {
    "plain": {},
    "one block": {"double": 1},
    "sd3": {"pooled_width": 5, "max_side": 5},
    "sd3.5": {"pooled_width": 5, "max_side": 5, "positions": "learned", "qk_norm": True},
    "single blocks": {"single": 2},
    "one single block, rms": {"single": 1, "qk_norm": True, "guidance": True},
    "rope": {**ROPE},
    "flux": {**ROPE, "single": 3, "pooled_width": 5, "qk_norm": True, "guidance": True},
    "heads of 32, odd mlp": {"heads": 2, "mlp_ratio": 1.3, "single": 2, "patch": 3},
    "heads of 128": {"width": 128, "heads": 1, "double": 1, "single": 1, "qk_norm": True},
    "heads of 36": {"width": 72, "heads": 2, **ROPE, "single": 2},
}


def error(value: Tensor, truth: Tensor) -> float:
    return float((value.double() - truth).norm() / truth.norm())


def mmdit(**options: object) -> models.MMDiT:
    """Weights as after training: nothing is zero any more."""
    model = models.MMDiT(**(SMALL | options))  # type: ignore[arg-type]
    made = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.08 * torch.randn(parameter.shape, generator=made))
    return model.eval()


def given(
    model: models.MMDiT, batch: int, *, length: int = 5, sides: tuple[int, int] | None = None, masked: bool = False
) -> dict[str, Tensor]:  # fmt: skip
    """x, t and the conditions, float64; of the text, sample i has all but i of its tokens, if masked."""
    made = torch.Generator().manual_seed(1)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=made, dtype=torch.float64)

    found = {
        "x": randn(batch, model.shape[0], *(sides or model.shape[1:])),
        "t": torch.rand(batch, generator=made).double(),
        "text": randn(batch, length, model.text_width).float().double(),
    }
    if masked:
        found["mask"] = torch.arange(length) < length - torch.arange(batch)[:, None]
    if model.pooled_width:
        found["pooled"] = randn(batch, model.pooled_width).float().double()
    if model.embed_guidance is not None:
        found["guidance"] = torch.linspace(1.0, 7.0, batch).double()
    return found


def cast(found: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in found.items()}


def call(field: object, found: dict[str, Tensor]) -> Tensor:
    x, t, *_ = found.values()
    with torch.no_grad():
        return field(x, t, **{name: value for name, value in found.items() if name not in ("x", "t")})  # type: ignore[operator, no-any-return]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_error_is_at_most_twice_the_models_own(name: str, masked: bool) -> None:
    model = mmdit(**OPTIONS[name])
    found = cast(given(model, 3, masked=masked), torch.float32)
    truth = call(copy.deepcopy(model).double(), cast(found, torch.float64))
    own, ours = error(call(model, found), truth), error(call(pfc.prepare(model), found), truth)
    assert ours <= 2 * own, (ours, own)
    assert own < 1e-5, own


@pytest.mark.parametrize("name", OPTIONS)
def test_bfloat16(name: str) -> None:
    model = mmdit(**OPTIONS[name])
    found = cast(given(model, 3, masked=True), torch.float32)
    half = copy.deepcopy(model).bfloat16()
    rounded = found | {"x": found["x"].bfloat16()}
    truth = call(copy.deepcopy(half).double(), cast(rounded, torch.float64))
    own = error(call(half, rounded), truth)
    ours = error(call(pfc.prepare(model, dtype=torch.bfloat16), found), truth)
    assert ours <= 2 * own, (ours, own)


@pytest.mark.parametrize("name", OPTIONS)
def test_float64_agrees_to_rounding(name: str) -> None:
    model = mmdit(**OPTIONS[name]).double()
    for masked in (False, True):
        found = given(model, 3, masked=masked)
        assert error(call(pfc.prepare(model), found), call(model, found)) < 1e-13


@pytest.mark.parametrize("batch", [0, 1, 7, 33])
@pytest.mark.parametrize(("length", "sides"), [(5, (2, 6)), (1, (6, 2)), (0, (4, 6)), (13, (2, 2))])
def test_batches_lengths_and_sides(batch: int, length: int, sides: tuple[int, int]) -> None:
    for name in ("sd3", "flux"):
        model = mmdit(**OPTIONS[name]).double()
        found = given(model, batch, length=length, sides=sides, masked=length > 7)
        torch.testing.assert_close(
            call(pfc.prepare(model), found), call(model, found), rtol=1e-11, atol=1e-12
        )


def test_inputs_need_not_be_contiguous() -> None:
    model = mmdit(**OPTIONS["flux"]).double()
    found = given(model, 3, masked=True)
    apart = {
        name: torch.stack([value, value], dim=-1)[..., 0] if value.dim() else value for name, value in found.items()
    }  # fmt: skip
    assert not apart["text"].is_contiguous()
    field = pfc.prepare(model)
    torch.testing.assert_close(call(field, apart), call(field, found), rtol=1e-12, atol=1e-12)


def test_what_a_masked_token_holds_changes_nothing_to_the_bit() -> None:
    for name in ("sd3", "flux"):
        field = pfc.prepare(mmdit(**OPTIONS[name]))
        found = cast(given(field.model, 3, masked=True), torch.float32)  # type: ignore[arg-type]
        before = call(field, found)
        text = found["text"].masked_fill(~found["mask"][..., None], torch.nan)
        assert torch.equal(call(field, found | {"text": text}), before)
        assert not torch.equal(call(field, found | {"text": found["text"] * 1.01}), before)


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_modulations_ahead_are_those_in_place(name: str) -> None:
    """To the bit where the product has the same shape, one row at a time; else within rounding."""
    model = mmdit(**OPTIONS[name])
    found = cast(given(model, 4), torch.float32)
    times = torch.tensor([0.0, 0.3, 0.9])
    blocks = [s for block in model.double_blocks for s in (block.text, block.image)]
    layers: list[nn.Linear] = [one.modulation for one in (*blocks, *model.single_blocks, model.head)]  # type: ignore[union-attr, misc]
    with torch.no_grad():
        steer = model.time_steer(times, torch.float32)
        condition = model.condition_steer(found.get("pooled"), found.get("guidance"), torch.float32)
        assert condition is not None
        each, at_once = (Steering(layers, steer, condition, most_bytes=most) for most in (1, 1 << 30))
        for row in (0, 2, 1):
            c = nn.functional.silu(steer[row] + condition)
            for layer, one, all_rows in zip(layers, each.at(row, 4), at_once.at(row, 4), strict=True):
                assert torch.equal(one, layer(c))
                torch.testing.assert_close(all_rows, layer(c), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "guidance", [None, pfc.CFG(2.5), pfc.CFG(2.5, interval=(0.3, 0.8)), pfc.CFGZero(2.0)]
)
@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_samples_are_the_models(name: str, guidance: pfc.CFG | None) -> None:
    model = mmdit(**OPTIONS[name]).double()
    found = given(model, 3, masked=True)
    cond = {key: value for key, value in found.items() if key not in ("x", "t")}
    uncond = {key: value if key in ("mask", "guidance") else value * 0 for key, value in cond.items()}
    sampler = pfc.Sampler(pfc.plan("ab2", steps=5), guidance)
    arguments = {
        "seeds": [4, 5, 6], "shape": model.shape, "dtype": torch.float64, "cond": cond,
        "uncond": uncond if guidance else None,
    }  # fmt: skip
    with torch.no_grad():
        want = sampler(model, **arguments)
    assert error(sampler(pfc.prepare(model), **arguments), want) < 1e-12


def test_captured_runs_take_new_conditions() -> None:
    model = mmdit(**OPTIONS["flux"])
    sampler = pfc.Sampler(pfc.plan("euler", steps=2))
    field = pfc.prepare(model)
    cond = {
        key: value for key, value in cast(given(model, 2, masked=True), torch.float32).items() if key not in "xt"
    }  # fmt: skip
    with pytest.warns(pfc.PyflowcoreWarning, match="no CUDA graphs"):
        run = sampler.capture(field, shape=model.shape, batch=2, cond=cond)
    for scale in (1.0, 2.0):
        other = cond | {"text": scale * cond["text"]}
        assert torch.equal(
            run(seeds=[7, 8], cond=other), sampler(field, shape=model.shape, seeds=[7, 8], cond=other)
        )


def test_points_of_other_sides_in_one_trajectory() -> None:
    """Each set of shapes has a recording and places of its own, and rows may go back to the first."""
    model = mmdit(**OPTIONS["flux"]).double()
    found = given(model, 2, masked=True)
    times = torch.tensor([0.1, 0.4, 0.7, 0.9], dtype=torch.float64)
    cond = {key: value for key, value in found.items() if key not in ("x", "t")}
    evaluate = pfc.prepare(model).trajectory(times, cond, 2)
    for row, sides in enumerate(((6, 6), (4, 2), (2, 4), (6, 6))):
        for n in (2, 1):
            x = given(model, 2, sides=sides)["x"][:n]
            with torch.no_grad():
                want = model(x, times[row].expand(n), **{key: value[:n] for key, value in cond.items()})
                torch.testing.assert_close(evaluate(x, row), want, rtol=1e-11, atol=1e-12)


def test_training_is_seen_by_every_product() -> None:
    """Of parts of layers as well: after a write the field is that of a model prepared anew."""
    for name in ("sd3", "flux"):
        model = mmdit(**OPTIONS[name])
        found = cast(given(model, 2), torch.float32)
        field = pfc.prepare(model)
        before = call(field, found)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.1)
        after = call(field, found)
        assert not torch.equal(after, before)
        assert torch.equal(after, call(pfc.prepare(model), found))


def test_parts_of_a_layer_add_up() -> None:
    layer = nn.Linear(7, 9).double()
    x = torch.randn(4, 7, dtype=torch.float64)
    rows = [Slice(layer, slice(0, 2)), Slice(layer, slice(2, 9))]
    whole = torch.cat([nn.functional.linear(x, part.weight, part.bias) for part in rows], dim=1)
    torch.testing.assert_close(whole, layer(x))
    columns = [Slice(layer, columns=slice(0, 3)), Slice(layer, columns=slice(3, 7))]
    summed = sum(
        x[:, at] @ part.weight.T for part, at in zip(columns, (slice(0, 3), slice(3, 7)), strict=True)
    )
    torch.testing.assert_close(summed + columns[0].bias, layer(x))


def test_gradients_go_through_the_model() -> None:
    model = mmdit(**OPTIONS["sd3"])
    found = cast(given(model, 2), torch.float32)
    x = found["x"].requires_grad_()
    pooled, text = found["pooled"], found["text"].requires_grad_()
    pfc.prepare(model)(x, found["t"], text=text, pooled=pooled).square().sum().backward()
    assert x.grad is not None and text.grad is not None and model.head.out.weight.grad is not None
    got = text.grad.clone()
    text.grad = None
    model(x, found["t"], text, pooled=pooled).square().sum().backward()
    assert torch.equal(got, text.grad)


def test_explain_says_what_runs() -> None:
    model = mmdit(**OPTIONS["flux"])
    cond = {k: v for k, v in cast(given(model, 1), torch.float32).items() if k not in "xt"}
    found = pfc.Sampler(pfc.plan("euler", steps=2)).explain(pfc.prepare(model), cond=cond)
    for name in ("qk_norm_rope_", "gelu_", "gate_residual_norm_", "gate_residual_", "patchify_"):
        assert name in found.operators and hasattr(ops, name.removesuffix("_")), name
    assert "prepared MMDiT" in dict(found.parts)["network"]


def test_the_operators_named_are_those_that_run() -> None:
    """What the dispatcher sees of torch.ops.pyflowcore in one evaluation."""
    for name in ("sd3", "flux"):
        model = mmdit(**OPTIONS[name])
        found = cast(given(model, 2, masked=True), torch.float32)
        field = pfc.prepare(model)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            call(field, found)
        keys = [event.key for event in profile.key_averages()]
        packed = field.net.packed
        assert isinstance(packed, PackedMMDiT)
        seen = {key.removeprefix("pyflowcore::") for key in keys if key.startswith("pyflowcore::")}
        assert seen == set(packed.operators)


def test_refusals() -> None:
    model = mmdit(**OPTIONS["sd3"])
    field = pfc.prepare(model)
    found = cast(given(model, 2), torch.float32)
    x, t, text, pooled = found.values()
    for cond, kind, message in (
        ({"pooled": pooled}, TypeError, r"text must be a tensor \[2, L, 12\], got NoneType"),
        ({"text": text[:1], "pooled": pooled}, ValueError, r"text must be \[2, L, 12\]"),
        ({"text": text}, ValueError, r"pooled must be \[2, 5\]; got None"),
        ({"text": text, "pooled": pooled, "guidance": t}, ValueError, "guidance was given to an MMDiT"),
        ({"text": text, "pooled": pooled, "mask": t}, ValueError, r"mask must be \[2, 5\] of bool"),
        ({"text": text, "pooled": pooled, "y": t}, TypeError, "takes text, mask, pooled, guidance; got y"),
    ):
        with torch.no_grad(), pytest.raises(kind, match=message):
            field(x, t, **cond)
    with torch.no_grad(), pytest.raises(ValueError, match="sides of at most 10"):
        field(torch.zeros(2, 3, 12, 4), t, text=text, pooled=pooled)
    with torch.no_grad(), pytest.raises(ValueError, match="x has 3 samples, the conditions have 2"):
        field.trajectory(torch.zeros(1), {"text": text, "pooled": pooled}, 2)(torch.zeros(3, 3, 6, 6), 0)


def test_a_compiler_traces_it_whole() -> None:
    model = mmdit(**(OPTIONS["flux"] | {"double": 1, "single": 2}))
    found = cast(given(model, 2, masked=True), torch.float32)
    field = pfc.prepare(model)
    compiled = torch.compile(lambda x, t, **cond: field(x, t, **cond), backend="eager", fullgraph=True)
    torch.testing.assert_close(call(compiled, found), call(field, found), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", OPTIONS)
def test_every_network_is_recorded(name: str) -> None:
    model = mmdit(**OPTIONS[name])
    field = pfc.prepare(model)
    call(field, cast(given(model, 2, masked=True), torch.float32))
    assert field.net.packed._lines
