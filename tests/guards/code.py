"""Habits that ruff or a syntax tree shows: docstrings, unsafe loading, sizes, tests that assert nothing; and texts that
no file may hold."""

import ast
import re
import subprocess
import sys

from guards.tree import ROOT, syntax

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


def ruff(path: str, source: str) -> list[str]:
    """What ruff, with the settings of pyproject.toml, finds in a file of this name and content."""
    command = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--quiet",
        "--output-format=concise",
        "--stdin-filename",
        path,
        "-",
    ]
    done = subprocess.run(command, cwd=ROOT, input=source, capture_output=True, text=True, timeout=60)
    assert done.returncode in (0, 1), done.stderr
    return [line for line in done.stdout.splitlines() if re.match(r".*:\d+:\d+: ", line)]


def unsafe_calls(path: str, source: str) -> list[str]:
    """Loading that can run code from a file, where ruff has no rule for it (S301, S307 and S506 know other loaders)."""
    findings = []
    for node in ast.walk(syntax(source)):
        if isinstance(node, ast.Call):
            name, words = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
            if name == "torch.load" and words.get("weights_only") != "True":
                findings.append(f"{path}:{node.lineno}: torch.load without weights_only=True")
            for word in ("allow_pickle", "trust_remote_code"):
                if words.get(word) == "True":
                    findings.append(f"{path}:{node.lineno}: {name} with {word}=True")
    return findings


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
