"""Small fields as the users of flow_matching, torchcfm and sbi write them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Swish(nn.Module):
    """flow_matching's examples: x * sigmoid(x) by hand."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x) * x


class FlowMatchingMLP(nn.Module):
    """The 2-D example's network: reshapes by its own sizes, and the time expanded beside x."""

    def __init__(self, dim: int = 2, hidden: int = 32) -> None:
        super().__init__()
        self.input_dim, self.time_dim = dim, 1
        layers: list[nn.Module] = [nn.Linear(dim + 1, hidden), Swish()]
        for _ in range(3):
            layers += [nn.Linear(hidden, hidden), Swish()]
        self.main = nn.Sequential(*layers, nn.Linear(hidden, dim))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        sz = x.size()
        x = x.reshape(-1, self.input_dim)
        t = t.reshape(-1, self.time_dim).float()
        t = t.reshape(-1, 1).expand(x.shape[0], 1)
        h = torch.cat([x, t], dim=1)
        return self.main(h).reshape(*sz)


class CfmMLP(nn.Module):
    """torchcfm's: one tensor, the time in its last column; SELU."""

    def __init__(self, dim: int, out_dim: int | None = None, w: int = 64, time_varying: bool = False) -> None:
        super().__init__()
        self.time_varying = time_varying
        out_dim = dim if out_dim is None else out_dim
        self.net = nn.Sequential(
            nn.Linear(dim + (1 if time_varying else 0), w), nn.SELU(), nn.Linear(w, w), nn.SELU(),
            nn.Linear(w, w), nn.SELU(), nn.Linear(w, out_dim),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class CfmWrapper(nn.Module):
    """torchcfm's torch_wrapper: the time comes first, as one number."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, t: Tensor, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        return self.model(torch.cat([x, t.repeat(x.shape[0])[:, None]], 1))


class ResidualBlock(nn.Module):
    def __init__(self, width: int, activation: nn.Module, outside: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(width, width), activation, nn.Dropout(0.1), nn.Linear(width, width)
        )
        self.activation = activation if outside else nn.Identity()

    def forward(self, h: Tensor) -> Tensor:
        return self.activation(h + self.body(h))


class PosteriorField(nn.Module):
    """As in simulation-based inference: parameters theta move, x is the observation, and the time has frequencies."""

    def __init__(
        self, theta: int = 3, x: int = 5, width: int = 24, blocks: int = 2, outside: bool = False
    ) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.arange(1, 4) * math.pi)
        self.register_buffer("mean", torch.randn(theta))
        self.register_buffer("std", torch.rand(theta) + 0.5)
        self.first = nn.Linear(theta + x + 6, width)
        self.blocks = nn.ModuleList(ResidualBlock(width, nn.GELU(), outside) for _ in range(blocks))
        self.last = nn.Linear(width, theta)

    def forward(self, theta: Tensor, condition: Tensor, t: Tensor) -> Tensor:
        t = self.freqs * t[..., None]
        t = torch.cat((t.cos(), t.sin()), dim=-1)
        t = t.expand(*theta.shape[:-1], -1)
        h = F.gelu(self.first(torch.cat([(theta - self.mean) / self.std, condition, t], dim=-1)))
        for block in self.blocks:
            h = block(h)
        return self.last(h) * self.std


class FourierField(nn.Module):
    """Gaussian Fourier features, projections that are added, and scales on both sides."""

    def __init__(self, dim: int = 4, width: int = 20, features: int = 7) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(features) * 4.0, requires_grad=False)
        self.of_time, self.of_x = nn.Linear(2 * features, width), nn.Linear(dim, width, bias=False)
        self.middle, self.out = nn.Linear(width, width), nn.Linear(width, dim)
        self.scale, self.shift = nn.Parameter(torch.rand(dim) + 0.5), nn.Parameter(torch.randn(dim))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        phase = t[:, None] * self.W[None, :] * 2 * math.pi
        emb = torch.cat([torch.sin(phase), torch.cos(phase)], dim=-1)
        h = torch.tanh(self.of_x(x / 2.0 + 1) + self.of_time(emb))
        h = F.softplus(self.middle(h), beta=2.0)
        return self.scale * self.out(h) - self.shift


class TimestepField(nn.Module):
    """Sinusoids as diffusion code writes them: frequencies made inside forward, the time scaled. Labels are embedded."""

    def __init__(self, dim: int = 3, width: int = 16, classes: int = 5) -> None:
        super().__init__()
        self.embed = nn.Embedding(classes, 6)
        self.net = nn.Sequential(nn.Linear(dim + 8 + 6, width), nn.ELU(0.7), nn.Linear(width, dim))

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        half = 4
        freqs = torch.exp(-math.log(10000) * torch.arange(start=0, end=half, dtype=torch.float32) / half).to(
            t.device
        )
        args = 1000.0 * t[:, None] * freqs[None]
        emb = torch.cat([torch.cos(args), torch.sin(args)], dim=-1)
        return self.net(torch.cat([self.embed(y), emb, x], dim=-1))


class PreActivation(nn.Module):
    """A residual stream that no activation interrupts."""

    def __init__(self, dim: int = 3, width: int = 12) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(dim + 1, width), nn.Linear(width, dim)
        self.a = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(3))
        self.b = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(3))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.inp(torch.cat([t.view(-1, 1), x], 1))
        for a, b in zip(self.a, self.b, strict=True):
            h = h + 0.5 * b(F.leaky_relu(a(F.silu(h)), 0.2))
        return self.out(h)


class OneLayerBlocks(nn.Module):
    """h + act(W h), the shortest residual block."""

    def __init__(self, dim: int = 2, width: int = 9) -> None:
        super().__init__()
        self.inp, self.mid, self.out = (
            nn.Linear(dim + 1, width),
            nn.Linear(width, width),
            nn.Linear(width, dim),
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = torch.relu(self.inp(torch.cat((x, t), -1)))
        h = torch.tanh(self.mid(h)) + h
        return self.out(h)
