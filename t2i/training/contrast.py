"""The contrastive loss with hard negatives, and recall at k."""

import hashlib
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from open_clip import ClipLoss
from open_clip.loss import gather_features
from torch import Tensor
from torch import distributed as dist


class ContrastiveLoss(ClipLoss):
    """CLIP's loss (Radford et al. 2021, fig. 3) over the batches of all processes, by open_clip's ClipLoss.

    The texts are one caption per image, then negatives: further columns for the images (Yuksekgonul et al. 2023).
    A text equal to an image's caption is no negative of that image. `alone` restricts it to this process's batch.
    """

    def __init__(self, alone: bool = False) -> None:
        many = dist.is_initialized() and not alone
        rank, ranks = (dist.get_rank(), dist.get_world_size()) if many else (0, 1)
        # Every process computes the whole loss, and its features' gradient comes back through the gathering from all
        # processes: their mean in data parallelism is then the gradient that one process would compute.
        super().__init__(local_loss=False, gather_with_grad=True, rank=rank, world_size=ranks)

    def loss(
        self,
        images: Float[Tensor, "b p"],
        texts: Float[Tensor, "m p"],
        scale: Float[Tensor, ""],
        names: Int[Tensor, " m"],
    ) -> Float[Tensor, ""]:
        """Returns the loss of b images with m >= b texts, the first b of them the captions; `names` are by `name`."""
        self.names = names
        return self(images, texts, scale)

    def get_logits(self, image_features, text_features, logit_scale, logit_bias=None):
        """Returns the logits of images against all texts, and of captions against images."""
        b, names = len(image_features), self.names
        if self.world_size > 1:
            image_features, text_features = gather_features(
                image_features, text_features, gather_with_grad=True, rank=self.rank, world_size=self.world_size
            )
            parts = [torch.empty_like(names) for _ in range(self.world_size)]
            dist.all_gather(parts, names)
            names = torch.cat(parts)
        places = torch.arange(len(names), device=names.device).view(self.world_size, -1)
        places = torch.cat([places[:, :b].flatten(), places[:, b:].flatten()])  # the captions of all processes first
        names, n = names[places], len(image_features)
        same = names[:n, None] == names
        same.fill_diagonal_(False)
        logits = (logit_scale * image_features @ text_features[places].T).masked_fill(same, -torch.inf)
        return logits, logits[:, :n].T


def name(text: str) -> int:
    """Returns a 64-bit hash of a text, the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def recall(similarity: Float[Tensor, "n n"], texts: Sequence[str], ks: Sequence[int] = (1, 5)) -> dict[str, float]:
    """Returns R@k in both directions: how often the match (the diagonal) is among the k most similar.

    Texts equal to the match are not ranked against it; a tie counts as a miss.
    """
    names = torch.tensor([name(text) for text in texts], device=similarity.device)
    twins = (names[:, None] == names).fill_diagonal_(False)
    figures = {}
    for direction, s in (("image_to_text", similarity), ("text_to_image", similarity.T)):
        match = s.diagonal()[:, None]
        rank = ((s >= match) & ~twins).sum(1)  # 1 = the match alone
        figures |= {f"{direction}_R@{k}": (rank <= k).float().mean().item() for k in ks}
    return figures
