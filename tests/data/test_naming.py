"""Captions in names, repeated folders, tags in another order, and data by name."""

import itertools

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from t2i.data.captions import name_caption, repeated_folder, shuffle_tags
from t2i.data.data_config import DataConfig, config_for
from t2i.data.hub import training_files
from t2i.data.open import open_source
from t2i.data.source import split


def fill(folder, png, names, texts=()):
    for k, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png((k, 0, 0)))
    for name, text in dict(texts).items():
        (folder / name).write_text(text)
    return folder


def folder(path, **more):
    return open_source(DataConfig(source="folder", path=str(path), **more))


@pytest.mark.parametrize(
    ("stem", "caption"),
    [
        ("red_frog_001", "red frog"),
        ("red frog (2)", "red frog"),
        ("red frog-12", "red frog"),
        ("a  red__frog", "a red frog"),
        ("3 frogs", "3 frogs"),
        ("well-known frog", "well-known frog"),
        ("0001", ""),
        ("Größe_2", "Größe"),
    ],
)
def test_captions_in_names(stem, caption):
    assert name_caption(stem) == caption


def test_what_is_written_comes_before_what_is_named(tmp_path, png):
    names = ["red_frog_1.png", "blue_cat.png", "7.png", "8.png"]
    fill(tmp_path, png, names, {"blue_cat.txt": "a cat in blue", "8.txt": " \n"})
    source = folder(tmp_path, file_name_captions=True, instance_prompt="a photo of sks")
    texts = {source[i].key: source.texts()[i] for i in range(4)}
    assert texts == dict(zip(names, ["red frog", "a cat in blue", "a photo of sks", "a photo of sks"], strict=True))
    assert str(source.report) == (
        "4 of 4 rows used, 2 images with the instance prompt, 1 images captioned by their names"
    )
    with pytest.raises(ValueError, match="3 of 4 captions are missing"):
        folder(tmp_path)
    with pytest.raises(ValueError, match="instance_prompt"):
        DataConfig(source="folder", path="x", instance_prompt=" ")


def test_metadata_captions_that_are_empty_get_the_instance_prompt(tmp_path, png):
    fill(tmp_path, png, ["a.png", "b.png"])
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,a frog\nb.png,\n")
    assert folder(tmp_path, instance_prompt="sks").texts() == ["a frog", "sks"]


def test_a_column_of_another_name_is_pointed_at(tmp_path, png):
    fill(tmp_path, png, ["a.png"], {"metadata.csv": "file_name,caption\na.png,x\n"})
    with pytest.raises(
        ValueError, match=r"data.caption_column = 'text': .*its keys: file_name, caption; set 'caption'"
    ):
        folder(tmp_path)


# --- kohya's folders


def test_folder_names():
    assert repeated_folder("10_sks dog") == (10, "sks dog") and repeated_folder("1_a_b") == (1, "a_b")
    for name in ("2019_holiday", "0_dog", "dog", "10_", "_dog", "x10_dog", "9" * 5000 + "_dog", "10_ "):
        assert repeated_folder(name) is None


def kohya(tmp_path, png):
    names = ["10_sks dog/a.png", "10_sks dog/b.png", "4_dog/c.png", "4_dog/deep/d.png"]
    return fill(tmp_path, png, names, {"10_sks dog/b.txt": "sks dog, sitting"})


def test_pictures_are_repeated_in_the_ratio_of_the_numbers(tmp_path, png):
    source = folder(kohya(tmp_path, png))
    rows = [(source[i].key, source.texts()[i]) for i in range(len(source))]
    assert [(key, len(list(group))) for key, group in itertools.groupby(rows)] == [
        (("4_dog/c.png", "dog"), 2),
        (("4_dog/deep/d.png", "dog"), 2),
        (("10_sks dog/a.png", "sks dog"), 5),
        (("10_sks dog/b.png", "sks dog, sitting"), 5),
    ]
    assert source[4].read() == (tmp_path / "10_sks dog/a.png").read_bytes()
    assert "14 of 14 rows used, 10 repeat the image of another row" in str(source.report)
    assert "3 images captioned by their folders' names" in str(source.report)


def test_one_folder_alone_is_not_repeated(tmp_path, png):
    source = folder(fill(tmp_path, png, ["20_sks/a.png", "20_sks/b.png"]))
    assert source.texts() == ["sks", "sks"] and source.report.repeats == 0


def test_other_folders_are_no_kohya_folders_and_one_may_say_so(tmp_path, png):
    kohya(tmp_path, png)
    assert folder(tmp_path, kohya_folders=False, instance_prompt="x").texts().count("x") == 3
    fill(tmp_path, png, ["cover.png"])
    assert len(folder(tmp_path, instance_prompt="x")) == 5
    with pytest.raises(ValueError, match=r"kohya_folders = True: .*N_name.*: cover.png is in none"):
        folder(tmp_path, kohya_folders=True)
    (tmp_path / "metadata.csv").write_text("file_name,text\n4_dog/c.png,x\n")
    with pytest.raises(ValueError, match="it has a metadata file"):
        folder(tmp_path, kohya_folders=True)
    assert len(folder(tmp_path)) == 1


def test_no_picture_is_trained_on_and_validated_on(tmp_path, png):
    names = [f"{n}_x/{n}-{k}.png" for n in (1, 7) for k in range(20)]
    source = folder(fill(tmp_path, png, names))
    assert len(source) == 20 * 8
    train, held = split(source, 5)
    keys = [{part[i].key for i in range(len(part))} for part in (train, held)]
    assert len(keys[1]) == 2 and len(keys[0]) == 38 and not keys[0] & keys[1] and len(train) + len(held) == 160


