"""Captured trajectories, everything but the graph itself: the same buffers used again, to the bits of the sampler's own call.

On the CPU a CapturedRun runs eagerly and says so; ``test_cuda_capture.py`` has the graph.
"""

from __future__ import annotations

import threading
import warnings
from unittest import mock

import pytest
import torch

import pyflowcore as pfc
from reference import catalogue
from reference.torch_fields import drift

CASES = {name: (name, {}) for name in pfc.solvers()}
CASES["edm_heun-churn"] = catalogue.STOCHASTIC["edm_heun-churn"]
SHAPE = (2, 7)


def conditional(x, t, y=None):
    y = torch.zeros_like(t) if y is None else y
    wide = (-1, *[1] * (x.dim() - 1))
    return (x.float() * (t.float() - 0.7).reshape(wide) + y.float().reshape(wide)).to(x.dtype)


def capture(sampler, field, **arguments):
    with pytest.warns(pfc.PyflowcoreWarning, match="no CUDA graphs on 'cpu': .* runs eagerly"):
        return sampler.capture(field, shape=SHAPE, **arguments)


def memory(graph):
    """Where everything lies that a trajectory works on."""
    run = graph._run
    tensors = [graph._x0, graph._seeds, graph.x, run.buffers.x, *run.buffers._input, *run.buffers._points]
    tensors += [
        t
        for t in (run.buffers.slots, graph._scales, graph._several[0].get("y"), graph._uncond.get("y"))
        if t is not None
    ]
    return [t.data_ptr() for t in tensors]


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_every_solver_again_and_again(name, dtype, poison):
    """New seeds, starts, conditions and scales in the same memory; each call has the eager call's bits."""
    solver, options = CASES[name]
    sampler = pfc.Sampler(pfc.plan(solver, 5, **options), pfc.CFG(2.0, (0.2, 0.8)))
    field = pfc.Field(conditional, dtype=dtype)
    first, null = torch.tensor([0.5, -1.0, 2.0]), torch.tensor(0.1)
    graph = capture(sampler, field, cond={"y": first}, uncond={"y": null})
    assert not graph.captured
    before, out = memory(graph), torch.empty(3, *SHAPE)

    def check(found, y=first, null=null, scale=2.0, **start):
        start = {"shape": SHAPE, **start} if "x0" not in start else start
        wanted = sampler(field, cond={"y": y}, uncond={"y": null}, guidance_scale=scale, **start)
        assert torch.equal(found, wanted)
        assert torch.equal(graph.x, wanted)

    check(graph(seeds=[1, 2, 3]), seeds=[1, 2, 3])
    check(graph(seeds=torch.tensor([7, 8, 9])), seeds=[7, 8, 9])
    x0 = pfc.randn([4, 5, 6], SHAPE)
    check(graph(x0=x0, seeds=[1, 2, 3]), x0=x0, seeds=[1, 2, 3])
    y = torch.tensor([1.0, 2.0, 3.0])
    assert graph(seeds=[1, 2, 3], cond={"y": y}, out=out) is out
    check(out, y=y, seeds=[1, 2, 3])
    check(graph(seeds=[1, 2, 3], guidance_scale=3.5, out=out), y=y, scale=3.5, seeds=[1, 2, 3])
    other = torch.tensor(-0.4)
    check(graph(seeds=[1, 2, 3], uncond={"y": other}), y=y, null=other, scale=3.5, seeds=[1, 2, 3])
    scales = torch.tensor([1.5, 0.0, -2.0])
    check(graph(seeds=[3, 2, 1], guidance_scale=scales), y=y, null=other, scale=scales, seeds=[3, 2, 1])
    of_time = lambda t: 1.5 + t  # noqa: E731
    check(graph(seeds=[3, 2, 1], guidance_scale=of_time), y=y, null=other, scale=of_time, seeds=[3, 2, 1])
    # Everything from before again: nothing is left behind.
    check(graph(seeds=[1, 2, 3], cond={"y": first}, uncond={"y": null}, guidance_scale=2.0), seeds=[1, 2, 3])
    assert memory(graph) == before


@pytest.mark.parametrize("branches", ["batch", "calls"])
def test_what_the_caller_has_is_copied(branches):
    sampler = pfc.Sampler(pfc.plan("heun", 3), pfc.CFG(2.0), branches=branches)
    y, null = torch.tensor([1.0, 2.0]), torch.zeros(2)
    graph = capture(sampler, conditional, cond={"y": y}, uncond={"y": null})
    first = graph(seeds=[1, 2])
    kept = first.clone()
    y.fill_(100.0)
    null.fill_(50.0)
    assert torch.equal(graph(seeds=[1, 2]), kept)
    graph(seeds=[5, 6])
    assert torch.equal(first, kept)
    x0 = pfc.randn([1, 2], SHAPE)
    before = x0.clone()
    assert torch.equal(graph(x0=x0), kept)
    assert torch.equal(x0, before)


