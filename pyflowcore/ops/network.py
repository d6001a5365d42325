"""network: a small packed network, at one point per sample. csrc/core/network.hpp has the formulas and the order of sums."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _library
from ..network import ACTIVATIONS, FEATURES, MAX_INPUTS, MAX_LAYERS, MAX_WIDTH, PANEL, PRECISIONS

_library.define(
    "network(Tensor x, Tensor t, Tensor? cond, Tensor params, Tensor layers, Tensor features, int precision=0) -> Tensor"
)


def _check_table(name: str, table: Tensor, width: int) -> None:
    if (
        table.dtype != torch.float64
        or table.dim() != 2
        or table.shape[1] != width
        or table.device.type != "cpu"
    ):
        raise ValueError(
            f"{name} must be float64 [{name}, {width}] on the CPU, got {table.dtype} {list(table.shape)} on {table.device}"
        )


def _check_layers(layers: Tensor, inputs: int, dim: int, params: Tensor) -> None:
    """Widths that follow on each other, known activations, residuals of the same width, and enough parameters."""
    if not 1 <= len(layers) <= MAX_LAYERS:
        raise ValueError(f"layers has {len(layers)} rows, allowed are 1 to {MAX_LAYERS}")
    widths: list[int] = []
    width = inputs
    for number, record in enumerate(layers.tolist()):
        into, out, activation, _, residual, after, _, weights, bias = record
        if into != width:
            raise ValueError(f"layers: layer {number} takes {into:g} inputs, {width} come")
        if not 1 <= out <= MAX_WIDTH:
            raise ValueError(f"layers: layer {number} has {out:g} outputs, allowed are 1 to {MAX_WIDTH}")
        if not (0 <= activation < len(ACTIVATIONS) and 0 <= after < len(ACTIVATIONS)):
            raise ValueError(f"layers: layer {number} has activation {activation:g}, then {after:g}")
        widths.append(int(into))
        if residual >= 0 and not (1 <= residual <= number and widths[int(residual)] == out):
            raise ValueError(f"layers: layer {number} cannot add the input of layer {residual:g}")
        padded = -(-int(out) // PANEL) * PANEL
        if min(weights, bias) < 0 or max(weights + padded * into, bias + padded) > params.numel():
            raise ValueError(
                f"params has {params.numel()} elements, layer {number} reads beyond them (weights at {weights:g}, bias at "
                f"{bias:g})"
            )
        width = int(out)
    if width != dim:
        raise ValueError(f"layers: the last layer has {width} outputs, x has {dim} elements a sample")


def check_network(
    x: Tensor, cond: Tensor | None, params: Tensor, layers: Tensor, features: Tensor, precision: int, name: str = "x"
) -> None:  # fmt: skip
    """What the operators ask of a packed network and of the state that it takes."""
    if x.dim() < 1:
        raise ValueError(f"{name} must have a batch dimension, got a scalar")
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name} must be float32 or float64, got {x.dtype}")
    for other, tensor in (("params", params), ("cond", cond)):
        if tensor is None:
            continue
        if tensor.dtype != x.dtype:
            raise TypeError(f"{other} is {tensor.dtype}, {name} is {x.dtype}; they must agree")
        if tensor.device != x.device:
            raise ValueError(f"{other} is on {tensor.device}, {name} is on {x.device}")
    if params.dim() != 1:
        raise ValueError(f"params must be flat, got shape {list(params.shape)}")
    if cond is not None and (cond.dim() != 2 or not 1 <= cond.shape[1] <= MAX_INPUTS):
        raise ValueError(f"cond must be [B, C] with C from 1 to {MAX_INPUTS}, got {list(cond.shape)}")
    _check_table("layers", layers, 9)
    _check_table("features", features, 3)
    if len(features) > MAX_INPUTS:
        raise ValueError(f"features has {len(features)} rows, at most {MAX_INPUTS} are allowed")
    if not 0 <= precision < len(PRECISIONS):
        raise ValueError(f"precision is {precision}, allowed are 0 ({', '.join(PRECISIONS)}) to 2")
    if precision != 0 and x.dtype != torch.float32:
        raise TypeError(f"precision {PRECISIONS[precision]} is for float32 states, {name} is {x.dtype}")
    if torch.compiler.is_compiling():
        return  # a compiled function cannot look at the tables; the kernel does
    for table_name, table in (("layers", layers), ("features", features)):
        if not bool(torch.isfinite(table).all()):
            raise ValueError(f"{table_name} has an entry that is not finite")
    if bool(((features[:, 0] < 0) | (features[:, 0] >= len(FEATURES))).any()):
        raise ValueError(f"features: a kind is none of 0 to {len(FEATURES) - 1}")
    dim = x[0].numel() if x.shape[0] else x.shape[1:].numel()
    inputs = len(features) + (0 if cond is None else cond.shape[1]) + dim
    _check_layers(layers, inputs, dim, params)


def network(
    x: Tensor, t: Tensor, cond: Tensor | None, params: Tensor, layers: Tensor, features: Tensor, precision: int = 0
) -> Tensor:  # fmt: skip
    """The network at x and t.

    Args:
        x: [B, ...], float32 or float64; a sample's elements in their order are the network's input.
        t: [B], or one time without dimensions, any float dtype; its features are computed in float64 and rounded once.
        cond: [B, C] of x's dtype, or None for a network without conditions.
        params: the packed weights, flat, of x's dtype: ``Network.pack``.
        layers, features: float64 tables on the CPU: ``Network.layer_table()``, ``feature_table()``.
        precision: 0 float32 (exact: x's dtype), 1 tf32, 2 bfloat16; the last two on CUDA, for float32.

    Returns:
        A new tensor of x's shape and dtype. No gradient: ``pyflowcore.network.forward`` has one.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is allowed.
    """
    check_network(x, cond, params, layers, features, precision)
    if not t.is_floating_point():
        raise TypeError(f"t must be floating point, got {t.dtype}")
    if t.dim() > 1 or (t.dim() == 1 and t.shape[0] != x.shape[0]):
        raise ValueError(f"t must be [{x.shape[0]}] or one time, got shape {list(t.shape)}")
    if t.dim() == 1 and t.device != x.device:
        raise ValueError(f"t is on {t.device}, x is on {x.device}")
    if cond is not None and cond.shape[0] != x.shape[0]:
        raise ValueError(f"cond has {cond.shape[0]} rows, x has {x.shape[0]} samples")
    return torch.ops.pyflowcore.network(x, t, cond, params, layers, features, precision)


@torch.library.register_fake("pyflowcore::network", lib=_library.definitions)
def _fake(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)
