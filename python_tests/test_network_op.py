"""The compiled network operator: against float64, in every shape, and bit for bit alone, in a batch and on any threads."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import mpmath
import numpy as np
import pytest
import scipy.special
import torch
from torch import Tensor

import pyflowcore as pfc
from pyflowcore import _library
from pyflowcore.network import ACTIVATIONS, Dense, Feature, Network, forward
from reference.random_networks import PARAMETERS, pack, random_network

pytestmark = pytest.mark.skipif(_library.cpu.handle is None, reason="there are no compiled kernels")

DTYPES = [torch.float32, torch.float64]
run = torch.ops.pyflowcore.network


@pytest.fixture(params=_library.cpu_isas())
def isa(request) -> Iterator[str]:
    before = pfc.cpu_isa()
    pfc.select_cpu_isa(request.param)
    yield request.param
    pfc.select_cpu_isa(before)


def normal(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def rms(error: Tensor) -> float:
    return error.double().square().mean().sqrt().item()


def compare(net: Network, batch: int, *, seed: int = 0) -> None:
    """Float64 to 1e-12; float32 at most twice as far from float64 as plain PyTorch, and half an ulp where that is near 0."""
    cond = normal(batch, net.conditions, seed=seed + 1) if net.conditions else None
    x, t = normal(batch, net.dim, seed=seed), normal(batch, seed=seed + 2).sigmoid()
    single = [None if v is None else v.float() for v in (x, cond)]
    exact = [None if v is None else v.double() for v in single]
    found = run(x, t, cond, *pack(net))
    torch.testing.assert_close(found, forward(x, t, cond, *pack(net)), rtol=1e-12, atol=1e-12)
    if batch < 40:
        return  # too few numbers for a ratio of errors
    params, layers, features = pack(net, torch.float32)
    truth = forward(exact[0], t, exact[1], params.double(), layers, features)
    plain = forward(single[0], t, single[1], params, layers, features)
    found = run(single[0], t, single[1], params, layers, features)
    assert rms(found - truth) <= 2.0 * rms(plain - truth) + 2.0**-24 * rms(truth)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(isa, activation):
    compare(random_network(3, (32, 20), activation, residuals=True), 47)
    compare(random_network(2, (17, 17, 17), "tanh", residuals=True, after=activation), 40)


@pytest.mark.parametrize("widths", [(), (16,), (17, 63), (64, 64, 64), (130, 40), (256, 16), (512,)], ids=str)
def test_sizes(isa, widths):
    for number, dim in enumerate([1, 2, 3, 7, 16, 33]):
        conditions, features = [(0, 1), (5, 0), (0, 9), (37, 33)][number % 4]
        net = random_network(
            dim, widths, "silu", conditions=conditions, features=features, residuals=number % 2 == 1
        )
        compare(net, (47, 1, 6, 100, 5, 41)[number])


@pytest.mark.parametrize("batch", [0, 1, 2, 5, 6, 7, 47, 97, 1000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_batches(isa, batch, dtype):
    net = random_network(3, (64, 40), conditions=2, features=3)
    x, t, cond = normal(batch, 3, dtype=dtype), torch.rand(batch), normal(batch, 2, dtype=dtype)
    found = run(x, t, cond, *pack(net, dtype))
    assert found.shape == x.shape and found.dtype == dtype
    torch.testing.assert_close(
        found,
        forward(x, t, cond, *pack(net, dtype)),
        rtol=1e-12 if dtype == torch.float64 else 1e-4,
        atol=1e-12 if dtype == torch.float64 else 1e-4,
    )


def test_wide_and_deep(isa):
    compare(random_network(512, (512, 512), "relu", conditions=1024, features=1024), 5)
    compare(random_network(4, (24,) * 33, "tanh", residuals=True), 40)


# ------------------------------------------------------------------------------------------- activations, in ulp


def softplus(x: np.ndarray) -> np.ndarray:
    beta = PARAMETERS["softplus"]
    scaled = beta * x
    return np.where(scaled > 20, x, (np.maximum(scaled, 0) + np.log1p(np.exp(-np.abs(scaled)))) / beta)


def negative_part(alpha: float, scale: float = 1.0) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: scale * np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


FUNCTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "identity": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x * scipy.special.expit(x),
    "gelu": lambda x: x * scipy.special.ndtr(x),
    "gelu_tanh": lambda x: x * scipy.special.expit(2 * np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)),
    "selu": negative_part(1.6732632423543772848, 1.0507009873554804934),
    "tanh": np.tanh,
    "softplus": softplus,
    "elu": negative_part(PARAMETERS["elu"]),
    "sigmoid": scipy.special.expit,
    "leaky_relu": lambda x: np.where(x > 0, x, np.float64(np.float32(PARAMETERS["leaky_relu"])) * x),
}


def single_layer(activation: str, dim: int) -> Network:
    """f(x), element by element."""
    layer = Dense(torch.eye(dim, dtype=torch.float64), None, activation, PARAMETERS.get(activation, 0.0))
    return Network((layer,), (), 0, dim)


def values_of(activation: str, x: np.ndarray) -> np.ndarray:
    """The operator's f(x)."""
    assert x.size % 16 == 0
    points = torch.from_numpy(x.reshape(-1, 16))
    return (
        run(points, torch.tensor(0.0), None, *pack(single_layer(activation, 16), points.dtype))
        .numpy()
        .reshape(-1)
    )


