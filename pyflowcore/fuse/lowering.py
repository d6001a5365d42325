"""Lowering: from the tape of a traced module to a Network, walking from the output back to the inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import network
from .errors import CannotFuse
from .tape import Form, Group, Tape

__all__ = ["Condition", "lower"]


@dataclass(frozen=True)
class Condition:
    """A block of the network's conditions: numbers of the named input, or the rows that its labels have in a table."""

    name: str
    size: int
    table: Tensor | None = None


@dataclass
class _Layer:
    """A layer whose input is a group, or what the samples bring (None)."""

    form: Form
    source: Group | None
    where: str
    activation: str = "identity"
    parameter: float = 0.0
    residual: Group | None = None
    after: str = "identity"
    after_parameter: float = 0.0


def lower(
    tape: Tape, output: Tensor, where: str = "the module"
) -> tuple[network.Network, tuple[Condition, ...]]:
    """The network whose output are these atoms, and what its conditions are."""
    layers = _Walk(tape).layers(tape.values(output), where)
    layers.reverse()
    first = layers[0].form
    features = [g for g in first.blocks if g.kind in ("time", "feature")]
    conditions = [g for g in first.blocks if g.kind in ("condition", "table")]
    states = [g for g in tape.groups if g.kind == "x"]
    ordered = [sorted(part, key=lambda g: g.start) for part in (features, conditions, states)]
    rows = len(first.bias)
    blocks = [
        first.blocks.get(g, torch.zeros(rows, g.size, dtype=torch.float64)) for part in ordered for g in part
    ]
    sources = [layer.source for layer in layers]
    dense = []
    for layer in layers:
        weight = torch.cat(blocks, dim=1) if layer.source is None else layer.form.blocks[layer.source]
        dense.append(
            network.Dense(
                weight, layer.form.bias, layer.activation, layer.parameter,
                -1 if layer.residual is None else sources.index(layer.residual), layer.after, layer.after_parameter,
            )
        )  # fmt: skip
    found = network.Network(
        tuple(dense), tuple(f for g in ordered[0] for f in _features(g)),
        sum(g.size for g in ordered[1]), sum(g.size for g in states),
    )  # fmt: skip
    _check_sizes(found, layers)
    return found, tuple(
        Condition(g.name, g.size, g.weight if g.kind == "table" else None) for g in ordered[1]
    )


def _features(group: Group) -> list[network.Feature]:
    if group.kind == "time":
        return [network.Feature("linear", 1.0)]
    pairs = zip(group.weight.tolist(), group.bias.tolist(), strict=True)
    return [network.Feature(group.name, frequency, phase) for frequency, phase in pairs]


def _check_sizes(found: network.Network, layers: list[_Layer]) -> None:
    if found.dim > network.MAX_WIDTH:
        raise CannotFuse(
            "x", f"{found.dim} elements, at most {network.MAX_WIDTH} can be fused", allowed=False
        )
    for what, count in (
        ("features of the time", len(found.features)),
        ("numbers of condition", found.conditions),
    ):
        if count > network.MAX_INPUTS:
            raise CannotFuse(
                "the inputs", f"{count} {what}, at most {network.MAX_INPUTS} can be fused", allowed=False
            )
    if len(layers) > network.MAX_LAYERS:
        raise CannotFuse(
            "the module", f"{len(layers)} layers, at most {network.MAX_LAYERS} can be fused", allowed=False
        )
    for layer, dense in zip(layers, found.layers, strict=True):
        if dense.weight.shape[0] > network.MAX_WIDTH:
            width = dense.weight.shape[0]
            raise CannotFuse(
                layer.where, f"width {width}, at most {network.MAX_WIDTH} can be fused", allowed=False
            )


