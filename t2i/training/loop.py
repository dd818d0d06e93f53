"""The one training loop: every player's gradient, then every player's step; the same command resumes."""

import contextlib
import math
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from torch import Tensor, nn

from t2i import randomness
from t2i.config import TrainConfig
from t2i.data.grid import picture_grid
from t2i.errors import RunFailed
from t2i.files import write_json
from t2i.memory import keep_freed_memory
from t2i.nn.attention import set_attention_backend
from t2i.progress import progress
from t2i.training import checkpoint
from t2i.training.checkpoint import Parts
from t2i.training.ema import EMA
from t2i.training.log import Log
from t2i.training.optim import learning_rate, optimizer
from t2i.training.plan import Plan
from t2i.training.ranks import on_cpu
from t2i.training.resume import alone_in, resume
from t2i.training.task import Task


@dataclass
class Trained:
    """One player: its network, the same wrapped for precision and ranks, its optimiser and average."""

    network: nn.Module
    wrapped: nn.Module
    optimizer: Any
    ema: EMA | None


def train(task: Task, config: TrainConfig, seed: int, run: Path, recipe: dict[str, Any]) -> None:
    """Train to `config.steps`, or go on from the newest valid checkpoint in `run`."""
    accelerator = Accelerator(cpu=on_cpu(), mixed_precision=config.mixed_precision)
    # cuDNN's attention backward is known to return NaN on some shapes.
    torch.backends.cuda.enable_cudnn_sdp(False)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    plan = Plan.of(config, accelerator.num_processes, task.couples_batch)
    # Accelerate moves the loss scale after each optimiser's step, so with several it would not be one for a step.
    assert accelerator.scaler is None or len(task.players) == 1
    with alone_in(run) if accelerator.is_main_process else contextlib.nullcontext():
        players = {name: _prepare(network, config, accelerator) for name, network in task.players.items()}
        start = resume(run, _parts(players), recipe, accelerator)
        if accelerator.is_main_process:
            print(
                f"{run}: steps {start}..{config.steps}, global batch {config.global_batch} = {plan.micro} x "
                f"{plan.accumulation} accumulated x {plan.ranks} processes, {len(task)} samples, {accelerator.device}, "
                f"{config.mixed_precision} precision, {torch.get_num_threads()} threads",
                flush=True,
            )
        _steps(task, config, seed, run, recipe, accelerator, plan, players, start)
        if accelerator.is_main_process:
            print(f"{run}: finished at step {config.steps}", flush=True)


def _steps(
    task: Task,
    config: TrainConfig,
    seed: int,
    run: Path,
    recipe: dict[str, Any],
    accelerator: Accelerator,
    plan: Plan,
    players: dict[str, Trained],
    start: int,
) -> None:
    """Steps start..config.steps, with what is due after each."""
    log = Log(run, start, quiet=not accelerator.is_main_process)
    batches = _prefetch(task, config, seed, plan, accelerator.process_index, start)
    with _stoppable() as stop, progress(run.name, config.steps, start=start, quiet=log.quiet) as report:
        for step in range(start, config.steps):
            torch.manual_seed(randomness.generator(seed, "dropout", step, accelerator.process_index).initial_seed())
            lr = learning_rate(step, config)
            log.add(_step(task, players, next(batches), lr, config, accelerator, step))
            done = step + 1
            last = done == config.steps
            if done % config.log_every == 0 or last:
                row = log.write(done, config, lr, accelerator)
                report(done, f"loss {row['loss']:.4f}  lr {row['lr']:.2e}  {row['samples_per_second']:.1f}/s")
            halted = _any_rank(stop.asked, accelerator)
            with log.paused():
                if accelerator.is_main_process:
                    _look(task, players, config, run, log, done)
                if last or halted or done % config.save_every == 0:
                    _save(task, players, config, seed, run, done, plan, recipe, accelerator)
            if halted and not last:
                if accelerator.is_main_process:
                    print(f"stopped after step {done}; the same command goes on from there", flush=True)
                raise KeyboardInterrupt


def _prepare(network: nn.Module, config: TrainConfig, accelerator: Accelerator) -> Trained:
    network.to(accelerator.device).train()
    set_attention_backend(
        network, config.attention, {"fp16": torch.float16, "bf16": torch.bfloat16}.get(config.mixed_precision)
    )
    ema = EMA(network, config.ema) if config.ema else None
    wrapped, prepared = accelerator.prepare(network, optimizer(network, config))
    return Trained(network, wrapped, prepared, ema)


def _parts(players: dict[str, Trained]) -> Parts:
    return Parts(
        {n: p.network for n, p in players.items()},
        {n: p.optimizer for n, p in players.items()},
        {n: p.ema for n, p in players.items() if p.ema is not None},
    )


