"""Merging the configurations of separately trained parts."""

import dataclasses

import pytest

from experiments.export import chosen_parts, merge
from interaction import presets
from interaction.config import ModelConfig

CONFIG = presets.tiny()
FINER = dataclasses.replace(CONFIG.audio, bins=20)


def test_each_part_comes_from_its_run() -> None:
    speech = dataclasses.replace(CONFIG.speech, flow_steps=7)
    vocoder = dataclasses.replace(CONFIG.vocoder, kernel=3)
    got = merge(
        CONFIG,
        dataclasses.replace(CONFIG, speech=speech),
        dataclasses.replace(CONFIG, vocoder=vocoder),
    )
    assert got == dataclasses.replace(CONFIG, speech=speech, vocoder=vocoder)


@pytest.mark.parametrize(
    ("speech", "vocoder", "match"),
    [
        ({"audio": FINER}, {}, r"audio: got .* in --speech"),
        ({}, {"audio": FINER}, r"audio: got .* in --vocoder"),
        ({"vocab": 900}, {}, r"vocab: got 900 in --speech, wanted 1024"),
        (
            {"speech": dataclasses.replace(CONFIG.speech, mel_floor=-6.0)},
            {},
            r"mel_floor: got -6.0 in --speech",
        ),
        (
            {"transformer": dataclasses.replace(CONFIG.transformer, dim=64)},
            {},
            r"transformer\.dim: got 64 in --speech",
        ),
    ],
)
def test_parts_that_were_not_trained_for_each_other_are_named(
    speech: dict, vocoder: dict, match: str
) -> None:
    def other(changes: dict) -> ModelConfig:
        return dataclasses.replace(CONFIG, **changes)

    with pytest.raises(ValueError, match=match):
        merge(CONFIG, other(speech), other(vocoder))


def test_a_live_model_or_a_background_model_is_exported() -> None:
    live = dict.fromkeys(("conversation", "speech", "vocoder"), "runs/some")
    assert chosen_parts({**live, "background": None})["speech"] == ("speech",)
    alone = chosen_parts({**dict.fromkeys(live), "background": "runs/other"})
    assert alone == {"background": ("backbone", "router_bias")}
    for given in ({**live, "background": "runs/other"}, {**live, "speech": None}, {}):
        with pytest.raises(ValueError, match="flags: got"):
            chosen_parts(given)
