"""Other rules of egress while the client runs: nothing that the rules before let pass is used again."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network

import anyio
import pytest
from support.outbound import OK, attempt, client, get
from support.servers import LOOPBACK, Behaviour, Link, Names, answers, far_side, redirect

from stackd.http.egress import EgressPolicy

FAR = "far.example"
CLOSED = EgressPolicy()
NO_NAME = replace(LOOPBACK, deny_domains=(FAR,))
NO_RANGE = replace(LOOPBACK, deny_ranges=(ip_network("127.0.0.1/32"),))


def answers_when(may_answer: anyio.Event, response: bytes) -> Behaviour:
    """Every request gets `response`, once it may."""

    async def behave(link: Link) -> None:
        while await link.request():
            await may_answer.wait()
            await link.send(response)

    return behave


@pytest.mark.parametrize("policy", [NO_NAME, NO_RANGE, CLOSED], ids=["name", "range", "loopback"])
async def test_the_next_request_is_refused_though_its_target_was_judged_resolved_and_connected(
    policy: EgressPolicy,
) -> None:
    names = Names({FAR: ["127.0.0.1"]})
    async with far_side(answers(OK)) as far, client(names=names) as http:
        request = get(far.url(host=FAR))
        for _ in range(2):
            assert (await http.request(request)).status == 200
        assert (far.connections, names.asked) == (1, [FAR])

        await http.use(policy)
        tried = await attempt(http, request)

        assert tried.failure == ("rejected", "egress.denied", False, False)
        assert len(far.requests) == 2
        await far.until(ended=1)  # and the connection is closed


async def test_what_was_refused_is_let_pass_once_the_rules_allow_it() -> None:
    async with far_side(answers(OK)) as far, client(policy=CLOSED) as http:
        assert (await attempt(http, get(far.url()))).failure[1] == "egress.denied"

        await http.use(LOOPBACK)

        assert (await http.request(get(far.url()))).status == 200


async def test_a_request_under_way_ends_as_it_began_and_its_connection_is_not_used_again() -> None:
    may_answer = anyio.Event()
    async with far_side(answers_when(may_answer, OK)) as far, client() as http:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(http.request, get(far.url()))
            await far.until(requests=1)
            await http.use(replace(LOOPBACK, deny_domains=("other.example",)))
            await http.use(replace(LOOPBACK, deny_domains=("another.example",)))
            may_answer.set()
        await far.until(ended=1)

        assert (await http.request(get(far.url()))).status == 200
        assert far.connections == 2


async def test_where_a_request_under_way_is_redirected_to_is_judged_by_the_new_rules() -> None:
    may_answer = anyio.Event()
    names = Names({FAR: ["127.0.0.1"]})
    async with far_side(answers(OK)) as target, client(names=names) as http:
        moved = answers_when(may_answer, redirect(302, target.url(host=FAR)))
        async with far_side(moved) as far, anyio.create_task_group() as tasks:

            async def ask() -> None:
                tried = await attempt(http, get(far.url()))
                assert tried.failure == ("rejected", "egress.denied", True, False)

            tasks.start_soon(ask)
            await far.until(requests=1)
            await http.use(NO_NAME)
            may_answer.set()
        assert target.requests == []


async def test_a_name_that_is_being_resolved_is_judged_by_one_set_of_rules_to_the_end() -> None:
    hold = anyio.Event()
    names = Names({FAR: ["127.0.0.1"]}, hold=hold)
    async with far_side(answers(OK)) as far, client(names=names) as http:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(attempt, http, get(far.url(host=FAR)))
            while not names.asked:
                await anyio.lowlevel.checkpoint()
            await http.use(NO_NAME)
            hold.set()
        await far.until(ended=1)

        assert (await attempt(http, get(far.url(host=FAR)))).failure[1] == "egress.denied"


async def test_the_same_rules_again_cost_no_connection() -> None:
    async with far_side(answers(OK)) as far, client() as http:
        await http.request(get(far.url()))
        await http.use(replace(LOOPBACK))
        await http.request(get(far.url()))

        assert far.connections == 1
