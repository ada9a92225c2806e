"""Takes, the plan, old takes cleared away, and what programs ask over HTTP: all of it through API prompts."""

from __future__ import annotations

import json
import urllib.error
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import av
import pytest
from longreel.film.reel.project import ProjectStore

from .film_prompts import SHOTS, Prompt, node, story, to_video
from .harness import Outcome, Server

CUTS = (SHOTS[0], "seconds: 0.6\nA red ball jumps.", SHOTS[2], "seconds: 0.6, start: continue\nA red ball spins.")


def planned(project: str, *shots: str, **options: Any) -> Prompt:
    """A prompt that only plans."""
    prompt = story(project, *shots)
    film = prompt.pop("film")
    del prompt["video"]
    return prompt | {"plan": {"class_type": "LongreelFilmPlan", "inputs": film["inputs"] | options}}


def plan_of(outcome: Outcome) -> list[str]:
    return [line for line in outcome.outputs["plan"]["text"][0].splitlines() if line.startswith("shot ")]


def files(server: Server, project: str) -> dict[str, int]:
    folder = server.base / "output" / "longreel" / project
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("shot-*")}


def film(server: Server, project: str, *shots: str, **options: Any) -> tuple[Outcome, list[str]]:
    """The plan and then the film; both must say the same, and the disk must agree."""
    plan = server.queue(planned(project, *shots, **options))
    assert plan.succeeded, plan.error
    before = files(server, project)
    prompt = story(project, *shots)
    prompt["film"]["inputs"] |= options
    outcome = server.queue(prompt)
    assert outcome.succeeded, outcome.error
    lines = plan_of(plan)
    told = outcome.outputs["film"]["text"][0].splitlines()
    assert [line for line in told if line.startswith("shot ")] == lines
    new = files(server, project).keys() - before.keys()
    assert len(new) == sum(" filmed: " in line for line in lines)
    for line in lines:
        name = line.split("(take ")[1].rstrip(")")
        known = [file for file in before if file.startswith(f"shot-{name}")]
        assert bool(known) == (" filmed: " not in line)
    assert not server.queue(planned(project, *shots, **options)).outputs["plan"]["text"][0].count(" filmed: ")
    return outcome, [line.split(" (take ")[0] for line in lines]


def take_names(server: Server, project: str) -> dict[str, str]:
    status = server.get(f"/longreel/projects/{project}")
    return {each["shot"]["prompts"][0]["text"] + f"/{each['shot']['seed']}": each["take"] for each in status["takes"]}


def test_the_second_is_retaken_and_the_third_stays(studio: Server):
    _, first = film(studio, "retaken", *CUTS)
    assert first == [f"shot {i} filmed: not filmed before" for i in (1, 2, 3, 4)]
    names = take_names(studio, "retaken")
    again = CUTS[1].replace("0.6", "0.6, seed: 7")
    _, second = film(studio, "retaken", CUTS[0], again, *CUTS[2:], keep_rest=True)
    kept = "kept: an earlier shot changed, and this take remembers the old one"
    assert second[:2] == ["shot 1 reused: nothing changed", "shot 2 filmed: seed changed"]
    assert second[2:] == [f"shot 3 {kept}", f"shot 4 {kept}"]
    # What is filmed behind a kept take goes on from it.
    longer = (CUTS[0], again, *CUTS[2:], "seconds: 0.6, start: continue\nA red ball jumps.")
    assert film(studio, "retaken", *longer, keep_rest=True)[1][4] == "shot 5 filmed: not filmed before"
    # The old take again, by its name; and with it everything is as it was.
    chosen = f"take: {names['A red ball jumps./1']}\n{again}"
    _, third = film(studio, "retaken", CUTS[0], chosen, *CUTS[2:])
    assert third[1] == "shot 2 kept: chosen in the storyboard"
    assert third[2:] == ["shot 3 reused: nothing changed", "shot 4 reused: nothing changed"]
    # A locked shot stays whatever is written before it.
    locked = f"take: {names['The same character walks./2']}\nA blue star."
    _, fourth = film(studio, "retaken", SHOTS[0].replace("stands", "spins"), again, locked)
    assert fourth[2] == "shot 3 kept: chosen in the storyboard"
    assert len(studio.get("/longreel/projects/retaken")["takes"]) == 8


def test_a_shot_is_looked_at_before_the_next_is_filmed(studio: Server):
    for last, reused in ((1, 0), (2, 1), (0, 2)):
        outcome, told = film(studio, "gate", *CUTS, last_shot=last)
        assert len(told) == (last or 4)
        assert [line.split()[2] for line in told] == ["reused:"] * reused + ["filmed:"] * (len(told) - reused)
        assert outcome.files()
    # Another seed for the last one looked at films it alone.
    _, told = film(studio, "gate", CUTS[0], CUTS[1].replace("0.6", "0.6, seed: 5"), last_shot=2)
    assert told == ["shot 1 reused: nothing changed", "shot 2 filmed: seed changed"]


