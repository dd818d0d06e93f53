"""The text tower's keys in single files: CLIP's behind a prefix (SD 1), or OpenCLIP's own (SD 2), from its config."""

from typing import Literal

from pydantic import ConfigDict, Field

from t2i.component import ComponentConfig
from t2i.interop.layout import Place, Shape
from t2i.text.openclip import BLOCK, FUSED, RESBLOCKS, ROOT

CLIP, OPENCLIP = "cond_stage_model.transformer.", "cond_stage_model.model."
FUSED_PARTS: dict[str, Literal["q", "k", "v"]] = {
    "self_attn.q_proj": "q",
    "self_attn.k_proj": "k",
    "self_attn.v_proj": "v",
}
LARGEST, DEEPEST = 2**20, 1000  # more is damage
TOWER, PROJECTION = "text_model.", "text_projection.weight"


class TextConfig(ComponentConfig):
    """The keys of a CLIP text tower's config.json that determine its names and shapes."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    model_type: Literal["clip_text_model"] = "clip_text_model"
    architectures: tuple[str, ...] = ("CLIPTextModel",)
    hidden_act: Literal["quick_gelu", "gelu"] = "quick_gelu"
    hidden_size: int = Field(512, gt=0, le=LARGEST)
    intermediate_size: int = Field(2048, gt=0, le=LARGEST)
    num_hidden_layers: int = Field(12, ge=0, le=DEEPEST)
    num_attention_heads: int = Field(8, gt=0)
    max_position_embeddings: int = Field(77, gt=0, le=LARGEST)
    vocab_size: int = Field(49408, gt=0, le=LARGEST)
    projection_dim: int = Field(512, gt=0, le=LARGEST)

    @property
    def projected(self) -> bool:
        """True if the weights hold the projection of the pooled state."""
        return self.architectures == ("CLIPTextModelWithProjection",)


def text_shapes(config: TextConfig) -> dict[str, Shape]:
    """Returns the shape of every tensor of the tower, by its name in a folder."""
    d, m = config.hidden_size, config.intermediate_size
    linear = {"mlp.fc1": (m, d), "mlp.fc2": (d, m)} | {f"self_attn.{x}_proj": (d, d) for x in ("q", "k", "v", "out")}
    shapes: dict[str, Shape] = {
        f"{TOWER}embeddings.token_embedding.weight": (config.vocab_size, d),
        f"{TOWER}embeddings.position_embedding.weight": (config.max_position_embeddings, d),
    }
    for i in range(config.num_hidden_layers):
        layer = f"{TOWER}encoder.layers.{i}."
        for name, shape in linear.items():
            shapes |= {f"{layer}{name}.weight": shape, f"{layer}{name}.bias": shape[:1]}
        for name in ("layer_norm1", "layer_norm2"):
            shapes |= {f"{layer}{name}.weight": (d,), f"{layer}{name}.bias": (d,)}
    shapes |= {f"{TOWER}final_layer_norm.{leaf}": (d,) for leaf in ("weight", "bias")}
    return shapes | ({PROJECTION: (config.projection_dim, d)} if config.projected else {})


def clip_places(config: TextConfig, flat: bool = False) -> dict[str, Place]:
    """Returns the places of the tower's tensors in an SD 1 file; `flat`: without `text_model.`, as in old merges."""
    return {name: Place(CLIP + (name.removeprefix(TOWER) if flat else name)) for name in text_shapes(config)}


def openclip_places(config: TextConfig) -> dict[str, Place]:
    """Returns the places of the tower's tensors in an SD 2 file: OpenCLIP's names, query, key and value in one."""
    root = {TOWER + ours: theirs for theirs, ours in ROOT.items()}
    block = {ours: theirs for theirs, ours in BLOCK.items()}
    places = {}
    for name in text_shapes(config):
        if name == PROJECTION:
            places[name] = Place(f"{OPENCLIP}text_projection", "transposed")
        elif name in root:
            places[name] = Place(OPENCLIP + root[name])
        else:
            layer, _, name_in_layer = name.removeprefix(f"{TOWER}encoder.layers.").partition(".")
            module, _, leaf = name_in_layer.rpartition(".")
            block_key = f"{OPENCLIP}{RESBLOCKS}{layer}."
            if module in block:
                places[name] = Place(f"{block_key}{block[module]}.{leaf}")
            else:
                places[name] = Place(f"{block_key}{FUSED}{leaf}", FUSED_PARTS[module])
    return places
