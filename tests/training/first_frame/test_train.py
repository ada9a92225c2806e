"""The few-shot trainer: bands of noise, first frames given in both ways, resume to the bit, memory told before."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from comfy.ldm.wan.model import WanModel
from comfy.ops import disable_weight_init
from longreel.training.core.lora import LoraError, adapt, choose_layers, differentiable
from longreel.training.core.memory_plan import plan_memory
from longreel.training.core.objectives.flow_matching import SigmaRange, denoise_step
from longreel.training.first_frame.matcher import Example, FirstFrameMatcher, first_frame_of
from longreel.training.first_frame.prior_preservation import PriorPreservation
from longreel.training.first_frame.train import FirstFrameSettings, draw_examples, train_lora
from longreel.training.miniature.latent_classifier import LatentClassifier, LatentClassifierLoss
from longreel.training.miniature.sequences import FEW_STEPS
from safetensors import safe_open
from safetensors.torch import load_file

from ...tiny_models import dit_weights, random_weights

SIZES = {
    "dim": 64, "ffn_dim": 64, "freq_dim": 32, "text_dim": 128, "num_heads": 2, "num_layers": 1,
    "operations": disable_weight_init,
}  # fmt: skip
QUICK = FirstFrameSettings(
    rank=4, alpha=4, steps=6, batch=2, lr=1e-2, warmup=1, save_every=4, sample_every=3, max_grad_norm=1.0
)


def model(in_dim=16, **sizes):
    dit = WanModel(in_dim=in_dim, **SIZES | sizes)
    dit.load_state_dict(random_weights(dit, 1) if sizes else dit_weights(in_dim=in_dim))
    return dit


def examples(count=3, frames=3, known=False):
    generator = torch.Generator().manual_seed(9)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    return [
        Example(draw(16, frames, 4, 4), draw(5, 128), draw(16, frames, 4, 4) if known else None) for _ in range(count)
    ]


def run(folder, recipe=QUICK, dit=None, clips=None, **options):
    dit = dit or model()
    return train_lora(dit, clips or examples(), recipe, folder, {"base": "tiny"}, say=lambda _: None, **options)


def test_bands_of_the_experts():
    high, low, both = (SigmaRange.of(expert) for expert in ("high", "low", "both"))
    assert high.share == pytest.approx(0.357, abs=1e-3)
    assert low.share == pytest.approx(0.643, abs=1e-3)
    share = torch.linspace(0, 1, 1001)
    for band in (high, low, both, SigmaRange.of("low", 0.875, 8.0)):
        sigma = band.quantile(share)
        assert (sigma.diff() > 0).all()
        assert sigma[0].item() == pytest.approx(band.low, abs=1e-6)
        assert sigma[-1].item() == pytest.approx(band.high, abs=1e-6)
    # An unrestricted draw, cut at the boundary, is the two experts' draws.
    sigma = both.quantile(torch.rand(20_000, generator=torch.Generator().manual_seed(0)))
    assert (sigma >= 0.9).float().mean().item() == pytest.approx(high.share, abs=0.02)


@torch.no_grad()
def test_a_clean_first_frame_is_given_at_noise_level_zero_and_not_learned():
    torch.manual_seed(0)
    dit, clips = model(), examples(2)
    matcher = FirstFrameMatcher(dit, first_frame_of(dit, 16), bf16=False)
    assert matcher.first_frame == "clean"
    sigma, noise = torch.tensor([0.3, 0.8]), torch.randn(2, 16, 3, 4, 4)
    x = matcher.noised(sigma, noise, clips)
    assert torch.equal(x[:, :, 0], torch.stack([clip.latents[:, 0] for clip in clips]))
    assert torch.allclose(x[1, :, 1], 0.2 * clips[1].latents[:, 1] + 0.8 * noise[1, :, 1])
    text = torch.stack([clip.text for clip in clips])
    time = torch.tensor([[0, 300, 300], [0, 800, 800.0]])
    v = dit(x, time, text, transformer_options={})
    target = noise - torch.stack([clip.latents for clip in clips])
    assert torch.allclose(matcher.loss(clips, sigma, noise), (v - target)[:, :, 1:].square().mean())
    changed = noise.clone()
    changed[:, :, 0] += 1
    assert matcher.loss(clips, sigma, changed) == matcher.loss(clips, sigma, noise)


def test_a_reader_finds_no_fault_in_the_truth_and_its_place_counts():
    reading = LatentClassifierLoss(LatentClassifier(16).requires_grad_(False), 0.5)
    generator = torch.Generator().manual_seed(4)
    clean = torch.randn(2, 16, 3, 4, 4, generator=generator)
    named = reading.reader(clean.transpose(1, 2).flatten(0, 1)).sigmoid()
    entropy = torch.nn.functional.binary_cross_entropy(named, named)  # of what the reader itself is unsure about
    assert torch.isclose(reading.likeness(clean, clean), 0.5 * entropy, atol=1e-6)
    elsewhere = clean.roll(2, dims=-1)  # the same things in another place
    assert reading.likeness(elsewhere, clean) > reading.likeness(clean + 0.01, clean) > 0.5 * entropy


def test_what_is_read_is_a_further_loss_of_what_is_not_given():
    reading, clips = LatentClassifierLoss(LatentClassifier(16).requires_grad_(False), 0.5), examples(2)
    dit = model()
    plain, read = (FirstFrameMatcher(dit, "clean", bf16=False, auxiliary=look) for look in (None, reading))
    sigma, noise = torch.tensor([0.3, 0.8]), torch.randn(2, 16, 3, 4, 4)
    noised = plain.noised(sigma, noise, clips)
    guess = noised - sigma[:, None, None, None, None] * plain.velocity(noised, sigma, clips)
    clean = torch.stack([clip.latents for clip in clips])
    further = reading.likeness(guess[:, :, 1:], clean[:, :, 1:])
    assert torch.isclose(read.loss(clips, sigma, noise), plain.loss(clips, sigma, noise) + further)


@torch.no_grad()
def test_known_subjects_weigh_more():
    clips = examples(2)
    where = torch.zeros(3, 4, 4)
    where[1, :2] = 1
    clips[0] = replace(clips[0], subject=where)
    matcher = FirstFrameMatcher(model(), "clean", bf16=False)
    sigma, noise = torch.tensor([0.3, 0.8]), torch.randn(2, 16, 3, 4, 4)
    clean = torch.stack([clip.latents for clip in clips])
    error = (matcher.velocity(matcher.noised(sigma, noise, clips), sigma, clips) - (noise - clean)).square().mean(dim=1)
    weight = torch.ones(2, 3, 4, 4)
    weight[0, 1, :2] = 5
    wanted = (error * weight)[:, 1:].sum() / weight[:, 1:].sum()
    assert torch.isclose(matcher.loss(clips, sigma, noise, subject_weight=4), wanted)
    assert torch.isclose(matcher.loss(clips, sigma, noise), error[:, 1:].mean())


def test_ways_of_a_clip_take_turns_in_its_place():
    """Three clips, the first in two ways, the last in four: each comes as often, and every way of it as often."""
    clips = [replace(one, clip=number) for one, number in zip(examples(7), (0, 1, 2, 0, 2, 2, 2), strict=True)]
    drawn = [one for draw in range(18) for one in draw_examples(clips, QUICK, draw)]
    for turn in range(12):
        assert {one.clip for one in drawn[3 * turn : 3 * turn + 3]} == {0, 1, 2}
    counts = [sum(one is clip for one in drawn) for clip in clips]
    assert counts == [6, 12, 3, 6, 3, 3, 3]


@torch.no_grad()
def test_extra_channels_are_mask_and_first_frame_as_core_orders_them():
    import comfy.model_base

    dit, (clip,) = model(36), examples(1, known=True)
    matcher = FirstFrameMatcher(dit, first_frame_of(dit, 16), bf16=False)
    assert matcher.first_frame == "concat"
    seen = []
    hook = dit.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    sigma, noise = torch.tensor([0.95]), torch.randn(1, 16, 3, 4, 4)
    matcher.loss([clip], sigma, noise)
    hook.remove()

    class Core(comfy.model_base.WAN21):
        """Core's own assembly of the channels, without core's model around it."""

        def __init__(self):
            torch.nn.Module.__init__(self)
            self.diffusion_model, self.image_to_video = dit, True
            self.latent_format = comfy.latent_formats.Wan21()

        def process_latent_in(self, latent):
            return latent

    given = torch.ones(1, 1, 3, 4, 4)
    given[:, :, 0] = 0  # core's mask: 1 is what is to be made
    wanted = Core().concat_cond(noise=noise, concat_latent_image=clip.known[None], concat_mask=given, device="cpu")
    assert torch.equal(seen[0][:, 16:], wanted)
    assert torch.equal(seen[0][:, :16], (1 - sigma) * clip.latents[None] + sigma * noise)
    with pytest.raises(LoraError, match="as extra channels"):
        matcher.loss(examples(1), sigma, noise)


@torch.no_grad()
def test_the_loss_of_the_picture_is_that_of_the_velocity_times_sigma_squared():
    """Core's trainer weighs noise levels so; FFGo's velocity loss does not."""
    dit, clips = model(36), examples(1, known=True)
    matcher = FirstFrameMatcher(dit, first_frame_of(dit, 16), bf16=False)
    for level in (0.2, 0.7, 1.0):
        sigma, noise = torch.tensor([level]), torch.randn(1, 16, 3, 4, 4)
        x = matcher.noised(sigma, noise, clips)
        picture = x - level * matcher.velocity(x, sigma, clips)
        loss = (picture - clips[0].latents).square().mean()
        assert loss.item() == pytest.approx(level**2 * matcher.loss(clips, sigma, noise).item(), rel=1e-4)


def test_gradients_are_clipped_to_the_published_norm(tmp_path, monkeypatch):
    from longreel.training.core.optimizers import Optimizers

    norms, real = [], Optimizers.step

    def watched(self, lr_scale):
        gradients = [p.grad for group in self.all[0].param_groups for p in group["params"] if p.grad is not None]
        norms.append(torch.stack([gradient.norm() for gradient in gradients]).norm().item())
        real(self, lr_scale)

    monkeypatch.setattr(Optimizers, "step", watched)
    run(tmp_path, replace(QUICK, max_grad_norm=0.05, steps=3))
    assert len(norms) == 3
    assert all(norm <= 0.05001 for norm in norms)
    line = json.loads((tmp_path / "lora.jsonl").read_text().splitlines()[-1])
    assert line["norm"] > 0.05, "there was something to clip"


def test_models_that_cannot_be_given_a_first_frame():
    with pytest.raises(LoraError, match="32 input channels"):
        first_frame_of(model(32, num_layers=1), 16)
    with pytest.raises(LoraError, match="CLIP-vision"):
        first_frame_of(model(36, model_type="i2v"), 16)


def test_a_step_of_either_kind_stays_on_the_way_from_noise_to_clean():
    torch.manual_seed(0)
    clean, noise, other = torch.randn(3, 1, 16, 3, 2, 2)
    x, v = 0.4 * clean + 0.6 * noise, noise - clean
    torch.testing.assert_close(denoise_step(x, v, 0.6, 0.2, None), 0.8 * clean + 0.2 * noise)
    torch.testing.assert_close(denoise_step(x, v, 0.6, 0.2, other), 0.8 * clean + 0.2 * other)
    torch.testing.assert_close(denoise_step(x, v, 0.6, 0.0, other), clean)


@pytest.mark.parametrize("in_dim", [16, 36])
def test_noising_anew_is_another_film_of_the_same_first_frame(in_dim):
    matcher = FirstFrameMatcher(model(in_dim), "concat" if in_dim == 36 else "clean", bf16=False)
    (clip, *_) = examples(known=in_dim == 36)
    films = [matcher.sample(clip, QUICK.band, 3, seed=1, renoise=renoise) for renoise in (False, True, True)]
    assert torch.equal(films[1], films[2])
    assert not torch.equal(films[0][:, 1:], films[1][:, 1:])
    if in_dim == 16:
        assert all(torch.equal(film[:, 0], clip.latents[:, 0]) for film in films)


@pytest.mark.parametrize("in_dim", [16, 36])
def test_a_killed_run_goes_on_to_the_bit_and_looking_changes_nothing(in_dim, tmp_path):
    dit, clips = model(in_dim), examples(known=in_dim == 36)
    before = {key: value.clone() for key, value in dit.state_dict().items()}
    recipe = replace(QUICK, expert="high", dropout=0.2)
    looks = []

    def look(step, matcher):
        latents = matcher.sample(clips[0], recipe.band, 2, seed=1)
        assert latents.shape == clips[0].latents.shape
        if matcher.first_frame == "clean":
            assert torch.equal(latents[:, 0], clips[0].latents[:, 0])
        looks.append(step)

    straight = load_file(run(tmp_path / "a", recipe, dit, clips, sample=look))
    assert looks == [0, 3, 6]
    assert (tmp_path / "a" / "step-000004.safetensors").exists()
    assert (tmp_path / "a" / "loss.png").exists()

    def kill(step, matcher):
        torch.randn(7)
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", recipe, dit, clips, sample=kill)
    stopped = load_file(tmp_path / "b" / "lora.safetensors")
    assert any(key.endswith("lora_up.weight") and tensor.abs().sum() > 0 for key, tensor in stopped.items())
    resumed = load_file(run(tmp_path / "b", replace(recipe, sample_every=0), dit, clips))
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[key], resumed[key]) for key in straight)
    assert all(torch.equal(before[key], value) for key, value in dit.state_dict().items())
    with safe_open(tmp_path / "b" / "lora.safetensors", "pt") as file:
        told = file.metadata()
    assert told == {"base": "tiny", "expert": "high", "shift": "5", "sigma_low": "0.9", "sigma_high": "1",
                    "steps": "6", "rank": "4", "alpha": "4"}  # fmt: skip


def test_another_recipe_does_not_go_on_in_the_same_folder(tmp_path):
    run(tmp_path)
    run(tmp_path, replace(QUICK, steps=7))
    with pytest.raises(LoraError, match="has rank 4, not 8"):
        run(tmp_path, replace(QUICK, rank=8))
    with pytest.raises(LoraError, match="nothing to learn"):
        train_lora(model(), [], QUICK, tmp_path, {})


@pytest.mark.parametrize("changed", [{"micro_batch": 4}, {"micro_batch": 2, "checkpointing": False}])
def test_passes_and_recomputation_do_not_change_what_is_learned(changed, tmp_path):
    recipe = replace(QUICK, batch=4, steps=3, lr=1e-3)
    one = load_file(run(tmp_path / "a", recipe))
    other = load_file(run(tmp_path / "b", replace(recipe, **changed)))
    assert all(torch.allclose(one[key].float(), other[key].float(), atol=1e-4) for key in one)
    lines = [json.loads((tmp_path / name / "lora.jsonl").read_text()) for name in "ab"]
    assert lines[0]["loss"] == pytest.approx(lines[1]["loss"], rel=1e-4)


def test_clips_of_several_sizes_in_one_batch(tmp_path):
    run(tmp_path, replace(QUICK, batch=4, micro_batch=4), clips=[*examples(2), *examples(1, frames=2)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bf16(dtype, tmp_path):
    dit = model()
    for name, parameter in dit.named_parameters():
        if not name.startswith("patch_embedding"):  # core feeds it float32 and casts it itself
            parameter.data = parameter.data.to(dtype)
    matcher = FirstFrameMatcher(dit, "clean", bf16=True)
    exact = FirstFrameMatcher(model(), "clean", bf16=False)
    sigma, noise, clips = torch.tensor([0.5]), torch.randn(1, 16, 3, 4, 4), examples(1)
    with torch.no_grad():
        assert matcher.loss(clips, sigma, noise).item() == pytest.approx(
            exact.loss(clips, sigma, noise).item(), rel=0.05
        )


def test_it_learns_one_clip(tmp_path):
    clips = examples(1)
    dit = model()
    recipe = replace(
        QUICK, rank=16, alpha=16, steps=200, batch=4, micro_batch=4, checkpointing=False, sample_every=0, save_every=0
    )
    run(tmp_path, recipe, dit, clips)
    lines = [json.loads(line) for line in (tmp_path / "lora.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < 0.85 * lines[0]["loss"]


def test_what_is_filmed_after_the_collage_follows_the_words(tmp_path):
    """Two clips that differ in their words and in what comes after one and the same first frame."""
    one, other = examples(2)
    other = replace(other, latents=torch.cat([one.latents[:, :1], -one.latents[:, 1:]], dim=1))
    recipe = replace(QUICK, rank=16, alpha=16, steps=150, batch=2, micro_batch=2, checkpointing=False, save_every=0)
    films = {}

    def look(step, matcher):
        films[step] = [matcher.sample(clip, recipe.band, 4, seed=1) for clip in (one, other)]

    run(tmp_path, replace(recipe, sample_every=150), clips=[one, other], sample=look)
    apart = {step: (a - b)[:, 1:].square().mean().item() for step, (a, b) in films.items()}
    assert apart[150] > 2 * apart[0], "the words have come to matter"


def test_every_clip_is_seen_once_a_turn():
    clips = examples(5)
    seen = [clip for step in range(5) for clip in draw_examples(clips, replace(QUICK, batch=2), step)]
    for turn in (seen[:5], seen[5:]):
        assert {id(clip) for clip in turn} == {id(clip) for clip in clips}
    assert [id(clip) for clip in seen[:5]] != [id(clip) for clip in seen[5:]]


@pytest.mark.parametrize("checkpointing", [True, False])
def test_the_memory_plan_is_near_what_autograd_keeps(checkpointing):
    dit = model(dim=256, ffn_dim=512, num_layers=3)
    _, adapter = adapt(dit, choose_layers(dit), 8)
    clips = [Example(torch.randn(16, 8, 16, 16), torch.randn(16, 128))]
    plan = plan_memory(dit, adapter, clips, micro_batch=1, bf16=False, checkpointing=checkpointing)
    assert plan.tokens == 8 * 8 * 8
    assert plan.parameters == sum(p.numel() for p in adapter.parameters())
    assert plan.training == plan.parameters * 20
    assert plan.weights == sum(p.numel() for p in dit.parameters()) * 4
    if not checkpointing:
        tree, _ = adapt(dit, choose_layers(dit), 8)
        own = {p.untyped_storage().data_ptr() for p in tree.parameters()}
        kept = {}

        def keep(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = tensor, storage.nbytes()
            return tensor

        with differentiable(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            matcher = FirstFrameMatcher(tree, "clean", bf16=False)
            loss = matcher.loss(clips, torch.tensor([0.5]), torch.randn(1, 16, 8, 16, 16))
        measured = sum(size for _, size in kept.values())
        assert loss.requires_grad
        assert 0.7 < plan.activations / measured < 1.3
    assert replace(plan, free=plan.total - 1).text().endswith("smaller or shorter clips.")
    assert replace(plan, free=plan.total).text().endswith("are there.")


def test_few_steps_and_own_steps():
    clips, seen = examples(2), []
    matcher = FirstFrameMatcher(model(), "clean", bf16=False)
    flow = matcher.flow

    def watched(x, time, text):
        seen.append((x.detach().clone(), time.clone(), torch.is_grad_enabled()))
        return flow(x, time, text)

    matcher.flow = watched
    torch.manual_seed(0)
    loss = matcher.self_rollout_loss(clips, 2)
    clean = torch.stack([clip.latents for clip in clips])
    assert [float(time[0, 1]) / 1000 for _, time, _ in seen] == pytest.approx(FEW_STEPS[:3])
    assert [learned for *_, learned in seen] == [False, False, True]
    assert all(torch.equal(x[:, :, 0], clean[:, :, 0]) and time[:, 0].eq(0).all() for x, time, _ in seen)
    x = seen[-1][0]
    guess = x - FEW_STEPS[2] * flow(*(x, seen[-1][1], torch.stack([clip.text for clip in clips])))
    assert torch.isclose(loss, (guess - clean)[:, :, 1:].square().mean())
    # Nothing of the clip is left in what it starts from.
    torch.manual_seed(0)
    seen.clear()
    turned = [replace(clip, latents=torch.cat([clip.latents[:, :1], -clip.latents[:, 1:]], dim=1)) for clip in clips]
    matcher.self_rollout_loss(turned, 2)
    assert torch.equal(seen[-1][0], x)


def test_what_is_kept_is_what_the_base_does(tmp_path):
    texts = torch.randn(6, 5, 128, generator=torch.Generator().manual_seed(3))
    base = FirstFrameMatcher(model(), "clean", bf16=False)
    keeper = PriorPreservation(base, texts, (16, 4, 4))
    asked = []

    class Other:
        def flow(self, x, time, text):
            asked.append((x, time))
            return base.flow(x, time, text) + torch.arange(x.shape[2])[:, None, None].sub(x.shape[2] - 4)

    torch.manual_seed(1)
    for _ in range(40):
        assert keeper.loss(base).item() == 0
        assert keeper.loss(Other()).item() == pytest.approx(1 + 4 + 9, rel=1e-4), "of the newest block alone"
    assert {x.shape[2] for x, _ in asked} == {3, 6}
    levels = {round(float(time[0, -1]), 1) for _, time in asked}
    assert levels == {round(1000 * level, 1) for level in FEW_STEPS}
    assert all(time[:, :-3].eq(0).all() for _, time in asked)
    with pytest.raises(LoraError, match="needs prompts"):
        run(tmp_path, replace(QUICK, prior_weight=0.5))
    run(tmp_path, replace(QUICK, prior_weight=0.5, few_step_rate=0.5, self_rollout_rate=0.5), prior_texts=texts)
    told = [json.loads(line) for line in (tmp_path / "lora.jsonl").read_text().splitlines()]
    assert any("kept" in line for line in told)
