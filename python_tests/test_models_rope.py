"""Rotary positions: what they promise attention, and against rotations of complex numbers."""

from __future__ import annotations

import pytest
import torch

from pyflowcore.models.rope import apply_rotary, grid_positions, rotary_table
from reference.transformers import turned

PAIRS = ["adjacent", "halves"]


def turn(x, positions, **options):
    """x [N, d] at positions [N, axes], in float64."""
    pairs = options.pop("pairs", "adjacent")
    cos, sin = rotary_table(positions, x.shape[-1], dtype=torch.float64, **options)
    return apply_rotary(x, cos, sin, pairs=pairs)


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("pairs", PAIRS)
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_products_depend_on_the_difference_of_positions_alone(axes, pairs):
    q, k = random(20, 12, seed=1), random(20, 12, seed=2)
    here, there, offset = (5 * random(20, axes, seed=seed) for seed in (3, 4, 5))
    products = (turn(q, here, pairs=pairs) * turn(k, there, pairs=pairs)).sum(-1)
    moved = (turn(q, here + offset, pairs=pairs) * turn(k, there + offset, pairs=pairs)).sum(-1)
    torch.testing.assert_close(products, moved, rtol=0, atol=1e-12)
    other = (turn(q, here + offset, pairs=pairs) * turn(k, there, pairs=pairs)).sum(-1)
    assert (products - other).abs().min() > 1e-6


@pytest.mark.parametrize("pairs", PAIRS)
def test_turning_keeps_lengths_and_turns_back(pairs):
    x, positions = random(30, 16), 100 * random(30, 2, seed=1)
    there = turn(x, positions, pairs=pairs)
    torch.testing.assert_close(there.norm(dim=-1), x.norm(dim=-1), rtol=1e-14, atol=0)
    torch.testing.assert_close(turn(there, -positions, pairs=pairs), x, rtol=0, atol=1e-13)
    torch.testing.assert_close(turn(x, torch.zeros(30, 2), pairs=pairs), x, rtol=0, atol=0)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_against_complex_rotations(axes):
    x, positions = random(7, 24), 10 * random(7, axes, seed=1)
    expected = [turned(row.numpy(), place.tolist()) for row, place in zip(x, positions, strict=True)]
    for row, hoped in zip(turn(x, positions), expected, strict=True):
        torch.testing.assert_close(row, torch.from_numpy(hoped), rtol=0, atol=1e-13)


def test_the_two_pairings_are_one_rotation_in_another_order():
    x, positions = random(5, 8), random(5, 1, seed=1)
    order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])
    torch.testing.assert_close(
        turn(x, positions)[:, order], turn(x[:, order], positions, pairs="halves"), rtol=0, atol=0
    )


def test_first_angle_is_the_position_and_the_last_nearly_over_the_period():
    cos, sin = rotary_table(torch.tensor([0.5]), 8, period=16.0, dtype=torch.float64)
    angles = torch.tensor([[0.5, 0.5 / 2, 0.5 / 4, 0.5 / 8]], dtype=torch.float64)
    torch.testing.assert_close(cos, angles.cos(), rtol=0, atol=1e-15)
    torch.testing.assert_close(sin, angles.sin(), rtol=0, atol=1e-15)


def test_axes_turn_their_own_share_and_leave_the_rest():
    x = random(1, 12)
    positions = torch.tensor([[3.0, 0.0]])
    out = turn(x, positions, split=(4, 6))
    assert (out[:, :4] != x[:, :4]).all()
    assert torch.equal(out[:, 4:], x[:, 4:])
    out = turn(x, torch.tensor([[0.0, 3.0]]), split=(4, 6))
    assert torch.equal(out[:, :4], x[:, :4])
    assert (out[:, 4:10] != x[:, 4:10]).all()
    assert torch.equal(out[:, 10:], x[:, 10:])


def test_grid_positions_run_like_reading():
    assert grid_positions(2, 3).tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    assert grid_positions(2, 2, 2)[5].tolist() == [1, 0, 1]


def test_far_positions_keep_their_angle():
    position = 1e6 + 0.5
    cos, _ = rotary_table(torch.tensor([position], dtype=torch.float64), 2)
    torch.testing.assert_close(
        cos[0, 0], torch.tensor(position, dtype=torch.float64).cos().float(), rtol=0, atol=1e-7
    )


def test_half_precision_is_turned_in_float32_and_cast_once():
    q = random(2, 3, 6, 8).to(torch.bfloat16)
    cos, sin = rotary_table(grid_positions(2, 3), 8)
    out = apply_rotary(q, cos, sin)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, apply_rotary(q.float(), cos, sin).to(torch.bfloat16))


def test_gradient_turns_back():
    cos, sin = rotary_table(grid_positions(2, 2), 4, dtype=torch.float64)
    q, seen = random(2, 4, 4).requires_grad_(), random(2, 4, 4, seed=1)
    apply_rotary(q, cos, sin).backward(seen)
    torch.testing.assert_close(q.grad, apply_rotary(seen, cos, -sin), rtol=0, atol=1e-14)


TABLE = rotary_table(grid_positions(2, 2), 8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rotary_table(torch.zeros(2, 2, 2), 8), "positions must be"),
        (lambda: rotary_table(torch.zeros(2, 2), 6), "multiple of 2"),
        (lambda: rotary_table(torch.zeros(2, 1), 7), "multiple of 2"),
        (lambda: rotary_table(torch.zeros(2, 2), 8, split=(8,)), "split must hold"),
        (lambda: rotary_table(torch.zeros(2, 2), 8, split=(3, 5)), "split must hold"),
        (lambda: rotary_table(torch.zeros(2, 2), 8, split=(6, 4)), "split must hold"),
        (lambda: rotary_table(torch.zeros(2, 1), 9, split=(4,)), "head_dim must be even"),
        (lambda: apply_rotary(torch.zeros(4, 8), *TABLE, pairs="interleaved"), "pairs must be"),
        (lambda: apply_rotary(torch.zeros(4, 6), *TABLE), "cos and sin must be"),
        (lambda: apply_rotary(torch.zeros(3, 8), *TABLE), "cos and sin must be"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()
