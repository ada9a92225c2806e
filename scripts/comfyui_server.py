"""A ComfyUI server as a child process, and the HTTP and websocket talk with it.

Standard library only: `comfy.py` films with it before anything is installed, and the server tests drive the real server
with it (`tests/server/harness.py`).
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import signal
import socket
import struct
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any

HOST = "127.0.0.1"
Event = dict[str, Any]
Prompt = dict[str, dict[str, Any]]


class ServerError(Exception):
    """The server did not start, died, or fell silent; the message says which and where its log lies."""


class PromptRejected(Exception):
    """The server refused a prompt before running any of it.

    `messages` holds one line per complaint, `node_errors` the server's own answer by node id.
    """

    def __init__(self, answer: dict[str, Any]) -> None:
        self.node_errors: dict[str, Any] = answer.get("node_errors") or {}
        complaints = [error for node in self.node_errors.values() for error in node["errors"]]
        if not complaints:
            complaints = [answer["error"]]
        self.messages = [": ".join(filter(None, (one["message"], one.get("details")))) for one in complaints]
        super().__init__("\n".join(self.messages))


@dataclass
class Outcome:
    """What became of one queued prompt.

    Node ids are those of the prompt; nodes made by node expansion have dotted ids that begin with their parent's.
    """

    prompt_id: str
    ran: list[str] = field(default_factory=list)
    """Nodes that executed, in order."""
    cached: list[str] = field(default_factory=list)
    """Nodes of the prompt whose result was taken from the cache."""
    texts: list[str] = field(default_factory=list)
    """Progress texts, in order."""
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What output nodes showed, by node id, as the server's history has it."""
    error: dict[str, Any] | None = None
    """The server's `execution_error` message, None where nothing failed."""
    interrupted: bool = False

    @property
    def succeeded(self) -> bool:
        """Whether the whole prompt ran to its end."""
        return self.error is None and not self.interrupted

    def files(self) -> list[dict[str, str]]:
        """Every file shown by an output node: dicts of `filename`, `subfolder` and `type`."""
        shown = (item for output in self.outputs.values() for items in output.values() for item in items)
        return [item for item in shown if isinstance(item, dict) and "filename" in item]


