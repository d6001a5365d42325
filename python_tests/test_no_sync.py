"""Nothing in a trajectory asks a tensor for its value, and nothing but the state, the next input and the slots is allocated.

On the CPU the first is shown by a tensor that refuses to be looked at, on a GPU by CUDA's own sync debug mode
(``test_cuda_capture.py``). The second counts what torch's dispatcher sees.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import pyflowcore as pfc
from reference import catalogue
from reference.torch_fields import drift

CASES = {name: (name, {}) for name in pfc.solvers()}
CASES["edm_heun-churn"] = catalogue.STOCHASTIC["edm_heun-churn"]
SEEDS = [3, 4, 5]
SHAPE = (4, 16)

LOOKS = {
    torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.cpu, torch.Tensor.numpy, torch.Tensor.__bool__,
    torch.Tensor.__float__, torch.Tensor.__int__, torch.Tensor.__index__, torch.Tensor.__array__, torch.Tensor.nonzero,
    torch.Tensor.__contains__, torch.Tensor.is_nonzero, torch.Tensor.__complex__, torch.nonzero, torch.is_nonzero,
    torch.equal, torch.allclose, torch.masked_select, torch.Tensor.masked_select,
}  # fmt: skip


class Unseen(torch.Tensor):
    """A tensor whose values the host may not see; what is made of it is of its kind."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # By name: a tensor's own device is no move.
        given = [a for a in (*args, *(kwargs or {}).values()) if isinstance(a, str)]
        to_host = function is torch.Tensor.to and "cpu" in given
        if function in LOOKS or to_host:
            raise AssertionError(f"{getattr(function, '__name__', function)} looks at a tensor's values")
        return super().__torch_function__(function, types, args, kwargs or {})


def unseen(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.as_subclass(Unseen)


@pytest.mark.parametrize(
    "look",
    [
        lambda x: x[0].item(), lambda x: bool(x[0] > 0), lambda x: x.tolist(), lambda x: x.cpu(), lambda x: x.numpy(),
        lambda x: 1 if x.sum() else 2, lambda x: float(x[0]), lambda x: torch.equal(x, x), lambda x: x.to("cpu"),
        lambda x: x[x > 0.5].sum().item(), lambda x: 3.0 in x, lambda x: (2 * x + 1).sin().sum().item(),
    ],
)  # fmt: skip
def test_the_tensor_refuses(look):
    """The test itself can fail, for what is made of the tensor as well."""
    with pytest.raises(AssertionError, match="looks at a tensor's values"):
        look(unseen(torch.ones(3)))


def net(x, t, y=None):
    assert type(x) is Unseen
    y = 0.0 if y is None else y
    return drift(x.float(), t).to(x.dtype) + y


def arguments(kind):
    known = unseen(pfc.randn(SEEDS, SHAPE, stream=2))
    conditions = {"cond": {"y": unseen(torch.ones(3, 1, 1))}, "uncond": {"y": unseen(torch.zeros(3, 1, 1))}}
    return {
        "plain": {},
        "guided": conditions,
        "guided by calls": conditions,
        "guided per sample": {**conditions, "guidance_scale": torch.tensor([1.5, 2.0, 3.0])},
        "given noise": {"noise": lambda draw: unseen(torch.full((3, *SHAPE), 0.1 * draw))},
        "generator": {"noise": torch.Generator().manual_seed(1)},
        "hook": {"hook": lambda step, t, x: x.mul_(0.9)},
        "hook that returns": {"hook": lambda step, t, x: x.sin()},
        "mask": {"mask": torch.ones(1, 1, 16) > 0, "known": known},
        "soft mask, fresh": {"mask": torch.full((1, 1, 16), 0.3), "known": known, "known_noise": "fresh"},
        "callback": {"callback": lambda *a: None, "return_trajectory": True},
    }[kind]


KINDS = [
    "plain", "guided", "guided by calls", "guided per sample", "given noise", "generator", "hook", "hook that returns",
    "mask", "soft mask, fresh", "callback",
]  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_trajectory_never_looks(kind, name):
    solver, options = CASES[name]
    plan = pfc.plan(solver, 4, **options)
    guidance = pfc.CFG(2.0, (0.2, 0.8)) if "guided" in kind else None
    sampler = pfc.Sampler(plan, guidance, branches="calls" if "calls" in kind else "batch")
    more = arguments(kind)
    seeds = {} if "noise" in more else {"seeds": SEEDS}
    for dtype in (None, torch.bfloat16):
        for grad in (False, True) if dtype is None else (False,):
            found = sampler(
                pfc.Field(net, dtype=dtype),
                x0=unseen(pfc.randn(SEEDS, SHAPE)),
                enable_grad=grad,
                **seeds,
                **more,
            )
            if isinstance(found, pfc.Trajectory):
                found = found.states
            assert type(found) is Unseen


# --------------------------------------------------------------------------------------------------------- memory
class Allocations(TorchDispatchMode):
    """Counts tensors of at least ``least`` elements whose memory no argument had; tables, in float64 on the host, apart."""

    def __init__(self, least: int) -> None:
        super().__init__()
        self.least, self.elements = least, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {
            t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)
        }
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if not isinstance(tensor, torch.Tensor) or tensor.dtype == torch.float64:
                continue
            if tensor.untyped_storage()._cdata not in before:
                elements = tensor.untyped_storage().nbytes() // tensor.element_size()
                self.elements += elements if elements >= self.least else 0
        return out


