"""The cast: pictures cut out as references, and references laid out as a first frame."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast, get_args

from comfy_api.latest import io, ui
from torch import Tensor
from typing_extensions import override

from ..film.first_frame import (
    MAX_ENLARGE,
    Box,
    Composition,
    FirstFrameError,
    LayoutKind,
    Reference,
    compose,
    parse_arrangement,
)
from ..film.pixels import PixelError, from_pil
from .first_frame_canvas import canvas_payload
from .sockets import CAST, ReferenceSocket, references_input, references_of

_KEEP, _REMOVE, _ALPHA, _NOTHING = "mask (1 = keep)", "mask (1 = remove)", "alpha", "nothing"


class LongreelReference(io.ComfyNode):
    """A picture, cut out and named."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelReference",
            display_name="Reference",
            category=CAST,
            description="A picture of somebody or something to be cast in a shot, cut out of its background. Make the "
            "mask with core's Remove Background (BiRefNet) or SAM3 Detect, or use the picture's own transparency.",
            search_aliases=["ffgo", "character reference", "consistent", "cast", "cut out", "remove background"],
            inputs=[
                io.Image.Input("image", tooltip="One picture, RGB or RGBA. Larger and sharper: more of it survives."),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="What to keep or to remove, see cut_out. One mask of the picture's size.",
                ),
                io.String.Input(
                    "name",
                    default="",
                    tooltip='The noun that prompts use for it, such as "mug". A storyboard calls the reference by it.',
                ),
                io.String.Input(
                    "description",
                    multiline=True,
                    default="",
                    tooltip="How it looks: colour, material, clothing. More: the prompt holds the picture better. It "
                    "must be true of the picture, as the text wins where they differ.",
                ),
                io.Combo.Input(
                    "cut_out",
                    options=[_KEEP, _REMOVE, _ALPHA, _NOTHING],
                    default=_KEEP,
                    tooltip="What tells the thing from its background. mask (1 = keep): a mask from Remove Background "
                    "or SAM3 Detect; without a mask, the picture's own alpha. mask (1 = remove): the MASK output of "
                    "Load Image, which marks what is transparent. alpha: the picture's own. nothing: all of it.",
                ),
            ],
            outputs=[
                ReferenceSocket.Output(display_name="reference"),
                io.Image.Output(display_name="cut-out", tooltip="The kept part on white, as it goes into the frame."),
                io.Mask.Output(display_name="kept", tooltip="1 where the picture is kept, of the picture's size."),
            ],
        )

    @override
    @classmethod
    def execute(
        cls, image: Tensor, name: str, description: str, cut_out: str, mask: Tensor | None = None
    ) -> io.NodeOutput:
        title = f'Reference "{name.strip()}"' if name.strip() else "The reference"
        if cut_out == _ALPHA and image.shape[-1] != 4:
            raise FirstFrameError(
                f'{title} has no alpha channel: connect a mask instead (Load Image\'s means "{_REMOVE}").'
            )
        if cut_out == _REMOVE and mask is None:
            raise FirstFrameError(f"{title} has no mask that could say what to remove: connect one.")
        if cut_out == _NOTHING:
            image, mask = image[..., :3], None
        if cut_out == _ALPHA:
            mask = None
        if mask is not None and (_is_placeholder(mask, image) or (cut_out == _REMOVE and not mask.any())):
            mask = None
        made = Reference.from_image(
            image,
            mask,
            name.strip(),
            " ".join(description.split()),
            mask_marks="background" if cut_out == _REMOVE else "foreground",
        )
        pixels = from_pil(made.picture)
        shown = ui.PreviewImage(pixels[None], cls=cls).as_dict()
        alpha = pixels[None, ..., 3]
        box = made.crop_box()
        on_white = pixels[..., :3] * alpha[0, ..., None] + (1.0 - alpha[0, ..., None])
        cropped = on_white[None, box.y : box.bottom, box.x : box.right]
        return io.NodeOutput(made, cropped, alpha, ui={**shown, "text": made.warnings})


def _is_placeholder(mask: Tensor, image: Tensor) -> bool:
    """Whether it is no mask but what core's Load Image gives for a picture without transparency: 64 x 64 zeros."""
    return tuple(mask.shape[-2:]) == (64, 64) != tuple(image.shape[-3:-1]) and not mask.any()


