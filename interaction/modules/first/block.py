"""One transformer layer: attention, then a mixture of experts beside a shared expert."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from interaction.config import FirstTransformerConfig
from interaction.distributed import experts
from interaction.distributed.collectives import EXPERTS, TENSOR, gather, local
from interaction.distributed.products import column_dense
from interaction.modules.first.layer_attention import AttentionContext, attend
from interaction.modules.memory import Cache
from interaction.modules.router_stats import BlockAux
from interaction.ops import rope, router
from interaction.ops.dense import dense
from interaction.ops.norm import rms_norm
from interaction.types import Array


class Block(nn.Module):
    """A pre-norm decoder layer; on a mesh, one device's heads, columns and experts of it.

    Training and the step differ only in `context`: the keys of the complete sequence, or those of a
    ring cache.
    """

    config: FirstTransformerConfig

    @nn.compact
    def __call__(
        self,
        x: Array,
        turn: rope.Turn,
        valid: Array,
        bias: Array,
        context: AttentionContext,
        stacked: experts.Experts | None = None,
    ) -> tuple[Array, Cache | None, BlockAux]:
        """Runs the layer.

        Args:
          x: float[b, t, d].
          turn: RoPE angles of the positions.
          valid: bool[b, t], positions that exist.
          bias: float32[e], selection bias of the router.
          context: Keys, cache and window of the layer.
          stacked: Experts of all layers; None where they are parameters of this module.

        Returns:
          [b, t, d] in x's dtype, the cache with the new positions, and statistics of the router.
        """
        cfg = self.config
        normed = rms_norm(x, self._scale("attention_norm", cfg.dim))
        mixed, cache = self._attention(normed, turn, context)
        x = x + mixed
        normed = rms_norm(x, self._scale("ffn_norm", cfg.dim))
        expert_out, aux = self._experts(normed, valid, bias, stacked)
        return x + expert_out, cache, aux

    def _scale(self, name: str, dim: int) -> Array:
        return self.param(name, nn.initializers.ones, (dim,))

    def _weight(self, name: str, shape: tuple[int, ...], residual: bool = False) -> Array:
        # Weights whose outputs add to the residual stream start small, so that it stays bounded.
        scale = 1.0 / (2 * self.config.layers) if residual else 1.0
        batch = (0,) if len(shape) == 3 else ()
        init = nn.initializers.variance_scaling(scale, "fan_in", "normal", batch_axis=batch)
        return self.param(name, init, shape)

    @jax.named_scope("attention")
    def _attention(
        self, x: Array, turn: rope.Turn, context: AttentionContext
    ) -> tuple[Array, Cache | None]:
        cfg = self.config
        b, t, _ = x.shape
        split = (b, t, -1, cfg.head_dim)
        heads, kv_heads = local(cfg.heads, TENSOR), local(cfg.kv_heads, TENSOR)
        q = dense(x, self._weight("query", (cfg.dim, heads * cfg.head_dim))).reshape(split)
        k = dense(x, self._weight("key", (cfg.dim, kv_heads * cfg.head_dim))).reshape(split)
        v = dense(x, self._weight("value", (cfg.dim, kv_heads * cfg.head_dim))).reshape(split)
        q = rms_norm(q, self._scale("query_norm", cfg.head_dim))
        k = rms_norm(k, self._scale("key_norm", cfg.head_dim))
        sink = self.param("sink", nn.initializers.zeros, (heads,))
        mixed, cache = attend(rope.rotate(q, turn), rope.rotate(k, turn), v, sink, context)
        shape = (cfg.heads * cfg.head_dim, local(cfg.dim, TENSOR))
        out = self._weight("attention_out", shape, residual=True)
        return column_dense(gather(mixed.reshape(b, t, -1), TENSOR), out), cache

    @jax.named_scope("experts")
    def _experts(
        self, x: Array, valid: Array, bias: Array, stacked: experts.Experts | None
    ) -> tuple[Array, BlockAux]:
        cfg = self.config
        flat = x.reshape(-1, cfg.dim)
        router_weight = self._weight("router", (cfg.dim, cfg.experts))
        logits = dense(x.astype(jnp.float32), router_weight).reshape(len(flat), -1)
        chosen, weights = router.route(logits, bias, cfg.experts_per_token)
        if stacked is None:
            mine = local(cfg.experts, *EXPERTS)
            gate = self._weight("gate", (mine, cfg.dim, cfg.expert_ffn))
            up = self._weight("up", (mine, cfg.dim, cfg.expert_ffn))
            down = self._weight("down", (mine, cfg.expert_ffn, cfg.dim), residual=True)
            stacked = experts.Experts(gate, up, down, mine)
        routed = experts.chosen_experts(flat, chosen, weights, stacked)
        shared = experts.swiglu(
            x,
            self._weight("shared_gate", (cfg.dim, local(cfg.shared_ffn, TENSOR))),
            self._weight("shared_up", (cfg.dim, local(cfg.shared_ffn, TENSOR))),
            self._weight("shared_down", (cfg.shared_ffn, local(cfg.dim, TENSOR)), residual=True),
        )
        aux = BlockAux(
            load=router.load(chosen, valid.reshape(-1), cfg.experts),
            router_z=jnp.sum(jnp.square(jax.nn.logsumexp(logits, axis=-1)) * valid.reshape(-1)),
        )
        return routed.reshape(x.shape) + shared, aux
