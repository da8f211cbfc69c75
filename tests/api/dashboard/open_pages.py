"""Pages that people leave open, as many as one likes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack

import httpx
from fastapi import FastAPI

from api.dashboard.session import COOKIE
from tests.api.conftest import counted


async def left_open(app: FastAPI, address: str, path: str, keys: Sequence[str], seconds: float) -> float:
    """SQL statements a second of one open stream for each key, while nothing happens.

    Args:
        app: the API behind the address.
        address: where it listens.
        path: of the stream.
        keys: the readers' keys; one that comes twice has two pages open.
        seconds: how long to count, once each page has been shown.
    """
    async with AsyncExitStack() as stack:
        limits = httpx.Limits(max_connections=None)
        client = httpx.AsyncClient(base_url=address, limits=limits, timeout=60)
        await stack.enter_async_context(client)
        shown = []
        for key in keys:
            stream = client.stream("GET", path, headers={"Cookie": f"{COOKIE}={key}"})
            shown.append((await stack.enter_async_context(stream)).aiter_lines())
        for lines in shown:
            async for line in lines:
                if line.startswith("event: content"):
                    break
        await asyncio.sleep(1.0)
        with counted(app) as said:
            await asyncio.sleep(seconds)
        return len(said) / seconds
