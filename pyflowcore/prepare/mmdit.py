"""models.MMDiT through the fused operators.

As in ``dit.py``, what lies between two products is one pass: bias, gate, residual and the norm and modulation of what follows.
Both streams' queries, keys and values are written where joint attention reads them, so that nothing is put together for it.
What nobody reads is not computed: the queries of a text that no block follows, and of the last single block everything of
the text but its keys and values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ..models.mmdit import DoubleBlock, Heads, MMDiT, Rotary, SingleBlock, Stream
from .packing import Evaluate, Packed
from .parts import AnyNorm, gated_into, hidden, modulated, norm_arguments
from .products import Products
from .slices import Slice
from .steering import Steering

__all__ = ["PackedMMDiT"]


# A norm with its shift and scale.
Then = tuple[AnyNorm, Tensor, Tensor]


class Frame(NamedTuple):
    """What all blocks of an evaluation share.

    Attributes:
        length: L, of the text.
        tokens: L + N, of the joint sequence.
        joint, image: the angles of the joint sequence and of the image's tokens, or None. Those of text are all zero.
        mask: what is added to the logits, [n, 1, 1, L + N], or None where all tokens are real.
    """

    length: int
    tokens: int
    joint: Rotary | None
    image: Rotary | None
    mask: Tensor | None


class Joint:
    """Queries, keys and values of the joint sequence, [B, heads, tokens, head_dim], filled by stretches of tokens.

    Args:
        like: any tensor [B, ...] of the dtype and device.
        heads, head_dim: as the model has them.
        tokens: of the joint sequence.
        skipped: tokens at its begin that ask nothing.
    """

    def __init__(self, like: Tensor, heads: int, head_dim: int, tokens: int, skipped: int = 0) -> None:
        self._skipped = skipped
        self.q = like.new_empty((like.shape[0], heads, tokens - skipped, head_dim))
        self.k = like.new_empty((like.shape[0], heads, tokens, head_dim))
        self.v = torch.empty_like(self.k)

    def put(self, first: int, product: Tensor, bias: Tensor, heads: Heads, turn: Rotary | None) -> None:
        """Tokens from ``first`` on, from their product [B, N, 3 width]; 2 width where they ask nothing, width where they only
        ask."""
        parts = product.shape[2] // (self.k.shape[1] * self.k.shape[3])
        q, k, v, q_first = self.q, self.k, self.v, first - self._skipped
        if parts == 2:
            q, q_first = self._none(product), 0
        if parts == 1:
            k, v = self._none(product), self._none(product)
        norms: dict[str, Any] = {}
        if heads.norm_k is not None:
            norms = {"norm": "rms", "eps": heads.norm_k.eps, "k_weight": heads.norm_k.weight}
            if heads.norm_q is not None:
                norms["q_weight"] = heads.norm_q.weight
        if turn is not None:
            norms |= {"cos": turn[0], "sin": turn[1]}
        ops.qk_norm_rope_(
            product, q, k, v, q_offset=q_first, kv_offset=0 if parts == 1 else first, bias=bias, **norms
        )

    def _none(self, product: Tensor) -> Tensor:
        """A buffer of no heads."""
        return product.new_empty((product.shape[0], 0, product.shape[1], self.k.shape[3]))

    def attended(self, mask: Tensor | None) -> Tensor:
        """What attention finds, before its projection: [B, tokens that ask, width]."""
        mixed = F.scaled_dot_product_attention(self.q, self.k, self.v, attn_mask=mask)
        return mixed.transpose(1, 2).flatten(2)


def advanced(
    products: Products, stream: Stream, x: Tensor, mixed: Tensor, steps: Sequence[Tensor], then: Then | None
) -> Tensor | None:
    """A stream x, in place, by what attention found and the MLP; the answer is ``then``, the modulated norm that follows."""
    _, _, gate1, shift2, scale2, gate2 = steps
    h = gated_into(products, x, mixed, stream.out, gate1, stream.norm2, shift2, scale2)
    inner, out = hidden(products, stream.mlp, h)
    if then is not None:
        return gated_into(products, x, inner, out, gate2, *then)
    ops.gate_residual_(x, products(out, inner), gate2, y_bias=out.bias)
    return None


class Parts:
    """The two products of a single block by what they are for: queries, keys and values; the MLP; both ways to its answer."""

    def __init__(self, block: SingleBlock) -> None:
        width, inner = block.leave.out_features, block.widths[1]
        self.qkv = Slice(block.enter, slice(0, 3 * width))
        self.q = Slice(block.enter, slice(0, width))
        self.kv = Slice(block.enter, slice(width, 3 * width))
        self.inner = Slice(block.enter, slice(3 * width, 3 * width + inner))
        self.from_mixed = Slice(block.leave, columns=slice(0, width))
        self.from_inner = Slice(block.leave, columns=slice(width, width + inner))

    def answer(self, products: Products, h: Tensor, mixed: Tensor) -> Tensor:
        """What leaves the block but for its bias: what attention found, and the MLP of h."""
        inner = ops.gelu_(products(self.inner, h), self.inner.bias, approximate="tanh")
        return products(self.from_mixed, mixed).add_(products(self.from_inner, inner))


class PackedMMDiT(Packed[MMDiT]):
    """An MMDiT ready for evaluation."""

    conditions = ("text", "mask", "pooled", "guidance")

    @property
    def operators(self) -> tuple[str, ...]:
        return (
            "patchify_", "norm_modulate", "gate_residual_norm_", "qk_norm_rope_", "gelu_", "unpatchify_",
            *(("gate_residual_",) if len(self.model.single_blocks) else ()),
        )  # fmt: skip

    def refresh(self) -> None:
        super().refresh()
        model = self.model
        self._doubles: list[DoubleBlock] = list(model.double_blocks)  # type: ignore[arg-type]
        self._singles: list[SingleBlock] = list(model.single_blocks)  # type: ignore[arg-type]
        self._parts = [Parts(block) for block in self._singles]
        last = self._doubles[-1].text.qkv
        self._last_kv = Slice(last, slice(model.width, 3 * model.width))

    def begin(self, times: Tensor, cond: dict[str, Any], n: int) -> Evaluate:
        model, dtype = self.model, self.dtype
        text, mask, pooled, guidance = (cond.get(name) for name in self.conditions)
        if not isinstance(text, Tensor):
            raise TypeError(f"text must be a tensor [{n}, L, {model.text_width}], got {type(text).__name__}")
        model.check_conditions(n, text, mask, pooled, guidance)
        read = model.read_text(text, mask, dtype)
        layers = [stream.modulation for block in self._doubles for stream in (block.text, block.image)]
        steering = Steering(
            [*layers, *(block.modulation for block in self._singles), model.head.modulation],
            model.time_steer(times.reshape(-1), dtype).reshape(*times.shape, model.width),
            model.condition_steer(pooled, guidance, dtype),
        )
        shared: dict[torch.Size, list[Tensor | None]] = {}

        def inputs(x: Tensor, row: int) -> list[Tensor | None]:
            if x.shape[0] > n:
                raise ValueError(f"x has {x.shape[0]} samples, the conditions have {n}")
            if x.shape not in shared:
                model.check_points(x)
                shared[x.shape] = self._shared(x, read, mask)
            return [*shared[x.shape], *steering.pieces(row, x.shape[0], model.width)]

        return self.straight(self.evaluate, inputs)

    def _shared(self, x: Tensor, text: Tensor, mask: Tensor | None) -> list[Tensor | None]:
        """What all rows share at points like x: text, place, the angles of the joint sequence and of the image, mask.

        text and mask [n, L, ...] are those of all samples, of which x has the first.
        """
        model, (batch, length) = self.model, (len(x), text.shape[1])
        rows, columns = x.shape[2] // model.patch, x.shape[3] // model.patch
        place: Tensor = model.embed.bias.detach()
        if (fixed := model.places(rows, columns)) is not None:
            place = (fixed + place).to(text.dtype)
        shared = [text[:batch], place, None, None, None, None, None]
        if (joint := model.rotary(length, rows, columns, text)) is not None:
            shared[2:6] = [*joint, joint[0][length:], joint[1][length:]]
        if mask is not None:
            # As attention makes it of a mask of truth values, at every call.
            seen = F.pad(mask[:batch], (0, rows * columns), value=True)[:, None, None]
            shared[6] = torch.zeros_like(seen, dtype=text.dtype).masked_fill_(~seen, -torch.inf)
        return shared

    def evaluate(
        self,
        x: Tensor,
        text: Tensor,
        place: Tensor,
        joint_cos: Tensor | None,
        joint_sin: Tensor | None,
        image_cos: Tensor | None,
        image_sin: Tensor | None,
        mask: Tensor | None,
        *pieces: Tensor,
    ) -> Tensor:
        """One evaluation: what ``_shared`` has, then every layer's shifts, scales and gates."""
        model, products = self.model, self.products
        tokens = products(model.embed, ops.patchify(x, model.patch)).add_(place)
        frame = Frame(
            text.shape[1],
            text.shape[1] + tokens.shape[1],
            None if joint_cos is None or joint_sin is None else (joint_cos, joint_sin),
            None if image_cos is None or image_sin is None else (image_cos, image_sin),
            mask,
        )
        # The blocks write in place, and the text is read again in the next row.
        h = self._through_doubles(text.clone(), tokens, [each.unbind(0) for each in pieces], frame)
        grid = x.shape[2] // model.patch, x.shape[3] // model.patch
        return ops.unpatchify(products(model.head.out, h, bias=True), grid, model.patch)

    def _through_doubles(
        self, text: Tensor, image: Tensor, steps: list[tuple[Tensor, ...]], frame: Frame
    ) -> Tensor:
        """Both streams, which are written, through all blocks to the head's modulated norm: [B, N, width]."""
        products, blocks = self.products, self._doubles
        head: Then = self.model.head.norm, steps[-1][0], steps[-1][1]
        joint = self._joint(image, frame)
        h_text: Tensor | None = modulated(text, blocks[0].text.norm1, *steps[0][:2])
        h: Tensor | None = modulated(image, blocks[0].image.norm1, *steps[1][:2])
        for i, block in enumerate(blocks):
            assert h_text is not None and h is not None
            words, pixels = block.text, block.image
            if words.last:
                joint = self._joint(image, frame, skipped=frame.length)
            enter = self._last_kv if words.last else words.qkv
            joint.put(0, products(enter, h_text), enter.bias, words.heads, None)
            joint.put(frame.length, products(pixels.qkv, h), pixels.qkv.bias, pixels.heads, frame.image)
            mixed = joint.attended(frame.mask)
            then_text: Then | None = None
            then: Then | None = None
            if i + 1 < len(blocks):
                for_text, for_image = steps[2 * i + 2], steps[2 * i + 3]
                then_text = blocks[i + 1].text.norm1, for_text[0], for_text[1]
                then = blocks[i + 1].image.norm1, for_image[0], for_image[1]
            elif not self._singles:
                then = head
            if not words.last:
                h_text = advanced(products, words, text, mixed[:, : frame.length], steps[2 * i], then_text)
                mixed = mixed[:, frame.length :]
            h = advanced(products, pixels, image, mixed, steps[2 * i + 1], then)
        if h is not None:
            return h
        return self._through_singles(torch.cat([text, image], dim=1), steps[2 * len(blocks) :], frame, joint)

    def _through_singles(
        self, x: Tensor, steps: list[tuple[Tensor, ...]], frame: Frame, joint: Joint
    ) -> Tensor:
        """The joint sequence x, which is written, to the head's modulated norm of the image's part."""
        products, blocks = self.products, self._singles
        h = modulated(x, blocks[0].norm, *steps[0][:2])
        for i, (block, parts) in enumerate(zip(blocks[:-1], self._parts, strict=False)):
            joint.put(0, products(parts.qkv, h), parts.qkv.bias, block.heads, frame.joint)
            answer = parts.answer(products, h, joint.attended(frame.mask))
            h = ops.gate_residual_norm_(
                x, answer, steps[i][2], *steps[i + 1][:2], y_bias=block.leave.bias,
                **norm_arguments(blocks[i + 1].norm),
            )  # fmt: skip
        # Of the text nothing is read any more but the keys and values of this block.
        block, parts = blocks[-1], self._parts[-1]
        joint = self._joint(x, frame, skipped=frame.length)
        joint.put(0, products(parts.kv, h), parts.kv.bias, block.heads, frame.joint)
        h, x = h[:, frame.length :], x[:, frame.length :].contiguous()
        joint.put(frame.length, products(parts.q, h), parts.q.bias, block.heads, frame.image)
        answer = parts.answer(products, h, joint.attended(frame.mask))
        return ops.gate_residual_norm_(
            x, answer, steps[-2][2], *steps[-1], y_bias=block.leave.bias,
            **norm_arguments(self.model.head.norm),
        )  # fmt: skip

    def _joint(self, image: Tensor, frame: Frame, skipped: int = 0) -> Joint:
        model = self.model
        return Joint(image, model.width // model.head_dim, model.head_dim, frame.tokens, skipped)
