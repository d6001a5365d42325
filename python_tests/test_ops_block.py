"""The operators of transformer blocks against NumPy float64: values, layouts, gradients, in place, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import pyflowcore as pfc
from pyflowcore import _library
from pyflowcore.ops import _plain_block, block
from reference import block as reference
from reference.tables import float64

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
HALF = (torch.bfloat16, torch.float16)
# Around a vector of each instruction set, the lanes of a sum, and all of them; no row, no token, no element.
SHAPES = [(2, 0), (0, 5), (3, 1), (2, 0, 4), (2, 3, 7), (1, 2, 3, 5), (2, 2, 16), (2, 5, 65), (2, 3, 127), (3, 128),
          (1, 2, 129), (2, 2, 320), (2, 3, 1025), (1, 2, 1152)]  # fmt: skip
KINDS = ("layer", "rms")


def values(*shape, seed=0, dtype=torch.float32, mean=0.0):
    g = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=g, dtype=torch.float64) + mean).to(dtype)


def operands(shape, dtype, mean=0.0):
    """x, y, shift, scale, gate (chunks of one projection), weight, bias, y_bias."""
    batch, width = shape[0], shape[-1]
    chunks = values(batch, 6 * width, seed=2, dtype=dtype).chunk(6, 1)
    vectors = (values(width, seed=3 + i, dtype=dtype) for i in range(3))
    return values(*shape, dtype=dtype, mean=mean), values(*shape, seed=1, dtype=dtype), *chunks[1:4], *vectors


def close(found, exact, plain, dtype):
    """At most twice plain PyTorch's error, or what a few roundings of float32 are."""
    error = np.abs(float64(found) - exact).max(initial=0.0)
    allowed = 2 * np.abs(float64(plain) - exact).max(initial=0.0)
    rounding = 2.0**-53 if dtype == torch.float64 else 2.0**-24
    least = 8 * rounding * max(np.abs(exact).max(initial=0.0), 1.0) if dtype not in HALF else 0.0
    assert error <= max(allowed, least), (error, allowed, least)


def torch_norm(x, shift, scale, weight, bias, kind, eps):
    """What a user writes, in x's dtype."""
    shape = (x.shape[-1],)
    h = F.layer_norm(x, shape, weight, bias, eps) if kind == "layer" else F.rms_norm(x, shape, weight, eps)
    if kind == "rms" and bias is not None:
        h = h + bias
    tokens = (x.shape[0], *[1] * (x.dim() - 2), x.shape[-1])
    h = h if scale is None else h * (1 + scale.reshape(tokens))
    return h if shift is None else h + shift.reshape(tokens)


@pytest.mark.parametrize("isa", _library.cpu_isas())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_norms_of_every_size(isa, dtype, kind):
    before = _library.cpu_isa()
    pfc_select(isa)
    try:
        for shape in SHAPES:
            x, _, shift, scale, _, weight, bias, _ = operands(shape, dtype)
            for given in (
                (shift, scale, weight, bias),
                (None, scale, None, None),
                (shift, None, weight, None),
                (None,) * 4,
            ):
                found = block.norm_modulate(
                    x, given[0], given[1], weight=given[2], bias=given[3], kind=kind, eps=1e-5
                )
                assert found.shape == x.shape and found.dtype == dtype and found.is_contiguous()
                exact = reference.norm_modulate(float64(x), *map(float64, given), kind, 1e-5)
                close(found, exact, torch_norm(x, *given, kind, 1e-5) if x.numel() else found, dtype)
    finally:
        pfc_select(before)


def pfc_select(isa):
    _library.select_cpu_isa(isa)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_residuals_of_every_size(shape, dtype):
    x, y, shift, scale, gate, weight, bias, y_bias = operands(shape, dtype)
    tokens = (shape[0], *[1] * (len(shape) - 2), shape[-1])
    for g, b in ((gate, y_bias), (None, None), (gate, None), (None, y_bias)):
        found = block.gate_residual(x, y, g, y_bias=b)
        exact = reference.gate_residual(*map(float64, (x, y, g, b)))
        right = y if b is None else y + b
        close(found, exact, x + (right if g is None else g.reshape(tokens) * right), dtype)
        for kind in KINDS:
            options = {"y_bias": b, "weight": weight, "bias": bias, "kind": kind}
            new, normed = block.gate_residual_norm(x, y, g, shift, scale, **options)
            assert torch.equal(new, found)
            assert torch.equal(
                normed, block.norm_modulate(new, shift, scale, weight=weight, bias=bias, kind=kind)
            )
            inside = x.clone()
            assert torch.equal(block.gate_residual_norm_(inside, y, g, shift, scale, **options), normed)
            assert torch.equal(inside, found)
        inside = x.clone()
        assert block.gate_residual_(inside, y, g, y_bias=b) is inside
        assert torch.equal(inside, found)


