"""Measures of a finished video: consistency, alignment with its prompts, motion, and who is in it when.

Pure functions on frames, embeddings and boxes. Where frames and embeddings come from is the caller's business
(host/media/source.py, host/media/measure.py). Source: docs/methods/filmweaver.md and docs/methods/ffgo.md, measures.
"""

from .block_motion import block_motion
from .continuity import ContinuityReport, Seen, ShotEvidence, ShotFigures, continuity_report
from .crops import crop_on_white, reference_on_white, windows
from .cuts import Span, cut_sharpness, find_cuts, keyframe_positions, spans_of
from .frame_stats import FrameStats, Watcher, colour_distance, lab, small
from .identity import IdentityReport, Look, identity_report, looks_of, missing_spans
from .plot import plot_continuity, plot_identity
from .similarity import assign, cosines, join, layout_likeness, margin, mean_of_pairs
from .tables import continuity_table, identity_table
from .values import Character, Found, MetricsError, boxes_from_json, parse_characters, parse_times, read_boxes

__all__ = [
    "Character",
    "ContinuityReport",
    "Found",
    "FrameStats",
    "IdentityReport",
    "Look",
    "MetricsError",
    "Seen",
    "ShotEvidence",
    "ShotFigures",
    "Span",
    "Watcher",
    "assign",
    "block_motion",
    "boxes_from_json",
    "colour_distance",
    "continuity_report",
    "continuity_table",
    "cosines",
    "crop_on_white",
    "cut_sharpness",
    "find_cuts",
    "identity_report",
    "identity_table",
    "join",
    "keyframe_positions",
    "lab",
    "layout_likeness",
    "looks_of",
    "margin",
    "mean_of_pairs",
    "missing_spans",
    "parse_characters",
    "parse_times",
    "plot_continuity",
    "plot_identity",
    "read_boxes",
    "reference_on_white",
    "small",
    "spans_of",
    "windows",
]
