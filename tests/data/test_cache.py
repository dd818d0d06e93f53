import json
import random

import pytest
import torch

from t2i.conditioning import Conditioning
from t2i.data import cache as module
from t2i.data.cache import build_cache, cache_parts, open_cache
from t2i.errors import RunFailed

N = 11
TEXTS = [f"caption {i % 4}" if i != 6 else "" for i in range(N)]


def parts(**other):
    keys = {"data": "d0", "size": (8, 8), "background": "white", "vae": "v0", "text_encoder": "t0", "layer": -1}
    return cache_parts(**(keys | {"dtype": "float32"} | other))


class Encoders:
    """Deterministic stand-ins for the towers, that can stop in the middle as a killed run does."""

    def __init__(self, stop_after=10**9, pooled=True):
        self.seen_pictures, self.seen_texts, self.stop_after, self.pooled = [], [], stop_after, pooled

    def pictures(self, indices):
        if len(self.seen_pictures) + len(self.seen_texts) >= self.stop_after:
            raise KeyboardInterrupt
        self.seen_pictures += indices
        x = torch.tensor(indices, dtype=torch.float32).view(-1, 1, 1, 1)
        return x.expand(-1, 4, 2, 3).sin(), -x.expand(-1, 4, 2, 3)

    def text(self, texts):
        if len(self.seen_pictures) + len(self.seen_texts) >= self.stop_after:
            raise KeyboardInterrupt
        self.seen_texts += texts
        tokens = torch.tensor([[hash_(t) * (k + 1) for k in range(5)] for t in texts])[..., None].expand(-1, -1, 6)
        mask = torch.arange(5)[None] < torch.tensor([[1 + len(t.split())] for t in texts])
        return Conditioning(tokens, mask, tokens[:, 0, :3] if self.pooled else None)


def hash_(text):
    return sum(map(ord, text)) / 1000


def build(folder, encoders, key=None, batch=2, texts=TEXTS, **more):
    return build_cache(folder, key or parts(), N, encoders.pictures, texts, encoders.text, batch, **more)


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(module, "SHARD_ROWS", 4)


@pytest.mark.parametrize("pooled", [True, False])
def test_what_comes_out_is_what_was_encoded(tmp_path, pooled):
    encoders = Encoders(pooled=pooled)
    build(tmp_path, encoders)
    cache = open_cache(tmp_path, parts())
    assert len(cache) == N and encoders.seen_pictures == list(range(N))
    wanted = torch.tensor([10, 0, 3, 3, 6])
    mean, logvar = cache.moments(wanted)
    straight = Encoders().pictures(wanted.tolist())
    assert torch.equal(mean, straight[0]) and torch.equal(logvar, straight[1])
    states = cache.conditioning(wanted)
    want = Encoders(pooled=pooled).text([TEXTS[i] for i in wanted.tolist()])
    assert torch.equal(states.tokens, want.tokens) and torch.equal(states.mask, want.mask)
    assert states.mask.dtype == torch.bool and states.mask.any() and not states.mask.all()
    if pooled:
        assert torch.equal(states.pooled, want.pooled)
    else:
        assert states.pooled is None
    null = Encoders().text([""])
    assert len(cache.uncond) == 1 and torch.equal(cache.uncond.tokens, null.tokens)
    assert torch.equal(cache.uncond.tokens, cache.conditioning([6]).tokens)


def test_duplicate_captions_are_encoded_once(tmp_path):
    encoders = Encoders()
    build(tmp_path, encoders)
    assert encoders.seen_texts == ["", "caption 0", "caption 1", "caption 2", "caption 3"]


def test_dtypes_survive(tmp_path):
    encoders = Encoders()

    def half(texts):
        return encoders.text(texts).to(dtype=torch.bfloat16)

    cache = build_cache(tmp_path, parts(), N, encoders.pictures, TEXTS, half, 3)
    assert cache.uncond.tokens.dtype == torch.bfloat16 and cache.moments([1])[0].dtype == torch.float32


def test_what_is_read_is_a_copy(tmp_path):
    cache = build(tmp_path, Encoders())
    cache.moments([1])[0].fill_(7)
    cache.uncond.tokens.fill_(7)
    assert cache.moments([1])[0].max() < 2 and cache.uncond.tokens.max() == 0


@pytest.mark.parametrize("stop_after", range(0, N + 5, 2))
def test_an_interrupted_build_continues_to_the_same_bytes(tmp_path, stop_after):
    build(tmp_path / "straight", Encoders())
    broken, again = Encoders(stop_after), Encoders()
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "broken", broken)
    with pytest.raises(ValueError, match=r"unfinished|holds no"):
        open_cache(tmp_path / "broken", parts())
    for place in (tmp_path / "broken").glob("*/*.partial"):
        (place / ".shard-00001.safetensors-0123abcd.partial").write_bytes(b"half a shard")
    build(tmp_path / "broken", again)
    assert files(tmp_path / "broken") == files(tmp_path / "straight")
    whole = len(broken.seen_pictures) // 4 * 4 if len(broken.seen_pictures) < N else N
    assert again.seen_pictures == list(range(whole, N))


