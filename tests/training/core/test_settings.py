"""A field said once: its option, its aliases, its node input, and presets as values."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Literal

import pytest
from longreel.training.core.settings import (
    LoraSettings,
    add_arguments,
    again,
    chosen_settings,
    from_widgets,
    node_inputs,
    setting,
)


@dataclass(frozen=True)
class Own(LoraSettings):
    """Settings of a method."""

    kind: Literal["a", "b"] = setting("a", help="which", choices=("a", "b"), tooltip="Which.")
    rank: int = again(LoraSettings, "rank", 64, tooltip="Its size.")
    lr: float = again(LoraSettings, "lr", 1e-4, tooltip="How fast.")
    layers: str = again(LoraSettings, "layers", ".*", choices={"all": ".*", "some": "q"}, tooltip="Where.")
    window: int = setting(3, help="frames looked back", low=1, high=9, tooltip="How far.", advanced=True)
    inner: float = setting(0.5)


PAPER, SMALL = Own(), Own(rank=4, lr=1e-3, checkpointing=False)


def parse(line: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser, PAPER, SMALL, without=("precision",))
    return parser.parse_args(line.split())


def test_options_change_a_preset_and_old_names_still_do():
    assert chosen_settings(parse(""), PAPER) == PAPER
    assert chosen_settings(parse(""), SMALL) == SMALL
    line = "--rank 8 --kind b --window 5 --betas 0.8 0.95 --no-checkpointing --layers q"
    changed = chosen_settings(parse(line), PAPER)
    assert (changed.rank, changed.kind, changed.window, changed.layers) == (8, "b", 5, "q")
    assert changed.betas == (0.8, 0.95)
    assert not changed.checkpointing
    for old, new, value in (("rate", "lr", "0.5"), ("at-once", "micro-batch", "2"), ("clip", "max-grad-norm", "9.0"),
                            ("muon-rate", "muon-lr", "0.1")):  # fmt: skip
        assert parse(f"--{old} {value}") == parse(f"--{new} {value}")
    assert chosen_settings(parse("--rate 0"), PAPER).lr == 0, "nothing is not left out"
    for line in ("--inner 1", "--precision bf16", "--kind c"):
        with pytest.raises(SystemExit):
            parse(line)


def test_help_says_the_defaults_of_both_presets():
    parser = argparse.ArgumentParser()
    add_arguments(parser, PAPER, SMALL)
    told = " ".join(parser.format_help().split())
    assert "size of the LoRA; alpha is the same: default 64, miniature 4" in told
    assert told.endswith("frames looked back: default 3")


def test_inputs_of_a_node_are_the_fields_and_their_values_come_back():
    made = node_inputs(PAPER, "lr", "rank", "layers", "window", "kind", "checkpointing")
    assert [one.id for one in made] == ["rate", "rank", "layers", "window", "kind", "checkpointing"]
    rate, rank, layers, window, *_ = made
    assert (rate.default, rate.min, rate.max, rate.step, rate.tooltip) == (1e-4, 1e-7, 1.0, 1e-7, "How fast.")
    assert (rank.default, rank.max, rank.tooltip) == (64, 512, "Its size.")
    assert (layers.options, layers.default) == (["all", "some"], "all")
    assert window.advanced
    values = {"rate": 0.5, "rank": 8, "layers": "some", "window": 1, "kind": "b", "checkpointing": False, "x": 1}
    found = from_widgets(PAPER, values)
    assert found == Own(lr=0.5, rank=8, layers="q", window=1, kind="b", checkpointing=False)


def test_a_schedule_and_a_record_say_what_the_settings_do():
    schedule = Own(steps=9, betas=(0.5, 0.6), ema_decay=0.1).schedule()
    assert (schedule.steps, schedule.lr, schedule.betas, schedule.ema_decay) == (9, 1e-4, (0.5, 0.6), 0.1)
    assert Own(rank=7).recorded()["alpha"] == 7.0
    assert Own(rank=7, alpha=3.0).recorded()["alpha"] == 3.0
