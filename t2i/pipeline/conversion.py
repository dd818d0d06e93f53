"""Conversion of models between folders, single files and pickles: read and checked whole, then written as they are."""

import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from t2i.autoencoder.kl import AutoencoderKL
from t2i.component import PICKLES, Component, save_weights, weight_variants
from t2i.files import read_json, write_safetensors
from t2i.generator.unet import UNet
from t2i.interop.keys_unet import PREFIX as UNET
from t2i.interop.lora import lora_line, merge_tensors, read_lora
from t2i.interop.pickles import read_ckpt
from t2i.interop.single_file import Checkpoint, read_single_file, refuse_unwritable, write_single_file
from t2i.interop.tokenizer import describe_tokenizer
from t2i.pipeline import Pipeline
from t2i.pipeline.find import Reading
from t2i.pipeline.finetuned import read_pointer
from t2i.pipeline.folder import INDEX, NETWORKS, OWN, Stored, write
from t2i.pipeline.load import from_checkpoint, locate
from t2i.progress import say
from t2i.text.base import read_tensors
from t2i.text.clip import PREFIX
from t2i.text.t5 import SHARED, TIED


@dataclass(frozen=True)
class Conversion:
    """The arguments of a conversion."""

    src: Path
    dst: Path
    single: bool
    dtype: str | None
    shard_size: int | None
    reading: Reading
    ema: bool
    loras: tuple[tuple[Path, float], ...] = ()


def convert(asked: Conversion, overwrite: bool) -> None:
    """Converts a model; reports what was ignored, inferred and written."""
    check_place(asked, overwrite)
    pickled = read_ckpt(asked.src) if asked.src.suffix in PICKLES and asked.src.is_file() else None
    if pickled is not None and asked.single and not any(key.startswith(UNET) for key in pickled):
        write_part(asked, pickled)
        return
    stored = read(asked, pickled)
    dtype = None if asked.dtype is None else getattr(torch, asked.dtype)
    check_range(stored, dtype)
    if asked.single:
        write_file(stored, asked.dst, dtype)
    else:
        write(stored, asked.dst, dtype, asked.shard_size)
        if stored.defaults is not None:
            say(f"{OWN} is written too, which only t2i reads")
    for path in [asked.dst] if asked.single else sorted(asked.dst.rglob("*.safetensors")):
        with safe_open(path, "pt") as file:
            kinds = Counter(file.get_slice(key).get_dtype() for key in file.keys())  # noqa: SIM118
        counts = ", ".join(f"{n} tensors of {kind}" for kind, n in kinds.items())
        print(f"{path}: {counts}, {path.stat().st_size} bytes")


def check_place(asked: Conversion, overwrite: bool) -> None:
    """Raises ValueError rather than overwrite DST, unless `overwrite` and DST is a model."""
    src, dst = asked.src, asked.dst
    if not os.path.lexists(dst):
        return
    if src.exists() and (dst.samefile(src) or dst.resolve() in src.resolve().parents):
        raise ValueError(f"{dst}: holds or is SRC itself; write to another place")
    if not overwrite:
        raise ValueError(f"{dst}: exists already; --overwrite replaces it")
    if asked.single and not dst.is_file():
        raise ValueError(f"{dst}: is not a file; it is not replaced")
    if not asked.single and not (dst / INDEX).is_file() and (not dst.is_dir() or any(dst.iterdir())):
        raise ValueError(f"{dst}: is not a model's folder (it has no {INDEX}); it is not replaced")


def write_part(asked: Conversion, state: dict[str, Tensor]) -> None:
    """Writes the tensors of a pickle that is no whole model: an embedding, a LoRA, a VAE."""
    if asked.loras or asked.ema:
        raise ValueError(f"{asked.src}: no whole model: --merge-lora and --ema do not apply")
    dtype = None if asked.dtype is None else getattr(torch, asked.dtype)
    if bad := [key for key, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]:
        raise ValueError(f"{asked.src}: {bad[0]} has values that are not finite")
    save_weights(state, asked.dst, dtype)
    print(f"{asked.dst}: {len(state)} tensors, {asked.dst.stat().st_size} bytes; not a whole model")


def read(asked: Conversion, pickled: dict[str, Tensor] | None) -> Stored:
    """Returns the whole source, checked, with its tensors in their own dtypes."""
    reading = asked.reading
    place = locate(asked.src, variant=reading.variant, revision=reading.revision)
    if place.is_dir() and (run := read_pointer(place)) is not None:
        if run.embeddings:
            raise ValueError(
                f"{place}: a textual inversion, which is separate from its model: convert {run.model}, and draw with "
                f"--embedding {run.embeddings[0]}"
            )
        asked = replace(asked, loras=(*((file, 1.0) for file in run.loras), *asked.loras))
        place = locate(run.model, variant=reading.variant)
    if place.is_dir():
        if asked.ema:
            raise ValueError(f"{place}: is a folder, which holds one U-Net; --ema is for single files")
        pipeline = Pipeline.from_pretrained(
            place, variant=reading.variant, config=reading.config, prediction_type=reading.prediction
        )
        _report(pipeline)
        stored = from_folder(pipeline, place, reading.variant)
        merge(stored, pipeline, asked.loras)
        return stored
    checkpoint = read_file(place, place, asked) if pickled is None else read_pickle(place, pickled, asked)
    pipeline = Pipeline.from_parts(from_checkpoint(checkpoint, place, reading.config, None), place)
    _report(pipeline)
    defaults = None if checkpoint.defaults is None else pipeline.defaults
    stored = Stored(
        networks(pipeline),
        pipeline.text_encoder.tokenizer,
        pipeline.text_encoder.classes,
        checkpoint.scheduler,
        defaults,
    )
    merge(stored, pipeline, asked.loras)
    return stored


