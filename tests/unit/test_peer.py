"""What B and C are told on their command lines."""

import pytest

from kjump.hibernate import peer


def test_options_of_the_machine_are_passed_on_those_of_the_system_are_not() -> None:
    line = peer.command_line("console=ttyS0,115200 root=/dev/sda2 acpi=noirq quiet rw", "restorer", la57=True)
    assert line == "console=ttyS0,115200 acpi=noirq quiet nokaslr panic=5 kjump.role=restorer"


@pytest.mark.parametrize("own", ["loglevel=7", "debug", "ignore_loglevel", "quiet"])
def test_who_says_how_much_to_print_gets_that(own: str) -> None:
    words = peer.command_line(own, "restorer", la57=False).split()
    assert words.count("quiet") == (own == "quiet")
    assert own in words and "no5lvl" in words


def test_they_are_quiet_otherwise_and_need_not_measure_their_delay_loop() -> None:
    words = peer.command_line("root=/dev/sda2", "restorer", la57=True, loops_per_jiffy=10379576).split()
    assert "quiet" in words and "lpj=10379576" in words
    assert not [w for w in peer.command_line("", "restorer", la57=True).split() if w.startswith("lpj")]
