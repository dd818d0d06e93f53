"""What a text encoder's recipe trains: the section that it has says so."""

from pathlib import Path
from typing import Any

import yaml

from t2i.training.span_corruption import SpanRecipe, SpanTask
from t2i.training.text_encoder import TextEncoderRecipe, TextEncoderTask


def text_encoder_training(path: Path) -> tuple[type[TextEncoderRecipe] | type[SpanRecipe], Any]:
    """The recipe and the task of a file: hidden spans where it has a section `t5`, else contrast with pictures."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        values = None  # what is wrong with the file is said where the recipe is read
    if isinstance(values, dict) and "t5" in values:
        return SpanRecipe, SpanTask
    return TextEncoderRecipe, TextEncoderTask
