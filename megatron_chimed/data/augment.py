"""Augment pairs of a better and a worse answer with the answers of models that stand between them.

The order of the answers is an assumption of the paper, not a judgement on each: the doctor's > GPT-4's >
GPT-3.5-Turbo's > the rejected one. Source: paper, section on the reward model.
"""

import contextlib
import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from megatron_chimed import __version__
from megatron_chimed.api.client import CallSettings, ChatApi, ChatRequest, Completion
from megatron_chimed.api.costs import Prices, estimate_table
from megatron_chimed.api.log import ChatLog, complete_once, fingerprint
from megatron_chimed.api.servers import OPENAI_URL
from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import (
    manifest,
    read_json_lines,
    sha256_file,
    sha256_json,
    write_json,
    write_json_lines,
)
from megatron_chimed.records import ABSENT, RankedGroup
from megatron_chimed.steps import find_up_to_date
from megatron_chimed.workers import Bar

MADE_BY = "tools/augment_rewards.py"

INSTRUCTION = "假设你是一名医生，请回答患者的问题。"


@dataclass(frozen=True)
class AugmentOptions:
    """Options of the requests. models: from the best to the worst; instruction: a line before the question, "" for
    none; temperature, max_tokens: None leaves them to the server."""

    models: tuple[str, ...]
    base_url: str = OPENAI_URL
    instruction: str = INSTRUCTION
    temperature: float | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        """Raises InputError for a value out of its range."""
        if not self.models or not all(self.models) or len(set(self.models)) < len(self.models):
            raise InputError(f"--models {','.join(self.models)}: expected different names, separated by commas")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise InputError(f"--max-tokens {self.max_tokens}: expected a number from 1")
        if self.temperature is not None and not 0 <= self.temperature <= 2:
            raise InputError(f"--temperature {self.temperature}: expected a number from 0 to 2")

    @property
    def request_options(self) -> dict[str, float]:
        """The options of a request that are not left to the server."""
        found = {"temperature": self.temperature, "max_tokens": self.max_tokens}
        return {name: value for name, value in found.items() if value is not None}


class Augmentation:
    """Augmentation of one file of pairs; `estimate` sends nothing, `run` does it.

    Beside the output NAME.jsonl lie NAME.answers.jsonl, each answer from the moment at which it arrived (`ChatLog`),
    and NAME.manifest.json. Raises InputError when a flag or a row of the input is at fault.
    """

    def __init__(
        self, path: str | Path, output: str | Path, options: AugmentOptions, calls: CallSettings | None = None
    ):
        self.output, self.options = Path(output), options
        if self.output.suffix != ".jsonl":
            raise InputError(f"--output {output}: expected a name that ends in .jsonl")
        self.log = self.output.with_suffix(".answers.jsonl")
        self.manifest = self.output.with_suffix(".manifest.json")
        if any(one.exists() and one.samefile(path) for one in (self.output, self.log) if Path(path).exists()):
            raise InputError(f"--output {output}: the input is among its files; give another name")
        self.apis = [ChatApi(model, options.base_url, calls or CallSettings()) for model in options.models]
        self.groups = list(read_pairs(path))
        settings = sha256_json({"version": __version__, **asdict(options)})
        self.parents = {"input": sha256_file(path), "settings": settings}

    def requests(self, api: ChatApi) -> list[ChatRequest]:
        """Make the requests to one model, by (id of the group, model)."""
        options = self.options
        return [
            ChatRequest((group.id, api.model), messages_of(group, options.instruction), options.request_options)
            for group in self.groups
        ]

    def estimate(self, prices: Prices | None = None) -> str:
        """Estimate the cost of the answers that are not kept yet, as a table.

        Raises InputError on prices that do not fit.
        """
        to_send = {}
        with contextlib.ExitStack() as stack:
            log = stack.enter_context(ChatLog(self.log)) if self.log.exists() else None
            for api in self.apis:
                requests = self.requests(api)
                to_send[api.model] = [r for r in requests if not (log and log.find(r.key, fingerprint(api, r)))]
        return estimate_table(to_send, len(self.groups), prices or Prices())

    def run(self, *, max_failed_share: float = 0.01, progress: bool = True) -> dict:
        """Request all that is not kept yet, write the output; returns the manifest.

        max_failed_share: of the requests, how many may fail at all attempts; such an answer is absent, and the next run
        asks for it again. Nothing is done when all is there. Raises ChatError as `ChatApi.complete_all`, and
        InputError when more have failed; what has arrived is kept in either case.
        """
        if not 0 <= max_failed_share <= 1:
            raise InputError(f"--max-failed-share {max_failed_share:g}: expected a number from 0 to 1")
        if present := self._find_finished():
            return present
        answers: dict[tuple[str, str], Completion] = {}
        total = len(self.groups) * len(self.apis)
        with ChatLog(self.log) as log, Bar(total=total, unit=" answers", disable=not progress) as bar:
            for api in self.apis:
                for key, completion in complete_once(api, self.requests(api), log):
                    answers[key] = completion
                    bar.set_postfix_str(f"{api.model}, {api.retried.total()} tried again", refresh=False)
                    bar.update()
        failed = [completion.reason for completion in answers.values() if completion.failed]
        if len(failed) > max_failed_share * total:
            raise InputError(
                f"{len(failed)} of {total} requests failed at all attempts ({Counter(failed).most_common(1)[0][0]}), "
                f"above --max-failed-share {max_failed_share:g}; what has arrived is kept: run the same command again"
            )
        self.manifest.unlink(missing_ok=True)  # what it describes is about to be replaced
        models = self.options.models
        write_json_lines(self.output, (augmented(group, models, answers).to_row() for group in self.groups))
        return self._publish(answers)

    def _publish(self, answers: dict[tuple[str, str], Completion]) -> dict:
        outcomes_by_model = {}
        for model in self.options.models:
            mine = [answers[group.id, model] for group in self.groups]
            outcomes = Counter(one.reason or "answered" for one in mine if not one.failed)
            outcomes_by_model[model] = {
                "outcomes": dict(sorted(outcomes.items())),
                "failed": dict(sorted(Counter(one.reason for one in mine if one.failed).items())),
                "cut at max_tokens": sum(one.finish == "length" for one in mine),
                "prompt_tokens": sum(one.prompt_tokens for one in mine),
                "completion_tokens": sum(one.completion_tokens for one in mine),
            }
        content = manifest(
            made_by=MADE_BY,
            rows=len(self.groups),
            sha256={self.output.name: sha256_file(self.output)},
            parents=self.parents,
            dropped={},
            bytes={self.output.name: self.output.stat().st_size},
            models=outcomes_by_model,
            settings={**asdict(self.options), "models": list(self.options.models)},
        )
        write_json(self.manifest, content)
        return content

    def _find_finished(self) -> dict | None:
        """The manifest of a whole output of the same input and settings in which nothing failed, or None."""

        def nothing_failed(content: dict) -> bool:
            return not any(account["failed"] for account in content["models"].values())

        if content := find_up_to_date(self.manifest, self.parents, accept=nothing_failed):
            print(f"{self.output}: up to date", file=sys.stderr)
        return content


