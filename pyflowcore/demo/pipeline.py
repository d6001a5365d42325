"""From digits to a picture and a table, by flow matching and by diffusion, with the same network."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from ..training import Trainer, atomic, load_checkpoint
from ..training.optional import require
from . import classifier as judges
from . import digits as data
from . import metrics, picture
from .measure import CASES, Contest, Yardstick
from .recipe import new_model, train_config
from .report import Report, Row


@dataclass(frozen=True)
class Settings:
    """Sizes of a run: training steps of each network, samples a class, guidance scale, epochs of the judge, repeats of
    the sampler's timing, the seed of everything; which network ("dit" or "unet"), its width and depth (None: its own)."""

    steps: int = 1500
    per_class: int = 50
    guidance: float = 1.25
    epochs: int = 30
    repeats: int = 25
    seed: int = 0
    model: str = "dit"
    width: int | None = None
    depth: int | None = None


QUICK = Settings(steps=30, per_class=4, epochs=2, repeats=3)


def run(out: str | os.PathLike[str], settings: Settings | None = None, *, progress: bool = True) -> Report:
    """Train, save, sample, measure; writes flow.safetensors, diffusion.safetensors, samples.png, table.txt to ``out``.

    The folder is made if need be. Raises ImportError where the "demo" extra is not installed.
    """
    settings = settings or Settings()
    begun = time.perf_counter()
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    for module, package in (("PIL.Image", "pillow"), ("safetensors", "safetensors"), ("tqdm", "tqdm")):
        require(module, package)  # rather now than after the training
    digits = data.load()
    print(f"digits: {len(digits.images)} to train on, {len(digits.held_images)} held out", flush=True)
    judge = judges.train(digits, epochs=settings.epochs, seed=settings.seed)
    yardstick = Yardstick.of(digits, judge, per_class=settings.per_class, seed=settings.seed)
    print(f"classifier: right on {100 * yardstick.reference.accuracy:.1f} % of held-out digits", flush=True)
    for objective in ("flow", "diffusion"):
        model = new_model(settings.seed, kind=settings.model, width=settings.width, depth=settings.depth)
        trainer = Trainer(model, digits.images, digits.labels, train_config(objective, settings.seed))
        start = time.perf_counter()
        trainer.run(settings.steps, progress=progress, label=f"training, {objective}")
        print(f"{objective}: {settings.steps} steps in {time.perf_counter() - start:.0f} s", flush=True)
        trainer.save(out / f"{objective}.safetensors")
    print("sampling and measuring", flush=True)
    rows: list[Row] = []
    shown = [("real", digits.held_images[metrics.class_balanced(digits.held_labels, 1)])]
    drift = 0.0
    for case in CASES:
        checkpoint = load_checkpoint(out / f"{case.objective}.safetensors")
        contest = Contest.of(case, checkpoint, settings.per_class, settings.guidance)
        row, samples = contest.row(yardstick, repeats=settings.repeats)
        rows.append(row)
        if case.evaluations == 20:
            drift = contest.drift(samples)
        by_class = samples.view(settings.per_class, data.CLASSES, *samples.shape[1:])
        shown += [(f"{case.objective} {row.evaluations}", line) for line in by_class[: case.lines]]
    report = Report(
        rows=tuple(rows),
        reference=yardstick.reference,
        per_class=settings.per_class,
        guidance=settings.guidance,
        drift=drift,
        total_seconds=time.perf_counter() - begun,
    )
    picture.save(out / "samples.png", shown, [str(digit) for digit in range(data.CLASSES)])
    atomic.write_bytes(out / "table.txt", f"{report}\n".encode())
    return report
