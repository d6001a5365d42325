"""Say in one sentence what a machine lacks to build pyflowcore; used by `make` before it installs anything.

Needed: Python 3.10 or newer with its venv module, and a C++20 compiler. CMake, ninja and torch come through pip.
This file is kept readable for old Pythons, so that they reach the sentence instead of a SyntaxError.
"""

import os
import shutil
import subprocess
import sys
import tempfile

OLDEST_PYTHON = (3, 10)
CXX20_PROGRAM = """
#include <bit>
#include <concepts>
#include <span>
template <std::floating_point T> constexpr T twice(T x) { return x + x; }
static_assert(twice(1.0) == 2.0 && std::bit_cast<unsigned>(1.0f) == 0x3f800000u);
int main() { int a[2] = {0, 0}; return static_cast<int>(std::span<int>(a).size()) - 2; }
"""


def python_problem():
    if sys.version_info[:2] < OLDEST_PYTHON:
        return (
            "pyflowcore needs Python %d.%d or newer, and %s is %d.%d: put a newer python3 first on PATH, or run "
            "`make PYTHON=/path/to/python3 ...`." % (OLDEST_PYTHON + (sys.executable,) + sys.version_info[:2])
        )
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        return (
            "%s cannot make virtual environments: install its venv module (Debian and Ubuntu: python3-venv)."
            % sys.executable
        )
    return None


def compiler_problem():
    asked = os.environ.get("CXX")
    candidates = [asked] if asked else ["c++", "g++", "clang++"]
    found = [name for name in candidates if shutil.which(name.split()[0])]
    if not found:
        return (
            "pyflowcore needs a C++20 compiler, and there is no %s on PATH: install one (Debian and Ubuntu: g++), "
            "or set CXX." % " or ".join(candidates)
        )
    with tempfile.TemporaryDirectory() as folder:
        source = os.path.join(folder, "probe.cpp")
        with open(source, "w") as file:
            file.write(CXX20_PROGRAM)
        command = found[0].split() + ["-std=c++20", source, "-o", os.path.join(folder, "probe")]
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if result.returncode != 0:
        return (
            "pyflowcore needs a C++20 compiler, and %s cannot build a small C++20 program: install GCC 11, Clang 14 "
            "or newer, or set CXX." % found[0]
        )
    return None


def main():
    for problem in (python_problem, compiler_problem):
        sentence = problem()
        if sentence is not None:
            sys.exit("error: " + sentence)


if __name__ == "__main__":
    main()
