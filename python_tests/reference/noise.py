"""Philox4x32-10 and the normals in NumPy, bit for bit what csrc/core/{philox,normal,exact_math}.hpp say."""

from __future__ import annotations

import numpy as np

F = np.float32


def philox(counter: np.ndarray, key: np.ndarray) -> np.ndarray:
    """counter [..., 4], key [..., 2] of uint32 -> [..., 4] uint32."""
    c = [counter[..., i].astype(np.uint64) for i in range(4)]
    k = [key[..., i].astype(np.uint64) for i in range(2)]
    mask = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [(p1 >> np.uint64(32)) ^ c[1] ^ k[0], p1 & mask, (p0 >> np.uint64(32)) ^ c[3] ^ k[1], p0 & mask]
        k = [(k[0] + np.uint64(0x9E3779B9)) & mask, (k[1] + np.uint64(0xBB67AE85)) & mask]
    return np.stack(c, axis=-1).astype(np.uint32)


def log32(x: np.ndarray) -> np.ndarray:
    bits = x.view(np.int32) - np.int32(0x3F3504F3)
    n = (bits >> 23).astype(F)
    f = ((bits & np.int32(0x007FFFFF)) + np.int32(0x3F3504F3)).view(F) - F(1)
    p = np.full_like(f, F(0.06971611827611923))
    for c in (-0.11479733884334564, 0.11685419827699661, -0.12425687164068222, 0.14249058067798615,
              -0.1666780263185501, 0.20000715553760529, -0.2499999701976776, 0.3333333134651184):  # fmt: skip
        p = p * f + F(c)
    f2 = f * f
    low = n * F(3.194618329871446e-05) + (f2 * f * p - F(0.5) * f2)
    return n * F(0.693115234375) + (f + low)


def box_muller(r: np.ndarray, a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    uniform = ((r >> np.uint32(8)).astype(F) + F(0.5)) * F(2.0**-24)
    radius = np.sqrt(F(-2) * log32(uniform))
    octant = a >> np.uint32(29)
    place = (a >> np.uint32(5)) & np.uint32(0x00FFFFFF)
    place = np.where(octant & 1, np.uint32(0x00FFFFFF) - place, place)
    angle = (place.astype(F) + F(0.5)) * (F(2.0**-24) * F(0.78539816339744831))
    z = angle * angle
    s = np.full_like(z, F(2.7249925551586784e-06))
    for c in (-0.00019840087043121457, 0.008333331905305386, -0.1666666716337204):
        s = s * z + F(c)
    s = angle + angle * (z * s)
    q = np.full_like(z, F(-2.730095900460583e-07))
    for c in (2.480059993104078e-05, -0.00138888880610466, 0.0416666679084301):
        q = q * z + F(c)
    q = F(1) - (F(0.5) * z - z * z * q)
    swap = ((octant + 1) & 2) != 0
    sine, cosine = np.where(swap, q, s), np.where(swap, s, q)
    sine = np.where(octant & 4, -sine, sine)
    cosine = np.where((octant + 2) & 4, -cosine, cosine)
    return radius * cosine, radius * sine


def normals(seeds: list[int], sample: int, stream: int = 0, draw: int = 0) -> np.ndarray:
    """[B, sample] float32."""
    blocks = np.arange((sample + 3) // 4, dtype=np.uint64)
    out = np.zeros((len(seeds), 4 * len(blocks)), dtype=F)
    for i, seed in enumerate(seeds):
        value = int(seed) % 2**64
        counter = np.zeros((len(blocks), 4), dtype=np.uint32)
        counter[:, 0], counter[:, 1] = blocks & np.uint64(0xFFFFFFFF), blocks >> np.uint64(32)
        counter[:, 2], counter[:, 3] = draw, stream
        key = np.broadcast_to(np.array([value & 0xFFFFFFFF, value >> 32], dtype=np.uint32), (len(blocks), 2))
        r = philox(counter, key)
        n0, n1 = box_muller(r[:, 0], r[:, 1])
        n2, n3 = box_muller(r[:, 2], r[:, 3])
        out[i] = np.stack([n0, n1, n2, n3], axis=-1).reshape(-1)
    return out[:, :sample]
