"""Fine-tuning: what each method trains, keeps and writes; interrupted runs; the paired figures."""

import json
import math
from functools import partial

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from scipy import stats

from t2i.data.data_config import DataConfig
from t2i.data.open import open_source
from t2i.pipeline import Pipeline
from t2i.training.conditioned import BINS, validation_places
from t2i.training.finetune.before_after import distances, paired
from t2i.training.finetune.recipe import FinetuneRecipe, fill
from t2i.training.finetune.task import NAME

from . import finetuning as f


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return f.make_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return f.make_pictures(tmp_path_factory.mktemp("data") / "pictures")


@pytest.fixture(scope="module")
def lora(model, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "lora"
    return out, f.run(model, data, out, "sample.old_prompts=[a red circle]", "lora.rank=2")


METHODS = {
    "lora": ("lora.text_encoder=true", "tags.shuffle=true"),
    "dreambooth": ("prior.prompt=a circle", "prior.count=3"),
    "textual-inversion": (
        "inversion.token=<sks>",
        "inversion.vectors=2",
        "inversion.initializer=red",
        "inversion.templates=['a {token}', '{token}']",
    ),
    "full": ("text_encoder=true", "train.ema=0.9", "flip=true"),
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_its_parameters_alone_and_its_run_is_a_model(method, model, data, tmp_path):
    task = f.run(model, data, tmp_path / "run", f"method={method}", *METHODS[method])
    learnt, base = Pipeline.from_pretrained(tmp_path / "run"), Pipeline.from_pretrained(model)
    prompt = "a <sks> square" if method == "textual-inversion" else "a red square"
    options = {"seeds": [3], "num_inference_steps": 2, "output_type": "pt"}
    found = learnt(prompt, **options).images
    # The same picture as the live networks draw: nothing was lost on the way to the folder.
    task.trainable.eval()
    if task.recipe.train.ema is None:
        torch.testing.assert_close(found, task.pipeline(prompt, **options).images, atol=2e-5, rtol=0)
    assert not torch.allclose(found, base(prompt, **options).images, atol=1e-4)
    frozen = {"lora": ("vae",), "dreambooth": ("vae", "text"), "textual-inversion": ("vae", "unet"), "full": ("vae",)}
    parts = {
        "vae": (learnt.autoencoder, base.autoencoder),
        "unet": (learnt.generator.unet, base.generator.unet),
        "text": (learnt.text_encoder.tower, base.text_encoder.tower),
    }
    for name, (new, old) in parts.items():
        pairs = zip(new.state_dict().values(), old.state_dict().values(), strict=True)
        same = all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs)
        assert same == (name in frozen[method]), name
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["method"] == method
    assert "report.html" in {path.name for path in (tmp_path / "run").iterdir()}


@pytest.fixture
def reset_precision():
    """Forget the precision, which accelerate holds for the whole process; again at the end."""
    reset = partial(AcceleratorState._reset_state, reset_partial_state=True)
    yield reset
    reset()


def test_in_half_precision_what_is_frozen_is_half_and_what_is_trained_is_not(model, data, tmp_path, reset_precision):
    arguments = ("lora.rank=2", "train.lr=0.001")
    wide = f.run(model, data, tmp_path / "wide", *arguments)
    reset_precision()
    task = f.run(model, data, tmp_path / "half", *arguments, "train.mixed_precision=bf16")
    kinds = {(w.dtype, w.requires_grad) for w in task.pipeline.generator.unet.parameters()}
    assert kinds == {(torch.bfloat16, False), (torch.float32, True)}
    frozen = (task.pipeline.autoencoder, task.pipeline.text_encoder)
    assert {w.dtype for network in frozen for w in network.parameters()} == {torch.bfloat16}
    files = [load_file(tmp_path / name / "pytorch_lora_weights.safetensors") for name in ("wide", "half")]
    assert all(w.dtype == torch.float32 for w in files[1].values())
    first, second = ((tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("wide", "half"))
    losses = [[row["loss"] for row in map(json.loads, rows) if "loss" in row] for rows in (first, second)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02) and losses[0] != losses[1]
    before, after = (run.validation_losses(run.networks)[0].mean().item() for run in (wide, task))
    assert before == pytest.approx(after, rel=0.02)


def test_lora_learns_and_says_so(model, data, tmp_path):
    arguments = ("train.steps=60", "train.warmup_steps=0", "held_out=3", "train.lr=0.02", "caption_dropout=0")
    f.run(model, data, tmp_path / "run", *arguments)
    loss = json.loads((tmp_path / "run" / "report.json").read_text())["loss"]
    assert loss["after"] < loss["before"]
    assert loss["difference"] == pytest.approx(loss["after"] - loss["before"])
    assert loss["interval"][0] < loss["difference"] < loss["interval"][1]


def test_lora_begins_without_effect_and_holds_only_itself(model, data, lora, tmp_path):
    out, task = lora
    before = load_file(out / "before" / "losses.safetensors")["losses"]
    fresh = f.prepare(model, data, tmp_path / "fresh", "lora.rank=2")
    from t2i.nn.lora import remove_lora

    remove_lora(fresh.generator.unet)
    fresh.trainable.eval()
    torch.testing.assert_close(fresh.validation_losses({NAME: fresh.trainable})[0], before)
    newest = sorted(out.glob("checkpoints/step_*"))[-1]
    saved = load_file(newest / f"{NAME}.safetensors")
    assert saved
    assert all("lora_" in name for name in saved)
    assert {p.numel() for p in saved.values()} == {p.numel() for p in task.trainable.parameters()}
    assert json.loads((out / "report.json").read_text())["trained_parameters"] == sum(p.numel() for p in saved.values())


def test_interrupted_is_straight(model, data, lora, tmp_path):
    out, _ = lora
    arguments = ("sample.old_prompts=[a red circle]", "lora.rank=2")
    task = f.prepare(model, data, tmp_path / "run", *arguments)
    f.measure_before(task)
    recipe = task.recipe
    original = task.export
    seen = []

    def export(networks, folder):
        original(networks, folder)
        seen.append(folder)
        if len(seen) == 2:
            raise KeyboardInterrupt

    task.export = export
    with pytest.raises(KeyboardInterrupt):
        f.train(task, recipe)
    f.run(model, data, tmp_path / "run", *arguments)
    name = "pytorch_lora_weights.safetensors"
    a, b = load_file(out / name), load_file(tmp_path / "run" / name)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)
    reports = [json.loads((place / "report.json").read_text()) for place in (out, tmp_path / "run")]
    assert reports[0]["loss"] == reports[1]["loss"]


def test_report_is_one_file_with_all_its_parts(lora):
    out, task = lora
    page = (out / "report.html").read_text()
    assert "http" not in page.replace("http-equiv", "")
    found = json.loads((out / "report.json").read_text())
    assert page.count("data:image/png;base64,") == 2 + 4 * len(task.prompts) + 2  # curves in two themes
    assert len(found["nearest"]["samples"]) == len(task.prompts)
    assert found["old_change"][0] > 0
    assert found["seconds"] > 0
    for name in ("ab_new.png", "ab_old.png", "after/new_00.png", "before/old_00.png"):
        assert (out / name).is_file()


def test_prior_pictures_are_drawn_once_and_weighed(model, data, tmp_path):
    arguments = ("method=dreambooth", "prior.prompt=a circle", "prior.count=3", "prior.weight=0.5")
    task = f.prepare(model, data, tmp_path / "run", *arguments)
    drawn = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "run" / "class").glob("*.png")}
    assert len(drawn) == 3
    f.prepare(model, data, tmp_path / "run", *arguments)
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "run" / "class").glob("*.png")} == drawn
    batch = task.batch(torch.tensor([0, 1]), 0)
    assert batch["weight"].tolist() == [0.5, 0.5, 0.25, 0.25]
    loss, terms = task.loss(NAME, {NAME: task.trainable}, batch)
    each = task.generator.loss(task.generator.unet, batch["latents"], batch["cond"], batch)
    torch.testing.assert_close(loss, each[:2].mean() + 0.5 * each[2:].mean())
    torch.testing.assert_close(terms["prior"], 0.5 * each[2:].mean())


