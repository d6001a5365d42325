"""Digits asked for in words: an MMDiT on scikit-learn's digits with a byte encoder, both trained from nothing.

>>> model = words.new_model()
>>> words.train(model, digits.load())
>>> words.draw(model, ["a seven", "the digit 3"], seeds=[0, 1])
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

import pyflowcore as pfc

from .. import models
from ..training import TrainConfig, fit
from ..training import times as _times
from .digits import CLASSES, Digits

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
FORMS = ("{name}", "{digit}", "a {name}", "the digit {digit}", "number {digit}")
"""Ways to ask that training uses."""
LENGTH = 12
"""Tokens of every text, padding included: "the digit 7" has them all."""


def phrase(digit: int, form: int) -> str:
    """``digit`` asked for in the way number ``form``, modulo their number."""
    return FORMS[form % len(FORMS)].format(name=NAMES[digit], digit=digit)


class Illustrator(nn.Module):
    """The text encoder and the network that it conditions, as one network: ``forward(x, t, tokens, mask)``."""

    def __init__(self, encoder: models.ByteEncoder, painter: models.MMDiT) -> None:
        super().__init__()
        self.encoder, self.painter = encoder, painter

    def forward(self, x: Tensor, t: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """x [B, 1, 8, 8], t [B], tokens and mask [B, L] -> like x."""
        text, mask, pooled = self.encoder(tokens, mask)
        return self.painter(x, t, text, mask=mask, pooled=pooled)


def new_model(seed: int = 0, *, width: int = 64) -> Illustrator:
    """The encoder and an MMDiT of double and single blocks. Leaves torch's generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = models.ByteEncoder(width=32, depth=2, heads=2, max_length=LENGTH)
        painter = models.MMDiT(
            size=8, channels=1, patch=2, width=width, heads=4, double=2, single=1, text_width=32,
            pooled_width=32, time_dim=64, qk_norm=True,
        )  # fmt: skip
        return Illustrator(encoder, painter)


def train(
    model: Illustrator, digits: Digits, *, steps: int = 500, seed: int = 0, progress: bool = False
) -> list[float]:
    """Train on the training digits, each asked for in a way drawn anew in every step; a tenth of the texts are empty.

    The empty text stands for "anything", as guidance needs it. Returns the losses.
    """
    config = TrainConfig(batch_size=64, lr=3e-3, warmup=50, ema_decay=0.98, label_drop=0.1, seed=seed)
    texts = [phrase(digit, form) for digit in range(CLASSES) for form in range(len(FORMS))]
    tokens, mask = model.encoder.encode([*texts, ""], length=LENGTH)

    def asked(rows: Tensor, seeds: Tensor, step: int) -> dict[str, Tensor]:
        form = torch.randint(
            len(FORMS), rows.shape, generator=torch.Generator().manual_seed(config.seed + step)
        )
        wanted = digits.labels[rows] * len(FORMS) + form
        wanted = _times.drop_labels(wanted, len(texts), seeds, step, probability=config.label_drop)
        return {"tokens": tokens[wanted], "mask": mask[wanted]}

    return fit(model, digits.images, asked, steps, config, progress=progress)


@torch.no_grad()
def draw(
    model: Illustrator,
    texts: Sequence[str],
    seeds: Tensor | Sequence[int],
    *,
    nfe: int = 12,
    guidance: float = 1.5,
) -> Tensor:
    """One image a text, [B, 1, 8, 8]; image i is a function of texts[i] and seeds[i]. The texts are encoded once."""
    read = model.encoder.read(texts, length=LENGTH)
    null = model.encoder.read([""], length=LENGTH)
    plan = pfc.plan("ab2", nfe=nfe)
    found = pfc.Sampler(plan, guidance=pfc.CFG(guidance))(
        pfc.Field(model.painter), shape=model.painter.shape, seeds=seeds, cond=read, uncond=null
    )
    assert isinstance(found, Tensor)  # no trajectory was asked for
    return found
