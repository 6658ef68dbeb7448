"""Meshes, and one table of rules from a parameter's path to mesh axes.

`RULES` splits every parameter, and every array of that path in an optimizer's state. A path that no
rule matches raises an error, as does a size that the devices on its axes do not divide. Model code
runs inside `jax.shard_map`, see `interaction.distributed.collectives`; with `gather_and_cast` a
layer gathers the weights that fully-sharded data parallelism has split.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from interaction.config import FirstTransformerConfig, TransformerConfig
from interaction.distributed.collectives import AXES, EXPERTS, FSDP, SESSIONS, TENSOR, gather
from interaction.distributed.jax_settings import refuse_mixed_collectives
from interaction.distributed.xla_options import compiler_options
from interaction.dtype_policy import dtype_of
from interaction.types import Array, Params

Axes = tuple[str | tuple[str, ...] | None, ...]

# End of a path -> mesh axes of the last dimensions; earlier dimensions (layers) are not split. No
# product is split along the dimension that it sums over, since `fsdp` parts are gathered first:
# matrices [in, out] are split as (fsdp, tensor), experts [e, in, out] as (experts, fsdp, None).
_LAYER = r"(first_)?(dense|sliding|long)/(\d+/)*"  # separate layers are numbered
RULES: tuple[tuple[str, Axes], ...] = (
    (rf"{_LAYER}(gate|up|down)", (EXPERTS, FSDP, None)),
    (rf"{_LAYER}(query|key|value|relative|attention_out)", (FSDP, TENSOR)),
    (rf"{_LAYER}(shared|dense)_(gate|up|down)", (FSDP, TENSOR)),
    (rf"{_LAYER}router", (FSDP, None)),
    (rf"{_LAYER}(key|value)_conv", (None, TENSOR)),
    (rf"{_LAYER}((attention|ffn)_conv|profiles)", (None, None)),
    (rf"{_LAYER}((attention|ffn|query|key)_norm|ffn_scale)", (None,)),
    (r"heads/text", (FSDP, TENSOR)),
    (r"heads/norm", (None,)),
    (r"text_in/table", (FSDP, None)),
    (r"text_in/(out_slot|norm|transcript_gain)", (None,)),
    (r"audio_in/((user|self)_table|norm)", (None,)),
    (r"video_in/fold_[23]", (FSDP, None)),
    (r"video_in/(fold_[01]|norm|norm_\d+)", (None,)),
    (r"condition/(table|(tokens|prefix|hidden)_in|(up|down)_\d+|features|guess)", (FSDP, None)),
    (r"condition/(bias_in|norm|norm_\d+)", (None,)),
    (r"flow/\w+", (None,)),
    (r"vocoder/[\w/]+", (None,)),
    (r"router_bias", (None,)),
    (rf"{_LAYER}\w+/lora_in", (FSDP, None)),
    (rf"{_LAYER}\w+/lora_out", (None, TENSOR)),
    # What only the pair of models that was released first has.
    (rf"{_LAYER}sink", (TENSOR,)),
    (r"heads/transcript", (FSDP, TENSOR)),
    (r"audio_in/(hidden|out)", (FSDP, None)),
    (r"text_in/slot|(audio|video)_in/position", (None,)),
)
_RULES = tuple((re.compile(rf"(^|/)({path})$"), axes) for path, axes in RULES)


def make_mesh(axes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with every axis of `collectives.AXES`, of size 1 where `axes` does not name it.

    Neighbouring devices are neighbours along the last axes: tensor, sequence, then expert.

    Args:
      axes: Size of each axis.
      devices: Devices of the mesh; None takes those of all processes, or the first one of this
        process for a mesh of one device.

    Raises:
      ValueError: An axis is unknown, a size is below 1, or the number of devices is another.
    """
    shape = mesh_shape(axes)
    wanted = math.prod(shape)
    found = list(jax.devices()) if devices is None else list(devices)
    if devices is None and wanted == 1:
        found = jax.local_devices()[:1]
    if len(found) != wanted:
        raise ValueError(
            f"mesh: got axes {dict(axes)} of {wanted} devices, wanted the {len(found)} available "
            "devices; change a size"
        )
    if found[0].platform == "tpu":
        from jax.experimental import mesh_utils

        split = {"allow_split_physical_axes": True}
        return Mesh(mesh_utils.create_device_mesh(shape, found, **split), AXES)
    return Mesh(np.reshape(np.array(found), shape), AXES)


