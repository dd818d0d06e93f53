"""Textual inversion (Gal et al. 2022): adds a learned token and its embeddings to a text encoder."""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AddedToken

from t2i.component import PICKLES, pickle_refused, read_safetensors
from t2i.text.base import TextEncoder

UNNAMED = ("emb_params", "clip_l", "*")  # keys of A1111, ComfyUI and old files: the token is the file's name


def add_embedding(encoder: TextEncoder, file: str | Path, token: str | None = None) -> str:
    """Adds a file's vectors as a token of the encoder; returns a one-line report of what was added.

    The file is {"<token>": [n, width]} or {"emb_params": [n, width]}; `token` overrides the name. If n > 1 the
    further vectors become <token>_1, <token>_2, ..; <token> in a prompt stands for all of them.
    """
    file = Path(file)
    name, vectors = read_embedding(file, encoder.width)
    token = name if token is None else token
    add_vectors(encoder, token, vectors, file)
    return f"{token}: {len(vectors)} vector{'s'[: len(vectors) > 1]} of width {encoder.width} from {file}"


def add_vectors(encoder: TextEncoder, token: str, vectors: Float[Tensor, "n d"], where: str | Path) -> None:
    """Adds vectors as a token of the encoder; `where` is for messages."""
    tokens = [token, *(f"{token}_{i}" for i in range(1, len(vectors)))]
    check_tokens(encoder, tokens, where)
    first = len(encoder.tokenizer)
    added = [AddedToken(t, single_word=True, normalized=True) for t in tokens]
    assert encoder.tokenizer.add_tokens(added) == len(tokens)
    assert encoder.tokenizer.convert_tokens_to_ids(tokens) == list(range(first, first + len(tokens)))
    table = encoder.embeddings()
    vectors = vectors.to(table)  # spare rows of the table, beyond the tokenizer's ids, are used first
    encoder.set_embeddings(torch.cat([table[:first], vectors, table[first + len(vectors) :]]))


def read_embedding(file: Path, width: int) -> tuple[str, Float[Tensor, "n d"]]:
    """Returns the token that a file names and its vectors."""
    if file.suffix in PICKLES:
        raise pickle_refused(file)
    if not file.is_file():
        raise ValueError(f"{file}: no such file; an embedding is a .safetensors file")
    tensors = read_safetensors(file)
    if "clip_g" in tensors:
        raise ValueError(f"{file}: an embedding for Stable Diffusion XL (clip_l and clip_g), which does not run here")
    if len(tensors) != 1:
        raise ValueError(
            f"{file}: has {', '.join(sorted(tensors)[:5]) or 'no tensors'}; an embedding is one tensor, "
            f"named by its token or {UNNAMED[0]!r}"
        )
    [(name, vectors)] = tensors.items()
    vectors = vectors[None] if vectors.dim() == 1 else vectors
    if vectors.dim() != 2 or not len(vectors) or not vectors.is_floating_point() or not vectors.isfinite().all():
        shape = f"{tuple(vectors.shape)} of {str(vectors.dtype).removeprefix('torch.')}"
        raise ValueError(f"{file}: {name} is {shape}: finite vectors (n, {width}) are needed")
    if vectors.shape[1] != width:
        raise ValueError(
            f"{file}: its vectors are {vectors.shape[1]} wide, the text encoder's are {width}: "
            "it was trained with another text encoder"
        )
    return (file.stem if name in UNNAMED else name), vectors


def check_tokens(encoder: TextEncoder, tokens: list[str], file: str | Path) -> None:
    """Raises ValueError for an empty token or one that the tokenizer already has, after normalization (lower case)."""
    if not tokens[0] or tokens[0] != tokens[0].strip():
        raise ValueError(f"{file}: token = {tokens[0]!r} is empty or has spaces around it: give another name")
    normalizer = encoder.tokenizer.backend_tokenizer.normalizer
    normalize = (lambda t: t) if normalizer is None else normalizer.normalize_str
    vocabulary = encoder.tokenizer.get_vocab()
    added = {normalize(t) for t in encoder.tokenizer.get_added_vocab()}
    if known := [t for t in tokens if t in vocabulary or normalize(t) in added]:
        raise ValueError(f"{file}: the text encoder already has the token {known[0]!r}: give another name (token)")
    if any(len(encoder.tokenizer.tokenize(t)) == 0 for t in tokens):
        raise ValueError(f"{file}: token = {tokens[0]!r} is empty for the tokenizer: give another name")
