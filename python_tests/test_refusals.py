"""Everything that is refused: with ValueError or TypeError, naming the argument, what came and what is allowed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pyflowcore as pfc
from reference.torch_fields import drift

WRONG = (ValueError, TypeError)
PLAN = pfc.plan("euler", 3)
NAN, INF = float("nan"), float("inf")


def sample(field=drift, plan=PLAN, guidance=None, **options):
    return pfc.Sampler(plan, guidance)(field, **options)


def x0(*shape, **options):
    return torch.zeros(*(shape or (2, 3)), **options)


def guided(**options):
    return sample(
        lambda x, t, y: x,
        guidance=pfc.CFG(2.0),
        x0=x0(),
        cond={"y": torch.ones(2)},
        **({"uncond": {"y": torch.zeros(2)}} | options),
    )


def never(x, t):
    raise AssertionError("the field was evaluated")


CASES = {
    # plans and grids
    "unknown solver": (lambda: pfc.plan("eulr", 4), ["solver", "'eulr'", "euler, midpoint, heun, ralston2"]),
    "solver no name": (lambda: pfc.plan(4, 4), ["solver", "int"]),
    "no steps": (lambda: pfc.plan("euler"), ["steps", "nfe", "neither"]),
    "steps and nfe": (lambda: pfc.plan("euler", 3, nfe=3), ["steps", "nfe", "both"]),
    "steps zero": (lambda: pfc.plan("euler", 0), ["steps", "0"]),
    "steps negative": (lambda: pfc.plan("euler", -2), ["steps", "-2"]),
    "steps float": (lambda: pfc.plan("euler", 3.0), ["steps", "float"]),
    "steps bool": (lambda: pfc.plan("euler", True), ["steps", "bool"]),
    "nfe zero": (lambda: pfc.plan("euler", nfe=0), ["nfe", "0"]),
    "nfe float": (lambda: pfc.plan("euler", nfe=2.5), ["nfe", "float"]),
    "nfe too small": (lambda: pfc.plan("heun", nfe=1, last="full"), ["nfe", "1", "2"]),
    "nfe with times": (lambda: pfc.plan("euler", nfe=2, grid=[0, 0.5, 1]), ["nfe", "times"]),
    "steps against times": (lambda: pfc.plan("euler", 5, grid=[0, 0.5, 1]), ["steps is 5", "3 times"]),
    "last": (lambda: pfc.plan("heun", 3, last="ful"), ["last", "'ful'", "default"]),
    "misspelt option": (lambda: pfc.plan("heun", stepz=3), ["stepz"]),
    "grid falls": (lambda: pfc.plan("euler", grid=[0.0, 0.6, 0.5, 1.0]), ["increase", "times[2]", "0.5"]),
    "grid repeats": (lambda: pfc.plan("euler", grid=[0.0, 0.5, 0.5]), ["increase", "times[2]"]),
    "grid outside": (lambda: pfc.plan("euler", grid=[-0.1, 0.5]), ["times[0]", "[0, 1]"]),
    "grid nan": (lambda: pfc.plan("euler", grid=[0.0, NAN]), ["times[1]", "nan"]),
    "grid of one": (lambda: pfc.plan("euler", grid=[0.0]), ["at least two", "1"]),
    "grid of two dimensions": (lambda: pfc.plan("euler", grid=np.zeros((2, 2))), ["one-dimensional", "(2, 2)"]),
    "grid name": (lambda: pfc.plan("euler", 3, grid="karras"), ["grid", "'karras'", "uniform"]),
    "grid text": (lambda: pfc.plan("euler", grid=["a", "b"]), ["a"]),
    "shift zero": (lambda: pfc.grids.shifted(0.0), ["shift", "0.0", "positive"]),
    "shift nan": (lambda: pfc.grids.shifted(NAN), ["shift", "nan"]),
    "shift text": (lambda: pfc.grids.shifted("3"), ["shift", "str"]),
    "path name": (lambda: pfc.plan("euler", 3, path="cosine"), ["path", "'cosine'", "trigonometric"]),
    "path type": (lambda: pfc.plan("euler", 3, path=3), ["path", "int"]),
    "path options": (lambda: pfc.paths.VP(beta_min=5.0, beta_max=1.0), ["beta_max", "5.0", "1.0"]),
    "path beta": (lambda: pfc.paths.VP(beta_min=-1.0), ["beta_min", "-1.0"]),
    "prediction": (lambda: pfc.plan("euler", 3, prediction="eps"), ["prediction", "'eps'", "velocity, data, noise"]),
    "data at t = 0": (lambda: pfc.plan("ddim", 3, prediction="noise"), ["'noise'", "t = 0", "linear"]),
    "noise of data at t = 1": (
        lambda: pfc.plan("heun", 3, prediction="data", last="full"), ["'data'", "'heun'", "t = 1"],
    ),
    # fields and samplers
    "net": (lambda: pfc.Field(3), ["net", "int"]),
    "sign": (lambda: pfc.Field(drift, sign=2), ["sign", "2"]),
    "time": (lambda: pfc.Field(drift, time=1000), ["time", "int"]),
    "time_shape": (lambda: pfc.Field(drift, time_shape="vector"), ["time_shape", "'vector'", "batch"]),
    "field dtype": (lambda: pfc.Field(drift, dtype=torch.int32), ["dtype", "int32", "bfloat16"]),
    "field option": (lambda: pfc.Field(drift, predicts="data"), ["predicts"]),
    "time map's shape": (lambda: sample(pfc.Field(drift, time=lambda t: t[:1]), x0=x0()), ["time", "[3]", "[1]"]),
    "time map's values": (lambda: sample(pfc.Field(drift, time=lambda t: t / 0), x0=x0()), ["time", "finite"]),
    "plan type": (lambda: pfc.Sampler("euler"), ["plan", "str"]),
    "guidance type": (lambda: pfc.Sampler(PLAN, 3.0), ["guidance", "float"]),
    "branches": (lambda: pfc.Sampler(PLAN, branches="both"), ["branches", "'both'", "calls"]),
    "sampler option": (lambda: sample(x0=x0(), seed=[1]), ["seed"]),
    "another prediction": (lambda: sample(pfc.Field(drift, "noise"), x0=x0()), ["prediction", "'velocity'", "'noise'"]),
    "another path": (lambda: sample(pfc.Field(drift, path="vp"), x0=x0()), ["path", "Linear", "VP"]),
    "another VP": (
        lambda: sample(
            pfc.Field(drift, path=pfc.paths.VP(0.1, 12.0)), plan=pfc.plan("ddim", 3, path="vp"), x0=x0()
        ),
        ["path", "20.0", "12.0"],
    ),
    "another field for start": (
        lambda: pfc.Sampler(PLAN).start(x0=x0(), field=pfc.Field(drift, path="vp")), ["path"],
    ),
    # states, noise, shapes
    "integer state": (lambda: sample(x0=torch.zeros(2, 3, dtype=torch.int64)), ["x0", "int64"]),
    "complex state": (lambda: sample(x0=torch.zeros(2, 3, dtype=torch.complex64)), ["x0", "complex64"]),
    "list state": (lambda: sample(x0=[[1.0]]), ["x0", "list"]),
    "scalar state": (lambda: sample(x0=torch.tensor(1.0)), ["x0", "batch"]),
    "state's dtype": (lambda: sample(x0=x0(), dtype=torch.bfloat16), ["dtype", "bfloat16", "float32"]),
    "x0 and shape": (lambda: sample(x0=x0(), shape=(3,)), ["x0", "shape", "both"]),
    "neither x0 nor shape": (lambda: sample(seeds=[1]), ["x0", "shape", "neither"]),
    "no batch": (lambda: sample(shape=(3,)), ["seeds", "batch"]),
    "batch against x0": (lambda: sample(x0=x0(), batch=3), ["batch is 3", "2"]),
    "batch against seeds": (lambda: sample(shape=(3,), seeds=[1, 2], batch=3), ["batch is 3", "2"]),
    "negative batch": (lambda: sample(shape=(3,), batch=-1), ["batch", "-1"]),
    "negative size": (lambda: sample(shape=(3, -1), seeds=[1]), ["shape", "-1"]),
    "shape int": (lambda: sample(shape=8, seeds=[1]), ["shape", "sequence of integers", "int 8"]),
    "shape text": (lambda: sample(shape="8", seeds=[1]), ["shape", "sequence of integers", "str '8'"]),
    "shape int to start": (lambda: pfc.Sampler(PLAN).start(shape=8, seeds=[1]), ["shape", "int 8"]),
    "shape of fractions": (lambda: sample(shape=(2.0, 3), seeds=[1]), ["shape", "2.0"]),
    "seeds too few": (lambda: sample(x0=x0(), seeds=[1]), ["seeds", "1", "2"]),
    "seeds float": (lambda: sample(shape=(3,), seeds=[1.5]), ["seeds", "1.5"]),
    "seeds single": (lambda: sample(shape=(3,), seeds=7), ["seeds", "7"]),
    "seeds text": (lambda: sample(shape=(3,), seeds="ab"), ["seeds", "ab"]),
    "seeds too large": (lambda: sample(shape=(3,), seeds=[2**64]), ["seeds[0]", str(2**64)]),
    "seeds float tensor": (lambda: sample(shape=(3,), seeds=torch.zeros(2)), ["seeds", "float32"]),
    "seeds of two dimensions": (lambda: sample(shape=(3,), seeds=torch.zeros(2, 2).long()), ["seeds", "[2, 2]"]),
    "grid inside without x0": (
        lambda: sample(plan=pfc.plan("euler", grid=[0.2, 1.0]), shape=(3,), seeds=[1]), ["x0", "0.2"],
    ),
    "output's shape": (lambda: sample(lambda x, t: x[:, :2], x0=x0()), ["out", "[2, 2]", "[2, 3]"]),
    "output's batch": (lambda: sample(lambda x, t: torch.cat([x, x]), x0=x0()), ["out", "[4, 3]", "[2, 3]"]),
    "output's dtype": (lambda: sample(lambda x, t: x.long(), x0=x0()), ["out", "int64"]),
    "output's device": (lambda: sample(lambda x, t: x.to("meta"), x0=x0()), ["out", "meta", "cpu"]),
    "output no tensor": (lambda: sample(lambda x, t: None, x0=x0()), ["out", "NoneType"]),
    # guidance and conditions
    "scale nan": (lambda: pfc.CFG(NAN), ["scale", "nan"]),
    "scale infinite": (lambda: pfc.CFG([1.0, INF]), ["scale", "inf"]),
    "scale text": (lambda: pfc.CFG("strong"), ["scale", "'strong'"]),
    "scale bool tensor": (lambda: pfc.CFG(torch.tensor(True)), ["scale", "bool"]),
    "scale of two dimensions": (lambda: pfc.CFG(torch.ones(2, 2)), ["scale", "[2, 2]"]),
    "interval falls": (lambda: pfc.CFG(2.0, (0.9, 0.1)), ["interval", "(0.9, 0.1)"]),
    "interval nan": (lambda: pfc.CFG(2.0, (0.1, NAN)), ["interval", "nan"]),
    "interval of three": (lambda: pfc.CFG(2.0, (0.1, 0.2, 0.3)), ["interval"]),
    "interval a number": (lambda: pfc.CFG(2.0, 3), ["interval", "(lo, hi)", "3"]),
    "interval of text": (lambda: pfc.CFG(2.0, ("a", "b")), ["interval", "'a'"]),
    "interval of None": (lambda: pfc.CFG(2.0, (None, 0.5)), ["interval", "None"]),
    "scale's shape before a batch": (lambda: pfc.CFG(torch.ones(2, 2)), ["scale", "[B]"]),
    "weight text": (lambda: pfc.CFG(2.0, weights=[1.0, "a"]), ["weights[1]", "'a'"]),
    "weight nan": (lambda: pfc.CFG(2.0, weights=[NAN]), ["weights[0]", "nan"]),
    "weights text": (lambda: pfc.CFG(2.0, weights="ab"), ["weights", "'ab'"]),
    "weight of the call": (
        lambda: sample(
            lambda x, t, y: x, guidance=pfc.CFG(2.0, weights=[1.0, lambda t: INF]), x0=x0(),
            cond=[{"y": torch.ones(2)}] * 2, uncond={"y": torch.ones(2)},
        ), ["weights[1]", "inf"],
    ),
    "zero_until negative": (lambda: pfc.CFGZero(2.0, zero_until=-1.0), ["zero_until", "-1.0"]),
    "hook": (lambda: sample(never, x0=x0(), hook=3), ["hook", "int 3"]),
    "hook to start": (lambda: pfc.Sampler(PLAN).start(x0=x0(), hook=3), ["hook", "int 3"]),
    "callback": (lambda: sample(never, x0=x0(), callback=3), ["callback", "int 3"]),
    "device": (lambda: sample(never, x0=x0(), device="foo"), ["device must", "'foo'"]),
    "device to start": (lambda: pfc.Sampler(PLAN).start(x0=x0(), device="foo"), ["device must", "'foo'"]),
    "device to capture": (
        lambda: pfc.Sampler(PLAN).capture(never, shape=(3,), batch=2, device="foo"), ["device must", "'foo'"],
    ),
    "shape int to capture": (lambda: pfc.Sampler(PLAN).capture(never, shape=4, batch=2), ["shape", "int 4"]),
    "shape text to capture": (lambda: pfc.Sampler(PLAN).capture(never, shape="ab", batch=2), ["shape", "str 'ab'"]),
    "noise of numbers": (lambda: sample(never, x0=x0(), noise=[1, 2]), ["noise[0]", "tensor", "int 1"]),
    "scale of the call": (lambda: guided(guidance_scale=NAN), ["scale", "nan"]),
    "scale of time": (lambda: guided(guidance_scale=lambda t: INF), ["scale", "inf"]),
    "scale of another batch": (lambda: guided(guidance_scale=[1.0, 2.0, 3.0]), ["scale", "[2]", "[3]"]),
    "scale without guidance": (lambda: sample(x0=x0(), guidance_scale=2.0), ["guidance_scale", "CFG"]),
    "cond without uncond": (lambda: guided(uncond=None), ["uncond", "missing"]),
    "uncond lacks": (lambda: guided(uncond={"z": 1}), ["uncond lacks y"]),
    "uncond has more": (lambda: guided(uncond={"y": torch.zeros(2), "z": 1}), ["uncond has z"]),
    "uncond's shape": (lambda: guided(uncond={"y": torch.zeros(3)}), ["uncond['y']", "[3]", "[2]"]),
    "cond no dict": (lambda: sample(x0=x0(), cond=torch.ones(2)), ["cond", "Tensor"]),
    "shared and cond": (lambda: guided(shared={"y": 1}), ["shared", "cond", "y"]),
    # operators
    "randn dtype": (lambda: pfc.randn([1], (3,), dtype=torch.int64), ["dtype", "int64", "float32"]),
    "randn size": (lambda: pfc.randn([1], (-3,)), ["shape", "-3"]),
    "randn stream": (lambda: pfc.randn([1], (3,), stream=-1), ["stream", "-1"]),
    "randn draw": (lambda: pfc.randn([1], (3,), draw=2**32), ["draw", str(2**32)]),
    "interpolate integer": (lambda: pfc.interpolate(x0().long(), torch.zeros(2), seeds=[1, 2]), ["data", "int64"]),
    "interpolate t": (lambda: pfc.interpolate(x0(), torch.zeros(3), seeds=[1, 2]), ["t", "[2]", "[3]"]),
    "interpolate t dtype": (lambda: pfc.interpolate(x0(), torch.zeros(2).half(), seeds=[1, 2]), ["t", "float16"]),
    "interpolate neither": (lambda: pfc.interpolate(x0(), torch.zeros(2)), ["x0", "seeds", "neither"]),
    "interpolate both": (lambda: pfc.interpolate(x0(), torch.zeros(2), x0=x0(), seeds=[1, 2]), ["x0", "seeds", "both"]),
    "interpolate x0": (lambda: pfc.interpolate(x0(), torch.zeros(2), x0=x0(2, 4)), ["x0", "[2, 4]", "[2, 3]"]),
    "interpolate x0 dtype": (lambda: pfc.interpolate(x0(), torch.zeros(2), x0=x0().half()), ["x0", "float16", "float32"]),
    "interpolate device": (lambda: pfc.interpolate(x0(), torch.zeros(2, device="meta"), seeds=[1, 2]), ["t", "meta"]),
    "interpolate seeds": (lambda: pfc.interpolate(x0(), torch.zeros(2), seeds=[1]), ["seeds", "1", "2"]),
    "interpolate path": (lambda: pfc.interpolate(x0(), torch.zeros(2), seeds=[1, 2], path="x"), ["path", "'x'"]),
    "interpolate target": (
        lambda: pfc.interpolate(x0(), torch.zeros(2), seeds=[1, 2], prediction="x"), ["prediction", "'x'", "score"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_refused(case):
    call, words = CASES[case]
    with pytest.raises(WRONG) as caught:
        call()
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_the_known_solvers_are_listed():
    with pytest.raises(ValueError, match=", ".join(pfc.solvers())):
        pfc.plan("dpm", 3)


def test_a_run_needs_its_outputs_in_turn():
    run = pfc.Sampler(PLAN).start(x0=x0())
    with pytest.raises(RuntimeError, match=r"run\.step"):
        for _ in run:
            pass
    assert run.next() is run.next()
    for step in pfc.Sampler(PLAN).start(x0=x0()):
        step.x  # noqa: B018
        break
    run = pfc.Sampler(PLAN).start(x0=x0())
    for step in run:
        run.step(step.x)
    with pytest.raises(RuntimeError, match="done"):
        run.step(x0())
