"""A reel into a video file."""

from __future__ import annotations

from typing import Any

from comfy.sd import VAE
from comfy_api.latest import io, ui
from torch import Tensor
from typing_extensions import override

from ..film.reel.reel import Reel, ReelError
from ..host.files.join import join_videos
from ..host.files.paths import output_file, prefix_fault
from ..host.files.video import as_video, workflow_metadata
from ..host.media.clips import clip_steps, clips_of, decode_clips, number_clips
from ..host.media.pictures import Pictures
from ..host.media.sound import CROSSFADE, film_sound, part_of_sound, samples_of
from ..host.progress import Progress
from .sockets import FILM, ReelSocket, prefix_input


class LongreelReelToVideo(io.ComfyNode):
    """Decodes a reel straight into a file."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelReelToVideo",
            display_name="Reel To Video",
            category=FILM,
            description="Decodes the reel frame by frame straight into a video file, however long it is. Each shot is "
            "decoded once: its video and picture lie in the project, too.",
            search_aliases=["export video", "save video", "decode film", "render mp4", "webm"],
            inputs=[
                ReelSocket.Input("reel", tooltip="The film."),
                io.Vae.Input("vae", tooltip="The VAE that the reel was filmed with."),
                io.Vae.Input(
                    "other_vae",
                    optional=True,
                    tooltip="For a reel with shots of two model families (Wan and Stable Video Diffusion): the VAE of "
                    "the other.",
                ),
                prefix_input("video/longreel"),
                io.Combo.Input(
                    "format",
                    options=["mp4", "webm"],
                    default="mp4",
                    tooltip="mp4 (H.264) plays everywhere; webm (VP9) is smaller and slower to write.",
                ),
                io.Int.Input("first_shot", default=1, min=1, max=100_000, advanced=True, tooltip="First shot to show."),
                io.Int.Input(
                    "last_shot",
                    default=0,
                    min=0,
                    max=100_000,
                    advanced=True,
                    tooltip="Last shot to show; 0 goes on to the film's end.",
                ),
                io.Float.Input(
                    "fps",
                    default=0.0,
                    min=0.0,
                    max=240.0,
                    step=1.0,
                    advanced=True,
                    tooltip="Frames a second of the file. 0: as filmed. More: the film runs faster; less: slower.",
                ),
                io.Int.Input(
                    "first_image",
                    default=0,
                    min=0,
                    max=10_000_000,
                    advanced=True,
                    tooltip="First frame to give out as images, counted from 0 in what is shown.",
                ),
                io.Int.Input(
                    "images",
                    default=1,
                    min=1,
                    max=100_000,
                    advanced=True,
                    tooltip="How many frames to give out as images. More: all of them stay in memory at once, 4.8 MB "
                    "each at 832x480.",
                ),
                io.Audio.Input(
                    "sound",
                    optional=True,
                    tooltip="The sound of the whole film, from its first frame on: Film Sound's, or any. It is cut at "
                    "the film's end, or silence follows. Without it the shots' own sounds are heard, if they have any.",
                ),
            ],
            outputs=[
                io.Video.Output(display_name="video", tooltip="The saved file."),
                io.Image.Output(display_name="images", tooltip="The frames asked for; fewer if the film ends before."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @override
    @classmethod
    def validate_inputs(cls, filename_prefix: str | None = None) -> bool | str:
        return prefix_fault(filename_prefix) or True

    @override
    @classmethod
    def execute(
        cls,
        reel: Reel,
        vae: VAE,
        filename_prefix: str,
        format: str,
        first_shot: int,
        last_shot: int,
        fps: float,
        first_image: int,
        images: int,
        other_vae: VAE | None = None,
        sound: dict[str, Any] | None = None,
    ) -> io.NodeOutput:
        vaes = [vae] if other_vae is None else [vae, other_vae]
        shots = _shots_of(reel, first_shot, last_shot)
        layout, rate = reel.layout, fps or reel.layout.fps
        clips = clips_of(reel, vaes, shots, f".{format}", rate)
        start, stop = clips[0].start, clips[-1].start + clips[-1].frames
        if first_image >= stop - start:
            raise ReelError(f"There is no frame {first_image}: what is shown ends with frame {stop - start - 1}.")
        heard = film_sound(reel, None, CROSSFADE, 0, rate) if sound is None else samples_of(sound)
        if heard is not None:
            heard = part_of_sound(heard, start, stop, rate)
        target = output_file(filename_prefix, f".{format}", layout.width, layout.height)
        pictures = Pictures(clips, start + first_image, min(start + first_image + images, stop))
        missing = [clip for clip in clips if not clip.is_whole()]
        report = Progress(max(1, clip_steps(reel, vaes, missing)))
        report.start_decoding(sum(clip.frames for clip in missing))

        def watch(position: int, frames: Tensor) -> None:
            pictures.see(position, frames)
            report.chunk_done(len(frames))

        decode_clips(reel, vaes, missing, rate, watch)
        picked = pictures.finish(reel, vaes)
        metadata = workflow_metadata(cls.hidden.prompt, cls.hidden.extra_pnginfo)
        paths = [clip.path for clip in clips]
        join_videos(paths, target.path, metadata=metadata, place=target.place, sound=heard)
        number_clips(reel, clips)
        report.finish(f"{target.filename}: {(stop - start) / rate:.1f} s, {stop - start} frames")
        shown = ui.PreviewVideo([ui.SavedResult(target.filename, target.subfolder, io.FolderType.output)])
        return io.NodeOutput(as_video(target.path), picked, ui=shown)


def _shots_of(reel: Reel, first_shot: int, last_shot: int) -> range:
    """The shots first_shot .. last_shot (from 1; 0: the end), as indices."""
    last = last_shot or len(reel.shots)
    if not 1 <= first_shot <= last <= len(reel.shots):
        raise ReelError(
            f"Shots {first_shot} to {last} are not on this reel, which has {len(reel.shots)}: choose among those."
        )
    return range(first_shot - 1, last)
