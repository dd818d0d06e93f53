"""Settings travel in the picture: ours there and back in two formats, other programs', and files that lie."""

import io
import json
import random
import struct
import zlib

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as effort
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from t2i.diffusion.names import SOLVER_NAMES, parse_solver
from t2i.pipeline.metadata import from_a1111, read_png, request_from, to_a1111, to_texts
from t2i.pipeline.metadata.fields import MOST_TEXT, solver_settings
from t2i.pipeline.outputs import ImageFolder
from tests.hang import no_hang

OURS = {
    "prompt": "a red circle, left: a blue square",
    "negative": "blurry",
    "steps": 20,
    "cfg": 7.5,
    "solver": "dpm++2m",
    "sigmas": "karras",
    "seed": 41,
    "size": "64x48",
    "model": "glyphs",
    "model_sha256": "0123456789abcdef" * 4,
    "rng": "cpu",
}
EXACT = ("prompt", "negative", "steps", "cfg", "solver", "sigmas", "seed", "size")
FRAGMENTS = [
    *'",:\n \t\r\0\\🦊é\u2028\x85',
    "a fox",
    "Steps: 3",
    "Negative prompt: x",
    "Negative prompt:",
    't2i prompt: "x"',
    "Steps: 1, Sampler: Euler, CFG scale: 1, Seed: 1",
]
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | st.lists(
    st.sampled_from(FRAGMENTS), max_size=12
).map("".join)


def png(path, texts, packed=False):
    """A picture with texts, as Pillow writes them."""
    info = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        info.add_text(key, text, zip=packed)
    Image.new("RGB", (3, 2), "red").save(path, "PNG", pnginfo=info)
    return path


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunk(path, kind, data):
    """A picture with one chunk of any content, before its end."""
    file = io.BytesIO()
    Image.new("L", (1, 1)).save(file, "PNG")
    whole = file.getvalue()
    path.write_bytes(whole[:-12] + chunk(kind, data) + whole[-12:])
    return path


@effort(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    TEXTS,
    TEXTS,
    st.integers(1, 1000),
    st.floats(0, 1000),
    st.sampled_from(sorted(SOLVER_NAMES)),
    st.sampled_from([None, "karras", "exponential"]),
    st.integers(0, 2**63 - 1),
    TEXTS,
)
@example("x\nNegative prompt: y", "", 3, 1.0, "ddim", None, 0, 'a "model", v: 2')
@example("", "Negative prompt: Negative prompt:", 3, 1e-07, "ddim", None, 0, '"m"')
@example("🦊" * 10_000, "\n" * 10_000, 3, 1.0, "ddim", None, 0, " m ")
@example("", "", 3, 0.1, "ddim", None, 0, "")
def test_settings_come_back_from_both_formats(
    tmp_path, prompt, negative, steps, cfg, solver, sigmas, seed, model
):  # fmt: skip
    asked = OURS | {"prompt": prompt, "negative": negative, "steps": steps, "cfg": cfg, "solver": solver, "seed": seed}
    asked |= {"sigmas": sigmas, "model": model}
    path = png(tmp_path / "ours.png", to_texts(asked))
    found = read_png(path)
    assert found.source == "t2i" and found.ignored == []
    assert found.settings == {"schema_version": 1} | {k: v for k, v in asked.items() if v is not None}
    with Image.open(path) as picture:
        written = picture.text["parameters"]
    assert written == to_a1111(asked)
    found = read_png(png(tmp_path / "a1111.png", {"parameters": written}))
    assert found.source == "a1111" and found.raw == written and found.ignored == []
    assert {k: found.settings.get(k) for k in EXACT} == {k: asked[k] for k in EXACT}
    assert found.settings.get("model", "") == model and found.settings["model_hash"] == "0123456789"


