"""The pure half of a joint appearance-motion model: flow as pictures, the two added layers, their file, and measures.

Source: Chefer et al., "VideoJAM: Joint Appearance-Motion Representations for Enhanced Motion Generation in Video
Models", 2025 (arXiv 2502.02492).
"""

from .adapter import AdapterInfo, FlowGate, GateLevel
from .codec import ENCODINGS, FlowCodec, check_flow, pad_flow, resize_flow
from .joint import MotionLayers
from .metrics import MotionMeter, MotionReport, flow_errors, measure_flow
from .values import MotionError

__all__ = [
    "ENCODINGS",
    "AdapterInfo",
    "FlowCodec",
    "FlowGate",
    "GateLevel",
    "MotionError",
    "MotionLayers",
    "MotionMeter",
    "MotionReport",
    "check_flow",
    "flow_errors",
    "measure_flow",
    "pad_flow",
    "resize_flow",
]
