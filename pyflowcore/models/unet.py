"""A U-Net with class conditions, in plain PyTorch: the network of most published pixel-space models.

After Dhariwal & Nichol, "Diffusion Models Beat GANs on Image Synthesis" (NeurIPS 2021), section 3 and appendix I ("ADM"); with
other settings it is the network of Ho et al. 2020 and of the flow models that were trained since. ``sizes.py`` knows the
published sizes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .embeddings import timestep_embedding
from .labels import labels_or_null
from .unet_blocks import Attention, Direction, Resample, ResBlock, Stage, group_norm


class UNet(nn.Module):
    """U-Net of residual blocks: ``forward(x, t, y=None)``.

    On the way down, level i has ``blocks`` stages of ``width * multipliers[i]`` channels; between levels the resolution
    halves. A block, attention and a block are the middle. On the way up every level has ``blocks + 1`` stages, and each
    takes beside its input what one piece of the way down gave. The last convolution starts at zero, so a fresh network
    answers zero.

    Args:
        size: height and width of the images, or one number for both; multiples of ``2 ** (levels - 1)``. It says ``shape``
            (for training and sampling); forward takes any such multiples.
        channels: of the images.
        width: channels that ``multipliers`` multiply, and sinusoids of the time; even.
        multipliers: one a level, from the full resolution down.
        blocks: stages of a level.
        attention: the levels' downsampling factors (1, 2, 4, ...) where every stage has attention. The middle always has.
        head_channels: channels of an attention head; 0 for a single head.
        num_classes: 0 for none; else labels run from 0 to ``num_classes - 1`` and index ``num_classes`` is the learned null
            class ("no label").
        dropout: in training, of what enters the second convolution of a block.
        scale_shift: time and class scale and shift the second norm's output; False: they are added before that norm.
        resample: resolutions change by "block" (residual blocks), "conv" (a convolution) or "pool" (means and copies).
        groups: of the group norms; fewer where channels do not allow (``unet_blocks.group_norm``).
        time_scale: what t is multiplied by before its sinusoids: 1000 here; the published networks have 1, and ADM's times run
            from 0 to 999 of themselves.
        outputs: channels that the last convolution computes; None: ``channels``. ``forward`` answers the first ``channels``
            of them; what is over (the variances of the published ADM, ``2 * channels``) is computed and dropped.

    Raises:
        ValueError: if a size does not fit, or if x, t or y come in the wrong shape.
    """

    def __init__(
        self,
        size: int | Sequence[int] = 32,
        channels: int = 3,
        width: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 2,
        attention: Sequence[int] = (2,),
        head_channels: int = 64,
        num_classes: int = 0,
        dropout: float = 0.0,
        scale_shift: bool = True,
        resample: Literal["block", "conv", "pool"] = "block",
        groups: int = 32,
        time_scale: float = 1000.0,
        outputs: int | None = None,
    ) -> None:
        super().__init__()
        sides = (size, size) if isinstance(size, int) else tuple(size)
        self.config: dict[str, Any] = {
            "size": size if isinstance(size, int) else list(size),
            "channels": channels,
            "width": width,
            "multipliers": list(multipliers),
            "blocks": blocks,
            "attention": sorted(attention),
            "head_channels": head_channels,
            "num_classes": num_classes,
            "dropout": dropout,
            "scale_shift": scale_shift,
            "resample": resample,
            "groups": groups,
            "time_scale": time_scale,
            "outputs": outputs,
        }
        _check(self.config, sides)
        self.shape = (channels, *sides)
        self.num_classes, self.width, self.time_scale = num_classes, width, time_scale
        self.factor = 2 ** (len(multipliers) - 1)
        self.cond = 4 * width
        self.embed_time = nn.Linear(width, self.cond)
        self.mix_time = nn.Linear(self.cond, self.cond)
        self.embed_class = nn.Embedding(num_classes + 1, self.cond) if num_classes else None

        now = width * multipliers[0]
        self.stem = nn.Conv2d(channels, now, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        left = [now]  # channels of what the way up takes beside its input
        for level, multiplier in enumerate(multipliers):
            for _ in range(blocks):
                self.down.append(Stage(self._block(now, width * multiplier), self._attention(level), None))
                now = width * multiplier
                left.append(now)
            if level < len(multipliers) - 1:
                self.down.append(self._resample(now, "down"))
                left.append(now)
        last = self._attention(len(multipliers) - 1, always=True)
        self.middle = nn.ModuleList([Stage(self._block(now, now), last, None), self._block(now, now)])
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for stage in range(blocks + 1):
                block = self._block(now + left.pop(), width * multiplier)
                now = width * multiplier
                wider = self._resample(now, "up") if level and stage == blocks else None
                self.up.append(Stage(block, self._attention(level), wider))
        self.norm = group_norm(now, groups)
        self.out = nn.Conv2d(now, outputs or channels, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        assert self.out.bias is not None
        nn.init.zeros_(self.out.bias)

    def _block(self, before: int, after: int, direction: Direction | None = None) -> ResBlock:
        config = self.config
        return ResBlock(
            before,
            after,
            self.cond,
            dropout=config["dropout"],
            scale_shift=config["scale_shift"],
            direction=direction,
            groups=config["groups"],
        )

    def _attention(self, level: int, *, always: bool = False) -> Attention | None:
        """The attention of a stage at ``level``, where ``attention`` asks for it."""
        config = self.config
        if not always and 2**level not in config["attention"]:
            return None
        channels = self.width * config["multipliers"][level]
        return Attention(channels, config["head_channels"], groups=config["groups"])

    def _resample(self, channels: int, direction: Direction) -> nn.Module:
        kind = self.config["resample"]
        if kind == "block":
            return self._block(channels, channels, direction)
        return Resample(channels, direction, convolution=kind == "conv")

    @property
    def null_class(self) -> int | None:
        """The index that stands for "no label"; None for a network without classes."""
        return self.num_classes or None

    def time_steer(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        """The embedded times: t [B] -> [B, 4 * width] of ``dtype``."""
        phases = timestep_embedding(t, self.width, scale=self.time_scale).to(dtype)
        steer: Tensor = self.mix_time(F.silu(self.embed_time(phases)))
        return steer

    def condition_steer(self, y: Tensor | None, samples: Tensor) -> Tensor | None:
        """The embedded classes of ``samples`` [B, ...], whose dtype does not matter: [B, 4 * width]; None without classes."""
        labels = labels_or_null(y, samples, self.num_classes, "UNet")
        if labels is None or self.embed_class is None:
            return None
        steer: Tensor = self.embed_class(labels)
        return steer

    def check_points(self, x: Tensor) -> None:
        """ValueError unless x has the network's channels and sides that halve as often as it needs."""
        if x.dim() != 4 or x.shape[1] != self.shape[0] or any(side % self.factor for side in x.shape[2:]):
            multiples = f"H and W multiples of {self.factor}"
            raise ValueError(f"x must be [B, {self.shape[0]}, H, W], {multiples}; got {list(x.shape)}")

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """x [B, C, H, W], t [B] in [0, 1], y [B] integer labels (None: the null class) -> like x."""
        self.check_points(x)
        if t.shape != x.shape[:1]:
            raise ValueError(f"t must hold one time a sample, [{x.shape[0]}]; got {list(t.shape)}")
        # What steers every block: the embedded time and class, summed.
        c = self.time_steer(t, x.dtype)
        if (steer := self.condition_steer(y, x)) is not None:
            c = c + steer
        h = self.stem(x)
        kept = [h]
        for piece in self.down:
            h = piece(h, c)
            kept.append(h)
        for piece in self.middle:
            h = piece(h, c)
        for piece in self.up:
            h = piece(torch.cat([h, kept.pop()], dim=1), c)
        return self.out(F.silu(self.norm(h)))[:, : self.shape[0]]


