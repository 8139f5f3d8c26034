# Every target sets up what it needs, even on a bare machine, and does nothing twice: the stamp files below record what
# is set up, and it is made again only when its sources have changed.
#
# PYTHON=...   the Python to use, 3.10 or later (python3)
# ARGS=...     more arguments, for pytest in "test", for the program in "demo", "faults", "soak", "bench" and "fuzz"
# JOBS=...     number of processes for "test" and "check" (three per processor, because most tests mostly wait)
# SUITE=...    the tests that "test-system", "sanitize" and "test-wheel" run
# SANITIZE=... the sanitizer of "sanitize", as the compiler names it (thread)
# The build also uses ASPORT_NGTCP2, ASPORT_NGTCP2_SOURCE and ASPORT_CACHE (vendor/ngtcp2.py), CC, CFLAGS, LDFLAGS.

PYTHON ?= python3
ARGS ?=
JOBS ?= $(shell expr 3 '*' "$$(getconf _NPROCESSORS_ONLN)")
SUITE ?= tests/engine tests/e2e/test_smoke.py tests/hostile/independent
SANITIZE ?= thread

# The tests that "check" runs.
CHECKED := $(wildcard tests/test_*.py) $(addprefix tests/,cli client config engine host runtime server support testing vendor wire) \
	$(addprefix tests/e2e/test_,smoke.py tcp.py udp.py) \
	--ignore tests/engine/test_keepalive.py

comma := ,
VENV := .venv
BIN := $(VENV)/bin
# The installed package and a copy of the tests, for the second kind of ngtcp2. See test-system.
SYSTEM := build/system-kind
SANITIZED := build/sanitized/$(firstword $(subst $(comma), ,$(SANITIZE)))

# Warnings in our own C are errors here; see setup.py.
export ASPORT_WERROR ?= 1
# Newer releases of pip do not matter.
export PIP_DISABLE_PIP_VERSION_CHECK := 1

