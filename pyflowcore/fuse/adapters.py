"""How a module takes its inputs, found by trying; and fuse itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor, nn

from ..models.mlp import MLP
from ..models.resmlp import ResMLP
from .calling import Calling, style_of
from .errors import CannotFuse, WantsLabels, WantsSize
from .lowered import Lowered, check_structure, lowered

__all__ = ["discover"]

# The size of a condition to begin with, until a layer says what it is: unlike others, so that nothing broadcasts.
_GUESS = 19
_TRIES = 8
_MOST_DIMS = 6


def discover(
    module: nn.Module,
    inputs: Sequence[str],
    sizes: Mapping[str, int],
    labels: Sequence[str],
    shape: Sequence[int] | None,
    times: Tensor,
) -> tuple[Calling, Lowered]:
    """How the module is called, and its network."""
    if isinstance(module, ResMLP) and module.modulated:
        raise CannotFuse(
            "ResMLP",
            "its layer norms, and the modulations by the time, are not parts of a small network; one built with "
            "modulated=False can be fused",
        )
    if isinstance(module, MLP | ResMLP):
        return _of_mlp(module, inputs, sizes, labels, shape, times)
    style = style_of(module, inputs)
    conditions = [name for name in inputs if name not in ("x", "t")]
    guessed = {name for name in conditions if name not in sizes and name not in labels}
    shapes = _shapes_of(module, sizes, shape)
    if shape is None and "x" not in sizes:
        guessed.add("x")
    ways = ["column"] if style == "joined" else ["batch", "column", "scalar"] if "t" in inputs else ["batch"]
    given = tuple((name, sizes.get(name, _GUESS)) for name in conditions)
    failures: list[CannotFuse] = []
    for one in shapes:
        for time in ways:
            calling = Calling(tuple(inputs), one, style, time, given, frozenset(labels))
            try:
                return _settle(module, calling, guessed, times)
            except CannotFuse as error:
                failures.append(error)
        if not all(error.by_shapes for error in failures):
            break
    # A part that cannot be fused says more than inputs of the wrong shape.
    failures.sort(key=lambda error: error.by_shapes)
    raise failures[0]


def _settle(module: nn.Module, calling: Calling, guessed: set[str], times: Tensor) -> tuple[Calling, Lowered]:
    """Tries a way of calling, with the sizes and labels that the layers turn out to want."""
    for _ in range(_TRIES):
        try:
            found = lowered(module, calling, times, tuple(guessed))
            check_structure(module, calling, times)
            return calling, found
        except WantsLabels as wanted:
            guessed = guessed - {wanted.name}
            calling = replace(calling, labels=calling.labels | {wanted.name})
        except WantsSize as wanted:
            if wanted.name == "x":
                calling = replace(calling, shape=(wanted.size,))
            else:
                rest = {**dict(calling.sizes), wanted.name: wanted.size}
                calling = replace(calling, sizes=tuple(rest.items()))
            guessed = guessed - {wanted.name}
    raise CannotFuse(
        "the inputs", "their sizes do not follow from the layers: give sizes={...}", allowed=False
    )


def _shapes_of(
    module: nn.Module, sizes: Mapping[str, int], shape: Sequence[int] | None
) -> list[tuple[int, ...]]:
    """What one x may be: as said, or a vector like the output of a linear layer, the last ones first."""
    if shape is not None:
        return [tuple(shape)]
    if "x" in sizes:
        return [(sizes["x"],)]
    layers = [part.out_features for part in module.modules() if isinstance(part, nn.Linear)]
    dims = list(dict.fromkeys(reversed(layers)))
    return [(dim,) for dim in dims[:_MOST_DIMS]] or [(1,)]


def _of_mlp(
    module: MLP | ResMLP,
    inputs: Sequence[str],
    sizes: Mapping[str, int],
    labels: Sequence[str],
    shape: Sequence[int] | None,
    times: Tensor,
) -> tuple[Calling, Lowered]:
    """models.MLP and models.ResMLP say everything themselves; labels that are not given are its null class."""
    kind = "models.MLP" if isinstance(module, MLP) else "models.ResMLP"
    own = [name for name, there in (("y", module.num_classes), ("c", module.cond_dim)) if there]
    if unknown := [name for name in inputs if name not in ("x", "t", *own)]:
        raise ValueError(
            f"inputs has {', '.join(unknown)}, and this {kind} takes x, t{''.join(f', {n}' for n in own)}"
        )
    own_sizes = {"x": module.shape[0], "c": module.cond_dim}
    for name, size in sizes.items():
        if size != own_sizes.get(name):
            is_ = f"{own_sizes[name]} of {name}" if name in own_sizes else f"{name} as labels"
            raise ValueError(f"sizes[{name!r}] is {size}, and this {kind} takes {is_}")
    if wrong := [name for name in labels if name != "y"]:
        raise ValueError(f"labels has {', '.join(wrong)}, and the labels of a {kind} are y")
    if shape is not None and tuple(shape) != module.shape:
        raise ValueError(f"shape is {tuple(shape)}, and this {kind} takes x of shape {module.shape}")
    calling = Calling(
        ("x", "t", *own), module.shape, 2, "batch", (("c", module.cond_dim),) if module.cond_dim else (),
        frozenset({"y"} if module.num_classes else ()), (("y", module.num_classes),) if module.num_classes else (),
    )  # fmt: skip
    found = lowered(module, calling, times)
    check_structure(module, calling, times)
    return calling, found