def abstract_mesh(axes: Mapping[str, int]) -> AbstractMesh:
    """A mesh without devices, for checks of shapes and shardings of any size."""
    return AbstractMesh(mesh_shape(axes), AXES)


def mesh_shape(axes: Mapping[str, int]) -> tuple[int, ...]:
    """Sizes of all axes of `collectives.AXES`, in order.

    Raises:
      ValueError: An axis is unknown, or a size is below 1.
    """
    unknown = sorted(set(axes) - set(AXES))
    if unknown or any(size < 1 for size in axes.values()):
        raise ValueError(
            f"mesh: got {dict(axes)}, wanted sizes of at least 1 for axes among {AXES}; correct it"
        )
    return tuple(axes.get(axis, 1) for axis in AXES)


def check_heads(mesh: Mesh | AbstractMesh, cfg: TransformerConfig | FirstTransformerConfig) -> None:
    """Refuses a mesh whose axis `tensor` cannot split the KV heads of the caches.

    Raises:
      ValueError: The size of the axis does not divide their number, in layers of either kind.
    """
    parts = size(mesh, TENSOR)
    for name in ("kv_heads", "sliding_kv_heads"):
        heads = getattr(cfg, name)
        if heads % parts:
            raise ValueError(
                f"mesh: got tensor={parts}, wanted a divisor of {name}={heads}; change its size"
            )


def size(mesh: Mesh | AbstractMesh, *axes: str) -> int:
    """Number of devices along axes of a mesh."""
    return math.prod(mesh.shape[axis] for axis in axes)


def platform(mesh: Mesh | AbstractMesh) -> str:
    """Platform of a mesh's devices; "abstract" for a mesh without devices."""
    return mesh.devices.flat[0].platform if isinstance(mesh, Mesh) else "abstract"


def jit_step(
    body: Callable,
    mesh: Mesh | AbstractMesh,
    inputs: tuple,
    outputs: Any,  # noqa: ANN401
) -> Callable:
    """Jits a step of sessions on a mesh: (params, state, given) -> outputs; the state is donated.

    Args:
      body: The step, written for one device.
      mesh: A mesh with all axes of `collectives.AXES`.
      inputs: `PartitionSpec`s of the three arguments.
      outputs: `PartitionSpec`s of the outputs.

    Raises:
      RuntimeError: JAX's compilation cache is not safe on the mesh, see `jax_settings`.
    """
    refuse_mixed_collectives(platform(mesh), mesh.size)
    if mesh.size > 1:
        body = jax.shard_map(body, mesh=mesh, in_specs=inputs, out_specs=outputs, check_vma=False)
    return jax.jit(
        body,
        donate_argnums=1,
        in_shardings=tuple(place(mesh, specs) for specs in inputs),
        out_shardings=place(mesh, outputs),
        compiler_options=compiler_options(platform(mesh)),
    )


