"""What an operator sees: health, figures, a line for each session, and limits."""

import asyncio
import json
import logging
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
import websockets

from interaction import logs
from interaction.serve.limits import Door, Limits, Rate
from tests.serve.clients import TONE, answer, bare, connect, house, talk, until


def get(address: str, path: str, token: str = "") -> tuple[int, str]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(f"http://{address}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request) as found:
            return found.status, found.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def figures(address: str, token: str = "") -> dict[str, float]:
    lines = get(address, "/metrics", token)[1].splitlines()
    return {
        line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if line[0] != "#"
    }


def test_health_figures_and_one_line_a_session(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "interaction.sessions")

    async def run(address: str) -> str:
        async with connect(address) as live:
            name = (await until(live, "session.started"))[-1].session.id
            await talk(live, np.tile(TONE, 2))
            now = await asyncio.to_thread(figures, address)
            assert now["interaction_sessions"] == 1 and now["interaction_sessions_free"] == 1
            assert json.loads((await asyncio.to_thread(get, address, "/healthz"))[1]) == {
                "status": "ok",
                "sessions": 1,
                "free": 1,
            }
            await live.session.close()
            await until(live, "session.closed")
        return name

    with house() as (address, _):
        name = asyncio.run(run(address))
        found = figures(address)
    assert found["interaction_sessions"] == 0
    assert found["interaction_sessions_opened_total"] == 1
    assert found['interaction_sessions_ended_total{reason="close_requested"}'] == 1
    assert found["interaction_step_seconds_count"] >= 10
    assert found["interaction_steps_total"] >= found["interaction_step_seconds_count"]
    logs.flush()
    lines = [
        json.loads(one.message) for one in caplog.records if one.name == "interaction.sessions"
    ]
    assert len(lines) == 1 and lines[0]["reason"] == "close_requested" and lines[0]["turns"] >= 10
    assert name not in caplog.text, "an id lets one go on with a session"


def test_figures_need_a_token_and_no_log_has_it(caplog: pytest.LogCaptureFixture) -> None:
    with house(door=Door(["topsecret"])) as (address, _):
        assert get(address, "/metrics")[0] == 401
        assert get(address, "/metrics", "wrong")[0] == 401
        assert get(address, "/metrics", "topsecret")[0] == 200
        assert get(address, "/healthz")[0] == 200
    assert "topsecret" not in caplog.text


def test_the_page_and_what_it_says_of_the_model() -> None:
    with house() as (address, _):
        status, page = get(address, "/")
        assert status == 200 and "talk.js" in page
        told = json.loads(get(address, "/about.json")[1])
        assert told["model"] == "demo" and not told["delegates"] and not told["reads_text"]
        assert get(address, "/../limits.py")[0] == 404


def test_a_client_that_says_nothing_or_too_much_is_ended() -> None:
    async def silent(address: str) -> None:
        async with bare(address, started=False) as socket:
            assert json.loads(await socket.recv())["error"]["code"] == "timeout"
        async with bare(address) as socket:
            kinds = []
            with pytest.raises(websockets.ConnectionClosed):
                while True:
                    kinds.append(json.loads(await asyncio.wait_for(socket.recv(), 5))["type"])
            assert kinds.count("session.output_audio.delta") < 10
            assert kinds[-1] == "session.closed" and socket.close_code == 1008

    async def loud(address: str) -> None:
        async with bare(address) as socket:
            for _ in range(40):
                await socket.send("{")
            assert (await answer(socket, "{"))["error"]["code"] in ("invalid_json", "rate_limited")
            codes = []
            async with asyncio.timeout(5):
                while "rate_limited" not in codes:
                    got = json.loads(await socket.recv())
                    codes += [got["error"]["code"]] if got["type"] == "error" else []

    with house(limits=Limits(start_s=0.3, silent_s=0.5)) as (address, _):
        asyncio.run(silent(address))
    with house(limits=Limits(messages_a_second=4)) as (address, _):
        asyncio.run(loud(address))


def test_a_session_expires() -> None:
    async def run(address: str) -> None:
        async with connect(address) as live:
            assert (await until(live, "session.closed"))[-1].reason == "expired"

    with house(limits=Limits(session_s=0.7)) as (address, _):
        asyncio.run(run(address))


def test_an_oversized_message_ends_its_connection_alone() -> None:
    async def run(address: str) -> None:
        async with bare(address) as other, bare(address, max_size=None) as socket:
            await socket.send(" " * 3_000_000)
            with pytest.raises(websockets.ConnectionClosed) as ended:
                while True:
                    await socket.recv()
            assert ended.value.rcvd.code == 1009
            closed = await answer(other, {"type": "session.close"}, "session.closed")
            assert closed["reason"] == "close_requested"

    with house() as (address, _):
        asyncio.run(run(address))


def test_a_rate_has_some_seconds_of_slack() -> None:
    rate = Rate(10.0, slack_s=1.0)
    assert [rate.take() for _ in range(12)] == [True] * 10 + [False] * 2
    time.sleep(0.35)
    assert rate.take() or rate.take()
