"""The configuration of the U-Net: every key of `unet/config.json` in a Stable Diffusion folder."""

from typing import Any, Literal

from pydantic import model_validator

from t2i.component import ComponentConfig

DownBlockType = Literal["CrossAttnDownBlock2D", "DownBlock2D"]
UpBlockType = Literal["CrossAttnUpBlock2D", "UpBlock2D"]

# Keys of diffusers that this network does not implement, with the values that are accepted.
ONLY: dict[str, tuple[Any, ...]] = {
    "only_cross_attention": (False,),
    "reverse_transformer_layers_per_block": (None,),
    "dual_cross_attention": (False,),
    "class_embed_type": (None,),
    "addition_embed_type": (None,),
    "addition_time_embed_dim": (None,),
    "num_class_embeds": (None,),
    "resnet_time_scale_shift": ("default",),
    "resnet_skip_time_act": (False,),
    "resnet_out_scale_factor": (1.0,),
    "time_embedding_type": ("positional",),
    "time_embedding_act_fn": (None,),
    "timestep_post_act": (None,),
    "time_cond_proj_dim": (None,),
    "projection_class_embeddings_input_dim": (None,),
    "attention_type": ("default",),
    "class_embeddings_concat": (False,),
    "mid_block_only_cross_attention": (None, False),
    "cross_attention_norm": (None,),
    "addition_embed_type_num_heads": (64,),
}
# Keys that are sizes or counts.
SIZES = (
    "sample_size",
    "in_channels",
    "out_channels",
    "block_out_channels",
    "layers_per_block",
    "norm_num_groups",
    "cross_attention_dim",
    "transformer_layers_per_block",
    "encoder_hid_dim",
    "attention_head_dim",
    "time_embedding_dim",
    "conv_in_kernel",
    "conv_out_kernel",
)
LARGEST, DEEPEST = 2**24, 64  # the largest size, the most layers in a block


class UNetConfig(ComponentConfig):
    """The keys and defaults of `UNet2DConditionModel`; a number means the same number at every level."""

    sample_size: int | tuple[int, int] | None = None
    in_channels: int = 4
    out_channels: int = 4
    center_input_sample: bool = False
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    down_block_types: tuple[DownBlockType, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    mid_block_type: Literal["UNetMidBlock2DCrossAttn"] | None = "UNetMidBlock2DCrossAttn"
    up_block_types: tuple[UpBlockType, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    only_cross_attention: bool = False
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int | tuple[int, ...] = 2
    downsample_padding: Literal[0, 1] = 1
    mid_block_scale_factor: float = 1.0
    dropout: float = 0.0
    act_fn: Literal["silu", "swish"] = "silu"
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int | tuple[int, ...] = 1280
    transformer_layers_per_block: int | tuple[int, ...] = 1
    reverse_transformer_layers_per_block: None = None
    encoder_hid_dim: int | None = None
    encoder_hid_dim_type: Literal["text_proj"] | None = None
    attention_head_dim: int | tuple[int, ...] = 8  # the number of heads, despite its name in diffusers
    num_attention_heads: None = None
    dual_cross_attention: bool = False
    use_linear_projection: bool = False
    class_embed_type: None = None
    addition_embed_type: None = None
    addition_time_embed_dim: None = None
    num_class_embeds: None = None
    upcast_attention: bool = False
    resnet_time_scale_shift: str = "default"
    resnet_skip_time_act: bool = False
    resnet_out_scale_factor: float = 1.0
    time_embedding_type: str = "positional"
    time_embedding_dim: int | None = None
    time_embedding_act_fn: None = None
    timestep_post_act: None = None
    time_cond_proj_dim: None = None
    conv_in_kernel: int = 3
    conv_out_kernel: int = 3
    projection_class_embeddings_input_dim: None = None
    attention_type: str = "default"
    class_embeddings_concat: bool = False
    mid_block_only_cross_attention: bool | None = None
    cross_attention_norm: None = None
    addition_embed_type_num_heads: int = 64

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Raises for values that diffusers supports and this network does not."""
        if data.get("num_attention_heads") is not None:
            raise ValueError(
                f"`num_attention_heads` = {data['num_attention_heads']!r} is not supported (only"
                " null): give the number of heads as `attention_head_dim`, as diffusers does"
            )
        for key, allowed in ONLY.items():
            if key in data and data[key] not in allowed:
                raise ValueError(f"`{key}` = {data[key]!r} is not supported (only default {allowed[0]!r})")
        if data.get("encoder_hid_dim") is not None and data.get("encoder_hid_dim_type") is None:
            data = {**data, "encoder_hid_dim_type": "text_proj"}
        return data

    @model_validator(mode="after")
    def _agree(self) -> "UNetConfig":
        """Checks the keys against each other before any tensor is allocated."""
        for key in SIZES:
            value = getattr(self, key)
            for number in value if isinstance(value, tuple) else (value,):
                most = DEEPEST if "layers" in key else LARGEST
                if number is not None and not 1 <= number <= most:
                    raise ValueError(f"`{key}` holds {number}, which is not in 1..{most}")
        levels = len(self.block_out_channels)
        for key in ("down_block_types", "up_block_types", *PER_LEVEL):
            value = getattr(self, key)
            if isinstance(value, tuple) and len(value) != levels:
                raise ValueError(
                    f"`{key}` has {len(value)} entries, `block_out_channels` has {levels}: give one per level"
                )
        for channels in self.block_out_channels:
            if channels % self.norm_num_groups:
                raise ValueError(
                    f"`block_out_channels` entry {channels} is not a multiple of `norm_num_groups` ="
                    f" {self.norm_num_groups}"
                )
        for channels, heads in zip(self.block_out_channels, self.per_level("attention_head_dim"), strict=True):
            if channels % heads:
                raise ValueError(
                    f"`attention_head_dim` = {heads} (the number of heads) does not divide the"
                    f" {channels} channels of its level in `block_out_channels`"
                )
        for key in ("conv_in_kernel", "conv_out_kernel"):
            if getattr(self, key) % 2 == 0:
                raise ValueError(f"`{key}` = {getattr(self, key)} is even: give an odd number")
        if self.encoder_hid_dim_type is not None and self.encoder_hid_dim is None:
            raise ValueError("`encoder_hid_dim_type` = 'text_proj' needs `encoder_hid_dim`")
        if self.encoder_hid_dim is not None and isinstance(self.cross_attention_dim, tuple):
            raise ValueError("`encoder_hid_dim` projects to one width: give `cross_attention_dim` as one number")
        return self

    def per_level(self, key: str) -> tuple[int, ...]:
        """Returns the value of `key` at every level, from the full resolution down."""
        value = getattr(self, key)
        return value if isinstance(value, tuple) else (value,) * len(self.block_out_channels)

    @property
    def time_dim(self) -> int:
        """Returns the width of the time embedding."""
        return self.time_embedding_dim or 4 * self.block_out_channels[0]

    @property
    def context_dim(self) -> int | tuple[int, ...]:
        """Returns the width of the token states that the network reads."""
        return self.cross_attention_dim if self.encoder_hid_dim is None else self.encoder_hid_dim


PER_LEVEL = ("layers_per_block", "cross_attention_dim", "transformer_layers_per_block", "attention_head_dim")
