"""A Plan made for another machine runs on the emulated one as it is."""

import json

from emulated import example

from kjump.call.machine import CallMailbox
from kjump.call.program import Preserve, Surface, lay_out, plan_call
from kjump.emulator.linux import KERNELS, Setup
from kjump.emulator.machine import EmulatedMachine
from kjump.formats.record import Record
from kjump.lab.plan_replay import KernelRun, replay
from kjump.ranges import Range, RangeSet

MIB = 1 << 20


def test_a_plan_for_a_machine_with_larger_pages_and_other_tables() -> None:
    there = EmulatedMachine(Setup(KERNELS["6.1"], memory=32 * MIB, seed=5))
    surface = Surface(
        RangeSet([Range(MIB, 32 * MIB)]), 16 << 30, huge=True, gdt_base=0xFFFF8880_00001000, gdt_limit=0x7F
    )
    layout, placed = lay_out(example("upper", "6.12"), surface)
    box = CallMailbox(there, RangeSet([Range(MIB, 16 * MIB)]))
    plan = plan_call(placed, layout, surface, mailbox=box.address, cookie=box.cookie, preserve=Preserve.DESCRIPTORS)
    run = KernelRun(plan, box.addresses, box.cookie, (b"text",), 4, b"TEXT")
    result = replay(KernelRun.from_json(Record.parse(json.dumps(run.to_json()), "the run")), 32 * MIB)
    assert (result.value, result.output) == (run.value, run.output)
