"""What `tasks/*.yaml` names besides the kinds: data sets for lm-eval, its few-shot sampler, a dialogue as a prompt.

The YAMLs work with the `lm_eval` command too, which is told the files in --metadata:

    lm_eval --model hf --model_args pretrained=DIR --include_path megatron_chimed/evaluation/tasks \\
        --tasks chimed_ceval --metadata '{"ceval": "FOLDER"}'
"""

import logging
import random
from typing import Any

from datasets import Dataset
from lm_eval.api.samplers import ContextSampler
from lm_eval.api.task import ConfigurableTask

from megatron_chimed.errors import InputError
from megatron_chimed.evaluation.catalog import SOURCES, read_source


def read_dataset(*, source: str, subject: str = "", **metadata: Any) -> dict[str, Dataset]:
    """{"test", "fewshot"} of a source whose path stands in the metadata under the source's name.

    Faults in the files are logged as warnings, with their number. Raises InputError.
    """
    if source not in metadata:
        raise InputError(f'no data for {source}: give --metadata \'{{"{source}": "{SOURCES[source].files}"}}\'')
    loaded = read_source(source, str(metadata[source]), subject)
    for one in loaded.values():
        if one.faults:
            logging.getLogger(__name__).warning(
                "%s: %d of %d rows are no test items; the first: %s", source, len(one.faults), one.rows, one.faults[0]
            )
    if not loaded["test"].items:
        raise InputError(f"{metadata[source]}: no test item of the part {subject!r}")
    return {split: Dataset.from_list(one.items) for split, one in loaded.items()}


class SeededSampler(ContextSampler):
    """The examples of a run, the same for each of its items: seed 0 takes the first ones in the order of the file, as
    is the custom for C-Eval and CMMLU; any other seed draws them at random, in random order."""

    def set_rnd(self, rnd: int | None) -> "SeededSampler":
        """Set the seed; None is 0."""
        self.seed = rnd or 0
        return self

    def sample(self, n: int, eval_doc: Any = None, df: Any = None, **kwargs: Any) -> list[dict]:
        """The n examples of this seed. Raises InputError if there are fewer."""
        pool = list(self.df)
        if len(pool) < n:
            raise InputError(f"{n} examples are wanted for the prompt, and the file has {len(pool)}")
        return pool[:n] if self.seed == 0 else random.Random(self.seed).sample(pool, n)


class DialogueTask(ConfigurableTask):
    """A task whose items have a "history" of turns, which become turns of the model's chat template."""

    def __init__(self, config: dict):
        super().__init__(config={key: value for key, value in config.items() if key != "class"})

    def fewshot_context(self, doc: dict, *args: Any, chat_template: Any = None, **kwargs: Any) -> str:
        """The prompt of an item: the description, then its turns."""
        description = self.config.description
        if chat_template is None:
            return description + self.doc_to_text(doc)
        turns = [description + doc["history"][0], *doc["history"][1:]]
        roles = ("user", "assistant")
        return chat_template([{"role": roles[number % 2], "content": text} for number, text in enumerate(turns)])
