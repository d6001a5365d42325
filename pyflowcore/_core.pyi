"""Types of the compiled module; csrc/python/module.cpp is its source."""

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]

record: dict[str, int]
build: dict[str, Any]

class PathKind:
    linear: ClassVar[PathKind]
    trigonometric: ClassVar[PathKind]
    vp: ClassVar[PathKind]
    polynomial: ClassVar[PathKind]
    linear_vp: ClassVar[PathKind]
    ve: ClassVar[PathKind]
    __members__: ClassVar[dict[str, PathKind]]
    name: str
    def __init__(self, value: int) -> None: ...
    def __int__(self) -> int: ...

class Prediction:
    velocity: ClassVar[Prediction]
    data: ClassVar[Prediction]
    noise: ClassVar[Prediction]
    score: ClassVar[Prediction]
    v: ClassVar[Prediction]
    __members__: ClassVar[dict[str, Prediction]]
    name: str
    def __init__(self, value: int) -> None: ...
    def __int__(self) -> int: ...

class Path:
    kind: PathKind
    a: float
    b: float
    def __init__(self, kind: PathKind, a: float = ..., b: float = ...) -> None: ...

class Term:
    slot: int
    coefficient: float
    def __init__(self, slot: int, coefficient: float) -> None: ...

class Draw:
    index: int
    coefficient: float
    def __init__(self, index: int, coefficient: float) -> None: ...

class Row:
    evaluates: bool
    t: float
    field_t: float | None
    step: int
    completes_step: bool
    in_scale: float
    p: float
    q: float
    a: float
    a_minus_1: float
    c: float
    c_minus_1: float
    b_new: float
    e_new: float
    store: int
    b: list[Term]
    e: list[Term]
    s: list[Draw]
    r: list[Draw]
    @property
    def point_is_state(self) -> bool: ...

class Plan:
    solver: str
    path: Any
    along: Any
    prediction: Any
    working: Prediction
    times: list[float]
    rows: list[Row]
    slots: int
    steps: int
    nfe: int
    draws: int
    def __init__(
        self,
        solver: str,
        path: Any,
        prediction: Any,
        working: Prediction,
        times: list[float],
        rows: list[Row],
        slots: int,
        along: Any = ...,
    ) -> None: ...
    def table(self) -> Float: ...

def path_coefficients(path: Path, t: Float) -> tuple[Float, Float, Float, Float]: ...
def target_coefficients(
    path: Path, prediction: Prediction, t: Float
) -> tuple[Float, Float, Float, Float]: ...
def mixture(
    prediction: Prediction, alpha: float, sigma: float, dalpha: float, dsigma: float
) -> tuple[float, float]: ...
def mixtures(
    prediction: Prediction, alpha: Float, sigma: Float, dalpha: Float, dsigma: Float
) -> tuple[Float, Float]: ...

# Where a path or a prediction is Any, it may be the core's own or an object of pyflowcore.paths or pyflowcore.predictions.
def convert(path: Any, source: Any, target: Prediction, t: float) -> tuple[float, float]: ...
def ask(path: Any, prediction: Any, along: Any, t: float) -> tuple[float, float]: ...
def uniform_grid(steps: int) -> list[float]: ...
def shift_grid(times: list[float], shift: float) -> list[float]: ...
def terminal_grid(times: list[float], level: float) -> list[float]: ...
def karras_grid(steps: int, rho: float, least: float, most: float) -> list[float]: ...
def karras_rho_grid(path: Any, steps: int, rho: float, least: float, most: float) -> list[float]: ...
def exponential_grid(steps: int, least: float, most: float) -> list[float]: ...
def beta_grid(steps: int, a: float, b: float) -> list[float]: ...
def logit_normal_grid(steps: int, mean: float, scale: float) -> list[float]: ...
def linear_quadratic_grid(steps: int, threshold: float, linear_steps: int) -> list[float]: ...
def cosine_grid(steps: int) -> list[float]: ...
def lambda_grid(path: Any, steps: int, lo: float, hi: float, whole: bool) -> list[float]: ...
def check_times(times: list[float]) -> None: ...
def build_plan(
    solver: str,
    path: Any,
    prediction: Any,
    times: list[float],
    full_last_step: bool = ...,
    options: dict[str, Any] = ...,
    along: Any = ...,
) -> Plan: ...
def solvers() -> list[dict[str, Any]]: ...
def tableaus() -> list[dict[str, Any]]: ...
def adaptive_tables() -> dict[str, Float]: ...