@pytest.mark.parametrize("mean", [0.0, 30.0, 1e3])
@pytest.mark.parametrize("width", [64, 1152, 4096])
def test_rows_far_from_zero(width, mean):
    """A mean a thousand times the spread: no worse than torch, and much better than the rounding of the mean."""
    x = values(2, 3, width, mean=mean)
    exact = reference.norm_modulate(float64(x), None, None, None, None, "layer", 1e-6)
    found = np.abs(float64(block.norm_modulate(x)) - exact).max()
    theirs = np.abs(float64(F.layer_norm(x, (width,), eps=1e-6)) - exact).max()
    assert found <= max(2 * theirs, 1e-6)
    assert found <= 2e-6


def test_statistics_of_odd_rows():
    constant = block.norm_modulate(torch.full((2, 3, 100), 1234.567))
    assert torch.equal(constant, torch.zeros(2, 3, 100))
    spike = torch.zeros(1, 1, 1152)
    spike[..., 5] = 3e4
    for kind in KINDS:
        exact = reference.norm_modulate(float64(spike), None, None, None, None, kind, 1e-6)
        np.testing.assert_allclose(
            float64(block.norm_modulate(spike, kind=kind)), exact, rtol=1e-5, atol=1e-6
        )
    for bad in (float("nan"), float("inf")):
        x = values(1, 3, 70)
        x[0, 1, 69] = bad
        found = block.norm_modulate(x)
        assert bool(found[0, 1].isnan().all()) and bool(found[0, [0, 2]].isfinite().all())


def test_bits_do_not_depend_on_the_batch_the_threads_or_the_instruction_set():
    x, y, shift, scale, gate, *_ = operands((7, 50, 323), torch.float32)
    threads, before, results = torch.get_num_threads(), _library.cpu_isa(), []
    try:
        for isa in _library.cpu_isas():
            pfc_select(isa)
            for count in (1, 2):
                torch.set_num_threads(count)
                results.append(block.gate_residual_norm(x, y, gate, shift, scale))
    finally:
        torch.set_num_threads(threads)
        pfc_select(before)
    one = block.gate_residual_norm(x[3:4, 20:21], y[3:4, 20:21], gate[3:4], shift[3:4], scale[3:4])
    for new, normed in results:
        assert torch.equal(new, results[0][0]) and torch.equal(normed, results[0][1])
    assert torch.equal(one[0], results[0][0][3:4, 20:21]) and torch.equal(one[1], results[0][1][3:4, 20:21])


