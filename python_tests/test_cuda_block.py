"""The operators of transformer blocks on CUDA against CPU: norms and residuals to the bit, activations too where the CPU has
a fused multiply-add. Bodies and index arithmetic are in ``test_cuda_block_bodies.py``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
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

from pyflowcore import _library
from pyflowcore.ops import block

pytestmark = pytest.mark.gpu
CPU = torch.device("cpu")
KINDS = ("layer", "rms")
# Around an item of a warp's, what a kernel holds in registers, and what none does; one row, more rows than a block has.
SHAPES = [(1, 1), (3, 2), (2, 3, 4), (2, 2, 7), (1, 5, 33), (5, 129), (2, 3, 128), (2, 9, 320), (1, 3, 512), (2, 2, 516),
          (1, 2, 1025), (2, 2, 1152), (1, 3, 1156), (1, 2, 2048), (1, 2, 2052), (2, 1, 4999), (40, 1, 64), (0, 3, 8),
          (2, 0, 8), (3, 2, 0)]  # fmt: skip
# For activations: rows of an even width.
PAIRS = [(2,), (14,), (3, 2), (600, 2), (5, 128), (3, 2050), (2, 3, 14), (2, 516), (1, 4096), (0, 6), (3, 0)]
VECTORS = ("y_bias", "weight", "bias")
Given = dict[str, torch.Tensor]


def numbers(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)


def case(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Given:
    """x, y, a projection that shift, scale and gate are chunks of, and vectors; on the CPU."""
    batch, width = shape[0], shape[-1]
    given = {"x": numbers(shape, dtype, 10 * seed), "y": numbers(shape, dtype, 10 * seed + 1)}
    given["rows"] = numbers((batch, 3 * width), dtype, 10 * seed + 2)
    for i, name in enumerate(VECTORS):
        given[name] = numbers((width,), dtype, 10 * seed + 3 + i)
    return given


def norm_modulate(o: Tensors, **options: object) -> tuple[torch.Tensor, ...]:
    _, shift, scale = o["rows"].chunk(3, 1)
    return (block.norm_modulate(o["x"], shift, scale, weight=o["weight"], bias=o["bias"], **options),)


def gate_residual(o: Tensors) -> tuple[torch.Tensor, ...]:
    gate = o["rows"].chunk(3, 1)[0]
    return (block.gate_residual(o["x"], o["y"], gate, y_bias=o["y_bias"]),)


def gate_residual_(o: Tensors) -> tuple[torch.Tensor, ...]:
    gate = o["rows"].chunk(3, 1)[0]
    return (block.gate_residual_(o["x"], o["y"], gate, y_bias=o["y_bias"]),)


def gate_residual_norm(o: Tensors, **options: object) -> tuple[torch.Tensor, ...]:
    rows = o["rows"].chunk(3, 1)
    vectors = {name: o[name] for name in VECTORS}
    return block.gate_residual_norm(o["x"], o["y"], *rows, **vectors, **options)


def gate_residual_norm_(o: Tensors, **options: object) -> tuple[torch.Tensor, ...]:
    rows = o["rows"].chunk(3, 1)
    vectors = {name: o[name] for name in VECTORS}
    normed = block.gate_residual_norm_(o["x"], o["y"], *rows, **vectors, **options)
    return o["x"], normed


ROWS = {
    "norm_modulate": norm_modulate,
    "gate_residual": gate_residual,
    "gate_residual_": gate_residual_,
    "gate_residual_norm": gate_residual_norm,
    "gate_residual_norm_": gate_residual_norm_,
}
GATED = {
    "gelu": lambda o: (block.gelu(o["x"], o["bias"]),),
    "gelu_": lambda o: (block.gelu_(o["x"], o["bias"]),),
    "gelu, tanh": lambda o: (block.gelu(o["x"], o["bias"], "tanh"),),
    "gelu_, tanh": lambda o: (block.gelu_(o["x"], o["bias"], "tanh"),),
    "swiglu": lambda o: (block.swiglu(o["x"], o["bias"]),),
}


@pytest.fixture
def fused() -> Iterator[bool]:
    """Whether the CPU's kernels that run meanwhile compute an activation by the very operations of CUDA's: those with a fused
    multiply-add and IEEE's division, where there are such."""
    before, wanted = _library.cpu_isa(), "avx2"
    assert before is not None
    has = wanted in _library.cpu_isas()
    if has:
        _library.select_cpu_isa(wanted)
    yield has
    _library.select_cpu_isa(before)


def near(cpu: torch.Tensor, cuda: torch.Tensor, fused: bool, what: object) -> None:
    """An activation. The same operations have the same bits; where each device has its own both are within 4.5 ulp, and in
    float64 within what mathematical libraries state for erfc, 5 ulp, and a rounding."""
    if fused and cpu.dtype != torch.float64:
        same_bits(cpu, cuda, what)
        return
    wide = cpu.dtype == torch.float64
    rtol, least = (11 if wide else 9) * torch.finfo(cpu.dtype).eps, 1e-17 if wide else 1e-9
    torch.testing.assert_close(cuda.cpu(), cpu, rtol=rtol, atol=least, msg=lambda text: f"{what}: {text}")


