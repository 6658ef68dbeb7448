"""Which dtype each parameter is multiplied in: one table, independent of how devices share it.

A model computes in `TransformerConfig.dtype`. Its matrices are cast to that dtype. Parameters that
are added, that scale, that are summed over many rows or that decide something discrete stay
float32: norms, biases, positions, the router and its bias, short convolutions, the tables of dMel
levels, and the pitch and the filters of the vocoder, whose error adds up along a session.
"""

import re

_LAYER = r"(first_)?(dense|sliding|long)/(\d+/)*"  # separate layers are numbered
# End of a parameter's path -> whether it takes the computing dtype.
_POLICY: tuple[tuple[str, bool], ...] = (
    (rf"{_LAYER}(gate|up|down|(shared|dense)_(gate|up|down))", True),
    (rf"{_LAYER}(query|key|value|relative|profiles|attention_out)", True),
    (rf"{_LAYER}(router|ffn_scale|(attention|ffn|query|key)_norm)", False),
    (rf"{_LAYER}(key|value|attention|ffn)_conv", False),
    (r"heads/text", True),
    (r"heads/norm", False),
    (r"text_in/table", True),
    (r"text_in/(out_slot|norm|transcript_gain)", False),
    (r"audio_in/((user|self)_table|norm)", False),
    (r"video_in/fold_\d+", True),
    (r"video_in/(norm|norm_\d+)", False),
    (r"condition/(table|(tokens|prefix|hidden)_in|(up|down)_\d+|features|guess)", True),
    (r"condition/(bias_in|norm|norm_\d+)", False),
    (r"flow/(in|time_in|out|(adapt|mix_in|mix_out|up|down)_\d+)", True),
    (r"flow/(position|norm|(mix_)?norm_\d+)", False),
    (r"vocoder/(layers/(\d+/)*)?(input|up|down)", True),
    (
        r"vocoder/(layers/(\d+/)*)?(conv|norm|(input|up|pitch|filter)_bias|out_norm|pitch|filter)",
        False,
    ),
    (r"router_bias", False),
    # What only the pair of models that was released first has.
    (r"heads/transcript|audio_in/(hidden|out)", True),
    (rf"{_LAYER}sink|text_in/slot|(audio|video)_in/position", False),
)
_COMPILED = tuple((re.compile(rf"(^|/)({path})$"), computes) for path, computes in _POLICY)


def dtype_of(path: str, compute: str) -> str:
    """The dtype that the parameter at a path is multiplied in.

    Args:
      path: Path of the parameter, of which the end counts: "backbone/sliding/query", "heads/text".
      compute: The model's computing dtype, "float32" or "bfloat16".

    Returns:
      `compute` or "float32".

    Raises:
      ValueError: No entry of the policy matches, or matching entries disagree.
    """
    found = {computes for pattern, computes in _COMPILED if pattern.search(path)}
    if len(found) != 1:
        raise ValueError(
            f"dtype policy: got {path!r}, which matches {len(found)} kinds of entries, wanted one; "
            "add an entry to interaction/dtype_policy.py"
        )
    return compute if found.pop() else "float32"
