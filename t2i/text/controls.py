"""Control encoders for ablations: lower and upper bounds for a trained text encoder.

They know less of the caption than a trained encoder (null, bag, random) or everything about the scene (oracle).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Self, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer, PreTrainedTokenizerFast
from transformers import T5EncoderModel as T5Tower

from t2i import randomness
from t2i.component import check_keys
from t2i.conditioning import Conditioning
from t2i.files import read_json, write_json
from t2i.text.base import Encoded, TextEncoder, find_folders, read_tensors
from t2i.text.clip import CLIPTextEncoder
from t2i.text.t5 import T5TextEncoder
from t2i.text.tokenizer import END, LETTERS, START, load_tokenizer, token_id, tokenize
from t2i.text.towers import TextTowerConfig

FORMS = "control:null, control:bag:FOLDER, control:random:FOLDER (or FOLDER@SEED), control:oracle:FOLDER"
NULL, ORACLE = "control-null", "control-oracle"
NULL_TOKENS, NULL_WIDTH = 8, 32
PAD, UNKNOWN = "[PAD]", "[UNKNOWN]"
TABLE = "attributes.json"

E = TypeVar("E", bound=CLIPTextEncoder)
Attributes = Sequence[Sequence[str]]  # the words of each of a scene's tokens


def parse_control(name: str) -> tuple[str, str, int]:
    """Splits a control's name without its `control:` into (kind, folder, seed); `null` has no folder."""
    kind, _, suffix = name.partition(":")
    folder, at, number = suffix.rpartition("@")
    folder, seed = (folder, int(number)) if at and number.isdigit() and kind in ("bag", "random") else (suffix, 0)
    if kind not in ("null", "bag", "random", "oracle") or bool(folder) != (kind != "null"):
        raise ValueError(f"text encoder 'control:{name}': write one of {FORMS}")
    return kind, folder, seed


def load_control(name: str, open_encoder: Callable[[str], TextEncoder]) -> TextEncoder:
    """Loads the control of a name without its `control:`; `open_encoder` loads the encoder in a FOLDER."""
    kind, folder, seed = parse_control(name)
    if kind == "null":
        return null_encoder()
    if kind == "oracle":
        return OracleTextEncoder.load(Path(folder))
    return (bag_of_words if kind == "bag" else untrained)(open_encoder(folder), seed)


class NullTextEncoder(CLIPTextEncoder):
    """Maps every caption to the same states: token embeddings are zero, so the states are those of the positions.

    transformers loads its folder as a CLIP, and also gets the same states for every caption.
    """

    def forward(self, prompts: list[str]) -> Encoded:
        """Returns the states of '' for each prompt; nothing is truncated, as nothing is read."""
        return super().forward([""] * len(prompts))

    def states(self, ids: Int[Tensor, "b n"], mask: Bool[Tensor, "b n"]) -> Conditioning:
        """Returns the states and the mask of '', whatever the ids."""
        empty = tokenize(self.tokenizer, [""], self.max_tokens)
        return super().states(empty.ids, empty.mask).repeat(len(ids))

    def file_config(self) -> dict[str, Any]:
        return super().file_config() | {"control": NULL}


def null_encoder() -> NullTextEncoder:
    """Returns the `control:null` encoder, with a tokenizer of bytes and fixed random position embeddings."""
    vocab = {token: i for i, token in enumerate([*LETTERS, START, END])}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=[], model_max_length=NULL_TOKENS)
    encoder = embeddings_alone(NullTextEncoder, tokenizer, NULL_WIDTH, seed=0)
    encoder.embeddings().zero_()
    return encoder


def bag_of_words(encoder: TextEncoder, seed: int = 0) -> CLIPTextEncoder:
    """Returns a CLIP without layers, states = norm(word + position), with `encoder`'s tokenizer and width.

    The embeddings are random and frozen. transformers loads its folder as a CLIP.
    """
    if not isinstance(encoder.tokenizer, CLIPTokenizer):
        raise ValueError(
            f"control:bag: the tokenizer of this text encoder is a {type(encoder.tokenizer).__name__}; a bag of words "
            "needs CLIP's tokenizer, which every encoder of `t2i train text-encoder` has"
        )
    return embeddings_alone(CLIPTextEncoder, encoder.tokenizer, encoder.width, seed)


def embeddings_alone(kind: type[E], tokenizer: CLIPTokenizer, width: int, seed: int) -> E:
    """Returns a CLIP text tower without layers; its embeddings of tokens and positions are standard normal."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=0,
        num_attention_heads=1,
        max_position_embeddings=tokenizer.model_max_length,
        hidden_act="gelu",
        pad_token_id=token_id(tokenizer, tokenizer.pad_token),
        bos_token_id=token_id(tokenizer, tokenizer.bos_token),
        eos_token_id=token_id(tokenizer, tokenizer.eos_token),
    )
    with torch.random.fork_rng(devices=[]):  # its random weights are replaced; the caller's random state is kept
        tower = CLIPTextModelWithProjection(config).text_model
    for name in ("token_embedding", "position_embedding"):
        weight = getattr(tower.embeddings, name).weight
        weight.data = randomness.normal(weight.shape, seed, "control", name)
    return kind(tower, None, tokenizer)


def untrained(encoder: TextEncoder, seed: int = 0) -> TextEncoder:
    """Returns a frozen encoder with `encoder`'s network, size and tokenizer and the initial weights of a training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(randomness.generator(seed, "control", "random").initial_seed())
        if isinstance(encoder, T5TextEncoder):
            fresh = T5Tower(encoder.config)
            return T5TextEncoder(fresh, encoder.tokenizer, encoder.max_tokens, encoder.use_attention_mask)
        if type(encoder) is CLIPTextEncoder:
            model = CLIPTextModelWithProjection(encoder.config)
            for embedding in model.text_model.embeddings.children():
                assert isinstance(embedding, nn.Embedding)
                nn.init.normal_(embedding.weight, std=TextTowerConfig().embedding_std)
            projection = None if encoder.projection is None else model.text_projection
            return CLIPTextEncoder(model.text_model, projection, encoder.tokenizer, encoder.max_tokens)
    raise ValueError(f"control:random: {type(encoder).__name__} is a control itself; give the folder of a CLIP or a T5")


