"""PTX text -> `Program`: the kernel's parameters, registers, instructions and labels."""

import re
from dataclasses import dataclass, field

from .errors import EmulationError

SPECIAL = (*(f"%{name}.{axis}" for name in ("tid", "ctaid", "nctaid") for axis in "xyz"), "%laneid")
SHARED = "global_smem"  # Triton's name for all of a program's shared memory


@dataclass(frozen=True)
class Register:
    index: int


@dataclass(frozen=True)
class Immediate:
    """A constant: an integer, or the bits of a float."""

    value: int


@dataclass(frozen=True)
class Address:
    base: "Register | Immediate | str"  # a string is the name of a parameter
    offset: int


@dataclass(frozen=True)
class Vector:
    parts: tuple["Register | Immediate | None", ...]  # None, written _, takes a result that nobody wants


@dataclass(frozen=True)
class Label:
    name: str


Operand = Register | Immediate | Address | Vector | Label


@dataclass(frozen=True)
class Instruction:
    text: str
    opcode: tuple[str, ...]  # split at the dots
    operands: tuple[Operand, ...]
    predicate: Register | None = None
    negated: bool = False

    @property
    def name(self) -> str:
        return self.opcode[0]

    @property
    def kind(self) -> str:
        """The type that the opcode ends with."""
        return self.opcode[-1]


@dataclass
class Program:
    """A kernel, parsed."""

    name: str
    parameters: tuple[tuple[str, str], ...]  # (PTX type, name)
    threads: int  # of a program (CTA)
    registers: list[str] = field(default_factory=list)  # PTX types; the first are those of SPECIAL
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)


def parse(text: str) -> Program:
    """Read the first kernel of a PTX module.

    Raises:
        EmulationError: it is not what Triton writes: no entry, no .reqntid, or an operand of an unknown form.
    """
    entry = re.search(r"\.visible \.entry (\S+?)\((.*?)\)", text, re.DOTALL)
    threads = re.search(r"\.reqntid (\d+)", text)
    if not entry or not threads:
        raise EmulationError("no .entry with .reqntid in this PTX")
    parameters = re.findall(r"\.param \.(\w+)[^,\n]*?(\w+)\s*(?:,|\n|$)", entry[2])
    program = Program(entry[1], tuple(parameters), int(threads[1]))
    body = re.sub(r"//[^\n]*|^\s*\.(loc|file|section)\b[^\n]*", "", text[entry.end() :], flags=re.MULTILINE)
    _Body(program, body[body.index("{") + 1 :]).read()
    return program


class _Body:
    """Reads statements; inline assembly opens scopes with registers of their own."""

    LABEL = re.compile(r"(\$?[\w$]+):(?!:)")

    def __init__(self, program: Program, text: str) -> None:
        self.program, self.text = program, text
        self.scopes: list[dict[str, int]] = [{}]
        for name in SPECIAL:
            self._declare(name, "b32")

    def read(self) -> None:
        position = 0
        while self.scopes:
            while self.text[position].isspace():
                position += 1
            if self.text[position] in "{}":
                self.scopes.append({}) if self.text[position] == "{" else self.scopes.pop()
                position += 1
            elif label := self.LABEL.match(self.text, position):
                self.program.labels[label[1]] = len(self.program.instructions)
                position = label.end()
            else:
                end = self.text.index(";", position)
                self._statement(" ".join(self.text[position:end].split()))
                position = end + 1

    def _statement(self, text: str) -> None:
        if text.startswith(".reg"):
            _, kind, names = text.split(" ", 2)
            for name in names.split(","):
                self._declare_all(name.strip(), kind[1:])
        elif text and not text.startswith("."):
            self.program.instructions.append(self._instruction(text))

    def _declare_all(self, name: str, kind: str) -> None:
        family = re.fullmatch(r"(%?\w+)<(\d+)>", name)
        for one in [f"{family[1]}{number}" for number in range(int(family[2]))] if family else [name]:
            self._declare(one, kind)

    def _declare(self, name: str, kind: str) -> None:
        self.scopes[-1][name] = len(self.program.registers)
        self.program.registers.append(kind)

    def _instruction(self, text: str) -> Instruction:
        match = re.fullmatch(r"(?:@(!?)(%?\w+) )?(\S+)(?: (.*))?", text)
        operands = tuple(self._operand(part) for part in _split(match[4] or ""))
        predicate = self._register(match[2]) if match[2] else None
        return Instruction(text, tuple(re.split(r"\.|::", match[3])), operands, predicate, match[1] == "!")

    def _register(self, name: str) -> Register | None:
        for scope in reversed(self.scopes):
            if name in scope:
                return Register(scope[name])
        return None

    def _operand(self, text: str) -> Operand:
        if text[0] == "{":
            return Vector(tuple(None if part == "_" else self._operand(part) for part in _split(text[1:-1])))
        if text[0] == "[":
            return self._address(text[1:-1])
        if "|" in text:
            return Vector(tuple(None if part == "_" else self._register(part) for part in text.split("|")))
        if register := self._register(text):
            return register
        if text.startswith("$"):
            return Label(text)
        if text.startswith(SHARED):
            return Immediate(int(text[len(SHARED) :].lstrip("+") or "0", 0))
        if text[:2] in ("0f", "0d"):
            return Immediate(int(text[2:], 16))
        if re.fullmatch(r"-?(0x[0-9A-Fa-f]+|\d+)U?", text):
            return Immediate(int(text.rstrip("U"), 0))
        raise EmulationError(f"operand {text!r} is of no known form")

    def _address(self, text: str) -> Address:
        base, _, offset = text.replace(" ", "").partition("+")
        if base in (name for _, name in self.program.parameters):
            return Address(base, int(offset or "0", 0))
        return Address(self._operand(base), int(offset or "0", 0))


def _split(text: str) -> list[str]:
    """Parts between the commas that stand in no bracket."""
    parts, depth, start = [], 0, 0
    for place, character in enumerate(text):
        depth += (character in "{[") - (character in "}]")
        if character == "," and depth == 0:
            parts.append(text[start:place].strip())
            start = place + 1
    return [*parts, text[start:].strip()] if text.strip() else parts
