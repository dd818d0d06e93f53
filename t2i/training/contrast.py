"""The contrastive loss with hard negatives, and what is measured of a trained pair."""

import hashlib
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from open_clip import ClipLoss
from open_clip.loss import gather_features
from torch import Tensor
from torch import distributed as dist


class ContrastiveLoss(ClipLoss):
    """CLIP's loss (Radford et al. 2021, fig. 3) over the batches of all ranks, in one forward pass of open_clip's.

    The texts are one caption a picture, then negatives: further columns for the pictures (Yuksekgonul et al. 2023).
    A text equal to a picture's own caption is no negative of that picture. `alone`: of this rank's batch only.
    """

    def __init__(self, alone: bool = False) -> None:
        many = dist.is_initialized() and not alone
        rank, ranks = (dist.get_rank(), dist.get_world_size()) if many else (0, 1)
        # Every rank computes the whole loss, and its features' gradient comes back through the gathering from all
        # ranks: data parallelism's mean over the ranks is then the gradient that one process would compute.
        super().__init__(local_loss=False, gather_with_grad=True, rank=rank, world_size=ranks)

    def loss(
        self,
        images: Float[Tensor, "b p"],
        texts: Float[Tensor, "m p"],
        scale: Float[Tensor, ""],
        names: Int[Tensor, " m"],
    ) -> Float[Tensor, ""]:
        """The loss of b pictures with m >= b texts, whose first b are the captions; `names` are the texts' `name`s."""
        self.names = names
        return self(images, texts, scale)

    def get_logits(self, image_features, text_features, logit_scale, logit_bias=None):
        """The logits of pictures against all texts, and of captions against pictures."""
        b, names = len(image_features), self.names
        if self.world_size > 1:
            image_features, text_features = gather_features(
                image_features, text_features, gather_with_grad=True, rank=self.rank, world_size=self.world_size
            )
            parts = [torch.empty_like(names) for _ in range(self.world_size)]
            dist.all_gather(parts, names)
            names = torch.cat(parts)
        places = torch.arange(len(names), device=names.device).view(self.world_size, -1)
        places = torch.cat([places[:, :b].flatten(), places[:, b:].flatten()])  # the captions of all ranks first
        names, n = names[places], len(image_features)
        same = names[:n, None] == names
        same.fill_diagonal_(False)
        logits = (logit_scale * image_features @ text_features[places].T).masked_fill(same, -torch.inf)
        return logits, logits[:, :n].T


def name(text: str) -> int:
    """A number that stands for a text, the same on every rank."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def recall(similarity: Float[Tensor, "n n"], texts: Sequence[str], ks: Sequence[int] = (1, 5)) -> dict[str, float]:
    """R@k in both directions: how often the own partner (the diagonal) is among the k most similar.

    A twin of the partner (equal text) is no rival of it; a tie is lost.
    """
    names = torch.tensor([name(text) for text in texts], device=similarity.device)
    twins = (names[:, None] == names).fill_diagonal_(False)
    figures = {}
    for direction, s in (("image_to_text", similarity), ("text_to_image", similarity.T)):
        own = s.diagonal()[:, None]
        rank = ((s >= own) & ~twins).sum(1)  # 1 = the partner itself alone
        figures |= {f"{direction}_R@{k}": (rank <= k).float().mean().item() for k in ks}
    return figures
