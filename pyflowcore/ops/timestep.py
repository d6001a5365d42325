"""timestep_features: the sinusoids of a whole grid of times at once, phases in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _library
from . import _plain_tokens

_library.define(
    "timestep_features(Tensor t, int width, float scale, float period, float last, bool sine_first, ScalarType dtype) -> Tensor"
)

_DTYPES = (torch.float32, torch.float64)


def timestep_features(
    t: Tensor,
    width: int,
    scale: float = 1000.0,
    period: float = 10000.0,
    *,
    last: float = 0.0,
    sine_first: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """cos and sin of scale t period^(-k / (h - last)), k = 0 .. h - 1, h = width / 2 (Vaswani et al. 2017, section 3.5).

    Frequencies and phases are float64 and reduced exactly, so that an element is the true one, rounded once. A module that
    makes them in float32 (``models.embeddings.timestep_embedding``) rounds the frequency and scale t times it, and is off by
    up to the phase times some 1e-6: 1e-3 at scale 1000. The two agree to that, and no closer.

    Args:
        t: [B], any float dtype; a bfloat16 time has the three digits it has.
        width: of a row, even; cosines are its first half.
        scale: what t is multiplied by.
        period: over 2π nearly the slowest one's length, in scale t.
        last: 0 ends one step short of 1 / period, 1 at it (``downscale_freq_shift`` elsewhere).
        sine_first: sines are the first half.
        dtype: of the answer, float32 or float64.

    Returns:
        [B, width]. Differentiable in t (then in plain PyTorch). A time that is not finite gives nan.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is allowed.
    """
    if not t.is_floating_point():
        raise TypeError(f"t must be floating point, got {t.dtype}")
    if t.dim() != 1:
        raise ValueError(f"t must be [B], got {list(t.shape)}")
    if width < 2 or width % 2:
        raise ValueError(f"width must be even and at least 2, got {width}")
    if not 1.0 <= period <= 1e300:
        raise ValueError(f"period must be from 1 to 1e300, got {period}")
    if not last < width // 2:
        raise ValueError(f"last must be below width / 2 = {width // 2}, got {last}")
    if dtype not in _DTYPES:
        raise TypeError(f"dtype must be float32 or float64, got {dtype}")
    if t.requires_grad and torch.is_grad_enabled():
        return _plain_tokens.sinusoids(t, width, scale, period, last, sine_first, dtype)
    return torch.ops.pyflowcore.timestep_features(t, width, scale, period, last, sine_first, dtype)


@torch.library.register_fake("pyflowcore::timestep_features", lib=_library.definitions)
def _fake(
    t: Tensor, width: int, scale: float, period: float, last: float, sine_first: bool, dtype: torch.dtype
) -> Tensor:
    return torch.empty((t.shape[0], width), dtype=dtype, device=t.device)
