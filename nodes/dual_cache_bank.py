"""The shot cache: list it, edit it, retrieve for a prompt, add pictures."""

from __future__ import annotations

from comfy_api.latest import io, ui
from torch import Tensor
from typing_extensions import override

from ..engines.dual_cache_bank import (
    add_references,
    contact_sheet,
    describe_bank,
    describe_ranking,
    edit_bank,
    keyframe_engine,
)
from ..engines.engine import Engine
from ..film.reel.reel import Reel
from .sockets import MEMORY, EngineSocket, ReelSocket, numbers_of

_ENGINE = "A cache-guided engine of the reel's size, VAE and keyframe CLIP."


class LongreelDualCache(io.ComfyNode):
    """List and edit the shot cache of a reel."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        numbers = "Numbers as the list shows them, for example 1, 4."
        return io.Schema(
            node_id="LongreelDualCache",
            display_name="Dual Cache",
            category=MEMORY,
            description="Shows the keyframes that the reel remembers and lets you pin, ban, replace and remove them. "
            "Changes hold for the shots that are filmed after it.",
            search_aliases=["keyframes", "memory", "pin", "ban", "shot cache", "bank"],
            inputs=[
                EngineSocket.Input("engine", tooltip=_ENGINE),
                ReelSocket.Input("reel", tooltip="The reel whose memory to see and change."),
                io.Image.Input("picture", optional=True, tooltip="Takes the place of the keyframe named in replace."),
                io.String.Input("pin", default="", tooltip=f"Shown to every shot from here on. {numbers}"),
                io.String.Input("ban", default="", tooltip=f"Never shown, even if pinned. {numbers}"),
                io.String.Input("release", default="", tooltip=f"Neither pinned nor banned any more. {numbers}"),
                io.String.Input("remove", default="", tooltip=f"Forgotten for good. {numbers}"),
                io.Int.Input(
                    "replace", default=0, min=0, max=10**6, tooltip="The keyframe that the picture replaces; 0: none."
                ),
                io.Boolean.Input("clear", default=False, tooltip="On: everything is forgotten, pinned ones too."),
            ],
            outputs=[
                ReelSocket.Output(display_name="reel", tooltip="The reel with these changes."),
                io.Image.Output(display_name="keyframes", tooltip="All keyframes in the order of the list."),
                io.String.Output(
                    display_name="list",
                    tooltip="A line for each: number, where it is from, marks; then what each shot was shown.",
                ),
            ],
            is_output_node=True,
        )

    @override
    @classmethod
    def validate_inputs(
        cls, pin: str | None = None, ban: str | None = None, release: str | None = None, remove: str | None = None
    ) -> bool | str:
        try:
            for text in (pin, ban, release, remove):
                _numbers(text or "")
        except ValueError as error:
            return str(error)
        return True

    @override
    @classmethod
    def execute(
        cls,
        engine: Engine,
        reel: Reel,
        pin: str,
        ban: str,
        release: str,
        remove: str,
        replace: int,
        clear: bool,
        picture: Tensor | None = None,
    ) -> io.NodeOutput:
        guided = keyframe_engine(engine)
        changed = edit_bank(
            guided,
            reel,
            pinned=_numbers(pin),
            banned=_numbers(ban),
            freed=_numbers(release),
            removed=_numbers(remove),
            replaced=replace,
            picture=picture,
            clear=clear,
        )
        cache = guided.remembered(changed)
        sheet = contact_sheet([keyframe.picture.image() for keyframe in cache.bank], guided.width, guided.height)
        return io.NodeOutput(changed, sheet, describe_bank(cache, changed), ui=ui.PreviewImage(sheet, cls=cls))


class LongreelRetrieveKeyframes(io.ComfyNode):
    """The keyframes that a prompt retrieves."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelRetrieveKeyframes",
            display_name="Retrieve Keyframes",
            category=MEMORY,
            description="Shows which keyframes a new shot with this prompt would be shown, and why: before it is "
            "filmed.",
            search_aliases=["search", "scores", "memory", "preview keyframes"],
            inputs=[
                EngineSocket.Input("engine", tooltip=_ENGINE),
                ReelSocket.Input("reel", tooltip="The reel that remembers."),
                io.String.Input("prompt", multiline=True, default="A red ball.", tooltip="The prompt of a new shot."),
            ],
            outputs=[
                io.Image.Output(display_name="keyframes", tooltip="Those that are shown, best first."),
                io.String.Output(display_name="scores", tooltip="All of them: similarity -1 to 1, and what became."),
            ],
            is_output_node=True,
        )

    @override
    @classmethod
    def execute(cls, engine: Engine, reel: Reel, prompt: str) -> io.NodeOutput:
        guided = keyframe_engine(engine)
        cache = guided.remembered(reel)
        ranking = guided.rank(cache, prompt, len(reel.shots))
        sheet = contact_sheet([keyframe.picture.image() for keyframe in ranking.keyframes], guided.width, guided.height)
        return io.NodeOutput(sheet, describe_ranking(cache, ranking), ui=ui.PreviewImage(sheet, cls=cls))


class LongreelAddReferences(io.ComfyNode):
    """A user's pictures into the shot cache."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelAddReferences",
            display_name="Add References",
            category=MEMORY,
            description="Puts your own pictures into what the reel remembers: characters, places, a look. Describe in "
            "the prompts what they show.",
            search_aliases=["character reference", "consistent", "cast", "concept injection", "ip adapter"],
            inputs=[
                EngineSocket.Input("engine", tooltip=_ENGINE),
                io.Image.Input("images", tooltip="One picture or a batch; each becomes a keyframe of the film's size."),
                ReelSocket.Input("reel", optional=True, tooltip="The reel to add them to; without it a new film."),
                io.String.Input(
                    "names",
                    multiline=True,
                    default="",
                    tooltip="Who is seen, a line for each picture, several with commas. They count for the engine's "
                    "limit per character. Empty: nobody named.",
                ),
                io.Boolean.Input(
                    "pinned",
                    default=True,
                    tooltip="On: shown to every shot. Off: only to shots whose prompt calls for them.",
                ),
            ],
            outputs=[ReelSocket.Output(display_name="reel", tooltip="The reel, remembering them.")],
        )

    @override
    @classmethod
    def execute(
        cls, engine: Engine, images: Tensor, names: str, pinned: bool, reel: Reel | None = None
    ) -> io.NodeOutput:
        guided = keyframe_engine(engine)
        who = [tuple(name.strip() for name in line.split(",") if name.strip()) for line in names.strip().splitlines()]
        reel = Reel.empty(guided.layout()) if reel is None else reel
        return io.NodeOutput(add_references(guided, reel, images, who, pinned))


def _numbers(text: str) -> list[int]:
    return numbers_of(text, "a keyframe")
