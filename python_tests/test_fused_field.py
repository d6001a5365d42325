"""FusedField: a field like any other; its weights, gradients, conditions and facts."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest
import torch
from small_modules import CfmMLP, CfmWrapper, PosteriorField, TimestepField
from torch import Tensor, nn

import pyflowcore as pfc
from pyflowcore.models.mlp import MLP

pytestmark = pytest.mark.usefixtures("one_thread")

F64 = torch.float64


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def small(width: int = 16, out: int = 2, conditions: int = 0) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(out + 1 + conditions, width),
        nn.SiLU(),
        nn.Linear(width, width),
        nn.Tanh(),
        nn.Linear(width, out),
    )


def joined(net: nn.Module):
    return lambda x, t, **cond: net(torch.cat([x, t[:, None], *cond.values()], -1))


def close(a: Tensor, b: Tensor, tolerance: float = 1e-12) -> bool:
    assert a.shape == b.shape and a.dtype == b.dtype
    return float((a - b).abs().max()) <= tolerance * (1 + float(b.abs().max()))


def test_it_is_a_field():
    net = small()
    field = pfc.fuse(net)
    assert isinstance(field, pfc.Field) and isinstance(field, pfc.FusedField)
    assert field.module is net and field.dim == 2 and field.precision == "float32"
    assert field.device() == torch.device("cpu")
    assert repr(field) == (
        "FusedField(Sequential: x 2, features 1, conditions 0 -> 16 -> 16 -> 2; prediction='velocity', path=Linear(), sign=+1, "
        "precision=float32)"
    )


@pytest.mark.parametrize("solver", ["euler", "dopri5", "unipc", "euler_maruyama"])
def test_a_sampler_takes_it_for_the_engine(solver):
    net = small()
    field = pfc.fuse(net)
    plan = pfc.plan(solver, 6)
    sampler = pfc.Sampler(plan)
    x0 = torch.randn(9, 2, dtype=F64)
    assert sampler.explain(field, x0=x0, seeds=range(9)).engine == "engine"
    reference = copy.deepcopy(net).double()
    got = sampler(field, x0=x0, seeds=range(9))
    assert close(got, sampler(joined(reference), x0=x0, seeds=range(9)), 1e-11)
    assert torch.equal(sampler(field, x0=x0[3:5], seeds=range(3, 5)), got[3:5])


def test_guidance_with_labels():
    net = MLP(2, hidden=16, depth=2, num_classes=3)
    nn.init.normal_(net.head.weight)
    field = pfc.fuse(net)
    sampler = pfc.Sampler(pfc.plan("heun", 5), guidance=pfc.CFG(2.0))
    given = {
        "x0": torch.randn(4, 2),
        "cond": {"y": torch.tensor([0, 1, 2, 0])},
        "uncond": {"y": torch.tensor(3)},
    }
    assert sampler.explain(field, **given).engine == "engine"
    assert close(sampler(field, **given), sampler(net, **given), 1e-4)


def test_facts():
    """Time map, sign and prediction are the field's, as of any other."""
    net = small()
    facts = {"prediction": "noise", "path": "vp", "sign": -1, "time": lambda t: 10 * (1 - t)}
    field, plain = pfc.fuse(net, **facts), pfc.Field(joined(copy.deepcopy(net).double()), **facts)
    x, t = torch.randn(5, 2, dtype=F64), torch.rand(5, dtype=F64)
    with torch.no_grad():
        assert close(field(x, t), plain(x, t))
    assert field.map_times(t).dtype == F64
    sampler = pfc.Sampler(pfc.plan("dpmpp_2m", grid=[0.1, 0.3, 0.6, 0.9], path="vp", prediction="noise"))
    with torch.no_grad():
        assert close(sampler(field, x0=x), sampler(plain, x0=x), 1e-11)
    rounded = pfc.fuse(net, time=lambda t: 10 * t, round_time=True)
    with torch.no_grad():
        assert torch.equal(
            rounded(x, torch.full((5,), 0.31, dtype=F64)), rounded(x, torch.full((5,), 0.28, dtype=F64))
        )


