"""What is delivered in a crash run: one workflow, and for each delivery what befalls it besides the deaths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

LIMIT = 3  # executions of the workflow that may run at once
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
HEAD = '{x-execution: "{{ execution.id }}", x-delivery: "{{ hook.body.delivery }}"}'
# A try that a death cut off counts: enough of them for two deaths and two refusals.
RETRY = "{maxAttempts: 10, initialMs: 30}"

NODE_AT = {"/look": "look", "/book": "book", "/tell": "tell", "/mail": "mail"}
UNSAFE = "mail"


def workflow(url: str) -> str:
    return WORKFLOW.format(url=url, head=HEAD, retry=RETRY, limit=LIMIT)


@dataclass(frozen=True, slots=True)
class Story:
    """What is special about a delivery.

    Attributes:
        answers: what the far side says to its first requests, by path; 200 to all others.
        cancel: when it is cancelled: as soon as it is acknowledged, while its request at this path is open
            (it stays open until the cancel is acknowledged), or while it waits.
        decision: what is said about its uncertain step as soon as it is uncertain. Of others that a death
            made uncertain, only once it has been looked at that they are.
        pause: ms between its steps.
        ends: the states it may end in.
    """

    answers: Mapping[str, tuple[Answer, ...]] = field(default_factory=dict)
    cancel: Literal["at once", "waiting", "/look", "/mail"] | None = None
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
    Story(answers={"/tell": ("later",)}, pause=A_TIMER),
)
PATIENT = len(STORIES) - 1
DECISIONS: tuple[Decision, ...] = (
    "retry",
    "skip",
    "fail",
)  # in turn, of steps that a death cut off
ENDS_AFTER = {"retry": "completed", "skip": "completed", "fail": "failed"}
