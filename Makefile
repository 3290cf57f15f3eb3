# The project's doors. Each one installs what it needs first (e2e/setup.sh), says so on standard error, and
# keeps it in $(PATHWATCH_CACHE), outside the work tree. Standard output belongs to the command itself.
export PATHWATCH_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/pathwatch
export PATH := $(PATHWATCH_CACHE)/bin:$(PATH)
# rustup looks for its toolchains below HOME; with an empty HOME they are still where the account's own home is.
HOMES := $(HOME) $(shell getent passwd $$(id -u) | cut -d: -f6)
RUSTUP_HOME := $(or $(RUSTUP_HOME),$(firstword $(foreach home,$(HOMES),$(if $(wildcard $(home)/.rustup/toolchains/*),$(home)/.rustup))),$(HOME)/.rustup)
export RUSTUP_HOME

# Loading eBPF programs needs root; nothing else here does.
SUDO := $(if $(filter 0,$(shell id -u)),,sudo -E)
RELEASE := target/$(shell uname -m)-unknown-linux-gnu/release/pathwatch
PREFIX ?= /usr/local
KERNELS ?= 5.10 6.12
# Every way to reach a file is tried on these.
COVERED := 5.10 6.1 6.12 7
# What another kernel may change of the journey; the rest takes an emulated node minutes.
GUEST_CASES ?= install capabilities status first_alert token volumes attacked
# Opens under which the kernel's filter is held to itself switched off.
SOUND_OPENS ?= 20000
comma := ,
AS_ROOT := --config "target.'cfg(unix)'.runner=['$(if $(SUDO),sudo,env)'$(if $(SUDO),$(comma) '-E')]"

.PHONY: arm64 help run install test docs e2e image rules drill scale siem bench fuzz soak workload precision lint full setup release coverage test-unit test-mutants test-native test-guests test-sound
.SILENT:

help: ## this list
	sed -n 's/^\([a-z0-9-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 22

run: release ## the sensor on this machine, with ./policies, alerts on standard output
	exec $(SUDO) $(RELEASE) run

release: ## the binary
	e2e/setup.sh build
	echo 'building pathwatch (the first time takes about 3 minutes on two idle CPUs): $(RELEASE)' >&2
	cargo build --locked --release -p sensor >&2

# Below DESTDIR, if it is set; after `make release`. What is configured already stays.
SHARE := $(DESTDIR)$(PREFIX)/share
UNIT := $(DESTDIR)$(PREFIX)/lib/systemd/system/pathwatch.service
install: ## after `make release`, the sensor as a service of this host: binary, unit, policies, man pages, completions
	[ -x $(RELEASE) ] || { echo 'install: there is no $(RELEASE); make release, as yourself' >&2; exit 1; }
	install -D -m 755 $(RELEASE) $(DESTDIR)$(PREFIX)/bin/pathwatch
	mkdir -p $(DESTDIR)/etc/pathwatch/policies $(SHARE)/man/man1 $(SHARE)/bash-completion/completions $(SHARE)/pathwatch
	sed 's|/usr/local|$(PREFIX)|' sensor/pathwatch.yaml >$(SHARE)/pathwatch/pathwatch.yaml
	[ -e $(DESTDIR)/etc/pathwatch/pathwatch.yaml ] || install -m 600 $(SHARE)/pathwatch/pathwatch.yaml $(DESTDIR)/etc/pathwatch/
	rm -rf $(SHARE)/pathwatch/policies && cp -r policies $(SHARE)/pathwatch/policies
	install -D -m 644 sensor/pathwatch.service $(UNIT)
	sed -i 's|/usr/local|$(PREFIX)|' $(UNIT)
	$(RELEASE) man $(SHARE)/man/man1
	$(RELEASE) completions bash >$(SHARE)/bash-completion/completions/pathwatch

setup: ## everything that building and testing needs
	GUEST_KERNELS="$(KERNELS)" e2e/setup.sh build lint guests kafka cluster containers node

test: ## the tests: units, this kernel, a real broker and API server, the documents' commands, guest kernels
	$(SUDO) rm -rf target/*/tmp/moved target/guests
	$(MAKE) test-unit test-native docs test-guests coverage
	cargo test --locked -p sensor --test moved -- --ignored --nocapture

test-unit:
	e2e/setup.sh build
	cargo test --locked -p sensor-ebpf
	cargo test --locked -p sensor --lib --bins --test tidy --test cli --test replay --test language --test reload --test library --test policy --test oracle --test filter --test schema --test objects --test moved

# A wrong matcher must fail the tests that compare it with its oracle; it is built anew for each mistake.
test-mutants:
	e2e/setup.sh build
	cargo test --locked -p sensor --test mutants -- --ignored --nocapture

test-native: release
	e2e/setup.sh build kafka cluster containers
	SOAK_SECONDS=$${SOAK_SECONDS:-60} PATHWATCH_RELEASE=$(CURDIR)/$(RELEASE) cargo test --locked -p sensor --test kernel --test first_light --test bypass --test kafka --test apiserver --test container --test load $(AS_ROOT) -- --test-threads=1 --nocapture

docs: release ## every fenced command of the documents is run, or says why not
	e2e/setup.sh build docs
	$(SUDO) e2e/docs.py $(RELEASE)

test-guests:
	GUEST_KERNELS="$(KERNELS)" e2e/setup.sh build guests
	e2e/guests.sh kernel $(KERNELS)
	$(MAKE) test-sound

# The kernel's filter against itself switched off: a million opens take the emulator a quarter of an hour.
test-sound:
	GUEST_KERNELS=6.12 e2e/setup.sh build guests
	TEST_ARGUMENTS=$(SOUND_OPENS) e2e/guests.sh sound 6.12

coverage: ## every way to reach a file, on four guest kernels and this one: docs/coverage.md
	GUEST_KERNELS="$(COVERED)" e2e/setup.sh build guests
	e2e/coverage.sh $(COVERED)

e2e: release ## the README's journey, and helm install in a real cluster, on this kernel and in a guest
	GUEST_KERNELS=6.12 e2e/setup.sh build e2e cluster kafka containers node guests
	e2e/first-light.sh
	e2e/chart.sh $(RELEASE)
	e2e/images.sh sensor $(RELEASE)
	cargo build --locked --release -p attack
	$(SUDO) e2e/journey.sh native
	CASES="$(GUEST_CASES)" $(SUDO) e2e/journey.sh guest

image: release ## the sensor's image, without a Docker engine: target/image/pathwatch.tar
	e2e/setup.sh image
	e2e/images.sh sensor $(RELEASE)

rules: ## the chart's alert rules by promtool
	e2e/setup.sh prometheus
	e2e/rules.sh

drill: release ## every alert rule made to fire by a real fault, at a real Prometheus; pictures for the documents
	e2e/setup.sh build kafka prometheus
	$(SUDO) e2e/drill.py $(RELEASE)

scale: release ## watches of a thousand nodes and five thousand sensors, at a real API server
	e2e/setup.sh cluster kafka node
	$(SUDO) e2e/scale.sh $(CURDIR)/$(RELEASE)

siem: release ## a thousand alerts through Kafka and rsyslog into a real OpenSearch to which nobody gave a mapping
	e2e/setup.sh kafka opensearch siem
	e2e/siem.sh $(RELEASE)

bench: release ## what an open costs, in instructions, and with others' sensors: docs/performance.md; what an event costs the matcher; events a second through a real broker, latency, memory of a full spool
	GUEST_KERNELS="$(COVERED)" e2e/setup.sh build kafka guests peers
	e2e/cost.sh $(RELEASE) 6.12 $(filter-out 6.12,$(COVERED))
	cargo bench --locked -p sensor

fuzz: ## the policy parser and the glob compiler, ten minutes each with coverage feedback
	e2e/setup.sh build fuzz
	e2e/fuzz.sh

soak: release ## 500 rounds of faults at a real broker, an hour of builds, the API server away for five minutes
	e2e/setup.sh build cluster kafka
	CONSERVATION_ROUNDS=500 cargo test --locked -p sensor --test kafka $(AS_ROOT) -- --nocapture conservation
	OUTAGE_SECONDS=300 cargo test --locked -p sensor --test apiserver $(AS_ROOT) -- --test-threads=1 --nocapture outage
	SOAK_SECONDS=3600 PATHWATCH_RELEASE=$(CURDIR)/$(RELEASE) cargo test --locked -p sensor --test load $(AS_ROOT) -- --test-threads=1 --nocapture

workload: release ## ordinary work under the whole policy library: no alert; only on a machine that nobody needs
	GUEST_KERNELS= e2e/setup.sh e2e guests
	$(SUDO) e2e/workload.sh $(RELEASE)

precision: release ## how many opens of ordinary work the kernel's filter lets pass, and why
	GUEST_KERNELS=6.12 e2e/setup.sh build guests precision
	$(SUDO) e2e/precision.sh $(RELEASE)

lint: ## formatting, lints of both sides, dependencies' licences and sources, schemas of records
	e2e/setup.sh build lint
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTC_BOOTSTRAP=1 cargo clippy --locked -p sensor-ebpf --bins --target bpfel-unknown-none -Zbuild-std=core --target-dir target/ebpf-lint -- -D warnings
	cargo deny --locked check licenses bans sources
	e2e/schemas.py --check

arm64: ## cross-compiled, and in guests of Debian's arm64 kernels: every way to reach a file, the kernel tests, an alert
	e2e/setup.sh build image arm64
	e2e/arm64.sh all

full: lint test test-mutants e2e scale arm64 rules drill siem bench fuzz soak workload precision ## everything, also what is too slow for CI: mistakes planted, fuzzing, other kernels and machines
	$(MAKE) test-guests KERNELS="6.1 7" SOUND_OPENS=1000000
	SELF_TEST=1 CASES="install status upgrade whole" $(SUDO) e2e/journey.sh guest
