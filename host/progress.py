"""One progress bar over everything a film needs, with a line of text and a picture of what was made last.

The bar counts steps: one for every denoising call, one for every block that is finished (its clean pass) and one for
every decoded chunk. The text goes to the node as "shot 2/5, block 7/20". Without a server (command line, tests) all of
this is silent, but an interrupt still takes effect at every step.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import latent_preview
from comfy import model_management
from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE
from comfy.utils import ProgressBar
from comfy_execution.progress import get_progress_state
from comfy_execution.utils import get_executing_context
from PIL import Image
from torch import Tensor

from ..film.pixels import to_pil
from .families import of_vae

Previewer = Callable[[Tensor], Image.Image]
"""Latents [1, C, t, h, w] in LATENT space to a picture of their last frame."""

# The miniature finishes many blocks a second; more pictures than these cost time and cannot be noticed.
_SECONDS_PER_PREVIEW = 0.5
_SECONDS_PER_TEXT = 0.1
# A VAE below this size decodes one latent frame in milliseconds. The miniature's is; the real ones are above 200 MB.
_TINY_VAE_BYTES = 64 * 1024**2


class Progress:
    """Progress of one node. Not shared between nodes; ComfyUI's calls come from one thread."""

    def __init__(
        self, total: int, *, done: int = 0, node_id: str | None = None, previewer: Previewer | None = None
    ) -> None:
        """Begin a bar of `total` steps.

        total: all steps of the bar. A shot that is one of a film passes the film's. done: steps already behind, for
        example those of earlier shots. node_id: the node that shows the bar; the executing one by default. previewer:
        makes the picture of a finished block, see `film_previewer`; None shows none.
        """
        context = get_executing_context()
        self._node_id = node_id if node_id is not None or context is None else context.node_id
        self._bar = ProgressBar(total, self._node_id)
        self._previewer = previewer
        self._done = done
        self._shot = ""
        self._block, self._blocks = 0, 0
        self._frame, self._frames = 0, 0
        self._next_preview = self._next_text = 0.0

    @property
    def done(self) -> int:
        """Steps behind."""
        return self._done

    def start_shot(self, shot: int, shots: int, blocks: int) -> None:
        """Say which shot begins: number `shot` (from 1) of `shots`, to be filmed in `blocks` blocks."""
        self._shot = f"shot {shot}/{shots}"
        self._block, self._blocks = 0, blocks
        self._say(self._shot, always=True)

    def start_decoding(self, frames: int) -> None:
        """Say that `frames` frames will be decoded from here on."""
        self._frame, self._frames = 0, frames
        self._say(f"frame 0/{frames}", always=True)

    def step(self, latents: Tensor | None = None) -> None:
        """Count one denoising call. Raises ComfyUI's InterruptProcessingException, as do the other counting calls.

        latents: what the call made, where a shot is denoised as a whole; previewed as in `block_done`.
        """
        picture = None
        if latents is not None and self._previewer is not None and self._preview_due():
            picture = self._previewer(latents)
        self._advance(1, picture)

    def skip(self, steps: int) -> None:
        """Count steps that need not be done, for example those of a shot that is reused."""
        self._advance(steps, None)

    def reach(self, done: int, text: str, draw: Callable[[], Image.Image] | None = None) -> None:
        """Count up to `done` steps, wherever the bar was, and show a line of text.

        draw: makes the picture to show beside it; called only when one is due.
        """
        picture = draw() if draw is not None and self._preview_due() else None
        self._advance(done - self._done, picture)
        self._say(text, always=done >= self._bar.total)

    def block_done(self, latents: Tensor) -> None:
        """Count one finished block.

        latents: the block, [1, C, t, h, w] in LATENT space; its last frame is previewed.
        """
        self._block += 1
        previewer = self._previewer
        picture = previewer(latents) if previewer is not None and self._preview_due() else None
        self._advance(1, picture)
        self._say(f"{self._shot}, block {self._block}/{self._blocks}", always=self._block == self._blocks)

    def chunk_done(self, frames: int) -> None:
        """Count one decoded chunk of so many frames.

        No picture is sent: the editor's classic renderer does not show a node's video once it has shown previews.
        """
        self._frame += frames
        self._advance(1, None)
        self._say(f"frame {self._frame}/{self._frames}", always=self._frame >= self._frames)

    def finish(self, text: str = "") -> None:
        """Fill the bar, whatever was counted, and leave `text` on the node (nothing removes the last line)."""
        self._done = self._bar.total
        self._bar.update_absolute(self._done)
        self._say(text, always=True)

    def _advance(self, steps: int, picture: Image.Image | None) -> None:
        model_management.throw_exception_if_processing_interrupted()
        self._done += steps
        preview = None if picture is None else ("JPEG", picture, latent_preview.MAX_PREVIEW_RESOLUTION)
        self._bar.update_absolute(self._done, preview=preview)

    def _preview_due(self) -> bool:
        now = time.monotonic()
        if self._bar.hook is None or now < self._next_preview:
            return False
        self._next_preview = now + _SECONDS_PER_PREVIEW
        return True

    def _say(self, text: str, *, always: bool) -> None:
        # On the command line the server is not imported, and a line of text is no reason to import it.
        server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
        now = time.monotonic()
        if server is None or self._node_id is None or not (always or now >= self._next_text):
            return
        self._next_text = now + _SECONDS_PER_TEXT
        # A node made by expansion is not on the canvas; the one that it came from shows the text.
        shown = get_progress_state().dynprompt.get_display_node_id(self._node_id)
        server.send_progress_text(text, shown, server.client_id)


def film_previewer(model: ModelPatcher, vae: VAE | None = None) -> Previewer:
    """How blocks of this model are previewed.

    ComfyUI's preview method if one is chosen, else the latent-to-RGB factors of the latent format: a film takes long
    enough that the newest block is always worth its millisecond. Those factors belong to the real VAE; a tiny one (the
    miniature's) has latents of its own and decodes its previews itself.

    model: the MODEL that films. vae: the VAE of the film, if it is at hand.
    """
    if vae is not None and vae.model_size() < _TINY_VAE_BYTES:

        def decode(latents: Tensor) -> Image.Image:
            return _picture(next(of_vae(vae).decoder().decode(latents[:, :, -1:]))[-1])

        return decode

    latent_format = model.model.latent_format
    previewer = latent_preview.get_previewer(model.load_device, latent_format)
    if previewer is None:
        previewer = latent_preview.Latent2RGBPreviewer(
            latent_format.latent_rgb_factors,
            latent_format.latent_rgb_factors_bias,
            latent_format.latent_rgb_factors_reshape,
        )

    def project(latents: Tensor) -> Image.Image:
        picture: Image.Image = previewer.decode_latent_to_preview(model.model.process_latent_in(latents[:, :, -1:]))
        return picture

    return project


def _picture(frame: Tensor) -> Image.Image:
    """[H, W, channels] in 0..1 to a picture."""
    return to_pil(frame[..., :3])
