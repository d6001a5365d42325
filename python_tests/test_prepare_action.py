"""Prepared action experts against the model itself, whose float64 form is the truth; and a policy at work."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor

import pyflowcore as pfc
from pyflowcore import models
from pyflowcore.models.action_expert import Prefix

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {
    "horizon": 5, "dims": 3, "width": 24, "depth": 3, "heads": 4, "head_dim": 6, "mlp_width": 20, "prefix_width": 10,
}  # fmt: skip
OPTIONS = {
    "pi0": {"kv_heads": 1, "prefix_mlp": 14, "state_dim": 5},
    "pi05": {"kv_heads": 2, "prefix_mlp": 14, "time": "adarms"},
    "keys and values alone": {"kv_heads": 4, "time": "adarms"},
    "with a state": {"kv_heads": 1, "state_dim": 2},
    "one layer": {"depth": 1, "prefix_mlp": 14, "state_dim": 3},
    "one token": {"horizon": 1, "time": "adarms"},
    "heads of 32": {"head_dim": 32, "heads": 2, "horizon": 9},
    "heads of 128": {"head_dim": 128, "heads": 2, "kv_heads": 2, "horizon": 2, "time": "adarms"},
    "heads of 80": {"head_dim": 80, "heads": 3, "kv_heads": 3, "width": 100, "mlp_width": 33},
}


def expert(dtype: torch.dtype = torch.float32, **options: object) -> models.ActionExpert:
    """Weights as after training: nothing is zero any more."""
    torch.manual_seed(0)
    model = models.ActionExpert(**(SMALL | options))  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.eval().to(dtype)


def randn(*shape: int, seed: int) -> Tensor:
    """Representable in half types, so that every precision computes the same thing."""
    made = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return made.bfloat16().double()


def observations(
    model: models.ActionExpert, batch: int, tokens: int = 7, masked: bool = False
) -> dict[str, Tensor]:
    given = {"obs": randn(batch, tokens, model.prefix_width, seed=1)}
    if masked:
        given["mask"] = torch.rand(batch, tokens, generator=torch.Generator().manual_seed(2)) < 0.6
        given["mask"][0] = False
    if model.state_dim:
        given["state"] = randn(batch, model.state_dim, seed=3)
    return given


def as_dtype(given: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {key: value.to(dtype) if value.is_floating_point() else value for key, value in given.items()}


def point(model: models.ActionExpert, batch: int, seed: int = 4) -> tuple[Tensor, Tensor]:
    made = torch.Generator().manual_seed(seed)
    return randn(batch, *model.shape, seed=seed + 100), torch.rand(batch, generator=made)


def error(value: Tensor, truth: Tensor) -> float:
    return float((value.double() - truth).norm() / truth.norm())


def three(
    model: models.ActionExpert, dtype: torch.dtype, batch: int, masked: bool, cached: bool
) -> tuple[float, float]:
    """(the model's own error, ours)."""
    given = observations(model, batch, masked=masked)
    own = copy.deepcopy(model).to(dtype)
    exact = copy.deepcopy(own).double()
    field = pfc.prepare(model, dtype=None if dtype == model.out.weight.dtype else dtype)
    narrow = as_dtype(given, dtype)
    truth, theirs, ours = [], [], []
    with torch.no_grad():
        cond = {"prefix": own.prefix(**narrow)} if cached else narrow
        # A few numbers say nothing of an error: of small outputs there are several.
        for seed in range(max(1, 200 // (batch * model.shape[0] * model.shape[1]))):
            x, t = point(model, batch, seed)
            truth.append(exact(x, t.double(), **given))
            theirs.append(own(x.to(dtype), t, **narrow))
            ours.append(field(x.float(), t, **cond))
    whole = torch.cat(truth)
    return error(torch.cat(theirs), whole), error(torch.cat(ours), whole)


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize(("batch", "masked"), [(1, False), (1, True), (33, True)])
@pytest.mark.parametrize("name", OPTIONS)
def test_error_is_at_most_twice_the_models_own(name: str, batch: int, masked: bool, cached: bool) -> None:
    own, ours = three(expert(**OPTIONS[name]), torch.float32, batch, masked, cached)
    assert ours <= 2 * own, (ours, own)
    assert own < 1e-5, own


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_half_types(name: str, masked: bool, dtype: torch.dtype) -> None:
    own, ours = three(expert(**OPTIONS[name]), dtype, 3, masked, False)
    assert ours <= 2 * own, (ours, own)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_float64_agrees_to_rounding(name: str, masked: bool) -> None:
    model = expert(torch.float64, **OPTIONS[name])
    given, (x, t) = observations(model, 3, masked=masked), point(model, 3)
    with torch.no_grad():
        want = model(x, t.double(), **given)
        assert error(pfc.prepare(model)(x, t.double(), **given), want) < 1e-13
        assert error(pfc.prepare(model)(x, t.double(), prefix=model.prefix(**given)), want) < 1e-13


def strided(value: Tensor) -> Tensor:
    """The same numbers, every second in memory along the last dimension."""
    made = torch.empty(*value.shape[:-1], 2 * value.shape[-1], dtype=value.dtype)[..., ::2]
    return made.copy_(value)


@pytest.mark.parametrize("name", ["pi0", "pi05"])
def test_strided_inputs_are_read_as_they_are_meant(name: str) -> None:
    model = expert(**OPTIONS[name])
    given, (x, t) = as_dtype(observations(model, 3, masked=True), torch.float32), point(model, 3)
    field = pfc.prepare(model)
    with torch.no_grad():
        want = field(x.float(), t, **given)
        assert torch.equal(
            field(strided(x.float()), strided(t), **{k: strided(v) for k, v in given.items()}), want
        )
        prefix = model.prefix(**given)
        want = field(x.float(), t, prefix=prefix)
        turned = prefix.keys.transpose(1, 3).contiguous().transpose(1, 3)
        assert not turned.is_contiguous()
        moved = Prefix(turned, strided(prefix.values), strided(prefix.mask))
        assert torch.equal(field(x.float(), t, prefix=moved), want)


@pytest.mark.parametrize("name", ["pi0", "pi05", "keys and values alone"])
def test_what_a_masked_token_holds_changes_nothing_to_the_bit(name: str) -> None:
    model = expert(**OPTIONS[name])
    given, (x, t) = as_dtype(observations(model, 3, masked=True), torch.float32), point(model, 3)
    field = pfc.prepare(model)
    with torch.no_grad():
        want = field(x.float(), t, **given)
        for junk in (1e3, torch.inf, torch.nan):
            obs = given["obs"].masked_fill(~given["mask"][..., None], junk)
            assert torch.equal(field(x.float(), t, **{**given, "obs": obs}), want)


def test_a_mask_of_real_tokens_is_none_to_the_bit() -> None:
    model = expert(**OPTIONS["pi0"])
    given, (x, t) = as_dtype(observations(model, 2), torch.float32), point(model, 2)
    field = pfc.prepare(model)
    with torch.no_grad():
        want = field(x.float(), t, **given)
        assert torch.equal(field(x.float(), t, **given, mask=torch.ones(2, 7).bool()), want)


@pytest.mark.parametrize("tokens", [0, 1])
def test_few_observations(tokens: int) -> None:
    model = expert(torch.float64, **OPTIONS["pi05"])
    given, (x, t) = observations(model, 2, tokens), point(model, 2)
    with torch.no_grad():
        assert error(pfc.prepare(model)(x, t.double(), **given), model(x, t.double(), **given)) < 1e-13


GUIDANCE = {"cfg": pfc.CFG(2.5), "interval": pfc.CFG(2.5, interval=(0.3, 0.8)), "zero": pfc.CFGZero(2.5)}


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("guidance", [None, *GUIDANCE])
@pytest.mark.parametrize("name", ["pi0", "pi05"])
def test_samples_are_the_models(name: str, guidance: str | None, cached: bool) -> None:
    """Rows of one branch and of two over the same buffers."""
    model = expert(torch.float64, **OPTIONS[name])
    sampler = pfc.Sampler(pfc.plan("ab2", steps=6), GUIDANCE[guidance] if guidance else None)
    cond = observations(model, 2, masked=True)
    uncond = {**cond, "obs": torch.zeros_like(cond["obs"])}
    if cached:
        with torch.no_grad():
            cond, uncond = ({"prefix": model.prefix(**one)} for one in (cond, uncond))  # type: ignore[dict-item]
    arguments = {"seeds": [4, 5], "shape": model.shape, "dtype": torch.float64, "cond": cond}
    arguments["uncond"] = uncond if guidance else None
    with torch.no_grad():
        want = sampler(model, **arguments)  # type: ignore[arg-type]
    found = sampler(pfc.prepare(model), **arguments)  # type: ignore[arg-type]
    assert error(found, want) < 1e-12  # type: ignore[arg-type]


def test_a_row_does_not_depend_on_the_rows_before() -> None:
    """Though all write into the same buffers."""
    model = expert(**OPTIONS["pi0"])
    given = as_dtype(observations(model, 2), torch.float32)
    field, times = pfc.prepare(model), torch.linspace(0, 0.9, 4)
    x = randn(2, *model.shape, seed=6).float()
    evaluate = field.trajectory(times, given, 2)
    with torch.no_grad():
        first = [evaluate(x, row) for row in (3, 0, 2)]
        torch.testing.assert_close(evaluate(10 * x, 1)[:1], evaluate(10 * x[:1], 1))
        assert all(torch.equal(evaluate(x, row), made) for row, made in zip((3, 0, 2), first, strict=True))


def test_state_behind_a_prefix_from_elsewhere() -> None:
    """As in pi0: keys and values of a vision-language model, here in float32 beside weights in bfloat16."""
    model = expert(**OPTIONS["with a state"], prefix_width=0)  # type: ignore[arg-type]
    foreign = Prefix(
        randn(2, 3, 1, 6, 6, seed=7).float(), randn(2, 3, 1, 6, 6, seed=8).float(), torch.ones(2, 6).bool()
    )
    x, t = point(model, 2)
    with torch.no_grad():
        whole = model.with_state(foreign, randn(2, 2, seed=9).float())
        want = copy.deepcopy(model).double()(
            x, t.double(), prefix=Prefix(*(one.double() for one in whole[:2]), whole.mask)
        )
        assert error(pfc.prepare(model)(x.float(), t, prefix=whole), want) < 1e-6
        assert error(pfc.prepare(model, dtype=torch.bfloat16)(x.float(), t, prefix=whole), want) < 0.02


def policy(
    name: str, **options: object
) -> tuple[models.ActionExpert, pfc.Sampler, object, dict[str, Tensor]]:
    model = expert(**OPTIONS[name])
    example = as_dtype(observations(model, 1, masked=True), torch.float32)
    sampler = pfc.Sampler(pfc.plan("euler", steps=10))
    field = pfc.prepare(model)
    with pytest.warns(pfc.PyflowcoreWarning, match="no CUDA graphs"):
        run = sampler.capture(field, shape=model.shape, batch=1, cond=example)
    return model, sampler, run, example


@pytest.mark.parametrize("name", ["pi0", "pi05"])
def test_a_captured_policy(name: str) -> None:
    """Every call sees its observation, to the bits of the eager call, and writes where it is told to."""
    model, sampler, run, example = policy(name)
    field, buffer = pfc.prepare(model), torch.full((1, *model.shape), torch.nan)
    seen = []
    for call in range(3):
        cond = {**example, "obs": randn(1, 7, 10, seed=20 + call).float(), "mask": torch.rand(1, 7) < 0.7}
        found = run(cond=cond, seeds=[call], out=buffer)  # type: ignore[operator]
        assert found is buffer
        want = sampler(field, shape=model.shape, seeds=[call], cond=cond)
        assert torch.equal(buffer, want)  # type: ignore[arg-type]
        with torch.no_grad():
            own = sampler(model, shape=model.shape, seeds=[call], cond=cond)
        torch.testing.assert_close(buffer, own, rtol=1e-4, atol=1e-5)
        seen.append(buffer.clone())
    assert not torch.equal(seen[0], seen[1])
    before = run(seeds=[1], cond={**example, "obs": example["obs"] + 1})  # type: ignore[operator]
    assert torch.equal(run(seeds=[1]), before)  # type: ignore[operator]


def test_gradients_go_through_the_model() -> None:
    model = expert(**OPTIONS["pi05"])
    given, (x, t) = as_dtype(observations(model, 2), torch.float32), point(model, 2)
    obs = given["obs"].requires_grad_()
    pfc.prepare(model)(x.float(), t, **given).square().sum().backward()
    assert obs.grad is not None
    found, obs.grad = obs.grad.clone(), None
    model(x.float(), t, **given).square().sum().backward()
    assert torch.equal(found, obs.grad)


def test_a_training_step_is_seen_by_the_next_trajectory() -> None:
    """By the joined weights as well."""
    model = expert(**OPTIONS["keys and values alone"])
    field, sampler = pfc.prepare(model), pfc.Sampler(pfc.plan("euler", steps=3))
    cond = as_dtype(observations(model, 1), torch.float32)
    for layer in (model.layers[0].attend.queries, model.prefix_layers[1].norm, model.embed):
        before = sampler(field, shape=model.shape, seeds=[1], cond=cond)
        with torch.no_grad():
            layer.weight.mul_(1.5)
            want = sampler(model, shape=model.shape, seeds=[1], cond=cond)
        found = sampler(field, shape=model.shape, seeds=[1], cond=cond)
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)
        assert float((found - before).abs().max()) > 1e-3  # type: ignore[operator]


def test_weights_in_another_dtype_are_copies() -> None:
    model = expert(**OPTIONS["pi05"])
    field = pfc.prepare(model, dtype=torch.bfloat16)
    given, (x, t) = as_dtype(observations(model, 2), torch.float32), point(model, 2)
    with torch.no_grad():
        before = field(x.float(), t, **given)
        model.layers[0].keys_values.project.weight.mul_(3.0)
        assert field.stale() and torch.equal(field(x.float(), t, **given), before)
        field.refresh()
        assert not field.stale() and not torch.equal(field(x.float(), t, **given), before)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda field: pickle.loads(pickle.dumps(field))])
