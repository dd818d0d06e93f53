"""Sizes of well-known text encoders, so that `--plan` needs neither a network connection nor weights."""

from typing import NamedTuple


class EncoderSize(NamedTuple):
    """Parameters that the states are computed with, the width of a state, and the number of tokens."""

    parameters: int
    width: int
    tokens: int


# T5 v1.1's encoders, and the text towers of CLIP and OpenCLIP without their projection.
SIZES = {
    "t5:google/t5-v1_1-small": EncoderSize(35_332_800, 512, 77),
    "t5:google/t5-v1_1-base": EncoderSize(109_628_544, 768, 77),
    "t5:google/t5-v1_1-large": EncoderSize(341_231_104, 1024, 77),
    "t5:google/t5-v1_1-xl": EncoderSize(1_223_527_424, 2048, 77),
    "t5:google/t5-v1_1-xxl": EncoderSize(4_762_310_656, 4096, 77),
    "clip:openai/clip-vit-base-patch32": EncoderSize(63_165_952, 512, 77),
    "clip:openai/clip-vit-base-patch16": EncoderSize(63_165_952, 512, 77),
    "clip:openai/clip-vit-large-patch14": EncoderSize(123_060_480, 768, 77),
    "openclip:ViT-B-32/laion2b_s34b_b79k": EncoderSize(63_165_952, 512, 77),
    "openclip:ViT-L-14/laion2b_s32b_b82k": EncoderSize(123_060_480, 768, 77),
    "openclip:ViT-H-14/laion2b_s32b_b79k": EncoderSize(352_984_064, 1024, 77),
    "openclip:ViT-g-14/laion2b_s34b_b88k": EncoderSize(352_984_064, 1024, 77),
    "openclip:ViT-bigG-14/laion2b_s39b_b160k": EncoderSize(693_021_440, 1280, 77),
}


def find(name: str) -> EncoderSize | None:
    """Returns the size of an encoder by name, with or without its kind in front; None if unknown."""
    return next((known for full, known in SIZES.items() if name in (full, full.partition(":")[2])), None)
