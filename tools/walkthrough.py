"""Executes docs/adding-an-operator.md in a copy of the checkout: writes every block to its file, rebuilds, runs the last.

The copy is built before the edits, so that the time printed is that of a warm build: edit to number.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "adding-an-operator.md"
BLOCK = re.compile(
    r"<!-- (create|insert|replace|run)(?:: ([^|>]+?))?(?: \| (?:after|from): (.+?))? -->\n```\w+\n(.*?)```",
    re.DOTALL,
)

# An editable install's finder would come before the copy.
BOOTSTRAP = """import sys
sys.meta_path = [f for f in sys.meta_path if "scikit" not in type(f).__name__.lower() and "scikit" not in type(f).__module__]
sys.path.insert(0, {tree!r})
"""


def apply(kind: str, path: Path, anchor: str | None, text: str) -> None:
    """One block of the page."""
    if kind == "create":
        if path.exists():
            sys.exit(f"{path} exists already: the page wants to create it")
        path.write_text(text)
        return
    source = path.read_text()
    if anchor is None or source.count(anchor) != 1:
        sys.exit(
            f"{path}: the anchor {anchor!r} stands there {source.count(anchor or '')} times, it must stand there once"
        )
    path.write_text(
        source.replace(anchor, f"{anchor}\n{text.rstrip()}" if kind == "insert" else text.rstrip())
    )


def edit(tree: Path, blocks: list[tuple[str, str, str, str]]) -> None:
    """Every block but the last, in the page's order."""
    for kind, path, anchor, text in blocks:
        apply(kind, tree / path, anchor or None, text)


def build(tree: Path) -> None:
    """Configures, compiles and installs the compiled parts into the tree, beside the Python files."""
    options = ["-G", "Ninja", "-DPYFLOWCORE_CUDA=OFF", f"-DPython_EXECUTABLE={sys.executable}"]
    cmake_folder = subprocess.run(
        [sys.executable, "-m", "pybind11", "--cmakedir"], check=True, capture_output=True, text=True
    ).stdout.strip()
    commands = [
        ["cmake", "-S", str(tree), "-B", str(tree / "build"), *options, f"-Dpybind11_DIR={cmake_folder}"],
        ["cmake", "--build", str(tree / "build")],
        ["cmake", "--install", str(tree / "build"), "--prefix", str(tree)],
    ]
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-4000:]}{done.stderr[-4000:]}")


def main() -> None:
    blocks = BLOCK.findall(PAGE.read_text())
    if not blocks or blocks[-1][0] != "run":
        sys.exit(f"{PAGE} must end with a block to run")
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "pyflowcore"
        skip = shutil.ignore_patterns(".git", ".venv", "build", "dist", "outputs", "*.so", "__pycache__")
        rehearsal = Path(folder) / "rehearsal"
        for copy in (tree, rehearsal):
            shutil.copytree(ROOT, copy, ignore=skip)
        # A page out of step with the sources is told before the compiler has run.
        edit(rehearsal, blocks[:-1])
        build(tree)
        start = time.perf_counter()
        edit(tree, blocks[:-1])
        build(tree)
        script = tree / "number.py"
        script.write_text(BOOTSTRAP.format(tree=str(tree)) + blocks[-1][3])
        done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, cwd=folder)
        seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"the page's last block failed:\n{done.stdout}{done.stderr}")
    promised = re.findall(r"It prints `(.+?)`", PAGE.read_text())[-1]
    printed = done.stdout.strip().splitlines()[-1]
    if printed != promised:
        sys.exit(f"the page promises {promised!r}, it printed {printed!r}")
    print(
        f"{printed}; {len(blocks) - 1} edits, edit to number in {seconds:.1f} s on a warm build (30 s is the promise)"
    )


if __name__ == "__main__":
    main()
