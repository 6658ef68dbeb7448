r"""Serves a model: OpenAI's Live and Realtime protocols over WebSocket, and a page.

python -m experiments.serve                          # http://localhost:8123, this machine only
python -m experiments.serve --host=0.0.0.0 --tokens=FILE --folder=/var/lib/interaction

Without --tokens the server takes connections of this machine alone. With --folder, sessions outlive
a lost connection, SIGTERM and SIGKILL. See docs/serving.md.
"""

import contextlib
import logging
import os
import pathlib
import resource
import socket
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from absl import app, flags

import interaction
from experiments.agent_factory import find_background
from experiments.converse import make_tools
from interaction.background.agent import BackgroundAgent
from interaction.background.batched_reasoner import BatchedReasoner
from interaction.background.reasoner_agent import ReasonerAgent, load_reasoner
from interaction.background.toolbox import Toolbox
from interaction.serve.app import About
from interaction.serve.house import House
from interaction.serve.limits import Door, Limits, is_loopback
from interaction.serve.server import Server

EXAMPLES = [
    "what is seven times eight",
    "what time is it",
    "ring in ten seconds",
    "in which room is the honey",
    "what is the price of the pepper",
    "how many feet are three yards",
    "what is the capital of france",
    "what is the color of the sky",
]


def read_tokens(path: str | None) -> list[str]:
    """The tokens of a file, one a line.

    Raises:
      ValueError: The file is missing, or has no token.
    """
    if path is None:
        return []
    try:
        tokens = [line.strip() for line in pathlib.Path(path).read_text().splitlines()]
    except OSError as error:
        raise ValueError(f"--tokens: got {path!r} ({error}), wanted a file") from error
    found = [token for token in tokens if token]
    if not found:
        raise ValueError(f"--tokens: got no token in {path!r}, wanted one a line")
    return found


def prepare_agents() -> Callable[[str], BackgroundAgent] | None:
    """Loads the background model; returns what makes an agent, None if there is no such model."""
    given = flags.FLAGS
    background = given.background or find_background(given.model)
    if background is None:
        return None
    reasoner = BatchedReasoner(load_reasoner(background), 2 * given.rows)
    reasoner.warm_up()
    text = "" if given.annotation is None else pathlib.Path(given.annotation).read_text()
    return lambda instructions: ReasonerAgent(reasoner, Toolbox(make_tools(text)))


def make_house() -> House:
    """Loads the models and compiles what is needed; the arguments are the flags.

    Raises:
      ValueError: The server would be open to other machines without tokens.
    """
    given = flags.FLAGS
    tokens = read_tokens(given.tokens)
    if not tokens and not is_loopback(given.host):
        raise ValueError(
            f"--host: got {given.host!r}, where other machines come in, wanted --tokens too"
        )
    with ThreadPoolExecutor() as pool:  # both compile for long
        agents = pool.submit(prepare_agents)
        model = interaction.load(given.model)
        engine = interaction.Engine(model, given.rows, frames=model.config.trained_on_frames)
        make_agent = agents.result()
    limits = Limits(session_s=given.session_s, sessions_a_client=given.sessions)
    door = Door(tokens, given.origins)
    name = pathlib.Path(given.model).name
    return House(engine, name, make_agent, door=door, limits=limits, folder=given.folder)


def bind(host: str, port: int) -> socket.socket:
    """A socket for the server, before anything is loaded.

    Raises:
      ValueError: The address is not of this machine, or the port is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
    except OSError as error:
        raise ValueError(
            f"--port: got {port} at {host!r} ({error}), wanted a free one; choose another --port"
        ) from error
    return made


def define_flags() -> None:
    """Defines the command line; not on import, so that commands can be imported together."""
    flags.DEFINE_string("model", "demo", "Name or folder of a released model.")
    flags.DEFINE_string(
        "background",
        None,
        "Background model; default: the model's name with _background.",
    )
    flags.DEFINE_integer("rows", 8, "Most sessions at once.", lower_bound=1)
    flags.DEFINE_string("host", "127.0.0.1", "Address to listen at.")
    flags.DEFINE_integer("port", 8123, "Port; 0 takes a free one.")
    flags.DEFINE_string("tokens", None, "File with a bearer token a line.")
    flags.DEFINE_list("origins", [], "Origins of pages beside the server's own.")
    flags.DEFINE_string("folder", None, "Folder for sessions that outlive a connection.")
    flags.DEFINE_string(
        "annotation",
        None,
        "Annotation of a recording: the table and delays of the tools.",
    )
    flags.DEFINE_float("session_s", Limits().session_s, "Longest session, s.")
    flags.DEFINE_integer("sessions", Limits().sessions_a_client, "Sessions of a client.")


def main(argv: list[str]) -> None:
    """Serves until SIGTERM or SIGINT."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
    logging.getLogger("jax").setLevel(logging.WARNING)
    given = flags.FLAGS
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # one for each connection
    try:
        listening = bind(given.host, given.port)
        print("loading and compiling", flush=True)
        house = make_house()
    except ValueError as error:
        raise app.UsageError(str(error)) from error
    except KeyboardInterrupt:
        os._exit(130)  # at once: threads that compile cannot be ended
    text = (
        "It knows a fixed set of English requests, such as these, and takes any other for one of "
        "them. It learnt from synthetic voices and understands people badly."
    )
    about = About(text, EXAMPLES) if given.model == "demo" else About("Say anything.", [])
    server = Server(house, about, given.host, given.port)
    listening.listen()  # those who come early wait
    host = "localhost" if given.host in ("0.0.0.0", "::") else given.host
    print(f"open http://{host}:{listening.getsockname()[1]}", flush=True)
    if given.folder is not None:
        print(f"sessions are kept under {given.folder}", flush=True)
    with contextlib.suppress(KeyboardInterrupt):  # raised again when all is saved
        server.run([listening])


if __name__ == "__main__":
    define_flags()
    app.run(main)
