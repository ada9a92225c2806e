"""A LoRA that makes a causal model use its KV memory after a cut: who "the same character" is, and which frames to
keep.

A training sequence is a take that begins after a cut, with the film's first block (the sink) and three remembered
frames (the bank) before it, as in a rollout. Sink and bank hold places without characters and, anywhere among them, the
character that the new take calls "the same"; in other sequences the new take names everything, or shows a place alone,
so that the memory is used only where the prompt refers to it.

In some sequences the new take attends to three of the six remembered frames only, as with sparse activation. An
auxiliary loss by a classifier of latents (training/miniature/latent_classifier.py), optionally one behind the decoder,
weighs the character's attributes more than the rest of the picture.

A ranking loss shapes what the bank keeps. A full bank evicts the frame with the lowest score for the prompt; here
frames with a character are trained to score higher for every prompt than frames without. So a film's empty moments are
evicted first.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from ..core.auxiliary import AuxiliaryLoss
from ..core.command_line import command_line
from ..core.loop import Metrics, train
from ..core.lora import adapt, choose_layers, read_lora
from ..core.precision import mixed_precision
from ..core.settings import LoraSettings, add_arguments, again, chosen_settings, setting
from ..miniature.auxiliary import add_auxiliary_arguments, open_auxiliary_losses
from ..miniature.dit import Miniature, loss, predict
from ..miniature.export import FILES, read_dit, read_sizes, read_vae
from ..miniature.latent_classifier import multi_hot_labels
from ..miniature.pipeline import prepare_device
from ..miniature.sequences import BLOCK, CONTEXT_NOISE, SINK, noise_levels
from ..miniature.vae import VaeRecipe, build_vae
from .data import Takes, encode_takes, load_takes

BANK = 3
_ROWS = 5
"""Prompts of a sequence: the sink's, one for each remembered frame, the new take's."""
_FARTHEST = 240
_SECOND = 0.3
_ACTIVE = 3
"""Remembered frames in view when they are few, as memory-judge's sparse activation has it."""
_CHARACTER_WEIGHT = 10


@dataclass(frozen=True)
class MemoryLoraSettings(LoraSettings):
    """A run on `shards` shards of takes. ranking: weight of the loss that shapes what the bank keeps; sparse_rate:
    share of sequences in which three remembered frames are in view.
    """

    rank: int = again(LoraSettings, "rank", 32)
    steps: int = again(LoraSettings, "steps", 1700)
    batch: int = again(LoraSettings, "batch", 16)
    lr: float = again(LoraSettings, "lr", 1e-3)
    muon_lr: float = again(LoraSettings, "muon_lr", 2e-3)
    warmup: int = again(LoraSettings, "warmup", 30)
    final_lr_ratio: float = again(LoraSettings, "final_lr_ratio", 0.05)
    weight_decay: float = again(LoraSettings, "weight_decay", 0.0)
    ema_decay: float = again(LoraSettings, "ema_decay", 0.99)
    ranking: float = setting(0.1)
    sparse_rate: float = setting(0.35, aliases=("few",))
    shards: int = setting(12, help="of 64 takes to learn from")


_FIXED = ("micro_batch", "precision", "checkpointing", "save_every", "sample_every")
"""Common settings that this run does without."""


@dataclass(frozen=True)
class Sequences:
    """A batch of B sequences of F frames. clean: [B, 16, F, 8, 8]; shows: which remembered frames have a character [B,
    BANK]; named: the labels of the last block, [B, len(VISIBLE_WORDS)]; attention_mask: [B, F, F]; the rest as of
    `predict` and `sequences.Batch`.
    """

    clean: torch.Tensor
    noise: torch.Tensor
    sigma: torch.Tensor
    weight: torch.Tensor
    tokens: torch.Tensor
    caption: torch.Tensor
    position: torch.Tensor
    attention_mask: torch.Tensor
    shows: torch.Tensor
    named: torch.Tensor


