"""qk_norm_rope: bias, norm, rotation and layout of queries, keys and values in one pass over the product that made them."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from .. import _library
from ._plain_tokens import NORMS, heads_of, normalise, partners, spread
from .combine import _check_overlap, mark_written

_OPTIONS = (
    "int heads, int kv_heads, Tensor? bias, Tensor? q_weight, Tensor? k_weight, Tensor? q_shift, Tensor? k_shift, int norm, "
    "float eps, Tensor? cos, Tensor? sin, bool adjacent"
)
_library.define(f"qk_norm_rope(Tensor qkv, {_OPTIONS}) -> (Tensor, Tensor, Tensor)")
_library.define(
    f"qk_norm_rope_(Tensor qkv, Tensor(a!) q, Tensor(b!) k, Tensor(c!) v, {_OPTIONS}, int q_offset, int kv_offset) -> ()"
)

Norm = Literal["none", "rms", "layer"]
Pairs = Literal["adjacent", "halves"]
MAX_HEAD = 512
_NUMBERS = {name: number for number, name in enumerate(NORMS)}
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _check(
    qkv: Tensor, heads: int, kv_heads: int, bias: Tensor | None, parameters: dict[str, Tensor | None], norm: str,
    cos: Tensor | None, sin: Tensor | None, pairs: str,
) -> int:  # fmt: skip
    """The dimensions of a head."""
    if qkv.dtype not in _DTYPES:
        raise TypeError(f"qkv must be float32, float64, bfloat16 or float16, got {qkv.dtype}")
    if heads < 0 or kv_heads < 0 or heads + kv_heads == 0:
        raise ValueError(f"heads and kv_heads must not be negative nor both zero, got {heads} and {kv_heads}")
    parts = heads + 2 * kv_heads
    if qkv.dim() != 3 or qkv.shape[2] % parts or not 0 < qkv.shape[2] // parts <= MAX_HEAD:
        raise ValueError(
            f"qkv must be [B, N, {parts} D] for {heads} heads and {kv_heads} kv_heads, with D from 1 to {MAX_HEAD}; got "
            f"{list(qkv.shape)}"
        )
    head: int = qkv.shape[2] // parts
    if norm not in _NUMBERS:
        raise ValueError(f"norm must be one of {', '.join(map(repr, NORMS))}, got {norm!r}")
    if pairs not in ("adjacent", "halves"):
        raise ValueError(f"pairs must be 'adjacent' or 'halves', got {pairs!r}")
    if bias is not None and bias.shape != qkv.shape[2:]:
        raise ValueError(f"bias must be [{qkv.shape[2]}], got {list(bias.shape)}")
    dtype = None
    for name, tensor in parameters.items():
        if tensor is None:
            continue
        if norm == "none":
            raise ValueError(
                f"{name} was given, and norm is 'none': there is nothing that it scales or moves"
            )
        if tensor.shape != (head,):
            raise ValueError(f"{name} must be [{head}], as long as a head, got {list(tensor.shape)}")
        if dtype not in (None, tensor.dtype):
            raise TypeError(f"{name} is {tensor.dtype}, the norms' other parameters are {dtype}")
        dtype = tensor.dtype
    if (cos is None) != (sin is None):
        raise ValueError("cos and sin must be given both or not at all")
    if cos is not None and sin is not None:
        wanted = f"[{qkv.shape[1]}, {head // 2} or {head}]"
        if head % 2:
            raise ValueError(f"cos and sin turn pairs, and a head has {head} dimensions")
        if (
            cos.shape != sin.shape
            or cos.dim() not in (2, 3)
            or cos.shape[-2] != qkv.shape[1]
            or cos.shape[-1] not in (head, head // 2)
            or (cos.dim() == 3 and cos.shape[0] != qkv.shape[0])
        ):
            raise ValueError(
                f"cos and sin must be {wanted}, or that for each of {qkv.shape[0]} samples; got {list(cos.shape)} and "
                f"{list(sin.shape)}"
            )
        if cos.dtype != sin.dtype:
            raise TypeError(f"cos is {cos.dtype}, sin is {sin.dtype}; they must agree")
        if torch.is_grad_enabled() and (cos.requires_grad or sin.requires_grad):
            raise ValueError("cos and sin must not require a gradient: qk_norm_rope has none in its tables")
    for name, tensor in (("bias", bias), *parameters.items(), ("cos", cos), ("sin", sin)):
        if tensor is not None and tensor.device != qkv.device:
            raise ValueError(f"{name} is on {tensor.device}, qkv is on {qkv.device}")
        if tensor is not None and not tensor.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {tensor.dtype}")
    return head


def qk_norm_rope(
    qkv: Tensor,
    heads: int,
    *,
    kv_heads: int | None = None,
    bias: Tensor | None = None,
    norm: Norm = "none",
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    q_shift: Tensor | None = None,
    k_shift: Tensor | None = None,
    eps: float = 1e-6,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    pairs: Pairs = "adjacent",
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values as scaled_dot_product_attention wants them, from one product, in one pass.

    Of each head of q and k: the product's bias is added, the vector is normalised over its own dimensions (RMS norm: Zhang &
    Sennrich 2019; layer norm: Ba et al. 2016; of queries and keys: Henry et al. 2020, Dehghani et al. 2023), scaled, moved, and
    turned by the angles of its token (Su et al. 2021, section 3.2). v gets its bias. All in float32 (float64 for float64),
    rounded once. Sums run in a fixed order: the bits depend on no batch, thread count, instruction set or device.

    Args:
        qkv: [B, N, (H + 2 Hkv) D] in the order q, k, v, heads within them; float32, float64, bfloat16 or float16. The last
            dimension must be contiguous to be read where it lies; else it is copied first.
        heads: H, of the queries; may be 0 where there are keys and values alone.
        kv_heads: Hkv, of keys and values. None: as many as heads.
        bias: [(H + 2 Hkv) D] of the product, which is then computed without.
        norm: "none", "rms" or "layer".
        q_weight, k_weight: [D], the norms' scales, or None.
        q_shift, k_shift: [D], what is added after them, or None.
        eps: added to the mean square (the variance) under the root.
        cos, sin: float [N, D / 2] or [N, D], or that for each sample, [B, N, ..]; None: nothing turns. With D / 2 columns
            (``models.rope.rotary_table``) the k-th turns the k-th pair; with D, each dimension has its own.
        pairs: "adjacent": 2k turns with 2k + 1; "halves": k with k + D / 2.

    Returns:
        q [B, H, N, D], k and v [B, Hkv, N, D], contiguous, of qkv's dtype. Differentiable in qkv, bias, weights and shifts.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is allowed; also where cos or sin requires a gradient.
    """
    kv_heads = heads if kv_heads is None else kv_heads
    parameters = {"q_weight": q_weight, "k_weight": k_weight, "q_shift": q_shift, "k_shift": k_shift}
    head = _check(qkv, heads, kv_heads, bias, parameters, norm, cos, sin, pairs)
    number, adjacent = _NUMBERS[norm], pairs == "adjacent"
    learns = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (qkv, bias, *parameters.values())
    )
    if learns or torch.compiler.is_compiling() or type(qkv) is not Tensor:
        return torch.ops.pyflowcore.qk_norm_rope(
            qkv, heads, kv_heads, bias, q_weight, k_weight, q_shift, k_shift, number, eps, cos, sin, adjacent
        )
    # An operator with a gradient costs tens of microseconds even where none is wanted.
    batch, tokens = qkv.shape[:2]
    q = qkv.new_empty((batch, heads, tokens, head))
    k = qkv.new_empty((batch, kv_heads, tokens, head))
    v = torch.empty_like(k)
    torch.ops.pyflowcore.qk_norm_rope_(
        qkv,
        q,
        k,
        v,
        heads,
        kv_heads,
        bias,
        q_weight,
        k_weight,
        q_shift,
        k_shift,
        number,
        eps,
        cos,
        sin,
        adjacent,
        0,
        0,
    )
    return q, k, v


