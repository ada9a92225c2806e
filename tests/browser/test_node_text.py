"""What nodes say after a run is drawn on them, whole and with its lines, and is no part of the workflow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .. import tiny_models
from ..server.film_prompts import SHOTS, Prompt, node, story
from ..server.harness import Server
from .conftest import Editor

SPEAKERS = {
    "LongreelStoryboard": ["3 shots, 1.8 s"],
    "LongreelFilmStoryboard": ["shot 1 filmed: not filmed before", "shot 3 filmed: not filmed", "3 shots, 1.8 s"],
    "LongreelSaveReel": ["_00001_.reel.safetensors: 3 shots"],
    "LongreelLoadReel": ["3 shots, 1.8 s"],
    "LongreelForkReel": ["1 shot, 0.6 s"],
    "LongreelSaveCutList": [" fork_00001_.edl, .otio, .srt: 1 shot"],
    "LongreelExpertSwitch": ["steps with the high-noise model"],
    "LongreelFirstFramePrompt": ["ad23r2 the camera view suddenly changes. The robot waves."],
    "LongreelFirstFrameLora": ["1 of 1", "1 of 1"],
}
"""Each node that speaks, and the beginnings or parts of its lines, in order."""

SHOWN = """() => Object.fromEntries(window.app.graph.nodes.map(node => {
    const element = node.widgets?.find(widget => widget.name === 'longreel_text')?.element
    if (!element?.isConnected) return [node.type, null]
    const range = document.createRange()
    range.selectNodeContents(element)
    const [room, text] = [element.getBoundingClientRect(), range.getBoundingClientRect()]
    const hit = document.elementFromPoint(room.x + room.width / 2, room.y + 6)
    return [node.type, {
        lines: element.innerText.split('\\n'),
        inside: text.bottom <= room.bottom + 1 && text.right <= room.right + 1,
        seen: room.height > 10 && (hit === element || element.contains(hit)),
        progress: node.widgets.some(widget => widget.name === '$$node-text-preview'),
    }]
}).filter(([type, shown]) => shown))"""
VALUES = "() => window.app.graph.nodes.map(node => [node.type, node.serialize().widgets_values ?? null])"


def speakers(name: str) -> Prompt:
    experts = {"model": ["lora", 0], "low_noise_model": ["lora", 1]}
    return story(name, *SHOTS) | {
        "save": node("LongreelSaveReel", reel=["film", 0], filename_prefix=f"reels/{name}"),
        "load": node("LongreelLoadReel", file=["save", 0]),
        "fork": node("LongreelForkReel", reel=["load", 0], shot=1, seconds=0.0),
        "expert": node("UNETLoader", unet_name=tiny_models.EXPERT, weight_dtype="default"),
        "lora": node(
            "LongreelFirstFrameLora",
            model=["expert", 0],
            low_noise_model=["expert", 0],
            lora=tiny_models.HIGH,
            low_noise_lora=tiny_models.LOW,
            strength=1.0,
        ),
        "switch": node("LongreelExpertSwitch", **experts, steps=4, scheduler="simple", shift=5.0, boundary=0.9),
        "prompt": node(
            "LongreelFirstFramePrompt",
            action="The robot waves.",
            scene="",
            camera="",
            style="",
            trigger="ad23r2 the camera view suddenly changes.",
        ),
        "seen 1": node("PreviewAny", source=["switch", 3]),
        "seen 2": node("PreviewAny", source=["prompt", 0]),
        "cuts": node("LongreelSaveCutList", reel=["fork", 0], filename_prefix=f"reels/{name} fork", video="film.mp4"),
    }


def numbered(prompt: Prompt) -> Prompt:
    """The prompt as the editor exports one: its nodes are numbered."""
    number = {name: str(i) for i, name in enumerate(prompt, start=1)}

    def value(given: Any) -> Any:
        return [number[given[0]], given[1]] if isinstance(given, list) else given

    return {
        number[name]: each | {"inputs": {key: value(given) for key, given in each["inputs"].items()}}
        for name, each in prompt.items()
    }


def spread(editor: Editor) -> None:
    """Every node where no other covers it, and all of them in sight at a zoom at which text is drawn."""
    editor.run(
        """() => {
            const speaks = node => node.widgets?.some(widget => widget.name === 'longreel_text')
            const nodes = [...window.app.graph.nodes].sort((one, other) => speaks(other) - speaks(one))
            nodes.forEach((node, index) => { node.pos = [450 * (index % 4), 500 * Math.floor(index / 4)] })
            const { ds } = window.app.canvas
            ds.scale = 0.7
            ds.offset = [300, 120]
            window.app.canvas.setDirty(true, true)
        }"""
    )
    editor.page.wait_for_timeout(500)


def test_every_text_is_seen(open_editor: Callable[[], Editor], studio: Server, vue_nodes: bool):
    editor = open_editor()
    prompt = numbered(speakers(f"seen {vue_nodes}"))
    editor.run("async prompt => { await window.app.loadApiJson(prompt, 'speakers') }", prompt)
    before = editor.run(VALUES)
    editor.press_run()
    names = [f"'{name}'" for name in SPEAKERS]
    editor.page.wait_for_function(f"() => [{', '.join(names)}].every(type => ({SHOWN})()[type])")
    editor.page.wait_for_function("() => window.app.ui.lastQueueSize === 0")
    spread(editor)
    shown = editor.run(SHOWN)
    for name, parts in SPEAKERS.items():
        lines = iter(shown[name]["lines"])
        for part in parts:
            assert any(part in line for line in lines), (name, shown[name])
        assert shown[name]["inside"], name
        assert shown[name]["seen"], name
        assert not shown[name]["progress"], "the line of progress is gone once the result is said"
    assert editor.run(VALUES) == before, "a text is no value of its node"
    assert not [complaint for complaint in editor.complaints if "longreel" in complaint.lower()]


def test_text_comes_back_with_its_tab(open_editor: Callable[[], Editor], studio: Server):
    editor = open_editor()
    board = {"1": node("LongreelStoryboard", text=SHOTS[0]), "2": node("PreviewAny", source=["1", 0])}
    editor.run("async prompt => { await window.app.loadApiJson(prompt, 'first') }", board)
    editor.press_run()
    editor.page.wait_for_function(f"() => ({SHOWN})().LongreelStoryboard")
    first = editor.run("() => window.app.extensionManager.workflow.activeWorkflow.path")
    editor.run("() => window.app.extensionManager.command.execute('Comfy.NewBlankWorkflow')")
    editor.page.wait_for_function("() => window.app.graph.nodes.length !== 2")
    editor.page.get_by_text(first.rpartition("/")[2].removesuffix(".json"), exact=False).first.click()
    editor.page.wait_for_function(f"() => ({SHOWN})().LongreelStoryboard")
    assert editor.run(SHOWN)["LongreelStoryboard"]["lines"] == ["1 shot, 0.6 s"]
