"""Noise that does not come from seeds: torch's generators and tensors that the caller has, for parity with other libraries."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from .buffers import FunctionalBuffers, InPlaceBuffers

__all__ = ["GivenNoise", "Noise", "as_noise", "before_rows"]

Noise = (
    torch.Generator
    | Sequence[torch.Generator]
    | Tensor
    | Sequence[Tensor]
    | Mapping["int | str", Tensor]
    | Callable[[int], Tensor]
)


class GivenNoise:
    """One interface to all of them: ``fill(draw, out)`` writes a draw, ``start(...)`` gives the noise of the start, if it can.

    Generators draw standard normals of out's shape (of one sample each, where there is one a sample) and dtype on their own
    device, in the order of the calls.
    """

    def __init__(self, noise: Noise) -> None:
        self.generators: list[torch.Generator] = []
        self.mapping: Mapping[int | str, Tensor] | None = None
        self.function: Callable[[int], Tensor] | None = None
        if isinstance(noise, torch.Generator):
            self.generators = [noise]
        elif isinstance(noise, Tensor):
            if noise.dim() < 2:
                raise ValueError(f"noise must have shape [draws, B, ...], got {list(noise.shape)}")
            self.mapping = dict(enumerate(noise.unbind()))
        elif isinstance(noise, Mapping):
            if unknown := [
                k for k in noise if k != "start" and (isinstance(k, bool) or not isinstance(k, int))
            ]:
                raise ValueError(f"noise has the key {unknown[0]!r}, allowed are draw indices and 'start'")
            self.mapping = noise
        elif isinstance(noise, (list, tuple)):
            if noise and all(isinstance(value, torch.Generator) for value in noise):
                self.generators = list(noise)
            else:
                for i, value in enumerate(noise):
                    if not isinstance(value, Tensor):
                        raise TypeError(f"noise[{i}] must be a tensor, got {type(value).__name__} {value!r}")
                self.mapping = dict(enumerate(noise))
        elif callable(noise):
            self.function = noise
        else:
            raise TypeError(
                "noise must be a torch.Generator, one per sample, tensors (one [draws, B, ...], a sequence, or a mapping from "
                f"draw index) or a callable of the draw index, got {type(noise).__name__}"
            )

    def check(self, draws: Sequence[int], state: Tensor) -> None:
        """Refuses, before anything runs, what could not be drawn for this state."""
        if len(self.generators) not in (0, 1, state.shape[0]):
            raise ValueError(
                f"noise has {len(self.generators)} generators, the batch has {state.shape[0]} samples"
            )
        if self.mapping is None:
            return
        for draw in draws:
            if draw not in self.mapping:
                has = ", ".join(repr(key) for key in self.mapping) or "none"
                raise ValueError(f"noise: the plan's draw {draw} is missing; given are {has}")
            _check(self.mapping[draw], f"noise[{draw}]", state)

    @property
    def starts(self) -> bool:
        """Whether the start's noise is among what was given."""
        return bool(self.generators) or (self.mapping is not None and "start" in self.mapping)

    def start(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device | str | None) -> Tensor:
        """The start's noise, [B, ...]."""
        if self.generators:
            device = self.generators[0].device if device is None else device
            out = torch.empty(tuple(shape), dtype=dtype, device=device)
            self.check((), out)
            self._generate(out)
            return out
        assert self.mapping is not None
        given = self.mapping["start"]
        if not isinstance(given, Tensor):
            raise TypeError(f"noise['start'] must be a tensor, got {type(given).__name__}")
        out = given.to(dtype=dtype, device=given.device if device is None else device)
        _check(given, "noise['start']", out.new_empty(tuple(shape)))
        return out

    def fill(self, draw: int, out: Tensor) -> None:
        """Writes a draw."""
        if self.generators:
            self._generate(out)
            return
        given = self.function(draw) if self.function is not None else self.mapping[draw]  # type: ignore[index]
        if self.function is not None:
            _check(given, f"noise({draw})", out)
        out.copy_(given)

    def _generate(self, out: Tensor) -> None:
        parts = [out] if len(self.generators) == 1 else out.split(1)
        for generator, part in zip(self.generators, parts, strict=True):
            if generator.device == part.device and part.is_contiguous():
                part.normal_(generator=generator)
            else:
                part.copy_(
                    torch.randn(part.shape, generator=generator, dtype=part.dtype, device=generator.device)
                )


def _check(given: object, name: str, state: Tensor) -> None:
    if not isinstance(given, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(given).__name__}")
    if not given.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {given.dtype}")
    if given.shape != state.shape:
        raise ValueError(f"{name} has shape {list(given.shape)}, the state has {list(state.shape)}")


def as_noise(noise: Noise | GivenNoise | None) -> GivenNoise | None:
    """noise= as what the run asks."""
    return noise if noise is None or isinstance(noise, GivenNoise) else GivenNoise(noise)


def before_rows(
    buffers: InPlaceBuffers | FunctionalBuffers, fills: Sequence[Sequence[tuple[int, int]]], noise: GivenNoise
) -> Callable[[int], None]:
    """What a run calls before each row: the draws that the row names first, into their slots."""

    recorded = isinstance(buffers, FunctionalBuffers)

    def fill(row: int) -> None:
        # The memory of an in-place trajectory must not join the graph of a caller's loop.
        with torch.set_grad_enabled(recorded and torch.is_grad_enabled()):
            for slot, draw in fills[row]:
                noise.fill(draw, buffers.slot_to_fill(slot))

    return fill
