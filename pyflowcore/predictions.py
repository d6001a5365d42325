"""What networks predict beyond the five names: EDM's preconditioned network, and a prediction whose input is scaled."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import _core, paths

__all__ = ["EDM", "PREDICTIONS", "AnyPrediction", "Prediction", "SavedScaling", "Scaled", "get"]

PREDICTIONS = tuple(_core.Prediction.__members__)

# Where two scalings of one name are compared.
_PROBES = tuple((i + 0.5) / 16 for i in range(16))


class Prediction(ABC):
    """A prediction that is not one of the five names. Use a subclass."""

    name: str

    @abstractmethod
    def _answer(
        self, t: float, alpha: float, sigma: float, dalpha: float, dsigma: float
    ) -> tuple[float, float, float]:
        """(data, noise, in_scale): the network, shown in_scale * x, says data * x1 + noise * x0."""

    def network_times(self, path: paths.Path, t: Tensor) -> Tensor | None:
        """The times that the network is trained with, where they are not the path's."""
        return None

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """A JSON-able description."""


AnyPrediction = str | Prediction


@dataclass(frozen=True)
class EDM(Prediction):
    """The raw network F of a preconditioned denoiser (Karras et al. 2022, equation 7 and table 1):
    D(x; sigma) = c_skip x + c_out F(c_in x; c_noise), with c_skip = sd^2 / (sigma^2 + sd^2),
    c_out = sigma sd / sqrt(sigma^2 + sd^2), c_in = 1 / sqrt(sigma^2 + sd^2), c_noise = log(sigma) / 4 and sd = sigma_data.

    On its path ("ve") F is (sigma x1 - sd^2 x0) / (sd sqrt(sigma^2 + sd^2)), finite at every sigma. On another path sigma is
    sigma / alpha and x is x / alpha. The network's time is c_noise unless ``Field(time=...)`` says otherwise. A callable that
    is the denoiser D itself predicts "data".
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        if isinstance(self.sigma_data, bool) or not isinstance(self.sigma_data, (int, float)):
            raise TypeError(f"sigma_data must be a number, got {type(self.sigma_data).__name__}")
        if not 1e-30 <= self.sigma_data <= 1e30:  # beyond, squares and their inverses leave float64
            raise ValueError(f"sigma_data must be positive, from 1e-30 to 1e30, got {self.sigma_data}")

    @property
    def name(self) -> str:  # type: ignore[override]
        return "edm"

    def _answer(
        self, t: float, alpha: float, sigma: float, dalpha: float, dsigma: float
    ) -> tuple[float, float, float]:
        # With x of the path, whose alpha is 1 on EDM's own.
        total = math.hypot(sigma, alpha * self.sigma_data)
        return sigma / (self.sigma_data * total), -alpha * self.sigma_data / total, 1.0 / total

    def network_times(self, path: paths.Path, t: Tensor) -> Tensor:
        """c_noise = log(sigma / alpha) / 4."""
        alpha, sigma, _, _ = path.coefficients(t.detach().cpu().numpy())
        ratio = torch.from_numpy(sigma).log() - torch.from_numpy(alpha).log()
        return (0.25 * ratio).to(t.device)

    def to_dict(self) -> dict[str, Any]:
        return {"name": "edm", "sigma_data": self.sigma_data}


class _ByName(Prediction):
    """Scalings that compare by what they scale, their name and their values at probes."""

    def __init__(self, of: str, label: str, probed: list[float]) -> None:
        self.of, self.label, self._probed = of, label, probed
        self.name = f"{of}, input scaled by {label!r}"

    def to_dict(self) -> dict[str, Any]:
        return {"name": "scaled", "of": self.of, "label": self.label, "in_scale": self._probed}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _ByName) or (self.of, self.label) != (other.of, other.label):
            return False
        return all(abs(x - y) <= 1e-12 * abs(y) for x, y in zip(self._probed, other._probed, strict=True))

    def __hash__(self) -> int:
        return hash((self.of, self.label))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.of!r}, name={self.label!r})"


class Scaled(_ByName):
    """One of the five predictions by a network whose input is in_scale(t) * x.

    Args:
        of: "velocity", "data", "noise", "score" or "v".
        in_scale: a function of t, a float in [0, 1], that returns a positive number; taken at the times of the evaluations.
        name: what plans call it. A plan's JSON holds the name and 16 values in place of the function; its rows hold every
            factor, so a loaded plan runs on fields whose scaling agrees.
    """

    def __init__(self, of: str, in_scale: Callable[[float], float], name: str = "in_scale") -> None:
        if of not in PREDICTIONS:
            raise ValueError(f"of: unknown name {of!r}, allowed are {', '.join(PREDICTIONS)}")
        if not callable(in_scale):
            raise TypeError(f"in_scale must be a function of t, got {type(in_scale).__name__}")
        if not isinstance(name, str):
            raise TypeError(f"name must be a string, got {type(name).__name__}")
        self._in_scale = in_scale
        super().__init__(of, name, [self._at(t) for t in _PROBES])

    def _at(self, t: float) -> float:
        value = float(self._in_scale(t))
        if not (math.isfinite(value) and value > 0.0):
            raise ValueError(f"in_scale({t}) is {value}, it must be a positive finite number")
        return value

    def _answer(
        self, t: float, alpha: float, sigma: float, dalpha: float, dsigma: float
    ) -> tuple[float, float, float]:
        return *_core.mixture(_core.Prediction.__members__[self.of], alpha, sigma, dalpha, dsigma), self._at(
            t
        )


class SavedScaling(_ByName):
    """A scaling as a plan's JSON knows it: its plan runs; nothing else can be made of it."""

    def __init__(self, of: str, label: str, in_scale: Any) -> None:
        if of not in PREDICTIONS:
            raise ValueError(f"prediction 'scaled': of is {of!r}, allowed are {', '.join(PREDICTIONS)}")
        probed = [float(value) for value in in_scale]
        if len(probed) != len(_PROBES):
            raise ValueError(
                f"prediction 'scaled': in_scale must have {len(_PROBES)} values, got {len(probed)}"
            )
        super().__init__(of, str(label), probed)

    def _answer(
        self, t: float, alpha: float, sigma: float, dalpha: float, dsigma: float
    ) -> tuple[float, float, float]:
        raise ValueError(
            f"the scaling {self.label!r} came from a plan's JSON, which cannot hold its function: make it again with "
            "pfc.Scaled(...)"
        )