def float32_values() -> np.ndarray:
    """All magnitudes, subnormal to the largest, of both signs; and closely where something happens."""
    bits = np.arange(0, 2**32, 20_011, dtype=np.uint64).astype(np.uint32)
    everywhere = bits.view(np.float32)
    everywhere = everywhere[np.isfinite(everywhere)]
    near = np.linspace(-110, 30, 150_000).astype(np.float32)
    all_values = np.concatenate([everywhere, near])
    return all_values[: all_values.size // 16 * 16]


@pytest.mark.parametrize("activation", FUNCTIONS)
def test_float32_activations_are_within_two_ulp(isa, activation):
    x = float32_values()
    with np.errstate(all="ignore"):
        truth = FUNCTIONS[activation](x.astype(np.float64))
    found = values_of(activation, x)
    overflows = np.abs(truth) > np.finfo(np.float32).max
    assert np.array_equal(np.isinf(found), overflows)
    ulp = np.spacing(np.abs(truth[~overflows]).astype(np.float32)).astype(np.float64)
    error = np.abs(found[~overflows].astype(np.float64) - truth[~overflows]) / ulp
    worst = error.argmax()
    assert error[worst] <= 2.0, (x[~overflows][worst], error[worst])


EXACT: dict[str, Callable[[mpmath.mpf], mpmath.mpf]] = {
    "silu": lambda x: x / (1 + mpmath.exp(-x)),
    "gelu": lambda x: x * mpmath.erfc(-x / mpmath.sqrt(2)) / 2,
    "gelu_tanh": lambda x: x / (1 + mpmath.exp(-2 * mpmath.sqrt(2 / mpmath.pi) * (x + mpmath.mpf("0.044715") * x**3))),
    "selu": lambda x: mpmath.mpf("1.05070098735548049342")
    * (x if x > 0 else mpmath.mpf("1.67326324235437728482") * mpmath.expm1(x)),
    "tanh": mpmath.tanh,
    "softplus": lambda x: x if 1.3 * x > 20 else mpmath.log1p(mpmath.exp(mpmath.mpf(1.3) * x)) / mpmath.mpf(1.3),
    "elu": lambda x: x if x > 0 else mpmath.mpf(0.7) * mpmath.expm1(x),
    "sigmoid": lambda x: 1 / (1 + mpmath.exp(-x)),
}  # fmt: skip


@pytest.mark.parametrize("activation", EXACT)
def test_float64_activations_are_within_two_ulp(activation):
    x = np.concatenate([np.linspace(-37, 25, 400), np.linspace(-740, -40, 64), -np.logspace(-300, 0, 32)])
    found = values_of(activation, x)
    with mpmath.workdps(40):
        for point, value in zip(x, found, strict=True):
            truth = EXACT[activation](mpmath.mpf(float(point)))
            ulp = float(np.spacing(abs(float(truth))))
            assert abs(float(mpmath.mpf(float(value)) - truth)) <= 2 * ulp, (point, value)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", FUNCTIONS)
def test_infinite_and_nan(isa, activation, dtype):
    x = torch.tensor([[torch.inf], [-torch.inf], [torch.nan]], dtype=dtype)
    up, down, nan = (
        run(x, torch.tensor(0.0), None, *pack(single_layer(activation, 1), dtype)).flatten().tolist()
    )
    limits = {
        "tanh": (1.0, -1.0),
        "sigmoid": (1.0, 0.0),
        "selu": (np.inf, -1.7580993408473766),
        "elu": (np.inf, -0.7),
    }
    linear = activation in ("identity", "leaky_relu")
    wanted = limits.get(activation, (np.inf, -np.inf if linear else 0.0))
    np.testing.assert_allclose([up, down], wanted, rtol=1e-6)
    assert np.isnan(nan)


# ------------------------------------------------------------------------------------------- times


def of_time(features: tuple[Feature, ...]) -> Network:
    """The features themselves: dim outputs, one feature each, x multiplied by 0."""
    count = len(features)
    weight = torch.cat([torch.eye(count), torch.zeros(count, count)], dim=1).double()
    return Network((Dense(weight, None),), features, 0, count)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1.0, 1e4, 1e6, 1e9, 1e15])
