"""The shipped stripe connector against localstripe, which keeps what it is sent.

It is not Stripe: it knows no idempotency keys, lists the oldest first, and has no events to list.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.desk import Desk, shipped
from support.foreign import Foreign, needs_module, served

from stackd.core.errors import NodeError
from stackd.integrations.account import Account

pytestmark = needs_module("localstripe")

KEY = Account("inline", fields={"secretKey": "sk_test_made_up"}, secrets=frozenset({"secretKey"}))


@pytest.fixture(scope="module")
def localstripe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Foreign]:
    with served("localstripe", Path(tmp_path_factory.mktemp("localstripe")) / "log") as server:
        yield server


class Stripe:
    def __init__(self, desk: Desk, server: Foreign) -> None:
        self._desk = desk
        self._url = server.url

    async def ask(self, operation: str, *, as_: Account = KEY, **params: Any) -> Any:
        plan = await shipped("stripe", operation, at=self._url)
        return await self._desk.run(plan, plan.schema.fitted(params), as_, key="key-1")


@pytest.fixture
def stripe(desk: Desk, localstripe: Foreign) -> Stripe:
    return Stripe(desk, localstripe)


async def test_a_customer_is_kept_as_it_was_sent(stripe: Stripe) -> None:
    given = {
        "name": "Ada & Söhne", "email": "ada@example.org", "description": "50 % = half",
        "metadata": {"order": "7", "note": "a+b c"},
    }  # fmt: skip
    made = await stripe.ask("create_customer", **given)

    kept = await stripe.ask("get_customer", customer=made["id"])
    await stripe.ask("update_customer", customer=made["id"], name="Grace")
    renamed = await stripe.ask("get_customer", customer=made["id"])

    assert {name: kept[name] for name in given} == given
    assert {name: renamed[name] for name in given} == {**given, "name": "Grace"}


async def test_all_customers_are_listed_page_by_page(stripe: Stripe) -> None:
    made = [(await stripe.ask("create_customer", email="page@example.org"))["id"] for _ in range(7)]

    listed = await stripe.ask("list_customers", limit=3)

    assert set(made) <= {one["id"] for one in listed["items"]}
    assert len({one["id"] for one in listed["items"]}) == listed["meta"]["count"]
    assert listed["meta"]["pages"] == -(-listed["meta"]["count"] // 3)


async def test_a_payment_is_made_and_given_up(stripe: Stripe) -> None:
    customer = await stripe.ask("create_customer", email="payer@example.org")
    payment = await stripe.ask(
        "create_payment_intent", amount=1999, currency="eur", customer=customer["id"],
        payment_method_types=["card"], metadata={"order": "7"},
    )  # fmt: skip

    over = await stripe.ask("cancel_payment_intent", payment_intent=payment["id"])

    assert (payment["amount"], payment["currency"]) == (1999, "eur")
    assert (over["id"], over["status"]) == (payment["id"], "canceled")


async def test_what_is_not_there_and_who_may_not_are_told_in_its_words(stripe: Stripe) -> None:
    nobody = Account("inline", fields={"secretKey": "no-key"})

    with pytest.raises(NodeError, match="Not Found") as missing:
        await stripe.ask("get_customer", customer="cus_nobody")
    with pytest.raises(NodeError) as refused:
        await stripe.ask("get_customer", customer="cus_nobody", as_=nobody)

    assert (missing.value.code, refused.value.code) == ("not_found", "unauthorized")
