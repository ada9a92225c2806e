"""FilmWeaver's dual cache: keyframes across cuts (shot cache) and frames within a shot (temporal cache). Pure PyTorch.

A story is a StoryCache, an immutable value; the functions here turn one into the next. A Payload conditions the model
on it, with tokens placed by a LayoutProfile. See story.py for the loop.
"""

from .keyframe import ChoicePolicy, Keyframe, Picture, choose_keyframes, sharpness, spread_frames
from .payload import CacheNoise, Payload, Segment, build_payload
from .profile import FILMWEAVER, METADATA_KEY, Bucket, CacheError, LayoutProfile, check_profile
from .retrieval import Ranked, Retrieval, RetrievalPolicy, retrieve, split_sentences
from .stored import pack, stored_pictures, unpack
from .story import (
    Mode,
    StoryCache,
    ban,
    clear_shot,
    clear_temporal,
    end_shot,
    fork,
    inject,
    merge,
    pin,
    push_chunk,
    remove,
    rollback,
    set_temporal,
    swap,
)

__all__ = [
    "FILMWEAVER",
    "METADATA_KEY",
    "Bucket",
    "CacheError",
    "CacheNoise",
    "ChoicePolicy",
    "Keyframe",
    "LayoutProfile",
    "Mode",
    "Payload",
    "Picture",
    "Ranked",
    "Retrieval",
    "RetrievalPolicy",
    "Segment",
    "StoryCache",
    "ban",
    "build_payload",
    "check_profile",
    "choose_keyframes",
    "clear_shot",
    "clear_temporal",
    "end_shot",
    "fork",
    "inject",
    "merge",
    "pack",
    "pin",
    "push_chunk",
    "remove",
    "retrieve",
    "rollback",
    "set_temporal",
    "sharpness",
    "split_sentences",
    "spread_frames",
    "stored_pictures",
    "swap",
    "unpack",
]
