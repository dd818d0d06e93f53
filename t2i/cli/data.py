"""`t2i data check DATA`: checks every image before training."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from t2i.cli.options import parse_size
from t2i.errors import ConfigError
from t2i.pipeline.find import SHIPPED, find_model

if TYPE_CHECKING:
    from t2i.data.check import TokenCounter

app = typer.Typer(help="Images to train on.", no_args_is_help=True)
Option = typer.Option


@app.callback()
def _group() -> None:
    """Keeps a group of one command a group."""


@app.command("check")
def check(
    data: Annotated[str, typer.Argument(metavar="DIR|NAME", help="a folder, a parquet file, or OWNER/NAME on the hub")],
    model: Annotated[
        Path | None, Option("-m", "--model", help=f"model of the tokens and the size; default: the shipped {SHIPPED}")
    ] = None,
    out: Annotated[
        Path | None, Option("-o", "--out", help="folder for check.json and check.html; default: check-NAME")
    ] = None,
    instance_prompt: Annotated[str | None, Option(help="caption of images without one")] = None,
    caption_column: Annotated[str | None, Option(help="of the metadata or the parquet file; default: text")] = None,
    image_column: Annotated[str | None, Option(help="of the parquet file; default: image")] = None,
    file_name_captions: Annotated[
        bool, Option("--file-name-captions", help="red_frog_001.png, if nothing else, is 'red frog'")
    ] = False,
    kohya_folders: Annotated[
        bool | None, Option(help="N_name: images N times, captioned 'name'; default: if all are in such folders")
    ] = None,
    size: Annotated[str | None, Option(help="WxH of training; default: the model's")] = None,
    background: Annotated[str, Option(help="colour under transparent images")] = "white",
    revision: Annotated[str | None, Option(help="of a hub data set")] = None,
    max_lost: Annotated[float, Option(help="exit 1 if a larger fraction of the images is lost")] = 0.05,
) -> None:
    """Counts usable, unreadable, captionless, duplicate, tiny, turned, transparent, CMYK, 16-bit and animated images.

    Images are lost if they are unreadable, have no caption, are listed but missing, exist but are not listed, or are
    of a format that is not read.
    """
    from t2i.data.check import check_folder
    from t2i.data.check_page import FILES, write_check
    from t2i.files import printable

    width, height = parse_size(size)
    words, model_size = measure(find_model(model))
    keys = {
        "instance_prompt": instance_prompt,
        "caption_column": caption_column,
        "image_column": image_column,
        "file_name_captions": file_name_captions or None,
        "kohya_folders": kohya_folders,
        "background": background,
        "revision": revision,
    }
    try:
        result = check_folder(
            data,
            size=model_size if width is None or height is None else (width, height),
            words=words,
            max_lost=max_lost,
            quiet=False,
            **{key: value for key, value in keys.items() if value is not None},
        )
    except ConfigError as error:
        name = error.key.removeprefix("data.")  # of a recipe, whose keys are this command's options
        raise (error.under("--" + name.replace("_", "-")) if name in keys else error) from None
    place = out or Path(f"check-{Path(data).resolve().name}")
    write_check(result, place)
    for line in result.lines():
        typer.echo(line)
    for example in result.examples:
        typer.echo(printable(f"for example {example.name}, {example.width}x{example.height}: {example.caption!r}"))
    typer.echo(f"{place}: {', '.join(FILES)}")
    if not result.ok:
        raise typer.Exit(1)


def measure(model: Path) -> tuple["TokenCounter", tuple[int, int] | None]:
    """Returns the token counter of a model, and the (width, height) of its images."""
    from t2i.autoencoder.kl import AutoencoderKLConfig
    from t2i.data.check import TokenCounter
    from t2i.files import read_json
    from t2i.generator.unet_config import UNetConfig
    from t2i.pipeline import Pipeline
    from t2i.pipeline.finetuned import read_pointer
    from t2i.pipeline.load import locate
    from t2i.text.encoder import load_text_encoder
    from t2i.text.tokenizer import count_tokens

    place = locate(model)
    if place.is_file() or read_pointer(place) is not None:
        pipeline = Pipeline.from_pretrained(place)
        encoder, side = pipeline.text_encoder, pipeline.default_size()
    else:  # without the U-Net and the VAE, which do not read captions
        encoder = load_text_encoder(place)
        unet, vae = (place / part / "config.json" for part in ("unet", "vae"))
        latent = UNetConfig.parse(read_json(unet), str(unet)).sample_size
        factor = 2 ** (len(AutoencoderKLConfig.parse(read_json(vae), str(vae)).block_out_channels) - 1)
        latents = (latent, latent) if isinstance(latent, int) else latent
        side = None if latents is None else (latents[0] * factor, latents[1] * factor)
    words = TokenCounter(lambda texts: count_tokens(encoder.tokenizer, texts), encoder.max_tokens, str(model))
    return words, None if side is None else (side[1], side[0])
