"""What `-m` names: a diffusers folder, a hub repository or a single file, opened as a pipeline."""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTokenizer, PreTrainedTokenizerFast

from t2i.autoencoder.kl import AutoencoderKL
from t2i.component import check_keys, few_tensors, read_safetensors, weight_files, weight_variants
from t2i.generator.scheduler_config import SchedulerConfig
from t2i.generator.unet import UNet
from t2i.interop.ignorable import split_ignorable
from t2i.interop.infer import infer_vae
from t2i.interop.keys_vae import PREFIX, vae_places
from t2i.interop.layout import bring
from t2i.interop.lora import lora_files, merge_lora
from t2i.interop.single_file import Checkpoint, open_single_file, read_single_file
from t2i.pipeline import Defaults, Pipeline
from t2i.pipeline.finetuned import Finetuned, read_pointer
from t2i.pipeline.folder import bind, check_preview, locate
from t2i.text.clip import CONFIG_KEYS, CLIPTextEncoder
from t2i.text.inversion import add_embedding
from t2i.text.openclip import PAD, openclip_tokenizer
from t2i.text.tokenizer import END, load_tokenizer, save_tokenizer

CLIP = "clip"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
LDM_VAE = "encoder.mid.block_1.norm1.weight"  # a key of every autoencoder by the names of the original code


def locate_model(name: str | Path, *, variant: str | None = None, revision: str | None = None) -> Path:
    """The folder or the file that `name` is; a hub repository is fetched."""
    path = Path(name)
    if not path.is_file():
        return locate(name, revision, variant)
    if revision is not None or variant is not None:
        asked = "--variant" if revision is None else "--revision"
        raise ValueError(f"{path}: is a single file; {asked} chooses among the files of a folder or hub repository")
    return path


def open_model(
    name: str | Path,
    *,
    variant: str | None = None,
    revision: str | None = None,
    config: Path | None = None,
    prediction: str | None = None,
) -> Pipeline:
    """The pipeline that `name` is, on the CPU in float32; `config` and `prediction` are for what a file leaves out."""
    place = locate_model(name, variant=variant, revision=revision)
    if place.is_file():
        return build(read_file(place, config, prediction), place, config)
    if config is not None or prediction is not None:
        asked = "--prediction-type" if config is None else "--config"
        raise ValueError(f"{place}: is a folder, which says it itself; {asked} is for single files")
    if (run := read_pointer(place)) is not None:
        return open_finetuned(run, variant)
    return Pipeline.from_pretrained(place, variant=variant)


def open_finetuned(run: Finetuned, variant: str | None) -> Pipeline:
    """The model that was fine-tuned with what was learnt: words added, LoRAs merged."""
    pipeline = open_model(run.model, variant=variant)
    said = [add_embedding(pipeline.text_encoder, file) for file in run.embeddings]
    said += [merge_lora(pipeline.networks, file) for file in run.loras]
    pipeline.report = (*pipeline.report, *said)
    return pipeline


def read_file(path: Path, config: Path | None, prediction: str | None, ema: bool = False) -> Checkpoint:
    """What a single file holds, in the dtypes that it has."""
    return read_single_file(path, config=config, prediction=prediction, ema=ema)


def hashed_files(place: Path, variant: str | None) -> list[Path]:
    """The files whose sha256 tells a model: the single file, or those of the U-Net's weights in order."""
    if place.is_file():
        return [place]
    if (run := read_pointer(place)) is not None:
        learnt = [*run.embeddings, *(file for lora in run.loras for file in lora_files(lora))]
        return [*hashed_files(locate_model(run.model, variant=variant), variant), *learnt]
    unet = place / "unet"
    there = variant if variant in weight_variants(unet, UNet.weights_name) else None
    return list(weight_files(unet, UNet.weights_name, there).files)


