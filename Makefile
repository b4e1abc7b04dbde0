# make demo   sets everything up and hibernates a Linux in a virtual machine
# make test   sets everything up and runs all tests
# make lint   format and type checks
# make bench  speed and memory, against the peers
# make soak   twenty hibernations of a busy machine in a row (SOAK=n: n of them), five from standby, 200 jumps; takes half an hour
# Each installs what it needs and can be run again at any time.

PYTHON ?= /usr/bin/python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SOURCES := pyproject.toml meson.build $(shell find src build-aux examples -type f -not -name '*.pyc' -not -path '*/__pycache__*')

PACKAGES := python3 python3-dev python3-venv gcc binutils make libzstd-dev \
  qemu-system-x86 seabios busybox-static e2fsprogs util-linux cpio zstd makedumpfile liblzo2-2 libsnappy1v5 dosfstools xfsprogs \
  linux-source-6.12 linux-source-6.1 crash flex bison bc xz-utils libelf-dev libssl-dev

KERNELS ?= 6.12 6.1
PYTEST ?= $(BIN)/python -m pytest
SOAK ?= 20

.PHONY: setup apt kernels kernel-i386 demo test lint format soak bench clean

setup: apt $(INSTALLED)

apt:
	@missing=$$(for p in $(PACKAGES); do \
	  dpkg-query -W -f='$${Status}\n' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done); \
	if [ -n "$$missing" ]; then \
	  sudo=$$([ "$$(id -u)" = 0 ] || echo sudo); set -x; \
	  $$sudo apt-get update -q && \
	  $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $$missing; \
	fi

$(VENV)/.tools: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check 'meson-python>=0.17' 'meson>=1.4' ninja 'click>=8.4'
	touch $@

$(INSTALLED): $(VENV)/.tools $(SOURCES)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pip install -q --disable-pip-version-check --no-build-isolation '.[emulator,lab,dev]'
	touch $@

# With debugging information, for crash and drgn: it takes a minute more, and the kernels are the same.
kernel-%: setup
	$(BIN)/kjump lab kernel build --version $* --debug-info

# For one test of the dump engine.
kernel-i386: setup
	$(BIN)/kjump lab kernel build --version 6.1 --arch i386

kernels: $(KERNELS:%=kernel-%)

demo: setup kernel-$(firstword $(KERNELS))
	$(BIN)/kjump lab demo hibernate

lint: setup
	$(BIN)/ruff format --check src tests bench build-aux
	$(BIN)/ruff check src tests bench build-aux
	$(BIN)/mypy
	$(BIN)/mypy bench build-aux tests/conftest.py
	for ring in unit emulator lab; do $(BIN)/mypy --implicit-reexport tests/$$ring || exit; done

format: setup
	$(BIN)/ruff format src tests bench build-aux
	$(BIN)/ruff check --fix src tests bench build-aux

test: setup lint kernels kernel-i386
	$(PYTEST)

soak: setup kernels
	$(BIN)/kjump lab demo hibernate --rounds $(SOAK)
	$(BIN)/kjump lab demo hibernate --rounds 5 --standby disk
	$(BIN)/kjump lab demo switch --rounds 50 --rounds-of-three 20 --jumps 200

bench: setup kernels
	$(BIN)/python bench/core.py
	$(BIN)/python bench/emulator.py $(firstword $(KERNELS))
	$(BIN)/python bench/dump.py
	$(BIN)/python bench/hibernate.py --kernel $(firstword $(KERNELS))

clean:
	rm -rf $(VENV) build