def test_the_text_is_a1111s():
    assert to_a1111(OURS | {"strength": 0.5, "clip_skip": 2, "eta": 0.0, "model": "a, b"}) == (
        "a red circle, left: a blue square\nNegative prompt: blurry\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 41, Size: 64x48, "
        'Model hash: 0123456789, Model: "a, b", Denoising strength: 0.5, Clip skip: 2, RNG: CPU, Version: t2i'
    )
    back = from_a1111(to_a1111(OURS | {"strength": 0.5, "clip_skip": 2, "eta": 0.5, "variation_seed": 3,
                                       "variation_strength": 0.25})).settings  # fmt: skip
    assert {k: back[k] for k in ("strength", "clip_skip", "eta", "variation_seed", "variation_strength")} == {
        "strength": 0.5, "clip_skip": 2, "eta": 0.5, "variation_seed": 3, "variation_strength": 0.25
    }  # fmt: skip


def test_the_keys_that_only_we_read_are_written_only_where_they_are_needed():
    for plain in ("a fox", "two\nlines", "Steps: 3", 'a "quoted", word: x', "Steps: 1, Sampler: Euler, Seed: 1"):
        assert "t2i prompt" not in to_a1111(OURS | {"prompt": plain})
    for ambiguous in ("Negative prompt: x", " a fox", "a \nb", "\n", "a\0b"):
        text = to_a1111(OURS | {"prompt": ambiguous})
        assert "t2i prompt" in text and "\0" not in text


def test_solvers_are_known_by_other_programs_names():
    for names in SOLVER_NAMES.values():
        for name in (names.label, *names.others, f"{names.label} Karras"):
            found = solver_settings(name)
            assert found == {} or (found["solver"], found.get("sigmas")) == parse_solver(name)
    assert solver_settings("DPM++ 2M Karras") == {"solver": "dpm++2m", "sigmas": "karras"}
    assert solver_settings("k_dpmpp_2_a") == {"solver": "dpm++2s"} and solver_settings("Restart") == {}


@pytest.mark.parametrize("name", ["prompt", "negative"])
def test_half_a_character_is_refused_before_anything_is_written(tmp_path, name):
    broken = OURS | {name: "a \ud83e fox"}
    with pytest.raises(ValueError, match="lone surrogate, at 2"):
        to_a1111(broken)
    with pytest.raises(ValueError, match=f"{name} = .*lone surrogate"):
        ImageFolder(tmp_path).add(Image.new("RGB", (3, 2)), broken)
    assert list(tmp_path.iterdir()) == []
    escaped = json.dumps({"schema_version": 1} | broken)
    with pytest.raises(ValueError, match="lone surrogate"):
        read_png(png(tmp_path / "x.png", {"t2i": escaped}))
    with pytest.raises(ValueError, match="and an image holds 1048576"):
        to_texts(OURS | {"prompt": "x" * MOST_TEXT})


A1111 = """masterpiece, (a fox:1.2), [snow]
second line
Negative prompt: lowres, bad anatomy
worst quality
Steps: 28, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 965400086, Size: 512x768, Model hash: 45dee52b, \
Model: some_model, Denoising strength: 0.6, Clip skip: 2, ENSD: 31337, \
Lora hashes: "one: 9d2b, two: 8a1c", Eta: 0.5, Version: v1.7.0"""


def test_a1111(tmp_path):
    found = read_png(png(tmp_path / "x.png", {"parameters": A1111, "Software": "x"}))
    assert found.source == "a1111" and found.raw == A1111
    assert found.settings == {
        "prompt": "masterpiece, (a fox:1.2), [snow]\nsecond line",
        "negative": "lowres, bad anatomy\nworst quality",
        "steps": 28, "solver": "dpm++2m", "sigmas": "karras", "cfg": 7.0, "seed": 965400086, "size": "512x768",
        "model_hash": "45dee52b", "model": "some_model", "strength": 0.6, "clip_skip": 2,
    }  # fmt: skip
    assert found.ignored == [
        'ENSD = "31337"', 'Lora hashes = "one: 9d2b, two: 8a1c"', 'Eta = "0.5"', 'Version = "v1.7.0"', 'text "Software"'
    ]  # fmt: skip


