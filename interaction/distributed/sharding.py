"""Which device holds what: meshes, and one table of rules from a parameter's path to mesh axes.

Every parameter of the project, on its own or inside an optimizer's state, is split by `RULES`; a
path that no rule matches, or a size that its axes do not divide, is refused by name. Model code
runs inside `jax.shard_map`, see `interaction.distributed.collectives`: `gather_and_cast` is where a
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

from interaction.distributed.collectives import AXES, EXPERTS, FSDP, SESSIONS, TENSOR, gather
from interaction.distributed.xla_options import step_compiler_options
from interaction.dtype_policy import dtype_of
from interaction.types import Array, Params

Axes = tuple[str | tuple[str, ...] | None, ...]

# Path (the end of it) -> mesh axes of the last dimensions; those before them (layers) are whole.
# Products are never split along the dimension they sum over (`fsdp` parts are gathered first):
# matrices [in, out] stand as (fsdp, tensor), experts [e, in, out] as (experts, fsdp, whole).
RULES: tuple[tuple[str, Axes], ...] = (
    (r"(sliding|long)/(gate|up|down)", (EXPERTS, FSDP, None)),
    (r"(sliding|long)/(query|key|value|attention_out)", (FSDP, TENSOR)),
    (r"(sliding|long)/shared_(gate|up|down)", (FSDP, TENSOR)),
    (r"(sliding|long)/router", (FSDP, None)),
    (r"(sliding|long)/sink", (TENSOR,)),
    (r"(sliding|long)/(attention|ffn|query|key)_norm", (None,)),
    (r"heads/(text|transcript)", (FSDP, TENSOR)),
    (r"heads/norm", (None,)),
    (r"text_in/table", (FSDP, None)),
    (r"text_in/(slot|out_slot)", (None,)),
    (r"audio_in/(hidden|out)", (FSDP, None)),
    (r"audio_in/((user|self)_table|norm|position)", (None,)),
    (r"video_in/(fold_\d+|norm_\d+|position)", (None,)),
    (r"condition/(table|(tokens|prefix|hidden)_in|(up|down)_\d+|features|guess)", (FSDP, None)),
    (r"condition/(bias_in|norm|norm_\d+)", (None,)),
    (r"flow/\w+", (None,)),
    (r"vocoder/[\w/]+", (None,)),
    (r"router_bias", (None,)),
)
_RULES = tuple(
    # Layers that are kept separately are numbered.
    (re.compile(rf"(^|/)({path})$".replace("(sliding|long)/", r"(sliding|long)/(\d+/)*")), axes)
    for path, axes in RULES
)


def make_mesh(axes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with every axis of `collectives.AXES`, of size 1 where `axes` does not name it.

    Neighbouring devices are neighbours along the last axes: tensor, sequence, then expert.

    Args:
      axes: Axis to size.
      devices: To take, all of them; None takes all of all processes, or the first of this one
        if one will do.

    Raises:
      ValueError: An unknown axis, a size below 1, or another number of devices.
    """
    shape = mesh_shape(axes)
    wanted = math.prod(shape)
    found = list(jax.devices()) if devices is None else list(devices)
    if devices is None and wanted == 1:
        found = jax.local_devices()[:1]
    if len(found) != wanted:
        raise ValueError(
            f"mesh: got axes {dict(axes)} of {wanted} devices, wanted the {len(found)} that are "
            "here; change a size"
        )
    if found[0].platform == "tpu":
        from jax.experimental import mesh_utils

        split = {"allow_split_physical_axes": True}
        return Mesh(mesh_utils.create_device_mesh(shape, found, **split), AXES)
    return Mesh(np.reshape(np.array(found), shape), AXES)


def abstract_mesh(axes: Mapping[str, int]) -> AbstractMesh:
    """A mesh without devices, on which shapes and shardings of any size are checked."""
    return AbstractMesh(mesh_shape(axes), AXES)


def mesh_shape(axes: Mapping[str, int]) -> tuple[int, ...]:
    """Sizes of all axes, in order.

    Raises:
      ValueError: An unknown axis or a size below 1.
    """
    unknown = sorted(set(axes) - set(AXES))
    if unknown or any(size < 1 for size in axes.values()):
        raise ValueError(
            f"mesh: got {dict(axes)}, wanted sizes of at least 1 for axes among {AXES}; correct it"
        )
    return tuple(axes.get(axis, 1) for axis in AXES)


def check_heads(mesh: Mesh | AbstractMesh, kv_heads: int) -> None:
    """Refuses a mesh whose `tensor` devices cannot share out the heads of the caches.

    Raises:
      ValueError: It does not divide them.
    """
    parts = size(mesh, TENSOR)
    if kv_heads % parts:
        raise ValueError(
            f"mesh: got tensor={parts}, wanted a divisor of kv_heads={kv_heads}; change its size"
        )


