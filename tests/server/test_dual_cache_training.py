"""FilmWeaver's trainer in the real server: interrupted, it saves and stops; queued again, it goes on."""

from __future__ import annotations

import json

from safetensors import safe_open

from .harness import Server
from .test_film import PROMPTS, on_text, shortened


def test_training_is_interrupted_and_goes_on(studio: Server):
    shipped = shortened(json.loads((PROMPTS / "train-film-weaver.json").read_text(encoding="ascii")))
    ids = {each["class_type"]: key for key, each in shipped.items()}
    trainer, dataset = ids["LongreelTrainWeaverLora"], ids["LongreelWeaverDataset"]
    loaders = ("UNETLoader", "LongreelMiniatureTextEncoder", "VAELoader", "LongreelKeyframeClip")
    needed = [*(ids[name] for name in (*loaders, "LongreelMiniatureFilms")), dataset, trainer]
    prompt = {key: shipped[key] for key in needed}
    prompt[dataset]["inputs"]["name"] = prompt[trainer]["inputs"]["name"] = "interrupted-weaver"
    prompt[trainer]["inputs"] |= {"first_steps": 40, "steps": 40, "sample_every": 0}
    run, listed = studio.base / "output" / "longreel-loras", studio.base / "output" / "loras"

    stopped = studio.queue(prompt, on_event=on_text("step 1", studio.interrupt))
    assert stopped.interrupted
    with safe_open(run / "interrupted-weaver" / "weaver.safetensors", "pt") as file:
        reached = int(file.metadata()["steps"])
    assert 0 < reached < 80
    assert not (listed / "interrupted-weaver.safetensors").exists()

    again = studio.queue(prompt)
    assert again.succeeded, again.error
    assert dataset in again.cached
    assert f"continuing at step {reached} of 80" in again.outputs[trainer]["text"][0]
    assert any(text.startswith("step 80/80, loss ") for text in again.texts)
    with safe_open(listed / "interrupted-weaver.safetensors", "pt") as file:
        assert file.metadata()["steps"] == "80"
    assert studio.queue(prompt).ran == []
