"""patchify and unpatchify: images as tokens and back, each one pass over memory, with the cast."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from .. import _library

_library.define("patchify(Tensor x, int high, int wide, bool channels_first, ScalarType dtype) -> Tensor")
_library.define(
    "unpatchify(Tensor tokens, int rows, int columns, int high, int wide, bool channels_first, ScalarType dtype) -> "
    "Tensor"
)
_library.define("patchify_(Tensor x, Tensor(a!) out, int high, int wide, bool channels_first) -> ()")
_library.define("unpatchify_(Tensor tokens, Tensor(a!) out, int high, int wide, bool channels_first) -> ()")

Order = Literal["channels_first", "channels_last"]
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _sides(patch: int | tuple[int, int]) -> tuple[int, int]:
    high, wide = (patch, patch) if isinstance(patch, int) else patch
    if high < 1 or wide < 1:
        raise ValueError(f"patch must be positive, got {patch}")
    return high, wide


def _check(name: str, given: Tensor, dtype: torch.dtype | None, order: str) -> torch.dtype:
    for label, kind in ((name, given.dtype), ("dtype", given.dtype if dtype is None else dtype)):
        if kind not in _DTYPES:
            raise TypeError(f"{label} must be float32, float64, bfloat16 or float16, got {kind}")
    if order not in ("channels_first", "channels_last"):
        raise ValueError(f"order must be 'channels_first' or 'channels_last', got {order!r}")
    return given.dtype if dtype is None else dtype


def _learns(tensor: Tensor) -> bool:
    special = torch.compiler.is_compiling() or type(tensor) is not Tensor
    return special or (torch.is_grad_enabled() and tensor.requires_grad)


def patchify(
    x: Tensor,
    patch: int | tuple[int, int],
    *,
    order: Order = "channels_first",
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Images [B, C, H, W] as tokens [B, (H / p) (W / q), C p q], row by row.

    Args:
        x: any float dtype and strides (what is not contiguous is copied first).
        patch: its side p, or (p, q).
        order: within a token: "channels_first" (c, u, v), what a convolution's weights have; "channels_last" (u, v, c).
        dtype: of the tokens; None: x's.

    Returns:
        A new tensor; differentiable.

    Raises:
        TypeError, ValueError: dtypes that are no float; sides that the patch does not divide; an unknown order.
    """
    to = _check("x", x, dtype, order)
    high, wide = _sides(patch)
    if x.dim() != 4 or x.shape[2] % high or x.shape[3] % wide:
        raise ValueError(
            f"x must be [B, C, H, W] with sides that {high} and {wide} divide, got {list(x.shape)}"
        )
    if _learns(x):
        return torch.ops.pyflowcore.patchify(x, high, wide, order == "channels_first", to)
    return _patchify(x, high, wide, order == "channels_first", to)


def unpatchify(
    tokens: Tensor,
    grid: tuple[int, int],
    patch: int | tuple[int, int],
    *,
    order: Order = "channels_first",
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The inverse of :func:`patchify`: tokens [B, rows columns, C p q] as images [B, C, rows p, columns q].

    Args:
        grid: (rows, columns) of patches.

    The others are those of :func:`patchify`, and so are the errors.
    """
    to = _check("tokens", tokens, dtype, order)
    high, wide = _sides(patch)
    rows, columns = grid
    if tokens.dim() != 3 or tokens.shape[1] != rows * columns or tokens.shape[2] % (high * wide):
        raise ValueError(
            f"tokens must be [B, {rows * columns}, C * {high * wide}] for a grid of {rows} x {columns}, got "
            f"{list(tokens.shape)}"
        )
    if _learns(tokens):
        return torch.ops.pyflowcore.unpatchify(
            tokens, rows, columns, high, wide, order == "channels_first", to
        )
    return _unpatchify(tokens, rows, columns, high, wide, order == "channels_first", to)


def _tokens_like(x: Tensor, high: int, wide: int, dtype: torch.dtype) -> Tensor:
    batch, channels, height, width = x.shape
    return x.new_empty((batch, (height // high) * (width // wide), channels * high * wide), dtype=dtype)


def _images_like(tokens: Tensor, rows: int, columns: int, high: int, wide: int, dtype: torch.dtype) -> Tensor:
    shape = (tokens.shape[0], tokens.shape[2] // (high * wide), rows * high, columns * wide)
    return tokens.new_empty(shape, dtype=dtype)


def _patchify(x: Tensor, high: int, wide: int, channels_first: bool, dtype: torch.dtype) -> Tensor:
    out = _tokens_like(x, high, wide, dtype)
    torch.ops.pyflowcore.patchify_(x, out, high, wide, channels_first)
    return out


def _unpatchify(
    tokens: Tensor, rows: int, columns: int, high: int, wide: int, channels_first: bool, dtype: torch.dtype
) -> Tensor:
    out = _images_like(tokens, rows, columns, high, wide, dtype)
    torch.ops.pyflowcore.unpatchify_(tokens, out, high, wide, channels_first)
    return out


# One walk serves both directions, so the operators with a gradient only allocate.
_library.definitions.impl("patchify", _patchify, "CompositeExplicitAutograd")
_library.definitions.impl("unpatchify", _unpatchify, "CompositeExplicitAutograd")


@torch.library.register_fake("pyflowcore::patchify", lib=_library.definitions)
def _fake_patchify(x: Tensor, high: int, wide: int, channels_first: bool, dtype: torch.dtype) -> Tensor:
    return _tokens_like(x, high, wide, dtype)


@torch.library.register_fake("pyflowcore::unpatchify", lib=_library.definitions)
def _fake_unpatchify(
    tokens: Tensor, rows: int, columns: int, high: int, wide: int, channels_first: bool, dtype: torch.dtype
) -> Tensor:
    return _images_like(tokens, rows, columns, high, wide, dtype)


@torch.library.register_fake("pyflowcore::patchify_", lib=_library.definitions)
def _fake_patchify_(*args: Any) -> None:
    return None


@torch.library.register_fake("pyflowcore::unpatchify_", lib=_library.definitions)
def _fake_unpatchify_(*args: Any) -> None:
    return None


def _setup_patchify(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, high, wide, channels_first, _ = inputs
    ctx.options = x.shape[2] // high, x.shape[3] // wide, high, wide, channels_first, x.dtype


def _backward_patchify(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return torch.ops.pyflowcore.unpatchify(grad, *ctx.options), None, None, None, None


def _setup_unpatchify(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    tokens, _, _, high, wide, channels_first, _ = inputs
    ctx.options = high, wide, channels_first, tokens.dtype


def _backward_unpatchify(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return torch.ops.pyflowcore.patchify(grad, *ctx.options), *[None] * 6


torch.library.register_autograd(
    "pyflowcore::patchify", _backward_patchify, setup_context=_setup_patchify, lib=_library.definitions
)
torch.library.register_autograd(
    "pyflowcore::unpatchify", _backward_unpatchify, setup_context=_setup_unpatchify, lib=_library.definitions
)
