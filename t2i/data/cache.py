"""The cache of unscaled latent moments and text states: safetensors shards in folders named by the key of their inputs.

FOLDER/latents/KEY/ and FOLDER/texts/KEY/ hold shards and a manifest; another text encoder reuses the latents.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from t2i.component import read_safetensors, save_weights
from t2i.conditioning import Conditioning
from t2i.data.transforms import TRANSFORM
from t2i.errors import RunFailed
from t2i.files import publish, read_json, sha256, sweep, write_json
from t2i.progress import say

FORMAT = 1
SHARD_ROWS = 1024
MANIFEST = {"format", "parts", "rows", "shard_rows", "sha256"}  # its keys
PARTS = {"data": "data", "size": "size", "vae": "VAE", "text_encoder": "text encoder"}
SECTIONS = {"latents": ("data", "size", "vae"), "texts": ("data", "text_encoder")}

Parts = Mapping[str, str]
Encode = Callable[[range], dict[str, Tensor]]


def cache_parts(
    *, data: str, size: tuple[int, int], background: str, vae: str, text_encoder: str, layer: int | None, dtype: str
) -> dict[str, str]:
    """Returns the parts of a cache's key: `data`, `vae`, `text_encoder` are fingerprints, `dtype` of the states."""
    return {
        "data": data,
        "size": f"{size[0]}x{size[1]} on {background}; {TRANSFORM}",
        "vae": vae,
        "text_encoder": text_part(text_encoder, layer, dtype),
    }


def text_part(text_encoder: str, layer: int | None, dtype: str) -> str:
    """Returns the part of a cache's key that text states depend on."""
    return f"{text_encoder}, layer {layer}, {dtype}"


class TextStates:
    """The conditioning of a list of texts, by index, read from memory-mapped shards."""

    def __init__(self, folder: Path, parts: Parts):
        self._shards = _Shards(_place(folder, "texts", parts))

    def __getitem__(self, indices: Int[Tensor, " b"]) -> Conditioning:
        states = self._shards.rows(indices)
        return Conditioning(states["tokens"], states["mask"], states.get("pooled"))

    def captions(self, n: int) -> Int[Tensor, " n"]:
        """Returns the row of the caption of each of n images; raises a ValueError if the table is damaged."""
        return self._shards.rows_of("captions", n)


