"""The commands that show and score a model, run with an oracle instead of a model."""

import functools
import json
import pathlib
from unittest import mock

import numpy as np
import pytest
from absl import app, flags

import interaction
from experiments import converse, evaluate, make_recording
from interaction.background.scripted import ScriptedAgent
from interaction.data import clips
from interaction.data.audio_file import read_audio, write_audio
from interaction.data.domain import answer_words
from interaction.data.held_out import deal_form, make_held_out_session
from interaction.data.scenarios import SCENARIOS
from interaction.data.sessions import QUIET, make_session
from interaction.data.tokenizer import load_tokenizer
from interaction.engine.replay import replay
from interaction.evaluation import parse_events, timeline
from interaction.evaluation.recognizer import (
    Clip,
    Recognizer,
    compare,
    flat_arpa,
    homophones,
    talk_accuracy,
)
from interaction.evaluation.rollout import rollout
from interaction.evaluation.run import choose_clips, evaluate as evaluate_model
from interaction.evaluation.talk import talk
from interaction.evaluation.transcript import (
    converse as make_conversation,
    transcript,
    words_over_time,
)
from interaction.types import Chunk, Reply, Special
from tests.evaluation import fakes
from tests.evaluation.oracles import Clock, LiveOracle, Oracle, as_foreseen, scripted


@pytest.fixture(scope="module")
def recording() -> tuple[np.ndarray, dict]:
    return read_audio(converse.ASSET), json.loads(converse.ASSET.with_suffix(".json").read_text())


def test_oracle_is_perfect_on_real_sessions() -> None:
    records = [
        make_session((99, i), "heldout", scenario)
        for i, scenario in enumerate((*SCENARIOS, *QUIET))
    ]
    count = len(records)
    found = evaluate_model(Oracle(records), records.__getitem__, count, seed=0, batch=count)
    figures = found.figures
    for key in fakes.ONE:
        assert figures[key] == 1, key
    for key in fakes.ZERO:
        assert figures[key] == 0, key
    assert figures["transcript_word_accuracy"] == 0  # the oracle transcribes nothing
    assert (
        len(found.clips)
        == figures["counts"]["answer_exact"] + (figures["counts"]["interruption_answer_exact"])
    )
    for clip in found.clips:
        assert abs(len(clip.generated) - len(clip.original)) < 0.5 * 16_000


def test_an_answer_after_a_backchannel_is_complete_only_with_its_last_words() -> None:
    """The last micro-turn of an answer is partly silent, and this silence is not required."""
    records = [make_session((7, i), "heldout", "backchannel") for i in range(16)]

    def keeps(records: list[dict]) -> float:
        oracle = Oracle(records)
        figures = evaluate_model(oracle, records.__getitem__, 16, seed=0, batch=16).figures
        assert figures["counts"]["backchannel_keep_rate"] >= 25
        return figures["backchannel_keep_rate"]

    def cut(record: dict) -> dict:
        """Drops the last two words of each answer with a backchannel."""
        model, text = record["model"].copy(), record["text"].copy()
        events = parse_events(record["meta"])
        for event in (e for e in events if e.kind == "backchannel"):
            for asked in events:
                if asked.wants_answer and asked.answer_start_s < event.start_s < asked.answer_end_s:
                    span = np.arange(asked.answer_turn, asked.answer_end_turn)
                    said = span[record["text"][span] >= Special.COUNT]
                    last = max(said[-2], int(event.end_s / 0.2))
                    model[last * 3_200 : asked.answer_end_turn * 3_200] = 0
                    text[last : asked.answer_end_turn] = Special.SILENT
        return {**record, "model": model, "text": text}

    assert keeps(records) == 1
    assert keeps([cut(record) for record in records]) == 0


def test_batches_do_not_change_the_figures() -> None:
    made = fakes.sessions()
    records = [
        {
            "user": session.user,
            "model": session.model,
            "text": session.text,
            "user_transcript": np.full((80, 2), Special.NONE),
            "meta": json.dumps({"events": [vars(event) for event in session.events]}),
        }
        for session in made
    ]

    class Echo(fakes.FakeModel):
        """Replies with its input, so that rows may have any order."""

        def step(self, state: int, chunk: Chunk) -> tuple[int, Reply]:
            rows = len(chunk.audio)
            token = np.where(np.abs(chunk.audio).max(1) > 0.1, Special.COUNT, Special.SILENT)
            user_transcript = np.full((rows, 2), Special.NONE)
            return state + 1, Reply(chunk.audio, token, user_transcript, np.zeros(rows, bool))

    model = Echo(np.zeros(0), np.zeros(0))
    first, second = (
        evaluate_model(model, records.__getitem__, 4, seed=0, batch=batch).figures
        for batch in (4, 3)
    )
    assert first == second and first["early_response_rate"] == 1


