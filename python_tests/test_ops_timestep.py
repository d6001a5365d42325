"""timestep_features against sines of whole accuracy, and against the embedding that the models compute."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pyflowcore import _library, ops
from pyflowcore.models import dit
from pyflowcore.ops import _plain_tokens


def wanted(t, width, scale=1000.0, period=10000.0, last=0.0, sine_first=False):
    """In long double, from t on."""
    half = width // 2
    frequencies = np.longdouble(period) ** (
        -np.arange(half, dtype=np.longdouble) / np.longdouble(half - last)
    )
    phase = np.longdouble(scale) * t.double().numpy().astype(np.longdouble)[:, None] * frequencies
    parts = (np.sin(phase), np.cos(phase)) if sine_first else (np.cos(phase), np.sin(phase))
    return np.concatenate(parts, axis=1)


@pytest.mark.parametrize("t_dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [2, 6, 64, 254, 1152])
@pytest.mark.usefixtures("poison")
def test_every_element_is_rounded_once(t_dtype, width):
    t = torch.linspace(-0.3, 1.0, 23, dtype=torch.float64).to(t_dtype)
    for scale, last, sine_first in ((1000.0, 0.0, False), (1.0, 0.5, True), (999.5, -1.0, False)):
        found = ops.timestep_features(t, width, scale, last=last, sine_first=sine_first)
        exact = wanted(t, width, scale, last=last, sine_first=sine_first).astype(np.float64)
        assert found.dtype == torch.float32
        assert found.shape == (23, width)
        np.testing.assert_allclose(found.numpy(), exact, rtol=6.1e-8, atol=1e-9)
        wide = ops.timestep_features(t, width, scale, last=last, sine_first=sine_first, dtype=torch.float64)
        # A phase of a thousand keeps 13 digits behind the point.
        np.testing.assert_allclose(wide.numpy(), exact, rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_the_models_embedding_to_its_own_rounding(scale):
    """Theirs is float32: half an ulp of scale t, one and a half of the frequency (its exponent's rounding, at most 9.3, counts
    that many times) and one of their product are in the phase, and what is left is the sine's own."""
    t = torch.linspace(0, 1, 101)
    theirs = dit.timestep_embedding(t, 256, scale=scale)
    mine = ops.timestep_features(t, 256, scale)
    half = 128
    phase = (scale * t.double())[:, None] * 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    bound = torch.cat([phase, phase], 1) * (9.3 + 3) * 2.0**-24 + 2.0**-22
    assert ((mine.double() - theirs.double()).abs() <= bound).all()


def test_the_models_embedding_is_the_less_accurate_one():
    t = torch.rand(200, generator=torch.Generator().manual_seed(0))
    exact = wanted(t, 256).astype(np.float64)
    mine = np.abs(ops.timestep_features(t, 256).numpy() - exact).max()
    theirs = np.abs(dit.timestep_embedding(t, 256).numpy() - exact).max()
    assert 100 * mine < theirs


@pytest.mark.parametrize("value", [1e3, 1.1e3, 1e6, 1e9])
def test_large_phases(value):
    t = torch.tensor([value, -value], dtype=torch.float64)
    found = ops.timestep_features(t, 64, 1000.0, dtype=torch.float64).numpy()
    # What float64 leaves of the phase, whose own rounding counts.
    np.testing.assert_allclose(
        found, wanted(t, 64).astype(np.float64), rtol=0, atol=1000 * value * 4e-16 + 1e-15
    )


def test_what_is_not_finite_and_what_is_empty():
    found = ops.timestep_features(torch.tensor([math.nan, math.inf, 0.0]), 4)
    assert found[:2].isnan().all()
    assert found[2].tolist() == [1.0, 1.0, 0.0, 0.0]
    assert ops.timestep_features(torch.zeros(0), 8).shape == (0, 8)


def test_layouts_batches_and_instruction_sets_give_the_same_bits():
    t = torch.linspace(0, 1, 700)
    whole = ops.timestep_features(t, 320)
    assert torch.equal(ops.timestep_features(t.repeat_interleave(2)[::2], 320), whole)
    assert torch.equal(ops.timestep_features(t[13:14].expand(5), 320)[3], whole[13])
    before = _library.cpu_isa()
    assert before is not None
    try:
        for name in _library.cpu_isas():
            _library.select_cpu_isa(name)
            assert torch.equal(ops.timestep_features(t, 320), whole)
    finally:
        _library.select_cpu_isa(before)


def test_gradient_opcheck_and_compile():
    t = torch.rand(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: ops.timestep_features(t, 8, 7.0, dtype=torch.float64), [t])
    plain = t.detach()
    torch.library.opcheck(
        torch.ops.pyflowcore.timestep_features.default, (plain, 8, 1000.0, 10000.0, 0.0, False, torch.float32)
    )
    compiled = torch.compile(lambda t: ops.timestep_features(t, 8), backend="eager", fullgraph=True)
    assert torch.equal(compiled(plain), ops.timestep_features(plain, 8))


@pytest.mark.filterwarnings("ignore:pyflowcore. .* runs in plain PyTorch")
def test_the_plain_version_agrees():
    t = torch.linspace(0, 1, 30)
    for last, sine_first in ((0.0, False), (1.0, True)):
        made = _plain_tokens.timestep_features(t, 64, 1000.0, 10000.0, last, sine_first, torch.float32)
        found = ops.timestep_features(t, 64, last=last, sine_first=sine_first)
        torch.testing.assert_close(made, found, rtol=1.2e-7, atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((torch.tensor([1]), 4), {}, TypeError, "t must be floating point, got torch.int64"),
        ((torch.zeros(2, 1), 4), {}, ValueError, r"t must be \[B\], got \[2, 1\]"),
        ((torch.zeros(2), 5), {}, ValueError, "width must be even and at least 2, got 5"),
        ((torch.zeros(2), 4), {"period": 0.5}, ValueError, "period must be from 1 to"),
        ((torch.zeros(2), 4), {"last": 2.0}, ValueError, "last must be below width / 2 = 2, got 2.0"),
        ((torch.zeros(2), 4), {"dtype": torch.float16}, TypeError, "dtype must be float32 or float64"),
    ],
)
def test_refusals(arguments, options, error, message):
    with pytest.raises(error, match=message):
        ops.timestep_features(*arguments, **options)
