# `make help` says what there is.
.DEFAULT_GOAL := help
.PHONY: help demo test lint bench schemas nats python disks

CARGO ?= cargo
VENV := .windlass/venv
# Test clients that nobody here wrote: an orchestrator and a consumer in Python.
PYTHON_PACKAGES := nats-py==2.11.0 msgpack==1.1.2

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

demo: ## one worker, a handful of tasks, everything that happens to them; leaves nothing behind
	@deploy/demo.sh

test: nats python disks ## all tests, against a real nats-server (NATS_VERSION=2.12.3 for another one)
	WINDLASS_TEST_NATS_SERVER="$$(deploy/fetch-nats.sh)" WINDLASS_TEST_PYTHON="$(CURDIR)/$(VENV)/bin/python" \
		RUST_TEST_THREADS=$${RUST_TEST_THREADS:-6} $(CARGO) test --locked --lib --bins --test integration

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

# Images to fill and to cut off from power, and clocks to set; without them those tests are skipped.
disks:
	@{ command -v mkfs.ext4 && command -v unshare && command -v nsenter && command -v mount && command -v faketime; } >/dev/null || \
		{ [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq >/dev/null && DEBIAN_FRONTEND=noninteractive \
			apt-get install -y -qq --no-install-recommends e2fsprogs util-linux mount faketime >/dev/null 2>&1; } || \
		echo "make: tests of disks and clocks need e2fsprogs, util-linux and faketime, and root" >&2

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
