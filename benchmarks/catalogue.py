"""Every benchmark by name: the module and its arguments, as `python -m` takes them."""

BENCHMARKS = {
    "extraction": "benchmarks.extraction",
    "crops": "benchmarks.crops",
    "loader": "benchmarks.loader",
    "regions": "benchmarks.regions",
    "prepare": "benchmarks.prepare --pages 96",
    "prepare-1000": "benchmarks.prepare --pages 1000 --rounds 1 --processes 2",
    "sam": "benchmarks.sam --memory",
    **{
        f"retrieval-{part}": f"benchmarks.retrieval {part}"
        for part in ("metrics", "large", "sgr", "search", "whitening", "disk")
    },
}
# Those that also run a PyTorch program, and so need torch and timm.
NEEDS_TORCH: tuple[str, ...] = ()
