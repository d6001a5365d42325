"""What is installed: the compiled parts depend on what they may, versions agree, annotations come along, pins are complete."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pyflowcore as pfc
from pyflowcore import _core

ROOT = Path(__file__).resolve().parents[1]


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


def test_a_prebuilt_cuda_library_of_other_sources_is_refused(tmp_path: Path) -> None:
    if (
        cmake := shutil.which("cmake", path=str(Path(sys.executable).parent)) or shutil.which("cmake")
    ) is None:
        pytest.skip("needs cmake, which is not on PATH")
    library = tmp_path / "libpyflowcore_cuda.so"

    def complaint() -> str:
        options = [f"-DPYFLOWCORE_CUDA_PREBUILT={library}", f"-DPython_EXECUTABLE={sys.executable}"]
        command = [cmake, "-S", str(ROOT), "-B", str(tmp_path / "build"), *options]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode != 0
        return " ".join(done.stderr.split())

    assert f"{library}: there is no such file" in complaint()
    library.write_bytes(b"\x7fELF\0pyflowcore\0")
    assert "holds no stamp" in complaint()
    library.write_bytes(b"\x7fELF\0pyflowcore_cuda by 13.0.88 for 80 from 0123abcd\0")
    assert "built from other sources (0123abcd) than these" in complaint()
