"""Keys of checkpoints that the pipeline does not use, in one table, each with its reason."""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Literal, NamedTuple, TypeVar

Where = Literal["single_file", "unet", "vae", "text_encoder"]
Value = TypeVar("Value")

SCHEDULE = "buffers of the training's noise schedule, which the scheduler computes"
POSITIONS = "position ids, a buffer"
IMAGES = "CLIP's image side"
SCALE = "the scale of CLIP's contrastive loss"
PROJECTED = "the projection of a pooled state that the pipeline does not use"
LOSS = "the autoencoder's training loss and its discriminator"
UNUSED = "OpenCLIP's last block, behind the penultimate layer, which is the one read"
EMA_UNET = "EMA weights of the U-Net, which `t2i convert --ema` reads instead"
EMA_VAE = "EMA weights of the autoencoder"
COUNTER = "counters of the training run"


class Ignorable(NamedTuple):
    """Keys of a kind of file that match `pattern` whole; `{unused}` is the number of OpenCLIP's unused block."""

    where: Where
    pattern: str
    reason: str


TABLE = (
    Ignorable("single_file", r"cond_stage_model\.transformer\.(text_model\.)?embeddings\.position_ids", POSITIONS),
    Ignorable("single_file", r"cond_stage_model\.(transformer\.)?(vision_model|visual_projection)\..+", IMAGES),
    Ignorable("single_file", r"cond_stage_model\.model\.visual\..+", IMAGES),
    Ignorable("single_file", r"cond_stage_model\.((model|transformer)\.)?logit_scale", SCALE),
    Ignorable("single_file", r"cond_stage_model\.((model|transformer)\.)?text_projection(\.weight)?", PROJECTED),
    Ignorable("single_file", r"cond_stage_model\.model\.attn_mask", "the causal mask, a buffer"),
    Ignorable("single_file", r"cond_stage_model\.model\.transformer\.resblocks\.{unused}\..+", UNUSED),
    Ignorable("single_file", r"model_ema\..+", EMA_UNET),
    Ignorable("single_file", r"first_stage_model\.model_ema\..+", EMA_VAE),
    Ignorable("single_file", r"(first_stage_model\.)?loss\..+", LOSS),
    Ignorable(
        "single_file", r"betas|logvar|lvlb_weights|(log_one_minus_)?alphas_cumprod|alphas_cumprod_prev", SCHEDULE
    ),
    Ignorable("single_file", r"sqrt_(one_minus_|recip_|recipm1_)?alphas_cumprod", SCHEDULE),
    Ignorable("single_file", r"posterior_(variance|log_variance_clipped|mean_coef[12])", SCHEDULE),
    Ignorable("single_file", r"denoiser\.sigmas", SCHEDULE),
    Ignorable("single_file", r"embedding_manager\..+", "textual inversion's manager in training, without a token"),
    Ignorable("single_file", r"v_pred|ztsnr", "marks of the prediction type and the schedule, which are followed"),
    Ignorable("single_file", r"global_step|epoch", COUNTER),
    Ignorable("vae", r"loss\..+", LOSS),
    Ignorable("vae", r"model_ema\..+", EMA_VAE),
    Ignorable("vae", r"global_step|epoch", COUNTER),
    Ignorable("text_encoder", r"(text_model\.)?embeddings\.position_ids", POSITIONS),
    Ignorable("text_encoder", r"(vision_model|visual_projection)\..+", IMAGES),
    Ignorable("text_encoder", r"logit_scale", SCALE),
)


def split_ignorable(
    state: Mapping[str, Value], component: Where, unused_block: int | None = None
) -> tuple[dict[str, Value], dict[str, int]]:
    """Returns `state` without the ignorable keys, and the number of those for each reason."""
    number = "never" if unused_block is None else str(unused_block)
    rules = [(re.compile(r.pattern.replace("{unused}", number)), r.reason) for r in TABLE if r.where == component]
    kept: dict[str, Value] = {}
    ignored: Counter[str] = Counter()
    for key, value in state.items():
        reason = next((reason for pattern, reason in rules if pattern.fullmatch(key)), None)
        if reason is None:
            kept[key] = value
        else:
            ignored[reason] += 1
    return kept, dict(ignored)


def ignored_lines(ignored: Mapping[str, int]) -> list[str]:
    """Returns a line of the report for each reason."""
    return [f"ignored {n} {'key' if n == 1 else 'keys'}: {reason}" for reason, n in ignored.items()]