# ------------------------------------------------------------------------------------------------- norms and residuals
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ROWS)
def test_rows_have_the_bits_of_the_cpu(name: str, dtype: torch.dtype, poison: None) -> None:
    for shape in SHAPES:
        for kind in KINDS if "norm" in name else (None,):
            options = {} if kind is None else {"kind": kind}
            given = case(shape, dtype)
            cuda = ROWS[name](to_device(given), **options)
            for a, b in zip(ROWS[name](dict(given), **options), cuda, strict=True):
                same_bits(a, b, (name, shape, kind))


@pytest.mark.sanitize
@pytest.mark.parametrize("name", ROWS)
def test_rows_at_the_edges(name: str) -> None:
    for shape in ((1, 1, 3), (2, 3, 7), (3, 9, 128), (1, 2, 1156), (1, 1, 2052)):
        given = case(shape, torch.bfloat16)
        cuda = ROWS[name](to_device(given))
        for a, b in zip(ROWS[name](dict(given)), cuda, strict=True):
            same_bits(a, b, (name, shape))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_rows_off_alignment_and_nothing_beyond(dtype: torch.dtype) -> None:
    """One operand or all of them off alignment; what is written lies between guards."""
    names = ("x", "y", "rows", *VECTORS)
    shifts = [dict.fromkeys(names, by) for by in (1, 2, 3)] + [{name: 1} for name in names]
    for width in (132, 7):
        given = case((2, 5, width), dtype)
        expected = gate_residual_norm(dict(given))
        for shift in shifts:
            cuda = {name: moved(tensor, shift.get(name, 0)) for name, tensor in given.items()}
            x = Guarded(given["x"], shift.get("x", 0))
            for a, b in zip(expected, gate_residual_norm_(cuda | {"x": x.tensor}), strict=True):
                same_bits(a, b, (width, shift))
            x.check((width, shift))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_may_be_absent(dtype: torch.dtype, poison: None) -> None:
    for width in (7, 1152):
        given = case((3, 2, width), dtype)
        for device in (CPU, DEVICE):
            o = {name: tensor.to(device) for name, tensor in given.items()}
            gate, shift, scale = o["rows"].chunk(3, 1)
            found = (
                block.norm_modulate(o["x"]), block.norm_modulate(o["x"], shift), block.norm_modulate(o["x"], None, scale),
                block.norm_modulate(o["x"], weight=o["weight"], kind="rms"),
                block.norm_modulate(o["x"], bias=o["bias"], eps=0.1), block.gate_residual(o["x"], o["y"]),
                block.gate_residual(o["x"], o["y"], gate),
                block.gate_residual(o["x"], o["y"], y_bias=o["y_bias"]), *block.gate_residual_norm(o["x"], o["y"], None, shift),
            )  # fmt: skip
            if device == CPU:
                expected = found
        for i, (a, b) in enumerate(zip(expected, found, strict=True)):
            same_bits(a, b, (width, i))


def test_rows_of_any_strides(poison: None) -> None:
    given = case((3, 4, 36), torch.float32)
    expected = gate_residual_norm(dict(given))
    cuda = to_device(given)
    x, y, rows = cuda["x"], cuda["y"], cuda["rows"]
    assert x is not None and y is not None and rows is not None
    cuda["x"] = x.transpose(0, 1).contiguous().transpose(0, 1)
    cuda["y"] = torch.stack([y, y], -1)[..., 0]
    cuda["rows"] = torch.stack([rows, rows], -1)[..., 0]
    cuda["weight"] = torch.stack([cuda["weight"], cuda["weight"]], -1)[:, 0]
    for a, b in zip(expected, gate_residual_norm(cuda), strict=True):
        same_bits(a, b)
    one = numbers((1, 36), torch.float32, 5)
    same_bits(
        block.norm_modulate(given["x"], one.expand(3, 36)),
        block.norm_modulate(x, one.to(DEVICE).expand(3, 36)),
    )
    doubled = x.clone()
    same_bits(2 * given["x"], block.gate_residual_(doubled, doubled))


def test_a_row_that_is_not_finite_spoils_itself_alone() -> None:
    x = numbers((1, 3, 70), torch.float32, 0)
    x[0, 1, 69] = torch.inf
    cpu, cuda = block.norm_modulate(x), block.norm_modulate(x.to(DEVICE))
    assert bool(cuda[0, 1].isnan().all())
    same_bits(cpu[0, [0, 2]], cuda[0, [0, 2]])


# --------------------------------------------------------------------------------------------------------- activations
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", GATED)
def test_activations(name: str, dtype: torch.dtype, fused: bool, poison: None) -> None:
    for shape in PAIRS:
        for biased in (False, True):
            bias = numbers(shape[-1:], dtype, 1) if biased else None
            given: Tensors = {"x": 3 * numbers(shape, dtype, 0), "bias": bias}
            cuda = GATED[name](to_device(given))
            for a, b in zip(GATED[name](given), cuda, strict=True):
                near(a, b, fused, (name, shape, biased))


