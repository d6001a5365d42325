"""``python -m benchmarks list | run NAME... | compare A B``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import compare, registry, report, results
from benchmarks.options import Options, parse_sizes, parse_threads
from benchmarks.run import run


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="every benchmark, its least work and its baselines")
    run_parser = commands.add_parser("run", help="time benchmarks; NAME may be 'all'")
    run_parser.add_argument("names", nargs="+", metavar="NAME")
    run_parser.add_argument("--sizes", help="numbers of elements, such as 4K,1M (powers of 1024)")
    run_parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    run_parser.add_argument(
        "--threads", help="CPU threads; counts separated by commas are run one after another"
    )
    run_parser.add_argument(
        "--budget", type=float, default=0.4, help="seconds for one case and repeat (default 0.4)"
    )
    run_parser.add_argument(
        "--repeats", type=int, default=3, help="how often everything is measured (default 3)"
    )
    run_parser.add_argument("--only", default="", help="only cases whose name contains this")
    run_parser.add_argument(
        "--without", action="append", default=[], metavar="ARM", help="leave a baseline out"
    )
    run_parser.add_argument("--json", type=Path, help="write the result to this file")
    compare_parser = commands.add_parser(
        "compare", help="what changed from result file A to B, the noise counted"
    )
    compare_parser.add_argument("a", type=Path, metavar="A")
    compare_parser.add_argument("b", type=Path, metavar="B")
    return parser


def _list() -> None:
    for entry in registry.load().values():
        print(f"{entry.name}\n  {entry.summary}\n  least: {entry.least}")
        print(f"  beside it: {', '.join(entry.baselines) or 'nothing: it is a ceiling itself'}")


def _run(arguments: argparse.Namespace) -> None:
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is 'cuda', but this torch sees no CUDA device; allowed here: 'cpu'")
    if arguments.json is not None and not arguments.json.resolve().parent.is_dir():
        raise ValueError(f"json names a file in a folder that does not exist: {arguments.json}")
    sizes = parse_sizes(arguments.sizes) if arguments.sizes else None
    threads = parse_threads(arguments.threads) if arguments.threads else (torch.get_num_threads(),)
    options = [
        Options(
            device=arguments.device,
            threads=count,
            sizes=sizes,
            budget=arguments.budget,
            repeats=arguments.repeats,
            only=arguments.only,
            without=tuple(arguments.without),
        )
        for count in threads
    ]
    entries = registry.find(arguments.names)

    def show(rows: Sequence[dict[str, Any]], skipped: Sequence[dict[str, Any]]) -> None:
        print(report.show_rows(rows, skipped), flush=True)

    result = run(entries, options, show=show)
    if not result["rows"]:
        raise ValueError(
            f"nothing was run: no case of {', '.join(arguments.names)} has {arguments.only!r} in its name"
        )
    if arguments.json is not None:
        results.write(arguments.json, result)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0, or 2 with one sentence on stderr where it was used wrongly."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.command == "list":
            _list()
        elif arguments.command == "run":
            _run(arguments)
        else:
            print(compare.compare(results.read(arguments.a), results.read(arguments.b)))
    except ValueError as error:
        print(f"python -m benchmarks: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
