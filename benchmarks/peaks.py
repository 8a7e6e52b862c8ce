"""What the makers of accelerators promise."""

# TFLOP/s of dense products in float32 (as TF32, where there is that) and bfloat16, from the makers' data sheets.
PEAKS = {
    "H200": {"float32": 494.5, "bfloat16": 989.0},
    "H100": {"float32": 494.5, "bfloat16": 989.0},
    "A100": {"float32": 156.0, "bfloat16": 312.0},
}


def promised(kind: str, dtype: str) -> tuple[float, str] | None:
    """TFLOP/s of a device by its kind, and their source; None if it is not known."""
    return next(((peaks[dtype], f"of an {name}'s data sheet") for name, peaks in PEAKS.items() if name in kind), None)
