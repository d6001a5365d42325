"""Checkpoints: one safetensors file with the parameters, their average, the optimiser and a JSON description.

Tensors are named ``model.*``, ``ema.*`` and ``optimizer.<index>.<key>``; the metadata entry "pyflowcore" is a JSON
object with the keys of ``Checkpoint``. Nothing is pickled, so reading a file runs no code of its author's.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

import pyflowcore as pfc

from .. import models
from . import atomic
from .ema import EMA
from .objectives import Objective
from .optional import require

VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds: the model's name and config, the objective, the steps done, the training's settings, tensors.

    ``data`` is a digest of the training data. Tensors lie on the CPU.
    """

    name: str
    config: dict[str, Any]
    objective: Objective
    step: int
    training: dict[str, Any]
    data: str
    tensors: dict[str, Tensor]

    def group(self, prefix: str) -> dict[str, Tensor]:
        """The tensors named ``prefix.*``, without the prefix. ValueError if there are none."""
        head = prefix + "."
        found = {name[len(head) :]: tensor for name, tensor in self.tensors.items() if name.startswith(head)}
        if not found:
            raise ValueError(f"the checkpoint holds no tensors {head}*")
        return found

    def model(self, *, ema: bool = True) -> models.Model:
        """The network in evaluation mode, with the averaged parameters, or with the trained ones (``ema=False``)."""
        model = models.build(self.name, self.config)
        state = self.group("model")
        if ema:
            state.update(self.group("ema"))
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(f"the checkpoint's tensors do not fit its model: {error}") from None
        return model.eval()

    def field(self, *, ema: bool = True) -> pfc.Field:
        """The network as a field of the path and prediction that it was trained for."""
        return pfc.Field(self.model(ema=ema), prediction=self.objective.prediction, path=self.objective.path)

    def restore_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Give an optimiser over the same parameters the saved state. ValueError if there is none, or no fit."""
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in self.group("optimizer").items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = tensor
        groups = optimizer.state_dict()["param_groups"]
        expected = {index for group in groups for index in group["params"]}
        if set(state) != expected:
            raise ValueError(
                f"the checkpoint's optimiser has {len(state)} parameters; this one {len(expected)}"
            )
        optimizer.load_state_dict({"state": state, "param_groups": groups})


def save(
    path: str | os.PathLike[str],
    *,
    model: models.Model,
    ema: EMA,
    objective: Objective,
    optimizer: torch.optim.Optimizer | None,
    step: int,
    training: dict[str, Any],
    data: str,
) -> None:
    """Write a checkpoint atomically. Without ``optimizer`` it can be sampled from, and not resumed.

    Raises:
        ValueError: if the file cannot be put there.
        ImportError: without safetensors.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"ema.{name}": tensor for name, tensor in ema.state_dict().items()}
    if optimizer is not None:
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": tensor for key, tensor in state.items()}
    description = {
        "version": VERSION,
        "name": type(model).__name__,
        "config": model.config,
        "objective": {
            "path": objective.path if isinstance(objective.path, str) else objective.path.to_dict(),
            "prediction": objective.prediction,
            "times": objective.times,
        },
        "step": step,
        "training": training,
        "data": data,
    }
    serialise = require("safetensors.torch").save
    cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    atomic.write_bytes(path, serialise(cpu, metadata={"pyflowcore": json.dumps(description)}))


def load(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        FileNotFoundError: if there is no file.
        ValueError: if it is no safetensors file, or was not written by ``save``.
        ImportError: without safetensors.
    """
    safetensors = require("safetensors")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no checkpoint {os.fspath(path)}")
    try:
        with safetensors.safe_open(os.fspath(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
    except safetensors.SafetensorError as error:
        raise ValueError(f"{os.fspath(path)} is no safetensors file: {error}") from None
    if "pyflowcore" not in metadata:
        raise ValueError(f"{os.fspath(path)} is a safetensors file, but no pyflowcore checkpoint")
    description = json.loads(metadata["pyflowcore"])
    if description.pop("version") != VERSION:
        raise ValueError(f"{os.fspath(path)} was written by another version of pyflowcore")
    if missing := sorted({f.name for f in fields(Checkpoint)} - {"tensors"} - description.keys()):
        raise ValueError(f"{os.fspath(path)} misses {missing} in its description")
    objective = description["objective"]
    if isinstance(objective.get("path"), dict):
        objective["path"] = pfc.paths.get(objective["path"])
    description["objective"] = Objective(**objective)
    return Checkpoint(**description, tensors=tensors)
