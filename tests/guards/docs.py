"""Documents against the tree: paths, folder trees, make targets, shell commands and their flags, YAML files."""

import fnmatch
import re
import shlex
from collections.abc import Iterable, Iterator

import yaml

SOURCES = (".py", ".sh", ".md", ".html", ".yaml", ".yml", ".toml", ".lock", ".sbatch", ".cfg")
OUTPUTS = ("runs", "build", ".venv", ".venv-vllm")
SHELLS = ("sh", "bash", "shell", "console")
INTERPRETERS = ("python", "python3", "python3.12", ".venv/bin/python", "sh", "bash")


def blocks(markdown: str) -> Iterator[tuple[int, str, str]]:
    """(line of its first line, language, text) of each fenced block."""
    for match in re.finditer(r"^```(\w*)[^\n]*\n(.*?)^```", markdown, re.M | re.S):
        yield markdown.count("\n", 0, match.start(2)) + 1, match[1], match[2]


def spans(markdown: str) -> Iterator[tuple[int, str]]:
    """(line, text) of each code span outside the fenced blocks."""
    text = re.sub(r"^```.*?^```", lambda match: "\n" * match[0].count("\n"), markdown, flags=re.M | re.S)
    for number, line in enumerate(text.splitlines(), start=1):
        for match in re.finditer(r"`([^`]+)`", line):
            yield number, match[1]


def exists(name: str, files: Iterable[str], *, anywhere: bool) -> bool:
    """Whether a file or folder of this name (a glob too) is in the tree; `anywhere`: also as the end of a path."""
    name = name.rstrip("/")
    paths = {"/".join(path.split("/")[:end]) for path in files for end in range(1, path.count("/") + 2)}
    return any(fnmatch.fnmatch(path, name) or (anywhere and fnmatch.fnmatch(path, f"*/{name}")) for path in paths)


def looks_like_path(word: str, files: Iterable[str]) -> bool:
    """Whether a word means a file of the project: it ends like a source file or begins with one of our folders.

    Outputs (runs/...), placeholders (MODEL.yaml, <file>, $VAR) and files of others (/etc, ~, URLs) do not count.
    """
    if not re.fullmatch(r"[\w.*/-]+", word) or word.startswith(("/", "-", "..")) or word.startswith("*."):
        return False
    first = word.split("/")[0]
    if first in OUTPUTS or re.fullmatch(r"[A-Z_]+\.(yaml|sh|py)", word):
        return False
    tops = {path.split("/")[0] for path in files}
    return word.endswith(SOURCES) or ("/" in word and first in tops)


def missing_paths(path: str, markdown: str, files: Iterable[str]) -> list[str]:
    """Paths in code spans that are not in the tree; ``data/corpus.py`` may leave out the folders before it."""
    return [
        f"{path}:{line}: {word} does not exist"
        for line, span in spans(markdown)
        for word in span.split()
        if looks_like_path(word, files) and not exists(word, files, anywhere=True)
    ]


def tree_entries(markdown: str) -> Iterator[tuple[int, str]]:
    """(line, path) of each entry in the folder trees: unlabelled blocks that begin with ``folder/``.

    Indentation (or lines drawn with box characters) gives the parent; file names that follow a folder on its line are
    inside it.
    """
    for start, language, text in blocks(markdown):
        if language not in ("", "text") or not text.split() or not text.split()[0].endswith("/"):
            continue
        stack: list[tuple[int, str]] = []
        for number, line in enumerate(text.splitlines(), start=start):
            line = re.sub("[│├└─]", " ", line)
            words = [word.strip("(),;:") for word in line.split()]
            if not words or not (words[0].endswith(("/", *SOURCES)) or words[0] in ("Makefile", "LICENSE")):
                continue
            indent = len(line) - len(line.lstrip())
            while stack and stack[-1][0] >= indent:
                stack.pop()
            parent = stack[-1][1] if stack else ""
            yield number, parent + words[0]
            if words[0].endswith("/"):
                stack.append((indent, parent + words[0]))
                yield from ((number, parent + words[0] + word) for word in words[1:] if word.endswith(SOURCES))


def wrong_trees(path: str, markdown: str, files: Iterable[str]) -> list[str]:
    """Entries of the folder trees that do not exist."""
    entries = tree_entries(markdown)
    return [
        f"{path}:{line}: {name} does not exist" for line, name in entries if not exists(name, files, anywhere=False)
    ]


def missing_from_tree(path: str, markdown: str, wanted: Iterable[str]) -> list[str]:
    """Files that the folder trees of a document should name and do not; a glob names all that it matches."""
    named = {name for _, name in tree_entries(markdown)}
    globs = [name for name in named if "*" in name]
    return [
        f"{path}:1: the tree does not name {file}"
        for file in wanted
        if file not in named and not any(fnmatch.fnmatch(file, name) for name in globs)
    ]


