"""What a check finds in a folder with known faults, and what it leaves behind."""

import base64
import io
import json
import re
import struct

import numpy as np
import pytest
from data.planted import EVIL, PLANTED, encoded, hole, photo, plant, sixteen_bit_rgb
from PIL import Image

from t2i.data import near_duplicates
from t2i.data.check import TokenCounter, check_folder
from t2i.data.check_page import write_check
from t2i.data.data_config import DataConfig
from t2i.data.decode import decode, examine
from t2i.errors import RunFailed

WORDS = TokenCounter(lambda texts: [len(text.split()) + 2 for text in texts], 32, "<words>")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return plant(tmp_path_factory.mktemp("check") / "planted")


@pytest.fixture(scope="module")
def check(folder):
    return check_folder(folder, size=(64, 64), words=WORDS)


def fill(folder, files):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return folder


def found(check):
    return {(finding.kind, finding.name) for finding in check.findings}


def test_every_planted_fault_is_found_and_none_invented(check):
    assert len(PLANTED) == len(check.findings) == 20
    assert found(check) == PLANTED
    assert check.counts["unreadable"] == 4 and check.counts["duplicate"] == 2 and sum(check.counts.values()) == 20


def test_a_twin_is_told_by_its_name(check):
    assert {(f.name, f.twin) for f in check.findings if f.twin} == {
        ("same bytes.jpg", "00.jpeg"),
        ("same pixels.bmp", "01.png"),
        ("saved anew.jpg", "05.png"),
    }


def test_the_sums_are_right(check):
    """40 good, 9 decoys, 16 planted in the metadata; then one missing, one unlisted, one that is not read."""
    assert (check.total, check.lost, check.usable) == (40 + 9 + 16 + 3, 9, 59)
    assert not check.ok and check.verdict.startswith("9 of 68 images are lost, more than 0.05 of them")
    assert len(check.source) == 59 and all(text.strip() for text in check.source.texts())
    lost = {f.name for f in check.findings if f.kind in ("unreadable", "captionless")}
    assert lost.isdisjoint(check.source[i].key for i in range(59))
    assert "6 left out as unusable" in str(check.source.report)


def test_the_share_decides(folder):
    assert check_folder(folder, max_lost=9 / 68).ok and not check_folder(folder, max_lost=8.99 / 68).ok
    for share in (-0.1, 1.1):
        with pytest.raises(ValueError, match="the fraction of images that may be lost is 0 to 1"):
            check_folder(folder, max_lost=share)


def test_sizes_and_tokens(check):
    at = check.sizes["at"]
    assert (at["exact"], at["enlarged"]) == (10, 1) and at["exact"] + at["enlarged"] + at["reduced"] == 59
    assert at["worst_share"] == pytest.approx(1 - 80 / 200) and check.sizes["least"] == 16
    tokens = check.captions["tokens"]
    assert tokens["p50"] == 4 + 2 and tokens["max"] == 99 + 2 and (tokens["limit"], tokens["cut"]) == (32, 1)
    assert [example.name for example in check.examples] == ["00.jpeg", "29.png", "upright.jpg"]
    assert check.examples[0][2:] == (96, 72, "a picture of patches", 6)


