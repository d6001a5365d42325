"""What the binary checks share: reading ELF files and archives with binutils."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path


def run(*command: str) -> str:
    """The standard output of a command; its failure is raised with what it said."""
    if shutil.which(command[0]) is None:
        raise SystemExit(f"error: {command[0]} is not on PATH (it is a part of binutils)")
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise SystemExit(f"error: {' '.join(command)} failed: {result.stderr.strip()}")
    return result.stdout


@dataclass(frozen=True)
class Symbol:
    """One line of nm: its type letter and its name, without the version after '@'."""

    kind: str
    name: str
    version: str


def symbols(path: Path, *options: str) -> list[Symbol]:
    """The symbols of an object or library, as `nm OPTIONS` lists them."""
    found = []
    for line in run("nm", "--format=posix", *options, str(path)).splitlines():
        fields = line.split()
        # A line of its own with a colon at the end names a member of an archive.
        if len(fields) < 2 or line.endswith(":"):
            continue
        name, _, version = fields[0].partition("@")
        found.append(Symbol(kind=fields[1], name=name, version=version.lstrip("@")))
    return found


def needed(path: Path) -> list[str]:
    """The libraries that a shared library asks the loader for."""
    return _dynamic(path, "(NEEDED)")


def search_paths(path: Path) -> list[str]:
    """Its RPATH and RUNPATH entries, split at colons."""
    entries = _dynamic(path, "(RPATH)") + _dynamic(path, "(RUNPATH)")
    return [part for entry in entries for part in entry.split(":") if part]


def _dynamic(path: Path, tag: str) -> list[str]:
    lines = run("readelf", "--dynamic", "--wide", str(path)).splitlines()
    return [line[line.index("[") + 1 : line.rindex("]")] for line in lines if tag in line and "[" in line]


def report(tool: str, checked: int, what: str, problems: list[str]) -> int:
    """Print the problems or the all-clear, and give the exit status."""
    for problem in problems:
        print(f"{tool}: {problem}")
    if checked == 0:
        print(f"{tool}: nothing to check was found")
        return 1
    print(f"{tool}: {checked} {what} checked, {len(problems)} problems")
    return 1 if problems else 0
