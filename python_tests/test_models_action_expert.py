"""The action expert: its prefix is computed once and means the same, masks, state, both ways of time, published sizes."""

import math

import pytest
import torch

import pyflowcore as pfc
from pyflowcore import models
from pyflowcore.models.action_expert import ActionExpert, Memory, Prefix, rotary_of, time_embedding

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {
    "horizon": 4, "dims": 3, "width": 16, "depth": 3, "heads": 4, "head_dim": 6, "mlp_width": 24, "prefix_width": 10,
}  # fmt: skip
KINDS = {
    "pi0": {**SMALL, "kv_heads": 1, "prefix_mlp": 20, "state_dim": 5},
    "pi05": {**SMALL, "kv_heads": 2, "prefix_mlp": 20, "time": "adarms"},
    "flat": {**SMALL, "kv_heads": 4},
}


@pytest.fixture(params=list(KINDS))
def kind(request):
    return KINDS[request.param]


def randn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def trained(kind, seed=0):
    """The network in float64 with every parameter random: none of the zero starts is left."""
    model = ActionExpert(**kind).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def inputs(kind, batch=3, length=6):
    """x and t, and what the prefix is made of; sample i has length - i real tokens, the first of them masked in sample 1."""
    mask = torch.arange(length) < length - torch.arange(batch)[:, None]
    if batch > 1:
        mask[1, 0] = False
    given = {"obs": randn(batch, length, 10, seed=2), "mask": mask}
    if kind.get("state_dim"):
        given["state"] = randn(batch, 5, seed=3)
    return (randn(batch, 4, 3, seed=1), torch.tensor([0.1, 0.5, 0.875])[:batch]), given


def close(a, b, tolerance=1e-12):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_fresh_network_answers_zero(kind):
    (x, t), given = inputs(kind)
    assert torch.equal(ActionExpert(**kind).double()(x, t, **given), torch.zeros_like(x))


def test_modulated_layers_start_as_the_identity():
    model = ActionExpert(**KINDS["pi05"]).double()
    x, c = randn(2, 4, 16, seed=4), randn(2, 16, seed=5)
    rotary = rotary_of(torch.arange(4).expand(2, 4), 6, x)
    for layer in model.layers:
        assert torch.equal(layer(x, rotary, torch.ones(2, 1, 1, 4).bool(), None, c)[0], x)


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_shapes(kind, batch):
    (x, t), given = inputs(kind, batch=batch)
    assert trained(kind)(x, t, **given).shape == x.shape


def test_prefix_once_is_the_prefix_every_time_to_the_bit(kind):
    model, ((x, t), given) = trained(kind), inputs(kind)
    prefix = model.prefix(**given)
    assert torch.equal(model(x, t, prefix=prefix), model(x, t, **given))
    assert torch.equal(model(2 * x, 1 - t, prefix=prefix), model(2 * x, 1 - t, **given))


