"""What a machine's user hears when a hibernation, a resume or a roll-back is refused; on a simulated machine."""

import signal
from collections.abc import Callable, Iterator

import pytest
import scenarios
import simhost
import simmemory
from simmachine import FILE_SYSTEM, TARGET, Machine

from kjump.errors import TargetError
from kjump.formats.superblock import State
from kjump.hibernate import rollback, suspend
from kjump.image.facts import Kind
from kjump.init.console import ProgressBar
from kjump.target import disks
from kjump.target.device import open_at


@pytest.fixture(params=[False, True], ids=["direct", "by_c"])
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    with simhost.machine(1, by_c=request.param) as made:
        yield made
        assert made.violations == []


@pytest.fixture
def plain() -> Iterator[Machine]:
    with simhost.machine(1) as made:
        yield made
        assert made.violations == []


@pytest.fixture
def console(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """Tell what all kernels have printed so far."""
    printed: list[str] = []

    def so_far() -> str:
        printed.append(capsys.readouterr().out)
        return "".join(printed)

    return so_far


def in_a(machine: Machine, **more: object) -> object:
    """Travel with another request; return the trip, or the error."""
    found: list[object] = []

    def play() -> None:
        try:
            found.append(suspend.travel(scenarios.request(machine, **more), machine.tell))
        except scenarios.GOES_ON as error:
            found.append(error)
        machine.leave("goes on")

    machine.run("A", play)
    return found[0]


# --- a resume that is refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "old", "new", "words"),
    [
        ("proc/cpuinfo", "simulated", "another", "saved on a CPU 'simulated', this one is 'another'"),
        ("proc/cpuinfo", " nx", "", "this CPU lacks features that the saved system uses: nx"),
        ("sys/firmware/memmap/0/end", "0x10fff", "0x11fff", "memory map is not the one the image was saved with"),
    ],
)
def test_an_image_of_another_machine_is_refused(
    machine: Machine, name: str, old: str, new: str, words: str, console: Callable[[], str]
) -> None:
    file = machine.folder / name
    assert old in file.read_text()

    def exchanged() -> None:
        file.write_text(file.read_text().replace(old, new))

    machine.at_power_off = exchanged
    assert scenarios.travel(machine) == "lost"
    assert machine.superblock().state is State.INVALID
    assert words in machine.superblock().details.reason
    assert f"kjump: the image on {TARGET} is now invalid" in console()


def test_a_damaged_image_ends_in_an_ordinary_boot(machine: Machine, console: Callable[[], str]) -> None:
    def damage() -> None:
        superblock = machine.superblock()
        at = 4096 + superblock.image_length // 2 // 512 * 512
        machine.target.write(at, b"\xa5" * 512)
        machine.target.flush()

    machine.at_power_off = damage
    assert scenarios.travel(machine) == "lost"
    state, reason = machine.superblock().state, machine.superblock().details.reason
    assert state is State.INVALID and "did not resume it" in reason
    assert "is damaged" in console()


def test_a_boot_without_the_device_or_with_a_bad_option_goes_on(
    plain: Machine, monkeypatch: pytest.MonkeyPatch, console: Callable[[], str]
) -> None:
    monkeypatch.setattr("kjump.init.look_for.TIMEOUT", 0.01)
    plain.options = ("kjump.resume=/dev/none", "kjump.rollback=/dev/none")
    assert plain.boot() == "ordinary"
    assert "not rolled back: /dev/none does not appear" in console()
    assert "cannot resume: /dev/none does not appear" in console()
    plain.options = ("kjump.resume_offset=x",)
    assert plain.boot() == "ordinary"
    assert "could not invalidate the image on /dev/sim: kjump.resume_offset=x is not a number of blocks" in console()


@pytest.mark.parametrize(("option", "words"), [("root=", "no root= on the"), ("root=/dev/none", "does not appear")])
def test_a_machine_without_a_root_halts(
    plain: Machine, monkeypatch: pytest.MonkeyPatch, option: str, words: str, console: Callable[[], str]
) -> None:
    monkeypatch.setattr("kjump.init.look_for.TIMEOUT", 0.01)
    plain.options = (option,)
    assert plain.boot() == "halted"
    assert plain.boots == 1 and words in console() and "kjump: halted" in console()
    assert ("boot", "restart") not in plain.log
    assert plain.violations == ["a boot halted the machine"]
    plain.violations.clear()


# --- a save that does not come to its end ----------------------------------------------------------------------------


def test_a_key_cancels_a_save(plain: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ProgressBar, "_key_pressed", lambda bar: True)
    assert scenarios.travel(plain) == "CANCELLED"
    assert plain.superblock().state is State.INVALID
    assert plain.superblock().details.reason == "the save was cancelled"