# Larger than anything that has one number a row.
WIDE = (4, 512)
OUT = 0.1 * pfc.randn(SEEDS, WIDE)
SIZE = OUT.numel()


def allocated(plan, **more):
    """In units of the state."""
    mode = Allocations(SIZE)
    x0 = pfc.randn(SEEDS, WIDE)
    both = torch.cat([OUT, OUT])
    outs = {3: OUT, 6: both}
    guidance = pfc.CFG(2.0, (0.3, 0.7)) if "cond" in more else None
    sampler = pfc.Sampler(plan, guidance)
    with mode:
        sampler(lambda x, t, **cond: outs[len(x)], x0=x0, **more)
    return mode.elements / SIZE


def test_the_count_counts():
    with Allocations(4) as mode:
        x = torch.zeros(4)
        x.add_(1).view(2, 2).t()
        torch.zeros(3)
        (x + x)[:2].clone()
    assert mode.elements == 8


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", ["plain", "guided", "generator", "hook", "mask", "soft mask, fresh"])
def test_memory_does_not_grow_with_the_steps(kind, name):
    solver, options = CASES[name]
    few, many = pfc.plan(solver, 8, **options), pfc.plan(solver, 40, **options)
    more = dict(arguments(kind))
    seeds = {} if "noise" in more else {"seeds": SEEDS}
    if "mask" in more:
        more |= {"mask": more["mask"][..., :1], "known": torch.zeros(3, *WIDE)}
    if "cond" in more:
        more = {key: {"y": torch.zeros(3, 1, 1)} for key in ("cond", "uncond")}
    found = allocated(many, **seeds, **more)
    assert found == allocated(few, **seeds, **more)
    if kind == "plain":
        # The state, the next input where it is not the state, and the slots.
        beside = any(not row.point_is_state for row in many.rows)
        assert found == 1 + beside + many.slots
    elif kind == "hook":
        assert found == allocated(many, **seeds)
    elif kind == "generator":
        draws = {"edm_heun-churn": 2}.get(name, 1 if many.draws else 0)
        assert found == allocated(many, seeds=SEEDS) + draws
    elif "mask" in kind:
        # The known region at its level, and the start's noise if that is kept.
        assert found == allocated(many, **seeds) + (1 if "fresh" in kind else 2)