def test_a1111_with_lines_after_the_settings():
    """As the extension Dynamic Prompts writes them."""
    written = (
        "a fox\nNegative prompt: bad\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x64\n"
        "Template: a {fox|cat}\nNegative Template: bad"
    )
    image = from_a1111(written)
    assert image.settings | {"solver": "euler"} == {
        "prompt": "a fox", "negative": "bad", "steps": 20, "solver": "euler", "cfg": 7, "seed": 1, "size": "64x64"
    }  # fmt: skip
    assert [line for line in image.ignored if "after the settings" in line] == [
        'a line after the settings = "Template: a {fox|cat}"',
        'a line after the settings = "Negative Template: bad"',
    ]


def test_a1111_newer_forms():
    line = "Steps: 20, Sampler: {}, Schedule type: {}, CFG scale: 7, Seed: 1, Size: 8x8, Denoising strength: 0.4"
    found = from_a1111("x\n" + line.format("Euler a", "Exponential"))
    assert (found.settings["solver"], found.settings["sigmas"], found.ignored) == ("euler-a", "exponential", [])
    found = from_a1111("x\n" + line.format("DPM++ SDE", "Automatic"))
    assert not {"solver", "sigmas"} & set(found.settings)
    assert found.ignored == ['Sampler = "DPM++ SDE"', 'Schedule type = "Automatic"']
    hires = from_a1111("x\n" + line.format("Euler", "Uniform") + ", Hires upscale: 2")
    assert "strength" not in hires.settings and 'Denoising strength = "0.4"' in hires.ignored
    assert from_a1111("only words: 1, and: 2").settings == {"prompt": "only words: 1, and: 2", "negative": ""}


INVOKEAI = {
    "app_version": "4.2.0", "generation_mode": "txt2img", "positive_prompt": "a fox", "negative_prompt": "blurry",
    "width": 768, "height": 432, "seed": 356120443, "rand_device": "cpu", "cfg_scale": 7.5,
    "cfg_rescale_multiplier": 0.0, "steps": 50, "scheduler": "dpmpp_2m_sde_k", "clip_skip": 0,
    "model": {"key": "1-2", "hash": "blake3:ab", "name": "some-model", "base": "sd-1", "type": "main"},
    "vae": {"model_name": "mse"}, "loras": [],
}  # fmt: skip


def test_invokeai(tmp_path):
    path = png(tmp_path / "x.png", {"invokeai_metadata": json.dumps(INVOKEAI), "invokeai_graph": "{}"}, packed=True)
    found = read_png(path)
    assert found.source == "invokeai"
    assert found.settings == {
        "prompt": "a fox", "negative": "blurry", "steps": 50, "cfg": 7.5, "guidance_rescale": 0.0, "seed": 356120443,
        "clip_skip": 1, "rng": "cpu", "size": "768x432", "solver": "dpm++2m-sde", "sigmas": "karras",
        "model": "some-model",
    }  # fmt: skip
    assert [entry.split(" = ")[0] for entry in found.ignored] == [
        "app_version", "generation_mode", "model", "vae", 'text "invokeai_graph"'
    ]  # fmt: skip
    old = INVOKEAI | {"scheduler": "tcd", "model": {"model_name": "old"}}
    found = read_png(png(tmp_path / "y.png", {"invokeai_metadata": json.dumps(old)}))
    assert "solver" not in found.settings and 'scheduler = "tcd"' in found.ignored and found.settings["model"] == "old"


def test_invokeais_first_versions(tmp_path):
    prompt = [{"prompt": "a fox [blurry, dark] in snow", "weight": 1}]
    image = {"type": "txt2img", "prompt": prompt, "steps": 50, "cfg_scale": 7.5,
             "threshold": 0, "height": 512, "width": 640, "seed": 123, "sampler": "k_lms"}  # fmt: skip
    outer = {"model": "stable diffusion", "model_weights": "sd-1.4", "model_hash": "ab" * 32, "image": image}
    texts = {"Dream": '"other" -s1', "sd-metadata": json.dumps(outer)}
    found = read_png(png(tmp_path / "x.png", texts))
    assert found.settings == {
        "prompt": "a fox in snow", "negative": "blurry, dark", "steps": 50, "cfg": 7.5, "seed": 123,
        "size": "640x512", "solver": "lms", "model": "sd-1.4", "model_sha256": "ab" * 32,
    }  # fmt: skip
    assert found.ignored == ['type = "txt2img"', "threshold = 0", 'model = "stable diffusion"', 'text "Dream"']


