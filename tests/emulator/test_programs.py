"""ELF executables and C files that cannot be called: refused with what is missing, before anything is loaded."""

import contextlib
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner
from emulated import EXAMPLES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kjump.call.compiler import compile_program
from kjump.call.program import from_elf
from kjump.cli.call import call_command
from kjump.errors import FormatError, KjumpError, UsageError

HEAD = "typedef unsigned long u64;\n"
WORKS = "u64 _start(const u64 *args, u64 n) { return n ? args[0] : 0; }"
STATIC = ("-static-pie",)
PACKED = (*STATIC, "-Wl,-z,pack-relative-relocs")
TABLE = (
    "static u64 a(void) { return 40; }\nstatic u64 (*volatile table[8])(void) = { a, a, a, a, a, a, a, a };\n"
    "u64 _start(void) { return table[0](); }"
)
CANNOT = {
    "packed": (TABLE, PACKED, "packed .DT_RELR.: link it with"),
    "elsewhere": ("u64 other(u64);\nu64 _start(const u64 *a, u64 n) { return other(n); }", ("-shared",), "uses other,"),
    "variable": ("extern u64 far;\nu64 _start(void) { return far; }", ("-shared",), "uses far, which it does not have"),
    "weak": ("__attribute__((weak)) u64 far(void);\nu64 _start(void) { return far(); }", ("-shared",), "uses far,"),
    "zeros": ("u64 code[64];\nvoid _start(void);", (*STATIC, "-Wl,-e,code"), "no code in the file for the entry point"),
    "threads": ("_Thread_local volatile u64 t;\nu64 _start(void) { return t; }", STATIC, "variables of a thread"),
    "constructor": (
        f'__attribute__((constructor)) static void c(void) {{ __asm__ volatile("nop"); }}\n{WORKS}',
        STATIC,
        "has constructors",
    ),
}


def link(folder: Path, text: str, *options: str) -> Path:
    source, made = folder / "made.c", folder / "made.elf"
    source.write_text(HEAD + text)
    flags = ("-O1", "-fPIC", "-nostdlib", "-ffreestanding", "-fno-builtin", "-fno-stack-protector")
    subprocess.run(["gcc", *flags, *options, str(source), "-o", str(made)], check=True)
    return made


@pytest.mark.parametrize("kind", CANNOT)
def test_what_needs_more_than_a_base_address_is_refused(kind: str, tmp_path: Path) -> None:
    text, options, why = CANNOT[kind]
    with pytest.raises(FormatError, match=f"made.elf.*{why}"):
        from_elf(link(tmp_path, text, *options).read_bytes(), "made.elf")


def test_shared_libraries_are_refused_in_an_executable_at_fixed_addresses_too(tmp_path: Path) -> None:
    (tmp_path / "lib.c").write_text("unsigned long other(unsigned long n) { return n; }\n")
    library = tmp_path / "lib.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-nostdlib", str(tmp_path / "lib.c"), "-o", str(library)], check=True)
    made = link(tmp_path, CANNOT["elsewhere"][0], "-no-pie", "-fno-PIC", "-Wl,--no-as-needed", str(library))
    with pytest.raises(FormatError, match="needs shared libraries"):
        from_elf(made.read_bytes())


@pytest.mark.parametrize("text", [WORKS, TABLE])
def test_what_needs_no_more_is_called_on_the_emulated_machine_unless_this_one_is_asked_for(
    text: str, tmp_path: Path
) -> None:
    made = link(tmp_path, text, *STATIC)
    done = CliRunner().invoke(call_command, [str(made), "40"])
    assert (done.exit_code, done.output) == (0, "40\n")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_to_relocations_is_a_traceback(data: st.DataObject, tmp_path: Path) -> None:
    good = (tmp_path / "made.elf").read_bytes() if (tmp_path / "made.elf").exists() else b""
    good = good or link(tmp_path, CANNOT["elsewhere"][0], "-shared").read_bytes()
    place = data.draw(st.integers(0, len(good) - 1))
    damaged = bytearray(good)
    damaged[place] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(KjumpError):
        from_elf(bytes(damaged))


C_FILES = {
    "parameters of its own": (
        "unsigned long f(unsigned long a) { return a; }",
        "f.c does not compile: .*const uint64_t",
    ),
    "no result": ("void f(const unsigned long *a, unsigned long n) { (void)a; (void)n; }", "conflicting types for .f."),
    "static": ("static unsigned long f(void) { return 0; }", "is called as uint64_t f.const uint64_t .args, size_t n."),
    "missing": ("unsigned long g(void) { return 0; }", "f.c has no function f, as uint64_t f.*: name another with"),
    "uses what there is not": (
        "int printf(const char *, ...);\n#include <stdint.h>\n#include <stddef.h>\n"
        'uint64_t f(const uint64_t *a, size_t n) { printf("%d", 1); return n + *a; }',
        "f.c uses printf, which is neither in it nor in kjump.h",
    ),
}


@pytest.mark.parametrize("kind", C_FILES)
def test_a_c_file_that_cannot_be_called_is_refused_in_one_sentence(kind: str, tmp_path: Path) -> None:
    text, why = C_FILES[kind]
    source = tmp_path / "f.c"
    source.write_text(text + "\n")
    with pytest.raises(FormatError, match=why) as caught:
        compile_program(source)
    assert "\n" not in str(caught.value)


def test_a_name_that_no_function_has_is_refused() -> None:
    with pytest.raises(UsageError, match="'3 4' is no name that a function in C can have"):
        compile_program(EXAMPLES / "add.c", function="3 4")
