"""A fused field made by hand, for tests of what runs it: a module of the same layers beside the packed network."""

from __future__ import annotations

import torch
from torch import nn

import pyflowcore as pfc
from pyflowcore.network import Network, forward
from reference.networks import small_network


class Layers(nn.Module):
    """A packed network's flat parameters as a module."""

    def __init__(self, network: Network, dtype: torch.dtype) -> None:
        super().__init__()
        self.flat = nn.Parameter(network.pack(dtype))
        self.tables = network.layer_table(), network.feature_table()

    def forward(self, x, t, c=None):
        return forward(x, t, c, self.flat.to(x.dtype), *self.tables)


class ByHand(pfc.Field):
    """What the engine reads of a field; condition ``c`` [B, C]."""

    precision = "float32"

    def __init__(self, network: Network, dtype: torch.dtype = torch.float64, **facts) -> None:
        super().__init__(self.evaluate, **facts)
        self.network, self.dim, self.module = network, network.dim, Layers(network, dtype)
        self.layers, self.features = self.module.tables

    def params(self, dtype, device):
        return self.module.flat.detach().to(dtype=dtype, device=device)

    def check_fresh(self):
        pass

    def condition(self, cond, batch, dtype, device):
        c = cond.get("c")
        return None if c is None else c.to(dtype=dtype, device=device).expand(batch, -1)

    def evaluate(self, x, t, **cond):
        c = None if "c" not in cond else cond["c"].to(x)
        if torch.is_grad_enabled():
            return self.module(x, t, c)
        params = self.params(x.dtype, x.device)
        return torch.ops.pyflowcore.network(x, t, c, params, self.layers, self.features)


def by_hand(dim=3, conditions=0, dtype=torch.float64, network=None, **facts) -> ByHand:
    return ByHand(network or small_network(dim, conditions, residual=True, depth=3), dtype, **facts)


def hidden(field: ByHand) -> pfc.Field:
    """The same field, seen as a callable: for the loop."""
    facts = {name: getattr(field, name) for name in (
        "prediction", "path", "sign", "time", "time_shape", "dtype", "round_time", "time_dtype")}  # fmt: skip
    return pfc.Field(lambda x, t, **cond: field.net(x, t, **cond), **facts)


def compiled() -> bool:
    """Whether the engine's kernels run here; plain PyTorch promises no bits."""
    return torch._C._dispatch_has_kernel_for_dispatch_key("pyflowcore::trajectory", "CPU")