class Cache:
    """Latent moments and conditioning by index, read from memory-mapped shards."""

    def __init__(self, folder: Path, parts: Parts):
        self._latents = _Shards(_place(folder, "latents", parts))
        self._texts = TextStates(folder, parts)
        self._caption = self._texts.captions(len(self))

    def __len__(self) -> int:
        return len(self._latents)

    def moments(
        self, indices: Int[Tensor, " b"] | Sequence[int]
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
        """Returns the mean and the log variance of the unscaled latents."""
        rows = self._latents.rows(torch.as_tensor(indices))
        return rows["mean"], rows["logvar"]

    def conditioning(self, indices: Int[Tensor, " b"] | Sequence[int]) -> Conditioning:
        """Returns the text states of the captions of those images."""
        return self._texts[self._caption[torch.as_tensor(indices)]]

    @property
    def uncond(self) -> Conditioning:
        """Returns the unconditional text states, those of "" (b = 1)."""
        return self._texts[torch.zeros(1, dtype=torch.long)]


def open_cache(folder: str | Path, parts: Parts) -> Cache:
    """Returns the finished cache of these parts; raises a ValueError for another, an unfinished or a damaged one."""
    folder, rebuild = Path(folder), "build it with `t2i precompute RECIPE.yaml`"
    problems: dict[str, None] = {}
    for section in SECTIONS:
        place = _place(folder, section, parts)
        if not (place / "manifest.json").is_file():
            problems |= dict.fromkeys(_problems(place, _select(section, parts)))
    if problems:
        raise ValueError(f"no cache of this recipe in {folder}: {'; '.join(problems)}; {rebuild}")
    return Cache(folder, parts)


def build_cache(
    folder: str | Path,
    parts: Parts,
    n: int,
    encode_images: Callable[[list[int]], tuple[Tensor, Tensor]],
    texts: Sequence[str],
    encode_text: Callable[[list[str]], Conditioning],
    batch: int,
    progress: Callable[[str, int, int], object] = lambda section, done, total: None,
) -> Cache:
    """Encodes images 0..n-1 and their captions, each distinct caption once; finished shards are kept.

    `encode_images(indices)` returns mean and log variance; `progress(section, done, total)` is called after each batch.
    """
    assert len(texts) == n > 0 and set(parts) == set(PARTS)
    unique = list(dict.fromkeys(["", *texts]))  # the unconditional text is row 0
    row = {text: i for i, text in enumerate(unique)}
    captions = {"captions": {"row": torch.tensor([row[text] for text in texts], dtype=torch.int32)}}

    def moments(rows: range) -> dict[str, Tensor]:
        mean, logvar = encode_images(list(rows))
        return {"mean": mean, "logvar": logvar}

    folder = Path(folder)
    _build(folder, "latents", parts, n, moments, {}, batch, progress)
    _build_texts(folder, parts, unique, encode_text, captions, batch, progress)
    return open_cache(folder, parts)


def build_text_states(
    folder: str | Path,
    parts: Parts,
    texts: Sequence[str],
    encode_text: Callable[[list[str]], Conditioning],
    batch: int,
    progress: Callable[[str, int, int], object] = lambda section, done, total: None,
) -> TextStates:
    """Encodes a list of texts, unless it is in the cache; `parts["data"]` is replaced by the texts' own hash."""
    parts = {**parts, "data": hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()}
    _build_texts(Path(folder), parts, texts, encode_text, {}, batch, progress)
    return TextStates(Path(folder), parts)


def _build_texts(
    folder: Path,
    parts: Parts,
    texts: Sequence[str],
    encode_text: Callable[[list[str]], Conditioning],
    tables: dict[str, dict[str, Tensor]],
    batch: int,
    progress: Callable[[str, int, int], object],
) -> None:
    def states(rows: range) -> dict[str, Tensor]:
        c = encode_text([texts[i] for i in rows])
        return {"tokens": c.tokens, "mask": c.mask} | ({} if c.pooled is None else {"pooled": c.pooled})

    _build(folder, "texts", parts, len(texts), states, tables, batch, progress)


def _build(
    folder: Path,
    section: str,
    parts: Parts,
    n: int,
    encode: Encode,
    tables: dict[str, dict[str, Tensor]],
    batch: int,
    progress: Callable[[str, int, int], object],
) -> None:
    """Builds one section: complete shards in KEY.partial, which gets its manifest and its name at the end."""
    place = _place(folder, section, parts)
    if place.exists():
        progress(section, n, n)
        return
    work = place.with_suffix(".partial")
    work.mkdir(parents=True, exist_ok=True)
    sweep(work)
    for name, table in tables.items():
        save_weights(table, work / f"{name}.safetensors")
    for start in range(0, n, SHARD_ROWS):
        stop, path = min(start + SHARD_ROWS, n), _shard(work, start // SHARD_ROWS)
        if path.exists():  # a shard gets its name when it is complete
            continue
        pieces = []
        for a in range(start, stop, batch):
            pieces.append(_checked(encode(range(a, min(a + batch, stop))), section, a))
            progress(section, min(a + batch, stop), n)
        save_weights({name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}, path)
    digests = {path.name: sha256(path) for path in sorted(work.glob("*.safetensors"))}
    manifest = {"format": FORMAT, "parts": _select(section, parts), "rows": n, "shard_rows": SHARD_ROWS}
    manifest |= {"sha256": digests}
    write_json(work / "manifest.json", manifest)
    publish(work, place)


def _checked(tensors: dict[str, Tensor], section: str, first: int) -> dict[str, Tensor]:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not (good := torch.isfinite(tensor).flatten(1).all(1)).all():
            row = first + int((~good).nonzero()[0])
            raise RunFailed(f"{section}: non-finite {name} in row {row}: encode in float32 or bfloat16")
    return {name: tensor.detach().cpu() for name, tensor in tensors.items()}


class _Shards:
    """The tensors of a finished section, memory-mapped; raises a ValueError that names a damaged file."""

    def __init__(self, place: Path):
        self._place = place
        try:
            manifest = read_json(place / "manifest.json")
        except ValueError as error:
            raise self._damaged(place / "manifest.json", str(error)) from None
        if unknown := manifest.keys() - MANIFEST:  # as one flipped bit in a key's name would leave it
            raise self._damaged(place / "manifest.json", f"unknown key {min(unknown)!r:.50}")
        self._n, self._size = (self._count(manifest, key) for key in ("rows", "shard_rows"))
        self._check_files(manifest.get("sha256"))
        self._shards = [self._read(_shard(place, k)) for k in range(-(-self._n // self._size))]
        for k, shard in enumerate(self._shards):
            rows = min(self._size, self._n - k * self._size)
            if any(len(tensor) != rows for tensor in shard.values()):
                raise self._damaged(_shard(place, k), f"does not hold {rows} rows")

    def _count(self, manifest: dict[str, Any], key: str) -> int:
        value = manifest.get(key)
        if not isinstance(value, int) or value < 1:
            raise self._damaged(self._place / "manifest.json", f"`{key}` = {value!r:.100}")
        return value

    def _check_files(self, digests: Any) -> None:
        if digests is None:
            say(f"{self._place}: built before caches had checksums; its content is not checked")
            return
        files = {path.name for path in self._place.glob("*.safetensors")}
        if not isinstance(digests, dict) or files - digests.keys():
            raise self._damaged(self._place / "manifest.json", "checksums are missing")
        for name, digest in digests.items():
            path = self._place / Path(name).name
            if not path.is_file():
                raise self._damaged(path, "missing")
            if sha256(path) != digest:
                raise self._damaged(path, "its SHA-256 differs")

    def _read(self, path: Path) -> dict[str, Tensor]:
        try:
            return read_safetensors(path)
        except ValueError as error:
            raise self._damaged(path, str(error)) from None

    def _damaged(self, path: Path, problem: str) -> ValueError:
        command = "the same command, or `t2i precompute RECIPE.yaml`, builds it again"
        return ValueError(f"{path}: the cache is damaged ({problem}): delete {self._place}; {command}")

    def __len__(self) -> int:
        return self._n

    def rows_of(self, name: str, n: int) -> Int[Tensor, " n"]:
        path = self._place / f"{name}.safetensors"
        row = self._read(path).get("row")
        if row is None or row.shape != (n,) or row.min() < 0 or row.max() >= self._n:
            raise self._damaged(path, f"not {n} rows in 0..{self._n - 1}")
        return row.long()

    def rows(self, indices: Int[Tensor, " b"]) -> dict[str, Tensor]:
        """Returns copies of those rows of every tensor."""
        shard, row = indices // self._size, indices % self._size
        first = self._shards[0]
        out = {name: t.new_empty(len(indices), *t.shape[1:]) for name, t in first.items()}
        for k in shard.unique().tolist():
            mine = shard == k
            for name, tensor in self._shards[k].items():
                out[name][mine] = tensor[row[mine]]
        return out


def _select(section: str, parts: Parts) -> dict[str, str]:
    return {name: parts[name] for name in SECTIONS[section]}


def _place(folder: Path, section: str, parts: Parts) -> Path:
    key = json.dumps([FORMAT, _select(section, parts)], sort_keys=True)
    return folder / section / hashlib.sha256(key.encode()).hexdigest()[:16]


def _problems(place: Path, parts: dict[str, str]) -> list[str]:
    """Returns why a section cannot be opened: unfinished, absent, or the parts in which the nearest one differs."""
    if place.with_suffix(".partial").exists():
        return [f"its {place.parent.name} are unfinished (the same command continues them)"]
    others: list[dict[str, Any]] = [read_json(p).get("parts", {}) for p in place.parent.glob("*/manifest.json")]
    if not others:
        return [f"it holds no {place.parent.name}"]
    nearest = min(([name for name in parts if other.get(name) != parts[name]] for other in others), key=len)
    return [f"it was built with another {PARTS[name]}" for name in nearest] or ["it was built by another version"]


def _shard(place: Path, k: int) -> Path:
    return place / f"shard-{k:05d}.safetensors"