def test_an_edm_network_has_its_input_scaled():
    net = small()
    facts = {"prediction": pfc.EDM(0.5), "path": "ve"}
    field, plain = pfc.fuse(net, **facts), pfc.Field(joined(copy.deepcopy(net).double()), **facts)
    x, t = torch.randn(3, 2, dtype=F64), torch.tensor([0.2, 0.5, 0.9], dtype=F64)
    with torch.no_grad():
        assert close(field(x, t), plain(x, t))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_gradients_are_the_modules(dtype):
    """Also in another dtype than the module's: it runs in x's."""
    net = small(conditions=3)
    field = pfc.fuse(net, ("x", "t", "theta"))
    x, theta = (
        torch.randn(5, 2, dtype=dtype, requires_grad=True),
        torch.randn(5, 3, dtype=dtype, requires_grad=True),
    )
    t = torch.rand(5, dtype=dtype)
    out = field(x, t, theta=theta)
    with torch.no_grad():
        assert close(field(x, t, theta=theta), out.detach(), 1e-12 if dtype == F64 else 1e-5)
    found = torch.autograd.grad(out.square().sum(), [x, theta, *net.parameters()])
    other = copy.deepcopy(net).to(dtype)
    want = torch.autograd.grad(
        joined(other)(x, t, theta=theta).square().sum(), [x, theta, *other.parameters()]
    )
    for a, b in zip(found, want, strict=True):
        assert close(a.to(dtype), b, 1e-12 if dtype == F64 and a.dtype == F64 else 1e-5)


def test_frozen_modules_run_fused_under_grad_mode():
    net = small().requires_grad_(False)
    field = pfc.fuse(net)
    out = field(torch.randn(5, 2), torch.rand(5))
    assert not out.requires_grad
    leaf = torch.randn(5, 2, requires_grad=True)
    assert field(leaf, torch.rand(5)).requires_grad


def test_functional_transforms():
    net = small().double()
    field = pfc.fuse(net)
    x, t, v = torch.randn(5, 2, dtype=F64), torch.rand(5, dtype=F64), torch.randn(5, 2, dtype=F64)
    _value, tangent = torch.func.jvp(lambda x: field(x, t), (x,), (v,))
    jacobian = torch.func.vmap(torch.func.jacrev(lambda x, t: field(x[None], t[None])[0]))(x, t)
    assert close(tangent.detach(), torch.einsum("bij,bj->bi", jacobian, v).detach())
    with torch.no_grad(), torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, v)
        assert close(torch.autograd.forward_ad.unpack_dual(field(dual, t)).tangent, tangent.detach())


def test_gradients_through_a_trajectory():
    net = small().double()
    field = pfc.fuse(net)
    sampler, x0 = pfc.Sampler(pfc.plan("heun", 4)), torch.randn(3, 2, dtype=F64)
    ours = torch.autograd.grad(sampler(field, x0=x0, enable_grad=True).square().sum(), list(net.parameters()))
    want = torch.autograd.grad(
        sampler(joined(net), x0=x0, enable_grad=True).square().sum(), list(net.parameters())
    )
    assert all(close(a, b, 1e-10) for a, b in zip(ours, want, strict=True))
    with torch.no_grad():
        net[0].bias.add_(0.1)
    with pytest.raises(
        RuntimeError, match=r"the module's weights changed since they were packed.*refresh\(\)"
    ):
        sampler(field, x0=x0, enable_grad=True)
    field.refresh()
    sampler(field, x0=x0, enable_grad=True)


def test_refresh_after_training_steps():
    net = small()
    field = pfc.fuse(net)
    optimizer = torch.optim.Adam(net.parameters(), 0.05)
    x, t = torch.randn(5, 2, dtype=F64), torch.rand(5, dtype=F64)
    with torch.no_grad():
        before = field(x, t)
    for _ in range(3):
        assert not field.stale()
        field.check_fresh()
        optimizer.zero_grad()
        field(x, t).square().sum().backward()
        optimizer.step()
        assert field.stale()
        with torch.no_grad():
            assert torch.equal(field(x, t), before)  # nothing is noticed by itself
        field.refresh()
        with torch.no_grad():
            before = field(x, t)
            assert close(before, joined(copy.deepcopy(net).double())(x, t))
    assert field.params(torch.float32).data_ptr() == field.params(torch.float32).data_ptr()


