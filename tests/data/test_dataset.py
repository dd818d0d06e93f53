import numpy as np
import pytest
import torch

from t2i.data.data_config import DataConfig
from t2i.data.dataset import ImageDataset, batch_indices
from t2i.data.open import open_source

SHADES = list(range(0, 240, 20))


@pytest.fixture
def pictures(write_parquet, png):
    """pictures(broken, **options): twelve gray squares, some of them unreadable."""

    def make(broken=(), **options):
        images = [png((s, s, s)) for s in SHADES]
        for k, i in enumerate(broken):
            images[i] = [b"junk", images[i][:40], None][k % 3]
        source = open_source(DataConfig(source="parquet", path=str(write_parquet(images, list("abcdefghijkl")))))
        return ImageDataset(source, 4, **options)

    return make


@pytest.mark.parametrize("held_bytes", [0, 1 << 20])
def test_load_and_batch_agree_with_the_files(pictures, held_bytes):
    p = pictures(held_bytes=held_bytes)
    before = [p.load(i) for i in range(12)]
    assert p.scan() == "12 images, all readable"
    wanted = torch.tensor([7, 0, 7, 11])
    batch = p.batch(wanted)
    assert batch.shape == (4, 3, 4, 4)
    for x, i in zip(batch, wanted.tolist(), strict=True):
        assert torch.equal(x, torch.full((3, 4, 4), float(SHADES[i])) / 127.5 - 1)
        assert torch.equal(x, before[i]) and torch.equal(x, p.load(i))
    assert p.texts()[7] == "h"


def test_small_sets_are_decoded_once(pictures, tmp_path):
    p = pictures()
    p.scan()
    (tmp_path / "data.parquet").unlink()
    p.source._held.clear()
    assert p.batch(p.usable).shape == (12, 3, 4, 4)


@pytest.mark.parametrize("held_bytes", [0, 1 << 20])
def test_unreadable_pictures_are_counted_named_and_left_out(pictures, held_bytes):
    p = pictures(broken=[2, 5, 8], max_bad_share=0.25, held_bytes=held_bytes)
    seen = []
    said = p.scan(seen.append)
    assert said.startswith("12 images, 3 unreadable and left out (first: row 2: not a JPEG") and "row 5: " in said
    assert "row 8: no image bytes" in said and seen == [12]
    assert p.usable.tolist() == [0, 1, 3, 4, 6, 7, 9, 10, 11]
    assert p.batch(p.usable)[:, 0, 0, 0].tolist() == pytest.approx([SHADES[i] / 127.5 - 1 for i in p.usable.tolist()])
    with pytest.raises(ValueError, match="row 2: not a JPEG"):
        p.load(2)
    with pytest.raises(ValueError, match="row 5: "):
        p.batch([0, 5])


def test_too_many_unreadable_pictures_stop(pictures):
    p = pictures(broken=[2, 5, 8], max_bad_share=0.24)
    with pytest.raises(ValueError, match=r"data.max_bad_share = 0.24: 3 of 12 images.* \(first: row 2: not a"):
        _ = p.usable
    with pytest.raises(ValueError, match="1 of 12"):
        pictures(broken=[0], max_bad_share=0.0).scan()
    with pytest.raises(ValueError, match="12 of 12"):
        pictures(broken=range(12), max_bad_share=1.0).scan()


def test_rectangles(pictures):
    p = ImageDataset(pictures().source, (6, 2))
    p.scan()
    assert p.batch([0]).shape == (1, 3, 2, 6) == (1, *p.load(0).shape)


# --- the order


def test_every_epoch_is_a_permutation_and_no_two_are_alike():
    stream = torch.cat([batch_indices(10, 4, step, seed=3) for step in range(10)])
    epochs = stream.view(4, 10)
    assert (epochs.sort(1).values == torch.arange(10)).all()
    assert len({tuple(e.tolist()) for e in epochs}) == 4
    assert not torch.equal(epochs[0], torch.arange(10))


def test_order_is_a_function_of_seed_and_step():
    straight = [batch_indices(10, 4, step, 3) for step in range(12)]
    resumed = [batch_indices(10, 4, step, 3) for step in (11, 5, 7)]
    assert all(torch.equal(straight[s], r) for s, r in zip((11, 5, 7), resumed, strict=True))
    assert not torch.equal(torch.cat(straight), torch.cat([batch_indices(10, 4, s, 4) for s in range(12)]))


@pytest.mark.parametrize("global_batch", [1, 3, 8, 16, 48])
def test_the_stream_does_not_depend_on_how_it_is_cut(global_batch):
    """Neither ranks nor the batch size change which sample comes when: only (seed, place in the stream) does."""
    stream = torch.cat([batch_indices(7, 1, step, 0) for step in range(48)])
    cut = [batch_indices(7, global_batch, step, 0) for step in range(48 // global_batch)]
    assert all(len(b) == global_batch for b in cut) and torch.equal(torch.cat(cut), stream)
    for ranks in (1, 2, 4):
        dealt = [torch.cat(list(b.tensor_split(ranks))) for b in cut]
        assert torch.equal(torch.cat(dealt), stream)


def test_order_is_unbiased_over_seeds():
    counts = torch.stack([batch_indices(6, 6, 0, seed) for seed in range(3000)])
    table = np.array([[int((counts[:, place] == i).sum()) for i in range(6)] for place in range(6)])
    assert (abs(table - 500) < 5 * np.sqrt(500)).all()


def test_an_empty_set_has_no_order():
    with pytest.raises(ValueError, match="no usable images"):
        batch_indices(0, 4, 0, 0)
