"""A nested value as one flat map with dotted names, as sheets and forms want it.

params: {"value": {"a": {"b": [1, {"c": 2}]}, "d": null}}
result: {"a.b.0": 1, "a.b.1.c": 2, "d": null}
"""


def run(params, context):
    return dict(flat(params["value"], ""))


def flat(value, name):
    if isinstance(value, dict) and value:
        inner = value.items()
    elif isinstance(value, list) and value:
        inner = enumerate(value)
    else:
        yield name, value
        return
    for key, one in inner:
        yield from flat(one, f"{name}.{key}" if name else str(key))
