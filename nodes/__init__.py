"""What a person drags: V3 nodes, one file per step of film-making. Unwrap, call, wrap.

Add a node by importing its class here and naming it in `NODES`; the order is the one of film-making.
"""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io
from typing_extensions import override

from ..host.paths import register_model_folders
from .cache import LongreelAddReferences, LongreelDualCache, LongreelRetrieveKeyframes
from .cache_engine import LongreelCacheGuidedEngine, LongreelFilmWeaverLora, LongreelKeyframeClip
from .cache_film import (
    LongreelCacheConditioning,
    LongreelExtendShot,
    LongreelForkReel,
    LongreelStartFromVideo,
)
from .cast import LongreelFirstFrameComposer, LongreelReference
from .cast_dataset import LongreelBuildCastDataset, LongreelCastClip, LongreelMiniatureCastClips
from .cast_training import LongreelTrainCastLora
from .checkpoint import LongreelLoadCausalCheckpoint
from .engines import LongreelCausalEngine
from .film import LongreelFilmShot, LongreelFilmStoryboard
from .first_frame import LongreelFirstFramePrompt, LongreelTrimTransition
from .first_frame_engine import LongreelFirstFrameEngine
from .first_frame_models import LongreelExpertSwitch, LongreelFirstFrameLora
from .memory import LongreelMemoryView, LongreelPinMemory, LongreelRetrieveMemory
from .miniature import LongreelMiniaturePicture, LongreelMiniatureTextEncoder
from .reel import LongreelLoadReel, LongreelSaveReel
from .report import LongreelContinuityReport, LongreelIdentityReport
from .sampler import LongreelCausalSampler
from .storyboard import LongreelStoryboard, LongreelStoryboardFromFile
from .video import LongreelReelToVideo
from .weaver_dataset import LongreelMiniatureFilms, LongreelWeaverDataset
from .weaver_training import LongreelTrainWeaverLora

NODES: list[type[io.ComfyNode]] = [
    LongreelStoryboard,
    LongreelStoryboardFromFile,
    LongreelReference,
    LongreelFirstFrameComposer,
    LongreelFirstFramePrompt,
    LongreelTrimTransition,
    LongreelMiniatureTextEncoder,
    LongreelMiniaturePicture,
    LongreelLoadCausalCheckpoint,
    LongreelCausalEngine,
    LongreelCausalSampler,
    LongreelKeyframeClip,
    LongreelFilmWeaverLora,
    LongreelCacheGuidedEngine,
    LongreelFirstFrameLora,
    LongreelExpertSwitch,
    LongreelFirstFrameEngine,
    LongreelAddReferences,
    LongreelStartFromVideo,
    LongreelFilmShot,
    LongreelFilmStoryboard,
    LongreelRetrieveMemory,
    LongreelPinMemory,
    LongreelMemoryView,
    LongreelRetrieveKeyframes,
    LongreelDualCache,
    LongreelExtendShot,
    LongreelForkReel,
    LongreelCacheConditioning,
    LongreelReelToVideo,
    LongreelContinuityReport,
    LongreelIdentityReport,
    LongreelSaveReel,
    LongreelLoadReel,
    LongreelCastClip,
    LongreelMiniatureCastClips,
    LongreelBuildCastDataset,
    LongreelTrainCastLora,
    LongreelMiniatureFilms,
    LongreelWeaverDataset,
    LongreelTrainWeaverLora,
]


class LongreelExtension(ComfyExtension):
    """The pack, as ComfyUI sees it."""

    @override
    async def on_load(self) -> None:
        """Let ComfyUI's own loaders find the miniature's weights."""
        register_model_folders()

    @override
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Return the node classes of the pack."""
        return NODES
