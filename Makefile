# The two words that matter: `make run` (a demo) and `make test` (every check).
# Variables: PYTHON, VENV, ARGS (for `run`: options of `balancer demo`; for `test`: of pytest;
# for `faults`, `soak` and `bench`: of `python -m tests.faults`, `tests.soak` and `tests.benchmarks`). SECONDS and
# JOBS are those of `fuzz`, MINUTES those of `soak`.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
SECONDS ?= 600
JOBS ?= 1
MINUTES ?= 20
UV_VERSION ?= 0.13.8
FUZZ_VENV ?= .venv-fuzz
NPM_TESTS := tests/e2e/npm

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input -q
COMPILE := pip compile --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-header --no-annotate -q

# What each stamp stands for: the bare environment, what serving needs, what development needs.
CREATED := $(VENV)/.created
INSTALLED := $(VENV)/.installed
DEVELOP := $(VENV)/.develop

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help run install test check npm faults bench fuzz soak lock clean

help:
	@echo 'make run      set up and start the demo: three simulated instances, one address'
	@echo 'make install  set up only; the command is then $(BIN)/balancer'
	@echo 'make test     set up and run every check: make check, then the tests'
	@echo 'make check    lint, format, types and import rules'
	@echo 'make faults   half an hour of faults under load, written to docs/faults.md'
	@echo 'make bench    half an hour of measuring beside other proxies, written to docs/benchmarks.md'
	@echo 'make fuzz     each parser for SECONDS=600 under hypothesis and under atheris, JOBS=1 at once'
	@echo 'make soak     mixed traffic with aborting clients for MINUTES=20, and what it left behind'
	@echo 'make lock     write the lock files anew (UPGRADE=--upgrade for newer versions)'
	@echo 'make clean    remove the environment and all caches'

run: $(INSTALLED)
	@$(BIN)/balancer demo $(ARGS)

install: $(INSTALLED)

test: check npm
	@echo '== pytest'
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 $(ARGS)

# All four run, so that one call names every fault; any of them fails the whole.
check: $(DEVELOP)
	@failed=; \
	step() { echo "== $$*"; "$(BIN)/$$@" || failed="$$failed '$$*'"; }; \
	step ruff check .; \
	step ruff format --check .; \
	step mypy; \
	step lint-imports; \
	if [ -n "$$failed" ]; then echo "make check: failed:$$failed" >&2; exit 1; fi

# The tests with the npm client skip themselves where this was not possible.
npm:
	@if [ ! -f $(NPM_TESTS)/package-lock.json ]; then \
		echo '== no $(NPM_TESTS)/package-lock.json: the tests with the npm client skip'; \
	elif ! command -v npm >/dev/null; then \
		echo '== npm is not installed: the tests with the npm client skip'; \
	elif [ ! $(NPM_TESTS)/node_modules/.installed -nt $(NPM_TESTS)/package-lock.json ]; then \
		echo '== npm ci' && npm ci --prefix $(NPM_TESTS) --no-audit --no-fund \
			&& touch $(NPM_TESTS)/node_modules/.installed; \
	fi

# ARGS such as `--rows 3,31` or `--parallel 2`.
faults: $(DEVELOP)
	@$(BIN)/python -m tests.faults --markdown docs/faults.md $(ARGS)

# ARGS such as `--quick --rounds 3`, `--proxies relay,balancer` or `--measures unary`.
bench: $(DEVELOP)
	@$(BIN)/python -m tests.benchmarks --markdown docs/benchmarks.md $(ARGS)

# In an environment of its own: atheris is not built for every platform.
fuzz: $(FUZZ_VENV)/.installed
	@$(FUZZ_VENV)/bin/python -m tests.fuzz --seconds $(SECONDS) --jobs $(JOBS) $(ARGS)

# ARGS such as `--requests 10000` or `--set fast_path=off`.
soak: $(DEVELOP)
	@$(BIN)/python -m tests.soak --minutes $(MINUTES) $(ARGS)

lock: $(CREATED)
	@tools=$$(mktemp -d) && trap 'rm -rf "$$tools"' EXIT && \
	$(BIN)/python -m venv "$$tools" && \
	"$$tools/bin/python" -m pip --disable-pip-version-check --no-input -q install uv==$(UV_VERSION) && \
	"$$tools/bin/uv" $(COMPILE) $(UPGRADE) pyproject.toml -o requirements.lock && \
	"$$tools/bin/uv" $(COMPILE) $(UPGRADE) --group dev pyproject.toml -o requirements-dev.lock && \
	"$$tools/bin/uv" $(COMPILE) $(UPGRADE) --group fuzz pyproject.toml -o requirements-fuzz.lock && \
	if grep -n '://' requirements.lock requirements-dev.lock requirements-fuzz.lock; then \
		echo 'make lock: a lock file names an address' >&2; exit 1; \
	fi

clean:
	rm -rf $(VENV) $(FUZZ_VENV) .fuzz .mypy_cache .ruff_cache .import_linter_cache .pytest_cache .hypothesis dist \
		$(NPM_TESTS)/node_modules
	find balancer tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(CREATED):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'Python 3.11 or newer is needed; name one: make PYTHON=python3.11 …' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
		{ echo 'the venv module is incomplete; on Debian: apt-get install python3-venv' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# The checkout itself is linked rather than built: a build would download tools that are not locked here.
$(INSTALLED): requirements.lock | $(CREATED)
	$(PIP) install --require-hashes -r requirements.lock
	@site=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
		echo '$(CURDIR)' > "$$site/checkout.pth"
	@printf '%s\n' '#!/bin/sh' \
		'exec "$$(dirname "$$(readlink -f "$$0")")/python" -P -m balancer "$$@"' > $(BIN)/balancer
	@chmod 755 $(BIN)/balancer
	@touch $@

$(DEVELOP): requirements-dev.lock pyproject.toml | $(CREATED)
	$(PIP) install --require-hashes -r requirements-dev.lock
	$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

$(FUZZ_VENV)/.installed: requirements-fuzz.lock
	$(PYTHON) -m venv $(FUZZ_VENV)
	$(FUZZ_VENV)/bin/python -m pip --disable-pip-version-check --no-input -q install \
		--require-hashes -r requirements-fuzz.lock
	@touch $@
