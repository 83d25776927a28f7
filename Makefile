# longreel: `make demo` asks the demo model about a new clip, `make test` runs every test.
# Both install what is missing first. Build output stays outside the clone.

SHELL := /bin/bash
export CARGO_TARGET_DIR ?= $(HOME)/.cache/longreel/target
CARGO := $(shell command -v cargo || echo $(HOME)/.cargo/bin/cargo)
LONGREEL := $(CARGO_TARGET_DIR)/release/longreel
DEMO := $(CARGO_TARGET_DIR)/demo

.PHONY: demo test bench deps build install lint

demo: build
	.ci/demo $(LONGREEL) $(DEMO)

test: deps
	RUST_BACKTRACE=0 $(CARGO) test --release --locked --workspace --features mpi

bench: deps
	$(CARGO) bench --locked --features mpi

build: deps
	$(CARGO) build --release --locked --features mpi --bin longreel

install: deps
	$(CARGO) install --path . --locked --features mpi

lint: deps
	$(CARGO) fmt --all --check
	CLIPPY_CONF_DIR=.ci $(CARGO) clippy --release --locked --workspace --features mpi --all-targets -- -D warnings

deps:
	.ci/deps
