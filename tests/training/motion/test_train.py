"""The joint objective and its run, on a tiny Wan model."""

from __future__ import annotations

import json
from dataclasses import replace

import comfy.patcher_extension
import comfy.sd
import pytest
import torch
from longreel.host.adapters.motion import attach, read_adapter
from longreel.host.wan.joint_latent import DROP
from longreel.training.core.lora import LoraError, differentiable
from longreel.training.motion.data import Encoders, MotionExample, MotionSpec
from longreel.training.motion.evaluate import permutation_gap
from longreel.training.motion.objective import JointMatcher, pad_texts
from longreel.training.motion.settings import MINIATURE, MotionSettings
from longreel.training.motion.train import _info as info_of
from longreel.training.motion.train import prepare, train_motion

from ... import tiny_models

SPEC = MotionSpec(64, 64, 9, 16.0, flow_model="exact")
TINY = replace(MINIATURE, rank=4, steps=6, batch=4, micro_batch=2, warmup=1, flow_first=0, few_step_rate=0.0)
TINY = replace(TINY, lr=3e-3, motion_lr=3e-2)


@pytest.fixture
def model():
    return comfy.sd.load_diffusion_model_state_dict(
        tiny_models.wan_weights(), metadata=tiny_models.dit_metadata(causal=False)
    )


@pytest.fixture(scope="module")
def examples():
    generator = torch.Generator().manual_seed(5)

    def drawn(*shape):
        return torch.randn(*shape, generator=generator)

    shape, width = (16, 3, 4, 4), tiny_models.TEXT_WIDTH
    return [
        MotionExample(drawn(*shape), drawn(*shape) * 0.5, drawn(3 + index, width), drawn(*shape)) for index in range(4)
    ]


EMPTY = torch.zeros(2, tiny_models.TEXT_WIDTH)


def run(model, examples, folder, settings=TINY, **options):
    encoders = Encoders(model, None, None, "tiny-wan")
    return train_motion(examples, EMPTY, encoders, SPEC, settings, folder, say=lambda line: None, **options)


def made(model, settings=TINY):
    dit = model.model.diffusion_model
    return prepare(dit, SPEC.told(info_of(model, "tiny-wan", settings)), settings)


def test_gradients_at_the_start(model, examples):
    """Motion's loss alone moves only its head; appearance's loss moves the embedding and the trunk at once."""
    _, trainable, matcher = made(model)
    for pair in trainable.trunk.pairs:  # a LoRA begins at zero too, which hides its own gradient
        torch.nn.init.normal_(pair.up, std=0.1)
    for part, moved in (("motion", {"head"}), ("appearance", {"embedding", "trunk"})):
        trainable.zero_grad()
        with differentiable():
            torch.manual_seed(1)
            batch = matcher.prepare(examples, torch.full((4,), 0.7), EMPTY, 0.0, 0.0)
            getattr(matcher.losses(batch), part).mean().backward()
        grads = {
            "head": trainable.layers.head.weight.grad,
            "embedding": trainable.layers.embedding.weight.grad,
            "trunk": trainable.trunk.pairs[0].down.grad,
        }
        assert {name for name, grad in grads.items() if grad is not None and grad.abs().max() > 0} == moved


def test_initial_motion_loss_is_the_variance_of_noise_and_motion(model, examples):
    matcher = made(model)[2]
    torch.manual_seed(1)
    losses = matcher.losses(matcher.prepare(examples * 8, torch.rand(32), EMPTY, 0.0, 0.0))
    assert float(losses.motion.mean().detach()) == pytest.approx(1.25, abs=0.05)


@pytest.mark.parametrize("changes", [{}, {"head": "separate", "trunk": "full", "lr": 3e-4}, {"trunk": "frozen"}])
def test_both_losses_fall_on_an_overfit_set(model, examples, tmp_path, changes):
    settings = replace(TINY, steps=40, batch=8, micro_batch=8, **changes)
    before = made(model, settings)[2]
    run(model, examples[:2], tmp_path, settings)
    lines = [json.loads(line) for line in (tmp_path / "motion.jsonl").read_text().splitlines()]
    torch.manual_seed(3)
    start = before.losses(before.prepare(examples[:2] * 8, settings.sigmas.quantile(torch.rand(16)), EMPTY, 0.3, 0.2))
    assert lines[-1]["motion"] < float(start.motion.mean()) - 0.05
    if changes.get("trunk") != "frozen":
        assert lines[-1]["appearance"] < float(start.appearance.mean())
    assert {key for key in lines[-1] if key.startswith("motion ")}


