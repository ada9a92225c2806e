"""V3 nodes, one file per step of film-making. Unwrap, call, wrap.

Add a node by importing its class here and naming it in `NODES`; the order is the one of film-making.
"""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io
from typing_extensions import override

from ..host.files.paths import register_model_folders
from ..host.routes import register_routes
from .archive import LongreelOpenProject, LongreelPackProject
from .causal_checkpoint import LongreelLoadCausalCheckpoint
from .causal_engine import LongreelCausalEngine
from .causal_memory import LongreelMemoryView, LongreelPinMemory, LongreelRetrieveMemory
from .causal_sampler import LongreelCausalSampler
from .dual_cache_bank import LongreelAddReferences, LongreelDualCache, LongreelRetrieveKeyframes
from .dual_cache_conditioning import LongreelCacheConditioning
from .dual_cache_dataset import LongreelMiniatureFilms, LongreelWeaverDataset
from .dual_cache_engine import LongreelCacheGuidedEngine, LongreelFilmWeaverLora, LongreelKeyframeClip
from .dual_cache_train import LongreelTrainWeaverLora
from .edit import LongreelExtendShot, LongreelForkReel, LongreelRetakeShot, LongreelStartFromVideo
from .film import LongreelFilmShot, LongreelFilmStoryboard
from .first_frame_compose import LongreelFirstFrameComposer, LongreelReference
from .first_frame_dataset import LongreelBuildCastDataset, LongreelCastClip, LongreelMiniatureCastClips
from .first_frame_engine import LongreelFirstFrameEngine
from .first_frame_models import LongreelExpertSwitch, LongreelFirstFrameLora
from .first_frame_prompt import LongreelFirstFramePrompt, LongreelTrimTransition
from .first_frame_train import LongreelTrainCastLora
from .given_values import checked
from .instruction_chunk import LongreelNextChunk
from .instruction_conditioning import (
    LongreelApplyInstructionAdapter,
    LongreelInstructionConditioning,
    LongreelLoadInstructionAdapter,
)
from .instruction_engine import LongreelInstructionEngine
from .instruction_guider import LongreelInstructionGuider
from .instruction_measure import LongreelCompareVideos
from .instruction_states import LongreelPlanStates, LongreelReadStates, LongreelStatePrompt
from .instruction_train import LongreelInstructionDataset, LongreelTrainInstructionAdapter
from .miniature import LongreelMiniaturePicture, LongreelMiniatureTextEncoder
from .motion_adapter import LongreelApplyMotionAdapter, LongreelLoadMotionAdapter, LongreelSplitMotionLatent
from .motion_flow import LongreelFlowToRGB, LongreelRGBToFlow
from .motion_guidance import LongreelInnerGuidance, LongreelInnerGuider, LongreelMotionFallbacks
from .motion_report import LongreelMotionReport
from .motion_train import LongreelMotionDataset, LongreelTrainMotionAdapter
from .project import LongreelFilmPlan, LongreelFilmTakes, LongreelPruneProject
from .reel import LongreelLoadReel, LongreelSaveCutList, LongreelSaveReel
from .rehearsal import LongreelRehearsalEngine
from .report import LongreelContinuityReport, LongreelIdentityReport
from .review import LongreelReviewFilm
from .sound import LongreelFilmSound, LongreelShotSound
from .storyboard import LongreelStoryboard, LongreelStoryboardFromFile
from .video import LongreelReelToVideo

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
    LongreelStatePrompt,
    LongreelReadStates,
    LongreelPlanStates,
    LongreelInstructionEngine,
    LongreelLoadInstructionAdapter,
    LongreelApplyInstructionAdapter,
    LongreelInstructionConditioning,
    LongreelInstructionGuider,
    LongreelNextChunk,
    LongreelLoadMotionAdapter,
    LongreelApplyMotionAdapter,
    LongreelInnerGuidance,
    LongreelInnerGuider,
    LongreelMotionFallbacks,
    LongreelSplitMotionLatent,
    LongreelFlowToRGB,
    LongreelRGBToFlow,
    LongreelAddReferences,
    LongreelStartFromVideo,
    LongreelRehearsalEngine,
    LongreelFilmShot,
    LongreelFilmStoryboard,
    LongreelReviewFilm,
    LongreelFilmPlan,
    LongreelFilmTakes,
    LongreelRetrieveMemory,
    LongreelPinMemory,
    LongreelMemoryView,
    LongreelRetrieveKeyframes,
    LongreelDualCache,
    LongreelExtendShot,
    LongreelRetakeShot,
    LongreelForkReel,
    LongreelCacheConditioning,
    LongreelShotSound,
    LongreelFilmSound,
    LongreelReelToVideo,
    LongreelContinuityReport,
    LongreelIdentityReport,
    LongreelMotionReport,
    LongreelCompareVideos,
    LongreelSaveReel,
    LongreelLoadReel,
    LongreelSaveCutList,
    LongreelPruneProject,
    LongreelPackProject,
    LongreelOpenProject,
    LongreelCastClip,
    LongreelMiniatureCastClips,
    LongreelBuildCastDataset,
    LongreelTrainCastLora,
    LongreelMiniatureFilms,
    LongreelWeaverDataset,
    LongreelTrainWeaverLora,
    LongreelMotionDataset,
    LongreelTrainMotionAdapter,
    LongreelInstructionDataset,
    LongreelTrainInstructionAdapter,
]


class LongreelExtension(ComfyExtension):
    """The pack, as ComfyUI sees it."""

    @override
    async def on_load(self) -> None:
        """Let ComfyUI's own loaders find the miniature's weights, and programs ask about projects."""
        register_model_folders()
        register_routes()

    @override
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Return the node classes of the pack."""
        return [checked(node) for node in NODES]