def test_stale_sees_writes_through_data_and_buffers():
    net = PosteriorField().eval()
    field = pfc.fuse(net, ("x", "theta", "t"))
    net.last.weight.data.mul_(2)
    assert field.stale()
    field.refresh()
    assert not field.stale()
    net.mean.add_(1)
    assert field.stale()


def test_a_last_layer_that_begins_at_zero():
    """The network's shape does not depend on the values of the weights."""
    net = small()
    nn.init.zeros_(net[-1].weight)
    nn.init.zeros_(net[-1].bias)
    field = pfc.fuse(net)
    shapes = [layer.weight.shape for layer in field.network.layers]
    x, t = torch.randn(5, 2, dtype=F64), torch.rand(5, dtype=F64)
    with torch.no_grad():
        assert not field(x, t).any()
        nn.init.normal_(net[-1].weight)
        field.refresh()
        assert [layer.weight.shape for layer in field.network.layers] == shapes
        assert close(field(x, t), joined(copy.deepcopy(net).double())(x, t))


def test_refresh_refuses_another_module():
    net = small()
    field = pfc.fuse(net)
    net[0] = nn.Linear(3, 20)
    net[2] = nn.Linear(20, 16)
    with pytest.raises(
        pfc.CannotFuse, match=r"^0\.bias: its shape was \(16,\) when it was fused and is \(20,\) now"
    ):
        field.refresh()
    other = small()
    changed = pfc.fuse(other)
    other[1] = nn.LayerNorm(16, elementwise_affine=False)
    with pytest.raises(pfc.CannotFuse, match=r"^1 \(LayerNorm\)"):
        changed.refresh()


@pytest.mark.parametrize("change", [copy.deepcopy, lambda field: pickle.loads(pickle.dumps(field))])
def test_copies(change):
    net = TimestepField()
    field = pfc.fuse(net, ("x", "t", "y"), sign=-1)
    other = change(field)
    x, t, y = torch.randn(3, 3), torch.rand(3), torch.tensor([0, 1, 4])
    with torch.no_grad():
        assert torch.equal(other(x, t, y=y), field(x, t, y=y))
        other.module.net[0].bias.add_(1)
    assert other.stale() and not field.stale()
    other.refresh()
    assert repr(other) == repr(field)