@pytest.mark.parametrize(
    "dream",
    [
        '"a fox - it runs" -s50 -S123 -W640 -H512 -C7.5 -Ak_euler_a -G0.8 --grid',
        "a fox - it runs -s 50 -S 123 -W 640 -H 512 -C 7.5 -A k_euler_a -G 0.8 --grid",
    ],
)
def test_dream(tmp_path, dream):
    found = read_png(png(tmp_path / "x.png", {"Dream": dream}))
    assert found.source == "invokeai" and found.settings == {
        "prompt": "a fox - it runs", "steps": 50, "cfg": 7.5, "seed": 123, "size": "640x512", "solver": "euler-a"
    }  # fmt: skip
    assert found.ignored == ['-G = "0.8"']


FOOOCUS = {
    "adm_guidance": "(1.5, 0.8, 0.3)", "base_model": "juggernaut", "base_model_hash": "c9e3e68f89", "clip_skip": 2,
    "full_prompt": ["a fox", "cinematic still a fox"], "guidance_scale": 4, "metadata_scheme": "fooocus",
    "negative_prompt": "", "performance": "Speed", "prompt": "a fox", "resolution": "(1152, 896)",
    "sampler": "dpmpp_2m_sde_gpu", "scheduler": "karras", "seed": "1234567890", "sharpness": 2, "steps": 30,
    "styles": "['Fooocus V2']", "version": "Fooocus v2.5.0",
}  # fmt: skip


@pytest.mark.parametrize("texts", [{"fooocus_scheme": "fooocus"}, {}])
def test_fooocus(tmp_path, texts):
    found = read_png(png(tmp_path / "x.png", texts | {"parameters": json.dumps(FOOOCUS)}))
    assert found.source == "fooocus" and found.settings == {
        "prompt": "a fox", "negative": "", "steps": 30, "cfg": 4.0, "seed": 1234567890, "model": "juggernaut",
        "model_hash": "c9e3e68f89", "size": "1152x896", "solver": "dpm++2m-sde", "sigmas": "karras", "clip_skip": 2,
    }  # fmt: skip
    assert {"full_prompt", "styles", "adm_guidance"} <= {entry.split(" = ")[0] for entry in found.ignored}


def test_fooocus_in_a1111s_manner(tmp_path):
    text = (
        "cinematic still a fox, 35mm\nNegative prompt: anime\nSteps: 30, Sampler: DPM++ 2M SDE Karras, Seed: 5, "
        'Size: 1152x896, CFG scale: 4, Sharpness: 2, ADM Guidance: "(1.5, 0.8, 0.3)", Model: juggernaut, '
        'Scheduler: karras, Raw prompt: "a fox,\\nrunning", Raw negative prompt: , Version: Fooocus v2.5.0'
    )
    found = read_png(png(tmp_path / "x.png", {"parameters": text, "fooocus_scheme": "a1111"}))
    assert found.source == "fooocus" and found.settings == {
        "prompt": "a fox,\nrunning", "negative": "", "steps": 30, "solver": "dpm++2m-sde", "sigmas": "karras",
        "seed": 5, "size": "1152x896", "cfg": 4.0, "model": "juggernaut",
    }  # fmt: skip
    assert found.ignored[0] == 'the prompt in the text = "cinematic still a fox, 35mm"'