def test_the_bundled_recording_is_what_the_command_makes(recording: tuple) -> None:
    pcm, meta = recording
    again, wanted = make_recording.compose()
    words = [[(e["kind"], e["form"], e["text"]) for e in m["events"]] for m in (meta, wanted)]
    assert words[0] == words[1]  # times depend on the engine's version
    assert abs(len(pcm) - len(again)) < 2 * 16_000
    assert np.abs(pcm).max() < 0.95
    kinds = {event.kind for event in parse_events(json.dumps(meta))}
    assert {"pause_request", "backchannel", "interrupt_request", "interrupt_stop"} <= kinds
    assert {"request", "background", "silence"} <= kinds
    assert {"tool_request", "tool_request_cancel", "tool_request_update"} <= kinds
    assert 50 < len(pcm) / 16_000 < 65 and converse.ASSET.stat().st_size < 1.5e6


def test_converse_writes_sound_and_picture(
    recording: tuple,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    pcm, meta = recording
    oracle = Oracle([scripted(meta, len(pcm) // 3_200 + 10)])
    monkeypatch.setattr(interaction, "load", lambda name: oracle, raising=False)
    monkeypatch.setattr(converse, "find_background", lambda name: None)
    converse.run(str(converse.ASSET), "demo", str(tmp_path), 0)
    printed = capsys.readouterr().out
    assert "answered after" in printed and "stopped within" in printed
    both = read_audio(tmp_path / "conversation.wav")
    assert len(both) >= len(pcm)
    assert (tmp_path / "timeline.png").stat().st_size > 50_000


def test_converse_with_a_background_model(
    recording: tuple,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    pcm, meta = recording
    live, clock = LiveOracle({0: scripted(meta, len(pcm) // 3_200 + 15)}), Clock()
    script = as_foreseen(meta)
    monkeypatch.setattr(interaction, "load", lambda name: live, raising=False)
    monkeypatch.setattr(converse, "agent_maker", lambda name: lambda toolbox: ScriptedAgent(script))
    quick = functools.partial(talk, clock=clock, sleep=clock.sleep)
    monkeypatch.setattr(converse, "talk", quick)
    for _ in range(2):  # the second run overwrites the files of the first
        converse.run(str(converse.ASSET), "demo", str(tmp_path), 0, background="any")
    printed = capsys.readouterr().out
    assert "talking in real time: 63 s" in printed and "lookup 4 s" in printed
    assert "lookup( pepper, price) → 58, said after" in printed
    assert "corrected: the pepper" in printed and "cancelled after 2" in printed
    assert (tmp_path / "timeline.png").stat().st_size > 50_000
    assert replay(tmp_path / "conversation.session", live).equal


def test_converse_without_annotation_measures_by_energy(recording: tuple) -> None:
    pcm, meta = recording
    replies = rollout(Oracle([scripted(meta, len(pcm) // 3_200)]), [pcm], [0])[0]
    decode = load_tokenizer().decode
    conversation = make_conversation(pcm, replies, decode)
    marks = [mark for mark in conversation.marks if mark.kind == "response"]
    *answers, result = sorted(mark.end_s - mark.start_s for mark in marks)
    assert len(answers) == 12 and 0.2 < answers[0] < answers[-1] < 0.5
    assert 2 < result < 3  # said after an answer; energy alone takes it for one
    assert "tokyo  [answered after" in transcript(conversation.rows)
    timeline.draw(conversation)


@pytest.mark.parametrize("name", ["missing.wav", "empty.wav", "text.wav"])
def test_converse_refuses_bad_input_in_one_line(tmp_path: pathlib.Path, name: str) -> None:
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "text.wav").write_text("hello")
    with pytest.raises(ValueError, match=name):
        converse.run(str(tmp_path / name), "demo", str(tmp_path), 0)
    write_audio(tmp_path / "good.wav", np.zeros(16_000))
    with pytest.raises(ValueError, match="no such file"):
        converse.read_events(tmp_path / "good.wav", str(tmp_path / "none.json"))
    assert converse.read_events(tmp_path / "good.wav", None) == []


def test_evaluate_prints_and_fills_every_key(capsys: pytest.CaptureFixture) -> None:
    records = {i: make_session((5, i), "heldout") for i in range(2)}
    figures = evaluate.run(Oracle(list(records.values())), 2, 5, 2, 2, "heldout")
    evaluate.show(figures)
    printed = capsys.readouterr().out
    for key in (*evaluate.summary.TARGETS, "asr_word_accuracy_generated"):
        assert key in figures and key in printed
    json.dumps(figures)


def test_evaluate_of_held_out_requests_shows_every_form(capsys: pytest.CaptureFixture) -> None:
    records = [make_held_out_session(5, i) for i in range(6)]
    figures = evaluate.run(Oracle(records), 6, 5, 6, 0, "heldout", held_out_only=True)
    evaluate.show(figures, held_out_only=True)
    printed = capsys.readouterr().out
    assert figures["answer_exact"] == 1 and figures["counts"]["answer_exact"] == 6
    combinations = figures["breakdown"]["answer_exact_by_combination"]
    assert set(combinations) == {"held_out_combination"}
    families = {deal_form(5, i).intent.name for i in range(6)}
    assert set(figures["breakdown"]["answer_exact_by_form"]) == families
    for name in families:
        assert f"answer_exact, {name} " in printed
    assert "answer_exact_by_form" not in printed and "stop_by_kind" not in printed


def parsed(*given: str) -> flags.FlagValues:
    """The parsed flags of `evaluate`, separate from the flags of the tests."""
    values, real = flags.FlagValues(), flags.FLAGS
    flags.FLAGS = values
    try:
        with mock.patch.multiple(
            flags,
            **{
                name: functools.partial(getattr(flags, name), flag_values=values)
                for name in ("DEFINE_string", "DEFINE_integer", "DEFINE_enum", "DEFINE_bool")
            },
        ):
            evaluate.define_flags()
    finally:
        flags.FLAGS = real
    values(["evaluate", *given])
    return values


def test_flags_of_evaluate_that_do_not_go_together_are_refused() -> None:
    joined = evaluate.joined_sessions
    assert joined(parsed()) == joined(parsed("--held_out_only")) == 1
    assert joined(parsed("--suite=continuous")) == evaluate.JOINED
    assert joined(parsed("--suite=delegation")) == 1
    assert joined(parsed("--suite=delegation", "--joined=6")) == 6
    with pytest.raises(app.UsageError, match="--sessions: got 300, wanted a multiple of"):
        joined(parsed("--suite=continuous", "--joined=7"))
    with pytest.raises(app.UsageError, match="--joined: got 4 with --suite=conversation"):
        joined(parsed("--joined=4"))
    with pytest.raises(app.UsageError, match="--held_out_only: got it with --suite=delegation"):
        joined(parsed("--held_out_only", "--suite=delegation"))
    with pytest.raises(app.UsageError, match=r"--held_out_only: .* --split=train"):
        joined(parsed("--held_out_only", "--split=train"))
    with pytest.raises(app.UsageError, match="--split: got train"):
        joined(parsed("--suite=delegation", "--split=train"))


def test_words_over_time_joins_the_pieces_of_a_word() -> None:
    tokenizer = load_tokenizer()
    tokens = tokenizer.encode("five xylophones five five")
    assert len(tokens) > 4
    words = words_over_time(tokens, np.arange(len(tokens)), tokenizer.decode)
    assert [word.text for word in words] == ["five", "xylophones", "five", "five"]
    assert words[0].time_s == 0 and words[1].time_s == 1
    stopped = [tokens[0], Special.HOLD, Special.SILENT, tokens[0]]
    assert len(words_over_time(stopped, range(4), tokenizer.decode)) == 2


def test_recognizer_knows_speech_from_noise() -> None:
    words = [
        "one two three four five",
        "monday tuesday wednesday",
        "goodbye",
        "purple tiger window",
    ]
    said = [clips.assistant_clip(text).pcm for text in words]
    noise = [np.random.default_rng(0).normal(0, 0.05, len(pcm)).astype(np.float32) for pcm in said]
    same = compare([Clip(t, p, p) for t, p in zip(words, said, strict=True)], answer_words())
    wrong = compare(
        [Clip(t, n, p) for t, n, p in zip(words, noise, said, strict=True)], answer_words()
    )
    assert same["asr_word_accuracy_ratio"] == 1 and same["asr_word_accuracy_original"] > 0.6
    assert wrong["asr_word_accuracy_ratio"] < 0.2


def test_all_utterances_of_a_talk_are_recognised() -> None:
    said = [clips.assistant_clip(text).pcm for text in ("purple tiger window", "monday tuesday")]
    words = ["purple", "tiger", "window", "monday", "tuesday", "goodbye"]
    pause = np.zeros(16_000, np.float32)
    whole = np.concatenate([pause, said[0], pause, said[1], pause])
    assert talk_accuracy("purple tiger window monday tuesday", whole, words) == 1
    assert talk_accuracy("purple goodbye window monday tuesday", whole, words) == 0.8
    half = np.concatenate([pause, said[1]])
    assert talk_accuracy("purple tiger window monday tuesday", half, words) == 0.4
    assert talk_accuracy("", pause, words) is None


def test_recognizer_leaves_out_words_without_a_pronunciation() -> None:
    recognizer = Recognizer(["one", "qzxv"])
    assert recognizer.missing == {"qzxv"} and not recognizer.knows("one qzxv")
    with pytest.raises(ValueError, match="vocabulary"):
        Recognizer(["qzxv"])
    found = compare([Clip("qzxv", np.zeros(99), np.zeros(99))], ["one", "qzxv"])
    assert found["unknown"] == 1 and found["asr_word_accuracy_ratio"] is None
    assert "ngram 1=4" in flat_arpa(["one", "two"])


def test_homophones_are_one_word() -> None:
    same = homophones({"two": ["T UW"], "to": ["T UW", "T AH"], "tea": ["T IY"], "ta": ["T AH"]})
    assert same["two"] == same["to"] == same["ta"] != same["tea"]


def test_choose_clips_takes_all_texts_before_it_repeats_one() -> None:
    made = [Clip(text, np.zeros(1), np.zeros(1)) for text in "aabca"]
    assert [clip.text for clip in choose_clips(made, 4)] == ["a", "b", "c", "a"]