def jointly(model, x, t, obs, mask, state=None):
    """All tokens through all layers at once, as pi0 trains: one sequence, one square mask, one softmax a layer.

    Observations (group 0) see each other, the state (1) those and itself, actions (2) everything; a token sees groups up to
    its own. Written with explicit matrix products.
    """
    streams = [(obs.masked_fill(~mask[..., None], 0), model.prefix_layers, None, 0)]
    phases = time_embedding(t, model.width).double()
    c = None
    tokens = model.embed(x)
    if model.modulated:
        c = torch.nn.functional.silu(model.mix_time(phases))
    else:
        tokens = model.mix_time(torch.cat([tokens, phases[:, None].expand_as(tokens)], -1))
    if state is not None:
        streams.append((model.embed_state(state)[:, None], model.layers, None, 1))
    streams.append((tokens, model.layers, c, 2))
    widths = [stream[0].shape[1] for stream in streams]
    real = torch.cat([mask, torch.ones(len(x), sum(widths[1:]), dtype=torch.bool)], 1)
    group = torch.tensor([s[3] for s, count in zip(streams, widths, strict=True) for _ in range(count)])
    seen = (group[None, :] <= group[:, None]) & real[:, None, :] | torch.eye(len(group), dtype=torch.bool)
    places = (real.cumsum(1) - 1).clamp(min=0)
    angles = places[..., None] / 10000.0 ** (torch.arange(0, model.head_dim, 2).double() / model.head_dim)

    def turned(z):  # [B, H, N, D]
        a, b = z.chunk(2, -1)
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    hidden = [stream[0] for stream in streams]
    for index in range(model.depth):
        layers = [stream[1][index] for stream in streams]
        normed, parts = [], []
        for h, layer, stream in zip(hidden, layers, streams, strict=True):
            if isinstance(layer, Memory):
                parts.append(None)
                normed.append(layer.norm(h))
                continue
            m = None if stream[2] is None else layer.modulation(stream[2])[:, None].chunk(6, -1)
            parts.append(m)
            normed.append(layer.norm1(h) if m is None else layer.norm1(h) * (1 + m[1]) + m[0])
        heads = layers[-1].attend.shape[0]
        q = torch.cat(
            [
                z.new_zeros(*z.shape[:2], heads * model.head_dim)
                if isinstance(layer, Memory)
                else layer.attend.queries(z)
                for z, layer in zip(normed, layers, strict=True)
            ],
            1,
        )
        kv = torch.cat([layer.keys_values.project(z) for z, layer in zip(normed, layers, strict=True)], 1)
        k, v = (part.unflatten(-1, (-1, model.head_dim)).transpose(1, 2) for part in kv.chunk(2, -1))
        share = heads // model.kv_heads
        k, v = turned(k).repeat_interleave(share, 1), v.repeat_interleave(share, 1)
        logits = (
            turned(q.unflatten(-1, (heads, -1)).transpose(1, 2))
            @ k.transpose(-1, -2)
            / math.sqrt(model.head_dim)
        )
        mixed = logits.masked_fill(~seen[:, None], -torch.inf).softmax(-1) @ v
        mixed = mixed.transpose(1, 2).flatten(2).split(widths, 1)
        for place, (layer, m) in enumerate(zip(layers, parts, strict=True)):
            if isinstance(layer, Memory):
                continue
            ones = (1.0,) * 6 if m is None else m
            h = hidden[place] + ones[2] * layer.attend.out(mixed[place])
            z = layer.norm2(h) if m is None else layer.norm2(h) * (1 + m[4]) + m[3]
            a, b = layer.mlp.enter(z).chunk(2, -1)
            gelu = 0.5 * a * (1 + torch.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a**3)))
            hidden[place] = h + ones[5] * layer.mlp.leave(gelu * b)
    last = model.norm(hidden[-1])
    if model.modulated:
        shift, scale = model.modulation(c)[:, None].chunk(2, -1)
        last = last * (1 + scale) + shift
    return model.out(last)


def test_cached_prefix_equals_the_joint_evaluation(kind):
    model, ((x, t), given) = trained(kind), inputs(kind)
    with torch.no_grad():
        close(model(x, t, prefix=model.prefix(**given)), jointly(model, x, t, **given))


def test_what_a_masked_token_holds_changes_nothing_to_the_bit(kind):
    model, ((x, t), given) = trained(kind), inputs(kind)
    before = model(x, t, **given)
    for junk in (1e3, torch.inf, torch.nan):
        obs = given["obs"].masked_fill(~given["mask"][..., None], junk)
        assert torch.equal(model(x, t, **{**given, "obs": obs}), before)
    obs = given["obs"].clone()
    obs[:, 2, 0] += 0.01
    assert (model(x, t, **{**given, "obs": obs}) - before).abs().amax(dim=(1, 2)).min() > 1e-6