def test_streamed_rows_are_the_same():
    """Large enough that outputs bypass the cache; a row at a time is not."""
    x, y, shift, scale, gate, *_ = operands((2, 700, 1152), torch.float32)
    new, normed = block.gate_residual_norm(x, y, gate, shift, scale)
    for token in (0, 351, 699):
        at = slice(token, token + 1)
        alone = block.gate_residual_norm(x[:, at], y[:, at], gate, shift, scale)
        assert torch.equal(alone[0], new[:, at]) and torch.equal(alone[1], normed[:, at])
    wide = values(3000, 1152)
    whole = block.gelu(wide)
    assert torch.equal(whole[5], block.gelu(wide[5])) and torch.equal(block.gelu_(wide.clone()), whole)
    half = block.swiglu(wide)
    assert torch.equal(half[2999], block.swiglu(wide[2999]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_layouts(dtype):
    x, y, shift, scale, gate, *_ = operands((3, 4, 33), dtype)
    expected = block.gate_residual_norm(x, y, gate.contiguous(), shift.contiguous(), scale.contiguous())

    def same(*arguments):
        return all(
            torch.equal(a, b) for a, b in zip(block.gate_residual_norm(*arguments), expected, strict=True)
        )

    def spread(t):
        return torch.stack([t, t], -1)[..., 0]

    def offset(t):
        return torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape)

    assert same(spread(x), spread(y), spread(gate), spread(shift), spread(scale))
    assert same(offset(x), offset(y), offset(gate), offset(shift), offset(scale))
    assert same(x.transpose(0, 1).contiguous().transpose(0, 1), y, gate, shift, scale)
    row = values(1, 33, dtype=dtype)
    assert torch.equal(block.norm_modulate(x, row.expand(3, 33)), block.norm_modulate(x, row.repeat(3, 1)))
    token = values(1, 1, 33, dtype=dtype)
    assert torch.equal(block.gelu(token.expand(2, 3, 33)), block.gelu(token).expand(2, 3, 33))


GATED = {
    "gelu": (lambda x, b: block.gelu(x, b), lambda x, b: reference.gelu(x, b, "none"), lambda z: F.gelu(z)),
    "tanh": (
        lambda x, b: block.gelu(x, b, "tanh"),
        lambda x, b: reference.gelu(x, b, "tanh"),
        lambda z: F.gelu(z, approximate="tanh"),
    ),
    "swiglu": (block.swiglu, reference.swiglu, lambda z: F.silu(z.chunk(2, -1)[0]) * z.chunk(2, -1)[1]),
}


@pytest.mark.parametrize("isa", _library.cpu_isas())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", GATED)
def test_activations_of_every_size(isa, dtype, name):
    ours, exact, theirs = GATED[name]
    before = _library.cpu_isa()
    pfc_select(isa)
    try:
        for shape in ((0,), (2,), (14,), (0, 6), (3, 0), (1, 2), (3, 2050), (2, 3, 14), (5, 128), (2, 130)):
            x, bias = 3 * values(*shape, dtype=dtype), values(shape[-1], seed=1, dtype=dtype)
            for b in (None, bias):
                found = ours(x, b)
                wanted = exact(float64(x), float64(b))
                assert found.shape == wanted.shape and found.dtype == dtype
                close(found, wanted, theirs(x if b is None else x + b), dtype)
    finally:
        pfc_select(before)


@pytest.mark.parametrize("isa", _library.cpu_isas())
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_in_float32(isa, approximate):
    """ULPS or 1e-7 everywhere, over a sample of all float32 and a fine grid; its limits; NaN."""
    bits = np.arange(0, 2**32, 40_009, dtype=np.uint64).astype(np.uint32).view(np.float32)
    bits = bits[np.isfinite(bits) & (np.abs(bits) < 1e9)]
    x = np.concatenate([bits, np.linspace(-20, 20, 100_003, dtype=np.float32)])
    exact = reference.gelu(x.astype(np.float64), None, approximate)
    before = _library.cpu_isa()
    pfc_select(isa)
    try:
        found = block.gelu(torch.from_numpy(x), None, approximate).numpy().astype(np.float64)
        ends = torch.tensor([float("inf"), -float("inf"), float("nan"), 0.0, -0.0, -1e30, 3e38])
        at_ends = block.gelu(ends, None, approximate)
    finally:
        pfc_select(before)
    ulp = np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)
    error = np.abs(found - exact)
    assert (np.minimum(error / (4 * ulp), error / 1e-7)).max() <= 1.0
    assert (error / ulp)[exact > 1e-30].max() <= 4.0
    assert torch.equal(at_ends.isnan(), torch.tensor([False, False, True, False, False, False, False]))
    assert torch.equal(at_ends[[0, 1, 3, 4, 5, 6]], torch.tensor([float("inf"), 0.0, 0.0, 0.0, 0.0, 3e38]))


