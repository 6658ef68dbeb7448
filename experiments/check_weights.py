r"""Compares our decoder with the reference of the Inkling models, transformers' own class.

python -m experiments.check_weights --json=out/check_weights.json

The reference is tiny and random, saved as a checkpoint of the released form, and read by
`pretrained.inkling`. Figures are the largest difference of text logits over the largest logit.
Needs the `parity` extra.
"""

import dataclasses
import json
import tempfile
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import torch
from absl import app, flags
from flax import traverse_util

from experiments import round_trip
from experiments.baselines import inkling_reference as reference, inkling_session
from experiments.figures_file import write_figures
from interaction.distributed.sharding import cast_params
from interaction.model import positions, transformer
from interaction.model.decoder import init_memory, run_decoder
from interaction.model.heads import apply_heads
from interaction.model.positions import Positions, take_positions
from interaction.model.sequence import forward
from interaction.model.transformer import run_cached
from interaction.model.turn_inputs import TurnInputs
from interaction.modules.audio_in import AudioIn
from interaction.modules.memory import Memory
from interaction.modules.router_stats import BlockAux
from interaction.modules.text import Heads, embed_tokens
from interaction.modules.video_in import VideoIn
from interaction.presets import tiny
from interaction.pretrained.backbone_folder import new_parts
from interaction.pretrained.inkling import VISION_WIDTHS, open_released
from interaction.pretrained.inkling_config import MELS, BackboneConfig, read_config
from interaction.pretrained.tree_paths import flatten
from interaction.types import Array, Params, Special

T, SPAN = 160, 16
CHUNKS = (1, 3, 5, 16)


