"""Streams of tokens that attend to those before them, whose keys and values lie in buffers with room for their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Stream", "Tables"]

# Without the checks of pyflowcore.ops: the shapes are this file's own, and of a few tokens they take as long as the work.
_qk_norm_rope_ = torch.ops.pyflowcore.qk_norm_rope_.default


class Tables(NamedTuple):
    """What a trajectory keeps for the S tokens that its steps see, those of the steps the last of them.

    Attributes:
        keys, values: [depth, n, kv_heads, S, head_dim], contiguous.
        cos, sin: of the tokens' positions, [S, head_dim / 2], or [n, S, head_dim / 2].
        hidden: what is added to the logits of a token, [n, 1, 1, S]: -inf for tokens that are not real; None: all are.
    """

    keys: Tensor
    values: Tensor
    cos: Tensor
    sin: Tensor
    hidden: Tensor | None

    def stream(self, first: int, last: int, heads: int, mask: Tensor | None = None) -> Stream:
        """Tokens ``first`` to ``last``, which see those from 0 to ``last``: all real ones, or what ``mask`` leaves of them."""
        if mask is None and self.hidden is not None:
            mask = self.hidden[..., :last]
        _, n, _, _, head_dim = self.keys.shape
        return Stream(
            self.keys.unbind(0),
            self.values.unbind(0),
            self.keys.new_empty((n, heads, last - first, head_dim)),
            self.cos[..., first:last, :].contiguous(),
            self.sin[..., first:last, :].contiguous(),
            mask,
            first,
            last,
        )


class Stream(NamedTuple):
    """Tokens ``first`` to ``last`` of each sample.

    Attributes:
        keys, values: of each layer [n, kv_heads, S, head_dim]; those of these tokens are written there.
        queries: [n, heads, last - first, head_dim], memory that all layers use.
        cos, sin: of their positions.
        mask: added to their logits, [n, 1, 1 or last - first, last], or None.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    queries: Tensor
    cos: Tensor
    sin: Tensor
    mask: Tensor | None
    first: int
    last: int

    def of(self, n: int) -> Stream:
        """The same for the first n samples."""
        if n == len(self.queries):
            return self
        cos, sin = (table if table.dim() == 2 else table[:n] for table in (self.cos, self.sin))
        return Stream(
            tuple(keys[:n] for keys in self.keys), tuple(values[:n] for values in self.values), self.queries[:n], cos, sin,
            None if self.mask is None else self.mask[:n], self.first, self.last,
        )  # fmt: skip

    def tensors(self) -> list[Tensor | None]:
        """All of it, for a function of tensors; it ends where the keys do."""
        return [self.queries, self.cos, self.sin, self.mask, *self.keys, *self.values]

    @staticmethod
    def from_tensors(given: Sequence[Tensor | None], depth: int) -> tuple[Stream, list[Tensor]]:
        """(what ``tensors`` was called on, if its tokens are the last ones; the tensors after it)."""
        queries, cos, sin, mask = given[:4]
        rest = [cast("Tensor", one) for one in given[4:]]
        assert queries is not None and cos is not None and sin is not None
        keys, values = tuple(rest[:depth]), tuple(rest[depth : 2 * depth])
        last = keys[0].shape[2]
        made = Stream(keys, values, queries, cos, sin, mask, last - queries.shape[2], last)
        return made, rest[2 * depth :]

    def remember(self, layer: int, qkv: Tensor, heads: int) -> None:
        """Keys and values of these tokens into the layer's buffers, turned by their positions, and the queries.

        Args:
            qkv: [n, count, (heads + 2 kv_heads) head_dim]; ``heads`` is 0 where no queries are wanted.
        """
        queries = self.queries if heads else self.queries[:, :0]
        keys, values = self.keys[layer], self.values[layer]
        _qk_norm_rope_(
            qkv, queries, keys, values, heads, keys.shape[1], None, None, None, None, None, 0, 0.0, self.cos, self.sin, False,
            0, self.first,
        )  # fmt: skip

    def attend(self, layer: int, qkv: Tensor) -> Tensor:
        """:meth:`remember`, and what these tokens find: [n, count, heads head_dim]."""
        self.remember(layer, qkv, self.queries.shape[1])
        keys, values = self.keys[layer], self.values[layer]
        if self.last != keys.shape[2]:
            keys, values = keys[:, :, : self.last], values[:, :, : self.last]
        queries, shared = self.queries, keys.shape[1]
        if self.mask is None or self.mask.shape[2] == 1:
            # All tokens see the same, so heads that share keys and values are as good as more tokens of one head.
            found = F.scaled_dot_product_attention(
                queries.view(queries.shape[0], shared, -1, queries.shape[3]),
                keys,
                values,
                attn_mask=self.mask,
            ).view(queries.shape)
        else:
            found = F.scaled_dot_product_attention(
                queries, keys, values, attn_mask=self.mask, enable_gqa=shared != queries.shape[1]
            )
        return found.transpose(1, 2).flatten(2)