def get(prediction: AnyPrediction | dict[str, Any], name: str = "prediction") -> AnyPrediction:
    """A prediction from its name, its description, or itself; refuses unknown ones."""
    if isinstance(prediction, Prediction):
        return prediction
    if isinstance(prediction, dict):
        options = dict(prediction)
        kind = {"edm": EDM, "scaled": SavedScaling}.get(options.pop("name", None))
        if kind is None:
            raise ValueError(f"{name}: unknown description {prediction!r}, allowed are 'edm' and 'scaled'")
        try:
            return kind(**options)
        except TypeError as error:
            raise ValueError(f"{name} {prediction['name']!r}: {error}") from None
    if not isinstance(prediction, str) or prediction not in PREDICTIONS:
        raise ValueError(
            f"{name}: unknown name {prediction!r}, allowed are {', '.join(PREDICTIONS)}, pfc.EDM(...) and pfc.Scaled(...)"
        )
    return prediction


def to_core(prediction: AnyPrediction) -> Any:
    """What the compiled core takes for it: its own kind, or the object."""
    return _core.Prediction.__members__[prediction] if isinstance(prediction, str) else prediction


def from_core(prediction: Any) -> AnyPrediction:
    """The Python face of a prediction that a plan of the compiled core holds."""
    return prediction if isinstance(prediction, Prediction) else str(prediction.name)
