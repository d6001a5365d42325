"""models.UNet: shapes, its arithmetic, published parameter counts, zero starts, classes, refusals."""

import copy
import json
import math
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import pyflowcore as pfc
from pyflowcore import models
from pyflowcore.models.count import count
from pyflowcore.models.unet_blocks import Attention, Resample, ResBlock, group_norm
from pyflowcore.training import TrainConfig, Trainer


@pytest.fixture(autouse=True)
def one_thread():
    """Work this small is done sooner by one thread, on a machine that is busy above all."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small_unet(**changes):
    config = {"size": 8, "channels": 2, "width": 8, "multipliers": (1, 2), "blocks": 1, "attention": (2,)}
    return models.UNet(**(config | {"head_channels": 8, "num_classes": 3} | changes))


def trained(model, seed=0):
    """The model with every parameter random, as training would leave it: none of the zero starts is left."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def inputs(batch=3, channels=2, height=8, width=8, dtype=torch.float32, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, channels, height, width, generator=generator, dtype=dtype)
    return x, torch.rand(batch, generator=generator, dtype=dtype), torch.arange(batch) % 3


# ------------------------------------------------------------------------------------------------------ whole network
@pytest.mark.parametrize("resample", ["block", "conv", "pool"])
@pytest.mark.parametrize("scale_shift", [True, False])
@pytest.mark.parametrize(
    ("size", "channels", "width", "multipliers", "attention"),
    [(8, 2, 8, (1, 2), (2,)), ((6, 10), 3, 10, (1, 3), ()), ((4, 12), 1, 6, (1, 2, 1), (1, 4)), (5, 5, 14, (3,), (1,))],
)  # fmt: skip
def test_shapes_and_zero_start(resample, scale_shift, size, channels, width, multipliers, attention):
    model = models.UNet(
        size, channels, width, multipliers, 2, attention, head_channels=0, num_classes=3,
        scale_shift=scale_shift, resample=resample,
    )  # fmt: skip
    height, wide = (size, size) if isinstance(size, int) else size
    assert model.shape == (channels, height, wide)
    x, t, y = inputs(3, channels, height, wide)
    assert torch.equal(model(x, t, y), torch.zeros_like(x))
    answer = trained(model)(x, t, y)
    assert answer.shape == x.shape and answer.isfinite().all() and answer.abs().max() > 1e-3


@pytest.mark.parametrize("batch", [0, 1, 5])
def test_a_sample_does_not_depend_on_its_batch(batch):
    model = trained(small_unet()).double()
    x, t, y = inputs(5, dtype=torch.float64)
    whole = model(x, t, y)
    torch.testing.assert_close(model(x[:batch], t[:batch], y[:batch]), whole[:batch], rtol=1e-10, atol=1e-10)


def test_other_sizes_than_its_own():
    model = trained(small_unet())
    x, t, y = inputs(2, 2, 4, 14)
    assert model(x, t, y).shape == x.shape


def test_zero_start_still_learns_and_gradients_reach_every_parameter():
    model = small_unet(dropout=0.1)
    x, t, y = inputs(4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = {name: 0.0 for name, _ in model.named_parameters()}
    for _ in range(4):  # the last convolution, then those of the blocks, then what is below
        optimizer.zero_grad()
        (model(x, t, y) - x).square().mean().backward()
        optimizer.step()
        for name, parameter in model.named_parameters():
            seen[name] = max(seen[name], float(parameter.grad.abs().max()))
    assert [name for name, largest in seen.items() if largest == 0.0] == []


@pytest.mark.parametrize("scale_shift", [True, False])
def test_gradients_against_finite_differences(scale_shift):
    model = trained(small_unet(channels=1, scale_shift=scale_shift)).double()
    x, t, y = inputs(1, 1, 2, 2, torch.float64)
    assert torch.autograd.gradcheck(lambda x: model(x, t, y), (x.requires_grad_(),))


def test_without_labels_is_the_null_class():
    model = trained(small_unet())
    x, t, _ = inputs(2)
    assert model.null_class == 3
    none = model(x, t)
    assert torch.equal(none, model(x, t, torch.full((2,), 3)))
    assert not torch.allclose(none, model(x, t, torch.full((2,), 1)))
    bare = trained(small_unet(num_classes=0))
    assert bare.null_class is None and bare(x, t).shape == x.shape


def test_every_input_matters():
    model = trained(small_unet()).double()
    x, t, y = inputs(3, dtype=torch.float64)
    base = model(x, t, y)
    for other in (model(x, t + 0.01, y), model(x, t, (y + 1) % 3), model(x.roll(1, dims=0), t, y)):
        assert (other - base).flatten(1).abs().amax(dim=1).min() > 1e-4
    # Convolutions and attention see where a pixel lies by the image's edges alone: mirrored weights, mirrored answer.
    mirrored = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in mirrored.parameters():
            if parameter.dim() == 4:
                parameter.copy_(parameter.flip(-1))
    torch.testing.assert_close(mirrored(x.flip(-1), t, y).flip(-1), base, rtol=1e-9, atol=1e-9)


def test_float64_differs_from_float32_by_rounding_alone():
    model = trained(small_unet())
    x, t, y = inputs(3)
    single = model(x, t, y)
    double = copy.deepcopy(model).double()(x.double(), t.double(), y)
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=1e-4)


