"""Triton's interpreter, which runs a GPU's kernels on a CPU if TRITON_INTERPRET is 1."""

from __future__ import annotations


def mend_interpreter() -> None:
    """Let Triton 3.6's interpreter work with NumPy 2.5, which refuses an int of an array of one number."""
    import triton.runtime.interpreter as interpreter

    genuine = interpreter._patch_lang_tensor

    def patched(tensor: type, *rest: object) -> None:
        genuine(tensor, *rest)
        tensor.__index__ = lambda self: int(self.handle.data.item())  # type: ignore[attr-defined]

    interpreter._patch_lang_tensor = patched
