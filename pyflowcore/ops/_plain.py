"""Every operator in plain PyTorch: for devices without compiled kernels, and for a CPU whose library is off.

Slow and obvious, in the same order of operations as ``csrc/core``, so that IEEE devices give the same bits. The first use
on a device says that it runs.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _core, _library
from . import _plain_guide

_R = _core.record
_said: set[str] = set()


def _say(tensor: Tensor, operator: str) -> None:
    kind = tensor.device.type
    if kind in _said:
        return
    _said.add(kind)
    backend = {"cpu": _library.cpu, "cuda": _library.cuda}.get(kind)
    why = "there are no compiled kernels of it for this device"
    why = backend.reason or why if backend is not None else why
    warnings.warn(
        f"pyflowcore: {operator} runs in plain PyTorch on '{kind}': {why}.",
        _library.PyflowcoreWarning,
        stacklevel=3,
    )


# ------------------------------------------------------------------------------------------------------------ noise
_WORD = 0xFFFFFFFF


def _multiply(constant: int, word: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a product of two 32-bit numbers, in int64 without overflow."""
    low_half, high_half = constant * (word & 0xFFFF), constant * (word >> 16)
    high = (high_half + (low_half >> 16)) >> 16
    low = ((high_half << 16) + low_half) & _WORD
    return high, low


