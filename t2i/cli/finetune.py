"""`t2i finetune`: a model on one's own pictures."""

from pathlib import Path
from typing import Annotated

import typer

Option = typer.Option


def finetune(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RECIPE] [KEY=VALUE]...", help="a YAML recipe; keys over it, as train.steps=500"),
    ] = None,
    model: Annotated[
        str | None,
        Option("-m", "--model", "--pretrained_model_name_or_path", help="a folder, a single file or a hub name"),
    ] = None,
    data: Annotated[
        str | None,
        Option(
            "--data",
            "--train_data_dir",
            "--instance_data_dir",
            "--dataset_name",
            help="a folder, FILE.parquet, or a hub name",
        ),
    ] = None,
    method: Annotated[str | None, Option(help="lora, dreambooth, textual-inversion or full; by default lora")] = None,
    out: Annotated[Path | None, Option("-o", "--out", "--output_dir", help="the run's folder")] = None,
    instance_prompt: Annotated[
        str | None, Option("--instance-prompt", "--instance_prompt", help="for pictures without a caption")
    ] = None,
) -> None:
    """Fine-tune a model on your own pictures; the same command resumes. Then: t2i generate PROMPT -m RUN.

    Without captions give --instance-prompt. The flags of diffusers' training scripts are understood as well, such as
    --max_train_steps, --learning_rate, --train_batch_size, --rank, --class_prompt, --with_prior_preservation.
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