def test_flip_mirrors_pictures_not_latents(model, data, tmp_path):
    task = f.prepare(model, data, tmp_path / "run", "flip=true")
    mirrored = task.data.mirrored
    assert mirrored is not None
    pictures = task.data.train.batch(task.data.train.usable[:2])
    with torch.no_grad():
        mean, _ = task.pipeline.autoencoder.encode(pictures.flip(-1))
    torch.testing.assert_close(mirrored.moments([0, 1])[0], mean, atol=1e-5, rtol=1e-4)


def test_word_is_learnt_alone(model, data, tmp_path):
    words = METHODS["textual-inversion"]
    task = f.prepare(model, data, tmp_path / "run", "method=textual-inversion", *words)
    text = task.pipeline.text_encoder
    [vectors] = task.trainable.parameters()
    known = text.tokenizer("red", add_special_tokens=False)["input_ids"]
    torch.testing.assert_close(vectors[0], text.embeddings()[known[0]])
    assert not torch.equal(vectors[0], vectors[1])
    loss, _ = task.loss(NAME, {NAME: task.trainable}, task.batch(torch.tensor([0, 1]), 0))
    loss.backward()
    assert vectors.grad is not None
    assert (vectors.grad.abs().sum(1) > 0).all()  # both are read where the word stands once


def test_too_few_pictures_are_judged_by_themselves(model, tmp_path, capsys):
    data = f.make_pictures(tmp_path / "data", 3)
    task = f.prepare(model, data, tmp_path / "run")
    assert task.data.same
    assert len(task) == 3
    assert task.recipe.train.global_batch == 4  # as asked; by default 3
    assert fill({"method": "lora"}, 3, 8, 1.0)["train"]["global_batch"] == 3


