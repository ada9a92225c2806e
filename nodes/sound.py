"""The sound of a film: of each shot, and over all of it."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io, ui
from typing_extensions import override

from ..film.reel.reel import Reel
from ..film.sound import sample_of
from ..host.files.join import SOUND_RATE
from ..host.media.sound import CROSSFADE, film_sound, with_sound
from .sockets import FILM, ReelSocket, shot_number_input


class LongreelShotSound(io.ComfyNode):
    """A sound for one shot of a reel."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelShotSound",
            display_name="Shot Sound",
            category=FILM,
            description="Gives one shot of a reel its own sound. It stays with that take on the reel, also through "
            "Save Reel; nothing is filmed again.",
            search_aliases=["audio", "dialogue", "voice", "foley", "sound effect", "add audio"],
            inputs=[
                ReelSocket.Input("reel", tooltip="The film; it stays as it is."),
                io.Audio.Input(
                    "audio",
                    optional=True,
                    tooltip="What the shot sounds like from its first frame on, mono or stereo. What is longer than "
                    "the shot is heard in the crossfade to the next alone. Without it the shot is silent.",
                ),
                shot_number_input("The shot, counted from 1."),
            ],
            outputs=[ReelSocket.Output(display_name="reel", tooltip="The film with the shot's sound.")],
        )

    @override
    @classmethod
    def execute(cls, reel: Reel, shot: int, audio: dict[str, Any] | None = None) -> io.NodeOutput:
        return io.NodeOutput(with_sound(reel, shot, audio))


class LongreelFilmSound(io.ComfyNode):
    """The sound of a whole film."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelFilmSound",
            display_name="Film Sound",
            category=FILM,
            has_intermediate_output=True,
            description="Joins the shots' own sounds with a crossfade, puts a soundtrack over all of them, and lets "
            "the end fade out. Connect it to sound of Reel To Video.",
            search_aliases=["soundtrack", "music", "audio", "score", "crossfade", "mix"],
            inputs=[
                ReelSocket.Input("reel", tooltip="The film; its shots keep the sounds that Shot Sound gave them."),
                io.Audio.Input(
                    "soundtrack",
                    optional=True,
                    tooltip="Music or a voice over the whole film, mono or stereo. It is cut at the film's end, or "
                    "silence follows.",
                ),
                io.Float.Input(
                    "crossfade",
                    default=CROSSFADE,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    tooltip="Seconds behind each cut in which one shot's sound gives way to the next one's. More: "
                    "softer; 0: a hard cut. A sound that ends with its shot fades out before the cut.",
                ),
                io.Float.Input(
                    "fade_out",
                    default=0.0,
                    min=0.0,
                    max=600.0,
                    step=0.5,
                    tooltip="Seconds at the film's end in which all falls silent. 0: none.",
                ),
            ],
            outputs=[io.Audio.Output(display_name="audio", tooltip="As long as the film, stereo, 48 kHz.")],
        )

    @override
    @classmethod
    def execute(
        cls, reel: Reel, crossfade: float, fade_out: float, soundtrack: dict[str, Any] | None = None
    ) -> io.NodeOutput:
        sound = film_sound(reel, soundtrack, crossfade, fade_out)
        own = sum(shot.sound is not None for shot in reel.shots)
        if sound is None:
            sound = torch.zeros(2, sample_of(reel.frames, reel.layout.fps, SOUND_RATE))
        over = "a soundtrack" if soundtrack is not None else "no soundtrack"
        told = (
            f"{sound.shape[1] / SOUND_RATE:.1f} s, {over}, {own} of {len(reel.shots)} shots with a sound of their own"
        )
        return io.NodeOutput({"waveform": sound[None], "sample_rate": SOUND_RATE}, ui=ui.PreviewText(told))
