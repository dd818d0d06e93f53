"""Text encoders that people know, by size and width: a plan is made without a network, and without their weights."""

from typing import NamedTuple


class Known(NamedTuple):
    """Parameters that its states are computed with, the width of a state, and how many tokens it reads."""

    parameters: int
    width: int
    tokens: int


# T5 v1.1's encoders, and the text towers of CLIP and OpenCLIP without their projection.
KNOWN = {
    "t5:google/t5-v1_1-small": Known(35_332_800, 512, 77),
    "t5:google/t5-v1_1-base": Known(109_628_544, 768, 77),
    "t5:google/t5-v1_1-large": Known(341_231_104, 1024, 77),
    "t5:google/t5-v1_1-xl": Known(1_223_527_424, 2048, 77),
    "t5:google/t5-v1_1-xxl": Known(4_762_310_656, 4096, 77),
    "clip:openai/clip-vit-base-patch32": Known(63_165_952, 512, 77),
    "clip:openai/clip-vit-base-patch16": Known(63_165_952, 512, 77),
    "clip:openai/clip-vit-large-patch14": Known(123_060_480, 768, 77),
    "openclip:ViT-B-32/laion2b_s34b_b79k": Known(63_165_952, 512, 77),
    "openclip:ViT-L-14/laion2b_s32b_b82k": Known(123_060_480, 768, 77),
    "openclip:ViT-H-14/laion2b_s32b_b79k": Known(352_984_064, 1024, 77),
    "openclip:ViT-g-14/laion2b_s34b_b88k": Known(352_984_064, 1024, 77),
    "openclip:ViT-bigG-14/laion2b_s39b_b160k": Known(693_021_440, 1280, 77),
}


def find(name: str) -> Known | None:
    """The encoder of a name, with or without its kind in front."""
    return next((known for full, known in KNOWN.items() if name in (full, full.partition(":")[2])), None)
