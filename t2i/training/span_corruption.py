"""Trains a T5-style text encoder on captions alone: a small decoder reconstructs hidden spans of words."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from t2i import randomness
from t2i.config import Section
from t2i.data.dataset import batch_indices
from t2i.text.t5 import T5TextEncoder
from t2i.text.tokenizer import learn_tokenizer, pad, start_end_ids, text_ids
from t2i.text.towers import T5Pair, T5TowerConfig
from t2i.training.images import open_sources
from t2i.training.recipes import Recipe
from t2i.training.text_encoder import TokenizerConfig, report_truncated, tokenizer_name

BATCH = 256  # captions in a forward pass of validation
NO_TARGET = -100


class SpanConfig(Section):
    """The hidden spans of a caption."""

    density: float = Field(default=0.15, gt=0, lt=1, description="mean fraction of words that are hidden")
    length: float = Field(default=1.5, ge=1, description="mean number of words in a span; T5 uses 3, for long texts")


class SpanRecipe(Recipe):
    """The recipe of `t2i train text-encoder` with a section `t5`."""

    tokenizer: TokenizerConfig = TokenizerConfig()
    t5: T5TowerConfig = T5TowerConfig()
    spans: SpanConfig = SpanConfig()

    @model_validator(mode="after")
    def _fits(self) -> "SpanRecipe":
        if self.size != Recipe.model_fields["size"].default:
            raise ValueError(f"size = {self.size}: span corruption uses no images: remove it (t5.size is a name)")
        if self.train.init is not None:
            raise ValueError("train.init: the folder of an encoder has no decoder to start from: remove it")
        if self.train.mixed_precision == "fp16":
            raise ValueError("train.mixed_precision = fp16: T5 overflows in float16: use bf16 or no")
        return self


class SpanTask:
    """Trains by span corruption (Raffel et al. 2020, 3.1.4), one caption per sample, with spans drawn at each step."""

    couples_batch = False

    def __init__(self, recipe: SpanRecipe, quiet: bool = False) -> None:
        self.recipe = recipe
        captions, held_out = (list(source.texts()) for source in open_sources(recipe))
        self.tokenizer: Any = learn_tokenizer(captions, recipe.tokenizer.vocab_size, recipe.tokenizer.max_tokens)
        report_truncated(self.tokenizer, captions, quiet)
        self.begin, self.end = start_end_ids(self.tokenizer)
        room = self.tokenizer.model_max_length - len(self.begin) - len(self.end)
        self.words = [ids[:room] for ids, _ in text_ids(self.tokenizer, captions)]
        self.held_out = [ids[:room] for ids, _ in text_ids(self.tokenizer, held_out)]
        self.sentinels = int(room * recipe.spans.density) + 1
        torch.manual_seed(randomness.generator(recipe.seed, "init").initial_seed())
        self.pair = T5Pair(recipe.t5, self.tokenizer, self.sentinels)
        self.networks: dict[str, nn.Module] = {"t5": self.pair}

    def __len__(self) -> int:
        return len(self.words)

    def order(self, step: int, global_batch: int, seed: int) -> Int[Tensor, " b"]:
        """Returns the rows of a step."""
        return batch_indices(len(self), global_batch, step, seed)

    def batch(self, indices: Int[Tensor, " b"], step: int) -> dict[str, Tensor]:
        """Returns corrupted captions and their hidden words: functions of (seed, step, row)."""
        rows, seed = indices.tolist(), self.recipe.seed
        return self.corrupted(
            [self.words[row] for row in rows], [randomness.generator(seed, "spans", step, row) for row in rows]
        )

    def corrupted(self, rows: Sequence[list[int]], draws: Sequence[torch.Generator]) -> dict[str, Tensor]:
        """Returns framed rows with sentinels for hidden spans, the targets, and the token before each target."""
        config, top = self.recipe.spans, self.pair.config.vocab_size - 1
        texts, targets = [], []
        for words, draw in zip(rows, draws, strict=True):
            hidden = hidden_words(len(words), config.density, config.length, draw)
            text, target = corrupt(words, hidden.tolist(), top)
            texts.append(self.begin + text + self.end)
            targets.append(target + self.end)
        ids, mask = pad(self.tokenizer, texts, max(map(len, texts)))
        target_ids, real = pad(self.tokenizer, targets, max(map(len, targets)))
        start = torch.full((len(rows), 1), self.end[0])
        before = torch.cat([start, target_ids[:, :-1]], 1)
        return {"ids": ids, "mask": mask, "before": before, "targets": target_ids.masked_fill(~real, NO_TARGET)}

    def loss(
        self, name: str, networks: dict[str, nn.Module], batch: dict[str, Any]
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Returns the cross entropy, averaged in each caption and then over captions, however the batch is split."""
        each = token_losses(networks["t5"], batch)
        return (each.sum(1) / (batch["targets"] != NO_TARGET).sum(1)).mean(), {}

    def validate(self, networks: dict[str, nn.Module]) -> dict[str, float]:
        """Returns nats per target, and nats and accuracy per hidden word, on fixed spans of the held-out captions."""
        network: Any = networks["t5"]
        device, words = network.shared.weight.device, len(self.tokenizer)
        losses, hits, hidden = [], [], []
        for at in range(0, len(self.held_out), BATCH):
            rows = range(at, min(at + BATCH, len(self.held_out)))
            draws = [randomness.generator(0, "held-out spans", row) for row in rows]
            batch = {k: v.to(device) for k, v in self.corrupted([self.held_out[r] for r in rows], draws).items()}
            logits = network(batch["ids"], batch["mask"], batch["before"]).float()
            targets = batch["targets"][real := batch["targets"] != NO_TARGET]
            losses.append(F.cross_entropy(logits[real], targets, reduction="none").cpu())
            hits.append((logits[real].argmax(-1) == targets).cpu())
            hidden.append(((targets < words) & (targets != self.end[0])).cpu())
        each, hit, word = torch.cat(losses), torch.cat(hits), torch.cat(hidden)
        return {
            "loss": each.mean().item(),
            "span_loss": each[word].mean().item(),
            "span_accuracy": hit[word].float().mean().item(),
        }

    def samples(self, networks: dict[str, nn.Module]) -> None:
        """Returns None: this component generates no images."""

    def export(self, networks: dict[str, nn.Module], folder: Path) -> None:
        """Writes `text_encoder/` (T5EncoderModel) and `tokenizer/`; the decoder stays in the checkpoints."""
        network: Any = networks["t5"]
        # Trained with padding masked, so it is read that way: diffusers obeys config.json's use_attention_mask too.
        T5TextEncoder(
            network.encoder_alone(), self.tokenizer, self.tokenizer.model_max_length, use_attention_mask=True
        ).save(folder)

    def finish(self, networks: dict[str, nn.Module]) -> dict[str, Any]:
        """Returns the report: validation figures, the loss of a guess by frequency, and sizes."""
        network: Any = networks["t5"]
        seen = {tuple(row) for row in self.words}
        return self.validate(networks) | {
            "frequency_loss": frequency_loss(self.words, self.held_out),
            "captions": len(self.held_out),
            "captions_seen_in_training": sum(tuple(row) in seen for row in self.held_out),
            "vocabulary": len(self.tokenizer),
            "tokenizer": tokenizer_name(self.tokenizer),
            "text_parameters": sum(p.numel() for p in network.encoder_alone().parameters()),
            "decoder_parameters": sum(p.numel() for m in (network.decoder, network.lm_head) for p in m.parameters()),
        }


