"""The real editor in a headless Chromium or Chrome."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from ..server.harness import REPOSITORY, Server, load_script

CHROMIUM_FLAGS = (
    # Chromium's sandbox refuses to run as root, which is what CI is; the pages are our own server's.
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    # Nothing of the browser's own goes out to the network.
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE_MS = 120_000


class Editor:
    """One tab with ComfyUI's editor.

    page: playwright's page. complaints: what the page wrote to the console as errors, and what it threw.
    """

    def __init__(self, page: Page, server: Server, vue_nodes: bool) -> None:
        self.page = page
        self.complaints: list[str] = []
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", lambda message: self.complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        server.post("/api/settings", {"Comfy.TutorialCompleted": True, "Comfy.VueNodes.Enabled": vue_nodes})
        page.goto(server.url, wait_until="domcontentloaded")
        page.wait_for_function("() => window.app?.graph && window.app.extensionManager?.workflow?.activeWorkflow")

    def run(self, javascript: str, argument: Any = None) -> Any:
        """Run a function in the page, as playwright's evaluate does."""
        return self.page.evaluate(javascript, argument)

    def load(self, workflow: dict[str, Any]) -> None:
        """Open a workflow as a dropped file would be."""
        self.run("async workflow => { await window.app.loadGraphData(workflow) }", workflow)

    def open_template(self, name: str) -> None:
        """Open one of our templates the way a person does: template browser, our name, its own name, its card."""
        self.run("() => { window.app.extensionManager.command.execute('Comfy.BrowseTemplates') }")
        dialog = self.page.get_by_role("dialog")
        dialog.get_by_role("button", name="longreel", exact=True).click()
        # The browser draws two dozen cards at a time.
        dialog.get_by_placeholder("Search ...").fill(name)
        self.page.get_by_test_id(f"template-workflow-{name}").click()
        # The workflow has its name before its graph is there.
        saved = json.loads((REPOSITORY / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
        self.page.wait_for_function(
            """([name, nodes]) => window.app.extensionManager.workflow.activeWorkflow?.filename.includes(name)
                && window.app.graph.nodes.length === nodes""",
            arg=[name, len(saved["nodes"])],
        )

    def press_run(self) -> None:
        """Press the Run button."""
        self.page.get_by_test_id("queue-button").click()

    def save(self) -> dict[str, Any]:
        """What the editor would write to a file."""
        saved: dict[str, Any] = self.run("() => window.app.graph.serialize()")
        return saved

    def prompt(self) -> dict[str, Any]:
        """What the editor would send to the queue, in API format."""
        sent: dict[str, Any] = self.run("async () => (await window.app.graphToPrompt()).output")
        return {node: {"class_type": each["class_type"], "inputs": each["inputs"]} for node, each in sent.items()}


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """The browser that the tests of a session share; without one they are skipped, with the reason."""
    chromium = load_script("comfyui_setup").find_chromium()
    if chromium is None:
        pytest.skip("there is no Chromium or Chrome on this machine")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=str(chromium), args=list(CHROMIUM_FLAGS))
        yield running
        running.close()


@pytest.fixture(autouse=True)
def tidied(tidy_output: None) -> None:
    """Files in the output folder are choices of nodes in the next test's editor."""


@pytest.fixture(scope="module", params=[False, True], ids=["canvas", "nodes-2"])
def vue_nodes(request: pytest.FixtureRequest) -> bool:
    """Both renderers of the editor, one after the other."""
    return bool(request.param)


@pytest.fixture(scope="module")
def tab(browser: Browser, server: Server, vue_nodes: bool) -> Iterator[Editor]:
    """One tab that a module's tests of a renderer share, as a person opens one workflow after the other."""
    context = browser.new_context(viewport={"width": 1200, "height": 800}, reduced_motion="reduce")
    yield Editor(context.new_page(), server, vue_nodes)
    context.close()


@pytest.fixture
def open_editor(browser: Browser, server: Server, vue_nodes: bool) -> Iterator[Callable[[], Editor]]:
    """A function that opens the editor in a fresh profile."""
    context = browser.new_context(viewport={"width": 1600, "height": 1000}, reduced_motion="reduce")
    yield lambda: Editor(context.new_page(), server, vue_nodes)
    context.close()
