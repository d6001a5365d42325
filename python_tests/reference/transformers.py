"""A diffusion transformer in float64 NumPy, one sample and one head at a time, from a state dict and a config."""

from __future__ import annotations

import numpy as np


def linear(weights, name, x):
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def silu(x):
    return x / (1 + np.exp(-x))


def gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def normed(kind, weights, name, x, eps=1e-6):
    if kind is None:
        return x
    if kind == "layer":
        x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)
    x = x * weights.get(f"{name}.weight", 1.0)
    return x + weights.get(f"{name}.bias", 0.0)


def turned(x, place, period=10000.0):
    """x [head_dim] turned by its place: pairs of dimensions as complex numbers, one share of them for each axis."""
    pairs = x[0::2] + 1j * x[1::2]
    share = len(pairs) // len(place)
    for axis, p in enumerate(place):
        for k in range(share):
            pairs[axis * share + k] *= np.exp(1j * p * period ** (-k / share))
    out = np.empty_like(x)
    out[0::2], out[1::2] = pairs.real, pairs.imag
    return out


def attention(weights, name, config, x):
    tokens, width = x.shape
    heads, head = config["heads"], width // config["heads"]
    side = config["size"] // config["patch"]
    q, k, v = linear(weights, f"{name}.qkv", x).reshape(tokens, 3, heads, head).transpose(1, 2, 0, 3)
    mixed = np.zeros((tokens, width))
    for h in range(heads):
        qs = normed(config["qk_norm"], weights, f"{name}.q_norm", q[h])
        ks = normed(config["qk_norm"], weights, f"{name}.k_norm", k[h])
        if config["rope"]:
            qs = np.stack([turned(row, divmod(n, side)) for n, row in enumerate(qs)])
            ks = np.stack([turned(row, divmod(n, side)) for n, row in enumerate(ks)])
        weight = np.exp(qs @ ks.T / np.sqrt(head))
        mixed[:, h * head : (h + 1) * head] = weight / weight.sum(-1, keepdims=True) @ v[h]
    return linear(weights, f"{name}.out", mixed)


def feedforward(weights, name, config, x):
    if config["mlp"] == "gelu":
        return linear(weights, f"{name}.2", gelu_tanh(linear(weights, f"{name}.0", x)))
    gate, value = np.split(linear(weights, f"{name}.inner", x), 2, axis=-1)
    return linear(weights, f"{name}.out", silu(gate) * value)


def sincos(t, width, period=10000.0):
    """(sines, cosines) of t over width / 2 frequencies each."""
    phases = np.array([t * period ** (-k / (width // 2)) for k in range(width // 2)])
    return np.sin(phases), np.cos(phases)


def place(weights, config, n):
    """What is added to token n."""
    if config["positions"] == "learned":
        return weights["positions"][n]
    if config["positions"] == "none":
        return np.zeros(config["width"])
    row, column = divmod(n, config["size"] // config["patch"])
    half = config["width"] // 2
    return np.concatenate([*sincos(row, half), *sincos(column, half)])


def dit(weights, config, x, t, y=None, c=None):
    """One sample: x [C, size, size], t a number, y an index or None, c a vector or None."""
    channels, p, width = config["channels"], config["patch"], config["width"]
    side = config["size"] // p
    tokens = np.stack(
        [
            linear(weights, "embed", x[:, i * p : i * p + p, j * p : j * p + p].ravel())
            for i in range(side)
            for j in range(side)
        ]
    )
    tokens = tokens + np.stack([place(weights, config, n) for n in range(side * side)])
    sine, cosine = sincos(config["time_scale"] * t, config["time_dim"] or width)
    steer = linear(weights, "mix_time", silu(linear(weights, "embed_time", np.concatenate([cosine, sine]))))
    if y is not None:
        steer = steer + weights["embed_class.weight"][y]
    if c is not None:
        steer = steer + linear(weights, "mix_cond", silu(linear(weights, "embed_cond", c)))
    for depth in range(config["depth"]):
        block = f"blocks.{depth}"
        shift1, scale1, gate1, shift2, scale2, gate2 = np.split(
            linear(weights, f"{block}.modulation", silu(steer)), 6
        )
        inner = normed(config["norm"], weights, f"{block}.norm1", tokens) * (1 + scale1) + shift1
        tokens = tokens + gate1 * attention(weights, f"{block}.attention", config, inner)
        inner = normed(config["norm"], weights, f"{block}.norm2", tokens) * (1 + scale2) + shift2
        tokens = tokens + gate2 * feedforward(weights, f"{block}.mlp", config, inner)
    shift, scale = np.split(linear(weights, "head.modulation", silu(steer)), 2)
    patches = linear(
        weights, "head.out", normed(config["norm"], weights, "head.norm", tokens) * (1 + scale) + shift
    )
    out = np.zeros((config["outputs"] or channels, side * p, side * p))
    for n, patch in enumerate(patches):
        i, j = divmod(n, side)
        out[:, i * p : i * p + p, j * p : j * p + p] = patch.reshape(-1, p, p)
    return out[:channels]
