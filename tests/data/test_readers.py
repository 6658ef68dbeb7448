"""Readers of foreign recordings, on small files that are written here by hand."""

import gzip
import json
import math
import pathlib
import re
from typing import Any

import numpy as np
import pytest
import soundfile

from interaction.data import records
from interaction.data.conversation_data import Conversation, TextEvent, Word
from interaction.data.readers.arrayrecord_sessions import read_arrayrecord
from interaction.data.readers.lhotse_cuts import read_lhotse
from interaction.data.readers.moshi_folder import read_moshi, write_moshi
from interaction.data.stored_conversation import to_stored
from interaction.data.tokenizer import load_tokenizer

RNG = np.random.default_rng(1)
LEFT = RNG.integers(-9_000, 9_000, 16_000).astype(np.int16)
RIGHT = RNG.integers(-9_000, 9_000, 16_000).astype(np.int16)
TALK = Conversation(LEFT, RIGHT, (Word("six", 0.1, 0.4),), (Word("five", 0.5, 0.75),))


def _moshi(folder: pathlib.Path, alignments: Any, **line: Any) -> pathlib.Path:  # noqa: ANN401
    soundfile.write(folder / "a.wav", np.stack([LEFT, RIGHT], axis=1), 16_000)
    (folder / "a.json").write_text(json.dumps({"alignments": alignments}))
    listed = folder / "list.jsonl"
    fields = {"path": "a.wav", "duration": 1.0} | line
    listed.write_text("\n" + json.dumps(fields) + "\n")
    return listed


ALIGNED = [
    ["hello", [0.3, 0.5], "SPEAKER_MAIN"],
    ["hi", [0.1, 0.2], "SPEAKER_01"],
    [" you ", [0.6, 1.05], "SPEAKER_MAIN"],  # aligners round
]


def test_moshi_folder(tmp_path: pathlib.Path) -> None:
    (one,) = read_moshi(_moshi(tmp_path, ALIGNED))
    np.testing.assert_array_equal(one.model, LEFT)
    np.testing.assert_array_equal(one.user, RIGHT)
    assert one.model_words == (Word("hello", 0.3, 0.5), Word("you", 0.6, 1.0))
    assert one.user_words == (Word("hi", 0.1, 0.2),)
    (other,) = read_moshi(_moshi(tmp_path, ALIGNED[:1]), model_channel=1)
    np.testing.assert_array_equal(other.model, RIGHT)
    np.testing.assert_array_equal(other.user, LEFT)
    assert other.user_words is None, "the main speaker alone was transcribed"


def test_other_rates_are_converted_once(tmp_path: pathlib.Path) -> None:
    path = _moshi(tmp_path, [])
    wave = np.sin(2 * np.pi * 440 * np.arange(24_000) / 24_000)
    soundfile.write(tmp_path / "a.wav", np.stack([wave, 0 * wave], axis=1) / 2, 24_000)
    (one,) = read_moshi(path)
    wanted = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000) / 2 * 32_768
    assert one.model.shape == (16_000,) and not one.user.any()
    # Away from the edges, where the filter has no past; measured: 1.2 of 32,768.
    assert np.abs(one.model - wanted)[400:-400].max() < 3


