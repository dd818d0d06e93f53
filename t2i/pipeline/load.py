"""The one loader: the components in a diffusers folder, a hub repository, a single file or a fine-tuned run."""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import Tensor
from transformers import CLIPTextConfig

from t2i.autoencoder.kl import AutoencoderKL
from t2i.component import check_keys, few_tensors, read_safetensors, weight_files, weight_variants
from t2i.errors import ConfigError
from t2i.generator.scheduler_config import SchedulerConfig
from t2i.generator.unet import UNet
from t2i.interop.ignored_keys import split_ignorable
from t2i.interop.infer import infer_vae
from t2i.interop.keys_vae import PREFIX, vae_places
from t2i.interop.layout import bring
from t2i.interop.lora import lora_files, merge_lora
from t2i.interop.single_file import Checkpoint, open_single_file, read_single_file
from t2i.interop.tokenizer import choose_tokenizer
from t2i.pipeline.finetuned import Finetuned, read_pointer
from t2i.pipeline.folder import (
    COMPONENTS,
    INDEX,
    NETWORKS,
    OWN,
    Defaults,
    Parts,
    bind,
    check_preview,
    read_folder,
)
from t2i.text.clip import CONFIG_KEYS, CLIPTextEncoder
from t2i.text.inversion import add_embedding

LDM_VAE = "encoder.mid.block_1.norm1.weight"  # a key of every autoencoder by the names of the original code


def load(
    name: str | Path,
    *,
    revision: str | None = None,
    variant: str | None = None,
    config: str | Path | None = None,
    prediction_type: str | None = None,
) -> Parts:
    """Returns the components that `name` stands for, on the CPU in float32.

    `name` is a folder, a hub repository OWNER/NAME (at `revision`), a single safetensors file or the folder of a
    fine-tuning. `variant` chooses among a folder's weights; `config` (a folder of JSON configs) and `prediction_type`
    give what a single file leaves out.
    """
    place = locate(name, revision=revision, variant=variant)
    if place.is_file():
        configs = None if config is None else Path(config)
        return from_checkpoint(read_single_file(place, config=configs, prediction=prediction_type), place, configs)
    for key, value in (("config", config), ("prediction_type", prediction_type)):
        if value is not None:
            raise ConfigError(key, f"is for single files; {place} is a folder, which holds its own configs")
    if (run := read_pointer(place)) is not None:
        return _read_finetuned(run, variant)
    return read_folder(place, variant)


def locate(name: str | Path, *, revision: str | None = None, variant: str | None = None) -> Path:
    """Returns the file or the folder called `name`, or of a hub repository, downloaded unless it is cached."""
    path = Path(name)
    if path.is_file():
        for key, value in (("revision", revision), ("variant", variant)):
            if value is not None:
                raise ConfigError(key, f"is for folders and hub repositories; {path} is a single file", value)
        return path
    if path.is_dir():
        if revision is not None:
            raise ConfigError("revision", f"is for hub repositories; {path} is a local folder", revision)
        return path
    if path.suffix in (".safetensors", ".ckpt"):
        raise ValueError(f"{path}: no such file")
    if path.is_absolute() or len(path.parts) != 2 or str(path).startswith("."):
        raise ValueError(f"{path}: no such folder; a model is a folder with {INDEX}, {', '.join(COMPONENTS)}")
    place = _fetch(str(name), revision, _patterns(variant))
    if all(weight_variants(place / part, file) for part, file in NETWORKS.items()):
        return place
    return _fetch(str(name), revision, _patterns("*"))  # some component has other variants alone


def _patterns(variant: str | None) -> list[str]:
    """Returns the files to fetch: configs, tokenizers and the safetensors of one variant ("*": of all)."""
    patterns = [INDEX, OWN, "scheduler/*.json", "tokenizer/*"]
    for part, file in NETWORKS.items():
        stem, _, suffix = file.rpartition(".")
        mark = "" if variant is None else "*" if variant == "*" else f".{variant}"
        patterns += [f"{part}/config.json", f"{part}/{stem}{mark}.{suffix}"]
        patterns += [f"{part}/{stem}{mark}-?????-of-?????.{suffix}", f"{part}/{stem}-?????-of-?????{mark}.{suffix}"]
        patterns.append(f"{part}/{stem}.{suffix}.index{mark}.json")
    return patterns


def _fetch(name: str, revision: str | None, patterns: list[str]) -> Path:
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        cause = str(error).splitlines()[0]
        at = "" if revision is None else f" at {revision}"
        raise ValueError(f"model {name!r}{at}: no such folder, and the hub did not give it ({cause})") from None


def _read_finetuned(run: Finetuned, variant: str | None) -> Parts:
    """Returns the base model with what a fine-tuning learnt: tokens added, LoRAs merged into the weights."""
    parts = load(run.model, variant=variant)
    networks = {"unet": parts.generator.unet, "text_encoder": parts.text_encoder}
    report = [add_embedding(parts.text_encoder, file) for file in run.embeddings]
    report += [merge_lora(networks, file) for file in run.loras]
    return parts._replace(report=(*parts.report, *report))


