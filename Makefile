# make demo   sets everything up and hibernates a Linux in a virtual machine
# make test   sets everything up and runs all tests
# make lint   format and type checks
# make check-native  the tests of the native modules, which are built with the address and undefined behaviour sanitizers
# make bench  speed and memory, against the peers
# make clean-room SUITE=trixie   what README.md says, in a minimal Debian of its own (bookworm, trixie; DEMO=1: make demo too)
# make soak   twenty hibernations of a busy machine in a row (SOAK=n: n of them), five from standby, 200 jumps; takes half an hour
# make fuzz   coverage-guided fuzzing of all that reads what others wrote (SECONDS=n: for each target)
# make powercut HISTORIES=5000 SEED=1   a simulated machine loses its power at every point, and in that many random histories
# Each installs what it needs and can be run again at any time.

PYTHON ?= /usr/bin/python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SOURCES := pyproject.toml meson.build $(shell find src build-aux examples -type f -not -name '*.pyc' -not -path '*/__pycache__*')

PACKAGES := python3 python3-dev python3-venv gcc binutils make pkg-config libzstd-dev \
  qemu-system-x86 seabios busybox-static e2fsprogs util-linux cpio zstd makedumpfile liblzo2-2 libsnappy1v5 dosfstools xfsprogs btrfs-progs f2fs-tools fdisk genisoimage \
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
SECONDS ?= 60
FUZZ_TARGETS := vmcoreinfo dumps notes images superblock cmdline

C_FILES = $(shell find src examples tests -name '*.[ch]')

# The native modules with sanitizers, in a folder of their own, and the tests that drive them.
NATIVE := $(CURDIR)/build/native
NATIVE_TESTS := $(addprefix tests/unit/test_, core.py core_streams.py core_refusals.py kexec_kimage.py seekable.py image_layout.py destination.py \
  peers_on_disk.py second_kernel.py snapshot_rules.py dump_classes.py dump_files.py dump_formats.py dump_mutations.py)
PRELOAD = $(shell $(CC) -print-file-name=libasan.so) $(shell $(CC) -print-file-name=libubsan.so)

.PHONY: setup apt kernels kernel-i386 demo test lint format check-native soak powercut bench fuzz clean-room clean

setup: apt $(INSTALLED)

apt:
	@build-aux/packages.sh $(PACKAGES) -- $(KERNEL_VERSIONS:%=linux-source-%)

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
	$(BIN)/kjump lab kernel build --version $(lastword $(KERNELS)) --arch i386

kernels: setup
	for v in $(KERNELS); do $(BIN)/kjump lab kernel build --version $$v --debug-info || exit; done

demo: setup
	$(BIN)/kjump lab kernel build --version $(firstword $(KERNELS)) --debug-info
	$(BIN)/kjump lab demo hibernate --kernel $(firstword $(KERNELS))

lint: setup
	$(BIN)/ruff format --check src tests bench build-aux fuzz
	$(BIN)/ruff check src tests bench build-aux fuzz
	$(BIN)/mypy
	$(BIN)/mypy bench build-aux tests/conftest.py
	for ring in unit emulator model lab; do $(BIN)/mypy --implicit-reexport tests/$$ring || exit; done
	MYPYPATH=src:tests/unit:fuzz $(BIN)/mypy fuzz/*.py
	$(BIN)/clang-format --dry-run -Werror $(C_FILES)

format: setup
	$(BIN)/clang-format -i $(C_FILES)
	$(BIN)/ruff format src tests bench build-aux fuzz
	$(BIN)/ruff check --fix src tests bench build-aux fuzz

test: setup lint kernels kernel-i386
	$(PYTEST) -m "not lab" -n 2
	$(PYTEST) -m lab

# Python's own allocations go to the sanitizer too (PYTHONMALLOC); what Python keeps to its end is no leak. A report ends
# the process and goes to its standard error, which pytest must not hold back.
check-native: setup
	rm -rf $(NATIVE)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/meson setup $(NATIVE)/build $(CURDIR) --buildtype debugoptimized -Db_lundef=false \
	  -Db_sanitize=address,undefined -Dc_args=-fno-sanitize-recover=all -Dpython.platlibdir=/site -Dpython.purelibdir=/site
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/meson install -C $(NATIVE)/build --quiet --destdir $(NATIVE)
	LD_PRELOAD="$(PRELOAD)" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONMALLOC=malloc \
	  PYTHONPATH=$(NATIVE)/site KJUMP_NATIVE=$(NATIVE)/site $(PYTEST) --capture=sys $(NATIVE_TESTS)

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

$(VENV)/.fuzz: pyproject.toml $(INSTALLED)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pip install -q --disable-pip-version-check --no-build-isolation --only-binary atheris '.[fuzz]'
	touch $@

# One after the other; the first find ends it, and leaves its input in .fuzz/TARGET/.
fuzz: setup $(VENV)/.fuzz
	for target in $(FUZZ_TARGETS); do nice -n 19 $(BIN)/python fuzz/run.py $$target --seconds $(SECONDS) || exit 1; done

clean:
	rm -rf $(VENV) build
