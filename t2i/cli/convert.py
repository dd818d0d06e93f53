"""`t2i convert SRC DST`: a model as a diffusers folder or as a single file."""

import re
from pathlib import Path
from typing import Annotated

import typer

from t2i.cli.generate_options import Reading
from t2i.cli.options import check_dtype, parse_lora

FOLDER, SINGLE = "diffusers", "single-file"
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def convert(
    src: Annotated[Path, typer.Argument(metavar="SRC", help="a folder, a hub name, a single file, or a .ckpt")],
    dst: Annotated[Path, typer.Argument(metavar="DST", help="a folder, or X.safetensors")],
    format: Annotated[
        str | None, typer.Option("--format", help=f"{FOLDER} or {SINGLE}; by default as DST is called")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16; by default each tensor's own")] = None,
    shard_size: Annotated[
        str | None, typer.Option(metavar="2GB", help="of a folder's weights: files of at most this size, and an index")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="DIR", help="the JSON configs of a single file: a diffusers folder with them")
    ] = None,
    prediction_type: Annotated[
        str | None, typer.Option(help="of a single file: epsilon or v_prediction; by default what it is inferred to be")
    ] = None,
    ema: Annotated[bool, typer.Option("--ema", help="of a single file: the U-Net's moving average")] = False,
    merge_lora: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE[:WEIGHT]", help="a LoRA to add to the weights, and how many times. Repeatable"),
    ] = None,
    variant: Annotated[str | None, typer.Option(help="of a folder's weights, as fp16; by default the plain")] = None,
    revision: Annotated[str | None, typer.Option(help="of a hub name: a branch, tag or commit")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace DST, a model or a file of one")] = False,
) -> None:
    """Write a model in the other layout, or in another dtype or in shards; it appears whole or not at all."""
    kind, size, name = choose_format(dst, format), parse_bytes(shard_size), check_dtype(dtype)
    if size is not None and kind == SINGLE:
        raise ValueError("--shard-size is of a folder's weights; a single file is one file: leave it out")
    from t2i.cli.convert_run import Conversion, run

    how, loras = Reading(variant, revision, config, prediction_type), [parse_lora(text) for text in merge_lora or []]
    run(Conversion(src, dst, kind == SINGLE, name, size, how, ema, tuple(loras)), overwrite)


def choose_format(dst: Path, format: str | None) -> str:
    """The layout asked for, else the one that DST is called like."""
    file = dst.suffix == ".safetensors"
    if format is None and dst.suffix in (".ckpt", ".pt", ".pth", ".bin"):
        raise ValueError(f"{dst}: pickles are not written; call DST X.safetensors, or a folder")
    if format not in (None, FOLDER, SINGLE):
        raise ValueError(f"--format = {format!r} is unknown: choose {FOLDER} or {SINGLE}")
    if format is not None and file != (format == SINGLE):
        raise ValueError(f"{dst}: --format {format} is {'called X.safetensors' if format == SINGLE else 'a folder'}")
    return SINGLE if file else FOLDER


def parse_bytes(text: str | None) -> int | None:
    """The bytes of "2GB", "500MB", "1GiB" or "1000000"."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,12}(?:\.\d{1,6})?)\s*([KMG]i?)?B?", text)
    if not found or (size := int(float(found[1]) * UNITS[found[2] or ""])) < 1:
        raise ValueError(f"--shard-size = {text!r} is no size, as 2GB or 500MB")
    return size
