"""Turns a Metal shader into what clang compiles on any host: C++ for the emulation, or OpenCL C++ for a check.

This is the one step between the text that Apple's compiler gets and the text that is tested. It

1. inlines `#include "..."`, each file once (`bundle` does no more, for `newLibrary(source:)`);
2. turns `constant T NAME [[function_constant(I)]];` into an object that is set for each pipeline, and a
   `constant T NAME = EXPRESSION;` derived from it into one that is computed when it is read;
3. removes attributes `[[...]]` and `kernel`, and writes, after each kernel, a function that fetches its parameters
   by what their attributes say;
4. gives `threadgroup T name[...];` memory of the threadgroup;
5. makes functions static: each file has constants of its own.

For OpenCL C++, which has address spaces and kernels, attributes are removed and function constants get a value.
Lines keep their numbers by `#line`.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

_INCLUDE = re.compile(r'^#include "([^"]+)"\n', re.MULTILINE)
_CONSTANT = re.compile(r"^constant (\w+) (\w+) \[\[function_constant\((\w+)\)\]\];$", re.MULTILINE)
_DERIVED = re.compile(r"^constant (\w+) (\w+) = ([^;{]+);$", re.MULTILINE)
_KERNEL = re.compile(r"^kernel void (\w+)\(([^{]*)\) \{$", re.MULTILINE)
_VARIABLE = re.compile(r"^( +)threadgroup (\w+) (\w+)((?:\[[^\]\n]+\])+);", re.MULTILINE)
_ANY_VARIABLE = re.compile(r"\bthreadgroup\s+\w+\s+\w+\s*[\[;=,].*")
_INLINE = re.compile(r"^inline ", re.MULTILINE)
_ATTRIBUTE = re.compile(r" ?\[\[([^\[\]]*)\]\]")
_PARAMETER = re.compile(r"(?P<type>[\w* ]+[ *])(?P<name>\w+) \[\[(?P<attribute>[^\[\]]*)\]\]$")
_BUFFER = re.compile(r"buffer\((\w+)\)(?:, function_constant\((\w+)\))?$")
_MEMORY = re.compile(r"threadgroup\((\w+)\)$")
_BUILTINS = {
    "threadgroup_position_in_grid": "threadgroup_position",
    "thread_position_in_threadgroup": "thread_position_in_threadgroup",
    "threads_per_threadgroup": "threads_per_threadgroup",
    "threadgroups_per_grid": "threadgroups_per_grid",
    "thread_index_in_threadgroup": "thread_index",
    "simdgroup_index_in_threadgroup": "simdgroup",
    "thread_index_in_simdgroup": "lane",
}


def bundle(source: Path, seen: set[Path] | None = None) -> str:
    """The text of a shader with its own includes in place, each once."""
    seen = set() if seen is None else seen
    text, result, end = source.read_text(), [f'#line 1 "{source.name}"\n'], 0
    for match in _INCLUDE.finditer(text):
        result.append(text[end : match.start()])
        included = (source.parent / match[1]).resolve()
        if included not in seen:
            seen.add(included)
            result.append(bundle(included, seen))
        line = text.count("\n", 0, match.end()) + 1
        result.append(f'#line {line} "{source.name}"\n')
        end = match.end()
    return "".join([*result, text[end:]])


def to_cpp(text: str) -> str:
    """The text of `bundle` as C++ for the emulation."""
    text = _CONSTANT.sub(
        r"static bitnet::emulation::FunctionConstant \2_constant(\3, "
        r'"\2"); [[maybe_unused]] static const struct { operator \1() const { return \2_constant.value(); } } \2;',
        text,
    )
    names = re.findall(r"FunctionConstant (\w+)_constant", text)
    text = _DERIVED.sub(r"[[maybe_unused]] static const struct { operator \1() const { return \3; } } \2;", text)
    numbers = iter(range(1 << 16))
    text = _VARIABLE.sub(
        lambda m: (
            f"{m[1]}auto& {m[3]} = *static_cast<{m[2]}(*){m[4]}>("
            f"bitnet::emulation::ThreadgroupVariable({next(numbers)}, sizeof({m[2]}{m[4]})));"
        ),
        text,
    )
    if left := _ANY_VARIABLE.search(text):
        raise SystemExit(f"'{left[0]}': a variable of a threadgroup stands on a line of its own, T name[...];")
    text = _INLINE.sub("static inline ", text)
    kernels = [_registration(m[1], m[2]) for m in _KERNEL.finditer(text)]
    text = _KERNEL.sub(lambda m: f"static void {m[1]}({_ATTRIBUTE.sub('', m[2])}) {{", text)
    # Arrays of one element more, so that none is empty.
    table = ", ".join([*(f"&{name}_constant" for name in names), "nullptr"])
    constants = f"static bitnet::emulation::FunctionConstant* const the_constants[] = {{{table}}};\n"
    return "\n".join([text, '#line 1 "registration"', constants, *kernels])


def to_opencl(text: str) -> str:
    """The text of `bundle` as OpenCL C++."""
    text = _CONSTANT.sub(r"constant \1 \2 = 1;", text)
    return _ATTRIBUTE.sub("", text)


def _registration(name: str, parameters: str) -> str:
    arguments, uses = [], []
    for parameter in _split(parameters):
        match = _PARAMETER.match(parameter)
        if match is None:
            raise SystemExit(f"kernel {name}: parameter '{parameter}' has no attribute of a known form")
        attribute = match["attribute"]
        kind = match["type"].strip().replace("device ", "").replace("constant ", "const ").replace("threadgroup ", "")
        if buffer := _BUFFER.match(attribute):
            condition = f"[]() -> bool {{ return {buffer[2]}; }}" if buffer[2] else "nullptr"
            uses.append(f"{{{buffer[1]}, {condition}}}")
            arguments.append(f"static_cast<{kind}>(a.buffers[{buffer[1]}])")
        elif memory := _MEMORY.match(attribute):
            arguments.append(f"static_cast<{kind}>(a.threadgroups[{memory[1]}])")
        elif attribute in _BUILTINS:
            arguments.append(f"a.{_BUILTINS[attribute]}")
        else:
            raise SystemExit(f"kernel {name}: attribute [[{attribute}]] is not known")
    return (
        f"static void call_{name}(const bitnet::emulation::Arguments& a) {{ {name}({', '.join(arguments)}); }}\n"
        f"static const bitnet::emulation::BufferUse uses_{name}[] = {{{', '.join([*uses, '{0, nullptr}'])}}};\n"
        f'static bitnet::emulation::Kernel register_{name}("{name}", call_{name}, {{uses_{name}, {len(uses)}}}, '
        "{the_constants, sizeof the_constants / sizeof the_constants[0] - 1});\n"
    )


def _split(parameters: str) -> list[str]:
    """Parameters of a kernel: commas within brackets do not count."""
    parts = re.split(r",(?![^\[]*\]\])", parameters)
    return [" ".join(part.split()) for part in parts]


def main() -> None:
    """Write the translation of one file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("form", choices=["bundle", "cpp", "opencl"])
    parser.add_argument("source", type=Path, nargs="+", help="shaders; `bundle` puts several in one text")
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    seen: set[Path] = set()
    text = "".join(bundle(source, seen) for source in options.source)
    if options.form != "bundle":
        text = to_cpp(text) if options.form == "cpp" else to_opencl(text)
    options.output.write_text(text)


if __name__ == "__main__":
    main()