def qk_norm_rope_(
    qkv: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    q_offset: int = 0,
    kv_offset: int = 0,
    bias: Tensor | None = None,
    norm: Norm = "none",
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    q_shift: Tensor | None = None,
    k_shift: Tensor | None = None,
    eps: float = 1e-6,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    pairs: Pairs = "adjacent",
) -> None:
    """:func:`qk_norm_rope` into buffers that hold more tokens: two streams side by side, or keys after a cached prefix.

    Args:
        qkv: [B, N, (H + 2 Hkv) D].
        q: [B, H, M, D], k and v: [B, Hkv, M', D], contiguous, of qkv's dtype; tokens offset .. offset + N are written. They
            share no memory with each other or with what is read. H and Hkv are read from them.
        q_offset, kv_offset: the token of the buffer where the first one goes.

    The others are those of :func:`qk_norm_rope`. No gradient.

    Raises:
        TypeError, ValueError: as :func:`qk_norm_rope`; ValueError where a buffer has another shape, is too short, requires a
            gradient, or overlaps.
    """
    for name, buffer in (("q", q), ("k", k), ("v", v)):
        if buffer.dim() != 4:
            raise ValueError(f"{name} must be [B, heads, M, D], got {list(buffer.shape)}")
    heads, kv_heads = q.shape[1], k.shape[1]
    parameters = {"q_weight": q_weight, "k_weight": k_weight, "q_shift": q_shift, "k_shift": k_shift}
    head = _check(qkv, heads, kv_heads, bias, parameters, norm, cos, sin, pairs)
    for name, buffer, count, offset in (
        ("q", q, heads, q_offset),
        ("k", k, kv_heads, kv_offset),
        ("v", v, kv_heads, kv_offset),
    ):
        if buffer.shape[:2] != (qkv.shape[0], count) or buffer.shape[3] != head:
            raise ValueError(f"{name} must be [{qkv.shape[0]}, {count}, M, {head}], got {list(buffer.shape)}")
        if buffer.dtype != qkv.dtype:
            raise TypeError(f"{name} is {buffer.dtype}, qkv is {qkv.dtype}; they must agree")
        if buffer.device != qkv.device:
            raise ValueError(f"{name} is on {buffer.device}, qkv is on {qkv.device}")
        if not buffer.is_contiguous():
            raise ValueError(
                f"{name} is written and must be contiguous, got strides {tuple(buffer.stride())}"
            )
        if not 0 <= offset <= buffer.shape[2] - qkv.shape[1]:
            raise ValueError(
                f"{name} has {buffer.shape[2]} tokens, {qkv.shape[1]} from {offset} on do not fit"
            )
        if torch.is_grad_enabled() and buffer.requires_grad:
            raise ValueError(f"{name} is written and must not require a gradient: qk_norm_rope has one")
    _check_overlap(
        qkv,
        {"q": q, "k": k, "v": v},
        {"qkv": qkv, "bias": bias, **parameters, "cos": cos, "sin": sin},
        in_place=False,
    )
    torch.ops.pyflowcore.qk_norm_rope_(
        qkv, q, k, v, heads, kv_heads, bias, q_weight, k_weight, q_shift, k_shift, _NUMBERS[norm], eps, cos, sin,
        pairs == "adjacent", q_offset, kv_offset,
    )  # fmt: skip
    mark_written(q, k, v)


