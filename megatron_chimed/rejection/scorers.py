"""Who scores answers: the Megatron reward model, or its Hugging Face export.

What is scored is the dialogue as the reward model was trained on it: the template's exchanges end to end, history,
question and answer, with EOS at the end, where the score is read (`template.Renderer.encode_exchanges`). The answer is
encoded from its text, as in training. An answer that the limit on tokens cut off gets the EOS as well, so that its
reward can be told; selection drops it unless told otherwise. One that does not fit into the reward model's context is
not scored, and counted.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

from megatron_chimed.errors import InputError
from megatron_chimed.records import Candidate, Prompt
from megatron_chimed.rejection.config import ScorerOptions
from megatron_chimed.rejection.prompts import answered
from megatron_chimed.rejection.store import CandidateStore
from megatron_chimed.text.template import Renderer, join
from megatron_chimed.workers import Bar


class Scorer(ABC):
    """Gives rewards to sequences of token ids. Used by `with`."""

    max_positions: int
    """Tokens that a sequence may have."""

    @abstractmethod
    def score(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """The reward of each sequence, at its last token."""

    def __enter__(self) -> Self:
        return self

    @abstractmethod
    def __exit__(self, *error) -> None:
        """Let the model go."""


class MegatronScorer(Scorer):
    """A Megatron checkpoint with a reward head, over tensor-parallel ranks."""

    def __init__(self, checkpoint: str | Path, options: ScorerOptions):
        """Raises InputError as `inference.client.Engine`, and for a model that gives no rewards."""
        from megatron_chimed.inference.client import Engine

        self.engine = Engine(
            checkpoint,
            tensor_parallel=options.tensor_parallel,
            dtype=options.dtype,
            batch_size=options.batch_size,
            progress=False,
        )
        self.max_positions = self.engine.max_positions
        if self.engine.head != "reward":
            self.engine.close()
            raise InputError(f"{checkpoint}: a language model; expected a reward model, of the stage `reward`")

    def score(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """Rewards of one batch."""
        return self.engine.rewards(sequences)

    def __exit__(self, *error) -> None:
        self.engine.close()


class HuggingFaceScorer(Scorer):
    """A Hugging Face folder with one label, by transformers; sequences are padded on the right.

    The score is read at the last token of each sequence by its place: transformers looks for the last id that is no
    padding, and would miss an EOS that is also the padding.
    """

    def __init__(self, folder: str | Path, options: ScorerOptions):
        """Raises InputError if transformers cannot load the folder, or it has another number of labels."""
        import torch
        from transformers import AutoModelForSequenceClassification
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        kind = AutoModelForSequenceClassification
        try:
            model = kind.from_pretrained(folder, dtype=getattr(torch, options.dtype), local_files_only=True)
        except Exception as error:  # transformers raises nearly anything on a broken folder
            raise InputError(f"{folder}: transformers cannot load it ({' '.join(str(error).split())[:200]})") from None
        if model.config.num_labels != 1:
            raise InputError(f"{folder}: {model.config.num_labels} labels; expected a reward model, which has one")
        self.model = model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
        self.max_positions = model.config.max_position_embeddings

    def score(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """Rewards of one batch."""
        import torch

        device = self.model.device
        lengths = torch.tensor([len(sequence) for sequence in sequences], device=device)
        tokens = torch.zeros(len(sequences), int(lengths.max()), dtype=torch.long, device=device)
        for row, sequence in zip(tokens, sequences, strict=True):
            row[: len(sequence)] = torch.tensor(sequence, device=device)
        mask = torch.arange(tokens.size(1), device=device) < lengths[:, None]
        with torch.no_grad():
            hidden = self.model.base_model(tokens, attention_mask=mask.long()).last_hidden_state
            last = hidden[torch.arange(len(sequences), device=device), lengths - 1]
            return self.model.score(last).float()[:, 0].tolist()

    def __exit__(self, *error) -> None:
        del self.model


def open_scorer(options: ScorerOptions, path: str | Path) -> Scorer:
    """The scorer that the configuration names. Raises InputError."""
    return MegatronScorer(path, options) if options.engine == "megatron" else HuggingFaceScorer(path, options)


def sequences_of(candidates: Sequence[Candidate], prompts: Mapping[str, Prompt], renderer: Renderer) -> list[list[int]]:
    """What is scored of each candidate. Raises InputError for a candidate whose prompt is not there."""
    for one in candidates:
        if one.prompt not in prompts:
            raise InputError(f"candidate {one.key}: there is no prompt {one.prompt!r}")
    dialogues = [answered(prompts[one.prompt], one.response) for one in candidates]
    return [join(exchanges).tokens.tolist() for exchanges in renderer.encode_exchanges(dialogues)]


def score_into(
    store: CandidateStore,
    candidates: Sequence[Candidate],
    prompts: Mapping[str, Prompt],
    scorer: Scorer,
    renderer: Renderer,
    batch_size: int,
) -> int:
    """Score all that the store lacks, batch by batch, sequences of like length together. Returns how many were too
    long, and so have no reward."""
    sequences = sequences_of(candidates, prompts, renderer)
    order = sorted(range(len(candidates)), key=lambda place: (len(sequences[place]), candidates[place].key))
    fitting = [place for place in order if len(sequences[place]) <= scorer.max_positions]
    with Bar(total=len(candidates), initial=len(store.candidates), desc="score", unit="answer") as bar:
        for start in range(0, len(fitting), batch_size):
            batch = fitting[start : start + batch_size]
            left = [place for place in batch if candidates[place].key not in store.candidates]
            if left:
                rewards = scorer.score([sequences[place] for place in left])
                if not all(map(math.isfinite, rewards)):
                    raise InputError("the reward model gives rewards that are no numbers; its training has failed")
                store.append([replace(candidates[p], reward=r) for p, r in zip(left, rewards, strict=True)])
                bar.update(len(left))
        too_long = [candidates[place] for place in order[len(fitting) :]]
        if left := [one for one in too_long if one.key not in store.candidates]:
            store.append(left)
            bar.update(len(left))
    return len(too_long)
