# Convnets, Reproduced. `make help` lists the commands; each creates .venv and installs the pins if need be.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
CHECK  := $(BIN)/python -m book._tools.check

# The kernels' debugger would print a warning at each start.
export PYDEVD_DISABLE_FILE_VALIDATION := 1

.DEFAULT_GOAL := help
.PHONY: help book test run sync lint bench torture check lock

help:  ## list these commands
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-12s %s\n", $$1, $$2}'

book: $(STAMP)  ## build the pages from the executed notebooks: _build/html/index.html
	@$(CHECK) book

test: $(STAMP)  ## unit tests, the book's gates, and every cell of every chapter again
	@$(CHECK) unit torture gates chapters

run: $(STAMP)  ## execute the chapters whose text or code changed (ALL=1: all), two at a time
	@$(BIN)/python -m book._tools.execute $(if $(ALL),--all)

sync: $(STAMP)  ## bring each chapter's .md and .ipynb into step, keeping outputs of unchanged cells
	@$(BIN)/python -m book._tools.sync

lint: $(STAMP)  ## style, format and types
	@$(CHECK) lint

bench: $(STAMP)  ## the benchmarks, as one table
	@$(BIN)/python -m benchmarks

torture: $(STAMP)  ## kill it, corrupt it, starve it, attack it: the table of faults (under an hour; ROWS="1 6": some)
	@$(BIN)/python -m book._tools.torture $(ROWS)

check: $(STAMP)  ## everything that has to be green: lint, test, book, and the pages in a browser
	@$(CHECK) lint unit torture gates chapters book browser

# requirements.lock has the pins of requirements.txt with the sha256 of each file; conda's pip takes no hashes beside `-e .`.
COMPILE = $(BIN)/python -m uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate
lock: $(STAMP)  ## resolve the pins anew, with the hashes of their files (needs uv, which it installs)
	@$(BIN)/python -m pip install --quiet uv
	$(COMPILE) --upgrade pyproject.toml --extra book --extra test --extra imagenet --output-file requirements.txt
	$(COMPILE) --generate-hashes requirements.txt --output-file requirements.lock
	@$(BIN)/python -m book._tools.licences

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed; $(PYTHON) is: $$($(PYTHON) --version 2>&1)"; \
	  echo "Name another one, for example: make $(or $(MAKECMDGOALS),book) PYTHON=python3.12"; exit 1; }
	@echo "creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)

# Without `-q`, so that the downloads, some of them large, show how far they are.
$(STAMP): requirements.lock pyproject.toml | $(BIN)/python
	@echo "installing the pinned dependencies into $(VENV) (once; a few minutes)"
	@$(BIN)/python -m pip install --disable-pip-version-check --require-hashes --only-binary :all: -r requirements.lock
	@$(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
