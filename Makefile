# `make demo` and `make test` need Python >= 3.11 and nothing else: they build .venv themselves.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEMO := runs/demo

.PHONY: help demo test lint clean

help:
	@echo "make demo   pretrain, fine-tune with --freeze and sample, into $(DEMO)"
	@echo "make test   the test suite"
	@echo "make lint   formatting, lint and types"
	@echo "make clean  remove .venv and caches; runs/ stays"

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

test: $(INSTALLED)
	$(BIN)/pytest

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
