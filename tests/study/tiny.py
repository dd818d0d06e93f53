"""A study of four encoders that takes seconds."""

from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent.parent
UNET = {
    "block_out_channels": [8, 8],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 1,
    "attention_head_dim": 1,
    "cross_attention_dim": 16,
    "norm_num_groups": 4,
}
SMALL = ["train.steps=3", "data.count=48", "validation.count=16", "train.global_batch=8", "train.warmup_steps=1"]
WORDS = [*SMALL, "tokenizer.max_tokens=32"]


def scenes(count: int, seed: int, subset: str = "validation") -> dict[str, Any]:
    return {"source": "scenes", "count": count, "seed": seed, "subset": subset, "pixels": 32}


def study(folder: Path, **changes: Any) -> dict[str, Any]:
    """Two encoders, the null and the oracle."""
    configs = ROOT / "configs" / "study"
    image, clip, t5, vae = (str(folder / name) for name in ("image", "clip", "t5", "vae"))
    towers = configs / "text-encoders"
    small_vae = ["vae.block_out_channels=[8,8,8]", "vae.norm_num_groups=4", "vae.mid_block_add_attention=false"]
    return {
        "out": str(folder / "study"),
        "cache": str(folder / "cache"),
        "size": 32,
        "data": scenes(48, 0, "train"),
        "validation": scenes(8, 1),
        "prepare": {
            "vae": {"recipe": str(configs / "vae.yaml"), "set": [*SMALL, *small_vae, f"out={vae}"]},
            "image": {
                "recipe": str(towers / "image.yaml"),
                "set": [*WORDS, "text.size=mini", "image.channels=[8,8]", f"out={image}"],
            },
            "clip": {
                "recipe": str(towers / "clip.yaml"),
                "set": [*WORDS, "text.size=mini", f"image_tower={image}", f"out={clip}"],
                "after": ["image"],
            },
            "t5": {"recipe": str(towers / "t5.yaml"), "set": [*WORDS, "t5.size=mini", f"out={t5}"]},
        },
        "vae": vae,
        "encoders": {
            "clip": {"text_encoder": clip, "family": "trained"},
            "t5": {"text_encoder": t5, "family": "trained"},
            "null": {"text_encoder": "control:null"},
            "oracle": {"text_encoder": "control:oracle"},
        },
        "base": "base",
        "unets_with": "clip",
        "unets": {"base": {"unet": UNET}},
        "train": {"steps": 4, "global_batch": 8, "lr": 1e-3, "ema": 0.9, "log_every": 2, "save_every": 2},
        "evaluate": {
            "test": scenes(24, 2),
            "only": {"held_out_pairs": scenes(6, 2, "heldout-pairs")},
            "reference": scenes(64, 3),
            "features": f"local:{image}/image_encoder",
            "guidance": [1, 2],
            "at": 2,
            "at_fd": 1,
            "steps": 3,
            "bound": 8,
            "draws": 3,
            "shown": 4,
        },
    } | changes


def written(values: dict[str, Any], path: Path) -> Path:
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf8")
    return path