def hashed_files(place: Path, variant: str | None) -> list[Path]:
    """Returns the files whose SHA-256, one after the other, identifies a model.

    They are the single file, or a folder's weights of U-Net, text encoder and VAE, and its tokenizer; then what a
    fine-tuning learnt.
    """
    if place.is_file():
        return [place]
    if (run := read_pointer(place)) is not None:
        learnt = [*run.embeddings, *(file for lora in run.loras for file in lora_files(lora))]
        return [*hashed_files(locate(run.model, variant=variant), variant), *learnt]
    words = sorted((place / "tokenizer").glob("*.json")) + sorted((place / "tokenizer").glob("*.txt"))
    return [*(file for part in NETWORKS for file in _part_files(place, part, variant)), *words]


def unet_files(place: Path, variant: str | None) -> list[Path]:
    """Returns the files that identified a folder before text encoder and VAE were hashed too: the U-Net's weights."""
    return _part_files(place, "unet", variant) if (place / "unet").is_dir() else hashed_files(place, variant)


def _part_files(place: Path, part: str, variant: str | None) -> list[Path]:
    folder, name = place / part, NETWORKS[part]
    variants = weight_variants(folder, name)  # control encoders have no weights
    return list(weight_files(folder, name, variant if variant in variants else None).files) if variants else []


def from_checkpoint(
    checkpoint: Checkpoint, where: Path, config: Path | None, dtype: torch.dtype | None = torch.float32
) -> Parts:
    """Returns the components of a single file's contents, in `dtype`, or in those of the file if None."""
    tokenizer, notes = choose_tokenizer(checkpoint, where, config)
    text_config, text_state = checkpoint.components["text_encoder"]
    unet_config, unet_state = checkpoint.components["unet"]
    vae_config, vae_state = checkpoint.components["vae"]
    with few_tensors(where):
        values = CLIPTextConfig(**{k: text_config[k] for k in CONFIG_KEYS if k in text_config and k != "model_type"})
        text = CLIPTextEncoder.build(values, text_state, tokenizer, where)
    unet = UNet.build(UNet.Config.parse(unet_config, f"{where}: unet"), unet_state, where)
    vae = AutoencoderKL.build(AutoencoderKL.Config.parse(vae_config, f"{where}: vae"), vae_state, where)
    scheduler = SchedulerConfig.parse(checkpoint.scheduler, f"{where}: scheduler")
    if checkpoint.defaults is None:
        defaults = Defaults(solver=scheduler.solver)
    else:
        defaults = Defaults.parse(checkpoint.defaults, f"{where}: defaults")
    check_preview(defaults, vae, where)
    for network in (text, unet, vae) if dtype is not None else ():
        network.to(dtype=dtype)
    report = (*checkpoint.report, *notes)
    return Parts(text, bind(unet, scheduler, where), vae, scheduler, defaults, report)


def load_vae(path: Path, like: AutoencoderKL) -> tuple[AutoencoderKL, list[str]]:
    """Returns the autoencoder in a folder, or in a file of weights by our names or the original code's, and a report.

    A file has no config: it gets that of `like`, with its latent scale.
    """
    if path.is_dir():
        if (path / "vae").is_dir():
            raise ConfigError("vae", f"{path} is a whole pipeline; give {path / 'vae'}")
        return AutoencoderKL.load(path), []
    with open_single_file(path) as (_, shapes):  # refuses a pickle by name
        prefix = next((p for p in (PREFIX, "") if p + LDM_VAE in shapes), None)
    state, ignored = read_safetensors(path), {}
    if prefix is not None:
        state = {k: v for k, v in state.items() if k.startswith(prefix)}
        state, ignored = split_ignorable({k.removeprefix(prefix): v for k, v in state.items()}, "vae")
        state = _rename_ldm_vae(path, state, like)
    vae = AutoencoderKL.build(like.config, AutoencoderKL.rename_keys(state), path)
    return vae.to(torch.float32), [f"{path.name}: ignored {n} keys: {reason}" for reason, n in ignored.items()]


def _rename_ldm_vae(path: Path, state: dict[str, Tensor], like: AutoencoderKL) -> dict[str, Tensor]:
    """Returns the tensors of an autoencoder of `like`'s shape, renamed from the original code's names."""
    places = vae_places(like.config, like.state_dict(), "")
    expected = {place.key: like.state_dict()[name] for name, place in places.items()}
    inferred = infer_vae(path, {key: tuple(tensor.shape) for key, tensor in state.items()}, "")
    for key in ("latent_channels", "block_out_channels"):
        value: Any = getattr(like.config, key)
        if inferred[key] != (list(value) if isinstance(value, tuple) else value):
            raise ValueError(f"{path}: `{key}` is {inferred[key]} in the file, {value} in the model's VAE")
    missing = {key: tensor for key, tensor in expected.items() if key not in state}
    extra = {key: tensor for key, tensor in state.items() if key not in expected}
    if missing or extra:
        check_keys(missing, extra, path)
    return bring(places, state.__getitem__)
