import contextlib
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from t2i.data.data_config import DataConfig
from t2i.data.open import open_source
from t2i.data.source import fingerprint, split
from t2i.errors import ConfigError
from t2i.randomness import permutation


def parquet(path, **more):
    return open_source(DataConfig(source="parquet", path=str(path), **more))


def folder(path, **more):
    return open_source(DataConfig(source="folder", path=str(path), **more))


def fill(path, png, names):
    for k, name in enumerate(names):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(png((k, 0, 0)))


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


# --- the recipe's keys


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"source": "folder"}, "path is needed"),
        ({"source": "parquet", "path": []}, "path is needed"),
        ({"source": "webdataset", "path": "x"}, "'folder', 'parquet', 'hub' or 'scenes'"),
        ({"source": "scenes", "path": "x"}, "path means nothing for source=scenes"),
        ({"source": "folder", "path": "x", "count": 3}, "count means nothing for source=folder"),
        ({"source": "folder", "path": "x", "image_column": "jpg"}, "only parquet"),
        ({"background": "whit"}, "unknown color specifier: 'whit'"),
        ({"max_bad_share": 1.5}, "less than or equal to 1"),
        ({"caption": "x"}, "Extra inputs"),
    ],
)
def test_keys_that_do_not_fit_are_refused(keys, said):
    with pytest.raises(ValidationError, match=said):
        DataConfig(**keys)


def test_a_resolved_config_reads_back():
    for config in (DataConfig(), DataConfig(source="parquet", path=["a", "b"])):
        assert DataConfig(**config.model_dump()) == config


# --- parquet


def test_parquet_round_trip_by_random_access(write_parquet, png):
    images = [png((k, 2 * k, 0)) for k in range(10)]
    path = write_parquet(images, [f"picture {k}" for k in range(10)])
    source = parquet(path)
    assert len(source) == 10 and source.texts()[7] == "picture 7"
    for i in (9, 0, 5, 2, 3):
        record = source[i]
        assert record.text == f"picture {i}" and record.read() == images[i]
    assert str(source.report) == "10 of 10 rows used"


def test_parquet_reads_again_what_memory_had_no_room_for(write_parquet, png, monkeypatch):
    images = [png((k, 0, 0)) for k in range(10)]
    source = parquet(write_parquet(images, list("abcdefghij")))
    monkeypatch.setattr("t2i.data.parquet.HELD_BYTES", 1)
    assert [source[i].read() for i in (0, 9, 4, 0, 9)] == [images[i] for i in (0, 9, 4, 0, 9)]
    assert len(source._held) == 1 and source._held_bytes == sum(c.nbytes for c in source._held.values())


def test_several_parquet_files_and_a_folder_of_them(write_parquet, png, tmp_path):
    a = write_parquet([png("red"), png("lime")], ["a", "b"], "1.parquet", group=1)
    b = write_parquet([png("blue")], ["c"], "2.parquet")
    one = open_source(DataConfig(source="parquet", path=[str(a), str(b)]))
    whole = parquet(tmp_path)
    assert one.texts() == whole.texts() == ["a", "b", "c"]
    assert whole[2].read() == png("blue") and whole[1].read() == png("lime")
    assert len({whole[i].key for i in range(3)}) == 3
    assert open_source(DataConfig(source="parquet", path=[str(b), str(a)])).texts() == ["c", "a", "b"]


def test_parquet_bytes_column_under_other_names(tmp_path, png):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"jpg": [png("red")], "caption": ["hello"]}), path)
    source = parquet(path, image_column="jpg", caption_column="caption")
    assert source[0].text == "hello" and source[0].read() == png("red")
    with pytest.raises(ValueError, match=r"data.image_column = 'image': is no column .* jpg, caption"):
        parquet(path, caption_column="caption")
    with pytest.raises(ValueError, match=r"data.image_column = 'caption': is string"):
        parquet(path, image_column="caption", caption_column="caption")


