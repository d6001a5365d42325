"""The operators on tokens and feature maps on CUDA against CPU, to the bit but for a SiLU, which is a device's own to its last
bits. Bodies and index arithmetic are in ``test_cuda_token_bodies.py``."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import test_ops_group_norm as group_norm
import test_ops_qk_norm_rope as qk
import torch
from cuda_cases import (
    BITS,
    DEVICE,
    DTYPES,
    Guarded,
    Tensors,
    moved,
    need_memory,
    replays,
    same_bits,
    to_device,
)
from torch import Tensor

from pyflowcore import ops

pytestmark = pytest.mark.gpu
ORDERS = ("channels_first", "channels_last")


def to_cuda(given: dict[str, object]) -> dict[str, object]:
    return {name: v.to(DEVICE) if isinstance(v, Tensor) else v for name, v in given.items()}


def all_same(cpu: Sequence[Tensor], cuda: Sequence[Tensor], what: object) -> None:
    for a, b in zip(cpu, cuda, strict=True):
        same_bits(a, b, what)


# -------------------------------------------------------------------------------------------------------- qk_norm_rope
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("norm", qk.NORMS)
def test_queries_and_keys_have_the_bits_of_the_cpu(norm: str, dtype: torch.dtype, poison: None) -> None:
    for size in qk.SIZES:
        for pairs in qk.PAIRS:
            for rotary in ("half", "full", "half each", ""):
                qkv, heads, given = qk.make(size, dtype, norm=norm, rotary=rotary, biased=bool(rotary))
                cpu = ops.qk_norm_rope(qkv, heads, pairs=pairs, **given)
                cuda = ops.qk_norm_rope(qkv.to(DEVICE), heads, pairs=pairs, **to_cuda(given))
                all_same(cpu, cuda, (size, pairs, rotary))


@pytest.mark.sanitize
@pytest.mark.parametrize("pairs", qk.PAIRS)
def test_queries_and_keys_at_the_edges(pairs: str) -> None:
    for size in ((1, 7, 2, 2, 72), (2, 3, 4, 1, 32), (2, 4, 0, 2, 48), (2, 3, 2, 1, 6)):
        for norm in qk.NORMS:
            qkv, heads, given = qk.make(size, torch.bfloat16, norm=norm)
            cpu = ops.qk_norm_rope(qkv, heads, pairs=pairs, **given)
            all_same(
                cpu, ops.qk_norm_rope(qkv.to(DEVICE), heads, pairs=pairs, **to_cuda(given)), (size, norm)
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("head", [64, 6])
def test_queries_and_keys_off_alignment_and_nothing_beyond(head: int, dtype: torch.dtype) -> None:
    """Into buffers of more tokens, all of whose other elements stay as they are."""
    qkv, _, given = qk.make((2, 3, 4, 2, head), dtype)
    options = {name: value for name, value in given.items() if name != "kv_heads"}
    shape = {"q": (2, 4, 8, head), "k": (2, 2, 8, head), "v": (2, 2, 8, head)}
    for shifts in ((0, 0, 0), (1, 1, 1), (2, 0, 3)):
        cpu = {name: torch.full(size, 5.0, dtype=dtype) for name, size in shape.items()}
        cuda = {name: Guarded(cpu[name], by) for name, by in zip(shape, shifts, strict=True)}
        ops.qk_norm_rope_(qkv, **cpu, q_offset=5, kv_offset=1, **options)
        buffers = {name: guarded.tensor for name, guarded in cuda.items()}
        given_there = {name: moved(v, 1) if isinstance(v, Tensor) else v for name, v in options.items()}
        ops.qk_norm_rope_(moved(qkv, shifts[0]), **buffers, q_offset=5, kv_offset=1, **given_there)
        for name, guarded in cuda.items():
            same_bits(cpu[name], guarded.tensor, (name, shifts))
            guarded.check((name, shifts))


def test_queries_and_keys_of_any_strides(poison: None) -> None:
    qkv, heads, given = qk.make((2, 6, 3, 1, 40), torch.float16)
    cpu = ops.qk_norm_rope(qkv, heads, **given)
    there, options = qkv.to(DEVICE), to_cuda(given)
    for other in (
        torch.cat((there, torch.full_like(there, torch.nan)), dim=-1)[..., : qkv.shape[2]],
        torch.cat((there, there[..., :3]), dim=-1)[..., : qkv.shape[2]],
        there.transpose(0, 1).contiguous().transpose(0, 1),
        there.repeat_interleave(2, dim=-1)[..., ::2],
    ):
        all_same(cpu, ops.qk_norm_rope(other, heads, **options), other.stride())
    for a, b in zip(ops.qk_norm_rope(there[:1].expand(3, -1, -1), heads, **options), cpu, strict=True):
        same_bits(b[0], a[2])


def test_captured_queries_and_keys_replay() -> None:
    _, heads, given = qk.make((2, 33, 4, 2, 72), torch.bfloat16)
    fixed = {name: v for name, v in given.items() if not isinstance(v, Tensor)}

    def make(seed: int) -> Tensors:
        qkv, _, given = qk.make((2, 33, 4, 2, 72), torch.bfloat16, seed=seed)
        return {"qkv": qkv, **{name: v for name, v in given.items() if isinstance(v, Tensor)}}

    replays(
        lambda o: ops.qk_norm_rope(o["qkv"], heads, **{k: v for k, v in o.items() if k != "qkv"}, **fixed),
        make,
    )


# ----------------------------------------------------------------------------------------------------- group_norm_silu
def near(cpu: Tensor, cuda: Tensor, what: object) -> None:
    """SiLU on each side within 2 ulp (float64: 2.5, of which an exponential's is one); in a half type that is at most the other
    neighbour."""
    least = {torch.float64: 1e-300, torch.float16: 6e-8}.get(cpu.dtype, 1e-37)
    rtol = {torch.float32: 4, torch.float64: 5}.get(cpu.dtype, 1.01) * torch.finfo(cpu.dtype).eps
    torch.testing.assert_close(cuda.cpu(), cpu, rtol=rtol, atol=least, msg=lambda text: f"{what}: {text}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("modulated", [False, True])
def test_group_norms(modulated: bool, dtype: torch.dtype, poison: None) -> None:
    for shape, groups in group_norm.SIZES:
        for mean in (0.0, 100.0):
            x, given = group_norm.make(shape, dtype, modulated=modulated, mean=mean)
            there = to_cuda(given)
            for silu, compare in ((False, same_bits), (True, near)):
                cpu = ops.group_norm_silu(x, groups, silu=silu, **given)
                compare(
                    cpu, ops.group_norm_silu(x.to(DEVICE), groups, silu=silu, **there), (shape, mean, silu)
                )


@pytest.mark.sanitize
def test_group_norms_at_the_edges() -> None:
    for shape, groups in (((2, 8, 7, 5), 4), ((1, 4, 1025), 2), ((3, 4), 2), ((1, 32, 36), 32)):
        x, given = group_norm.make(shape, torch.bfloat16)
        cpu = ops.group_norm_silu(x, groups, silu=False, **given)
        same_bits(cpu, ops.group_norm_silu(x.to(DEVICE), groups, silu=False, **to_cuda(given)), shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_group_norms_off_alignment_and_nothing_beyond(dtype: torch.dtype) -> None:
    for spatial in (36, 35):
        x, given = group_norm.make((2, 8, spatial), dtype)
        there = {name: moved(v, 1) for name, v in given.items()}
        cpu = ops.group_norm_silu(x, 4, silu=False, **given)
        for by, out_by in ((1, 1), (0, 2), (3, 0)):
            out = Guarded(torch.full_like(x, 5.0), out_by)
            ops.group_norm_silu_(moved(x, by), out.tensor, 4, silu=False, **there)
            same_bits(cpu, out.tensor, (spatial, by, out_by))
            out.check((spatial, by, out_by))
            inside = Guarded(x, by)
            ops.group_norm_silu_(inside.tensor, inside.tensor, 4, silu=False, **there)
            same_bits(cpu, inside.tensor, (spatial, by, "in place"))
            inside.check((spatial, by, "in place"))


def test_group_norms_of_any_strides(poison: None) -> None:
    x, given = group_norm.make((3, 8, 6, 5), torch.float32)
    cpu = ops.group_norm_silu(x, 4, silu=False, **given)
    there = to_cuda(given)
    turned = x.to(DEVICE).transpose(2, 3).contiguous().transpose(2, 3)
    same_bits(cpu, ops.group_norm_silu(turned, 4, silu=False, **there))
    wide = torch.cat((given["scale"], given["shift"]), 1).to(DEVICE)
    halves = there | dict(zip(("scale", "shift"), wide.chunk(2, 1), strict=True))
    same_bits(cpu, ops.group_norm_silu(turned, 4, silu=False, **halves))
    with pytest.raises(ValueError, match="x is in channels_last"):
        ops.group_norm_silu(x.to(DEVICE).contiguous(memory_format=torch.channels_last), 4)
    spoiled = x.to(DEVICE)
    spoiled[0, 1, 3] = torch.inf
    found = ops.group_norm_silu(spoiled, 4, silu=False, **there)
    assert bool(found[0, :2].isnan().all())
    same_bits(cpu[0, 2:], found[0, 2:])
    same_bits(cpu[1:], found[1:])


def test_captured_group_norms_replay() -> None:
    def make(seed: int) -> Tensors:
        x, given = group_norm.make((2, 8, 31, 33), torch.bfloat16, seed=seed)
        return {"x": x, **given}

    replays(
        lambda o: [ops.group_norm_silu(o["x"], 4, silu=False, **{k: v for k, v in o.items() if k != "x"})],
        make,
    )


# --------------------------------------------------------------------------------------------------- timestep_features
@pytest.mark.parametrize("t_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_timesteps_have_the_bits_of_the_cpu(dtype: torch.dtype, t_dtype: torch.dtype, poison: None) -> None:
    for count, width in ((0, 4), (1, 2), (1, 256), (23, 254), (50, 1152), (1100, 512)):
        t = torch.linspace(-0.3, 1.0, count, dtype=torch.float64).to(t_dtype)
        for scale, last, sine_first in ((1000.0, 0.0, False), (1.0, 0.5, True), (1e9, -1.0, False)):
            options = {"scale": scale, "last": last, "sine_first": sine_first, "dtype": dtype}
            cpu = ops.timestep_features(t, width, **options)
            same_bits(cpu, ops.timestep_features(t.to(DEVICE), width, **options), (count, width, scale))


@pytest.mark.sanitize
def test_timesteps_at_the_edges() -> None:
    for count, width in ((1, 2), (3, 254), (1100, 512)):
        t = torch.linspace(0, 1, count)
        same_bits(ops.timestep_features(t, width), ops.timestep_features(t.to(DEVICE), width), (count, width))


def test_times_of_any_strides_and_not_finite() -> None:
    t = torch.tensor([torch.nan, torch.inf, 0.0, 0.7])
    found = ops.timestep_features(t.to(DEVICE), 6)
    assert bool(found[:2].isnan().all())
    same_bits(ops.timestep_features(t[2:], 6), found[2:])
    same_bits(
        ops.timestep_features(t[2:], 6), ops.timestep_features(t.to(DEVICE).repeat_interleave(2)[::2], 6)[2:]
    )
    same_bits(ops.timestep_features(t[3:].expand(5), 6), ops.timestep_features(t.to(DEVICE)[3:].expand(5), 6))


def test_captured_timesteps_replay() -> None:
    def make(seed: int) -> Tensors:
        return {"t": torch.rand(17, generator=torch.Generator().manual_seed(seed))}

    replays(lambda o: [ops.timestep_features(o["t"], 256)], make)


# --------------------------------------------------------------------------------------------- patchify and unpatchify
# (B, C, rows, columns), patch: lines of one, two, four and of what none of these divides; runs of tokens past a block.
SIZES = [
    ((2, 4, 3, 5), (2, 2)), ((1, 3, 2, 2), (4, 4)), ((2, 1, 3, 1), (1, 1)), ((1, 5, 2, 3), (3, 2)), ((2, 3, 1, 7), (1, 5)),
    ((0, 4, 2, 2), (2, 2)), ((2, 0, 2, 2), (2, 2)), ((1, 16, 33, 17), (2, 2)), ((1, 3, 14, 15), (16, 16)),
    ((3, 2, 5, 5), (1, 8)), ((5, 3, 32, 32), (2, 6)),
]  # fmt: skip


def images(size: tuple[int, ...], patch: tuple[int, int], dtype: torch.dtype, seed: int = 1) -> Tensor:
    batch, channels, rows, columns = size
    shape = batch, channels, rows * patch[0], columns * patch[1]
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("order", ORDERS)
def test_patches_have_the_bits_of_the_cpu(order: str, dtype: torch.dtype, poison: None) -> None:
    for size, patch in SIZES:
        x = images(size, patch, dtype)
        for to in DTYPES:
            tokens = ops.patchify(x, patch, order=order, dtype=to)
            there = ops.patchify(x.to(DEVICE), patch, order=order, dtype=to)
            same_bits(tokens, there, (size, patch, to))
            back = ops.unpatchify(tokens, size[2:], patch, order=order, dtype=dtype)
            same_bits(
                back,
                ops.unpatchify(there, size[2:], patch, order=order, dtype=dtype),
                (size, patch, to, "back"),
            )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_patches_move_any_bits(dtype: torch.dtype) -> None:
    """Within one dtype nothing is converted: not the payload of what is not a number either."""
    bits = torch.randint(0, 256, (2, 4, 6, 10 * dtype.itemsize), generator=torch.Generator().manual_seed(3))
    x = bits.to(torch.uint8).view(dtype)
    for order in ORDERS:
        tokens = ops.patchify(x.to(DEVICE), 2, order=order)
        same_bits(ops.patchify(x, 2, order=order), tokens, order)
        same_bits(x, ops.unpatchify(tokens, (3, 5), 2, order=order), order)


@pytest.mark.sanitize
@pytest.mark.parametrize("order", ORDERS)
def test_patches_at_the_edges(order: str) -> None:
    for size, patch in (((2, 3, 3, 5), (2, 2)), ((1, 3, 2, 2), (1, 5)), ((1, 2, 5, 7), (4, 4))):
        for dtype, to in ((torch.float32, torch.float32), (torch.float32, torch.bfloat16)):
            x = images(size, patch, dtype)
            tokens = ops.patchify(x.to(DEVICE), patch, order=order, dtype=to)
            same_bits(ops.patchify(x, patch, order=order, dtype=to), tokens, (size, patch, to))
            same_bits(x.to(to).to(dtype), ops.unpatchify(tokens, size[2:], patch, order=order, dtype=dtype))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("to", DTYPES, ids=str)
def test_patches_off_alignment_and_nothing_beyond(to: torch.dtype, order: str) -> None:
    first, library = order == "channels_first", torch.ops.pyflowcore
    for dtype in (to, torch.float32, torch.float16):
        for patch in (1, 2, 4, 3):
            x = images((2, 3, 3, 5), (patch, patch), dtype)
            tokens = ops.patchify(x, patch, order=order, dtype=to)
            for by, out_by in ((0, 1), (1, 0), (2, 2), (3, 3), (2, 0), (0, 2)):
                out = Guarded(torch.full_like(tokens, 5.0), out_by)
                library.patchify_(moved(x, by), out.tensor, patch, patch, first)
                same_bits(tokens, out.tensor, (dtype, patch, by, out_by))
                out.check((dtype, patch, by, out_by))
                image = Guarded(torch.full(x.shape, 5.0, dtype=to), by)
                library.unpatchify_(moved(tokens, out_by), image.tensor, patch, patch, first)
                same_bits(x.to(to), image.tensor, (dtype, patch, by, out_by, "back"))
                image.check((dtype, patch, by, out_by, "back"))


@pytest.mark.parametrize("order", ORDERS)
def test_patches_of_any_strides(order: str, poison: None) -> None:
    x = images((2, 3, 4, 4), (2, 2), torch.float32)
    tokens, there = ops.patchify(x, 2, order=order), x.to(DEVICE)
    for other in (
        there.contiguous(memory_format=torch.channels_last),
        there.repeat_interleave(2, dim=3)[..., ::2],
        there.transpose(2, 3).contiguous().transpose(2, 3),
    ):
        same_bits(tokens, ops.patchify(other, 2, order=order))
    turned = tokens.to(DEVICE).transpose(1, 2).contiguous().transpose(1, 2)
    same_bits(x, ops.unpatchify(turned, (4, 4), 2, order=order))
    same_bits(tokens[:1].expand(3, -1, -1), ops.patchify(there[:1].expand(3, -1, -1, -1), 2, order=order))


@pytest.mark.parametrize("order", ORDERS)
def test_captured_patches_replay(order: str) -> None:
    def make(seed: int) -> Tensors:
        return {"x": images((2, 4, 16, 17), (2, 2), torch.float32, seed)}

    def run(o: Tensors) -> list[Tensor]:
        tokens = ops.patchify(o["x"], 2, order=order, dtype=torch.bfloat16)
        return [tokens, ops.unpatchify(tokens, (16, 17), 2, order=order, dtype=torch.float32)]

    replays(run, make)


# -------------------------------------------------------------------------------------------------- large, and refused
@pytest.mark.parametrize(
    "name", ["qk_norm_rope", "group_norm_silu", "patchify", "unpatchify", "timestep_features"]
)
def test_more_than_two_billion_elements(name: str) -> None:
    """Samples at both ends and at 2^31 elements have the bits that they have alone."""
    need_memory(19)
    shape = {"qk_norm_rope": (1, 1152), "group_norm_silu": (4, 9, 28), "timestep_features": ()}.get(
        name, (4, 16, 18)
    )
    if name == "unpatchify":
        shape = (72, 16)
    sample = 512 if name == "timestep_features" else torch.Size(shape).numel()
    batch = 2**31 // sample + 3

    def call(x: Tensor) -> Tensor:
        if name == "qk_norm_rope":
            return torch.cat(ops.qk_norm_rope(x, 6, norm="rms"), 1)
        if name == "group_norm_silu":
            return ops.group_norm_silu(x, 2, silu=False)
        if name == "patchify":
            return ops.patchify(x, 2)
        if name == "unpatchify":
            return ops.unpatchify(x, (8, 9), 2)
        return ops.timestep_features(x, sample)

    x = torch.ops.pyflowcore.randn(torch.arange(batch, device=DEVICE), list(shape), 0, 0, torch.float32)
    x = x if name == "timestep_features" else x.to(torch.bfloat16)
    at = torch.tensor([0, 1, 2**31 // sample - 1, 2**31 // sample, batch - 2, batch - 1], device=DEVICE)
    same_bits(call(x[at].cpu()), call(x)[at], name)


def test_refusals() -> None:
    x = torch.zeros(2, 3, 4, 6, device=DEVICE)
    library = torch.ops.pyflowcore
    with pytest.raises(RuntimeError, match="out is on another device"):
        library.patchify_(x, torch.zeros(2, 6, 12), 2, 2, True)
    with pytest.raises(RuntimeError, match="tokens is not on CUDA"):
        library.unpatchify_(torch.zeros(2, 6, 12), x, 2, 2, True)
    with pytest.raises(RuntimeError, match=r"out must be \[2, 6, 12\]"):
        library.patchify_(x, torch.zeros(2, 6, 11, device=DEVICE), 2, 2, True)
    with pytest.raises(RuntimeError, match="out is written and must be contiguous"):
        library.unpatchify_(
            torch.zeros(2, 6, 12, device=DEVICE), x.transpose(2, 3).contiguous().transpose(2, 3), 2, 2, True
        )
    with pytest.raises(ValueError, match="weight is on cpu, x is on cuda"):
        ops.group_norm_silu(x, 3, torch.ones(3), torch.ones(3))
    qkv = torch.zeros(2, 4, 48, device=DEVICE)
    with pytest.raises(ValueError, match="bias is on cpu, qkv is on cuda"):
        ops.qk_norm_rope(qkv, 2, bias=torch.zeros(48))
    with pytest.raises(ValueError, match="k is on cpu, qkv is on cuda"):
        buffers = [torch.zeros(2, 2, 4, 8, device=DEVICE) for _ in range(3)]
        ops.qk_norm_rope_(qkv, buffers[0], buffers[1].cpu(), buffers[2])
    assert not x.view(BITS[4]).any()


def test_the_kernels_are_registered() -> None:
    """What has none would run in plain PyTorch, and pass."""
    names = (
        "norm_modulate", "gate_residual", "gate_residual_", "gate_residual_norm", "gate_residual_norm_", "swiglu", "gelu",
        "gelu_", "qk_norm_rope", "qk_norm_rope_", "group_norm_silu", "group_norm_silu_", "timestep_features", "patchify_",
        "unpatchify_",
    )  # fmt: skip
    for name in names:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"pyflowcore::{name}", "CUDA"), name
    x = to_device({"x": torch.zeros(1, 1, 2, 2)})["x"]
    assert x is not None and ops.patchify(x, 2).device == x.device
