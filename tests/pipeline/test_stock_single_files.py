"""Single files: those written here stock reads, others' are read here; the numbers are those of the stock folder."""

import sys

import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline, StableDiffusionPipeline
from interop.tiny import foreign, write

from t2i.__main__ import main
from t2i.pipeline import Pipeline

from .stock import load_stock, load_stock_file, read_folder, write_stock
from .test_stock_folders import PROMPTS, differences, mask, our_run, picture, stock_run
from .tiny import apart

PARTS = ("unet", "vae", "text_encoder")
SLOW = pytest.mark.slow  # of the shapes of sd2-v


def check_alike(ours, stock, in_channels=4, solver="ddim"):
    """The networks, and 20 steps: of prompts, or of an inpainting U-Net."""
    found = differences(ours, stock) if in_channels == 4 else {}
    assert all(value <= 1e-5 for value in found.values()), found
    if in_channels == 4:
        expected = stock_run(stock, solver, PROMPTS, [3, 9])
        assert apart(our_run(ours, solver, PROMPTS, [3, 9]), expected) <= 1e-4
        return
    options = {"image": picture(), "strength": 1.0}
    expected = stock_run(stock, solver, PROMPTS[:1], [3], mask_image=mask(), **options)
    assert apart(our_run(ours, solver, PROMPTS[:1], [3], mask_image=mask(), **options), expected) <= 1e-4


def same_weights(stock, other):
    for part in PARTS:
        a, b = (getattr(pipeline, part).state_dict() for pipeline in (stock, other))
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a), part


@pytest.mark.parametrize(
    ("kind", "in_channels"), [("sd1", 4), ("sd1", 9), pytest.param("sd2", 4, marks=SLOW), ("sd2-v", 4)]
)
def test_written_here_stock_reads_it(tmp_path, monkeypatch, kind, in_channels):
    """By `t2i convert`; then the file in both: every weight bit by bit, and the pictures."""
    folder, file = write_stock(kind, tmp_path / "model", in_channels), tmp_path / "m.safetensors"
    monkeypatch.setattr(sys, "argv", ["t2i", "convert", str(folder), str(file)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    kind_of_stock = StableDiffusionPipeline if in_channels == 4 else StableDiffusionInpaintPipeline
    stock = load_stock_file(file, folder, kind_of_stock)
    same_weights(load_stock(folder, kind_of_stock), stock)
    check_alike(Pipeline.from_pretrained(file), stock, in_channels)


@pytest.mark.parametrize("kind", ["sd1", pytest.param("sd2", marks=SLOW), "sd2-v"])
def test_a_renamed_state_dict_is_read(tmp_path, kind):
    """As others write it, renamed by rules of its own, extras included; the configs are the folder's."""
    folder = write_stock(kind, tmp_path / "model", layers=2)
    state = foreign(read_folder(folder))
    file = write(tmp_path / "m.safetensors", state)
    ours, stock = Pipeline.from_pretrained(file, config=folder), load_stock(folder)
    check_alike(ours, stock, solver="euler")
    ignored = [line for line in ours.report if line.startswith("ignored")]
    assert sum(int(line.split()[1]) for line in ignored) == len(state) - consumed(state, folder), ignored
    # Stock reads the same file as the same weights: the rules by which it was renamed are the field's.
    extra = [key for key in state if ".resblocks.3." in key or key.endswith("text_projection")]
    plain = write(tmp_path / "plain.safetensors", {key: value for key, value in state.items() if key not in extra})
    same_weights(stock, load_stock_file(plain, folder))


def consumed(state, folder):
    """How many of the file's tensors the folder's come from: OpenCLIP fuses three."""
    counts = {part: len(tensors) for part, (_, tensors) in read_folder(folder).items()}
    fused = sum(".attn.in_proj_" in key and ".resblocks.3." not in key for key in state)
    return sum(counts.values()) - 2 * fused
