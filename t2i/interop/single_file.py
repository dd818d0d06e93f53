"""Stable Diffusion in one safetensors file: the original code's layout, read into components and written from them."""

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from t2i.autoencoder.kl import AutoencoderKL
from t2i.component import (
    PICKLES,
    Component,
    aligned,
    check_keys,
    few_tensors,
    open_safetensors,
    pickle_refused,
)
from t2i.files import write_safetensors
from t2i.generator.unet import UNet
from t2i.interop import keys_text
from t2i.interop.config_sources import METADATA
from t2i.interop.detect import refuse_other_families
from t2i.interop.ignored_keys import ignored_lines, split_ignorable
from t2i.interop.keys_text import TextConfig, clip_places, openclip_places, text_shapes
from t2i.interop.keys_unet import PREFIX, ema_key, unet_places
from t2i.interop.keys_vae import vae_places
from t2i.interop.layout import Place, Shape, bring, send, shapes_there
from t2i.interop.resolve import resolve

Config = dict[str, Any]
Components = Mapping[str, tuple[Config, dict[str, Tensor]]]
PARTS = ("unet", "vae", "text_encoder")
NOT_AVERAGED = "the U-Net's own weights, whose EMA weights are read instead"


class Layout(NamedTuple):
    """A component's tensors: our shapes, and the place of each in the file."""

    shapes: dict[str, Shape]
    places: dict[str, Place]


class Checkpoint(NamedTuple):
    """The contents of a single file, by Hugging Face's names; `report` lists what was inferred or ignored.

    `tokenizer`: what `write_single_file` was given, or {"vocabulary": "clip", "pad_token": ..}, CLIP's standard one.
    `defaults`: what it was given, a t2i.json; None in files of others.
    """

    components: dict[str, tuple[Config, dict[str, Tensor]]]
    scheduler: Config
    tokenizer: Config | None
    defaults: Config | None
    report: list[str]


def read_single_file(
    file_path: Path,
    *,
    config: Path | None = None,
    prediction: str | None = None,
    ema: bool = False,
    original: Path | None = None,
) -> Checkpoint:
    """Returns the components in a single file; their configs are of a folder (`config`), its own, or inferred.

    Every key is accounted for: one that neither a component nor the table of ignorable keys explains, a missing or a
    mis-shaped one is a ValueError that lists them. `ema`: the U-Net's EMA weights instead of its own. `original`: the
    file that messages name and beside which a .yaml may be, where `file_path` is a temporary copy of its tensors.
    """
    path = Path(file_path if original is None else original)
    with open_single_file(Path(file_path)) as (file, shapes):
        refuse_other_families(path, shapes)
        steps = int(file.get_tensor("global_step")) if shapes.get("global_step") in ((), (1,)) else None
        resolved = resolve(path, shapes, file.metadata() or {}, steps, config=config, prediction=prediction)
        layouts = {name: layout(name, resolved.configs[name], path, shapes) for name in PARTS}
        remaining = set(shapes)
        ignored: dict[str, int] = {}
        if ema:
            layouts["unet"] = ema_layout(layouts["unet"], path, shapes)
            unet_keys = {key for key in shapes if key.startswith(PREFIX)}
            remaining, ignored = remaining - unet_keys, {NOT_AVERAGED: len(unet_keys)}
        expected: dict[str, Shape] = {}
        for part in layouts.values():
            expected |= shapes_there(part.places, part.shapes)
        others = {key: None for key in shapes if key in remaining and key not in expected}
        unused = TextConfig.parse(resolved.configs["text_encoder"], str(path)).num_hidden_layers
        unexplained, reasons = split_ignorable(others, "single_file", unused)
        kept = {key: shapes[key] for key in shapes if key in remaining and (key in expected or key in unexplained)}
        whole = {key for key in kept if not file.get_slice(key).get_dtype().startswith(("F", "BF"))}
        check_keys(on_meta(expected), on_meta(kept, whole), f"{path} (configs: {resolved.source})")
        components = {
            name: (resolved.configs[name], {k: aligned(v) for k, v in bring(part.places, file.get_tensor).items()})
            for name, part in layouts.items()
        }
    report = [*resolved.report, *ignored_lines(ignored | reasons)]
    return Checkpoint(components, resolved.scheduler, resolved.tokenizer, resolved.defaults, report)