def test_a_target_that_is_too_small_is_said(plain: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    plain.target.size = 64 << 10
    monkeypatch.setattr(simmemory.Memory, "fill", _noise)
    plain.memory.fill(plain.chance)
    trip = in_a(plain)
    assert isinstance(trip, suspend.Trip)
    assert "the output is too small" in trip.report.reason
    assert plain.superblock().state is State.INVALID


def _noise(memory: simmemory.Memory, chance: object) -> None:
    for at in range(simmemory.OTHER.start + 5 * 4096, simmemory.OTHER.end, 4096):
        memory.write(at, chance.randbytes(4096))  # type: ignore[attr-defined]


def test_the_level_can_be_found_by_measuring(plain: Machine) -> None:
    trip = in_a(plain, level=0)
    assert isinstance(trip, suspend.Trip)
    assert trip.report.saved and trip.report.saved.level in (3, 1, -2, -5)


def test_a_target_that_carries_something_is_refused_before_anything_is_written(plain: Machine) -> None:
    plain.target.write(0x1FE, b"\x55\xaa".ljust(512, b"\0"))
    plain.target.flush()
    found: list[object] = []

    def play() -> None:
        request = scenarios.request(plain)
        try:
            suspend.claim(suspend.TripRequest(request.target, request.kernel, request.initrd))
        except scenarios.GOES_ON as error:
            found.append(str(error))
        plain.leave("goes on")

    plain.run("A", play)
    assert found == [
        "target /dev/sim carries an MBR partition table or boot sector: wipe it first, or give --overwrite"
    ]
    assert ("A", "write") not in plain.log


@pytest.mark.parametrize("later", range(1, 5))
def test_a_signal_waits_until_the_image_is_unusable(plain: Machine, later: int) -> None:
    def pressed(machine: Machine, what: str, do: Callable[[], None]) -> None:
        signal.raise_signal(signal.SIGINT)
        do()

    plain.at_power_off = plain.panic
    plain.on_return = lambda: plain.faults.update({len(plain.log) + later: pressed})
    assert scenarios.travel(plain).startswith("KeyboardInterrupt")
    assert plain.superblock().state is State.INVALID


# --- roll-backs ------------------------------------------------------------------------------------------------------


def test_a_roll_back_is_refused_where_there_is_no_snapshot(plain: Machine, console: Callable[[], str]) -> None:
    assert "no kjump image here" in scenarios.roll_back(plain)
    plain.options = (f"kjump.rollback={TARGET}",)
    assert plain.boot() == "ordinary"
    assert "not rolled back: /dev/sim: no kjump image here; booting as usual" in console()


def test_a_dry_run_checks_everything_and_does_nothing(plain: Machine) -> None:
    plain.at_rest = True
    assert scenarios.travel(plain, Kind.SNAPSHOT) == "DONE"
    folder, before = plain.folder / "boot", len(plain.log)

    def play() -> None:
        kernel, initrd = (folder / "vmlinuz").read_bytes(), (folder / "initrd").read_bytes()
        with open_at(plain.path, 0, writable=False) as target:
            rollback.rollback(target, kernel, initrd, dry_run=True)
        plain.leave("goes on")

    assert plain.run("A", play) == "goes on"
    assert {what for _, what in plain.log[before:]} == {"read"}


def test_what_others_wrote_until_they_were_stopped_counts(plain: Machine) -> None:
    plain.at_rest = True
    assert scenarios.travel(plain, Kind.SNAPSHOT) == "DONE"
    times: list[int] = []

    def write_out() -> None:
        times.append(1)
        if len(times) == 2:  # the first is before anything is checked
            plain.touch()

    plain.disks.write_out_to = write_out
    assert "has been written to since the snapshot" in scenarios.roll_back(plain)
    assert plain.superblock().state is State.SNAPSHOT


def test_disks_are_written_out_before_a_system_is_left(plain: Machine) -> None:
    order: list[str] = []
    plain.disks.write_out_to = lambda: order.append("written out")
    plain.tell = order.append
    assert disks.current() is plain.disks
    assert scenarios.travel(plain) == "RESUMED"
    assert order[0].startswith("window ") and order[1].startswith("ext4 on /dev/fs (mounted at /, no ext4 superblock")
    assert order[2:] == ["jumping", "written out", "back"]
    assert FILE_SYSTEM in [*plain.disks.names()]


def test_a_file_system_that_changes_unseen_is_refused_with_nothing_written(plain: Machine) -> None:
    before = plain.target.durable(0, 4096)
    error = in_a(plain, accept_unseen=())
    assert isinstance(error, TargetError) and "ext4 on /dev/fs (mounted at /, no ext4 superblock" in str(error)
    assert plain.target.durable(0, 4096) == before
