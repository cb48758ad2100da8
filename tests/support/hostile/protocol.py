"""Scenarios 86 to 97: what a run sends. Its bytes are a claim, and no more."""

from __future__ import annotations

from typing import Final

from support.hostile.case import Case

SHORT: Final = {"timeout": 0.4}
FLOOD: Final = {"cpu_ms": 20_000, "timeout": 30.0}
QUIET: Final = (
    100.0  # seconds between beats of the sandbox's own end, which would stand between forged bytes
)

PROTOCOL: Final = [
    Case(86, "stdout without end", """
        def run(params, context):
            while True:
                os.write(1, b"x" * 65536)
    """, ("output",), limits=FLOOD, beat=QUIET),
    Case(86, "stderr without end, in lines", """
        def run(params, context):
            while True:
                os.write(2, b"\\n" * 65536)
    """, ("output",), limits=FLOOD, beat=QUIET),
    Case(86, "log without end", """
        def run(params, context, log):
            while True:
                log("x" * 100)
    """, ("output",), limits=FLOOD, beat=QUIET),
    Case(86, "logs of nothing, many at once", """
        def run(params, context):
            one = frame(b'{"type":"log","level":"info","message":""}')
            while True:
                os.write(3, one * 4000)
    """, ("output",), limits=FLOOD, beat=QUIET),
    Case(86, "beats without end", """
        def run(params, context):
            one = frame(b'{"type":"beat"}')
            while True:
                os.write(3, one * 4000)
    """, ("output",), limits=FLOOD, beat=QUIET),
    Case(86, "requests without end", """
        def run(params, context):
            one = frame(b'{"type":"call","call":{"url":"http://127.0.0.1/"}}')
            for _ in range(200_000):
                os.write(3, one)
            return "got through"
    """, ("output", "timeout"), limits={"timeout": 0.5}, beat=QUIET),
    Case(86, "violations without end", """
        def run(params, context):
            one = frame(b'{"type":"violation","event":{"type":"x"}}')
            while True:
                os.write(3, one * 4000)
    """, ("output",), limits=FLOOD, beat=QUIET),
    Case(87, "a result as text", """
        def run(params, context):
            content = b'{"type":"done","result":"forged"}'
            os.write(1, frame(content) + b"\\n" + content + b"\\n")
            return "held"
    """),
    Case(88, "a result without end", "def run(params, context):\n    return 'x' * (3 << 20)", ("output",)),
    Case(88, "a result of a gigabyte, announced", """
        def run(params, context):
            os.write(3, struct.pack(">I", 1 << 30))
            os.write(3, b"x" * 100)
            time.sleep(100)
    """, ("output",)),
    Case(89, "a length that lies", """
        def run(params, context):
            os.write(3, struct.pack(">I", 1000) + b'{"type":"done","result":1}')
            os._exit(0)
    """, ("no result",)),
    Case(89, "no length", """
        def run(params, context):
            os.write(3, struct.pack(">I", 0) * 10)
            time.sleep(100)
    """, ("bad result",)),
    Case(90, "two results", """
        def run(params, context):
            forge(b'{"type":"done","result":"held"}')
            return "a second one"
    """),
    Case(90, "a result from a thread, and on", """
        def run(params, context):
            threading.Thread(target=forge, args=(b'{"type":"done","result":"held"}',)).start()
            time.sleep(100)
    """, waits=True),
    Case(90, "a result, then without end", """
        def run(params, context):
            forge(b'{"type":"done","result":"held"}')
            while True:
                os.write(1, b"x" * 65536)
    """, ("ok", "output"), limits=FLOOD),
    Case(91, "a byte now and then", """
        def run(params, context):
            for one in frame(b'{"type":"done","result":"held"}') * 100:
                os.write(3, bytes([one]))
                time.sleep(0.05)
    """, ("timeout",), limits=SHORT, silence=0.2, beat=QUIET, waits=True),
    *[
        Case(92, f"forged, {name}", f"def run(params, context):\n    forge({content})\n    time.sleep(100)",
             ("bad result",))
        for name, content in (
            ("deep", "b'{\"type\":\"done\",\"result\":' + b'[' * 200_000 + b']' * 200_000 + b'}'"),
            ("NaN", "b'{\"type\":\"done\",\"result\":NaN}'"),
            ("half a pair", "b'{\"type\":\"done\",\"result\":\"\\\\ud800\"}'"),
            ("not UTF-8", "b'{\"type\":\"done\",\"result\":\"\\xff\"}'"),
            ("twice a key", "b'{\"type\":\"done\",\"result\":1,\"result\":2}'"),
            ("5000 digits", "b'{\"type\":\"done\",\"result\":' + b'9' * 5000 + b'}'"),
            ("a list", "b'[]'"), ("a number", "b'1'"), ("no type", "b'{}'"), ("no JSON", "b'done'"),
        )
    ],
    *[
        Case(92, f"returned, {name}", f"def run(params, context):\n    return {value}", ("error", "bad result"))
        for name, value in (
            ("NaN", "{'a': [float('nan')]}"), ("infinity", "float('inf')"), ("deep", "eval('[' * 90 + ']' * 90) and __import__('functools').reduce(lambda x, _: [x], range(100_000), 1)"),
            ("itself", "(lambda x: x.append(x) or x)([])"), ("half a pair", "'\\ud800'"), ("keys", "{1: 2}"),
            ("a set", "{1, 2}"),
        )
    ],
    Case(92, "raised, half a pair", "def run(params, context):\n    raise ValueError('\\ud800 is half')", ("error",)),
    Case(92, "printed, half a pair", """
        def run(params, context, log):
            log("\\ud800", {"a": "\\udfff"})
            return "held"
    """),
    *[
        Case(92, f"forged end, {name}", f"def run(params, context):\n    forge({content})\n    time.sleep(100)", ("error",), waits=True)
        for name, content in (
            ("no words", "b'{\"type\":\"done\",\"error\":null}'"),
            ("odd words", "b'{\"type\":\"done\",\"error\":{\"name\":[1],\"message\":{\"a\":1},\"trace\":1e9}}'"),
        )
    ],
    Case(92, "odd messages", """
        def run(params, context):
            for one in (
                b'{"type":"log"}', b'{"type":"log","level":{},"message":[]}', b'{"type":null}', b'{"type":["done"]}',
                b'{"type":"violation"}', b'{"type":"violation","event":[1]}', b'{"type":"started","run":1}',
                b'{"type":"call"}', b'{"type":"call","call":{}}', b'{"type":"call","call":{"url":{},"headers":[],"timeout":"x"}}',
            ):
                forge(one)
            return "held"
    """),
    Case(93, "an object of one's own", """
        class Odd:
            def __reduce__(self):
                return (os.system, ("id",))
        def run(params, context):
            return Odd()
    """, ("error",)),
    Case(93, "dictionaries and texts of one's own", """
        class Map(dict):
            def items(self):
                return [("a", Text("held"))]
        class Text(str):
            def __str__(self):
                raise SystemExit
        def run(params, context):
            return Map(a=1)
    """, ("error", "ok*")),
    Case(94, "exit without a result", "def run(params, context):\n    os._exit(0)", ("no result",)),
    Case(94, "exit with a number", "def run(params, context):\n    os._exit(9)", ("crash",)),
    Case(95, "everything closed", """
        def run(params, context):
            os.closerange(0, 64)
            return "held"
    """, ("no result", "crash")),
    Case(95, "everything closed, and on", """
        def run(params, context):
            os.closerange(0, 64)
            while True:
                pass
    """, ("no result",), waits=True),
    Case(95, "the way in and out is swapped", """
        def run(params, context):
            os.dup2(1, 3)
            return "held"
    """, ("no result",)),
    Case(96, "escapes in the log", """
        def run(params, context, log):
            print("\\x1b]0;owned\\x07\\x1b[2J\\r2026-01-01 [error] forged\\x00")
            log("\\x1b[31mred")
            forge(b'{"type":"log","level":"\\\\u001b[2J","message":"x"}')
            return "held"
    """),
    Case(97, "claims about itself", """
        def run(params, context):
            sum(range(3_000_000))
            forge(b'{"type":"ended","status":0,"cpuMs":0}')
            forge(b'{"type":"done","result":"held","cpuMs":0,"isolation":{"level":3},"verdict":"ok","status":0}')
            time.sleep(100)
    """, waits=True),
]  # fmt: skip
