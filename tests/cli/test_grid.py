"""`t2i grid` from end to end: cells, their noise, the sheet, the page, the faults."""

import html
import json
import re
import shlex

import numpy as np
import pytest
import torch
from PIL import Image
from pipeline.tiny import make_pipeline

from t2i.cli.grid import parse_axis
from t2i.pipeline import Pipeline
from t2i.pipeline.outputs import ImageFolder, read_settings
from t2i.report.grid import LabelledGrid


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "tiny-model"
    make_pipeline().save_pretrained(path)
    return path


def cells(folder):
    """(settings, pixels) of every cell in order."""
    paths = sorted(path for path in folder.glob("*.png") if not path.name.startswith("sheet"))
    found = []
    for path in paths:
        with Image.open(path) as picture:
            found.append((read_settings(path), np.array(picture)))
    return found


@pytest.mark.parametrize(
    ("text", "values", "labels"),
    [
        ("cfg=1, 3.5,default", [1.0, 3.5, None], ("cfg = 1", "cfg = 3.5", "cfg = default")),
        ("solver=ddim,DPM++ 2M Karras", ["ddim", "DPM++ 2M Karras"], None),
        ('prompt="a frog, green",a toad', ["a frog, green", "a toad"], None),
        ("prompt=a frog, green|a toad", ["a frog, green", "a toad"], None),
        ('prompt="a|b"|c', ["a|b", "c"], None),
        ("prompt=a = b,default", ["a = b", "default"], None),
        ('negative=,blurry,"",5" disk', ["", "blurry", "", '5" disk'], None),
        (" steps =1", [1], ("steps = 1",)),
    ],
)
def test_values_of_an_axis(text, values, labels):
    axis = parse_axis("-x", text)
    assert axis.values == values and len(axis.labels) == len(values)
    assert labels is None or axis.labels == labels


def test_every_cell_is_what_the_pipeline_draws(t2i, model, tmp_path):
    code, out, err = t2i(
        "grid", "a red circle", "-x", "cfg=1,4", "-y", "steps=1,2,3", "-z", "solver=ddim,Euler a",
        "-m", model, "--seed", 7, "--size", "20x16", "-n", "blurry", "-o", "o",
    )  # fmt: skip
    assert code == 0, err
    assert "o/sheet-00000.png and sheet-00000.html: 12 cells, seed 7" in out
    found = cells(tmp_path / "o")
    asked = [(solver, steps, cfg) for solver in ("ddim", "euler-a") for steps in (1, 2, 3) for cfg in (1.0, 4.0)]
    assert [(one["solver"], one["steps"], one["cfg"]) for one, _ in found] == asked
    assert {(one["seed"], one["negative"], one["size"], one["prompt"]) for one, _ in found} == {
        (7, "blurry", "20x16", "a red circle")
    }
    pipeline = Pipeline.from_pretrained(model)
    for (solver, steps, cfg), (_, pixels) in zip(asked, found, strict=True):
        options = {"num_inference_steps": steps, "guidance_scale": cfg, "solver": solver, "height": 16, "width": 20}
        expected = pipeline("a red circle", "blurry" if cfg != 1 else None, seeds=7, **options)
        assert np.abs(pixels.astype(int) - np.array(expected.images[0]).astype(int)).max() <= 1
    sheet = LabelledGrid(
        "a red circle", (20, 16), ("cfg = 1", "cfg = 4"), ("steps = 1", "steps = 2", "steps = 3"),
        ("solver = ddim", "solver = Euler a"),
    )  # fmt: skip
    with Image.open(tmp_path / "o" / "sheet-00000.png") as drawn:
        assert drawn.tobytes() == sheet.draw([Image.fromarray(pixels) for _, pixels in found]).tobytes()


def test_cells_share_their_noise(t2i, model, tmp_path):
    assert t2i("grid", "a red circle", "-x", "cfg=2,2", "-y", "solver=ddpm,ddpm", "-m", model, "--steps", 3)[0] == 0
    found = cells(tmp_path / "outputs")
    assert len(found) == 4 and len({pixels.tobytes() for _, pixels in found}) == 1
    assert t2i("grid", "a red circle", "-x", "seed=1,2,1", "-m", model, "--steps", 2, "-o", "seeds")[0] == 0
    seeds = [pixels.tobytes() for _, pixels in cells(tmp_path / "seeds")]
    assert seeds[0] == seeds[2] != seeds[1]


def test_the_pages_command_draws_the_same(t2i, model, tmp_path):
    hostile = '<b>"a frog", a\ntoad</b> & 5\' disk'
    assert t2i("grid", hostile, "-y", "cfg=2,default", "-m", model, "--steps", 2, "-o", "o")[0] == 0
    page = (tmp_path / "o" / "sheet-00000.html").read_text()
    assert "<b>" not in page and html.escape(hostile) in page
    (command,) = re.findall(r"<pre>(.*?)</pre>", page, re.S)
    assert t2i(*shlex.split(html.unescape(command))[1:])[0] == 0
    found = cells(tmp_path / "o")
    assert len(found) == 4 and found[0][0]["prompt"] == hostile
    assert found[:2][0][1].tobytes() == found[2:][0][1].tobytes()
    assert found[1][0] == found[3][0] and found[1][0]["cfg"] == 4
    assert (tmp_path / "o" / "sheet-00002.html").is_file()
    settings = page[page.index("<h2>Settings") :]
    assert f"<th>seed</th><td>{found[0][0]['seed']}</td>" in settings and "<td>2 | default</td>" in settings


