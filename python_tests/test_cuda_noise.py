"""randn and interpolate on CUDA against CPU, to the bit."""

from __future__ import annotations

import itertools

import pytest
import torch
from cuda_cases import DEVICE, DTYPES, SHAPES, STATES, same_bits

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", DTYPES)
def test_randn_has_the_bits_of_the_cpu(dtype: torch.dtype, poison: None) -> None:
    g = torch.Generator().manual_seed(3)
    for shape in SHAPES:
        seeds = torch.randint(-(2**63), 2**63 - 1, shape[:1], generator=g)
        for stream, draw in ((0, 0), (3, 2**32 - 1)):
            expected = torch.ops.pyflowcore.randn(seeds, shape[1:], stream, draw, dtype)
            same_bits(
                expected, torch.ops.pyflowcore.randn(seeds.to(DEVICE), shape[1:], stream, draw, dtype), shape
            )


@pytest.mark.sanitize
def test_randn_at_the_edges() -> None:
    for shape in ((1, 1), (3, 7), (2, 1025), (2, 1028)):
        seeds = torch.arange(shape[0])
        expected = torch.ops.pyflowcore.randn(seeds, shape[1:], 0, 0, torch.bfloat16)
        same_bits(
            expected, torch.ops.pyflowcore.randn(seeds.to(DEVICE), shape[1:], 0, 0, torch.bfloat16), shape
        )


PATHS = {"linear": (0, 0.0, 0.0), "trigonometric": (1, 0.0, 0.0), "vp": (2, 0.1, 20.0)}


def check_interpolate(
    shape: tuple[int, ...], dtype: torch.dtype, path: str, prediction: int, drawn: bool
) -> None:
    g = torch.Generator().manual_seed(5)
    data = torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)
    x0 = None if drawn else torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)
    seeds = torch.randint(-(2**63), 2**63 - 1, shape[:1], generator=g) if drawn else None
    for t_dtype in STATES:
        t = 0.01 + 0.98 * torch.rand(shape[0], generator=g, dtype=t_dtype)
        results = [
            torch.ops.pyflowcore.interpolate(
                *(None if a is None else a.to(place) for a in (data, t, x0, seeds)),
                *PATHS[path],
                prediction,
                3,
                9,
            )
            for place in (torch.device("cpu"), DEVICE)
        ]
        for name, cpu, cuda in zip(("x_t", "target"), *results, strict=True):
            same_bits(cpu, cuda, (name, shape, dtype, path, prediction, drawn, t_dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("drawn", [False, True])
def test_interpolate_has_the_bits_of_the_cpu(
    drawn: bool, path: str, dtype: torch.dtype, poison: None
) -> None:
    predictions = itertools.cycle(range(5))
    for shape in SHAPES:
        for _ in range(2):
            check_interpolate(shape, dtype, path, next(predictions), drawn)


@pytest.mark.sanitize
@pytest.mark.parametrize("drawn", [False, True])
def test_interpolate_at_the_edges(drawn: bool) -> None:
    for shape in ((1, 1), (3, 7), (600, 4), (2, 1025), (2, 1028)):
        check_interpolate(shape, torch.bfloat16, "vp", 0, drawn)