def test_json_and_page(check, tmp_path):
    write_check(check, tmp_path / "out")
    (tmp_path / "out" / ".check.json-0123abcd.partial").touch()  # of a check that was killed
    write_check(check, tmp_path / "out")  # a check is made again after every repair
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["check.html", "check.json"]
    values = json.loads((tmp_path / "out" / "check.json").read_text())
    assert {(f["kind"], f["name"]) for f in values["findings"]} == PLANTED and not values["ok"]
    assert values["counts"]["unreadable"] == 4 and values["usable"] == 59 and len(values["examples"]) == 3
    page = (tmp_path / "out" / "check.html").read_text()
    assert "<script" not in page and "<words>" not in page and "http://" not in page
    assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt; &amp; a red fox" in page and EVIL not in page
    shown = [Image.open(io.BytesIO(base64.b64decode(b))) for b in re.findall(r"base64,([A-Za-z0-9+/=]+)", page)]
    # 3 examples, 59 usable, 13 of faults (of 20: 4 unreadable, missing, not read and a text have none), 3 of twins
    assert len(shown) == 3 + 59 + 13 + 3 and page.count('class="missing"') == 4
    assert shown[0].size == (64, 64) and max(max(picture.size) for picture in shown[3:]) == 96
    red = np.asarray(shown[0].convert("RGB")).astype(int) - np.asarray(decode(encoded(photo(0), "JPEG")).crop(
        (12, 0, 84, 72)).resize((64, 64), Image.Resampling.BICUBIC))  # fmt: skip
    assert np.abs(red).max() <= 1  # the first example is the first picture as training crops it


def test_a_folder_that_cannot_hold_the_check(check, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFailed, match="not written"):
        write_check(check, tmp_path / "file")


# --- captions


def test_no_caption_at_all_is_one_error_with_the_way_out(tmp_path):
    folder = fill(tmp_path / "pets", {f"{k}.png": encoded(photo(k)) for k in range(3)})
    with pytest.raises(ValueError, match=r"none of the 3 images has a caption: .*--instance-prompt"):
        check_folder(folder)
    check = check_folder(folder, instance_prompt="a photo of sks dog")
    assert check.ok and check.lost == 0 and check.captions["origins"] == {"instance prompt": 3}
    assert check.source.texts() == ["a photo of sks dog"] * 3
    assert (
        check_folder(folder, file_name_captions=True, instance_prompt="x").captions["origins"]["instance prompt"] == 3
    )
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no images"):
        check_folder(tmp_path / "empty")
    fill(tmp_path / "phone", {"a.heic": "x"})
    with pytest.raises(ValueError, match=r"holds no images .*: 1 are of formats that are not read, first a.heic"):
        check_folder(tmp_path / "phone")
    with pytest.raises(ValueError, match="no such folder or file"):
        check_folder(tmp_path / "nowhere" / "at" / "all")


def test_allowed_empty_captions_are_not_lost(folder):
    config = DataConfig(source="folder", path=str(folder), allow_empty_captions=True)
    assert check_folder(config).counts["captionless"] == 0


def test_kohya_folders_are_looked_at_once_and_said(tmp_path):
    files = {f"10_sks dog/{k}.png": encoded(photo(k)) for k in range(2)} | {"5_dog/7.png": encoded(photo(7))}
    check = check_folder(fill(tmp_path, files | {"5_dog/8.png": b"junk"}), max_lost=0.5)
    assert (check.total, check.lost, len(check.source)) == (4, 1, 2 + 2 + 1)
    assert check.captions["origins"] == {"folder name": 4}
    assert check.notes == [
        "repeated as the folders' names ask: 5_dog (2 images), 10_sks dog (2 images); only the ratio of the "
        "numbers matters"
    ]


def test_parquet_and_excluded_rows(write_parquet, png, tmp_path):
    images = [png("red"), png("red"), b"junk", png("blue")]
    path = write_parquet(images, ["a", "b", "c", ""])
    check = check_folder(path)
    assert {("unreadable", "row 2"), ("duplicate", "row 1"), ("captionless", "row 3")} < found(check)
    assert check.total == 4 and check.usable == 2 and check.source.texts() == ["a", "b"]
    with pytest.raises(ValueError, match=r"data.parquet: .*instance_prompt means nothing for source=parquet"):
        check_folder(path, instance_prompt="x")
    (tmp_path / "out.txt").write_text("c\n")
    config = DataConfig(source="parquet", path=str(path), exclude=str(tmp_path / "out.txt"))
    assert check_folder(config, max_lost=0.5).total == 3


