"""A tower's config.json from an unknown hand, checked before a network is made of it."""

from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

C = TypeVar("C", bound=PreTrainedConfig)
LARGEST = 2**24  # of any size in a config
SIZES = {
    "d_ff",
    "d_kv",
    "d_model",
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_heads",
    "projection_dim",
    "relative_attention_max_distance",
    "relative_attention_num_buckets",
    "vocab_size",
}
LAYERS = {"num_hidden_layers", "num_layers"}


def make_config(kind: type[C], values: dict[str, Any], where: Path) -> C:
    """A tower's config of `values`; a fault is a ValueError naming `where` and what is wrong with it."""
    for key, value in values.items():
        least = 1 if key in SIZES else 0
        if key in SIZES | LAYERS and (type(value) is not int or not least <= value <= LARGEST):
            raise ValueError(f"{where}: `{key}` = {value!r:.200} is not a whole number in {least}..{LARGEST}")
    try:
        config = kind(**values)
    except (StrictDataclassError, ValueError, TypeError) as error:
        raise ValueError(f"{where}: describes no text encoder ({' '.join(str(error)[:500].split())})") from None
    act = getattr(config, "dense_act_fn", getattr(config, "hidden_act", None))
    if act not in ACT2FN:
        raise ValueError(f"{where}: activation {act!r} is unknown; one of {', '.join(sorted(ACT2FN))} is needed")
    return config