def test_masked_tokens_are_as_good_as_absent(kind):
    model, ((x, t), given) = trained(kind), inputs(kind)
    whole = model(x, t, **given)
    for sample in range(3):
        alone = {name: value[sample : sample + 1] for name, value in given.items()}
        alone["obs"], alone["mask"] = alone["obs"][:, alone["mask"][0]], None
        close(model(x[sample : sample + 1], t[sample : sample + 1], **alone)[0], whole[sample])
    none = {**given, "mask": torch.zeros_like(given["mask"])}
    close(model(x, t, **none), model(x, t, **{**given, "obs": given["obs"][:, :0], "mask": None}))


def test_order_of_actions_and_observations_matters(kind):
    model, ((x, t), given) = trained(kind), inputs(kind, length=6)
    given["mask"] = None
    before = model(x, t, **given)
    assert (model(x.flip(1), t, **given).flip(1) - before).abs().max() > 1e-4
    if kind is not KINDS["flat"]:
        return
    assert (model(x, t, **{**given, "obs": given["obs"].flip(1)}) - before).abs().max() > 1e-4


def test_every_input_is_heard(kind):
    model, ((x, t), given) = trained(kind), inputs(kind)
    before = model(x, t, **given)
    assert (model(x * 1.01, t, **given) - before).abs().amax(dim=(1, 2)).min() > 1e-6
    assert (model(x, t * 1.01, **given) - before).abs().amax(dim=(1, 2)).min() > 1e-6
    if "state" in given:
        changed = model(x, t, **{**given, "state": given["state"] * 1.01})
        assert (changed - before).abs().amax(dim=(1, 2)).min() > 1e-6


def test_gradients_reach_every_parameter(kind):
    model, ((x, t), given) = trained(kind), inputs(kind)
    model(x, t, **given).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_zero_start_still_learns(kind):
    model, ((x, t), given) = ActionExpert(**kind).double(), inputs(kind)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(4):  # the last layer, then the modulations, then what is below
        optimizer.zero_grad()
        (model(x, t, **given) - x).square().mean().backward()
        optimizer.step()
    assert all(parameter.grad.abs().max() > 0 for parameter in model.parameters())


