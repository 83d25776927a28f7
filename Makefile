# longreel: `make demo` asks a question of a real video, `make test` runs every test.
# Both install what is missing first. Build output stays outside the clone.

SHELL := /bin/bash
export CARGO_TARGET_DIR ?= $(HOME)/.cache/longreel/target
CARGO := $(shell command -v cargo || echo $(HOME)/.cargo/bin/cargo)
LONGREEL := $(CARGO_TARGET_DIR)/release/longreel
DEMO := $(CARGO_TARGET_DIR)/demo

.PHONY: demo test bench deps build lint

demo: build
	.ci/demo $(LONGREEL) $(DEMO)

test: deps
	RUST_BACKTRACE=0 $(CARGO) test --release --locked --workspace --features mpi

bench: deps
	$(CARGO) bench --locked --features mpi

build: deps
	$(CARGO) build --release --locked --features mpi --bin longreel

lint: deps
	$(CARGO) fmt --all --check
	CLIPPY_CONF_DIR=.ci $(CARGO) clippy --release --locked --workspace --features mpi --all-targets -- -D warnings

deps:
	.ci/deps
