"""The judge of casts: what it says of true clips, of wrong ones, and the table of a LoRA."""

from __future__ import annotations

import argparse
import random
from dataclasses import replace

import pytest
import torch
from longreel.miniature.probe import Probe
from longreel.miniature.world import Character
from longreel.training.core.lora import adapt, choose_layers, save_lora
from longreel.training.first_frame import evaluate as cast_evaluation
from longreel.training.first_frame.world import draw_cast
from longreel.training.miniature.export import FILES
from safetensors.torch import load_file, save_file

from ... import tiny_models
from ...server.harness import REPOSITORY


@pytest.fixture(scope="module")
def probe():
    probe = Probe().eval()
    weights = load_file(REPOSITORY / "miniature" / "weights" / FILES["probe"])
    probe.load_state_dict({key: value.float() for key, value in weights.items()})
    return probe


def test_true_clips_are_nearly_always_right(probe):
    row = cast_evaluation.evaluate_casts(cast_evaluation.true_film, probe, 8)
    assert row["each"] > 0.9
    assert row["every reference"] > 0.7
    assert row["of 1"] == 1
    assert set(row) == {
        "every reference", "each", "of 1", "of 2", "of 3", "of 4", "colour", "body", "headgear", "place",
    }  # fmt: skip
    assert min(row[name] for name in ("colour", "body", "headgear", "place")) > 0.9


def test_what_of_a_character_is_wrong(probe):
    cast = draw_cast(random.Random(1), 1)
    film, (actor,) = cast_evaluation.true_film(cast, 0), cast.scene.actors
    told = {"colour": [True], "body": [True], "headgear": [True], "place": [True]}
    assert cast_evaluation.right_attributes(probe, film, cast) == told
    other = replace(actor.character, body="star" if actor.character.body != "star" else "box")
    changed = replace(cast, scene=replace(cast.scene, actors=(replace(actor, character=other),)))
    assert cast_evaluation.right_attributes(probe, film, changed) == told | {"body": [False]}


def test_every_reference_is_asked_for(probe):
    cast = next(
        cast
        for seed in range(99)
        if (cast := draw_cast(random.Random(seed), 4)).scene.beats[0].actions == ("stands", "stands")
    )
    film = cast_evaluation.true_film(cast, 0)
    assert cast_evaluation.right_references(probe, film, cast) == [True] * 4

    def seen(**scene):
        return cast_evaluation.right_references(probe, film, replace(cast, scene=replace(cast.scene, **scene)))

    bare = next(iter(cast.bareheaded))
    order = [("whole", 1 - bare)] if bare else []
    order += [("body", bare), ("headgear", bare)] + ([] if bare else [("whole", 1)]) + [("place", None)]
    for wanted, (part, index) in enumerate(order):
        if part == "place":
            wrong = seen(place="night" if cast.scene.place != "night" else "beach")
        else:
            actors = list(cast.scene.actors)
            who = actors[index].character
            other = "crown" if who.headgear != "crown" else "beanie"
            changed = (
                Character(who.colour, who.body, other)
                if part == "headgear"
                else replace(who, body="ball" if who.body != "ball" else "box")
            )
            actors[index] = replace(actors[index], character=changed)
            wrong = seen(actors=tuple(actors))
        assert wrong == [place != wanted for place in range(4)], part


@torch.no_grad()
def test_the_table_of_a_lora(tmp_path, capsys):
    for name, tensors in (
        ("dit", tiny_models.dit_weights()),
        ("vae", tiny_models.vae_weights()),
        ("text", tiny_models.text_weights()),
        ("probe", tiny_models.random_weights(Probe(), 5)),
    ):
        path = tmp_path / FILES[name]
        path.parent.mkdir(parents=True)
        save_file(tensors, path, metadata=tiny_models.dit_metadata() if name == "dit" else None)
    import comfy.sd

    dit = comfy.sd.load_diffusion_model(str(tmp_path / FILES["dit"])).model.diffusion_model
    _, adapter = adapt(dit, choose_layers(dit), 2)
    for pair in adapter.pairs:
        pair.up.normal_(std=0.5)
    lora = save_lora(adapter, tmp_path / "lora.safetensors", {})
    parser = argparse.ArgumentParser()
    cast_evaluation.add_evaluation_arguments(parser)
    films = []
    film = cast_evaluation.model_film

    def watched(*arguments, **options):
        films.append(film(*arguments, **options))
        return films[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cast_evaluation, "model_film", watched)
        line = f"--lora {lora} --casts 1 --steps 1 --latent-frames 12 --prompts 1"
        cast_evaluation.run_evaluation(parser.parse_args(line.split()), tmp_path)
    told = capsys.readouterr().out
    rows = ("true clips", "told in words", "the same behind the trigger", "without", "with the LoRA")
    for row in (*(f"| {name} |" for name in rows), "1 held-out casts", "1 held-out prompts"):
        assert row in told
    assert all(made.shape == (41, 64, 64, 3) for made in films)
    assert len(films) == 2
    assert not torch.equal(*films), "the same cast and seed, with and without"