class Server:
    """One ComfyUI server on a free port of this machine, stopped by its own process id.

    python: the interpreter of the environment that holds ComfyUI's requirements. comfyui: the folder with ComfyUI's
    `main.py`. base: its base directory (custom_nodes, input, output, models, user, temp lie below it). flags: more of
    ComfyUI's command line. log: the file that receives its output; None leaves the output on this terminal. port: 0 for
    a free one.
    """

    def __init__(
        self,
        python: Path,
        comfyui: Path,
        base: Path,
        flags: Sequence[str] = (),
        log: Path | None = None,
        port: int = 0,
    ) -> None:
        self.python, self.comfyui, self.base, self.flags, self.log = python, comfyui, base, list(flags), log
        self.port = port or free_port()
        self.client_id = secrets.token_hex(16)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where the server answers, without a trailing slash."""
        return f"http://{HOST}:{self.port}"

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        assert self._process is not None, "start() first"
        return self._process.pid

    def start(self, patience: float = 300.0) -> Server:
        """Start the server and return once it answers.

        patience: seconds to wait for the first answer. Raises ServerError: it died or did not answer in time.
        """
        command = [str(self.python), str(self.comfyui / "main.py"), "--base-directory", str(self.base), *self.flags]
        command += ["--port", str(self.port), "--disable-auto-launch"]
        output: IO[bytes] | None = None
        if self.log is not None:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            output = self.log.open("ab")
        try:
            self._process = subprocess.Popen(
                command,
                cwd=self.comfyui,
                env=clean_environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT if output else None,
            )
        finally:
            if output is not None:
                output.close()
        self._wait_for_answer(time.monotonic() + patience)
        return self

    def _wait_for_answer(self, deadline: float) -> None:
        while True:
            if self._process is None or self._process.poll() is not None:
                raise ServerError(f"ComfyUI stopped while starting.{self._log_tail()}")
            try:
                self.get("/system_stats", timeout=5)
                return
            except (OSError, TimeoutError):
                if time.monotonic() > deadline:
                    self.stop()
                    raise ServerError(f"ComfyUI did not answer in time.{self._log_tail()}") from None
                time.sleep(0.2)

    def _log_tail(self) -> str:
        if self.log is None:
            return ""
        tail = "\n".join(self.log_text().splitlines()[-25:])
        return f" Its log is {self.log}; it ends:\n{tail}"

    def log_text(self) -> str:
        """Everything the server has printed since `log` was made; empty without a log."""
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log is not None else ""

    def wait(self) -> int:
        """Wait until the server ends by itself and return its exit status."""
        assert self._process is not None, "start() first"
        return self._process.wait()

    def stop(self, patience: float = 20.0) -> None:
        """Ask the server to end as Ctrl-C does, and kill it if it has not after `patience` seconds."""
        if self._process is None:
            return
        if self._process.poll() is None:
            # Windows delivers Ctrl-C to a whole console, which would end us too.
            self._process.send_signal(signal.SIGINT if os.name == "posix" else signal.SIGTERM)
            try:
                self._process.wait(patience)
            except subprocess.TimeoutExpired:
                self.kill()
        self._process = None

    def kill(self) -> None:
        """End the server at once, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> Server:
        """Stop the server, if it still runs, and start it again on the same port and base directory."""
        self.stop()
        return self.start()

    def __enter__(self) -> Server:
        return self if self._process is not None else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def get(self, path: str, timeout: float = 60.0) -> Any:
        """GET `path` (with its leading slash) and return the decoded JSON."""
        with urllib.request.urlopen(self.url + path, timeout=timeout) as answer:
            return json.load(answer)

    def post(self, path: str, body: dict[str, Any], timeout: float = 60.0) -> Any:
        """POST `body` as JSON to `path` and return the decoded JSON, None where the answer is empty."""
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def object_info(self) -> dict[str, Any]:
        """The schema of every node the server knows, by node id."""
        info: dict[str, Any] = self.get("/object_info")
        return info

    def interrupt(self) -> None:
        """Interrupt the prompt that runs now."""
        self.post("/interrupt", {})

    def path_of(self, file: dict[str, str]) -> Path:
        """Where a file named by `Outcome.files` lies on disk."""
        return self.base / file["type"] / file.get("subfolder", "") / file["filename"]

    def queue(self, prompt: Prompt, on_event: Callable[[Event], None] | None = None, quiet: float = 600.0) -> Outcome:
        """Run a prompt in API format to its end.

        prompt: node id -> {"class_type": ..., "inputs": ...}. on_event: called with every message of the server
        ({"type", "data"}; progress texts come as type "progress_text" with "node" and "text"). It may call `interrupt`
        or `kill`. quiet: the longest silence, in seconds, that is not taken for a hang. Raises PromptRejected: the
        server refused the prompt; ServerError: the server died or fell silent.
        """
        with _Socket(self.port, f"/ws?clientId={self.client_id}", quiet) as connection:
            messages = iter(connection)
            next(messages)  # the server's greeting: from here on it knows where our events go
            outcome = Outcome(self._submit(prompt))
            try:
                for event in map(_decode, messages):
                    if on_event is not None:
                        on_event(event)
                    if _take(outcome, event):
                        break
                outcome.outputs = self.get(f"/history/{outcome.prompt_id}")[outcome.prompt_id]["outputs"]
            except (OSError, EOFError) as error:
                raise ServerError(f"The connection to ComfyUI broke off ({error}).{self._log_tail()}") from error
        return outcome

    def _submit(self, prompt: Prompt) -> str:
        try:
            answer = self.post("/prompt", {"prompt": prompt, "client_id": self.client_id})
        except urllib.error.HTTPError as error:
            if error.code != 400:
                raise
            raise PromptRejected(json.load(error)) from None
        # One good output is enough for the server to say 200 although it dropped another one.
        if answer["node_errors"]:
            self.post("/queue", {"delete": [answer["prompt_id"]]})
            self.post("/interrupt", {"prompt_id": answer["prompt_id"]})
            raise PromptRejected(answer)
        prompt_id: str = answer["prompt_id"]
        return prompt_id


