"""Our DiT and the diffusers library's, with one set of weights: the same answers."""

from __future__ import annotations

import pytest
import torch

from pyflowcore import models

diffusers = pytest.importorskip(
    "diffusers", reason="parity is measured against diffusers, which is not installed"
)

SIZE, PATCH, CHANNELS, OUTPUTS, DEPTH, CLASSES = 12, 2, 3, 6, 2, 4


def peer():
    """Theirs, random throughout, in float64, and with the authors' time frequencies."""
    torch.manual_seed(0)
    net = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=CHANNELS,
        out_channels=OUTPUTS,
        num_layers=DEPTH,
        sample_size=SIZE,
        patch_size=PATCH,
        num_embeds_ada_norm=CLASSES,
        norm_eps=1e-6,  # as the authors have it
    ).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(std=0.3)
    for block in net.transformer_blocks:
        # They embed time and class once more in every block, with weights that are copies, and space the frequencies over
        # half - 1 gaps, the authors over half.
        block.norm1.emb = net.transformer_blocks[0].norm1.emb
    net.transformer_blocks[0].norm1.emb.time_proj.downscale_freq_shift = 0
    return net.double()


def renamed(state):
    """Their state in our names, as docs/models.md says."""
    ours = {
        "positions": state["pos_embed.pos_embed"][0],
        "embed.weight": state["pos_embed.proj.weight"].flatten(1),
        "embed.bias": state["pos_embed.proj.bias"],
    }

    def move(here, there):
        for kind in ("weight", "bias"):
            ours[f"{here}.{kind}"] = state[f"{there}.{kind}"]

    emb = "transformer_blocks.0.norm1.emb"
    move("embed_time", f"{emb}.timestep_embedder.linear_1")
    move("mix_time", f"{emb}.timestep_embedder.linear_2")
    ours["embed_class.weight"] = state[f"{emb}.class_embedder.embedding_table.weight"]
    for i in range(DEPTH):
        here, there = f"blocks.{i}", f"transformer_blocks.{i}"
        move(f"{here}.modulation", f"{there}.norm1.linear")
        for kind in ("weight", "bias"):
            parts = [state[f"{there}.attn1.to_{part}.{kind}"] for part in "qkv"]
            ours[f"{here}.attention.qkv.{kind}"] = torch.cat(parts)
        move(f"{here}.attention.out", f"{there}.attn1.to_out.0")
        move(f"{here}.mlp.0", f"{there}.ff.net.0.proj")
        move(f"{here}.mlp.2", f"{there}.ff.net.2")
    move("head.modulation", "proj_out_1")
    for kind in ("weight", "bias"):  # (row, column, output) of a patch -> (output, row, column)
        rows = state[f"proj_out_2.{kind}"].unflatten(0, (PATCH, PATCH, OUTPUTS))
        ours[f"head.out.{kind}"] = rows.movedim(2, 0).flatten(0, 2)
    return ours


def test_their_weights_give_their_answers_here():
    theirs = peer()
    ours = models.named(
        "DiT-S/2", size=SIZE, channels=CHANNELS, outputs=OUTPUTS, width=16, depth=DEPTH, heads=2, num_classes=CLASSES,
        positions="learned",
    ).double()  # fmt: skip
    ours.load_state_dict(renamed(theirs.state_dict() | dict(theirs.named_buffers())))
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5, CHANNELS, SIZE, SIZE, generator=generator, dtype=torch.float64)
    t, y = torch.tensor([0.0, 1.0, 250.0, 500.0, 999.0]), torch.tensor([0, 1, 2, 3, CLASSES])
    with torch.no_grad():
        expected = theirs(x, timestep=t, class_labels=y).sample[:, :CHANNELS]
        # Both compute the frequencies in float32: at time 999 their rounding is a phase of 6e-5.
        torch.testing.assert_close(ours(x, t, y), expected, rtol=0, atol=1e-4 * expected.abs().max().item())
        torch.testing.assert_close(
            ours(x[:2], t[:2], y[:2]), expected[:2], rtol=0, atol=1e-6 * expected.abs().max().item()
        )


def test_fixed_positions_are_theirs_with_rows_and_columns_exchanged():
    theirs = peer().pos_embed.pos_embed[0]
    ours = models.named("DiT-S/2", size=SIZE, width=16, depth=1, heads=2).positions
    torch.testing.assert_close(
        torch.cat(ours.chunk(2, dim=-1)[::-1], dim=-1).double(), theirs.double(), rtol=0, atol=1e-6
    )
