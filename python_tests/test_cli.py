"""The command line: what it writes, and that every mistake is one line and status 2."""

import subprocess
import sys

import pytest
import torch

from pyflowcore import cli


@pytest.fixture(autouse=True)
def one_thread():
    """Work this small is done sooner by one thread, on a machine that is busy above all."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def fails(capsys, *argv):
    """The one line on stderr of a command that must fail."""
    assert cli.main(list(argv)) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"pyflowcore {argv[0]}: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    for needed in ("sklearn", "PIL", "safetensors"):
        pytest.importorskip(needed)
    path = tmp_path_factory.mktemp("cli") / "flow.safetensors"
    command = ["train", "--out", str(path), "--steps", "3", "--width", "16", "--depth", "1", "--quiet"]
    assert cli.main(command) == 0
    return path


def test_classes():
    assert cli.classes_of("0-9") == list(range(10))
    assert cli.classes_of("3") == [3]
    assert cli.classes_of("8, 0-2") == [8, 0, 1, 2]
    for text in ("", "a", "3-1", "1-2-3", "-1", "1,,2"):
        with pytest.raises(ValueError, match="--classes"):
            cli.classes_of(text)


def test_a_unet_trains_goes_on_and_samples(tmp_path, capsys):
    for needed in ("sklearn", "PIL", "safetensors"):
        pytest.importorskip(needed)
    path, picture = tmp_path / "unet.safetensors", tmp_path / "unet.png"
    command = ["train", "--out", str(path), "--model", "unet", "--width", "8", "--quiet"]
    assert cli.main([*command, "--steps", "1"]) == 0
    assert cli.main([*command, "--steps", "2", "--resume", "--depth", "1"]) == 0
    assert "2 steps" in capsys.readouterr().out
    for other in (["--model", "dit"], ["--depth", "2"]):
        line = fails(capsys, "train", "--out", str(path), "--steps", "3", "--resume", *other)
        assert f"{other[0]} {other[1]} disagrees" in line
    line = fails(
        capsys, "train", "--out", str(tmp_path / "odd"), "--steps", "1", "--model", "unet", "--width", "9"
    )
    assert "width must be even" in line
    sample = ["sample", "--checkpoint", str(path), "--nfe", "2", "--per-class", "1", "--out", str(picture)]
    assert cli.main(sample) == 0 and picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("solver", "nfe"), [("heun", "20"), ("heun", "5"), ("ab2", "4"), ("euler", "1")])
def test_sample(checkpoint, tmp_path, capsys, solver, nfe):
    out = tmp_path / "grid.png"
    base = ["sample", "--checkpoint", str(checkpoint), "--solver", solver, "--nfe", nfe, "--per-class", "2"]
    assert cli.main([*base, "--classes", "0-2", "--out", str(out)]) == 0
    assert "6 samples" in capsys.readouterr().out
    first = out.read_bytes()
    assert first.startswith(b"\x89PNG")
    assert cli.main([*base, "--classes", "0-2", "--out", str(out)]) == 0
    assert out.read_bytes() == first
    assert cli.main([*base, "--classes", "0-2", "--seed", "1", "--out", str(out)]) == 0
    assert out.read_bytes() != first
    assert [p.name for p in tmp_path.iterdir()] == ["grid.png"]


def test_sample_refuses(checkpoint, tmp_path, capsys):
    out, file = str(tmp_path / "g.png"), str(checkpoint)
    start = ("sample", "--checkpoint", file, "--out")
    assert "0-9" in fails(capsys, *start, out, "--classes", "8-12")
    assert "heun" in fails(capsys, *start, out, "--solver", "magic")  # lists what is known
    assert "nfe" in fails(capsys, *start, out, "--nfe", "0")
    assert ".png" in fails(capsys, *start, str(tmp_path / "g.jpg"))
    assert "does not exist" in fails(capsys, *start, str(tmp_path / "no" / "g.png"))
    assert "--per-class" in fails(capsys, *start, out, "--per-class", "0")
    assert "--seed" in fails(capsys, *start, out, "--seed", "-1")
    assert "guidance" in fails(capsys, *start, out, "--guidance", "nan").lower()
    assert "--device" in fails(capsys, *start, out, "--device", "abacus")
    assert "no checkpoint" in fails(capsys, "sample", "--checkpoint", str(tmp_path / "x"), "--out", out)
    assert list(tmp_path.iterdir()) == []


def test_train_resumes_exactly(checkpoint, tmp_path, capsys):
    whole, part = tmp_path / "whole", tmp_path / "part"
    size = ["--width", "16", "--depth", "1", "--quiet", "--objective", "diffusion"]
    assert cli.main(["train", "--out", str(whole), "--steps", "4", *size]) == 0
    assert cli.main(["train", "--out", str(part), "--steps", "2", *size]) == 0
    assert "exists" in fails(capsys, "train", "--out", str(part), "--steps", "4", *size)
    message = fails(capsys, "train", "--out", str(part), "--steps", "4", "--resume", "--objective", "flow")
    assert "disagrees" in message and "diffusion" in message
    assert "disagrees" in fails(
        capsys, "train", "--out", str(part), "--steps", "4", "--resume", "--width", "8"
    )
    assert cli.main(["train", "--out", str(part), "--steps", "4", "--resume", "--quiet"]) == 0
    assert part.read_bytes() == whole.read_bytes()
    assert cli.main(["train", "--out", str(part), "--steps", "3", "--resume", "--quiet"]) == 0
    assert "has 4 steps already" in capsys.readouterr().out


def test_train_refuses(tmp_path, capsys):
    pytest.importorskip("sklearn")
    out = str(tmp_path / "c")
    assert "--steps" in fails(capsys, "train", "--out", out, "--steps", "0")
    assert "--save-every" in fails(capsys, "train", "--out", out, "--steps", "1", "--save-every", "0")
    assert "seed" in fails(capsys, "train", "--out", out, "--steps", "1", "--seed", "-3")
    assert "width" in fails(capsys, "train", "--out", out, "--steps", "1", "--width", "18")
    assert "no checkpoint" in fails(capsys, "train", "--out", out, "--steps", "1", "--resume")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "argv", [[], ["paint"], ["sample"], ["train", "--out", "x", "--steps", "many"], ["info", "--what"]]
)
def test_argparse_mistakes_are_status_2(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    assert stop.value.code == 2
    assert "usage: pyflowcore" in capsys.readouterr().err


def test_info(capsys):
    import json

    assert cli.main(["info"]) == 0
    assert torch.__version__ in capsys.readouterr().out
    assert cli.main(["info", "--json"]) == 0
    assert isinstance(json.loads(capsys.readouterr().out), dict)


def test_help_needs_nothing_but_torch():
    """The commands' own libraries are imported when a command runs, not before."""
    code = "import sys, pyflowcore.cli as c; sys.exit(bool({'sklearn', 'PIL', 'safetensors'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