@pytest.mark.parametrize(
    ("alignments", "line", "message"),
    [
        ([], {"path": 3}, "list.jsonl: line 2: path: got 3, wanted str"),
        ([], {"path": "b.wav"}, "list.jsonl: line 2: input "),
        ([], {"path": "b.wav"}, "b.wav: got no such file"),
        ([], {"duration": float("nan")}, "line 2: duration: got nan, wanted float"),
        ([], {"duration": 2}, "list.jsonl: line 2: duration: got 2 s, wanted 1.000 s as recorded"),
        ([], {"duration": "1"}, "list.jsonl: line 2: duration: got '1', wanted float"),
        ([["a", 0.1, "X"]], {}, "a.json: alignments[0]: got ['a', 0.1, 'X'], wanted [word, [start"),
        ([["a", [0.9, 1.3], "X"]], {}, "a.wav: user_words[0] 'a': got 0.9..1.3 s, wanted"),
        (
            [["a b", [0, 1], "SPEAKER_MAIN"]],
            {},
            "a.wav: model_words[0]: got 'a b', wanted one word",
        ),
        ({}, {}, "a.json: alignments: got {}, wanted list"),
    ],
)
def test_moshi_folders_that_are_refused(
    tmp_path: pathlib.Path,
    alignments: Any,  # noqa: ANN401
    line: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        list(read_moshi(_moshi(tmp_path, alignments, **line)))


def test_moshi_files_that_are_refused(tmp_path: pathlib.Path) -> None:
    path = _moshi(tmp_path, [])
    with pytest.raises(ValueError, match=r"model_channel: got 2, wanted 0 \(left\) or 1"):
        next(read_moshi(path, model_channel=2))
    (tmp_path / "a.json").unlink()
    with pytest.raises(ValueError, match=r"a.json: file: got .*No such file.*align the recording"):
        next(read_moshi(path))
    soundfile.write(tmp_path / "a.wav", LEFT, 16_000)
    with pytest.raises(ValueError, match=r"list.jsonl: line 2: .*a.wav: got 1 channels, wanted 2"):
        next(read_moshi(path))
    path.write_text('{"path": \n')
    with pytest.raises(ValueError, match=r"list.jsonl: line 1: JSON: got Expecting value"):
        next(read_moshi(path))
    path.write_text("[1]")
    with pytest.raises(ValueError, match=r"list.jsonl: line 1: JSON: got list, wanted an object"):
        next(read_moshi(path))
    with pytest.raises(ValueError, match=r"none.jsonl: after line 0: file: got .*No such file"):
        next(read_moshi(tmp_path / "none.jsonl"))


@pytest.mark.parametrize("model_channel", [0, 1])
def test_moshi_round_trip(tmp_path: pathlib.Path, model_channel: int) -> None:
    unknown = TALK._replace(user_words=None)
    path = write_moshi(tmp_path / "new", [TALK, unknown], model_channel)
    got = list(read_moshi(path, model_channel))
    for one, wanted in zip(got, [TALK, unknown], strict=True):
        np.testing.assert_array_equal(one.user, wanted.user)
        np.testing.assert_array_equal(one.model, wanted.model)
        assert (one.user_words, one.model_words) == (wanted.user_words, wanted.model_words)


def test_what_moshi_has_no_place_for_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="conversation 1: model_words: got None"):
        write_moshi(tmp_path, [TALK, TALK._replace(model_words=None)])
    with pytest.raises(ValueError, match="conversation 0: user_unknown: got 1 spans, wanted none"):
        write_moshi(tmp_path, [TALK._replace(user_unknown=((0.5, 0.6),))])


def _cut(**change: Any) -> dict[str, Any]:  # noqa: ANN401
    """A cut from 0.25 to 0.75 s; its recording is LEFT, and RIGHT is the agent's."""

    def recording(name: str) -> dict[str, Any]:
        source = {"type": "file", "channels": [0], "source": f"{name}.wav"}
        return {
            **{"id": name, "sources": [source], "sampling_rate": 16_000},
            **{"num_samples": 16_000, "duration": 1.0},
        }

    user = {"id": "u", "start": 0.0, "duration": 0.3, "text": "hi you", "speaker": "user"}
    user["alignment"] = {"word": [["hi", 0.05, 0.1, 0.9], ["you", 0.2, 0.1]]}
    agent = {"id": "a", "start": 0.3, "duration": 0.4, "text": "hello", "speaker": "agent"}
    agent["alignment"] = {"word": [["hello", 0.3, 0.4, None]]}  # goes on after the cut
    return {
        **{"id": "c1", "start": 0.25, "duration": 0.5, "channel": 0, "type": "MonoCut"},
        **{"recording": recording("left"), "supervisions": [user, agent]},
        "custom": {"target_audio": recording("right")},
        **change,
    }


def _cuts(folder: pathlib.Path, *cuts: dict[str, Any], name: str = "cuts.jsonl") -> pathlib.Path:
    soundfile.write(folder / "left.wav", LEFT, 16_000)
    soundfile.write(folder / "right.wav", RIGHT, 16_000)
    text = "".join(f"{json.dumps(cut)}\n" for cut in cuts)
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


