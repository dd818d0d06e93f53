"""A folder of pictures: what is in each file and in `metadata.jsonl`."""

import json

import pytest
from PIL import Image

from t2i.errors import RunFailed, WriteFailed
from t2i.pipeline.metadata import read_png, to_texts
from t2i.pipeline.outputs import ImageFolder, read_settings

ASKED = {"prompt": "a 🦊", "negative": "", "steps": 3, "cfg": 2.0, "solver": "ddim", "seed": 7, "size": "3x2"}


def picture(colour="red"):
    return Image.new("RGB", (3, 2), colour)


def test_both_texts_and_the_line(tmp_path):
    path = ImageFolder(tmp_path).add(picture(), ASKED)
    with Image.open(path) as found:
        assert found.text == to_texts(ASKED) and list(found.text) == ["t2i", "parameters"]
        assert found.getpixel((0, 0)) == (255, 0, 0)
    line = json.loads((tmp_path / "metadata.jsonl").read_text(encoding="utf8"))
    assert line == {"file_name": "00000-7.png", "text": "a 🦊", "schema_version": 1, **ASKED}
    assert read_settings(path) == {"schema_version": 1, **ASKED}


def test_the_same_request_is_the_same_file(tmp_path):
    first, second = (ImageFolder(tmp_path / name).add(picture(), ASKED).read_bytes() for name in "ab")
    assert first == second


def test_without_metadata_the_picture_says_nothing_and_the_line_all(tmp_path):
    path = ImageFolder(tmp_path).add(picture(), ASKED, metadata=False)
    assert b"tEXt" not in path.read_bytes() and b"iTXt" not in path.read_bytes()
    for read in (read_png, read_settings):
        with pytest.raises(ValueError, match="holds no settings of t2i"):
            read(path)
    assert json.loads((tmp_path / "metadata.jsonl").read_text(encoding="utf8"))["steps"] == 3


def test_pictures_are_added_and_what_appears_meanwhile_is_kept(tmp_path):
    pictures = ImageFolder(tmp_path)
    pictures.add(picture(), ASKED)
    (tmp_path / "00001-7.png").write_bytes(b"theirs")
    with pytest.raises(RunFailed, match="written by another process"):
        pictures.add(picture("blue"), ASKED)
    assert (tmp_path / "00001-7.png").read_bytes() == b"theirs"
    assert ImageFolder(tmp_path).add(picture("blue"), ASKED).name == "00002-7.png"


def test_a_line_that_cannot_be_written_is_what_the_error_names(tmp_path):
    (tmp_path / "metadata.jsonl").mkdir()
    with pytest.raises(WriteFailed, match=r"jsonl: not written \(Is a directory; .* free\), but 00000-7.png is"):
        ImageFolder(tmp_path).add(picture(), ASKED)
    assert read_settings(tmp_path / "00000-7.png")["seed"] == 7
