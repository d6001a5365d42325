"""Training a network whose conditions are more than a class: texts, observations, whatever it takes by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from . import objectives, times
from .ema import EMA
from .loop import TrainConfig
from .optional import require

Conditions = Callable[[Tensor, Tensor, int], Mapping[str, Any]]
"""(rows [B] int64 of the data, seeds [B] int64, step) -> the network's arguments after x and t."""


def fit(
    net: nn.Module,
    data: Tensor,
    conditions: Conditions,
    steps: int,
    config: TrainConfig | None = None,
    *,
    progress: bool = False,
) -> list[float]:
    """Train ``net`` in place, and leave in it the average of its parameters, in evaluation mode.

    The learning rate grows over ``config.warmup`` steps and falls to zero along a cosine. Randomness is a function of
    ``config.seed`` and the step alone, as in ``Trainer``: a condition drawn from its seeds and step is reproducible too.
    Only dropout draws from torch's generator.

    Args:
        net: called as ``net(x, t, **conditions)``.
        data: [N, ...] float32, on the network's device.
        conditions: what belongs to a batch; ``config.label_drop`` is its own to apply.
        steps: of the optimiser.
        config: settings; "flow" or "diffusion" as objective.
        progress: show a bar (needs tqdm).

    Returns:
        The loss of every step.

    Raises:
        ValueError: if the data do not fill a batch, or the network answers in another shape than theirs.
    """
    config = config or TrainConfig()
    ema = EMA(net, config.ema_decay)
    optimizer = torch.optim.AdamW(
        net.parameters(), lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True
    )
    seeds = (config.seed << 32) + torch.arange(config.batch_size, device=data.device)
    losses = []
    net.train()
    bar = require("tqdm").tqdm(total=steps, unit="step", mininterval=0.5) if progress else None
    for step in range(steps):
        rows = times.batch_indices(len(data), config.batch_size, config.seed, step).to(data.device)
        growth = min(1.0, (step + 1) / max(1, config.warmup))
        for group in optimizer.param_groups:
            group["lr"] = config.lr * growth * 0.5 * (1.0 + math.cos(math.pi * step / steps))
        loss = objectives.regression_loss(
            net, data[rows], seeds, objective=config.objective, draw=step, **conditions(rows, seeds, step)
        )
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(net.parameters(), config.clip)
        optimizer.step()
        ema.update(net, step)
        losses.append(loss.detach())
        if bar is not None:
            bar.update()
    if bar is not None:
        bar.close()
    ema.copy_to(net)
    net.eval()
    return torch.stack(losses).tolist() if losses else []