def place(mesh: Mesh | AbstractMesh, specs: Any) -> Any:  # noqa: ANN401
    """`NamedSharding`s of a tree of `PartitionSpec`s."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)


def rule(path: str) -> Axes:
    """Mesh axes of the last dimensions of the array at a path, "…/sliding/query".

    Raises:
      ValueError: No rule matches, or more than one rule.
    """
    found = [axes for pattern, axes in _RULES if pattern.search(path)]
    if len(found) != 1:
        raise ValueError(
            f"sharding: {path!r} matches {len(found)} rules, wanted one; add or correct a rule in "
            "interaction/distributed/sharding.py"
        )
    return found[0]


def param_specs(tree: Any) -> Any:  # noqa: ANN401
    """`PartitionSpec`s of a tree of parameters or buffers, or of a state that contains such trees.

    Scalars, of shape [], are replicated.
    """

    def spec(path: tuple, leaf: Array) -> PartitionSpec:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if not leaf.ndim:
            return PartitionSpec()
        axes = rule(name)
        return PartitionSpec(*[None] * (leaf.ndim - len(axes)), *axes)

    return jax.tree_util.tree_map_with_path(spec, tree)


def shardings(mesh: Mesh | AbstractMesh, tree: Any) -> Any:  # noqa: ANN401
    """`NamedSharding`s of a tree of parameters, see `param_specs`.

    Raises:
      ValueError: A path has no rule, or the devices on an axis do not divide a dimension.
    """

    def place(path: tuple, leaf: Array, spec: PartitionSpec) -> NamedSharding:
        for length, axes in zip(leaf.shape, spec, strict=False):
            devices = size(mesh, *((axes,) if isinstance(axes, str) else axes or ()))
            if length % devices:
                name = jax.tree_util.keystr(path, simple=True, separator="/")
                raise ValueError(
                    f"sharding: {name}{list(leaf.shape)} has a dimension of {length}, wanted a "
                    f"multiple of the {devices} devices on {axes}; change the mesh or the model"
                )
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(place, tree, param_specs(tree))


def put(leaf: Any, where: NamedSharding) -> Array:  # noqa: ANN401
    """Puts an array on a mesh, which may span processes.

    Args:
      leaf: [...] of any dtype: a jax array, which devices copy to each other where needed; or an
        indexable array (NumPy, `LazyArray`, or for a mesh over processes a jax array of one
        process), of which each process reads the parts of its devices.
      where: The sharding of the result.

    Returns:
      [...] in the same dtype.
    """
    if isinstance(leaf, Array) and (where.is_fully_addressable or not leaf.is_fully_addressable):
        return jax.device_put(leaf, where)
    parts: dict[str, np.ndarray] = {}  # several devices may hold the same part

    def part(index: Any) -> np.ndarray:  # noqa: ANN401
        if str(index) not in parts:
            parts[str(index)] = np.asarray(leaf[index])
        return parts[str(index)]

    return jax.make_array_from_callback(leaf.shape, where, part)


def session_sharding(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Sharding of arrays whose leading axis counts sessions: batches, chunks, replies."""
    return NamedSharding(mesh, PartitionSpec(SESSIONS))


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Sharding of arrays of which every device has a complete copy."""
    return NamedSharding(mesh, PartitionSpec())


def gather_and_cast(params: Params, part: str, dtype: str) -> Params:
    """Gathers the `fsdp` parts of weights and casts the weights as `dtype_policy` says.

    Args:
      params: A flat dict of this device's parts of one layer's or module's parameters, float32 or
        bfloat16.
      part: Path before the names in `RULES` and `dtype_policy`, "sliding" or "heads".
      dtype: The computing dtype, see `dtype_policy.dtype_of`. Tables of tokens are rounded to it
        but returned as float32, so that the gradient of a token that occurs many times is summed
        in float32.

    Returns:
      The dict with the same names; dimensions that are split over other axes than `fsdp` are still
      split.
    """

    def one(name: str, leaf: Array) -> Array:
        path = f"{part}/{name}"
        wanted = dtype_of(path, dtype)
        if leaf.dtype != wanted:
            # Without the barrier XLA casts all layers of a stack before the loop over layers.
            leaf = jax.lax.optimization_barrier(leaf)
            if path.endswith("/table"):  # XLA might remove a pair of casts, but not this rounding
                kind = jnp.finfo(wanted)
                leaf = jax.lax.reduce_precision(leaf.astype("float32"), kind.nexp, kind.nmant)
            else:
                leaf = leaf.astype(wanted)
        for dim, axes in enumerate(rule(path), leaf.ndim - len(rule(path))):
            if axes == FSDP:
                leaf = gather(leaf, FSDP, dim=dim)
        return leaf

    return {name: one(name, leaf) for name, leaf in params.items()}


def cast_params(params: Params, dtype: str) -> Params:
    """Casts parameters to the dtypes in which serving keeps them, see `dtype_policy`.

    Args:
      params: Nested dict of float32 or bfloat16 arrays.
      dtype: The computing dtype.
    """

    def cast(path: tuple, leaf: Array) -> Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return leaf.astype(dtype_of(name, dtype))

    return jax.tree_util.tree_map_with_path(cast, params)