def test_the_axis_prompt_replaces_the_prompt_and_says_so(t2i, model, tmp_path):
    code, _, err = t2i(
        "grid", "unused", "-x", "prompt=a red circle, large|a blue square", "-m", model, "--steps", 1
    )  # fmt: skip
    assert code == 0 and "prompt 'unused' is not drawn: -x prompt replaces it" in err
    assert [one["prompt"] for one, _ in cells(tmp_path / "outputs")] == ["a red circle, large", "a blue square"]
    code, _, err = t2i("grid", "-x", "negative=,a red circle", "-m", model, "--steps", 1)
    assert code == 2 and "no prompt" in err


def test_what_does_not_fit_is_said_once(t2i, model):
    long = "a red circle and a blue square and a green triangle and a large red square"
    code, _, err = t2i("grid", long, "-x", "cfg=1,2,3", "-m", model, "--steps", 1)
    assert code == 0 and err.count("is too long") == 1


def test_a_folder_is_only_added_to(t2i, model, tmp_path):
    asked = ("grid", "a red circle", "-x", "cfg=2,3", "-m", model, "--steps", 1, "--seed", 1, "-o", "o")
    assert t2i(*asked)[0] == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "o").iterdir()}
    assert t2i(*asked)[0] == 0
    lines = before.pop("metadata.jsonl")
    assert all((tmp_path / "o" / name).read_bytes() == content for name, content in before.items())
    assert (tmp_path / "o" / "metadata.jsonl").read_bytes() == lines + lines.replace(b"00000-", b"00002-").replace(
        b"00001-", b"00003-"
    )
    assert (tmp_path / "o" / "sheet-00002.png").read_bytes() == before["sheet-00000.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x"], "no axis: give -x AXIS=VALUE,VALUE"),
        (["x", "-x", "cgf=1,2"], "-x 'cgf=1,2': 'cgf' is not an axis"),
        (["x", "-x", "cfg"], "AXIS one of prompt, negative, steps, solver, sigmas, cfg, seed"),
        (["x", "-y", "size=8x8,16x16"], "-y size: the images of a grid have one size"),
        (["x", "-x", "cfg=1,two"], "-x cfg: 'two' is not a number"),
        (["x", "-x", "cfg=nan"], "-x cfg: 'nan' is not a number"),
        (["x", "-z", "steps=1.5"], "-z steps: '1.5' is not a whole number"),
        (["x", "-x", "seed=default"], "-x seed: 'default' is not a whole number"),
        (["x", "-x", "steps=1,,2"], "-x steps: '1,,2' has an empty value"),
        (["x", "-x", "steps="], "-x steps: '' has an empty value"),
        (["-x", 'prompt="a"b'], "-x prompt: '\"a\"b' is not a list of values"),
        (["x", "-x", "cfg=1,2", "-y", "cfg=3"], "the axis cfg is given 2 times"),
        (["x", "-x", "cfg=1,2", "--cfg", "3"], "--cfg and -x cfg are both given"),
        (["x", "-x", "steps=1,0"], "steps = 0: steps = 0: not in 1.."),
        (["x", "-x", "cfg=1,-1"], "cfg = -1: cfg = -1.0: must be a number >= 0"),
        (["x", "-x", "solver=ddim,eular"], "solver = eular: solver = 'eular': unknown; did you mean 'euler'"),
        (
            ["x", "-x", "eta=0,1", "-y", "solver=ddim,unipc"],
            "solver = unipc, eta = 1: eta = 1.0: solver 'unipc'",
        ),
        (["x", "-x", "sigmas=default,kerras"], "sigmas = kerras: sigmas = 'kerras': unknown"),
        (["x", "-x", "seed=-1"], "seed = -1: seed: -1, of image 0, is not in 0..2^63 - 1"),
        (["x", "-x", "cfg=1", "--size", "15x16"], "width = 15: not a multiple of 2"),
        (["x", "-x", "cfg=1", "--dtype", "int8"], "--dtype = 'int8'"),
        (["x", "-x", "cfg=1", "--device", "gpu"], "--device = 'gpu'"),
        (["x", "-x", "seed=1,2,3,4", "-y", "cfg=1,2,3,4", "--size", "4096x4096"], "more than programs open"),
        (["x", "-x", "strength=0.5,1"], "give --init-image FILE"),
        (["x", "-x", "cfg=1", "--strength", "0.5"], "give --init-image FILE"),
        (["x", "-x", "strength=0,1", "--init-image", "in.png"], "strength = 0: strength = 0.0: not in 0..1"),
        (["x", "-x", "cfg=1,2", "--resume"], "--resume identifies cells by their settings: give the --seed"),
        (["x", "-x", "cfg=1", "-m", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_faults_are_said_before_anything_is_written(t2i, model, tmp_path, arguments, message):
    Image.new("RGB", (16, 16)).save(tmp_path / "in.png")
    code, _, err = t2i("grid", *([] if "-m" in arguments else ["-m", model]), *arguments)
    assert code == 2 and message in err and "Traceback" not in err
    assert not (tmp_path / "outputs").exists()


def test_a_run_that_fails_keeps_the_cells_before_it_and_draws_no_sheet(t2i, tmp_path):
    broken = make_pipeline()
    torch.nn.init.constant_(broken.autoencoder.decoder.conv_out.weight, float("nan"))
    broken.save_pretrained(tmp_path / "broken")
    code, _, err = t2i("grid", "x", "-x", "cfg=1,2", "-m", "broken", "--steps", 1)
    assert code == 1 and "cfg = 1: the VAE put out non-finite values" in err
    assert not list((tmp_path / "outputs").iterdir())


def test_strength_is_an_axis_over_a_picture_to_begin_from(t2i, model, tmp_path):
    Image.new("RGB", (16, 16), "red").save(tmp_path / "begin here.png")
    asked = ("grid", "a blue square", "-x", "strength=0.2,default,1", "-m", model, "--steps", 5, "--seed", 1)
    assert t2i(*asked, "--init-image", "begin here.png", "-o", "o")[0] == 0
    found = cells(tmp_path / "o")
    assert [one["strength"] for one, _ in found] == [0.2, 0.8, 1.0]
    assert len({pixels.tobytes() for _, pixels in found}) == 3
    drawn = Pipeline.from_pretrained(model)(
        "a blue square", num_inference_steps=5, seeds=1, image=Image.open(tmp_path / "begin here.png"), strength=0.2
    )
    assert np.abs(found[0][1].astype(int) - np.array(drawn.images[0]).astype(int)).max() <= 1
    page = (tmp_path / "o" / "sheet-00000.html").read_text()
    (command,) = re.findall(r"<pre>(.*?)</pre>", page, re.S)
    assert t2i(*shlex.split(html.unescape(command))[1:])[0] == 0
    assert cells(tmp_path / "o")[3][1].tobytes() == found[0][1].tobytes()


def test_an_interrupted_grid_goes_on_where_it_stopped(t2i, model, tmp_path, monkeypatch):
    asked = ("grid", "a red circle", "-x", "cfg=1,2,3", "-y", "steps=1,2", "-m", model, "--seed", 3)
    assert t2i(*asked, "-o", "whole")[0] == 0
    add = ImageFolder.add

    def third_time_interrupted(self, picture, settings, **options):
        if self.next == 2:
            raise KeyboardInterrupt
        return add(self, picture, settings, **options)

    with monkeypatch.context() as patch:
        patch.setattr(ImageFolder, "add", third_time_interrupted)
        code, _, err = t2i(*asked, "-o", "cut")
    assert code == 130 and "interrupted; 2 of 6 cells are in cut" in err
    assert not list((tmp_path / "cut").glob("sheet*")) and len(cells(tmp_path / "cut")) == 2
    before = {path: path.read_bytes() for path in (tmp_path / "cut").glob("*.png")}
    (command,) = re.findall(r"^t2i grid .*$", err, re.M)
    Image.new("RGB", (8, 8)).save(tmp_path / "cut" / "00099-0.png")  # not ours: it is left alone
    code, _, err = t2i(*shlex.split(command)[1:])
    assert code == 0 and "cut holds 2 of 6 cells already" in err
    assert all(path.read_bytes() == content for path, content in before.items())
    for name in ("png", "html"):
        (sheet,) = (tmp_path / "cut").glob(f"sheet*.{name}")
        whole = (tmp_path / "whole" / f"sheet-00000.{name}").read_bytes()
        assert sheet.read_bytes() == whole.replace(b"-o whole", b"-o cut")
    assert t2i(*shlex.split(command)[1:])[0] == 0  # again, with nothing left to draw
    assert len(list((tmp_path / "cut").glob("0*.png"))) == 7 and len(list((tmp_path / "cut").glob("sheet*.png"))) == 2


def test_metadata_lines_match_the_pictures(t2i, model, tmp_path):
    assert t2i("grid", "x", "-x", "spacing=trailing,linspace", "-m", model, "--steps", 2, "--seed", 0)[0] == 0
    rows = [json.loads(line) for line in (tmp_path / "outputs" / "metadata.jsonl").read_text().splitlines()]
    assert [row["spacing"] for row in rows] == ["trailing", "linspace"]
    for row in rows:
        read = read_settings(tmp_path / "outputs" / row["file_name"])
        assert read == {key: value for key, value in row.items() if key not in ("file_name", "text")}
