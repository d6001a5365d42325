"""The options of the diffusion transformer: against NumPy, what each promises, and that each learns."""

from __future__ import annotations

import math

import pytest
import torch

import pyflowcore as pfc
from pyflowcore import models
from pyflowcore.models.dit import Attention
from pyflowcore.models.feedforward import SwiGLU, make_feedforward
from pyflowcore.models.norms import make_norm
from reference import transformers

SMALL = {"size": 6, "channels": 2, "patch": 2, "width": 16, "depth": 2, "heads": 2, "num_classes": 3}
LIGHTNING = {
    "mlp": "swiglu",
    "norm": "rms",
    "norm_affine": True,
    "rope": True,
    "time_dim": 6,
    "time_scale": 1.0,
}
OPTIONS = {
    "default": {},
    "rms": {"norm": "rms"},
    "affine": {"norm_affine": True},
    "qk rms": {"qk_norm": "rms"},
    "qk layer": {"qk_norm": "layer"},
    "swiglu": {"mlp": "swiglu"},
    "rope": {"rope": True},
    "rope alone": {"rope": True, "positions": "none"},
    "learned": {"positions": "learned"},
    "time": {"time_dim": 10, "time_scale": 3.0},
    "no class": {"num_classes": 0},
    "vector": {"num_classes": 0, "cond_dim": 5},
    "class and vector": {"cond_dim": 5},
    "outputs": {"outputs": 5},
    "lightning": LIGHTNING,
    "all": LIGHTNING | {"qk_norm": "rms", "cond_dim": 5, "outputs": 4, "positions": "learned"},
}
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())


def generator(seed):
    return torch.Generator().manual_seed(seed)


def small(options, *, trained=True):
    """A small network, with every parameter random, as training would leave it, unless it is to stay fresh."""
    model = models.DiT(**(SMALL | options))
    if trained:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator(parameter.numel())))
    return model


def inputs(model, batch=3, seed=0, dtype=torch.float32):
    """What forward takes, by name: x, t, and the conditions that the network has."""
    g = generator(seed)
    given = {
        "x": torch.randn((batch, *model.shape), generator=g, dtype=dtype),
        "t": torch.rand(batch, generator=g, dtype=dtype),
    }
    if model.num_classes:
        given["y"] = torch.arange(batch) % (model.num_classes + 1)
    if model.cond_dim:
        given["c"] = torch.randn(batch, model.cond_dim, generator=g, dtype=dtype)
    return given


@every_option
def test_against_numpy(options):
    model = small(options).double()
    given = inputs(model, dtype=torch.float64)
    given["t"] /= (
        1024  # phases are float32: near 1000 they are off by 3e-5, near 1 by no more than the rotary table is
    )
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    answers = model(**given).detach()
    for i, answer in enumerate(answers):
        sample = {name: tensor[i].numpy() for name, tensor in given.items()}
        expected = torch.from_numpy(transformers.dit(weights, model.config, **sample))
        torch.testing.assert_close(answer, expected, rtol=0, atol=3e-7 * expected.abs().max().item())


@every_option
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_fresh_networks_answer_zero_and_are_the_identity_inside(options, batch):
    model = small(options, trained=False)
    given = inputs(model, batch)
    assert torch.equal(model(**given), torch.zeros_like(given["x"]))
    tokens, steer = torch.randn(batch, 9, 16), torch.randn(batch, 16)
    rotary = None if model.rotary_cos is None else (model.rotary_cos, model.rotary_sin)
    for block in model.blocks:
        assert torch.equal(block(tokens, steer, rotary), tokens)


@every_option
def test_every_parameter_learns(options):
    model = small(options, trained=False)
    given = inputs(model, batch=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):  # the head, then its modulation, then what is below
        optimizer.zero_grad()
        (model(**given) - given["x"]).square().mean().backward()
        optimizer.step()
    without = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0}
    assert not without


@every_option
def test_a_copy_from_config_and_state_answers_alike(options):
    model = small(options)
    again = models.build("DiT", model.config)
    again.load_state_dict(model.state_dict())
    given = inputs(model)
    assert torch.equal(model(**given), again(**given))


def test_a_config_of_the_first_release_still_builds_its_network():
    config = {
        "size": 8, "channels": 1, "patch": 2, "width": 16, "depth": 1, "heads": 4, "mlp_ratio": 4.0, "num_classes": 10,
    }  # fmt: skip
    model = models.build("DiT", config)
    assert model.config.items() >= config.items()
    block = ["attention.qkv", "attention.out", "mlp.0", "mlp.2", "modulation"]
    learned = [f"blocks.0.{name}" for name in block]
    learned += ["embed", "embed_time", "mix_time", "head.modulation", "head.out"]
    names = {f"{layer}.{kind}" for layer in learned for kind in ("weight", "bias")} | {"embed_class.weight"}
    assert set(model.state_dict()) == names


