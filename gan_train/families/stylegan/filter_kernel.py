"""The kernel of `filter_on_gpu.py`, or None where Triton is not installed. It has a file of its own
because Triton reads its source, and because importing Triton takes a while."""

# mypy: ignore-errors

from typing import Any

resample_rows: Any
try:
    import triton
    import triton.language as tl
except ImportError:  # a build of PyTorch without CUDA
    resample_rows = None
else:

    @triton.jit
    def resample_rows(
        x,
        y,
        blocks,
        height,
        width,
        inner,
        out_height,
        out_width,
        tap0,
        tap1,
        tap2,
        tap3,
        scale,
        padding,
        TAPS: tl.constexpr,
        UP: tl.constexpr,
        DOWN: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        """Compute BLOCK values of one plane of y, [planes, out_height, out_width, inner], from x,
        [planes, height, width, inner]."""
        program = tl.program_id(0).to(tl.int64)
        plane = program // blocks
        at = (program % blocks).to(tl.int32) * BLOCK + tl.arange(0, BLOCK)
        row, along = at // (out_width * inner), at % (out_width * inner)
        column, value = along // inner, along % inner
        wanted = row < out_height
        source = x + plane * height * width * inner
        total = tl.zeros((BLOCK,), tl.float32)
        for a in tl.static_range(TAPS):
            tap_a = tap0 if a == 0 else (tap1 if a == 1 else (tap2 if a == 2 else tap3))
            above = row * DOWN + a - padding
            in_rows = wanted & (above >= 0) & (above < height * UP) & (above % UP == 0)
            line = tl.zeros((BLOCK,), tl.float32)
            for b in tl.static_range(TAPS):
                tap_b = tap0 if b == 0 else (tap1 if b == 1 else (tap2 if b == 2 else tap3))
                left = column * DOWN + b - padding
                inside = in_rows & (left >= 0) & (left < width * UP) & (left % UP == 0)
                place = ((above // UP) * width + left // UP) * inner + value
                line += tap_b * tl.load(source + place, mask=inside, other=0.0).to(tl.float32)
            total += tap_a * line
        target = y + plane * out_height * out_width * inner + at
        tl.store(target, (total * scale).to(y.dtype.element_ty), mask=wanted)