def test_a_copy_has_weights_of_its_own(again: object) -> None:
    field = pfc.prepare(expert(**OPTIONS["pi0"]))
    given, (x, t) = as_dtype(observations(field.model, 2), torch.float32), point(field.model, 2)  # type: ignore[arg-type]
    with torch.no_grad():
        want = field(x.float(), t, **given)
        made = again(field)  # type: ignore[operator]
        assert torch.equal(made(x.float(), t, **given), want)
        made.model.layers[0].attend.queries.weight.zero_()
        assert not torch.equal(made(x.float(), t, **given), want)
        assert torch.equal(field(x.float(), t, **given), want)


@pytest.mark.parametrize("name", ["pi0", "pi05"])
def test_a_compiler_sees_the_same_trajectory(name: str) -> None:
    model = expert(**(OPTIONS[name] | {"depth": 1}))
    field, sampler = pfc.prepare(model), pfc.Sampler(pfc.plan("euler", steps=2))
    cond = as_dtype(observations(model, 2, masked=True), torch.float32)
    x0 = randn(2, *model.shape, seed=10).float()
    run = torch.compile(lambda x, cond: sampler(field, x0=x, cond=cond), backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(run(x0, cond), sampler(field, x0=x0, cond=cond), rtol=1e-4, atol=1e-5)


def test_explain_says_what_runs() -> None:
    model = expert(**OPTIONS["pi0"])
    cond = as_dtype(observations(model, 1), torch.float32)
    found = pfc.Sampler(pfc.plan("euler", steps=2)).explain(pfc.prepare(model), cond=cond)
    assert {"qk_norm_rope_", "norm_modulate", "gate_residual_norm_"} <= set(found.operators)
    assert "prepared ActionExpert" in dict(found.parts)["network"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": torch.zeros(2)}, "takes prefix, obs, mask, state; got label"),
        ({"obs": None}, "give either prefix, alone, or obs"),
        ({"prefix": Prefix(torch.zeros(2), torch.zeros(2), torch.ones(2, 1))}, "give either prefix, alone"),
        ({"obs": torch.zeros(2, 7, 9)}, r"obs must be \[B, P, 10\]"),
        ({"obs": torch.zeros(3, 7, 10), "mask": None}, r"obs must be \[2, P, 10\]"),
        ({"mask": torch.ones(2, 6).bool()}, "mask must be"),
        ({"state": None}, "state is for a network built with state_dim, and needed there; got None"),
        ({"state": torch.zeros(1, 5)}, r"state \[2, 5\]"),
    ],
)
def test_refused_conditions(changes: dict[str, object], message: str) -> None:
    model = expert(**OPTIONS["pi0"])
    cond = {**as_dtype(observations(model, 2, masked=True), torch.float32), **changes}
    with pytest.raises((TypeError, ValueError), match=message):
        pfc.Sampler(pfc.plan("euler", steps=2))(
            pfc.prepare(model), x0=torch.zeros(2, *model.shape), cond=cond
        )


