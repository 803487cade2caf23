"""The project's rules, held against every file: who may import what, sizes, documents that agree with the tree, YAML.

Each rule has its control beside it: a small offending piece that the checker must report, or the rule shows nothing.
"""

import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from guards import code, coverage, docs, graph, imports, lora_table, tree, upstream
from megatron_chimed import config
from megatron_chimed.commands.main import COMMANDS
from megatron_chimed.models.options import ModelOptions
from megatron_chimed.rejection.config import read_config
from megatron_chimed.stages.options import STAGES
from megatron_chimed.training.options import JobOptions
from megatron_chimed.training.upstream import PATCHES, PRIVATE_NAMES

LONGER = {}
"""Named exceptions to the sizes: ``path`` or ``path:function`` to its own limit."""

DOCUMENTS = [path for path in tree.files() if re.fullmatch(r"(README[.\w]*|CONTRIBUTING|docs/.*)\.md", path)]
PACKAGE = tree.python_files("megatron_chimed/")
PROGRAMS = tree.python_files("megatron_chimed/", "tools/", "launch/", "examples/", "benchmarks/")
TOOLS = tree.python_files("tools/")
YAMLS = [path for path in tree.files() if path.endswith((".yaml", ".yml"))]
LOOPS = [path for path in YAMLS if path.endswith("/rejection.yaml")]


def over(paths, checker, *more) -> list[str]:
    """The findings of a checker over files."""
    assert paths, "no files to check: the listing is broken"
    return [finding for path in paths for finding in checker(path, tree.read(path), *more)]


# Who may import what.


def test_every_import_keeps_the_contracts():
    assert not imports.broken_contracts(tree.ROOT)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("jsonl.py", "from megatron_chimed.text import template"),
        ("data/clean.py", "import megatron.core.datasets.indexed_dataset"),
        ("packing/builder.py", "import torch.nn"),
        ("datasets/pretrain.py", "def f():\n    from megatron_chimed.models import gpt"),
        ("stages/sft.py", "from megatron_chimed.stages.pretrain import STAGE"),
        ("training/trainer.py", "from megatron_chimed.evaluation import run"),
        ("convert/tensors.py", "from megatron_chimed.convert import checkpoint"),  # a circle
        ("unheard_of.py", ""),
    ],
)
def test_control_a_broken_contract_is_reported(path, source, tmp_path):
    shutil.copy(tree.ROOT / "pyproject.toml", tmp_path)
    for name in PACKAGE:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(tree.read(name))
    with open(tmp_path / "megatron_chimed" / path, "a") as file:
        file.write(f"\n{source}\n")
    assert imports.broken_contracts(tmp_path)


def test_every_module_imports_only_libraries_of_its_part():
    assert not over(PACKAGE, imports.forbidden_libraries)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("megatron_chimed/config.py", "def f():\n    from megatron.training import get_args"),
        ("megatron_chimed/data/clean.py", "import torch"),
        ("megatron_chimed/corpus/builder.py", "import megatron.core"),
        ("megatron_chimed/datasets/pretrain.py", "import megatron.core.models"),
        ("megatron_chimed/models/gpt.py", "import importlib\nimportlib.import_module('megatron.training')"),
        ("megatron_chimed/models/gpt.py", "from megatron import training"),
        ("megatron_chimed/models/gpt.py", "from . import norm"),
        ("megatron_chimed/unheard_of.py", "import numpy"),
    ],
)
def test_control_a_forbidden_library_is_reported(path, source):
    assert len(imports.forbidden_libraries(path, source)) == 1


def test_control_an_allowed_import_is_not_reported():
    source = "import os\nimport numpy as np\nfrom megatron.core.datasets.indexed_dataset import IndexedDataset\n"
    assert not imports.forbidden_libraries("megatron_chimed/datasets/pretrain.py", source)


def test_at_the_root_stand_few_files_and_the_rules_are_few():
    root = [path for path in PACKAGE if path.count("/") == 1]
    assert len(root) <= 9
    contracts = re.findall(r"(?m)^\[\[tool\.importlinter\.contracts", tree.read("pyproject.toml"))
    assert len(contracts) > 0 and len(contracts) + len(imports.LIBRARIES) <= 45