@pytest.mark.parametrize("order", ["utf-16-be", "utf-16-le"])
@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_the_comment_of_jpeg_and_webp(tmp_path, suffix, order):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + A1111.encode(order)
    Image.new("RGB", (8, 8)).save(tmp_path / f"x.{suffix}", exif=exif)
    found = read_png(tmp_path / f"x.{suffix}")
    assert found.source == "a1111" and found.raw == A1111 and found.settings["seed"] == 965400086
    exif = Image.Exif()
    exif[0x9286], exif[0x927C] = json.dumps(FOOOCUS), "fooocus"
    Image.new("RGB", (8, 8)).save(tmp_path / f"y.{suffix}", exif=exif)
    assert read_png(tmp_path / f"y.{suffix}").settings["seed"] == 1234567890
    Image.new("RGB", (8, 8)).save(tmp_path / f"z.{suffix}")
    with pytest.raises(ValueError, match=r"z\.\w+: holds no settings"):
        read_png(tmp_path / f"z.{suffix}")


def ours(**other):
    return json.dumps({"schema_version": 1, **OURS, **other})


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({}, "holds no settings of t2i, A1111, InvokeAI, Fooocus or SwarmUI$"),
        ({"workflow": "{}"}, "a ComfyUI graph is in it"),
        ({"t2i": "{"}, "is not JSON"),
        ({"t2i": "[]"}, "is not a JSON object"),
        ({"t2i": "{}"}, "schema_version = null is not a whole number"),
        ({"t2i": ours(cfg=float("nan"))}, "holds NaN"),
        ({"t2i": ours(cfg=1).replace('"cfg": 1', '"cfg": 1e999')}, "holds 1e999, which is too large"),
        ({"t2i": ours(seed=1).replace('"seed": 1', '"seed": ' + "9" * 5000)}, "holds a number of 5000 digits"),
        ({"t2i": ours(seed=-1)}, "seed = -1 is not in 0"),
        ({"t2i": ours(seed=True)}, "seed = true is not a whole number"),
        ({"t2i": ours(steps="3")}, 'steps = "3" is not a whole number'),
        ({"t2i": ours(steps=10**9)}, "steps = 1000000000 is not in"),
        ({"t2i": ours(cfg=[7.5])}, "cfg = .* is not a number"),
        ({"t2i": ours(prompt=["x"])}, "prompt = .* is not text"),
        ({"t2i": ours(size="0x64")}, "size = .* is not WxH"),
        ({"t2i": ours(clip_skip=0)}, "clip_skip = 0 is not in"),
        ({"t2i": ours(image="../x.png", image_sha256="ab" * 32)}, "image = .* is not the name of a file"),
        ({"t2i": ours(vae="x")}, "vae and vae_sha256 belong together"),
        ({"t2i": ours(embeddings=["x"])}, "embeddings = .* is not a list of files"),
        ({"t2i": ours(guidance_interval=[0.1])}, "guidance_interval = .* is not a pair"),
        ({"t2i": ours(towards=["x", "y"])}, "towards = .* is not a number"),
        ({"t2i": ours(solver="magic")}, "solver = .* is none of"),
        ({"t2i": ours(extra=0)[:-2] + "[" * 40 + "]" * 40 + "}"}, "nests deeper than 32"),
        ({"t2i": "[" * 200_000}, "nests deeper than 32"),
        ({"parameters": "x\nSteps: many, Sampler: Euler, Seed: 1"}, 'Steps = "many" is not a whole number'),
        ({"parameters": "x\nSteps: 3, Sampler: Euler, CFG scale: 1e999"}, "CFG scale = .* is not"),
        ({"parameters": "x\nSteps: 3, Sampler: Euler, Size: 99999x9"}, "Size = .* is not WxH"),
        ({"invokeai_metadata": json.dumps(INVOKEAI | {"steps": {}})}, "steps = {} is not a whole number"),
        ({"sd-metadata": '{"image": []}'}, "its `image` is not a JSON object"),
        ({"sd-metadata": '{"image": {"prompt": [1]}}'}, "not a list of prompts"),
        ({"Dream": "x" * 200_000}, "longer than 100000"),
        ({"parameters": json.dumps(FOOOCUS | {"seed": "-5"})}, "seed = -5 is not in"),
    ],
)
def test_what_is_refused(tmp_path, texts, message):
    with pytest.raises(ValueError, match=r"x\.png: .*" + message):
        read_png(png(tmp_path / "x.png", texts))


