"""The fragment `kernel.config` with the configuration of lab kernels: parses it, and checks a kernel's .config."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from kjump.errors import LabError

ARCHITECTURES = ("x86_64", "i386")


def our_fragment() -> str:
    """Return the text of the fragment beside this file."""
    return files(__package__).joinpath("kernel.config").read_text("utf-8")


@dataclass(frozen=True)
class Option:
    """One line of the fragment: `value` is "n" for `is not set`."""

    name: str
    value: str
    remarks: frozenset[str] = frozenset()

    def applies(self, arch: str, debug_info: bool) -> bool:
        """Tell whether the option is for this architecture and kind of build."""
        archs = {remark.removesuffix(" only") for remark in self.remarks if remark.endswith(" only")}
        unwanted = "without debug info" if debug_info else "with debug info"
        return (not archs or arch in archs) and unwanted not in self.remarks

    def __str__(self) -> str:
        """Return the line as Kconfig reads and writes it."""
        return f"# {self.name} is not set" if self.value == "n" else f"{self.name}={self.value}"


REMARKS = frozenset({"with debug info", "without debug info", "if known", *(f"{a} only" for a in ARCHITECTURES)})

_OPTION = re.compile(
    r"""(?:# (?P<off>CONFIG_\w+) is not set|(?P<on>CONFIG_\w+)=(?P<value>"(?:[^"\\]|\\.)*"|\S+))"""
    r"(?:  # (?P<remarks>.+))?"
)


def parse_fragment(text: str) -> tuple[Option, ...]:
    """Read a fragment (or a whole .config); comments and blank lines are skipped."""
    return tuple(_options(text))


def _options(text: str) -> Iterator[Option]:
    """Yield the options; LabError for a line that is neither an option nor a comment."""
    for number, line in enumerate(text.splitlines(), 1):
        if match := _OPTION.fullmatch(line.rstrip()):
            remarks = frozenset(filter(None, (match["remarks"] or "").split(", ")))
            if unknown := remarks - REMARKS:
                raise LabError(f"line {number} of the kernel config has an unknown remark: {sorted(unknown)[0]}")
            yield Option(match["on"] or match["off"], match["value"] or "n", remarks)
        elif line.strip() and not line.startswith("#"):
            raise LabError(f"line {number} of the kernel config is no option: {line.strip()}")


def lost_options(wanted: Iterable[Option], config: str, known: frozenset[str]) -> tuple[Option, ...]:
    """Return the wanted options that `config`, the text of a .config, does not have with their value.

    `known` has the names of all options of this kernel: a .config lacks both options that do not exist and options with
    an unmet dependency, and only the latter are lost.
    """
    actual = {option.name: option.value for option in parse_fragment(config)}
    return tuple(
        option
        for option in wanted
        if actual.get(option.name, "n") != option.value
        and not ("if known" in option.remarks and option.name not in known)
    )


def known_options(tree: Path) -> frozenset[str]:
    """Return the names of all options that the Kconfig files of a source tree define."""
    found = re.compile(r"^\s*(?:menu)?config\s+(\w+)\s*$", re.MULTILINE)
    return frozenset(
        f"CONFIG_{name}"
        for kconfig in tree.rglob("Kconfig*")
        for name in found.findall(kconfig.read_text("utf-8", "replace"))
    )
