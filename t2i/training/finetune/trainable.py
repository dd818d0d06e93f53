"""Selects the trained parameters of a pipeline; everything else is frozen and no submodule of the trained network."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Num
from torch import Tensor, nn

from t2i.conditioning import Conditioning
from t2i.errors import ConfigError
from t2i.generator.unet import UNet
from t2i.nn.lora import add_lora
from t2i.pipeline import Pipeline
from t2i.text.base import TextEncoder
from t2i.text.clip import CLIPTextEncoder
from t2i.text.inversion import add_vectors
from t2i.training.finetune.recipe import FinetuneRecipe, Inversion

SPREAD = 0.01  # noise, relative to the root mean square, that separates vectors initialised from the same word


class Trainable(nn.Module):
    """The trained parameters, with the forward pass through the text encoder (if needed) and the U-Net.

    The networks are not its submodules, so checkpoints, EMA weights and gradients hold the trained parameters only.
    """

    def __init__(self, unet: UNet, text: TextEncoder, weights: dict[str, nn.Parameter], trains_text: bool) -> None:
        super().__init__()
        self._networks = (unet, text)  # a tuple is no submodule
        self._trains_text = trains_text
        for name, weight in weights.items():
            self.register_parameter(name.replace(".", "/"), weight)

    def train(self, mode: bool = True) -> "Trainable":
        unet, text = self._networks
        unet.train(mode)
        if self._trains_text:
            text.tower.train(mode)
        return super().train(mode)

    def forward(self, x: Float[Tensor, "b c h w"], t: Num[Tensor, "b"], cond: Conditioning) -> Tensor:
        """Returns the U-Net's output; states one number wide are ids, which are encoded here."""
        unet, text = self._networks
        cond = cond if cond.tokens.shape[-1] == text.width else self.encode(cond)
        half = unet.conv_in.weight.dtype
        return unet(x.to(half), t, cond.to(dtype=half)).to(x.dtype)

    def encode(self, cond: Conditioning) -> Conditioning:
        """Returns the states of padded ids, with gradients if the text encoder is trained."""
        _, text = self._networks
        ids = cond.tokens[..., 0].long()
        if not self._trains_text:
            return text.states(ids, cond.mask)
        with torch.autocast(ids.device.type, enabled=False):
            return Conditioning(text.tower(ids).last_hidden_state, cond.mask)


class TrainedRows(nn.Module):
    """An embedding table whose rows from `first` on are replaced by trained vectors; the table is unchanged."""

    def __init__(self, table: Float[Tensor, "v d"], vectors: nn.Parameter, first: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(table, requires_grad=False)
        self.vectors, self.first = (vectors,), first  # a tuple, so that it is not saved with the text encoder

    def forward(self, ids: Int[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
        [vectors] = self.vectors
        place = ids - self.first
        trained = (place >= 0) & (place < len(vectors))
        rows = F.embedding(place.clamp(0, len(vectors) - 1), vectors)
        return torch.where(trained[..., None], rows, F.embedding(ids, self.weight))


def prepare_trainable(pipeline: Pipeline, recipe: FinetuneRecipe) -> Trainable:
    """Freezes the pipeline except the parameters that the recipe trains, which it returns as one network."""
    unet, text = pipeline.generator.unet, pipeline.text_encoder
    if recipe.trains_text and not isinstance(text, CLIPTextEncoder):
        raise ValueError(f"{type(text).__name__} cannot be fine-tuned, only a CLIP text encoder can: leave it frozen")
    pipeline.autoencoder.requires_grad_(False)
    text.requires_grad_(False)
    unet.requires_grad_(False)
    if recipe.method == "textual-inversion":
        assert recipe.inversion is not None
        weights = {"vectors": learn_token(text, recipe.inversion, recipe.seed)}
        narrow(pipeline, recipe)
        return Trainable(unet, text, weights, True)
    trained: dict[str, nn.Module] = {"unet": unet}
    if recipe.lora is not None:
        add_lora(unet, recipe.lora, recipe.seed)
        narrow(pipeline, recipe)
        if recipe.lora.text_encoder:
            add_lora(text.tower, recipe.lora, recipe.seed + 1)
            trained["text_encoder"] = text.tower
    else:
        unet.requires_grad_(True)
        if recipe.text_encoder:
            text.tower.requires_grad_(True)
            trained["text_encoder"] = text.tower
    weights = {f"{k}.{name}": p for k, net in trained.items() for name, p in net.named_parameters() if p.requires_grad}
    return Trainable(unet, text, weights, recipe.trains_text)


def narrow(pipeline: Pipeline, recipe: FinetuneRecipe) -> None:
    """Casts frozen weights to the precision of the training, which halves their memory and saves casts.

    The text encoder and the autoencoder may overflow in float16 and stay in float32 then.
    """
    half = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(recipe.train.mixed_precision)
    networks: list[nn.Module] = [pipeline.generator.unet]
    if half == torch.bfloat16:
        networks += [pipeline.autoencoder] if recipe.trains_text else [pipeline.autoencoder, pipeline.text_encoder]
    for weight in (w for network in networks for w in network.parameters() if half is not None and not w.requires_grad):
        weight.data = weight.data.to(half)


def learn_token(text: TextEncoder, config: Inversion, seed: int) -> nn.Parameter:
    """Adds the new token to the tokenizer and the embeddings; returns its vectors as a parameter."""
    if len(text.tokenizer(config.token, add_special_tokens=False)["input_ids"]) == 1:  # pyright: ignore
        raise ConfigError("inversion.token", "already in the vocabulary: choose another name", config.token)
    table = text.embeddings().detach()
    first = len(text.tokenizer)
    rms = table.square().mean().sqrt()
    rng = torch.Generator().manual_seed(seed)
    noise = SPREAD * rms * torch.randn(config.vectors, text.width, generator=rng)
    if config.initializer is None:
        start = table[:first].mean(0, keepdim=True).expand(config.vectors, -1) + noise
    else:
        ids = text.tokenizer(config.initializer, add_special_tokens=False)["input_ids"]
        if not ids:
            raise ConfigError("inversion.initializer", "has no tokens: give a word", config.initializer)
        if len(ids) > config.vectors:
            problem = f"has {len(ids)} tokens: give a shorter word, or set inversion.vectors={len(ids)}"
            raise ConfigError("inversion.initializer", problem, config.initializer)
        known = torch.tensor([ids[k % len(ids)] for k in range(config.vectors)])
        repeated = torch.arange(config.vectors) >= len(ids)
        start = table[known] + torch.where(repeated[:, None], noise, 0)
    add_vectors(text, config.token, start, "inversion.token")
    vectors = nn.Parameter(text.embeddings()[first : first + config.vectors].detach().clone())
    text.tower.set_input_embeddings(TrainedRows(text.embeddings().detach(), vectors, first))  # pyright: ignore[reportCallIssue]
    return vectors
