"""FilmWeaver's trainer: stages and modes, gradients, loss on the target alone, resume to the bit, files that load."""

from __future__ import annotations

import random
from dataclasses import replace

import comfy.sd
import comfy.utils
import pytest
import torch
from comfy.ldm.wan.model import VaceWanModel, WanModel
from comfy.ops import disable_weight_init
from longreel.film.dual_cache import FILMWEAVER, LayoutProfile
from longreel.host.adapters.dual_cache import load_cache_lora
from longreel.host.wan.cache_tokens import installed_profile
from longreel.training.core.lora import WAN_SELF_ATTENTION, LoraError, adapt, choose_layers, differentiable
from longreel.training.dual_cache.samples import TEMPORAL_ONLY, Curriculum, SceneShot, TrainingScene, draw_sample
from longreel.training.dual_cache.train import WeaverMatcher, WeaverSettings, draw_pass, roll_out_history, train_weaver
from longreel.training.miniature.latent_classifier import VISIBLE_WORDS, LatentClassifier, LatentClassifierLoss
from safetensors import safe_open
from safetensors.torch import load_file

from ... import tiny_models
from ...tiny_models import random_weights

SIZES = {
    "dim": 64, "ffn_dim": 64, "freq_dim": 32, "text_dim": 128, "num_heads": 2, "num_layers": 2,
    "operations": disable_weight_init,
}  # fmt: skip
PROFILE = LayoutProfile(chunk=2)
QUICK = WeaverSettings(
    profile=PROFILE, rank=4, alpha=4, first_steps=3, steps=3, batch=3, micro_batch=2, lr=1e-2, warmup=1, save_every=4,
    sample_every=3, checkpointing=False,
)  # fmt: skip


def model(**sizes):
    dit = WanModel(in_dim=16, **SIZES | sizes)
    dit.load_state_dict(random_weights(dit, 1))
    return dit


def scenes(count=2, shots=3, frames=9, channels=16):
    generator = torch.Generator().manual_seed(4)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    def shot():
        return SceneShot(draw(channels, frames, 4, 4), draw(5, 128), draw(8), draw(2, channels, 1, 4, 4), draw(2, 8))

    return [TrainingScene("vae", "text", tuple(shot() for _ in range(shots))) for _ in range(count)]


def run(folder, recipe=QUICK, dit=None, **options):
    return train_weaver(dit or model(), scenes(), recipe, folder, {"base": "tiny"}, say=lambda _: None, **options)


def of_mode(mode, count=3, **rates):
    """Samples that share a pass."""
    curriculum = Curriculum(modes=tuple(float(one == mode) for one in (1, 2, 3, 4)), drop_cache=0, **rates)
    material, rng = scenes(), random.Random(mode)
    first = draw_sample(material, rng, curriculum, PROFILE)
    return [first, *(draw_sample(material, rng, curriculum, PROFILE, first) for _ in range(count - 1))]


def test_stage_1_knows_no_keyframes_and_stage_2_all_modes():
    seen = {stage: set() for stage in (0, 1)}
    for step in range(60):
        for stage in (0, 1):
            for one in draw_pass(scenes(), QUICK, step % 3 + 3 * stage, f"{step}", 2):
                seen[stage].add(one.mode.value)
                kinds = {segment.kind for segment in one.payload.segments} if one.payload else set()
                assert stage or kinds <= {"temporal"}
    assert seen == {0: {1, 2}, 1: {1, 2, 3, 4}}


def test_samples_of_a_pass_fit_together():
    for number in range(80):
        passed = draw_pass(scenes(), QUICK, 4, str(number), 4)
        assert len({(one.mode, one.history, len(one.keyframes), one.payload is None) for one in passed}) == 1


@pytest.mark.parametrize("time_mode", ["shared", "own", "zero"])
@pytest.mark.parametrize("mode", [1, 2, 3, 4])
@torch.no_grad()
def test_a_pass_gives_what_its_samples_give_alone(mode, time_mode):
    profile = replace(PROFILE, time_mode=time_mode)
    drawn = of_mode(mode, drop_text=0.5)
    samples = [replace(one, payload=one.payload and replace(one.payload, profile=profile)) for one in drawn]
    matcher = WeaverMatcher(model(), profile, bf16=False)
    sigma, noise = torch.tensor([0.2, 0.6, 0.9]), torch.randn(3, *samples[0].target.shape)
    together = matcher.loss(samples, sigma, noise)
    alone = [matcher.loss([one], sigma[i : i + 1], noise[i : i + 1]) for i, one in enumerate(samples)]
    assert together.item() == pytest.approx(sum(alone).item() / 3, rel=1e-4)


