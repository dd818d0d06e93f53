"""The reference's images, the baselines derived from them, and the CLIP score."""

import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from pipeline.tiny import CAPTIONS, make_text, make_vae

from t2i.data.transforms import crop, to_float
from t2i.errors import RunFailed
from t2i.evaluation.baselines import coupled, noisy, reconstructed, shuffled
from t2i.evaluation.clip_score import open_judge, own_family
from t2i.evaluation.features import open_features
from t2i.evaluation.frechet import Moments, Reference, frechet
from t2i.evaluation.generated import native_sizes
from t2i.evaluation.image_sets import to_uint8
from t2i.evaluation.jackknife import distances, group_by, mean_of, moments_by_group
from t2i.evaluation.protocol import Protocol
from t2i.evaluation.reference import check_reference, open_reference
from t2i.evaluation.stats import save_reference
from t2i.text.clip import CLIPTextEncoder
from t2i.text.controls import bag_of_words, null_encoder
from t2i.text.tokenizer import SMALLEST, learn_tokenizer
from t2i.text.towers import ImageTower, ImageTowerConfig, TextTowerConfig, text_tower


def picture(i):
    noise = torch.randint(0, 256, (20, 24, 3), generator=torch.Generator().manual_seed(i))
    return Image.fromarray(noise.to(torch.uint8).numpy())


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "pictures"
    place.mkdir()
    for i in range(6):
        picture(i).save(place / f"{i}.png")
        (place / f"{i}.txt").write_text(CAPTIONS[i % 4])
    return place


def test_pictures_pass_through_the_models_preparation(folder, tmp_path):
    found = open_reference(folder, (16, 16))
    assert len(found) == 6 and found.captions == [CAPTIONS[i % 4] for i in range(6)]
    assert torch.equal(found.read([4, 1]), torch.stack([crop(picture(i), (16, 16)) for i in (4, 1)]))
    again = tmp_path / "again"
    again.mkdir()
    for i in range(6):
        picture(i).save(again / f"{i}.bmp")
    same = open_reference(again, (16, 16))
    assert same.hash == found.hash and same.captions == [""] * 6
    assert open_reference(folder, (8, 8)).hash != found.hash
    picture(9).save(again / "3.bmp")
    assert open_reference(again, (16, 16)).hash != found.hash


def test_parquet_is_the_same(folder, tmp_path):
    rows = [(folder / f"{i}.png").read_bytes() for i in range(6)]
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": rows, "text": ["a"] * 6}), path)
    assert open_reference(path, (16, 16)).hash == open_reference(folder, (16, 16)).hash
    with pytest.raises(ValueError, match=r"^caption_column = 'what': is no column"):
        open_reference(path, (16, 16), caption_column="what")


def test_bad_references_are_refused(tmp_path, folder):
    for path, message in ((tmp_path / "none", "no such file"), (folder / "0.txt", "file of statistics")):
        with pytest.raises(ValueError, match=message):
            open_reference(path, (16, 16))
    one = tmp_path / "one"
    one.mkdir()
    picture(0).save(one / "0.png")
    with pytest.raises(ValueError, match="holds 1 image; give at least 2"):
        open_reference(one, (16, 16))
    Image.fromarray(np.full((8, 8), np.nan, dtype=np.float32)).save(one / "1.tiff")
    with pytest.raises(ValueError, match=r"1 of 2 images are unreadable or hold NaN \(first: 1.tiff: .*finite"):
        open_reference(one, (16, 16))


@pytest.mark.parametrize("name", ["pipe", "pipe.npz", "pipe.parquet"])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match=f"{name}': a pipe or a device"):
        open_reference(tmp_path / name, (16, 16))
    with pytest.raises(ValueError, match="a pipe or a device"):
        open_reference("/dev/null", (16, 16))
    os.mkfifo(tmp_path / "1.png")
    with pytest.raises(ValueError, match=r"1\.png: .*not a regular file"):
        native_sizes(tmp_path)


def test_statistics_of_others_are_refused(tmp_path):
    protocol = Protocol(
        n=9, features="f", fingerprint="aa", resize="none", size=(16, 16), preparation="p", reference="r"
    )
    reference = Reference.of(Moments.of(torch.randn(30, 4)), protocol.identity())
    save_reference(reference, tmp_path / "r.npz")
    found = open_reference(tmp_path / "r.npz", (16, 16))
    assert isinstance(found, Reference) and check_reference(found, protocol) == []
    for key, value in (("fingerprint", "bb"), ("size", (8, 8)), ("resize", "bicubic"), ("preparation", "q")):
        with pytest.raises(ValueError, match=f"have {key} = "):
            check_reference(found, protocol.model_copy(update={key: value}))
    np.savez(tmp_path / "theirs.npz", mu=np.zeros(4), sigma=np.eye(4))
    [said] = check_reference(open_reference(tmp_path / "theirs.npz", (16, 16)), protocol)
    assert "do not record their fingerprint" in said


def test_pixels_that_are_not_finite_end_the_run():
    with pytest.raises(RunFailed, match="non-finite"):
        to_uint8(torch.full((1, 3, 2, 2), torch.nan))
    pixels = torch.arange(256).view(1, 1, 16, 16).expand(1, 3, 16, 16).to(torch.uint8)
    assert torch.equal(to_uint8(to_float(pixels)), pixels)


