"""Span corruption: what is hidden, the model against transformers' own T5, the task, the exported encoder."""

import itertools
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoTokenizer, T5Config, T5EncoderModel, T5ForConditionalGeneration
from typer.testing import CliRunner

from t2i.cli.train import app
from t2i.text.encoder import load_text_encoder
from t2i.text.t5 import T5TextEncoder
from t2i.text.tokenizer import SMALLEST
from t2i.text.towers import T5Pair, T5TowerConfig
from t2i.training.images import open_sources
from t2i.training.span_corruption import (
    SpanRecipe,
    SpanTask,
    corrupt,
    frequency_loss,
    hidden_words,
    parts,
)
from tests.text.tiny import tokenizer
from tests.training import tiny

T5 = {"width": 16, "layers": 1, "heads": 2, "decoder_layers": 1}


def values(out: Path, captions: int = 8, **train: Any) -> dict[str, Any]:
    return {
        "out": str(out),
        "data": tiny.scenes(captions),
        "validation": tiny.scenes(6, seed=1),
        "tokenizer": {"vocab_size": SMALLEST + 40, "max_tokens": 48},
        "t5": T5,
        "train": {"steps": 1, "lr": 3e-3, "global_batch": 4, "log_every": 1} | train,
    }


def task(out: Path, **options: Any) -> SpanTask:
    return SpanTask(SpanRecipe.model_validate(values(out, **options)), quiet=True)


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_spans_become_sentinels_that_count_down():
    assert corrupt(list(range(1, 6)), [False, True, True, False, True], 99) == ([1, 99, 4, 98], [99, 2, 3, 98, 5])
    assert corrupt([7], [True], 99) == ([99], [99, 7]) and corrupt([], [], 99) == ([], [])


def test_a_corrupted_caption_can_be_put_together_again():
    for seed in range(50):
        words = list(range(1, 15))
        hidden = hidden_words(14, 0.3, 1.5, draw(seed)).tolist()
        text, target = corrupt(words, hidden, 99)
        spans = {s: list(ids) for s, ids in zip(*_spans(target), strict=True)}
        assert [w for t in text for w in spans.get(t, [t])] == words


def _spans(target: list[int]) -> tuple[list[int], list[list[int]]]:
    starts = [i for i, t in enumerate(target) if t > 50]
    ends = [*starts[1:], len(target)]
    return [target[i] for i in starts], [target[i + 1 : j] for i, j in zip(starts, ends, strict=True)]


@pytest.mark.parametrize(("n", "density", "length"), [(14, 0.15, 1.5), (14, 0.3, 3.0), (9, 0.3, 1.0), (40, 0.15, 3.0)])
def test_hidden_words_are_as_many_and_as_long_as_asked_and_anywhere(n, density, length):
    many = torch.stack([hidden_words(n, density, length, draw(seed)) for seed in range(1000)]).double()
    starts = many.diff(dim=1, prepend=torch.zeros(len(many), 1)).clamp(min=0)
    assert many.sum(1).min() >= 1
    assert many.mean().item() == pytest.approx(density, rel=0.05)
    assert many.sum().item() / starts.sum().item() == pytest.approx(length, rel=0.15)
    assert many.mean(0).min() > 0.25 * density and many.mean(0).max() < 2 * density  # first and last words too


def test_shortest_captions():
    assert [hidden_words(n, 0.15, 1.5, draw(0)).tolist() for n in (0, 1)] == [[], [True]]
    assert all(hidden_words(2, 0.9, 1.0, draw(s)).sum() >= 1 for s in range(50))


def test_all_sums_are_equally_likely():
    found = Counter(tuple(parts(6, 3, draw(seed))) for seed in range(3000))
    assert set(found) == {p for p in itertools.product(range(1, 5), repeat=3) if sum(p) == 6}
    assert max(found.values()) < 1.4 * min(found.values())


