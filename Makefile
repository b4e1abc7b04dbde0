# make demo   sets everything up and hibernates a Linux in a virtual machine
# make test   sets everything up and runs all tests
# make lint   format and type checks
# make bench  speed and memory, against the peers
# make clean-room SUITE=trixie   what README.md says, in a minimal Debian of its own (bookworm, trixie; DEMO=1: make demo too)
# make soak   twenty hibernations of a busy machine in a row (SOAK=n: n of them), five from standby, 200 jumps; takes half an hour
# make powercut HISTORIES=5000 SEED=1   a simulated machine loses its power at every point, and in that many random histories
# Each installs what it needs and can be run again at any time.

PYTHON ?= /usr/bin/python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SOURCES := pyproject.toml meson.build $(shell find src build-aux examples -type f -not -name '*.pyc' -not -path '*/__pycache__*')

PACKAGES := python3 python3-dev python3-venv gcc binutils make pkg-config libzstd-dev \
  qemu-system-x86 seabios busybox-static e2fsprogs util-linux cpio zstd makedumpfile liblzo2-2 libsnappy1v5 dosfstools xfsprogs \
  crash flex bison bc lz4 xz-utils libelf-dev libssl-dev

# Debian 12 has both sources, Debian 13 the first. What is there is known when the packages are installed, so KERNELS is
# for recipes only.
KERNEL_VERSIONS := 6.12 6.1
KERNELS ?= $(shell for v in $(KERNEL_VERSIONS); do [ ! -e /usr/src/linux-source-$$v.tar.xz ] || echo $$v; done)
PYTEST ?= $(BIN)/python -m pytest
SOAK ?= 20
HISTORIES ?= 5000
SEED ?= 1
SUITE ?= bookworm

.PHONY: setup apt kernels kernel-i386 demo test lint format soak powercut bench clean-room clean

setup: apt $(INSTALLED)

apt:
	@build-aux/packages.sh $(PACKAGES) -- $(KERNEL_VERSIONS:%=linux-source-%)

$(VENV)/.tools: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check 'meson-python>=0.17' 'meson>=1.4' ninja
	touch $@

$(INSTALLED): $(VENV)/.tools $(SOURCES)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pip install -q --disable-pip-version-check --no-build-isolation '.[emulator,lab,dev]'
	touch $@

# With debugging information, for crash and drgn: it takes a minute more, and the kernels are the same.
kernel-%: setup
	$(BIN)/kjump lab kernel build --version $* --debug-info

# For one test of the dump engine.
kernel-i386: setup
	$(BIN)/kjump lab kernel build --version $(lastword $(KERNELS)) --arch i386

kernels: setup
	for v in $(KERNELS); do $(BIN)/kjump lab kernel build --version $$v --debug-info || exit; done

demo: setup
	$(BIN)/kjump lab kernel build --version $(firstword $(KERNELS)) --debug-info
	$(BIN)/kjump lab demo hibernate --kernel $(firstword $(KERNELS))

lint: setup
	$(BIN)/ruff format --check src tests bench build-aux
	$(BIN)/ruff check src tests bench build-aux
	$(BIN)/mypy
	$(BIN)/mypy bench build-aux

format: setup
	$(BIN)/ruff format src tests bench build-aux
	$(BIN)/ruff check --fix src tests bench build-aux

test: setup lint kernels kernel-i386
	$(PYTEST) -m "not lab" -n 2
	$(PYTEST) -m lab

soak: setup kernels
	$(BIN)/kjump lab demo hibernate --rounds $(SOAK)
	$(BIN)/kjump lab demo hibernate --rounds 5 --standby disk
	$(BIN)/kjump lab demo switch --rounds 50 --rounds-of-three 20 --jumps 200

powercut: $(INSTALLED)
	$(BIN)/python tests/model/powercut.py --histories $(HISTORIES) --seed $(SEED)

bench: setup kernels
	$(BIN)/python bench/core.py
	$(BIN)/python bench/emulator.py $(firstword $(KERNELS))
	$(BIN)/python bench/dump.py
	$(BIN)/python bench/hibernate.py --kernel $(firstword $(KERNELS))

# As root: a root file system is made and thrown away again.
clean-room:
	$(PYTHON) build-aux/clean_room.py $(SUITE) $(if $(DEMO),--demo) $(if $(KEEP),--keep)

clean:
	rm -rf $(VENV) build