def test_bfloat16_runs_in_bfloat16():
    x, t, y = inputs(2)
    answer = trained(small_unet()).to(torch.bfloat16)(x.to(torch.bfloat16), t, y)
    assert answer.dtype == torch.bfloat16 and answer.isfinite().all()


def test_dropout_acts_in_training_alone():
    model = trained(small_unet(dropout=0.5))
    x, t, y = inputs(2)
    assert torch.equal(model(x, t, y), model(x, t, y))
    model.train()
    assert not torch.allclose(model(x, t, y), model(x, t, y))


def test_config_state_dict_and_checkpoints_come_back():
    model = trained(small_unet(size=(8, 4), scale_shift=False, resample="pool", dropout=0.2))
    config = json.loads(json.dumps(model.config))
    again = models.build("UNet", config).eval()
    again.load_state_dict(model.state_dict())
    assert again.config == model.config and again.shape == (2, 8, 4)
    x, t, y = inputs(2, 2, 8, 4)
    assert torch.equal(again(x, t, y), model(x, t, y))


def test_it_is_a_field_with_guidance():
    model = trained(small_unet())
    sampler = pfc.Sampler(pfc.plan("heun", 2), pfc.CFG(1.5))
    y = torch.tensor([0, 2])
    samples = sampler(
        model, shape=model.shape, seeds=range(2), cond={"y": y}, uncond={"y": torch.full_like(y, 3)}
    )
    assert samples.shape == (2, 2, 8, 8) and samples.isfinite().all()