def test_refused_prefix_and_points() -> None:
    model = expert(**OPTIONS["pi05"])
    given = as_dtype(observations(model, 2), torch.float32)
    field = pfc.prepare(model)
    with torch.no_grad():
        prefix = model.prefix(**given)
        with pytest.raises(ValueError, match="prefix must hold keys and values"):
            field(torch.zeros(3, *model.shape), torch.zeros(3), prefix=prefix)
        with pytest.raises(ValueError, match=r"x must be \[2 or less, 5, 3\]; got \[2, 4, 3\]"):
            field(torch.zeros(2, 4, 3), torch.zeros(2), prefix=prefix)
        # A batch that is not that of the observations is refused, not cut.
        with pytest.raises(ValueError, match="prefix must hold"):
            pfc.Sampler(pfc.plan("euler", steps=2))(
                field, x0=torch.zeros(1, *model.shape), cond={"prefix": prefix}
            )


def test_gradients_of_a_prefix_are_not_lost() -> None:
    """A frozen expert behind a model that learns: the prefix is a tuple of tensors."""
    torch.manual_seed(0)
    model = models.ActionExpert(
        horizon=3, dims=2, width=32, depth=2, heads=2, kv_heads=1, head_dim=16, mlp_width=32, prefix_width=8
    )
    model = model.eval().requires_grad_(False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        prefix = model.prefix(torch.randn(1, 4, 8))
    keys = prefix.keys.clone().requires_grad_()
    out = pfc.prepare(model)(torch.randn(1, 3, 2), torch.rand(1), prefix=prefix._replace(keys=keys))
    out.square().sum().backward()
    assert keys.grad is not None and float(keys.grad.norm()) > 0
