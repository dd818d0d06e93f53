"""What a fine-tuning is about to do, before it does it: what is trained, memory, time."""

import time
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from t2i.training.distributed import process_state
from t2i.training.finetune.recipe import train_defaults
from t2i.training.finetune.task import NAME, FinetuneTask

TRIED = 3  # steps, the first of which does not count


def plan_lines(task: FinetuneTask) -> list[str]:
    """The plan, a line each."""
    recipe, pipe = task.recipe, task.pipeline
    config, device = recipe.train, process_state().device
    trained = sum(p.numel() for p in task.trainable.parameters())
    parts = (pipe.generator.unet, pipe.text_encoder, pipe.autoencoder)
    everything = list(parts[0].parameters()) + list(parts[1].parameters()) + list(parts[2].parameters())
    frozen = [p for p in everything if not p.requires_grad]
    micro = config.micro_batch or max(config.global_batch // process_state().num_processes, 1)
    seconds, activations = try_steps(task, micro)
    passes = config.steps * config.global_batch / micro / process_state().num_processes
    weights = 4 * trained + sum(p.nbytes for p in frozen)
    states = 4 * trained * (3 + (config.ema is not None))  # gradient, AdamW's two moments, the average
    total = trained + sum(p.numel() for p in frozen)
    return [
        f"method      {recipe.method}{' by LoRA' if recipe.method == 'dreambooth' and recipe.lora else ''}, "
        f"{len(task)} pictures for training, {len(task.material.held_cache)} "
        + ("the same to judge by" if task.material.same else "held out"),
        f"trained     {trained:,} of {total:,} parameters ({100 * trained / total:.2f} %)",
        *lora_lines(task),
        f"training    {train_defaults(config)}, each picture "
        f"{config.steps * config.global_batch / len(task):.0f} times",
        f"memory      about {mib(weights + states + activations)} on {device}: weights {mib(weights)}, "
        f"gradients and optimiser {mib(states)}, a step of {micro} pictures {mib(activations)}; "
        "and the program itself",
        f"time        about {clock(passes * seconds)} for the steps ({seconds:.2g} s for {micro} pictures, tried), "
        "and pictures and validation beside",
    ]


def lora_lines(task: FinetuneTask) -> list[str]:
    """The size of a LoRA, where one is trained."""
    if (lora := task.recipe.lora) is None:
        return []
    parts = [f"rank {lora.rank}, alpha {lora.alpha or lora.rank:g}, on {' and '.join(lora.targets)}"]
    parts += [f"convolutions rank {lora.conv_rank}"] if lora.conv_rank else []
    parts += ["the text encoder too"] if lora.text_encoder else []
    return [f"LoRA        {', '.join(parts)}"]


def try_steps(task: FinetuneTask, micro: int) -> tuple[float, int]:
    """Seconds of a forward and backward pass, and the bytes that it keeps; no weight is changed."""
    device = task.pipeline.device
    kind = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(task.recipe.train.mixed_precision)
    rows = task.order(0, task.recipe.train.global_batch, task.recipe.seed)[:micro]
    batch = {k: v.to(device) for k, v in task.batch(rows, 0).items()}
    task.trainable.to(device).train()
    kept, spent = 0, []
    with torch.random.fork_rng():
        for k in range(TRIED):
            began = time.perf_counter()
            with torch.autocast(device.type, kind, enabled=kind is not None), counted(k == 0) as count:
                loss, _ = task.loss(NAME, {NAME: task.trainable}, batch)
            loss.backward()
            if device.type == "cuda":
                torch.cuda.synchronize()
            spent.append(time.perf_counter() - began)
            kept = max(kept, sum(count.values()))
    task.trainable.zero_grad(set_to_none=True)
    return min(spent[1:]), kept


@contextmanager
def counted(wanted: bool) -> Any:
    """The bytes of the tensors that the block keeps for the backward pass, each storage once."""
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    if not wanted:
        yield found
        return
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield found


def mib(size: float) -> str:
    """Bytes as people say them."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def clock(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
