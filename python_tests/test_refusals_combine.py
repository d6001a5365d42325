"""What combine_ and combine refuse, by their Python faces and by the compiled operators themselves."""

from __future__ import annotations

import pytest
import torch

import pyflowcore as pfc
from reference.tables import R, table

ROW = table(b_new=0.5, store=0)
DRAWS = table(b_new=0.5, s={0: 1.0})
GUIDED = {"out": torch.zeros(4, 3), "guidance": torch.ones(1, 1)}


def arguments(**options):
    return {
        "x": torch.zeros(2, 3),
        "table": ROW,
        "row": 0,
        "out": torch.zeros(2, 3),
        "slots": torch.zeros(1, 2, 3),
    } | options


def broken(column):
    bad = ROW.clone()
    bad[0, R[column]] = float("nan")
    return bad


CASES = {
    "table shape": ({"table": torch.zeros(1, 55, dtype=torch.float64)}, ["table", "56"]),
    "table dtype": ({"table": ROW.float()}, ["table"]),
    "row": ({"row": 1}, ["row is 1", "1"]),
    "negative row": ({"row": -1}, ["row is -1"]),
    "not finite": ({"table": broken("q")}, ["row 0", "not finite"]),
    "integer state": ({"x": torch.zeros(2, 3).long()}, ["x", "state"]),
    "half state": ({"x": torch.zeros(2, 3).half()}, ["x", "state", "float32"]),
    "strided state": ({"x": torch.zeros(3, 2).t()}, ["x", "contiguous"]),
    "y shape": ({"y": torch.zeros(2, 4)}, ["y", "[2, 4]", "[2, 3]"]),
    "y dtype": ({"y": torch.zeros(2, 3).double()}, ["y", "state"]),
    "y_out shape": ({"y_out": torch.zeros(4, 3)}, ["y_out", "[4, 3]"]),
    "y_out strided": ({"y_out": torch.zeros(3, 2).t()}, ["y_out", "contiguous"]),
    "inp shape": ({"inp": torch.zeros(3, 3)}, ["inp", "[3, 3]", "[2, 3]"]),
    "inp tail": ({"inp": torch.zeros(2, 4)}, ["inp", "[2, 4]"]),
    "inp dtype": ({"inp": torch.zeros(2, 3).int()}, ["inp"]),
    "inp strided": ({"inp": torch.zeros(3, 4).t()[:, :].t()[:, :3].t()}, ["inp"]),
    "slots shape": ({"slots": torch.zeros(1, 3, 3)}, ["slots", "[1, 3, 3]"]),
    "slots dtype": ({"slots": torch.zeros(1, 2, 3).double()}, ["slots"]),
    "slots many": ({"slots": torch.zeros(17, 2, 3)}, ["slots", "16"]),
    "out shape": ({"out": torch.zeros(2, 4)}, ["out", "[2, 4]"]),
    "out batch": ({"out": torch.zeros(3, 3)}, ["out", "[3, 3]"]),
    "out dtype": ({"out": torch.zeros(2, 3).int()}, ["out"]),
    "guidance dtype": (GUIDED | {"guidance": torch.ones(1, 1).double()}, ["guidance"]),
    "seeds": ({"table": DRAWS, "seeds": torch.tensor([1])}, ["seeds", "[2]"]),
    "seeds dtype": ({"table": DRAWS, "seeds": torch.zeros(2)}, ["seeds", "int64"]),
}  # fmt: skip
# What depends on the row alone is left to the kernel.
BY_KERNEL = {
    "no out": ({"out": None}, ["out", "None"]),
    "out unwanted": ({"table": table(evaluates=0.0)}, ["out"]),
    "no slots": ({"slots": None}, ["slots", "slot 0"]),
    "slot missing": ({"table": table(b={1: 1.0})}, ["slots", "slot 1"]),
    "slot read and written": ({"table": table(b={0: 1.0}, store=0)}, ["slots", "slot 0"]),
    "no guidance": ({"out": torch.zeros(4, 3)}, ["guidance", "None"]),
    "guidance shape": (GUIDED | {"guidance": torch.ones(2, 1)}, ["guidance", "[2, 1]"]),
    "guidance batch": (GUIDED | {"guidance": torch.ones(1, 3)}, ["guidance", "[1, 3]"]),
    "no seeds": ({"table": DRAWS}, ["seeds", "None"]),
    "out2 alone": ({"out": None, "out2": torch.zeros(2, 3)}, ["out2"]),
    "branches of two dtypes": ({"out2": torch.zeros(2, 3).half(), "guidance": torch.ones(1, 1)}, ["out", "dtype"]),
    "nine branches": (GUIDED | {"out": torch.zeros(18, 3)}, ["out", "8"]),
}  # fmt: skip


