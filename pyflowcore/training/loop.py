"""The training loop: a step is a function of (parameters, optimiser, step number), so a run can stop and go on."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from .. import models
from . import checkpoints, objectives, times
from .ema import EMA
from .optional import require


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a run; what a checkpoint stores, and what must agree when it is resumed.

    objective "flow" or "diffusion"; lr after ``warmup`` steps of linear growth; betas, weight_decay of AdamW; clip:
    largest norm of the gradient; ema_decay; label_drop: share of labels replaced by the null class; seed in [0, 2^31).
    """

    objective: str = "flow"
    batch_size: int = 128
    lr: float = 1e-3
    warmup: int = 100
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    clip: float = 1.0
    ema_decay: float = 0.995
    label_drop: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        objectives.get(self.objective)
        object.__setattr__(self, "betas", tuple(self.betas))  # JSON brings a list
        if self.batch_size < 1 or self.warmup < 0:
            raise ValueError(
                f"batch_size must be at least 1 and warmup at least 0; got {self.batch_size}, {self.warmup}"
            )
        if not (math.isfinite(self.lr) and self.lr > 0 and self.clip > 0):
            raise ValueError(f"lr and clip must be positive; got {self.lr}, {self.clip}")
        if (
            len(self.betas) != 2
            or not all(0 <= beta < 1 for beta in self.betas)
            or not self.weight_decay >= 0
        ):
            raise ValueError(
                f"betas must be two numbers in [0, 1), weight_decay at least 0; got {self.betas}, {self.weight_decay}"
            )
        if not (0 <= self.ema_decay < 1 and 0 <= self.label_drop <= 1):
            raise ValueError(
                "ema_decay must be within [0, 1) and label_drop within [0, 1]; got "
                f"{self.ema_decay}, {self.label_drop}"
            )
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed must be within [0, 2^31); got {self.seed}")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """From JSON values. ValueError for a key that is no setting."""
        unknown = sorted(values.keys() - {f.name for f in fields(cls)})
        if unknown:
            raise ValueError(f"unknown training settings: {unknown}")
        return cls(**values)


class Trainer:
    """Trains a model on images or vectors held in memory.

    Args:
        model: from ``pyflowcore.models``, on the device to train on.
        data: [N, *model.shape] float32, on the CPU or the model's device; moved to the latter.
        labels: [N] int64 in [0, num_classes), or None for a model without classes.
        config: settings.

    ``step`` counts the steps done; ``loss`` is the last one's (None before the first).

    Raises:
        ValueError: where data, labels and model do not fit.
    """

    def __init__(
        self, model: models.Model, data: Tensor, labels: Tensor | None, config: TrainConfig | None = None
    ) -> None:
        config = config or TrainConfig()
        if tuple(data.shape[1:]) != model.shape:
            raise ValueError(f"data must be [N, {', '.join(map(str, model.shape))}]; got {list(data.shape)}")
        if len(data) < config.batch_size:
            raise ValueError(
                f"data must hold at least one batch of {config.batch_size}; got {len(data)} samples"
            )
        if (labels is None) != (model.null_class is None):
            raise ValueError("labels must be given for a model with classes, and only for one")
        if labels is not None:
            if labels.shape != data.shape[:1]:
                raise ValueError(f"labels must be [{len(data)}]; got {list(labels.shape)}")
            if labels.min() < 0 or labels.max() >= model.num_classes:
                raise ValueError(
                    f"labels must lie in [0, {model.num_classes}); got {int(labels.min())} to {int(labels.max())}"
                )
        device = next(model.parameters()).device
        self.model, self.config, self.step = model, config, 0
        self.loss: Tensor | None = None
        self.data = data.to(device)
        self.labels = None if labels is None else labels.to(device, torch.int64)
        self.ema = EMA(model, config.ema_decay)
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True
        )
        # Sample i of every batch has a seed of its own; the step is the draw.
        self._seeds = (config.seed << 32) + torch.arange(config.batch_size, device=device)

    def train_step(self) -> Tensor:
        """One step of the optimiser; the loss, a scalar tensor."""
        config = self.config
        rows = times.batch_indices(len(self.data), config.batch_size, config.seed, self.step).to(
            self.data.device
        )
        cond: dict[str, Tensor] = {}
        if self.labels is not None:
            assert self.model.null_class is not None
            cond["y"] = times.drop_labels(
                self.labels[rows],
                self.model.null_class,
                self._seeds,
                self.step,
                probability=config.label_drop,
            )
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr * min(1.0, (self.step + 1) / max(1, config.warmup))
        with self._dropout():
            loss = objectives.regression_loss(
                self.model, self.data[rows], self._seeds, objective=config.objective, draw=self.step, **cond
            )
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
        self.optimizer.step()
        self.ema.update(self.model, self.step)
        self.step += 1
        return loss.detach()

    @contextlib.contextmanager
    def _dropout(self) -> Iterator[None]:
        """Dropout draws from torch's generator, so that gets a state of the step's own, and its old one back: a run that
        goes on drops what it would have dropped without a stop."""
        device = self.data.device
        if not any(isinstance(part, nn.Dropout) and part.p > 0 for part in self.model.modules()):
            yield
            return
        on_cuda = device.type == "cuda"
        with torch.random.fork_rng(devices=[device] if on_cuda else []):
            generator = (
                torch.cuda.default_generators[device.index or 0] if on_cuda else torch.default_generator
            )
            generator.manual_seed((self.config.seed << 32) + self.step)
            yield

    def run(self, steps: int, *, progress: bool = False, label: str = "training") -> None:
        """Go on until ``steps`` steps are done in all, with a bar (tqdm) if asked."""
        if steps < self.step:
            raise ValueError(f"steps must be at least the {self.step} that are done; got {steps}")
        bar = None
        if progress:
            bar = require("tqdm").tqdm(
                total=steps, initial=self.step, desc=label, unit="step", mininterval=0.5
            )
        self.model.train()
        smooth: Tensor | None = None
        try:
            while self.step < steps:
                self.loss = self.train_step()
                if bar is not None:
                    smooth = self.loss if smooth is None else smooth.lerp(self.loss, 0.02)
                    if self.step % 20 == 0 or self.step == steps:
                        # The only place that waits for the device.
                        bar.set_postfix(loss=f"{float(smooth):.4f}", refresh=False)
                    bar.update()
        finally:
            if bar is not None:
                bar.close()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything that going on needs, atomically."""
        checkpoints.save(
            path,
            model=self.model,
            ema=self.ema,
            objective=objectives.get(self.config.objective),
            optimizer=self.optimizer,
            step=self.step,
            training=asdict(self.config),
            data=self._fingerprint(),
        )

    def _fingerprint(self) -> str:
        """A digest of data and labels: going on with others would look exact and not be."""
        digest = hashlib.sha256(repr(tuple(self.data.shape)).encode())
        for tensor in (self.data, self.labels):
            if tensor is not None:
                digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @classmethod
    def resume(
        cls,
        path: str | os.PathLike[str],
        data: Tensor,
        labels: Tensor | None,
        *,
        device: torch.device | str | None = None,
    ) -> Trainer:
        """The trainer that wrote ``path``, at the step it had reached, on ``device``; the data must be the same.

        Raises:
            ValueError: if the file is no checkpoint, or holds no state of the optimiser, or if data or labels differ
                from those that it was trained on.
        """
        checkpoint = checkpoints.load(path)
        trainer = cls(
            checkpoint.model(ema=False).to(device), data, labels, TrainConfig.from_dict(checkpoint.training)
        )
        if trainer._fingerprint() != checkpoint.data:
            raise ValueError(f"data must be what {path} was trained on; these samples or labels are others")
        trainer.ema.load_state_dict(checkpoint.group("ema"))
        checkpoint.restore_optimizer(trainer.optimizer)
        trainer.step = checkpoint.step
        return trainer