def _take(outcome: Outcome, event: Event) -> bool:
    """Note one message in the outcome; True when it was the last one of this prompt."""
    kind, data = event["type"], event["data"]
    if kind == "progress_text":
        outcome.texts.append(data["text"])
    if data.get("prompt_id") != outcome.prompt_id:
        return False
    if kind == "executing" and data["node"] is None:
        return True
    if kind == "executing":
        outcome.ran.append(data["node"])
    elif kind == "execution_cached":
        outcome.cached.extend(data["nodes"])
    elif kind == "execution_error":
        outcome.error = data
    elif kind == "execution_interrupted":
        outcome.interrupted = True
    return False


def _decode(message: str | bytes) -> Event:
    """Give a websocket message the form of an event; binary ones carry previews and progress texts."""
    if isinstance(message, str):
        event: Event = json.loads(message)
        return event
    (kind,) = struct.unpack_from(">I", message)
    if kind != 3:  # BinaryEventTypes.TEXT in ComfyUI's protocol.py; the others are pictures
        return {"type": "preview", "data": {"bytes": message[4:]}}
    (length,) = struct.unpack_from(">I", message, 4)
    return {
        "type": "progress_text",
        "data": {"node": message[8 : 8 + length].decode(), "text": message[8 + length :].decode()},
    }


class _Socket:
    """The reading half of a websocket (RFC 6455), which is all that following a prompt takes."""

    def __init__(self, port: int, path: str, quiet: float) -> None:
        self._socket = socket.create_connection((HOST, port), quiet)
        self._file = self._socket.makefile("rb")
        key = base64.b64encode(secrets.token_bytes(16)).decode()
        self._socket.sendall(
            f"GET {path} HTTP/1.1\r\nHost: {HOST}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        status = self._file.readline()
        if b" 101 " not in status:
            raise ServerError(f"ComfyUI refused the websocket: {status.decode().strip()}")
        while self._file.readline().strip():
            pass

    def __enter__(self) -> _Socket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._socket.close()

    def _read(self, count: int) -> bytes:
        data = self._file.read(count)
        if len(data) < count:
            raise EOFError("the server closed the connection")
        return data

    def __iter__(self) -> Iterator[str | bytes]:
        """Yield whole messages: text as str, binary as bytes."""
        parts: list[bytes] = []
        text = False
        while True:
            first, second = self._read(2)
            length = second & 0x7F
            if length == 126:
                (length,) = struct.unpack(">H", self._read(2))
            elif length == 127:
                (length,) = struct.unpack(">Q", self._read(8))
            payload = self._read(length)
            opcode = first & 0x0F
            if opcode == 8:
                raise EOFError("the server closed the connection")
            if opcode == 9:
                self._pong(payload)
            if opcode > 2:
                continue
            if opcode:
                parts, text = [], opcode == 1
            parts.append(payload)
            if first & 0x80:
                whole = b"".join(parts)
                yield whole.decode() if text else whole

    def _pong(self, payload: bytes) -> None:
        mask = secrets.token_bytes(4)
        masked = bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))
        self._socket.sendall(bytes([0x8A, 0x80 | len(payload)]) + mask + masked)


def free_port() -> int:
    """A TCP port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
    return port


def port_is_free(port: int) -> bool:
    """Whether nobody listens on `port` of this machine now."""
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) != 0


def clean_environment() -> dict[str, str]:
    """Our environment for a child Python, without what would lead it to another Python's modules."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
