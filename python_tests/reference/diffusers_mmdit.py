"""The weights of diffusers' SD3 and FLUX transformers under the names of ``pyflowcore.models.MMDiT``.

Facts about the other library that this needs: its queries, keys and values are separate layers; the last norm of the image (and
of the text in a block whose text nobody reads) has the scale before the shift; SD3 writes a patch's pixels before its channels.
"""

from __future__ import annotations

import torch


def _joined(state, names):
    """Layers stacked into one: its weight and bias."""
    return {part: torch.cat([state[f"{name}.{part}"] for name in names]) for part in ("weight", "bias")}


def _swapped(layer):
    """Scale and shift in the other order."""
    return {part: torch.cat(value.chunk(2)[::-1]) for part, value in layer.items()}


def _stream(state, block, *, text, last):
    """One stream of a double block."""
    add = "add_{}_proj" if text else "to_{}"
    norm = f"{block}.norm1_context.linear" if text else f"{block}.norm1.linear"
    modulation = _joined(state, [norm])
    layers = {
        "modulation": _swapped(modulation) if last else modulation,
        "qkv": _joined(state, [f"{block}.attn.{add.format(part)}" for part in "qkv"]),
    }
    for part in "qk":
        theirs = f"{block}.attn.norm_{'added_' if text else ''}{part}.weight"
        if theirs in state and not (last and part == "q"):
            layers[f"heads.norm_{part}"] = {"weight": state[theirs]}
    if not last:
        feed = f"{block}.ff_context" if text else f"{block}.ff"
        layers["out"] = _joined(state, [f"{block}.attn.{'to_add_out' if text else 'to_out.0'}"])
        layers["mlp.0"] = _joined(state, [f"{feed}.net.0.proj"])
        layers["mlp.2"] = _joined(state, [f"{feed}.net.2"])
    return layers


def translated(state, *, double, single, patch, channels):
    """``state`` of a SD3Transformer2DModel (single = 0) or FluxTransformer2DModel, renamed and reordered."""
    layers = {}

    def put(prefix, found):
        layers.update({f"{prefix}.{name}": layer for name, layer in found.items()})

    if single:
        layers["embed"] = _joined(state, ["x_embedder"])
    else:
        layers["embed"] = {
            "weight": state["pos_embed.proj.weight"].flatten(1),
            "bias": state["pos_embed.proj.bias"],
        }
    layers["embed_text"] = _joined(state, ["context_embedder"])
    for ours, theirs in (("time", "timestep"), ("pooled", "text"), ("guidance", "guidance")):
        for ours_layer, theirs_layer in ((0, 1), (2, 2)):
            name = f"time_text_embed.{theirs}_embedder.linear_{theirs_layer}"
            if f"{name}.weight" in state:
                layers[f"embed_{ours}.{ours_layer}"] = _joined(state, [name])
    for index in range(double):
        block = f"transformer_blocks.{index}"
        last = single == 0 and index == double - 1
        put(f"double_blocks.{index}.image", _stream(state, block, text=False, last=False))
        put(f"double_blocks.{index}.text", _stream(state, block, text=True, last=last))
    for index in range(single):
        block = f"single_transformer_blocks.{index}"
        enter = [*(f"{block}.attn.to_{part}" for part in "qkv"), f"{block}.proj_mlp"]
        put(
            f"single_blocks.{index}",
            {
                "modulation": _joined(state, [f"{block}.norm.linear"]),
                "enter": _joined(state, enter),
                "leave": _joined(state, [f"{block}.proj_out"]),
                "heads.norm_q": {"weight": state[f"{block}.attn.norm_q.weight"]},
                "heads.norm_k": {"weight": state[f"{block}.attn.norm_k.weight"]},
            },
        )
    layers["head.modulation"] = _swapped(_joined(state, ["norm_out.linear"]))
    out = _joined(state, ["proj_out"])
    if not single:
        out = {
            part: value.unflatten(0, (patch * patch, channels)).transpose(0, 1).flatten(0, 1)
            for part, value in out.items()
        }
    layers["head.out"] = out
    return {f"{name}.{part}": value for name, layer in layers.items() for part, value in layer.items()}
