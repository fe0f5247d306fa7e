# Everything a person or a machine does with this tree. `make help` lists it.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

CARGO ?= $(shell command -v cargo || echo $(HOME)/.cargo/bin/cargo)
RUSTC ?= $(shell command -v rustc || echo $(HOME)/.cargo/bin/rustc)
TARGET := $(shell $(RUSTC) -vV 2>/dev/null | sed -n 's/^host: //p')
PREFIX ?= /usr
DESTDIR ?=

SHIM := target/$(TARGET)/shim/aril-shim

.PHONY: help deps build release shim fmt lint test test-unit test-root critest demo bench bench-pull check install uninstall clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' Makefile

deps: ## Install the Debian packages that building and testing need, where missing
	@tests/setup

build: release shim ## Build the daemon and the static shim into target/release
	@# Last, and as a new file: cargo puts a dynamic one of that name there when it builds all programs.
	@install -m 0755 $(SHIM) target/release/aril-shim
	@ls -l target/release/aril target/release/aril-shim | awk '{ printf "%-28s %5.2f MiB\n", $$NF, $$5 / 1048576 }'

release: ## Build the daemon alone
	$(CARGO) build --release --bin aril --example rootfs-fixtures

shim: ## Build the static shim alone
	@# At fixed addresses: what is not relocated at start stays one copy for all shims (36 KiB less for each pod).
	RUSTFLAGS="-C target-feature=+crt-static -C relocation-model=static" $(CARGO) build --profile shim --no-default-features --bin aril-shim --target $(TARGET)

fmt: ## Format the code
	$(CARGO) fmt

lint: ## Check format and lints
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets -- -D warnings
	$(CARGO) clippy --no-default-features --lib --bin aril-shim -- -D warnings

test: deps ## Run all tests; needs root
	@tests/run

test-unit: ## Run the tests that need no root
	SKIP_ROOT=1 $(CARGO) test

test-root: deps ## Run the tests against a real daemon and a real kernel; needs root
	@tests/run --test node

critest: deps ## Run Kubernetes' conformance suite for runtimes; needs root and Go
	$(CARGO) build --bin aril --bin aril-shim
	tests/critest/run

.PHONY: need-root
need-root:
	@[ "$$(id -u)" = 0 ] || { echo "containers need root; run it with sudo" >&2; exit 1; }

demo: need-root deps build ## Show a pod that outlives its daemon, in a folder of its own; needs root
	@examples/demo

bench: deps build ## Measure aril beside the bare kernel and containerd; BENCH_ARGS=--install installs the latter
	$(CARGO) bench --bench pod -- --shim $(SHIM) $(BENCH_ARGS)

bench-pull: deps build ## Measure pulls beside containerd, from a registry on loopback
	$(CARGO) bench --bench pull -- --install --shim $(SHIM) $(BENCH_ARGS)

check: lint test ## All that must hold before a change goes in

install: build ## Install below $(DESTDIR)$(PREFIX), with a systemd unit and completions
	install -D -m 0755 target/release/aril $(DESTDIR)$(PREFIX)/bin/aril
	install -D -m 0755 $(SHIM) $(DESTDIR)$(PREFIX)/libexec/aril/aril-shim
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system
	sed 's|/usr/bin/aril|$(PREFIX)/bin/aril|' packaging/aril.service > $(DESTDIR)$(PREFIX)/lib/systemd/system/aril.service
	test -e $(DESTDIR)/etc/aril/config.toml || install -D -m 0644 packaging/config.toml $(DESTDIR)/etc/aril/config.toml
	install -d $(DESTDIR)$(PREFIX)/share/bash-completion/completions $(DESTDIR)$(PREFIX)/share/zsh/site-functions $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d
	target/release/aril completion bash > $(DESTDIR)$(PREFIX)/share/bash-completion/completions/aril
	target/release/aril completion zsh > $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_aril
	target/release/aril completion fish > $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/aril.fish

uninstall: ## Remove what install put there, but for the configuration
	rm -f $(DESTDIR)$(PREFIX)/bin/aril $(DESTDIR)$(PREFIX)/libexec/aril/aril-shim $(DESTDIR)$(PREFIX)/lib/systemd/system/aril.service
	rm -f $(DESTDIR)$(PREFIX)/share/bash-completion/completions/aril $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_aril $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/aril.fish

clean: ## Remove what was built
	$(CARGO) clean
