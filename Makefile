# `make help` says what there is.
.DEFAULT_GOAL := help
.PHONY: help demo test lint bench schemas nats python fuzz fuzz-short

CARGO ?= cargo
VENV := .windlass/venv
# Test clients that nobody here wrote: an orchestrator and a consumer in Python.
PYTHON_PACKAGES := nats-py==2.11.0 msgpack==1.1.2

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

demo: ## one worker, a handful of tasks, everything that happens to them; leaves nothing behind
	@deploy/demo.sh

test: nats python ## all tests, against a real nats-server (NATS_VERSION=2.12.3 for another one)
	WINDLASS_TEST_NATS_SERVER="$$(deploy/fetch-nats.sh)" WINDLASS_TEST_PYTHON="$(CURDIR)/$(VENV)/bin/python" \
		RUST_TEST_THREADS=$${RUST_TEST_THREADS:-6} $(CARGO) test --locked --lib --bins --test integration
	@$(MAKE) --no-print-directory fuzz-short

# Each target for FUZZ_SECONDS, or one of them: make fuzz FUZZ_TARGETS=config. What is new and worth keeping goes to fuzz/work
# (`fuzz/keep.sh` takes it over into the corpus), findings to fuzz/artifacts.
FUZZ_TARGETS ?= assignment_json assignment_msgpack config log_chunker chain_fold
FUZZ_SECONDS ?= 300

fuzz: ## fuzzing, FUZZ_SECONDS=300 for each target
	@command -v g++ >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
		apt-get update -qq >/dev/null && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends g++ >/dev/null 2>&1; } || \
		{ echo "make: fuzzing needs g++ (Debian: apt-get install g++)" >&2; exit 1; }
	@fuzz/run.sh $(FUZZ_SECONDS) $(FUZZ_TARGETS)

# Bounded: a part of `make test`.
fuzz-short:
	@$(MAKE) --no-print-directory fuzz FUZZ_SECONDS=10

lint: ## formatting, lints, and schemas that are not what the types say
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	$(CARGO) run --locked --quiet -- schema --check schemas

bench: nats ## the figures of docs/performance.md, on this machine
	WINDLASS_TEST_NATS_SERVER="$$(deploy/fetch-nats.sh)" $(CARGO) bench --locked --bench performance

schemas: ## write schemas/ from the types
	$(CARGO) run --locked --quiet -- schema schemas

nats:
	@deploy/fetch-nats.sh >/dev/null

python: $(VENV)/ready

# Renewed when the pinned versions change.
$(VENV)/ready: Makefile
	@python3 -c 'import ensurepip, venv' 2>/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
		apt-get update -qq >/dev/null && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3 python3-venv >/dev/null 2>&1; } || \
		{ echo "make: the tests need python3 with its venv module (Debian: apt-get install python3-venv)" >&2; exit 1; }
	@rm -rf $(VENV)
	@python3 -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(PYTHON_PACKAGES)
	@touch $@
