"""Estimates a fine-tuning run before it starts: trained parameters, memory and time."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

from t2i.training.distributed import on_cpu, process_state
from t2i.training.finetune.task import NAME, FinetuneTask

TRIED = 3  # forward and backward passes, the first of which is not timed


def plan_lines(task: FinetuneTask) -> list[str]:
    """Returns the plan of a run as lines of text; a few passes are tried for it."""
    recipe, pipe, processes = task.recipe, task.pipeline, process_state().num_processes
    config = recipe.train
    trained = sum(p.numel() for p in task.trainable.parameters())
    networks = (pipe.generator.unet, pipe.text_encoder, pipe.autoencoder)
    frozen = [p for network in networks for p in network.parameters() if not p.requires_grad]
    micro = config.micro_batch or max(config.global_batch // processes, 1)
    seconds, activations = try_passes(task, micro)
    passes = config.steps * config.global_batch / micro / processes
    weights = 4 * trained + sum(p.nbytes for p in frozen)
    states = 4 * trained * (3 + (config.ema is not None))  # gradient, AdamW's two moments, EMA weights
    total = trained + sum(p.numel() for p in frozen)
    held_out = "the same for validation" if task.data.same else "held out"
    epochs = config.steps * config.global_batch / len(task)
    lora, device = recipe.lora, "cpu" if on_cpu() else process_state().device  # torchrun numbers the CPU
    lines = [
        f"method      {recipe.method}{' by LoRA' if recipe.method == 'dreambooth' and lora else ''}, "
        f"{len(task)} images for training, {len(task.data.held_out_cache)} {held_out}",
        f"trained     {trained:,} of {total:,} parameters ({100 * trained / total:.2f} %)",
    ]
    if lora is not None:
        convolutions = f", convolutions rank {lora.conv_rank}" if lora.conv_rank else ""
        lines.append(
            f"LoRA        rank {lora.rank}, alpha {lora.alpha or lora.rank:g}, on {' and '.join(lora.targets)}"
            f"{convolutions}{', the text encoder too' if lora.text_encoder else ''}"
        )
    return [
        *lines,
        f"training    {config.steps} steps of {config.global_batch} images, learning rate {config.lr:g}, "
        f"{config.lr_schedule}, each image {epochs:.0f} times",
        f"memory      about {mib(weights + states + activations)} on {device}: weights {mib(weights)}, "
        f"gradients and optimiser {mib(states)}, a step of {micro} images {mib(activations)}; "
        "the program itself not included",
        f"time        about {clock(passes * seconds)} for the steps ({seconds:.2g} s for {micro} images, measured); "
        "sample images and validation not included",
    ]


def try_passes(task: FinetuneTask, micro: int) -> tuple[float, int]:
    """Returns the seconds of a forward and backward pass and the bytes kept in between; no weight changes."""
    device = task.pipeline.device
    half = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(task.recipe.train.mixed_precision)
    rows = task.order(0, task.recipe.train.global_batch, task.recipe.seed)[:micro]
    batch = {k: v.to(device) for k, v in task.batch(rows, 0).items()}
    task.trainable.to(device).train()
    kept, durations = 0, []
    with torch.random.fork_rng():
        for k in range(TRIED):
            start = time.perf_counter()
            with torch.autocast(device.type, half, enabled=half is not None), saved_bytes(k == 0) as sizes:
                loss, _ = task.loss(NAME, {NAME: task.trainable}, batch)
            loss.backward()
            if device.type == "cuda":
                torch.cuda.synchronize()
            durations.append(time.perf_counter() - start)
            kept = max(kept, sum(sizes.values()))
    task.trainable.zero_grad(set_to_none=True)
    return min(durations[1:]), kept


@contextmanager
def saved_bytes(enabled: bool) -> Iterator[dict[int, int]]:
    """Yields the bytes of each storage that the block keeps for the backward pass, by its address, if enabled."""
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor) if enabled else nullcontext():
        yield sizes


def mib(size: float) -> str:
    """Formats bytes as MiB or GiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def clock(seconds: float) -> str:
    """Formats seconds as s, min or h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