def hidden_words(n: int, density: float, length: float, draw: torch.Generator) -> Bool[Tensor, " n"]:
    """Draws the hidden ones of n words: about n * density (at least one) in spans of about `length` words.

    Counts are rounded up or down at random, so that their means are right in short captions too. T5's own scheme
    always hides the last word; here the gaps before the first and after the last span may be empty, and all choices
    of spans are equally likely.
    """
    if n == 0:
        return torch.zeros(0, dtype=torch.bool)
    u, v = torch.rand(2, generator=draw).tolist()
    hidden = min(max(int(n * density + u), 1), n)
    spans = min(max(int(hidden / length + v), 1), hidden, n - hidden + 1)
    gaps = parts(n - hidden + 2, spans + 1, draw)
    gaps[0] -= 1
    gaps[-1] -= 1
    runs = torch.tensor([0, *[x for pair in zip(parts(hidden, spans, draw), gaps[1:], strict=True) for x in pair]])
    runs[0] = gaps[0]
    return (torch.arange(len(runs)) % 2 == 1).repeat_interleave(runs)


def parts(n: int, k: int, draw: torch.Generator) -> list[int]:
    """Draws n as a sum of k positive numbers, all such sums equally likely."""
    cuts = sorted((torch.randperm(n - 1, generator=draw)[: k - 1] + 1).tolist())
    return [b - a for a, b in zip([0, *cuts], [*cuts, n], strict=True)]


def corrupt(words: Sequence[int], hidden: Sequence[bool], top: int) -> tuple[list[int], list[int]]:
    """Returns the text with sentinels for hidden spans, and the sentinels with their spans; they count down from top.

    "a b c d e" with b, c and e hidden is "a <0> d <1>", and "<0> b c <1> e".
    """
    text: list[int] = []
    target: list[int] = []
    sentinel, inside = top + 1, False
    for word, gone in zip(words, hidden, strict=True):
        if gone and not inside:
            sentinel -= 1
            text.append(sentinel)
            target.append(sentinel)
        (target if gone else text).append(word)
        inside = gone
    return text, target


def token_losses(network: nn.Module, batch: dict[str, Tensor]) -> Float[Tensor, "b m"]:
    """Returns the cross entropy of every target token, 0 for padding."""
    logits = network(batch["ids"], batch["mask"], batch["before"]).float()
    return F.cross_entropy(logits.transpose(1, 2), batch["targets"], ignore_index=NO_TARGET, reduction="none")


def frequency_loss(words: Sequence[Sequence[int]], held_out: Sequence[Sequence[int]]) -> float:
    """Returns nats per held-out word when guessed by its frequency in training (one added to each count)."""
    counts = Counter(word for row in words for word in row)
    guessed = [word for row in held_out for word in row]
    total = counts.total() + len(counts.keys() | set(guessed))
    return -torch.tensor([(counts[word] + 1) / total for word in guessed], dtype=torch.float64).log().mean().item()