@torch.library.register_fake("pyflowcore::qk_norm_rope_", lib=_library.definitions)
def _fake_in_place(*args: Any) -> None:
    return None


@torch.library.register_fake("pyflowcore::qk_norm_rope", lib=_library.definitions)
def _fake(qkv: Tensor, heads: int, kv_heads: int, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    batch, tokens, width = qkv.shape
    head = width // (heads + 2 * kv_heads)
    q = qkv.new_empty((batch, heads, tokens, head))
    return q, qkv.new_empty((batch, kv_heads, tokens, head)), qkv.new_empty((batch, kv_heads, tokens, head))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    qkv, heads, kv_heads, bias, q_weight, k_weight, q_shift, k_shift, norm, eps, cos, sin, adjacent = inputs
    ctx.save_for_backward(qkv, bias, q_weight, k_weight, q_shift, k_shift, cos, sin)
    ctx.options = heads, kv_heads, norm, eps, adjacent


def _unturned(grad: Tensor, cos: Tensor | None, sin: Tensor | None, adjacent: bool) -> Tensor:
    """The transpose of the rotation: what multiplied a dimension's partner goes back to the partner."""
    if cos is None or sin is None:
        return grad
    cosine, sine = (spread(table, grad.shape[-1], adjacent, grad) for table in (cos, sin))
    return grad * cosine - partners(grad * sine, adjacent)


def _backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    """Heads are normalised again from qkv, which is all that is kept."""
    qkv, bias, q_weight, k_weight, q_shift, k_shift, cos, sin = ctx.saved_tensors
    heads, kv_heads, norm, eps, adjacent = ctx.options
    before = heads_of(qkv, heads, kv_heads, bias)
    parts, scales, shifts = [], [], []
    for x, grad, weight, shift in zip(
        before[:2], grads[:2], (q_weight, k_weight), (q_shift, k_shift), strict=True
    ):
        grad = _unturned(grad.to(x.dtype), cos, sin, adjacent)
        scale_grad = shift_grad = None
        if norm:
            normal, inverse = normalise(x, norm, eps)
            if weight is not None:
                scale_grad = (grad * normal).sum((0, 1, 2)).to(weight.dtype)
            if shift is not None:
                shift_grad = grad.sum((0, 1, 2)).to(shift.dtype)
            grad = grad if weight is None else grad * weight.to(x.dtype)
            along = grad - normal * (grad * normal).mean(-1, keepdim=True)
            grad = inverse * (along - grad.mean(-1, keepdim=True) if norm == 2 else along)
        parts.append(grad)
        scales.append(scale_grad)
        shifts.append(shift_grad)
    parts.append(grads[2].to(before[2].dtype))
    whole = torch.cat(parts, dim=1).transpose(1, 2).flatten(2)
    bias_grad = None if bias is None else whole.sum((0, 1)).to(bias.dtype)
    nothing = (None,) * 5
    return whole.to(qkv.dtype), None, None, bias_grad, *scales, *shifts, *nothing


torch.library.register_autograd(
    "pyflowcore::qk_norm_rope", _backward, setup_context=_setup, lib=_library.definitions
)