def half_patterns(dtype):
    """Every number of a half type."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    return every.view(dtype)


@pytest.mark.parametrize("isa", _library.cpu_isas())
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("name", GATED)
def test_activations_of_every_half(isa, dtype, name):
    """Nothing but the rounding: 0.53 ulp of the result, for every number there is."""
    x = half_patterns(dtype)
    rows = torch.stack([x, torch.ones_like(x)], -1) if name == "swiglu" else x
    before = _library.cpu_isa()
    pfc_select(isa)
    try:
        found = GATED[name][0](rows, None).flatten()
    finally:
        pfc_select(before)
    assert torch.equal(found.isnan(), x.isnan())
    limits = x.isinf()
    assert torch.equal(found[limits], torch.where(x[limits] > 0, x[limits], torch.zeros_like(x[limits])))
    finite = x.isfinite()
    exact = GATED[name][1](float64(rows[finite]), None).flatten()
    info = torch.finfo(dtype)
    size = np.maximum(np.abs(exact), info.smallest_normal)
    ulp = 2.0 ** np.floor(np.log2(size)) * info.eps
    assert (np.abs(float64(found[finite]) - exact) / ulp).max() <= 0.53


@pytest.mark.parametrize("isa", _library.cpu_isas())
def test_swiglu_in_float32(isa):
    """The SiLU in it, over a sample of all float32: 3 ulp, where it is negative as well."""
    bits = np.arange(0, 2**32, 40_009, dtype=np.uint64).astype(np.uint32).view(np.float32)
    x = np.concatenate([bits[np.isfinite(bits)], np.linspace(-120, 30, 100_003, dtype=np.float32)])
    rows = torch.from_numpy(np.stack([x, np.ones_like(x)], -1))
    ends = torch.tensor(
        [[float("inf"), 1.0], [-float("inf"), 1.0], [float("nan"), 1.0], [-1e30, 1.0], [3e38, 1.0]]
    )
    before = _library.cpu_isa()
    pfc_select(isa)
    try:
        found, at_ends = block.swiglu(rows)[:, 0], block.swiglu(ends)[:, 0]
    finally:
        pfc_select(before)
    exact = reference.swiglu(float64(rows), None)[:, 0]
    ulp = np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)
    assert (np.abs(float64(found) - exact) / ulp).max() <= 3.0
    assert bool(at_ends[2].isnan())
    assert torch.equal(at_ends[[0, 1, 3, 4]], torch.tensor([float("inf"), 0.0, 0.0, 3e38]))


@pytest.mark.parametrize("isa", _library.cpu_isas())
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_half_precision_is_rounded_once_and_to_even(isa, dtype):
    """Every number of the type, and sums that are ties, subnormal or too large, against torch's own casts."""
    x = half_patterns(dtype).view(64, 1024)
    y, gate = (
        x[:, torch.randperm(1024, generator=torch.Generator().manual_seed(0))],
        values(64, 1024, dtype=dtype),
    )
    wanted = (x.float() + gate.float() * y.float()).to(dtype)
    before = _library.cpu_isa()
    pfc_select(isa)
    try:
        for width in (1024, 1000, 37):
            found = block.gate_residual(*(t[:, :width].contiguous() for t in (x, y, gate)))
            torch.testing.assert_close(found, wanted[:, :width], rtol=0, atol=0, equal_nan=True)
    finally:
        pfc_select(before)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_in_place(approximate):
    for dtype in DTYPES:
        x, bias = values(3, 133, dtype=dtype), values(133, seed=1, dtype=dtype)
        for b in (None, bias):
            inside = x.clone()
            version = inside._version
            assert block.gelu_(inside, b, approximate) is inside and inside._version > version
            assert torch.equal(inside, block.gelu(x, b, approximate))


# ------------------------------------------------------------------------------------------------------------ gradients
def learned(*shape, seed=0):
    return values(*shape, seed=seed, dtype=torch.float64).requires_grad_()


GIVEN = ("x", "y", "gate", "shift", "scale", "y_bias", "weight", "bias")


SIZES = ((2, 3, 5), (2, 3, 5), (2, 5), (2, 5), (2, 5), (5,), (5,), (5,))


def differentiable():
    return {name: learned(*size, seed=i) for i, (name, size) in enumerate(zip(GIVEN, SIZES, strict=True))}