class _Walk:
    """From the output to the inputs. At most one residual waits for the vector that it adds."""

    def __init__(self, tape: Tape) -> None:
        self.tape = tape
        self.waiting: tuple[Group, str] | None = None

    def layers(self, form: Form, where: str) -> list[_Layer]:
        """Last layer first."""
        found: list[_Layer] = []
        after, parameter = "identity", 0.0
        while True:
            layer = self._layer(form, where, after, parameter)
            found.append(layer)
            source = layer.source
            if source is None:
                break
            if self.waiting is not None and self.waiting[0] is source:
                self.waiting = None
            where = source.where
            form = self.tape.definition(source)
            after, parameter = (
                (source.name, source.parameter) if source.kind == "activation" else ("identity", 0.0)
            )
        if self.waiting is not None:
            group, where = self.waiting
            what = (
                "a residual over the network's own input"
                if self.tape.of_inputs(group)
                else f"it adds what {group.where} makes of an earlier layer; a residual adds a layer's input as it is"
            )
            raise CannotFuse(where, what)
        return found

    def _layer(self, form: Form, where: str, after: str, parameter: float) -> _Layer:
        """The layer that computes after(form)."""
        where = self._title(form, where)
        form = self._settled(form, where)
        source = form.latest()
        if source is None:
            return _Layer(form, None, where, after, parameter)
        if source.kind == "aside":
            raise CannotFuse(source.where, f"{source.name} outside an activation that is written by hand")
        residual = self._residual(form, source, where)
        if _is_identity(form, source) and source.kind == "activation":
            inner = self._settled(self.tape.definition(source), source.where, residual)
            below = inner.latest()
            if below is None or len(inner.blocks) == 1:
                # The activation is this layer's own: after(activation(inner) + residual). What it reads waits nowhere.
                where = self._title(self.tape.definition(source), where)
                if residual is not below:
                    self._wait(residual, where)
                return _Layer(inner, below, where, source.name, source.parameter, residual, after, parameter)
        self._wait(residual, where)
        if residual is None:
            return _Layer(form, source, where, after, parameter)
        return _Layer(form, source, where, "identity", 0.0, residual, after, parameter)

    def _wait(self, residual: Group | None, where: str) -> None:
        if residual is None:
            return
        if self.waiting is not None and self.waiting[0] is not residual:
            raise CannotFuse(where, "a residual block inside another one")
        self.waiting = (residual, where)

    def _title(self, form: Form, where: str) -> str:
        """The part of the module that a layer is named by: the map that it is, not what is done to it afterwards."""
        latest = form.latest()
        return latest.where if latest is not None and latest.kind == "affine" else where

    def _residual(self, form: Form, source: Group, where: str) -> Group | None:
        others = [group for group in form.blocks if group is not source]
        if not others:
            return None
        if any(group.is_input for group in others):
            roots = self.tape.roots(torch.arange(source.start, source.start + source.size))
            if all(group.kind != "x" for group in roots):
                raise CannotFuse(
                    source.where,
                    "layers over the time or the conditions alone, before x comes in (an embedding network); a network is "
                    "one chain of layers",
                )
            raise CannotFuse(
                where,
                "the inputs are used again after the first activation (a residual over the network's own input, or a time or "
                "condition that is added in a later layer)",
            )
        if len(others) > 1:
            raise CannotFuse(where, "a sum over more than two earlier layers, or branches side by side")
        (skip,) = others
        if not form.is_one(skip):
            raise CannotFuse(
                where,
                f"it reads two earlier layers at once ({skip.where} and {source.where}); a residual adds one of them as it is",
            )
        return skip

    def _settled(self, form: Form, where: str, residual: Group | None = None) -> Form:
        """The form with affine groups written out, but for those that have to be layers of their own."""
        kept = {residual} if self.waiting is None else {residual, self.waiting[0]}
        kept.discard(None)
        while True:
            own = sorted((g for g in form.blocks if g.kind == "affine"), key=lambda g: -g.start)
            candidates = [g for g in own if g not in kept]
            if not kept and all(map(self.tape.of_inputs, form.blocks)):
                return self.tape.in_inputs(form)
            latest = form.latest()
            if latest is None or not candidates:
                return form
            if latest in candidates:
                if (
                    len(form.blocks) == 1
                    and not _is_identity(form, latest)
                    and not self._plain(latest, form, kept)
                ):
                    return form
                form = self.tape.expanded(form, latest)
                continue
            # What is left are sums with an earlier vector. As it is, it may be added; anything else is written out.
            scaled = [g for g in candidates if not form.is_one(g)]
            if not scaled:
                return form
            form = self.tape.expanded(form, scaled[0])

    def _plain(self, group: Group, form: Form, kept: set[Group | None]) -> bool:
        """Whether an affine group can be folded into the map that reads it, and it is no more work to do so."""
        groups = set(self.tape.groups_of(group.atoms))
        while True:
            groups = {g for g in groups if g.kind != "constant"}
            if not kept and all(map(self.tape.of_inputs, groups)):
                return True
            latest = max((g for g in groups if not g.is_input), key=lambda g: g.start, default=None)
            if latest is None:
                return True
            if latest in kept or latest.kind != "affine":
                out, between, into = len(form.bias), group.size, latest.size
                return len(groups) == 1 and between * (out + into) >= out * into
            groups = (groups - {latest}) | set(self.tape.groups_of(latest.atoms))


def _is_identity(form: Form, group: Group) -> bool:
    return not form.shifted and form.is_one(group)
