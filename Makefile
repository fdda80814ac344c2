# Everything a fresh machine needs is Python 3.11 or newer, pip and make: each target sets up .venv first where it has to.
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13 python3.14; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
STAMP := .venv/.stamp
PIP := .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
FOLDERS = $(wildcard pe_core pe_torch pe_flax pe_parity pe_cli parity_tests scripts benchmarks)

.PHONY: setup demo test evidence lint clean

setup: $(STAMP)

# The build back end is pinned too: it is installed first, and the project is built with it.
$(STAMP): pyproject.toml constraints.txt
	@$(or $(PYTHON),false) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "error: Python 3.11 or newer is needed, found $(or $(PYTHON),none); name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv --clear .venv
	$(PIP) hatchling
	$(PIP) --no-build-isolation -e ".[all]"
	@touch $@

demo: $(STAMP)
	.venv/bin/pe demo

test: $(STAMP)
	.venv/bin/python -m pytest $(ARGS)

# The long measurements, half an hour or so: the tables of docs/parity.md, docs/evidence/ and the picture. One thread each, because two of
# them run side by side.
evidence: export OMP_NUM_THREADS = 1
evidence: export XLA_FLAGS = --xla_cpu_multi_thread_eigen=false
evidence: $(STAMP)
	PE_EVIDENCE=docs .venv/bin/python -m pytest -m evidence $(ARGS)
	.venv/bin/pe parity --calibrate --report docs & calibrating=$$!; \
		.venv/bin/pe parity --report docs; reported=$$?; wait $$calibrating && exit $$reported

lint: $(STAMP)
	.venv/bin/ruff check $(FOLDERS)
	.venv/bin/ruff format --check $(FOLDERS)
	.venv/bin/mypy $(FOLDERS)

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