def test_parquet_captions_must_be_strings(tmp_path, png):
    path = tmp_path / "x.parquet"
    for texts, said in (([3], "3"), ([[1, 2]], r"\[1, 2\]")):
        pq.write_table(pa.table({"image": [png("red")], "text": texts}), path)
        with pytest.raises(ValueError, match=f"x.parquet, row 0: .* is {said}, neither a string nor a list"):
            parquet(path)


def test_empty_captions_stop_unless_allowed(write_parquet, png):
    path = write_parquet([png("red")] * 4, ["a", "", " ", "b"])
    with pytest.raises(ValueError, match=r"data.allow_empty_captions = False: 2 of 4 captions.*row 1, row 2"):
        parquet(path)
    source = parquet(path, allow_empty_captions=True)
    assert len(source) == 4 and "2 with an empty caption" in str(source.report)


def test_a_row_without_bytes_is_named_when_read(write_parquet, png):
    source = parquet(write_parquet([png("red"), {"bytes": None, "path": "/etc/passwd"}], ["a", "b"]))
    assert source[0].read() == png("red")
    with pytest.raises(ValueError, match="row 1: no image bytes"):
        source[1].read()


def test_parquet_that_is_not_there_or_empty_or_no_parquet(tmp_path, write_parquet):
    with pytest.raises(ValueError, match=r"data.path = 'nowhere.parquet': does not exist \(looked at /"):
        parquet("nowhere.parquet")
    with pytest.raises(ValueError, match=r"no \*.parquet"):
        parquet(tmp_path)
    (tmp_path / "x.parquet").write_bytes(b"hello")
    with pytest.raises(ValueError, match=r"x.parquet is no parquet file"):
        parquet(tmp_path / "x.parquet")
    path = tmp_path / "y.parquet"
    pq.write_table(pa.table({"image": pa.array([], pa.binary()), "text": pa.array([], pa.string())}), path)
    with pytest.raises(ValueError, match="no rows"):
        parquet(path)


