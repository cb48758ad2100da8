"""What is delivered in a crash run: to which workflow, and what befalls each delivery besides the deaths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

LIMIT = 3  # executions of the workflow `crash` that may run at once
BRIEF = 5  # ms between the steps
ENDLESS = 3_600_000  # ms: it waits until somebody cancels it
A_TIMER = 1_050  # ms: just long enough that no worker place is held meanwhile

Decision = Literal["retry", "skip", "fail"]
# busy: declined, nothing was done. later: so, and to be asked again after so long that a timer does it.
# drop: taken in, but the connection is closed without an answer.
Answer = Literal["busy", "later", "drop"]

WORKFLOW = """
id: crash
concurrency: {limit}
vars: {{service: "{url}"}}
nodes:
  - {{id: hook, type: trigger.webhook.inbound, params: {{path: crash}}}}
  - {{id: look, type: action.http.request, params: {{url: "{{{{ vars.service }}}}/look", headers: {head}}}}}
  - {{id: pick, type: transform.data.set, params: {{values: {{n: "{{{{ hook.body.delivery }}}}"}}}}}}
  - id: book
    type: action.http.request
    effect: keyed
    retry: {retry}
    params: {{method: POST, url: "{{{{ vars.service }}}}/book", headers: {head}, json: "{{{{ pick }}}}"}}
  - {{id: pause, type: action.time.delay, params: {{delayMs: "{{{{ hook.body.pauseMs }}}}"}}}}
  - id: tell
    type: action.http.request
    retry: {retry}
    params: {{method: PUT, url: "{{{{ vars.service }}}}/tell", headers: {head}}}
  - id: mail
    type: action.http.request
    retry: {retry}
    params: {{method: POST, url: "{{{{ vars.service }}}}/mail", headers: {head}}}
edges:
  - {{from: hook, to: look}}
  - {{from: look, to: pick}}
  - {{from: pick, to: book}}
  - {{from: book, to: pause}}
  - {{from: pause, to: tell}}
  - {{from: hook, to: mail}}
"""
# A loop of keyed steps, each behind a pure node.
PARTS = """
id: parts
vars: {{service: "{url}"}}
nodes:
  - {{id: hook, type: trigger.webhook.inbound, params: {{path: parts}}}}
  - id: each
    type: logic.foreach
    params: {{items: {items}, concurrency: 3, collect: "{{{{ [pick.n, part.body.path] }}}}"}}
    nodes:
      - {{id: pick, type: transform.data.set, params: {{values: {{n: "{{{{ item }}}}"}}}}}}
      - id: part
        type: action.http.request
        effect: keyed
        retry: {retry}
        params: {{method: POST, url: "{{{{ vars.service }}}}/part/{{{{ index }}}}", headers: {head}, json: "{{{{ pick }}}}"}}
    edges: [{{from: pick, to: part}}]
edges: [{{from: hook, to: each}}]
"""
# A loop of unsafe steps.
MAILS = """
id: mails
vars: {{service: "{url}"}}
nodes:
  - {{id: hook, type: trigger.webhook.inbound, params: {{path: mails}}}}
  - id: each
    type: logic.foreach
    params: {{items: {mails}, concurrency: 2, collect: "{{{{ item }}}}"}}
    nodes:
      - id: send
        type: action.http.request
        retry: {retry}
        params: {{method: POST, url: "{{{{ vars.service }}}}/send/{{{{ index }}}}", headers: {head}}}
edges: [{{from: hook, to: each}}]
"""
# Calls of another workflow, one by itself, then some in a loop.
ASK = """
id: ask
nodes:
  - {{id: hook, type: trigger.webhook.inbound, params: {{path: ask}}}}
  - id: one
    type: action.workflow.run
    params: {{workflowId: answer, input: {{n: one, delivery: "{{{{ hook.body.delivery }}}}"}}}}
  - id: rest
    type: logic.foreach
    params: {{items: {asks}, concurrency: 2, collect: "{{{{ [one.n, more.n] }}}}"}}
    nodes:
      - id: more
        type: action.workflow.run
        params: {{workflowId: answer, input: {{n: "{{{{ item }}}}", delivery: "{{{{ hook.body.delivery }}}}"}}}}
edges: [{{from: hook, to: one}}, {{from: one, to: rest}}]
"""
ANSWER = """
id: answer
vars: {{service: "{url}"}}
nodes:
  - {{id: start, type: trigger.time.manual}}
  - id: post
    type: action.http.request
    effect: keyed
    retry: {retry}
    params: {{method: POST, url: "{{{{ vars.service }}}}/answer", headers: {called_head}}}
  - {{id: give, type: transform.data.set, params: {{values: {{n: "{{{{ start.n }}}}"}}}}}}
