"""The two-stream transformer: masks, joint attention, zero start, published sizes, and diffusers' networks weight by weight."""

import pytest
import torch

import pyflowcore as pfc
from pyflowcore import models
from pyflowcore.models.mmdit import MMDiT, attend
from pyflowcore.models.rope import apply_rotary
from reference import diffusers_mmdit

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = {"size": 8, "channels": 2, "patch": 2, "width": 24, "heads": 2, "text_width": 10, "time_dim": 16}
SD3 = {**SHAPE, "double": 2, "pooled_width": 6}
SD35 = {**SD3, "qk_norm": True, "positions": "learned", "max_side": 6}
FLUX = {
    **SHAPE, "double": 2, "single": 2, "pooled_width": 6, "positions": "rope", "axes": (4, 4, 4),
    "qk_norm": True, "guidance": True,
}  # fmt: skip
KINDS = {"sd3": SD3, "sd35": SD35, "flux": FLUX}


@pytest.fixture(params=list(KINDS))
def kind(request):
    return KINDS[request.param]


def randn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def trained(kind, seed=0):
    """The network in float64 with every parameter random: none of the zero starts is left."""
    model = MMDiT(**kind).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def inputs(kind, batch=3, length=5, sides=(8, 8)):
    """x, t, text and the rest by name; of the text, sample i has length - i real tokens."""
    mask = torch.arange(length) < length - torch.arange(batch)[:, None]
    found = {
        "x": randn(batch, 2, *sides, seed=1),
        "t": torch.tensor([0.1, 0.5, 0.875])[:batch],
        "text": randn(batch, length, 10, seed=2),
        "mask": mask,
        "pooled": randn(batch, 6, seed=3),
    }
    if kind.get("guidance"):
        found["guidance"] = torch.tensor([1.0, 3.5, 7.0])[:batch]
    return found


def close(a, b, tolerance=1e-12):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_fresh_network_answers_zero_and_its_blocks_change_nothing(kind):
    model, given = MMDiT(**kind).double(), inputs(kind)
    assert torch.equal(model(**given), torch.zeros_like(given["x"]))
    text, image, c = randn(2, 5, 24, seed=4), randn(2, 16, 24, seed=5), randn(2, 24, seed=6)
    rotary = model.rotary(5, 4, 4, image)
    for block in model.double_blocks:
        after = block(text, image, c, rotary, None)
        assert torch.equal(after[0], text) and torch.equal(after[1], image)
    for block in model.single_blocks:
        assert torch.equal(block(image, c, model.rotary(0, 4, 4, image), None), image)


@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize("sides", [(8, 8), (4, 6)])
def test_shapes(kind, batch, sides):
    given = inputs(kind, batch=batch, sides=sides)
    assert trained(kind)(**given).shape == given["x"].shape


def test_what_a_masked_token_holds_changes_nothing_to_the_bit(kind):
    model, given = trained(kind), inputs(kind)
    before = model(**given)
    for junk in (1e3, torch.inf, torch.nan):
        text = given["text"].masked_fill(~given["mask"][..., None], junk)
        assert torch.equal(model(**{**given, "text": text}), before)
    real = given["text"].clone()
    real[0, 0, 0] += 1e-3
    assert not torch.equal(model(**{**given, "text": real})[0], before[0])


def test_masked_tokens_are_as_good_as_absent(kind):
    model, given = trained(kind), inputs(kind)
    whole = model(**given)
    for sample in range(3):
        alone = {name: value[sample : sample + 1] for name, value in given.items() if name != "mask"}
        alone["text"] = alone["text"][:, : 5 - sample]
        close(model(**alone)[0], whole[sample])
    close(model(**{**given, "mask": torch.ones(3, 5, dtype=torch.bool)}), model(**{**given, "mask": None}))
    nothing = model(**{**given, "mask": torch.zeros(3, 5, dtype=torch.bool)})
    close(nothing, model(**{**given, "text": given["text"][:, :0], "mask": None}))


def test_text_is_a_set_without_positions_and_so_it_is_with_rotary_ones(kind):
    """Neither SD3 nor FLUX tells text tokens their places: the encoder has."""
    model, given = trained(kind), inputs(kind)
    order = torch.tensor([3, 0, 4, 1, 2])
    shuffled = {**given, "text": given["text"][:, order], "mask": given["mask"][:, order]}
    close(model(**shuffled), model(**given))


def test_every_input_is_heard(kind):
    model, given = trained(kind), inputs(kind)
    before = model(**given)
    for name in sorted(set(given) - {"mask"}):
        changed = {**given, name: given[name] * 1.01}
        assert (model(**changed) - before).abs().amax(dim=(1, 2, 3)).min() > 1e-6, name


def test_image_tokens_know_their_places(kind):
    model, given = trained(kind), inputs(kind)
    for axis in (-1, -2):
        rolled = {**given, "x": given["x"].roll(2, dims=axis)}
        moved = model(**rolled).roll(-2, dims=axis)
        assert (moved - model(**given)).abs().max() > 1e-4