@pytest.mark.sanitize
@pytest.mark.parametrize("name", GATED)
def test_activations_at_the_edges(name: str, fused: bool) -> None:
    for shape in ((2,), (3, 14), (2, 1032)):
        x, bias = numbers(shape, torch.bfloat16, 0), numbers(shape[-1:], torch.bfloat16, 1)
        given: Tensors = {"x": x, "bias": bias}
        cuda = GATED[name](to_device(given))
        for a, b in zip(GATED[name](given), cuda, strict=True):
            near(a, b, fused, (name, shape))


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_of_every_magnitude(approximate: str, fused: bool) -> None:
    bits = torch.arange(-(2**31), 2**31 - 1, 40_009).to(torch.int32).view(torch.float32)
    x = torch.cat([bits[bits.isfinite()], torch.linspace(-20, 20, 100_003)])
    cpu = block.gelu(x, None, approximate)
    near(cpu, block.gelu(x.to(DEVICE), None, approximate), fused, approximate)
    ends = torch.tensor([torch.inf, -torch.inf, 0.0, -0.0, 3e38, -3e38, torch.nan])
    found = block.gelu(ends.to(DEVICE), None, approximate).cpu()
    assert torch.equal(found[:6], torch.tensor([torch.inf, 0.0, 0.0, 0.0, 3e38, 0.0]))
    assert bool(found[6].isnan())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_activations_off_alignment_and_nothing_beyond(dtype: torch.dtype, fused: bool) -> None:
    for width in (132, 14):
        x, bias = numbers((5, width), dtype, 0), numbers((width,), dtype, 1)
        for by, bias_by in ((1, 1), (2, 2), (3, 3), (0, 1), (1, 0)):
            inside = Guarded(x, by)
            block.gelu_(inside.tensor, moved(bias, bias_by))
            near(block.gelu(x, bias), inside.tensor, fused, (width, by, bias_by))
            inside.check((width, by, bias_by))
            pair = block.swiglu(moved(x, by), moved(bias, bias_by))
            near(block.swiglu(x, bias), pair, fused, (width, by, bias_by))
        token = numbers((1, 1, width), dtype, 2)
        near(
            block.swiglu(token).expand(2, 3, -1),
            block.swiglu(token.to(DEVICE).expand(2, 3, -1)),
            fused,
            width,
        )


# -------------------------------------------------------------------------------------------------------------- places
@pytest.mark.parametrize("name", ROWS)
def test_captured_rows_replay(name: str) -> None:
    for width in (132, 1152):
        replays(ROWS[name], lambda seed, width=width: dict(case((2, 17, width), torch.bfloat16, seed)))


@pytest.mark.parametrize("name", GATED)
def test_captured_activations_replay(name: str, fused: bool) -> None:
    if not fused:
        pytest.skip("the CPU has no kernels with the operations of CUDA's, so bits cannot be compared")

    def make(seed: int) -> Tensors:
        return {"x": numbers((3, 516), torch.float32, seed), "bias": numbers((516,), torch.float32, seed + 9)}

    replays(GATED[name], make)


@pytest.mark.parametrize("name", ["norm", "residual", "gelu", "swiglu"])
def test_more_than_two_billion_elements(name: str) -> None:
    """Rows at both ends and at 2^31 elements have the bits that they have alone."""
    need_memory(19)
    width = 1028
    batch = 2**31 // width + 3
    bias = numbers((width,), torch.bfloat16, 1).to(DEVICE)
    call = {
        "norm": lambda x: block.norm_modulate(x, None, x, weight=bias),
        "residual": lambda x: block.gate_residual(x, x, x, y_bias=bias),
        "gelu": lambda x: block.gelu(x, bias),
        "swiglu": lambda x: block.swiglu(x, bias),
    }[name]
    x = torch.ops.pyflowcore.randn(torch.arange(batch, device=DEVICE), [width], 0, 0, torch.bfloat16)
    at = torch.tensor([0, 1, 2**31 // width - 1, 2**31 // width, batch - 2, batch - 1], device=DEVICE)
    same_bits(call(x[at]).cpu(), call(x)[at], name)


def test_refusals() -> None:
    x = torch.zeros(2, 3, 4, device=DEVICE)
    with pytest.raises(ValueError, match="y is on cpu, x is on cuda"):
        block.gate_residual(x, x.cpu())
    with pytest.raises(ValueError, match="scale is on cpu, x is on cuda"):
        block.norm_modulate(x, None, torch.zeros(2, 4))
    with pytest.raises(RuntimeError, match="gate is on another device"):
        torch.ops.pyflowcore.gate_residual(x, x, torch.zeros(2, 4), None)
    with pytest.raises(RuntimeError, match="y is on another device"):
        torch.ops.pyflowcore.gate_residual(x.cpu(), x, None, None)
    with pytest.raises(ValueError, match="x is written and must be contiguous"):
        block.gelu_(x.transpose(1, 2))
    with pytest.raises(ValueError, match="y is read and x is written, and they overlap"):
        block.gate_residual_(x[:1], x.flatten()[1:13].view(1, 3, 4))
    # The device is usable afterwards, and nothing was written.
    assert not x.view(BITS[4]).any()
