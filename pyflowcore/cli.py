"""The command line: ``pyflowcore sample | train | demo | plan | info``. A mistake is one readable line and exit status 2."""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from .plans import Plan


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except (ValueError, TypeError, OSError, ImportError) as error:
        # Everything that a user can mend is raised as one of these, with a message that says how.
        print(f"pyflowcore {arguments.command}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def classes_of(text: str) -> list[int]:
    """ "0-3,8" -> [0, 1, 2, 3, 8]. ValueError for anything else than numbers and rising ranges, with commas."""
    found: list[int] = []
    for part in text.split(","):
        ends = part.strip().split("-")
        if len(ends) > 2 or not all(end.strip().isdecimal() for end in ends):
            raise ValueError(f"--classes must look like 0-9 or 1,3,5-7; got {text!r}")
        low, high = int(ends[0]), int(ends[-1])
        if high < low:
            raise ValueError(f"--classes must have rising ranges; got {part.strip()!r}")
        found += range(low, high + 1)
    return found


def device_of(text: str) -> torch.device:
    """ "cpu", "cuda", "cuda:1", ... ValueError for a device that torch does not know, or that is not here."""
    try:
        device = torch.device(text)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # a torch without CUDA asserts
        raise ValueError(f"--device {text!r}: {str(error).splitlines()[0]}") from None
    return device


def sample(arguments: argparse.Namespace) -> None:
    """``pyflowcore sample``: images of a checkpoint as a PNG, classes by columns."""
    import pyflowcore as pfc

    from .demo import picture
    from .training import atomic, load_checkpoint

    out = atomic.check_writable(arguments.out)
    if out.suffix.lower() != ".png":
        raise ValueError(f"--out must end in .png; got {out}")
    if arguments.per_class < 1:
        raise ValueError(f"--per-class must be at least 1; got {arguments.per_class}")
    if not 0 <= arguments.seed < 2**31:
        raise ValueError(f"--seed must be within [0, 2^31); got {arguments.seed}")
    device = device_of(arguments.device)
    checkpoint = load_checkpoint(arguments.checkpoint)
    model = checkpoint.model().to(device)
    if model.null_class is None or len(model.shape) != 3:
        raise ValueError(f"--checkpoint must hold a class-conditional image model; {checkpoint.name} is none")
    classes = classes_of(arguments.classes or f"0-{model.num_classes - 1}")
    if max(classes) >= model.num_classes:
        raise ValueError(f"--classes must lie within 0-{model.num_classes - 1}; got {max(classes)}")
    plan = pfc.plan(
        arguments.solver,
        nfe=arguments.nfe,
        path=checkpoint.objective.path,
        prediction=checkpoint.objective.prediction,
    )
    sampler = pfc.Sampler(plan, guidance=pfc.CFG(arguments.guidance))
    field = pfc.Field(model, prediction=checkpoint.objective.prediction, path=checkpoint.objective.path)
    labels = torch.tensor(classes, device=device).repeat(arguments.per_class)
    first = arguments.seed << 32
    begin = time.perf_counter()
    images = sampler(
        field,
        shape=model.shape,
        seeds=range(first, first + len(labels)),
        cond={"y": labels},
        uncond={"y": torch.full_like(labels, model.null_class)},
    )
    assert isinstance(images, torch.Tensor)  # no trajectory was asked for
    images = images.cpu()
    seconds = time.perf_counter() - begin
    rows = [("", row) for row in images.view(arguments.per_class, len(classes), *model.shape)]
    picture.save(out, rows, [str(label) for label in classes], zoom=max(1, 48 // model.shape[-1]))
    print(f"{len(labels)} samples, {arguments.solver} with {plan.nfe} evaluations, {seconds:.2f} s: {out}")


_DEFAULTS: dict[str, Any] = {"objective": "flow", "seed": 0, "model": "dit", "width": None, "depth": None}


def train(arguments: argparse.Namespace) -> None:
    """``pyflowcore train``: train the demo's network on digits, or go on exactly where a checkpoint stopped."""
    from .demo import digits, recipe
    from .training import Trainer, atomic

    out = atomic.check_writable(arguments.out)
    for name, least in (("steps", 1), ("save_every", 1), ("width", 4), ("depth", 1)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {least}; got {value}")
    given = {name: getattr(arguments, name) for name in _DEFAULTS if getattr(arguments, name) is not None}
    device = device_of(arguments.device)
    data = digits.load()
    if arguments.resume:
        trainer = Trainer.resume(out, data.images, data.labels, device=device)
        has = {
            "objective": trainer.config.objective,
            "seed": trainer.config.seed,
            **recipe.described(trainer.model),
        }
        for name, value in given.items():
            if value != has.get(name):
                raise ValueError(f"--{name} {value} disagrees with {out}, which has {has.get(name)}")
    else:
        if out.exists() and not arguments.overwrite:
            raise ValueError(f"{out} exists: --resume goes on with it, --overwrite starts anew")
        settings = _DEFAULTS | given
        model = recipe.new_model(
            settings["seed"], kind=settings["model"], width=settings["width"], depth=settings["depth"]
        )
        config = recipe.train_config(settings["objective"], settings["seed"])
        trainer = Trainer(model.to(device), data.images, data.labels, config)
    if trainer.step >= arguments.steps:
        print(f"{out} has {trainer.step} steps already")
        return
    begin = time.perf_counter()
    while trainer.step < arguments.steps:
        trainer.run(min(arguments.steps, trainer.step + arguments.save_every), progress=not arguments.quiet)
        trainer.save(out)
    loss = "none" if trainer.loss is None else f"{float(trainer.loss):.4f}"
    print(
        f"{trainer.config.objective}: {trainer.step} steps, loss {loss}, "
        f"{time.perf_counter() - begin:.0f} s: {out}"
    )


def demo(arguments: argparse.Namespace) -> None:
    """``pyflowcore demo``: train, sample, measure, show."""
    from .demo import QUICK, Settings, run

    settings = replace(QUICK if arguments.quick else Settings(), model=arguments.model)
    report = run(arguments.out, settings, progress=not arguments.quiet)
    print(f"\n{report}\n\npicture: {Path(arguments.out) / 'samples.png'}")
    if arguments.quick:
        print(
            "--quick: a few training steps only, so these numbers say that everything runs and nothing else"
        )


def plan(arguments: argparse.Namespace) -> None:
    """``pyflowcore plan``: a solver's table of coefficients, or the list of solvers."""
    import pyflowcore as pfc

    if arguments.solver is None:
        for name, summary in pfc.solvers().items():
            print(f"{name:16s}{summary}")
        return
    names = ("order", "variant", "start", "eta", "diffusion", "s_churn", "s_min", "s_max", "s_noise")
    options = {name: getattr(arguments, name) for name in names}
    if arguments.steps is None and arguments.nfe is None:
        raise ValueError("one of --steps and --nfe must be given")
    built = pfc.plan(
        arguments.solver,
        arguments.steps,
        nfe=arguments.nfe,
        grid=None if arguments.shift is None else pfc.grids.shifted(arguments.shift),
        path=arguments.path,
        prediction=arguments.prediction,
        last=arguments.last,
        **options,
    )
    if arguments.plot is not None:
        _save_plot(built, Path(arguments.plot))
    print(built.to_json(indent=2) if arguments.json else built)


def _save_plot(built: Plan, out: Path) -> None:
    """A picture of the plan, of the kind that the file's ending names."""
    from .training import atomic

    atomic.check_writable(out)
    figure = built.plot()
    kinds = figure.canvas.get_supported_filetypes()
    if (kind := out.suffix.lower().lstrip(".")) not in kinds:
        raise ValueError(f"--plot must end in one of {', '.join(sorted(kinds))}; got {out}")
    picture = io.BytesIO()
    figure.savefig(picture, format=kind, dpi=150)
    atomic.write_bytes(out, picture.getvalue())


def info(arguments: argparse.Namespace) -> None:
    """``pyflowcore info``: versions, backends, libraries."""
    import pyflowcore as pfc

    found = pfc.info()
    print(json.dumps(found.as_dict(), indent=2) if arguments.json else found)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pyflowcore", description="Samplers for flow-matching models.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    command = commands.add_parser("sample", help="samples of a checkpoint, as a PNG with classes by columns")
    command.add_argument("--checkpoint", required=True, help="file written by train or demo")
    command.add_argument("--out", required=True, help="PNG to write")
    command.add_argument("--classes", help="such as 0-9 or 1,3,5-7 (default: all)")
    command.add_argument("--nfe", type=int, default=20, help="evaluations of the network (default 20)")
    command.add_argument("--solver", default="heun", help="as pyflowcore.plan knows them (default heun)")
    command.add_argument("--guidance", type=float, default=1.25, help="scale; 1 is none (default 1.25)")
    command.add_argument("--per-class", type=int, default=8, help="samples of each class (default 8)")
    command.add_argument("--seed", type=int, default=0, help="default 0")
    command.add_argument("--device", default="cpu", help="default cpu")
    command.set_defaults(run=sample)

    command = commands.add_parser("train", help="train a small class-conditional DiT or U-Net")
    command.add_argument("--out", required=True, help="checkpoint to write, or to go on with")
    command.add_argument("--steps", type=int, required=True, help="steps in all")
    command.add_argument("--data", choices=["digits"], default="digits", help="default digits")
    command.add_argument("--objective", choices=["flow", "diffusion"], help="default flow")
    command.add_argument("--seed", type=int, help="default 0")
    command.add_argument("--model", choices=["dit", "unet"], help="default dit")
    command.add_argument(
        "--width", type=int, help="of a token (default 96), or of the first level (default 32)"
    )
    command.add_argument("--depth", type=int, help="blocks (default 4), or stages of a level (default 1)")
    command.add_argument(
        "--save-every", type=int, default=500, help="steps between checkpoints (default 500)"
    )
    command.add_argument("--device", default="cpu", help="default cpu")
    command.add_argument("--quiet", action="store_true", help="no progress bar")
    again = command.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on exactly where --out stopped")
    again.add_argument("--overwrite", action="store_true", help="replace --out")
    command.set_defaults(run=train)

    command = commands.add_parser("demo", help="train, sample, measure and show, in a few minutes")
    command.add_argument("--out", default="outputs/demo", help="folder (default outputs/demo)")
    command.add_argument("--model", choices=["dit", "unet"], default="dit", help="default dit")
    command.add_argument("--quick", action="store_true", help="seconds instead of minutes, and no quality")
    command.add_argument("--quiet", action="store_true", help="no progress bars")
    command.set_defaults(run=demo)

    command = commands.add_parser(
        "plan", help="a solver's table of coefficients; without a solver, their list"
    )
    command.add_argument("solver", nargs="?", help="such as unipc")
    command.add_argument("--steps", type=int, help="steps of the grid; or")
    command.add_argument("--nfe", type=int, help="evaluations of the network, at most")
    command.add_argument("--shift", type=float, help="of the noise level (default: none)")
    command.add_argument("--path", default="linear", help="default linear")
    command.add_argument("--prediction", default="velocity", help="of the network (default velocity)")
    command.add_argument("--last", default="default", help="default or full")
    for option, kind in (
        ("order", int),
        ("variant", str),
        ("start", str),
        ("eta", float),
        ("diffusion", str),
    ):
        command.add_argument(f"--{option}", type=kind, help="where the solver takes it")
    for option in ("s-churn", "s-min", "s-max", "s-noise"):
        command.add_argument(f"--{option}", type=float, help="of edm_heun")
    command.add_argument("--json", action="store_true", help="as JSON, for pyflowcore.Plan.from_json")
    command.add_argument(
        "--plot", metavar="FILE", help="a picture of it as well, such as plan.png or plan.svg"
    )
    command.set_defaults(run=plan)

    command = commands.add_parser("info", help="versions, backends, libraries")
    command.add_argument("--json", action="store_true", help="as JSON")
    command.set_defaults(run=info)
    return parser


if __name__ == "__main__":
    sys.exit(main())