# --- tags

TAGS = "sks, a dog ,sitting,, outdoors, high quality,blurry"


def test_tags_are_shuffled_and_the_first_stay():
    seen = [shuffle_tags(TAGS, 2, 0, epoch, 3).split(", ") for epoch in range(200)]
    assert all(tags[:2] == ["sks", "a dog"] for tags in seen)
    assert all(sorted(tags[2:]) == ["blurry", "high quality", "outdoors", "sitting"] for tags in seen)
    assert len({tuple(tags) for tags in seen}) == 24  # every order of four
    firsts = [sum(tags[2] == tag for tags in seen) for tag in ("blurry", "high quality", "outdoors", "sitting")]
    assert min(firsts) > 25


def test_the_order_is_a_function_of_seed_epoch_and_index():
    once = shuffle_tags(TAGS, 1, 3, 4, 5)
    assert once == shuffle_tags(TAGS, 1, 3, 4, 5)
    others = {shuffle_tags(TAGS, 1, *place) for place in [(9, 4, 5), (3, 9, 5), (3, 4, 9)]}
    assert once not in others and len(others) == 3


def test_nothing_to_shuffle():
    assert shuffle_tags("a red fox", 0, 0, 0, 0) == "a red fox" and shuffle_tags("", 1, 0, 0, 0) == ""
    assert shuffle_tags(TAGS, 99, 0, 0, 0) == "sks, a dog, sitting, outdoors, high quality, blurry"
    assert set(shuffle_tags("a;b", 0, 0, 0, 0, ";").split("; ")) == {"a", "b"}
    with pytest.raises(ValueError, match="keep_tokens = -1"):
        shuffle_tags(TAGS, -1, 0, 0, 0)
    with pytest.raises(ValueError, match="caption_separator"):
        shuffle_tags(TAGS, 0, 0, 0, 0, " ")


# --- by name


def test_data_by_name(tmp_path, png, write_parquet):
    fill(tmp_path / "pets", png, ["a.png"])
    path = write_parquet([png("red")], ["a"])
    assert config_for(tmp_path / "pets", instance_prompt="x").source == "folder"
    assert config_for(path).source == config_for(tmp_path).source == "parquet"
    assert config_for("someone/pets").source == "hub"
    for name in ("nowhere", "./no/where", "/no/where", "a/b/c", "../pets"):
        with pytest.raises(ValueError, match="no such folder or file"):
            config_for(name)
    with pytest.raises(ValueError, match="is no parquet file"):
        config_for(tmp_path / "pets" / "a.png")
    with pytest.raises(ValueError, match=r"pets: .*revision means nothing for source=folder"):
        config_for(tmp_path / "pets", revision="main")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The folder of a data set in the hub's cache, which is read without a network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repository, commit = tmp_path / "datasets--someone--pets", "0" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "blobs").mkdir()
    return repository / "snapshots" / commit


def test_a_hub_data_set_of_pictures(hub, png):
    """Its files are links into the cache, which lie outside of the folder."""
    for name in ("a.png", "b.png"):
        (hub.parents[1] / "blobs" / name).write_bytes(png("red"))
        (hub / name).symlink_to(f"../../blobs/{name}")
    source = open_source(config_for("someone/pets", instance_prompt="a photo of sks dog"))
    assert source.texts() == ["a photo of sks dog"] * 2 and source[0].read() == png("red")


def test_a_hub_data_set_of_parquet_files(hub, png):
    (hub / "data").mkdir()
    for split_name, n in (("train-00000-of-00002", 2), ("train-00001-of-00002", 1), ("validation-00000-of-00001", 4)):
        table = pa.table({"image": [{"bytes": png("red"), "path": None}] * n, "text": ["x"] * n})
        pq.write_table(table, hub / "data" / f"{split_name}.parquet")
    assert len(open_source(config_for("someone/pets"))) == 3
    with pytest.raises(ValueError, match=r"their captions are in the caption column only"):
        open_source(config_for("someone/pets", instance_prompt="x"))


def test_hub_data_sets_that_are_refused(hub):
    with pytest.raises(ValueError, match=r"holds neither parquet files nor images.*refs/convert/parquet"):
        open_source(config_for("someone/pets"))
    with pytest.raises(ValueError, match="no such folder or file here, and the hub did not give it"):
        open_source(config_for("someone/else"))
    with pytest.raises(ValueError, match="not the name of a hub data set"):
        open_source(DataConfig(source="hub", path=["a/b"]))


@pytest.mark.parametrize(
    ("files", "taken"),
    [
        (["a.parquet", "b.parquet"], ["a.parquet", "b.parquet"]),
        (["default/train/0000.parquet", "default/test/0000.parquet"], ["default/train/0000.parquet"]),
        (["training_set.parquet", "val_set.parquet"], ["training_set.parquet"]),
        (["trains.parquet"], ["trains.parquet"]),
        ([], []),
    ],
)
def test_the_training_split(tmp_path, files, taken):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert training_files(tmp_path, "x/y") == [tmp_path / name for name in taken]


def test_splits_and_configurations_that_are_none_of_one(tmp_path):
    (tmp_path / "test.parquet").touch()
    with pytest.raises(ValueError, match="has no training split: test"):
        training_files(tmp_path, "x/y")
    for name in ("big", "small"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.parquet").touch()
    with pytest.raises(ValueError, match=r"several configurations \(big, small\)"):
        training_files(tmp_path, "x/y")