def _step(
    task: Task,
    players: dict[str, Trained],
    micros: list[dict[str, Any]],
    lr: float,
    config: TrainConfig,
    accelerator: Accelerator,
    step: int,
) -> dict[str, Tensor]:
    """One optimiser step of every player: gradients first, all of them, then the updates."""
    sums: dict[str, Tensor] = {}
    for name, player in players.items():
        with _acting(players, name) as networks:
            for k, batch in enumerate(micros):
                last = k == len(micros) - 1
                with contextlib.nullcontext() if last else accelerator.no_sync(player.wrapped):
                    loss, terms = task.loss(name, networks, {k: v.to(accelerator.device) for k, v in batch.items()})
                    accelerator.backward(loss / len(micros))
                key = "loss" if len(players) == 1 else f"{name}.loss"
                for term, value in {key: loss, **terms}.items():
                    sums[term] = sums.get(term, 0) + value.detach().float() / len(micros)
    accelerator.unscale_gradients()
    for name, player in players.items():
        key = "loss" if len(players) == 1 else f"{name}.loss"
        norm = f"{key.removesuffix('loss')}grad_norm"
        most = math.inf if config.clip_norm is None else config.clip_norm
        sums[norm] = nn.utils.clip_grad_norm_(player.network.parameters(), most)
        # With fp16 the scaler skips steps whose gradients overflow; that is its work, not a fault.
        scaled = accelerator.scaler is not None
        for stage, term in (("forward pass", key), ("backward pass", norm)):
            if not (scaled and stage == "backward pass") and not torch.isfinite(sums[term]):
                raise RunFailed(
                    f"step {step + 1}: `{term}` of `{name}` is {sums[term].item()} after the {stage}; nothing was "
                    f"updated, and checkpoints are as before. Lower train.lr or set train.mixed_precision='no', "
                    f"in a new folder: out=FOLDER"
                )
        for group in player.optimizer.param_groups:
            group["lr"] = lr
    for player in players.values():
        player.optimizer.step()
        player.optimizer.zero_grad(set_to_none=True)
        if player.ema is not None:
            player.ema.update()
    return sums


@contextlib.contextmanager
def _acting(players: dict[str, Trained], name: str) -> Iterator[dict[str, nn.Module]]:
    """The networks with all but `name` frozen and unwrapped: the others' weights see no gradient of its loss."""
    others = [w for n, p in players.items() if n != name for w in p.network.parameters() if w.requires_grad]
    for weight in others:
        weight.requires_grad_(False)
    try:
        yield {n: p.wrapped if n == name else p.network for n, p in players.items()}
    finally:
        for weight in others:
            weight.requires_grad_(True)


@contextlib.contextmanager
def _averaged(players: dict[str, Trained]) -> Iterator[dict[str, nn.Module]]:
    """The networks in eval mode with their averaged weights, where there are any."""
    with contextlib.ExitStack() as stack, torch.no_grad():
        for player in players.values():
            if player.ema is not None:
                stack.enter_context(player.ema.applied())
            player.network.eval()
        yield {n: p.network for n, p in players.items()}
        for player in players.values():
            player.network.train()


def _prefetch(
    task: Task, config: TrainConfig, seed: int, plan: Plan, rank: int, start: int
) -> Iterator[list[dict[str, Any]]]:
    """This rank's micro-batches, step by step, made one step ahead."""

    def make(step: int) -> list[dict[str, Any]]:
        micros = task.order(step, config.global_batch, seed).split(plan.micro)
        return [task.batch(indices, step) for indices in micros[rank :: plan.ranks]]

    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(make, start)
        for step in range(start, config.steps):
            batch = ahead.result()
            if step + 1 < config.steps:
                ahead = pool.submit(make, step + 1)
            yield batch


def _look(task: Task, players: dict[str, Trained], config: TrainConfig, run: Path, log: "Log", done: int) -> None:
    """Validation figures and sample pictures, when they are due."""
    last = done == config.steps
    if last or done % config.validate_every == 0:
        with _averaged(players) as networks:
            log.validation(done, task.validate(networks))
    if last or done % config.sample_every == 0:
        with _averaged(players) as networks:
            pictures = task.samples(networks)
        if pictures is not None:
            (run / "samples").mkdir(exist_ok=True)
            picture_grid(pictures).save(run / "samples" / f"step_{done:07}.png")


def _save(
    task: Task,
    players: dict[str, Trained],
    config: TrainConfig,
    seed: int,
    run: Path,
    done: int,
    plan: Plan,
    recipe: dict[str, Any],
    accelerator: Accelerator,
) -> None:
    """The component as others load it, at the end the report, then a checkpoint; every rank waits for the writer.

    In this order: a run that is killed in between repeats the steps since its last checkpoint, so nothing is missing.
    """
    if accelerator.is_main_process:
        state = {"step": done, "samples": done * config.global_batch, "seed": seed, "recipe": recipe}
        state |= {"ranks": plan.ranks, "threads": torch.get_num_threads(), "micro_batch": plan.micro}
        state["scaler"] = accelerator.scaler.state_dict() if accelerator.scaler is not None else None
        try:
            with _averaged(players) as networks:
                task.export(networks, run)
                if done == config.steps:
                    write_json(run / "report.json", task.finish(networks))
            checkpoint.save(run / "checkpoints", state, _parts(players), config.keep)
        except (OSError, SafetensorError) as error:
            free = shutil.disk_usage(run).free >> 20
            raise RunFailed(
                f"step {done} could not be saved: {error} ({free} MiB are free in {run}); make room and give the "
                f"same command again: the checkpoint before is whole"
            ) from None
    accelerator.wait_for_everyone()


class _Stop:
    asked = False


@contextlib.contextmanager
def _stoppable() -> Iterator[_Stop]:
    """Ctrl-C and SIGTERM ask for a stop at the next step boundary; a second one is obeyed at once."""
    stop = _Stop()

    def ask(number: int, frame: object) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True
        print("stopping after this step (once more to stop at once)", flush=True)

    before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _any_rank(asked: bool, accelerator: Accelerator) -> bool:
    if accelerator.num_processes == 1:
        return asked
    flag: Any = accelerator.reduce(torch.tensor(float(asked), device=accelerator.device), "sum")
    return bool(flag > 0)
