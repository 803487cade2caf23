"""One model through transformers and through Megatron's tensor-parallel ranks: the same answers and the same scores."""

import pytest
from support.exam_files import page, write_ccks, write_ceval, write_lines
from support.exam_hf import write_answering_hf
from support.published_sets import write_cmb, write_promptcblue

from megatron_chimed.convert.checkpoint import hf_to_megatron
from megatron_chimed.evaluation.backends.models import EngineOptions, open_model
from megatron_chimed.evaluation.run import Settings, evaluate_model
from megatron_chimed.jsonl import read_json_lines
from megatron_chimed.text.template import Template


def test_a_folder_and_its_checkpoint_give_the_same_scores(tmp_path):
    hf, checkpoint = write_answering_hf(tmp_path / "hf", positions=256), tmp_path / "megatron"
    hf_to_megatron(hf, checkpoint, progress=False)
    pages = write_lines(tmp_path / "chimed.jsonl", [page(number, "建议检查血压，服用三次。") for number in range(5)])
    flags = [f"ceval={write_ceval(tmp_path / 'ceval', 5)}", f"chimed={pages}", "scale=example"]
    flags.append(f"ccks2019={write_ccks(tmp_path / 'ccks', 4)}")
    flags += [f"cmb={write_cmb(tmp_path / 'cmb', 4)}", f"promptcblue={write_promptcblue(tmp_path / 'promptcblue', 1)}"]
    options = EngineOptions(tokenizer=str(hf / "tokenizer.model"), tensor_parallel=2, dtype="float32", batch_size=4)
    results = {}
    for kind, folder in (("hf", hf), ("megatron", checkpoint)):
        model = open_model(f"{kind}:{folder}", options, Template())
        settings = Settings(runs=1, max_new_tokens=16)
        results[kind] = evaluate_model(model, flags, tmp_path / kind / "out", settings, Template(), progress=False)
    one, other = (results[kind]["tasks"] for kind in ("hf", "megatron"))
    for name, task in one.items():
        assert task["metrics"] == other[name]["metrics"] and task["cut_prompts"] == other[name]["cut_prompts"], name
    assert one["ceval"]["cut_prompts"] > 0 and one["ccks2019"]["cut_prompts"] > 0  # so cutting agrees as well
    assert one["chimed"]["metrics"]["rouge1_chars"]["mean"] > 0
    answers = set()
    for path in sorted((tmp_path / "hf" / "out" / "samples").iterdir()):
        rows = zip(
            read_json_lines(path), read_json_lines(tmp_path / "megatron" / "out" / "samples" / path.name), strict=True
        )
        for (_, mine), (_, theirs) in rows:
            answers.add(str(mine["answer"]))
            if isinstance(mine["answer"], dict):
                assert mine["answer"] == pytest.approx(theirs["answer"], abs=1e-3)
            else:
                assert mine == theirs
    assert len(answers) > 7
