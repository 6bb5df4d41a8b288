"""Every benchmark by name: the module and its arguments, as `python -m` takes them."""

RETRIEVAL = ("metrics", "large --rounds 1", "whitening --rounds 1", "disk", "sgr", "search")
BENCHMARKS = {
    "extraction": "benchmarks.extraction",
    "crops": "benchmarks.crops --rounds 3",
    "loader": "benchmarks.loader",
    "prepare": "benchmarks.prepare --pages 96",
    "prepare-1000": "benchmarks.prepare --pages 1000 --rounds 1 --processes 2",
    "regions": "benchmarks.regions",
    "sam": "benchmarks.sam --rounds 3 --memory",
    "shortcuts": "benchmarks.shortcuts",
    "pretraining": "benchmarks.pretraining",
    "finetuning-time": "benchmarks.finetuning time --rounds 3",
    "finetuning-memory": "benchmarks.finetuning memory",
    "embedding": "benchmarks.embedding --rounds 3",
    "pages": "benchmarks.pages",
    "hog": "benchmarks.hog --rounds 3",
    "startup": "benchmarks.startup --rounds 2",
    "startup-commands": "benchmarks.startup commands",
    "scaling": "benchmarks.scaling --write",
    "costs": "benchmarks.costs --write",
    "small-step": "benchmarks.small_step",
    "loss-curves": "benchmarks.loss_curves",
    "search-compact": "benchmarks.search_compact compact",
    "search-milvus": "benchmarks.search_compact milvus --rounds 3",
    **{f"retrieval-{part.split()[0]}": f"benchmarks.retrieval {part}" for part in RETRIEVAL},
}
# Those that also run a PyTorch program, and so need the extra `bench`.
NEEDS_TORCH = ("pretraining", "finetuning-time", "finetuning-memory", "embedding", "hog")