edges: [{{from: start, to: post}}, {{from: post, to: give}}]
"""
ITEMS = [11, 12, 13, 14, 15, 16]
MAILED = [21, 22, 23]
ASKED = [31, 32, 33]
HEAD = '{x-execution: "{{ execution.id }}", x-delivery: "{{ hook.body.delivery }}"}'
CALLED_HEAD = HEAD.replace("hook.body", "start")
# A try that a death cut off counts: enough of them for two deaths and two refusals.
RETRY = "{maxAttempts: 10, initialMs: 30}"

PARTS_AT = {f"/part/{index}": f"each[{index}].part" for index in range(len(ITEMS))}
MAILS_AT = {f"/send/{index}": f"each[{index}].send" for index in range(len(MAILED))}
NODE_AT = {
    "/look": "look",
    "/book": "book",
    "/tell": "tell",
    "/mail": "mail",
    "/answer": "post",
    **PARTS_AT,
    **MAILS_AT,
}
UNSAFE_AT = ("/mail", *MAILS_AT)
UNSAFE = frozenset(NODE_AT[path] for path in UNSAFE_AT)
# By workflow: where its keyed steps are asked for, each with the end of its key.
KEYS = {
    "crash": {"/book": "book"},
    "parts": {f"/part/{index}": f"part:{index}" for index in range(len(ITEMS))},
    "answer": {"/answer": "post"},
}
# By workflow: what it gives, whole and in order, whatever happened meanwhile.
GIVES = {
    "parts": [[item, path] for item, path in zip(ITEMS, PARTS_AT, strict=True)],
    "mails": MAILED,
    "ask": [["one", item] for item in ASKED],
}
# By workflow: its node runs that call another one.
CALLS = {"ask": {"one", *(f"rest[{index}].more" for index in range(len(ASKED)))}}


def workflows(url: str) -> list[str]:
    """The documents, what is called before what calls it."""
    return [
        document.format(
            url=url,
            head=HEAD,
            called_head=CALLED_HEAD,
            retry=RETRY,
            limit=LIMIT,
            items=ITEMS,
            mails=MAILED,
            asks=ASKED,
        )
        for document in (ANSWER, ASK, MAILS, PARTS, WORKFLOW)
    ]


@dataclass(frozen=True, slots=True)
class Story:
    """What is special about a delivery.

    Attributes:
        workflow: that it is delivered to.
        answers: what the far side says to its first requests, by path; 200 to all others.
        cancel: when it is cancelled: as soon as it is acknowledged, while its request at this path is open
            (it stays open until the cancel is acknowledged), or while it waits.
        decision: what is said about an uncertain step as soon as the execution is uncertain. Of others that a death
            made uncertain, only once it has been looked at that they are.
        pause: ms between its steps.
        ends: the states it may end in.
    """

    workflow: str = "crash"
    answers: Mapping[str, tuple[Answer, ...]] = field(default_factory=dict)
    cancel: Literal["at once", "waiting", "/look", "/mail", "/answer"] | None = None
    decision: Decision | None = None
    pause: int = BRIEF
    ends: frozenset[str] = frozenset({"completed"})


_CANCELLED = frozenset({"cancelled"})

# The last one waits for a timer and for a far side that asks for patience: only where that time is spent.
STORIES = (
    Story(),
    Story(),
    Story(answers={"/tell": ("busy", "busy")}),
    Story(answers={"/book": ("busy",)}),
    Story(answers={"/mail": ("busy",)}),
    Story(answers={"/mail": ("drop",)}, decision="retry"),
    Story(answers={"/mail": ("drop",)}, decision="skip"),
    Story(answers={"/mail": ("drop",)}, decision="fail", ends=frozenset({"failed"})),
    Story(cancel="/look", ends=_CANCELLED),
    Story(cancel="/mail", ends=_CANCELLED),
    Story(cancel="waiting", pause=ENDLESS, ends=_CANCELLED),
    Story(cancel="at once", ends=_CANCELLED | {"completed"}),
    Story(),
    Story("parts"),
    Story("parts", answers={"/part/1": ("busy", "busy"), "/part/4": ("busy",)}),
    Story("mails"),
    Story("mails", answers={"/send/1": ("drop",)}, decision="retry"),
    Story("ask"),
    Story("ask", cancel="/answer", ends=_CANCELLED),
    Story(answers={"/tell": ("later",)}, pause=A_TIMER),
)
PATIENT = len(STORIES) - 1
DECISIONS: tuple[Decision, ...] = (
    "retry",
    "skip",
    "fail",
)  # in turn, of steps that a death cut off
ENDS_AFTER = {"retry": "completed", "skip": "completed", "fail": "failed"}