def draw_sequences(people: Takes, places: Takes, rng: random.Random, size: int, few: float = 0.0) -> Sequences:
    """A batch: all of it takes' first blocks, or all of it second ones. Uses torch's global generator for noise."""
    second = rng.random() < _SECOND
    gap = BLOCK * rng.randint(5, (_FARTHEST if rng.random() < 0.8 else 3000) // BLOCK)
    remembered = sorted(BLOCK * at for at in rng.sample(range(1, gap // BLOCK), BANK))
    blocks = [list(range(SINK)), *([at] for at in remembered), *([[*range(gap, gap + BLOCK)]] if second else [])]
    start = gap + BLOCK * second
    blocks.append(list(range(start, start + BLOCK)))
    drawn = [_draw(people, places, rng, second) for _ in range(size)]
    clean = torch.stack([item["clean"] for item in drawn]).transpose(1, 2)
    owner = torch.tensor([index for index, block in enumerate(blocks) for _ in block])
    count, noisy = len(owner), owner == len(blocks) - 1
    # a remembered frame attends to the sink and itself, the take to everything before it
    attention_mask = (owner[:, None] == owner[None]) | (owner[None] == 0)
    attention_mask |= (owner[:, None] > BANK) & (owner[None] <= owner[:, None])
    attention_mask = attention_mask.repeat(size, 1, 1)
    for item, seen in zip(drawn, attention_mask, strict=True):
        if rng.random() < few:
            hidden = _hidden(item["person"], rng)
            seen[SINK + BANK :, hidden] = False
    context_noise = CONTEXT_NOISE * torch.rand(size, 1, 1, 1, 1) * (torch.rand(size, 1, 1, 1, 1) < 0.8)
    clean = torch.where(noisy[:, None, None], clean, clean + context_noise * torch.randn_like(clean))
    weight = torch.zeros(size, 1, count, 8, 8)
    weight[:, 0, noisy] = torch.stack([item["weight"] for item in drawn])
    return Sequences(
        clean,
        torch.randn_like(clean),
        noise_levels((size, 1), few=0.7) * noisy,
        weight,
        torch.stack([item["tokens"] for item in drawn]),
        owner.clamp(max=_ROWS - 1).expand(size, -1),
        torch.tensor([at for block in blocks for at in block]).expand(size, -1),
        attention_mask,
        torch.stack([item["person"][SINK:] for item in drawn]),
        torch.stack([multi_hot_labels(item["named"]) for item in drawn]),
    )


def _hidden(person: torch.Tensor, rng: random.Random) -> list[int]:
    """Which of the remembered frames are masked when three are active: those with a character come first, as the picks
    of sparse activation are meant to.
    """
    order = sorted(range(len(person)), key=lambda frame: (not bool(person[frame]), rng.random()))
    return order[_ACTIVE:]


def _draw(people: Takes, places: Takes, rng: random.Random, second: bool) -> dict[str, torch.Tensor]:
    """One sequence: clean [F, 16, 8, 8], weight [BLOCK, 8, 8] of what is learned, tokens [5, 48], named [48], and which
    of sink and bank have a character [SINK + BANK].
    """
    who = rng.randrange(len(people))
    kind = rng.choices(("same", "named", "place"), (0.6, 0.2, 0.2))[0]
    seen = who if kind == "same" or rng.random() < 0.3 else rng.randrange(len(people))
    in_sink = rng.random() < 0.2
    often = rng.choices(range(4), (0.3, 0.4, 0.2, 0.1) if in_sink or kind != "same" else (0, 0.5, 0.35, 0.15))[0]
    often_in = rng.sample(range(BANK), often)
    scenery = [rng.randrange(len(places)) for _ in range(BANK + 1)]
    frames, tokens = [], []
    if in_sink:
        frames += list(people.views[seen][:SINK])
        tokens.append(people.told[seen])
    else:
        frames += list(places.take[scenery[-1]][:SINK])
        tokens.append(places.told[scenery[-1]])
    for index in range(BANK):
        source, item = (people, seen) if index in often_in else (places, scenery[index])
        frames.append(source.views[item][rng.randrange(source.views.shape[1])])
        tokens.append(source.told[item])
    source, item = (places, rng.randrange(len(places))) if kind == "place" else (people, who)
    frames += list(source.take[item][: 2 * BLOCK if second else BLOCK])
    tokens.append(source.tokens[item, int(kind == "same")])
    learned = slice(BLOCK, 2 * BLOCK) if second else slice(0, BLOCK)
    return {
        "clean": torch.stack(frames).float(),
        "weight": 1 + _CHARACTER_WEIGHT * source.weights[item, learned].float(),
        "tokens": torch.stack(tokens).long(),
        "named": source.tokens[item, 0],
        "person": torch.tensor([in_sink] * SINK + [index in often_in for index in range(BANK)]),
    }


def ranking_loss(
    keys: list[tuple[torch.Tensor, torch.Tensor]], shows: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """How far the bank is from keeping what it should, and the share of right decisions.

    keys: of `predict`; shows [B, BANK]. For each pair of remembered frames of which one has a character: the logistic
    loss of its lead in the bank's own score (film.kv_memory.MemoryBank), under the new take's prompt.
    """
    pair = shows[:, :, None] & ~shows[:, None]
    total = right = keys[0][0].new_zeros((), dtype=torch.float32)
    for frame_keys, text_keys in keys:
        _, heads, _, width = frame_keys.shape
        text = text_keys.float().unflatten(2, (_ROWS, -1))[:, :, -1].mean(dim=2)
        n = 16
        means = frame_keys[:, :, SINK * n : (SINK + BANK) * n].float().unflatten(2, (BANK, n)).mean(dim=3)
        score = torch.einsum("bhd,bhfd->bf", text, means) / (heads * width**0.5)
        ahead = (score[:, :, None] - score[:, None])[pair]
        total = total + F.softplus(1 - 20 * ahead).mean()
        right = right + (ahead > 0).float().mean()
    return total / len(keys), right / len(keys)


def train_memory_lora(
    settings: MemoryLoraSettings,
    auxiliary: AuxiliaryLoss | None,
    weights: Path,
    folder: Path,
    output: Path,
    start_from: Path | None = None,
) -> Path:
    """Train the adapter for the miniature under `weights` on the takes in `folder`/takes, resuming there. start_from: a
    finished one of the same layers and rank.
    """
    people, places = (load_takes(folder / "takes", kind) for kind in ("characters", "places"))
    model = Miniature(read_sizes(weights))
    read_dit(model, weights)
    device = prepare_device()
    model.to(device).requires_grad_(False)
    names = choose_layers(model.dit, settings.layers)
    tree, adapter = adapt(
        model.dit, names, settings.rank, alpha=settings.alpha, dropout=settings.dropout, seed=settings.seed
    )
    if start_from:
        read_lora(adapter, start_from)

    def learn(step: int) -> tuple[torch.Tensor, Metrics]:
        rng = random.Random(f"{settings.seed}/{step}")
        batch = draw_sequences(people, places, rng, settings.batch, settings.sparse_rate)
        batch = Sequences(**{part.name: getattr(batch, part.name).to(device) for part in fields(Sequences)})
        keys: list[tuple[torch.Tensor, torch.Tensor]] = []
        sigma = batch.sigma[:, None, :, None, None]
        noised = (1 - sigma) * batch.clean + sigma * batch.noise
        v = _velocity(model, tree, batch, noised, keys)
        value = loss(v, batch.noise - batch.clean, batch.weight)
        guess = noised - sigma * v
        seen = auxiliary.loss(guess[:, :, -BLOCK:], list(batch.named)) if auxiliary else value.new_zeros(())
        rank, right = ranking_loss(keys, batch.shows)
        kind = "first" if batch.clean.shape[2] == SINK + BANK + BLOCK else "second"
        told = {kind: value.detach(), f"{kind} seen": seen.detach(), "rank": rank.detach()}
        return value + settings.ranking * rank + seen, told | {"kept": right}

    average = train(
        "memory",
        adapter,
        learn,
        settings.schedule(),
        folder,
        groups=adapter.groups(),
        seed=settings.seed,
        save_every=60,
    )
    adapter.load_state_dict(average)
    told = {"base": "longreel-miniature-dit", "recipe": "memory", "steps": str(settings.steps)}
    return adapter.export(output, told)


def add_lora_arguments(parser: argparse.ArgumentParser) -> None:
    """`memory-lora`'s."""
    parser.add_argument("--folder", type=Path, required=True, help="encoded takes, checkpoints, curve (resumed)")
    add_arguments(parser, MemoryLoraSettings(), MemoryLoraSettings(), without=_FIXED)
    parser.add_argument("--start-from", type=Path, help="a finished LoRA of the same rank to train on")
    add_auxiliary_arguments(parser)


@command_line()
def run_lora(chosen: argparse.Namespace, weights: Path) -> None:
    """`memory-lora`. weights: where the miniature's files are and the adapter goes."""
    settings = chosen_settings(chosen, MemoryLoraSettings())
    vae, device = build_vae(VaeRecipe().width), prepare_device()
    read_vae(vae, weights)
    # what read_vae gives has latents of zero mean and unit variance already
    none, one = torch.zeros(16, 1, 1, 1, device=device), torch.ones(16, 1, 1, 1, device=device)
    encode_takes(vae.to(device).eval(), none, one, settings.shards, chosen.folder / "takes", settings.seed)
    auxiliary = open_auxiliary_losses(weights, chosen.latent_loss, chosen.pixel_loss, device=device)
    output = weights / FILES["memory"]
    print(train_memory_lora(settings, auxiliary, weights, chosen.folder, output, chosen.start_from))


def _velocity(
    model: Miniature,
    tree: Any,
    batch: Sequences,
    noised: torch.Tensor,
    keys: list[tuple[torch.Tensor, torch.Tensor]],
) -> torch.Tensor:
    size, prompts, length = batch.tokens.shape
    with mixed_precision(batch.clean.device):
        rows = model.text(batch.tokens.flatten(0, 1)).reshape(size, prompts * length, -1)
        text_mask = F.one_hot(batch.caption, prompts).bool().repeat_interleave(length, dim=2)
        velocity = predict(
            tree,
            noised,
            batch.sigma * 1000,
            rows,
            position=batch.position,
            attention_mask=batch.attention_mask,
            text_mask=text_mask,
            keys=keys,
        )
    return velocity.float()
