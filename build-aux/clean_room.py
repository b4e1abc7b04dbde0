"""Do what README.md says in a Debian on which nothing is installed: `clean_room.py SUITE [--demo] [--keep]`.

Makes a minimal root file system of SUITE (bookworm, trixie) with debootstrap, clones HEAD into it, and runs
`make setup` and the quick rings of the tests there, with --demo also `make demo`. The network is the host's: its Debian
mirrors, the settings of apt, pip and proxies, its certificates. Nothing else of the host is seen inside: neither its
devices (no KVM, no disks) nor its files.

What is mounted is mounted in a mount namespace of its own, which ends with its last process, however that ends. So
nothing is ever mounted where the tree is removed; that is looked at nevertheless before it is.

KJUMP_CLEAN_ROOM says where the tree is made (default /var/tmp; some 4 GB, 7 GB with --demo), MIRROR which Debian mirror
is used instead of the host's.
"""

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
TREE = "/root/kjump"
FIRST_PACKAGES = "ca-certificates,make"
"""What a person has who has a clone."""

HOST_FILES = ("/etc/resolv.conf", "/etc/hosts", "/etc/pip.conf", "/etc/xdg/pip", "/usr/local/share/ca-certificates")
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
APT_SETTINGS = ("Acquire::http", "Acquire::https", "Acquire::Check-", "Acquire::Retries", "Acquire::ForceIPv")
PASSED_ON = ("PIP_", "SSL_CERT", "REQUESTS_CA")

ENTER = """
set -e
root=$1; shift
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
exec chroot "$root" sh -c 'cd "$0" && exec "$@"' "$@"
"""
"""Arguments: the root, a folder in it, a command.

The root is a mount of its own, so that it is seen inside on which file system it lies. The devices are those that
debootstrap makes (null, random, tty).
"""


def run(*command: str) -> None:
    """Run a command, showing it; CalledProcessError when it fails."""
    print("+", shlex.join(command), flush=True)
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def output(*command: str) -> str:
    """Return what a command prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def mirrors(suite: str) -> list[tuple[str, str]]:
    """Return mirrors and releases of Debian as the host's apt has them, with `suite` in place of the host's own.

    The one without updates comes first. SystemExit when the host has none.
    """
    if own := os.environ.get("MIRROR"):
        return [(own, suite)]
    lines = output(
        "apt-get", "indextargets", "--format", "$(SITE) $(RELEASE)", "Created-By: Packages", "Origin: Debian"
    )
    found = []
    for line in dict.fromkeys(lines.splitlines()):
        site, release = line.split()
        _, dash, pocket = release.partition("-")
        if pocket in ("", "updates", "security"):
            found.append((site, suite + dash + pocket))
    if not any(release == suite for _, release in found):
        raise SystemExit("the host's apt knows no Debian mirror (after `apt-get update`): give MIRROR=URL")
    return sorted(found, key=lambda item: item[1])


def environment() -> dict[str, str]:
    """Return the environment inside: settings of pip and proxies from the host, the rest as after a login."""
    kept = {n: v for n, v in os.environ.items() if n.startswith(PASSED_ON) or n.lower().endswith("_proxy")}
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return kept | {"PATH": path, "HOME": "/root", "LANG": "C.UTF-8", "TERM": "dumb"}


def make_root(root: Path, suite: str) -> None:
    """Make the root file system, with the host's way to the network and a clone of HEAD."""
    if shutil.which("debootstrap") is None:
        run("apt-get", "update", "-q")
        run("apt-get", "install", "-q", "-y", "--no-install-recommends", "debootstrap")
    sources = mirrors(suite)
    main = next(site for site, release in sources if release == suite)
    run("debootstrap", "--variant=minbase", f"--include={FIRST_PACKAGES}", suite, str(root), main)
    lines = (f"deb {site} {release} main\n" for site, release in sources)
    Path(root, "etc/apt/sources.list").write_text("".join(lines))
    settings = (s for s in output("apt-config", "dump").splitlines(keepends=True) if s.startswith(APT_SETTINGS))
    Path(root, "etc/apt/apt.conf.d/00host").write_text("".join(settings))
    for name in HOST_FILES:
        there = Path(root, name.lstrip("/"))
        if Path(name).is_dir():
            shutil.copytree(name, there, dirs_exist_ok=True)
        elif Path(name).exists():
            shutil.copy(name, there)
    if Path(CERTIFICATES).exists():  # the host may trust a proxy that Debian does not know
        shutil.copy(CERTIFICATES, root / CERTIFICATES.lstrip("/"))
    run("git", "clone", "-q", "--no-local", str(TOP), str(root) + TREE)


def inside(root: Path, *command: str) -> float:
    """Run a command in the tree inside, with namespaces of its own; return the seconds it took.

    CalledProcessError when it fails.
    """
    print("clean room:", shlex.join(command), flush=True)
    namespaces = ["unshare", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child"]
    began = time.monotonic()
    subprocess.run(
        [*namespaces, "sh", "-c", ENTER, "sh", str(root), TREE, *command],
        check=True,
        stdin=subprocess.DEVNULL,
        env=environment(),
    )
    return time.monotonic() - began


def remove(root: Path) -> None:
    """Remove the tree; SystemExit when something is mounted in it."""
    mounted = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    if below := [where for where in mounted if Path(where).is_relative_to(root)]:
        raise SystemExit(f"{root} is left: something is mounted at {', '.join(below)}")
    run("rm", "-rf", "--one-file-system", str(root))


def steps(*, demo: bool) -> list[tuple[str, ...]]:
    """Return the commands that are run inside."""
    rings = (".venv/bin/python", "-m", "pytest", "-q", "tests/unit", "tests/emulator")
    return [("make", "setup"), rings, *([("make", "demo")] if demo else [])]


def main(arguments: Sequence[str]) -> int:
    """Do it; return 1 when a command failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", help="bookworm or trixie")
    parser.add_argument("--demo", action="store_true", help="also `make demo`: builds a kernel, ten minutes and more")
    parser.add_argument("--keep", action="store_true", help="leave the root file system")
    options = parser.parse_args(arguments)
    if os.geteuid() != 0:
        raise SystemExit("a clean room can be made by root only")
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup has the second ignored
            signal.signal(number, lambda received, _: sys.exit(128 + received))  # by way of `finally`
    root = Path(tempfile.mkdtemp(prefix=f"kjump-{options.suite}-", dir=os.environ.get("KJUMP_CLEAN_ROOM", "/var/tmp")))
    root.chmod(0o755)
    seconds = {}
    try:
        make_root(root, options.suite)
        for command in steps(demo=options.demo):
            seconds[shlex.join(command)] = inside(root, *command)
    except subprocess.CalledProcessError as error:
        print(f"clean room {options.suite}: failed, status {error.returncode}: {shlex.join(error.cmd[-6:])}")
        return 1
    finally:
        for name, took in seconds.items():
            print(f"clean room {options.suite}: {took:6.0f} s  {name}")
        if options.keep:
            print(f"clean room {options.suite}: left in {root}")
        else:
            remove(root)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
