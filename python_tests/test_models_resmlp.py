"""models.ResMLP: its arithmetic, zero starts, conditions, fusing, refusals."""

import copy
import json

import pytest
import torch

import pyflowcore as pfc
from pyflowcore import models
from pyflowcore.models.embeddings import timestep_embedding
from pyflowcore.training import flow_matching_loss


@pytest.fixture(autouse=True)
def one_thread():
    """Work this small is done sooner by one thread, on a machine that is busy above all."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small(**changes):
    config = {"dim": 3, "hidden": 12, "depth": 2, "num_classes": 4, "cond_dim": 2, "time_dim": 8}
    return models.ResMLP(**(config | changes))


def trained(model, seed=0):
    """The model with every parameter random, as training would leave it: none of the zero starts is left."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def inputs(batch=5, dim=3, cond=2, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    x, c = (torch.randn(batch, n, generator=generator, dtype=dtype) for n in (dim, cond))
    return x, torch.rand(batch, generator=generator, dtype=dtype), torch.arange(batch) % 4, c


both = pytest.mark.parametrize("modulated", [True, False])


@both
@pytest.mark.parametrize("batch", [0, 1, 5])
@pytest.mark.parametrize(("dim", "hidden", "ratio"), [(1, 7, 1.0), (3, 12, 0.5), (6, 9, 3.0)])
def test_shapes_and_zero_start(modulated, batch, dim, hidden, ratio):
    model = small(dim=dim, hidden=hidden, ratio=ratio, modulated=modulated)
    x, t, y, c = inputs(batch, dim)
    assert model.shape == (dim,)
    assert torch.equal(model(x, t, y, c), torch.zeros_like(x))
    assert trained(model)(x, t, y, c).shape == x.shape


def silu(v):
    return v / (1 + torch.exp(-v))


def linear(layer, v):
    return v @ layer.weight.T + layer.bias


def normed(v):
    centred = v - v.mean(dim=-1, keepdim=True)
    return centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()


def test_modulated_is_its_formula():
    model = trained(small()).double()
    x, t, y, c = inputs(dtype=torch.float64)
    first, _, second = model.embed_time
    steer = linear(second, silu(linear(first, timestep_embedding(t, 8).double())))
    steer = silu(steer + model.embed_class.weight[y] + linear(model.embed_cond, c))
    h = linear(model.stem, x)
    for block in model.blocks:
        shift, scale, gate = linear(block.modulation, steer).split(12, dim=-1)
        h = h + gate * linear(block.linear2, silu(linear(block.linear1, normed(h) * (1 + scale) + shift)))
    shift, scale = linear(model.modulation, steer).split(12, dim=-1)
    expected = linear(model.out, normed(h) * (1 + scale) + shift)
    torch.testing.assert_close(model(x, t, y, c), expected, rtol=1e-12, atol=1e-12)


def test_plain_is_its_formula():
    model = trained(small(modulated=False)).double()
    x, t, y, c = inputs(dtype=torch.float64)
    phases = timestep_embedding(t, 8).double()
    h = linear(model.stem, torch.cat([x, phases, model.embed_class.weight[y], c], dim=-1))
    for block in model.blocks:
        h = h + linear(block.linear2, silu(linear(block.linear1, h)))
    torch.testing.assert_close(model(x, t, y, c), linear(model.out, silu(h)), rtol=1e-12, atol=1e-12)


def test_modulated_blocks_start_as_the_identity():
    h, c = torch.randn(3, 12), torch.randn(3, 12)
    for block in small().blocks:
        assert torch.equal(block(h, c), h)


@both
def test_zero_start_still_learns_and_gradients_reach_every_parameter(modulated):
    model = small(modulated=modulated, dropout=0.1)
    x, t, y, c = inputs()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = {name: 0.0 for name, _ in model.named_parameters()}
    for _ in range(4):  # the last layer, then the modulations, then what is below
        optimizer.zero_grad()
        (model(x, t, y, c) - x).square().mean().backward()
        optimizer.step()
        for name, parameter in model.named_parameters():
            seen[name] = max(seen[name], float(parameter.grad.abs().max()))
    assert [name for name, largest in seen.items() if largest == 0.0] == []


@both
def test_gradients_against_finite_differences(modulated):
    model = trained(small(modulated=modulated)).double()
    x, t, y, c = inputs(2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x, c: model(x, t, y, c), (x.requires_grad_(), c.requires_grad_()))


@both
def test_every_input_matters_and_no_label_is_the_null_class(modulated):
    model = trained(small(modulated=modulated))
    x, t, y, c = inputs()
    base = model(x, t, y, c)
    others = (
        model(x + 0.1, t, y, c),
        model(x, t + 0.01, y, c),
        model(x, t, (y + 1) % 4, c),
        model(x, t, y, c + 0.1),
    )
    for other in others:
        assert (other - base).abs().amax(dim=1).min() > 1e-4
    assert model.null_class == 4
    assert torch.equal(model(x, t, None, c), model(x, t, torch.full_like(y, 4), c))
    bare = small(modulated=modulated, num_classes=0, cond_dim=0)
    assert bare.null_class is None and trained(bare)(x, t).shape == x.shape