def test_shared_arguments_are_read_where_they_lie():
    shift = torch.tensor(0.5)
    graph = capture(
        pfc.Sampler(pfc.plan("euler", 3)), lambda x, t, shift: -x + shift, batch=2, shared={"shift": shift}
    )
    assert torch.equal(graph(seeds=[1, 2]), eager_with_shift(0.5))
    shift.fill_(2.0)
    assert torch.equal(graph(seeds=[1, 2]), eager_with_shift(2.0))


def eager_with_shift(value):
    return pfc.Sampler(pfc.plan("euler", 3))(lambda x, t: -x + value, shape=SHAPE, seeds=[1, 2])


def test_nested_conditions():
    def net(x, t, text):
        return text["tokens"][0][:, None, None] * x if text["pool"] else x

    sampler = pfc.Sampler(pfc.plan("euler", 3), pfc.CFG(3.0))

    def tree(value):
        return {"text": {"tokens": [torch.tensor(value)], "pool": True}}

    graph = capture(sampler, net, cond=tree([1.0, 2.0]), uncond=tree([0.0, 0.0]))
    for value in ([1.0, 2.0], [3.0, -1.0]):
        found = graph(seeds=[1, 2], cond=tree(value))
        wanted = sampler(net, shape=SHAPE, seeds=[1, 2], cond=tree(value), uncond=tree([0.0, 0.0]))
        assert torch.equal(found, wanted)


def test_starts():
    sampler = pfc.Sampler(pfc.plan("dpmpp_2m_sde", 4))
    graph = capture(sampler, drift, batch=2)
    torch.manual_seed(3)
    found = graph(), graph()
    assert not torch.equal(*found)
    torch.manual_seed(3)
    assert torch.equal(sampler(drift, shape=SHAPE, batch=2), found[0])
    ve = pfc.Sampler(pfc.plan("euler", 4, path=pfc.paths.VE(6.0)))
    field = pfc.Field(drift, path=pfc.paths.VE(6.0))
    assert torch.equal(capture(ve, field, batch=2)(seeds=[1, 2]), ve(field, shape=SHAPE, seeds=[1, 2]))
    inside = pfc.Sampler(pfc.plan("heun", 3, grid=pfc.grids.uniform().partial(0.5)))
    graph = capture(inside, drift, batch=2)
    data = pfc.randn([1, 2], SHAPE, stream=2)
    assert torch.equal(graph(init=data, seeds=[3, 4]), inside(drift, init=data, seeds=[3, 4]))
    with pytest.raises(ValueError, match="x0 is missing: the plan begins at"):
        graph(seeds=[1, 2])


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_grad_modes(mode):
    """Captured in one, called in another; no gradient is ever recorded."""
    sampler = pfc.Sampler(pfc.plan("heun", 3))
    weight = torch.ones((), requires_grad=True)

    def net(x, t):
        return -x * weight

    with mode():
        inside = capture(sampler, net, batch=2)
    outside = capture(sampler, net, batch=2)
    wanted = sampler(net, shape=SHAPE, seeds=[1, 2])
    for graph in (inside, outside):
        assert torch.equal(graph(seeds=[1, 2]), wanted)
        with mode():
            assert torch.equal(graph(seeds=[1, 2]), wanted)
        assert not graph(seeds=[1, 2], x0=torch.ones(2, *SHAPE, requires_grad=True)).requires_grad


def test_one_call_at_a_time():
    """A second thread is refused, and the first one's samples are right."""
    inside, go = threading.Event(), threading.Event()

    def net(x, t):
        inside.set()
        assert go.wait(30)
        return -x

    graph = capture(pfc.Sampler(pfc.plan("euler", 3)), net, batch=2)
    results = []
    thread = threading.Thread(target=lambda: results.append(graph(seeds=[1, 2])))
    thread.start()
    assert inside.wait(30)
    with pytest.raises(RuntimeError, match="in use by another thread"):
        graph(seeds=[3, 4])
    go.set()
    thread.join()
    assert torch.equal(
        results[0], pfc.Sampler(pfc.plan("euler", 3))(lambda x, t: -x, shape=SHAPE, seeds=[1, 2])
    )
    graph(seeds=[3, 4])


def test_a_call_that_fails_leaves_the_graph_usable():
    calls = []

    def net(x, t, y):
        calls.append(1)
        if len(calls) == 3:
            raise OSError("no power")
        return conditional(x, t, y)

    sampler = pfc.Sampler(pfc.plan("heun", 3))
    graph = capture(sampler, net, cond={"y": torch.ones(2)})
    with pytest.raises(OSError, match="no power"):
        graph(seeds=[1, 2])
    wanted = sampler(conditional, shape=SHAPE, seeds=[1, 2], cond={"y": torch.ones(2)})
    assert torch.equal(graph(seeds=[1, 2]), wanted)