def test_the_file_is_what_was_trained(model, examples, tmp_path):
    """Training and inference run the same code: the attached file predicts what the trained tree does."""
    for number, changes in enumerate(({}, {"trunk": "full", "lr": 3e-4, "head": "separate"})):
        settings = replace(TINY, **changes)
        path = run(model, examples, tmp_path / str(number), settings)
        adapter = read_adapter(path)
        assert adapter.info.base_model == "tiny-wan"
        assert adapter.info.head == settings.head
        assert adapter.info.training["p_text_drop"] == "0.3"
        tree, trainable, matcher = made(model, settings)
        state = torch.load(tmp_path / str(number) / "motion.ckpt", weights_only=True)
        trainable.load_state_dict(state["average"])
        tree.eval()
        torch.manual_seed(2)
        batch = matcher.prepare(examples[:2], torch.tensor([0.6, 0.6]), EMPTY, 0.0, 0.5)
        with torch.no_grad():
            expected = torch.cat(matcher.velocities(batch), dim=1)
        patched = attach(model, adapter)
        comfy.model_management.load_models_gpu([patched])
        with torch.no_grad():
            found = patched.model.diffusion_model(
                torch.cat([batch.x, batch.d], dim=1), batch.sigma * 1000, batch.text,
                transformer_options={"wrappers": patched.wrappers}, **{DROP: batch.drop},
            )  # fmt: skip
        assert torch.allclose(found, expected, atol=0.02)
        assert (found - expected).abs().mean() < 2e-3
        patched.detach()


def test_a_stopped_run_goes_on_to_the_bit(model, examples, tmp_path):
    whole = run(model, examples, tmp_path / "whole")

    def stop(step):
        if step == 3:
            raise KeyboardInterrupt

    settings = replace(TINY, sample_every=3)
    with pytest.raises(KeyboardInterrupt):
        run(model, examples, tmp_path / "parts", settings, sample=stop)
    assert (tmp_path / "parts" / "motion.safetensors").exists()
    parts = run(model, examples, tmp_path / "parts", settings)
    one, other = read_adapter(whole), read_adapter(parts)
    assert all(torch.equal(value, other.layers[name]) for name, value in one.layers.items())
    assert all(torch.equal(value, other.trunk[name]) for name, value in one.trunk.items())


def test_parts_of_a_batch_are_the_batch(model, examples, tmp_path):
    """Gradients of several passes are those of one; only the drawn noise differs, so the layers move alike."""
    files = [run(model, examples, tmp_path / str(size), replace(TINY, steps=1, micro_batch=size)) for size in (2, 4)]
    shapes = [{name: value.shape for name, value in read_adapter(path).layers.items()} for path in files]
    assert shapes[0] == shapes[1]


def test_flow_comes_first(model, examples, tmp_path):
    """Updates that learn motion alone leave the embedding at zero as long as the head is."""
    path = run(model, examples, tmp_path, replace(TINY, steps=1, flow_first=5))
    layers = read_adapter(path).layers
    assert layers["head.weight"].abs().max() > 0
    assert layers["embedding.weight"].abs().max() == 0


def test_training_without_motion_for_comparison(model, examples, tmp_path):
    path = run(model, examples, tmp_path, replace(TINY, lambda_motion=0.0))
    adapter = read_adapter(path)
    assert all(value.abs().max() == 0 for value in adapter.layers.values())
    assert any(value.abs().max() > 0 for name, value in adapter.trunk.items() if "lora_up" in name)


def test_dropping(model, examples):
    matcher = made(model)[2]
    torch.manual_seed(1)
    batch = matcher.prepare(examples * 50, torch.rand(200), EMPTY, 0.3, 0.2)
    assert batch.drop.mean() == pytest.approx(0.2, abs=0.08)
    left_out = batch.text.abs().amax(dim=(1, 2)) == 0
    assert left_out.float().mean() == pytest.approx(0.3, abs=0.08)
    padded = pad_texts([torch.ones(2, 4), torch.ones(5, 4)], torch.zeros(1, 4), torch.tensor([False, False]))
    assert padded.shape == (2, 5, 4)
    assert padded[0, 2:].abs().max() == 0


def test_groups_have_rates_of_their_own(model):
    settings = MotionSettings()
    groups = made(model, replace(settings, rank=2))[1].groups()
    assert [group.lr_scale for group in groups] == [pytest.approx(3.0), 1.0]
    assert groups[0].weight_decay == 0.0
    assert len(made(model, replace(settings, trunk="frozen"))[1].groups()) == 1


def test_permutation_gap_of_a_model_that_minds_order(model, examples):
    """Of equal clips there is no gap; the measure is the same for the same seed."""
    matcher = made(model)[2]
    same = [replace(example, shuffled=example.latents) for example in examples]
    assert permutation_gap(matcher, same, [0.9, 0.5]) == {0.9: 0.0, 0.5: 0.0}
    first, again = (permutation_gap(matcher, examples, [0.9], seed=1) for _ in range(2))
    assert first == again
    assert first[0.9] != 0.0
    bare = JointMatcher(model.model.diffusion_model, None, False)
    assert permutation_gap(bare, examples, [0.9], seed=1)[0.9] == pytest.approx(first[0.9], abs=1e-4)


def test_a_run_of_other_settings_is_refused(model, examples, tmp_path):
    run(model, examples, tmp_path, replace(TINY, steps=1))
    with pytest.raises(LoraError, match="rank"):
        run(model, examples, tmp_path, replace(TINY, steps=2, rank=8))