def test_relative_paths_start_here_then_at_the_recipe(write_parquet, png, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    write_parquet([png("red")] * 2, ["a", "b"])
    (tmp_path / "out.txt").write_text("b\n")
    config = DataConfig(source="parquet", path="data.parquet", exclude="out.txt")
    with pytest.raises(ValueError, match="elsewhere"):
        open_source(config)
    assert open_source(config, tmp_path).texts() == ["a"]
    (tmp_path / "elsewhere" / "out.txt").write_text("a\n")
    assert open_source(config, tmp_path).texts() == ["b"]


# --- the exclude list


def test_excluded_captions_are_left_out_and_said(write_parquet, png, tmp_path):
    images = [png((k, 0, 0)) for k in range(5)]
    path = write_parquet(images, ["a", "b c", "a", "d", "e"])
    (tmp_path / "out.txt").write_text("# held out\n\na\n  d \n")
    source = parquet(path, exclude=str(tmp_path / "out.txt"))
    assert source.texts() == ["b c", "e"] and source[1].read() == images[4] and source[1].key == "row 4"
    assert str(source.report) == "2 of 5 rows used, 3 left out by the exclude list"
    assert source.fingerprint() != parquet(path).fingerprint()
    other = parquet(path, only=str(tmp_path / "out.txt"))
    assert other.texts() == ["a", "a", "d"]
    assert str(other.report) == "3 of 5 rows used, 2 not in the list of `only`"


def test_an_excluded_caption_that_is_nowhere_is_an_error(write_parquet, png, tmp_path):
    path = write_parquet([png("red")] * 2, ["a", "b"])
    (tmp_path / "out.txt").write_text("a\nB\n")
    with pytest.raises(ValueError, match="1 lines match no caption of the data, first 'B'"):
        parquet(path, exclude=str(tmp_path / "out.txt"))
    (tmp_path / "out.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match="leaves no row"):
        parquet(path, exclude=str(tmp_path / "out.txt"))


# --- folders


def test_sidecars_in_natural_order(tmp_path, png):
    fill(tmp_path, png, ["10.png", "2.png", "sub/1.PNG", ".hidden.png"])
    (tmp_path / "10.txt").write_text("ten\n")
    (tmp_path / "2.caption").write_text("﻿two")
    (tmp_path / "sub/1.txt").write_text("one")
    source = folder(tmp_path)
    assert [source[i].key for i in range(len(source))] == ["2.png", "10.png", "sub/1.PNG"]
    assert source.texts() == ["two", "ten", "one"] and source[1].read() == png((0, 0, 0))


def test_pictures_without_captions_stop_with_the_way_out(tmp_path, png):
    fill(tmp_path, png, ["a.png", "b.jpg"])
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(ValueError, match=r"allow_empty_captions = False: 1 of 2 captions are missing.*b.jpg"):
        folder(tmp_path)
    assert folder(tmp_path, allow_empty_captions=True).texts() == ["a", ""]
    (tmp_path / "a.caption").write_text("A")
    with pytest.raises(ValueError, match=r"a.png has two captions, a.txt and a.caption"):
        folder(tmp_path)


def test_metadata_jsonl_counts_what_it_loses(tmp_path, png):
    fill(tmp_path, png, ["1.png", "3.png", "x/2.png", "4.png"])
    rows = [{"file_name": f, "text": f, "more": 1} for f in ("x/2.png", "./3.png", "1.png", "9.png", "8.png")]
    write_lines(tmp_path / "metadata.jsonl", rows)
    source = folder(tmp_path)
    assert [source[i].key for i in range(3)] == ["1.png", "3.png", "x/2.png"]
    assert source.texts() == ["1.png", "./3.png", "x/2.png"]
    said = "3 of 5 rows used, 2 listed but missing on disk, 1 images on disk that the metadata does not list"
    assert str(source.report) == said


def test_metadata_csv_with_another_caption_column(tmp_path, png):
    fill(tmp_path, png, ["a.png", "b.png"])
    (tmp_path / "metadata.csv").write_text('file_name,caption\nb.png,"a cat, sitting"\na.png,dog\n')
    assert folder(tmp_path, caption_column="caption").texts() == ["dog", "a cat, sitting"]
    with pytest.raises(
        ValueError,
        match=r"caption_column = 'text': .*metadata.csv, line 2 has no such key; its keys: file_name, caption",
    ):
        folder(tmp_path)
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,a cat, sitting\n")
    with pytest.raises(ValueError, match="line 2: more fields"):
        folder(tmp_path)
    write_lines(tmp_path / "metadata.jsonl", [])
    with pytest.raises(ValueError, match=r"both metadata.jsonl and metadata.csv"):
        folder(tmp_path)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"file_name": "../secret.png", "text": "x"}', "leads out of"),
        ('{"file_name": "/etc/passwd", "text": "x"}', "leads out of"),
        ('{"file_name": "sub/../../secret.png", "text": "x"}', "leads out of"),
        ('{"file_name": "..\\\\secret.png", "text": "x"}', "leads out of"),
        ('{"file_name": "a.png", "text": 3}', "'text' is 3, neither a string nor a list"),
        ('{"file_name": "a.png", "text": ["x", 3]}', r"'text' is \['x', 3\], neither a string nor a list"),
        ('{"file_name": "a.png", "text": "\\ud83e"}', "character 1 of .* is no Unicode text"),
        ("[" * 100_000, "nested too deeply"),
        ('{"file_name": ["a.png"], "text": "x"}', "'file_name' is"),
        ('{"text": "x"}', "no 'file_name'"),
        ("[1]", "an object with file_name is needed"),
        ("{", "is no JSON"),
        ('{"file_name": "gone.png", "text": "x"}', "none of its 1 files exists"),
    ],
)
def test_bad_metadata_lines_are_refused_and_named(tmp_path, png, line, said):
    data = tmp_path / "data"
    fill(data, png, ["a.png"])
    (tmp_path / "secret.png").write_bytes(png("red"))
    (data / "metadata.jsonl").write_text(("\n" if "gone" not in line else "") + line + "\n")
    with pytest.raises(ValueError, match=said) as info:
        folder(data)
    assert "line 2" in str(info.value) or "gone" in line