def _check(config: dict[str, Any], sides: tuple[int, ...]) -> None:
    """ValueError for what cannot be built, naming the argument."""
    multipliers, width = config["multipliers"], config["width"]
    for name in ("channels", "blocks", "groups"):
        if config[name] < 1:
            raise ValueError(f"{name} must be at least 1; got {config[name]}")
    for name in ("num_classes", "head_channels"):
        if config[name] < 0:
            raise ValueError(f"{name} must be at least 0; got {config[name]}")
    if width < 2 or width % 2:
        raise ValueError(f"width must be even and at least 2; got {width}")
    if not multipliers or min(multipliers) < 1:
        raise ValueError(f"multipliers must be one number of at least 1 a level; got {multipliers}")
    factor = 2 ** (len(multipliers) - 1)
    if len(sides) != 2 or min(sides) < 1 or any(side % factor for side in sides):
        raise ValueError(
            f"size must be one multiple of {factor} (2 to the power of levels - 1) or two; got {config['size']}"
        )
    factors = [2**level for level in range(len(multipliers))]
    if not set(config["attention"]) <= set(factors):
        raise ValueError(f"attention must be some of the factors {factors}; got {config['attention']}")
    attended = {*config["attention"], factor}
    for multiplier, at in zip(multipliers, factors, strict=True):
        head = config["head_channels"] or 1
        if at in attended and width * multiplier % head:
            raise ValueError(
                f"head_channels must divide the {width * multiplier} channels at factor {at}; got {head}"
            )
    if not (math.isfinite(config["dropout"]) and 0 <= config["dropout"] < 1):
        raise ValueError(f"dropout must be within [0, 1); got {config['dropout']}")
    if not math.isfinite(config["time_scale"]):
        raise ValueError(f"time_scale must be finite; got {config['time_scale']}")
    if config["outputs"] is not None and config["outputs"] < config["channels"]:
        raise ValueError(f"outputs must be at least channels={config['channels']}; got {config['outputs']}")
    if config["resample"] not in ("block", "conv", "pool"):
        raise ValueError(f'resample must be "block", "conv" or "pool"; got {config["resample"]!r}')
