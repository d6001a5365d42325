"""The operators network and trajectory: against the loop of combine over plain PyTorch, shapes, refusals, opcheck."""

from __future__ import annotations

import contextlib
import math

import numpy as np
import pytest
import torch

import pyflowcore as pfc
from pyflowcore.network import forward
from pyflowcore.ops import _plain_engine
from reference.networks import small_network

F64 = torch.float64
R = pfc._core.record


def tables(net, dtype=F64):
    return net.pack(dtype), net.layer_table(), net.feature_table()


def randn(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def by_hand(net, x, t, cond):
    """The network in NumPy, from its layers and not from what is packed."""
    features = [f.frequency * t + f.phase for f in net.features]
    features = [{"linear": lambda a: a, "sine": np.sin, "cosine": np.cos}[f.kind](a)
                for f, a in zip(net.features, features, strict=True)]  # fmt: skip
    h = np.concatenate([np.tile(features, (len(x), 1)), *([] if cond is None else [cond]), x], axis=1)
    for layer in net.layers:
        z = h @ layer.weight.numpy().T + layer.bias.numpy()
        z = z / (1 + np.exp(-z)) if layer.activation == "silu" else z
        h = z + h if layer.residual >= 0 else z
    return h


@pytest.mark.parametrize("conditions", [0, 4])
@pytest.mark.parametrize("batch", [1, 5])
def test_network_against_numpy(batch, conditions):
    net = small_network(3, conditions, residual=True, depth=3)
    x, cond = randn(batch, 3), randn(batch, conditions, seed=1) if conditions else None
    expected = by_hand(net, x.numpy(), 0.3, None if cond is None else cond.numpy())
    for t in (torch.tensor(0.3, dtype=F64), torch.full((batch,), 0.3, dtype=F64)):
        found = pfc.ops.network(x, t, cond, *tables(net))
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-13, atol=1e-13)


def test_a_state_of_any_shape_is_its_elements_in_order():
    net = small_network(6)
    x = randn(4, 3, 2).transpose(1, 2)
    t = torch.tensor([0.0, 0.2, 0.5, 1.0])
    found = pfc.ops.network(x, t, None, *tables(net))
    assert found.shape == (4, 2, 3)
    torch.testing.assert_close(found.flatten(1), pfc.ops.network(x.flatten(1), t, None, *tables(net)))


def looped(net, plan, x0, branches, cond=None, guidance=None, seeds=None, keep=(), dtype=F64):
    """Row by row through combine; returns the state, the kept states and the points."""
    packed = tables(net, dtype)
    x, y, scale = x0, None, 1.0
    slots, states, points = [x0] * max(plan.slots, 1), [], []
    for row, facts in enumerate(plan.facts):
        outs, n = [], branches[row]
        if n:
            point = x if y is None else y
            points.append(point)
            t = torch.full((n * len(x0),), plan.row_times[row], dtype=F64)
            c = None if cond is None else cond[: n * len(x0)]
            outs = [forward(torch.cat([scale * point] * n), t, c, *packed)]
        x, y, d = pfc.ops.combine(
            x, plan.table, row, outs=outs, y=y, slots=slots, guidance=guidance, seeds=seeds
        )
        slots = [d if k == facts.store else slot for k, slot in enumerate(slots)]
        y, scale = None if facts.point_is_state else y, facts.in_scale
        if row in keep:
            states.append(x)
    return x, states, points


def branches_of(plan, count=1):
    return torch.tensor([count if row.evaluates else 0 for row in plan.facts])


@pytest.mark.parametrize(
    "solver", ["euler", "heun", "rk4", "ab3", "dpmpp_2m", "unipc", "euler_maruyama", "stochastic_heun"]
)
def test_trajectory_is_the_loop_over_rows(solver):
    net, plan = small_network(3), pfc.plan(solver, 4)
    x0, seeds = randn(2, 3), torch.tensor([5, 6])
    counts, keep = branches_of(plan), [0, len(plan.facts) - 1]
    found, states, points = pfc.ops.trajectory(
        x0, plan.row_times, plan.table, counts, *tables(net), seeds=seeds, keep_rows=torch.tensor(keep), keep_points=True
    )  # fmt: skip
    expected, kept, at = looped(net, plan, x0, counts.tolist(), seeds=seeds, keep=keep)
    for one, other in ((found, expected), (states, torch.stack(kept)), (points, torch.stack(at))):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-13)
    assert points.shape == (plan.nfe, 2, 3)
    assert torch.equal(states[-1], found)


