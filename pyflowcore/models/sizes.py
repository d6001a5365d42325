"""Published sizes of reference models, by name: the arguments that build them.

Facts from the papers and their authors' repositories (facebookresearch/DiT, willisma/SiT, hustvl/LightningDiT, the
configurations published with Stable Diffusion 3 and FLUX.1, Physical-Intelligence/openpi); docs/models.md says which counts
they were checked against.
"""

from __future__ import annotations

from typing import Any

# Width, depth and heads of the transformers, which DiT took from ViT; LightningDiT adds two.
_TRANSFORMERS = {
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "XL": (1152, 28, 16),
    "1p0B": (1536, 24, 24),
    "1p6B": (1792, 28, 28),
}
# ImageNet at 256 x 256 as 4 channels at an eighth of the side; the head computes a variance for each channel.
_SIT = {"size": 32, "channels": 4, "outputs": 8, "time_dim": 256, "time_scale": 1.0, "num_classes": 1000}
# The same images as 32 channels at a sixteenth ("f16d32"). QK-norm is off in the published weights; the authors advise
# qk_norm="rms" where training diverges.
_LIGHTNING = {
    "size": 16,
    "channels": 32,
    "time_dim": 256,
    "time_scale": 1.0,
    "num_classes": 1000,
    "mlp": "swiglu",
    "norm": "rms",
    "norm_affine": True,
    "rope": True,
}
_FAMILIES: dict[str, tuple[dict[str, Any], dict[str, tuple[int, ...]]]] = {
    "DiT": (_SIT, dict.fromkeys(("S", "B", "L", "XL"), (2, 4, 8))),
    "SiT": (_SIT, dict.fromkeys(("S", "B", "L", "XL"), (2, 4, 8))),
    "LightningDiT": (_LIGHTNING, dict.fromkeys(_TRANSFORMERS, (1, 2))),
}
# Latent images of 16 channels at an eighth of the side, here those of 1024 x 1024 pixels; text from T5-XXL, pooled from CLIP.
_TWO_STREAMS = {"size": 128, "channels": 16, "patch": 2, "text_width": 4096, "time_dim": 256}
_SD3 = _TWO_STREAMS | {"single": 0, "pooled_width": 2048, "positions": "sincos", "max_side": 192}
_FLUX = _TWO_STREAMS | {
    "width": 3072,
    "heads": 24,
    "double": 19,
    "single": 38,
    "pooled_width": 768,
    "positions": "rope",
    "axes": (16, 56, 56),
    "qk_norm": True,
}
_MMDIT: dict[str, dict[str, Any]] = {
    "SD3-medium": _SD3 | {"width": 1536, "heads": 24, "double": 24},
    "SD3.5-large": _SD3 | {"width": 2432, "heads": 38, "double": 38, "qk_norm": True},
    "FLUX-schnell": _FLUX,
    "FLUX-dev": _FLUX | {"guidance": True},
}
# "gemma_300m" beside a prefix from PaliGemma, whose keys and values come from that model's own layers.
_EXPERT = {"horizon": 50, "dims": 32, "width": 1024, "depth": 18, "heads": 8, "kv_heads": 1, "head_dim": 256}
_ACTIONS: dict[str, dict[str, Any]] = {
    "pi0-300M": _EXPERT | {"mlp_width": 4096, "state_dim": 32, "time": "mlp"},
    "pi0.5-300M": _EXPERT | {"mlp_width": 4096, "time": "adarms"},
}

# The U-Nets. Dhariwal & Nichol 2021, appendix on hyperparameters, and openai/guided-diffusion; the last convolution computes a
# variance for each channel. flow_matching's ImageNet 64 example is ADM-64 without these.
_ADM = {"channels": 3, "width": 256, "blocks": 2, "num_classes": 1000, "time_scale": 1.0, "outputs": 6}
_CIFAR = {"size": 32, "channels": 3, "width": 128, "attention": [2], "time_scale": 1.0}
_UNETS: dict[str, dict[str, Any]] = {
    "ADM-64": _ADM | {"size": 64, "width": 192, "blocks": 3, "multipliers": [1, 2, 3, 4], "attention": [2, 4, 8],
                      "dropout": 0.1},
    "ADM-256": _ADM | {"size": 256, "multipliers": [1, 1, 2, 2, 4, 4], "attention": [8, 16, 32]},
    # The CIFAR-10 examples of atong01/conditional-flow-matching (Ho et al. 2020 with heads; no classes, shifts alone)
    # and of facebookresearch/flow_matching, here without classes as well.
    "CFM-CIFAR10": _CIFAR | {"multipliers": [1, 2, 2, 2], "blocks": 2, "dropout": 0.1, "scale_shift": False,
                             "resample": "conv"},
    "FM-CIFAR10": _CIFAR | {"multipliers": [2, 2, 2], "blocks": 4, "head_channels": 0, "dropout": 0.3,
                            "resample": "pool"},
}  # fmt: skip


def _table() -> dict[str, tuple[str, dict[str, Any]]]:
    table: dict[str, tuple[str, dict[str, Any]]] = {}
    for family, (common, patches) in _FAMILIES.items():
        for size, sides in patches.items():
            width, depth, heads = _TRANSFORMERS[size]
            for patch in sides:
                own = {"patch": patch, "width": width, "depth": depth, "heads": heads}
                table[f"{family}-{size}/{patch}"] = "DiT", common | own
    for model, configs in (("MMDiT", _MMDIT), ("ActionExpert", _ACTIONS), ("UNet", _UNETS)):
        table |= {name: (model, config) for name, config in configs.items()}
    return table


#: Name -> (class, as ``build`` takes it; arguments).
SIZES: dict[str, tuple[str, dict[str, Any]]] = _table()
