"""Network: a small network as the engines take it, and how its weights are packed. csrc/core/network.hpp has the formulas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["ACTIVATIONS", "FEATURES", "PRECISIONS", "Dense", "Feature", "Network", "forward", "unpack"]

PANEL, MAX_LAYERS, MAX_WIDTH, MAX_INPUTS = 16, 34, 512, 1024

# By their numbers in the table of layers.
ACTIVATIONS = (
    "identity", "relu", "silu", "gelu", "gelu_tanh", "selu", "tanh", "softplus", "elu", "sigmoid", "leaky_relu",
)  # fmt: skip
FEATURES = ("linear", "sine", "cosine")

# By their numbers for the operators: sums of products in the state's dtype; products of tf32 or bfloat16, summed in float32
# (CUDA only).
PRECISIONS = ("float32", "tf32", "bfloat16")


@dataclass(frozen=True)
class Feature:
    """One feature of time: ``frequency * t + phase``, or its sine or cosine."""

    kind: str
    frequency: float
    phase: float = 0.0


@dataclass(frozen=True)
class Dense:
    """One layer: ``after(activation(W h + b) + h_residual)``.

    Attributes:
        weight: [out, in]; of layer 0 its columns are the features of t, the conditions, x, in this order.
        bias: [out], or None.
        activation, after: names of ACTIVATIONS; ``parameter``, ``after_parameter``: beta of softplus, alpha of elu, slope of
            leaky_relu.
        residual: the layer whose input is added, from 1 to this one's number; -1 for none.
    """

    weight: Tensor
    bias: Tensor | None
    activation: str = "identity"
    parameter: float = 0.0
    residual: int = -1
    after: str = "identity"
    after_parameter: float = 0.0


@dataclass(frozen=True)
class Network:
    """The layers, the features of time and the sizes.

    Attributes:
        layers: from the input to the output.
        features: of t.
        conditions: how many numbers of condition a sample has.
        dim: elements of x.
    """

    layers: tuple[Dense, ...]
    features: tuple[Feature, ...]
    conditions: int
    dim: int = field(default=0)

    def layer_table(self) -> Tensor:
        """Float64 [layers, 9] on the CPU: a record of csrc/core/network.hpp for each."""
        rows, at = [], 0
        for layer in self.layers:
            out, into = layer.weight.shape
            padded = -(-out // PANEL) * PANEL
            rows.append(
                [
                    into,
                    out,
                    ACTIVATIONS.index(layer.activation),
                    layer.parameter,
                    layer.residual,
                    ACTIVATIONS.index(layer.after),
                    layer.after_parameter,
                    at,
                    at + padded * into,
                ]
            )
            at += padded * (into + 1)
        return torch.tensor(rows, dtype=torch.float64)

    def feature_table(self) -> Tensor:
        """Float64 [features, 3] on the CPU."""
        rows = [[FEATURES.index(f.kind), f.frequency, f.phase] for f in self.features]
        return torch.tensor(rows, dtype=torch.float64).reshape(len(rows), 3)

    def pack(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        """All weights and biases as one flat tensor, in panels of 16 outputs."""
        parts = []
        for number, layer in enumerate(self.layers):
            blocks: Sequence[Tensor] = [layer.weight]
            if number == 0:
                blocks = layer.weight.split([len(self.features), self.conditions, self.dim], dim=1)
            parts += [_panels(block.detach().to(device="cpu", dtype=torch.float64)) for block in blocks]
            bias = torch.zeros(layer.weight.shape[0]) if layer.bias is None else layer.bias.detach()
            parts.append(_padded(bias.to(device="cpu", dtype=torch.float64)))
        return torch.cat(parts).to(device=device, dtype=dtype)


def _padded(rows: Tensor) -> Tensor:
    """Rows to a multiple of a panel, zeros below."""
    missing = -len(rows) % PANEL
    return torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])])


def _panels(block: Tensor) -> Tensor:
    """[out, in] as [panels, in, 16], flat."""
    rows = _padded(block)
    return rows.reshape(len(rows) // PANEL, PANEL, block.shape[1]).transpose(1, 2).reshape(-1)


def unpack(params: Tensor, layers: Tensor, features: int, conditions: int) -> list[tuple[Tensor, Tensor]]:
    """(weight [out, in], bias [out]) of each layer, views or copies of the packed parameters that carry their gradient."""
    found = []
    for number, (into, out, *_, weights, bias) in enumerate(layers[:, [0, 1, 7, 8]].long().tolist()):
        padded = -(-out // PANEL) * PANEL
        sizes = [features, conditions, into - features - conditions] if number == 0 else [into]
        blocks, at = [], weights
        for size in sizes:
            flat = params[at : at + padded * size].reshape(padded // PANEL, size, PANEL)
            blocks.append(flat.transpose(1, 2).reshape(padded, size)[:out])
            at += padded * size
        found.append((torch.cat(blocks, dim=1), params[bias : bias + out]))
    return found


def time_features(t: Tensor, features: Tensor) -> Tensor:
    """[..., F] float64 from times of any shape."""
    kind, frequency, phase = features.to(t.device).unbind(1)
    angle = t.double()[..., None] * frequency + phase
    return torch.where(kind == 0, angle, torch.where(kind == 1, angle.sin(), angle.cos()))


def forward(
    x: Tensor, t: Tensor, cond: Tensor | None, params: Tensor, layers: Tensor, features: Tensor
) -> Tensor:
    """The network in plain PyTorch, with gradients in x, cond and params: x [B, ...], t [B] or one time,
    cond [B, C] -> x's shape."""
    flat = x.flatten(1) if x.dim() > 1 else x[:, None]
    parts = [time_features(t, features).to(flat).expand(len(flat), -1), flat]
    if cond is not None:
        parts.insert(1, cond.to(flat.dtype))
    values = torch.cat(parts, dim=1)
    inputs = []
    weights = unpack(params.to(flat.dtype), layers, len(features), 0 if cond is None else cond.shape[1])
    for record, (weight, bias) in zip(layers.tolist(), weights, strict=True):
        inputs.append(values)
        values = _activate(F.linear(values, weight, bias), ACTIVATIONS[int(record[2])], record[3])
        if record[4] >= 0:
            values = values + inputs[int(record[4])]
        values = _activate(values, ACTIVATIONS[int(record[5])], record[6])
    return values.reshape(x.shape)


def _activate(z: Tensor, name: str, parameter: float) -> Tensor:
    match name:
        case "identity":
            return z
        case "gelu_tanh":
            return F.gelu(z, approximate="tanh")
        case "softplus":
            return F.softplus(z, beta=parameter)
        case "elu":
            return F.elu(z, alpha=parameter)
        case "leaky_relu":
            return F.leaky_relu(z, negative_slope=parameter)
        case "tanh" | "sigmoid":
            return getattr(torch, name)(z)
        case _:
            return getattr(F, name)(z)
