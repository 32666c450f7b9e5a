"""torchvision and timm come without torch's compiler, which works as ever where it is called."""

from __future__ import annotations

import subprocess
import sys

import pytest

LOADED = "print('torch._dynamo' in sys.modules, 'torch._dynamo.utils' in sys.modules)"


def printed_by(program: str) -> list[str]:
    command = [sys.executable, "-c", f"import sys\n{program}"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()


def test_the_detector_is_imported_without_the_compiler() -> None:
    program = f"import sppdet.folders.folder, sppdet.stages.pipeline\n{LOADED}"
    assert printed_by(program) == ["False False"]


def test_timm_is_imported_without_the_compiler() -> None:
    pytest.importorskip("timm")
    program = f"from sppdet.vision import import_timm\nprint(import_timm().__name__)\n{LOADED}"
    assert printed_by(program) == ["timm", "False False"]


def test_a_compiler_that_is_loaded_stays() -> None:
    program = (
        "import torch._dynamo\nbefore = sys.modules['torch._dynamo']\nimport sppdet.vision\n"
        "print(sys.modules['torch._dynamo'] is before, torch._dynamo is before)"
    )
    assert printed_by(program) == ["True True"]


def test_functions_of_the_stand_in_call_the_real_ones() -> None:
    program = (
        "import torch\n"
        "from sppdet.vision import without_compiler\n"
        "with without_compiler():\n"
        "    from torch._dynamo.utils import is_compile_supported\n"
        "    @torch.compiler.disable\n"
        "    def doubled(x):\n"
        "        'Double it.'\n"
        "        return 2 * x, torch.compiler.is_compiling()\n"
        f"{LOADED}\n"
        "print(doubled(2), doubled.__doc__)\n"
        "print(torch.compile(lambda x: doubled(x + 1)[0], backend='eager')(torch.ones(1)).item())\n"
        "import torch._dynamo.utils as real\n"
        "print(real.is_compile_supported is not is_compile_supported)\n"
        "print(is_compile_supported('cpu') == real.is_compile_supported('cpu'))"
    )
    expected = ["False False", "(4, False) Double it.", "4.0", "True", "True"]
    assert printed_by(program) == expected


def test_attributes_that_a_module_may_lack_are_lacking() -> None:
    program = (
        "import torch\nfrom sppdet.vision import without_compiler\n"
        "with without_compiler():\n"
        "    import torch._dynamo.utils\n"
        "    print(hasattr(sys.modules['torch._dynamo.utils'], '__path__'))"
    )
    assert printed_by(program) == ["False"]
