"""From names, descriptions and the compiled core's paths to path objects."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from .. import _core
from .functions import Custom, SavedPath
from .named import VE, VP, Linear, LinearVP, Path, Polynomial, Trigonometric
from .tables import AlphasCumprod, Table

_NAMED: dict[str, type[Path]] = {
    cls.name: cls for cls in (Linear, Trigonometric, VP, Polynomial, LinearVP, VE)
}
# Those that need more than a name; Custom comes back from its description as a SavedPath.
_DESCRIBED: dict[str, type[Path]] = {"table": Table, "alphas_cumprod": AlphasCumprod, "custom": SavedPath}


def get(path: str | Path | dict[str, Any], word: str = "path") -> Path:
    """A path from its name ("linear", "trigonometric", "vp", "polynomial", "linear_vp", "ve"), its description, or itself."""
    if isinstance(path, Path):
        return path
    if isinstance(path, dict):
        options = dict(path)
        name = options.pop("name", None)
        known = {**_NAMED, **_DESCRIBED}
    elif isinstance(path, str):
        name, options, known = path, {}, _NAMED
    else:
        raise TypeError(
            f"{word} must be a name, a pfc.paths.Path or its description, got {type(path).__name__}"
        )
    if not isinstance(name, str) or name not in known:
        raise ValueError(
            f"{word}: unknown name {name!r}, allowed are {', '.join(known)}; pfc.paths.custom, table and "
            "from_alphas_cumprod make others"
        )
    try:
        return known[name](**options)
    except TypeError as error:
        if wrong := sorted(set(options) - set(inspect.signature(known[name]).parameters)):
            raise ValueError(f"{word} {name!r}: unknown options {wrong}") from None
        raise ValueError(f"{word} {name!r}: {error}") from None


def from_core(path: _core.Path | Path) -> Path:
    """The Python face of a path that a plan of the compiled core holds."""
    if isinstance(path, Path):
        return path
    if path.kind == _core.PathKind.vp:
        return VP(path.a, path.b)
    if path.kind == _core.PathKind.polynomial:
        return Polynomial(int(path.a))
    if path.kind == _core.PathKind.ve:
        return VE(path.a)
    return _NAMED[path.kind.name]()


def same(one: Path, other: Path) -> bool:
    """one == other, in compiled functions too."""
    return one == other if one.code is not None else _same(one, other)


# By values, in NumPy, which a compiled function cannot trace.
@torch.compiler.assume_constant_result
def _same(one: Path, other: Path) -> bool:
    return one == other


__all__ = ["Custom", "from_core", "get", "same"]
