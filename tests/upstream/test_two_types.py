"""The optimizer's state of a model with weights of two types cannot be saved without the patch."""

from support.checkpoints import write_hf
from support.dialogues import make_renderer
from support.job import Job
from support.rankings import make_groups, write_groups
from support.ranks import WITHOUT

from megatron_chimed.convert.checkpoint import hf_to_megatron
from megatron_chimed.packing.rankings import RankingRowOptions, pack_rankings
from megatron_chimed.training.upstream import PATCHES

STAGE = {"seq-length": 128, "micro-batch-size": 1, "global-batch-size": 2, "split": "100,0,0", "train-iters": 3}
STAGE |= {"bf16": True, "use-distributed-optimizer": True, "lr": 2e-3, "eval-iters": 0}


def test_weights_of_two_types(tmp_path, monkeypatch):
    renderer = make_renderer("sentencepiece", tmp_path)
    source = write_groups(tmp_path / "ranked.jsonl", make_groups(30))
    pack_rankings([str(source)], tmp_path / "packed", renderer, RankingRowOptions(128, progress=False))
    model = write_hf(tmp_path / "hf", vocab_size=renderer.tokenizer.vocab_size, num_hidden_layers=2)
    hf_to_megatron(model, tmp_path / "lm", progress=False)
    job = Job(tmp_path, stage=STAGE | {"data-path": str(tmp_path / "packed")}, name="reward")
    job.model = tmp_path / "lm/model.yaml"
    start = ("--load", tmp_path / "lm", "--finetune", "--tokenizer-type", "NullTokenizer")
    monkeypatch.setenv(WITHOUT, next(one.where for one in PATCHES if one.name == "weights_of_two_types"))
    code = job.start("--save", tmp_path / "run", *start, ranks=1).wait(timeout=120)
    assert code != 0 and "AssertionError" in job.output(), "upstream has mended weights_of_two_types: remove the patch"
    monkeypatch.delenv(WITHOUT)
    job.run("--save", tmp_path / "patched", *start, ranks=1)