def test_files_beside_the_rows_are_found_though_rows_are_excluded(folder, tmp_path):
    (tmp_path / "out.txt").write_text(EVIL + "\n")
    config = DataConfig(source="folder", path=str(folder), exclude=str(tmp_path / "out.txt"))
    check = check_folder(config, size=(64, 64), words=WORDS)
    assert found(check) == PLANTED and check.usable == 58


# --- the one decoder


def test_sixteen_bits_a_channel_are_scaled():
    picture = photo(3)
    seen, facts = examine(sixteen_bit_rgb(picture))
    assert facts.deep and np.array_equal(np.asarray(seen), np.asarray(picture))
    assert not examine(encoded(picture))[1].deep


def test_twelve_bits_are_scaled_by_their_own_range():
    """A TIFF of two pixels, 4095 and 2048, packed into three bytes."""
    tags = [(256, 2), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 3)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    data = b"II*\0" + struct.pack("<I", 12) + b"\xff\xf8\x00\0" + struct.pack("<H", len(tags)) + entries + bytes(4)
    picture, facts = examine(data)
    assert [picture.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (128, 128, 128)] and facts.deep


def test_what_a_file_needed_is_told():
    assert examine(encoded(hole(photo(1))))[1][1:] == (False, True, False, False, False)
    assert examine(encoded(photo(1).convert("CMYK"), "TIFF"))[1][1:] == (False, False, True, False, False)
    pages = encoded(photo(1), "TIFF", save_all=True, append_images=[photo(2)])
    assert examine(pages)[1] == ("TIFF", False, False, False, False, True)
    for format in ("PNG", "WEBP"):
        moving = encoded(photo(1), format, save_all=True, append_images=[photo(2)], duration=50)
        assert examine(moving)[1].animated and not examine(encoded(photo(1), format))[1].animated


# --- twins


@pytest.mark.parametrize("seed", range(4))
def test_twins_are_saved_anew_and_others_are_not(seed):
    picture = photo(seed, (96, 96))
    half = picture.resize((48, 48), Image.Resampling.BICUBIC)
    near_ones = [decode(encoded(picture, "JPEG", quality=75)), decode(encoded(picture, "WEBP")), half]
    shifted = Image.fromarray(np.roll(np.asarray(picture), 6, 1))
    pixels = np.asarray(picture).copy()
    pixels[42:45, 42:45] += np.where(pixels[42:45, 42:45] < 128, 110, -110 % 256).astype(np.uint8)
    marked = Image.fromarray(pixels)  # a small thing, such as a hand of a clock, far below the difference on the whole
    others = [photo(seed + 50, (96, 96)), picture.transpose(Image.Transpose.ROTATE_90), shifted, marked]
    everyone = [picture, *near_ones, *others]
    thumbnails = np.stack([near_duplicates.thumbnail(one) for one in everyone])
    twins = near_duplicates.find_near_duplicates(thumbnails, np.ones(len(everyone)))
    assert twins.keys() == {1, 2, 3}
    wide = near_duplicates.find_near_duplicates(thumbnails, np.array([1, 1, 1, 1.2, 1, 1, 1, 1]))
    assert wide.keys() == {1, 2}  # squeezed to the same square, but of another shape


def test_many_pictures_in_blocks(monkeypatch):
    thumbnails = np.random.default_rng(0).integers(0, 256, (50, 32, 32, 3), dtype=np.uint8)
    thumbnails[[7, 31, 49]] = thumbnails[[3, 3, 30]]
    for block in (1, 8, 1024):
        monkeypatch.setattr(near_duplicates, "BLOCK", block)
        twins = near_duplicates.find_near_duplicates(thumbnails, np.ones(50))
        assert twins.keys() == {7, 31, 49} and twins[7] == 3 and twins[31] in (3, 7) and twins[49] == 30


def test_too_many_pictures_are_not_compared_and_that_is_said(folder, monkeypatch):
    monkeypatch.setattr(near_duplicates, "LIMIT", 10)
    check = check_folder(folder)
    assert check.counts["near_duplicate"] == 0 and check.notes == [
        "near duplicates were not looked for: more than 10 images"
    ]
