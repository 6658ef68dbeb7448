"""One layer of the decoder: relative attention, then experts or a dense feed-forward."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from interaction.config import TransformerConfig
from interaction.distributed import experts
from interaction.distributed.collectives import (
    EXPERTS,
    SEQUENCE,
    TENSOR,
    gather,
    last_rows_before,
    local,
)
from interaction.distributed.products import column_dense
from interaction.modules.decoder_attention import Keys, attend
from interaction.modules.memory import Tails
from interaction.modules.router_stats import BlockAux
from interaction.ops import router
from interaction.ops.dense import dense
from interaction.ops.norm import rms_norm
from interaction.ops.ring_attention import Ring
from interaction.ops.short_convolution import TAPS, short_convolution
from interaction.types import Array


class DecoderLayer(nn.Module):
    """A pre-norm layer; on a mesh, one device's heads, columns and experts of it."""

    config: TransformerConfig
    kv_heads: int
    extent: int  # distance from which the attention's bias is 0
    dense: bool = False  # a dense feed-forward instead of experts

    @nn.compact
    def __call__(
        self,
        x: Array,
        valid: Array,
        bias: Array,
        tails: Tails | None,
        keys: Keys,
        stacked: experts.Experts | None = None,
    ) -> tuple[Array, Tails | None, Ring | None, BlockAux]:
        """Runs the layer.

        Args:
          x: float[b, t, d], of which the first positions exist.
          valid: bool[b, t], positions that exist.
          bias: float32[e], selection bias of the router; not read by a dense layer.
          tails: The positions before these, of this layer: [b, TAPS - 1, ...]; None for complete
            sessions.
          keys: The keys that the positions see.
          stacked: Experts of all layers; None where they are parameters of this module.

        Returns:
          [b, t, d] in x's dtype, the tails and the ring with the positions, and statistics of the
          router.
        """
        cfg = self.config
        count = None if tails is None else jnp.sum(valid, axis=1, dtype=jnp.int32)
        after = {}

        def convolve(name: str, y: Array) -> Array:
            init = nn.initializers.variance_scaling(1.0 / TAPS, "fan_in", "uniform")
            kernel = self.param(f"{name}_conv", init, (TAPS, y.shape[-1]))
            if tails is None:
                past = last_rows_before(y, TAPS - 1, SEQUENCE).astype(jnp.float32)
            else:
                past = getattr(tails, name)
            after[name], y = short_convolution(past, y, kernel, count)
            return y

        normed = rms_norm(x, self._scale("attention_norm", cfg.dim))
        with jax.named_scope("attention"):
            k = convolve("key", self._project(normed, "key"))
            v = convolve("value", self._project(normed, "value"))
            mixed, ring = self._attention(normed, k, v, keys, count)
        x = x + convolve("attention", mixed)
        normed = rms_norm(x, self._scale("ffn_norm", cfg.dim))
        out, aux = (self._dense_ffn if self.dense else self._experts)(normed, valid, bias, stacked)
        x = x + convolve("ffn", out)
        return x, None if tails is None else Tails(**after), ring, aux

    def _scale(self, name: str, dim: int) -> Array:
        return self.param(name, nn.initializers.ones, (dim,))

    def _weight(self, name: str, shape: tuple[int, ...], residual: bool = False) -> Array:
        # Weights whose outputs add to the residual stream start small, so that it stays bounded.
        scale = 1.0 / (2 * self.config.layers) if residual else 1.0
        batch = (0,) if len(shape) == 3 else ()
        init = nn.initializers.variance_scaling(scale, "fan_in", "normal", batch_axis=batch)
        return self.param(name, init, shape)

    def _project(self, x: Array, name: str) -> Array:
        width = local(self.kv_heads, TENSOR) * self.config.head_dim
        return dense(x, self._weight(name, (self.config.dim, width)))

    def _attention(
        self, x: Array, k: Array, v: Array, keys: Keys, count: Array | None
    ) -> tuple[Array, Ring | None]:
        cfg = self.config
        heads, split = local(cfg.heads, TENSOR), (*x.shape[:2], -1, cfg.head_dim)
        q = dense(x, self._weight("query", (cfg.dim, heads * cfg.head_dim))).reshape(split)
        width = heads * cfg.relative_states
        states = dense(x, self._weight("relative", (cfg.dim, width)))
        bank = self._weight("profiles", (cfg.relative_states, self.extent))
        q = rms_norm(q, self._scale("query_norm", cfg.head_dim))
        k = rms_norm(k.reshape(split), self._scale("key_norm", cfg.head_dim))
        states = states.reshape(*x.shape[:2], heads, cfg.relative_states)
        mixed, ring = attend(q, k, v.reshape(split), states, bank, keys, count)
        shape = (cfg.heads * cfg.head_dim, local(cfg.dim, TENSOR))
        out = self._weight("attention_out", shape, residual=True)
        return column_dense(gather(mixed.reshape(*x.shape[:2], -1), TENSOR), out), ring

    @jax.named_scope("dense_ffn")
    def _dense_ffn(
        self, x: Array, valid: Array, bias: Array, stacked: experts.Experts | None
    ) -> tuple[Array, BlockAux]:
        cfg = self.config
        width = local(cfg.dense_ffn, TENSOR)
        out = experts.swiglu(
            x,
            self._weight("dense_gate", (cfg.dim, width)),
            self._weight("dense_up", (cfg.dim, width)),
            self._weight("dense_down", (cfg.dense_ffn, local(cfg.dim, TENSOR)), residual=True),
        )
        scale = self.param("ffn_scale", nn.initializers.ones, (1,))
        nothing = BlockAux(load=jnp.zeros(cfg.experts), router_z=jnp.float32(0))
        return (out * scale).astype(x.dtype), nothing

    @jax.named_scope("experts")
    def _experts(
        self, x: Array, valid: Array, bias: Array, stacked: experts.Experts | None
    ) -> tuple[Array, BlockAux]:
        cfg = self.config
        flat = x.reshape(-1, cfg.dim)
        outputs = cfg.experts + cfg.shared_experts
        logits = dense(x.astype(jnp.float32), self._weight("router", (cfg.dim, outputs)))
        logits = logits.reshape(len(flat), -1)
        scale = self.param("ffn_scale", nn.initializers.ones, (1,)) * cfg.route_scale
        chosen, weights, shared = router.route_with_shared(
            logits, bias, cfg.experts_per_token, cfg.shared_experts, scale
        )
        if stacked is None:
            mine = local(cfg.experts, *EXPERTS)
            gate = self._weight("gate", (mine, cfg.dim, cfg.expert_ffn))
            up = self._weight("up", (mine, cfg.dim, cfg.expert_ffn))
            down = self._weight("down", (mine, cfg.expert_ffn, cfg.dim), residual=True)
            stacked = experts.Experts(gate, up, down, mine)
        routed = experts.chosen_experts(flat, chosen, weights, stacked)
        out = routed.reshape(x.shape) + self._shared_experts(x, shared.reshape(*x.shape[:2], -1))
        routed_logits = logits[:, : cfg.experts]
        log_partition = jax.nn.logsumexp(routed_logits, axis=-1)
        aux = BlockAux(
            load=router.load(chosen, valid.reshape(-1), cfg.experts),
            router_z=jnp.sum(jnp.square(log_partition) * valid.reshape(-1)),
        )
        return out, aux

    def _shared_experts(self, x: Array, weights: Array) -> Array:
        """The shared experts side by side, as one feed-forward; weights float32[b, t, shared]."""
        cfg = self.config
        width = cfg.shared_experts * cfg.expert_ffn
        columns = local(width, TENSOR)
        gate, up = (self._weight(f"shared_{name}", (cfg.dim, columns)) for name in ("gate", "up"))
        down = self._weight("shared_down", (width, local(cfg.dim, TENSOR)), residual=True)
        hidden = gather(jax.nn.silu(dense(x, gate)) * dense(x, up), TENSOR)
        factor = jnp.repeat(weights, cfg.expert_ffn, axis=-1)
        return column_dense((hidden * factor).astype(x.dtype), down)