def _philox(seeds: Tensor, stream: int, draw: int, block: Tensor) -> list[Tensor]:
    """Philox4x32-10 of [B] seeds and [N] blocks: four words of [B, N], int64. See csrc/core/philox.hpp."""
    shape = (seeds.numel(), block.numel())
    k0, k1 = (seeds & _WORD)[:, None].expand(shape), ((seeds >> 32) & _WORD)[:, None].expand(shape)
    c0, c1 = (block & _WORD)[None].expand(shape), (block >> 32)[None].expand(shape)
    c2, c3 = torch.full_like(c0, draw), torch.full_like(c0, stream)
    for _ in range(10):
        high0, low0 = _multiply(0xD2511F53, c0)
        high1, low1 = _multiply(0xCD9E8D57, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & _WORD, (k1 + 0xBB67AE85) & _WORD
    return [c0, c1, c2, c3]


def _polynomial(z: Tensor, coefficients: Sequence[float]) -> Tensor:
    value = torch.full_like(z, coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * z + coefficient
    return value


def _log(x: Tensor) -> Tensor:
    bits = x.view(torch.int32) - 0x3F3504F3
    n = (bits >> 23).float()
    f = ((bits & 0x007FFFFF) + 0x3F3504F3).view(torch.float32) - 1.0
    p = _polynomial(
        f,
        (0.06971611827611923, -0.11479733884334564, 0.11685419827699661, -0.12425687164068222, 0.14249058067798615,
         -0.1666780263185501, 0.20000715553760529, -0.2499999701976776, 0.3333333134651184),
    )  # fmt: skip
    f2 = f * f
    low = n * 3.194618329871446e-05 + (f2 * f * p - 0.5 * f2)
    return n * 0.693115234375 + (f + low)


def _sqrt(x: Tensor) -> Tensor:
    """Correctly rounded, which torch's float32 square root on a CPU is not; float64 is, once rounded back."""
    return x.sqrt() if x.device.type == "mps" else x.double().sqrt().float()


def _box_muller(radius_word: Tensor, angle_word: Tensor) -> tuple[Tensor, Tensor]:
    radius = _sqrt(-2.0 * _log(((radius_word >> 8).float() + 0.5) * 2.0**-24))
    octant = angle_word >> 29
    place = (angle_word >> 5) & 0x00FFFFFF
    place = torch.where((octant & 1) != 0, 0x00FFFFFF - place, place)
    angle = (place.float() + 0.5) * torch.tensor(
        2.0**-24 * 0.78539816339744831, dtype=torch.float32, device=place.device
    )
    z = angle * angle
    sine = _polynomial(
        z, (2.7249925551586784e-06, -0.00019840087043121457, 0.008333331905305386, -0.1666666716337204)
    )
    sine = angle + angle * (z * sine)
    cosine = _polynomial(
        z, (-2.730095900460583e-07, 2.480059993104078e-05, -0.00138888880610466, 0.0416666679084301)
    )
    cosine = 1.0 - (0.5 * z - z * z * cosine)
    swap = ((octant + 1) & 2) != 0
    sine, cosine = torch.where(swap, cosine, sine), torch.where(swap, sine, cosine)
    sine = torch.where((octant & 4) != 0, -sine, sine)
    cosine = torch.where(((octant + 2) & 4) != 0, -cosine, cosine)
    return radius * cosine, radius * sine


def normals(seeds: Tensor, sample: int, stream: int, draw: int) -> Tensor:
    """[B, sample] float32 normals."""
    block = torch.arange((sample + 3) // 4, device=seeds.device)
    r0, r1, r2, r3 = _philox(seeds, stream, draw, block)
    values = torch.stack([*_box_muller(r0, r1), *_box_muller(r2, r3)], dim=-1)
    return values.reshape(seeds.numel(), 4 * block.numel())[:, :sample].contiguous()


def randn(seeds: Tensor, shape: Sequence[int], stream: int, draw: int, dtype: torch.dtype) -> Tensor:
    _say(seeds, "randn")
    sample = 1
    for size in shape:
        sample *= size
    return normals(seeds, sample, stream, draw).reshape(seeds.numel(), *shape).to(dtype)


# ------------------------------------------------------------------------------------------------------ interpolate
def interpolate(
    data: Tensor, t: Tensor, x0: Tensor | None, seeds: Tensor | None, path: int, path_a: float, path_b: float,
    prediction: int, stream: int, draw: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    _say(data, "interpolate")
    compute = torch.float64 if data.dtype == torch.float64 else torch.float32
    if x0 is None:
        assert seeds is not None
        x0 = normals(seeds, data[0].numel() if data.shape[0] else 0, stream, draw).reshape(data.shape)
    coefficients = _core.target_coefficients(
        _core.Path(_core.PathKind(path), path_a, path_b),
        _core.Prediction(prediction),
        t.double().cpu().numpy(),
    )
    shape = (-1,) + (1,) * (data.dim() - 1)
    alpha, sigma, on_data, on_noise = (
        torch.from_numpy(c).to(device=data.device, dtype=compute).reshape(shape) for c in coefficients
    )
    x1, noise = data.to(compute), x0.to(compute)
    return (alpha * x1 + sigma * noise).to(data.dtype), (on_data * x1 + on_noise * noise).to(data.dtype)


# ---------------------------------------------------------------------------------------------------------- combine
def _update(factor: float, factor_minus_1: float, value: Tensor, total: Tensor) -> Tensor:
    if factor == 0.0:
        return total
    if factor_minus_1 == 0.0:
        return value + total
    if abs(factor_minus_1) < 0.5:
        return value + (factor_minus_1 * value + total)
    return factor * value + total


def _row(
    x: Tensor, y: Tensor | None, slots: Sequence[Tensor] | Tensor, branches: Sequence[Tensor], guidance: Tensor | None,
    seeds: Tensor | None, table: Tensor, row: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The new state, the next point and this row's prediction."""
    record = table[row].tolist()
    x_sum = y_sum = d = torch.zeros_like(x)
    if record[_R["evaluates"]]:
        outs = [branch.to(x.dtype) for branch in branches]
        if not outs and record[_R["q"]] != 0.0:
            raise RuntimeError("out: the row evaluates the field and needs its output, got None")
        d = outs[-1] if outs else d
        if len(outs) > 1:
            assert guidance is not None
            scale = guidance[row].reshape(-1, guidance.shape[-1])
            shape = (-1,) + (1,) * (x.dim() - 1)
            total = (scale[0].reshape(shape) - 1) * (outs[0] - outs[-1])
            for j, out in enumerate(outs[1:-1], start=1):
                total = total + scale[min(j, len(scale) - 1)].reshape(shape) * (out - outs[-1])
            d = outs[0] + total
        if record[_R["q"]] != 1.0:
            d = record[_R["q"]] * d
        if record[_R["p"]] != 0.0:
            d = record[_R["p"]] * (x if y is None else y) + d
        x_sum = record[_R["b_new"]] * d if record[_R["b_new"]] else x_sum
        y_sum = record[_R["e_new"]] * d if record[_R["e_new"]] else y_sum
    for k in range(_R["max_slots"]):
        b, e = record[_R["b"] + k], record[_R["e"] + k]
        x_sum = x_sum + b * slots[k] if b else x_sum
        y_sum = y_sum + e * slots[k] if e else y_sum
    for n in range(_R["max_draws"]):
        s, r = record[_R["s"] + n], record[_R["r"] + n]
        if s or r:
            if seeds is None:
                raise RuntimeError(f"seeds: row {row} draws noise and needs them, got None")
            sample = x[0].numel() if x.shape[0] else 0
            xi = normals(seeds, sample, 1, int(record[_R["draw"] + n])).reshape(x.shape).to(x.dtype)
            x_sum = x_sum + s * xi if s else x_sum
            y_sum = y_sum + r * xi if r else y_sum
    new_x = _update(record[_R["a"]], record[_R["a_minus_1"]], x, x_sum)
    return new_x, _update(record[_R["c"]], record[_R["c_minus_1"]], new_x, y_sum), d


def _branches(x: Tensor, out: Tensor | None, out2: Tensor | None) -> list[Tensor]:
    if out is None:
        return []
    stacked = list(out.split(x.shape[0])) if x.shape[0] else [out]
    return stacked if out2 is None else [*stacked, out2]


def combine_(
    x: Tensor, y: Tensor | None, y_out: Tensor | None, inp: Tensor | None, slots: Tensor | None, out: Tensor | None,
    out2: Tensor | None, guidance: Tensor | None, seeds: Tensor | None, table: Tensor, row: int,
) -> None:  # fmt: skip
    _say(x, "combine_")
    new_x, point, d = _row(
        x, y, () if slots is None else slots, _branches(x, out, out2), guidance, seeds, table, row
    )
    record = table[row]
    store = int(record[_R["store"]])
    if store >= 0:
        assert slots is not None
        slots[store].copy_(d)
    x.copy_(new_x)
    if y_out is not None:
        y_out.copy_(point)
    if inp is not None and x.shape[0]:
        scaled = point if record[_R["in_scale"]] == 1.0 else float(record[_R["in_scale"]]) * point
        for part in inp.split(x.shape[0]):
            part.copy_(scaled)


def guide_(
    x: Tensor, y: Tensor | None, m: Tensor | None, mix: Tensor, scratch: Tensor, out: Tensor, out2: Tensor | None,
    guidance: Tensor, rules: Tensor, row: int,
) -> None:  # fmt: skip
    _say(x, "guide_")
    if not x.numel():
        return
    branches = _branches(x, out, out2)
    scales = _plain_guide.scales_of(guidance, row, len(branches) - 1)
    found, moved = _plain_guide.guide(
        rules[row].tolist(), branches, scales, x if y is None else y, m, x.dtype
    )
    mix.copy_(torch.stack(found))
    if m is not None and moved is not None:
        m.copy_(moved)


def combine_mixed_(
    x: Tensor, y: Tensor | None, y_out: Tensor | None, inp: Tensor | None, slots: Tensor | None, out: Tensor,
    out2: Tensor | None, mix: Tensor, m: Tensor | None, seeds: Tensor | None, table: Tensor, row: int,
) -> None:  # fmt: skip
    point = x if y is None else y
    guided = _plain_guide.mixed(list(mix), _branches(x, out, out2), point, m)
    combine_(x, y, y_out, inp, slots, guided, None, None, seeds, table, row)


def combine(
    x: Tensor, y: Tensor | None, slots: Sequence[Tensor], outs: Sequence[Tensor], guidance: Tensor | None,
    seeds: Tensor | None, table: Tensor, row: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    _say(x, "combine")
    branches = [part for out in outs for part in _branches(x, out, None)]
    new_x, point, d = _row(x, y, slots, branches, guidance, seeds, table, row)
    return new_x.contiguous(), point.contiguous().clone(), d.contiguous().clone()


def register() -> None:
    """Serves every backend that has no kernels of its own."""
    for operator in (randn, interpolate, combine_, combine_mixed_, combine, guide_):
        _library.definitions.impl(operator.__name__, operator, "CompositeExplicitAutograd")
