"""The engine's tensor-core kernels on the CPU: fragments gathered by the kernels' code and multiplied as the PTX ISA says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from engine_on_cpu import network
from test_cuda_engine_bodies import check_plan, error, largest_network, randn
from torch import Tensor

import pyflowcore as pfc
from pyflowcore.network import ACTIVATIONS, Network, forward
from reference.networks import small_network

F32, F64 = torch.float32, torch.float64
TF32, BF16 = 1, 2
PRECISIONS = pytest.mark.parametrize("precision", [TF32, BF16], ids=["tf32", "bf16"])


def rounded(x: Tensor) -> Tensor:
    """To tf32: ten bits of mantissa, ties away from zero."""
    return ((x.float().view(torch.int32) + 0x1000) & -0x2000).view(F32)


def plain(net: Network, x: Tensor, t: Tensor, cond: Tensor | None, precision: int) -> Tensor:
    """Plain PyTorch in the precision: in bf16 throughout; for tf32, every operand of a product rounded."""
    packed = net.pack(F32), net.layer_table(), net.feature_table()
    if precision == BF16:
        low = None if cond is None else cond.bfloat16()
        return forward(x.bfloat16(), t, low, packed[0].bfloat16(), *packed[1:])
    linear = torch.nn.functional.linear
    try:
        torch.nn.functional.linear = lambda h, w, b: linear(rounded(h), rounded(w), b)
        return forward(x, t, cond, *packed)
    finally:
        torch.nn.functional.linear = linear


def compare(net: Network, batch: int, precision: int, device: str = "H100") -> None:
    """The rule of half precision: at most twice the error of plain PyTorch."""
    x, cond = randn(batch, net.dim, dtype=F32), None
    if net.conditions:
        cond = randn(batch, net.conditions, seed=1, dtype=F32)
    t = torch.rand(batch, generator=torch.Generator().manual_seed(2), dtype=F64)
    packed = net.pack(F32), net.layer_table(), net.feature_table()
    wide = None if cond is None else cond.double()
    expected = forward(x.double(), t, wide, packed[0].double(), *packed[1:])
    found, _ = network(x, t, cond, *packed, precision=precision, device=device)
    own = error(plain(net, x, t, cond, precision), expected)
    assert error(found, expected) < 2 * own, (net.dim, batch, device)


@PRECISIONS
@pytest.mark.parametrize("batch", [1, 7, 8, 9, 16, 17, 65, 200])
def test_every_batch(batch: int, precision: int) -> None:
    for device in ("H100", "one of an H100"):
        compare(small_network(3, 2, 36, 3, residual=True), batch, precision, device)


@PRECISIONS
@pytest.mark.parametrize("width", [1, 7, 8, 9, 15, 16, 17, 24, 100])
def test_every_width(width: int, precision: int) -> None:
    for dim, conditions in ((2, 0), (9, 3), (33, 0)):
        compare(small_network(dim, conditions, width, 3, seed=4), 40, precision)


@PRECISIONS
def test_the_largest_network(precision: int) -> None:
    """Fits the smallest shared memory that there is code for."""
    compare(largest_network(), 5, precision, "RTX 5090")


@PRECISIONS
def test_weights_in_shared_memory_and_out_of_it_give_the_same_bits(precision: int) -> None:
    net = small_network(130, 0, 300, 2)
    x, t = randn(20, 130, dtype=F32), torch.tensor(0.3)
    packed = net.pack(F32), net.layer_table(), net.feature_table()
    near, here = network(x, t, None, *packed, precision=precision, device="H100")
    far, there = network(x, t, None, *packed, precision=precision, device="one of an RTX 5090")
    assert here.resident > there.resident and torch.equal(near, far)


@PRECISIONS
def test_a_sample_does_not_depend_on_its_batch(precision: int) -> None:
    net = small_network(5, 2, 33, 3, residual=True)
    packed = net.pack(F32), net.layer_table(), net.feature_table()
    x, cond, t = randn(150, 5, dtype=F32), randn(150, 2, seed=1, dtype=F32), torch.rand(150, dtype=F64)
    whole, layout = network(x, t, cond, *packed, precision=precision, device="one of an H100")
    small, other = network(x, t, cond, *packed, precision=precision)
    assert layout.large and not other.large and torch.equal(whole, small)
    alone, _ = network(x[77:78], t[77:78], cond[77:78], *packed, precision=precision)
    assert torch.equal(alone[0], whole[77])


@PRECISIONS
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation(name: str, precision: int) -> None:
    net = small_network(6, 0, 40, 3, seed=7)
    layers = [
        replace(layer, activation=name, parameter=0.7, residual=number if 0 < number < 3 else -1)
        for number, layer in enumerate(net.layers)
    ]
    layers[2] = replace(layers[2], activation="identity", after=name, after_parameter=1.3)
    compare(Network(tuple(layers), net.features, 0, 6), 64, precision)


@PRECISIONS
def test_what_is_no_output_does_not_spread(precision: int) -> None:
    """An infinite value in a layer of 20 outputs, of which twelve of the second panel are none, stays where it belongs."""
    net = small_network(4, 0, 20, 2, activation="relu")
    x = randn(3, 4, dtype=F32)
    x[1, 2] = torch.inf
    packed = net.pack(F32), net.layer_table(), net.feature_table()
    found, _ = network(x, torch.tensor(0.5), None, *packed, precision=precision)
    clean, _ = network(x[::2].contiguous(), torch.tensor(0.5), None, *packed, precision=precision)
    assert torch.equal(found[::2], clean)


@PRECISIONS
@pytest.mark.parametrize("solver", ["euler", "heun", "ab3", "unipc", "stochastic_heun"])
def test_a_trajectory_is_the_loop_to_the_bit(solver: str, precision: int) -> None:
    check_plan(pfc.plan(solver, 3), randn(5, 7, dtype=F32), precision=precision)
    check_plan(pfc.plan(solver, 2), randn(130, 6, dtype=F32), 3, 1, True, "one of an RTX 5090", precision)
