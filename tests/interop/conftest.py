"""Servers of others count as they are: each for all tests of its file, and a client of ours for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from support.desk import Desk
from support.outbound import client


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    async with client() as http:
        yield Desk(http)
