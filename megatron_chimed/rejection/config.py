"""The configuration of rejection sampling: one YAML, read into the dataclasses below.

Top-level keys fill `Paths`, the sections their own class: ``prompts``, ``generator``, ``sampling``, ``filters``,
``selection``, ``heldout_sampling``, ``training``; ``scorer`` and ``grader`` are read by `scorers.options`. Paths are
relative to the folder in which the command is called.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from megatron_chimed.config import Located, as_written, load_settings, parse_dataclass, read_mapping
from megatron_chimed.errors import InputError
from megatron_chimed.inference.request import SamplingParams
from megatron_chimed.rejection.scorers.options import Options, ScorerOptions, needs_reward, problems, read_scorers
from megatron_chimed.rejection.select import Filters, Rule


@dataclass(frozen=True)
class Paths:
    """What the loop reads, and where it writes."""

    output: str = ""
    """Folder of the loop; each round has a folder in it."""

    start: str = ""
    """Folder of the Megatron checkpoint that round 1 samples from and is fine-tuned from; of adapters, which the rounds
    go on training, also BASE+ADAPTER."""

    reward: str = ""
    """The reward model: a folder of Megatron checkpoints, for the scorers hf and vllm a Hugging Face folder; not needed
    where none scores. Of adapters BASE+ADAPTER, but for vllm."""

    tokenizer: str = ""
    """SentencePiece .model or Hugging Face folder."""

    template: str | None = None
    """A template's name, a YAML, or ``tokenizer``, the chat template of the tokenizer's folder; without one that of the
    start's training, else chimed."""

    think: bool | None = None
    """Whether the models think before they answer; without a word as the template says. Thinking is never scored."""

    thinking: Literal["train", "mask", "drop"] = "train"
    """What fine-tuning does with the thinking of a selected answer: learn it, have it in the row without loss, or leave
    it out."""

    dialogues: list[str] = field(default_factory=list)
    """JSON lines of supervised fine-tuning, from which prompts are drawn."""

    exclude: list[str] = field(default_factory=list)
    """Evaluation files: no prompt may ask what they ask. The files of ``heldout`` are among them in any case."""

    heldout: list[str] = field(default_factory=list)
    """Held-out prompts, JSON lines of prompts, dialogues or ``{"id", "question"}``, on which each round is measured."""

    reference_nll: list[str] = field(default_factory=list, metadata={"was": "drift"})
    """Held-out dialogues whose answers' likelihood tells how far a round moves the model; none: not measured."""

    external_grader: list[str] = field(default_factory=list, metadata={"was": "yardstick"})
    """Command that grades answers to held-out prompts, called with a file of them; see `scorers.command`. None: no
    grades, or those of the section ``grader``."""

    model: str = ""
    """Model YAML of the training."""

    stage: str = ""
    """Stage YAML of ``training.method`` with the recipe of rejection sampling."""

    rounds: int = 1
    """How many rounds."""

    seed: int = 1234
    """Of all draws: prompts, samples, control."""

    control: bool = True
    """Also fine-tune on as many answers drawn at random: what the reward does shows against it alone."""


@dataclass(frozen=True)
class PromptOptions:
    """Which prompts a round draws."""

    count: int = 10000
    """How many (paper: 10K)."""

    dedup: Literal["exact", "near"] = "near"
    """Drop equal texts only, or texts that are much alike too."""


@dataclass(frozen=True)
class GeneratorOptions:
    """Who samples."""

    engine: Literal["megatron", "vllm", "openai"] = "megatron"
    """The training checkpoint itself; its Hugging Face export in vLLM; a server that serves the export."""

    batch_size: int = 64
    """Answers that are sampled together and stored together: a kill loses at most so many."""

    tensor_parallel: int = 1
    """Ranks that share a model."""

    data_parallel: int = 1
    """For vllm: copies of the model."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the arithmetic."""

    base_url: str | list[str] = ""
    """For openai: of the server, up to and with /v1; a list of servers that serve the same model share the work. The
    first stands for all: others may come and go."""

    model: str = ""
    """For openai: the served model's name."""

    concurrency: int = 8
    """For openai: requests under way at once, at all servers."""

    requests_per_minute: float = 0.0
    """For openai: 0 for no limit."""


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn."""

    n: int = 8
    """Answers to each prompt."""

    temperature: float = 1.0
    """0 takes the most likely token."""

    top_p: float = 1.0
    """Draw from the most likely tokens that together hold this probability."""

    top_k: int = 0
    """Draw from so many most likely tokens; 0 for all."""

    max_tokens: int = 512
    """Of an answer, EOS included. Prompts that leave less room are counted and passed over."""

    def params(self, seed: int) -> SamplingParams:
        """Of one answer."""
        return SamplingParams(self.max_tokens, self.temperature, self.top_p, self.top_k, seed)


@dataclass(frozen=True)
class HeldoutOptions:
    """How the models are measured. The same seeds serve all models, so that they are compared pair by pair."""

    count: int = 500
    """Held-out prompts: the first so many of the files, all if there are fewer."""

    n: int = 1
    """Answers to each."""

    reference_nll_count: int = field(default=500, metadata={"was": "drift_count"})
    """Dialogues of ``reference_nll``: the first so many."""


@dataclass(frozen=True)
class TrainingOptions:
    """What is trained on the answers of a round, and how it is started."""

    method: Literal["sft", "dpo"] = "sft"
    """Fine-tuning on the selected answers, or preference optimization on the best and the worst answer to each prompt,
    with the model that they were sampled from as the reference (iterative DPO); ``stage`` is a YAML of that stage."""

    launcher: str = ""
    """Called as ``LAUNCHER sft MODEL.yaml STAGE.yaml --megatron-arg value ...``; `chimed train` if not given. Several
    words are read as a shell does: ``sbatch --wait --nodes=2 launch/slurm.sbatch``."""

    ranks: int = 2
    """Processes, given to the launcher as NPROC."""


SECTIONS = {
    "prompts": PromptOptions,
    "generator": GeneratorOptions,
    "sampling": Sampling,
    "filters": Filters,
    "selection": Rule,
    "heldout_sampling": HeldoutOptions,
    "training": TrainingOptions,
}
REQUIRED = ("output", "start", "reward", "tokenizer", "dialogues", "heldout", "model", "stage")


@dataclass(frozen=True)
class LoopConfig:
    """A whole configuration."""

    paths: Paths
    prompts: PromptOptions
    generator: GeneratorOptions
    sampling: Sampling
    filters: Filters
    selection: Rule
    heldout_sampling: HeldoutOptions
    training: TrainingOptions
    scorer: tuple[Options, ...] = (ScorerOptions(),)
    """The reward is the sum of what they say."""

    grader: tuple[Options, ...] = ()
    """Who grades answers to held-out prompts beside the reward, in the place of ``external_grader``."""

    @property
    def output(self) -> Path:
        """The loop's folder."""
        return Path(self.paths.output)

    def to_json(self) -> dict[str, Any]:
        """All settings, for the report."""
        return as_written(self)


