"""sampler.explain(field, ...): which engine, on what, with how many evaluations; and the reason for the loop."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pyflowcore as pfc
from reference.fused import hidden, small

PLAN = pfc.plan("heun", 4)  # the last step is of first order: 7 evaluations
C, NULL = {"c": torch.ones(3, 2)}, {"c": torch.zeros(1, 2)}


def test_a_callable_runs_in_the_loop():
    said = pfc.Sampler(PLAN).explain(lambda x, t: -x)
    assert said.engine == "loop"
    assert said.operators == ("combine_",)
    assert said.reasons == (
        "the field is <lambda>, called as it is; the engine is for fields made by pfc.fuse",
    )
    assert (said.rows, said.nfe, said.branches) == (7, 7, {1: 7})
    assert (said.device, said.dtype, said.precision) == ("cpu", torch.float32, "exact")
    text = str(said)
    assert "the loop: row by row" in text
    assert "7 evaluations (1 branch in 7 rows)" in text
    assert "the caller's, called for every evaluation" in text


def test_a_module_and_its_device_and_dtype():
    field = pfc.Field(nn.Linear(3, 3))
    said = pfc.Sampler(PLAN).explain(field, x0=torch.ones(2, 3, dtype=torch.float64))
    assert said.reasons[0].startswith("the field is Linear")
    assert said.dtype == torch.float64
    assert pfc.Sampler(PLAN).explain(field, dtype=torch.float64, shape=(3,), batch=2).dtype == torch.float64


def test_a_fused_field_runs_in_the_engine():
    said = pfc.Sampler(PLAN).explain(small(), shape=(3,), seeds=[1, 2])
    assert said.engine == "engine"
    assert said.operators == ("trajectory",)
    assert said.reasons == ()
    assert said.kernels == (pfc.cpu_isa() or "plain PyTorch")
    assert "one operator call for the whole trajectory" in str(said)
    assert dict(said.parts)["network"].startswith("inside trajectory")
    assert set(dict(said.parts)) == {"network", "time features", "rows"}


def test_the_networks_arithmetic_is_named():
    for dtype, said in ((torch.float32, "float32 exact"), (torch.float64, "float64 exact")):
        parts = pfc.Sampler(PLAN).explain(small(), shape=(3,), batch=2, dtype=dtype).parts
        assert dict(parts)["network"].endswith(f", {said}")


def test_branches_and_evaluations():
    sampler = pfc.Sampler(pfc.plan("euler", 10), pfc.CFG(3.0, (0.25, 0.75), zero_until=0.15))
    said = sampler.explain(small(3, 2), cond=C, uncond=NULL)
    # t = 0 and 0.1 are not evaluated; 0.3 to 0.7 are guided.
    assert said.branches == {1: 3, 2: 5}
    assert said.nfe == 8
    assert "8 evaluations (1 branch in 3 rows, 2 branches in 5 rows)" in str(said)
    assert "guidance" in dict(said.parts)
    assert sampler.explain(small(3, 2), cond=C, uncond=NULL, guidance_scale=1.0).branches == {1: 8}
    scales = {"guidance_scale": [1.0, 2.0, 3.0]}
    unsaid = {"cond": {"c": torch.tensor(1.0)}, "uncond": {"c": torch.tensor(0.0)}}
    assert sampler.explain(small(3, 2), **unsaid, **scales).branches == {1: 3, 2: 5}
    with pytest.raises(ValueError, match="must be a number or have shape"):
        sampler.explain(small(3, 2), **unsaid, **scales, batch=4)
    several = sampler.explain(small(3, 2), cond=[C, C, C], uncond=NULL)
    assert several.branches == {1: 3, 4: 5}
    assert sampler.explain(hidden(small(3, 2)), cond=C, uncond=NULL).branches == {1: 3, 2: 5}


def test_noise_and_gradients_are_named():
    said = pfc.Sampler(pfc.plan("euler_maruyama", 3)).explain(small(), enable_grad=True)
    parts = dict(said.parts)
    assert "from seeds" in parts["noise"]
    assert parts["gradient"].startswith("the module once more")
    said = pfc.Sampler(pfc.plan("euler_maruyama", 3)).explain(hidden(small()), enable_grad=True)
    assert said.operators == ("combine",)
    assert "autograd" in dict(said.parts)["gradient"]


def weak():
    return hidden(small(3, 2))


@pytest.mark.parametrize(
    ("guidance", "arguments", "reason"),
    [
        (None, {"hook": lambda step, t, x: None}, "hook wants the state at the grid points"),
        (None, {"mask": torch.ones(1), "known": torch.ones(1)}, "mask wants the state at the grid points"),
        (None, {"callback": lambda *args: None}, "callback wants the state at the grid points"),
        (None, {"progress": True}, "progress is shown step by step"),
        (None, {"noise": torch.Generator()}, "noise is given; the engine draws from seeds"),
        (pfc.CFGZero(2.0), {}, "the weights of guidance depend on the samples"),
        (pfc.APG(2.0), {}, "the weights of guidance depend on the samples"),
        (pfc.CFG(2.0).rescaled(0.5), {}, "the weights of guidance depend on the samples"),
        (pfc.Autoguidance(weak(), 2.0), {}, "guidance evaluates a second field"),
        (None, {"device": "meta"}, "there are no compiled kernels for 'meta'"),
    ],
    ids=["hook", "mask", "callback", "progress", "noise", "zero*", "apg", "rescale", "weak", "device"],
)
def test_what_the_engine_does_not_take(guidance, arguments, reason):
    sampler = pfc.Sampler(PLAN, guidance)
    if guidance is not None:
        arguments = {**arguments, "cond": C, "uncond": NULL}
    said = sampler.explain(small(3, 2), **arguments)
    assert said.engine == "loop"
    assert len(said.reasons) == 1
    assert said.reasons[0].startswith(reason)
    assert [line.split()[0] for line in str(said).splitlines()].count("because") == 1
    assert "network" in said.operators


@pytest.mark.parametrize(
    ("guidance", "arguments"),
    [
        (None, {"hook": lambda step, t, x: None}),
        (None, {"callback": lambda *args: None}),
        (pfc.APG(2.0), {"cond": C, "uncond": NULL}),
        (pfc.Autoguidance(weak(), 2.0), {"cond": C}),
    ],
    ids=["hook", "callback", "apg", "weak"],
)
def test_and_the_loop_runs_it(guidance, arguments):
    """The same samples as of a callable."""
    field = small(3, 2, dtype=torch.float32) if guidance else small(dtype=torch.float32)
    sampler, x0 = pfc.Sampler(PLAN, guidance), torch.linspace(-1, 1, 9).reshape(3, 3)
    assert torch.equal(sampler(field, x0=x0, **arguments), sampler(hidden(field), x0=x0, **arguments))


def test_several_reasons_are_all_said():
    said = pfc.Sampler(PLAN).explain(small(), progress=True, noise=torch.Generator())
    assert len(said.reasons) == 2
    assert str(said).count("because") == 2


def test_guidance_by_sample_names_its_operators():
    said = pfc.Sampler(PLAN, pfc.APG(2.0)).explain(hidden(small(3, 2)), cond=C, uncond=NULL)
    assert said.operators == ("combine_", "guide_", "combine_mixed_")


def test_without_the_compiled_library(monkeypatch):
    monkeypatch.setattr(pfc._library, "cpu", pfc._library.Backend(False, "it is off for this test"))
    said = pfc.Sampler(PLAN).explain(small())
    assert said.engine == "loop"
    assert said.kernels == "plain PyTorch"
    assert said.reasons == ("the compiled kernels for 'cpu' are off: it is off for this test",)


def test_it_refuses_what_the_call_refuses():
    sampler = pfc.Sampler(PLAN, pfc.CFG(2.0))
    with pytest.raises(ValueError, match="uncond is missing"):
        sampler.explain(small(3, 2), cond=C)
    with pytest.raises(ValueError, match="path: the plan is for"):
        sampler.explain(small(path="vp"))
    with pytest.raises(TypeError, match="hook must be a function"):
        sampler.explain(small(), hook=3)
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        sampler.explain(small(), shpe=(3,))


def test_nothing_is_evaluated():
    def field(x, t):
        raise AssertionError

    assert pfc.Sampler(PLAN).explain(field, x0=torch.ones(2, 3)).engine == "loop"
