"""`t2i finetune`: fine-tunes a model on a user's images."""

from pathlib import Path
from typing import Annotated

import typer

Option = typer.Option


def finetune(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RECIPE] [KEY=VALUE]...",
            help="A YAML recipe, and keys that override it, for example train.steps=500.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        Option("-m", "--model", "--pretrained_model_name_or_path", help="A folder, a single file or a hub name."),
    ] = None,
    data: Annotated[
        str | None,
        Option(
            "--data",
            "--train_data_dir",
            "--instance_data_dir",
            "--dataset_name",
            help="A folder, FILE.parquet or a hub name.",
        ),
    ] = None,
    method: Annotated[str | None, Option(help="lora, dreambooth, textual-inversion or full. Default: lora.")] = None,
    out: Annotated[
        Path | None, Option("-o", "--out", "--output_dir", help="The folder of the run. Default: runs/DATA-METHOD.")
    ] = None,
    instance_prompt: Annotated[
        str | None, Option("--instance-prompt", "--instance_prompt", help="Caption of images without one.")
    ] = None,
) -> None:
    """Fine-tune a model on your own images; the same command resumes. Then: t2i generate PROMPT -m RUN.

    For images without captions give --instance-prompt. The flags of diffusers' training scripts are accepted too, for
    example --max_train_steps, --learning_rate, --train_batch_size, --rank, --class_prompt, --with_prior_preservation.
    """
    from t2i.cli.finetune_run import run

    given = {
        "model": model,
        "data": data,
        "method": method,
        "out": out and str(out),
        "instance_prompt": instance_prompt,
    }
    run(list(arguments or []), {name: value for name, value in given.items() if value is not None})
