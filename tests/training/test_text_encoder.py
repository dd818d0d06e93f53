"""Training of the contrastive pair: the loss in closed form and over two processes, the task, overfitting."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import distributed as dist
from torch import multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from t2i.text.encoder import load_text_encoder
from t2i.text.towers import ContrastivePair, ImageTower, ImageTowerConfig, TextTowerConfig, text_tower
from t2i.training.contrast import ContrastiveLoss, name, recall
from t2i.training.text_encoder import TextEncoderRecipe, TextEncoderTask, shifted
from tests.text.tiny import tokenizer

IMAGE = {"patch": 4, "channels": [16, 32], "blocks": [1, 1], "groups": 4, "projection_dim": 24}
TEXT = {"width": 32, "layers": 2, "heads": 2, "mlp_ratio": 2}


def recipe(out: Path, pairs: int = 8, **contrast) -> TextEncoderRecipe:
    scenes = {"source": "scenes", "count": pairs}
    return TextEncoderRecipe.model_validate(
        {
            "out": str(out),
            "size": 16,
            "data": scenes,
            "validation": scenes,
            "tokenizer": {"vocab_size": 560, "max_tokens": 32},
            "text": TEXT,
            "image": IMAGE,
            "contrast": {"shift": 0} | contrast,
            "train": {"steps": 1, "global_batch": pairs, "lr": 1e-3},
        }
    )


def pair(seed: int = 0) -> ContrastivePair:
    torch.manual_seed(seed)
    return ContrastivePair(ImageTower(ImageTowerConfig(**IMAGE)), text_tower(TextTowerConfig(**TEXT), tokenizer(), 24))


def batch(negatives: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Four pictures, their captions (the last two alike) and negatives (one is a caption of the batch)."""
    texts = ["red anvil", "blue anvil", "green frog", "green frog"]
    texts += ["blue anvil", "anvil blue", "frog green", "green dice"] * negatives
    pixels = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    ids = tokenizer()(texts, padding="max_length", max_length=8, return_tensors="pt").input_ids
    return pixels, ids, torch.tensor([name(t) for t in texts])


def test_loss_in_closed_form_with_negatives_and_twins():
    pixels, ids, names = batch()
    images, texts, scale = pair()(pixels, ids)
    logits = scale * images @ texts.T
    expected = 0.0
    for i in range(4):
        rivals = [j for j in range(8) if j == i or names[j] != names[i]]
        expected -= F.log_softmax(logits[i, rivals], 0)[rivals.index(i)]
        others = [j for j in range(4) if j == i or names[j] != names[i]]
        expected -= F.log_softmax(logits[others, i], 0)[others.index(i)]
    torch.testing.assert_close(ContrastiveLoss().loss(images, texts, scale, names), expected / 8)


def _loss(network: nn.Module, pixels: torch.Tensor, ids: torch.Tensor, names: torch.Tensor) -> torch.Tensor:
    images, texts, scale = network(pixels, ids)
    return ContrastiveLoss().loss(images, texts, scale, names)


def _rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.set_num_threads(1)
    pixels, ids, names = batch()
    mine = torch.tensor([2 * rank, 2 * rank + 1])
    texts = torch.cat([mine, mine + 4])
    network = DistributedDataParallel(pair())
    loss = _loss(network, pixels[mine], ids[texts], names[texts])
    loss.backward()
    torch.save([loss.detach()] + [p.grad for p in network.parameters()], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_give_the_loss_and_gradient_of_one(tmp_path):
    multiprocessing.start_processes(_rank, args=(str(tmp_path),), nprocs=2, start_method="spawn")
    alone = pair()
    pixels, ids, names = batch()
    loss = _loss(alone, pixels, ids, names)
    loss.backward()
    expected = [loss.detach()] + [p.grad for p in alone.parameters()]
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, atol=2e-6, rtol=1e-4)


def test_recall_counts_ties_as_lost_and_twins_as_no_rivals():
    s = torch.tensor([[0.9, 0.1, 0.9], [0.5, 0.4, 0.3], [0.0, 0.0, 1.0]])
    found = recall(s, ["a", "b", "c"], ks=(1, 2))
    assert found["image_to_text_R@1"] == pytest.approx(1 / 3) and found["image_to_text_R@2"] == 1.0
    assert found["text_to_image_R@1"] == 1.0
    assert recall(s, ["a", "b", "a"], ks=(1,))["image_to_text_R@1"] == pytest.approx(2 / 3)


def test_shift_moves_pictures_and_continues_their_edge():
    x = torch.arange(16.0).view(1, 1, 4, 4).expand(2, 3, 4, 4)
    out = shifted(x, torch.tensor([[0.5, 0.5], [0.99, 0.0]]), 1)
    assert out[0].equal(x[0])
    assert out[1, 0].tolist() == [[4, 4, 5, 6], [8, 8, 9, 10], [12, 12, 13, 14], [12, 12, 13, 14]]