def size(mesh: Mesh | AbstractMesh, *axes: str) -> int:
    """Devices along axes of a mesh."""
    return math.prod(mesh.shape[axis] for axis in axes)


def platform(mesh: Mesh | AbstractMesh) -> str:
    """Of a mesh's devices, "abstract" where it has none."""
    return mesh.devices.flat[0].platform if isinstance(mesh, Mesh) else "abstract"


def jit_step(
    body: Callable,
    mesh: Mesh | AbstractMesh,
    inputs: tuple,
    outputs: Any,  # noqa: ANN401
) -> Callable:
    """Jits a step of sessions on a mesh: (params, state, given) -> outputs; the state is donated.

    Args:
      body: Written for one device.
      mesh: With all axes of `collectives.AXES`.
      inputs: `PartitionSpec`s of the three.
      outputs: Those of what it returns.
    """
    if mesh.size > 1:
        body = jax.shard_map(body, mesh=mesh, in_specs=inputs, out_specs=outputs, check_vma=False)
    return jax.jit(
        body,
        donate_argnums=1,
        in_shardings=tuple(place(mesh, specs) for specs in inputs),
        out_shardings=place(mesh, outputs),
        compiler_options=step_compiler_options(platform(mesh)),
    )


def place(mesh: Mesh | AbstractMesh, specs: Any) -> Any:  # noqa: ANN401
    """`NamedSharding`s of a tree of `PartitionSpec`s."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)


def rule(path: str) -> Axes:
    """Mesh axes of the last dimensions of the array at a path, "…/sliding/query".

    Raises:
      ValueError: No rule matches, or more than one.
    """
    found = [axes for pattern, axes in _RULES if pattern.search(path)]
    if len(found) != 1:
        raise ValueError(
            f"sharding: {path!r} matches {len(found)} rules, wanted one; add or mend a rule in "
            "interaction/distributed/sharding.py"
        )
    return found[0]


def param_specs(tree: Any) -> Any:  # noqa: ANN401
    """`PartitionSpec`s of a tree of parameters, of buffers, or of a state that holds such trees.

    Numbers ([] shapes) are the same everywhere.
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
      ValueError: No rule for a path, or a dimension that its axes do not divide.
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
      leaf: A jax array, which devices pass on if it lies elsewhere; or what can be indexed (numpy,
        `LazyArray`, on a mesh over processes a jax array of one), of which each process takes the
        parts that its own devices hold.
      where: Its sharding.
    """
    if isinstance(leaf, Array) and (where.is_fully_addressable or not leaf.is_fully_addressable):
        return jax.device_put(leaf, where)
    parts: dict[str, np.ndarray] = {}  # several devices may hold the same

    def part(index: Any) -> np.ndarray:  # noqa: ANN401
        if str(index) not in parts:
            parts[str(index)] = np.asarray(leaf[index])
        return parts[str(index)]

    return jax.make_array_from_callback(leaf.shape, where, part)


def session_sharding(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Of arrays whose leading axis counts sessions: batches, chunks, replies."""
    return NamedSharding(mesh, PartitionSpec(SESSIONS))


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Of arrays that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def gather_and_cast(params: Params, part: str, dtype: str) -> Params:
    """Weights as they are multiplied: in the policy's dtype, their `fsdp` parts gathered.

    Args:
      params: A flat dict of one layer's or module's parameters, float32 or bfloat16, this
        device's parts.
      part: Path that its names follow in `RULES` and in `dtype_policy`, "sliding" or "heads".
      dtype: The computing dtype, see `dtype_policy.dtype_of`. Tables of tokens are rounded to it
        and handed out as float32, so that the gradient of a token that stands in many places is
        summed in float32.

    Returns:
      The same dict; dimensions split over axes other than `fsdp` are still parts.
    """

    def one(name: str, leaf: Array) -> Array:
        path = f"{part}/{name}"
        wanted = dtype_of(path, dtype)
        if leaf.dtype != wanted:
            # Or XLA would cast all layers of a stack before the loop over them.
            leaf = jax.lax.optimization_barrier(leaf)
            if path.endswith("/table"):  # XLA might leave out a cast and its inverse
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
    """Parameters as serving keeps them, see `dtype_policy`.

    Args:
      params: Nested dict of float32 or bfloat16 arrays.
      dtype: The computing dtype.
    """

    def cast(path: tuple, leaf: Array) -> Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return leaf.astype(dtype_of(name, dtype))

    return jax.tree_util.tree_map_with_path(cast, params)
