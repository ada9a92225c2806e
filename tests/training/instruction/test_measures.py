"""Two folders of videos: with and without an I3D, pairs by name, and what is refused."""

from __future__ import annotations

import pytest
import torch
from longreel.film.metrics.video_distance import frechet_distance
from longreel.training.__main__ import COMMANDS
from longreel.training.instruction.data import InstructionDataError, read_frames
from longreel.training.instruction.evaluate import FLAVOUR, compare_folders, i3d_features, load_i3d

from .test_train import write_video


class SmallI3D(torch.nn.Module):
    """Features of the kind that StyleGAN-V's I3D gives."""

    def forward(self, x: torch.Tensor, rescale: bool, resize: bool, return_features: bool) -> torch.Tensor:
        return torch.cat([x.mean(dim=(2, 3, 4)), x.std(dim=(2, 3, 4))], dim=1)


@pytest.fixture
def folders(tmp_path):
    for folder, lengths in (("real", (9, 10, 12)), ("made", (9, 11, 12))):
        (tmp_path / folder).mkdir()
        for number, frames in enumerate(lengths):
            write_video(tmp_path / folder / f"{number}.mp4", frames)
    torch.jit.script(SmallI3D()).save(str(tmp_path / "i3d.pt"))
    return tmp_path


def test_folders_are_compared(folders):
    made = compare_folders(folders / "real", folders / "made", frames=10, size=(64, 64), i3d=folders / "i3d.pt")
    assert (made["real"], made["made"], made["pairs"]) == (3, 3, 3)
    assert made["psnr"] > 20
    assert 0 < made["ssim"] <= 1
    assert made["flavour"] == FLAVOUR
    network = load_i3d(folders / "i3d.pt")

    def features(name: str) -> torch.Tensor:
        paths = sorted((folders / name).iterdir())
        return torch.stack([i3d_features(network, read_frames(path, 10, 64, 64)) for path in paths])

    assert made["fvd"] == pytest.approx(frechet_distance(features("real"), features("made")))


def test_without_an_i3d_there_is_no_fvd(folders):
    assert "fvd" not in compare_folders(folders / "real", folders / "made", size=(64, 64))


def test_another_instruction_changes_as_much_as_its_films_differ(folders):
    same = compare_folders(folders / "real", folders / "made", size=(64, 64), swapped=folders / "made")
    assert (same["swapped"], same["text_swap"]) == (3, 0.0)
    (folders / "other").mkdir()
    write_video(folders / "other" / "1.mp4", 4)
    other = compare_folders(folders / "real", folders / "made", size=(64, 64), swapped=folders / "other")
    assert other["swapped"] == 1
    assert other["text_swap"] == pytest.approx(100 * 70 / 255, abs=2)
    (folders / "other" / "1.mp4").rename(folders / "other" / "z.mp4")
    with pytest.raises(InstructionDataError, match="no video of the same name"):
        compare_folders(folders / "real", folders / "made", size=(64, 64), swapped=folders / "other")


def test_what_cannot_be_compared_is_refused_with_a_sentence(folders, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InstructionDataError, match="holds no video"):
        compare_folders(folders / "real", tmp_path / "empty")
    (tmp_path / "no.pt").write_bytes(b"x")
    with pytest.raises(InstructionDataError, match="no TorchScript"):
        load_i3d(tmp_path / "no.pt")
    with pytest.raises(InstructionDataError, match="10 frames or more and a video has 4"):
        i3d_features(SmallI3D(), torch.zeros(4, 8, 8, 3))


def test_the_commands_are_listed():
    assert {"instruction", "instruction-measure"} <= set(COMMANDS)