def test_an_import_string_is_a_prompt_and_nothing_more(tmp_path):
    code = "__import__('os').system('touch ran')"
    fooocus = FOOOCUS | {"resolution": code, "styles": code, "adm_guidance": code}
    found = read_png(png(tmp_path / "x.png", {"parameters": json.dumps(fooocus)}))
    assert "size" not in found.settings and any(entry.startswith("resolution = ") for entry in found.ignored)


def test_damaged_and_cut_files_are_refused(tmp_path):
    whole = png(tmp_path / "x.png", {"parameters": A1111}).read_bytes()
    for length in range(0, len(whole), 3):
        (tmp_path / "cut.png").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"cut\.png: (cut off in|neither PNG)"):
            read_png(tmp_path / "cut.png")
    for place in range(16, len(whole), 3):
        (tmp_path / "bad.png").write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=r"bad\.png: (damaged PNG|cut off)"):
            read_png(tmp_path / "bad.png")
    for path in (tmp_path / "none.png", tmp_path):
        with pytest.raises(ValueError, match="no such file"):
            read_png(path)


@pytest.mark.parametrize(
    ("kind", "data", "message"),
    [
        (b"zTXt", b"parameters\0\0" + zlib.compress(bytes(50 * MOST_TEXT)), "more than 1048576 bytes"),
        (b"iTXt", b"parameters\0\1\0\0\0" + zlib.compress(bytes(50 * MOST_TEXT)), "more than 1048576 bytes"),
        (b"tEXt", b"parameters\0" + b"x" * (MOST_TEXT + 1), "more than 1048576 bytes"),
        (b"tEXt", b"parameters\0" + b"x" * (4 * MOST_TEXT), "more than 1048576 bytes"),
        (b"zTXt", b"parameters\0\0" + zlib.compress(b"x" * 99)[:-6], "cut off"),
        (b"zTXt", b"parameters\0\0nonsense", "text 'parameters'"),
        (b"zTXt", b"parameters\0\1nonsense", "unknown compression"),
        (b"iTXt", b"parameters\0\0\0\0\0\xff\xfe", "not UTF-8"),
        (b"tEXt", b"parameters", "without a text"),
        (b"a1b2", b"", "where none can be"),
    ],
)
def test_chunks_that_lie(tmp_path, kind, data, message):
    with no_hang(), pytest.raises(ValueError, match=rf"x\.png: .*{message}"):
        read_png(with_chunk(tmp_path / "x.png", kind, data))