def kernel(x, table, row, **options):
    names = ("y", "y_out", "inp", "slots", "out", "out2", "guidance", "seeds")
    torch.ops.pyflowcore.combine_(x, *(options.get(name) for name in names), table, row)


def refused(call, options, words, kinds):
    given = arguments(**options)
    before = given["x"].clone()
    with pytest.raises(kinds) as caught:
        call(given.pop("x"), given.pop("table"), given.pop("row"), **given)
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert torch.equal(before, torch.zeros_like(before))


@pytest.mark.parametrize("case", CASES)
def test_by_the_python_face(case):
    refused(pfc.ops.combine_, *CASES[case], (ValueError, TypeError))


@pytest.mark.parametrize("case", [*CASES, *BY_KERNEL])
def test_by_the_kernel(case):
    """Memory is safe whoever calls; the words are the kernel's own, but the argument is named."""
    options, words = (CASES | BY_KERNEL)[case]
    refused(kernel, options, words[:1], RuntimeError)


@pytest.mark.parametrize("case", BY_KERNEL)
def test_rows_and_arguments_that_disagree(case):
    refused(pfc.ops.combine_, *BY_KERNEL[case], (ValueError, TypeError, RuntimeError))


@pytest.mark.parametrize("name", ["y", "out", "guidance", "seeds", "inp", "slots", "y_out"])
def test_another_device(name):
    shapes = {"guidance": (1, 1), "seeds": (2,), "slots": (1, 2, 3)}
    dtype = torch.int64 if name == "seeds" else torch.float32
    other = torch.zeros(*shapes.get(name, (2, 3)), device="meta", dtype=dtype)
    with pytest.raises(ValueError, match=rf"{name} is on meta"):
        pfc.ops.combine_(torch.zeros(2, 3), DRAWS, 0, **{"out": torch.zeros(2, 3), name: other})


def test_the_twin_refuses_alike():
    x, out = torch.zeros(2, 3), torch.zeros(2, 3)
    for options, words in (
        ({"outs": [out[:, :2]]}, "out"), ({"outs": [out], "y": torch.zeros(3)}, "y"),
        ({"outs": [out], "slots": [torch.zeros(2, 4)]}, r"slots\[0\]"), ({"outs": [out.int()]}, "out"),
    ):  # fmt: skip
        with pytest.raises((ValueError, TypeError), match=words):
            pfc.ops.combine(x, table(b_new=1.0), 0, **options)
    with pytest.raises(RuntimeError, match="slot 1"):
        pfc.ops.combine(x, table(b={1: 1.0}), 0, outs=[out], slots=[out])


def parts(*bounds, dtype=torch.float32):
    """[B, 3] views of one memory, by their first and last element."""
    memory = torch.zeros(40, dtype=dtype)
    return [memory[first:last].view(-1, 3) for first, last in bounds]