def write_single_file(
    path: Path,
    components: Components,
    scheduler: Config,
    *,
    dtype: torch.dtype | None = None,
    tokenizer: Config | None = None,
    defaults: Config | None = None,
) -> None:
    """Writes the original code's layout, floating tensors in `dtype` if given, the configs in the file's metadata.

    `tokenizer` and `defaults` are any JSON objects, which `read_single_file` gives back. The file appears whole or
    not at all. What the layout has no place for is a ValueError.
    """
    path = Path(path)
    refuse_unwritable(path, components)
    state: dict[str, Tensor] = {}
    for name in PARTS:
        config, tensors = components[name]
        part = layout(name, config, path, None)
        check_keys(on_meta(part.shapes), tensors, f"{path} ({name})")
        state |= send(part.places, tensors)
    configs = {name: components[name][0] for name in PARTS} | {"scheduler": scheduler}
    more = {k: v for k, v in (("tokenizer", tokenizer), ("defaults", defaults)) if v is not None}
    metadata = json.dumps({"schema_version": 1} | configs | more, sort_keys=True, ensure_ascii=False)
    tensors = {
        k: v.detach().to(device="cpu", dtype=dtype if v.is_floating_point() else None).contiguous()
        for k, v in state.items()
    }
    write_safetensors(path, tensors, {METADATA: metadata})  # one entry: of two, safetensors draws the order by lot


def refuse_unwritable(path: Path, components: Components) -> None:
    """Raises ValueError for what the layout of the original code cannot hold."""
    folder = "write a diffusers folder (--format diffusers)"
    if odd := set(components) ^ set(PARTS):
        raise ValueError(
            f"{path}: a single file holds {', '.join(PARTS)}; missing or too much: {', '.join(sorted(odd))}"
        )
    unet, text = components["unet"][0], components["text_encoder"][0]
    if unet.get("encoder_hid_dim") is not None:
        raise ValueError(
            f"{path}: the U-Net has a projector in front of its cross-attention (`encoder_hid_proj`), for which a "
            f"single file has no place; {folder}"
        )
    kind = text.get("control") or text.get("model_type", "clip_text_model")
    if kind != "clip_text_model":
        raise ValueError(f"{path}: a single file has places for CLIP's text tower alone, not for {kind!r}; {folder}")


@contextmanager
def open_single_file(path: Path) -> Iterator[tuple[Any, dict[str, Shape]]]:
    """Yields an open safetensors file and its shapes; tensors are read on demand."""
    if path.suffix in PICKLES:
        raise pickle_refused(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    with open_safetensors(path) as file:
        yield file, {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118


def layout(name: str, config: Config, path: Path, file_shapes: Mapping[str, Shape] | None) -> Layout:
    """Returns the places of a component's tensors; `file_shapes` is None for a file to write."""
    where = f"{path}: {name}"
    if name == "text_encoder":
        text = TextConfig.parse(config, where)
        return Layout(text_shapes(text), text_places(text, file_shapes))
    kind: type[Component] = UNet if name == "unet" else AutoencoderKL
    parsed: Any = kind.Config.parse(config, where)
    with few_tensors(where), torch.device("meta"):
        network = kind(parsed)
    shapes: dict[str, Shape] = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    return Layout(shapes, unet_places(parsed, shapes) if name == "unet" else vae_places(parsed, shapes))


def text_places(text: TextConfig, file_shapes: Mapping[str, Shape] | None) -> dict[str, Place]:
    """Returns the places by the file's names; a file to write has OpenCLIP's for towers with its activation."""
    if file_shapes is None:
        return openclip_places(text) if text.hidden_act == "gelu" else clip_places(text)
    if any(key.startswith(keys_text.OPENCLIP) for key in file_shapes):
        return openclip_places(text)
    return clip_places(text, flat=not any(key.startswith(keys_text.CLIP + keys_text.TOWER) for key in file_shapes))


def ema_layout(part: Layout, path: Path, file_shapes: Mapping[str, Shape]) -> Layout:
    """Returns the U-Net's tensors at the places of their EMA weights."""
    if not any(key.startswith("model_ema.diffusion_model") for key in file_shapes):
        raise ValueError(f"{path}: holds no EMA weights of the U-Net (model_ema.*); leave ema out")
    return Layout(part.shapes, {name: Place(ema_key(place.key), place.form) for name, place in part.places.items()})


def on_meta(shapes: Mapping[str, Shape], whole: Collection[str] = ()) -> dict[str, Tensor]:
    """Tensors of these shapes without any contents; `whole`: the keys of those of integers."""
    kinds = {True: torch.int64, False: torch.float32}
    return {key: torch.empty(shape, device="meta", dtype=kinds[key in whole]) for key, shape in shapes.items()}