@torch.no_grad()
def test_the_loss_is_taken_on_the_target_alone():
    (one,) = of_mode(4, 1, drop_text=0)
    matcher = WeaverMatcher(model(), PROFILE, bf16=False)
    sigma, noise = torch.tensor([0.5]), torch.randn(1, *one.target.shape)
    x = 0.5 * one.target[None] + 0.5 * noise
    v = matcher.velocity(x, sigma, one.text[None], [one.payload])
    assert v.shape == (1, 16, PROFILE.chunk, 4, 4)
    error = (v - (noise - one.target[None])).square()
    assert torch.isclose(matcher.loss([one], sigma, noise), error.mean())
    assert matcher.loss([one], sigma, noise, 4.0) == matcher.loss([one], sigma, noise), "no subject is known"
    subject = torch.rand(PROFILE.chunk, 4, 4)
    weighed = matcher.loss([replace(one, subject=subject)], sigma, noise, 4.0)
    assert torch.isclose(weighed, (error.mean(dim=1)[0] * (1 + 4 * subject)).sum() / (1 + 4 * subject).sum())
    # The caches are read, though: without them it is another loss.
    assert matcher.loss([replace(one, payload=None)], sigma, noise) != matcher.loss([one], sigma, noise)


@torch.no_grad()
def test_what_is_read_off_a_guess_is_added_where_something_tells_of_it():
    (one,) = of_mode(4, 1, drop_text=0)
    words = (torch.arange(len(VISIBLE_WORDS)) % 3 == 0).float()
    told = replace(one, shown=words)
    reader = LatentClassifier(16)
    plain = WeaverMatcher(model(), PROFILE, bf16=False)
    reading = WeaverMatcher(model(), PROFILE, bf16=False, auxiliary=LatentClassifierLoss(reader, 0.5))
    sigma, noise = torch.tensor([0.5]), torch.randn(1, *one.target.shape)
    x = 0.5 * one.target[None] + 0.5 * noise
    v = plain.velocity(x, sigma, one.text[None], [one.payload])
    logits = reader((x - 0.5 * v)[0].transpose(0, 1))
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(logits, words.expand(PROFILE.chunk, -1))
    assert torch.isclose(reading.loss([told], sigma, noise), plain.loss([told], sigma, noise) + 0.5 * wanted)
    for unknown in (one, replace(told, text=None), replace(told, payload=None)):
        assert torch.equal(reading.loss([unknown], sigma, noise), plain.loss([unknown], sigma, noise))


def test_only_the_lora_gets_gradients():
    dit = model()
    tree, adapter = adapt(dit, choose_layers(dit, WAN_SELF_ATTENTION), 4, seed=1)
    with torch.no_grad():
        for _, pair in adapter.items():
            pair.up.normal_()
    samples = of_mode(4)
    noise = torch.randn(3, *samples[0].target.shape)
    with differentiable():
        WeaverMatcher(tree, PROFILE, bf16=False).loss(samples, torch.rand(3), noise).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in adapter.parameters())
    trained = {id(parameter) for parameter in adapter.parameters()}
    assert all(parameter.grad is None for parameter in tree.parameters() if id(parameter) not in trained)
    assert all(parameter.grad is None for parameter in dit.parameters())


def test_checkpointing_changes_memory_and_nothing_else(tmp_path):
    kept = load_file(run(tmp_path / "kept"))
    again = load_file(run(tmp_path / "again", replace(QUICK, checkpointing=True)))
    assert all(torch.allclose(kept[key].float(), again[key].float(), atol=1e-3) for key in kept)


def test_a_stopped_run_goes_on_to_the_bit(tmp_path):
    looked = []
    whole = run(tmp_path / "whole", sample=lambda step, _: looked.append(step))
    assert looked == [0, 3, 6]

    def stop(step):
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", tick=stop)
    assert (tmp_path / "parts" / "weaver.safetensors").exists()
    parts = run(tmp_path / "parts")
    first, second = load_file(whole), load_file(parts)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    for name in ("weaver.ckpt", "weaver.jsonl", "loss.png", "recipe.json", "step-000004.safetensors"):
        assert (tmp_path / "parts" / name).exists()
    with pytest.raises(LoraError, match="take another folder"):
        run(tmp_path / "parts", replace(QUICK, rank=8, alpha=8))