class LongreelFirstFrameComposer(io.ComfyNode):
    """References and a plate to a first frame."""

    @override
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongreelFirstFrameComposer",
            display_name="First Frame Composer",
            category=CAST,
            description="Lays out up to eight references and a background plate on one picture, the first frame of a "
            "shot in which all of them appear (FFGo). Run it once, then drag them on the canvas.",
            search_aliases=["ffgo", "collage", "reference sheet", "image stitch", "layout", "canvas"],
            has_intermediate_output=True,
            inputs=[
                references_input(
                    "Who and what is in the shot. More: each gets fewer pixels; up to four keep their looks well.",
                    least=1,
                ),
                io.Image.Input(
                    "plate",
                    optional=True,
                    tooltip="The place, without the references in it. Both paper layouts need one.",
                ),
                io.BoundingBox.Input(
                    "boxes",
                    optional=True,
                    force_input=True,
                    tooltip="For the layout manual: one box for each reference, from Create Bounding Boxes. They take "
                    "the place of those on the canvas.",
                ),
                io.Int.Input(
                    "width",
                    default=1280,
                    min=16,
                    max=8192,
                    step=16,
                    tooltip="Pixels, exactly. More: references keep more detail; filming costs more. Set the size you "
                    "film at: another one would be cropped at the edges. 1280 x 720 was trained.",
                ),
                io.Int.Input("height", default=720, min=16, max=8192, step=16, tooltip="Pixels, exactly; see width."),
                io.Combo.Input(
                    "layout",
                    options=list(get_args(LayoutKind)),
                    default="auto",
                    tooltip="auto: the smallest reference is as large as it can be. paper: as the published adapter "
                    "was trained or tested, never enlarging. grid: two columns. manual: the boxes of the canvas.",
                ),
                io.String.Input(
                    "canvas",
                    default="",
                    multiline=True,
                    extra_dict={"widgetType": "LONGREEL_CANVAS"},
                    tooltip='Order and boxes of the references as text: "canvas 1280 x 720", then for each a line '
                    '"1: left top width height". Empty: in the order of the sockets. Other layouts than manual '
                    "use the order only.",
                ),
                io.Float.Input(
                    "max_enlarge",
                    default=MAX_ENLARGE,
                    min=1.0,
                    max=16.0,
                    step=0.5,
                    advanced=True,
                    tooltip="How many times auto and manual may enlarge a small reference. More: it fills its place "
                    "but gets soft. 1: never.",
                ),
                io.Boolean.Input(
                    "swap_halves",
                    default=False,
                    advanced=True,
                    tooltip="On: the plate left, the references right; in portrait above and below. Trained: off.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="first frame", tooltip="Exactly width x height."),
                io.Mask.Output(display_name="masks", tooltip="One for each reference: 1 where it is seen."),
                io.Mask.Output(display_name="plate mask", tooltip="1 where the plate is seen."),
                io.BoundingBox.Output(display_name="boxes", tooltip="What each reference covers."),
                io.String.Output(display_name="layout", tooltip="All of it as JSON, warnings too."),
            ],
        )

    @override
    @classmethod
    def validate_inputs(cls, canvas: str | None = None, references: Any = None) -> bool | str:
        if canvas is None:
            return True
        try:
            parse_arrangement(canvas)
        except PixelError as error:
            return str(error)
        return True

    @override
    @classmethod
    def execute(
        cls,
        references: dict[str, Reference | None],
        width: int,
        height: int,
        layout: str,
        canvas: str,
        max_enlarge: float,
        swap_halves: bool,
        plate: Tensor | None = None,
        boxes: Any = None,
    ) -> io.NodeOutput:
        given = references_of(references)
        arrangement = parse_arrangement(canvas)
        order = arrangement.order(len(given))
        chosen: tuple[Box, ...] = ()
        if layout == "manual" and boxes is not None:
            listed = [Box(*(round(box[side]) for side in ("x", "y", "width", "height"))) for box in _boxes_in(boxes)]
            if len(listed) != len(given):
                raise FirstFrameError(f"There are {len(given)} references and {len(listed)} boxes: give one for each.")
            chosen = tuple(listed[index] for index in order)
        elif layout == "manual":
            chosen = arrangement.boxes(len(given), width, height)
        drawn = [given[index] for index in order]
        kind, size = cast(LayoutKind, layout), (width, height)
        made = compose(drawn, plate, kind, size, boxes=chosen, max_enlarge=max_enlarge)
        if swap_halves:
            made = compose(drawn, plate, made.layout.swapped(), size)
        return io.NodeOutput(
            made.picture,
            _in_order(made.masks, order),
            made.plate_mask,
            [_in_order(_boxes_of(made), order)],
            made.layout.to_json(),
            ui={"longreel_canvas": [canvas_payload(made, drawn, order, plate, cls)]},
        )


def _boxes_of(made: Composition) -> list[dict[str, int]]:
    """The boxes as core's BOUNDING_BOX has them."""
    return [{"x": box.x, "y": box.y, "width": box.width, "height": box.height} for box in made.boxes]


def _boxes_in(value: Any) -> Iterator[dict[str, float]]:
    """The boxes of a BOUNDING_BOX value: one, a list, or a list for each frame of a batch."""
    if isinstance(value, dict):
        yield value
    else:
        for part in value:
            yield from _boxes_in(part)


def _in_order(drawn: Any, order: tuple[int, ...]) -> Any:
    """What was drawn in `order`, in the order of the sockets."""
    places = [order.index(index) for index in range(len(order))]
    return drawn[places] if isinstance(drawn, Tensor) else [drawn[place] for place in places]
