"""qk_norm_rope against float64 NumPy: dtypes, norms, head sizes, tables, layouts, buffers, gradients, refusals."""

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
# (B, N, H, Hkv, D): heads that fill vectors and heads that do not, fewer keys than queries, no queries, nothing at all.
SIZES = [
    (2, 5, 3, 3, 64), (1, 7, 2, 2, 72), (2, 3, 4, 1, 32), (1, 1, 2, 2, 128), (3, 9, 6, 2, 80), (2, 4, 0, 2, 48),
    (2, 4, 3, 0, 96), (1, 3, 1, 1, 2), (2, 3, 2, 1, 6), (0, 3, 2, 2, 32), (2, 0, 2, 2, 32), (1, 2, 1, 1, 512),
    (1, 33, 2, 2, 40),
]  # fmt: skip
NORMS = ("none", "rms", "layer")
PAIRS = ("adjacent", "halves")


def make(size, dtype=torch.float64, *, norm="rms", rotary="half", biased=True, seed=0, spread=1.0):
    """The operator's arguments; the table's angles are random, so that a column in the wrong place shows."""
    batch, tokens, heads, kv_heads, head = size
    generator = torch.Generator().manual_seed(seed)

    def normals(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    width = (heads + 2 * kv_heads) * head
    given = {"kv_heads": kv_heads, "norm": norm}
    qkv = (spread * normals(batch, tokens, width)).to(dtype)
    if biased:
        given["bias"] = normals(width).to(dtype)
    if norm != "none":
        given |= {"q_weight": 1 + 0.2 * normals(head), "k_weight": 1 + 0.2 * normals(head)}
    if norm == "layer":
        given |= {"q_shift": normals(head), "k_shift": normals(head)}
    for name in ("q_weight", "k_weight", "q_shift", "k_shift"):
        if name in given:
            given[name] = given[name].to(dtype)
    if rotary and head % 2 == 0:
        columns = head // 2 if rotary.startswith("half") else head
        shape = (batch, tokens, columns) if rotary.endswith("each") else (tokens, columns)
        angle = 3 * normals(*shape)
        table = torch.float64 if dtype == torch.float64 else torch.float32
        given |= {"cos": angle.cos().to(table), "sin": angle.sin().to(table)}
    return qkv, heads, given


def wanted(qkv, heads, given):
    exact = {name: float64(v) if isinstance(v, torch.Tensor) else v for name, v in given.items()}
    return reference.qk_norm_rope(float64(qkv), heads, **exact)


def amplified(qkv, heads, given):
    """How much a norm enlarges the rounding of what it is given: a head's largest element over its deviation."""
    if given["norm"] == "none" or not qkv.numel():
        return 1.0
    bias = float64(given["bias"]) if "bias" in given else None
    before = reference.qk_norm_rope(float64(qkv), heads, given["kv_heads"], bias)
    ratios = [1.0]
    for x in before[:2]:
        spread = x - x.mean(-1, keepdims=True) if given["norm"] == "layer" else x
        ratios.append((np.abs(x).max(-1) / np.sqrt((spread * spread).mean(-1))).max(initial=1.0))
    return max(ratios)


def close(found, exact, dtype, factor=4.0):
    assert found.dtype == dtype
    assert found.is_contiguous()
    assert found.shape == exact.shape
    eps = torch.finfo(dtype).eps
    scale = np.abs(exact).max(initial=1.0)
    np.testing.assert_allclose(float64(found), exact, rtol=2 * eps, atol=factor * eps * scale)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("pairs", PAIRS)
@pytest.mark.usefixtures("poison")
def test_every_size(size, norm, pairs):
    for dtype in (torch.float32, torch.float64):
        for rotary in ("half", "full", "half each", ""):
            qkv, heads, given = make(size, dtype, norm=norm, rotary=rotary, biased=bool(rotary))
            given["pairs"] = pairs
            for found, exact in zip(
                ops.qk_norm_rope(qkv, heads, **given), wanted(qkv, heads, given), strict=True
            ):
                close(found, exact, dtype, 4.0 * amplified(qkv, heads, given))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("pairs", PAIRS)
def test_half_precision_is_at_most_twice_as_wrong_as_torch(dtype, norm, pairs):
    size = (2, 65, 6, 3, 72)
    qkv, heads, given = make(size, dtype, norm=norm)
    given["pairs"] = pairs

    def plain():
        """What a user writes, every step in the model's dtype."""
        q, k, v = (qkv + given["bias"]).unflatten(-1, (12, 72)).transpose(1, 2).split([6, 3, 3], dim=1)
        outs = []
        for x, side in ((q, "q"), (k, "k")):
            if norm == "rms":
                x = F.rms_norm(x, (72,), given[f"{side}_weight"], 1e-6)
            elif norm == "layer":
                x = F.layer_norm(x, (72,), given[f"{side}_weight"], given[f"{side}_shift"], 1e-6)
            cos, sin = (
                _plain_tokens.spread(given[t].to(dtype), 72, pairs == "adjacent", x) for t in ("cos", "sin")
            )
            outs.append(x * cos + _plain_tokens.partners(x, pairs == "adjacent") * sin)
        return *outs, v

    for mine, theirs, exact in zip(
        ops.qk_norm_rope(qkv, heads, **given), plain(), wanted(qkv, heads, given), strict=True
    ):
        assert mine.dtype == dtype
        assert np.abs(float64(mine) - exact).max() <= 2 * np.abs(float64(theirs) - exact).max()


@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_large_means_are_as_accurate_as_torch(norm):
    """The mean a thousand standard deviations away, as float32 allows."""
    qkv, heads, given = make((2, 9, 4, 4, 64), torch.float32, norm=norm, rotary="", biased=False)
    qkv = qkv + 1000.0
    mine = ops.qk_norm_rope(qkv, heads, **given)
    exact = wanted(qkv, heads, given)
    split = qkv.unflatten(-1, (12, 64)).transpose(1, 2)[:, :4]
    theirs = (
        F.rms_norm(split, (64,), given["q_weight"], 1e-6)
        if norm == "rms"
        else F.layer_norm(split, (64,), given["q_weight"], given["q_shift"], 1e-6)
    )
    assert np.abs(float64(mine[0]) - exact[0]).max() <= 2 * np.abs(float64(theirs) - exact[0]).max()


def test_the_models_table_and_rotation():
    """cos(p f_k), sin(p f_k): a rotated query and key see the difference of their places alone."""
    head, tokens = 32, 6
    frequencies = 10000.0 ** (-torch.arange(0, head, 2, dtype=torch.float64) / head)
    qkv = torch.randn(1, 1, 3 * head, dtype=torch.float64).expand(1, tokens, -1)
    for pairs in PAIRS:
        scores = []
        for start in (0, 1000):
            angle = torch.arange(start, start + tokens, dtype=torch.float64)[:, None] * frequencies
            q, k, _ = ops.qk_norm_rope(qkv, 1, cos=angle.cos(), sin=angle.sin(), pairs=pairs)
            scores.append(q[0, 0] @ k[0, 0].T)
        torch.testing.assert_close(scores[0], scores[1])
        for d in range(1, tokens):
            diagonal = scores[0].diagonal(d)
            torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))