class OracleTower(nn.Module):
    """A table with one row of 0s and 1s per token: the attributes that the token has."""

    def __init__(self, rows: Float[Tensor, "v d"]) -> None:
        super().__init__()
        self.embedding = nn.Embedding.from_pretrained(rows, freeze=True)
        self.config: Any = SimpleNamespace(vocab_size=len(rows), hidden_size=rows.shape[1])

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embedding


class OracleTextEncoder(TextEncoder):
    """Maps a caption to its scene's attributes, one token per object, by a table: an upper bound for any encoder.

    A caption that is not in the table is an error. Its folder cannot be read by transformers.
    """

    classes: ClassVar[dict[str, list[str]]] = {
        "text_encoder": ["t2i", "OracleTextEncoder"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
    }
    tower: OracleTower

    def __init__(self, tower: OracleTower, tokenizer: PreTrainedTokenizerFast, table: Mapping[str, str]) -> None:
        super().__init__(tower, tokenizer, tokenizer.model_max_length)
        self.table = dict(table)

    @classmethod
    def of(cls, scenes: Mapping[str, Attributes]) -> Self:
        """Builds the oracle of captions and their scene tokens, e.g. [["circle", "red"], ["background white"]]."""
        if not scenes:
            raise ValueError("control:oracle: no captions: an oracle needs the scene of every caption that it encodes")
        words = sorted({word for tokens in scenes.values() for token in tokens for word in token})
        table = {plain(c): " ".join("+".join(w.replace(" ", "_") for w in t) for t in s) for c, s in scenes.items()}
        kinds = {"+".join(w.replace(" ", "_") for w in t): t for s in scenes.values() for t in s}
        names = [PAD, UNKNOWN, *sorted(kinds)]
        rows = torch.zeros(len(names), len(words))
        for i, name in enumerate(names[2:], 2):
            rows[i, [words.index(word) for word in kinds[name]]] = 1
        word_level = Tokenizer(WordLevel({name: i for i, name in enumerate(names)}, unk_token=UNKNOWN))
        word_level.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        longest = max(1, *(len(text.split()) for text in table.values()))
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=word_level, pad_token=PAD, unk_token=UNKNOWN, model_max_length=longest
        )
        return cls(OracleTower(rows), tokenizer, table)

    @property
    def width(self) -> int:
        return self.tower.config.hidden_size

    def forward(self, prompts: list[str]) -> Encoded:
        """Returns the states of each caption's scene; the empty caption has no tokens."""
        known = self.table | {"": ""}
        if unknown := [p for p in prompts if plain(p) not in known]:
            raise ValueError(
                f"control:oracle: {unknown[0]!r} is not one of the {len(self.table)} captions whose scenes it knows: "
                "build the oracle from all captions that are encoded"
            )
        return super().forward([known[plain(p)] for p in prompts])

    def states(self, ids: Int[Tensor, "b n"], mask: Bool[Tensor, "b n"]) -> Conditioning:
        """Returns the rows of the tokens."""
        ids, mask = ids.to(self.device), mask.to(self.device)
        if (ids == token_id(self.tokenizer, UNKNOWN)).any():
            raise ValueError("control:oracle: it encodes whole captions only: leave prompt_syntax and long_prompts out")
        return Conditioning(self.tower.embedding(ids), mask)

    def named_tensors(self) -> dict[str, Tensor]:
        return self.tower.state_dict()

    def file_config(self) -> dict[str, Any]:
        return {"model_type": ORACLE, "attributes": self.width}

    def save(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Writes `text_encoder/`, which includes the table of captions, and `tokenizer/`."""
        super().save(folder, dtype)
        write_json(Path(folder) / "text_encoder" / TABLE, self.table)

    @classmethod
    def load(
        cls,
        folder: Path,
        layer: int | None = None,
        dtype: torch.dtype | None = None,
        max_tokens: int | None = None,
        variant: str | None = None,
    ) -> Self:
        """Loads the oracle in a folder."""
        weights, tokenizer_folder = find_folders(folder)
        if layer not in (None, -1) or max_tokens is not None:
            raise ValueError(f"{weights} is an oracle, with no layers and a fixed length: leave layer, max_tokens out")
        tokenizer = load_tokenizer(tokenizer_folder, PreTrainedTokenizerFast)
        state = read_tensors(weights, variant)
        tower = OracleTower(torch.zeros(len(tokenizer), read_json(weights / "config.json")["attributes"]))
        check_keys(tower.state_dict(), state, weights)
        tower.load_state_dict(state)
        return cls(tower, tokenizer, read_json(weights / TABLE)).to(dtype=dtype or torch.float32)


def oracle(captions: Iterable[str], attributes_of: Callable[[str], Attributes]) -> OracleTextEncoder:
    """Builds the oracle of these captions; `attributes_of` returns the attributes of a caption's scene."""
    return OracleTextEncoder.of({caption: attributes_of(caption) for caption in captions})


def plain(caption: str) -> str:
    """Returns a caption without the spaces that tokenizers ignore."""
    return " ".join(caption.split())