DECLARED := pyproject.toml setup.py asport_sync/_version.py
# The folders themselves as well, to detect removed files.
NATIVE := $(sort $(dir $(wildcard asport_sync/_native/*/))) $(wildcard asport_sync/_native/*.[ch]) \
	$(wildcard asport_sync/_native/*/*.[ch]) asport_sync/_cffi_build.py setup.py \
	asport_sync/_version.py $(wildcard vendor/*.py) vendor/packages.json
C_FILES := $(wildcard asport_sync/_native/*.[ch] asport_sync/_native/*/*.[ch] tests/*/*.[ch] bench/*/*.[ch])

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# Setup steps run one at a time; the native build uses all cores on its own.
.NOTPARALLEL:
.PHONY: help demo test test-workers check faults lint format docs wheel test-wheel test-pythons release-check deb test-deb \
	interop soak bench fuzz sanitize system-ngtcp2 test-system build machine clean

help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo "CONTRIBUTING.md says which of these to run when, docs/development.md how the tests are organised."

demo: build ## Run a server, a client and a local service on this machine and send data through.
	$(BIN)/python demo/demo.py $(ARGS)

test: build ## Run the tests (ARGS="-k name").
	$(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal $(ARGS)

test-workers: build ## The end-to-end and interop tests with a worker for each TCP connection (relay: workers).
	ASPORT_TEST_RELAY=workers $(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal tests/e2e tests/interop $(ARGS)

check: lint build ## What to run while working: lint, and the tests that tell most in little time (90 seconds).
	$(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal $(CHECKED) $(ARGS)

# To run a part, call the programs individually: each has --only.
faults: build ## Bad paths, recovery and floods at length: 50 minutes (ARGS=--write-docs).
	$(BIN)/python -m pytest -q -m faults tests/path
	$(BIN)/python -m tests.faults $(ARGS)
	$(BIN)/python -m tests.recovery $(ARGS)
	$(BIN)/python -m pytest -q -m recovery tests/recovery/test_reconnects.py
	$(BIN)/python -m tests.hostile $(ARGS)
	$(BIN)/python -m tests.bounds $(ARGS)

lint: $(VENV)/.tools ## Check style, types and the direction of imports.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(C_FILES)
	$(BIN)/python -m pytest -q tests/test_layers.py

format: $(VENV)/.tools ## Bring Python and C files into the project's style.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(C_FILES)

docs: build ## Write what comes from the code: tables in docs/, manual pages, unit files, signatures.
	@$(BIN)/python -m tests.support.generated

wheel: $(VENV)/.tools ## Make the source distribution and, from it, the wheel, in dist/ (as root, in a Debian root).
	@$(PYTHON) -m vendor.machine debootstrap
	rm -rf dist
	$(BIN)/python -m release.wheel

# With a compiler for the build root only. The limits of time are those of tests/wheel.
TEST_WHEEL = SUITE="$(if $(findstring file,$(origin SUITE)),,$(SUITE))" JOBS="$(JOBS)" \
	$(BIN)/python -m pytest -q -m wheel tests/wheel $(ARGS)

test-wheel: build wheel ## Try the wheel in empty roots of Debian: no compiler, no network (SUITE="tests/e2e ...").
	$(TEST_WHEEL)

test-pythons: build ## Run wire, config, engine and e2e with other versions of Python (ARGS="3.10 3.14t", ARGS=--smoke).
	@$(PYTHON) -m vendor.machine debootstrap
	JOBS="$(JOBS)" $(BIN)/python -m tests.pythons $(ARGS)

release-check: build $(VENV)/.release wheel ## Check what a release has to meet, and then what test-wheel does (an hour).
	$(BIN)/python -m release.check
	$(TEST_WHEEL)

deb: $(VENV)/.tools ## Make the packages of Debian, in dist/deb/ (as root, in a Debian root).
	@$(PYTHON) -m vendor.machine debootstrap
	rm -rf dist/deb
	$(BIN)/python -m release.deb

test-deb: build deb ## Install, upgrade and purge the packages, in a Debian root with a systemd that runs.
	$(BIN)/python -m pytest -q -m deb tests/deb $(ARGS)

interop: build ## Build the reference implementation and peers on other QUIC stacks (cargo, Go; minutes), and test with them.
	$(BIN)/python -m tests.interop.install --require
	$(BIN)/python -m pytest -q tests/interop $(ARGS)

bench: build $(VENV)/.bench ## Measure beside other tunnels, building them first (minutes once; ARGS="--quick").
	$(BIN)/python -m bench.tunnels.install
	$(BIN)/python -m bench $(ARGS)

soak: build ## Twenty minutes of mixed traffic with lost connections; nothing may grow (ARGS="--minutes 2").
	$(BIN)/python -m tests.soak $(ARGS)

# If clang or atheris is unavailable, its fuzz targets are skipped and the reason is printed.
fuzz: build ## Fuzz codec, units and engine (installs clang and atheris; ARGS="--seconds 60").
	@$(PYTHON) -m vendor.machine clang
	@$(BIN)/pip install -q --group fuzz || echo "atheris could not be installed" >&2
	$(BIN)/python -m tests.fuzz $(ARGS)

system-ngtcp2: machine ## Fetch the distribution's ngtcp2 without installing it, and show how to build with it.
	@$(PYTHON) -m vendor.system_kind

# The package is installed, not linked to the source tree, and the tests run from a copy: this also shows that the
# installed package is complete.
test-system: build ## Build with the distribution's ngtcp2 and run engine, smoke and trap tests on that (SUITE="tests/e2e ...").
	rm -rf $(SYSTEM) build/lib.*
	mkdir -p $(SYSTEM)
	settings="$$($(PYTHON) -m vendor.system_kind)" && eval "$$settings" && \
		ASPORT_NGTCP2=system $(BIN)/pip install -q --no-build-isolation --no-deps --target $(SYSTEM)/site .
	cp -r tests docs examples release vendor debian README.md CHANGELOG.md CONTRIBUTING.md SECURITY.md pyproject.toml \
		$(SYSTEM)
	cp -r asport_sync/_native $(SYSTEM)/native
	settings="$$($(PYTHON) -m vendor.system_kind)" && eval "$$settings" && \
		cd $(SYSTEM) && export PYTHONPATH="$$PWD/site" ASPORT_NGTCP2=system && ../../$(BIN)/python -c \
		'from asport_sync._aq import ffi, lib; assert ffi.string(lib.aq_ngtcp2_origin()) == b"system"' && \
		../../$(BIN)/python -m pytest -q $(SUITE) $(ARGS)

# The package is installed separately, as above, and the sanitizer's library is preloaded, as Python is not built with
# it. Only what ends a test counts: LeakSanitizer is off, because Python frees little at exit.
sanitize: build ## Run engine and tunnel under a sanitizer (SANITIZE=thread or address,undefined; SUITE="tests/e2e ...").
	rm -rf $(SANITIZED) build/lib.*
	mkdir -p $(SANITIZED)
	CFLAGS="-g -O1 -fno-omit-frame-pointer -fsanitize=$(SANITIZE) -Wno-tsan" LDFLAGS="-fsanitize=$(SANITIZE)" \
		ASPORT_WERROR=0 $(BIN)/pip install -q --no-build-isolation --no-deps --target $(SANITIZED)/site .
	cp -r tests docs examples release vendor debian README.md CHANGELOG.md CONTRIBUTING.md SECURITY.md pyproject.toml \
		$(SANITIZED)
	cp -r asport_sync/_native $(SANITIZED)/native
	cd $(SANITIZED) && export PYTHONPATH="$$PWD/site" && ../../../$(BIN)/python -m tests.support.sanitized $(SANITIZE) \
		-q $(if $(findstring file,$(origin SUITE)),tests/engine tests/e2e,$(SUITE)) $(ARGS)

clean: ## Remove everything that was made here (not the cache folder).
	rm -rf $(VENV) build dist *.egg-info asport_sync/_aq*.so .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

# --- setup ---------------------------------------------------------------------------------------------------------------

build: $(VENV)/.native ## Install the package into .venv, with the native engine built in place.

machine:
	@sh vendor/bootstrap.sh $(PYTHON)

# 25.1 is the first pip with --group. Without the bound pip calls itself up to date when it cannot reach the index.
$(VENV)/.python: | machine
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install -q --upgrade 'pip>=25.1'
	@touch $@

$(VENV)/.tools: pyproject.toml $(VENV)/.python
	$(BIN)/pip install -q --group dev
	@touch $@

$(VENV)/.release: $(VENV)/.tools
	$(BIN)/pip install -q --group release
	@touch $@

# Already installed, so pip only adds what the extra requires.
$(VENV)/.bench: $(VENV)/.installed
	$(BIN)/pip install -q 'asport-sync[bench]'
	@touch $@

# This also builds the engine. pip does not show what its build prints, so ngtcp2 is built first: progress and warnings
# are seen. The silenced warning is about folders in the working directory named like the package.
$(VENV)/.installed: $(DECLARED) $(VENV)/.tools
	@$(BIN)/python -m vendor.ngtcp2 >/dev/null
	PYTHONWARNINGS='ignore:Editable installation' $(BIN)/pip install -q --no-build-isolation --editable .
	@touch $@ $(VENV)/.native

$(VENV)/.native: $(NATIVE) | $(VENV)/.installed
	$(BIN)/python setup.py -q build_ext --inplace
	@touch $@