def build(found: Checkpoint, where: Path, config: Path | None, dtype: torch.dtype | None = torch.float32) -> Pipeline:
    """The pipeline of a single file's contents, in `dtype`, None for those of the file."""
    tokenizer, notes = choose_tokenizer(found, where, config)
    text_config, text_state = found.components["text_encoder"]
    unet_config, unet_state = found.components["unet"]
    vae_config, vae_state = found.components["vae"]
    with few_tensors(where):
        values = CLIPTextConfig(**{k: text_config[k] for k in CONFIG_KEYS if k in text_config and k != "model_type"})
        text = CLIPTextEncoder.build(values, text_state, tokenizer, where)
    unet = UNet.build(UNet.Config.parse(unet_config, f"{where}: unet"), unet_state, where)
    vae = AutoencoderKL.build(AutoencoderKL.Config.parse(vae_config, f"{where}: vae"), vae_state, where)
    scheduler = SchedulerConfig.parse(found.scheduler, f"{where}: scheduler")
    own = found.defaults
    defaults = Defaults(solver=scheduler.solver) if own is None else Defaults.parse(own, f"{where}: defaults")
    check_preview(defaults, vae, where)
    for network in (text, unet, vae) if dtype is not None else ():
        network.to(dtype=dtype)
    report = (*found.report, *notes)
    try:
        return Pipeline(text, bind(unet, scheduler, where), vae, scheduler, defaults, report)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def choose_tokenizer(found: Checkpoint, where: Path, config: Path | None) -> tuple[CLIPTokenizer, list[str]]:
    """The tokenizer: of the config folder, of the file's own metadata, else CLIP's."""
    if config is not None and (config / "tokenizer").is_dir():
        return load_tokenizer(config / "tokenizer"), [f"tokenizer: {config / 'tokenizer'}"]
    values = found.tokenizer
    assert values is not None
    if values.get("vocabulary") == CLIP:
        pad = values.get("pad_token", END)
        length, split = values.get("model_max_length", 77), values.get("split_special_tokens", pad == PAD)
        if pad not in (END, PAD) or not isinstance(length, int) or not 2 < length <= 2**16:
            raise ValueError(f"{where}: its tokenizer pads with {pad!r} to {length!r}: {END} or {PAD} to 77 is known")
        return clip_tokenizer(pad, bool(split), length), []
    files = values.get("files")
    if not isinstance(files, dict) or not all(isinstance(files.get(name), str) for name in TOKENIZER_FILES):
        raise ValueError(f"{where}: its metadata has no tokenizer's files ({', '.join(TOKENIZER_FILES)})")
    with tempfile.TemporaryDirectory() as tmp:
        for name in TOKENIZER_FILES:
            (Path(tmp) / name).write_text(files[name], encoding="utf8")
        try:
            return load_tokenizer(tmp), ["tokenizer: its own, in the file's metadata"]
        except ValueError as error:
            raise ValueError(str(error).replace(tmp, f"{where}: the tokenizer in its metadata")) from None


def clip_tokenizer(pad: str, split: bool, length: int = 77) -> CLIPTokenizer:
    """CLIP's standard vocabulary; `split`: special tokens in a text are read as plain text."""
    model = json.loads(openclip_tokenizer().backend_tokenizer.to_str())["model"]
    merges: Any = [tuple(pair) for pair in model["merges"]]
    return CLIPTokenizer(
        vocab=model["vocab"], merges=merges, pad_token=pad, model_max_length=length, split_special_tokens=split
    )


def describe_tokenizer(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """What a single file says of its tokenizer: how it uses CLIP's vocabulary, or all of its files."""
    backend = tokenizer.backend_tokenizer
    split, pad = bool(backend.encode_special_tokens), str(tokenizer.pad_token)
    told = {"pad_token": pad, "model_max_length": tokenizer.model_max_length, "split_special_tokens": split}
    if len(tokenizer) == len(standard := clip_tokenizer(pad, split)) and pad in (END, PAD):
        ours, theirs = (json.loads(t.backend_tokenizer.to_str())["model"] for t in (tokenizer, standard))
        if ours["vocab"] == theirs["vocab"] and ours["merges"] == theirs["merges"]:
            return {"vocabulary": CLIP} | told
    with tempfile.TemporaryDirectory() as tmp:
        save_tokenizer(tokenizer, tmp)
        files = {name: (Path(tmp) / name).read_text(encoding="utf8") for name in TOKENIZER_FILES}
    return {"vocabulary": "own", "files": files} | told


def read_vae(path: Path, like: AutoencoderKL) -> tuple[AutoencoderKL, list[str]]:
    """An autoencoder's folder, or a file of its weights by our names or the original code's; and what was ignored.

    A file says nothing of its config: it is `like`'s, as is its latent scale.
    """
    if path.is_dir():
        if (path / "vae").is_dir():
            raise ValueError(f"--vae {path}: a whole pipeline; give {path / 'vae'}")
        return AutoencoderKL.load(path), []
    with open_single_file(path) as (_, shapes):  # refuses a pickle by name
        prefix = next((p for p in (PREFIX, "") if p + LDM_VAE in shapes), None)
    state, ignored = read_safetensors(path), {}
    if prefix is not None:
        state = {k: v for k, v in state.items() if k.startswith(prefix)}
        state, ignored = split_ignorable({k.removeprefix(prefix): v for k, v in state.items()}, "vae")
        state = from_ldm(path, state, like)
    vae = AutoencoderKL.build(like.config, AutoencoderKL.rename_keys(state), path)
    return vae.to(torch.float32), [f"{path.name}: ignored {n} keys: {reason}" for reason, n in ignored.items()]


def from_ldm(path: Path, state: dict[str, Tensor], like: AutoencoderKL) -> dict[str, Tensor]:
    """The tensors of an autoencoder of `like`'s shape out of the original code's names."""
    places = vae_places(like.config, like.state_dict(), "")
    theirs = {place.key: like.state_dict()[name] for name, place in places.items()}
    widths = infer_vae(path, {key: tuple(tensor.shape) for key, tensor in state.items()}, "")
    for key in ("latent_channels", "block_out_channels"):
        if list(pair := [widths[key]]) != [_plain(getattr(like.config, key))]:
            raise ValueError(f"{path}: `{key}` is {pair[0]} there, {getattr(like.config, key)} in the model's VAE")
    missing = {key: tensor for key, tensor in theirs.items() if key not in state}
    extra = {key: tensor for key, tensor in state.items() if key not in theirs}
    if missing or extra:
        check_keys(missing, extra, path)
    return bring(places, state.__getitem__)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