def read_config(path: str | Path) -> LoopConfig:
    """The configuration of a YAML file.

    Raises InputError with file and line: an unknown key, a key given twice, a wrong type, a value out of its range;
    and for keys that are missing.
    """
    content = {str(key): setting for key, setting in read_mapping(path).items()}
    sections: dict[str, Any] = {
        name: read_scorers(content.pop(name), name) for name in ("scorer", "grader") if name in content
    }
    for name, kind in SECTIONS.items():
        section = content.pop(name, Located({}, f"{path}"))
        if not isinstance(section.value, dict):
            raise InputError(f"{section.where}: {name}: holds {section.value!r}; expected a mapping")
        sections[name] = parse_dataclass(section.value, kind, block=f" in {name}:")[0]
    try:
        paths = parse_dataclass(content, Paths, block="")[0]
    except InputError as error:
        if "unknown key" in str(error):
            raise InputError(f"{error}; sections: {', '.join(SECTIONS)}, scorer, grader") from None
        raise
    config = LoopConfig(paths, **sections)
    missing = [name for name in REQUIRED if not getattr(paths, name)]
    if not needs_reward(config.scorer + config.grader):
        missing = [name for name in missing if name != "reward"]
    if missing:
        raise InputError(f"{path}: no {', no '.join(missing)}; give the path")
    if paths.external_grader and config.grader:
        raise InputError(f"{path}: external_grader and grader are two graders; keep one")
    _check_ranges(config, path)
    return config


def _check_ranges(config: LoopConfig, path: str | Path) -> None:
    """Raise InputError for numbers out of their range, all in one line."""
    sampling, generator, filters = config.sampling, config.generator, config.filters
    pairs = config.training.method == "dpo"
    checks = [
        ("rounds", config.paths.rounds >= 1, "1 or more"),
        ("seed", config.paths.seed >= 0, "0 or more"),
        ("prompts.count", config.prompts.count >= 1, "1 or more"),
        ("sampling.n", sampling.n >= 1, "1 or more"),
        *((f"sampling.{name}", False, expected) for name, expected in sampling.params(0).problems()),
        ("generator.batch_size", generator.batch_size >= 1, "1 or more"),
        ("generator.tensor_parallel", generator.tensor_parallel >= 1, "1 or more"),
        ("generator.data_parallel", generator.data_parallel >= 1, "1 or more"),
        *((name, False, expected) for name, expected in problems(config.scorer, "scorer")),
        *((name, False, expected) for name, expected in problems(config.grader, "grader")),
        ("filters.max_repetition", 0 <= filters.max_repetition <= 1, "from 0 to 1"),
        ("filters.near_duplicate", filters.near_duplicate > 0, "above 0"),
        ("selection.k", config.selection.k >= 1, "1 or more"),
        ("heldout_sampling.n", config.heldout_sampling.n >= 1, "1 or more"),
        ("heldout_sampling.count", config.heldout_sampling.count >= 2, "2 or more"),
        ("heldout_sampling.reference_nll_count", config.heldout_sampling.reference_nll_count >= 1, "1 or more"),
        ("training.ranks", config.training.ranks >= 1, "1 or more"),
        ("selection.strategy", not pairs or config.selection.strategy == "best_of_n", "best_of_n, for pairs of dpo"),
        ("sampling.n", not pairs or sampling.n >= 2, "2 or more, for pairs of dpo"),
        ("generator.model", generator.engine != "openai" or generator.model, "the served model's name"),
        ("generator.base_url", generator.engine != "openai" or generator.base_url, "the server's URL, with /v1"),
    ]
    wrong = [f"{name}: expected {expected}" for name, good, expected in checks if not good]
    if wrong:
        raise InputError(f"{path}: {'; '.join(wrong)}")


@dataclass(frozen=True)
class TrainingShape:
    """What the YAMLs of the training say and other steps need: tokens of a row, positions of the model."""

    sequence_length: int
    max_positions: int


def training_shape(model: str, stage: str) -> TrainingShape:
    """Of the two YAMLs. Raises InputError when one of the two numbers is not given."""
    settings = load_settings(model, stage, []).megatron
    numbers = []
    for key in ("seq-length", "max-position-embeddings"):
        if key not in settings or type(settings[key].value) is not int:
            raise InputError(f"{model}, {stage}: no number for {key}; give it in one of them")
        numbers.append(settings[key].value)
    return TrainingShape(*numbers)
