"""A robot's task small enough for a laptop: reach a goal in the plane around an obstacle that may be passed on either side.

A scripted expert demonstrates chunks of motion; a policy learns them as a flow over chunks. Left and right are both right, and
their mean runs into the obstacle, so a policy that averages its demonstrations fails. Some scenes have no obstacle: its token
is then masked.

>>> policy = reaching.new_policy()
>>> reaching.train(policy, reaching.scenes(20000, seed=1))
>>> held_out = reaching.scenes(500, seed=2)
>>> held_out.solved(reaching.act(policy, held_out, seeds=range(500))).mean()
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import pyflowcore as pfc

from .. import models
from ..models.action_expert import Prefix, Time
from ..training import TrainConfig, fit

HORIZON = 16
RADIUS = 0.2
"""Of the obstacle; the workspace is [-1, 1] x [-1, 1]."""
CLEARANCE = 0.2
"""What the expert keeps from it."""
TOLERANCE = 0.1
"""How near the goal a motion must end."""
UNIT = 0.6
"""The length that a policy calls 1, about the spread of what it is asked for."""
FEATURES = 5


@dataclass(frozen=True)
class Scenes:
    """Where motions start and end, [B, 2] float32, the obstacles' middles [B, 2], and whether there is one [B] bool."""

    start: Tensor
    goal: Tensor
    obstacle: Tensor
    present: Tensor

    def __len__(self) -> int:
        return len(self.start)

    def tokens(self) -> tuple[Tensor, Tensor]:
        """Observations [B, 3, 5], a place and what is there (start, goal, obstacle), and their mask [B, 3]."""
        places = torch.stack([self.start, self.goal, self.obstacle], dim=1)
        kinds = torch.eye(3).expand(len(self), 3, 3)
        mask = torch.ones(len(self), 3, dtype=torch.bool)
        mask[:, 2] = self.present
        return torch.cat([places, kinds], dim=2), mask

    def path(self, moves: Tensor) -> Tensor:
        """Where moves [B, HORIZON, 2], places seen from the start in units of ``UNIT``, lead: [B, HORIZON + 1, 2]."""
        return torch.cat([self.start[:, None], self.start[:, None] + UNIT * moves], dim=1)

    def nearest(self, moves: Tensor) -> Tensor:
        """Least distance of the path, its straight pieces included, from the obstacle's middle: [B], infinite without one."""
        path = self.path(moves)
        a, b, centre = path[:, :-1], path[:, 1:], self.obstacle[:, None]
        along = b - a
        share = ((centre - a) * along).sum(-1) / along.square().sum(-1).clamp(min=1e-12)
        distance = (a + share.clamp(0, 1)[..., None] * along - centre).norm(dim=-1).amin(dim=1)
        return torch.where(self.present, distance, torch.inf)

    def solved(self, moves: Tensor) -> Tensor:
        """Whether the path ends within ``TOLERANCE`` of the goal and never touches the obstacle: [B] float32, 0 or 1."""
        arrived = (self.path(moves)[:, -1] - self.goal).norm(dim=-1) <= TOLERANCE
        return (arrived & (self.nearest(moves) > RADIUS)).float()

    def side(self, moves: Tensor) -> Tensor:
        """On which side the obstacle is passed, +1 for the left: [B], of the path's point nearest to its middle."""
        path = self.path(moves)
        nearest = (path - self.obstacle[:, None]).norm(dim=-1).argmin(dim=1)
        offset = path[torch.arange(len(self)), nearest] - self.obstacle
        way = self.goal - self.start
        return (way[:, 0] * offset[:, 1] - way[:, 1] * offset[:, 0]).sign()