ABSENT = ((), ("scale",), ("shift", "bias"), ("gate", "weight"), tuple(GIVEN[2:]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("absent", ABSENT, ids=str)
def test_gradients(kind, absent):
    given = {name: None if name in absent else tensor for name, tensor in differentiable().items()}
    names = [name for name in GIVEN if given[name] is not None]

    def joined(*tensors):
        now = given | dict(zip(names, tensors, strict=True))
        return block.gate_residual_norm(**now, kind=kind)

    def norm(*tensors):
        now = given | dict(zip(names, tensors, strict=True))
        return block.norm_modulate(
            now["x"], now["shift"], now["scale"], weight=now["weight"], bias=now["bias"], kind=kind
        )

    def residual(*tensors):
        now = given | dict(zip(names, tensors, strict=True))
        return block.gate_residual(now["x"], now["y"], now["gate"], y_bias=now["y_bias"])

    for function in (joined, norm, residual):
        assert torch.autograd.gradcheck(function, [given[name] for name in names])
    if not absent:
        assert torch.autograd.gradgradcheck(joined, [given[name] for name in names])


@pytest.mark.parametrize("name", GATED)
def test_gradients_of_activations(name):
    ours = GATED[name][0]
    for inputs in ((learned(3, 6), learned(6, seed=1)), (learned(2, 3, 4), None)):
        assert torch.autograd.gradcheck(ours, inputs)
        assert torch.autograd.gradgradcheck(ours, inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_of_lower_dtypes_and_of_no_samples(dtype):
    given = {k: v.detach() for k, v in differentiable().items()}
    wide = {k: v.requires_grad_() for k, v in given.items()}
    narrow = {k: v.detach().to(dtype).requires_grad_() for k, v in given.items()}
    for one in (wide, narrow):
        new, normed = block.gate_residual_norm(**one)
        (new.double().sin().sum() + normed.double().sin().sum()).backward()
    eps = torch.finfo(dtype).eps
    for name in GIVEN:
        assert narrow[name].grad.dtype == dtype
        size = wide[name].grad.abs().max().item()
        np.testing.assert_allclose(float64(narrow[name].grad), float64(wide[name].grad), atol=20 * eps * size)
    x = torch.zeros(0, 3, 4, requires_grad=True)
    scale = torch.zeros(0, 4, requires_grad=True)
    block.norm_modulate(x, None, scale).sum().backward()
    assert x.grad.shape == x.shape and scale.grad.shape == scale.shape


def test_no_gradient_is_asked_of_the_operator_itself():
    x = values(2, 3, 4).requires_grad_()
    assert block.norm_modulate(x).grad_fn is not None
    with torch.no_grad():
        assert block.norm_modulate(x).grad_fn is None


# ------------------------------------------------------------------------------------------------------------- plumbing
def test_opcheck():
    x, y, shift, scale, gate, weight, bias, y_bias = operands((2, 3, 10), torch.float32)
    of_norm = (shift, scale, weight, bias, False, 1e-6)
    for name, arguments in {
        "norm_modulate": (x, *of_norm),
        "gate_residual": (x, y, gate, y_bias),
        "gate_residual_": (x, y, gate, y_bias),
        "gate_residual_norm": (x, y, gate, None, None, *of_norm[1:]),
        "gate_residual_norm_": (x, y, gate, y_bias, *of_norm),
        "swiglu": (x, weight),
        "gelu": (x, bias, True),
        "gelu_": (x, None, False),
    }.items():
        torch.library.opcheck(getattr(torch.ops.pyflowcore, name).default, arguments)


def test_compiled_with_its_gradient():
    given = {k: v.detach().float().requires_grad_() for k, v in differentiable().items()}

    def loss(one):
        new, normed = block.gate_residual_norm(**one)
        return (
            (new * normed).sum() + block.gelu(normed).sum() + block.swiglu(torch.cat([new, normed], -1)).sum()
        )

    eager = torch.autograd.grad(loss(given), list(given.values()))
    fast = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for a, b in zip(torch.autograd.grad(fast(given), list(given.values())), eager, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_plain_versions(dtype):
    x, y, shift, scale, gate, weight, bias, y_bias = operands((2, 3, 70), dtype)
    eps = torch.finfo(dtype).eps
    for kind in KINDS:
        of_norm = (shift, scale, weight, bias, kind == "rms", 1e-6)
        for a, b in zip(
            torch.ops.pyflowcore.gate_residual_norm(x, y, gate, y_bias, *of_norm),
            _plain_block.gate_residual_norm(x, y, gate, y_bias, *of_norm),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=2 * eps, atol=8 * eps)
    for tanh in (False, True):
        inside = x.clone()
        _plain_block.gelu_(inside, bias, tanh)
        # torch's own GELU cancels where it is negative.
        torch.testing.assert_close(
            torch.ops.pyflowcore.gelu(x, bias, tanh), inside, rtol=2 * eps, atol=16 * eps
        )
    torch.testing.assert_close(
        block.swiglu(x, bias), _plain_block.swiglu(x, bias), rtol=2 * eps, atol=4 * eps
    )
    inside = x.clone()
    normed = _plain_block.gate_residual_norm_(inside, y, gate, y_bias, *of_norm)
    torch.testing.assert_close(inside, block.gate_residual(x, y, gate, y_bias=y_bias))
    torch.testing.assert_close(normed, block.norm_modulate(inside, shift, scale, weight=weight, bias=bias, kind="rms"),
                               rtol=2 * eps, atol=8 * eps)  # fmt: skip


X = torch.zeros(2, 3, 4)
REFUSED = {
    "dims": (lambda: block.norm_modulate(torch.zeros(4)), ["x", "2 dimensions", "[4]"]),
    "scalar": (lambda: block.norm_modulate(torch.tensor(1.0)), ["x", "2 dimensions"]),
    "integers": (lambda: block.gelu(torch.zeros(4, dtype=torch.int64)), ["x", "int64", "bfloat16"]),
    "shift": (lambda: block.norm_modulate(X, torch.zeros(2, 3)), ["shift", "[2, 3]", "[2, 4]"]),
    "scale dtype": (lambda: block.norm_modulate(X, None, torch.zeros(2, 4).half()), ["scale", "float16", "float32"]),
    "weight": (lambda: block.norm_modulate(X, weight=torch.zeros(3)), ["weight", "[3]", "[4]"]),
    "kind": (lambda: block.norm_modulate(X, kind="group"), ["kind", "group", "layer"]),
    "eps": (lambda: block.norm_modulate(X, eps=-1.0), ["eps", "-1.0"]),
    "y": (lambda: block.gate_residual(X, torch.zeros(2, 3, 5)), ["y", "[2, 3, 5]", "[2, 3, 4]"]),
    "y_bias": (lambda: block.gate_residual(X, X, y_bias=torch.zeros(5)), ["y_bias", "[5]", "[4]"]),
    "odd": (lambda: block.swiglu(torch.zeros(2, 5)), ["x", "[2, 5]", "even"]),
    "approximate": (lambda: block.gelu(X, None, "erf"), ["approximate", "erf", "tanh"]),
    "written, strided": (lambda: block.gelu_(torch.zeros(4, 2).t()), ["x", "contiguous"]),
    "written, learned": (lambda: block.gate_residual_(X.clone(), X.clone().requires_grad_()), ["x", "gradient"]),
    "operator": (lambda: torch.ops.pyflowcore.gate_residual(X, X, torch.zeros(3, 4), None), ["gate", "[3, 4]", "[2, 4]"]),
    "operator, written": (lambda: torch.ops.pyflowcore.gelu_(torch.zeros(4, 2).t(), None, False), ["x", "contiguous"]),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case):
    call, words = REFUSED[case]
    with pytest.raises((ValueError, TypeError, RuntimeError)) as error:
        call()
    assert all(word in str(error.value) for word in words), error.value


def test_overlaps_are_refused():
    memory = torch.zeros(30)
    x = memory[:24].view(2, 3, 4)
    for name, options in {
        "y": {"y": memory[1:25].view(2, 3, 4)},
        "gate": {"y": torch.zeros(2, 3, 4), "gate": memory[20:28].view(2, 4)},
    }.items():
        with pytest.raises(ValueError, match=f"{name} is read and x is written, and they overlap"):
            block.gate_residual_(x, **options)
    with pytest.raises(ValueError, match="bias is read"):
        block.gelu_(x, memory[:4])
    doubled = values(2, 3, 4)
    assert torch.equal(block.gate_residual_(doubled, doubled), 2 * values(2, 3, 4))
    assert pfc.ops.block is block