def test_takes_side_by_side(studio: Server):
    prompt = story("takes", *CUTS[:3])
    del prompt["film"], prompt["video"]
    prompt |= {
        "takes": node(
            "LongreelFilmTakes",
            engine=["engine", 0],
            storyboard=["story", 0],
            project="takes",
            shot=2,
            seed=5,
            takes=3,
        ),
        "video": to_video("takes", first_shot=2),
    }
    outcome = studio.queue(prompt)
    assert outcome.succeeded, outcome.error
    assert len(outcome.files()) == 3
    lines = outcome.outputs["takes"]["text"][0].splitlines()
    assert [line.split(",")[0] for line in lines] == ["seed: 5", "seed: 6", "seed: 7"]
    # What the node says can be written above the shot as it is.
    _, told = film(studio, "takes", CUTS[0], f"{lines[1]}\n{CUTS[1]}", CUTS[2])
    assert told == [
        "shot 1 reused: nothing changed",
        "shot 2 reused: nothing changed",
        "shot 3 filmed: not filmed before",
    ]


def test_a_take_needs_its_project_and_its_predecessor(studio: Server):
    film(studio, "refused", *CUTS)
    names = take_names(studio, "refused")
    going_on = f"take: {names['A red ball spins./3']}\nA red ball spins."
    for shots, words in (
        ((CUTS[0], "take: 00000000\nA red ball."), "has no such take"),
        ((CUTS[0], going_on), "goes on from another take"),
    ):
        outcome = studio.queue(planned("refused", *shots))
        assert words in outcome.error["exception_message"]
    outcome = studio.queue(planned("", going_on))
    assert "name the project" in outcome.error["exception_message"]


def test_time_is_measured_or_unknown(studio: Server):
    slower = planned("measured", *CUTS)
    slower["engine"]["inputs"]["steps"] = 3
    text = studio.queue(slower).outputs["plan"]["text"][0]
    assert "time: unknown" in text
    assert "4 of 4 shots to film" in text
    filmed = story("measured", *CUTS)
    filmed["engine"]["inputs"]["steps"] = 3
    assert studio.queue(filmed).succeeded
    slower["story"]["inputs"]["text"] += "\n---\nseconds: 0.6\nA red ball walks."
    slower["json"] = node("PreviewAny", source=["plan", 1])
    outcome = studio.queue(slower)
    assert "time: about " in outcome.outputs["plan"]["text"][0]
    told = json.loads(outcome.outputs["json"]["text"][0])
    assert told["film"] == 1
    assert told["seconds"] > 0
    assert told["remembered_bytes"] > 0
    assert [shot["action"] for shot in told["shots"]] == ["reused"] * 4 + ["filmed"]


def test_old_takes_are_cleared_away(studio: Server):
    film(studio, "pruned", *CUTS)
    changed = (CUTS[0], CUTS[1].replace("jumps", "sways"), CUTS[2])
    film(studio, "pruned", *changed)
    folder = Path(studio.base / "output" / "longreel" / "pruned")
    (folder / "shot-damaged.safetensors").write_bytes(b"no")
    prompt = planned("pruned", *changed)
    plan = prompt.pop("plan")
    prompt["clear"] = {"class_type": "LongreelPruneProject", "inputs": plan["inputs"] | {"dry_run": True}}
    before = files(studio, "pruned")
    assert len(before) == 7
    said = studio.queue(prompt).outputs["clear"]["text"][0]
    assert "4 takes, " in said
    assert "would be deleted (dry_run is on); 3 in use stay" in said
    assert 'seed 1, "A red ball jumps."' in said
    assert files(studio, "pruned") == before
    prompt["clear"]["inputs"]["dry_run"] = False
    assert "deleted; 3 in use stay" in studio.queue(prompt).outputs["clear"]["text"][0]
    assert len(files(studio, "pruned")) == 3
    assert len(ProjectStore(folder).shots()) == 3
    # ComfyUI still remembers reels of the deleted takes, and does not use them.
    outcome, told = film(studio, "pruned", *CUTS)
    assert told[0] == "shot 1 reused: nothing changed"
    assert [line.split()[2] for line in told[1:]] == ["filmed:"] * 3
    assert outcome.files()


