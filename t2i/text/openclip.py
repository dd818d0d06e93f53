"""OpenCLIP's text towers (Cherti et al. 2023) as CLIP's: the same network by other names of its weights."""

import gzip
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTokenizer

from t2i.component import PICKLES, read_safetensors
from t2i.text.clip import PREFIX, PROJECTION, CLIPTextEncoder, layers_read, shallow
from t2i.text.tokenizer import END, LETTERS, START

PAD = "!"  # id 0, with which OpenCLIP pads
MERGES = 49152 - 256 - 2  # of the lines in the file
# What a text tower like CLIP's has in its config; any other key but one that says so is another network.
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


def load_openclip(
    name: str, layer: int | None = None, dtype: torch.dtype | None = None, max_tokens: int | None = None
) -> CLIPTextEncoder:
    """ARCH/PRETRAINED, as `open_clip.list_pretrained()` has them; PRETRAINED may be the path of a safetensors file."""
    arch, slash, pretrained = name.partition("/")
    if not (arch and slash and pretrained):
        raise ValueError(f"openclip:{name}: write openclip:ARCH/PRETRAINED, as openclip:ViT-H-14/laion2b_s32b_b79k")
    config, path = text_config(arch), find_weights(arch, pretrained)
    found = read_safetensors(path)
    state = shallow(config, convert(found), layers_read(layer, config.num_hidden_layers, path))
    encoder = CLIPTextEncoder.build(config, state, openclip_tokenizer(), path, max_tokens)
    encoder.ignored_keys = sum(text_key(k) is None for k in found)
    return encoder.to(dtype=dtype or torch.float32)


def text_config(arch: str) -> CLIPTextConfig:
    """The config of an architecture's text tower; one that is not CLIP's network is refused by name."""
    from open_clip import get_model_config, list_models  # seconds, which nothing else needs

    values = get_model_config(arch)
    if values is None:
        close = get_close_matches(arch, list_models(), 3)
        raise ValueError(f"openclip:{arch}: no such architecture{'; near it: ' + ', '.join(close) if close else ''}")
    text: dict[str, Any] = values["text_cfg"]
    if strange := sorted(k for k in set(text) - SIZES if HARMLESS.get(k) != text[k]):
        raise ValueError(
            f"openclip:{arch}: its text tower has {', '.join(strange)} and is not CLIP's network, which is all "
            "that is read of OpenCLIP; take an architecture like ViT-L-14 or ViT-H-14"
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
    """The safetensors file of a tag, from the hub, or the file that `pretrained` is the path of."""
    from open_clip import get_model_config
    from open_clip.pretrained import download_pretrained, get_pretrained_cfg, list_pretrained_tags_by_model

    tag = get_pretrained_cfg(arch, pretrained)
    if tag:
        quick = bool(tag.get("quick_gelu"))
        if quick != bool((get_model_config(arch) or {}).get("quick_gelu")):
            other = f"{arch}-quickgelu" if quick else arch.removesuffix("-quickgelu")
            raise ValueError(f"openclip:{arch}/{pretrained}: these weights are of openclip:{other}/{pretrained}")
        try:
            path = Path(download_pretrained(tag))
        except (OSError, ValueError, RuntimeError) as error:
            raise ValueError(f"openclip:{arch}/{pretrained}: the hub did not give it ({first_line(error)})") from None
    else:
        path = Path(pretrained)
        if not path.is_file():
            tags = ", ".join(list_pretrained_tags_by_model(arch)) or "none"
            raise ValueError(f"openclip:{arch}/{pretrained}: neither a file nor a tag of {arch}; its tags: {tags}")
    if path.suffix in PICKLES:
        raise ValueError(f"{path}: a pickle, which can run code; save it as safetensors first, where you trust it")
    return path


def text_key(key: str) -> str | None:
    """A key of the text tower without the `text.` of newer models; None for one of the image's side."""
    key = key.removeprefix("text.")
    return key if key in ROOT or key.startswith(("text_projection", RESBLOCKS)) else None


def convert(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """The text tower's tensors by CLIP's names: the fused projection split, the last one transposed."""
    state: dict[str, Tensor] = {}
    for full, tensor in found.items():
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
    """CLIP's own vocabulary, out of OpenCLIP's package; it pads with "!", which stands before every other token.

    OpenCLIP also straightens quotes and mends broken encodings and HTML entities in a text, which CLIP's readers
    do not.
    """
    from open_clip.tokenizer import default_bpe

    with gzip.open(default_bpe(), "rt", encoding="utf8") as file:
        lines = file.read().split("\n")[1 : MERGES + 1]
    merges: Any = [tuple(line.split()) for line in lines]
    tokens = [*LETTERS, *(left + right for left, right in merges), START, END]
    vocab = {token: i for i, token in enumerate(tokens)}
    # Without the last word a "!" in a text would be read as padding.
    return CLIPTokenizer(vocab=vocab, merges=merges, pad_token=PAD, model_max_length=77, split_special_tokens=True)


def first_line(error: Exception) -> str:
    """What went wrong, in one line."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