def test_a_shard_that_did_not_reach_the_disk_is_not_taken_for_whole(tmp_path, monkeypatch):
    def full(paths):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("t2i.files.sync_files", full)
        with pytest.raises(RunFailed, match=r"not written \(No space left"):
            build(tmp_path, Encoders())
    assert not list(tmp_path.rglob("shard-*.safetensors"))
    again = Encoders()
    build(tmp_path, again)
    assert again.seen_pictures == list(range(N))


def test_a_finished_cache_is_not_built_again(tmp_path):
    build(tmp_path, Encoders())
    again = Encoders()
    said = []
    build(tmp_path, again, progress=lambda *a: said.append(a))
    assert not again.seen_pictures and not again.seen_texts
    assert said == [("latents", N, N), ("texts", 5, 5)]


def test_progress_is_told_in_rows(tmp_path):
    said = []
    build(tmp_path, Encoders(), progress=lambda *a: said.append(a))
    assert said[:3] == [("latents", 2, N), ("latents", 4, N), ("latents", 6, N)] and said[-1] == ("texts", 5, 5)
    assert ("latents", N, N) in said


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"data": "d1"}, "another data;"),
        ({"size": (8, 16)}, "another size;"),
        ({"background": "black"}, "another size;"),
        ({"vae": "v1"}, "another VAE;"),
        ({"text_encoder": "t1"}, "another text encoder;"),
        ({"layer": -2}, "another text encoder;"),
        ({"dtype": "bfloat16"}, "another text encoder;"),
        ({"vae": "v1", "layer": None}, "another VAE; it was built with another text encoder;"),
    ],
)
def test_a_cache_of_another_recipe_is_an_error_that_names_the_difference(tmp_path, other, said):
    build(tmp_path, Encoders())
    with pytest.raises(ValueError, match="no cache of this recipe") as info:
        open_cache(tmp_path, parts(**other))
    assert f"it was built with {said}" in str(info.value) and "`t2i precompute RECIPE.yaml`" in str(info.value)
    assert str(info.value).count("with another") == said.count("another")


def test_no_cache_at_all(tmp_path):
    with pytest.raises(ValueError, match=r"no cache of this recipe in .*holds no latents.*t2i precompute"):
        open_cache(tmp_path / "nowhere", parts())


def test_another_text_encoder_keeps_the_latents(tmp_path):
    build(tmp_path, Encoders())
    second = Encoders()
    build(tmp_path, second, parts(text_encoder="t1"))
    assert not second.seen_pictures and len(second.seen_texts) == 5
    open_cache(tmp_path, parts())
    open_cache(tmp_path, parts(text_encoder="t1"))


@pytest.mark.parametrize("name", ["shard-00001.safetensors", "manifest.json", "captions.safetensors"])
def test_a_damaged_file_is_named(tmp_path, name):
    build(tmp_path, Encoders())
    path = sorted(tmp_path.rglob(name))[-1]
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=rf"{name}: the cache is damaged .*: delete .*t2i precompute"):
        open_cache(tmp_path, parts())


def test_every_flipped_bit_is_noticed(tmp_path):
    """Whatever the file and the place: no damaged latent or caption is trained on."""
    build(tmp_path, Encoders())
    rng = random.Random(0)
    for path in sorted(tmp_path.rglob("*.safetensors")):
        whole = path.read_bytes()
        for _ in range(8):
            damaged = bytearray(whole)
            damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
            path.write_bytes(damaged)
            with pytest.raises(ValueError, match=f"{path.name}: the cache is damaged"):
                open_cache(tmp_path, parts())
        path.write_bytes(whole)
    open_cache(tmp_path, parts())


@pytest.mark.parametrize(
    "change",
    [{"sha25v": {}}, {"sha256": {}}, {"rows": "11"}, {"rows": 0}, {"rows": 12}, {"shard_rows": None}, {"sha256": []}],
)
def test_a_manifest_that_does_not_fit_is_named(tmp_path, change):
    build(tmp_path, Encoders())
    [manifest] = (tmp_path / "latents").glob("*/manifest.json")
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | change))
    with pytest.raises(ValueError, match=r"the cache is damaged"):
        open_cache(tmp_path, parts())


def test_a_cache_without_checksums_opens_with_a_line(tmp_path, capsys):
    """Caches of earlier versions."""
    build(tmp_path, Encoders())
    for manifest in tmp_path.rglob("manifest.json"):
        values = json.loads(manifest.read_text())
        del values["sha256"]
        manifest.write_text(json.dumps(values))
    cache = open_cache(tmp_path, parts())
    assert capsys.readouterr().err.count("built before caches had checksums") == 2
    assert len(cache) == N


def test_non_finite_latents_fail_the_run_and_are_never_kept(tmp_path):
    encoders = Encoders()

    def overflow(indices):
        mean, logvar = encoders.pictures(indices)
        return torch.where(torch.tensor(indices).view(-1, 1, 1, 1) == 7, torch.inf, mean), logvar

    with pytest.raises(RunFailed, match="latents: non-finite mean in row 7"):
        build_cache(tmp_path, parts(), N, overflow, TEXTS, encoders.text, 3)
    cache = build(tmp_path, Encoders(), batch=3)
    assert torch.isfinite(cache.moments(range(N))[0]).all()
