"""Joined arrays are equal after they are taken apart."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from interaction.distributed.packing import Limits, Packing
from interaction.distributed.sharding import make_mesh


def test_what_is_taken_apart_was_joined() -> None:
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    params = {
        "scale": draw(3, 5),
        "split": draw(6),
        "large": draw(64, 64),
        "twins": [draw(32, 32), draw(32, 32), draw(32, 32)],
        "layers": ({"bias": draw(7)}, jnp.float32(2.5)),
        "integers": jnp.arange(4),
        "half": [jnp.ones(3, jnp.bfloat16), jnp.arange(2, dtype=jnp.bfloat16)],
    }
    specs = jax.tree.map(lambda leaf: P(*[None] * leaf.ndim), params)
    specs["split"] = P("tensor")
    specs["twins"][2] = P(None, "tensor")  # split otherwise than the other two
    packing = Packing(params, specs, Limits(256, 8192))
    packed, packed_specs = packing.join(params, make_mesh({})), packing.specs
    assert [vector.shape for vector in packed.vectors] == [(3 + 2,), (3 * 5 + 7 + 1,)]
    assert [str(vector.dtype) for vector in packed.vectors] == ["bfloat16", "float32"]
    assert [stack.shape for stack in packed.stacks] == [(2, 32, 32)]
    assert len(packed.others) == 4
    assert any(leaf is params["large"] for leaf in packed.others), "large arrays are not copied"
    assert jax.tree.structure(packed) == jax.tree.structure(packed_specs)
    assert packed_specs.stacks == (P(None, None, None),)
    assert P("tensor") in packed_specs.others and P(None, "tensor") in packed_specs.others
    found = jax.jit(packing.take_apart)(packed)
    assert jax.tree.structure(found) == jax.tree.structure(params)
    for got, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(params), strict=True):
        assert got.dtype == wanted.dtype
        np.testing.assert_array_equal(got, wanted)


def test_nothing_small_leaves_no_vector() -> None:
    packing = Packing((jnp.arange(4),), (P(),), Limits(1024, 0))
    packed = packing.join((jnp.arange(4),), make_mesh({}))
    assert packed.vectors == () and packed.stacks == ()
    np.testing.assert_array_equal(packing.take_apart(packed)[0], jnp.arange(4))
