"""OpenCLIP's text towers as CLIP's, against open_clip's own states."""

import json

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from t2i.text.clip import CLIPTextEncoder
from t2i.text.encoder import load_text_encoder
from t2i.text.openclip import find_weights, openclip_tokenizer, text_config

PROMPTS = ["a Photo of  a cat's 3 dogs, don't!", "", "crème brûlée ! 日本語", "word " * 100]
TEXT = {"width": 32, "heads": 2, "layers": 3}
VISION = {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 16}


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    """Random models of two tiny architectures, and their files."""
    folder = tmp_path_factory.mktemp("openclip")
    made = {}
    for arch, more in (("tiny-plain", {}), ("tiny-custom-quickgelu", {"quick_gelu": True, "custom_text": True})):
        config = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT} | more
        (folder / f"{arch}.json").write_text(json.dumps(config))
        open_clip.add_model_config(folder / f"{arch}.json")
        torch.manual_seed(0)
        model = open_clip.create_model(arch).eval()
        for name, weight in model.named_parameters():
            if "ln_" in name or "bias" in name:
                torch.nn.init.normal_(weight, std=0.5)
        save_file(model.state_dict(), folder / f"{arch}.safetensors")
        made[arch] = model, folder / f"{arch}.safetensors"
    return made


@pytest.mark.parametrize("arch", ["tiny-plain", "tiny-custom-quickgelu"])
def test_states_are_those_of_open_clip(towers, arch, tmp_path):
    model, path = towers[arch]
    found = load_text_encoder(f"openclip:{arch}/{path}")
    ids = open_clip.get_tokenizer(arch)(PROMPTS)
    with torch.no_grad():
        text = getattr(model, "text", model)
        x, mask = text._embeds(ids) if text is not model else (None, None)
        if x is None:
            x, mask = model.token_embedding(ids) + model.positional_embedding, model.attn_mask
        wanted = text.ln_final(text.transformer(x, attn_mask=mask))
        pooled = model.encode_text(ids)
    encoded = found(PROMPTS)
    assert isinstance(found, CLIPTextEncoder)
    assert (encoded.conditioning.tokens - wanted).abs().max() <= 1e-5
    assert (encoded.conditioning.pooled - pooled).abs().max() <= 1e-5
    assert encoded.truncated[:3] == ["", "", ""] and encoded.truncated[3].startswith("word word")
    images = [k for k in load_file(path) if k.startswith(("visual.", "logit_scale"))]
    assert sum(found.ignored.values()) == len(images) > 0
    found.save(tmp_path)
    again = load_text_encoder(tmp_path)
    assert torch.equal(again(PROMPTS).conditioning.tokens, encoded.conditioning.tokens)
    assert again.fingerprint() == found.fingerprint()


def test_the_penultimate_layer_is_open_clip_s(towers):
    _, path = towers["tiny-plain"]
    model = towers["tiny-plain"][0]
    read = load_text_encoder(f"openclip:tiny-plain/{path}", layer=-2)
    ids = open_clip.get_tokenizer("tiny-plain")(PROMPTS)
    with torch.no_grad():
        layers = model.forward_intermediates(text=ids, text_indices=2, normalize_intermediates=True)
    assert (read(PROMPTS).conditioning.tokens - layers["text_intermediates"][0]).abs().max() <= 1e-5
    whole = load_text_encoder(f"openclip:tiny-plain/{path}")
    assert torch.equal(whole.with_clip_skip(2)(PROMPTS).conditioning.tokens, read(PROMPTS).conditioning.tokens)
    assert read(PROMPTS).conditioning.pooled is None


def test_ids_are_open_clip_s():
    own, theirs = openclip_tokenizer(), open_clip.get_tokenizer("ViT-B-32")
    texts = [*PROMPTS, "!", "!!! a!b", "it's 1999's dogs' #tag @me 50% ok?"]
    ids = own(texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    assert torch.equal(ids, theirs(texts))


def test_sizes_are_the_architectures():
    config = text_config("ViT-H-14")
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (1024, 24, 16)
    assert config.intermediate_size == 4096 and config.hidden_act == "gelu" and config.vocab_size == 49408
    assert text_config("ViT-L-14-quickgelu").hidden_act == "quick_gelu"


def test_what_is_no_clip_text_tower_is_named(towers, tmp_path):
    _, path = towers["tiny-plain"]
    for name, fault in (
        ("ViT-B-16-SigLIP/webli", "no_causal_mask.*not CLIP's network"),
        ("xlm-roberta-base-ViT-B-32/laion5b_s13b_b90k", "hf_model_name"),
        ("coca_ViT-L-14/laion2b_s13b_b90k", "embed_cls"),
        ("ViT-H14/laion2b", "no such architecture; did you mean .*ViT-H-14"),
        ("ViT-H-14/none", "neither a file nor a tag of ViT-H-14; its tags: .*laion2b_s32b_b79k"),
        ("ViT-H-14", "openclip:ARCH/PRETRAINED"),
        (f"tiny-custom-quickgelu/{tmp_path}/w.bin", "neither a file"),
        (f"ViT-B-32/{path}", "missing .*"),
    ):
        with pytest.raises(ValueError, match=f"(?s){fault}"):
            load_text_encoder(f"openclip:{name}")
    (tmp_path / "w.bin").write_bytes(b"\x80")
    with pytest.raises(ValueError, match="pickle"):
        load_text_encoder(f"openclip:tiny-plain/{tmp_path}/w.bin")
    with pytest.raises(ValueError, match="these weights belong to openclip:ViT-L-14-quickgelu/openai"):
        find_weights("ViT-L-14", "openai")