def test_megatrons_trainer_is_imported_in_training_alone():
    others = [path for path in PROGRAMS if not path.startswith("megatron_chimed/training/")]
    assert not [f"{p}:{line}" for p in others for line, name in imports.imports(tree.read(p)) if _training(name)]
    allowed = [name for name, libraries in imports.LIBRARIES.items() if any(map(_training, libraries))]
    assert allowed == ["training"]


def _training(name: str) -> bool:
    """Whether a dotted name lies in megatron.training."""
    return imports.is_under(name, ["megatron.training"])


def test_the_pictures_of_the_package_are_those_of_the_code():
    document, pictures = tree.read(graph.DOCUMENT), graph.pictures(PACKAGE)
    assert graph.drawn(document, pictures) == document, "run: PYTHONPATH=tests python -m guards.graph"
    assert graph.drawn(document, {"imports": "new"}) != document != graph.drawn(document, {"tree": "new"})
    with pytest.raises(ValueError, match="a cycle among"):
        graph.layers(graph.boxes(PACKAGE) | {"errors": {"training/"}})


def test_the_ledger_names_every_change_of_torch_and_megatron():
    found = {(path, target) for path in PROGRAMS for _, target in imports.patches(tree.read(path))}
    listed = {(_path_of(patch.where), target) for patch in PATCHES for target in patch.targets}
    assert found == listed and len({patch.name for patch in PATCHES}) == len(PATCHES)
    for patch in PATCHES:
        assert f"def {patch.where.rpartition(':')[2].rpartition('.')[2]}(" in tree.read(_path_of(patch.where)), patch


def _path_of(where: str) -> str:
    """The file of ``module:function``."""
    return f"megatron_chimed/{where.partition(':')[0].replace('.', '/')}.py"


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("import torch\ntorch.cuda.current_device = lambda: 0", "torch.cuda.current_device"),
        ("import torch\ncuda = torch.cuda\ncuda.Stream = None", "torch.cuda.Stream"),
        (
            "from megatron.core import tensor_parallel as tp\ndef f():\n    tp.r.f = 0",
            "megatron.core.tensor_parallel.r.f",
        ),
        ("from megatron.core.optimizer import D\ndel D.load", "megatron.core.optimizer.D.load"),
        ("import torch\nsetattr(torch.cuda, 'is_available', None)", "torch.cuda"),
        (
            "import megatron.training.training\nmegatron.training.training.steps += 1",
            "megatron.training.training.steps",
        ),
    ],
)
def test_control_a_patch_is_reported(source, target):
    assert [name for _, name in imports.patches(source)] == [target]


def test_control_ordinary_assignments_are_no_patch():
    source = "import torch\nm = torch.nn.Linear(2, 2)\nm.bias = None\ntorch.backends.cuda.matmul.allow_tf32 = True\n"
    assert not imports.patches(source)


def test_the_ledger_names_every_private_name_that_is_reached_outside_training_and_models():
    free = ("megatron_chimed/training/", "megatron_chimed/models/")
    others = [path for path in PROGRAMS if not path.startswith(free)]
    found = {(path, name) for path in others for _, name in imports.private_names(tree.read(path))}
    assert found <= {(one.path, one.name) for one in PRIVATE_NAMES}  # overridden ones: tests/upstream


def test_control_a_private_name_is_reported():
    source = "import torch\nfrom megatron.core import _x\ntorch._C.f()\nself._y = torch.__version__\n"
    assert [name for _, name in imports.private_names(source)] == ["megatron.core._x", "torch._C"]


def test_the_page_about_upstream_is_that_of_the_ledger():
    assert tree.read(upstream.DOCUMENT) == upstream.page(), "run: PYTHONPATH=tests python -m guards.upstream"


def test_the_table_of_what_fits_with_lora_is_the_plans():
    for name, words in lora_table.WORDS.items():
        text = tree.read(name)
        assert text == lora_table.page(text, words), "run: PYTHONPATH=tests python -m guards.lora_table"


# Sizes and habits.


def test_modules_functions_and_tools_keep_their_size():
    assert not over(tree.python_files(), code.too_long, LONGER)
    unused = [name for name in LONGER if name.split(":")[0] not in tree.files()]
    assert not unused, "exceptions for files that are gone"


