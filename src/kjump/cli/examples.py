"""Examples of every verb, for its `--help` and its manual page.

A test compares the table with the verbs: each verb has an example, and accepts its examples as command lines.
"""

from __future__ import annotations

from collections.abc import Iterator

import click

EXAMPLES: dict[str, tuple[str, ...]] = {
    "bios e820": ("kjump bios e820", "kjump bios e820 --json"),
    "bios edd": ("kjump bios edd --drive 0x80",),
    "bios int": ("kjump bios int 0x10 --ax 0x4f00 --es-di buffer --data 56424532",),
    "bios vbe-info": ("kjump bios vbe-info",),
    "boot-peer": (
        "kjump boot-peer",
        "kjump boot-peer /boot/vmlinuz-6.1 --initrd rd.img --name old",
        "kjump boot-peer --declared peers.toml",
    ),
    "call": (
        "kjump call examples/add.c 2 40",
        "kjump call --on emulator --arch i386 examples/add.c 2 40",
        "kjump call examples/counter.c 2 40 --then '3 4' --json",
        "kjump call --dry-run examples/add.c",
    ),
    "doctor": ("kjump doctor", "kjump doctor --to /dev/sdb2"),
    "drop": ("kjump drop",),
    "dump convert": ("kjump dump convert vmcore.kj core --format elf",),
    "dump dmesg": ("kjump dump dmesg vmcore.kj",),
    "dump info": ("kjump dump info vmcore.kj", "kjump dump info --zeros --json vmcore.kj"),
    "dump write": (
        "kjump dump write /proc/vmcore vmcore.kj",
        "kjump dump vmcore out --format kdump --compress lzo",
        "kjump dump --dry-run /proc/kcore out",
    ),
    "exec": ("kjump exec",),
    "hibernate": (
        "kjump hibernate --to /dev/sdb2",
        "kjump hibernate --to /var/lib/kjump/image",
        "kjump hibernate --to /dev/sdb2 --level auto --json",
    ),
    "initramfs build": (
        "kjump initramfs build",
        "kjump initramfs build /boot/kjump-initramfs.img --kernel /boot/vmlinuz",
        "kjump initramfs build --with-dump --tool /usr/bin/busybox",
    ),
    "inspect": ("kjump inspect --plan", "kjump inspect --plan --svg plan.svg"),
    "lab demo big-image": ("kjump lab demo big-image --memory 1G",),
    "lab demo call": ("kjump lab demo call",),
    "lab demo faults": ("kjump lab demo faults --quick", "kjump lab demo faults --only cancel --json"),
    "lab demo hibernate": ("kjump lab demo hibernate", "kjump lab demo hibernate --rounds 3 --standby disk"),
    "lab demo rollback": ("kjump lab demo rollback",),
    "lab demo snapshot": ("kjump lab demo snapshot --count 2",),
    "lab demo switch": ("kjump lab demo switch --rounds 5 --rounds-of-three 5",),
    "lab kernel build": ("kjump lab kernel build --version 6.12",),
    "lab vmcore": ("kjump lab vmcore --memory 4G --fill 1G out",),
    "load": (
        "kjump load /boot/vmlinuz --initrd initrd.img --reuse-cmdline",
        "kjump load --preserve-context --dry-run /boot/vmlinuz --initrd initrd.img",
        "kjump load --on-crash /boot/vmlinuz --initrd initrd.img --reuse-cmdline --append nr_cpus=1",
    ),
    "peer": ("kjump peer info", "kjump peer --initrd initrd.img dump --format kdump --force /dev/sdb2"),
    "restart": ("kjump restart old",),
    "resume": (
        "kjump resume --from /dev/sdb2 --dry-run",
        "kjump resume --from /dev/sda2 --offset 34816",
    ),
    "rollback": ("kjump rollback --from /dev/sdb2", "kjump rollback --from /var/lib/kjump/image --dry-run"),
    "snapshot": (
        "kjump snapshot --to /dev/sdb2",
        "kjump snapshot --to /dev/sdb2 --hook ./copy --hook-tool /usr/bin/busybox",
        "kjump snapshot --to /var/lib/kjump --dump-level 31",
    ),
    "standby": (
        "kjump standby",
        "kjump standby --on-disk /var/lib/kjump/standby",
        "kjump standby --off",
    ),
    "status": ("kjump status", "kjump status --json"),
    "switch": (
        "kjump switch old",
        "kjump switch old -- uname -a",
        "kjump switch old --send in.bin --receive out.bin",
    ),
    "target create": ("kjump target create /var/lib/kjump/image 2G",),
    "target show": ("kjump target show /dev/sdb2", "kjump target show /dev/sda2 --offset 34816"),
    "unload": ("kjump unload", "kjump unload --on-crash"),
}
"""Command lines by verb, the simplest first."""


def examples_of(verb: str) -> tuple[str, ...]:
    """Return the examples of `verb` (a subcommand as `dump info`); for a group the first example of each verb in it."""
    own = EXAMPLES.get(verb)
    return own or tuple(examples[0] for name, examples in EXAMPLES.items() if name.startswith(f"{verb} "))


def show_examples(command: click.Command, verb: str) -> None:
    """Add examples to the end of the help of `command` and of all verbs in it."""
    for name, found in walk(command, verb):
        examples = examples_of(name)
        if examples and not found.epilog:
            found.epilog = "\b\nExamples:\n" + "\n".join(f"  {example}" for example in examples)


def walk(command: click.Command, name: str = "") -> Iterator[tuple[str, click.Command]]:
    """Yield `command` and all verbs in it except hidden ones, each with its full name, which begins with `name`."""
    yield name, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for verb in command.list_commands(context):
            found = command.get_command(context, verb)
            if found is not None and not found.hidden:
                yield from walk(found, f"{name} {verb}".strip())
