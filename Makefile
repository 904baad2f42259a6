# `make demo` and `make test` need Python >= 3.11 and nothing else: they build .venv themselves.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEMO := runs/demo

PEERS := .peers
DATA ?= tiny-shakespeare

.PHONY: help demo test lint soak gates gpu peers clean

help:
	@echo "make demo   pretrain, fine-tune with --freeze and sample, into $(DEMO)"
	@echo "make test   the test suite"
	@echo "make lint   formatting, lint and types"
	@echo "make soak   200 kills, 20,000 damaged files and half an hour of training, some fifty minutes"
	@echo "make gates  compile every kernel for every card, and check what the compiler made; needs no GPU"
	@echo "make gpu    kernels, steps, trainings and sampling, proved and timed on an NVIDIA GPU, into runs/gpu"
	@echo "make peers  CTranslate2 and onnxruntime-genai, for python -m bench.sampling, into $(PEERS)"
	@echo "make clean  remove .venv, .peers and caches; runs/ stays"

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "charformer needs Python 3.11 or newer; try make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[corpus,dev]'
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

# A process a core, eight at the most, of one thread each.
test: export OMP_NUM_THREADS = 1
test: $(INSTALLED)
	$(BIN)/pytest --numprocesses auto --maxprocesses 8 --dist worksteal

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

soak: $(INSTALLED)
	$(BIN)/python -m tests.reliability.kills --count 200 --json bench/results/kills.json
	FUZZ_COUNT=20000 $(BIN)/pytest tests/reliability/test_fuzz.py
	$(BIN)/python -m tests.reliability.soak --minutes 30 --json bench/results/soak.json

gates: $(INSTALLED)
	$(BIN)/python -W ignore -m kernels.checks.compile --card all --csv bench/results/kernels-aot.csv

# `make test` interprets the kernels; here they run. A stage that fails does not stop the others.
gpu: export TRITON_INTERPRET = 0
gpu: $(INSTALLED)
	$(BIN)/python -m bench.gpu --device cuda --data $(DATA) --out runs/gpu --budget 3600

# Of their own, since onnxruntime-genai brings the plain onnxruntime.
peers:
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/pip install --quiet --disable-pip-version-check -r bench/engines/peers.txt

clean:
	rm -rf $(VENV) $(PEERS) .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