@pytest.mark.parametrize(("several", "width"), [(1, 1), (1, 2), (2, 1), (3, 2)])
def test_guided_trajectory(several, width):
    """Rows with all branches, with the first alone, and with none (q = 0)."""
    net, plan = small_network(3, 2), pfc.plan("heun", 3)
    x0, cond = randn(2, 3), randn(2 * (several + 1), 2, seed=1)
    guidance = randn(len(plan.facts), several, width, seed=2)
    guidance = guidance[:, 0] if several == 1 else guidance
    counts = branches_of(plan, several + 1)
    counts[1] = 1
    found, _, points = pfc.ops.trajectory(
        x0, plan.row_times, plan.table, counts, *tables(net), cond=cond, guidance=guidance, keep_points=True
    )  # fmt: skip
    expected, _, at = looped(net, plan, x0, counts.tolist(), cond, guidance)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(points, torch.stack(at), rtol=1e-13, atol=1e-13)


def test_a_row_that_predicts_from_its_point_alone_evaluates_nothing():
    net, plan = small_network(2), pfc.plan("euler", 2)
    table, counts = plan.table.clone(), branches_of(plan)
    counts[0], q = 0, 5
    table[0, q] = 0.0
    x0 = randn(3, 2)
    found, states, points = pfc.ops.trajectory(
        x0, plan.row_times, table, counts, *tables(net), keep_rows=torch.tensor([0]), keep_points=True
    )
    assert torch.equal(states[0], x0)
    assert points.shape[0] == 1
    step = 0.5 * forward(x0, torch.tensor(0.5), None, *tables(net))
    torch.testing.assert_close(found, x0 + step, rtol=1e-13, atol=1e-13)


def test_nothing_is_written_and_nothing_is_kept_unasked():
    net, plan = small_network(3), pfc.plan("heun", 2)
    x0 = randn(3, 2).T  # not contiguous
    before = x0.clone()
    found, states, points = pfc.ops.trajectory(
        x0, plan.row_times, plan.table, branches_of(plan), *tables(net)
    )
    assert torch.equal(x0, before)
    assert found.is_contiguous()
    assert states.shape == points.shape == (0, 2, 3)


@pytest.mark.parametrize("batch", [0, 1])
def test_empty_and_single_batches(batch):
    net, plan = small_network(3, 2), pfc.plan("euler", 2)
    cond = randn(2 * batch, 2)
    found, states, points = pfc.ops.trajectory(
        randn(batch, 3), plan.row_times, plan.table, branches_of(plan, 2), *tables(net), cond=cond,
        guidance=torch.ones(2, 1, dtype=F64), keep_rows=torch.tensor([0, 1]), keep_points=True,
    )  # fmt: skip
    assert found.shape == (batch, 3)
    assert states.shape == points.shape == (2, batch, 3)
    assert math.isfinite(float(found.sum()))


def arguments(**changes):
    net, plan = small_network(3, 2), pfc.plan("euler_maruyama", 2)
    params, layers, features = tables(net)
    given = {
        "x0": randn(2, 3), "times": plan.row_times, "table": plan.table, "branches": branches_of(plan, 2),
        "params": params, "layers": layers, "features": features, "cond": randn(4, 2),
        "guidance": torch.ones(len(plan.facts), 1, dtype=F64), "seeds": torch.tensor([1, 2]),
    }  # fmt: skip
    for name, change in changes.items():
        given[name] = change(given[name])
    return given


def with_entry(row, column, value):
    def change(tensor):
        tensor = tensor.clone()
        tensor[row, column] = value
        return tensor

    return change


