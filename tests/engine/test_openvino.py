"""The OpenVINO engine: the same results as torch, its cache, and what it refuses."""

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from t2i.__main__ import main
from t2i.conditioning import Conditioning
from t2i.diffusion.solvers import SOLVERS
from t2i.engine.openvino import Executables, cache_folder
from t2i.errors import ConfigError
from t2i.nn.lora import LoraConfig, add_lora
from t2i.pipeline import Pipeline
from t2i.pipeline.outputs import read_settings
from tests.pipeline.tiny import apart, make_pipeline

pytest.importorskip("openvino")

PROMPTS = ["a red circle", "a blue square on grey", "two green triangles"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("openvino")


@pytest.fixture(scope="module")
def pair(cache):
    """Returns the tiny pipeline by torch and by OpenVINO."""
    return make_pipeline(), make_pipeline().use_engine("openvino", cache)


def images(pipeline: Pipeline, prompts=PROMPTS[:2], **options) -> np.ndarray:
    return pipeline(prompts, seeds=list(range(len(prompts))), output_type="np", **options).images


def test_every_network_agrees_at_several_shapes(pair):
    torch_, openvino = pair
    unet, compiled = torch_.generator.unet, openvino.generator.unet
    for batch, height, width, count in ((1, 8, 8, 12), (3, 16, 8, 24)):
        x, tokens = torch.randn(batch, 4, height, width), torch.randn(batch, count, 32)
        cond = Conditioning(tokens, torch.ones(batch, count, dtype=torch.bool))
        t = torch.arange(batch) * 300
        with torch.no_grad():
            assert apart(compiled(x, t, cond), unet(x, t, cond)) <= 1e-5
            assert apart(openvino.autoencoder.decode(x), torch_.autoencoder.decode(x)) <= 1e-5
            pixels = torch.rand(batch, 3, 2 * height, 2 * width) * 2 - 1
            assert apart(openvino.autoencoder.encode(pixels).mean, torch_.autoencoder.encode(pixels).mean) <= 1e-5
    states, reference = (p.text_encoder(PROMPTS).conditioning for p in (openvino, torch_))
    assert apart(states.tokens, reference.tokens) <= 1e-5
    assert states.mask.equal(reference.mask)


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_gives_the_same_image(pair, solver):
    torch_, openvino = pair
    assert np.abs(images(openvino, solver=solver) - images(torch_, solver=solver)).max() <= 2 / 255


def test_other_ways_to_generate(pair):
    torch_, openvino = pair
    start = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8))
    mask = Image.fromarray(np.repeat([[0] * 8 + [255] * 8], 16, 0).astype(np.uint8))
    for options in (
        {"guidance_scale": 1.0},
        {"image": start, "strength": 0.6},
        {"image": start, "mask_image": mask},
        {"clip_skip": 2},
        {"prompt_syntax": "a1111", "long_prompts": True},
        {"height": 32, "width": 16},
    ):
        assert np.abs(images(openvino, **options) - images(torch_, **options)).max() <= 2 / 255, options


def test_inpainting_unet_reads_the_mask(cache):
    torch_, openvino = (make_pipeline(unet={"in_channels": 9}) for _ in range(2))
    openvino.use_engine("openvino", cache)
    start = Image.new("RGB", (16, 16), "red")
    options = {"image": start, "mask_image": Image.new("L", (16, 16), 255)}
    assert np.abs(images(openvino, **options) - images(torch_, **options)).max() <= 2 / 255


def test_masked_padding_is_an_input(cache):
    torch_, openvino = make_pipeline(), make_pipeline()
    for pipeline in (torch_, openvino):
        pipeline.generator.unet.mask_padding = True
    openvino.use_engine("openvino", cache)
    masked = images(openvino)
    assert np.abs(masked - images(torch_)).max() <= 2 / 255
    assert np.abs(masked - images(make_pipeline())).max() > 2 / 255


def test_float32_is_computed_in_float32(pair):
    """A CPU with bfloat16 instructions would choose them by itself, with an error of a hundredth."""
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    cond = pair[0].text_encoder(PROMPTS[:1]).conditioning
    with torch.no_grad():
        ours, reference = (p.generator.unet(x, torch.tensor([500]), cond) for p in reversed(pair))
    assert apart(ours, reference) <= 1e-4


def test_weights_are_freed_and_what_needs_them_is_refused(pair, tmp_path):
    openvino = pair[1]
    unet = openvino.generator.unet
    assert all(p.untyped_storage().nbytes() <= 8 for p in unet.parameters())
    assert next(unet.parameters()).dtype == torch.float32
    for refused in (
        lambda: openvino.save_pretrained(tmp_path),
        lambda: openvino.to(dtype=torch.bfloat16),
        lambda: openvino.networks,
    ):
        with pytest.raises(ConfigError, match="engine"):
            refused()
    assert not list(tmp_path.iterdir())


def test_few_executables_are_kept(pair):
    executables: Executables = pair[1].generator.unet._compiled_call_impl.executables
    most, executables.most = executables.most, 2
    try:
        for n in range(1, 5):
            images(pair[1], ["a red circle"] * n, num_inference_steps=1)
        assert len(executables.requests) == 2
    finally:
        executables.most = most


