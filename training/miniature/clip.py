"""The miniature's CLIP: which picture goes with which sentence of the small world, as open_clip publishes its models.

Pictures are rendered frames and characters cut out of them. Sentences describe all of a scene, or only who is in it, or
what the same characters do elsewhere: that last pair is a keyframe and the prompt of a later shot, so that a prompt
finds its characters whatever else it says.

Source: CLIP, arXiv 2103.00020 (symmetric cross-entropy over a batch, learned temperature).
"""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...miniature.stories import character_phrase, describe, random_scene
from ...miniature.text import WORDS, tokenize
from ...miniature.world import ACTIONS, FPS, PLACES, SIZE, Beat, Scene, render
from ..core.loop import Metrics, Schedule, train
from ..core.precision import mixed_precision
from ..core.trainable import write_tensors
from .probe import degrade

CLIP_FOLDER = "open_clip/longreel-miniature-clip"
CLIP_FILE = f"{CLIP_FOLDER}/open_clip_model.safetensors"
_BEGIN, _END = len(WORDS) + 1, len(WORDS) + 2
_MARGIN = 3
_ROWS = 32
"""What is read of a sentence: two characters, what they do and where, are 29."""
_CONFIG: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": SIZE, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64},
    "text_cfg": {
        "context_length": _ROWS, "vocab_size": _END + 1, "width": 128, "heads": 4, "layers": 2,
        "hf_tokenizer_name": "longreel-miniature",
    },
}  # fmt: skip


@dataclass(frozen=True)
class ClipRecipe:
    """A pool of `scenes` is drawn once; each step shows `batch` frames and half as many cut-out characters."""

    scenes: int = 6000
    steps: int = 800
    batch: int = 64
    rate: float = 1.5e-3
    seed: int = 0


@dataclass(frozen=True)
class _Pool:
    frames: torch.Tensor
    people: torch.Tensor
    moments: list[tuple[Scene, float]]


def build_clip() -> nn.Module:
    """The untrained model: a small residual network and a small transformer."""
    import open_clip

    text = {key: value for key, value in _CONFIG["text_cfg"].items() if key != "hf_tokenizer_name"}
    model: nn.Module = open_clip.CLIP(_CONFIG["embed_dim"], _CONFIG["vision_cfg"], text)
    return model


def encode_sentences(sentences: list[str]) -> torch.Tensor:
    """Token numbers [B, 32] as the tokenizer beside the exported weights gives them."""
    rows = torch.zeros(len(sentences), _ROWS, dtype=torch.long)
    for row, sentence in zip(rows, sentences, strict=True):
        tokens = [_BEGIN, *tokenize(sentence)[: _ROWS - 2], _END]
        row[: len(tokens)] = torch.tensor(tokens)
    return rows


def box_of(mask: torch.Tensor) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what a mask [h, w] of at least one pixel above 0.5 covers, with a margin."""
    rows, columns = (mask > 0.5).nonzero(as_tuple=True)
    return (
        max(int(columns.min()) - _MARGIN, 0), max(int(rows.min()) - _MARGIN, 0),
        min(int(columns.max()) + 1 + _MARGIN, mask.shape[1]), min(int(rows.max()) + 1 + _MARGIN, mask.shape[0]),
    )  # fmt: skip


def cut_out(frame: torch.Tensor, box: tuple[int, int, int, int]) -> torch.Tensor:
    """A box of a frame [3, h, w], enlarged to the frame's size."""
    left, top, right, bottom = box
    return F.interpolate(frame[None, :, top:bottom, left:right], size=frame.shape[1:], mode="bilinear")[0]


