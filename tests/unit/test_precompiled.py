"""The dataclass methods that the initramfs brings compiled."""

import subprocess
import sys
from pathlib import Path

_BUILD = """
import sys
from pathlib import Path
from kjump import precompiled

texts = []
precompiled.record(texts)
import {module}
Path(sys.argv[1]).write_bytes(precompiled.compiled(texts))
"""
_USE = """
import builtins, dataclasses, sys
from pathlib import Path
from kjump import precompiled

precompiled.use(Path(sys.argv[1]))
texts = []

def counted(code, *namespaces):
    if isinstance(code, str):
        texts.append(code)
    builtins_exec(code, *namespaces)

builtins_exec = exec
precompiled.exec = counted
import kjump.ranges
assert kjump.ranges.Range(1, 4).size == 3
assert kjump.ranges.Range(1, 4) == kjump.ranges.Range(1, 4) and hash(kjump.ranges.Range(1, 4))
print(len(texts))

@dataclasses.dataclass(frozen=True, order=True)
class New:
    one: int
    nobody_knows_this_field: str = "x"

assert New(1) < New(2) and repr(New(1)).endswith("New(one=1, nobody_knows_this_field='x')")
print(len(texts))
"""


def _run(code: str, file: Path) -> str:
    done = subprocess.run([sys.executable, "-I", "-c", code, str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_known_methods_are_not_compiled_again_and_unknown_ones_are(tmp_path: Path) -> None:
    file = tmp_path / "dataclasses"
    _run(_BUILD.format(module="kjump.ranges"), file)
    first, second = map(int, _run(_USE, file).split())
    assert first == 0
    assert second > 0


def test_the_build_has_compiled_the_methods_of_all_that_the_roles_import() -> None:
    code = """
import dataclasses, marshal, sys
from kjump import precompiled
texts = []
precompiled.record(texts)
from kjump.init import jobs, main
from kjump.init.roles import boot, peer, restorer, second
import kjump.hibernate.suspend
things = {thing for name in list(sys.modules) if name.startswith("kjump") for thing in vars(sys.modules[name]).values()
          if isinstance(thing, type)}
print(len(texts), sum(map(dataclasses.is_dataclass, things)),
      len(set(texts) - set(marshal.loads(precompiled.FILE.read_bytes()))))
"""
    made, classes, unknown = map(int, _run(code, Path()).split())
    # Python 3.13 compiles one text for each class, earlier ones one for each method.
    assert made >= classes > 20
    assert unknown == 0


def test_a_start_does_not_import_inspect(tmp_path: Path) -> None:
    """On any Python: what the decorator asks of it is answered without."""
    code = """
import sys
from pathlib import Path
from kjump import precompiled

Path(sys.argv[1]).write_bytes(precompiled.compiled([]))
precompiled.use(Path(sys.argv[1]))
import kjump.ranges
assert kjump.ranges.Range(1, 4).size == 3
print("inspect" in sys.modules)
"""
    assert _run(code, tmp_path / "dataclasses").split() == ["False"]