class Ours:
    """The decoder with the weights of a reference; tokens are the reference's ids."""

    def __init__(self, model: reference.Model, dtype: str = "float32") -> None:
        """Saves the reference and reads it."""
        with tempfile.TemporaryDirectory() as place:
            folder = reference.save(model, place)
            config = read_config(folder)
            flat = flatten(open_released(folder, config)) | new_parts(config)
            params = traverse_util.unflatten_dict(
                {name: jnp.asarray(leaf) for name, leaf in flat.items()}, sep="/"
            )
        decoder = dataclasses.replace(config.decoder, dtype=dtype)
        self.config: BackboneConfig = dataclasses.replace(config, decoder=decoder)
        audio = dataclasses.replace(tiny().audio, bins=config.levels)
        self.model = dataclasses.replace(
            tiny(),
            audio=audio,
            transformer=decoder,
            vocab=config.vocab,
            vision_widths=VISION_WIDTHS,
        )
        self.backbone, self.bias = cast_params(params["backbone"], dtype), params["router_bias"]

    def embed(
        self, ids: np.ndarray, patches: np.ndarray | None = None, bins: np.ndarray | None = None
    ) -> Array:
        """Embeds sequences float[b, t, d].

        Args:
          ids: int[b, t]; placeholders where patches or dMel frames are.
          patches: float32[n, 2, 40, 40, 3] in [0, 1], those of all sequences in order.
          bins: int[4 * m, mels], dMel frames of all sequences in order.
        """
        parts = self.backbone
        tokens = jnp.asarray((ids + Special.COUNT) % self.config.vocab)
        x = embed_tokens(parts["text_in"], tokens)
        if patches is not None:
            rows = VideoIn(self.model).apply({"params": parts["video_in"]}, patches)
            x = x.at[np.nonzero(ids == reference.IMAGE)].set(rows[:, 0])
        if bins is not None:
            turns = bins.reshape(1, -1, self.model.audio_positions, MELS)
            gain = jnp.ones(turns.shape[:2])
            rows = AudioIn(self.model).apply({"params": parts["audio_in"]}, turns, None, gain)
            x = x.at[np.nonzero(ids == reference.AUDIO)].set(rows.reshape(len(bins), -1))
        return x.astype(self.config.decoder.dtype)

    def logits(self, x: Array) -> np.ndarray:
        """Logits float32[b, t, v] of the last layer float[b, t, d], in the reference's order."""
        no_audio = x[:, :, None][:, :, :0]
        found, *_ = Heads(self.model).apply({"params": self.backbone["heads"]}, no_audio, x)
        return self.known(found)

    def known(self, logits: Array) -> np.ndarray:
        """Logits float32[..., v] of the tokens that the reference has, in its order."""
        rows = slice(Special.COUNT, Special.COUNT + self.config.used)
        return np.asarray(logits, np.float32)[..., rows]

    def one_pass(self, x: Array, exists: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Logits of complete sequences, and the experts' load float32[l, e].

        Args:
          x: float[b, t, d].
          exists: bool[b, t], positions that exist; None: all.
        """
        mask = jnp.ones(x.shape[:2], bool) if exists is None else jnp.asarray(exists)

        @jax.jit
        def run(backbone: Params, bias: Array, x: Array) -> tuple[Array, Array]:
            order, rank = positions.sort(mask)
            x, valid = take_positions(x, order), take_positions(mask, order)
            out, _, aux = self._layers(backbone, bias, x, valid, None)
            return take_positions(out, rank), aux.load

        out, load = run(self.backbone, self.bias, x)
        return self.logits(out), np.asarray(load)

    def _layers(
        self, backbone: Params, bias: Array, x: Array, valid: Array, memory: Memory | None
    ) -> tuple[Array, Memory | None, BlockAux]:
        time = jnp.zeros(valid.shape, jnp.uint32)
        no_ends = jnp.zeros((len(x), 0, self.model.audio_positions + 1), jnp.int32)
        rows = Positions(x, valid, time, no_ends)
        return run_decoder(self.config.decoder, backbone, bias, rows, memory)

    def stream(self, x: Array, size: int) -> np.ndarray:
        """Logits float32[b, t, v] of float[b, t, d] that comes in chunks of `size` positions."""
        b, t, dim = x.shape
        memory, outputs = init_memory(self.config.decoder, b, SPAN), []
        step = jax.jit(self._layers)
        for at in range(0, t, size):
            chunk = x[:, at : at + size]
            valid = jnp.broadcast_to(jnp.arange(SPAN) < chunk.shape[1], (b, SPAN))
            rows = jnp.zeros((b, SPAN, dim), x.dtype).at[:, : chunk.shape[1]].set(chunk)
            out, memory, _ = step(self.backbone, self.bias, rows, valid, memory)
            outputs.append(out[:, : chunk.shape[1]])
        return self.logits(jnp.concatenate(outputs, axis=1))

    def stream_turns(self, inputs: TurnInputs) -> tuple[Array, Array]:
        """Transcript and text logits of n micro-turns that come one after another.

        Returns:
          float32[1, n, audio_positions, v] and float32[1, n, v].
        """
        params = {"backbone": self.backbone, "router_bias": self.bias}

        @jax.jit
        def step(params: Params, memory: Memory, inputs: TurnInputs, clock: Array) -> tuple:
            rows = positions.embed(self.model, params["backbone"], inputs, clock)
            x, memory, _ = run_cached(self.model, params, rows, memory)
            tail = take_positions(x, rows.ends)
            said, heard, _ = apply_heads(self.model, params["backbone"]["heads"], tail)
            return memory, heard, said

        memory, outputs = transformer.init_memory(self.model, 1, self.model.turn_span), []
        for turn in range(inputs.last.shape[1]):
            one = jax.tree.map(lambda leaf: leaf[:, turn : turn + 1], inputs)  # noqa: B023
            memory, *found = step(params, memory, one, jnp.full(1, turn, jnp.uint32))
            outputs.append(found)
        heard, said = (jnp.concatenate(turns, axis=1) for turns in zip(*outputs, strict=True))
        return heard, said


def difference(got: np.ndarray, wanted: np.ndarray) -> float:
    """Largest difference of float32[...] and float32[...] over the largest value."""
    return float(np.max(np.abs(got - wanted)) / np.max(np.abs(wanted)))


def tokens(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Ids of text int64[...]."""
    return rng.integers(0, reference.USED, shape)


def check_text(seed: int) -> float:
    """One pass over text, dense and sparse layers, far keys sharpened; the same experts."""
    worst = 0.0
    for fields in ({"num_hidden_layers": 12, "log_scaling_n_floor": 50}, {"dense": 0}):
        model, rng = reference.reference(seed, **fields), np.random.default_rng(seed)
        ours, ids = Ours(model), tokens(rng, 2, T)
        got, load = ours.one_pass(ours.embed(ids))
        worst = max(worst, difference(got, reference.logits(model, ids)))
        chosen = reference.chosen_experts(model, ids)
        counts = [np.bincount(one.ravel(), minlength=load.shape[1]) for one in chosen]
        sparse = load[ours.config.decoder.dense_layers :]
        if not np.array_equal(sparse, np.stack(counts)):
            raise ValueError("experts: ours are others than the reference's")
    return worst


def check_image(seed: int) -> float:
    """Text with patches of an image between."""
    model, rng = reference.reference(seed), np.random.default_rng(seed)
    ours, ids = Ours(model), tokens(rng, 2, T)
    ids[0, 20:32] = ids[1, 70:74] = reference.IMAGE
    pixels = rng.random((16, 2, 40, 40, 3), np.float32)
    normal = (pixels - reference.PIXEL_MEAN) / reference.PIXEL_STD
    wanted = reference.logits(model, ids, pixel_values=normal.astype(np.float32))
    return difference(ours.one_pass(ours.embed(ids, patches=pixels))[0], wanted)


def check_audio(seed: int) -> float:
    """Text with dMel frames of audio between."""
    model, rng = reference.reference(seed), np.random.default_rng(seed)
    ours, ids = Ours(model), tokens(rng, 2, T)
    ids[0, 10:60] = ids[1, 100:130] = reference.AUDIO
    bins = rng.integers(0, 16, (80, MELS))
    wanted = reference.logits(model, ids, audio_input_ids=bins[None])
    return difference(ours.one_pass(ours.embed(ids, bins=bins))[0], wanted)


def check_streaming(seed: int) -> float:
    """Chunks of 1, 3, 5 and 16 positions over rings that the sequence goes round."""
    model, rng = reference.reference(seed), np.random.default_rng(seed)
    ours, ids = Ours(model), tokens(rng, 2, T)
    wanted = reference.logits(model, ids)
    x = ours.embed(ids)
    return max(difference(ours.stream(x, size), wanted) for size in CHUNKS)


def check_with_our_parts(seed: int) -> float:
    """200 micro-turns with all that a session has, in one pass and in steps.

    The reference reads the same sequence. Self audio and the user's transcript, which it does not
    know, go through the new parts, which are zero.
    """
    model = reference.reference(seed)
    ours = Ours(model)
    inputs = inkling_session.draw(ours.model, np.random.default_rng(seed), turns=200)
    sequence = inkling_session.as_sequence(inputs, ours.config.vocab)
    given = {"pixel_values": sequence.pixels, "audio_input_ids": sequence.bins}
    wanted = reference.logits(model, sequence.ids, **given)[0, sequence.ends]
    passed = jax.jit(partial(forward, ours.model))(ours.backbone, ours.bias, inputs)
    found = (passed.transcript_logits, passed.text_logits), ours.stream_turns(inputs)
    return max(
        difference(ours.known(jnp.concatenate([heard, said[:, :, None]], axis=2))[0], wanted)
        for heard, said in found
    )


def check_padding(seed: int) -> float:
    """A batch of sequences of unequal length, padded on the left."""
    model, rng = reference.reference(seed), np.random.default_rng(seed)
    ours, ids = Ours(model), tokens(rng, 3, T)
    exists = np.arange(T) >= np.array([[0], [33], [101]])
    wanted = reference.logits(model, ids, attention_mask=exists.astype(np.int64))
    got, _ = ours.one_pass(ours.embed(ids), exists)
    return difference(got[exists], wanted[exists])


def check_bfloat16(seed: int) -> dict[str, float]:
    """In bfloat16 against the reference in float32, with weights as small as it draws them.

    With larger ones the rounding moves tokens to other experts, in the reference as well.

    Returns:
      `bfloat16`, our largest difference; and the root mean square of differences over that of the
      logits, ours and the reference's own: `bfloat16_rms` and `bfloat16_rms_reference`.
    """
    model, rng = reference.reference(seed, gain=0.16), np.random.default_rng(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.bfloat16())
    ids = tokens(rng, 2, T)
    wanted, ours = reference.logits(model, ids), Ours(model, "bfloat16")
    got = ours.one_pass(ours.embed(ids))[0]
    theirs = reference.logits(model.bfloat16(), ids)
    size = float(np.linalg.norm(wanted))
    return {
        "bfloat16": difference(got, wanted),
        "bfloat16_rms": float(np.linalg.norm(got - wanted)) / size,
        "bfloat16_rms_reference": float(np.linalg.norm(theirs - wanted)) / size,
    }


def check_full_width(seed: int) -> float:
    """A sliding and a global layer of Inkling-Small's width, with fewer experts."""
    model = reference.reference(seed, n_routed_experts=4, **reference.FULL_WIDTH)
    ours, ids = Ours(model), tokens(np.random.default_rng(seed), 1, 100)
    return difference(ours.one_pass(ours.embed(ids))[0], reference.logits(model, ids))


CHECKS: dict[str, Callable[[int], float]] = {
    "text": check_text,
    "image": check_image,
    "audio": check_audio,
    "streaming": check_streaming,
    "padding": check_padding,
    "with_our_parts": check_with_our_parts,
    "full_width": check_full_width,
}


def define_flags() -> None:
    """Defines the command line; not on import, so that commands can be imported together."""
    flags.DEFINE_integer("seed", 0, "Seed of weights and inputs.")
    flags.DEFINE_integer("experts", 256, "Experts of the round trip; 256 need 40 GB of disk.")
    flags.DEFINE_string("json", None, "File for the figures.")


def main(argv: list[str]) -> None:
    """Prints and writes the figures."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    seed, figures = flags.FLAGS.seed, {}
    for name, check in CHECKS.items():
        figures[name] = check(seed)
        print(f"{name}: {figures[name]:.1e}", flush=True)
    figures |= check_bfloat16(seed)
    figures |= round_trip.measure(flags.FLAGS.experts)
    print(json.dumps(figures, indent=2))
    write_figures(figures, flags.FLAGS.json)


if __name__ == "__main__":
    define_flags()
    app.run(main)