def test_folder_missing_empty_or_a_file(tmp_path, png):
    with pytest.raises(ValueError, match="does not exist"):
        folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"holds no images \(.jpg"):
        folder(tmp_path)
    (tmp_path / "x.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match=r"data.path = .* set source=parquet"):
        folder(tmp_path / "x.parquet")


def test_several_folders_keep_their_captions_apart(tmp_path, png):
    for name, colour in (("a", "red"), ("b", "blue")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(png(colour))
        (tmp_path / name / "1.txt").write_text(colour)
    source = open_source(DataConfig(source="folder", path=[str(tmp_path / "b"), str(tmp_path / "a")]))
    assert source.texts() == ["blue", "red"] and source[1].read() == png("red")
    assert source[0].key != source[1].key


# --- fingerprints


def test_fingerprints_follow_content_not_place(tmp_path, png):
    for name in ("a", "b"):
        fill(tmp_path / name, png, ["1.png", "2.png"])
        write_lines(tmp_path / name / "metadata.jsonl", [{"file_name": f"{k}.png", "text": f"t{k}"} for k in (1, 2)])
    first = folder(tmp_path / "a").fingerprint()
    assert folder(tmp_path / "b").fingerprint() == first == folder(tmp_path / "a").fingerprint()
    (tmp_path / "b" / "2.png").write_bytes(png("blue"))
    pixels = folder(tmp_path / "b").fingerprint()
    (tmp_path / "b" / "2.png").write_bytes((tmp_path / "a" / "2.png").read_bytes())
    write_lines(tmp_path / "b" / "metadata.jsonl", [{"file_name": f"{k}.png", "text": "t1"} for k in (1, 2)])
    assert len({first, pixels, folder(tmp_path / "b").fingerprint()}) == 3


def test_parquet_fingerprint_sees_pictures_and_captions(write_parquet, png):
    prints = {
        parquet(write_parquet([png(c)] * 2, texts, name)).fingerprint()
        for name, c, texts in [("1.parquet", "red", ["a", "b"]), ("2.parquet", "red", ["a", "b"])]
    }
    assert len(prints) == 1
    prints.add(parquet(write_parquet([png("blue"), png("red")], ["a", "b"])).fingerprint())
    prints.add(parquet(write_parquet([png("red")] * 2, ["ab", "c"])).fingerprint())
    assert len(prints) == 3


def test_no_two_lists_share_a_fingerprint_by_joining():
    lists = [(["ab", "c"],), (["a", "bc"],), (["abc"],), (["ab"], ["c"]), (["ab", "c"], []), (["ab", "", "c"],)]
    assert len({fingerprint(*parts) for parts in lists}) == len(lists)


def test_split_sets_the_same_rows_apart_and_loses_none():
    source = open_source(DataConfig(source="scenes", count=100))
    train, held = split(source, 3)
    assert (len(train), len(held)) == (95, 5)
    assert {r for part in (train, held) for r in (part[i].key for i in range(len(part)))} == {
        source[i].key for i in range(100)
    }
    assert split(source, 3)[1].fingerprint() == held.fingerprint() != split(source, 4)[1].fingerprint()
    assert str(train.report) == "95 of 100 rows used, 5 in the other part of the split"
    with pytest.raises(ValueError, match=r"validation\.path: 3 images are too few"):
        split(open_source(DataConfig(source="scenes", count=3)), 0)


def test_null_takes_a_key_back_to_its_default():
    values = {"source": "folder", "path": "x", "count": None, "seed": None}
    assert DataConfig.model_validate(values).count == 4096
    with pytest.raises(ValueError, match=r"count means nothing.*set it to null"):
        DataConfig.model_validate(values | {"count": 7})


@pytest.mark.parametrize("section", ["data", "validation"])
def test_errors_name_the_section_and_leave_the_path_as_it_is(tmp_path, section):
    empty = tmp_path / "data.v2"
    empty.mkdir()
    for path, problem in ((empty, "holds no images"), (tmp_path / "data.v3", "does not exist")):
        with pytest.raises(ConfigError) as error:
            open_source(DataConfig(source="folder", path=str(path)), section=section)
        assert (error.value.key, error.value.value) == (f"{section}.path", str(path))
        assert str(error.value).startswith(f"{section}.path = {str(path)!r}: {problem}")


def trained_and_validated(source):
    """Returns the images that are on both sides of any of 50 splits."""
    both = set()
    for seed in range(50):
        sides = [{part[i].read() for i in range(len(part))} for part in split(source, seed)]
        both |= sides[0] & sides[1]
    return both


def test_an_image_is_never_trained_on_and_validated_on(tmp_path, png, write_parquet):
    """Whether its rows share a file, or two files have the same bytes."""
    colours = [(30 * i, 9, 99) for i in range(8)]
    rows = [(f"{i}.png", f"thing {i}") for i in range(8)] + [("0.png", "again"), ("1.png", "again"), ("copy.png", "c")]
    for i, colour in enumerate(colours):
        (tmp_path / f"{i}.png").write_bytes(png(colour))
    (tmp_path / "copy.png").write_bytes(png(colours[2]))
    write_lines(tmp_path / "metadata.jsonl", [{"file_name": name, "text": text} for name, text in rows])
    assert not trained_and_validated(folder(tmp_path))
    images = [png(colour) for colour in [*colours, colours[0], colours[1]]]
    assert not trained_and_validated(parquet(write_parquet(images, [f"row {i}" for i in range(10)])))


def test_a_split_without_repeats_is_that_of_the_rows(tmp_path, png, write_parquet):
    source = parquet(write_parquet([png((i, 0, 0)) for i in range(40)], [str(i) for i in range(40)]))
    held = set(permutation(40, 7, "validation").tolist()[:2])
    assert split(source, 7)[1].texts() == [str(i) for i in sorted(held)]


def test_lists_of_captions_take_turns_and_every_image_weighs_the_same(tmp_path, png):
    fill(tmp_path, png, ["a.png", "b.png", "c.png"])
    lists = {"a.png": ["one", "two"], "b.png": "alone", "c.png": [None][:0]}
    write_lines(tmp_path / "metadata.jsonl", [{"file_name": name, "text": text} for name, text in lists.items()])
    source = folder(tmp_path, allow_empty_captions=True)
    assert source.texts() == ["one", "two", "alone", "alone", "", ""]
    assert [source[i].key for i in range(6)] == ["a.png", "a.png", "b.png", "b.png", "c.png", "c.png"]
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": [png("red"), png("blue")], "text": [["one", "two"], None]}), path)
    source = parquet(path, allow_empty_captions=True)
    assert source.texts() == ["one", "two", "", ""] and source[3].key == "row 1" and source[3].read() == png("blue")
    with pytest.raises(ValueError, match=r"2 of 4 captions are missing or empty \(first: row 1"):
        parquet(path)


def test_null_captions_take_the_instance_prompt(tmp_path, png):
    fill(tmp_path, png, ["a.png", "b.png"])
    write_lines(
        tmp_path / "metadata.jsonl", [{"file_name": "a.png", "text": None}, {"file_name": "b.png", "text": "b"}]
    )
    assert folder(tmp_path, instance_prompt="a photo").texts() == ["a photo", "b"]


def test_metadata_of_folders_in_the_folder(tmp_path, png):
    fill(tmp_path, png, ["train/a.png", "train/b.png", "more/a.png"])
    write_lines(tmp_path / "train" / "metadata.jsonl", [{"file_name": f"{n}.png", "text": f"train {n}"} for n in "ab"])
    (tmp_path / "more" / "metadata.csv").write_text("file_name,text\na.png,more a\n")
    source = folder(tmp_path)
    assert dict(zip((source[i].key for i in range(3)), source.texts(), strict=True)) == {
        "more/a.png": "more a",
        "train/a.png": "train a",
        "train/b.png": "train b",
    }
    (tmp_path / "more" / "metadata.json").write_text("[]")
    with pytest.raises(ValueError, match=r"more/metadata.json: not read: write its rows as metadata.jsonl"):
        folder(tmp_path)


def test_linked_folders_are_read_and_hidden_ones_are_not(tmp_path, png):
    data, more = tmp_path / "data", tmp_path / "more"
    fill(data, png, ["a.png", ".ipynb_checkpoints/a-checkpoint.png", "__MACOSX/a.png"])
    fill(more, png, ["b.png"])
    (data / "linked").symlink_to(more)
    (more / "back").symlink_to(data)  # a circle
    source = folder(data, instance_prompt="x")
    assert [source[i].key for i in range(len(source))] == ["a.png", "linked/b.png"]


def test_captions_beside_images_in_other_spellings(tmp_path, png):
    fill(tmp_path, png, ["a.png", "b.png", "c.JFIF", "d.png"])
    for name in ("a.TXT", "b.png.txt", "c.Caption", "d.txt", "e.txt"):
        (tmp_path / name).write_text(name[0])
    source = folder(tmp_path)
    assert source.texts() == ["a", "b", "c", "d"] and source.listing.spare == ["e.txt"]
    (tmp_path / "b.txt").write_text("b")
    with pytest.raises(ValueError, match=r"b\.png has two captions"):
        folder(tmp_path)


def test_names_in_other_spellings(tmp_path, png):
    """As Windows and macOS write them: backslashes, decomposed letters, another case."""
    fill(tmp_path, png, ["sub/a.png", "f\u00fcnf.png", "B.PNG"])
    names = ["sub\\a.png", "fu\u0308nf.png", "b.png"]
    write_lines(tmp_path / "metadata.jsonl", [{"file_name": name, "text": str(i)} for i, name in enumerate(names)])
    source = folder(tmp_path)
    assert {source[i].key: source.texts()[i] for i in range(3)} == {
        "sub/a.png": "0",
        "f\u00fcnf.png": "1",
        "B.PNG": "2",
    }


def test_what_is_no_regular_file_is_unreadable(tmp_path, png):
    fill(tmp_path, png, ["a.png"])
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "circle.png").symlink_to(tmp_path / "circle.png")
    source = folder(tmp_path, instance_prompt="x")
    assert source[0].read() == png((0, 0, 0)) and len(source) == 3
    for i in (1, 2):
        with pytest.raises(ValueError, match=r"(pipe|circle).png: (a pipe|not readable)"):
            source[i].read()
    assert source.fingerprint() == folder(tmp_path, instance_prompt="x").fingerprint()
    (tmp_path / "metadata.jsonl").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=r"metadata\.jsonl: a pipe, a socket or a device"):
        folder(tmp_path)


