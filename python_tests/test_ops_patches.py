"""patchify and unpatchify against an explicit loop over patches; each other's inverse and gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pyflowcore import _library, ops

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# (B, C, rows, columns), patch
SIZES = [
    ((2, 4, 3, 5), 2), ((1, 3, 2, 2), 4), ((2, 1, 3, 1), 1), ((1, 5, 2, 3), (3, 2)), ((2, 3, 1, 7), (1, 5)),
    ((0, 4, 2, 2), 2), ((2, 0, 2, 2), 2), ((1, 16, 33, 17), 2),
    # Whole vectors of eight, four, two lines and one, and what is left of them.
    ((2, 4, 3, 16), 2), ((1, 3, 2, 35), 2), ((1, 1, 2, 40), (3, 2)), ((1, 2, 2, 17), 4), ((1, 12, 2, 16), (1, 2)),
]  # fmt: skip
ORDERS = ("channels_first", "channels_last")


def images(size, patch, dtype=torch.float32):
    batch, channels, rows, columns = size
    high, wide = (patch, patch) if isinstance(patch, int) else patch
    return torch.randn(
        batch, channels, rows * high, columns * wide, generator=torch.Generator().manual_seed(1)
    ).to(dtype)


def wanted(x, grid, patch, order):
    high, wide = (patch, patch) if isinstance(patch, int) else patch
    rows, columns = grid
    tokens = []
    for i in range(rows):
        for j in range(columns):
            part = x[:, :, i * high : (i + 1) * high, j * wide : (j + 1) * wide]
            tokens.append((part if order == "channels_first" else part.permute(0, 2, 3, 1)).flatten(1))
    return torch.stack(tokens, 1)


@pytest.mark.parametrize(("size", "patch"), SIZES, ids=str)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.usefixtures("poison")
def test_every_size_and_cast(size, patch, order):
    for dtype in DTYPES:
        x = images(size, patch, dtype)
        for to in (None, *DTYPES):
            tokens = ops.patchify(x, patch, order=order, dtype=to)
            assert tokens.dtype == (to or dtype)
            assert torch.equal(tokens, wanted(x, size[2:], patch, order).to(to or dtype))
            back = ops.unpatchify(tokens, size[2:], patch, order=order, dtype=dtype)
            assert back.shape == x.shape
            assert torch.equal(back, x.to(to or dtype).to(dtype))


@pytest.mark.parametrize("isa", _library.cpu_isas())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(4, 4, 128, 128), (2, 9, 3, 33), (5, 16, 64, 64)], ids=str)
def test_every_instruction_set_and_large_footprints(isa, dtype, size):
    """The first and the last are beyond the size from which outputs bypass the caches, in float32 at least."""
    batch, channels, rows, columns = size
    x = images(size, 2, dtype)
    grid = x.reshape(batch, channels, rows, 2, columns, 2).permute(0, 2, 4, 1, 3, 5)
    before = _library.cpu_isa()
    assert before is not None
    try:
        _library.select_cpu_isa(isa)
        tokens = ops.patchify(x, 2)
        back = ops.unpatchify(tokens, (rows, columns), 2)
    finally:
        _library.select_cpu_isa(before)
    assert torch.equal(tokens, grid.reshape(batch, rows * columns, 4 * channels))
    assert torch.equal(back, x)


def test_tokens_meet_the_weights_of_a_convolution():
    x, conv = images((2, 4, 3, 3), 2), nn.Conv2d(4, 8, 2, stride=2)
    found = nn.functional.linear(ops.patchify(x, 2), conv.weight.flatten(1), conv.bias)
    torch.testing.assert_close(found, conv(x).flatten(2).transpose(1, 2))


@pytest.mark.parametrize("order", ORDERS)
def test_layouts_do_not_matter(order):
    x = images((2, 3, 4, 4), 2)
    plain = ops.patchify(x, 2, order=order)
    for other in (
        x.contiguous(memory_format=torch.channels_last),
        torch.cat((x.new_zeros(1), x.flatten()))[1:].view(x.shape),
        x.repeat_interleave(2, dim=3)[..., ::2],
    ):
        assert torch.equal(ops.patchify(other, 2, order=order), plain)
    assert torch.equal(ops.patchify(x[:1].expand(3, -1, -1, -1), 2, order=order)[2], plain[0])
    strided = plain.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(ops.unpatchify(strided, (4, 4), 2, order=order), x)


@pytest.mark.parametrize("order", ORDERS)
def test_gradients_opcheck_and_compile(order):
    x = images((1, 2, 2, 3), 2, torch.float64).requires_grad_()
    tokens = ops.patchify(x.detach(), 2, order=order).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ops.patchify(x, 2, order=order), [x])
    assert torch.autograd.gradgradcheck(lambda t: ops.unpatchify(t, (2, 3), 2, order=order), [tokens])
    first, plain = order == "channels_first", x.detach()
    library, half = torch.ops.pyflowcore, torch.float16
    torch.library.opcheck(library.patchify.default, (x, 2, 2, first, half))
    torch.library.opcheck(library.unpatchify.default, (tokens, 2, 3, 2, 2, first, half))
    torch.library.opcheck(library.patchify_.default, (plain, torch.zeros(tokens.shape), 2, 2, first))
    torch.library.opcheck(library.unpatchify_.default, (tokens.detach(), torch.zeros(x.shape), 2, 2, first))
    compiled = torch.compile(lambda x: ops.patchify(x, 2, order=order), backend="eager", fullgraph=True)
    assert torch.equal(compiled(plain), tokens)


@pytest.mark.filterwarnings("ignore:pyflowcore. .* runs in plain PyTorch")
@pytest.mark.parametrize("order", ORDERS)
def test_the_plain_version_agrees(order):
    from pyflowcore.ops import _plain_tokens

    x = images((2, 3, 2, 3), (2, 3))
    tokens, back = torch.zeros(2, 6, 18), torch.zeros_like(x)
    _plain_tokens.patchify_(x, tokens, 2, 3, order == "channels_first")
    assert torch.equal(tokens, ops.patchify(x, (2, 3), order=order))
    _plain_tokens.unpatchify_(tokens, back, 2, 3, order == "channels_first")
    assert torch.equal(back, x)


def test_refusals():
    x = torch.zeros(2, 3, 4, 6)
    with pytest.raises(ValueError, match=r"x must be .* sides that 3 and 3 divide, got \[2, 3, 4, 6\]"):
        ops.patchify(x, 3)
    with pytest.raises(ValueError, match="patch must be positive, got 0"):
        ops.patchify(x, 0)
    with pytest.raises(ValueError, match="order must be 'channels_first' or 'channels_last', got 'rows'"):
        ops.patchify(x, 2, order="rows")
    with pytest.raises(TypeError, match=r"x must be float32.*int64"):
        ops.patchify(x.long(), 2)
    with pytest.raises(TypeError, match=r"dtype must be float32.*int64"):
        ops.patchify(x, 2, dtype=torch.int64)
    with pytest.raises(
        ValueError, match=r"tokens must be \[B, 6, C \* 4\] for a grid of 2 x 3, got \[2, 5, 12\]"
    ):
        ops.unpatchify(torch.zeros(2, 5, 12), (2, 3), 2)
    with pytest.raises(RuntimeError, match=r"out must be \[2, 6, 12\]"):
        torch.ops.pyflowcore.patchify_(x, torch.zeros(2, 6, 11), 2, 2, True)
    library = torch.ops.pyflowcore
    with pytest.raises(RuntimeError, match=r"tokens must be \[2, 6, 12\], got \[2, 6, 11\]"):
        library.unpatchify_(torch.zeros(2, 6, 11), x, 2, 2, True)
    with pytest.raises(RuntimeError, match=r"out must be \[B, C, rows \* 2, columns \* 5\]"):
        library.unpatchify_(torch.zeros(2, 6, 12), x, 2, 5, True)
    with pytest.raises(RuntimeError, match="tokens has dtype Long"):
        library.unpatchify_(torch.zeros(2, 6, 12, dtype=torch.int64), x, 2, 2, True)
    with pytest.raises(RuntimeError, match="patch must have positive sides, got 0 and 2"):
        library.patchify_(x, torch.zeros(2, 6, 12), 0, 2, True)
