"""models.DiT through the fused operators.

A block is four products and one attention, and between them five passes over memory: queries, keys and values get their
norm and rotation on the way into attention's layout; the gate of one half, the residual, and the norm and modulation of
the next half, also across blocks, are one pass; the products' biases ride with the passes that follow them.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ..models.dit import Block, DiT
from ..models.feedforward import SwiGLU
from .packing import Evaluate, Packed
from .parts import attended, gated_into, hidden, modulated
from .steering import Steering

__all__ = ["PackedDiT"]


class PackedDiT(Packed[DiT]):
    """A DiT ready for evaluation."""

    conditions = ("y", "c")

    @property
    def operators(self) -> tuple[str, ...]:
        gated = isinstance(self.model.blocks[0].mlp, SwiGLU)
        return (
            "patchify", "norm_modulate", "gate_residual_norm_", "qk_norm_rope", "swiglu" if gated else "gelu_", "unpatchify",
        )  # fmt: skip

    def begin(self, times: Tensor, cond: dict[str, Any], n: int) -> Evaluate:
        model, dtype = self.model, self.dtype
        blocks: list[Block] = list(model.blocks)  # type: ignore[arg-type]
        embedded = model.time_steer(times.reshape(-1), dtype).reshape(*times.shape, model.width)
        steering = Steering(
            [*(block.modulation for block in blocks), model.head.modulation],
            embedded,
            model.condition_steer(cond.get("y"), cond.get("c"), n, dtype, times.device),
        )
        self.keep("place", self._place)
        width = model.width
        return self.straight(self.evaluate, lambda x, row: steering.pieces(row, x.shape[0], width))

    def evaluate(self, x: Tensor, *pieces: Tensor) -> Tensor:
        """One evaluation, given shift, scale and gate of every block's halves, and the head's shift and scale."""
        model, products = self.model, self.products
        blocks: list[Block] = list(model.blocks)  # type: ignore[arg-type]
        norms = [*(block.norm1 for block in blocks), model.head.norm]
        steps = [each.unbind(0) for each in pieces]
        tokens = products(model.embed, ops.patchify(x, model.patch)).add_(self.keep("place", self._place))
        h = modulated(tokens, norms[0], *steps[0][:2])
        for i, block in enumerate(blocks):
            _, _, gate1, shift2, scale2, gate2 = steps[i]
            mixed = attended(products, block.attention, h, model.rotary_cos, model.rotary_sin)
            h = gated_into(products, tokens, mixed, block.attention.out, gate1, block.norm2, shift2, scale2)
            inner, out = hidden(products, block.mlp, h)
            h = gated_into(products, tokens, inner, out, gate2, norms[i + 1], *steps[i + 1][:2])
        kept = model.shape[0] * model.patch**2
        answer = F.linear(h, model.head.out.weight[:kept], model.head.out.bias[:kept])
        return ops.unpatchify(answer, (model.side, model.side), model.patch)

    def _place(self) -> Tensor:
        """What a token gets whatever its patch holds."""
        bias = self.model.embed.bias
        if self.model.positions is None:
            return bias
        return (self.model.positions + bias).to(self.dtype)
