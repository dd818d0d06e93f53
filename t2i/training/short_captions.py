"""Shorter forms of the training captions: their cached text states, and the choice among them at each step."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from t2i import randomness
from t2i.conditioning import Conditioning
from t2i.data.captions import Captions
from t2i.training.precompute import Frozen, open_or_build_texts


class ShortCaptions:
    """Replaces the conditioning of some samples by that of a shorter form of their caption."""

    def __init__(self, config: Captions, captions: Sequence[str], frozen: Frozen, folder: str, quiet: bool) -> None:
        self.probability = config.shorten
        forms = [config.shorter(caption) for caption in captions]
        texts = list(dict.fromkeys(text for shorter in forms for text in shorter))
        if not texts:
            raise ValueError(
                f"captions.shorten = {config.shorten}: none of the {len(captions)} captions has a shorter form, "
                f"for example {captions[0]!r}: change captions.forms, or set captions.shorten=0"
            )
        if not quiet:
            count = sum(bool(shorter) for shorter in forms)
            print(f"captions: {count} of {len(captions)} have shorter forms, {len(texts)} distinct", flush=True)
        row = {text: i for i, text in enumerate(texts)}
        self.rows = [[row[text] for text in shorter] for shorter in forms]
        self.states = open_or_build_texts(folder, frozen, texts, "shorter captions", quiet)

    def replace(self, cond: Conditioning, indices: Int[Tensor, " b"], seed: int, step: int) -> Conditioning:
        """Returns `cond` of the samples `indices`, shortened with the recipe's probability: f(seed, step, index)."""
        source, chosen = list(range(len(cond))), []
        for place, index in enumerate(indices.tolist()):
            u, v = randomness.uniform((2,), seed, "shorten", step, index).tolist()
            if self.rows[index] and u < self.probability:
                source[place] = len(cond) + len(chosen)
                chosen.append(self.rows[index][int(v * len(self.rows[index]))])
        return Conditioning.cat([cond, self.states[torch.tensor(chosen)]])[torch.tensor(source)] if chosen else cond
