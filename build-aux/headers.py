"""Write the headers of what assembly and C share with Python: `headers.py SOURCE FOLDER`.

Run by the build. A layout whose two sides differ (see kjump.layout) ends it with one sentence.
"""

import dataclasses
import importlib
import sys
from pathlib import Path

from stand_in import import_from


def native() -> str:
    """Return native.h: what the native modules share with the rooms that call them, each number from its owner."""
    from kjump.dump.classes import PageClass, PageFields
    from kjump.formats import kdump, seekable
    from kjump.kexec import kimage
    from kjump.layout import Numbers, c_struct, comment, header
    from kjump.memory import PAGE_SIZE

    list_entries = ("DESTINATION", "INDIRECTION", "DONE", "SOURCE")
    return header(
        "native.h",
        "What the native modules (src/core, src/dumpcore) share with the rooms of kjump that call them.",
        (
            Numbers("PAGE", ("SIZE", PAGE_SIZE, "bytes")),
            comment(
                "kjump.dump.classes: the classes, in the order in which they are counted; a mask has bit N for class N."
            ),
            Numbers("CLASS", *((c.name, c.value, "") for c in PageClass), ("COUNT", len(PageClass), "")),
            comment("What Python tells of the kernel's struct page: kjump.dump.classes says what each is."),
            c_struct("page_fields", ((field.name, "Q") for field in dataclasses.fields(PageFields))),
            comment("kjump.formats.kdump: flags of a page descriptor, and its size in bytes."),
            Numbers("METHOD", *((m.name, m.value, "") for m in kdump.Method)),
            Numbers("KDUMP", ("DESCRIPTOR_SIZE", kdump.DESCRIPTOR.size, "")),
            comment("kjump.formats.seekable"),
            Numbers("SEEKABLE", ("MOST_FRAMES", seekable.MOST_FRAMES, "")),
            comment("kjump.kexec.kimage: flags of an entry of the kernel's indirection list; a run of pages in bytes."),
            Numbers("IND", *((name, getattr(kimage, f"IND_{name}"), "") for name in list_entries)),
            Numbers("SHADOW", ("RUN_SIZE", kimage.RUN.size, "")),
        ),
    )


def main() -> None:
    """Write every header whose text has changed."""
    source, folder = sys.argv[1:]
    import_from(source)
    from kjump.layout import LayoutError

    try:
        layouts = importlib.import_module("kjump.gates.layouts")
        control = importlib.import_module("kjump.emulator.control")
        for user in ("kjump.gates", "kjump.gates.call", "kjump.call.bios", "kjump.kexec.mailbox"):
            importlib.import_module(user)
        headers = layouts.headers() | control.headers() | {"native.h": native()}
    except LayoutError as error:
        sys.exit(f"headers.py: {error}")
    for name, text in headers.items():
        path = Path(folder, name)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


main()