@both
def test_float64_half_and_dropout(modulated):
    model = trained(small(modulated=modulated, dropout=0.5))
    x, t, y, c = inputs()
    single = model(x, t, y, c)
    assert torch.equal(single, model(x, t, y, c))
    double = copy.deepcopy(model).double()(x.double(), t.double(), y, c.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=1e-4)
    half = copy.deepcopy(model).to(torch.bfloat16)(x.to(torch.bfloat16), t, y, c)
    assert half.dtype == torch.bfloat16 and half.isfinite().all()
    model.train()
    assert not torch.allclose(model(x, t, y, c), model(x, t, y, c))


@both
def test_config_and_state_dict_come_back(modulated):
    model = trained(small(modulated=modulated, ratio=1.5))
    again = models.build("ResMLP", json.loads(json.dumps(model.config))).eval()
    again.load_state_dict(model.state_dict())
    assert again.config == model.config
    assert torch.equal(again(*inputs()), model(*inputs()))


@both
def test_it_learns_where_its_condition_sends_it(modulated):
    """Data are A c and a little noise: after a short training, samples lie at A c for conditions never seen."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.tensor([[1.0, -0.5], [0.3, 0.8], [-1.0, 0.6]])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = small(modulated=modulated, hidden=32, num_classes=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for step in range(300):
        c = torch.randn(128, 2, generator=generator)
        data = c @ matrix.T + 0.1 * torch.randn(128, 3, generator=generator)
        loss = flow_matching_loss(model, data, torch.arange(128), draw=step, c=c)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    c = torch.randn(200, 2, generator=generator)
    samples = pfc.Sampler(pfc.plan("heun", 10))(model, shape=(3,), seeds=range(200), cond={"c": c})
    wanted = c @ matrix.T  # a network that ignores c is off by about 1
    assert (samples - wanted).square().mean().sqrt() < 0.35


# ------------------------------------------------------------------------------------------------------------- fusing
@pytest.mark.parametrize(("classes", "cond"), [(0, 0), (4, 0), (0, 2), (4, 2)])
def test_the_plain_one_fuses(classes, cond):
    model = trained(small(modulated=False, num_classes=classes, cond_dim=cond))
    x, t, y, c = inputs()
    given = ({"y": y} if classes else {}) | ({"c": c} if cond else {})
    field = pfc.fuse(model)
    expected = copy.deepcopy(model).double()(x.double(), t.double(), **given)
    with torch.no_grad():
        torch.testing.assert_close(field(x, t, **given).double(), expected, rtol=1e-4, atol=1e-4)
    if classes:  # labels that are not given are the null class
        rest = {name: value for name, value in given.items() if name != "y"}
        with torch.no_grad():
            assert torch.equal(field(x, t, **rest), field(x, t, y=torch.full_like(y, 4), **rest))


def test_the_fused_one_samples_like_the_module():
    model = trained(small(modulated=False, num_classes=0))
    _, _, _, c = inputs()
    sampler = pfc.Sampler(pfc.plan("heun", 5))
    with torch.no_grad():
        ours = sampler(pfc.fuse(model), shape=(3,), seeds=range(5), cond={"c": c})
        theirs = sampler(model, shape=(3,), seeds=range(5), cond={"c": c})
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_the_modulated_one_is_refused_and_told_the_other():
    with pytest.raises(pfc.CannotFuse, match=r"ResMLP: its layer norms, and .* modulated=False can be fused"):
        pfc.fuse(small())


def test_fusing_names_it_in_its_refusals():
    with pytest.raises(ValueError, match=r"inputs has z, and this models.ResMLP takes x, t, y, c"):
        pfc.fuse(small(modulated=False), inputs=("x", "t", "z"))


# ----------------------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: small(dim=0), "dim, hidden and depth"),
        (lambda: small(cond_dim=-1), "num_classes and cond_dim at least 0"),
        (lambda: small(time_dim=3), "time_dim must be even"),
        (lambda: small(ratio=0.05), "ratio must give an inner width"),
        (lambda: small(ratio=float("inf")), "ratio must give an inner width"),
        (lambda: small(dropout=1.0), r"dropout must be within \[0, 1\)"),
        (lambda: models.build("ResMLP", {"dims": 2}), "config does not fit ResMLP"),
        (lambda: small()(torch.zeros(1, 2), torch.zeros(1)), r"x must be \[B, 3\]"),
        (lambda: small()(torch.zeros(2, 3), torch.zeros(1)), "t must hold one time a sample"),
        (lambda: small()(torch.zeros(1, 3), torch.zeros(1)), r"c must be \[1, 2\]; got None"),
        (lambda: small()(torch.zeros(1, 3), torch.zeros(1), c=torch.zeros(1, 3)), r"got \[1, 3\]"),
        (lambda: small()(torch.zeros(1, 3), torch.zeros(1), torch.zeros(2).long(), torch.zeros(1, 2)), "y must hold"),
        (lambda: small(cond_dim=0)(torch.zeros(1, 3), torch.zeros(1), c=torch.zeros(1, 2)), "build it with cond_dim="),
        (
            lambda: small(num_classes=0)(torch.zeros(1, 3), torch.zeros(1), torch.zeros(1).long(), torch.zeros(1, 2)),
            "y was given to a ResMLP without classes",
        ),
    ],
)  # fmt: skip
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()