@pytest.mark.parametrize("pairs", PAIRS)
def test_two_columns_layouts_of_a_table_agree(pairs):
    qkv, heads, given = make((2, 5, 2, 1, 48), torch.float32, rotary="half")
    given["pairs"] = pairs
    wide = dict(given)
    for name in ("cos", "sin"):
        wide[name] = _plain_tokens.spread(given[name], 48, pairs == "adjacent", given[name])[0]
    for a, b in zip(ops.qk_norm_rope(qkv, heads, **given), ops.qk_norm_rope(qkv, heads, **wide), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts_do_not_matter(dtype):
    size = (2, 6, 3, 1, 40)
    qkv, heads, given = make(size, dtype)
    plain = ops.qk_norm_rope(qkv, heads, **given)
    tokens, width = qkv.shape[1:]
    wider = torch.cat((qkv, torch.full_like(qkv, math.nan)), dim=-1)[..., :width]  # rows of a wider product
    offset = torch.cat((qkv.new_zeros(1), qkv.flatten()))[1:].view(qkv.shape)
    transposed = qkv.transpose(0, 1).contiguous().transpose(0, 1)
    strided = qkv.repeat_interleave(2, dim=-1)[..., ::2]
    for other in (wider, offset, transposed, strided):
        for a, b in zip(ops.qk_norm_rope(other, heads, **given), plain, strict=True):
            assert torch.equal(a, b)
    shared = ops.qk_norm_rope(qkv[:1].expand(3, -1, -1), heads, **given)
    for a, b in zip(shared, plain, strict=True):
        assert torch.equal(a[2], b[0])
    given["cos"], given["sin"] = (t[:1].expand(tokens, -1) for t in (given["cos"], given["sin"]))
    given["bias"] = given["bias"][:1].expand(width)
    for a, b in zip(ops.qk_norm_rope(qkv, heads, **given), wanted(qkv, heads, given), strict=True):
        close(a, b, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_streams_share_buffers(dtype):
    """Text before images in queries, keys and values; every element of the joint buffer is written once."""
    text, heads, text_given = make((2, 3, 4, 2, 64), dtype, seed=1)
    image, _, image_given = make((2, 5, 4, 2, 64), dtype, seed=2)
    joint = [torch.full((2, count, 8, 64), math.nan, dtype=dtype) for count in (4, 2, 2)]
    for qkv, given, offset in ((text, text_given, 0), (image, image_given, 3)):
        options = {name: value for name, value in given.items() if name != "kv_heads"}
        ops.qk_norm_rope_(qkv, *joint, q_offset=offset, kv_offset=offset, **options)
    parts = [
        ops.qk_norm_rope(text, heads, **text_given), ops.qk_norm_rope(image, heads, **image_given)
    ]  # fmt: skip
    for buffer, first, second in zip(joint, *parts, strict=True):
        assert torch.equal(buffer, torch.cat((first, second), dim=2))


def test_keys_go_after_a_cached_prefix():
    qkv, heads, given = make((2, 3, 4, 1, 32), torch.float32)
    q, k, v = torch.zeros(2, 4, 3, 32), torch.zeros(2, 1, 10, 32), torch.zeros(2, 1, 10, 32)
    options = {name: value for name, value in given.items() if name != "kv_heads"}
    before = k._version
    ops.qk_norm_rope_(qkv, q, k, v, kv_offset=7, **options)
    assert k._version > before
    for found, part in zip((q, k[:, :, 7:], v[:, :, 7:]), ops.qk_norm_rope(qkv, heads, **given), strict=True):
        assert torch.equal(found, part)
    assert not k[:, :, :7].any()
    assert not v[:, :, :7].any()


def test_what_is_not_finite_stays_in_its_head():
    qkv, heads, given = make((1, 4, 3, 3, 72), torch.float32, norm="layer", biased=False)
    plain = ops.qk_norm_rope(qkv, heads, **given)
    spoiled = qkv.clone()
    spoiled[0, 1, 72 + 5] = math.inf  # token 1, head 1 of the queries
    found = ops.qk_norm_rope(spoiled, heads, **given)
    good = torch.ones(1, 3, 4, dtype=torch.bool)
    good[0, 1, 1] = False
    assert torch.equal(found[0][good], plain[0][good])
    assert found[0][0, 1, 1].isnan().all()
    assert torch.equal(found[1], plain[1])


def test_no_norm_and_no_rotation_move_bits():
    qkv = torch.randn(2, 5, 9 * 20).to(torch.float16)
    qkv[0, 0, 0] = -0.0
    for found, part in zip(
        ops.qk_norm_rope(qkv, 3), qkv.unflatten(-1, (3, 3, 20)).permute(2, 0, 3, 1, 4), strict=True
    ):
        assert torch.equal(found.view(torch.int16), part.contiguous().view(torch.int16))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pairs", PAIRS)
def test_every_instruction_set_gives_the_same_bits(dtype, pairs):
    before = _library.cpu_isa()
    assert before is not None
    for norm, size in (("layer", (2, 5, 3, 1, 72)), ("rms", (1, 6, 2, 2, 128)), ("rms", (1, 3, 1, 1, 10))):
        qkv, heads, given = make(size, dtype, norm=norm)
        found = []
        try:
            for name in _library.cpu_isas():
                _library.select_cpu_isa(name)
                found.append(ops.qk_norm_rope(qkv, heads, pairs=pairs, **given))
        finally:
            _library.select_cpu_isa(before)
        for other in found[1:]:
            assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("head", [64, 72])
def test_threads_and_large_footprints_give_the_same_bits(head):
    """Beyond the size from which outputs bypass the caches, against the same in parts."""
    qkv, heads, given = make((2, 300, 6, 6, head), torch.float32)
    for pairs in PAIRS:
        whole = ops.qk_norm_rope(qkv, heads, pairs=pairs, **given)
        for b in range(2):
            part = ops.qk_norm_rope(qkv[b : b + 1], heads, pairs=pairs, **given)
            assert all(torch.equal(a[b : b + 1], c) for a, c in zip(whole, part, strict=True))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("pairs", PAIRS)
def test_gradients(norm, pairs):
    qkv, heads, given = make((2, 3, 2, 1, 6), norm=norm)
    names = [name for name in given if name not in ("kv_heads", "norm", "cos", "sin")]
    learned = [qkv.requires_grad_(), *(given[name].requires_grad_() for name in names)]

    def run(qkv, *values):
        return ops.qk_norm_rope(qkv, heads, pairs=pairs, **{**given, **dict(zip(names, values, strict=True))})

    assert torch.autograd.gradcheck(run, learned)
    assert torch.autograd.gradgradcheck(run, learned)


def test_gradients_reach_half_precision_and_without_grad_there_is_none():
    qkv, heads, given = make((2, 3, 2, 2, 32), torch.bfloat16)
    qkv.requires_grad_()
    with torch.no_grad():
        assert not any(t.requires_grad for t in ops.qk_norm_rope(qkv, heads, **given))
    q, k, v = ops.qk_norm_rope(qkv, heads, **given)
    (q.float().sum() + (k * v).float().sum()).backward()
    assert qkv.grad is not None
    assert qkv.grad.dtype == torch.bfloat16
    assert bool(qkv.grad.isfinite().all())


def test_opcheck_and_compile():
    qkv, heads, given = make((2, 3, 2, 1, 8), torch.float32)
    options = (
        heads, 1, given["bias"], given["q_weight"], given["k_weight"], None, None, 1, 1e-6, given["cos"], given["sin"], True
    )  # fmt: skip
    torch.library.opcheck(torch.ops.pyflowcore.qk_norm_rope.default, (qkv, *options))
    learning = qkv.clone().requires_grad_()
    torch.library.opcheck(torch.ops.pyflowcore.qk_norm_rope.default, (learning, *options))
    buffers = torch.zeros(2, 2, 5, 8), torch.zeros(2, 1, 5, 8), torch.zeros(2, 1, 5, 8)
    torch.library.opcheck(torch.ops.pyflowcore.qk_norm_rope_.default, (qkv, *buffers, *options, 1, 2))
    compiled = torch.compile(lambda x: ops.qk_norm_rope(x, heads, **given), backend="eager", fullgraph=True)
    for a, b in zip(compiled(qkv), ops.qk_norm_rope(qkv, heads, **given), strict=True):
        assert torch.equal(a, b)


@pytest.mark.filterwarnings("ignore:pyflowcore. .* runs in plain PyTorch")
def test_the_plain_version_agrees():
    for norm, number in zip(NORMS, range(3), strict=True):
        for pairs in PAIRS:
            qkv, heads, given = make((2, 5, 3, 1, 48), torch.float64, norm=norm)
            options = [given.get(n) for n in ("bias", "q_weight", "k_weight", "q_shift", "k_shift")]
            arguments = (heads, 1, *options, number, 1e-6, given["cos"], given["sin"], pairs == "adjacent")
            made = _plain_tokens.qk_norm_rope(qkv, *arguments)
            for a, b in zip(made, wanted(qkv, heads, given | {"pairs": pairs}), strict=True):
                close(a, b, torch.float64)
            buffers = [torch.zeros(2, count, 7, 48, dtype=torch.float64) for count in (3, 1, 1)]
            _plain_tokens.qk_norm_rope_(qkv, *buffers, *arguments, 2, 1)
            assert torch.equal(buffers[0][:, :, 2:], made[0])
            assert torch.equal(buffers[1][:, :, 1:6], made[1])


QKV = torch.zeros(2, 4, 3 * 2 * 8)
TABLE = torch.zeros(4, 4)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"qkv": QKV.int()}, TypeError, r"qkv must be float32.*int32"),
        ({"qkv": QKV[0]}, ValueError, r"qkv must be \[B, N, 6 D\].*\[4, 48\]"),
        ({"heads": 5}, ValueError, r"qkv must be \[B, N, 15 D\]"),
        ({"heads": 0}, ValueError, "heads and kv_heads must not be negative nor both zero, got 0 and 0"),
        ({"qkv": torch.zeros(1, 1, 6 * 514)}, ValueError, "D from 1 to 512"),
        ({"norm": "batch"}, ValueError, "norm must be one of 'none', 'rms', 'layer', got 'batch'"),
        ({"pairs": "thirds"}, ValueError, "pairs must be 'adjacent' or 'halves', got 'thirds'"),
        ({"bias": torch.zeros(47)}, ValueError, r"bias must be \[48\], got \[47\]"),
        ({"q_weight": torch.ones(8), "norm": "none"}, ValueError, "q_weight was given, and norm is 'none'"),
        ({"k_shift": torch.ones(9)}, ValueError, r"k_shift must be \[8\]"),
        (
            {"q_weight": torch.ones(8), "k_weight": torch.ones(8).half()},
            TypeError,
            "k_weight is torch.float16",
        ),
        ({"cos": TABLE}, ValueError, "cos and sin must be given both"),
        ({"cos": TABLE[:3], "sin": TABLE[:3]}, ValueError, r"\[4, 4 or 8\].*got \[3, 4\]"),
        ({"cos": TABLE, "sin": TABLE.double()}, TypeError, "sin is torch.float64"),
        ({"cos": TABLE.clone().requires_grad_(), "sin": TABLE}, ValueError, "must not require a gradient"),
        ({"bias": torch.zeros(48, device="meta")}, ValueError, "bias is on meta, qkv is on cpu"),
    ],
)
def test_refusals(change, error, message):
    given = {"qkv": QKV, "heads": 2, "norm": "rms"} | change
    with pytest.raises(error, match=message):
        ops.qk_norm_rope(given.pop("qkv"), given.pop("heads"), **given)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"q": torch.zeros(2, 2, 8)}, ValueError, r"q must be \[B, heads, M, D\]"),
        ({"v": torch.zeros(2, 1, 6, 8)}, ValueError, r"v must be \[2, 2, M, 8\], got \[2, 1, 6, 8\]"),
        ({"k": torch.zeros(2, 2, 6, 8).half()}, TypeError, "k is torch.float16, qkv is torch.float32"),
        ({"q_offset": 3}, ValueError, "q has 6 tokens, 4 from 3 on do not fit"),
        ({"kv_offset": -1}, ValueError, "k has 6 tokens, 4 from -1 on"),
        ({"k": torch.zeros(2, 6, 2, 8).transpose(1, 2)}, ValueError, "k is written and must be contiguous"),
        ({"v": torch.zeros(2, 2, 6, 8).requires_grad_()}, ValueError, "v is written and must not require"),
    ],
)
def test_buffer_refusals(change, error, message):
    given = {name: torch.zeros(2, 2, 6, 8) for name in ("q", "k", "v")} | change
    with pytest.raises(error, match=message):
        ops.qk_norm_rope_(QKV, given.pop("q"), given.pop("k"), given.pop("v"), **given)


def test_shared_memory_is_refused():
    memory = torch.zeros(2, 2, 6, 8)
    with pytest.raises(ValueError, match="k and v overlap in memory"):
        ops.qk_norm_rope_(QKV, torch.zeros(2, 2, 6, 8), memory, memory)


def test_the_compiled_operator_refuses_as_well():
    buffers = [torch.zeros(2, 2, 6, 8) for _ in range(3)]
    nothing = [None] * 5
    with pytest.raises(RuntimeError, match="q has 6 tokens, 4 from 3 on do not fit"):
        torch.ops.pyflowcore.qk_norm_rope_(QKV, *buffers, 2, 2, *nothing, 0, 1e-6, None, None, True, 3, 0)
    with pytest.raises(RuntimeError, match=r"cos and sin must be \[4, 4 or 8\]"):
        torch.ops.pyflowcore.qk_norm_rope(QKV, 2, 2, *nothing, 0, 1e-6, TABLE[:2], TABLE[:2], True)
