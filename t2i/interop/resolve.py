"""The configs of a single file: given by a folder, its metadata or a .yaml, otherwise inferred from its shapes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from t2i.generator.unet_config import UNetConfig
from t2i.interop.config_sources import parse_prediction, read_config_folder, read_metadata, read_yaml
from t2i.interop.infer import SD1, SD2, Family, find_family, infer_text, infer_unet, infer_vae
from t2i.interop.layout import Shape

Config = dict[str, Any]
SCALE = 0.18215  # of the latents of both families
BASE_STEPS = 875000  # after which SD 2's base for 512 pixels was published, the only one whose file records it
# scheduler_config.json of both families, but for what they predict.
SCHEDULER: Config = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "trained_betas": None,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "clip_sample": False,
}
ZERO_SNR: Config = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}  # Lin et al. 2024, 2305.08891
CLASSES = {SD1: "PNDMScheduler", SD2: "DDIMScheduler"}


class ModelConfigs(NamedTuple):
    """The configs of a single file by component, and a report of their sources."""

    configs: dict[str, Config]
    scheduler: Config
    tokenizer: Config | None
    defaults: Config | None
    report: list[str]
    source: str


def resolve(
    path: Path,
    shapes: Mapping[str, Shape],
    metadata: Mapping[str, str],
    global_step: int | None,
    *,
    config: Path | None,
    prediction: str | None,
) -> ModelConfigs:
    """Returns the configs of `config`, else of the file's metadata, else inferred; a `.yaml` changes the last two.

    The prediction type is `prediction`, else the folder's, the `.yaml`'s, the metadata's or the family's.
    """
    folder = {} if config is None else read_config_folder(config)
    embedded = read_metadata(metadata, path)
    notes = read_yaml(path)
    report: list[str] = []
    for source, given in ((config, folder), ("its metadata", embedded)):
        if given:
            report.append(f"configs of {', '.join(given)}: {source}")
    given = embedded | folder
    needed = [name for name in ("unet", "vae", "text_encoder", "scheduler") if name not in given]
    family = find_family(path, shapes) if needed else None
    if family:
        report.append(f"{family.name}, by the text encoder's key names and {family.width} wide text states")
    marked = "v_pred" in shapes
    predicts, why = find_prediction(family, folder, embedded, metadata, notes, marked, global_step, prediction)
    report.append(f"prediction {predicts}: {why}")
    configs = {name: given[name] for name in ("unet", "vae", "text_encoder") if name in given}
    if family:
        configs |= inferred(path, shapes, family, needed, predicts)
        report.append(f"configs of {', '.join(needed)}: inferred from the shapes and the family")
    scheduler = dict(given.get("scheduler", SCHEDULER | {"_class_name": CLASSES[family]} if family else {}))
    scheduler["prediction_type"] = predicts
    if "ztsnr" in shapes and "scheduler" not in given:
        scheduler |= {"_class_name": "DDIMScheduler"} | ZERO_SNR
        report.append("schedule: zero terminal SNR and trailing timesteps, as its key `ztsnr` says")
    if notes is not None:
        report += apply_yaml(path, notes, configs, scheduler, set(folder))
    tokenizer = embedded.get("tokenizer")
    if tokenizer is None:
        second = configs["text_encoder"].get("hidden_act") == "gelu"
        tokenizer = {"vocabulary": "clip", "pad_token": "!" if second else "<|endoftext|>", "model_max_length": 77}
        report.append("tokenizer: CLIP's standard vocabulary, padded with " + tokenizer["pad_token"])
    source = str(config) if folder else ("its metadata" if embedded else "inferred")
    return ModelConfigs(configs, scheduler, tokenizer, embedded.get("defaults"), report, source)


def inferred(
    path: Path, shapes: Mapping[str, Shape], family: Family, needed: list[str], predicts: str
) -> dict[str, Config]:
    """Returns the configs of the `needed` components; what no shape determines is that of the published models."""
    large = family is SD2 and predicts == "v_prediction"  # trained at 768 pixels; the others at 512
    configs: dict[str, Config] = {}
    if "unet" in needed:
        configs["unet"] = infer_unet(path, shapes, family.unet_heads)
        configs["unet"] |= {"sample_size": 96 if large else 64, "upcast_attention": large}
    if "vae" in needed:
        configs["vae"] = infer_vae(path, shapes) | {"sample_size": 768 if large else 512, "scaling_factor": SCALE}
    if "text_encoder" in needed:
        configs["text_encoder"] = infer_text(path, shapes)
    return configs


def find_prediction(
    family: Family | None,
    folder: Mapping[str, Config],
    embedded: Mapping[str, Config],
    metadata: Mapping[str, str],
    notes: Config | None,
    marked: bool,
    global_step: int | None,
    asked: str | None,
) -> tuple[str, str]:
    """Returns the prediction type and its source."""
    if asked is not None:
        return parse_prediction(asked, "--prediction-type"), "as asked for"
    spec = metadata.get("modelspec.prediction_type")
    sources = (
        (folder["scheduler"].get("prediction_type", "epsilon") if "scheduler" in folder else None, "the config folder"),
        (notes and notes["parameterization"], "the .yaml beside the file"),
        (embedded["scheduler"].get("prediction_type", "epsilon") if "scheduler" in embedded else None, "its metadata"),
        (spec if spec else None, "its metadata `modelspec.prediction_type`"),
        ("v_prediction" if marked else None, "its key `v_pred`"),
    )
    for value, who in sources:
        if value is not None:
            return parse_prediction(str(value), who), f"says {who}"
    if family is not SD2:
        return "epsilon", "as Stable Diffusion 1 was trained"
    if global_step == BASE_STEPS:
        return "epsilon", f"`global_step` is {BASE_STEPS}, that of Stable Diffusion 2's base for 512 pixels"
    return (
        "v_prediction",
        "assumed, as the file does not record it: Stable Diffusion 2 for 768 pixels predicts v, its base for 512 "
        "pixels epsilon; if the images are noise, give --prediction-type epsilon",
    )


def apply_yaml(path: Path, notes: Config, configs: dict[str, Config], scheduler: Config, fixed: set[str]) -> list[str]:
    """Applies the `.yaml` to the configs that are not `fixed`; returns a line for each change."""
    changes: dict[str, Config] = {"unet": {}, "vae": {}, "scheduler": {}}
    unet = configs["unet"]
    if notes.get("num_head_channels", -1) > 0:
        widths = UNetConfig.parse(unet, f"{path}: unet").block_out_channels
        changes["unet"]["attention_head_dim"] = [max(width // notes["num_head_channels"], 1) for width in widths]
    elif notes.get("num_heads", -1) > 0:
        changes["unet"]["attention_head_dim"] = notes["num_heads"]
    if "scale_factor" in notes:
        changes["vae"]["scaling_factor"] = notes["scale_factor"]
    names = {"linear_start": "beta_start", "linear_end": "beta_end", "timesteps": "num_train_timesteps"}
    changes["scheduler"] = {ours: notes[theirs] for theirs, ours in names.items() if theirs in notes}
    parts = configs | {"scheduler": scheduler}
    lines = []
    for name, values in changes.items():
        changed = {k: v for k, v in values.items() if name not in fixed and parts[name].get(k) != v}
        if name == "scheduler":
            scheduler |= changed
        else:
            configs[name] = configs[name] | changed
        lines += [f"{name}: {k} = {v}, says {path.with_suffix('.yaml').name}" for k, v in changed.items()]
    return lines
