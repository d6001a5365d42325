"""Tape: what a module computes for one sample, as groups of numbers: inputs, affine maps, activations of earlier ones."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from .errors import CannotFuse

__all__ = ["MOST_ATOMS", "Form", "Group", "Tape"]

# More numbers than this in one step are no small network; every layer's map is a dense matrix here.
MOST_ATOMS = 4096

# What a sample brings: no layer computes it.
INPUTS = ("x", "time", "feature", "condition", "labels", "table")


@dataclass(eq=False)
class Group:
    """Numbers that are made at once. Each has a number of its own, its atom: ``start``, ``start + 1``, ...

    Attributes:
        kind: "x", "time", "condition", "labels" (inputs); "feature" (sines or cosines of the time); "table" (rows of an
            embedding); "constant"; "affine"; "activation"; "aside" (a function that is a part of activations written by hand).
        start, size: its atoms.
        where: the part of the module that made it, for messages.
        name: of the condition, activation, function, or kind of feature; parameter: of the activation.
        atoms: what an affine map or an activation reads.
        weight: [size, len(atoms)] of an affine map; or, of one that acts on each element, [len(atoms)], a multiple of size:
            atom j goes to element j % size. The table [labels, size] of an embedding; frequencies [size] of features.
        bias: [size], also of constants (their values) and of features (their phases).
        selects: whether an affine map adds up what it reads, by its nature and not by the weights that it happens to have.
        shifted: whether it has a bias, be it zero.
    """

    kind: str
    start: int
    size: int
    where: str
    name: str = ""
    parameter: float = 0.0
    atoms: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    weight: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.float64))
    bias: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.float64))
    selects: bool = False
    shifted: bool = True

    @property
    def is_input(self) -> bool:
        return self.kind in INPUTS


@dataclass
class Form:
    """An affine map: of which groups, by which matrices [rows, group.size], and a bias [rows].

    ``selects`` holds the groups whose matrices are made of no weights, and ``shifted`` says whether there is a bias, so that
    the layers do not depend on what values the weights have.
    """

    blocks: dict[Group, Tensor]
    bias: Tensor
    selects: set[Group]
    shifted: bool

    def latest(self) -> Group | None:
        """The group, made last, that is no input."""
        own = [group for group in self.blocks if not group.is_input]
        return max(own, key=lambda group: group.start) if own else None

    def plus(self, other: Form) -> Form:
        blocks = dict(self.blocks)
        for group, matrix in other.blocks.items():
            blocks[group] = blocks[group] + matrix if group in blocks else matrix
        weighed = (self.blocks.keys() - self.selects) | (other.blocks.keys() - other.selects)
        return Form(blocks, self.bias + other.bias, set(blocks) - weighed, self.shifted or other.shifted)

    def without(self, group: Group) -> Form:
        blocks = {other: block for other, block in self.blocks.items() if other is not group}
        return Form(blocks, self.bias, self.selects - {group}, self.shifted)

    def is_one(self, group: Group) -> bool:
        """Whether the group goes in as it is."""
        block = self.blocks[group]
        return (
            group in self.selects
            and block.shape[0] == block.shape[1]
            and torch.equal(block, torch.eye(len(block), dtype=block.dtype))
        )


class Tape:
    """The groups in the order in which they were made, so that a group reads earlier ones alone."""

    def __init__(self) -> None:
        self.groups: list[Group] = []
        self._starts: list[int] = []
        self._end = 0
        self._of_inputs: dict[int, bool] = {}

    def add(self, kind: str, size: int, where: str, **rest: object) -> Tensor:
        """A new group; its atoms."""
        if size > MOST_ATOMS:
            raise CannotFuse(where, f"{size} numbers for each sample, at most {MOST_ATOMS} are followed")
        group = Group(kind, self._end, size, where, **rest)  # type: ignore[arg-type]
        self.groups.append(group)
        self._starts.append(self._end)
        self._end += size
        return torch.arange(group.start, group.start + size)

    def group_of(self, atom: int) -> Group:
        return self.groups[bisect_right(self._starts, atom) - 1]

    def groups_of(self, atoms: Tensor) -> list[Group]:
        """The groups that hold these atoms, in their order."""
        # Groups without elements share their start with the next one; "right" finds the last of them.
        found = np.searchsorted(self._starts, np.unique(atoms.numpy()), side="right") - 1
        return [self.groups[i] for i in np.unique(found).tolist()]

    def form(self, weight: Tensor, atoms: Tensor, bias: Tensor, selects: bool, shifted: bool) -> Form:
        """The affine map of these atoms, group by group; constants go into the bias."""
        blocks: dict[Group, Tensor] = {}
        bias = bias.clone()
        for group in self.groups_of(atoms):
            mine = (atoms >= group.start) & (atoms < group.start + group.size)
            part, columns = weight[:, mine], atoms[mine] - group.start
            if len(columns) == group.size and torch.equal(columns, torch.arange(group.size)):
                block = part
            else:
                block = weight.new_zeros(len(weight), group.size).index_add_(1, columns, part)
            if group.kind == "constant":
                bias += block @ group.bias
                shifted = True
            else:
                blocks[group] = block
        return Form(blocks, bias, set(blocks) if selects else set(), shifted)

    def values(self, atoms: Tensor) -> Form:
        """The atoms themselves."""
        count = len(atoms)
        eye, zero = torch.eye(count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
        return self.form(eye, atoms, zero, True, False)

    def definition(self, group: Group) -> Form:
        """What an affine group computes, or what an activation is taken of."""
        if group.kind == "affine":
            return self._times(None, group, True)
        return self.values(group.atoms)

    def _times(self, matrix: Tensor | None, group: Group, selects: bool) -> Form:
        """matrix [rows, size], or the identity, times what an affine group computes."""
        if matrix is None and group.weight.dim() == 2:
            return self.form(group.weight, group.atoms, group.bias, group.selects, group.shifted)
        if matrix is None:
            matrix = torch.eye(group.size, dtype=torch.float64)
        if group.weight.dim() == 2:
            weight = matrix @ group.weight
        else:
            weight = matrix[:, torch.arange(len(group.atoms)) % group.size] * group.weight
        return self.form(weight, group.atoms, matrix @ group.bias, selects and group.selects, group.shifted)

    def of_inputs(self, group: Group) -> bool:
        """Whether no activation lies between the inputs and this group."""
        if group.start not in self._of_inputs:
            own = group.is_input or group.kind == "constant"
            below = group.kind == "affine" and all(map(self.of_inputs, self.groups_of(group.atoms)))
            self._of_inputs[group.start] = own or below
        return self._of_inputs[group.start]

    def elementwise(self, atoms: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The atoms as factor * base + shift, as far down as elements depend on one other each: (base, factor, shift)."""
        base, factor = atoms.clone(), torch.ones(len(atoms), dtype=torch.float64)
        shift = torch.zeros_like(factor)
        while True:
            again = False
            for group in self.groups_of(base):
                if group.kind != "affine" or group.weight.dim() != 1 or len(group.atoms) != group.size:
                    continue
                mine = (base >= group.start) & (base < group.start + group.size)
                at = base[mine] - group.start
                shift[mine] += factor[mine] * group.bias[at]
                factor[mine] *= group.weight[at]
                base[mine] = group.atoms[at]
                again = True
            if not again:
                return base, factor, shift

    def roots(self, atoms: Tensor) -> list[Group]:
        """The inputs that these atoms depend on."""
        seen: set[int] = set()
        found, todo = [], self.groups_of(atoms)
        while todo:
            group = todo.pop()
            if group.start in seen or group.size == 0:
                continue
            seen.add(group.start)
            if group.kind in ("x", "time", "condition", "labels"):
                found.append(group)
            if len(group.atoms):
                todo += self.groups_of(group.atoms)
        return found

    def expanded(self, form: Form, group: Group) -> Form:
        """The form with an affine group written out."""
        matrix = None if form.is_one(group) else form.blocks[group]
        return form.without(group).plus(self._times(matrix, group, group in form.selects))

    def in_inputs(self, form: Form) -> Form:
        """The form with every affine group written out; activations stay."""
        while True:
            own = [group for group in form.blocks if group.kind == "affine"]
            if not own:
                return form
            form = self.expanded(form, max(own, key=lambda group: group.start))