def train_clip(recipe: ClipRecipe, folder: Path, weights: Path) -> Path:
    """Train from nothing, resuming from `folder`, and write the model under `weights`; returns its file."""
    pool = _draw_pool(recipe)
    torch.manual_seed(recipe.seed)
    model = build_clip()
    model.train()

    def loss_at(step: int) -> tuple[torch.Tensor, Metrics]:
        rng = random.Random(f"{recipe.seed}/{step}")
        chosen = torch.randint(len(pool.frames), (recipe.batch,))
        few = chosen[: recipe.batch // 2]
        pictures = torch.cat([_seen(pool.frames[chosen]), _seen(pool.people[few])])
        sentences = [_sentence(*pool.moments[int(index)], rng) for index in chosen]
        sentences += [f"{character_phrase(pool.moments[int(i)][0].actors[0].character)}." for i in few]
        with mixed_precision(torch.device("cpu")):
            image, text, scale = model(_prepared(pictures), encode_sentences(sentences))[:3]
        image, text = image.float(), text.float()
        # Frames among frames and characters among characters: their sentences differ in kind, which is no merit.
        parts = [slice(0, recipe.batch), slice(recipe.batch, None)]
        losses, right = [], []
        for part in parts:
            scores = scale * image[part] @ text[part].T
            alike = _alike(sentences[part])
            losses.append((_against(scores, alike) + _against(scores.T, alike)) / 2)
            right.append(float(alike[torch.arange(len(alike)), scores.argmax(dim=1)].gt(0).float().mean()))
        return losses[0] + losses[1] / 2, {"frames": right[0], "characters": right[1]}

    schedule = Schedule(recipe.steps, recipe.rate, weight_decay=0.01, ema_decay=0.99)
    model.load_state_dict(train("clip", model, loss_at, schedule, folder, seed=recipe.seed))
    return export_clip(model, weights / CLIP_FOLDER)


def export_clip(model: nn.Module, folder: Path) -> Path:
    """Weights, description and tokenizer, as `host.media.embedder` and open_clip read them."""
    from ...host.media.embedder import CONFIG_FILE

    folder.mkdir(parents=True, exist_ok=True)
    description = {"model_cfg": _CONFIG, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    (folder / CONFIG_FILE).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
    (folder / "tokenizer.json").write_text(json.dumps(_tokenizer(), indent=1) + "\n", encoding="utf-8")
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "model_max_length": _ROWS}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind, indent=1) + "\n", encoding="utf-8")
    halves = {
        key: value.detach().cpu().half().contiguous() if value.is_floating_point() else value.cpu()
        for key, value in model.state_dict().items()
    }
    path = folder / Path(CLIP_FILE).name
    return write_tensors(path, halves, {})


def _tokenizer() -> dict[str, Any]:
    vocabulary = {"[PAD]": 0} | {word: index + 1 for index, word in enumerate(WORDS)}
    vocabulary |= {"[BEGIN]": _BEGIN, "[END]": _END}
    special = [{"SpecialToken": {"id": name, "type_id": 0}} for name in ("[BEGIN]", "[END]")]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": vocabulary[name], "content": name, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True}
            for name in ("[PAD]", "[BEGIN]", "[END]")
        ],
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": r"[^\s.,;:!?]+|[.,]"}, "behavior": "Removed",
                          "invert": True},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [special[0], {"Sequence": {"id": "A", "type_id": 0}}, special[1]],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {
                name: {"id": name, "ids": [vocabulary[name]], "tokens": [name]} for name in ("[BEGIN]", "[END]")
            },
        },
        "decoder": None,
        # A word that the small world does not have says nothing.
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[PAD]"},
    }  # fmt: skip


def _draw_pool(recipe: ClipRecipe) -> _Pool:
    rng = random.Random(f"clip {recipe.seed}")
    frames, people, moments = list[torch.Tensor](), list[torch.Tensor](), list[tuple[Scene, float]]()
    while len(frames) < recipe.scenes:
        scene = random_scene(rng, 5.0)
        time = round(rng.uniform(0, 5.0) * FPS) / FPS
        drawn = render(scene, torch.tensor([time]))
        if float(drawn.masks[0, 0].amax()) <= 0.5:
            continue
        frames.append((drawn.frames[0] * 255).round().byte())
        people.append((cut_out(drawn.frames[0], box_of(drawn.masks[0, 0])) * 255).round().byte())
        moments.append((scene, time))
    return _Pool(torch.stack(frames), torch.stack(people), moments)


def _sentence(scene: Scene, time: float, rng: random.Random) -> str:
    """What is said of a frame; of the camera nothing, a frame does not show it."""
    beat = replace(scene.beat_at(time), at=0.0, camera="still")
    kind = rng.choices(("whole", "who", "later"), (0.5, 0.2, 0.3))[0]
    if kind == "who":
        return " and ".join(character_phrase(actor.character) for actor in scene.actors) + "."
    place = scene.place
    if kind == "later":
        place = rng.choice(PLACES)
        beat = Beat(0.0, tuple(rng.choice(ACTIONS) for _ in scene.actors))
    told = describe(Scene(place, scene.actors, (beat,)), place_first=rng.random() < 0.25)
    # The caption's position is that of the first frame, not of this one.
    return re.sub(r" (on the left|on the right|in the middle)\b", "", told) if rng.random() < 0.5 else told


def _seen(pictures: torch.Tensor) -> torch.Tensor:
    return degrade(pictures[:, None].float() / 255)[:, 0]


def _prepared(pictures: torch.Tensor) -> torch.Tensor:
    return (pictures - 0.5) / 0.25


def _alike(sentences: list[str]) -> torch.Tensor:
    """[B, B], 1 / count where two sentences are the same one: no pair of them is wrong."""
    same = torch.tensor([[float(a == b) for b in sentences] for a in sentences])
    return same / same.sum(dim=1, keepdim=True)


def _against(scores: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    return -(wanted * scores.log_softmax(dim=1)).sum(dim=1).mean()
