"""What a compiled program says about itself: its collectives, and a roofline of its instructions.

Read from the text of XLA's optimised program (`compiled.as_text()`), as one device runs it.
"""

import math
import re
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {
    "pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2,
    "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8,
}  # fmt: skip
_ARRAY = re.compile(r"([a-z]+\d*)\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.+?) ([a-z][\w\-]*)\((.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
# Nothing is moved or computed by these.
_FREE = (
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "opt-barrier",
)


class Instruction(NamedTuple):
    """A line of a program: name, type of the result, operation, and what follows the bracket."""

    name: str
    shape: str
    op: str
    rest: str

    @property
    def operands(self) -> list[str]:
        """Names of the operands."""
        return re.findall(r"%([\w.\-]+)", self.rest.split("), ")[0])


class Collective(NamedTuple):
    """What devices exchange in one instruction.

    `payload` is the size of the whole array in bytes (of all, where several are exchanged
    together), `ways` how many devices take part.
    """

    kind: str
    payload: int
    ways: int

    @property
    def sent(self) -> float:
        """Bytes that each device sends if the exchange goes round a ring, the least there is."""
        share = (self.ways - 1) / self.ways
        if self.kind == "collective-permute":
            return self.payload
        return self.payload * share * (2 if self.kind == "all-reduce" else 1)


def size(shape: str) -> int:
    """Bytes of a type such as `f32[2,3]{1,0}` or a tuple of them."""
    return sum(
        _BYTES[dtype] * math.prod(int(n) for n in dims.split(",") if n)
        for dtype, dims in _ARRAY.findall(shape)
        if dtype in _BYTES
    )


def computations(text: str) -> dict[str, list[Instruction]]:
    """The instructions of each computation; that of the whole program is named `ENTRY`."""
    found: dict[str, list[Instruction]] = {}
    current: list[Instruction] = []
    for line in text.splitlines():
        line = re.sub(r"/\*.*?\*/", "", line)
        if start := _COMPUTATION.match(line):
            current = found.setdefault("ENTRY" if start[1] else start[2], [])
        elif instruction := _INSTRUCTION.match(line):
            current.append(Instruction(*instruction.groups()))
    return found


def collectives(text: str) -> list[Collective]:
    """All exchanges of the program between at least two devices, in the order of the text.

    Programs here have no loops, so that each instruction runs once.
    """
    found = []
    for instructions in computations(text).values():
        for item in instructions:
            kind = item.op.removesuffix("-start")
            if kind not in KINDS:
                continue
            payload, ways = size(item.shape), _ways(item.rest)
            if item.op.endswith("-start") and kind == "all-gather":
                # Its type is a pair of what goes in and what comes out.
                payload = payload * ways // (ways + 1)
            if kind == "reduce-scatter":
                payload *= ways
            if ways > 1:
                found.append(Collective(kind, payload, ways))
    return found


def _ways(rest: str) -> int:
    """How many devices are in a group.

    XLA writes `replica_groups=` as `{{0,1},{2,3}}`, `[groups,ways]<=[...]`, or by axes of a mesh,
    `mesh['a'=2,'b'=4] {'b'}`.
    """
    if groups := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", rest):
        sizes = {name: int(n) for name, n in re.findall(r"'(\w+)'=(\d+)", groups[1])}
        # A part of an axis is written `'a':(first)size`.
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", groups[2])
        return math.prod(int(part) if part else sizes[name] for name, part in axes)
    if groups := re.search(r"replica_groups=\[\d+,(\d+)\]<=", rest):
        return int(groups[1])
    if groups := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return len(groups[1].split(","))
    if "source_target_pairs" in rest:
        return 2
    raise ValueError(f"no groups of devices in {rest!r}")


class Cost(NamedTuple):
    """One instruction of the whole program: floating-point operations of products, bytes moved."""

    flops: int
    moved: int


def costs(text: str) -> list[Cost]:
    """Of each instruction of the whole program: its products, and its operands and result.

    A fusion reads its operands and writes its result once. Elementwise operations are not counted:
    they are bound by what they read and write.
    """
    parts = computations(text)
    found = []
    for item, shapes in _with_shapes(parts["ENTRY"]):
        if item.op in _FREE or item.op in KINDS:
            continue
        moved = size(item.shape) + sum(
            size(shapes[name]) for name in item.operands if name in shapes
        )
        flops = _dot_flops(item, shapes) if item.op == "dot" else 0
        called = re.search(r"(?:calls|to_apply)=%?([\w.\-]+)", item.rest)
        if called and item.op in ("fusion", "call"):
            inner = parts[called[1]]
            flops += sum(_dot_flops(i, s) for i, s in _with_shapes(inner) if i.op == "dot")
        found.append(Cost(flops, moved))
    return found


def _with_shapes(instructions: list[Instruction]) -> list[tuple[Instruction, dict[str, str]]]:
    shapes = {item.name: item.shape for item in instructions}
    return [(item, shapes) for item in instructions]


def _dot_flops(item: Instruction, shapes: dict[str, str]) -> int:
    """2 times the size of the result times that of the contracted axes."""
    dims = [int(n) for n in _ARRAY.findall(shapes[item.operands[0]])[0][1].split(",")]
    axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", item.rest)
    contracted = math.prod(dims[int(axis)] for axis in axes[1].split(","))
    result = _ARRAY.findall(item.shape)[0][1]
    return 2 * contracted * math.prod(int(n) for n in result.split(",") if n)
