# Two commands are for everybody: `make demo` and `make test`. Both say what they will install, install what is
# missing, build, and run; both may be interrupted and repeated.

AGENT_TARGET := x86_64-unknown-linux-gnu
STATIC := -C target-feature=+crt-static -C relocation-model=static
DIST := target/dist
# The same programs with fault points compiled in; for tests and the demo only.
TEST_DIST := target/dist-test
CARGO := cargo
FAULTS := host/faults,agent/faults
# With fault points or without, it is the same file: each recipe makes its own before it takes it.
AGENT = CARGO_TARGET_$(shell echo $(AGENT_TARGET) | tr 'a-z-' 'A-Z_')_RUSTFLAGS="$(STATIC)" \
	$(CARGO) build --profile agent --locked -p agent -p guest-probe --target $(AGENT_TARGET)
# Everything is found below target/, whatever the caller's environment says.
export CARGO_TARGET_DIR := $(CURDIR)/target
unexport CARGO_BUILD_TARGET RUSTFLAGS CARGO_ENCODED_RUSTFLAGS

.NOTPARALLEL:

.PHONY: all build build-test setup demo test test-fast test-vm recovery bench guest-image lint clean

all: build

## The programs, the agent, the guest kernel and the images, side by side in target/dist.
build: setup images
	$(AGENT)
	$(CARGO) build --release --locked -p host -p vmm
	e2e/setup/dist $(DIST)

# The whole workspace with its tests, as `test-fast`: another choice of packages or targets has other features, and
# compiles everything again.
build-test: setup images
	$(AGENT) --features agent/faults
	$(CARGO) build --release --locked --workspace --all-targets --features $(FAULTS)
	e2e/setup/dist $(TEST_DIST) fake-vmm

.PHONY: images
images:
	guest-image/build --profile test
	guest-image/build

guest-image: setup
	guest-image/build

setup:
	@test "$$(id -u)" = 0 || { echo "run this as root: images hold files of other owners, and the jail's tests need it" >&2; exit 1; }
	e2e/setup/packages
	e2e/setup/libkrunfw

## The main job on real microVMs, with a table of what was measured.
demo: build-test
	e2e/run-with-kvm target/release/demo

## Every test.
test: lint test-fast test-vm

test-fast: build-test
	$(CARGO) test --release --locked --workspace --features $(FAULTS) -- --quiet
	e2e/lab/test || { echo "the lab's own test failed; the emulator now and then stands still, so once more" >&2; e2e/lab/test; }

test-vm: build-test
	e2e/setup/sdk
	# 3: a case could not be run here, and the table says which and why. Its bounds are times, which a busy neighbour
	# breaks (a machine that starts VMs three times slower than a minute before): once more, then it is a failure.
	e2e/run-with-kvm --timeout 900 target/release/recovery || test $$? = 3 || \
		e2e/run-with-kvm --timeout 900 target/release/recovery || test $$? = 3
	e2e/vm-tests

## Whatever ends, stands still or jumps: the sandbox comes back. On real microVMs and on a fake vmm: docs/recovery.md.
recovery: build-test
	e2e/run-with-kvm --timeout 900 target/release/recovery

## What a sandbox costs, as ratios to the same thing without us: docs/benchmarks.md. Real microVMs first, where KVM is;
## then, on this machine itself, all that needs none.
bench: build-test
	rm -f target/bench.json target/lab/out/bench.json
	e2e/run-with-kvm target/release/bench
	if [ -e target/lab/out/bench.json ]; then mv target/lab/out/bench.json target/bench.json; fi
	target/release/bench native

lint: setup
	$(CARGO) fmt --check
	$(CARGO) clippy --release --locked --workspace --all-targets --features $(FAULTS) -- -D warnings

clean:
	rm -rf target