def test_gradients_reach_every_parameter(kind):
    model, given = trained(kind), inputs(kind)
    model(**given).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_zero_start_still_learns(kind):
    model, given = MMDiT(**kind).double(), inputs(kind)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(5):  # the head, then the image's modulations, then the text's, then what is below
        optimizer.zero_grad()
        (model(**given) - given["x"]).square().mean().backward()
        optimizer.step()
    assert all(parameter.grad.abs().max() > 0 for parameter in model.parameters())


def test_half_precision(kind):
    model, given = trained(kind).to(torch.bfloat16), inputs(kind)
    given["x"] = given["x"].to(torch.bfloat16)
    assert model(**given).dtype == torch.bfloat16
    close(model(**given).double(), trained(kind)(**inputs(kind)), tolerance=0.2)


def test_joint_attention_by_hand():
    """Fewer queries than keys, a mask and rotary angles, against softmax written out."""
    model = MMDiT(**FLUX)
    q, k, v = (randn(2, 2, count, 12, seed=seed) for count, seed in ((4, 1), (7, 2), (7, 3)))
    mask = torch.tensor([[True, False, True, True, True, True, True], [True] * 7])
    cos, sin = model.rotary(3, 2, 2, q)
    assert torch.equal(cos[:3], torch.ones(3, 6).double())  # text is not turned

    def turned(z, cos, sin):
        pairs = torch.view_as_complex(z.reshape(*z.shape[:-1], 6, 2).contiguous())
        return torch.view_as_real(pairs * torch.complex(cos, sin)).flatten(-2)

    logits = turned(q, cos[3:], sin[3:]) @ turned(k, cos, sin).transpose(-1, -2) / 12**0.5
    weights = logits.masked_fill(~mask[:, None, None], -torch.inf).softmax(dim=-1)
    expected = (weights @ v).transpose(1, 2).reshape(2, 4, 24)
    close(attend(q, k, v, (cos, sin), mask[:, None, None]), expected)


def test_rotary_sees_differences_of_places_alone():
    """A patch image twice as tall: the lower half's tokens attend to each other as the upper half's do."""
    model = MMDiT(**FLUX)
    cos, sin = model.rotary(0, 4, 2, randn(1, seed=0))
    q, k = randn(4, 12, seed=1), randn(4, 12, seed=2)
    upper = apply_rotary(q, cos[:4], sin[:4]) @ apply_rotary(k, cos[:4], sin[:4]).T
    lower = apply_rotary(q, cos[4:], sin[4:]) @ apply_rotary(k, cos[4:], sin[4:]).T
    close(upper, lower)


def test_smaller_images_take_the_middle_of_the_positions():
    model = MMDiT(**{**SD3, "max_side": 6})
    whole = model.places(6, 6).view(6, 6, 24)
    assert torch.equal(model.places(2, 4).view(2, 4, 24), whole[2:4, 1:5])
    axis = torch.arange(6) * (4 / 6)  # 4 patches along a side of the usual size, spread over 6 places
    first = torch.cat([axis.sin(), axis.cos()]).view(2, 6).T
    torch.testing.assert_close(whole[3, :, [0, 6]], first)  # columns come in the first half
    torch.testing.assert_close(whole[:, 3, [12, 18]], first)
    learned = MMDiT(**SD35)
    assert torch.equal(learned.places(2, 4), MMDiT(**{**SD3, "max_side": 6}).places(2, 4))
    assert "table" in dict(learned.named_parameters())


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("SD3-medium", 2_028_328_000),
        ("SD3.5-large", 8_056_627_520 - 64),  # diffusers keeps a scale of queries that nobody asks
        ("FLUX-schnell", 11_891_178_560),
        ("FLUX-dev", 11_901_408_320),
    ],
)
def test_published_sizes(name, count):
    with torch.device("meta"):
        model = models.named(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    assert model.shape == (16, 128, 128)
    small = models.named(name, width=512, heads=4, double=1, single=1)
    assert small.config["text_width"] == 4096 and small.width == 512


def test_against_diffusers_sd3():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    theirs = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=2, num_layers=2, attention_head_dim=12, num_attention_heads=2,
        joint_attention_dim=10, caption_projection_dim=24, pooled_projection_dim=6, out_channels=2,
        pos_embed_max_size=6, qk_norm="rms_norm",
    ).double()  # fmt: skip
    ours = MMDiT(**{**SD3, "qk_norm": True, "max_side": 6, "time_dim": 256}).double()
    ours.load_state_dict(
        diffusers_mmdit.translated(theirs.state_dict(), double=2, single=0, patch=2, channels=2)
    )
    given = inputs(SD3, sides=(8, 4))
    with torch.no_grad():
        expected = theirs(given["x"], given["text"], given["pooled"], 1000 * given["t"], return_dict=False)[0]
        found = ours(given["x"], given["t"], given["text"], pooled=given["pooled"])
    assert expected.abs().max() > 0.1
    close(found, expected, tolerance=1e-6)  # their positions are made in float32