@pytest.mark.parametrize(
    ("name", "change", "error", "said"),
    [
        ("x0", lambda x: x[0, 0], ValueError, "x0 must have a batch dimension"),
        ("x0", lambda x: x.bfloat16(), TypeError, "x0 must be float32 or float64, got torch.bfloat16"),
        ("x0", lambda x: x[:, :2], ValueError, "layer 0 takes 8 inputs, 7 come"),
        ("params", lambda p: p.float(), TypeError, "params is torch.float32, x0 is torch.float64"),
        ("params", lambda p: p[:-1], ValueError, r"params has \d+ elements, layer 2 reads beyond them"),
        ("params", lambda p: p[None], ValueError, "params must be flat"),
        ("cond", lambda c: c[0], ValueError, r"cond must be \[B, C\]"),
        ("cond", lambda c: c[:3], ValueError, "cond has 3 rows, no multiple of the batch 2"),
        ("cond", lambda c: c[:2], ValueError, "cond stacks 1 branches, a row takes 2"),
        ("layers", lambda t: t.float(), ValueError, r"layers must be float64 \[layers, 9\] on the CPU"),
        ("layers", lambda t: t[:0], ValueError, "layers has 0 rows, allowed are 1 to 34"),
        ("layers", with_entry(1, 2, 99), ValueError, "layer 1 has activation 99"),
        ("layers", with_entry(1, 4, 2), ValueError, "layer 1 cannot add the input of layer 2"),
        ("layers", with_entry(2, 4, 2), ValueError, "layer 2 cannot add the input of layer 2"),
        ("layers", with_entry(2, 1, 4), ValueError, "the last layer has 4 outputs, x has 3"),
        ("features", lambda t: t[:, :2], ValueError, r"features must be float64 \[features, 3\]"),
        ("features", with_entry(0, 0, 7), ValueError, "features: a kind is none of 0 to 2"),
        ("table", lambda t: t[:, :9], ValueError, "table must be float64"),
        ("table", with_entry(0, 6, math.nan), ValueError, "table has a coefficient that is not finite"),
        ("table", with_entry(0, R["b"] + 3, 1.0), ValueError, "row 0 reads slot 3, which no row before it writes"),
        ("table", with_entry(1, R["e"], 1.0), ValueError, "row 1 reads slot 0, which no row before it writes"),
        ("table", with_entry(0, R["store"], 99), ValueError, "row 0 stores into slot 99, allowed are -1 to"),
        ("table", with_entry(0, R["draw"], -2), ValueError, "row 0 names draw -2, allowed are 0 to"),
        ("params", lambda p: p[:0], ValueError, "params has 0 elements, layer 0 reads beyond them"),
        ("layers", with_entry(0, 7, -1.0), ValueError, "reads beyond them"),
        ("layers", with_entry(0, 7, 1e18), ValueError, "reads beyond them"),
        ("layers", with_entry(1, 8, 1e300), ValueError, "reads beyond them"),
        ("layers", with_entry(0, 0, 2**53), ValueError, r"layer 0 takes 9.0072e\+15 inputs, 8 come"),
        ("layers", with_entry(0, 1, 513), ValueError, "layer 0 has 513 outputs, allowed are 1 to 512"),
        ("layers", with_entry(0, 1, math.nan), ValueError, "layers has an entry that is not finite"),
        ("layers", with_entry(1, 5, -1.0), ValueError, "layer 1 has activation"),
        ("layers", with_entry(1, 4, math.nan), ValueError, "layers has an entry that is not finite"),
        ("features", with_entry(0, 0, math.nan), ValueError, "features has an entry that is not finite"),
        ("features", with_entry(0, 1, math.inf), ValueError, "features has an entry that is not finite"),
        ("features", lambda t: t.repeat(999, 1), ValueError, "features has 2997 rows, at most"),
        ("times", lambda t: t.float(), ValueError, r"times must be float64 \[\d\] on the CPU"),
        ("times", lambda t: t[1:], ValueError, r"times must be float64"),
        ("branches", lambda b: b.int(), ValueError, "branches must be int64"),
        ("branches", lambda b: b + 8, ValueError, "branches must be from 0 to 8"),
        ("branches", lambda b: b + 1, ValueError, "cond stacks 2 branches, a row takes 3"),
        ("branches", lambda b: b * 0, ValueError, "a row evaluates the network and needs a branch"),
        ("table", with_entry(slice(None), 1, 0.0), ValueError, "a row that evaluates nothing has branches"),
        ("guidance", lambda g: None, ValueError, "guidance: 2 branches need a scale"),
        ("guidance", lambda g: g[:1], ValueError, "guidance must be"),
        ("guidance", lambda g: g[:, None].expand(-1, 2, -1), ValueError, "guidance has 2 scales a row, 2 branches need 1"),
        ("guidance", lambda g: g.float(), TypeError, "guidance is torch.float32"),
        ("seeds", lambda s: None, ValueError, "seeds: the plan draws noise"),
        ("seeds", lambda s: s[:1], ValueError, r"seeds must be int64 \[2\]"),
    ],
)  # fmt: skip
def test_refusals(name, change, error, said):
    with pytest.raises(error, match=said):
        pfc.ops.trajectory(**arguments(**{name: change}))


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (with_entry(0, R["b"] + 3, 1.0), "row 0 reads slot 3, which no row before it writes"),
        (with_entry(0, R["store"], 99), "row 0 stores into slot 99"),
        (with_entry(0, R["store"], 0), None),
    ],
)
def test_plain_pytorch_refuses_the_same_tables(table, said):
    """Without the checks of pfc.ops, as a dispatched operator."""
    g = arguments(table=table)
    given = [g[name] for name in ("x0", "times", "cond", "params", "layers", "features", "table", "branches", "guidance",
                                  "seeds")]  # fmt: skip
    for run in (_plain_engine.trajectory, torch.ops.pyflowcore.trajectory):
        with (
            contextlib.nullcontext()
            if said is None
            else pytest.raises((ValueError, RuntimeError), match=said)
        ):
            run(*given, None)


