"""The pipeline of an order: its model with the VAE, embeddings, LoRAs, device and dtype that were given."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from t2i.cli.generate_options import Order, Reading, weights_of
from t2i.cli.messages import say
from t2i.files import sha256
from t2i.interop.lora import lora_files, merge_lora
from t2i.nn.attention import set_attention_backend
from t2i.pipeline import Pipeline
from t2i.pipeline.load import hashed_files, load_vae, locate
from t2i.text.inversion import add_embedding

DEFAULT_READING = Reading()


@dataclass(frozen=True)
class Session:
    """The options that all orders share."""

    model: Path
    out: Path
    device: str | None
    batch_size: int
    metadata: bool
    resume: bool
    preview_every: int | None
    reading: Reading = DEFAULT_READING


def open_pipeline(session: Session, order: Order) -> tuple[Pipeline, dict[str, Any]]:
    """Returns the pipeline of all orders, and the settings of its images that describe it."""
    options, model, reading = order.options, session.model, session.reading
    device = session.device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = options.get("dtype", "float32")
    place = locate(model, variant=reading.variant, revision=reading.revision)
    if reading.config is None and (config := order.made_with.get("model_config")) is not None and place.is_file():
        raise ValueError(f"{order.made_with['file']}: its model was read by the files of {config!r}; give --config DIR")
    prediction = reading.prediction or (order.made_with.get("prediction_type") if place.is_file() else None)
    pipeline = Pipeline.from_pretrained(
        place, variant=reading.variant, config=reading.config, prediction_type=prediction
    )
    for line in pipeline.report:
        say(f"model: {line}")
    name = model.resolve().name if model.is_dir() else model.name if model.is_file() else str(model)
    digest = sha256(*hashed_files(place, reading.variant))
    made_by = {"model": name, "model_sha256": digest, "dtype": dtype, "rng": "cpu"}
    made_by |= {} if reading.config is None else {"model_config": reading.config.resolve().name}
    made_by |= {} if prediction is None else {"prediction_type": prediction}
    if (path := options.get("vae")) is not None:
        vae, report = load_vae(path, pipeline.autoencoder)
        for line in report:
            say(f"vae: {line}")
        parts = (pipeline.scheduler, pipeline.defaults, pipeline.report)
        pipeline = Pipeline(pipeline.text_encoder, pipeline.generator, vae, *parts)
        made_by |= {"vae": path.name, "vae_sha256": sha256(*weights_of(path))}
    embeddings = options.get("embeddings", [])
    for file in embeddings:
        say(add_embedding(pipeline.text_encoder, file))
    if embeddings:
        made_by["embeddings"] = [[file.name, sha256(file)] for file in embeddings]
    for file, weight in (loras := options.get("loras", [])):
        say(merge_lora(pipeline.networks, file, weight))
    if loras:
        made_by["loras"] = [[file.resolve().name, sha256(*lora_files(file)), weight] for file, weight in loras]
    pipeline.to(device, getattr(torch, dtype))
    if (tile := options.get("vae_tile")) is not None:
        pipeline.enable_vae_tiling(tile)
        made_by["vae_tile"] = tile
    if (backend := options.get("attention", "sdpa")) != "sdpa":
        set_attention_backend(pipeline.generator.unet, backend)
        made_by["attention"] = backend
    if order.made_with:
        file, digest = order.made_with["file"], order.made_with["model_sha256"]
        if digest is None:
            say(f"{file}: an image of another program; {made_by['model']!r} draws it its own way")
        elif digest != made_by["model_sha256"]:
            say(f"{file}: was made with other weights than those of {made_by['model']!r}: another image comes out")
    return pipeline, made_by
