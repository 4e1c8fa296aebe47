"""Which mutants were seen caught, and in which code: `caught.json`.

A mutant changes the body of one function, and one test has to notice. While neither body has changed
since it was caught, but for docstrings, the answer is known. What either of them calls may have
changed: the slow tests run every mutant.
"""

import ast
import hashlib
import json
import os
import sys
import zlib
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
RECORD = Path(__file__).parent / "caught.json"
SAMPLE = 1  # run always, so that the machinery is tested


def _definitions(node):
    """Yield all definitions below a node, without a look into expressions, where there are none."""
    for field in ("body", "orelse", "handlers", "finalbody", "cases"):
        for inner in getattr(node, field, ()) if not isinstance(node, ast.expr) else ():
            if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield inner
            yield from _definitions(inner)


@cache
def _bodies(text):
    """Return name and source, without docstrings, of all definitions and top-level statements."""
    tree, lines, found = ast.parse(text), text.splitlines(), []
    definitions = list(_definitions(tree))
    words = {
        number
        for node in definitions
        if ast.get_docstring(node) and node.body[0].lineno > node.lineno
        for number in range(node.body[0].lineno, node.body[0].end_lineno + 1)
    }
    for node in (*tree.body, *definitions):
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])
        numbers = range(first, node.end_lineno + 1)
        source = "\n".join(lines[n - 1] for n in numbers if n not in words)
        found.append((getattr(node, "name", None), source))
    return found


def _paths(mutant, root):
    """Return the file that a mutant changes, and the file of the test that has to notice."""
    return root / "src" / "gradlogp" / mutant.file, root / "tests" / mutant.test.partition("::")[0]


def fingerprint(mutant, root=ROOT):
    """Return a hash of a mutant and of both bodies, or None if one of them is not there."""
    test = mutant.test.partition("::")[2]
    paths = _paths(mutant, root)
    if not all(path.is_file() for path in paths):
        return None
    text, tests = (path.read_text(encoding="utf-8") for path in paths)
    mutated = [source for _, source in _bodies(text) if mutant.old in source]
    noticing = [source for name, source in _bodies(tests) if name == test.partition("[")[0]]
    noticing = noticing if test else [tests]
    if text.count(mutant.old) != 1 or not mutated or not noticing:
        return None
    whole = json.dumps([*mutant, min(mutated, key=len), noticing[0]])
    return hashlib.sha256(whole.encode()).hexdigest()[:16]


def fingerprints(mutants):
    """Return the fingerprints of all, beside the compiled modules while their files do not change.

    Every worker asks for them when it collects the tests, and to parse that many files takes seconds.
    """
    files = sorted({path for mutant in mutants for path in _paths(mutant, ROOT)})
    states = [path.stat() if path.is_file() else None for path in files]
    times = [
        (str(f), s and (s.st_mtime_ns, s.st_size)) for f, s in zip(files, states, strict=True)
    ]
    key = hashlib.sha256(json.dumps([times, *mutants]).encode()).hexdigest()
    kept = Path(__file__).parent / "__pycache__" / "fingerprints.json"
    if kept.is_file() and (old := json.loads(kept.read_text(encoding="utf-8")))["key"] == key:
        return old["found"]
    found = [fingerprint(mutant) for mutant in mutants]
    if not sys.dont_write_bytecode:
        kept.parent.mkdir(exist_ok=True)
        new = kept.with_suffix(f".{os.getpid()}")  # another worker may be doing the same
        new.write_text(json.dumps({"key": key, "found": found}), encoding="utf-8")
        new.replace(kept)
    return found


def read():
    """Return the record {name: fingerprint when it was caught}; empty where there is none."""
    return json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}


def write(record):
    """Write the record, in the order of names."""
    text = json.dumps(record, indent=1, ensure_ascii=False, sort_keys=True)
    RECORD.write_text(text + "\n", encoding="utf-8")


def updated(record, mutants, mutant, known):
    """Return the record after a mutant was run: its fingerprint from before, None if it lived.

    Names that are no mutant's are left out.
    """
    names = {m.name for m in mutants} - ({mutant.name} if known is None else set())
    return {name: old for name, old in {**record, mutant.name: known}.items() if name in names}


def sample(mutants):
    """Return the numbers of the mutants that run always, the same ones every time.

    Of the formulas of noise, whose tests take no time.
    """
    quick = [n for n, m in enumerate(mutants) if m.test.startswith("noise/")]
    return sorted(quick, key=lambda n: zlib.crc32(mutants[n].name.encode()))[:SAMPLE]


def due(mutants, record):
    """Return the numbers of the sample and of all that were not seen caught as they are now."""
    found = enumerate(zip(mutants, fingerprints(mutants), strict=True))
    changed = {n for n, (m, now) in found if record.get(m.name, "") != now}
    return sorted(changed | set(sample(mutants)))
