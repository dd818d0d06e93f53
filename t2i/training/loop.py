"""The training loop: the gradients of every model first, then the update of every model; a rerun resumes."""

import contextlib
import math
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from torch import Tensor, nn

from t2i import randomness
from t2i.data.transforms import to_pixels
from t2i.errors import RunFailed, WriteFailed
from t2i.files import free_space, write_json, write_png
from t2i.memory import keep_freed_memory
from t2i.nn.attention import set_attention_backend
from t2i.progress import progress
from t2i.report.grid import image_grid
from t2i.training import checkpoint
from t2i.training.checkpoint import Parts
from t2i.training.distributed import BatchSplit, on_cpu
from t2i.training.ema import EMA
from t2i.training.log import Log
from t2i.training.optim import learning_rate, optimizer
from t2i.training.recipes import Recipe
from t2i.training.resume import alone_in, resume
from t2i.training.task import Task


@dataclass
class Model:
    """A network in training: bare, wrapped for precision and processes, with its optimiser and EMA weights."""

    network: nn.Module
    wrapped: nn.Module
    optimizer: Any
    ema: EMA | None


def train(task: Task, recipe: Recipe) -> None:
    """Trains to `recipe.train.steps`, from the newest valid checkpoint in the run's folder if there is one."""
    Run(task, recipe).train()


