"""The recipe of a fine-tuning, and what it takes by default from the method, the model and the number of pictures."""

import math
from typing import Any, Literal, get_args

from pydantic import Field, model_validator

from t2i.config import Section, TrainConfig
from t2i.nn.lora import LoraConfig
from t2i.training.recipes import Recipe

Method = Literal["full", "lora", "dreambooth", "textual-inversion"]
METHODS: tuple[str, ...] = get_args(Method)
SMALL_LATENTS = 16  # side of the latents up to which a model is a toy: larger batches and rates
RATES = {"lora": 1e-4, "full": 1e-5, "dreambooth": 5e-6}
OF_EMBEDDINGS = 0.05  # textual inversion: the rate as a share of the embeddings' root mean square
TEMPLATES = ("a photo of {token}", "a picture of {token}", "{token}")


class Inversion(Section):
    """Textual inversion (Gal et al. 2022): a new word, learnt as vectors of the text encoder."""

    token: str = Field(default="<new>", min_length=1, description="the new word, as prompts will write it")
    initializer: str | None = Field(default=None, description="a known word to begin from; else the mean of all words")
    vectors: int = Field(default=1, ge=1, le=64, description="how many vectors the word is")
    templates: tuple[str, ...] = Field(
        default=TEMPLATES, min_length=1, description="captions; {token} the word, {caption} the picture's own"
    )

    @model_validator(mode="after")
    def _named(self) -> "Inversion":
        for template in self.templates:
            if "{token}" not in template:
                raise ValueError(f"templates: {template!r} has no {{token}}: a caption without it teaches it nothing")
            try:
                template.format(token="", caption="")
            except (KeyError, IndexError, ValueError):
                raise ValueError(f"templates: {template!r} has other braces than {{token}} and {{caption}}") from None
        return self


class Prior(Section):
    """Prior preservation (Ruiz et al. 2023): pictures of the class, drawn once by the model before it is changed."""

    prompt: str = Field(pattern=r"\S", description="of the class, such as 'a dog'")
    count: int = Field(default=100, gt=0, description="class pictures; those that `folder` lacks are drawn")
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False, description="of their loss beside the pictures' own")
    folder: str | None = Field(default=None, description="of the class pictures; by default RUN/class")


class Tags(Section):
    """Captions that are tags: shuffled anew each time a picture is seen (kohya's shuffle_caption)."""

    shuffle: bool = False
    keep: int = Field(default=0, ge=0, description="tags that stay at the head; kohya's keep_tokens")
    separator: str = ","


class SampleImages(Section):
    """The pictures drawn before, during and after, each with its own noise, always the same."""

    prompts: tuple[str, ...] = Field(default=(), description="by default captions of held-out pictures")
    old_prompts: tuple[str, ...] = Field(default=(), description="of what the model knew before: did it forget?")
    seed: int = Field(default=0, ge=0)
    solver: str | None = None
    steps: int | None = Field(default=None, gt=0)
    guidance: float | None = Field(default=None, ge=0)


class FinetuneRecipe(Recipe):
    """`t2i finetune`."""

    model: str = Field(description="what is fine-tuned: a folder, a single file or a hub name")
    method: Method = "lora"
    held_out: int | None = Field(
        default=None, gt=0, description="pictures set apart; by default a fifth up to 8, or every 20th"
    )
    draws: int = Field(default=20, gt=0, description="(t, noise) at which each held-out picture is judged")
    cache: str | None = Field(default=None, description="folder of cached latents and text states; RUN/cache")
    flip: bool = Field(default=False, description="half of the time mirror a picture")
    caption_dropout: float = Field(ge=0, lt=1, description="share of captions replaced by the null, each step anew")
    timestep_bias: float = Field(default=1.0, ge=1, description="t = T u^(1/bias): above 1 noisy t come more often")
    tags: Tags = Tags()
    lora: LoraConfig | None = Field(default=None, description="of `lora`, and of `dreambooth` where it is given")
    text_encoder: bool = Field(default=False, description="full, dreambooth: train the text encoder's weights too")
    inversion: Inversion | None = Field(default=None, description="of `textual-inversion`")
    prior: Prior | None = Field(default=None, description="of `dreambooth`")
    sample: SampleImages = SampleImages()

    @model_validator(mode="after")
    def _one_method(self) -> "FinetuneRecipe":
        allowed = {"lora": {"lora"}, "full": set(), "dreambooth": {"lora", "prior"}, "textual-inversion": {"inversion"}}
        for section in ("lora", "inversion", "prior"):
            if getattr(self, section) is not None and section not in allowed[self.method]:
                where = ", ".join(method for method, sections in allowed.items() if section in sections)
                raise ValueError(f"`{section}` means nothing to method={self.method} (only {where}): leave it out")
        if self.text_encoder and (self.lora is not None or self.method == "textual-inversion"):
            raise ValueError("`text_encoder` trains its weights themselves: with a LoRA set lora.text_encoder=true")
        if self.tags.shuffle and self.method == "textual-inversion":
            raise ValueError("`tags.shuffle` means nothing to method=textual-inversion, whose captions are templates")
        return self

    @property
    def trains_text(self) -> bool:
        """Whether the text states change during training."""
        lora = self.lora is not None and self.lora.text_encoder
        return self.text_encoder or lora or self.method == "textual-inversion"


def fill(values: dict[str, Any], pictures: int, latents: int, embeddings: float) -> dict[str, Any]:
    """`values` with what they leave out, by the method, the number of training pictures and the model.

    `latents` is the side of the model's latents, `embeddings` the root mean square of the words' vectors.
    """
    values = {k: v for k, v in values.items() if v is not None}
    method = values.setdefault("method", "lora")
    if method not in METHODS:
        raise ValueError(f"`method`: {method!r} is unknown: choose one of {', '.join(METHODS)}")
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
    batch = train.setdefault("global_batch", min(pictures, 32 if small else 4))
    if not isinstance(batch, int) or batch < 1 or not isinstance(epochs, int | None):
        return values | {"train": train | ({} if epochs is None else {"epochs": epochs})}  # the model tells the fault
    seen = min(max(100 * pictures, 400 if method == "dreambooth" else 2000), 40_000)
    if epochs is not None:
        if "steps" in train:
            raise ValueError("train.epochs and train.steps: give one of them")
        seen = epochs * pictures
    steps = train.setdefault("steps", max(math.ceil(seen / batch), 1))
    rate = embeddings * OF_EMBEDDINGS if inverts else RATES["lora" if lora else method] * (10 if small else 1)
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


def train_defaults(config: TrainConfig) -> str:
    """The numbers that matter, in a line."""
    return f"{config.steps} steps of {config.global_batch} pictures, learning rate {config.lr:g}, {config.lr_schedule}"