def gradients(rows):
    draws = [torch.rand(3, 1, 1, generator=torch.Generator().manual_seed(i)) for i in rows]
    return (torch.stack(draws) * torch.linspace(0, 255, 256).view(1, 1, 16, 16)).to(torch.uint8)


def test_anchors_are_in_their_order():
    """Halves of one kind are nearer than any noise, and more noise is further."""
    torch.manual_seed(0)
    vae = make_vae()
    features = open_features("vae-latent", vae, (16, 16))
    n = 200

    def vectors(read):
        return torch.cat([features(read(range(a, a + 50))) for a in range(0, n, 50)])[:, :40]

    real = vectors(gradients)
    reference = Reference.of(Moments.of(real))
    ladder = [frechet(Moments.of(vectors(noisy(gradients, std))), reference).value for std in (4.0, 16.0, 64.0)]
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))

    def halves(sample):
        ours, theirs = order[: n // 2], order[n // 2 :]
        groups = group_by([str(i) for i in ours.tolist()])
        return distances(moments_by_group(sample[ours], groups), Reference.of(Moments.of(real[theirs])))

    floor = halves(real).estimate()
    assert 0 < floor.value < ladder[1] < ladder[2]
    assert ladder[0] < ladder[1]
    assert floor.debiased == pytest.approx(0, abs=3 * floor.se)
    noise = vectors(noisy(gradients, 64.0))
    cost = halves(noise).minus(halves(real)).estimate()
    assert cost.ci95[0] > 0
    pairs = coupled(noise, real, group_by([str(i) for i in range(n)])).estimate()
    assert pairs.value == pytest.approx(ladder[2], rel=1e-6)
    same = coupled(real, real, group_by([str(i) for i in range(n)])).estimate()
    assert same.value == pytest.approx(0, abs=1e-8) and same.bias == pytest.approx(0, abs=1e-6)
    back = reconstructed(gradients, vae)([3, 5])
    assert back.shape == (2, 3, 16, 16) and back.dtype == torch.uint8
    assert (
        torch.equal(back[1:], reconstructed(gradients, vae)([5])) or (back[1:].int() - back[1].int()).abs().max() <= 1
    )
    assert torch.equal(noisy(gradients, 8.0)([3, 5])[1:], noisy(gradients, 8.0)([5]))


def test_shuffled_captions_are_no_ones_own():
    captions = ["a"] * 10 + ["b"] * 6 + ["c", "d", "e", "f"]
    found = shuffled(captions)
    assert sorted(found) == sorted(captions)
    assert all(new != old for new, old in zip(found, captions, strict=True))
    assert shuffled(captions) == found != shuffled(captions, seed=1)
    with pytest.raises(ValueError, match="all captions are equal"):
        shuffled(["a", "a"])


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    place = tmp_path_factory.mktemp("pair")
    torch.manual_seed(0)
    ImageTower(ImageTowerConfig(channels=(8, 16, 24), groups=4, projection_dim=16)).save(place / "image")
    tokenizer = learn_tokenizer(CAPTIONS, SMALLEST + 40, model_max_length=12)
    tower = text_tower(TextTowerConfig(width=32, layers=2, heads=2), tokenizer, 16)
    CLIPTextEncoder(tower.text_model, tower.text_projection, tokenizer).save(place / "text")
    return place


def test_the_score_is_a_cosine_of_the_pair(pair):
    judge = open_judge(f"local:{pair / 'image'}+{pair / 'text'}")
    prompts = [CAPTIONS[i % 4] for i in range(12)]
    cosines, cut = judge.cosines(gradients(range(12)), prompts)
    found = mean_of(cosines, group_by(prompts))
    images = ImageTower.load(pair / "image")(to_float(gradients(range(12)))).detach()
    texts = CLIPTextEncoder.load(pair / "text")(prompts).conditioning.pooled
    assert found.full == pytest.approx(torch.cosine_similarity(images, texts).mean().item(), abs=1e-6)
    assert len(found.without) == 4 and cut == 0
    assert judge.cosines(gradients(range(3)), ["a red " * 30] * 2 + ["b"])[1] == 2


def test_a_judge_of_the_own_family_is_flagged(pair):
    judge = open_judge(f"local:{pair / 'image'}+{pair / 'text'}")
    own = CLIPTextEncoder.load(pair / "text")
    assert "own text encoder" in (own_family(judge, own) or "")
    assert "both CLIPs" in (own_family(judge, make_text()) or "")
    assert own_family(judge, null_encoder()) is None and own_family(judge, bag_of_words(own)) is None


@pytest.mark.parametrize("name", ["local:x", "inception:x", "clip:", "local:x+"])
def test_unknown_judges_are_told_the_known(name):
    with pytest.raises(ValueError, match="openclip:ARCH/PRETRAINED"):
        open_judge(name)


def test_towers_of_two_pairs_are_refused(pair, tmp_path):
    ImageTower(ImageTowerConfig(channels=(8,), blocks=(1,), groups=4, projection_dim=8)).save(tmp_path)
    with pytest.raises(ValueError, match="8 dimensions, texts to 16"):
        open_judge(f"local:{tmp_path}+{pair / 'text'}")


def test_a_message_names_the_reference_and_its_path_as_they_are(tmp_path):
    (tmp_path / "data.v2").mkdir()
    with pytest.raises(ValueError, match=r"^reference = '\S*/data\.v2': holds no images"):
        open_reference(tmp_path / "data.v2", (8, 8))