def test_a_film_goes_to_editing_programs(studio: Server):
    prompt = story("cut list", *CUTS) | {
        "list": node("LongreelSaveCutList", reel=["film", 0], filename_prefix="cuts/film", video="film_00001_.mp4")
    }
    outcome = studio.queue(prompt)
    assert outcome.succeeded, outcome.error
    assert outcome.outputs["list"]["text"] == ["cuts/film_00001_.edl, .otio, .srt: 4 shots"]
    folder = studio.base / "output" / "cuts"
    assert (folder / "film_00001_.edl").read_text().count("AX       V     C") == 4
    assert (folder / "film_00001_.srt").read_text().count(" --> ") == 4
    prompt["list"]["inputs"] |= {"cut_from": "shots", "subtitles": "vtt"}
    again = studio.queue(prompt)
    assert again.outputs["list"]["text"] == ["cuts/film_00002_.edl, .otio, .vtt: 4 shots"]
    timeline = json.loads((folder / "film_00002_.otio").read_text(encoding="utf-8"))
    clips = timeline["tracks"]["children"][0]["children"]
    urls = [clip["media_reference"]["target_url"] for clip in clips]
    assert all(Path(url2pathname(urlsplit(url).path)).is_file() for url in urls)
    assert [url.rpartition("/")[2] for url in urls] == ["001.mp4", "002.mp4", "003.mp4", "004.mp4"]


def test_a_film_is_heard(studio: Server):
    """Its pictures are those of the silent film, whichever sound it has."""
    prompt = story("heard", *CUTS) | {
        "music": node("EmptyAudio", duration=60.0, sample_rate=22050, channels=1),
        "voice": node("LongreelShotSound", reel=["film", 0], audio=["music", 0], shot=2),
        "sound": node("LongreelFilmSound", reel=["voice", 0], soundtrack=["music", 0], crossfade=0.1, fade_out=1.0),
    }
    prompt |= {
        "own": to_video("voice", filename_prefix="heard"),
        "mixed": to_video("film", filename_prefix="heard", sound=["sound", 0]),
        "part": to_video("film", filename_prefix="heard", first_shot=2, last_shot=3, sound=["sound", 0]),
    }
    outcome = studio.queue(prompt)
    assert outcome.succeeded, outcome.error
    assert outcome.outputs["sound"]["text"] == ["2.4 s, a soundtrack, 1 of 4 shots with a sound of their own"]
    streams = {}
    for name in ("video", "own", "mixed", "part"):
        with av.open(str(studio.path_of(outcome.outputs[name]["images"][0]))) as container:
            pictures = [bytes(packet) for packet in container.demux(video=0) if packet.size]
            seconds = [float(stream.duration * stream.time_base) for stream in container.streams.audio]
        streams[name] = (pictures, seconds)
    silent = streams["video"]
    assert silent[1] == []
    assert streams["own"] == streams["mixed"]
    assert streams["mixed"][0] == silent[0]
    assert streams["mixed"][1] == [pytest.approx(2.4, abs=0.05)]
    assert streams["part"][1] == [pytest.approx(1.2, abs=0.05)]


def test_a_rehearsal_is_never_the_film(studio: Server):
    """In one project its takes are others than the film's, and both are used again."""
    full = story("rehearsed", *CUTS[:2])
    small = full | {"small": node("LongreelRehearsalEngine", engine=["engine", 0], size=0.5, steps=0.5)}
    small["film"] = node("LongreelFilmStoryboard", **full["film"]["inputs"] | {"engine": ["small", 0]})
    for prompt, size in ((small, "16x16"), (full, "32x32"), (small, "16x16")):
        before = files(studio, "rehearsed")
        outcome = studio.queue(prompt)
        assert outcome.succeeded, outcome.error
        new = files(studio, "rehearsed").keys() - before.keys()
        assert len(new) == (2 if len(before) < 4 else 0)
        with av.open(str(studio.path_of(outcome.files()[0]))) as container:
            assert f"{container.streams.video[0].width}x{container.streams.video[0].height}" == size


def test_programs_ask_over_http(studio: Server):
    film(studio, "asked", *CUTS[:2])
    assert {"project": "asked", "takes": 2}.items() <= next(
        each for each in studio.get("/longreel/projects")["projects"] if each["project"] == "asked"
    ).items()
    status = studio.get("/api/longreel/projects/asked")
    assert [each["shot"]["prompts"][0]["text"] for each in status["takes"]] == [
        "A red ball jumps.",
        "A red ball stands at the beach.",
    ]
    one, two = status["takes"]
    assert one["after"] == two["take"]
    assert status["bytes"] == sum(each["bytes"] for each in status["takes"]) > 0
    for name in ("none", "..", "%2e%2e%2fasked"):
        with pytest.raises(urllib.error.HTTPError):
            studio.get(f"/longreel/projects/{name}")
    good = studio.post("/longreel/storyboard", {"text": "take: 3f2a9c1b\nA cat.\n---\nA dog."})
    assert [shot["seed"] for shot in good["shots"]] == [0, 1]
    assert good["faults"] == []
    bad = studio.post("/longreel/storyboard", {"text": "sec: 4\nA cat.\n***\nA dog."})
    assert [fault["line"] for fault in bad["faults"]] == [1, 3]
    with pytest.raises(urllib.error.HTTPError):
        studio.post("/longreel/storyboard", ["no"])
