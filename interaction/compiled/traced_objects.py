"""Python's objects of traced programs, which stay as long as the programs."""

import gc


def keep_traced() -> None:
    """Spares what exists now from all later collections, after a last one.

    Tracing and compiling leave hundreds of thousands of objects. A full collection visits them all,
    which stops every thread for a quarter of a second and more, in the middle of a talk.
    """
    gc.collect()
    gc.freeze()
