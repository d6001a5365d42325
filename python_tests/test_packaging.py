"""The build: what the compiled parts depend on, which layer includes which, and whether the pins are complete."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pyflowcore as pfc
from pyflowcore import _core

ROOT = Path(__file__).resolve().parents[1]
INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.MULTILINE)

# Arrows run one way: core <- plan, cpu, cuda <- torch, python. What a folder may include of the others, and the
# foreign headers that nothing below torch/ and python/ may see.
MAY_INCLUDE = {
    "core": set[str](),
    "plan": {"core"},
    "cpu": {"core"},
    "cuda": {"core"},
    "torch": {"core", "cpu", "cuda"},
    "python": {"core", "plan"},
}
FOREIGN = re.compile(r"^(torch|ATen|c10|pybind11)/|^Python\.h$")
CUDA_RUNTIME = re.compile(r"^(cuda|cuda_runtime\w*|cuda_fp16|cuda_bf16|curand\w*)\.h$")


def layer_files(layer: str) -> list[Path]:
    return sorted(
        path
        for path in (ROOT / "csrc" / layer).rglob("*")
        if path.suffix in {".hpp", ".h", ".cpp", ".cu", ".cuh"}
    )


def resolve(file: Path, include: str) -> str | None:
    """The layer that an include leads to, or None where it leaves csrc/."""
    for folder in (file.parent, ROOT / "csrc", *(ROOT / "csrc" / layer for layer in MAY_INCLUDE)):
        target = (folder / include).resolve()
        if target.exists() and target.is_relative_to(ROOT / "csrc"):
            return target.relative_to(ROOT / "csrc").parts[0]
    return None


@pytest.mark.parametrize("layer", MAY_INCLUDE)
def test_layers_include_downwards_only(layer: str) -> None:
    files = layer_files(layer)
    assert files, f"csrc/{layer} holds no source"
    for file in files:
        for include in INCLUDE.findall(file.read_text()):
            target = resolve(file, include)
            where = f"{file.relative_to(ROOT)} includes {include}"
            assert target in {None, layer, *MAY_INCLUDE[layer]}, where
            if layer not in ("torch", "python"):
                assert not FOREIGN.match(include), where
            if layer not in ("torch", "cuda"):
                assert not CUDA_RUNTIME.match(include), where


def test_cuda_sources_do_not_see_torch() -> None:
    # nvcc takes 20 s for a file with torch's headers, and the launchers are raw pointers on purpose.
    for file in (ROOT / "csrc").rglob("*.cu*"):
        for include in INCLUDE.findall(file.read_text()):
            assert not FOREIGN.match(include), f"{file.relative_to(ROOT)} includes {include}"


def test_compiled_parts_use_stable_interfaces_only() -> None:
    command = [sys.executable, str(ROOT / "tools" / "check_symbols.py"), str(Path(_core.__file__).parent)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_versions_agree() -> None:
    version = importlib.metadata.version("pyflowcore")
    assert _core.build["version"] == version
    assert f'version = "{version}"' in (ROOT / "pyproject.toml").read_text()


def test_annotations_are_shipped() -> None:
    assert (Path(pfc.__file__).parent / "py.typed").exists()


def test_every_requirement_is_pinned() -> None:
    name = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*")
    pinned = set()
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            assert "==" in line, f"{line!r} is no pin"
            pinned.add(line.split("==")[0].replace("_", "-").lower())
    asked = [
        match[0] for line in importlib.metadata.requires("pyflowcore") or [] if (match := name.match(line))
    ]
    build = re.search(r"^requires = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert build is not None
    asked += [name.match(text)[0] for text in re.findall(r'"([^"]+)"', build[1])]  # type: ignore[index]
    missing = {text.replace("_", "-").lower() for text in asked} - pinned - {"pyflowcore"}
    assert not missing, f"constraints.txt pins no version of: {', '.join(sorted(missing))}"


def test_console_script_is_installed() -> None:
    scripts = importlib.metadata.entry_points(group="console_scripts", name="pyflowcore")
    assert {script.value for script in scripts} == {"pyflowcore.cli:main"}
