"""Baselines to read every distance against: halves of the reference, its reconstructions, and a ladder of noise."""

import warnings
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from t2i import randomness
from t2i.autoencoder.kl import AutoencoderKL
from t2i.autoencoder.runner import VAERunner
from t2i.data.transforms import to_float
from t2i.evaluation.evaluation import Evaluation
from t2i.evaluation.frechet import Reference, distance, merged, warn_of_few
from t2i.evaluation.generated import ModelSamples, Subject
from t2i.evaluation.image_sets import ImageSet, Read, to_uint8
from t2i.evaluation.jackknife import Replicates, group_by, moments_by_group
from t2i.evaluation.measures import FEATURE_METRICS, measure, reference_of
from t2i.evaluation.protocol import Protocol
from t2i.evaluation.reference import ReferenceImages
from t2i.evaluation.rows import Row

REAL, VAE, SHUFFLED = "real", "vae", "shuffled captions"
LADDER = (2.0, 4.0, 8.0, 16.0, 32.0)  # standard deviations of pixel noise, of 255
LEAST = 8  # reference images, for two halves


def baseline_sets(subject: Subject, evaluation: Evaluation) -> dict[str, ImageSet]:
    """Returns the reference's images, their reconstructions by the model's autoencoder, and noisy copies.

    Only the first without `evaluation.baselines`, and none for reference statistics.
    """
    reference, real = evaluation.reference, evaluation.real_images
    if not isinstance(reference, ReferenceImages) or real is None:
        return {}
    if not evaluation.baselines:
        return {REAL: real}
    sets, n, batch = {REAL: real}, len(reference), evaluation.batch
    if isinstance(subject, ModelSamples):
        vae = subject.pipeline.autoencoder
        content = ("reconstructed", reference.hash, subject.vae, str(next(vae.parameters()).dtype))
        sets[VAE] = ImageSet.of(n, batch, reconstructed(reference.read, vae), *content)
    for std in LADDER:
        sets[f"noise {std:g}"] = ImageSet.of(n, batch, noisy(reference.read, std), "noisy", reference.hash, std)
    return sets