def test_event_shapes():
    """The network works on flat vectors, the module on what it was written for."""

    class Image(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small(out=8)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            assert x.shape[1:] == (2, 2, 2)
            return self.net(torch.cat([x.flatten(1), t[:, None]], 1)).view_as(x)

    net = Image()
    field = pfc.fuse(net, shape=(2, 2, 2))
    x, t = torch.randn(5, 2, 2, 2, dtype=F64), torch.rand(5, dtype=F64)
    reference = copy.deepcopy(net).double()
    with torch.no_grad():
        assert close(field(x, t), reference(x, t))
        assert close(field(x.flatten(1), t), reference(x, t).flatten(1))
    assert close(field(x, t).detach(), reference(x, t).detach())
    samples = pfc.Sampler(pfc.plan("euler", 3))(field, shape=(2, 2, 2), seeds=range(4))
    assert samples.shape == (4, 2, 2, 2)


def test_conditions_in_their_shapes():
    field = pfc.fuse(small(conditions=1), ("x", "t", "c"))
    x, t, c = torch.randn(4, 2), torch.rand(4), torch.randn(4)
    with torch.no_grad():
        assert torch.equal(field(x, t, c=c), field(x, t, c=c[:, None]))
        assert torch.equal(field(x, t, c=c[:1, None]), field(x, t, c=c[:1].expand(4)))
        assert torch.equal(
            field(x, t, c=torch.ones(4, 1, dtype=torch.int64)), field(x, t, c=torch.ones(4, 1))
        )
    assert field.condition({"c": c}, 4, torch.float32).shape == (4, 1)
    assert pfc.fuse(small()).condition({}, 4, torch.float32) is None


def test_labels_by_embedding_and_one_hot():
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(6, 3)
            self.net = small(out=2, conditions=3 + 4)

        def forward(self, x: Tensor, t: Tensor, y: Tensor, k: Tensor) -> Tensor:
            hot = nn.functional.one_hot(k.long().squeeze(-1), num_classes=4).float()
            return self.net(torch.cat([x, hot, t[:, None], self.embed(y)], -1))

    net = Both()
    field = pfc.fuse(net, ("x", "t", "y", "k"))
    x, t = torch.randn(4, 2, dtype=F64), torch.rand(4, dtype=F64)
    y, k = torch.tensor([5, 0, 1, 2]), torch.tensor([3, 3, 0, 1])
    reference = copy.deepcopy(net).double()
    hot = nn.functional.one_hot(k, num_classes=4).double()
    with torch.no_grad():
        want = reference.net(torch.cat([x, hot, t[:, None], reference.embed(y)], -1))
        assert close(field(x, t, y=y, k=k), want)
        assert torch.equal(field(x, t, y=torch.tensor([[5], [0], [1], [2]]), k=k), field(x, t, y=y, k=k))


def test_a_module_that_takes_one_time_for_all():
    net = CfmMLP(2, time_varying=True)
    field = pfc.fuse(CfmWrapper(net), ("t", "x"))
    x, t = torch.randn(4, 2, dtype=F64), torch.rand(4, dtype=F64)
    with torch.no_grad():
        field(x, t)  # the fused network takes a time for each
    out = field(x, t[0])
    assert out.requires_grad and close(
        out.detach(), copy.deepcopy(net).double()(torch.cat([x, t[:1].expand(4, 1)], 1)).detach()
    )
    with pytest.raises(ValueError, match="t must be one time for the whole batch: the module takes a scalar"):
        field(x, t)


@pytest.mark.parametrize("batch", [0, 1, 2, 33])
def test_batches_and_dtypes(batch):
    field = pfc.fuse(small(width=33, out=3))
    x, t = torch.randn(batch, 3), torch.rand(batch)
    with torch.no_grad():
        for dtype in (torch.float32, F64, torch.bfloat16, torch.float16):
            out = field(x.to(dtype), t)
            assert out.dtype == dtype and out.shape == (batch, 3)
        if batch > 1:
            assert torch.equal(field(x, t)[:1], field(x[:1], t[:1]))


def test_float32_is_as_good_as_the_module():
    net = small(width=64, out=8)
    field = pfc.fuse(net)
    x, t = torch.randn(500, 8), torch.rand(500)
    with torch.no_grad():
        want = joined(copy.deepcopy(net).double())(x.double(), t.double())
        ours = float((field(x, t) - want).square().mean().sqrt())
        theirs = float((joined(net)(x, t) - want).square().mean().sqrt())
    assert ours <= 2 * theirs


def test_threads_share_it_while_it_is_refreshed():
    net = small(width=32)
    field = pfc.fuse(net)
    x, t = torch.randn(16, 2), torch.rand(16)
    with torch.no_grad():
        known = [field(x, t)]
        with torch.no_grad():
            net[0].bias.add_(1)
        new = pfc.fuse(net)
        known.append(new(x, t))
    strange: list[Tensor] = []

    def work() -> None:
        with torch.no_grad():
            for _ in range(40):
                out = field(x, t)
                if not any(torch.equal(out, one) for one in known):
                    strange.append(out)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    field.refresh()
    for thread in threads:
        thread.join()
    assert not strange


def test_what_torch_compile_wraps():
    net = small()
    field = pfc.fuse(torch.compile(net))
    assert field.module is net


def test_inference_mode_leaves_nothing_behind():
    with torch.inference_mode():
        net = small()
        field = pfc.fuse(net)
        x, t = torch.randn(3, 2), torch.rand(3)
        first = field(x, t)
    assert not field.params(torch.float32).is_inference()
    with torch.no_grad():
        assert torch.equal(field(x.clone(), t.clone()), first)
    field.refresh()
    assert not field.stale()


def test_a_compiled_call():
    field = pfc.fuse(small())
    x, t = torch.randn(3, 2), torch.rand(3)
    with torch.no_grad():
        assert torch.equal(torch.compile(field, backend="eager", fullgraph=True)(x, t), field(x, t))