GUIDED = pfc.Sampler(pfc.plan("euler", 4), pfc.CFG(2.0, (0.2, 1.0)))


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"seeds": [1]}, ValueError, "seeds has 1 entries, captured were 2 samples"),
        ({"x0": torch.ones(2, 7)}, ValueError, r"x0 has shape \[2, 7\], captured was \[2, 2, 7\]"),
        ({"init": torch.ones(3, 2, 7)}, ValueError, r"init has shape \[3, 2, 7\], captured was \[2, 2, 7\]"),
        ({"x0": torch.ones(2, 2, 7), "init": torch.ones(2, 2, 7)}, ValueError, "exactly one of x0, shape and init"),
        ({"cond": {"y": torch.ones(3)}}, ValueError, r"cond\['y'\] has shape \[3\], captured was \[2\]"),
        ({"cond": {"y": torch.ones(2).long()}}, TypeError, r"cond\['y'\] is torch.int64, captured was torch.float32"),
        ({"cond": {"z": torch.ones(2)}}, ValueError, r"cond has the keys \['z'\], captured were \['k', 'y'\]"),
        ({"cond": {"y": 3.0, "k": 1}}, TypeError, r"cond\['y'\] must be a tensor, as it was captured, got float"),
        ({"cond": {"y": torch.ones(2), "k": 2}}, ValueError, r"cond\['k'\] was captured as 1 and cannot change, got 2"),
        ({"uncond": [1]}, TypeError, "uncond must be a dict"),
        ({"guidance_scale": [1.0, 2.0, 3.0]}, ValueError, r"guidance scale must be a number or have shape \[2\]"),
        ({"guidance_scale": float("nan")}, ValueError, "finite"),
        ({"out": torch.empty(2, 2)}, ValueError, r"out has shape \[2, 2\], captured was \[2, 2, 7\]"),
        ({"out": torch.empty(2, 2, 7).double()}, ValueError, "out is torch.float64 on cpu, the samples are torch.float32"),
        ({"out": [1]}, TypeError, "out must be a tensor, got list"),
    ],
)  # fmt: skip
def test_refused(arguments, error, words):
    """By name, and nothing has changed."""

    def net(x, t, y, k):
        return conditional(x, t, y)

    graph = capture(GUIDED, net, cond={"y": torch.ones(2), "k": 1}, uncond={"y": torch.zeros(2), "k": 1})
    wanted = graph(seeds=[1, 2])
    if "cond" in arguments and arguments["cond"].keys() == {"y"}:
        arguments = {**arguments, "cond": {**arguments["cond"], "k": 1}}
    with pytest.raises(error, match=words):
        graph(**arguments)
    assert torch.equal(graph.x, wanted)
    assert torch.equal(graph(seeds=[1, 2]), wanted)


def test_scales_that_a_graph_cannot_take():
    conditions = {"cond": {"y": torch.ones(2)}, "uncond": {"y": torch.zeros(2)}}
    late = capture(GUIDED, conditional, guidance_scale=lambda t: 1.0 if t < 0.6 else 2.0, **conditions)
    with pytest.raises(ValueError, match=r"guides row 1 \(t = 0.25\), which was captured with one branch"):
        late(seeds=[1, 2], guidance_scale=3.0)
    never = capture(GUIDED, conditional, guidance_scale=1.0, **conditions)
    with pytest.raises(ValueError, match="no row was captured with two branches"):
        never(seeds=[1, 2], guidance_scale=3.0)
    # A scale of 1 saves nothing, and gives the conditional output's samples.
    full = capture(GUIDED, conditional, **conditions)
    assert torch.equal(full(seeds=[1, 2], guidance_scale=1.0), never(seeds=[1, 2]))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"batch": None}, "batch must be given"),
        ({"batch": -1}, "batch must be an integer >= 0"),
        ({"batch": 2, "warmup": 0}, "warmup must be a positive number"),
        ({"batch": 2, "dtype": torch.bfloat16}, "dtype, the state's, must be float32 or float64"),
        ({"batch": 2, "cond": {"y": torch.ones(2)}, "shared": {"y": 1}}, "shared and cond both have y"),
    ],
)
def test_captures_that_are_refused(arguments, words):
    with pytest.raises((TypeError, ValueError), match=words), warnings.catch_warnings():
        warnings.simplefilter("ignore", pfc.PyflowcoreWarning)
        pfc.Sampler(pfc.plan("euler", 3)).capture(conditional, shape=SHAPE, **arguments)