def test_features_of_time(isa, dtype, scale):
    """Sine and cosine are those of float64, rounded once; small, large, and past any table of pi."""
    kinds = itertools.cycle(("sine", "cosine", "linear"))
    features = tuple(
        Feature(kind, scale * 1.07**k, 0.3 * k) for k, kind in zip(range(33), kinds, strict=False)
    )
    t = torch.cat([torch.linspace(-2, 2, 97, dtype=torch.float64), torch.tensor([0.0], dtype=torch.float64)])
    found = run(torch.zeros(98, 33, dtype=dtype), t, None, *pack(of_time(features), dtype))
    with np.errstate(all="ignore"):
        angles = np.array([[f.frequency * time + f.phase for f in features] for time in t.tolist()])
    each = [
        {"sine": np.sin, "cosine": np.cos, "linear": lambda a: a}[f.kind](angles[:, k])
        for k, f in enumerate(features)
    ]
    tolerance = 3e-16 if dtype == torch.float64 else 6e-8
    np.testing.assert_allclose(found.double().numpy(), np.stack(each, 1), rtol=2 * tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_time_or_one_for_each_sample(isa, dtype):
    net = random_network(3, (40,), features=33)
    packed, x = pack(net, dtype), normal(50, 3, dtype=dtype)
    for time_dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        t = torch.rand(50, generator=torch.Generator().manual_seed(3)).to(time_dtype)
        each = run(x, t, None, *packed)
        assert torch.equal(each, run(x, t.double(), None, *packed))
        assert torch.equal(each[7], run(x, t[7], None, *packed)[7])
        assert torch.equal(run(x, t[7].expand(50), None, *packed), run(x, t[7], None, *packed))


# ------------------------------------------------------------------------------------------- bits


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("widths", [(64, 64), (130, 17, 256), (512,)], ids=str)
def test_alone_as_in_any_batch(isa, dtype, widths):
    net = random_network(5, widths, "silu", conditions=3, features=4, residuals=True)
    packed = pack(net, dtype)
    x, t, cond = normal(500, 5, dtype=dtype), torch.rand(500), normal(500, 3, dtype=dtype)
    batch = run(x, t, cond, *packed)
    for first, last in [(0, 1), (499, 500), (6, 8), (3, 6), (10, 15), (100, 107), (40, 140), (1, 500)]:
        part = run(x[first:last], t[first:last], cond[first:last], *packed)
        assert torch.equal(part, batch[first:last]), (first, last)
    order = torch.randperm(500, generator=torch.Generator().manual_seed(1))
    assert torch.equal(run(x[order], t[order], cond[order], *packed), batch[order])


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_and_two_threads(dtype):
    net = pack(random_network(2, (128, 128), features=3), dtype)
    x, t = normal(3001, 2, dtype=dtype), torch.rand(3001)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(run(x, t, None, *net))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


def test_shapes_and_strides_of_the_arguments():
    net = random_network(6, (20,), conditions=2)
    packed = pack(net)
    x, t, cond = normal(2, 3, 8), torch.rand(8)[::2], normal(2, 4).T
    found = run(x.permute(2, 1, 0)[::2], t, cond, *packed)
    assert found.shape == (4, 3, 2)
    flat = x.permute(2, 1, 0)[::2].reshape(4, 6)
    assert torch.equal(found.reshape(4, 6), run(flat, t.contiguous(), cond.contiguous(), *packed))


def test_what_the_kernel_refuses():
    """The checks that protect memory, beneath those of pfc.ops."""
    net = random_network(3, (20, 20), conditions=2)
    params, layers, features = pack(net)
    x, t, cond = normal(4, 3), torch.rand(4), normal(4, 2)

    def changed(row: int, column: int, value: float) -> Tensor:
        table = layers.clone()
        table[row, column] = value
        return table

    cases = [
        (r"cond has 3 rows, x has 4", (x, t, cond[:3], params, layers, features)),
        (r"row 0 has inputs 6.*from 4 to 4", (x, t, None, params, layers, features)),
        (r"params has dtype Float, x has Double", (x, t, cond, params.float(), layers, features)),
        (r"t must be \[4\]", (x, t[:3], cond, params, layers, features)),
        (r"params must be flat", (x, t, cond, params[None], layers, features)),
        (r"row 2 has bias at", (x, t, cond, params[:-16], layers, features)),
        (r"row 1 has weights at 8", (x, t, cond, params, changed(1, 7, 8), features)),
        (r"row 1 has outputs 513", (x, t, cond, params, changed(1, 1, 513), features)),
        (r"row 1 has activation 11", (x, t, cond, params, changed(1, 2, 11), features)),
        (r"row 1 has activation nan", (x, t, cond, params, changed(1, 2, torch.nan), features)),
        (r"row 1 has residual 2", (x, t, cond, params, changed(1, 4, 2), features)),
        (r"row 2 adds the input of layer 1, 20 wide, to an output of 3", (x, t, cond, params, changed(2, 4, 1), features)),
        (r"row 0 has kind 3", (x, t, cond, params, layers, torch.tensor([[3.0, 1, 0]]).double())),
        (r"precision is 1; on the CPU only 0", (x, t, cond, params, layers, features, 1)),
        (r"x must be float32 or float64", (x.bfloat16(), t, cond, params, layers, features)),
    ]  # fmt: skip
    for message, arguments in cases:
        with pytest.raises(RuntimeError, match=message):
            run(*arguments)
    deep = random_network(4, (20,) * 5)
    table = deep.layer_table()
    table[3, 4], table[4, 4] = 1, 2
    with pytest.raises(
        RuntimeError, match="row 4 adds the input of layer 2 while that of layer 1 is waiting"
    ):
        run(normal(2, 4), torch.rand(2), None, deep.pack(torch.float64), table, deep.feature_table())
