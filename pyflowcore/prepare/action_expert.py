"""models.ActionExpert through the fused operators: what a policy observes once a trajectory, then steps of a few tokens.

Of a trajectory's rows the action tokens alone change. What else they see, keys and values of the observations and of the
robot's state, is written once into buffers that have room behind it, and there each step writes those of its own tokens.
What the time adds to a row is made for all rows at once, and the two linear layers between an action and its first
activation are one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.action_expert import ActionExpert, Layer, Memory, Prefix, rotary_of, time_embedding
from .joined import Joined
from .packing import Evaluate, Packed
from .products import Products
from .steering import Steering
from .streams import Stream, Tables

__all__ = ["PackedActionExpert"]

# As in streams.py.
_norm_modulate = torch.ops.pyflowcore.norm_modulate.default
_gate_residual_norm_ = torch.ops.pyflowcore.gate_residual_norm_.default

Product = Callable[[Tensor], Tensor]
# Shift, scale and gate of a layer's two halves, each [n, width]; of the last norm the first two.
Steps = Sequence[Tensor | None]
_NONE: Steps = (None,) * 6


class PackedActionExpert(Packed[ActionExpert]):
    """An ActionExpert ready for evaluation."""

    conditions = ("prefix", "obs", "mask", "state")

    @property
    def operators(self) -> tuple[str, ...]:
        return "norm_modulate", "gate_residual_norm_", "qk_norm_rope_"

    def refresh(self) -> None:
        super().refresh()
        model = self.model
        self._actions = [FusedLayer(cast("Layer", layer)) for layer in model.layers]
        self._observing = [FusedLayer(layer) for layer in model.prefix_layers if isinstance(layer, Layer)]
        # The layers that leave the tokens as they are come last, and read the same ones: one product for all of them.
        offering = [layer for layer in model.prefix_layers if isinstance(layer, Memory)]
        self._offers = Joined(
            [layer.keys_values.project for layer in offering], [layer.norm for layer in offering]
        )

    def begin(self, times: Tensor, cond: dict[str, Any], n: int) -> Evaluate:
        model, rows = self.model, n * self.model.shape[0]
        entrance, steering = self._of_times(times, rows)
        tables, behind = self._tables(cond, n)
        actions = [layer.bound(self.products, rows) for layer in self._actions]
        last, weight, bias = model.norm.weight, model.out.weight, model.out.bias
        whole = tables.stream(behind, tables.keys.shape[3], model.config["heads"])
        streams: dict[tuple[int, ...], Stream] = {(n, *model.shape): whole}

        def evaluate(x: Tensor, row: int) -> Tensor:
            count, stream = x.shape[0], streams.get(tuple(x.shape))
            if stream is None:
                if x.dim() != 3 or tuple(x.shape[1:]) != model.shape or count > n:
                    raise ValueError(
                        f"x must be [{n} or less, {model.shape[0]}, {model.shape[1]}]; got {list(x.shape)}"
                    )
                stream = streams[tuple(x.shape)] = whole.of(count)
            steps: list[Steps] = [_NONE] * (len(actions) + 1)
            if steering is not None:
                steps = [one.unflatten(1, (-1, model.width)).unbind(1) for one in steering.at(row, count)]
            h = through(actions, entrance(x, row), stream, steps, last)
            return F.linear(h, weight, bias)

        return evaluate

    # ------------------------------------------------------------------------------------------------------ times
    def _of_times(self, times: Tensor, count: int) -> tuple[Callable[[Tensor, int], Tensor], Steering | None]:
        """What makes tokens, ``count`` in all, of the actions of a row, and what modulates them, if anything does."""
        model, dtype = self.model, self.dtype
        phases = time_embedding(times.reshape(-1), model.width).to(dtype).reshape(*times.shape, model.width)
        embed = model.embed
        if model.modulation is not None:
            layers = [cast("nn.Linear", layer.modulation) for layer in model.layers]
            steering = Steering([*layers, model.modulation], model.mix_time(phases), None)
            return lambda x, row: F.linear(x, embed.weight, embed.bias), steering

        first, last = cast("nn.Linear", model.mix_time[0]), cast("nn.Linear", model.mix_time[2])
        of_action, of_time = first.weight.split(model.width, dim=1)
        # In float32 at least: the product of two rounded matrices is rounded once.
        wide = torch.promote_types(dtype, torch.float32)
        weight = (of_action.to(wide) @ embed.weight.to(wide)).to(dtype)
        bias = torch.addmv(first.bias.to(wide), of_action.to(wide), embed.bias.to(wide)).to(dtype)
        rows, leave = F.linear(phases, of_time, bias), self.products.bound(last, count, bias=True)

        def enter(x: Tensor, row: int) -> Tensor:
            if rows.dim() == 2:  # one time for all samples
                return leave(F.silu(F.linear(x, weight, rows[row]), inplace=True))
            return leave(F.silu(F.linear(x, weight).add_(rows[row, : x.shape[0], None]), inplace=True))

        return enter, None

    # ----------------------------------------------------------------------------------------------- observations
    def _tables(self, cond: dict[str, Any], n: int) -> tuple[Tables, int]:
        """The buffers with what is before the action tokens, and how many tokens that is."""
        model = self.model
        prefix: Prefix | None = cond.get("prefix")
        obs, mask, state = cond.get("obs"), cond.get("mask"), cond.get("state")
        if (prefix is None) == (obs is None) or (
            prefix is not None and (mask is not None or state is not None)
        ):
            raise ValueError("give either prefix, alone, or obs with its mask and state")
        if prefix is not None:
            model._check_prefix(prefix, n)
            mask = prefix.mask
            tables = self._empty(n, mask.shape[1], 0, mask)
            tables.keys[..., : mask.shape[1], :] = prefix.keys.transpose(0, 1)
            tables.values[..., : mask.shape[1], :] = prefix.values.transpose(0, 1)
            return tables, mask.shape[1]
        assert obs is not None
        model._check_prefix_inputs(obs, mask, state)
        if obs.shape[0] != n or (state is not None and state.shape != (n, model.state_dim)):
            raise ValueError(
                f"obs must be [{n}, P, {model.prefix_width}], and state [{n}, {model.state_dim}] where there is one; got "
                f"{list(obs.shape)} and {'None' if state is None else list(state.shape)}"
            )
        seen = obs.shape[1]
        tables = self._empty(n, seen, 0 if state is None else 1, mask)
        self._observe(obs, mask, tables)
        if state is not None:
            self._feel(state, tables, seen)
        return tables, seen if state is None else seen + 1

    def _empty(self, n: int, seen: int, states: int, mask: Tensor | None) -> Tables:
        """Room for ``seen`` tokens of which ``mask`` says which are real, those of the state, and the actions."""
        model, device = self.model, self.model.out.weight.device
        tokens = seen + states + model.shape[0]
        if mask is not None and all_real(mask):
            mask = None
        if mask is None:
            positions, hidden = torch.arange(tokens, device=device)[None], None
        else:
            real = F.pad(mask, (0, tokens - seen), value=True)
            positions = (real.cumsum(dim=1) - 1).clamp(min=0)
            hidden = added(real[:, None, None], self.dtype)
        cos, sin = (table.squeeze(1) for table in rotary_of(positions, model.head_dim, model.out.weight))
        if mask is None:
            cos, sin = cos[0], sin[0]
        shape = (model.depth, n, model.kv_heads, tokens, model.head_dim)
        keys, values = (torch.empty(shape, dtype=self.dtype, device=device) for _ in range(2))
        return Tables(keys, values, cos, sin, hidden)

    def _observe(self, obs: Tensor, mask: Tensor | None, tables: Tables) -> None:
        """Keys and values of the observations, of every layer."""
        model, products, count = self.model, self.products, obs.shape[1]
        tokens, own = obs.to(self.dtype, copy=True), None
        if mask is not None:
            tokens.masked_fill_(~mask[..., None], 0.0)  # not even NaN gets from a masked token into a sum
        if tables.hidden is not None:
            assert mask is not None
            # A token always sees itself, so that no softmax is over nothing.
            own = added(
                mask[:, None, None] | torch.eye(count, dtype=torch.bool, device=mask.device), self.dtype
            )
        stream = tables.stream(0, count, model.config["heads"], own)
        layers = [layer.bound(products, tokens.shape[0] * count) for layer in self._observing]
        if layers:
            h = through(layers, tokens, stream, [_NONE] * (len(layers) + 1), None)
        else:
            h = _norm_modulate(tokens, None, None, None, None, True, model.norm.eps)
        offers = products(self._offers, h)
        for index, offer in enumerate(offers.chunk(model.depth - len(layers), dim=-1), start=len(layers)):
            stream.remember(index, offer, 0)

    def _feel(self, state: Tensor, tables: Tables, behind: int) -> None:
        """Keys and values of the robot's state, which runs through the actions' layers; the last one's answer nobody reads."""
        model = self.model
        assert model.embed_state is not None
        tokens = model.embed_state(state.to(self.dtype))[:, None]
        stream = tables.stream(behind, behind + 1, model.config["heads"])
        *layers, last = [layer.bound(self.products, len(state)) for layer in self._actions]
        if layers:
            h = through(layers, tokens, stream, [_NONE] * model.depth, last.norm1)
        else:
            h = _norm_modulate(tokens, None, None, last.norm1, None, True, last.eps)
        stream.remember(model.depth - 1, last.qkv(h), stream.queries.shape[1])