def test_time_embedding_against_its_formula():
    found = time_embedding(torch.tensor([0.25]), 6)[0]
    phases = [2 * math.pi * 0.25 / (4e-3 * 1000 ** (k / 2)) for k in range(3)]
    expected = [math.sin(p) for p in phases] + [math.cos(p) for p in phases]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        # Gemma's 311,464,960 with the action's, the state's and the time's layers.
        ("pi0-300M", 311_464_960 + 2 * (33 * 1024) + (2 * 1024 + 1) * 1024 + 1025 * 1024 + 1025 * 32),
        # 6 (in the last norm 2) modulations of 1024 for each scale of a norm; no state.
        (
            "pi0.5-300M",
            311_464_960 - 37 * 1024 + (18 * 6 + 2) * 1025 * 1024 + 33 * 1024 + 2 * 1025 * 1024 + 1025 * 32,
        ),
    ],
)
def test_published_sizes(name, count):
    with torch.device("meta"):
        model = models.named(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    layers = sum(parameter.numel() for parameter in model.layers.parameters())
    assert model.shape == (50, 32) and (layers == 311_463_936) == (name == "pi0-300M")


def test_sampling_with_a_prefix_as_condition():
    """One prefix for all evaluations of a solve, through the sampler, also where guidance doubles the batch."""
    model, (_, given) = trained(KINDS["pi05"]).float(), inputs(KINDS["pi05"], batch=2)
    obs, mask = given["obs"].float(), given["mask"]
    cond, uncond = {"prefix": model.prefix(obs, mask)}, {"prefix": model.prefix(0 * obs, mask)}
    assert isinstance(cond["prefix"], Prefix)
    sampler = pfc.Sampler(pfc.plan("euler", 3), guidance=pfc.CFG(2.0))
    with torch.no_grad():
        found = sampler(pfc.Field(model), shape=model.shape, seeds=[0, 1], cond=cond, uncond=uncond)
        y = pfc.randn([0, 1], model.shape)
        for step in range(3):
            times = torch.full((2,), step / 3)
            with_obs, without = model(y, times, obs=obs, mask=mask), model(y, times, obs=0 * obs, mask=mask)
            y = y + (without + 2.0 * (with_obs - without)) / 3
    torch.testing.assert_close(found, y, rtol=1e-4, atol=1e-4)


def test_prefix_from_elsewhere():
    """As in pi0: the vision-language model's keys and values, and the state put behind them."""
    kind = {**KINDS["pi0"], "prefix_width": 0, "prefix_mlp": 0}
    model, (x, t) = trained(kind), inputs(kind)[0]
    foreign = Prefix(randn(3, 3, 1, 7, 6, seed=5), randn(3, 3, 1, 7, 6, seed=6), torch.ones(3, 7).bool())
    whole = model.with_state(foreign, randn(3, 5, seed=7))
    assert whole.keys.shape == (3, 3, 1, 8, 6) and whole.mask.all()
    assert torch.equal(whole.keys[..., :7, :], foreign.keys)
    assert (model(x, t, prefix=whole) - model(x, t, prefix=foreign)).abs().max() > 1e-4
    with pytest.raises(ValueError, match="build it with prefix_width="):
        model(x, t, obs=randn(3, 7, 10, seed=8))


def test_build_from_name_and_config(kind):
    model = ActionExpert(**kind)
    again = models.build("ActionExpert", model.config)
    again.load_state_dict(model.state_dict())
    assert again.config == model.config and again.null_class is None and again.num_classes == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 0}, "horizon, dims, depth and mlp_width must be at least 1"),
        ({"state_dim": -1}, "state_dim at least 0"),
        ({"kv_heads": 3}, "heads must be a multiple of kv_heads; got 4 and 3"),
        ({"head_dim": 5}, "head_dim and width must be even"),
        ({"width": 2}, "width at least 4"),
        ({"time": "film"}, "time must be one of"),
        ({"prefix_width": 0}, "prefix_mlp needs prefix_width"),
        ({"time": "adarms"}, "put it among the observations"),
    ],
)
def test_refused_sizes(changes, message):
    with pytest.raises(ValueError, match=message):
        ActionExpert(**{**KINDS["pi0"], **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(3, 5, 3)}, r"x must be \[B, 4, 3\]"),
        ({"obs": None}, "give either prefix, alone, or obs"),
        ({"obs": torch.zeros(3, 6, 9)}, r"obs must be \[B, P, 10\]"),
        ({"mask": torch.ones(3, 5).bool()}, "mask must be"),
        ({"mask": torch.ones(3, 6)}, "of bool"),
        ({"state": None}, "state is for a network built with state_dim, and needed there; got None"),
        ({"state": torch.zeros(3, 4)}, r"state must be \[3, 5\]"),
        (
            {"obs": torch.zeros(2, 6, 10), "mask": None, "state": torch.zeros(2, 5)},
            "prefix must hold keys and values",
        ),
        (
            {"prefix": Prefix(torch.zeros(3), torch.zeros(3), torch.ones(3, 1))},
            "give either prefix, alone, or obs",
        ),
    ],
)
def test_refused_inputs(changes, message):
    (x, t), given = inputs(KINDS["pi0"])
    call = {
        "x": x.float(),
        "t": t,
        **given,
        "obs": given["obs"].float(),
        "state": given["state"].float(),
        **changes,
    }
    with pytest.raises(ValueError, match=message):
        ActionExpert(**KINDS["pi0"])(**call)
    with pytest.raises(ValueError, match="state is for a network built with state_dim"):
        ActionExpert(**KINDS["flat"]).double()(x, t, **given)