def test_histories_of_stage_3_are_the_models_own():
    recipe = replace(QUICK, rollout_steps=2, rollout_share=1.0)
    assert [recipe.rolls_out(step) for step in (5, 6)] == [False, True]
    matcher = WeaverMatcher(model(), PROFILE, bf16=False)
    curriculum = Curriculum(modes=(0, 0, 0, 1), drop_cache=0, clean=1)
    rng = random.Random(1)
    samples = [draw_sample(scenes(), rng, curriculum, PROFILE) for _ in range(30)]
    (one,) = [sample for sample in samples if sample.history == 4][:1]
    (told,) = roll_out_history(matcher, scenes(), [one], recipe, "a")
    true = [segment.latent for segment in one.payload.segments if segment.kind == "temporal"]
    own = [segment.latent for segment in told.payload.segments if segment.kind == "temporal"]
    assert not torch.equal(true[0], own[0])  # the newest frame is filmed
    assert torch.equal(true[-1][:, 0], own[-1][:, 0])  # the oldest is from the film
    assert torch.equal(told.target, one.target)
    short = [sample for sample in samples if sample.history == 1][:1]
    assert roll_out_history(matcher, scenes(), short, recipe, "a") == short


def test_the_file_loads_in_our_loader_and_in_cores_with_every_module_patched(tmp_path):
    tiny_models.write(tmp_path / "models")
    path = tmp_path / "models" / "diffusion_models" / tiny_models.DIT
    base = comfy.sd.load_diffusion_model(str(path), model_options={"dtype": torch.float32})
    file = run(tmp_path / "run", dit=base.model.diffusion_model)
    with safe_open(file, "pt") as opened:
        assert LayoutProfile.from_metadata(opened.metadata()) == PROFILE
        assert opened.metadata()["steps"] == "6"
    ours = load_cache_lora(base, file, 1.0)
    assert installed_profile(ours) == PROFILE
    weights = comfy.utils.load_torch_file(str(file), safe_load=True)
    layers = {key.split(".lora_")[0] for key in weights if ".lora_" in key}
    wanted = {f"diffusion_model.{name}" for name in choose_layers(base.model.diffusion_model, WAN_SELF_ATTENTION)}
    assert layers == wanted
    patched, _ = comfy.sd.load_lora_for_models(base, None, weights, 1.0, 0.0)
    for one in (ours, patched):
        assert set(one.patches) == {f"{name}.weight" for name in wanted}


def test_what_cannot_be_trained_is_told_first(tmp_path):
    with pytest.raises(LoraError, match="nothing to learn from"):
        train_weaver(model(), [], QUICK, tmp_path, {})
    with pytest.raises(LoraError, match="channels"):
        train_weaver(model(), scenes(channels=8), QUICK, tmp_path, {})
    with pytest.raises(LoraError, match="cannot take cache tokens"):
        train_weaver(VaceWanModel(in_dim=16, vace_layers=1, vace_in_dim=16, **SIZES), scenes(), QUICK, tmp_path, {})
    with pytest.raises(LoraError, match="at once"):
        train_weaver(model(), scenes(), replace(QUICK, micro_batch=4), tmp_path, {})
    assert not list(tmp_path.iterdir())
    assert WeaverSettings().profile == FILMWEAVER
    assert WeaverSettings().first.modes == TEMPORAL_ONLY


def test_a_run_trains_on_from_a_finished_lora(tmp_path):
    first = run(tmp_path / "first")
    still = replace(QUICK, first_steps=0, steps=1, lr=1e-12, weight_decay=0)
    on = load_file(run(tmp_path / "on", still, start_from=first))
    assert all(torch.equal(on[key], value) for key, value in load_file(first).items())
    with pytest.raises(LoraError, match="another rank"):
        run(tmp_path / "other", replace(still, rank=8, alpha=8), start_from=first)
    with pytest.raises(LoraError, match="other layers"):
        run(tmp_path / "more", replace(still, layers=r"blocks\.0\..*"), start_from=first)