class Bound(NamedTuple):
    """A layer for one trajectory: its products, that of queries, keys and values being one, and its norms' weights."""

    qkv: Product
    out: Product
    enter: Product
    leave: Product
    norm1: Tensor | None
    norm2: Tensor | None
    eps: float


class FusedLayer:
    """A layer of the model."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self.qkv = Joined([layer.attend.queries, layer.keys_values.project])

    def bound(self, products: Products, rows: int) -> Bound:
        layer = self.layer
        qkv, out, enter, leave = (
            products.bound(one, rows)
            for one in (self.qkv, layer.attend.out, layer.mlp.enter, layer.mlp.leave)
        )
        norms = layer.norm1.weight, layer.norm2.weight
        return Bound(qkv, out, enter, leave, *norms, cast("float", layer.norm1.eps))


def through(
    layers: Sequence[Bound], tokens: Tensor, stream: Stream, steps: Sequence[Steps], last: Tensor | None
) -> Tensor:
    """Tokens [n, count, width], which are written, through the layers; the answer is their norm after the last one.

    Args:
        steps: of each layer, and of the norm after them.
        last: the weight of that norm.
    """
    following = [*(layer.norm1 for layer in layers[1:]), last]
    shift, scale = steps[0][:2]
    h = _norm_modulate(tokens, shift, scale, layers[0].norm1, None, True, layers[0].eps)
    for i, (qkv, out, enter, leave, _, norm2, eps) in enumerate(layers):
        _, _, gate1, shift, scale, gate2 = steps[i]
        mixed = out(stream.attend(i, qkv(h)))
        h = _gate_residual_norm_(tokens, mixed, gate1, None, shift, scale, norm2, None, True, eps)
        first, second = enter(h).chunk(2, dim=-1)
        found = leave(F.gelu(first, approximate="tanh").mul_(second))
        shift, scale = steps[i + 1][:2]
        h = _gate_residual_norm_(tokens, found, gate2, None, shift, scale, following[i], None, True, eps)
    return h


def added(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to logits where ``seen`` is bool: 0, or -inf."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)


def all_real(mask: Tensor) -> bool:
    """Whether that can be seen here without waiting for a device, and is so."""
    return mask.device.type == "cpu" and not torch.compiler.is_compiling() and bool(mask.all())