def test_against_diffusers_flux():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    theirs = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=8, num_layers=2, num_single_layers=2, attention_head_dim=12, num_attention_heads=2,
        joint_attention_dim=10, pooled_projection_dim=6, guidance_embeds=True, axes_dims_rope=(4, 4, 4),
    ).double()  # fmt: skip
    ours = MMDiT(**{**FLUX, "time_dim": 256}).double()
    ours.load_state_dict(
        diffusers_mmdit.translated(theirs.state_dict(), double=2, single=2, patch=2, channels=2)
    )
    given = inputs(FLUX, sides=(8, 4))
    tokens = given["x"].unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).reshape(3, 8, 8)
    places = torch.tensor([[0.0, row, column] for row in range(4) for column in range(2)])
    with torch.no_grad():
        expected = theirs(
            tokens, given["text"], given["pooled"], given["t"], img_ids=places, txt_ids=torch.zeros(5, 3),
            guidance=given["guidance"], return_dict=False,
        )[0]  # fmt: skip
        found = ours(**{**given, "mask": None})
    assert expected.abs().max() > 0.1
    close(ours.patchify(found), expected, tolerance=1e-6)  # their angles are rounded to float32


def test_sampling_with_text_guidance():
    """The conditions go through the sampler as they are, masks included, and guidance doubles them."""
    model, given = trained(SD3).float(), inputs(SD3, batch=2)
    cond = {name: given[name] for name in ("text", "mask", "pooled")}
    cond = {name: value.float() if value.is_floating_point() else value for name, value in cond.items()}
    uncond = {"text": cond["text"] * 0, "mask": cond["mask"], "pooled": cond["pooled"] * 0}
    sampler = pfc.Sampler(pfc.plan("euler", 3), guidance=pfc.CFG(2.0))
    with torch.no_grad():
        found = sampler(pfc.Field(model), shape=model.shape, seeds=[0, 1], cond=cond, uncond=uncond)
    x = pfc.randn([0, 1], model.shape)
    for step in range(3):
        t = torch.full((2,), step / 3)
        with torch.no_grad():
            with_text, without = model(x, t, **cond), model(x, t, **uncond)
        x = x + (without + 2.0 * (with_text - without)) / 3
    torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-4)


def test_build_from_name_and_config(kind):
    model = MMDiT(**kind)
    again = models.build("MMDiT", model.config)
    again.load_state_dict(model.state_dict())
    assert again.config == model.config and again.null_class is None and again.num_classes == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MMDiT(**{**SD3, "patch": 3}), "patch must divide size"),
        (lambda: MMDiT(**{**SD3, "heads": 5}), "multiple of 4 and of heads"),
        (lambda: MMDiT(**{**SD3, "double": 0}), "double and text_width must be at least 1"),
        (lambda: MMDiT(**{**SD3, "time_dim": 7}), "time_dim must be even"),
        (lambda: MMDiT(**{**SD3, "positions": "alibi"}), "positions must be one of"),
        (lambda: MMDiT(**{**SD3, "positions": "rope"}), "axes must hold three numbers"),
        (lambda: MMDiT(**{**SD3, "axes": (4, 4, 4)}), "axes must hold three numbers"),
        (lambda: MMDiT(**{**FLUX, "axes": (4, 4)}), "axes must hold three numbers"),
        (lambda: MMDiT(**{**FLUX, "axes": (4, 4, 6)}), "at most head_dim=12"),
        (lambda: MMDiT(**{**SD3, "max_side": 3}), "max_side must be at least the 4 patches"),
        (lambda: models.named("SD4"), "name must be one of"),
        (lambda: models.build("MMDiT", {"depth": 3}), "config does not fit MMDiT"),
    ],
)
def test_refused_sizes(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(3, 1, 8, 8)}, r"x must be \[B, 2, H, W\]"),
        ({"x": torch.zeros(3, 2, 8, 7)}, "multiples of 2"),
        ({"x": torch.zeros(3, 2, 8, 10)}, "sides of at most 8"),
        ({"text": torch.zeros(3, 5, 9)}, r"text must be \[3, L, 10\]"),
        ({"text": torch.zeros(2, 5, 10)}, r"text must be \[3, L, 10\]"),
        ({"mask": torch.ones(3, 4, dtype=torch.bool)}, "mask must be"),
        ({"mask": torch.ones(3, 5)}, "of bool"),
        ({"pooled": None}, r"pooled must be \[3, 6\]; got None"),
        ({"pooled": torch.zeros(3, 5)}, "pooled must be"),
        ({"guidance": torch.zeros(3)}, "guidance was given to an MMDiT"),
    ],
)
def test_refused_inputs(changes, message):
    given = inputs(SD3)
    with pytest.raises(ValueError, match=message):
        MMDiT(**SD3).double()(**{**given, **changes})
    with pytest.raises(ValueError, match=r"guidance must be \[3\]; got None"):
        MMDiT(**FLUX).double()(**given)
