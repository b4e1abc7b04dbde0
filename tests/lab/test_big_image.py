"""More than half of RAM in use, and locked: what swsusp refuses comes back."""

from pathlib import Path

from kjump.lab import big_image
from kjump.lab.machine.installation import Hardware


def test_a_machine_two_thirds_full_of_random_bytes_comes_back(folder: Path) -> None:
    result = big_image.run(folder, version="6.12", hardware=Hardware(memory=1 << 30), share=0.65)
    assert result.ok, result.failed
    assert result.swsusp.errno == "ENOMEM"
    assert any("pages short" in line for line in result.swsusp.log)
    assert result.image_bytes > result.filled_bytes >= 0.65 * result.memory_bytes
