"""A grid of small grey images as a PNG, blown up so that it can be looked at."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence

import torch
from torch import Tensor

from ..training import atomic
from ..training.optional import require

_GAP, _BACKGROUND, _INK = 2, (24, 28, 36), (220, 225, 235)


def png(rows: Sequence[tuple[str, Tensor]], columns: Sequence[str], *, zoom: int = 6) -> bytes:
    """A PNG with a label before every row and above every column.

    Args:
        rows: (label, images [C, 1 or 3, H, W] in [-1, 1], one a column); values outside are clipped. A label that is
            the same as the row's above is not written again.
        columns: C labels.
        zoom: side of the square that one pixel becomes.

    Raises:
        ValueError: if images come in another number or shape.
        ImportError: without pillow.
    """
    image_module, draw_module = require("PIL.Image", "pillow"), require("PIL.ImageDraw", "pillow")
    if not rows or not columns:
        raise ValueError("rows and columns must not be empty")
    shape = tuple(rows[0][1].shape)
    if len(shape) != 4 or shape[0] != len(columns) or shape[1] not in (1, 3):
        raise ValueError(f"images must be [{len(columns)}, 1 or 3, H, W]; got {list(shape)}")
    cell_h, cell_w = shape[2] * zoom + _GAP, shape[3] * zoom + _GAP
    margin, header = 8 + 7 * max(len(label) for label, _ in rows), 18
    sheet = image_module.new(
        "RGB", (margin + cell_w * len(columns), header + cell_h * len(rows)), _BACKGROUND
    )
    draw = draw_module.Draw(sheet)
    for column, label in enumerate(columns):
        draw.text((margin + column * cell_w + cell_w // 2 - 4, 3), label, fill=_INK)
    before = None
    for row, (label, images) in enumerate(rows):
        if tuple(images.shape) != shape:
            raise ValueError(f"all rows must be {list(shape)}; row {row} is {list(images.shape)}")
        top = header + row * cell_h
        if label != before:
            draw.text((4, top + cell_h // 2 - 7), label, fill=_INK)
        before = label
        bytes_ = ((images.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        for column, image in enumerate(bytes_.permute(0, 2, 3, 1).expand(-1, -1, -1, 3).contiguous()):
            tile = image_module.fromarray(image.numpy()).resize(
                (shape[3] * zoom, shape[2] * zoom), image_module.Resampling.NEAREST
            )
            sheet.paste(tile, (margin + column * cell_w, top))
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    return buffer.getvalue()


def save(
    path: str | os.PathLike[str], rows: Sequence[tuple[str, Tensor]], columns: Sequence[str], *, zoom: int = 6
) -> None:
    """Write ``png(...)`` atomically."""
    atomic.write_bytes(path, png(rows, columns, zoom=zoom))