def test_batches_are_functions_of_rows_and_step(tmp_path):
    task = TextEncoderTask(recipe(tmp_path, pairs=24, shift=2, negatives=2), quiet=True)
    rows = torch.cat([task.order(step, 10, seed=0) for step in range(12)])
    for epoch in rows.split(24):
        assert sorted(epoch.tolist()) == list(range(24))
    assert task.order(3, 10, 0).equal(rows[30:40]) and not task.order(3, 10, 1).equal(rows[30:40])
    whole = task.batch(rows[:10], 0)
    part = task.batch(rows[5:10], 0)
    assert whole["pixels"][5:].equal(part["pixels"])
    assert whole["names"].view(3, 10)[:, 5:].equal(part["names"].view(3, 5))
    assert not task.batch(rows[:10], 1)["pixels"].equal(whole["pixels"])
    assert whole["ids"].shape[0] == 30


def test_end_state_does_not_depend_on_the_padding_that_is_cut_off():
    network, words = pair().eval(), tokenizer()
    short = words(["red anvil", "blue"], padding=True, return_tensors="pt").input_ids
    full = words(["red anvil", "blue"], padding="max_length", max_length=16, return_tensors="pt").input_ids
    assert short.shape[1] < full.shape[1]
    torch.testing.assert_close(network.text(short).text_embeds, network.text(full).text_embeds)


def test_overfits_eight_pairs_and_exports_what_was_trained(tmp_path):
    task = TextEncoderTask(recipe(tmp_path, together=2), quiet=True)
    assert task.validate(task.networks)["image_to_text_R@1"] < 1
    optimizer = torch.optim.AdamW(task.pair.parameters(), lr=2e-3)
    for step in range(120):
        loss, _ = task.loss("pair", task.networks, task.batch(task.order(step, 8, 0), step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    task.pair.eval()
    with torch.no_grad():
        figures = task.validate(task.networks)
        assert figures["image_to_text_R@1"] == figures["text_to_image_R@1"] == 1.0
        assert figures == task.validate(task.networks)
        task.export(task.networks, tmp_path)
        assert all(p.requires_grad for p in task.pair.parameters())
        encoder = load_text_encoder(tmp_path)
        image = ImageTower.load(tmp_path / "image_encoder")
        pixels, captions = task.images.batch(list(range(8))), task.captions
        pooled = encoder(captions).conditioning.pooled
        assert pooled is not None
        similarity = F.normalize(image(pixels), dim=-1) @ F.normalize(pooled, dim=-1).T
    assert recall(similarity, captions, (1,)) == {"image_to_text_R@1": 1.0, "text_to_image_R@1": 1.0}


def test_training_goes_on_from_an_exported_pair(tmp_path):
    task = TextEncoderTask(recipe(tmp_path), quiet=True)
    task.export(task.networks, tmp_path / "first")
    options = recipe(tmp_path)
    train = options.train.model_copy(update={"init": str(tmp_path / "first")})
    again = TextEncoderTask(options.model_copy(update={"train": train}), quiet=True)
    assert again.tokenizer.get_vocab() == task.tokenizer.get_vocab()
    for a, b in zip(task.pair.parameters(), again.pair.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)  # the image tower went through fp16


def test_word_order_is_measured_on_exchanges_of_the_corpus(tmp_path):
    task = TextEncoderTask(recipe(tmp_path, pairs=64), quiet=True)
    figures = task.validate(task.networks)
    assert figures["swap_pairs"] == sum(len(task.hard_negatives.exchanged(c)) for c in task.captions) > 0
    assert 0 < figures["swap_accuracy"] < 1


@pytest.mark.parametrize(("key", "value", "message"), [("heads", 3, "heads = 3"), ("depth", 2, "depth")])
def test_bad_sizes_are_named(tmp_path, key, value, message):
    with pytest.raises(ValueError, match=message):
        TextTowerConfig.model_validate(TEXT | {key: value})
    with pytest.raises(ValueError, match="groups = 5"):
        ImageTowerConfig.model_validate(IMAGE | {"groups": 5})


def test_a_word_keeps_its_state_in_another_context_after_training():
    torch.manual_seed(0)
    model = ContrastivePair(ImageTower(ImageTowerConfig(**IMAGE)), text_tower(TextTowerConfig(**TEXT), tokenizer(), 24))
    pixels, ids, names = batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(60):
        optimizer.zero_grad()
        ContrastiveLoss().loss(*model(pixels, ids), names).backward()
        optimizer.step()
    texts = ["red anvil", "blue anvil", "red frog"]
    with torch.no_grad():
        states = model.text.text_model(tokenizer()(texts, return_tensors="pt", padding=True).input_ids)[0][:, 2]
    assert (states[0] - states[1]).norm() < 0.3 * (states[0] - states[2]).norm()
