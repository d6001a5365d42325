"""interpolate against NumPy float64: paths, predictions, dtypes, sizes, layouts, ends."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pyflowcore as pfc
from reference import paths as reference
from reference.fields import PREDICTIONS
from reference.noise import normals
from reference.tables import float64

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SHAPES = [(0,), (1,), (7,), (0, 3), (3, 0), (3, 1), (3, 7), (2, 1025), (2, 3, 5, 7)]


def wanted(data, x0, t, path, prediction):
    """(x_t, target) in float64."""
    x1, x0, t = float64(data), float64(x0), float64(t)
    alpha, sigma, dalpha, dsigma = (
        c.reshape((-1,) + (1,) * (x1.ndim - 1)) for c in reference.coefficients(path, t)
    )
    target = {
        "velocity": lambda: dalpha * x1 + dsigma * x0,
        "data": lambda: x1,
        "noise": lambda: x0,
        "score": lambda: -x0 / sigma,
        "v": lambda: alpha * x0 - sigma * x1,
    }[prediction]()
    return alpha * x1 + sigma * x0, target


def inputs(shape, dtype):
    make = torch.Generator().manual_seed(3)
    data, x0 = (torch.randn(*shape, generator=make, dtype=torch.float64).to(dtype) for _ in range(2))
    return data, x0, torch.rand(shape[0], generator=make, dtype=torch.float64) * 0.9 + 0.05


@pytest.mark.parametrize("path", reference.NAMES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_path_and_prediction(path, prediction, dtype):
    data, x0, t = inputs((5, 3, 11), dtype)
    found = pfc.interpolate(data, t, x0=x0, path=path, prediction=prediction)
    for mine, exact in zip(found, wanted(data, x0, t, path, prediction), strict=True):
        assert mine.dtype == dtype
        eps = torch.finfo(dtype).eps
        scale = np.abs(exact).max() + 1
        np.testing.assert_allclose(float64(mine), exact, rtol=2 * eps, atol=4 * eps * scale)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_shapes_and_seeds(shape, dtype):
    data, _, t = inputs(shape, dtype)
    seeds = list(range(-2, shape[0] - 2))
    found = pfc.interpolate(data, t, seeds=seeds, path="vp", draw=5)
    size = int(np.prod(shape[1:], dtype=np.int64))
    noise = torch.from_numpy(normals(seeds, size, stream=3, draw=5)).reshape(shape)
    for mine, exact in zip(found, wanted(data, noise, t, "vp", "velocity"), strict=True):
        assert mine.shape == data.shape
        eps = torch.finfo(dtype).eps
        # The velocity of the VP path is up to about 10 times its arguments.
        np.testing.assert_allclose(float64(mine), exact, rtol=2 * eps, atol=80 * min(eps, 1e-3))


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_seeds_are_randn(dtype):
    data, _, t = inputs((4, 77), dtype)
    x0 = pfc.randn([9, 8, 7, 6], (77,), stream=3, draw=2, dtype=dtype)
    by_seed = pfc.interpolate(data, t, seeds=[9, 8, 7, 6], draw=2, prediction="v", path="trigonometric")
    by_noise = pfc.interpolate(data, t, x0=x0, prediction="v", path="trigonometric")
    assert torch.equal(by_seed.x_t, by_noise.x_t)
    assert torch.equal(by_seed.target, by_noise.target)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("path", reference.NAMES)
def test_half_precision_is_at_most_twice_as_wrong_as_torch(path, dtype):
    data, x0, t = inputs((8, 2048), dtype)
    alpha, sigma, dalpha, dsigma = (
        torch.from_numpy(c).to(dtype)[:, None] for c in reference.coefficients(path, t.numpy())
    )
    plain = alpha * data + sigma * x0, dalpha * data + dsigma * x0
    found = pfc.interpolate(data, t, x0=x0, path=path)
    for mine, theirs, exact in zip(found, plain, wanted(data, x0, t, path, "velocity"), strict=True):
        assert np.abs(float64(mine) - exact).max() <= 2 * np.abs(float64(theirs) - exact).max()


def test_layouts_do_not_matter():
    data, x0, t = inputs((4, 3, 6, 5), torch.float32)
    plain = pfc.interpolate(data, t, x0=x0)
    last = torch.channels_last
    for a, b in (
        (data.contiguous(memory_format=last), x0.contiguous(memory_format=last)),
        (data.transpose(2, 3).contiguous().transpose(2, 3), x0),
        (torch.cat([data.new_zeros(1), data.flatten()])[1:].view(data.shape), x0),
    ):
        found = pfc.interpolate(a, t, x0=b)
        assert torch.equal(found.x_t, plain.x_t)
        assert torch.equal(found.target, plain.target)
    assert torch.equal(
        pfc.interpolate(data[:1].expand(4, -1, -1, -1), t[:1].expand(4), x0=x0[:1].expand(4, -1, -1, -1)).x_t[3],
        plain.x_t[0],
    )  # fmt: skip


@pytest.mark.parametrize("path", ["linear", "trigonometric"])
def test_ends_are_the_noise_and_the_data(path):
    data, x0, _ = inputs((2, 9), torch.float32)
    found = pfc.interpolate(data, torch.tensor([0.0, 1.0]), x0=x0, path=path)
    assert torch.equal(found.x_t, torch.stack([x0[0], data[1]]))


def test_times_outside_are_not_a_number():
    data = torch.ones(4, 3)
    found = pfc.interpolate(data, torch.tensor([-0.01, 1.01, float("nan"), 0.5]), x0=data)
    assert found.x_t.isnan().any(1).tolist() == [True, True, True, False]
    assert found.target.isnan().any(1).tolist() == [True, True, True, False]


def test_targets_that_do_not_exist_are_not_finite():
    data, one = torch.ones(1, 3), torch.ones(1)
    assert pfc.interpolate(data, one, x0=data, prediction="score").target.isneginf().all()
    assert pfc.interpolate(data, one, x0=data, path="vp").target.isneginf().all()


def test_time_is_used_in_float64():
    """A float64 time keeps its digits although the data is float32."""
    data, t = torch.zeros(1, 1), torch.tensor([1 - 2.0**-40], dtype=torch.float64)
    assert pfc.interpolate(data, t, x0=torch.ones(1, 1)).x_t.item() == 2.0**-40
