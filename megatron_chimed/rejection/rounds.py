"""Rounds of rejection sampling: prompts -> generate -> score -> select -> pack -> train -> sample -> report.

Round 0 only samples held-out prompts from the starting checkpoint. Each step reads and writes files in the folder of
its round, and is done when its manifest says so (`steps`). A round starts from the checkpoint that the round before it
has trained on the selected answers; its random control starts there too, so that the two differ by the selection alone.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

from megatron_chimed.checkpoints import latest_iteration
from megatron_chimed.errors import InputError
from megatron_chimed.jsonl import write_json_lines
from megatron_chimed.packing.dialogues import PackOptions, pack_dialogues
from megatron_chimed.records import Candidate, Dialogue, Prompt
from megatron_chimed.rejection import heldout
from megatron_chimed.rejection.config import LoopConfig, training_shape
from megatron_chimed.rejection.engines import describe_sampling, open_generator
from megatron_chimed.rejection.generator import ask, generate_into
from megatron_chimed.rejection.prompts import EvaluationTexts, answered, draw_prompts, question_of, read_prompts
from megatron_chimed.rejection.report import write_report
from megatron_chimed.rejection.scorers import open_scorer, score_into
from megatron_chimed.rejection.select import filter_candidates, random_control, select
from megatron_chimed.rejection.steps import Made, Step
from megatron_chimed.rejection.store import CandidateStore, count_stored, read_candidates, write_candidates
from megatron_chimed.rejection.training import fine_tune
from megatron_chimed.text.template import Renderer

STEPS = ("prompts", "generate", "score", "select", "pack", "train", "sample", "report")


class Round:
    """The files and steps of one round."""

    def __init__(self, config: LoopConfig, renderer: Renderer, number: int):
        self.config, self.renderer, self.number = config, renderer, number
        self.folder = config.output / f"round-{number:02}"
        self.sets = ("selected", "control") if config.paths.control else ("selected",)
        self.models = self.sets if number else ("start",)
        self.rendering = {"tokenizer": renderer.tokenizer.fingerprint, "template": renderer.template.fingerprint}

    def file(self, name: str) -> Path:
        """A file or folder of the round."""
        return self.folder / name

    def files(self, pattern: str, names: Sequence[str] | None = None) -> list[Path]:
        """One for each set of answers, or each of `names`."""
        return [self.file(pattern.format(name)) for name in names or self.sets]

    @cached_property
    def previous(self) -> "Round":
        """The round before."""
        return Round(self.config, self.renderer, self.number - 1)

    @property
    def checkpoint(self) -> Path:
        """The model that the round ends with."""
        return self.file("train/selected") if self.number else Path(self.config.paths.start)

    @cached_property
    def shape(self):
        """Tokens of a row and positions of the model."""
        return training_shape(self.config.paths.model, self.config.paths.stage)

    def steps(self) -> list[Step]:
        """The round's steps in order; of round 0 only the sampling."""
        made = [self._sample()]
        if self.number:
            made = [self._prompts(), self._generate(), self._score(), self._select(), self._pack(), self._train()]
            made += [self._sample(), self._report()]
        return made

    def _step(
        self, name: str, inputs: dict, settings: dict, outputs: list[Path], run: Callable, progress: Callable = str
    ) -> Step:
        return Step(
            name, self.file(f"{name}.manifest.json"), inputs, {"round": self.number, **settings}, outputs, run, progress
        )

    def _prompts(self) -> Step:
        paths, options = self.config.paths, self.config.prompts
        room = self.shape.max_positions - self.config.sampling.max_tokens
        inputs = {"dialogues": paths.dialogues, "exclude": [*paths.exclude, *paths.heldout]}

        def run(made_from: str) -> Made:
            drawn, dropped = draw_prompts(
                read_prompts(paths.dialogues),
                options.count,
                seed=paths.seed,
                round=self.number,
                evaluation=EvaluationTexts.read(inputs["exclude"]),
                fits=lambda prompt: len(self.renderer.render_prompt(prompt.turns)) <= room,
                near=options.dedup == "near",
            )
            if not drawn:
                raise InputError(f"{paths.dialogues[0]}: no prompt is left to draw ({dict(dropped)})")
            if len(drawn) < options.count:
                print(f"only {len(drawn)} prompts of the {options.count} asked for are there", file=sys.stderr)
            return Made(write_json_lines(self.file("prompts.jsonl"), (one.to_row() for one in drawn)), dict(dropped))

        settings = {**asdict(options), "seed": paths.seed, "room": room, **self.rendering}
        return self._step("prompts", _paths(inputs), settings, [self.file("prompts.jsonl")], run)

    def _generate(self) -> Step:
        options, sampling = self.config.generator, self.config.sampling
        store_path, seed = self.file("candidates.store"), self.config.paths.seed

        def run(made_from: str) -> Made:
            asked = ask(
                list(self.prompts.values()),
                self.renderer,
                round=self.number,
                n=sampling.n,
                seed=(seed, "sample", self.number),
            )
            with CandidateStore(store_path, made_from) as store:
                if len(store.candidates) < len(asked):
                    export = self.file("hf")
                    with open_generator(options, self.previous.checkpoint, export, self.renderer) as generator:
                        generate_into(store, asked, generator, sampling, options.batch_size)
                return Made(store.publish(self.file("candidates.jsonl")))

        inputs = {"prompts": [self.file("prompts.jsonl")], "model": [self.previous.checkpoint]}
        settings = describe_sampling(options, sampling) | {"seed": seed, **self.rendering}
        outputs = [self.file("candidates.jsonl")]
        return self._step("generate", inputs, settings, outputs, run, lambda: _stored([store_path]))

    def _score(self) -> Step:
        options, store_path = self.config.scorer, self.file("scored.store")

        def run(made_from: str) -> Made:
            candidates = read_candidates(self.file("candidates.jsonl"))
            with CandidateStore(store_path, made_from) as store:
                if len(store.candidates) < len(candidates):
                    with open_scorer(options, self.config.paths.reward) as scorer:
                        score_into(store, candidates, self.prompts, scorer, self.renderer, options.batch_size)
                return Made(store.publish(self.file("scored.jsonl")))

        inputs = {"candidates": [self.file("candidates.jsonl")], "prompts": [self.file("prompts.jsonl")]}
        inputs |= {"reward": [Path(self.config.paths.reward)]}
        settings = {"engine": options.engine, "dtype": options.dtype, **self.rendering}
        outputs = [self.file("scored.jsonl")]
        return self._step("score", inputs, settings, outputs, run, lambda: _stored([store_path]))

    def _select(self) -> Step:
        rule, filters, seed = self.config.selection, self.config.filters, self.config.paths.seed

        def run(made_from: str) -> Made:
            scored = read_candidates(self.file("scored.jsonl"))
            questions = {name: question_of(prompt) for name, prompt in self.prompts.items()}
            _require_prompts(scored, questions, self.file("scored.jsonl"))
            pool, dropped = filter_candidates(scored, questions, filters)
            chosen = {"selected": select(pool, rule)}
            if not chosen["selected"]:
                raise InputError(f"round {self.number}: no answer is left to train on ({dict(dropped)})")
            if self.config.paths.control:
                chosen["control"] = random_control(pool, rule, seed)
            for name, answers in chosen.items():
                write_candidates(self.file(f"{name}.jsonl"), answers)
                rows = (_dialogue(self.prompts[one.prompt], one).to_row() for one in answers)
                write_json_lines(self.file(f"{name}.dialogues.jsonl"), rows)
            dropped["not selected"] = len(pool) - len(chosen["selected"])
            return Made(len(chosen["selected"]), dict(+dropped), {"pool": len(pool)})

        inputs = {"scored": [self.file("scored.jsonl")], "prompts": [self.file("prompts.jsonl")]}
        settings = {**asdict(rule), **asdict(filters), "seed": seed, "sets": self.sets}
        outputs = self.files("{}.jsonl") + self.files("{}.dialogues.jsonl")
        return self._step("select", inputs, settings, outputs, run)

    def _pack(self) -> Step:
        def run(made_from: str) -> Made:
            rows = {}
            for name, path in zip(self.sets, self.files("{}.dialogues.jsonl"), strict=True):
                options = PackOptions(self.shape.sequence_length, "last", self.config.paths.seed, progress=False)
                output, tokenizer = self.file(f"packed/{name}"), self.config.paths.tokenizer
                rows[name] = pack_dialogues([str(path)], output, self.renderer, options, tokenizer)["rows"]
            return Made(rows["selected"], {}, {"packed": rows})

        inputs = {"dialogues": self.files("{}.dialogues.jsonl")}
        settings = {"sequence_length": self.shape.sequence_length, "seed": self.config.paths.seed, **self.rendering}
        return self._step("pack", inputs, settings, self.files("packed/{}"), run)

    def _train(self) -> Step:
        folders = self.files("train/{}")

        def run(made_from: str) -> Made:
            done = [
                fine_tune(self.config, self.previous.checkpoint, self.file(f"packed/{name}"), folder, made_from)
                for name, folder in zip(self.sets, folders, strict=True)
            ]
            return Made(done[0], {}, {"iterations": dict(zip(self.sets, done, strict=True))})

        def progress() -> str:
            done = {folder.name: latest_iteration(folder) for folder in folders if folder.exists()}
            return ", ".join(f"{name}: iteration {count}" for name, count in done.items())

        paths = self.config.paths
        inputs = {"packed": self.files("packed/{}"), "start": [self.previous.checkpoint]}
        inputs |= {"yaml": [Path(paths.model), Path(paths.stage)]}
        return self._step("train", inputs, {"tokenizer": self.rendering["tokenizer"]}, folders, run, progress)

    def _sample(self) -> Step:
        paths, options = self.config.paths, self.config
        checkpoints = self.files("train/{}") if self.number else [self.checkpoint]

        def run(made_from: str) -> Made:
            made = [
                heldout.measure(
                    self.config,
                    checkpoint,
                    self.folder,
                    name,
                    self.renderer,
                    round=self.number,
                    made_from=made_from,
                    max_positions=self.shape.max_positions,
                )
                for name, checkpoint in zip(self.models, checkpoints, strict=True)
            ]
            return Made(sum(one.rows for one in made), made[0].dropped)

        inputs = {"models": checkpoints, "reward": [Path(paths.reward)], **_paths({"heldout": paths.heldout})}
        inputs |= _paths({"drift": paths.drift})
        settings = describe_sampling(options.generator, options.sampling) | asdict(options.heldout_sampling)
        settings |= {"scorer": options.scorer.engine, "seed": paths.seed, **self.rendering}
        outputs = self.files("heldout.{}.jsonl", self.models) + self.files("drift.{}.json", self.models)
        stores = self.files("heldout.{}.sampled.store", self.models)
        return self._step("sample", inputs, settings, outputs, run, lambda: _stored(stores))

    def _report(self) -> Step:
        first = Round(self.config, self.renderer, 0)
        measured = {"start": first.file("heldout.start.jsonl")}
        if self.number > 1:
            measured["before"] = self.previous.file("heldout.selected.jsonl")
        measured["after"] = self.file("heldout.selected.jsonl")
        if self.config.paths.control:
            measured["random control"] = self.file("heldout.control.jsonl")
        drifts = {name: _drift_of(path) for name, path in measured.items()}
        inputs = {"heldout": list(measured.values()), "drift": list(drifts.values())}
        inputs |= {"scored": [self.file("scored.jsonl")], "prompts": [self.file("prompts.jsonl")]}
        inputs |= {"selected": self.files("{}.jsonl"), "manifests": self.files("{}.manifest.json", STEPS[:4])}

        def run(made_from: str) -> Made:
            return Made(write_report(self.config, self.folder, self.number, self.prompts, measured, drifts))

        outputs = self.files("report.{}", ["md", "json", "png"])
        settings = {"rule": asdict(self.config.selection), "yardstick": self.config.paths.yardstick}
        return self._step("report", inputs, settings, outputs, run)

    @cached_property
    def prompts(self) -> dict[str, Prompt]:
        """The round's prompts by id, once they are drawn."""
        return {prompt.id: prompt for prompt in read_prompts([self.file("prompts.jsonl")])}


def _paths(inputs: dict[str, Sequence[str]]) -> dict[str, list[Path]]:
    return {name: list(map(Path, paths)) for name, paths in inputs.items()}


def _stored(stores: Sequence[Path]) -> str:
    """What stores hold, for a status."""
    count = sum(map(count_stored, stores))
    return f"{count} answers" if count else ""


def _drift_of(answers: Path) -> Path:
    """drift.NAME.json beside heldout.NAME.jsonl."""
    return answers.with_name(answers.name.replace("heldout.", "drift.").replace(".jsonl", ".json"))


def _dialogue(prompt: Prompt, answer: Candidate) -> Dialogue:
    """What is trained of a selected answer."""
    name = f"{prompt.id}#round-{answer.round}-sample-{answer.sample}"
    return Dialogue(name, prompt.source, answered(prompt, answer.response))


def _require_prompts(candidates: Sequence[Candidate], questions: dict[str, str], path: Path) -> None:
    """Raise InputError for a candidate whose prompt is not there."""
    for one in candidates:
        if one.prompt not in questions:
            raise InputError(f"{path}: candidate {one.key} answers a prompt that is not there; generate again")
