"""What an adapter file says of itself."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from longreel.film.motion import AdapterInfo, FlowCodec, FlowGate, GateLevel, MotionError

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12)
NUMBER = st.floats(0.001, 100)
LEVEL = st.builds(GateLevel, st.floats(0, 1), NUMBER, NUMBER, st.floats(0, 180))
INFO = st.builds(
    AdapterInfo,
    base_model=TEXT,
    latent_channels=st.integers(1, 64),
    dim=st.integers(1, 8192),
    patch=st.tuples(*[st.integers(1, 4)] * 3),
    head=st.sampled_from(["single", "separate"]),
    full=st.booleans(),
    codec=st.builds(FlowCodec, st.sampled_from(["hsv_black", "wheel_white"]), NUMBER),
    flow_fps=NUMBER,
    motion_latent_scale=NUMBER,
    recommended_w2=NUMBER,
    recommended_window=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    gate=st.builds(FlowGate, st.lists(LEVEL, max_size=4).map(tuple)),
    license=TEXT,
    training=st.dictionaries(st.sampled_from(["steps", "lr", "lora_rank"]), TEXT),
)


@given(INFO)
def test_metadata_round_trip(info):
    said = info.to_metadata()
    assert all(isinstance(value, str) and key.startswith("videojam.") for key, value in said.items())
    assert AdapterInfo.from_metadata(said | {"other": "x"}) == info


def test_refusals():
    said = AdapterInfo("wan", 16, 64).to_metadata()
    with pytest.raises(MotionError, match="no motion adapter"):
        AdapterInfo.from_metadata({"ss_network_dim": "4"})
    with pytest.raises(MotionError, match="update Longreel"):
        AdapterInfo.from_metadata(said | {"videojam.format": "2"})
    with pytest.raises(MotionError, match="cannot be read"):
        AdapterInfo.from_metadata({key: value for key, value in said.items() if "dim" not in key})
    with pytest.raises(MotionError, match="flow gate"):
        AdapterInfo.from_metadata(said | {"videojam.flow_gate": "[{}]"})
    with pytest.raises(MotionError, match="encoding"):
        AdapterInfo.from_metadata(said | {"videojam.flow_encoding": "rgb"})


def test_the_gate_lowers_guidance_where_the_prediction_is_worse_than_none():
    gate = FlowGate((GateLevel(0.5, 1.0, 4.0, 10.0), GateLevel(0.9, 5.0, 4.0, 80.0)))
    assert gate.weight(0.2) == gate.weight(0.5) == 1.0
    assert gate.weight(0.7) == pytest.approx(0.5)
    assert gate.weight(0.9) == gate.weight(1.0) == 0.0
    assert "0.90" in gate.warning()
    assert FlowGate((GateLevel(0.5, 3.6, 4.0, 10.0),)).weight(0.5) == pytest.approx(0.5)


def test_a_gate_that_knows_nothing_lets_everything_through():
    assert FlowGate().weight(0.9) == 1.0
    assert FlowGate().warning() is None
