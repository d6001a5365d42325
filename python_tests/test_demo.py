"""The demo at toy size: it runs, its measures are what they say, its plain twins agree with the library."""

import pytest
import torch

import pyflowcore as pfc
from pyflowcore import demo, models
from pyflowcore.demo import classifier, digits, metrics, picture, plain, recipe
from pyflowcore.training import optional

for needed in ("sklearn", "PIL", "safetensors", "tqdm"):
    pytest.importorskip(needed)


@pytest.fixture(autouse=True)
def one_thread():
    """Work this small is done sooner by one thread, on a machine that is busy above all."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_digits_are_split_by_class_and_scaled():
    data = digits.load()
    assert len(data.images) + len(data.held_images) == 1797
    assert data.images.shape[1:] == (1, 8, 8) and data.images.dtype == torch.float32
    assert float(data.images.min()) == -1.0 and float(data.images.max()) == 1.0
    for digit in range(10):
        kept, held = int((data.labels == digit).sum()), int((data.held_labels == digit).sum())
        assert held == int(0.2 * (kept + held))
    assert torch.cdist(data.images.flatten(1), data.held_images.flatten(1)).min() > 0.1
    assert torch.equal(data.images, digits.load().images)


def test_classifier_learns_and_leaves_the_generator_alone():
    data = digits.load()
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    judge = classifier.train(data, epochs=2)
    assert torch.equal(torch.rand(1), expected)
    assert judge.accuracy(data.held_images, data.held_labels) > 0.3
    features = judge.features(data.images)
    assert features.shape == (len(data.images), 16)
    torch.testing.assert_close(features.std(dim=0), torch.ones(16), rtol=1e-3, atol=1e-3)


def test_frechet_distance_of_gaussians_with_known_moments():
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn(400, 4, generator=generator, dtype=torch.float64)
    raw -= raw.mean(dim=0)
    white = (
        raw @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(raw.T))).T
    )  # covariance exactly the identity
    spread, shift = torch.tensor([1.0, 2.0, 0.5, 3.0]).double(), torch.tensor([1.0, 0, -2, 0]).double()
    assert abs(metrics.frechet_distance(white, white)) < 1e-9
    # Diagonal covariances: |m|^2 + sum of (s_a - s_b)^2.
    expected = float(shift.square().sum() + (spread - 1).square().sum())
    assert metrics.frechet_distance(white, white * spread + shift) == pytest.approx(expected)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64)).Q
    assert metrics.frechet_distance(white @ turn, (white * spread + shift) @ turn) == pytest.approx(expected)
    with pytest.raises(ValueError, match="more than 4 rows"):
        metrics.frechet_distance(white[:4], white)


def test_memorisation_knows_copies_from_strangers():
    train = torch.randn(200, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    memory = metrics.Memorisation.of(train)
    assert memory.shares(train) == (1.0, 1.0)
    assert memory.shares(train + 100) == (0.0, 0.0)
    near, copies = memory.shares(torch.randn(400, 1, 8, 8, generator=torch.Generator().manual_seed(1)))
    assert 0.3 < near < 0.7 and copies < 0.2


def test_class_balanced():
    labels = torch.tensor([1, 0, 0, 1, 1, 0])
    assert metrics.class_balanced(labels, 2).tolist() == [1, 2, 0, 3]
    assert metrics.class_balanced(labels, 1, offset=2).tolist() == [5, 4]
    with pytest.raises(ValueError, match="fewer than 4"):
        metrics.class_balanced(labels, 4)


@pytest.mark.parametrize(
    ("loop", "solver", "path", "prediction"),
    [(plain.adams_bashforth2, "ab2", "linear", "velocity"), (plain.ddim, "ddim", "vp", "noise")],
)
def test_the_plain_samplers_are_the_same_samplers(loop, solver, path, prediction):
    def net(x, t, y):
        return torch.tanh(x) * (1 + t[:, None]) + y[:, None].to(x.dtype)

    x0 = pfc.randn(range(4), (3,), dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 0])
    sampler = pfc.Sampler(pfc.plan(solver, nfe=6, path=path, prediction=prediction), pfc.CFG(1.5))
    field = pfc.Field(net, prediction=prediction, path=path)
    expected = loop(net, x0, labels, 3, 1.5, 6)
    found = sampler(field, x0=x0, cond={"y": labels}, uncond={"y": torch.full_like(labels, 3)})
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_picture_is_a_png_of_the_right_pixels():
    import io

    from PIL import Image

    images = torch.linspace(-1.5, 1.5, 2 * 4).view(2, 1, 2, 2)
    sheet = Image.open(io.BytesIO(picture.png([("a", images), ("b", -images)], ["0", "1"], zoom=5)))
    assert sheet.format == "PNG"
    width, height = sheet.size
    right = sheet.getpixel((width - 2 - 1, height - 2 - 1))  # the last pixel of the second row, past the gap
    assert right == (0, 0, 0)
    with pytest.raises(ValueError, match="images must be"):
        picture.png([("a", images)], ["0"])


def test_a_missing_library_is_named(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name="sklearn")

    monkeypatch.setattr(optional.importlib, "import_module", missing)
    with pytest.raises(ImportError, match=r"scikit-learn .* pip install pyflowcore\[demo\]"):
        digits.load()


def test_networks_by_name_and_size():
    assert recipe.described(recipe.new_model()) == {"model": "dit", "width": 96, "depth": 4}
    assert recipe.described(recipe.new_model(kind="unet")) == {"model": "unet", "width": 32, "depth": 1}
    assert recipe.described(recipe.new_model(kind="unet", width=8, depth=2)) == {
        "model": "unet", "width": 8, "depth": 2,
    }  # fmt: skip
    assert recipe.described(models.MLP(2)) == {}
    with pytest.raises(ValueError, match=r"model must be one of \['dit', 'unet'\]; got 'vit'"):
        recipe.new_model(kind="vit")


@pytest.mark.parametrize(("model", "width"), [("dit", 16), ("unet", 8)])
def test_the_whole_demo(tmp_path, capsys, model, width):
    settings = demo.Settings(steps=2, per_class=2, epochs=1, repeats=1, model=model, width=width, depth=1)
    report = demo.run(tmp_path / "out", settings, progress=False)
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == ["diffusion.safetensors", "flow.safetensors", "samples.png", "table.txt"]
    assert [(row.solver, row.evaluations) for row in report.rows] == [
        ("ab2", 5),
        ("ab2", 10),
        ("ab2", 20),
        ("ddim", 50),
    ]
    for row in report.rows:
        assert row.difference < 1e-2 and 0 <= row.agreement <= 1 and row.frechet > 0
    assert report.drift < 1e-4
    text = (tmp_path / "out" / "table.txt").read_text()
    assert text == f"{report}\n" and "flow matching" in text and "real, held out" in text
    assert "held-out digits" in capsys.readouterr().out
