"""A small text encoder that reads bytes, so that a text-conditioned network needs no vocabulary and no download.

A byte is a token, as in Xue et al., "ByT5" (2022); the layers are those of a pre-norm transformer encoder (Xiong et al. 2020),
where every byte attends to every other.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BEGIN = 256
"""The token before every text: the empty text has it too, and its place gathers the pooled embedding."""
PADDING = 257
TOKENS = 258


class Layer(nn.Module):
    """Self-attention, then an MLP, each behind a layer norm: x [B, L, width], mask [B, 1, L, L] -> [B, L, width]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        batch, length, width = x.shape
        parts = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class ByteEncoder(nn.Module):
    """Texts to embeddings: ``forward(*encode(texts))`` gives (embeddings, mask, pooled).

    Args:
        width: of an embedding, a multiple of ``heads``.
        depth, heads: number of layers, of attention heads.
        max_length: longest sequence in tokens: a text's UTF-8 bytes and the token before them.

    Raises:
        ValueError: if a size does not fit, a text is longer than ``max_length``, or tokens or mask come in the wrong shape.
    """

    def __init__(self, width: int = 64, depth: int = 2, heads: int = 4, max_length: int = 64) -> None:
        super().__init__()
        if heads < 1 or width < 1 or width % heads:
            raise ValueError(f"width must be a multiple of heads; got width={width} and heads={heads}")
        if depth < 1 or max_length < 1:
            raise ValueError(f"depth and max_length must be at least 1; got {depth} and {max_length}")
        self.config: dict[str, int] = {
            "width": width,
            "depth": depth,
            "heads": heads,
            "max_length": max_length,
        }
        self.width, self.max_length = width, max_length
        self.embed = nn.Embedding(TOKENS, width)
        self.places = nn.Parameter(torch.empty(max_length, width))
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.embed.weight, std=0.02 * width**0.5)
        nn.init.normal_(self.places, std=0.02)

    def encode(self, texts: Sequence[str], *, length: int | None = None) -> tuple[Tensor, Tensor]:
        """Texts to tokens [B, L] int64 and mask [B, L] bool (True at the first token and the text's bytes).

        L is ``length``, or what the longest text needs. Both lie on the encoder's device. Nothing is cut off: ValueError if
        a text needs more tokens than ``length`` or ``max_length``.
        """
        if isinstance(texts, str):
            raise ValueError(f"texts must be a list of strings; got the string {texts!r}")
        rows = [[BEGIN, *text.encode("utf-8")] for text in texts]
        longest = max((len(row) for row in rows), default=1)
        length = longest if length is None else length
        if not 1 <= longest <= length <= self.max_length:
            raise ValueError(
                f"texts must fit into length={length} tokens, at most max_length={self.max_length}; the longest needs {longest}"
            )
        padded = [row + [PADDING] * (length - len(row)) for row in rows]
        tokens = torch.tensor(padded, dtype=torch.int64, device=self.places.device).reshape(-1, length)
        return tokens, tokens != PADDING

    def forward(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings [B, L, width], zero where mask is False; the mask; pooled [B, width], what stands at the first token.

        tokens [B, L] int64 in [0, 258) and mask [B, L] bool as ``encode`` gives them; what a masked token is does not matter.
        """
        if tokens.dim() != 2 or not 1 <= tokens.shape[1] <= self.max_length:
            raise ValueError(
                f"tokens must be [B, L] with L from 1 to {self.max_length}; got {list(tokens.shape)}"
            )
        if mask.shape != tokens.shape or mask.dtype != torch.bool:
            raise ValueError(
                f"mask must be {list(tokens.shape)} of bool; got {list(mask.shape)} of {mask.dtype}"
            )
        length = tokens.shape[1]
        x = self.embed(tokens.masked_fill(~mask, PADDING)) + self.places[:length]
        # A token always sees itself, so that no softmax is over nothing.
        seen = mask[:, None, None, :] | torch.eye(length, dtype=torch.bool, device=mask.device)
        for layer in self.layers:
            x = layer(x, seen)
        x = self.norm(x).masked_fill(~mask[..., None], 0.0)
        return x, mask, x[:, 0]

    def read(self, texts: Sequence[str], *, length: int | None = None) -> dict[str, Tensor]:
        """The conditions ``text``, ``mask`` and ``pooled`` of a network, from texts."""
        text, mask, pooled = self(*self.encode(texts, length=length))
        return {"text": text, "mask": mask, "pooled": pooled}
