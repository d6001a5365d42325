"""group_norm_silu against float64 NumPy: dtypes, sizes, means far from zero, layouts, gradients, refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pyflowcore import _library, ops
from pyflowcore.ops import _plain_tokens
from reference import tokens as reference
from reference.tables import float64

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# (x's shape, groups): vectors with and without a rest, one element a channel, chunks with a rest, groups shared out in chunks.
SIZES = [
    ((2, 8, 7, 5), 4), ((1, 6, 1), 3), ((3, 4), 2), ((2, 6, 4, 4, 3), 1), ((1, 4, 1025), 2), ((2, 2, 4097), 2),
    ((1, 3, 50_000), 1), ((1, 64, 64, 48), 32), ((0, 4, 3), 2), ((2, 4, 0), 2), ((1, 10, 9, 9), 10),
]  # fmt: skip


def make(shape, dtype=torch.float64, *, modulated=True, mean=0.0, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normals(*sizes):
        return torch.randn(*sizes, generator=generator, dtype=torch.float64)

    batch, channels = shape[:2]
    x = (normals(*shape) + mean).to(dtype)
    given = {"weight": (1 + 0.3 * normals(channels)).to(dtype), "bias": normals(channels).to(dtype)}
    if modulated:
        given |= {
            "scale": (0.4 * normals(batch, channels)).to(dtype),
            "shift": normals(batch, channels).to(dtype),
        }
    return x, given


def wanted(x, groups, given, **options):
    """In long double, since float64 is among what is judged."""
    wide = {name: float64(value).astype(np.longdouble) for name, value in given.items()}
    exact = reference.group_norm_silu(float64(x).astype(np.longdouble), groups, **wide, **options)
    return exact.astype(np.float64)


@pytest.mark.parametrize(("shape", "groups"), SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.usefixtures("poison")
def test_every_size(shape, groups, dtype):
    for silu in (True, False):
        for modulated in (True, False):
            x, given = make(shape, dtype, modulated=modulated)
            if not silu and not modulated:
                given = {}
            found = ops.group_norm_silu(x, groups, silu=silu, **given)
            exact = wanted(x, groups, given, silu=silu)
            assert found.shape == x.shape
            assert found.dtype == dtype
            assert found.is_contiguous()
            eps = torch.finfo(dtype).eps
            np.testing.assert_allclose(float64(found), exact, rtol=8 * eps, atol=8 * eps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mean", [0.0, 30.0, 1000.0])
def test_at_most_twice_as_wrong_as_torch(dtype, mean):
    """Means up to a thousand deviations away, in storage that still tells neighbours apart (half types round that away)."""
    if dtype in (torch.bfloat16, torch.float16) and mean == 1000.0:
        mean = 100.0
    x, given = make((2, 32, 24, 24), dtype, mean=mean)
    plain = F.group_norm(x, 8, given["weight"], given["bias"])
    scale, shift = (given[name][:, :, None, None] for name in ("scale", "shift"))
    plain = F.silu(plain * (1 + scale) + shift)
    exact = wanted(x, 8, given)
    mine = np.abs(float64(ops.group_norm_silu(x, 8, **given)) - exact)
    theirs = np.abs(float64(plain) - exact)
    assert mine.max() <= 2 * theirs.max()
    assert mine.mean() <= 2 * theirs.mean()


def test_a_constant_group_is_the_shift():
    x = torch.full((2, 4, 5, 5), 7.0)
    given = make(x.shape, torch.float32)[1]
    found = ops.group_norm_silu(x, 2, **given)
    h = given["bias"] * (1 + given["scale"]) + given["shift"]
    torch.testing.assert_close(found, F.silu(h)[:, :, None, None].expand_as(x))


def test_what_is_not_finite_stays_in_its_group():
    x, given = make((2, 4, 30), torch.float32)
    plain = ops.group_norm_silu(x, 2, **given)
    x[0, 1, 3] = math.inf
    found = ops.group_norm_silu(x, 2, **given)
    assert found[0, :2].isnan().all()
    assert torch.equal(found[0, 2:], plain[0, 2:])
    assert torch.equal(found[1], plain[1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts_do_not_matter(dtype):
    x, given = make((3, 8, 6, 5), dtype)
    plain = ops.group_norm_silu(x, 4, **given)
    transposed = x.transpose(2, 3).contiguous().transpose(2, 3)
    offset = torch.cat((x.new_zeros(1), x.flatten()))[1:].view(x.shape)
    for other in (transposed, offset):
        assert torch.equal(ops.group_norm_silu(other, 4, **given), plain)
    wide = torch.cat((given["scale"], given["shift"]), 1)  # what one layer of a network gives
    halves = dict(given, scale=wide.chunk(2, 1)[0], shift=wide.chunk(2, 1)[1])
    assert torch.equal(ops.group_norm_silu(x, 4, **halves), plain)
    one = {name: v[:1].expand(3, -1) if name in ("scale", "shift") else v for name, v in given.items()}
    shared = ops.group_norm_silu(x[:1].expand(3, -1, -1, -1), 4, **one)
    assert all(torch.equal(row, plain[0]) for row in shared)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_place_and_into_memory(dtype):
    x, given = make((2, 8, 9, 9), dtype)
    wanted = ops.group_norm_silu(x, 4, **given)
    out = torch.full_like(x, math.nan)
    ops.group_norm_silu_(x, out, 4, **given)
    assert torch.equal(out, wanted)
    before = x._version
    ops.group_norm_silu_(x, x, 4, **given)
    assert torch.equal(x, wanted)
    assert x._version > before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_how_work_is_shared_changes_no_bit(dtype):
    """Alone, groups are shared out in chunks, and large footprints bypass the caches; in a batch they are whole."""
    x, given = make((8, 4, 160, 160), dtype)
    whole = ops.group_norm_silu(x, 2, **given)
    for b in (0, 7):
        own = {n: v[b : b + 1] if n in ("scale", "shift") else v for n, v in given.items()}
        assert torch.equal(ops.group_norm_silu(x[b : b + 1], 2, **own)[0], whole[b])


@pytest.mark.parametrize("dtype", DTYPES)
def test_instruction_sets_agree_but_for_the_activation(dtype):
    before = _library.cpu_isa()
    assert before is not None
    x, given = make((2, 6, 37, 3), dtype)
    bare, full = [], []
    try:
        for name in _library.cpu_isas():
            _library.select_cpu_isa(name)
            bare.append(ops.group_norm_silu(x, 3, silu=False, **given))
            full.append(ops.group_norm_silu(x, 3, **given))
    finally:
        _library.select_cpu_isa(before)
    eps = torch.finfo(dtype).eps
    for a, b in zip(bare[1:], full[1:], strict=True):
        assert torch.equal(a, bare[0])
        torch.testing.assert_close(b, full[0], rtol=4 * eps, atol=1e-37 if dtype == torch.float32 else eps)


def test_gradients():
    for silu in (True, False):
        x, given = make((2, 4, 3), modulated=True)
        names = list(given)
        learned = [x.requires_grad_(), *(given[name].requires_grad_() for name in names)]

        def run(x, *values, silu=silu, names=names):
            return ops.group_norm_silu(x, 2, silu=silu, **dict(zip(names, values, strict=True)))

        assert torch.autograd.gradcheck(run, learned)
        assert torch.autograd.gradgradcheck(run, learned)
        assert torch.autograd.gradcheck(lambda x: ops.group_norm_silu(x, 1), [learned[0]])


def test_opcheck_and_compile():
    x, given = make((2, 4, 3, 3), torch.float32)
    options = (2, *given.values(), 1e-5, True)
    torch.library.opcheck(torch.ops.pyflowcore.group_norm_silu.default, (x, *options))
    torch.library.opcheck(
        torch.ops.pyflowcore.group_norm_silu.default, (x.clone().requires_grad_(), *options)
    )
    torch.library.opcheck(torch.ops.pyflowcore.group_norm_silu_.default, (x, torch.zeros_like(x), *options))
    compiled = torch.compile(lambda x: ops.group_norm_silu(x, 2, **given), backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), ops.group_norm_silu(x, 2, **given))


@pytest.mark.filterwarnings("ignore:pyflowcore. .* runs in plain PyTorch")
def test_the_plain_version_agrees():
    x, given = make((2, 6, 5, 5))
    for silu in (True, False):
        options = (3, *given.values(), 1e-5, silu)
        exact = wanted(x, 3, given, silu=silu)
        np.testing.assert_allclose(float64(_plain_tokens.group_norm_silu(x, *options)), exact, atol=1e-13)
        out = torch.zeros_like(x)
        _plain_tokens.group_norm_silu_(x, out, *options)
        np.testing.assert_allclose(float64(out), exact, atol=1e-13)


X = torch.zeros(2, 6, 4, 4)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": X.int()}, TypeError, "x must be float32.*int32"),
        ({"x": torch.zeros(3)}, ValueError, r"x must be \[B, C, ...\], got \[3\]"),
        ({"groups": 4}, ValueError, "groups must divide the 6 channels of x, got 4"),
        ({"groups": 0}, ValueError, "groups must divide"),
        ({"x": X.contiguous(memory_format=torch.channels_last)}, ValueError, "x is in channels_last"),
        ({"weight": torch.ones(5)}, ValueError, r"weight must be \[6\].*got \[5\]"),
        ({"scale": torch.ones(6)}, ValueError, r"scale must be \[2, 6\].*got \[6\]"),
        ({"shift": torch.ones(2, 6).int()}, TypeError, "shift must be floating point"),
        (
            {"weight": torch.ones(6), "bias": torch.ones(6).half()},
            TypeError,
            "weight and bias must have one dtype",
        ),
        ({"bias": torch.ones(6, device="meta")}, ValueError, "bias is on meta, x is on cpu"),
    ],
)
def test_refusals(change, error, message):
    given = {"x": X, "groups": 3} | change
    with pytest.raises(error, match=message):
        ops.group_norm_silu(given.pop("x"), given.pop("groups"), **given)


def test_refusals_of_out():
    with pytest.raises(ValueError, match=r"out has shape \[6\]"):
        ops.group_norm_silu_(X, torch.zeros(6), 3)
    with pytest.raises(TypeError, match=r"out is torch.float64"):
        ops.group_norm_silu_(X, X.double(), 3)
    with pytest.raises(ValueError, match="out is written and must be contiguous"):
        ops.group_norm_silu_(X, X.transpose(2, 3), 3)
    memory = torch.zeros(X.numel() + 4)
    with pytest.raises(ValueError, match="x is read and out is written, and they overlap"):
        ops.group_norm_silu_(memory[4:].view(X.shape), memory[:-4].view(X.shape), 3)
    with pytest.raises(RuntimeError, match="groups must divide"):
        torch.ops.pyflowcore.group_norm_silu(X, 4, None, None, None, None, 1e-5, True)