def overlapping():
    x, y_out = parts((0, 6), (3, 9))
    yield "x and y_out", {"x": x, "y_out": y_out}
    yield "x and y_out itself", {"x": x, "y_out": x}
    x, inp = parts((0, 6), (0, 12))
    yield "x and inp", {"x": x, "inp": inp}
    x, inp = parts((6, 12), (0, 12))
    yield "x and inp, later", {"x": x, "inp": inp}
    x, slots = parts((6, 12), (0, 12))
    yield "x and slots", {"x": x, "slots": slots.view(2, 2, 3)}
    y_out, inp = parts((5, 11), (0, 6))
    yield "y_out and inp", {"y_out": y_out, "inp": inp}
    y_out, slots = parts((0, 6), (0, 6))
    yield "y_out and slots", {"y_out": y_out, "slots": slots.view(1, 2, 3)}
    inp, slots = parts((0, 12), (11, 17))
    yield "inp and slots", {"inp": inp, "slots": slots.view(1, 2, 3)}
    memory = torch.zeros(6)
    yield (
        "x and inp of another dtype",
        {"x": memory.view(2, 3), "inp": memory.view(torch.bfloat16)[:6].view(2, 3)},
    )
    for name in ("y", "out", "out2"):
        x, value = parts((0, 6), (1, 7))
        more = {"out": torch.zeros(2, 3), "guidance": torch.ones(1, 1)} if name == "out2" else {}
        yield f"{name} and x, shifted", {"x": x, name: value} | more
        inp, value = parts((0, 6), (3, 9))
        yield f"{name} and inp, shifted", {"inp": inp, name: value} | more
    halves = torch.zeros(12, dtype=torch.bfloat16)
    yield (
        "out and x of another dtype",
        {"x": halves.view(torch.float32).view(2, 3), "out": halves[:6].view(2, 3)},
    )
    x, guidance = parts((0, 6), (3, 6))
    yield "guidance and x", {"x": x, "guidance": guidance[:, :1], "out": torch.zeros(4, 3)}
    record = torch.zeros(1, 56, dtype=torch.float64)
    record.copy_(ROW)
    x = record.view(-1)[50:56].view(2, 3)
    more = {"out": torch.zeros(2, 3).double(), "slots": torch.zeros(1, 2, 3).double()}
    yield "table and x", {"x": x, "table": record} | more
    seeds = torch.zeros(6, dtype=torch.int64)
    x = seeds.view(torch.float64).view(2, 3)
    yield "seeds and x", {"x": x, "seeds": seeds[:2], **more}


OVERLAPS = dict(overlapping())


@pytest.mark.parametrize("case", OVERLAPS)
def test_buffers_that_overlap(case):
    """Written into one another, or read shifted against what is written: the answer would depend on the order of elements."""
    given = arguments(**OVERLAPS[case])
    first, second = case.split(",")[0].replace(" itself", "").split(" of ")[0].split(" and ")
    with pytest.raises(ValueError, match="overlap in memory by") as caught:
        pfc.ops.combine_(given.pop("x"), given.pop("table"), given.pop("row"), **given)
    assert {first, second} <= set(str(caught.value).split()), str(caught.value)


def test_buffers_that_may_be_one():
    """Adjacent ones; a point updated in place; an output that is the input, or a block of it; an expanded output."""
    x, inp = parts((0, 6), (6, 12))
    pfc.ops.combine_(x, table(b_new=1.0), 0, out=torch.ones(2, 3), inp=inp)
    assert torch.equal(x, torch.ones(2, 3))
    assert torch.equal(inp, torch.ones(2, 3))
    y = torch.full((2, 3), 3.0)
    pfc.ops.combine_(x, table(p=1.0, q=0.0, b_new=1.0, e_new=1.0), 0, out=torch.ones(2, 3), y=y, y_out=y)
    assert torch.equal(x, torch.full((2, 3), 4.0))
    assert torch.equal(y, torch.full((2, 3), 7.0))
    inp = torch.tensor([[1.0], [1.0], [2.0], [2.0]]).repeat(1, 3)
    pfc.ops.combine_(x, table(b_new=1.0), 0, out=inp[2:], inp=inp)
    assert torch.equal(inp, torch.full((4, 3), 6.0))
    pfc.ops.combine_(x, table(b_new=1.0), 0, out=x[:1, :1].expand(2, 3))
    assert torch.equal(x, torch.full((2, 3), 12.0))