@pytest.mark.parametrize(
    "text",
    [
        "a" * (MOST_TEXT - 9),
        "a: " * 340_000,
        'ab: "' * 200_000,
        'a,b:"\\' * 170_000,
        " " * (MOST_TEXT - 9) + "x",
        "\n" * 500_000 + "Negative prompt:" * 9,
        '{"' + '\\"' * 500_000,
        '{"a": ' * 170_000,
    ],
)
@pytest.mark.parametrize("key", ["parameters", "t2i", "sd-metadata"])
def test_a_mebibyte_made_to_be_slow(tmp_path, key, text):
    if key == "sd-metadata":
        text = json.dumps({"image": {"prompt": text[: MOST_TEXT // 4]}})
    path = with_chunk(tmp_path / "x.png", b"tEXt", key.encode() + b"\0" + text.encode())
    try:
        with no_hang():
            read_png(path)
    except ValueError:
        assert key != "sd-metadata"


def test_a_hundred_mutations_are_read_or_refused(tmp_path):
    """Bytes changed, cut out, doubled and inserted, half of them under a right checksum."""
    rng = random.Random(5)
    texts = [to_texts(OURS), {"parameters": A1111}, {"invokeai_metadata": json.dumps(INVOKEAI)},
             {"parameters": json.dumps(FOOOCUS), "fooocus_scheme": "fooocus"},
             {"Dream": '"x [y]" -s50 -S1 -W8 -H8'}]  # fmt: skip
    outcomes = []
    for k in range(100):
        path = tmp_path / f"{k}.png"
        chosen = texts[k % len(texts)]
        if k % 2:
            key, text = next(iter(chosen.items()))
            with_chunk(path, b"iTXt", key.encode() + b"\0\0\0\0\0" + mutated(rng, text.encode()))
        else:
            path.write_bytes(mutated(rng, png(path, chosen).read_bytes()))
        try:
            with no_hang():
                request_from(read_png(path).settings)
            outcomes.append("read")
        except ValueError as error:
            outcomes.append(str(error))
    refused = [outcome for outcome in outcomes if outcome != "read"]
    assert len(refused) >= 50 and len(outcomes) - len(refused) >= 10
    assert all(str(tmp_path) in reason or "no prompt" in reason or "schema_version" in reason for reason in refused)


def mutated(rng, data):
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 3])):
        a = rng.randrange(len(data))
        b = min(len(data), a + rng.randrange(1, 20))
        match rng.randrange(4):
            case 0:
                data[a] = rng.randrange(256)
            case 1:
                del data[a:b]
            case 2:
                data[a:a] = data[a:b]
            case 3:
                data[a:a] = rng.choice([b"\0", b'"', b"[[[[", b"\xff", b"1e999", b"\n", b"NaN", b",", b"-"])
    return bytes(data)


def test_the_request_of_a_picture(tmp_path):
    asked = OURS | {"guidance_interval": (0.2, 0.8), "long_prompts": True, "dtype": "float32", "new": 3}
    found = read_png(ImageFolder(tmp_path).add(Image.new("RGB", (3, 2)), asked))
    assert found.ignored == ["new = 3"]
    assert request_from(found.settings) == {
        "prompts": [OURS["prompt"]], "negative": "blurry", "steps": 20, "cfg": 7.5, "solver": "dpm++2m",
        "sigmas": "karras", "seed": 41, "size": "64x48", "guidance_interval": [0.2, 0.8], "long_prompts": True,
        "dtype": "float32",
    }  # fmt: skip
    assert request_from({"prompt": ""}) == {"prompts": [""]}
    with pytest.raises(ValueError, match="hold no prompt"):
        request_from({"steps": 3})


def test_an_unknown_schema_is_shown_and_not_asked_for(tmp_path):
    text = json.dumps({"schema_version": 2, "prompt": ["of another", "shape"]})
    found = read_png(png(tmp_path / "x.png", {"t2i": text}))
    assert found.settings == {"schema_version": 2} and found.ignored == ['prompt = ["of another", "shape"]']
    with pytest.raises(ValueError, match="schema_version = 2 is unknown"):
        request_from(found.settings)


def test_of_two_texts_with_one_key_the_last_counts_and_the_other_is_said(tmp_path):
    path = with_chunk(tmp_path / "x.png", b"tEXt", b"parameters\0first")
    whole = path.read_bytes()
    path.write_bytes(whole[:-12] + chunk(b"tEXt", b"parameters\0second") + whole[-12:])
    found = read_png(path)
    assert found.settings["prompt"] == "second" and found.ignored == ['text "parameters"']


def test_json_under_a1111s_key_is_read_by_the_program_that_wrote_it(tmp_path):
    parameters = {"prompt": "a fox", "negativeprompt": "bad", "steps": 20, "cfgscale": 7, "seed": 1, "width": 64}
    parameters |= {"height": 32, "sampler": "euler", "model": "sd15", "swarm_version": "0.9"}
    image = read_png(png(tmp_path / "swarm.png", {"parameters": json.dumps({"sui_image_params": parameters})}))
    assert image.source == "swarmui" and image.settings == {
        "prompt": "a fox", "negative": "bad", "steps": 20, "cfg": 7, "seed": 1, "size": "64x32", "solver": "euler",
        "model": "sd15",
    }  # fmt: skip
    assert image.ignored == ['swarm_version = "0.9"']
    for unknown in ({}, {"prompt": "a fox"}, {"c": "a fox", "uc": "", "seed": 1}):
        with pytest.raises(ValueError, match="a JSON object of a program that is not known here"):
            read_png(png(tmp_path / "other.png", {"parameters": json.dumps(unknown)}))