def baseline_rows(subject: Subject, evaluation: Evaluation, sets: dict[str, ImageSet]) -> list[Row]:
    """Returns the distances of one half of the reference, as it is and degraded, from its other half.

    All halves are of one size, so these rows compare with each other. The reconstructions are also compared with their
    own originals (rFD), which isolates the autoencoder.
    """
    real = evaluation.real_features
    assert real is not None
    n = len(real)
    if n < LEAST:
        warnings.warn(f"a reference of {n} images has no two halves: no baselines (they need {LEAST})", stacklevel=2)
        return []
    order = randomness.permutation(n, 0, "halves")
    ours, theirs = order[: n // 2], order[n // 2 :]
    groups = group_by([str(i) for i in ours.tolist()]), group_by([str(i) for i in theirs.tolist()])
    half = reference_of(real[theirs])
    protocol = _protocol(subject, evaluation, len(ours), len(theirs))
    rows: list[Row] = []
    originals: dict[str, Row] = {}
    for name, images in sets.items():
        sample = evaluation.features_of(images)[ours]
        numbers: dict[str, Replicates] = {}
        for metric in (m for m in evaluation.metrics if m in FEATURE_METRICS):
            key = ("half", images.key, evaluation.features.fingerprint, evaluation.reference_hash)
            try:
                numbers |= measure(evaluation.store, [metric], sample, real[theirs], half, groups, *key)
            except ValueError as error:  # half a reference has too few images for this metric
                warnings.warn(f"no baselines of {metric}: {error}", stacklevel=2)
        for metric, number in numbers.items():
            row = Row.of(metric, number, protocol, anchor=name)
            rows.append(row)
            if name == REAL:
                originals[metric] = row
            else:
                rows.append(row.minus(originals[metric], anchor=name, than=REAL))
    if VAE in sets and "fd" in evaluation.metrics:
        coded = coupled(evaluation.features_of(sets[VAE]), real, group_by([str(i) for i in range(n)]))
        protocol = _protocol(subject, evaluation, n, n)
        rows.append(Row.of("rfd", coded.estimate(), protocol, anchor="vae, against its own originals"))
    return rows


def blind_to(row: Row, rows: Sequence[Row]) -> float | None:
    """Returns the noise (of 255) up to which a number cannot be told from that of images without noise.

    That is where the ladder's difference from real images lies within the number's own 95% interval, or holds 0. 0: any
    noise of the ladder is told. None: the ladder was not measured.
    """
    ladder = {str(r.extra["anchor"]): r for r in rows if r.metric == f"{row.metric}_difference" and "than" in r.extra}
    steps = [ladder[name] for std in LADDER if (name := f"noise {std:g}") in ladder]
    if not steps or row.ci95 is None:
        return None
    half, blind = (row.ci95[1] - row.ci95[0]) / 2, 0.0
    for std, step in zip(LADDER, steps, strict=False):
        low, high = step.ci95 or (step.value, step.value)
        if abs(step.value) > half and not low <= 0 <= high:
            break
        blind = std
    return blind


def implication(row: Row, rows: Sequence[Row]) -> str:
    """Returns in words what the baselines imply for a number of the subject; "" where there are none for it."""
    shuffled = [r for r in rows if r.metric == row.metric and r.extra.get("anchor") == SHUFFLED]
    other = next((r for r in shuffled if r.protocol.guidance == row.protocol.guidance), None)
    if other is not None and row.ci95 and other.ci95:
        if row.ci95[0] <= other.ci95[1]:
            return "cannot tell these images from images with other images' prompts"
        return "better than with other images' prompts"
    if (blind := blind_to(row, rows)) is None:
        return ""
    if not blind:
        return f"tells noise of {LADDER[0]:g}/255 from none"
    strongest = ", the strongest tried," if blind == LADDER[-1] else ""
    return f"cannot tell noise of {blind:g}/255{strongest} from none"


def _protocol(subject: Subject, evaluation: Evaluation, n: int, n_ref: int) -> Protocol:
    """Returns the protocol of reference images, which no prompt, noise or guidance is part of."""
    protocol = evaluation.protocol(subject, None, n=n, n_ref=n_ref)
    unused: dict[str, None] = dict.fromkeys(("prompts", "text_encoder", "solver", "steps", "guidance", "seeds"))
    return protocol.model_copy(update=unused)


def coupled(sample: Float[Tensor, "n d"], real: Float[Tensor, "n d"], groups: Int[Tensor, " n"]) -> Replicates:
    """Computes the distance of images from their own originals (rFD); a group is left out of both sides at once.

    Against a fixed reference that holds the originals, the jackknife's bias and error would be meaningless.
    """
    parts, originals = moments_by_group(sample, groups), moments_by_group(real, groups)
    warn_of_few(len(sample), sample.shape[1])

    def value(g: int | None) -> float:
        kept = [i for i in range(len(parts)) if i != g]
        reference = Reference.of(merged([originals[i] for i in kept]))
        return distance(merged([parts[i] for i in kept]), reference).value

    return Replicates(value(None), tuple(value(g) for g in range(len(parts))))


def reconstructed(read: Read, vae: AutoencoderKL, runner: VAERunner | None = None) -> Read:
    """Returns the images encoded and decoded, by the posterior's mean: a bound for every generator of these latents."""
    runner = runner or VAERunner()
    device = next(vae.parameters()).device

    def read_back(rows: Sequence[int]) -> UInt8[Tensor, "b 3 h w"]:
        latents = runner.encode(vae, to_float(read(rows)).to(device)).mean * vae.config.scaling_factor
        return to_uint8(runner.decode(vae, latents))

    return read_back


def noisy(read: Read, std: float, seed: int = 0) -> Read:
    """Returns the images with Gaussian noise of `std` of 255, different for each image."""

    def read_noisy(rows: Sequence[int]) -> UInt8[Tensor, "b 3 h w"]:
        pixels = read(rows)
        noise = torch.stack([randomness.normal(pixels.shape[1:], seed, "ladder", row) for row in rows])
        return (pixels.float() + std * noise).round().clamp(0, 255).to(torch.uint8)

    return read_noisy


def shuffled(captions: Sequence[str], seed: int = 0) -> list[str]:
    """Returns the captions permuted so that no image keeps its own, where that is possible: zero alignment.

    Equal captions stand together in a ring, which turns by the size of the largest set of them: none stays in place
    unless one caption fills more than half.
    """
    order = randomness.permutation(len(captions), seed, "captions").tolist()
    by_text: dict[str, list[int]] = {}
    for i in order:
        by_text.setdefault(str(captions[i]), []).append(i)
    turn = max(len(same) for same in by_text.values())
    if len(by_text) < 2:
        raise ValueError("all captions are equal: none can be exchanged for another")
    ring = [i for same in by_text.values() for i in same]
    permuted = [""] * len(ring)
    for place, row in enumerate(ring):
        permuted[row] = captions[ring[(place + turn) % len(ring)]]
    return permuted