def test_repr_and_double():
    graph = capture(pfc.Sampler(pfc.plan("euler", 3)), drift, batch=2, dtype=torch.float64)
    assert graph(seeds=[1, 2]).dtype == torch.float64
    assert repr(graph).endswith("batch=2, shape=(2, 7), device='cpu', captured=False)")


# ------------------------------------------------------------------------------- the graph's own calls, with torch.cuda's names
class Recorder:
    """Stands in for torch.cuda: every name and signature is the real one's, nothing needs a device."""

    NAMES = ("Stream", "CUDAGraph", "Event", "graph", "stream", "device", "current_stream")

    def __init__(self, monkeypatch, graph):
        self.log = []
        self.trajectory = graph._trajectory
        real = {name: getattr(torch.cuda, name) for name in self.NAMES}
        for name in self.NAMES:
            monkeypatch.setattr(torch.cuda, name, self.fake(name, real))

        def counted():
            self.log.append("trajectory")
            self.trajectory()

        monkeypatch.setattr(graph, "_trajectory", counted)

    def fake(self, name, real):
        made = mock.create_autospec(real[name])
        if name in ("stream", "device", "graph"):
            answer = mock.MagicMock()
        else:
            answer = mock.create_autospec(real["Stream" if name == "current_stream" else name], instance=True)

        def call(*args, **kwargs):
            self.log.append(name)
            return mock.DEFAULT

        made.side_effect, made.return_value = call, answer
        if name in ("stream", "graph"):
            answer.__enter__.side_effect = lambda *a: self.log.append(f"in {name}")
            answer.__exit__.side_effect = lambda *a: self.log.append(f"out of {name}")
        if name == "CUDAGraph":
            answer.replay.side_effect = lambda: (self.log.append("replay"), self.trajectory())
        if name in ("Stream", "current_stream"):
            answer.wait_stream.side_effect = lambda stream: self.log.append(f"{name} waits")
            answer.wait_event.side_effect = lambda event: self.log.append(f"{name} waits for event")
        if name == "Event":
            answer.record.side_effect = lambda stream: self.log.append("recorded")
        return made


def test_the_order_of_the_capture_and_of_a_replay(monkeypatch):
    sampler = pfc.Sampler(pfc.plan("heun", 3))
    graph = capture(sampler, drift, batch=2)
    recorder = Recorder(monkeypatch, graph)
    with torch.no_grad():
        graph._capture(2)
    log = [entry for entry in recorder.log if entry not in ("device", "stream", "graph")]
    assert log == [
        "current_stream", "Stream", "Stream waits", "in stream", "trajectory", "trajectory", "out of stream",
        "current_stream waits", "CUDAGraph", "in graph", "trajectory", "out of graph", "Event", "recorded",
    ]  # fmt: skip
    recorder.log.clear()
    found = graph(seeds=[1, 2])
    assert [entry for entry in recorder.log if entry != "current_stream"] == [
        "current_stream waits for event", "replay", "recorded",
    ]  # fmt: skip
    assert torch.equal(found, sampler(drift, shape=SHAPE, seeds=[1, 2]))


def test_one_tensor_for_both_branches_stays_one():
    """A table that the network looks its condition up in: without the batch dimension, and shared."""

    def looked_up(x, t, y, table):
        return x * t[:, None, None] + (y[:, None] * table.sum())[:, None]

    sampler = pfc.Sampler(pfc.plan("heun", 3), pfc.CFG(3.0))
    table, y, null = torch.ones(5), torch.tensor([1.0, 2.0, 3.0]), torch.zeros(3)
    pair = {"cond": {"y": y, "table": table}, "uncond": {"y": null, "table": table}}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "there are no CUDA graphs")
        graph = sampler.capture(looked_up, shape=SHAPE, **pair)
        assert torch.equal(graph(seeds=range(3)), sampler(looked_up, shape=SHAPE, seeds=range(3), **pair))
        other = 0.5 * table
        pair = {"cond": {"y": y, "table": other}, "uncond": {"y": null, "table": other}}
        assert torch.equal(
            graph(seeds=range(3), **pair), sampler(looked_up, shape=SHAPE, seeds=range(3), **pair)
        )
    for wrong in ({"cond": pair["cond"]}, {**pair, "uncond": {"y": null, "table": table}}):
        with pytest.raises(ValueError, match=r"cond, uncond: .* the same tensor"):
            graph(seeds=range(3), **wrong)
    # A tensor with the batch dimension is each branch's own, were it the same in the example.
    same = capture(sampler, conditional, cond={"y": y}, uncond={"y": y})
    assert torch.equal(
        same(seeds=range(3), cond={"y": 2 * y}),
        sampler(conditional, shape=SHAPE, seeds=range(3), cond={"y": 2 * y}, uncond={"y": y}),
    )
