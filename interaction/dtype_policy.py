"""Which dtype each parameter is multiplied in: one table, independent of how devices share it.

A model computes in `TransformerConfig.dtype`. Its matrices are cast to that dtype. Parameters that
are added, that scale, that are summed over many rows or that decide something discrete stay
float32: norms, biases, positions, the router and its bias, attention sinks, the tables of dMel
levels, and the pitch and the filters of the vocoder, whose error adds up along a session.
"""

import re

# End of a parameter's path -> whether it takes the computing dtype. Separate layers are numbered.
_POLICY: tuple[tuple[str, bool], ...] = (
    (r"(first_)?(dense|sliding|long)/(\d+/)*(gate|up|down|(shared|dense)_(gate|up|down))", True),
    (
        r"(first_)?(dense|sliding|long)/(\d+/)*(query|key|value|relative|profiles|attention_out)",
        True,
    ),
    (
        r"(first_)?(dense|sliding|long)/(\d+/)*(router|sink|ffn_scale|(attention|ffn|query|key)_norm)",
        False,
    ),
    (r"(first_)?(dense|sliding|long)/(\d+/)*(attention|ffn|key|value)_conv", False),
    (r"heads/(text|transcript)", True),
    (r"heads/norm", False),
    (r"text_in/table", True),
    (r"text_in/(slot|out_slot|norm|transcript_gain)", False),
    (r"audio_in/(hidden|out)", True),
    (r"audio_in/((user_|self_)?table|norm|position)", False),
    (r"video_in/fold_\d+", True),
    (r"video_in/(norm|norm_\d+|position)", False),
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