@pytest.mark.parametrize("name", ["cuts.jsonl", "cuts.jsonl.gz"])
def test_lhotse_cuts(tmp_path: pathlib.Path, name: str) -> None:
    (one,) = read_lhotse(_cuts(tmp_path, _cut(), name=name))
    np.testing.assert_array_equal(one.user, LEFT[4_000:12_000])
    np.testing.assert_array_equal(one.model, RIGHT[4_000:12_000])
    assert [word.text for word in one.user_words or ()] == ["hi", "you"]
    times = [word[1:] for word in (*(one.user_words or ()), *(one.model_words or ()))]
    np.testing.assert_allclose(times, [(0.05, 0.15), (0.2, 0.3), (0.3, 0.5)])
    assert one.user_unknown == ()
    said = one.meta["supervisions"][0]
    assert said == {"id": "u", "start": 0.0, "duration": 0.3, "text": "hi you", "speaker": "user"}


def test_lhotse_cuts_without_times_of_words_are_unknown(tmp_path: pathlib.Path) -> None:
    user, agent = _cut()["supervisions"]
    bare = {name: value for name, value in user.items() if name != "alignment"}
    more = bare | {"start": 0.25, "duration": 0.1, "alignment": {"word": []}}  # it failed
    late = user | {"start": 0.9, "alignment": {"word": [["late", 0.9, 0.1]]}}
    unaligned = {name: value for name, value in agent.items() if name != "alignment"}
    silent = agent | {"text": "", "alignment": None}
    cuts = [
        _cut(supervisions=[more, bare, agent]),
        _cut(supervisions=[agent]),
        _cut(supervisions=[user, unaligned, late]),
        _cut(supervisions=[silent]),
        _cut(supervisions=[user]),
    ]
    first, second, third, fourth, fifth = read_lhotse(_cuts(tmp_path, *cuts))
    assert first.user_words == () and first.user_unknown == ((0.0, 0.35),)
    assert second.user_words is None and second.user_unknown == ()
    assert third.model_words is None and len(third.user_words or ()) == 2
    assert fourth.model_words == ()
    assert fifth.model_words is None and len(fifth.user_words or ()) == 2


def test_lhotse_silence_is_no_word(tmp_path: pathlib.Path) -> None:
    user, agent = _cut()["supervisions"]
    user["alignment"]["word"].insert(1, ["", 0.15, 0.05])
    (one,) = read_lhotse(_cuts(tmp_path, _cut(supervisions=[user, agent])))
    assert [word.text for word in one.user_words or ()] == ["hi", "you"]


def test_lhotse_channels(tmp_path: pathlib.Path) -> None:
    """Both sides as channels of one file at another place."""
    soundfile.write(tmp_path / "both.wav", np.stack([LEFT, RIGHT], axis=1), 16_000)
    source = {"type": "file", "channels": [0, 1], "source": "both.wav"}
    both = {"id": "both", "sources": [source]}
    custom = {"target_audio": both, "target_audio_channel_selector": 0}
    (tmp_path / "lists").mkdir()
    cut = _cut(recording=both, channel=[1], custom=custom)
    (one,) = read_lhotse(_cuts(tmp_path / "lists", cut), root=tmp_path)
    np.testing.assert_array_equal(one.user, RIGHT[4_000:12_000])
    np.testing.assert_array_equal(one.model, LEFT[4_000:12_000])


