"""Feature networks: what they are called, what they are fed, and that a batch's company changes nothing."""

import sys
import urllib.error
from pathlib import Path

import pytest
import torch
from pipeline.tiny import make_vae
from torch import distributed as dist
from training.processes import server
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, Dinov2Config, Dinov2Model

from t2i.data.transforms import to_float
from t2i.evaluation import features as room
from t2i.evaluation.features import INCEPTION_FILE, open_features
from t2i.evaluation.image_sets import ImageSet, gathered
from t2i.evaluation.store import Store, fill
from t2i.text.towers import ImageTower, ImageTowerConfig

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "checkpoints" / "features"


def pictures(n, side=16):
    return torch.randint(0, 256, (n, 3, side, side), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tower")
    ImageTower(ImageTowerConfig(channels=(8, 16, 24), groups=4, projection_dim=8)).save(folder)
    return folder


def test_the_shipped_tower():
    found = open_features(f"local:{SHIPPED}")
    x = pictures(2, 64)
    assert found.dim == 160
    assert torch.equal(found(x), found.tower.features(to_float(x)).detach())
    assert found.label.startswith("FD[local:") and found.fingerprint[:8] in found.label


def test_a_fingerprint_is_of_the_weights(tower, tmp_path):
    one = open_features(f"local:{tower}")
    network = ImageTower.load(tower)
    network.save(tmp_path / "copy")
    assert open_features(f"local:{tmp_path / 'copy'}").fingerprint == one.fingerprint
    with torch.no_grad():
        network.norm.bias[0] += 1
    network.save(tmp_path / "other")
    assert open_features(f"local:{tmp_path / 'other'}").fingerprint != one.fingerprint


def test_latents_are_posterior_means():
    vae = make_vae()
    found = open_features("vae-latent", vae, (16, 16))
    x = pictures(3)
    with torch.no_grad():
        wanted = 0.7 * vae.encode(to_float(x))[0].flatten(1)
    assert torch.equal(found(x), wanted)
    assert found.dim == wanted.shape[1]
    with pytest.raises(ValueError, match="needs a model"):
        open_features("vae-latent")


def test_dinov2_and_clip_read_pictures_at_their_own_size(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 14}
    Dinov2Model(Dinov2Config(**sizes, image_size=224)).save_pretrained(tmp_path / "dino")
    clip = CLIPVisionConfig(**sizes, intermediate_size=32, image_size=28, projection_dim=6)
    CLIPVisionModelWithProjection(clip).save_pretrained(tmp_path / "clip")
    x = pictures(2)
    flat = torch.full((1, 3, 16, 16), 255, dtype=torch.uint8)
    for name, dim, side, mean, std in (("dinov2:dino", 16, 224, 0.485, 0.229), ("clip:clip", 6, 28, 0.4815, 0.2686)):
        kind, _, folder = name.partition(":")
        found = open_features(f"{kind}:{tmp_path / folder}")
        assert found(x).shape == (2, dim) and found.dim == dim
        assert f"{side}x{side}" in found.resize
        assert found.prepared(flat)[0, 0, 0, 0].item() == pytest.approx((1 - mean) / std, abs=1e-3)
        assert found.prepared(x).shape[-1] == side
    with pytest.raises(ValueError, match="is not a CLIPVisionModelWithProjection"):
        open_features(f"clip:{tmp_path / 'dino'}")


@pytest.fixture
def inception(tmp_path):
    """A file of Inception's shape, random."""
    torch_fidelity = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    with torch.device("meta"):
        names = {k: (v.shape, v.dtype) for k, v in _state(torch_fidelity).items()}
    torch.manual_seed(0)
    state = {k: _filled(k, *v) for k, v in names.items()}
    path = tmp_path / INCEPTION_FILE
    torch.save(state, path)
    return path


def _state(module):
    class Skeleton(module.FeatureExtractorInceptionV3):
        def load_state_dict(self, *_, **__):
            return None

    module.torch.load, load = (lambda *_, **__: {}), module.torch.load
    try:
        return Skeleton("x", ["2048"], feature_extractor_weights_path="none").state_dict()
    finally:
        module.torch.load = load


def _filled(key, shape, dtype):
    if "running_var" in key:
        return torch.ones(shape)
    return 0.05 * torch.randn(shape) if dtype.is_floating_point else torch.zeros(shape, dtype=dtype)


@pytest.mark.slow
def test_only_the_verified_inception_is_called_fid(inception, monkeypatch):
    with pytest.warns(UserWarning, match="not the weights of published FIDs"):
        found = open_features(f"inception:{inception}")
    assert found.label.startswith("FD[inception:")
    assert found(pictures(2)).shape == (2, 2048)
    monkeypatch.setattr(room, "INCEPTION_SHA256", found.fingerprint)
    assert open_features(f"inception:{inception}").label == "FID"


def test_without_inception_or_network_there_is_a_way_out(tmp_path, monkeypatch):
    pytest.importorskip("torch_fidelity")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def offline(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(ValueError, match=INCEPTION_FILE) as found:
        open_features("inception:")
    assert str(tmp_path / "hub" / "checkpoints") in str(found.value)
    assert "local:checkpoints/features" in str(found.value)
    with pytest.raises(ValueError, match="no such file"):
        open_features(f"inception:{tmp_path / 'nothing.pth'}")
    (tmp_path / "bad.pth").write_bytes(b"no pickle")
    with pytest.raises(ValueError, match="not the weights of Inception"):
        open_features(f"inception:{tmp_path / 'bad.pth'}")


def test_without_torch_fidelity_the_way_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ValueError, match=r"pip install \"t2i\[evaluation\]\""):
        open_features("inception:x.pth")


@pytest.mark.parametrize("name", ["", "local", "local:", "resnet:x", "pixels"])
def test_unknown_names_are_told_the_known(name):
    with pytest.raises(ValueError, match="dinov2:ID"):
        open_features(name)


def test_features_that_are_not_finite_are_refused(tower, tmp_path):
    network = ImageTower.load(tower)
    with torch.no_grad():
        network.norm.weight[0] = torch.nan
    network.save(tmp_path)
    with pytest.raises(ValueError, match="not finite"):
        open_features(f"local:{tmp_path}")(pictures(2))


def drawn(rows):
    draws = [torch.Generator().manual_seed(i) for i in rows]
    return torch.stack([torch.randint(0, 256, (3, 16, 16), generator=draw) for draw in draws]).to(torch.uint8)


def extract(features, read, n, folder):
    tasks, store = ImageSet.of(n, 8, read, "images").feature_tasks(features), Store(folder)
    fill(store, "features", tasks, quiet=True)
    return gathered(store, "features", tasks)


def rank(number, count, rendezvous, tower, folder, threads):
    torch.set_num_threads(threads)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=number, world_size=count)
    torch.save(extract(open_features(f"local:{tower}"), drawn, 37, folder), folder / f"rank{number}.pt")
    dist.destroy_process_group()


def test_two_processes_and_one_agree_to_the_last_bit(tower, tmp_path):
    alone = extract(open_features(f"local:{tower}"), drawn, 37, tmp_path / "alone")
    common = (2, tmp_path / "rendezvous", tower, tmp_path, torch.get_num_threads())
    started = [server.Process(target=rank, args=(number, *common)) for number in range(2)]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
        assert process.exitcode == 0
    assert alone.shape == (37, 24)
    assert all(torch.equal(alone, torch.load(tmp_path / f"rank{number}.pt")) for number in range(2))


def test_batches_are_cut_by_index(tower, tmp_path):
    x, seen = pictures(20), []

    def read(rows):
        seen.append(list(rows))
        return x[list(rows)]

    extract(open_features(f"local:{tower}"), read, 20, tmp_path)
    assert [rows[0] for rows in seen] == [0, 8, 16]
    assert seen[2] == [16, 17, 18, 19]
