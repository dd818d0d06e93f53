"""OpenCLIP's text towers (Cherti et al. 2023), converted to CLIP's: the same network with other weight names."""

import gzip
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTokenizer

from t2i.component import PICKLES, read_safetensors
from t2i.text.clip import PREFIX, PROJECTION, CLIPTextEncoder, count_layers, shallow
from t2i.text.tokenizer import END, LETTERS, START

PAD = "!"  # id 0, with which OpenCLIP pads
MERGES = 49152 - 256 - 2  # lines of OpenCLIP's vocabulary file that are used
# The config keys of a text tower like CLIP's; any other key means another network, except these with these values.
SIZES = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"}
HARMLESS = {"no_causal_mask": False}
ROOT = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
RESBLOCKS, FUSED = "transformer.resblocks.", "attn.in_proj_"
IMAGE_SIDE = "OpenCLIP's image side"


def load_openclip(
    name: str, layer: int | None = None, dtype: torch.dtype | None = None, max_tokens: int | None = None
) -> CLIPTextEncoder:
    """Loads ARCH/PRETRAINED, a pair of `open_clip.list_pretrained()`, or ARCH/PATH with a safetensors file."""
    arch, slash, pretrained = name.partition("/")
    if not (arch and slash and pretrained):
        raise ValueError(f"openclip:{name}: write openclip:ARCH/PRETRAINED, e.g. openclip:ViT-H-14/laion2b_s32b_b79k")
    config, path = text_config(arch), find_weights(arch, pretrained)
    tensors = read_safetensors(path)
    state = shallow(config, convert(tensors), count_layers(layer, config.num_hidden_layers, path))
    encoder = CLIPTextEncoder.build(config, state, openclip_tokenizer(), path, max_tokens)
    encoder.ignored = {IMAGE_SIDE: sum(text_key(k) is None for k in tensors)}
    return encoder.to(dtype=dtype or torch.float32)


def text_config(arch: str) -> CLIPTextConfig:
    """Returns the config of an architecture's text tower; ValueError if that is not CLIP's network."""
    from open_clip import get_model_config, list_models  # takes seconds to import

    values = get_model_config(arch)
    if values is None:
        close = get_close_matches(arch, list_models(), 3)
        raise ValueError(
            f"openclip:{arch}: no such architecture{'; did you mean ' + ' or '.join(close) + '?' if close else ''}"
        )
    text: dict[str, Any] = values["text_cfg"]
    if unsupported := sorted(k for k in set(text) - SIZES if HARMLESS.get(k) != text[k]):
        raise ValueError(
            f"openclip:{arch}: its text tower has {', '.join(unsupported)} and is not CLIP's network, the only one "
            "supported; choose an architecture like ViT-L-14 or ViT-H-14"
        )
    width = text.get("width", 512)
    return CLIPTextConfig(
        vocab_size=text.get("vocab_size", 49408),
        hidden_size=width,
        intermediate_size=int(width * text.get("mlp_ratio", 4.0)),
        projection_dim=values["embed_dim"],
        num_hidden_layers=text.get("layers", 12),
        num_attention_heads=text.get("heads", 8),
        max_position_embeddings=text.get("context_length", 77),
        hidden_act="quick_gelu" if values.get("quick_gelu") else "gelu",
        pad_token_id=0,
        bos_token_id=len(LETTERS) + MERGES,
        eos_token_id=len(LETTERS) + MERGES + 1,
    )


def find_weights(arch: str, pretrained: str) -> Path:
    """Returns the safetensors file of a tag, downloaded from the hub, or the file at the path `pretrained`."""
    from open_clip import get_model_config
    from open_clip.pretrained import download_pretrained, get_pretrained_cfg, list_pretrained_tags_by_model

    tag = get_pretrained_cfg(arch, pretrained)
    if tag:
        quick = bool(tag.get("quick_gelu"))
        if quick != bool((get_model_config(arch) or {}).get("quick_gelu")):
            other = f"{arch}-quickgelu" if quick else arch.removesuffix("-quickgelu")
            raise ValueError(f"openclip:{arch}/{pretrained}: these weights belong to openclip:{other}/{pretrained}")
        try:
            path = Path(download_pretrained(tag))
        except (OSError, ValueError, RuntimeError) as error:
            raise ValueError(f"openclip:{arch}/{pretrained}: the hub download failed ({first_line(error)})") from None
    else:
        path = Path(pretrained)
        if not path.is_file():
            tags = ", ".join(list_pretrained_tags_by_model(arch)) or "none"
            raise ValueError(f"openclip:{arch}/{pretrained}: neither a file nor a tag of {arch}; its tags: {tags}")
    if path.suffix in PICKLES:
        raise ValueError(f"{path}: a pickle, which can run code; if you trust it, convert it to safetensors first")
    return path


def text_key(key: str) -> str | None:
    """Returns a key of the text tower without the `text.` of newer models; None for a key of the image side."""
    key = key.removeprefix("text.")
    return key if key in ROOT or key.startswith(("text_projection", RESBLOCKS)) else None


def convert(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the text tower's tensors by CLIP's names; splits fused projections and transposes the last one."""
    state: dict[str, Tensor] = {}
    for full, tensor in tensors.items():
        key = text_key(full)
        if key is None:
            continue
        if key.startswith("text_projection"):
            state[PROJECTION if key != "text_projection.bias" else key] = (
                tensor if "." in key else tensor.T.contiguous()
            )
        elif key in ROOT:
            state[PREFIX + ROOT[key]] = tensor
        else:
            layer, _, name = key.removeprefix(RESBLOCKS).partition(".")
            target = f"{PREFIX}encoder.layers.{layer}."
            if name.startswith(FUSED):
                for part, split in zip("qkv", tensor.chunk(3), strict=True):
                    state[f"{target}self_attn.{part}_proj.{name.removeprefix(FUSED)}"] = split.contiguous()
            else:
                module, _, leaf = name.rpartition(".")
                state[f"{target}{BLOCK.get(module, module)}.{leaf}"] = tensor
    return state


def openclip_tokenizer() -> CLIPTokenizer:
    """Returns CLIP's tokenizer with the vocabulary in OpenCLIP's package, padding with "!" (id 0) as OpenCLIP does.

    OpenCLIP also straightens quotes and repairs broken encodings and HTML entities of a text; this tokenizer does not.
    """
    from open_clip.tokenizer import default_bpe

    with gzip.open(default_bpe(), "rt", encoding="utf8") as file:
        lines = file.read().split("\n")[1 : MERGES + 1]
    merges: Any = [tuple(line.split()) for line in lines]
    tokens = [*LETTERS, *(first + second for first, second in merges), START, END]
    vocab = {token: i for i, token in enumerate(tokens)}
    # Without `split_special_tokens` a "!" in a text would become padding.
    return CLIPTokenizer(vocab=vocab, merges=merges, pad_token=PAD, model_max_length=77, split_special_tokens=True)


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message, or its class if it has none."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