def merge(stored: Stored, pipeline: Pipeline, loras: Sequence[tuple[Path, float]]) -> None:
    """Merges LoRAs into the stored tensors, one after the other."""
    tensors = {name: stored_tensors for name, (_, stored_tensors) in stored.networks.items()}
    for file, weight in loras:
        lora = read_lora(file, pipeline.networks)
        merge_tensors(tensors, pipeline.networks, lora, weight)
        say(lora_line(file, lora, weight))


def _report(pipeline: Pipeline) -> None:
    for line in pipeline.report:
        say(f"model: {line}")


def read_pickle(path: Path, state: dict[str, Tensor], asked: Conversion) -> Checkpoint:
    """Returns the contents of a `.ckpt` with these tensors, read through a temporary safetensors file."""
    asked.dst.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=asked.dst.parent, prefix=".convert-") as tmp:
        file = Path(tmp) / "tensors.safetensors"
        write_safetensors(file, state)
        return read_file(file, path, asked)


def read_file(file: Path, original: Path, asked: Conversion) -> Checkpoint:
    """Returns the contents of a single file, or of a copy of the tensors of `original`, in the dtypes that it has."""
    reading = asked.reading
    return read_single_file(
        file, config=reading.config, prediction=reading.prediction, ema=asked.ema, original=original
    )


def networks(pipeline: Pipeline) -> dict[str, tuple[dict[str, Any], dict[str, Tensor]]]:
    """Returns every network's config.json and its tensors."""
    parts: dict[str, Component] = {"unet": pipeline.generator.unet, "vae": pipeline.autoencoder}
    configs = {
        name: ({"_class_name": part.diffusers_class} | part.config.model_dump(mode="json"), part.state_dict())
        for name, part in parts.items()
    }
    text = pipeline.text_encoder
    # Without a dtype transformers takes the file's, and diffusers' pipeline mixes half with its own float32.
    return configs | {"text_encoder": (text.file_config() | {"dtype": "float32"}, text.named_tensors())}


def from_folder(pipeline: Pipeline, place: Path, variant: str | None) -> Stored:
    """Returns the contents of a folder in their own dtypes; `pipeline` holds them in float32."""
    text = pipeline.text_encoder
    if text.classes["text_encoder"][0] != "transformers":
        raise ValueError(f"{place / 'text_encoder'}: {type(text).__name__} cannot be read by other programs")
    parts_in_files = networks(pipeline)
    of = {name: variant if variant in weight_variants(place / name, file) else None for name, file in NETWORKS.items()}
    parts: dict[str, type[Component]] = {"unet": UNet, "vae": AutoencoderKL}
    for name, kind in parts.items():
        parts_in_files[name] = (parts_in_files[name][0], kind.read(place / name, of[name]).state_dict())
    file_tensors = read_tensors(place / "text_encoder", of["text_encoder"])
    config, tensors = parts_in_files["text_encoder"]
    parts_in_files["text_encoder"] = (
        config,
        {key: tensor.to(file_tensors[_name_in(key, file_tensors)].dtype) for key, tensor in tensors.items()},
    )
    defaults = pipeline.defaults if (place / OWN).is_file() else None
    scheduler = read_json(place / "scheduler" / "scheduler_config.json")
    return Stored(parts_in_files, text.tokenizer, text.classes, scheduler, defaults)


def _name_in(key: str, file_tensors: dict[str, Tensor]) -> str:
    """Returns the name of a tensor in a text encoder's file."""
    names = (key, key.removeprefix(PREFIX), TIED if key == SHARED else key)
    return next(name for name in names if name in file_tensors)


def check_range(stored: Stored, dtype: torch.dtype | None) -> None:
    """Raises ValueError for weights that are not finite, or that `dtype` would make infinite."""
    for part, (_, tensors) in stored.networks.items():
        for key, tensor in tensors.items():
            if not tensor.is_floating_point():
                continue
            if not tensor.isfinite().all():
                raise ValueError(f"{part}: {key} has values that are not finite: the model is damaged")
            if dtype is not None and tensor.abs().amax() > (most := torch.finfo(dtype).max):
                raise ValueError(f"{part}: {key} has values beyond {dtype}'s {most:g}; take --dtype bf16 or fp32")


def write_file(stored: Stored, dst: Path, dtype: torch.dtype | None) -> None:
    """Writes a single file, with configs, tokenizer and defaults in its metadata."""
    refuse_unwritable(dst, stored.networks)
    tokenizer = describe_tokenizer(stored.tokenizer)
    if "files" in tokenizer:
        say("the tokenizer is not CLIP's own: it is written into the file's metadata, where only t2i reads it")
    defaults = None if stored.defaults is None else stored.defaults.model_dump(mode="json", exclude_none=True)
    if defaults is not None:
        say(f"{OWN} is written into the file's metadata, where only t2i reads it")
    write_single_file(dst, stored.networks, stored.scheduler, dtype=dtype, tokenizer=tokenizer, defaults=defaults)