def test_held_out_pictures_are_not_trained_on(model, data, tmp_path):
    task = f.prepare(model, data, tmp_path / "run", "held_out=3")
    keys = [{s[i].key for i in range(len(s))} for s in (task.data.train.source, task.data.held_out.source)]
    assert (len(keys[0]), len(keys[1])) == (5, 3)
    assert not keys[0] & keys[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lora.rank=4000"], "rank = 4000: the layer"),
        (["method=lore"], "choose one of full, lora"),
        (["method=full", "lora.rank=2"], "`lora` does not apply to method=full"),
        (["lora.rnak=2"], "did you mean `lora.rank`"),
        (["method=textual-inversion", "inversion.token=red"], "token = 'red': already in the vocabulary"),
        (["method=textual-inversion", "inversion.templates=[a photo]"], "has no {token}"),
        (["method=textual-inversion", "inversion.initializer=purple unicorn riding"], "give a shorter word"),
        (["data.instance_prompt=" + "circle square " * 12], "longer than the text encoder's 12 tokens"),
        (["method=dreambooth", "prior.prompt=" + "circle square " * 12], "longer than the text encoder's 12 tokens"),
        (["held_out=8"], "held_out = 8: must be less"),
        (["size=17"], "size = 17: must be a multiple of 4"),
        (["train.steps=0"], "`train.steps`"),
        (["train.epochs=3"], "give either train.epochs or train.steps"),
    ],
)
def test_bad_input_is_named(arguments, message, model, data, tmp_path):
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace("{", r"\{").replace("[", r"\[")):
        f.prepare(model, data, tmp_path / "run", *arguments)


def test_paired_interval_is_that_of_students_test():
    torch.manual_seed(0)
    before = torch.rand(12, 5, dtype=torch.float64)
    after = before - 0.1 + 0.05 * torch.randn(12, 5, dtype=torch.float64)
    found = paired(before, after)
    d = (after - before).mean(1).numpy()
    expected = stats.ttest_1samp(d, 0).confidence_interval(0.95)
    assert found["interval"] == pytest.approx([expected.low, expected.high])
    assert paired(before[:1], after[:1])["interval"] is None
    kept = torch.zeros(12, 5, dtype=torch.bool)
    kept[:7, 2] = True
    some = paired(before, after, kept)
    assert some["pictures"] == 7
    assert some["before"] == pytest.approx(before[:7, 2].mean().item())


def test_validation_draws_fill_the_timesteps(lora):
    _, task = lora
    rows, draw = torch.cartesian_prod(torch.arange(40), torch.arange(20)).T
    g, places = torch.Generator(), validation_places(rows, draw, 20).tolist()
    t = torch.cat([task.generator.draw(torch.zeros(1, 1, 1), g, at)["t"] for at in places])
    assert (t.min() >= 1) and (t.max() <= 1000)
    counts = torch.bincount((t - 1) * BINS // 1000, minlength=BINS)
    assert (counts == 80).all()
    assert t.double().mean().item() == pytest.approx(500.5, abs=2)


def test_distance_to_the_nearest():
    known = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.5, 0.5]])
    distance, row = distances(torch.tensor([[0.6, 0.5]]), known)
    assert row == 2
    assert distance == pytest.approx(math.sqrt(0.01 / 2))


def test_defaults_follow_the_number_of_pictures():
    few, many = (fill({}, n, 64, 1.0)["train"] for n in (20, 2000))
    assert (few["global_batch"], many["global_batch"]) == (4, 4)
    assert few["steps"] == 500
    assert many["steps"] == 10_000
    assert fill({"method": "textual-inversion"}, 20, 64, 0.02)["train"]["lr"] == pytest.approx(0.001)
    assert fill({"train": {"epochs": 7}}, 20, 64, 1.0)["train"]["steps"] == 35
    recipe = FinetuneRecipe.model_validate(
        fill({"model": "x", "out": "y", "data": DataConfig.model_validate({})}, 2, 8, 1.0)
    )
    assert recipe.train.global_batch == 2


def test_only_the_listed_captions(data, tmp_path):
    listed = tmp_path / "only.txt"
    listed.write_text("# a note\na red square\na blue square\n")
    keys = {"source": "folder", "path": str(data)}
    source = open_source(DataConfig.model_validate(keys | {"only": str(listed)}))
    assert source.texts() == ["a red square", "a blue square"]
    rest = open_source(DataConfig.model_validate(keys | {"exclude": str(listed)}))
    assert len(rest) == 6
    listed.write_text("a plaid square\n")
    with pytest.raises(ValueError, match=r"data.only = .*1 lines match no caption"):
        open_source(DataConfig.model_validate(keys | {"only": str(listed)}))