class Run:
    """A training run: a task, its models with their optimisers, and the folder that it writes to."""

    def __init__(self, task: Task, recipe: Recipe) -> None:
        self.task, self.recipe, self.config, self.folder = task, recipe, recipe.train, recipe.run
        self.accelerator = Accelerator(cpu=on_cpu(), mixed_precision=self.config.mixed_precision)
        # cuDNN's attention backward is known to return NaN on some shapes.
        torch.backends.cuda.enable_cudnn_sdp(False)
        if self.accelerator.device.type == "cpu":
            keep_freed_memory()
        self.split = BatchSplit.of(self.config, self.accelerator.num_processes, task.couples_batch)
        # Accelerate updates the loss scale after each optimiser's step, so several models would see different scales.
        assert self.accelerator.scaler is None or len(task.networks) == 1
        self.models = {name: self._prepare(network) for name, network in task.networks.items()}

    def train(self) -> None:
        """Trains, alone in the folder."""
        main, config, split = self.accelerator.is_main_process, self.config, self.split
        with alone_in(self.folder) if main else contextlib.nullcontext():
            start = resume(self._parts(), self.recipe, self.accelerator)
            if main:
                print(
                    f"{self.folder}: steps {start}..{config.steps}, global batch {config.global_batch} = micro-batch "
                    f"{split.micro} x accumulation {split.accumulation} x processes {split.processes}, "
                    f"{len(self.task)} samples, {'cpu' if on_cpu() else self.accelerator.device}, "
                    f"mixed precision {config.mixed_precision}, {torch.get_num_threads()} threads",
                    flush=True,
                )
            self._steps(start)
            if main:
                print(f"{self.folder}: finished at step {config.steps}", flush=True)

    def _steps(self, start: int) -> None:
        """Takes the steps start..config.steps, each followed by what is due after it."""
        config, main = self.config, self.accelerator.is_main_process
        log, batches = Log(self.folder, start, quiet=not main), self.batches(start)
        with _stoppable() as stop, progress(self.folder.name, config.steps, start=start, quiet=not main) as report:
            for step in range(start, config.steps):
                log.add(self.step(next(batches), step))
                done = step + 1
                last = done == config.steps
                if done % config.log_every == 0 or last:
                    lr = learning_rate(step, config)
                    row = log.write(done, config, lr, self.accelerator)
                    report(done, f"loss {row['loss']:.4f}  lr {lr:.2e}  {row['samples_per_second']:.1f}/s")
                halted = self._any_process(stop.asked)
                with log.paused():
                    if main:
                        self._evaluate(log, done)
                    if last or halted or done % config.save_every == 0:
                        self._save(done)
                if halted and main:
                    after = "the run is finished" if last else "the same command resumes from it"
                    print(f"stopped after step {done}; {after}", flush=True)
                if halted:
                    raise KeyboardInterrupt

    def _prepare(self, network: nn.Module) -> Model:
        config = self.config
        network.to(self.accelerator.device).train()
        half = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(config.mixed_precision)
        set_attention_backend(network, config.attention, half)
        ema = EMA(network, config.ema) if config.ema else None
        wrapped, prepared = self.accelerator.prepare(network, optimizer(network, config))
        return Model(network, wrapped, prepared, ema)

    def _parts(self) -> Parts:
        return Parts(
            {name: model.network for name, model in self.models.items()},
            {name: model.optimizer for name, model in self.models.items()},
            {name: model.ema for name, model in self.models.items() if model.ema is not None},
        )

    def batches(self, start: int) -> Iterator[list[dict[str, Any]]]:
        """Yields this process's micro-batches of each step from `start` on; the next ones are made meanwhile."""
        config, split, rank = self.config, self.split, self.accelerator.process_index

        def make(step: int) -> list[dict[str, Any]]:
            micros = self.task.order(step, config.global_batch, self.recipe.seed).split(split.micro)
            return [self.task.batch(indices, step) for indices in micros[rank :: split.processes]]

        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(make, start)
            for step in range(start, config.steps):
                batch = ahead.result()
                if step + 1 < config.steps:
                    ahead = pool.submit(make, step + 1)
                yield batch

    def step(self, micros: list[dict[str, Any]], step: int) -> dict[str, Tensor]:
        """Takes optimiser step `step` (0-based): the gradients of all models, then the updates; returns the terms."""
        rank = self.accelerator.process_index
        torch.manual_seed(randomness.generator(self.recipe.seed, "dropout", step, rank).initial_seed())
        terms: dict[str, Tensor] = {}
        for name, model in self.models.items():
            with self._acting(name) as networks:
                for k, batch in enumerate(micros):
                    last = k == len(micros) - 1
                    batch = {key: value.to(self.accelerator.device) for key, value in batch.items()}
                    with contextlib.nullcontext() if last else self.accelerator.no_sync(model.wrapped):
                        loss, more = self.task.loss(name, networks, batch)
                        self.accelerator.backward(loss / len(micros))
                    for term, value in {self._term(name, "loss"): loss, **more}.items():
                        terms[term] = terms.get(term, 0) + value.detach().float() / len(micros)
        self.accelerator.unscale_gradients()
        max_norm = math.inf if self.config.clip_norm is None else self.config.clip_norm
        for name, model in self.models.items():
            norm = nn.utils.clip_grad_norm_(model.network.parameters(), max_norm)
            terms[self._term(name, "grad_norm")] = norm
        self._check_finite(terms, step)
        for model in self.models.values():
            for group in model.optimizer.param_groups:
                group["lr"] = learning_rate(step, self.config)
            model.optimizer.step()
            model.optimizer.zero_grad(set_to_none=True)
            if model.ema is not None:
                model.ema.update()
        return terms

    def _term(self, name: str, term: str) -> str:
        return term if len(self.models) == 1 else f"{name}.{term}"

    def _check_finite(self, terms: dict[str, Tensor], step: int) -> None:
        """Raises before the update if a loss or a gradient norm is not finite; waits for the device once."""
        # With fp16 the scaler skips steps whose gradients overflow: that is no fault.
        stages = {"loss": "forward pass"} | ({"grad_norm": "backward pass"} if self.accelerator.scaler is None else {})
        checks = [(name, self._term(name, term), stage) for name in self.models for term, stage in stages.items()]
        values = torch.stack([terms[term].float() for _, term, _ in checks]).tolist()
        for (name, term, stage), value in zip(checks, values, strict=True):
            if not math.isfinite(value):
                raise RunFailed(
                    f"step {step + 1}: `{term}` of `{name}` is {value} after the {stage}; nothing was updated, and "
                    f"the checkpoints are unchanged. Lower train.lr or set train.mixed_precision=no, in a new folder: "
                    f"out=FOLDER"
                )

    @contextlib.contextmanager
    def _acting(self, name: str) -> Iterator[dict[str, nn.Module]]:
        """Yields the networks, all but `name` frozen and unwrapped: its loss gives their weights no gradient."""
        others = [model.network for other, model in self.models.items() if other != name]
        weights = [weight for network in others for weight in network.parameters() if weight.requires_grad]
        for weight in weights:
            weight.requires_grad_(False)
        try:
            yield {other: m.wrapped if other == name else m.network for other, m in self.models.items()}
        finally:
            for weight in weights:
                weight.requires_grad_(True)

    @contextlib.contextmanager
    def _ema_applied(self) -> Iterator[dict[str, nn.Module]]:
        """Yields the networks in eval mode, with their EMA weights if they have any."""
        with contextlib.ExitStack() as stack, torch.no_grad():
            for model in self.models.values():
                if model.ema is not None:
                    stack.enter_context(model.ema.applied())
                model.network.eval()
            yield {name: model.network for name, model in self.models.items()}
            for model in self.models.values():
                model.network.train()

    def _evaluate(self, log: Log, done: int) -> None:
        """Records validation figures and sample images when they are due."""
        last = done == self.config.steps
        if last or done % self.config.validate_every == 0:
            with self._ema_applied() as networks:
                log.validation(done, self.task.validate(networks))
        if last or done % self.config.sample_every == 0:
            with self._ema_applied() as networks:
                images = self.task.samples(networks)
            if images is not None:
                try:
                    write_png(self.folder / "samples" / f"step_{done:07}.png", image_grid(to_pixels(images)))
                except WriteFailed as error:
                    print(f"{error}; the run goes on without this sample", flush=True)

    def _save(self, done: int) -> None:
        """Exports the component, at the end writes the report, then saves a checkpoint; all processes wait for it.

        In this order, a run that is killed in between repeats the steps since its last checkpoint and loses nothing.
        """
        if self.accelerator.is_main_process:
            state = {
                "step": done,
                "samples": done * self.config.global_batch,
                "seed": self.recipe.seed,
                "recipe": self.recipe.model_dump(mode="json"),
                "ranks": self.split.processes,
                "threads": torch.get_num_threads(),
                "micro_batch": self.split.micro,
                "scaler": None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict(),
            }
            try:
                checkpoint.check_weights(self._parts(), done)  # before the export, which would replace a good one
                with self._ema_applied() as networks:
                    self.task.export(networks, self.folder)
                    if done == self.config.steps:
                        write_json(self.folder / "report.json", self.task.finish(networks))
                checkpoint.save(self.folder / "checkpoints", state, self._parts(), self.config.keep)
            except (OSError, SafetensorError) as error:
                intact = "the checkpoint before this one is intact"
                first = not any((self.folder / "checkpoints").glob("step_*"))
                cause = error if isinstance(error, WriteFailed) else f"{error} ({free_space(self.folder)})"
                raise RunFailed(
                    f"step {done} could not be saved: {cause}; free some space and run the same command again: "
                    f"{'it starts from the beginning' if first else intact}"
                ) from None
        self.accelerator.wait_for_everyone()

    def _any_process(self, asked: bool) -> bool:
        if self.accelerator.num_processes == 1:
            return asked
        flag: Any = self.accelerator.reduce(torch.tensor(float(asked), device=self.accelerator.device), "sum")
        return bool(flag > 0)


class _Stop:
    asked = False


@contextlib.contextmanager
def _stoppable() -> Iterator[_Stop]:
    """Turns the first Ctrl-C or SIGTERM into a request to stop after the step; a second one stops at once."""
    stop = _Stop()

    def ask(number: int, frame: object) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True
        print("stopping after this step (press again to stop at once)", flush=True)

    before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
