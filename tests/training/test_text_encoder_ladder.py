"""The ladder: named sizes of both families, and one frozen image tower under text towers of all sizes."""

from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import yaml

from t2i.config import load_recipe
from t2i.text.encoder import load_text_encoder
from t2i.text.tokenizer import learn_tokenizer
from t2i.text.towers import SIZES, ImageTower, SizeName, T5Pair, T5TowerConfig, TextTowerConfig, text_tower
from t2i.training.objectives import text_encoder_training
from t2i.training.span_corruption import SpanRecipe, SpanTask
from t2i.training.text_encoder import TextEncoderRecipe, TextEncoderTask, tokenizer_name
from tests.training import tiny

CONFIGS = Path("configs/study/text-encoders")


def size_of(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_sizes_span_two_orders_of_magnitude_and_are_alike_in_both_families():
    words = learn_tokenizer(["a red circle on a white background"], 630, 48)
    with torch.device("meta"):
        clip = [text_tower(TextTowerConfig(size=s), words, 128) for s in get_args(SizeName)]
        t5 = [T5Pair(T5TowerConfig(size=s), words, 6) for s in get_args(SizeName)]
    clip, t5 = [size_of(m) for m in clip], [size_of(m.encoder) + size_of(m.shared) for m in t5]
    assert get_args(SizeName) == tuple(SIZES)
    for sizes in (clip, t5):
        assert all(2 < b / a < 5 for a, b in pairwise(sizes)) and sizes[-1] > 90 * sizes[0]
    assert all(0.85 < b / a < 1.15 for a, b in zip(clip, t5, strict=True))


def test_a_name_stands_for_its_numbers():
    small = TextTowerConfig.model_validate({"size": "small", "embedding_std": 0.02})
    assert (small.width, small.layers, small.heads, small.embedding_std) == (128, 2, 4, 0.02)
    assert TextTowerConfig.model_validate(small.model_dump()) == small
    with pytest.raises(ValueError, match=r"size = small stands for width = 128.*not layers = 7"):
        TextTowerConfig.model_validate({"size": "small", "layers": 7})
    with pytest.raises(ValueError, match="'mini', 'tiny', 'small', 'base' or 'large'"):
        TextTowerConfig.model_validate({"size": "huge"})
    assert TextTowerConfig().embedding_std == 10 and TextTowerConfig().width == 160


def frozen(out: Path, pair: Path, **text: Any) -> dict[str, Any]:
    """A recipe against the image tower of the run `pair`."""
    values = tiny.text_encoder(out, steps=3) | {"image_tower": str(pair), "text": text}
    del values["image"]
    return values


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    out = tmp_path_factory.mktemp("pair") / "run"
    tiny.run("text-encoder", tiny.text_encoder(out, steps=2))
    return out


def test_two_sizes_learn_against_one_frozen_image_tower(pair, tmp_path):
    before = ImageTower.load(pair / "image_encoder").state_dict()
    widths = []
    for size in ("mini", "tiny"):
        task = TextEncoderTask(TextEncoderRecipe.model_validate(frozen(tmp_path / size, pair, size=size)), quiet=True)
        untrained = {k: v.clone() for k, v in task.pair.text.state_dict().items()}
        tiny.train(task, task.recipe)
        for tower in (task.pair.image, ImageTower.load(tmp_path / size / "image_encoder")):
            assert all(tensor.equal(before[k]) for k, tensor in tower.state_dict().items())
        moved = [k for k, v in task.pair.text.state_dict().items() if not v.equal(untrained[k])]
        assert "text_projection.weight" in moved and len(moved) > 20
        encoder = load_text_encoder(tmp_path / size)
        widths.append((encoder.width, size_of(encoder)))
        report = yaml.safe_load((tmp_path / size / "report.json").read_text())
        assert report["text_parameters"] == size_of(encoder)
        assert report["tokenizer"] == tokenizer_name(encoder.tokenizer)
    assert [w for w, _ in widths] == [32, 64] and widths[0][1] < widths[1][1]
    spans = {"out": "x", "t5": {"size": "mini"}, "train": {"steps": 1, "lr": 1e-3, "global_batch": 2}}
    same = frozen(tmp_path, pair)
    task = SpanTask(SpanRecipe.model_validate(spans | {k: same[k] for k in ("data", "validation", "tokenizer")}), True)
    assert tokenizer_name(task.tokenizer) == report["tokenizer"]  # pyright: ignore[reportPossiblyUnboundVariable]


def test_bad_image_towers_are_named(pair, tmp_path):
    values = frozen(tmp_path, pair) | {"image": {"patch": 8}}
    with pytest.raises(ValueError, match=r"image_tower = .* has its own sizes"):
        TextEncoderRecipe.model_validate(values)
    with pytest.raises(ValueError, match=r"image_tower=/nowhere: .*no such folder"):
        tiny.task("text-encoder", frozen(tmp_path, Path("/nowhere")))


def test_captions_that_do_not_fit_are_counted(tmp_path, capsys):
    values = tiny.text_encoder(tmp_path, steps=1)
    values["tokenizer"]["max_tokens"] = 12
    TextEncoderTask(TextEncoderRecipe.model_validate(values))
    assert "8 of 8 captions are longer than tokenizer.max_tokens = 12; cut off, for example:" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)
def test_the_ladder_of_the_study_is_one_of_one_tokenizer_and_one_corpus(path):
    kind, task = text_encoder_training(path)
    assert task is (SpanTask if path.stem == "t5" else TextEncoderTask)
    recipes = [load_recipe(path, [f"{'t5' if path.stem == 't5' else 'text'}.size={s}", "out=x"], kind) for s in SIZES]
    first = load_recipe(CONFIGS / "clip.yaml", [], TextEncoderRecipe)
    for recipe in recipes:
        assert (recipe.tokenizer, recipe.data, recipe.validation) == (first.tokenizer, first.data, first.validation)


def test_the_section_says_what_is_trained(tmp_path):
    (tmp_path / "spans.yaml").write_text("t5: {size: mini}")
    (tmp_path / "bad.yaml").write_text("- [")
    assert text_encoder_training(tmp_path / "spans.yaml") == (SpanRecipe, SpanTask)
    for name in ("bad.yaml", "absent.yaml"):
        assert text_encoder_training(tmp_path / name) == (TextEncoderRecipe, TextEncoderTask)
