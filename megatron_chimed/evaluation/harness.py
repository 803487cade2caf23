"""One run of tasks through lm-eval: tasks from our YAMLs, few-shot examples by seed, per-sample records."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager

from megatron_chimed.evaluation.backends.recorded import RecordedLM
from megatron_chimed.evaluation.catalog import TASKS
from megatron_chimed.evaluation.kinds import KINDS
from megatron_chimed.evaluation.kinds.choice import letters
from megatron_chimed.evaluation.kinds.kind import Kind

FOLDER = Path(__file__).parent / "tasks"


def run_tasks(
    lm: RecordedLM,
    names: Iterable[str],
    paths: dict[str, str],
    *,
    seed: int = 0,
    limit: int | None = None,
    max_new_tokens: int | None = None,
    think_tokens: int = 0,
) -> dict[str, list[dict]]:
    """{task: records in the order of the items} of one run.

    names: of `catalog.TASKS`; paths: {source: path}; seed: of few-shot examples and samples; limit: the first so many
    items of each data set; max_new_tokens: in place of each task's own; think_tokens: on top of it. A record has
    id, group, prompt, answer (a text, or {letter: log-likelihood}), parsed, gold, scores, cut ([tokens, tokens kept] of
    a prompt that was too long), thinking (what stood in front of the answer, which is not scored), unended (where that
    never came to an end).
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = TaskManager(include_path=str(FOLDER), include_defaults=False, metadata=paths)
    lm.seed = seed
    records = {}
    for name in names:
        task = TASKS[name]
        loaded = manager.load([task.harness])
        for one in loaded["tasks"].values():
            one.set_fewshot_seed(seed)
            if options := one.config.generation_kwargs:
                options["max_gen_toks"] = (max_new_tokens or options["max_gen_toks"]) + think_tokens
        chat = not task.likelihood
        results = evaluate(lm, loaded, limit=limit, bootstrap_iters=0, apply_chat_template=chat)
        records[name] = [
            _record(lm, KINDS[task.kind], sample) for one in loaded["tasks"] for sample in results["samples"][one]
        ]
    return records


def _record(lm: RecordedLM, kind: Kind, sample: dict) -> dict:
    """What is kept of a sample that lm-eval has scored: the scores are those of its process_results."""
    item, arguments = sample["doc"], sample["arguments"]
    record = {"id": item["id"], "group": item["group"], "prompt": str(arguments[0][0])}
    if kind.likelihood:
        likelihoods = [float(answers[0][0]) for answers in sample["resps"]]
        record["answer"] = dict(zip(letters(item), likelihoods, strict=True))
        record["parsed"] = letters(item)[likelihoods.index(max(likelihoods))]
        requests = [("loglikelihood", one) for one in arguments]
    else:
        record |= {"answer": sample["resps"][0][0], "parsed": sample["parsed"]}
        requests = [("generate_until", arguments[0])]
    scores = {metric: sample[metric] for metric in kind.metrics}
    cuts = [cut for request in requests if (cut := lm.cut_of(*request))]
    extra: dict[str, Any] = {"cut": cuts[0]} if cuts else {}
    if thinking := lm.thinking_of(*requests[0]):
        extra["thinking"] = thinking
        extra |= {} if lm.has_ended(*requests[0]) else {"unended": True}
    return {**record, "gold": kind.gold(item), "scores": scores, **extra}
