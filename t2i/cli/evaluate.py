"""`t2i evaluate -m MODEL --reference PICTURES -o DIR`: distances, scores and bounds, with intervals and anchors."""

from pathlib import Path
from typing import Annotated

import typer

from t2i.cli.generate_options import SHIPPED, check_dtype, parse_size

Option = typer.Option


def evaluate(
    reference: Annotated[
        Path,
        Option(help="captioned pictures, a folder or FILE.parquet; or statistics of features, FILE.npz (fd alone)"),
    ],
    out: Annotated[
        Path, Option("-o", "--out", help="folder of the numbers, the page and what a next run goes on from")
    ],
    model: Annotated[
        Path | None,
        Option(
            "-m",
            "--model",
            help=f"a folder, a single file, a hub name, or a folder of pictures; by default the shipped {SHIPPED}",
        ),
    ] = None,
    n: Annotated[
        int | None, Option("--n", min=2, help="pictures at each guidance; by default one for each caption")
    ] = None,
    cfg: Annotated[
        str | None, Option(metavar="A,B,..", help="guidances, all on the same noise; by default the model's own")
    ] = None,
    metrics: Annotated[str, Option(help="of fd, kid, prdc, cmmd, clip, skills, vlb")] = "fd,kid,prdc",
    features: Annotated[
        str | None,
        Option(
            help="inception:FILE (FID), dinov2:ID, clip:ID, openclip:ARCH/PRETRAINED, local:DIR, vae-latent; "
            "by default the shipped local:checkpoints/features"
        ),
    ] = None,
    judge: Annotated[
        str | None,
        Option(help="of the metric clip: clip:ID, openclip:ARCH/PRETRAINED, local:IMAGE+TEXT; by default the shipped"),
    ] = None,
    solver: Annotated[str | None, Option(help="ddim, dpm++2m, euler-a, ...; by default the model's")] = None,
    steps: Annotated[int | None, Option(help="by default the model's")] = None,
    seed: Annotated[int, Option(min=0, help="picture i is drawn from the noise of seed + i")] = 0,
    size: Annotated[str | None, Option(metavar="WxH", help="by default what the model was trained at")] = None,
    prompts: Annotated[
        Path | None, Option(metavar="FILE", help="one prompt a line; by default the reference's captions")
    ] = None,
    caption_column: Annotated[str, Option(help="of the reference")] = "text",
    image_column: Annotated[str, Option(help="of a reference in parquet")] = "image",
    anchors: Annotated[
        bool, Option(help="measure real halves, the autoencoder's floor, shuffled captions and noise too")
    ] = True,
    batch_size: Annotated[int, Option(min=1, help="pictures at a time")] = 32,
    device: Annotated[str | None, Option(help="cpu, cuda, cuda:1, ...; by default cuda where there is one")] = None,
    dtype: Annotated[str | None, Option(help="of the model: fp32, bf16 or fp16; by default fp32")] = None,
) -> None:
    """Measure a model against reference pictures. The same command goes on from where it was interrupted.

    Under torchrun or `accelerate launch` the ranks share the work; the numbers are the same.
    """
    from t2i.cli.evaluate_run import Command, run
    from t2i.evaluation.measures import parse_metrics

    guidances = None if cfg is None else parse_guidances(cfg)
    width, height = parse_size(size)
    run(
        Command(
            model=model,
            reference=reference,
            out=out,
            n=n,
            guidances=guidances,
            metrics=parse_metrics(metrics),
            features=features,
            judge=judge,
            solver=solver,
            steps=steps,
            seed=seed,
            size=None if width is None or height is None else (width, height),
            prompts=prompts,
            caption_column=caption_column,
            image_column=image_column,
            anchors=anchors,
            batch_size=batch_size,
            device=device,
            dtype=check_dtype(dtype) or "float32",
        )
    )


def parse_guidances(text: str) -> tuple[float, ...]:
    """The numbers of "1,1.5,2", each once."""
    try:
        found = tuple(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError:
        raise ValueError(f"--cfg = {text!r} is not numbers with commas between, for example 1,1.5,2,4") from None
    return found