def test_cache_is_used_and_a_damaged_entry_is_rebuilt(tmp_path, capsys):
    reference = images(make_pipeline())
    make_pipeline().use_engine("openvino", tmp_path)
    assert capsys.readouterr().err.count("converting the") == 4
    make_pipeline().use_engine("openvino", tmp_path)
    assert "converting" not in capsys.readouterr().err
    [weights] = [p for p in tmp_path.glob("*/model.bin") if "U-Net" in (p.parent / "entry.json").read_text()]
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 64
    weights.write_bytes(data)
    pipeline = make_pipeline().use_engine("openvino", tmp_path)
    out = capsys.readouterr().err
    assert f"{weights.parent}: damaged" in out
    assert out.count("converting the") == 1
    assert np.abs(images(pipeline) - reference).max() <= 2 / 255


def test_other_weights_are_another_entry(tmp_path, capsys):
    make_pipeline().use_engine("openvino", tmp_path)
    capsys.readouterr()
    other = make_pipeline()
    with torch.no_grad():
        other.generator.unet.conv_out.bias += 1
    other.use_engine("openvino", tmp_path)
    assert capsys.readouterr().err.count("converting the U-Net") == 1


def test_without_a_cache(tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("")
    pipeline = make_pipeline().use_engine("openvino", file)
    assert "cannot be written" in capsys.readouterr().err
    assert np.abs(images(pipeline) - images(make_pipeline())).max() <= 2 / 255


def test_two_at_once_convert_once(tmp_path, capsys):
    pipelines = [make_pipeline(), make_pipeline()]
    threads = [threading.Thread(target=p.use_engine, args=("openvino", tmp_path)) for p in pipelines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert capsys.readouterr().err.count("converting the") == 4
    assert np.abs(images(pipelines[0]) - images(pipelines[1])).max() <= 2 / 255


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("T2I_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path / "openvino"
    monkeypatch.delenv("T2I_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "t2i" / "openvino"


def test_refusals(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="choose one of torch, openvino"):
        make_pipeline().use_engine("onnx")
    with pytest.raises(ConfigError, match="offers float32, bfloat16"):
        make_pipeline().to(dtype=torch.float16).use_engine("openvino", tmp_path)
    import t2i.engine.openvino as engine

    engine._core.cache_clear()
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ConfigError, match=r"pip install 't2i\[openvino\]'"):
        make_pipeline().use_engine("openvino", tmp_path)
    engine._core.cache_clear()


NO_NETWORK = """
import socket, sys
def refuse(*args, **kwargs):
    print("connected", args)
    raise OSError("no network")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
from tests.pipeline.tiny import make_pipeline
make_pipeline().use_engine("openvino", sys.argv[1])(["a red circle"], seeds=[1])
import time
time.sleep(0.5)  # telemetry is sent by a thread
"""


def test_nothing_is_sent(tmp_path):
    command = [sys.executable, "-c", NO_NETWORK, str(tmp_path)]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "connected" not in result.stdout


def test_generate_with_the_engine(tmp_path, monkeypatch, capsys):
    """The same image as by torch, the engine in its settings; the environment sets the default."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("T2I_CACHE", str(tmp_path / "cache"))
    make_pipeline().save_pretrained("model")

    def generate(out, *arguments):
        command = ["t2i", "generate", "a red circle", "-m", "model", "--seed", "1", "--steps", "3", "-o", out]
        monkeypatch.setattr(sys, "argv", [*command, *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        if ended.value.code:
            raise ended.value
        [image] = [path for path in Path(out).glob("*.png") if not path.name.startswith("grid")]
        return np.asarray(Image.open(image)).astype(int), read_settings(image)

    reference, settings = generate("a")
    assert "engine" not in settings
    monkeypatch.setenv("T2I_ENGINE", "openvino")
    for out, arguments in (("b", ()), ("c", ("--engine", "openvino"))):
        pixels, settings = generate(out, *arguments)
        assert np.abs(pixels - reference).max() <= 2 and settings["engine"] == "openvino"
    assert "engine" not in generate("d", "--engine", "torch")[1]
    monkeypatch.setenv("T2I_ENGINE", "tensorrt")
    with pytest.raises(SystemExit) as exit:
        generate("e")
    assert exit.value.code == 2 and "T2I_ENGINE = 'tensorrt': unknown" in capsys.readouterr().err


def test_a_lora_is_merged_before_the_engine_takes_over(cache):
    torch_, openvino = make_pipeline(), make_pipeline()
    for pipeline in (torch_, openvino):
        lora = {"unet": LoraConfig(rank=2)}
        network = pipeline.networks["unet"]
        add_lora(network, lora["unet"])
        with torch.no_grad():
            for name, weight in network.named_parameters():
                if "lora_B" in name:
                    weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name))) / 5)
    openvino.use_engine("openvino", cache)
    assert np.abs(images(openvino) - images(torch_)).max() <= 2 / 255
    assert np.abs(images(openvino) - images(make_pipeline())).max() > 2 / 255
