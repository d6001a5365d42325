"""The head of a robot policy: a transformer over a chunk of actions that attends to observations computed once.

Black et al., "pi0: A Vision-Language-Action Flow Model for General Robot Control" (2024), section IV and appendix B.
Observation tokens attend to each other alone, action tokens to both, each kind with weights of its own. So the observations'
keys and values do not depend on x or t: ``prefix`` computes them once for all evaluations of a solve. The layers are Gemma's
(root mean square norms, gated MLPs, rotary positions in halves, few heads of keys and values).

The time enters as in pi0, through an MLP over it and the embedded action, or as in pi0.5 (Physical Intelligence 2025), which
modulates the norms by it ("adaRMS").
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .norms import make_norm, modulate
from .rope import apply_rotary, rotary_table

Time = Literal["mlp", "adarms"]
Rotary = tuple[Tensor, Tensor]


class Prefix(NamedTuple):
    """What action tokens see of the observations, sample by sample, so that it can be a condition of a sampler.

    ``keys`` (turned by their positions) and ``values`` are [B, depth, kv_heads, P, head_dim], ``mask`` [B, P] bool is True at
    real tokens, whose keys and values must be finite in any case.
    """

    keys: Tensor
    values: Tensor
    mask: Tensor


def time_embedding(t: Tensor, width: int, *, shortest: float = 4e-3, longest: float = 4.0) -> Tensor:
    """Sinusoids of t with periods from ``shortest`` to ``longest``, geometric, both included, sines first: [B, width] float32.

    Black et al. 2024, appendix B; t [B] in [0, 1], width even and at least 4.
    """
    share = torch.linspace(0.0, 1.0, width // 2, dtype=torch.float64, device=t.device)
    frequencies = (2 * math.pi / shortest) * (shortest / longest) ** share
    phase = t.to(torch.float64)[:, None] * frequencies
    return torch.cat([phase.sin(), phase.cos()], dim=-1).float()


def rotary_of(positions: Tensor, head_dim: int, like: Tensor) -> Rotary:
    """Cosines and sines [B, 1, N, head_dim / 2] for positions [B, N], in float32, or float64 where ``like`` is."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    cos, sin = rotary_table(positions.flatten(), head_dim, dtype=dtype)
    shape = (positions.shape[0], 1, positions.shape[1], head_dim // 2)
    return cos.view(shape), sin.view(shape)


class KeysValues(nn.Module):
    """Tokens [B, N, width] to keys, turned by their positions, and values, both [B, kv_heads, N, head_dim]."""

    def __init__(self, width: int, kv_heads: int, head_dim: int) -> None:
        super().__init__()
        self.shape = (2, kv_heads, head_dim)
        self.project = nn.Linear(width, 2 * kv_heads * head_dim, bias=False)

    def forward(self, x: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
        k, v = self.project(x).unflatten(-1, self.shape).permute(2, 0, 3, 1, 4).unbind(0)
        return apply_rotary(k, *rotary, pairs="halves"), v


class Attend(nn.Module):
    """Queries of tokens [B, N, width], turned by their positions, against given keys and values -> [B, N, width].

    With fewer heads of keys and values than of queries, neighbouring queries share one (Ainslie et al., "GQA", 2023).
    """

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.shape = (heads, head_dim)
        self.queries = nn.Linear(width, heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, width, bias=False)

    def forward(self, x: Tensor, k: Tensor, v: Tensor, rotary: Rotary, mask: Tensor) -> Tensor:
        q = self.queries(x).unflatten(-1, self.shape).transpose(1, 2)
        q = apply_rotary(q, *rotary, pairs="halves")
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        return self.out(mixed.transpose(1, 2).flatten(2))


class GatedMLP(nn.Module):
    """gelu(a) * b between two linear layers, a and b the halves of the first one's answer (Shazeer 2020, "GEGLU")."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.enter = nn.Linear(width, 2 * hidden, bias=False)
        self.leave = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.enter(x).chunk(2, dim=-1)
        return self.leave(F.gelu(a, approximate="tanh") * b)


class Memory(nn.Module):
    """A layer that leaves its tokens as they are and only offers keys and values."""

    def __init__(self, width: int, kv_heads: int, head_dim: int) -> None:
        super().__init__()
        self.norm = make_norm("rms", width, affine=True)
        self.keys_values = KeysValues(width, kv_heads, head_dim)

    def forward(self, x: Tensor, rotary: Rotary, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, N, width] -> (x, keys, values)."""
        return x, *self.keys_values(self.norm(x), rotary)


class Layer(nn.Module):
    """Attention, then a gated MLP, each behind a root mean square norm.

    ``modulated``: a vector c [B, width] gives shift, scale and gate of both halves, in this order; all six start at zero.
    Otherwise the norms have learned scales and nothing is gated.
    """

    def __init__(
        self, width: int, heads: int, kv_heads: int, head_dim: int, hidden: int, *, modulated: bool = False
    ) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 6 * width) if modulated else None
        self.norm1 = make_norm("rms", width, affine=not modulated)
        self.keys_values = KeysValues(width, kv_heads, head_dim)
        self.attend = Attend(width, heads, head_dim)
        self.norm2 = make_norm("rms", width, affine=not modulated)
        self.mlp = GatedMLP(width, hidden)

    def forward(
        self,
        x: Tensor,
        rotary: Rotary,
        mask: Tensor,
        past: tuple[Tensor, Tensor] | None = None,
        c: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, N, width] -> (x, its keys, its values); ``past`` holds keys and values of tokens before these.

        mask: what is seen of the past and of these tokens, [B, 1, 1 or N, P + N], True where it is.
        """
        parts = None if self.modulation is None or c is None else self.modulation(c).chunk(6, dim=-1)
        h = self.norm1(x) if parts is None else modulate(self.norm1(x), parts[0], parts[1])
        k, v = self.keys_values(h, rotary)
        seen = (k, v) if past is None else (torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2))
        mixed = self.attend(h, *seen, rotary, mask)
        x = x + mixed if parts is None else torch.addcmul(x, parts[2][:, None], mixed)
        h = self.norm2(x) if parts is None else modulate(self.norm2(x), parts[3], parts[4])
        found = self.mlp(h)
        return x + found if parts is None else torch.addcmul(x, parts[5][:, None], found), k, v


class ActionExpert(nn.Module):
    """Flow over chunks of actions: ``forward(x, t, prefix=expert.prefix(obs))``, or ``forward(x, t, obs=obs)``.

    Args:
        horizon, dims: x is [B, horizon, dims].
        width, depth, heads, kv_heads, head_dim, mlp_width: of the layers over action tokens. ``heads`` is a multiple of
            ``kv_heads``, ``head_dim`` even, ``width`` even and at least 4.
        prefix_width: width of the observation tokens; 0: there are no layers for them, and every call brings a ``Prefix``
            from elsewhere, as from the vision-language model in pi0.
        prefix_mlp: hidden width of the observations' MLPs. 0: their layers are keys and values only, and every layer reads
            the tokens as they came.
        state_dim: with it ``prefix`` takes a ``state`` [B, state_dim] too, pi0's token of the robot's own state, which runs
            through the actions' layers, behind the observations and unaware of the actions. Needs time="mlp".
        time: "mlp" (pi0) or "adarms" (pi0.5).

    Raises:
        ValueError: if a size does not fit, or if an input comes in the wrong shape, is missing or is not wanted.
    """

    def __init__(
        self,
        horizon: int = 16,
        dims: int = 2,
        width: int = 64,
        depth: int = 3,
        heads: int = 4,
        kv_heads: int = 1,
        head_dim: int = 16,
        mlp_width: int = 128,
        prefix_width: int = 0,
        prefix_mlp: int = 0,
        state_dim: int = 0,
        time: Time = "mlp",
    ) -> None:
        super().__init__()
        if min(horizon, dims, depth, mlp_width) < 1 or min(prefix_width, prefix_mlp, state_dim) < 0:
            raise ValueError(
                "horizon, dims, depth and mlp_width must be at least 1, prefix_width, prefix_mlp and state_dim at least 0; "
                f"got {horizon}, {dims}, {depth}, {mlp_width}, {prefix_width}, {prefix_mlp}, {state_dim}"
            )
        if kv_heads < 1 or heads < 1 or heads % kv_heads:
            raise ValueError(f"heads must be a multiple of kv_heads; got {heads} and {kv_heads}")
        if head_dim < 2 or head_dim % 2 or width < 4 or width % 2:
            raise ValueError(f"head_dim and width must be even, width at least 4; got {head_dim} and {width}")
        if time not in get_args(Time):
            raise ValueError(f"time must be one of {get_args(Time)}; got {time!r}")
        if prefix_mlp and not prefix_width:
            raise ValueError(f"prefix_mlp needs prefix_width; got {prefix_mlp} and {prefix_width}")
        if state_dim and time != "mlp":
            raise ValueError(
                f'state_dim needs time="mlp": with {time!r} a state token would depend on t; put it among the observations'
            )
        self.config: dict[str, Any] = {
            "horizon": horizon,
            "dims": dims,
            "width": width,
            "depth": depth,
            "heads": heads,
            "kv_heads": kv_heads,
            "head_dim": head_dim,
            "mlp_width": mlp_width,
            "prefix_width": prefix_width,
            "prefix_mlp": prefix_mlp,
            "state_dim": state_dim,
            "time": time,
        }
        self.shape = (horizon, dims)
        self.num_classes, self.null_class = 0, None
        self.width, self.head_dim, self.kv_heads, self.depth = width, head_dim, kv_heads, depth
        self.prefix_width, self.state_dim, self.modulated = prefix_width, state_dim, time == "adarms"
        self.embed = nn.Linear(dims, width)
        # pi0: over embedded action and time; pi0.5: over the time alone.
        self.mix_time = nn.Sequential(
            nn.Linear(width if self.modulated else 2 * width, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.embed_state = nn.Linear(state_dim, width) if state_dim else None
        self.layers = nn.ModuleList(
            Layer(width, heads, kv_heads, head_dim, mlp_width, modulated=self.modulated) for _ in range(depth)
        )
        self.prefix_layers = nn.ModuleList()
        for index in range(depth if prefix_width else 0):
            # Nobody reads the tokens that the last layer would make.
            if prefix_mlp and index < depth - 1:
                self.prefix_layers.append(Layer(prefix_width, heads, kv_heads, head_dim, prefix_mlp))
            else:
                self.prefix_layers.append(Memory(prefix_width, kv_heads, head_dim))
        self.modulation = nn.Linear(width, 2 * width) if self.modulated else None
        self.norm = make_norm("rms", width, affine=not self.modulated)
        self.out = nn.Linear(width, dims)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear) and (name.endswith("modulation") or name == "out"):
                nn.init.zeros_(module.weight)

    def prefix(self, obs: Tensor, mask: Tensor | None = None, state: Tensor | None = None) -> Prefix:
        """Keys and values of the observations for every layer.

        Args:
            obs: [B, P, prefix_width], in the network's dtype.
            mask: [B, P] bool, True at real tokens; the others take no part, whatever they hold. None: all are real.
                Positions count real tokens.
            state: [B, state_dim], for a network built with it; the prefix then holds one token more.
        """
        self._check_prefix_inputs(obs, mask, state)
        if mask is None:
            mask = obs.new_ones(obs.shape[:2], dtype=torch.bool)
        x = obs.masked_fill(~mask[..., None], 0.0)  # not even NaN gets from a masked token into a sum
        rotary = rotary_of((mask.cumsum(dim=1) - 1).clamp(min=0), self.head_dim, obs)
        # A token always sees itself, so that no softmax is over nothing.
        seen = mask[:, None, None, :] | torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
        keys, values = [], []
        for layer in self.prefix_layers:
            x, k, v = layer(x, rotary, seen)
            keys.append(k)
            values.append(v)
        found = Prefix(torch.stack(keys, dim=1), torch.stack(values, dim=1), mask)
        return found if state is None else self.with_state(found, state)

    def with_state(self, prefix: Prefix, state: Tensor) -> Prefix:
        """The prefix with the robot's own state [B, state_dim] as one token more; see ``state_dim``."""
        batch = prefix.mask.shape[0]
        if self.embed_state is None or state.shape != (batch, self.state_dim):
            raise ValueError(
                f"state must be [{batch}, {self.state_dim}], for a network built with state_dim; got {list(state.shape)}"
            )
        x = self.embed_state(state)[:, None]
        rotary, mask = self._behind(prefix, 1, x)
        keys, values = [], []
        for index, layer in enumerate(self.layers):
            x, k, v = layer(x, rotary, mask, (prefix.keys[:, index], prefix.values[:, index]))
            keys.append(torch.cat([prefix.keys[:, index], k], dim=2))
            values.append(torch.cat([prefix.values[:, index], v], dim=2))
        return Prefix(
            torch.stack(keys, dim=1), torch.stack(values, dim=1), F.pad(prefix.mask, (0, 1), value=True)
        )

    def _behind(self, prefix: Prefix, count: int, like: Tensor) -> tuple[Rotary, Tensor]:
        """Rotary angles of ``count`` tokens behind the prefix, and what they see: [B, 1, 1, P + count]."""
        positions = prefix.mask.sum(dim=1, keepdim=True) + torch.arange(count, device=like.device)
        return rotary_of(positions, self.head_dim, like), F.pad(prefix.mask, (0, count), value=True)[
            :, None, None
        ]

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        prefix: Prefix | None = None,
        obs: Tensor | None = None,
        mask: Tensor | None = None,
        state: Tensor | None = None,
    ) -> Tensor:
        """The answer at x [B, horizon, dims] and t [B] in [0, 1], in x's shape and dtype.

        Either ``prefix`` is given, made by ``prefix`` or elsewhere, or what makes it: ``obs``, ``mask``, ``state``.
        """
        if x.dim() != 3 or tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"x must be [B, {self.shape[0]}, {self.shape[1]}]; got {list(x.shape)}")
        if (prefix is None) == (obs is None) or (
            prefix is not None and (mask is not None or state is not None)
        ):
            raise ValueError("give either prefix, alone, or obs with its mask and state")
        if prefix is None:
            assert obs is not None
            prefix = self.prefix(obs, mask, state)
        self._check_prefix(prefix, x.shape[0])
        tokens, c = self.embed(x), None
        phases = time_embedding(t, self.width).to(x.dtype)
        if self.modulated:
            c = F.silu(self.mix_time(phases))
        else:
            tokens = self.mix_time(torch.cat([tokens, phases[:, None].expand_as(tokens)], dim=-1))
        rotary, seen = self._behind(prefix, x.shape[1], x)
        for index, layer in enumerate(self.layers):
            tokens, _, _ = layer(tokens, rotary, seen, (prefix.keys[:, index], prefix.values[:, index]), c)
        tokens = self.norm(tokens)
        if self.modulation is not None:
            shift, scale = self.modulation(c).chunk(2, dim=-1)
            tokens = modulate(tokens, shift, scale)
        return self.out(tokens)

    def _check_prefix_inputs(self, obs: Tensor, mask: Tensor | None, state: Tensor | None) -> None:
        if not self.prefix_width:
            raise ValueError(
                "obs was given to an ActionExpert without layers for it: build it with prefix_width="
            )
        if obs.dim() != 3 or obs.shape[2] != self.prefix_width:
            raise ValueError(f"obs must be [B, P, {self.prefix_width}]; got {list(obs.shape)}")
        if mask is not None and (mask.shape != obs.shape[:2] or mask.dtype != torch.bool):
            raise ValueError(
                f"mask must be {list(obs.shape[:2])} of bool; got {list(mask.shape)} of {mask.dtype}"
            )
        if (state is None) != (self.embed_state is None):
            got = "None" if state is None else list(state.shape)
            raise ValueError(f"state is for a network built with state_dim, and needed there; got {got}")

    def _check_prefix(self, prefix: Prefix, batch: int) -> None:
        tokens = prefix.mask.shape[-1]
        expected = (batch, self.depth, self.kv_heads, tokens, self.head_dim)
        if (
            prefix.keys.shape != expected
            or prefix.values.shape != expected
            or prefix.mask.shape != (batch, tokens)
        ):
            raise ValueError(
                f"prefix must hold keys and values {list(expected)} and a mask {[batch, tokens]}; got "
                f"{list(prefix.keys.shape)}, {list(prefix.values.shape)} and {list(prefix.mask.shape)}"
            )
