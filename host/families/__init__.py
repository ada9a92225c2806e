"""Model families: the only place that names models.

Engines, nodes and everything else that films, previews, decodes and edits ask a `Family` for what differs. A new one is
a file here and a line in `FAMILIES`.
"""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE
from torch import Tensor

from . import svd, tiny_wan, wan
from .family import Decoder, Family, UnsupportedVaeError

__all__ = ["FAMILIES", "Decoder", "Family", "UnsupportedVaeError", "encode_clip", "encode_image", "of", "of_vae"]

FAMILIES = [wan.family_of, tiny_wan.family_of, svd.family_of]
"""Each gives the family of a VAE, or None for a VAE that is not its."""


def of(model: ModelPatcher, vae: VAE) -> Family:
    """The family of a model and a VAE that belong together. Raises UnsupportedVaeError for others."""
    family = of_vae(vae)
    family.check(model)
    return family


def of_vae(vae: VAE) -> Family:
    """The family of a VAE. Raises UnsupportedVaeError for one of none, or a file that held no VAE."""
    for family_of in FAMILIES:
        family = family_of(vae)
        if family is not None:
            return family
    model = vae.first_stage_model
    found = "the file holds no VAE" if model is None else f"this one is a {type(model).__name__}"
    raise UnsupportedVaeError(f"Longreel needs {wan.VAES} or {svd.VAES}; {found}.")


def encode_clip(vae: VAE, frames: Tensor, width: int, height: int) -> Tensor:
    """Frames [n, H, W, 3] in 0..1 as the beginning of a take, see Family.encode. Raises UnsupportedVaeError."""
    return of_vae(vae).encode(frames, width, height)


def encode_image(vae: VAE, image: Tensor, width: int, height: int) -> Tensor:
    """A picture [H, W, C] or [1, H, W, C] in 0..1 as the first latent frame of a take, [1, C, 1, h, w] in LATENT space.

    Scaled to cover width x height, the film's pixels, and cropped around its centre. Raises UnsupportedVaeError, and
    ValueError for more than one picture.
    """
    if image.ndim == 3:
        image = image.unsqueeze(0)
    if image.shape[0] != 1:
        raise ValueError(
            f"A shot starts from one picture, but a batch of {image.shape[0]} was given; pick one of them."
        )
    return encode_clip(vae, image, width, height)