def test_files_that_are_no_metadata_are_named(tmp_path, png):
    fill(tmp_path, png, ["a.png"])
    (tmp_path / "metadata.jsonl").write_text('[{"file_name": "a.png", "text": "x"}]')
    with pytest.raises(ValueError, match="a JSON array; write one object a line"):
        folder(tmp_path)
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "metadata.csv").write_text(f"file_name,text\na.png,{'x' * 200_000}\n")
    with pytest.raises(ValueError, match=r"metadata.csv, line \d: field larger than field limit"):
        folder(tmp_path)
    write_lines(tmp_path / "metadata.jsonl", [{"file_name": "a.png", "text": "x" * 200_000}])
    (tmp_path / "metadata.csv").unlink()
    with pytest.raises(ValueError, match=r"line 1: 'text': 200,000 characters of text; 100,000 are allowed"):
        folder(tmp_path)
    saved = tmp_path / "saved"
    saved.mkdir()
    for name in ("state.json", "data-00000-of-00001.arrow"):
        (saved / name).write_text("{}")
    with pytest.raises(ValueError, match=r"Dataset.save_to_disk; write it with Dataset.to_parquet"):
        folder(saved)


def test_damaged_parquet_is_named(write_parquet, png):
    path = write_parquet([png((i, 0, 0)) for i in range(16)], [f"caption {i}" for i in range(16)], group=4)
    whole = path.read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 60)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        with contextlib.suppress(ValueError):  # anything else is a traceback for the user
            source = parquet(path)
            for i in range(len(source)):
                source[i].read()