def commands(markdown: str) -> Iterator[tuple[int, list[str]]]:
    """(line, words) of each simple command in the shell blocks, without prompt, comment and leading assignments."""
    for start, language, text in blocks(markdown):
        pending = ""
        for number, line in enumerate(text.splitlines() if language in SHELLS else (), start=start):
            if line.endswith("\\"):
                pending += line[:-1] + " "
                continue
            if language != "console" or line.startswith("$ "):  # other lines of a console are its output
                yield from ((number, words) for words in simple_commands(pending + line.removeprefix("$ ")))
            pending = ""


def simple_commands(line: str) -> Iterator[list[str]]:
    """``A=1 cd x && make y | tail  # why`` to ["cd", "x"], ["make", "y"], ["tail"]."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if word in (";", "&&", "||", "|", "&", "(", ")"):
            if words:
                yield words
            words = []
        elif words or not re.match(r"\w+=", word):
            words.append(word)


def broken_commands(path: str, markdown: str, files: Iterable[str]) -> list[str]:
    """Shell commands that name a script, a module or a file of ours that does not exist."""
    findings = []
    for line, words in commands(markdown):
        for before, word in zip(["", *words], words, strict=False):
            if before == "-m" and word.startswith("megatron_chimed"):
                word = word.replace(".", "/")
                known = exists(f"{word}.py", files, anywhere=False) or exists(
                    f"{word}/__main__.py", files, anywhere=False
                )
            elif before in INTERPRETERS or "/" in word:
                known = not looks_like_path(word, files) or exists(word, files, anywhere=False)
            else:
                continue
            if not known:
                findings.append(f"{path}:{line}: {word} does not exist")
    return findings


def unknown_targets(path: str, markdown: str, makefile: str) -> list[str]:
    """`make X` in a code span or a shell block where the Makefile has no target X."""
    targets = set(re.findall(r"^([a-z][\w-]*)\s*:(?!=)", makefile, re.M))
    lines = [*commands(markdown), *((line, span.split()) for line, span in spans(markdown))]
    return [
        f"{path}:{line}: the Makefile has no target {word}"
        for line, words in lines
        if words and words[0] == "make"
        for word in words[1:]
        if "=" not in word and not word.startswith("-") and re.fullmatch(r"[\w-]+", word) and word not in targets
    ]


def called(words: list[str], helps: Iterable[str]) -> list[str]:
    """Those of `helps` that a shell command calls: by a tool's path, or as ``chimed NAME``."""
    found = [tool for tool in helps if tool in words]
    if words[:1] == ["chimed"]:
        found += [name for name in (" ".join(words[:3]), " ".join(words[:2])) if name in helps][:1]
    return found


def unknown_commands(path: str, markdown: str, helps: Iterable[str]) -> list[str]:
    """``chimed NAME`` in a shell block where there is no such command."""
    return [
        f"{path}:{line}: there is no command {' '.join(words[:3])}"
        for line, words in commands(markdown)
        if words[0] == "chimed" and not called(words, helps) and words[1:] not in ([], ["--help"], ["--version"])
    ]


def unknown_flags(path: str, markdown: str, helps: dict[str, str]) -> list[str]:
    """Flags in shell commands that the --help of the tool (by path) or command (``chimed NAME``) does not name.

    Those of ``chimed train`` are Megatron's, and there are hundreds.
    """
    return [
        f"{path}:{line}: {tool} has no flag {flag}"
        for line, words in commands(markdown)
        for tool in called(words, helps)
        if tool != "chimed train"
        for flag in (word.split("=")[0] for word in words if word.startswith("--"))
        if not re.search(re.escape(flag) + r"(?![\w-])", helps[tool])
    ]


class _Strict(yaml.SafeLoader):
    """YAML's safe loader, in which a key given twice is an error."""


def _mapping(loader: _Strict, node: yaml.MappingNode) -> dict:
    """A mapping whose keys differ."""
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    for key, (key_node, _) in zip(keys, node.value, strict=True):
        if keys.count(key) > 1:
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
    return loader.construct_mapping(node, deep=True)


_Strict.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))  # of lm-eval's task files
_Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def broken_yaml(path: str, text: str) -> list[str]:
    """Why a YAML file does not load strictly."""
    try:
        list(yaml.load_all(text, Loader=_Strict))
    except yaml.MarkedYAMLError as error:
        return [f"{path}:{error.problem_mark.line + 1}: {error.problem}"]
    return []
