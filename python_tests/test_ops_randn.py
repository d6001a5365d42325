"""The counter-based normals: known answers of Random123, NumPy to the bit, seeds, streams, draws, statistics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import pyflowcore as pfc
from reference.noise import normals, philox

FIXED = settings(derandomize=True, max_examples=60, deadline=None)


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_known_answers(counter, key, answer):
    """The vectors that Random123 (Salmon et al. 2011) publishes for philox4x32 with ten rounds."""

    def words(text):
        return np.array([int(word, 16) for word in text.split()], dtype=np.uint32)

    assert philox(words(counter)[None], words(key)[None])[0].tolist() == words(answer).tolist()


def box_muller(words):
    """Four normals from four words, in double precision and from the definition."""
    found = []
    for radius, angle in (words[:2], words[2:]):
        r = math.sqrt(-2 * math.log(((radius >> 8) + 0.5) / 2**24))
        # 27 bits of the angle are used, and half a unit is added.
        theta = 2 * math.pi * ((angle >> 5) + 0.5) / 2**27
        found += [r * math.cos(theta), r * math.sin(theta)]
    return found


def test_the_compiled_normals_of_the_known_answers():
    zero = box_muller([0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8])
    assert pfc.randn([0], (4,))[0].tolist() == pytest.approx(zero, abs=2e-6)


@given(
    seed=st.integers(-(2**63), 2**64 - 1), size=st.integers(0, 70), stream=st.sampled_from([0, 1, 5, 2**32 - 1]),
    draw=st.sampled_from([0, 1, 77, 2**31, 2**32 - 1]),
)  # fmt: skip
@FIXED
def test_equals_numpy_to_the_bit(seed, size, stream, draw):
    found = pfc.randn([seed, 5], (size,), stream=stream, draw=draw).numpy()
    np.testing.assert_array_equal(found.view(np.int32), normals([seed, 5], size, stream, draw).view(np.int32))


@pytest.mark.parametrize("shape", [(), (1,), (3,), (7,), (1025,), (0,), (3, 5, 7), (70_001,)], ids=str)
@pytest.mark.parametrize("batch", [0, 1, 3, 130])
def test_shapes(shape, batch):
    if batch == 130 and shape == (70_001,):
        batch = 2
    seeds = list(range(100, 100 + batch))
    found = pfc.randn(seeds, shape)
    assert found.shape == (batch, *shape)
    assert found.is_contiguous()
    size = int(np.prod(shape, dtype=np.int64))
    np.testing.assert_array_equal(found.numpy().reshape(batch, size), normals(seeds, size))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_are_the_float32_normals_cast(dtype):
    assert torch.equal(pfc.randn(range(3), (1025,), dtype=dtype), pfc.randn(range(3), (1025,)).to(dtype))


def test_a_seed_is_its_64_bits():
    top = pfc.randn([2**64 - 1, 2**63], (9,))
    assert torch.equal(top, pfc.randn([-1, -(2**63)], (9,)))
    assert torch.equal(top, pfc.randn(torch.tensor([-1, -(2**63)]), (9,)))
    low, high = pfc.randn([7], (9,)), pfc.randn([7 + 2**32], (9,))
    assert not torch.equal(low, high)


@pytest.mark.parametrize(
    "seeds",
    [range(4), [0, 1, 2, 3], (0, 1, 2, 3), np.arange(4), torch.arange(4), torch.arange(8)[::2] // 2, iter(range(4))],
    ids=["range", "list", "tuple", "numpy", "tensor", "strided", "iterator"],
)  # fmt: skip
def test_seeds_of_any_kind(seeds):
    assert torch.equal(pfc.randn(seeds, (5,)), pfc.randn([0, 1, 2, 3], (5,)))


def test_a_sample_does_not_know_its_batch():
    batch = pfc.randn(range(64), (3, 37))
    for i in (0, 1, 31, 63):
        assert torch.equal(batch[i], pfc.randn([i], (3, 37))[0])
    # Elements are counted inside a sample: a longer sample begins alike.
    assert torch.equal(pfc.randn([5], (1000,))[0, :333], pfc.randn([5], (333,))[0])
    assert torch.equal(pfc.randn([5], (3, 37)).flatten(), pfc.randn([5], (111,)).flatten())


def test_moments_and_distribution():
    x = pfc.randn(range(400), (5000,)).double().numpy().ravel()
    n = len(x)
    assert abs(x.mean()) < 4 / math.sqrt(n)
    assert abs(x.var() - 1) < 4 * math.sqrt(2 / n)
    assert abs(stats.skew(x)) < 4 * math.sqrt(6 / n)
    assert abs(stats.kurtosis(x)) < 4 * math.sqrt(24 / n)
    assert stats.kstest(x, "norm").pvalue > 1e-3
    assert np.abs(x).max() < 5.89
    # The first elements of samples whose seeds are neighbours are as good as the elements of a sample.
    first = pfc.randn(range(200_000), (1,)).numpy().ravel()
    assert stats.kstest(first, "norm").pvalue > 1e-3


def test_independence():
    """Correlations between elements, seeds, draws and streams vanish within 4.5 standard errors."""
    n = 200_000
    base = pfc.randn([1], (n,))[0].double()
    others = {
        "next element": base.roll(1),
        "next block": base.roll(4),
        "next seed": pfc.randn([2], (n,))[0].double(),
        "high seed": pfc.randn([1 + 2**32], (n,))[0].double(),
        "next draw": pfc.randn([1], (n,), draw=1)[0].double(),
        "next stream": pfc.randn([1], (n,), stream=1)[0].double(),
    }
    for name, other in others.items():
        for f, g in ((base, other), (base**2 - 1, (other**2 - 1) / 2)):
            assert abs(float((f * g).mean())) < 4.5 / math.sqrt(n), name
