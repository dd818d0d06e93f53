"""The recipe of a fine-tuning run, and its defaults by the method, the model and the number of images."""

import math
from typing import Any, Literal, get_args

from pydantic import Field, model_validator

from t2i.config import Section
from t2i.errors import ConfigError
from t2i.nn.lora import LoraConfig
from t2i.training.recipes import Recipe

Method = Literal["full", "lora", "dreambooth", "textual-inversion"]
METHODS: tuple[str, ...] = get_args(Method)
SMALL_LATENTS = 16  # side of the latents up to which a model is small: larger batches and learning rates
RATES = {"lora": 1e-4, "full": 1e-5, "dreambooth": 5e-6}
EMBEDDING_RATE = 0.05  # textual inversion: the learning rate as a fraction of the embeddings' root mean square
TEMPLATES = ("a photo of {token}", "a picture of {token}", "{token}")


class Inversion(Section):
    """Textual inversion (Gal et al. 2022): a new token, learned as vectors of the text encoder."""

    token: str = Field(default="<new>", min_length=1, description="the new token, as prompts will write it")
    initializer: str | None = Field(default=None, description="a known word to start from; default: the mean of all")
    vectors: int = Field(default=1, ge=1, le=64, description="number of vectors of the token")
    templates: tuple[str, ...] = Field(
        default=TEMPLATES, min_length=1, description="captions; {token} is the token, {caption} the image's own caption"
    )

    @model_validator(mode="after")
    def _named(self) -> "Inversion":
        for template in self.templates:
            if "{token}" not in template:
                raise ValueError(f"templates: {template!r} has no {{token}}: such a caption cannot train the token")
            try:
                template.format(token="", caption="")
            except (KeyError, IndexError, ValueError):
                raise ValueError(f"templates: {template!r} has braces other than {{token}} and {{caption}}") from None
        return self


class Prior(Section):
    """Prior preservation (Ruiz et al. 2023) on class images, generated once by the untrained model."""

    prompt: str = Field(pattern=r"\S", description="prompt of the class, for example 'a dog'")
    count: int = Field(default=100, gt=0, description="number of class images; missing ones are generated")
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False, description="weight of the class images' loss")
    folder: str | None = Field(default=None, description="folder of the class images; default RUN/class")


class Tags(Section):
    """Captions that are lists of tags, shuffled anew at each step (kohya's shuffle_caption)."""

    shuffle: bool = False
    keep: int = Field(default=0, ge=0, description="number of leading tags that keep their place; kohya's keep_tokens")
    separator: str = ","


class SampleImages(Section):
    """The images generated before, during and after training, always from the same noise."""

    prompts: tuple[str, ...] = Field(default=(), description="default: captions of held-out images")
    old_prompts: tuple[str, ...] = Field(default=(), description="prompts of what the model could do before training")
    seed: int = Field(default=0, ge=0)
    solver: str | None = None
    steps: int | None = Field(default=None, gt=0)
    guidance: float | None = Field(default=None, ge=0)


class FinetuneRecipe(Recipe):
    """The recipe of `t2i finetune`."""

    model: str = Field(description="the model to fine-tune: a folder, a single file or a hub name")
    method: Method = "lora"
    held_out: int | None = Field(
        default=None, gt=0, description="number of held-out images; default: a fifth up to 8, or every 20th"
    )
    draws: int = Field(default=20, gt=0, description="number of (t, noise) at which each held-out image is evaluated")
    cache: str | None = Field(default=None, description="folder of cached latents and text states; default RUN/cache")
    flip: bool = Field(default=False, description="mirror each image with probability 1/2")
    caption_dropout: float = Field(
        ge=0, lt=1, description="fraction of captions replaced by the unconditional embedding, drawn at each step"
    )
    timestep_bias: float = Field(default=1.0, ge=1, description="t = T u^(1/bias), u uniform: above 1 favours noisy t")
    tags: Tags = Tags()
    lora: LoraConfig | None = Field(default=None, description="for method lora; optional for dreambooth")
    text_encoder: bool = Field(default=False, description="full, dreambooth: train the text encoder's weights too")
    inversion: Inversion | None = Field(default=None, description="for method textual-inversion")
    prior: Prior | None = Field(default=None, description="for method dreambooth")
    sample: SampleImages = SampleImages()

    @model_validator(mode="after")
    def _one_method(self) -> "FinetuneRecipe":
        allowed = {"lora": {"lora"}, "full": set(), "dreambooth": {"lora", "prior"}, "textual-inversion": {"inversion"}}
        for section in ("lora", "inversion", "prior"):
            if getattr(self, section) is not None and section not in allowed[self.method]:
                methods = ", ".join(method for method, sections in allowed.items() if section in sections)
                raise ValueError(f"`{section}` does not apply to method={self.method} (only to {methods}): remove it")
        if self.text_encoder and (self.lora is not None or self.method == "textual-inversion"):
            raise ValueError("`text_encoder` trains the full weights: with a LoRA set lora.text_encoder=true instead")
        if self.tags.shuffle and self.method == "textual-inversion":
            raise ValueError("`tags.shuffle` does not apply to method=textual-inversion, whose captions are templates")
        return self

    @property
    def trains_text(self) -> bool:
        """Returns True if the text states change during training."""
        lora = self.lora is not None and self.lora.text_encoder
        return self.text_encoder or lora or self.method == "textual-inversion"


def fill(values: dict[str, Any], images: int, latents: int, embeddings: float) -> dict[str, Any]:
    """Returns `values` with defaults for missing keys, by the method, the number of training images and the model.

    `latents` is the side of the model's latents, `embeddings` the root mean square of its token embeddings. Values of
    wrong types are left to the recipe's own validation.
    """
    values = {k: v for k, v in values.items() if v is not None}
    method = values.setdefault("method", "lora")
    if method not in METHODS:
        raise ConfigError("method", f"unknown: choose one of {', '.join(METHODS)}", method)
    if method == "lora":
        values.setdefault("lora", {})
    if method == "textual-inversion":
        values.setdefault("inversion", {})
    inverts, lora = method == "textual-inversion", values.get("lora") is not None
    values.setdefault("caption_dropout", 0.1 if method in ("lora", "full") else 0.0)
    if not isinstance(values.get("train", {}), dict):
        return values
    train: dict[str, Any] = dict(values.get("train", {}))
    small = latents <= SMALL_LATENTS
    epochs = train.pop("epochs", None)
    batch = train.setdefault("global_batch", min(images, 32 if small else 4))
    if not isinstance(batch, int) or batch < 1 or not isinstance(epochs, int | None):
        return values | {"train": train | ({} if epochs is None else {"epochs": epochs})}
    seen = min(max(100 * images, 400 if method == "dreambooth" else 2000), 40_000)
    if epochs is not None:
        if "steps" in train:
            raise ConfigError("train.epochs", "give either train.epochs or train.steps, not both", epochs)
        seen = epochs * images
    steps = train.setdefault("steps", max(math.ceil(seen / batch), 1))
    rate = embeddings * EMBEDDING_RATE if inverts else RATES["lora" if lora else method] * (10 if small else 1)
    train.setdefault("lr", float(f"{rate:.2g}"))
    train.setdefault("weight_decay", 0.0 if inverts else 0.01)
    if method == "full":
        train.setdefault("ema", 0.999)
    if not isinstance(steps, int) or steps < 1:
        return values | {"train": train}
    train.setdefault("warmup_steps", min(steps // 20, 100))
    for key, parts in {"log_every": 100, "validate_every": 5, "sample_every": 5, "save_every": 4}.items():
        train.setdefault(key, max(steps // parts, 1))
    return values | {"train": train}
