"""Reads code and says what keeps it from running. Read as a text and run in the sandbox itself, never imported."""

import ast


def run(params, context):
    """For each of `sources`, `[code, entry point]`: what is wrong, `{line, column, message}`, or None."""
    return [problem(*source) for source in params["sources"]]


def problem(source, entry):
    try:
        tree = ast.parse(source, "<code>")
        compile(source, "<code>", "exec", dont_inherit=True)
    except SyntaxError as error:
        return told(error.lineno, error.offset, error.msg)
    except (ValueError, OverflowError) as error:
        return told(1, 1, str(error))
    except (MemoryError, RecursionError):
        return told(1, 1, "it is nested too deep, or too large, to be read")
    names = set()
    for node in tree.body:
        names |= defined(node)
    if entry in names or "*" in names:
        return None
    return told(
        1,
        1,
        f"entry point {entry} is not exported as a function; define `def {entry}(params, context):`",
    )


def defined(node):
    """What a statement of a module defines, as far as one can see; `*`: who knows."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return {node.name}
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return {(one.asname or one.name).partition(".")[0] for one in node.names}
    if isinstance(node, ast.Assign):
        return {
            one.id
            for target in node.targets
            for one in ast.walk(target)
            if isinstance(one, ast.Name)
        }
    if isinstance(node, (ast.AnnAssign, ast.Expr)):
        return {node.target.id} if isinstance(getattr(node, "target", None), ast.Name) else set()
    return {"*"}  # in a branch, a loop, a try


def told(line, column, message):
    return {"line": max(line or 1, 1), "column": max(column or 1, 1), "message": message}
