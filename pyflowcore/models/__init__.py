"""Reference networks in plain PyTorch, one readable file each.

Every model has ``config`` (its constructor's arguments, JSON values), ``shape`` (of one sample), ``num_classes`` and
``null_class``; ``build`` makes it again from its name and its config, and ``named`` makes a published size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .action_expert import ActionExpert
from .dit import DiT
from .mlp import MLP
from .mmdit import MMDiT
from .resmlp import ResMLP
from .sizes import SIZES
from .text import ByteEncoder
from .unet import UNet

Model = ActionExpert | DiT | MLP | MMDiT | ResMLP | UNet
_MODELS: dict[str, type[Model]] = {
    "ActionExpert": ActionExpert,
    "DiT": DiT,
    "MLP": MLP,
    "MMDiT": MMDiT,
    "ResMLP": ResMLP,
    "UNet": UNet,
}


def build(name: str, config: Mapping[str, Any]) -> Model:
    """The model called ``name``, as its class is, with the arguments ``config``, as a checkpoint stores them.

    Raises:
        ValueError: for an unknown name, or a config that the model does not take.
    """
    if name not in _MODELS:
        raise ValueError(f"name must be one of {sorted(_MODELS)}; got {name!r}")
    try:
        return _MODELS[name](**config)
    except TypeError as error:
        raise ValueError(f"config does not fit {name}: {error}") from None


def named(name: str, **changes: Any) -> Model:
    """A published size, "SiT-XL/2" say, with fresh weights; ``changes`` replace its arguments (``size=64`` for 512 x 512).

    Raises:
        ValueError: for an unknown name, or changes that the model does not take.
    """
    if name not in SIZES:
        raise ValueError(f"name must be one of {sorted(SIZES)}; got {name!r}")
    model, config = SIZES[name]
    return build(model, config | changes)


__all__ = [
    "MLP",
    "SIZES",
    "ActionExpert",
    "ByteEncoder",
    "DiT",
    "MMDiT",
    "Model",
    "ResMLP",
    "UNet",
    "build",
    "named",
]
