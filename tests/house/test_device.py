"""`--device`: what ComfyUI is started with, and one sentence where the device is not there."""

from __future__ import annotations

import pytest
import torch

from .. import device as on


@pytest.mark.parametrize(
    ("arguments", "environment", "found"),
    [
        ([], {}, "cpu"),
        (["tests/film", "-k", "reel"], {}, "cpu"),
        (["-q", "--device", "cuda"], {}, "cuda"),
        (["--device=mps"], {}, "mps"),
        ([], {on.VARIABLE: "cuda"}, "cuda"),
        (["--device", "cpu"], {on.VARIABLE: "cuda"}, "cpu"),
        (["--device", "tpu"], {}, "cpu"),  # pytest refuses it when it comes to it
    ],
)
def test_the_device_is_the_cpu_unless_it_is_named(arguments: list[str], environment: dict[str, str], found: str):
    assert on.wanted(arguments, environment) == found
    assert environment.get(on.VARIABLE, found) == found or arguments[1:] == ["tpu"]


def test_the_cpu_is_said_to_comfyui_and_a_gpu_is_its_own_choice():
    assert on.comfyui_flags("cpu") == on.server_flags("cpu") == ["--cpu"]
    assert on.comfyui_flags("cuda") == ["--force-fp32"]
    assert on.server_flags("cuda") == []


def test_a_device_that_is_not_there_gets_one_sentence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert on.absent("cpu") is None
    for device, word in (("cuda", "NVIDIA"), ("mps", "Metal")):
        sentence = on.absent(device)
        assert sentence is not None
        assert word in sentence
        assert sentence.count(". ") == 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert on.absent("cuda") is None


def test_bits_on_a_cpu_and_a_bound_on_a_gpu(monkeypatch: pytest.MonkeyPatch):
    one, other = torch.ones(3), torch.ones(3) * (1 + 1e-6)
    monkeypatch.setenv(on.VARIABLE, "cpu")
    on.same(one, one.clone())
    with pytest.raises(AssertionError):
        on.same(one, other)
    monkeypatch.setenv(on.VARIABLE, "cuda")
    on.same(one, other)
    with pytest.raises(AssertionError, match="float32"):
        on.same(one, 1.01 * one)
    on.close(1.01 * one, one, "float16")
