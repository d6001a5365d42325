"""Reference networks: shapes, zero starts, null classes, patches, embeddings."""

import math

import pytest
import torch

from pyflowcore import models
from pyflowcore.models.embeddings import sincos_positions, timestep_embedding


@pytest.fixture(autouse=True)
def one_thread():
    """Work this small is done sooner by one thread, on a machine that is busy above all."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small_dit(**changes):
    return models.DiT(
        **({"size": 8, "channels": 2, "patch": 2, "width": 16, "depth": 2, "heads": 2} | changes)
    )


def trained(model, seed=0):
    """The model with every parameter random, as training would leave it: none of the zero starts is left."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_dit_shapes_and_zero_start(batch):
    model = small_dit()
    x, t, y = torch.randn(batch, 2, 8, 8), torch.rand(batch), torch.zeros(batch, dtype=torch.int64)
    assert torch.equal(model(x, t, y), torch.zeros_like(x))
    assert trained(model)(x, t, y).shape == x.shape


def test_dit_blocks_start_as_the_identity():
    model = small_dit()
    tokens, c = torch.randn(2, 16, 16), torch.randn(2, 16)
    for block in model.blocks:
        assert torch.equal(block(tokens, c), tokens)


def test_dit_zero_start_still_learns():
    model = small_dit()
    x, t, y = torch.randn(4, 2, 8, 8), torch.rand(4), torch.arange(4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):  # the head, then its modulation, then what is below
        optimizer.zero_grad()
        (model(x, t, y) - x).square().mean().backward()
        optimizer.step()
    assert all(parameter.grad.abs().max() > 0 for parameter in model.parameters())


def test_dit_without_labels_is_the_null_class():
    model = trained(small_dit(num_classes=3))
    x, t = torch.randn(2, 2, 8, 8), torch.rand(2)
    assert model.null_class == 3
    none = model(x, t)
    assert torch.equal(none, model(x, t, torch.full((2,), 3)))
    assert not torch.equal(none, model(x, t, torch.full((2,), 1)))


def test_dit_patches_are_squares_in_reading_order_and_come_back():
    model = small_dit()
    x = torch.arange(2 * 2 * 8 * 8, dtype=torch.float32).view(2, 2, 8, 8)
    tokens = model.patchify(x)
    assert tokens.shape == (2, 16, 8)
    assert torch.equal(tokens[1, 5], x[1, :, 2:4, 2:4].flatten())
    assert torch.equal(model.unpatchify(tokens), x)


def test_dit_tells_time_place_and_class_apart():
    model = trained(small_dit())
    x = torch.randn(1, 2, 8, 8)
    base = model(x, torch.tensor([0.5]), torch.tensor([1]))
    assert not torch.allclose(base, model(x, torch.tensor([0.51]), torch.tensor([1])), atol=1e-4)
    assert not torch.allclose(base, model(x, torch.tensor([0.5]), torch.tensor([2])), atol=1e-4)
    moved = model(x.roll(2, dims=-1), torch.tensor([0.5]), torch.tensor([1])).roll(-2, dims=-1)
    assert not torch.allclose(base, moved, atol=1e-4)


def test_dit_in_half_precision_embeds_time_in_float32():
    model = trained(small_dit()).to(torch.bfloat16)
    x = torch.randn(2, 2, 8, 8, dtype=torch.bfloat16)
    assert model(x, torch.tensor([0.1, 0.9]), torch.tensor([0, 1])).dtype == torch.bfloat16
    t = torch.tensor([0.9931640625], dtype=torch.float16)
    assert timestep_embedding(t, 8).dtype == torch.float32


def test_timestep_embedding_against_its_formula():
    embedding = timestep_embedding(torch.tensor([0.0, 0.25]), 6)
    phases = [250.0 / 10000 ** (k / 3) for k in range(3)]
    expected = torch.tensor([math.cos(p) for p in phases] + [math.sin(p) for p in phases])
    torch.testing.assert_close(embedding[1], expected, rtol=0, atol=1e-4)
    assert torch.equal(embedding[0], torch.tensor([1.0, 1, 1, 0, 0, 0]))


def test_positions_are_all_different():
    positions = sincos_positions(4, 16)
    assert positions.shape == (16, 16)
    assert torch.cdist(positions, positions).fill_diagonal_(1.0).min() > 0.1


def test_mlp_zero_start_classes_and_condition():
    model = models.MLP(3, hidden=16, depth=2, num_classes=4, cond_dim=2)
    x, t, c = torch.randn(5, 3), torch.rand(5), torch.randn(5, 2)
    y = torch.tensor([0, 1, 2, 3, 4])
    assert torch.equal(model(x, t, y, c), torch.zeros_like(x))
    trained(model)
    answer = model(x, t, y, c)
    assert answer.shape == x.shape
    assert torch.equal(answer[4:], model(x[4:], t[4:], None, c[4:])) or torch.allclose(
        answer[4:], model(x[4:], t[4:], None, c[4:]), atol=1e-6
    )
    assert not torch.allclose(answer, model(x, t, y, c + 1))
    assert not torch.allclose(answer, model(x, t, (y + 1) % 4, c))


def test_mlp_without_conditions():
    model = models.MLP(2)
    assert model.null_class is None
    assert model(torch.randn(7, 2), torch.rand(7)).shape == (7, 2)


@pytest.mark.parametrize("model", [small_dit(num_classes=3), models.MLP(4, hidden=8, depth=1, num_classes=2)])
def test_build_from_name_and_config(model):
    again = models.build(type(model).__name__, model.config)
    again.load_state_dict(model.state_dict())
    assert again.config == model.config


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: small_dit(patch=3), "patch must divide size"),
        (lambda: small_dit(width=18), "multiple of 4"),
        (lambda: small_dit(heads=3), "multiple of 4 and of heads"),
        (lambda: small_dit(depth=0), "at least 1"),
        (lambda: models.MLP(0), "dim, hidden and depth"),
        (lambda: models.MLP(2, time_dim=3), "time_dim"),
        (lambda: models.build("Net", {}), "name must be one of"),
        (lambda: models.build("MLP", {"dims": 2}), "config does not fit MLP"),
        (lambda: small_dit()(torch.zeros(1, 1, 8, 8), torch.zeros(1)), r"x must be \[B, 2, 8, 8\]"),
        (lambda: small_dit()(torch.zeros(1, 2, 8, 8), torch.zeros(1), torch.zeros(2).long()), "y must hold"),
        (lambda: models.MLP(2)(torch.zeros(1, 3), torch.zeros(1)), r"x must be \[B, 2\]"),
        (lambda: models.MLP(2)(torch.zeros(1, 2), torch.zeros(1), torch.zeros(1).long()), "num_classes"),
        (lambda: models.MLP(2, cond_dim=3)(torch.zeros(1, 2), torch.zeros(1)), "c must be"),
        (lambda: models.MLP(2)(torch.zeros(1, 2), torch.zeros(1), c=torch.zeros(1, 1)), "cond_dim"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()