def test_pair_is_the_t5_of_transformers():
    words = tokenizer()
    torch.manual_seed(0)
    pair = T5Pair(T5TowerConfig(width=32, layers=2, heads=2, decoder_layers=1), words, 5)
    sizes = {k: getattr(pair.config, k) for k in ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")}
    config = T5Config(
        **sizes, num_decoder_layers=1, feed_forward_proj="gated-gelu", dropout_rate=0.0, tie_word_embeddings=False
    )
    stock = T5ForConditionalGeneration(config).eval()
    state = pair.state_dict()
    for side in ("encoder", "decoder"):
        getattr(stock, side).load_state_dict(
            {k.removeprefix(f"{side}."): v for k, v in state.items() if k.startswith(f"{side}.")}
            | {"embed_tokens.weight": state["shared.weight"]}
        )
    ids, before = torch.randint(0, 500, (2, 3, 7), generator=draw(0))
    mask = torch.arange(7) < torch.tensor([[7], [4], [6]])
    with torch.no_grad():
        stock.shared.weight.copy_(state["shared.weight"])
        stock.lm_head.weight = torch.nn.Parameter(state["lm_head.weight"].clone())
        stock.encoder.embed_tokens = stock.decoder.embed_tokens = stock.shared
        expected = stock(input_ids=ids, attention_mask=mask.long(), decoder_input_ids=before).logits
        torch.testing.assert_close(pair.eval()(ids, mask, before), expected)


def test_batches_are_functions_of_rows_and_step(tmp_path):
    made = task(tmp_path, captions=24)
    rows = torch.cat([made.order(step, 8, seed=0) for step in range(3)])
    assert sorted(rows.tolist()) == list(range(24))
    whole, part = made.batch(rows[:10], 0), made.batch(rows[5:10], 0)
    for key in whole:
        n = part[key].shape[1]
        assert whole[key][5:, :n].equal(part[key])
    hidden = [made.batch(rows[:10], step)["targets"].tolist() for step in (0, 1)]
    assert hidden[0] != hidden[1]


def test_loss_is_a_mean_over_captions_however_they_are_cut(tmp_path):
    made = task(tmp_path, captions=8)
    batch = made.batch(torch.arange(8), 0)
    whole, _ = made.loss("t5", made.networks, batch)
    parts = [made.loss("t5", made.networks, {k: v[i : i + 2] for k, v in batch.items()})[0] for i in range(0, 8, 2)]
    torch.testing.assert_close(torch.stack(parts).mean(), whole)
    logits = made.pair(batch["ids"], batch["mask"], batch["before"])
    each = []
    for row, wanted in zip(logits.log_softmax(-1), batch["targets"], strict=True):
        real = [(i, t) for i, t in enumerate(wanted.tolist()) if t >= 0]
        each.append(-sum(row[i, t] for i, t in real) / len(real))
    torch.testing.assert_close(torch.stack(each).mean(), whole)
    real = batch["targets"] >= 0
    assert batch["before"][:, 1:][real[:, 1:]].equal(
        batch["targets"][:, :-1][real[:, 1:]]
    )  # teacher forcing, no peeking
    assert (batch["before"][:, 0] == made.end[0]).all()


def test_overfits_and_exports_what_was_trained(tmp_path):
    made = task(tmp_path, captions=4, lr=1e-2)
    first = made.validate(made.networks)
    optimizer = torch.optim.AdamW(made.pair.parameters(), lr=1e-2)
    batch = made.batch(torch.arange(4), 0)
    for _ in range(60):
        loss, _ = made.loss("t5", made.networks, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1  # pyright: ignore[reportPossiblyUnboundVariable]
    with torch.no_grad():
        figures = made.validate(made.networks)
        assert figures == made.validate(made.networks) and figures["loss"] < first["loss"]
        made.export(made.networks, tmp_path)
        encoder = load_text_encoder(tmp_path)
        assert isinstance(encoder, T5TextEncoder) and encoder.use_attention_mask and encoder.width == 16
        captions = list(open_sources(made.recipe)[0].texts())
        states = encoder(captions).conditioning
        batch = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")(
            captions, padding="max_length", truncation=True, return_tensors="pt"
        )
        trained = made.pair.encoder(
            inputs_embeds=made.pair.shared(batch.input_ids), attention_mask=batch.attention_mask
        ).last_hidden_state
        torch.testing.assert_close(states.tokens, trained)
        stock = T5EncoderModel.from_pretrained(tmp_path / "text_encoder")
        torch.testing.assert_close(stock(**batch).last_hidden_state, trained)
        report = made.finish(made.networks)
    assert report["text_parameters"] == sum(p.numel() for p in stock.parameters())
    assert report["captions"] == 6 and report["captions_seen_in_training"] == 0
    assert encoder.config.vocab_size == len(encoder.tokenizer) + made.sentinels


def test_guess_by_frequency_in_closed_form():
    found = frequency_loss([[1, 1, 2]], [[1, 3]])
    assert found == pytest.approx(-(math.log(3 / 6) + math.log(1 / 6)) / 2)


def test_command_trains_resumes_and_reports(tmp_path):
    path = tiny.written(values(tmp_path / "run", steps=4, save_every=2), tmp_path / "t5.yaml")
    assert CliRunner().invoke(app, ["text-encoder", path, "train.steps=2", "train.lr_schedule=constant"]).exit_code == 0
    found = CliRunner().invoke(app, ["text-encoder", path, "train.lr_schedule=constant"])
    assert found.exit_code == 0 and "steps 2..4" in found.output
    straight = task(tmp_path / "straight", steps=4, lr_schedule="constant")
    tiny.train(straight, straight.recipe)
    for folder in ("text_encoder", "tokenizer"):
        assert_equal_files(tmp_path / "run" / folder, tmp_path / "straight" / folder)
    report = yaml.safe_load((tmp_path / "run" / "report.json").read_text())
    assert report["span_loss"] > 0 and 0 <= report["span_accuracy"] <= 1
    assert load_text_encoder(tmp_path / "run").max_tokens == 48


def assert_equal_files(a: Path, b: Path) -> None:
    files = sorted(p.name for p in a.iterdir())
    assert files == sorted(p.name for p in b.iterdir())
    assert all((a / name).read_bytes() == (b / name).read_bytes() for name in files)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 32}, "no images"),
        ({"train": {"init": "x"}}, "no decoder"),
        ({"train": {"mixed_precision": "fp16"}}, "overflows"),
        ({"t5": T5 | {"size": "tiny"}}, "width = 64"),
        ({"spans": {"density": 1.0}}, "density"),
        ({"contrast": {}}, "contrast"),
    ],
)
def test_bad_recipes_are_named(tmp_path, change, message):
    wanted = values(tmp_path)
    for key, value in change.items():
        wanted[key] = wanted[key] | value if key == "train" else value
    with pytest.raises(ValueError, match=message):
        SpanRecipe.model_validate(wanted)
