"""The bundled recording: a minute of a user who talks to the demo pair."""

import pathlib

ASSET = pathlib.Path(__file__).with_name("user.flac")  # its annotation has the suffix .json
