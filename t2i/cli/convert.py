"""`t2i convert SRC DST`: a model as a diffusers folder or as a single file."""

import re
from pathlib import Path
from typing import Annotated

import typer

from t2i.cli.options import check_dtype, parse_lora
from t2i.pipeline.find import Reading

FOLDER, SINGLE = "diffusers", "single-file"
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def convert(
    src: Annotated[Path, typer.Argument(metavar="SRC", help="A folder, a hub name, a single file, or a .ckpt")],
    dst: Annotated[Path, typer.Argument(metavar="DST", help="A folder, or X.safetensors")],
    format: Annotated[
        str | None, typer.Option("--format", help=f"{FOLDER} or {SINGLE}; by default by DST's name")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16; each tensor's own if omitted")] = None,
    shard_size: Annotated[
        str | None, typer.Option(metavar="2GB", help="Write a folder's weights as files of at most this size")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Diffusers folder with the JSON configs of a single file")
    ] = None,
    prediction_type: Annotated[
        str | None, typer.Option(help="Prediction type of a single file: epsilon or v_prediction; inferred if omitted")
    ] = None,
    ema: Annotated[bool, typer.Option("--ema", help="Read the U-Net's EMA weights of a single file")] = False,
    merge_lora: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE[:WEIGHT]", help="LoRA to merge into the weights, and its weight. Repeatable"),
    ] = None,
    variant: Annotated[
        str | None, typer.Option(help="Variant of a folder's weights, as fp16; plain if omitted")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub repository")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace DST if it is a model")] = False,
) -> None:
    """Write a model in another layout, another dtype or in shards."""
    kind, size, name = choose_format(dst, format), parse_bytes(shard_size), check_dtype(dtype)
    if size is not None and kind == SINGLE:
        raise ValueError("--shard-size is for folders; a single file is one file: leave it out")
    from t2i.pipeline import conversion

    reading, loras = (
        Reading(variant, revision, config, prediction_type),
        [parse_lora(text) for text in merge_lora or []],
    )
    asked = conversion.Conversion(src, dst, kind == SINGLE, name, size, reading, ema, tuple(loras))
    conversion.convert(asked, overwrite)


def choose_format(dst: Path, format: str | None) -> str:
    """Returns the given layout, else the one of DST's suffix."""
    file = dst.suffix == ".safetensors"
    if format is None and dst.suffix in (".ckpt", ".pt", ".pth", ".bin"):
        raise ValueError(f"{dst}: pickles are not written; call DST X.safetensors, or a folder")
    if format not in (None, FOLDER, SINGLE):
        raise ValueError(f"--format = {format!r} is unknown: choose {FOLDER} or {SINGLE}")
    if format is not None and file != (format == SINGLE):
        raise ValueError(f"{dst}: --format {format} is {'called X.safetensors' if format == SINGLE else 'a folder'}")
    return SINGLE if file else FOLDER


def parse_bytes(text: str | None) -> int | None:
    """Returns the bytes of "2GB", "500MB", "1GiB" or "1000000"."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,12}(?:\.\d{1,6})?)\s*([KMG]i?)?B?", text)
    if not match or (size := int(float(match[1]) * UNITS[match[2] or ""])) < 1:
        raise ValueError(f"--shard-size = {text!r} is not a size such as 2GB or 500MB")
    return size