def _source(**change: Any) -> dict[str, Any]:  # noqa: ANN401
    source = {"type": "file", "channels": [0], "source": "left.wav"} | change
    return {"recording": {"id": "left", "sources": [source]}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": None}, "cuts.jsonl: line 2: id: got None, wanted str"),
        ({"start": -1.0}, "line 2: cut c1: start, duration: got 0.5 s from -1 s on, wanted a part"),
        ({"duration": 0}, "line 2: cut c1: start, duration: got 0 s from 0.25 s on, wanted a part"),
        ({"duration": 2.0}, "cut c1: recording: duration: got 1 s, wanted 2.25 s, the end of the"),
        ({"channel": 3}, "cut c1: recording: channel: got 3, wanted one of [0]"),
        ({"channel": [0, 1]}, "cut c1: recording: channel: got [0, 1], wanted one of [0]"),
        ({"start": float("inf")}, "line 2: cut c1: start: got inf, wanted float"),
        ({"custom": [3]}, "cut c1: custom.target_audio: got None, wanted a recording"),
        ({"custom": None}, "cut c1: custom.target_audio: got None, wanted a recording"),
        (_source(type="command"), "recording: sources[0]: got {'type': 'command'"),
        (_source(source="x.wav"), "line 2: cut c1: recording: input "),
        (_source(source=3), "cut c1: recording: sources[0]: source: got 3, wanted str"),
        (_source(source="x.wav"), "x.wav: got no such file"),
        (_source(channels=[0, 1]), "sources[0].channels: got 2 channels, wanted the 1 of the file"),
        ({"recording": 3}, "cut c1: recording: got 3, wanted dict"),
        ({"supervisions": None}, "cut c1: supervisions: got None, wanted list"),
        ({"supervisions": [3]}, "supervisions[0]: supervision: got 3, wanted an object"),
        ({"supervisions": [{"speaker": "B"}]}, "supervisions[0]: speaker: got 'B', wanted 'user'"),
        (
            {"supervisions": [{"speaker": "user", "alignment": {"word": [["a", "0"]]}}]},
            "supervisions[0]: alignment.word[0]: got ['a', '0'], wanted [word, start, duration]",
        ),
        (
            {"supervisions": [{"speaker": "user", "alignment": {"word": [["a", math.nan, 1]]}}]},
            "supervisions[0]: alignment.word[0]: got ['a', nan, 1], wanted [word, start, duration]",
        ),
        (
            {"recording": _cut()["recording"] | {"transforms": [{"name": "Speed"}]}},
            "cut c1: recording: transforms: got [{'name': 'Speed'}], wanted none",
        ),
        (
            {"supervisions": [{"speaker": "user", "alignment": [3]}]},
            "supervisions[0]: alignment, text: got [3] and '', wanted an object and a string",
        ),
        (
            {"supervisions": [{"speaker": "user", "alignment": {"word": 3}}]},
            "supervisions[0]: alignment.word: got 3, wanted a list",
        ),
        (
            {"supervisions": [{"speaker": "user", "alignment": {"word": [["a b", 0, 0.1]]}}]},
            "cut c1: user_words[0]: got 'a b', wanted one word",
        ),
        ({"supervisions": [{"speaker": "user", "text": "a"}]}, "start: got no such field, wanted"),
    ],
)
def test_lhotse_cuts_that_are_refused(
    tmp_path: pathlib.Path, change: dict[str, Any], message: str
) -> None:
    cuts = read_lhotse(_cuts(tmp_path, _cut(), _cut(**change)))
    assert next(cuts).seconds == 0.5, "the first cut is read before the second"
    with pytest.raises(ValueError, match=re.escape(message)):
        next(cuts)


def test_a_compressed_file_that_is_cut_off(tmp_path: pathlib.Path) -> None:
    path = _cuts(tmp_path, _cut(), name="cuts.jsonl.gz")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(
        ValueError, match=r"cuts.jsonl.gz: after line \d: file: got .*copy it again"
    ):
        list(read_lhotse(path))


def test_arrayrecord_round_trip(tmp_path: pathlib.Path) -> None:
    tokenizer = load_tokenizer()
    talk = TALK._replace(events=(TextEvent(0.4, "arrived", "ten"),), meta={"source": "a hand"})
    stored = to_stored(talk, tokenizer)
    assert records.write(tmp_path / "a.arrayrecord", [stored, stored]) == 2
    got = list(read_arrayrecord(tmp_path, tokenizer))
    assert len(got) == 2
    for one in got:
        assert (one.user_words, one.model_words) == (talk.user_words, talk.model_words)
        assert one.events == talk.events and one.meta["source"] == "a hand"
        np.testing.assert_array_equal(one.model[3_200:], talk.model[3_200:])
    meta = json.loads(stored["meta"])
    meta["words"]["version"] = 9
    wrong = stored | {"meta": json.dumps(meta)}
    records.write(tmp_path / "b.arrayrecord", [wrong])
    with pytest.raises(ValueError, match=r"session 0: meta words version: got 9, wanted 1"):
        list(read_arrayrecord(tmp_path / "b.arrayrecord", tokenizer))