def scenes(count: int, *, seed: int) -> Scenes:
    """Random scenes, a function of the seed: goals 1.2 to 1.8 away, an obstacle near the middle of the way in 4 of 5."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    angle, length = uniform(-torch.pi, torch.pi), uniform(1.2, 1.8)
    way = torch.stack([angle.cos(), angle.sin()], dim=-1)
    middle = uniform(-0.3, 0.3, 2)
    start, goal = middle - 0.5 * length[:, None] * way, middle + 0.5 * length[:, None] * way
    normal = torch.stack([-way[:, 1], way[:, 0]], dim=-1)
    obstacle = middle + uniform(-0.1, 0.1, 1) * way + uniform(-0.15, 0.15, 1) * normal
    return Scenes(start, goal, obstacle, uniform(0, 1) < 0.8)


def demonstrate(given: Scenes, *, seed: int) -> Tensor:
    """The scripted expert's moves [B, HORIZON, 2]: a smooth arc past the obstacle, straight where there is none.

    Which side is passed is drawn at random, the shorter one more often. The speed is that of least jerk (Flash & Hogan 1985).
    """
    generator = torch.Generator().manual_seed(seed)
    time = torch.linspace(0, 1, HORIZON + 1)
    share = time**3 * (10 - 15 * time + 6 * time**2)
    way = given.goal - given.start
    normal = torch.stack([-way[:, 1], way[:, 0]], dim=-1) / way.norm(dim=-1, keepdim=True)
    offset = ((given.obstacle - given.start) * normal).sum(-1)
    left = torch.sigmoid(-10 * offset)
    side = torch.where(torch.rand(len(given), generator=generator) < left, 1.0, -1.0)
    height = (offset + side * (RADIUS + CLEARANCE)) * given.present
    arc = torch.sin(torch.pi * share).clamp(min=0) ** 0.75
    path = (
        given.start[:, None]
        + share[:, None] * way[:, None]
        + (height[:, None] * arc)[..., None] * normal[:, None]
    )
    return (path[:, 1:] - given.start[:, None]) / UNIT


class Policy(nn.Module):
    """Observation tokens made wide enough for an action expert, and the expert: ``forward(x, t, tokens, mask)``."""

    def __init__(self, look: nn.Linear, expert: models.ActionExpert) -> None:
        super().__init__()
        self.look, self.expert = look, expert

    def forward(self, x: Tensor, t: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """x [B, HORIZON, 2], t [B], tokens [B, 3, 5], mask [B, 3] -> like x."""
        return self.expert(x, t, obs=self.look(tokens), mask=mask)

    def prefix(self, given: Scenes) -> Prefix:
        """What the expert has to know of the scenes, once for all evaluations."""
        tokens, mask = given.tokens()
        return self.expert.prefix(self.look(tokens), mask)


def new_policy(seed: int = 0, *, time: Time = "adarms") -> Policy:
    """A small policy for the task. Leaves torch's generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        expert = models.ActionExpert(
            horizon=HORIZON, dims=2, width=64, depth=2, heads=4, kv_heads=1, head_dim=16, mlp_width=128,
            prefix_width=64, prefix_mlp=128, time=time,
        )  # fmt: skip
        return Policy(nn.Linear(FEATURES, 64), expert)


def train(
    policy: Policy, given: Scenes, *, steps: int = 1600, seed: int = 0, progress: bool = False
) -> list[float]:
    """Train on one demonstration of every scene. Returns the losses."""
    config = TrainConfig(batch_size=64, lr=3e-3, warmup=50, ema_decay=0.98, seed=seed)
    tokens, mask = given.tokens()

    def seen(rows: Tensor, seeds: Tensor, step: int) -> dict[str, Tensor]:
        return {"tokens": tokens[rows], "mask": mask[rows]}

    return fit(policy, demonstrate(given, seed=seed), seen, steps, config, progress=progress)


@torch.no_grad()
def act(policy: Policy, given: Scenes, seeds: Tensor | Sequence[int], *, nfe: int = 10) -> Tensor:
    """Moves [B, HORIZON, 2]; motion i is a function of scene i and seeds[i]. The scenes are read once."""
    found = pfc.Sampler(pfc.plan("ab2", nfe=nfe))(
        pfc.Field(policy.expert),
        shape=policy.expert.shape,
        seeds=seeds,
        cond={"prefix": policy.prefix(given)},
    )
    assert isinstance(found, Tensor)  # no trajectory was asked for
    return found
