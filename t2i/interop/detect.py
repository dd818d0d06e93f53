"""Detection of files that are not a whole Stable Diffusion 1 or 2, by their keys."""

import re
from collections.abc import Collection
from pathlib import Path

from t2i.interop import keys_text, keys_unet, keys_vae

ONLY = "only Stable Diffusion 1 and 2 are read"
# The first whose pattern is found at the beginning of any key.
OTHERS = (
    (
        r"(model\.diffusion_model\.|transformer\.)?joint_blocks\.",
        f"is a Stable Diffusion 3, which does not run here; {ONLY}",
    ),
    (r"(model\.diffusion_model\.|transformer\.)?double_blocks\.", f"is a Flux, which does not run here; {ONLY}"),
    (r"conditioner\.|add_embedding\.", f"is a Stable Diffusion XL, which does not run here; {ONLY}"),
    (r"control_model\.|controlnet_cond_embedding\.|input_hint_block\.", f"is a ControlNet, not a whole model; {ONLY}"),
    (r"(.+\.)?motion_modules?\.", f"holds motion modules (AnimateDiff), which do not run here; {ONLY}"),
    (
        r"model\.diffusion_model\.label_emb\.",
        f"is a U-Net with class embeddings (unCLIP or an upscaler), which does not run here; {ONLY}",
    ),
)
LORA = re.compile(r"lora_(unet|te\d?|prior)_|(.+[._])?lora(_[A-Za-z]+)?\.")
EMBEDDING = {"emb_params", "string_to_param", "clip_l", "clip_g"}


def refuse_other_families(path: Path, keys: Collection[str]) -> None:
    """Raises ValueError that names the kind of a file without the three components of Stable Diffusion 1 or 2."""
    for pattern, what in OTHERS:
        if any(re.match(pattern, key) for key in keys):
            raise ValueError(f"{path}: this {what}")
    if keys and all(LORA.match(key) for key in keys):
        raise ValueError(
            f"{path}: this is a LoRA, a change to a model, not a whole model; give the model that it changes"
        )
    if keys and (set(keys) <= EMBEDDING or len(keys) == 1):
        raise ValueError(f"{path}: this is a textual inversion, not a whole model; give it with --embedding")
    parts = {
        "U-Net (model.diffusion_model.*)": (keys_unet.PREFIX,),
        "autoencoder (first_stage_model.*)": (keys_vae.PREFIX,),
        "text encoder (cond_stage_model.*)": (keys_text.CLIP, keys_text.OPENCLIP),
    }
    missing = [name for name, prefixes in parts.items() if not any(key.startswith(prefixes) for key in keys)]
    if len(missing) == len(parts):
        first = ", ".join(sorted(keys)[:3])
        raise ValueError(
            f"{path}: not a single file of a Stable Diffusion: it holds {first or 'nothing'}; a component of a "
            "diffusers folder is read with its folder"
        )
    if missing:
        raise ValueError(f"{path}: holds no {' and no '.join(missing)}; give a file with all three components")
