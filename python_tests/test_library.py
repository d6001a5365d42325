"""What is live and why not: an old torch, a missing library, an old driver each give one readable sentence, and CPU goes on."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import pyflowcore as pfc
from pyflowcore import _core, _library


def sentence(text):
    assert text
    assert "\n" not in text
    assert "Traceback" not in text
    return text


def test_a_torch_that_is_too_old(monkeypatch):
    monkeypatch.setattr(_library.torch, "__version__", "2.9.1+cpu")
    backend = _library._open("pyflowcore_cpu")
    assert not backend.live
    assert backend.handle is None
    text = sentence(backend.reason)
    assert "torch 2.9.1+cpu is older than 2.10" in text
    assert "pip install" in text


@pytest.mark.parametrize(
    ("text", "version"), [("2.10.0", (2, 10)), ("2.13.0+cpu", (2, 13)), ("3.0.0a0+gitabc", (3, 0))]
)
def test_versions_are_numbers(monkeypatch, text, version):
    monkeypatch.setattr(_library.torch, "__version__", text)
    assert _library._torch_version() == version


def test_a_missing_library(tmp_path):
    backend = _library._open("pyflowcore_cpu", tmp_path)
    assert not backend.live
    assert "libpyflowcore_cpu.so is not installed" in sentence(backend.reason)


def test_a_library_that_does_not_load(tmp_path):
    (tmp_path / "libpyflowcore_cpu.so").write_bytes(b"not a library")
    backend = _library._open("pyflowcore_cpu", tmp_path)
    assert not backend.live
    assert "could not be loaded" in sentence(backend.reason)


@pytest.fixture
def cuda_machine(monkeypatch):
    """A build with a CUDA part, of toolkit 13.0, on a machine where torch sees a GPU."""
    build = dict(_core.build) | {"cuda_compiled": True, "cuda_toolkit": "13.0"}
    monkeypatch.setattr(_library._core, "build", build)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(_library, "_driver_version", lambda: 13000)
    return monkeypatch


def test_a_driver_that_is_too_old(cuda_machine):
    cuda_machine.setattr(_library, "_driver_version", lambda: 12040)
    backend = _library._cuda_backend()
    assert not backend.live
    text = sentence(backend.reason)
    assert "supports CUDA 12.4" in text
    assert "13.0" in text
    assert "update the driver" in text


def test_no_cuda_in_the_build_the_torch_or_the_machine(cuda_machine):
    cuda_machine.setattr(torch.cuda, "is_available", lambda: False)
    cuda_machine.setattr(torch.version, "cuda", None)
    assert "without CUDA" in sentence(_library._cuda_backend().reason)
    cuda_machine.setattr(torch.version, "cuda", "13.0")
    assert "no CUDA device" in sentence(_library._cuda_backend().reason)
    cuda_machine.setattr(_library._core, "build", dict(_core.build) | {"cuda_compiled": False})
    assert "no CUDA part" in sentence(_library._cuda_backend().reason)


def test_a_missing_cuda_library(cuda_machine, tmp_path):
    cuda_machine.setattr(_library, "_folder", lambda: tmp_path)
    assert "libpyflowcore_cuda.so is not installed" in sentence(_library._cuda_backend().reason)


PROGRAM = """
import hashlib, sys, warnings
import torch
if sys.argv[1] == "old":
    torch.__version__ = "2.9.0"
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import pyflowcore as pfc
said = [str(w.message) for w in caught if issubclass(w.category, pfc.PyflowcoreWarning)]
print(len(said), said[0].count("\\n") if said else 0)
print(pfc.info().as_dict()["cpu library"][:4])
print(pfc.cpu_isa())
warnings.simplefilter("ignore")
digest = hashlib.sha256()
add = lambda t: digest.update(t.detach().contiguous().view(torch.uint8).numpy().tobytes())
y = {"y": torch.arange(3.0)}
field = lambda x, t, y: x.float() * (t - y)[:, None]
for solver in pfc.solvers():
    for dtype in (None, torch.bfloat16):
        for grad in (False, True):
            sampler = pfc.Sampler(pfc.plan(solver, 5, grid=pfc.grids.shifted(3.0)), pfc.CFG(2.0, (0.1, 0.8)))
            add(sampler(pfc.Field(field, dtype=dtype), shape=(37,), seeds=range(3), cond=y, uncond={"y": torch.zeros(())},
                        enable_grad=grad))
for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
    add(pfc.randn(range(5), (7, 11), dtype=dtype, stream=2, draw=3))
    data, t = pfc.randn(range(5), (33,), dtype=dtype), torch.linspace(0, 0.9, 5)
    for path in ("linear", "trigonometric", "vp"):
        for part in pfc.interpolate(data, t, seeds=range(5), path=path):
            add(part)
x = torch.ones(2, 3, requires_grad=True)
pfc.interpolate(x, torch.tensor([0.2, 0.4]), seeds=[1, 2]).x_t.sum().backward()
add(x.grad)
print(digest.hexdigest())
"""  # fmt: skip


def program(mode, **environment):
    command = [sys.executable, "-c", PROGRAM, mode]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_plain_pytorch_gives_the_same_bits():
    """With a torch too old for the compiled kernels: one sentence at import, and every result is the same to the bit."""
    compiled, plain = program("as it is"), program("old")
    assert compiled[:2] == ["0 0", "live"]
    assert plain[:3] == ["1 0", "off:", "None"]
    assert compiled[3] == plain[3]


def test_the_instruction_set_may_be_named_in_the_environment():
    named = program("as it is", PYFLOWCORE_CPU_ISA="baseline")
    assert named[:3] == ["0 0", "live", "baseline"]
    unknown = program("as it is", PYFLOWCORE_CPU_ISA="sse9")
    assert unknown[:2] == ["1 0", "live"]
    assert unknown[2] == pfc.cpu_isa()
    assert named[3] == unknown[3]


def test_info():
    info = pfc.info()
    values = info.as_dict()
    for key in (
        "pyflowcore",
        "python",
        "torch",
        "numpy",
        "compiler",
        "cpu library",
        "cuda library",
        "cuda kernels proven",
    ):
        assert values[key], key
        assert key in str(info)
    assert values["cpu library"].startswith("live: ")
    if not torch.cuda.is_available():
        assert values["cuda library"].startswith("off: ")
