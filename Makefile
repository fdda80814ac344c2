# Everything a fresh machine needs is Python 3.11 or newer, pip and make: each target first sets up
# the environment that it needs. Versions come from constraints.txt.
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13 python3.14; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
PIP := -m pip install --quiet --disable-pip-version-check
FOLDERS = $(wildcard pe_core pe_torch pe_flax pe_parity pe_cli parity_tests scripts benchmarks examples)
# Tests that need no torch, for the lowest versions. The Flax model is held to the reference by the
# command.
WITHOUT_TORCH = parity_tests/test_budgets.py parity_tests/test_checkpoint.py \
	$(sort $(wildcard parity_tests/test_data*.py)) parity_tests/test_dropout_chance.py \
	"parity_tests/test_examples.py::test_example_runs[own_model_flax]"

.PHONY: setup demo test evidence lint wheel lowest clean

setup: .venv/.all

demo: .venv/.frameworks
	.venv/bin/pe demo

test: .venv/.all
	.venv/bin/python -m pytest $(ARGS)

lint: .venv/.all
	.venv/bin/ruff check $(FOLDERS)
	.venv/bin/ruff format --check $(FOLDERS)
	.venv/bin/mypy $(FOLDERS)

# The long measurements, half an hour or so: docs/parity.md and docs/evidence/. One thread each, because two of them run side by side.
evidence: export OMP_NUM_THREADS = 1
evidence: export XLA_FLAGS = --xla_cpu_multi_thread_eigen=false
evidence: .venv/.all
	PE_EVIDENCE=docs .venv/bin/python -m pytest -m evidence $(ARGS)
	.venv/bin/pe parity --calibrate --report docs & calibrating=$$!; \
		.venv/bin/pe parity --report docs; reported=$$?; wait $$calibrating && exit $$reported

# The wheel as a user gets it: installed into an empty environment, run outside the checkout.
wheel: .venv/.frameworks
	PYTHON="$(PYTHON)" .ci/wheel

# The lowest versions that pyproject.toml allows. Without torch: an older one would bring CUDA along.
lowest: export OMP_NUM_THREADS = 1
lowest: .venv-lowest/.all
	PE_WITHOUT_TORCH=1 .venv-lowest/bin/python -m pytest $(WITHOUT_TORCH)
	.venv-lowest/bin/python -W error -m pe_cli parity --encoding all --steps 40

# The frameworks first: `make demo` needs no more. The build back end is pinned too: it is installed
# before the project, which is built with it.
.venv/.frameworks: pyproject.toml constraints.txt
	$(call new_environment,.venv)
	.venv/bin/python $(PIP) -c constraints.txt hatchling
	.venv/bin/python $(PIP) -c constraints.txt --no-build-isolation -e ".[torch,flax]"
	@touch $@

.venv/.all: .venv/.frameworks
	.venv/bin/python $(PIP) -c constraints.txt --no-build-isolation -e ".[all]"
	@touch $@

.venv-lowest/.all: pyproject.toml constraints-lowest.txt
	$(call new_environment,.venv-lowest)
	.venv-lowest/bin/python $(PIP) -c constraints-lowest.txt hatchling pytest pytest-xdist hypothesis beartype
	.venv-lowest/bin/python $(PIP) -c constraints-lowest.txt --no-build-isolation -e ".[flax,data]"
	@touch $@

define new_environment
@$(or $(PYTHON),false) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	{ echo "error: Python 3.11 or newer is needed, found $(or $(PYTHON),none); name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
$(PYTHON) -m venv --clear $(1)
endef

clean:
	rm -rf .venv .venv-lowest build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
