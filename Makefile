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
	$(FILES) cargo test --release --locked --test live -- --ignored --nocapture ms3_

fuzz:
	@echo "make fuzz comes with the fuzz targets, which are not there yet." >&2; \
	echo "Until then: cargo test --locked --lib runs the property tests of wire and session." >&2; \
	exit 2

setup:
	scripts/setup.sh bench