def test_training_with_dropout_goes_on_exactly(tmp_path):
    pytest.importorskip("safetensors")
    images, labels = inputs(12)[0], torch.arange(12) % 3
    config = TrainConfig(batch_size=4, warmup=2, seed=5)

    def trainer():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return Trainer(small_unet(dropout=0.5), images, labels, config)

    whole, half = trainer(), trainer()
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    whole.run(4)
    assert torch.equal(torch.rand(1), expected)  # torch's generator is left as it was
    half.run(2)
    half.save(tmp_path / "half.safetensors")
    torch.rand(7)  # and what others draw from it does not matter
    rest = Trainer.resume(tmp_path / "half.safetensors", images, labels)
    rest.run(4)
    for ours, theirs in zip(rest.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    other = trainer()
    other.model.load_state_dict(half.model.state_dict())
    with other._dropout():
        first = other.model(*inputs(2))
    other.step = 1
    with other._dropout():
        second = other.model(*inputs(2))
    assert not torch.equal(first, second)


# ------------------------------------------------------------------------------------------------------------- counts
# What the published definitions hold: openai/guided-diffusion for ImageNet (its paper rounds to 296 M and 554 M), torchcfm
# 1.0.7 and facebookresearch/flow_matching for CIFAR-10; the class embedding has one row more, the null class.
PUBLISHED = {
    "ADM-64": 295_904_454 + 4 * 192,
    "ADM-256": 553_838_086 + 4 * 256,
    "CFM-CIFAR10": 35_746_307,
    "FM-CIFAR10": 55_676_419,
}
PAGE = Path(__file__).parents[1] / "docs" / "models.md"
ROW = re.compile(r"^\| (\S+) \| (\d+) x \d+ \| ([\d,]+) \| ([\d.]+) G \|", re.MULTILINE)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    """Parameters as published, multiply-adds as docs/models.md says (and, of ADM-256, Peebles & Xie 2023: 1120 G)."""
    said = {row[0]: row[1:] for row in ROW.findall(PAGE.read_text())}[name]
    with torch.device("meta"):
        model = models.named(name)
        assert isinstance(model, models.UNet)
        y = torch.empty(1, dtype=torch.int64) if model.num_classes else None
        found = count(model, torch.empty(1, *model.shape), torch.empty(1), y)
    assert found.parameters == PUBLISHED[name]
    assert (str(model.shape[1]), f"{found.parameters:,}", f"{found.multiply_adds / 1e9:.2f}") == said
    assert name != "ADM-256" or round(found.multiply_adds / 1e9) == 1120


def test_outputs_beyond_the_channels_are_dropped():
    model = trained(small_unet(outputs=5))
    x, t, y = inputs(2)
    whole = []
    model.out.register_forward_hook(lambda module, args, output: whole.append(output))
    answer = model(x, t, y)
    assert whole[0].shape == (2, 5, 8, 8) and torch.equal(answer, whole[0][:, :2])


def test_the_time_is_scaled_before_its_sinusoids():
    model = trained(small_unet())
    own = models.UNet(**model.config | {"time_scale": 1.0}).eval()
    own.load_state_dict(model.state_dict())
    x, t, y = inputs(2)
    torch.testing.assert_close(own(x, 1000 * t, y), model(x, t, y), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(own(x, t, y), model(x, t, y), atol=1e-3)


# ------------------------------------------------------------------------------------------------------------- pieces
def reference_group_norm(x, groups, weight, bias):
    batch, channels = x.shape[:2]
    grouped = x.reshape(batch, groups, -1)
    centred = grouped - grouped.mean(dim=-1, keepdim=True)
    scaled = centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()
    return scaled.reshape(x.shape) * weight.view(1, channels, 1, 1) + bias.view(1, channels, 1, 1)


@pytest.mark.parametrize(
    ("channels", "groups"),
    [
        (128, 32),
        (192, 32),
        (384, 32),
        (576, 32),
        (64, 16),
        (80, 16),
        (96, 16),
        (48, 8),
        (15, 1),
        (4, 1),
        (1, 1),
    ],
)
def test_groups_of_at_least_four_channels(channels, groups):
    norm = group_norm(channels)
    assert norm.num_groups == groups and norm.num_channels == channels


def test_groups_as_asked():
    assert group_norm(128, 8).num_groups == 8
    assert group_norm(30, 6).num_groups == 6
    assert group_norm(15, 3).num_groups == 3


@pytest.mark.parametrize("direction", [None, "down", "up"])
@pytest.mark.parametrize("scale_shift", [True, False])
def test_a_residual_block_is_its_formula(direction, scale_shift):
    block = trained(ResBlock(8, 12, 5, scale_shift=scale_shift, direction=direction)).double()
    x, _, _ = inputs(2, 8, 4, 6, torch.float64)
    c = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    sized = {
        None: lambda v: v,
        "down": lambda v: v.reshape(2, 8, v.shape[2] // 2, 2, v.shape[3] // 2, 2).mean(dim=(3, 5)),
        "up": lambda v: v.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3),
    }[direction]

    def silu(v):
        return v / (1 + torch.exp(-v))

    def conv(layer, v):
        return F.conv2d(v, layer.weight, layer.bias, padding=layer.weight.shape[-1] // 2)

    norm1, norm2 = block.norm1, block.norm2
    h = conv(block.conv1, sized(silu(reference_group_norm(x, norm1.num_groups, norm1.weight, norm1.bias))))
    said = (silu(c) @ block.modulation.weight.T + block.modulation.bias)[:, :, None, None]
    if scale_shift:
        h = reference_group_norm(h, norm2.num_groups, norm2.weight, norm2.bias)
        h = h * (1 + said[:, :12]) + said[:, 12:]
    else:
        h = reference_group_norm(h + said, norm2.num_groups, norm2.weight, norm2.bias)
    expected = conv(block.skip, sized(x)) + conv(block.conv2, silu(h))
    torch.testing.assert_close(block(x, c), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("head_channels", "heads"), [(0, 1), (3, 4), (12, 1)])
def test_attention_is_softmax_attention_among_pixels(head_channels, heads):
    attention = trained(Attention(12, head_channels)).double()
    x, _, _ = inputs(2, 12, 2, 3, torch.float64)
    norm = attention.norm
    tokens = reference_group_norm(x, norm.num_groups, norm.weight, norm.bias).flatten(2).transpose(1, 2)
    q, k, v = (tokens @ attention.qkv.weight.T + attention.qkv.bias).split(12, dim=-1)
    mixed, wide = [], 12 // heads
    for head in range(heads):
        part = slice(head * wide, (head + 1) * wide)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(wide)
        mixed.append(scores.softmax(dim=-1) @ v[..., part])
    out = torch.cat(mixed, dim=-1) @ attention.out.weight.T + attention.out.bias
    expected = x + out.transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(attention(x, torch.empty(2, 0)), expected, rtol=1e-12, atol=1e-12)


def test_pieces_start_as_they_should():
    x, _, _ = inputs(2, 8)
    c = torch.randn(2, 5)
    assert torch.equal(ResBlock(8, 8, 5)(x, c), x)
    assert torch.equal(Attention(8, 4)(x, c), x)


@pytest.mark.parametrize("convolution", [True, False])
def test_resample_sizes_and_constants(convolution):
    for direction, side in (("down", 4), ("up", 16)):
        piece = Resample(8, direction, convolution=convolution)
        x = torch.full((1, 8, 8, 8), 0.5)
        answer = piece(x, torch.empty(1, 0))
        assert answer.shape == (1, 8, side, side)
        assert torch.equal(answer, torch.full_like(answer, 0.5)) is not convolution
        assert bool(list(piece.parameters())) is convolution


def test_the_way_up_takes_the_way_down_in_reverse():
    model = trained(small_unet(blocks=2))
    kept, taken = [], []
    for piece in [model.stem, *model.down]:
        piece.register_forward_hook(lambda module, args, output: kept.append(output))
    for piece in model.up:
        piece.register_forward_pre_hook(lambda module, args: taken.append(args[0]))
    model(*inputs(2))
    assert len(kept) == len(taken) == 6
    for given, joined in zip(reversed(kept), taken, strict=True):
        assert torch.equal(joined[:, -given.shape[1] :], given)


# ----------------------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: small_unet(size=9), "size must be one multiple of 2 .*; got 9"),
        (lambda: small_unet(size=(8, 6), multipliers=(1, 1, 1)), r"size must be .* 4 .*; got \[8, 6\]"),
        (lambda: small_unet(size=(8, 8, 8)), "size must be"),
        (lambda: small_unet(channels=0), "channels must be at least 1; got 0"),
        (lambda: small_unet(blocks=0), "blocks must be at least 1; got 0"),
        (lambda: small_unet(groups=0), "groups must be at least 1"),
        (lambda: small_unet(num_classes=-1), "num_classes must be at least 0"),
        (lambda: small_unet(head_channels=-1), "head_channels must be at least 0"),
        (lambda: small_unet(head_channels=3), "head_channels must divide the 16 channels at factor 2; got 3"),
        (lambda: small_unet(width=7), "width must be even and at least 2; got 7"),
        (lambda: small_unet(multipliers=()), "multipliers must be"),
        (lambda: small_unet(multipliers=(1, 0)), "multipliers must be"),
        (lambda: small_unet(attention=(3,)), r"attention must be some of the factors \[1, 2\]; got \[3\]"),
        (lambda: small_unet(dropout=1.0), r"dropout must be within \[0, 1\)"),
        (lambda: small_unet(dropout=float("nan")), r"dropout must be within \[0, 1\)"),
        (lambda: small_unet(outputs=1), "outputs must be at least channels=2; got 1"),
        (lambda: small_unet(time_scale=float("inf")), "time_scale must be finite"),
        (lambda: small_unet(resample="stride"), 'resample must be "block", "conv" or "pool"'),
        (lambda: small_unet()(torch.zeros(1, 1, 8, 8), torch.zeros(1)), r"x must be \[B, 2, H, W\]"),
        (lambda: small_unet()(torch.zeros(1, 2, 8, 7), torch.zeros(1)), "multiples of 2"),
        (lambda: small_unet()(torch.zeros(2, 8, 8), torch.zeros(2)), "x must be"),
        (lambda: small_unet()(torch.zeros(2, 2, 8, 8), torch.zeros(1)), "t must hold one time a sample"),
        (lambda: small_unet()(torch.zeros(2, 2, 8, 8), torch.zeros(2), torch.zeros(1).long()), "y must hold"),
        (
            lambda: small_unet(num_classes=0)(torch.zeros(1, 2, 8, 8), torch.zeros(1), torch.zeros(1).long()),
            "y was given to a UNet without classes",
        ),
        (lambda: models.build("UNet", {"sizes": 8}), "config does not fit UNet"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()
