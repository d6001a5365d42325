"""What is measured about a sampler of digits, beside the same sampler in plain PyTorch and beside real digits."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

import pyflowcore as pfc

from ..training import Checkpoint
from . import metrics, plain
from .classifier import Classifier
from .digits import CLASSES, Digits
from .report import Reference, Row


@dataclass(frozen=True)
class Case:
    """A row of the table before it is measured: whose checkpoint, which solver, its plain twin, rows in the picture."""

    name: str
    objective: str
    solver: str
    evaluations: int
    plain: Callable[..., Tensor]
    lines: int


CASES = (
    Case("flow matching", "flow", "ab2", 5, plain.adams_bashforth2, 2),
    Case("flow matching", "flow", "ab2", 10, plain.adams_bashforth2, 2),
    Case("flow matching", "flow", "ab2", 20, plain.adams_bashforth2, 4),
    Case("diffusion", "diffusion", "ddim", 50, plain.ddim, 2),
)


@dataclass(frozen=True)
class Yardstick:
    """What samples are held against, and what real digits get by it.

    ``features`` [N, 16] are those of one half of all real digits; ``memory`` knows the training digits' neighbourhoods.
    """

    judge: Classifier
    features: Tensor
    memory: metrics.Memorisation
    reference: Reference

    @classmethod
    def of(cls, digits: Digits, judge: Classifier, *, per_class: int, seed: int) -> Yardstick:
        """From all digits, cut at random into a half that samples are compared with and a half that gives the floor."""
        images, labels = digits.all()
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        half, other = order[: len(order) // 2], order[len(order) // 2 :]
        features = judge.features(images[half])
        # As many real digits a class as there are samples: the distance's bias depends on their number.
        fresh = images[other[metrics.class_balanced(labels[other], per_class)]]
        memory = metrics.Memorisation.of(digits.images)
        near, copies = memory.shares(digits.held_images)
        reference = Reference(
            accuracy=judge.accuracy(digits.held_images, digits.held_labels),
            frechet_floor=metrics.frechet_distance(judge.features(fresh), features),
            near=near,
            copies=copies,
            median=memory.median,
            low=memory.low,
        )
        return cls(judge, features, memory, reference)


@dataclass(frozen=True)
class Contest:
    """A case ready to run, with this library and in plain PyTorch: sample i has seed i and the label ``labels[i]``."""

    case: Case
    net: Callable[..., Tensor]
    field: pfc.Field
    sampler: pfc.Sampler
    labels: Tensor
    guidance: float

    @classmethod
    def of(cls, case: Case, checkpoint: Checkpoint, per_class: int, guidance: float) -> Contest:
        """From a trained network; ``labels`` run through the classes ``per_class`` times."""
        objective = checkpoint.objective
        plan = pfc.plan(
            case.solver, nfe=case.evaluations, path=objective.path, prediction=objective.prediction
        )
        return cls(
            case=case,
            net=checkpoint.model(),
            field=checkpoint.field(),
            sampler=pfc.Sampler(plan, guidance=pfc.CFG(guidance)),
            labels=torch.arange(CLASSES).repeat(per_class),
            guidance=guidance,
        )

    def ours(self, count: int, first: int = 0) -> Tensor:
        """Samples number first to first + count - 1, [count, 1, 8, 8]."""
        y = self.labels[first : first + count]
        samples = self.sampler(
            self.field,
            shape=(1, 8, 8),
            seeds=torch.arange(first, first + count),
            cond={"y": y},
            uncond={"y": torch.full_like(y, CLASSES)},
        )
        assert isinstance(samples, Tensor)  # no trajectory was asked for
        return samples

    def theirs(self, count: int) -> Tensor:
        """The first ``count`` of the same samples by the plain loop, from the same noise."""
        x0 = pfc.randn(torch.arange(count), (1, 8, 8))
        return self.case.plain(
            self.net, x0, self.labels[:count], CLASSES, self.guidance, self.case.evaluations
        )

    def free(self) -> Contest:
        """The same with a network that costs nothing: what is left is the sampler."""
        answer = torch.zeros(2 * len(self.labels), 1, 8, 8)

        def net(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
            return answer

        field = pfc.Field(net, prediction=self.field.prediction, path=self.field.path)
        return replace(self, net=net, field=field)

    def row(self, yardstick: Yardstick, *, repeats: int) -> tuple[Row, Tensor]:
        """The measures, and all samples. The sampler alone is timed ``repeats`` times, in turns with its plain twin
        (medians); with the network once, after a small run, since the first call of anything is slow."""
        count = len(self.labels)
        free = self.free()
        pairs = [(_timed(free.ours, count)[0], _timed(free.theirs, count)[0]) for _ in range(repeats)]
        alone, plain_alone = (statistics.median(column) for column in zip(*pairs, strict=True))
        self.ours(CLASSES), self.theirs(CLASSES)
        seconds, samples = _timed(self.ours, count)
        plain_seconds, expected = _timed(self.theirs, count)
        near, copies = yardstick.memory.shares(samples)
        row = Row(
            name=self.case.name,
            solver=self.case.solver,
            evaluations=self.sampler.plan.nfe,
            seconds=seconds,
            ratio=plain_seconds / seconds,
            sampler_seconds=alone / self.sampler.plan.nfe,
            sampler_ratio=plain_alone / alone,
            difference=float((samples - expected).abs().max()),
            agreement=yardstick.judge.accuracy(samples, self.labels),
            frechet=metrics.frechet_distance(yardstick.judge.features(samples), yardstick.features),
            near=near,
            copies=copies,
        )
        return row, samples

    def drift(self, samples: Tensor) -> float:
        """Largest change of a pixel when one sample of each class is made alone instead of with all ``samples``."""
        alone = torch.cat([self.ours(1, first) for first in range(CLASSES)])
        return float((alone - samples[:CLASSES]).abs().max())


def _timed(sample: Callable[[int], Tensor], count: int) -> tuple[float, Tensor]:
    begin = time.perf_counter()
    samples = sample(count)
    return time.perf_counter() - begin, samples
