"""Habits that a syntax tree shows: sizes, docstrings, unsafe loading, tests that assert nothing; and texts that no
file may hold."""

import ast
import re

from guards.tree import syntax

MODULE_LINES, TEST_LINES, FUNCTION_LINES, TOOL_LINES = 300, 500, 50, 60

FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef
ASSERTING = re.compile(r"(^|\.)_?(assert|check|expect|raises|warns|fail)")


def too_long(path: str, source: str, exceptions: dict[str, int] | None = None) -> list[str]:
    """Modules of 300 lines and more (500 under tests/, where a file is a list of properties), functions of 50 and more
    (docstring included, decorators not), tools above 60.

    `exceptions` gives another limit to ``path`` or ``path:function``.
    """
    limits = exceptions or {}
    findings = []
    lines = len(source.splitlines())
    limit = limits.get(path, TEST_LINES if path.startswith("tests/") else MODULE_LINES)
    if lines >= limit:
        findings.append(f"{path}:1: {lines} lines; a module has less than {limit}")
    if re.fullmatch(r"tools/\w+\.py", path) and lines > TOOL_LINES:
        findings.append(f"{path}:1: {lines} lines; a tool has at most {TOOL_LINES}, its work is in the package")
    for node in ast.walk(syntax(source)):
        if isinstance(node, FUNCTIONS):
            limit = limits.get(f"{path}:{node.name}", FUNCTION_LINES)
            lines = node.end_lineno - node.lineno + 1
            if lines >= limit:
                findings.append(
                    f"{path}:{node.lineno}: {node.name} has {lines} lines; a function has less than {limit}"
                )
    return findings


def undocumented(path: str, source: str) -> list[str]:
    """The module, its public classes and functions and their public methods that have no docstring.

    An empty __init__.py has nothing to say, and a command's main() is what its module says. Under tests/ only modules
    need one: test functions are named after what they show.
    """
    tree = syntax(source)
    findings = []
    if tree.body and not ast.get_docstring(tree):
        findings.append(f"{path}:1: the module has no docstring")
    todo = [] if path.startswith("tests/") else list(tree.body)
    while todo:
        node = todo.pop(0)
        if not isinstance(node, FUNCTIONS | ast.ClassDef) or node.name.startswith("_") or node.name == "main":
            continue
        if isinstance(node, ast.ClassDef):
            todo += node.body
        if not ast.get_docstring(node):
            findings.append(f"{path}:{node.lineno}: {node.name} has no docstring")
    return findings


def unsafe_calls(path: str, source: str) -> list[str]:
    """Loading that can run code from a file, and text run as code or as a shell command."""
    findings = []
    for node in ast.walk(syntax(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
            if {"pickle", "dill", "cloudpickle", "marshal", "shelve"} & {name.split(".")[0] for name in names}:
                findings.append(f"{path}:{node.lineno}: imports a pickle; keep data in JSON, safetensors or numpy")
        elif isinstance(node, ast.Call):
            reason = _unsafe(ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords})
            if reason:
                findings.append(f"{path}:{node.lineno}: {reason}")
    return findings


def _unsafe(name: str, words: dict[str | None, str]) -> str | None:
    """The reason why a call by this name with these keyword arguments is refused."""
    if name == "torch.load" and words.get("weights_only") != "True":
        return "torch.load without weights_only=True"
    if name in ("eval", "exec", "os.system"):
        return f"{name}() runs text as code"
    if name.endswith(("yaml.load", "yaml.unsafe_load", "yaml.full_load")) and "Safe" not in words.get("Loader", ""):
        return f"{name} without a safe loader"
    for word, bad in (("allow_pickle", "True"), ("trust_remote_code", "True"), ("shell", "True")):
        if words.get(word) == bad:
            return f"{name} with {word}={bad}"
    return None


def tests_without_assertion(path: str, source: str) -> list[str]:
    """Test functions that cannot fail: no assert, no pytest.raises, no call of a function that asserts.

    A function counts as asserting by its name (check_..., assert_...) or, in the same file, by its body.
    """
    functions = {node.name: node for node in ast.walk(syntax(source)) if isinstance(node, FUNCTIONS)}
    asserting = {name for name, node in functions.items() if _asserts(node)}
    while more := {name for name, node in functions.items() if _calls(node) & asserting} - asserting:
        asserting |= more
    return [
        f"{path}:{node.lineno}: {name} asserts nothing"
        for name, node in functions.items()
        if name.startswith("test_") and name not in asserting
    ]


def _asserts(function: ast.AST) -> bool:
    """Whether a function has an assert on something that varies, or calls an asserting helper by its name."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assert) and not isinstance(node.test, ast.Constant):
            return True
        if isinstance(node, ast.Call) and ASSERTING.search(ast.unparse(node.func)):
            return True
    return False


def _calls(function: ast.AST) -> set[str]:
    """Names of the functions and methods that a function calls."""
    names = (ast.unparse(node.func) for node in ast.walk(function) if isinstance(node, ast.Call))
    return {name.rpartition(".")[2] for name in names}


FORBIDDEN_TEXTS = {
    r"(?<![\w.$}/-])/(work|root|home|Users)\b": "an absolute path of one machine",
    r"\b0\.0\.0\.0\b": "a listener on every network interface; take 127.0.0.1",
    r"\b(extra-)?index[-_]url\b|\bfind[-_]links\b": "where packages come from is the user's setting",
    r"\b(pypi\.org|pythonhosted\.org|download\.pytorch\.org|pypi\.nvidia\.com|ngc\.nvidia\.com)\b": "a registry's host",
}


def forbidden_texts(path: str, text: str) -> list[str]:
    """Lines that name a machine's own folders, a package registry, or listen to the whole network."""
    return [
        f"{path}:{number}: {match[0]!r}: {reason}"
        for number, line in enumerate(text.splitlines(), start=1)
        for pattern, reason in FORBIDDEN_TEXTS.items()
        if (match := re.search(pattern, line))
    ]