def test_control_a_long_module_function_or_tool_is_reported():
    function = "def f():\n" + "    x = 1\n" * 48
    assert not code.too_long("a.py", function)
    assert len(code.too_long("a.py", function + "    x = 1\n")) == 1
    assert not code.too_long("a.py", function + "    x = 1\n", {"a.py:f": 60})
    assert not code.too_long("a.py", "x = 1\n" * 299)
    assert len(code.too_long("a.py", "x = 1\n" * 300)) == 1
    assert len(code.too_long("tests/test_a.py", "x = 1\n" * 500)) == 1
    assert not code.too_long("tools/a.py", "x = 1\n" * 60)
    assert len(code.too_long("tools/a.py", "x = 1\n" * 61)) == 1


def test_ruff_finds_nothing():
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format=concise", "."]
    done = subprocess.run(command, cwd=tree.ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_control_ruff_reports_a_missing_docstring():
    source = "def f():\n    pass\n\n\nclass A:\n    def g(self):\n        pass\n\n    def _h(self):\n        pass\n"
    rules = [finding.split()[1] for finding in code.ruff("megatron_chimed/a.py", source)]
    assert sorted(rules) == ["D100", "D101", "D102", "D103"]  # the module, A, A.g and f
    assert not code.ruff("megatron_chimed/a.py", '"""A."""\n')
    assert [finding.split()[1] for finding in code.ruff("tests/test_a.py", source)] == ["D100"]


UNSAFE = {
    "import pickle\n\npickle.dumps(1)": "TID251",
    "from pickle import loads\n\nloads(b'')": "TID251",
    "import dill\n\ndill.load(open('a'))": "TID251",
    "import marshal\n\nmarshal.loads(b'')": "S302",
    "import shelve\n\nshelve.open('a')": "TID251",
    "eval('1')": "S307",
    "exec('1')": "S102",
    "import yaml\n\nyaml.load('1')": "S506",
    "import yaml\n\nyaml.unsafe_load('1')": "TID251",
    "import yaml\n\nyaml.full_load('1')": "TID251",
    "import subprocess\n\nsubprocess.run('ls', shell=True)": "S602",
    "import os\n\nos.system('ls')": "S605",
}


@pytest.mark.parametrize("source", UNSAFE)
def test_control_ruff_reports_what_could_run_code(source):
    for path in ("megatron_chimed/a.py", "tools/a.py", "launch/a.py", "examples/a.py", "benchmarks/a.py", "setup.py"):
        assert UNSAFE[source] in [finding.split()[1] for finding in code.ruff(path, f'"""A."""\n\n{source}\n')]


def test_nothing_is_loaded_unsafely_where_ruff_has_no_rule():
    assert not over(["setup.py", *PROGRAMS], code.unsafe_calls)


@pytest.mark.parametrize(
    "source",
    [
        "torch.load('a')",
        "torch.load('a', weights_only=False)",
        "numpy.load('a', allow_pickle=True)",
        "AutoModel.from_pretrained('a', trust_remote_code=True)",
    ],
)
def test_control_unsafe_loading_is_reported(source):
    assert len(code.unsafe_calls("a.py", source)) == 1


def test_control_safe_loading_is_not_reported():
    source = (
        "import torch\nimport yaml\n\ntorch.load('a', weights_only=True)\ntorch.nn.Module().eval()\n"
        "yaml.load('a', Loader=yaml.SafeLoader)\nyaml.safe_load('a')\n"
    )
    assert not code.unsafe_calls("a.py", source) and not code.ruff("tools/a.py", f'"""A."""\n\n{source}')


def test_no_file_names_a_machine_a_registry_or_listens_to_all():
    assert not over(tree.files(), code.forbidden_texts)


@pytest.mark.parametrize(
    "parts",
    [
        ("cd /", "work/x"),
        ("p = '/", "root/.cache'"),
        ("--host 0.0", ".0.0"),
        ("--index", "-url x"),
        ("https://pypi", ".org/x"),
    ],
)
def test_control_a_forbidden_text_is_reported(parts):
    assert len(code.forbidden_texts("a.sh", "".join(parts))) == 1


def test_control_ordinary_paths_are_not_reported():
    assert not code.forbidden_texts("a.sh", "cp net/work/a /tmp/b  # 10.0.0.0.1 is no address\n$ROOT/work/x\n")


def test_every_test_can_fail():
    tests = [path for path in tree.python_files("tests/") if re.search(r"(^|/)test_\w+\.py$", path)]
    assert not over(tests, code.tests_without_assertion)


def test_control_a_test_without_assertion_is_reported():
    source = "def f():\n    assert x\ndef test_a():\n    f()\ndef test_b():\n    g()\ndef test_c():\n    assert True\n"
    assert [finding.split()[1] for finding in code.tests_without_assertion("a.py", source)] == ["test_b", "test_c"]


def test_every_module_is_imported_by_a_test_or_listed_with_the_test_that_runs_it():
    listed = {module for modules in coverage.THROUGH.values() for module in modules}
    assert coverage.known() - coverage.imported() == listed, "untested, or listed and imported all the same"
    for test, modules in coverage.THROUGH.items():
        assert set(modules) - coverage.SHOWN_BY_NO_TEXT.keys() <= coverage.reached(test), test
    assert listed >= coverage.SHOWN_BY_NO_TEXT.keys()


def test_control_what_a_test_does_not_run_is_not_reached():
    found = coverage.reached("tests/convert/test_sizes.py")
    assert found == {"convert.sizes"}
    assert "stages.sft" in coverage.reached("tests/integration/test_sft.py")
    assert "rejection.context" not in coverage.reached("tests/corpus/test_builder.py")


# Tools, documents and configuration.


@pytest.fixture(scope="session")
def helps(tmp_path_factory) -> dict[str, str]:
    """`--help` of every command, as ``chimed NAME`` and as the script, called from another folder."""
    folder = tmp_path_factory.mktemp("elsewhere")

    def ask(words: list[str]) -> str:
        command = [sys.executable, *words, "--help"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, (words, done.stderr)
        return done.stdout

    calls = {path: [str(tree.ROOT / path)] for path in TOOLS}
    calls |= {f"chimed {name}": ["-m", "megatron_chimed", *name.split()] for name in COMMANDS}
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(calls, pool.map(ask, calls.values()), strict=True))


def test_every_command_explains_itself_with_an_example_of_its_call(helps):
    assert len(helps) == len(TOOLS) + len(COMMANDS) > 30
    assert not [name for name, text in helps.items() if not shows_example(name, text)]


def test_every_command_has_a_script_but_train_which_has_its_launchers():
    doors = {name for name in COMMANDS if any(f'run_tool("{name}")' in tree.read(path) for path in TOOLS)}
    assert doors == COMMANDS.keys() - {"train"} and len(TOOLS) == len(doors)


def shows_example(path: str, text: str) -> bool:
    """Whether a help text has the word example and after it a call of the command."""
    return re.search(rf"(?is)\bexamples?\b.*{re.escape(path.split('/')[-1])}", text) is not None


def test_control_a_help_without_example_is_reported():
    assert not shows_example("tools/a.py", "usage: a.py [-h]")
    assert shows_example("tools/a.py", "usage: a.py [-h]\n\nexample:\n  python tools/a.py x")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_path_in_a_document_exists(document):
    assert document in tree.files(), f"there is no {document}"
    text = tree.read(document)
    assert not docs.missing_paths(document, text, tree.files())
    assert not docs.wrong_trees(document, text, tree.files())


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_in_a_document_exists(document, helps):
    assert document in tree.files(), f"there is no {document}"
    text = tree.read(document)
    assert not docs.broken_commands(document, text, tree.files())
    assert not docs.unknown_targets(document, text, tree.read("Makefile"))
    assert not docs.unknown_commands(document, text, helps)
    assert not docs.unknown_flags(document, text, helps)


def test_every_flag_in_a_shell_script_is_one_of_its_tool(helps):
    scripts = [path for path in tree.files() if path.endswith((".sh", ".sbatch"))]
    scripts = [path for path in scripts if re.search(r"tools/|\bchimed ", tree.read(path))]
    assert {"launch/pipeline.sh", "examples/quickstart/run.sh"} <= set(scripts)
    assert not over(scripts, lambda path, text: docs.unknown_flags(path, f"```sh\n{uncommented(text)}\n```", helps))


def uncommented(script: str) -> str:
    """A script without its comment lines, whose apostrophes are no quotes, and without `set --`."""
    return re.sub(r"(?m)^ *#.*$|\bset -- ", "", script)


def test_the_tree_names_every_module_and_command():
    wanted = [path for path in tree.files() if path.startswith(("megatron_chimed/", "tools/", "launch/"))]
    wanted = [path for path in wanted if path.endswith((".py", ".sh", ".sbatch")) and not path.endswith("/__init__.py")]
    assert not docs.missing_from_tree(graph.DOCUMENT, tree.read(graph.DOCUMENT), wanted)


FILES = ["README.md", "Makefile", "tools/a.py", "lib/data/b.py", "lib/__main__.py", "examples/run.sh"]
DOCUMENT = """
`tools/a.py` `data/b.py` `lib/*.py` `b.py --x` `runs/x.md` `torch/nn` `MODEL.yaml` `make test`
`tools/gone.py` `gone.py` `make gone`
```
lib/       the library
  data/    b.py and gone.py
  gone.py
```
```sh
make test && X=1 python tools/a.py --known 1 \\
    --gone 2  # python tools/comment.py
sh examples/gone.sh | tail
```
"""


def test_control_a_wrong_document_is_reported():
    missing = docs.missing_paths("d.md", DOCUMENT, FILES)
    assert missing == ["d.md:3: tools/gone.py does not exist", "d.md:3: gone.py does not exist"]
    wrong = docs.wrong_trees("d.md", DOCUMENT, FILES)
    assert wrong == ["d.md:6: lib/data/gone.py does not exist", "d.md:7: lib/gone.py does not exist"]
    assert docs.broken_commands("d.md", DOCUMENT, FILES) == ["d.md:12: examples/gone.sh does not exist"]
    assert docs.unknown_targets("d.md", DOCUMENT, "test: x\n\ty\n") == ["d.md:3: the Makefile has no target gone"]
    flags = docs.unknown_flags("d.md", DOCUMENT, {"tools/a.py": "--known N  --gone-too"})
    assert flags == ["d.md:11: tools/a.py has no flag --gone"]
    words = "```sh\nchimed pack sft --known 1 --gone 2\nchimed gone x\nchimed --help\n```\n"
    flags = docs.unknown_flags("d.md", words, {"chimed pack sft": "--known"})
    assert flags == ["d.md:2: chimed pack sft has no flag --gone"]
    assert docs.unknown_commands("d.md", words, ["chimed pack sft"]) == ["d.md:3: there is no command chimed gone x"]
    assert docs.missing_from_tree("d.md", DOCUMENT, ["lib/data/b.py", "lib/c.py"])[0].endswith("name lib/c.py")
    globbed = DOCUMENT.replace("  gone.py\n", "  *.yaml\n")
    assert len(docs.missing_from_tree("d.md", globbed, ["lib/c.py", "lib/c.yaml"])) == 1


def test_every_yaml_loads_and_gives_no_key_twice():
    assert not over(YAMLS, docs.broken_yaml)


def test_every_configuration_fills_our_dataclasses():
    """Reading and parsing raise on an unknown block or key and on a wrong type; a folder's files together give both."""
    options = [ModelOptions, JobOptions, *STAGES.values()]
    stages = [path for path in YAMLS if path.startswith("examples/") and path not in LOOPS]
    read = {path: config.read_yaml(tree.ROOT / path) for path in stages}
    assert read and options
    for path, blocks in read.items():
        assert any(blocks.values()), f"{path} is empty"
        assert len(config.parse_dataclass(blocks["chimed"], *options)) == len(options)


def test_every_configuration_of_rejection_sampling_is_read_and_names_its_stage():
    assert LOOPS
    for path in LOOPS:
        loop = read_config(tree.ROOT / path)
        assert {loop.paths.model, loop.paths.stage} <= set(tree.files()), path
        assert loop.training.launcher in tree.files(), path


def test_control_a_broken_yaml_is_reported():
    assert docs.broken_yaml("a.yaml", "a: 1\nb: {c: 1, c: 2}\n") == ["a.yaml:2: key 'c' is given twice"]
    assert docs.broken_yaml("a.yaml", "a: [1\n")
    assert docs.broken_yaml("a.yaml", "a: !python/object:b.c {}\n")
    assert not docs.broken_yaml("a.yaml", "a: 1\nb: {c: 1}\nd: !function e.f\n")
