"""Formats of audio: G.711 against Python's own, and streams in pieces of any length."""

import audioop  # of Python up to 3.12
from collections.abc import Callable

import numpy as np
import pytest

from interaction.serve.audio_formats import A_LAW, MU_LAW, PCM, Decoder, Encoder, Format

LAWS = {
    MU_LAW: (audioop.lin2ulaw, audioop.ulaw2lin),
    A_LAW: (audioop.lin2alaw, audioop.alaw2lin),
}
Law = tuple[Callable[[bytes, int], bytes], Callable[[bytes, int], bytes]]


@pytest.mark.parametrize("kind", LAWS)
def test_every_code_has_the_sample_of_g711(kind: str) -> None:
    codes = bytes(range(256))
    wanted = np.frombuffer(LAWS[kind][1](codes, 2), "<i2") / np.float32(32_768)
    chunks = Decoder(Format(kind, 16_000), 256, 16_000).feed(codes)
    np.testing.assert_array_equal(chunks[0], wanted)


@pytest.mark.parametrize("kind", LAWS)
def test_every_sample_gets_the_nearest_code(kind: str) -> None:
    pcm = np.arange(-32_768, 32_768, dtype=np.int32)
    got = Encoder(Format(kind, 16_000), 16_000).feed(pcm.astype(np.float32) / 32_768)
    samples = np.frombuffer(LAWS[kind][1](bytes(range(256)), 2), "<i2").astype(np.int32)
    error = np.abs(samples[np.frombuffer(got, np.uint8)] - pcm)
    wanted = np.min(np.abs(samples[None] - pcm[::7, None]), axis=1)
    np.testing.assert_array_equal(error[::7], wanted)


def test_pcm_of_16_bits_is_exact_in_pieces_of_any_length() -> None:
    rng = np.random.default_rng(0)
    pcm = rng.integers(-32_768, 32_768, 10_000).astype("<i2")
    decoder, chunks, at = Decoder(Format(PCM, 16_000), 3_200, 16_000, silence=100), [], 0
    while at < len(pcm):
        size = int(rng.integers(0, 2_000))
        chunks += decoder.feed(pcm[at : at + size].tobytes())
        at += size
    whole = np.concatenate(chunks)
    assert len(whole) == 3 * 3_200 and not np.any(whole[:100])
    np.testing.assert_array_equal(whole[100:] * 32_768, pcm[: len(whole) - 100])
    encoder = Encoder(Format(PCM, 16_000), 16_000)
    assert encoder.feed(whole[100:]) == pcm[: len(whole) - 100].tobytes()


def test_half_a_sample_is_refused_and_nothing_is_taken() -> None:
    decoder = Decoder(Format(PCM, 16_000), 4, 16_000)
    assert not decoder.feed(b"\1\0\2\0")
    with pytest.raises(ValueError, match="got 3 bytes, wanted whole samples"):
        decoder.feed(b"\1\0\2")
    np.testing.assert_array_equal(decoder.feed(b"\3\0\4\0")[0] * 32_768, [1, 2, 3, 4])


@pytest.mark.parametrize("rate", [8_000, 24_000])
def test_another_rate_keeps_a_tone_and_is_late_by_little(rate: int) -> None:
    time = np.arange(2 * rate) / rate
    tone = np.round(16_000 * np.sin(2 * np.pi * 300 * time)).astype("<i2").tobytes()
    decoder = Decoder(Format(PCM, rate), 3_200, 16_000)
    parts = [decoder.feed(tone[at : at + 640]) for at in range(0, len(tone), 640)]
    whole = np.concatenate([chunk for some in parts for chunk in some])
    assert len(whole) >= 2 * 16_000 - 2 * 3_200
    power = np.abs(np.fft.rfft(whole[-16_000:])) ** 2
    assert power[298:303].sum() > 0.999 * power.sum()
    assert abs(np.abs(whole[-8_000:]).max() - 16_000 / 32_768) < 0.01
    encoder = Encoder(Format(PCM, rate), 16_000)
    back = b"".join(encoder.feed(chunk) for some in parts for chunk in some)
    assert len(whole) * rate // 16_000 - len(back) // 2 <= 0.05 * rate