def test_blocks_are_regular():
    for options in OPTIONS.values():
        for block in small(options).blocks:
            assert [name for name, _ in block.named_children()] == [
                "norm1", "attention", "norm2", "mlp", "modulation",
            ]  # fmt: skip
            assert {name for name, _ in block.attention.named_children()} == {
                "qkv",
                "q_norm",
                "k_norm",
                "out",
            }


def test_without_positions_tokens_are_a_set():
    model = small({"positions": "none"}).double()
    given = inputs(model, dtype=torch.float64)
    order = torch.randperm(9, generator=generator(1))
    shuffled = model.unpatchify(model.patchify(given["x"])[:, order])
    answer = model.unpatchify(model.patchify(model(**given))[:, order])
    torch.testing.assert_close(model(**given | {"x": shuffled}), answer, rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", [{"rope": True, "positions": "none"}, {"positions": "learned"}, {}])
def test_with_positions_places_differ(options):
    model = small(options).double()
    given = inputs(model, dtype=torch.float64)
    moved = model(**given | {"x": given["x"].roll(2, dims=-1)}).roll(-2, dims=-1)
    assert (moved - model(**given)).abs().max() > 1e-3


def test_rope_attention_sees_offsets_not_places():
    """Two tokens in an otherwise empty row: their answers do not change when both move."""
    model = small({"rope": True, "size": 12})
    attention, table = (
        model.blocks[0].attention.double(),
        (model.rotary_cos.double(), model.rotary_sin.double()),
    )
    pair = torch.randn(1, 2, 16, dtype=torch.float64, generator=generator(1))

    def answers(first, second):
        places = torch.tensor([first, second])
        return attention(pair, (table[0][places], table[1][places]))

    # float32 angles' cosines and sines bound the agreement
    torch.testing.assert_close(answers(0, 8), answers(15, 23), rtol=0, atol=1e-6)
    assert (answers(0, 8) - answers(0, 9)).abs().max() > 1e-3


def scale_queries_and_keys(attention, factor):
    attention.qkv.weight[:32] *= factor  # the values are the last 16 rows
    attention.qkv.bias[:32] *= factor


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_qk_norm_bounds_the_logits_whatever_the_weights(kind):
    attention = Attention(16, 2, kind).double()
    x = torch.randn(1, 7, 16, dtype=torch.float64, generator=generator(1))
    with torch.no_grad():
        before = attention(x)
        scale_queries_and_keys(attention, 1000.0)
        torch.testing.assert_close(attention(x), before, rtol=0, atol=1e-4)
        q, k, _ = attention.qkv(x).view(7, 3, 2, 8).permute(1, 2, 0, 3)
        logits = attention.q_norm(q) @ attention.k_norm(k).mT / math.sqrt(8)
        assert logits.abs().max() <= math.sqrt(8)
        assert (q @ k.mT).abs().max() > 1e3
    plain = Attention(16, 2).double()
    with torch.no_grad():
        before = plain(x)
        scale_queries_and_keys(plain, 1000.0)
        assert (plain(x) - before).abs().max() > 1e-2


def test_norms_against_their_formulas():
    x = torch.randn(5, 6, dtype=torch.float64, generator=generator(0))
    rms = make_norm("rms", 6, affine=False)(x)
    torch.testing.assert_close(rms.square().mean(-1), torch.ones(5, dtype=torch.float64), rtol=0, atol=1e-5)
    torch.testing.assert_close(rms / rms[:, :1], x / x[:, :1], rtol=1e-12, atol=0)
    layer = make_norm("layer", 6, affine=False)(x)
    torch.testing.assert_close(layer.mean(-1), torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-12)
    assert [p.shape for p in make_norm("rms", 6, affine=True).parameters()] == [(6,)]
    assert [p.shape for p in make_norm("layer", 6, affine=True).parameters()] == [(6,), (6,)]


def test_gated_mlps_weigh_as_much_as_plain_ones():
    plain, gated = make_feedforward("gelu", 48, 4.0), make_feedforward("swiglu", 48, 4.0)
    assert isinstance(gated, SwiGLU)
    assert gated.out.in_features == 128
    assert sum(p.numel() for p in plain.parameters() if p.dim() == 2) == sum(
        p.numel() for p in gated.parameters() if p.dim() == 2
    )


def test_a_condition_vector_steers():
    model = small({"cond_dim": 5})
    given = inputs(model)
    base = model(**given)
    assert (model(**given | {"c": given["c"] + 1}) - base).abs().max() > 1e-3
    assert (model(**given | {"y": (given["y"] + 1) % 3}) - base).abs().max() > 1e-3


def test_guidance_over_a_condition_vector():
    """Two Euler steps with guidance, by the sampler and by hand."""
    model = small({"num_classes": 0, "cond_dim": 5}).double().requires_grad_(False)
    x, c = inputs(model, dtype=torch.float64)["x"], torch.randn(3, 5, generator=generator(2))
    none = torch.zeros_like(c)
    sampler = pfc.Sampler(pfc.plan("euler", 2), guidance=pfc.CFG(3.0))
    found = sampler(pfc.Field(model), x0=x, cond={"c": c}, uncond={"c": none})
    for time in (0.0, 0.5):
        t = torch.full((3,), time, dtype=torch.float64)
        without = model(x, t, c=none)
        x = x + 0.5 * (without + 3.0 * (model(x, t, c=c) - without))
    torch.testing.assert_close(found, x, rtol=0, atol=1e-12 * x.abs().max().item())


def test_outputs_beyond_the_channels_are_computed_and_dropped():
    wide, narrow = small({"outputs": 4}), small({})
    assert wide.head.out.out_features == 2 * narrow.head.out.out_features
    state = wide.state_dict()
    half = narrow.head.out.out_features
    state |= {name: state[name][:half] for name in ("head.out.weight", "head.out.bias")}
    narrow.load_state_dict(state)
    given = inputs(wide)
    torch.testing.assert_close(wide(**given), narrow(**given), rtol=0, atol=1e-6)


def test_a_time_scale_is_a_faster_clock():
    slow, fast = small({"time_scale": 10.0}), small({"time_scale": 40.0})
    fast.load_state_dict(slow.state_dict())
    given = inputs(slow)
    assert torch.equal(fast(**given), slow(**given | {"t": 4 * given["t"]}))


@pytest.mark.parametrize("options", [LIGHTNING, {"qk_norm": "rms", "rope": True, "cond_dim": 5}])
def test_half_precision_stays_near_float64(options):
    model = small(options)
    given = inputs(model)
    exact = model.double()(**{name: v.double() if v.is_floating_point() else v for name, v in given.items()})
    half = model.to(torch.bfloat16)(
        **{
            name: v.to(torch.bfloat16) if v.is_floating_point() and name != "t" else v
            for name, v in given.items()
        }
    )
    assert half.dtype == torch.bfloat16
    assert (half - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize("options", [{}, LIGHTNING, {"qk_norm": "rms"}, {"positions": "learned"}])
def test_digits_are_learned(options):
    """Forty steps of flow matching do much better on held-out digits than the best constant velocity."""
    pytest.importorskip("sklearn")
    from pyflowcore.demo import digits

    data = digits.load()
    torch.manual_seed(0)
    model = models.DiT(width=32, depth=2, heads=2, **options)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    def batch(images, seed):
        """Points, times and velocities of straight paths to the images."""
        g = generator(seed)
        noise, t = torch.randn(images.shape, generator=g), torch.rand(len(images), generator=g)
        at = t[:, None, None, None]
        return (1 - at) * noise + at * images, t, images - noise

    for step in range(40):
        chosen = torch.randint(len(data.images), (64,), generator=generator(1000 + step))
        x, t, velocity = batch(data.images[chosen], step)
        optimizer.zero_grad()
        (model(x, t, data.labels[chosen]) - velocity).square().mean().backward()
        optimizer.step()
    x, t, velocity = batch(data.held_images, -1)
    with torch.no_grad():
        loss = (model(x, t, data.held_labels) - velocity).square().mean()
    assert loss < 0.8 * (velocity - velocity.mean(0)).square().mean()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: small({"num_classes": -1}), "num_classes and cond_dim"),
        (lambda: small({"cond_dim": -1}), "num_classes and cond_dim"),
        (lambda: small({"time_dim": 5}), "time_dim must be even"),
        (lambda: small({"outputs": 1}), "outputs must be at least channels=2"),
        (lambda: small({"positions": "sine"}), "positions must be"),
        (lambda: small({"rope": True, "width": 12}), "rope needs heads of a multiple of 4"),
        (lambda: small({"norm": "batch"}), "norm must be"),
        (lambda: small({"qk_norm": "l2"}), "norm must be"),
        (lambda: small({"mlp": "relu"}), "mlp must be"),
        (lambda: small({"mlp_ratio": 0.01}), "mlp_ratio must leave"),
        (lambda: small({})(torch.zeros(2, 2, 6, 6), torch.zeros(())), "t must hold one time"),
        (lambda: small({})(torch.zeros(2, 2, 6, 6), torch.zeros(3)), "t must hold one time"),
        (
            lambda: small({"num_classes": 0})(torch.zeros(1, 2, 6, 6), torch.zeros(1), torch.zeros(1).long()),
            "without classes",
        ),
        (
            lambda: small({"cond_dim": 5})(torch.zeros(1, 2, 6, 6), torch.zeros(1)),
            r"c must be \[1, 5\]; got None",
        ),
        (
            lambda: small({"cond_dim": 5})(torch.zeros(1, 2, 6, 6), torch.zeros(1), None, torch.zeros(1, 4)),
            r"c must be \[1, 5\]; got \[1, 4\]",
        ),
        (
            lambda: small({})(torch.zeros(1, 2, 6, 6), torch.zeros(1), None, torch.zeros(1, 4)),
            "without a condition vector",
        ),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()
