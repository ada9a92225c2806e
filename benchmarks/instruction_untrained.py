"""Does what happens follow the sentence, not the picture? Measured with the miniature's own models, untrained for it.

`python benchmarks/instruction_untrained.py --way causal --states`, on a GPU if there is one. A held-out character
stands in its place; two instructions name two actions. Both are filmed from the same picture and seed, and the
miniature's action probe says what it sees.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from longreel.film.instruction import States, parse_states
from longreel.film.storyboard.shot import Shot, TimedPrompt
from longreel.miniature.probe import ATTRIBUTES
from longreel.miniature.stories import describe
from longreel.miniature.world import ACTIONS, SIZE, Beat, Scene, render
from longreel.training.core.command_line import start_comfyui
from longreel.training.miniature.evaluate import Models, load, one_character_scene
from torch import Tensor

SECONDS = 2.25
"""The probe reads actions from 31 frames at least."""
WAYS = ("causal", "image to video")


@dataclass(frozen=True)
class Trial:
    """A picture [1, 64, 64, 3] and two instructions that both can follow it; seed: of the film."""

    scene: Scene
    picture: Tensor
    actions: tuple[str, str]
    seed: int

    def instruction(self, action: str) -> str:
        """The sentence that tells an action."""
        return describe(_doing(self.scene, action))

    def states(self, action: str) -> States:
        """The action in two states as a planner would tell it: standing, as the picture shows, then doing it."""
        told = f"{describe(_doing(self.scene, 'stands'))}\n{self.instruction(action)}"
        states = parse_states(told, self.instruction(action), 2, strict=False)
        first, then = states.states
        return replace(states, states=(replace(first, at=0.0), replace(then, at=0.2)))


def _doing(scene: Scene, action: str) -> Scene:
    return Scene(scene.place, scene.actors, (Beat(0.0, (action,), "still"),))


def trials(count: int, seed: int = 5) -> list[Trial]:
    """Held-out characters and places, each with two different actions."""
    rng = random.Random(seed)
    made = []
    for number in range(count):
        scene = one_character_scene(rng)
        first = render(_doing(scene, "stands"), torch.zeros(1)).frames.movedim(1, -1)
        one, other = rng.sample(ACTIONS, 2)
        made.append(Trial(scene, first, (one, other), number))
    return made


def make_engine(models: Models, way: str, states: States | None) -> Any:
    """The instruction engine over the miniature, by one of WAYS."""
    from longreel.engines.causal_schedule import default_sigmas
    from longreel.engines.instruction import InstructionEngine, Planning
    from longreel.engines.instruction_backends import CausalInstructionEngine, FirstFrameChunks

    film = {"clip": models.clip, "vae": models.vae, "width": SIZE, "height": SIZE, "fps": 16.0}
    planning = Planning(states=states, count=2)
    if way == "causal":
        sigmas = default_sigmas(models.model, 4)
        return CausalInstructionEngine(models=(models.model,), sigmas=sigmas, planning=planning, **film)
    chunks = FirstFrameChunks(45, 12, 3.0, "euler", "simple", "")
    return InstructionEngine(models=(models.model,), backend=chunks, planning=planning, **film)


@torch.inference_mode()
def evaluate_untrained(
    models: Models,
    count: int,
    *,
    way: str = "causal",
    states: bool = False,
    seconds: float = SECONDS,
    say: Callable[[str], None] = print,
) -> dict[str, float]:
    """Shares in percent over `count` held-out pictures.

    followed: films in which the probe sees the action that was told, both instructions counted. swapped: pictures of
    which the two films show different actions. kept: frames in which character and place are the picture's; the same of
    the first and of the last 16 frames, which are in the first and last chunk of a film of several.
    """
    from longreel.film.reel.reel import Reel
    from longreel.host.media.decode import film_frames
    from longreel.host.progress import Progress

    followed: list[float] = []
    swapped: list[float] = []
    kept: dict[str, list[float]] = {"kept": [], "kept_first": [], "kept_last": []}
    for number, trial in enumerate(trials(count)):
        seen = []
        for action in trial.actions:
            engine = make_engine(models, way, trial.states(action) if states else None)
            shot = Shot((TimedPrompt(0, trial.instruction(action)),), seconds, trial.seed)
            empty = Reel.empty(engine.layout())
            reel = engine.film(shot, empty, Progress(1), engine.shot_inputs(shot, trial.picture))
            reading = models.probe.read(torch.cat(list(film_frames(reel, models.vae))).float())
            seen.append(reading.verdict("action"))
            followed.append(seen[-1] == action)
            character = trial.scene.actors[0].character
            whose = {"colour": character.colour, "body": character.body, "headgear": character.headgear}
            for name, value in {**whose, "place": trial.scene.place}.items():
                right = (reading.frames[name] == ATTRIBUTES[name].index(value)).float()
                for row, part in zip(kept.values(), (right, right[:16], right[-16:])):
                    row.append(float(part.mean()))
        swapped.append(seen[0] != seen[1])
        if number % 20 == 19:
            say(f"{number + 1} of {count}: followed {100 * sum(followed) / len(followed):.1f} %")
    rows = {"followed": followed, "swapped": swapped, **kept}
    return {name: 100 * sum(values) / len(values) for name, values in rows.items()}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="held-out pictures, two films each: default 200")
    parser.add_argument("--way", choices=WAYS, default=WAYS[0], help="default causal")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"of a film: default {SECONDS}; 4 are 64 frames")
    parser.add_argument("--states", action="store_true", help="with states, as a planner would tell them")
    chosen = parser.parse_args()
    start_comfyui()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        import folder_paths

        folder_paths.set_temp_directory(folder)
        from longreel.host.files.paths import MINIATURE_WEIGHTS

        models = load(MINIATURE_WEIGHTS)
        shares = evaluate_untrained(models, chosen.count, way=chosen.way, states=chosen.states, seconds=chosen.seconds)
        print(json.dumps(shares, indent=1))


if __name__ == "__main__":
    main()
