"""ShotStream's rollout against a reference that has no KV memory: whole shots in one pass, who sees whom as lists."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from longreel.film.kv_memory import LONGLIVE, SHOTSTREAM, MemorySettingsError, MemorySnapshot
from longreel.film.kv_memory.shots import shotstream_sigmas, spread_over_shots
from longreel.host.wan import attention as frame_attention_room
from longreel.host.wan.rollout import Prompt, RolloutError, RolloutSampler, roll_out
from longreel.host.wan.shot_context import ShotContext
from longreel.kernels.ops import qk_prep
from safetensors.torch import load, save

from ...device import same

HEADS, SIZE = 4, (4, 6)
SIGMAS = torch.tensor(shotstream_sigmas(4))


@pytest.fixture(scope="module")
def texts(golden):
    return [golden.tensors[f"prompt.p{i}"] for i in range(3)]


@pytest.fixture(scope="module")
def pictures():
    """Six latents for each of shots 1, 2 and 3, in LATENT space."""
    return torch.randn(4, 1, 16, 6, *SIZE, generator=torch.Generator().manual_seed(1))


def noise_of(shot):
    """Noise by block and step, of a shot of its own."""

    def noise(block, step, shape):
        return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(1000 * shot + 10 * block + step))

    return noise


# The facts, written out: of each shot the shots that its six pictures are of, and how many turns it is from the first
PICTURED = [[0] * 6, [0] * 6, [0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 2, 2]]
TURNS = [1, 1, 2, 3]


def shot_context(shot, conds, pictures):
    if not shot:
        return None
    captions = tuple(conds[taken % 3] for taken in PICTURED[shot])
    return ShotContext(shot, 100 * shot, pictures[shot], tuple(PICTURED[shot]), tuple(range(6)), captions)


def film(model, texts, pictures, shot, blocks=3, settings=SHOTSTREAM, **kwargs):
    conds = [[[text, {}]] for text in texts]
    prompts = [Prompt(0, conds[shot % 3])]
    kwargs = {"context": shot_context(shot, conds, pictures), "noise": noise_of(shot), **kwargs}
    return roll_out(model, prompts, (1, 16, 3 * blocks, *SIZE), SIGMAS, settings=settings, **kwargs)


@dataclass
class Frames:
    """Frames that are computed together. sees: (frame of the sequence, place seen at) of everything attended to."""

    latents: torch.Tensor
    time: float
    caption: list[int]
    phases: list[float]
    places: list[int]
    sees: list[tuple[int, int]]


class Reference:
    """Wan in plain torch, float32 but for RoPE in float64 complex numbers."""

    def __init__(self, golden, texts):
        named = ((name, t) for name, t in golden.tensors.items() if name.startswith("weights."))
        self.w = {name.removeprefix("weights."): t for name, t in named}
        self.dim = self.w["head.modulation"].shape[-1]
        self.text = [self.mlp(text[0], "text_embedding", lambda x: F.gelu(x, approximate="tanh")) for text in texts]

    def linear(self, x, name):
        return F.linear(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def mlp(self, x, name, act):
        return self.linear(act(self.linear(x, f"{name}.0")), f"{name}.2")

    def rms(self, x, name):
        return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * self.w[f"{name}.weight"]

    def attend(self, q, k, v):
        q, k, v = (x.unflatten(-1, (HEADS, -1)).transpose(0, 1) for x in (q, k, v))
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        return (weights @ v).transpose(0, 1).flatten(1)

    def turn(self, x, place, turn):
        """RoPE of one frame's tokens [n, dim] at a place in time, with an angle more on every temporal pair."""
        rows, columns, d = SIZE[0] // 2, SIZE[1] // 2, self.dim // HEADS
        widths = (d - 4 * (d // 6), 2 * (d // 6), 2 * (d // 6))
        speeds = [10000.0 ** -(torch.arange(0, width, 2).double() / width) for width in widths]
        t = (place * speeds[0] + turn).expand(rows, columns, -1)
        h = (torch.arange(rows)[:, None, None] * speeds[1]).expand(rows, columns, -1)
        w = (torch.arange(columns)[None, :, None] * speeds[2]).expand(rows, columns, -1)
        angles = torch.cat((t, h, w), dim=-1).flatten(0, 1).unsqueeze(1)
        pairs = torch.view_as_complex(x.double().unflatten(-1, (HEADS, -1, 2)).contiguous())
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(1).float()

    def flow(self, groups):
        """The flow of the last group's frames, [1, C, F, h, w]."""
        owner = [(group, i) for group in groups for i in range(group.latents.shape[2])]
        rows, columns = SIZE[0] // 2, SIZE[1] // 2
        x = [
            F.conv2d(g.latents[:, :, i], self.w["patch_embedding.weight"][:, :, 0], self.w["patch_embedding.bias"], 2)
            for g, i in owner
        ]
        x = [frame[0].flatten(1).T for frame in x]
        times = []
        for group, _ in owner:
            half = self.w["time_embedding.0.weight"].shape[1] // 2
            wave = group.time * 10000.0 ** -(torch.arange(half).double() / half)
            times.append(self.mlp(torch.cat((wave.cos(), wave.sin())).float(), "time_embedding", F.silu))
        modulation = [self.linear(F.silu(time), "time_projection.1").view(6, -1) for time in times]
        layers = 1 + max(int(name.split(".")[1]) for name in self.w if name.startswith("blocks."))
        for layer in range(layers):
            name = f"blocks.{layer}"
            parts = [(self.w[f"{name}.modulation"][0] + m).unbind(0) for m in modulation]
            normed = [F.layer_norm(f, (self.dim,), eps=1e-6) * (1 + p[1]) + p[0] for f, p in zip(x, parts)]
            q, k = (
                [self.rms(self.linear(f, f"{name}.self_attn.{s}"), f"{name}.self_attn.norm_{s}") for f in normed]
                for s in "qk"
            )
            v = [self.linear(f, f"{name}.self_attn.v") for f in normed]
            attended = []
            for n, (group, i) in enumerate(owner):
                keys = [self.turn(k[f], place, owner[f][0].phases[owner[f][1]]) for f, place in group.sees]
                own = self.turn(q[n], group.places[i], group.phases[i])
                attended.append(self.attend(own, torch.cat(keys), torch.cat([v[f] for f, _ in group.sees])))
            x = [f + self.linear(a, f"{name}.self_attn.o") * p[2] for f, a, p in zip(x, attended, parts)]
            for n, (group, i) in enumerate(owner):
                affine = (self.w[f"{name}.norm3.weight"], self.w[f"{name}.norm3.bias"])
                normed3 = F.layer_norm(x[n], (self.dim,), *affine, 1e-6)
                text, cross = self.text[group.caption[i]], f"{name}.cross_attn"
                own = self.rms(self.linear(normed3, f"{cross}.q"), f"{cross}.norm_q")
                words = self.rms(self.linear(text, f"{cross}.k"), f"{cross}.norm_k")
                x[n] = x[n] + self.linear(self.attend(own, words, self.linear(text, f"{cross}.v")), f"{cross}.o")
            fed = [F.layer_norm(f, (self.dim,), eps=1e-6) * (1 + p[4]) + p[3] for f, p in zip(x, parts)]
            fed = [self.mlp(f, f"{name}.ffn", lambda y: F.gelu(y, approximate="tanh")) for f in fed]
            x = [f + y * p[5] for f, y, p in zip(x, fed, parts)]
        out = []
        for frame, time, (group, _) in zip(x, times, owner):
            if group is groups[-1]:
                shift, scale = (self.w["head.modulation"][0] + time).unbind(0)
                y = self.linear(F.layer_norm(frame, (self.dim,), eps=1e-6) * (1 + scale) + shift, "head.head")
                y = y.view(rows, columns, 2, 2, 16).permute(4, 0, 2, 1, 3)
                out.append(y.reshape(16, *SIZE))
        return torch.stack(out, dim=1).unsqueeze(0)

    def shot(self, shot, pictures, blocks, window=21):
        """A shot in the model's space. pictures: [1, C, 6, h, w], in the model's space too."""
        of, seats = PICTURED[shot], [(f, f) for f in range(6)]
        context = Frames(pictures, 0.0, [s % 3 for s in of], [s / 6 for s in of], list(range(6)), seats)
        done, noise = [context], noise_of(shot)
        for block in range(blocks):
            places = [6 + 3 * block + i for i in range(3)]
            seen = places[-1] + 1 - min(places[-1] - 5, window)
            # pictures sit right before the window, however far it has come
            sees = [(f, seen - 6 + f) for f in range(6)] + [(f, f) for f in range(seen, places[-1] + 1)]
            like = Frames(torch.zeros(1, 16, 3, *SIZE), 0.0, [shot % 3] * 3, [TURNS[shot] / 6] * 3, places, sees)
            clean = like.latents
            for step, sigma in enumerate(SIGMAS[:-1].tolist()):
                x = (1 - sigma) * clean + sigma * noise(block, step, clean.shape)
                clean = x - sigma * self.flow([*done, replace(like, latents=x, time=1000 * sigma)])
            done.append(replace(like, latents=clean))
        return torch.cat([group.latents for group in done[1:]], dim=2)


@pytest.mark.parametrize(
    ("shot", "blocks", "settings"),
    [*((shot, 3 - shot // 3, SHOTSTREAM) for shot in range(4)), (2, 4, replace(SHOTSTREAM, window=12))],
)
def test_equals_whole_shots_in_one_pass(tiny_wan, golden, texts, pictures, shot, blocks, settings):
    filmed = film(tiny_wan, texts, pictures, shot, blocks, settings).latents
    into = tiny_wan.model.process_latent_in
    context = into(pictures[shot]) if shot else torch.zeros(1, 16, 6, *SIZE)
    expected = Reference(golden, texts).shot(shot, context, blocks, settings.window - 6)
    assert (into(filmed) - expected).abs().max() < 1e-4


def test_the_reference_notices_turns_words_and_blank_pictures(tiny_wan, golden, texts, pictures, monkeypatch):
    """What it would miss, it could not prove."""
    expected = Reference(golden, texts).shot(2, pictures[2], 1)
    for name, wrong in {"TURNS": [0, 1, 1, 1], "PICTURED": [[0] * 6] * 4}.items():
        with monkeypatch.context() as patch:
            patch.setitem(globals(), name, wrong)
            assert (Reference(golden, texts).shot(2, pictures[2], 1) - expected).abs().max() > 1e-3
    assert (Reference(golden, texts).shot(2, 0 * pictures[2], 1) - expected).abs().max() > 1e-2


@pytest.mark.parametrize("settings", [SHOTSTREAM, replace(SHOTSTREAM, window=12)])
def test_saved_in_the_middle_of_a_shot_and_continued_is_the_same_film(tiny_wan, texts, pictures, settings):
    whole = film(tiny_wan, texts, pictures, 2, 4, settings, noise=None, seed=5)
    begun = film(tiny_wan, texts, pictures, 2, 2, settings, noise=None, seed=5)
    memory = MemorySnapshot(load(save(dict(begun.memory.tensors))), json.loads(json.dumps(begun.memory.meta)))
    rest = film(
        tiny_wan, texts, pictures, 2, 2, settings,
        memory=memory, start="resume", first_block=2, context=None, noise=None, seed=5,
    )  # fmt: skip
    same(whole.latents, torch.cat([begun.latents, rest.latents], dim=2))
    assert whole.memory.meta == rest.memory.meta
    assert all(torch.equal(tensor, rest.memory.tensors[key]) for key, tensor in whole.memory.tensors.items())


def test_a_prompt_changes_within_a_shot_and_the_pictures_stay(tiny_wan, texts, pictures):
    settings = replace(SHOTSTREAM, window=12)
    prompts = [Prompt(0, [[texts[2], {}]]), Prompt(9, [[texts[0], {}]])]
    context = shot_context(2, [[[text, {}]] for text in texts], pictures)
    shape = (1, 16, 12, *SIZE)
    whole = roll_out(tiny_wan, prompts, shape, SIGMAS, settings=settings, context=context, seed=3)
    first = film(tiny_wan, texts, pictures, 2, 3, settings, noise=None, seed=3)
    second = film(
        tiny_wan, texts, pictures, 0, 1, settings,
        memory=first.memory, start="continue", first_block=3, context=None, noise=None, seed=3,
    )  # fmt: skip
    same(whole.latents, torch.cat([first.latents, second.latents], dim=2))
    sink = slice(0, 6 * 6)
    assert torch.equal(first.memory.tensors["sink.canonical"], second.memory.tensors["sink.canonical"])
    assert not torch.equal(first.memory.tensors["k"][0][:, sink], second.memory.tensors["k"][0][:, sink]), "seated anew"


def test_a_cut_forgets_all_but_what_it_is_shown(tiny_wan, texts, pictures):
    before = film(tiny_wan, texts, pictures, 1, 2)
    after = film(tiny_wan, texts, pictures, 2, 2, memory=before.memory)
    alone = film(tiny_wan, texts, pictures, 2, 2)
    same(after.latents, alone.latents)
    assert alone.memory.position == 206
    assert alone.log[-1]["sink"] == list(range(6))
    assert alone.log[-1]["window"] == list(range(200, 206))


def test_our_kernel_turns_angles_too(tiny_wan, texts, pictures, monkeypatch):
    plain = film(tiny_wan, texts, pictures, 2, 2).latents
    calls = []

    def spy(*tensors, **kwargs):
        calls.append(tensors[0].shape)
        return qk_prep(*tensors, **kwargs)

    monkeypatch.setattr(frame_attention_room, "qk_prep", spy)
    monkeypatch.setenv("LONGREEL_ATTENTION", "torch")
    assert (film(tiny_wan, texts, pictures, 2, 2).latents - plain).abs().max() < 1e-4
    assert {shape[1] for shape in calls} == {36, 18}


def test_stock_sampler_films_a_first_shot(tiny_wan, texts):
    """Without a guider of ours: blank pictures under the one prompt, as roll_out does for a first shot."""
    import comfy.samplers

    guider = comfy.samplers.CFGGuider(tiny_wan)
    guider.inner_set_conds({"positive": [[texts[0], {}]]})
    sampler = RolloutSampler(settings=SHOTSTREAM, noise=noise_of(0))
    empty = torch.zeros(1, 16, 6, *SIZE)
    assert torch.equal(guider.sample(empty, empty, sampler, SIGMAS), film(tiny_wan, texts, None, 0, 2).latents)


def test_published_numbers():
    times = [1000 * sigma for sigma in shotstream_sigmas(4)]
    assert times == pytest.approx([1000, 957.929, 888.889, 737.589, 0], abs=1e-3)
    assert shotstream_sigmas(2) == (1.0, 8 / 9, 0.0)
    assert spread_over_shots([81], 6) == [(0, frame) for frame in (0, 16, 32, 48, 64, 80)]
    assert spread_over_shots([81, 41], 6) == [(0, 0), (0, 40), (0, 80), (1, 0), (1, 20), (1, 40)]
    five = spread_over_shots([81] * 5, 6)
    assert five == [(0, 0), (1, 0), (2, 0), (3, 0), (4, 0), (4, 80)]
    assert spread_over_shots([81] * 8, 6) == [(take, 0) for take in range(2, 8)]
    assert spread_over_shots([1], 6) == [(0, 0)] * 6


def test_bad_input_gets_one_sentence(tiny_wan, texts, pictures):
    good = shot_context(2, [[[text, {}]] for text in texts], pictures)
    for context, words in (
        (ShotContext(take=1), "Take 2 needs pictures"),
        (replace(good, pictures=good.pictures[:, :, :5]), "have shape"),
        (replace(good, takes=(0,)), "Each of the 6 pictures"),
        (replace(good, captions=(good.captions[0] * 2,) * 6), "one conditioning each"),
    ):
        with pytest.raises(RolloutError, match=words):
            film(tiny_wan, texts, pictures, 2, 1, context=context)
    with pytest.raises(RolloutError, match="no shot to go on from"):
        film(tiny_wan, texts, pictures, 0, 1, start="continue")
    for values in ({"sink": 0}, {"bank": 3}, {"active": 2}):
        with pytest.raises(MemorySettingsError, match="earlier shots needs 1 frame"):
            replace(SHOTSTREAM, **values)
    with pytest.raises(MemorySettingsError, match="Unknown sink"):
        replace(SHOTSTREAM, sink_from="dreams")


def test_other_memories_are_saved_as_before():
    assert "sink_from" not in LONGLIVE.to_json()
    assert SHOTSTREAM.to_json()["sink_from"] == "shots"