@pytest.mark.parametrize(
    ("keep", "said"),
    [([1, 0], "must ascend"), ([0, 0], "must ascend"), ([9], "must ascend"), ([0.0], "must be int64")],
)
def test_rows_to_keep_ascend(keep, said):
    with pytest.raises(ValueError, match=said):
        pfc.ops.trajectory(**arguments(), keep_rows=torch.tensor(keep))


def test_refusals_of_network():
    net = small_network(3, 2)
    x, t, cond = randn(2, 3), torch.tensor(0.5), randn(2, 2)
    for error, said, call in [
        (TypeError, "t must be floating point", (x, torch.tensor(1), cond)),
        (ValueError, r"t must be \[2\] or one time", (x, torch.zeros(3), cond)),
        (ValueError, "cond has 1 rows, x has 2 samples", (x, t, cond[:1])),
    ]:
        with pytest.raises(error, match=said):
            pfc.ops.network(*call, *tables(net))
    with pytest.raises(ValueError, match="precision is 3, allowed are 0"):
        pfc.ops.network(x, t, cond, *tables(net), precision=3)
    with pytest.raises(TypeError, match="precision tf32 is for float32 states"):
        pfc.ops.network(x, t, cond, *tables(net), precision=1)
    with pytest.raises(RuntimeError, match="precision"):
        pfc.ops.network(x.float(), t, cond.float(), *tables(net, torch.float32), precision=1)


@pytest.mark.parametrize("conditions", [0, 2])
def test_opcheck_network(conditions):
    net = small_network(3, conditions)
    cond = randn(2, conditions) if conditions else None
    for t in (torch.tensor(0.5), torch.tensor([0.1, 0.2])):
        torch.library.opcheck(torch.ops.pyflowcore.network.default, (randn(2, 3), t, cond, *tables(net)))


@pytest.mark.parametrize("keep_points", [False, True])
def test_opcheck_trajectory(keep_points):
    g = arguments()
    given = [g[name] for name in ("x0", "times", "cond", "params", "layers", "features", "table", "branches", "guidance",
                                  "seeds")]  # fmt: skip
    torch.library.opcheck(
        torch.ops.pyflowcore.trajectory.default, (*given, torch.tensor([0, 1]), keep_points)
    )
