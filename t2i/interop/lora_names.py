"""The names of the layers that a LoRA changes, in every dialect, derived from the modules of the networks.

diffusers: `unet.<layer>.lora_A.weight`, in older files `.lora.down.weight` and `.processor.to_q_lora.down.weight`;
kohya: `lora_unet_<layer with _ for .>.lora_down.weight` and `.alpha`; peft: `base_model.model.<layer>.lora_A.weight`.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

from torch import nn

from t2i.generator.unet import UNet
from t2i.interop.keys_unet import PREFIX as PREFIX_UNET
from t2i.interop.keys_unet import unet_places
from t2i.nn.lora import adaptable_layers
from t2i.text.base import TextEncoder
from t2i.text.clip import PREFIX, CLIPTextEncoder

Part = Literal["down", "up", "alpha"]
Networks = Mapping[str, nn.Module]  # "unet" and, where it is there, "text_encoder"
KOHYA = {"unet": "lora_unet_", "text_encoder": "lora_te_"}
PEFT = "base_model.model."
# An attention's layers in the first files of diffusers, which called the text encoder's like the U-Net's.
OLD = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out.0": "to_out"}
OLD |= {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}
_END = re.compile(r"(?:\.lora(?:_linear_layer)?\.|\.lora_|(?<=_lora)\.)(A|B|down|up)(?:\.default)?\.weight\Z|\.alpha\Z")
_PARTS: dict[str | None, Part] = {"A": "down", "down": "down", "B": "up", "up": "up", None: "alpha"}


class Place(NamedTuple):
    """A layer of one of the networks."""

    component: str
    layer: str


def network_of(part: nn.Module) -> nn.Module:
    """Returns the network in which a component's layers are named: of a text encoder its tower."""
    return part.tower if isinstance(part, TextEncoder) else part


def file_name(part: nn.Module, layer: str) -> str:
    """Returns the name of a layer in a component's files."""
    return PREFIX + layer if isinstance(part, CLIPTextEncoder) else layer


def kohya_name(component: str, part: nn.Module, layer: str) -> str:
    """Returns the name of a layer in kohya's files."""
    return KOHYA[component] + file_name(part, layer).replace(".", "_")


def spellings(networks: Networks) -> dict[str, Place]:
    """Returns every layer that a LoRA can change, by each of its names in files."""
    places: dict[str, Place] = {}
    for component, part in networks.items():
        for layer in adaptable_layers(network_of(part)):
            place = Place(component, layer)
            original = _original(part, layer) if component == "unet" else ()
            for name in (*_kohya(component, part, layer), *_dotted(component, part, layer), *original):
                assert places.setdefault(name, place) == place, name
    return places


def _kohya(component: str, part: nn.Module, layer: str) -> Iterator[str]:
    yield (name := kohya_name(component, part, layer))
    if component == "text_encoder":  # as diffusers' own export calls the only text encoder
        yield name.replace(KOHYA[component], "lora_te1_", 1)


def _original(unet: nn.Module, layer: str) -> Iterator[str]:
    """Yields a layer's names by latent diffusion's original code, which ComfyUI and sgm's users write."""
    if isinstance(unet, UNet) and layer != "encoder_hid_proj":  # which the original code has not
        name = unet_places(unet.config, [f"{layer}.weight"])[f"{layer}.weight"].key
        name = name.removeprefix(PREFIX_UNET).removesuffix(".weight")
        yield "diffusion_model." + name
        yield KOHYA["unet"] + name.replace(".", "_")


def _dotted(component: str, part: nn.Module, layer: str) -> Iterator[str]:
    for name in {layer, file_name(part, layer)}:
        yield PEFT + name
        for full in (name, f"{component}.{name}"):
            yield full
            for leaf, old in OLD.items():
                if full.endswith(f".{leaf}"):
                    yield f"{full.removesuffix(leaf)}{old}_lora"
                    yield f"{full.removesuffix(leaf)}processor.{old}_lora"


def split_key(key: str) -> tuple[str, Part] | None:
    """Returns the layer's name in a key and the part of the LoRA; None for a key of another kind."""
    match = _END.search(key)
    return (key[: match.start()], _PARTS[match[1]]) if match else None
