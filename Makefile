# Everything a developer runs. `make setup` is called by the others; it needs root only to install packages.

.PHONY: run test bench fuzz setup

# One live test needs a thousand sockets at once.
FILES := ulimit -n $$(ulimit -Hn) 2>/dev/null || true;

# make run ARGS="--postgres-port 5433"
run:
	scripts/setup.sh server
	cargo run --release --locked -- dev $(ARGS)

test:
	scripts/setup.sh tests
	$(FILES) if cargo nextest --version >/dev/null 2>&1; then \
		cargo nextest run --locked && cargo test --locked --doc; \
	else \
		cargo test --locked; \
	fi

bench:
	scripts/setup.sh bench
	cargo build --release --locked
	$(FILES) python3 benches/compare.py
	$(FILES) python3 benches/compare_mysql.py
	$(FILES) cargo test --release --locked --test live -- --ignored --nocapture ms3_
	$(FILES) cargo test --release --locked --test mysql -- --ignored --nocapture ms1_stall

# Each target for FUZZ_SECONDS, and the proof that the kept corpora reach every state of the session machine.
fuzz:
	scripts/fuzz.sh

setup:
	scripts/setup.sh bench
