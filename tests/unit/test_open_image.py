"""What holds an image may be a device, a target file's blocks on one, or that file where it is mounted."""

import pytest

from kjump.errors import ImageError, TargetError
from kjump.formats.superblock import State, Superblock
from kjump.image.restore import open_image
from kjump.ranges import Range
from kjump.target.device import Place, Target

EXTENTS = (Range(1 << 20, 2 << 20),)


class Saved(Target):
    """A target with a superblock, of which nothing else can be read."""

    def __init__(self, place: Place, map_length: int, extents: tuple[Range, ...]) -> None:
        self.path, self.place, self.extents = "/saved", place, extents
        self.capacity = 1 << 20
        self._superblock = Superblock(
            state=State.SNAPSHOT,
            map_length=map_length,
            capacity=self.capacity,
            image_length=100,
            seek_table_offset=50,
            seek_table_length=50,
        )

    def read_superblock(self, *, patiently: bool = True) -> Superblock:
        return self._superblock

    def read(self, offset: int, length: int) -> bytes:
        raise TargetError("the seek table is read")


@pytest.mark.parametrize(
    ("place", "map_length", "extents"),
    [
        (Place("/dev/sdb2"), 0, ()),
        (Place("/dev/sda2", EXTENTS), 4096, EXTENTS),
        (Place("/dev/sda2", EXTENTS), 4096, ()),  # the file, where it is mounted
    ],
)
def test_each_is_what_it_says(place: Place, map_length: int, extents: tuple[Range, ...]) -> None:
    with pytest.raises(TargetError, match="the seek table is read"):
        open_image(Saved(place, map_length, extents), states=(State.SNAPSHOT,))


@pytest.mark.parametrize(
    ("place", "map_length", "extents"),
    [(Place("/dev/sda2"), 4096, ()), (Place("/dev/sda2", EXTENTS), 0, EXTENTS)],
)
def test_one_is_not_taken_for_another(place: Place, map_length: int, extents: tuple[Range, ...]) -> None:
    with pytest.raises(ImageError, match="mistaken for each other"):
        open_image(Saved(place, map_length, extents), states=(State.SNAPSHOT,))
