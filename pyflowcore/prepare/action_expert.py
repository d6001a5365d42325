"""models.ActionExpert through the fused operators: what a policy observes once a trajectory, then steps of a few tokens.

Of a trajectory's rows the action tokens alone change. What else they see, keys and values of the observations and of the
robot's state, is written once into buffers that have room behind it, and there each step writes those of its own tokens.
What the time adds to a row is made for all rows at once, and the two linear layers between an action and its first
activation are one.
"""

from __future__ import annotations

from collections.abc import Sequence
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
        layers = [cast("Layer", layer) for layer in self.model.layers]
        observing = [layer for layer in self.model.prefix_layers if isinstance(layer, Layer)]
        self._actions = [Fused(layer, self._qkv(f"actions {i}", layer)) for i, layer in enumerate(layers)]
        self._observing = [Fused(layer, self._qkv(f"sight {i}", layer)) for i, layer in enumerate(observing)]
        # The layers that leave the tokens as they are come last, and read the same ones: one product for all of them.
        offering = [layer for layer in self.model.prefix_layers if isinstance(layer, Memory)]
        self._offers = Joined(
            self.keep,
            "offers",
            [layer.keys_values.project for layer in offering],
            [layer.norm for layer in offering],
        )

    def _qkv(self, name: str, layer: Layer) -> Joined:
        return Joined(self.keep, name, [layer.attend.queries, layer.keys_values.project])

    def begin(self, times: Tensor, cond: dict[str, Any], n: int) -> Evaluate:
        model, horizon = self.model, self.model.shape[0]
        phases = time_embedding(times.reshape(-1), model.width).to(self.dtype)
        phases = phases.reshape(*times.shape, model.width)
        steering, rows = None, None
        if model.modulation is not None:
            layers = [cast("nn.Linear", layer.modulation) for layer in model.layers]
            steering = Steering([*layers, model.modulation], model.mix_time(phases), None)
        else:
            _, of_time = self._entrance().weight.split(model.width, dim=1)
            rows = F.linear(phases, of_time, self.keep("bias", self._bias)).unbind(0)
            self.keep("actions", self._from_actions)
        for layer in self._actions:
            _ = layer.qkv.weight  # before an evaluation is recorded
        tables = self._tables(cond, n)
        whole = tables.stream(tables.keys.shape[3] - horizon, tables.keys.shape[3], model.config["heads"])
        streams: dict[tuple[int, ...], list[Tensor | None]] = {(n, *model.shape): whole.tensors()}

        def inputs(x: Tensor, row: int) -> list[Tensor | None]:
            count, found = x.shape[0], streams.get(tuple(x.shape))
            if found is None:
                if x.dim() != 3 or tuple(x.shape[1:]) != model.shape or count > n:
                    raise ValueError(
                        f"x must be [{n} or less, {model.shape[0]}, {model.shape[1]}]; got {list(x.shape)}"
                    )
                found = streams[tuple(x.shape)] = whole.of(count).tensors()
            if steering is not None:
                return [*found, *steering.pieces(row, count, model.width)]
            assert rows is not None
            return [*found, rows[row] if rows[row].dim() == 1 else rows[row][:count]]

        return self.straight(self.evaluate, inputs)

    def evaluate(self, x: Tensor, *given: Tensor | None) -> Tensor:
        """One evaluation, given the stream of the actions, and what the time makes of the row: shift, scale and gate of every
        layer's halves and the last norm's shift and scale, or [width] or [n, width] to add to the tokens."""
        model, products = self.model, self.products
        stream, of_time = Stream.from_tensors(given, model.depth)
        steps: list[Steps] = [_NONE] * (model.depth + 1)
        if model.modulation is not None:
            steps = [each.unbind(0) for each in of_time]
            tokens = F.linear(x, model.embed.weight, model.embed.bias)
        else:
            weight, added = self.keep("actions", self._from_actions), of_time[0]
            one_time = added.dim() == 1  # for all samples
            made = F.linear(x, weight, added) if one_time else F.linear(x, weight).add_(added[:, None])
            tokens = products(cast("nn.Linear", model.mix_time[2]), F.silu(made, inplace=True), bias=True)
        h = through(products, self._actions, tokens, stream, steps, model.norm.weight)
        return F.linear(h, model.out.weight, model.out.bias)

    # ---------------------------------------------------------------------------- from an action to its first activation
    def _entrance(self) -> nn.Linear:
        """The layer over embedded action and time."""
        return cast("nn.Linear", self.model.mix_time[0])

    def _from_actions(self) -> Tensor:
        """The embedding and the layer after it as one, [width, dims]. In float32 at least: it is rounded once."""
        of_action, wide = self._entrance().weight[:, : self.model.width], self._wide()
        return (of_action.to(wide) @ self.model.embed.weight.to(wide)).to(self.dtype).detach()

    def _bias(self) -> Tensor:
        of_action, wide = self._entrance().weight[:, : self.model.width], self._wide()
        bias = torch.addmv(self._entrance().bias.to(wide), of_action.to(wide), self.model.embed.bias.to(wide))
        return bias.to(self.dtype).detach()

    def _wide(self) -> torch.dtype:
        return torch.promote_types(self.dtype, torch.float32)

    # ----------------------------------------------------------------------------------------------- observations
    def _tables(self, cond: dict[str, Any], n: int) -> Tables:
        """The buffers with what is before the action tokens."""
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
            return tables
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
        return tables

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
        layers = self._observing
        if layers:
            h = through(products, layers, tokens, stream, [_NONE] * (len(layers) + 1), None)
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
        *layers, last = self._actions
        norm = last.layer.norm1
        if layers:
            h = through(self.products, layers, tokens, stream, [_NONE] * model.depth, norm.weight)
        else:
            h = _norm_modulate(tokens, None, None, norm.weight, None, True, norm.eps)
        stream.remember(model.depth - 1, self.products(last.qkv, h), stream.queries.shape[1])


class Fused(NamedTuple):
    """A layer, and its queries, keys and values as one product."""

    layer: Layer
    qkv: Joined


def through(
    products: Products,
    layers: Sequence[Fused],
    tokens: Tensor,
    stream: Stream,
    steps: Sequence[Steps],
    last: Tensor | None,
) -> Tensor:
    """Tokens [n, count, width], which are written, through the layers; the answer is their norm after the last one.

    Args:
        steps: of each layer, and of the norm after them.
        last: the weight of that norm.
    """
    following = [*(fused.layer.norm1.weight for fused in layers[1:]), last]
    first = layers[0].layer.norm1
    eps = first.eps
    h = _norm_modulate(tokens, *steps[0][:2], first.weight, None, True, eps)
    for i, (layer, qkv) in enumerate(layers):
        _, _, gate1, shift, scale, gate2 = steps[i]
        mixed = products(layer.attend.out, stream.attend(i, products(qkv, h)))
        h = _gate_residual_norm_(
            tokens, mixed, gate1, None, shift, scale, layer.norm2.weight, None, True, eps
        )
        first_half, second_half = products(layer.mlp.enter, h).chunk(2, dim=-1)
        found = products(layer.mlp.leave, F.gelu(first_half, approximate="tanh").mul_(second_half))
        shift, scale = steps[i + 1][:2]
        h = _gate_residual_norm_(tokens, found, gate2, None, shift, scale, following[i], None, True, eps)
    return h


def added(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to logits where ``seen`` is bool: 0, or -inf."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)


def all_real(mask: Tensor) -> bool:
    """Whether that can be seen here without waiting for a device, and is so."""
    return mask.device.type == "cpu" and not torch.compiler.is_compiling() and bool(mask.all())
