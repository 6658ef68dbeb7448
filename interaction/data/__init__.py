"""Sessions: the domain, speech engines, mixing, storage and the tokenizer.

Names are imported when they are first used: a model in service needs the tokenizer alone.
"""

import importlib

_HOMES = {
    "EngineMissing": "engines",
    "QUIET": "sessions",
    "StoredSession": "sessions",
    "SCENARIOS": "sessions",
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