def read_pairs(path: str | Path) -> Iterator[RankedGroup]:
    """Read the groups of a file, the better answer first. Raises InputError as ``file:line: reason``, also when a group
    has not two answers of different rank, or an id comes twice."""
    seen: set[str] = set()
    for line, row in read_json_lines(path):
        try:
            group = RankedGroup.from_row(row)
            if (
                len(group.responses) != 2
                or ABSENT in group.preference_ranks
                or group.preference_ranks[0] == group.preference_ranks[1]
            ):
                given = ", ".join(map(str, group.preference_ranks))
                raise InputError(f"the group has the ranks {given}; expected two answers, one better than the other")
            if group.id in seen:
                raise InputError(f"the id {group.id!r} comes twice; give each group its own")
            json.dumps(group.to_row(), ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise InputError(f"{path}:{line}: half a character in a text; run chimed reward-data on it") from None
        except InputError as error:
            raise InputError(f"{path}:{line}: {error}") from None
        seen.add(group.id)
        order = sorted((0, 1), key=lambda place: group.preference_ranks[place])
        yield RankedGroup(group.id, group.source, group.turns, tuple(group.responses[n] for n in order), (0, 1))
    if not seen:
        raise InputError(f"{path}: holds no group; expected the output of chimed reward-data")


def messages_of(group: RankedGroup, instruction: str) -> list[dict[str, str]]:
    """Write the conversation as the server takes it; the instruction is a line before the first question."""
    messages = [{"role": turn.role, "content": turn.text} for turn in group.turns]
    if instruction:
        question = next(one for one in messages if one["role"] == "user")
        question["content"] = f"{instruction}\n{question['content']}"
    return messages


def augmented(pair: RankedGroup, models: tuple[str, ...], answers: dict[tuple[str, str], Completion]) -> RankedGroup:
    """The group with the models' answers between the two of the pair: ranks 0, 1, ..., with -1 where there is none."""
    best, worst = pair.responses
    texts = (best, *(answers[pair.id, model].text for model in models), worst)
    ranks = tuple(ABSENT if text is None else rank for rank, text in enumerate(texts))
    return RankedGroup(pair.id, pair.source, pair.turns, texts, ranks)


def format_augment_report(content: dict) -> str:
    """Format the outcomes of the requests to each model, from a manifest."""
    lines = []
    for model, account in content["models"].items():
        failed = ", ".join(f"{number} failed: {reason}" for reason, number in account["failed"].items())
        outcomes = ", ".join(f"{number} {outcome}" for outcome, number in account["outcomes"].items())
        cut = f" ({account['cut at max_tokens']} cut at max_tokens)" if account["cut at max_tokens"] else ""
        tokens = f"{account['prompt_tokens']:,} tokens in, {account['completion_tokens']:,} out"
        lines.append(f"{model}: {', '.join(filter(None, (outcomes, failed)))}{cut}; {tokens}")
    return "\n".join(lines)
