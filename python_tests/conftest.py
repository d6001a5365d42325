"""What every test shares: which tests need a GPU, and memory that shows when it was read before it was written."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import compiled
import pytest
import torch

# benchmarks/on_gpu.sh sets this: on a GPU machine a GPU test may fail, but it may not be skipped.
GPU_REQUIRED = os.environ.get("PYFLOWCORE_REQUIRE_GPU", "0") == "1"
SKIP_REASON = "needs an NVIDIA GPU, and torch.cuda.is_available() is False here"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--shard", metavar="K/N", help="run the K-th of N parts of the suite, files taken in turn"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Under `-n`, processes side by side share the cores: none may start threads for all of them."""
    if worker := getattr(config, "workerinput", None):
        torch.set_num_threads(max(1, torch.get_num_threads() // worker["workercount"]))
        return
    folder = tempfile.TemporaryDirectory(prefix="pyflowcore-tests")
    config.add_cleanup(folder.cleanup)
    os.environ[compiled.FOLDER] = folder.name  # workers start with it


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if shard := config.getoption("--shard"):
        part, parts = (int(number) for number in shard.split("/"))
        if not 1 <= part <= parts:
            raise pytest.UsageError(f"--shard must be K/N with 1 <= K <= N, got {shard}")
        files = sorted({item.path for item in items})
        kept = set(files[part - 1 :: parts])
        config.hook.pytest_deselected(items=[item for item in items if item.path not in kept])
        items[:] = [item for item in items if item.path in kept]
    if GPU_REQUIRED or torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu") is not None:
            item.add_marker(pytest.mark.skip(reason=SKIP_REASON))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    without_gpu = sum(1 for report in skipped if SKIP_REASON in str(report.longrepr))
    if without_gpu:
        terminalreporter.write_line(
            f"{without_gpu} GPU tests were skipped: no NVIDIA GPU here, so this run proves nothing about CUDA."
        )
    elif torch.cuda.is_available():
        terminalreporter.write_line(f"GPU tests ran on {torch.cuda.get_device_name()}.")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU and, where there is one, the GPU."""
    return torch.device(request.param)


@pytest.fixture
def poison() -> Iterator[None]:
    """Every uninitialised allocation of torch holds NaN (or the largest integer) while the test runs.

    A kernel that reads what it should only have written, or that leaves a gap, then shows as NaN.
    """
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.utils.deterministic.fill_uninitialized_memory = fill
    torch.use_deterministic_algorithms(before, warn_only=warn_only)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For tests of many small steps, which gain nothing by more threads and would wait for them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
