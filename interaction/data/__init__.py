"""Sessions: the domain, speech engines, mixing, storage and the tokenizer.

Names are imported at their first use, because a model in service needs only the tokenizer.
"""

import importlib

_HOMES = {
    "EngineMissing": "engines",
    "QUIET": "sessions",
    "StoredSession": "stored_session",
    "SCENARIOS": "scenarios",
    "Tokenizer": "tokenizer",
    "load_tokenizer": "tokenizer",
    "make_session": "sessions",
    "read": "records",
    "write": "records",
}


def __getattr__(name: str) -> object:
    """Imports a public name from its module."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """The public names."""
    return sorted(_HOMES)
