"""The word list of CONTRIBUTING.md, for phrases that are never right: messages, docstrings, pages."""

import ast
import re
from pathlib import Path

import pytest
from names import tree_of

ROOT = Path(__file__).parents[2]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "SECURITY.md"]
UNITS = "sample|row|column|draw|chain|batch|point|step|level|pixel|coordinate|dimension"

WRONG = {
    rf"\b(one|number|row|value|class) a (?!row is)({UNITS})\b": "one per sample",
    rf"\b(nats|evaluations|bits) an? (held-out |effective )?({UNITS})\b": "nats per row",
    r"\btake (a )?smaller steps?\b": "use a smaller step size",
    r"\bgive [a-z_]+=": "pass start=",
    r"\bsay [a-z_]+=": "pass vectorized=False",
    r"\bw(as|ere) asked\b": "requested",
    r"\bgo(es)? on with\b": "continue with",
    r"\bleave [a-z_]+= out\b|\bleave out [a-z_]+=": "omit names=",
    r"(?<!there )\bis no (array|command|directory|file|folder|model|number|target)\b": "is not a file",
    r"\b(one|two|three) (rows |points )?at least\b": "at least two rows",
    r"\b(told|tells?) (\w+ ){0,2}apart\b": "distinguish",
    r"(?i)\bheld against\b|\bholds? (\w+ ){1,2}against\b": "compare with",
    r"\bby heart\b": "memorise",
    r"\b(says|tells) nothing of\b": "carries no information about",
    r"\bbatch-mates?\b": "other samples of the batch",
    r"\bat (a|every|the) door\b": "at an entry point",
    r"\bfault of gradlogp\b": "a bug in gradlogp",
    r"\bleft the finite\b": "became NaN or infinite",
    r"\bwhere not given\b": "by default",
    r"\bthat is none\b": "that is not one",
    r"\bwithout a word\b": "silently",
    r"\bfor ever\b": "forever, endlessly",
    r"\baccidents?\b": "damage, crash",
    r"\bwhole numbers?\b": "integers",
    r"\bWhere (the |all )?\w+( and \w+)? comes? from\b": "Source of the noise",
    r"\bTell (whether|which|where)\b": "Return whether",
    r"\bhand(s|ed)? (on|over|it over|them over)\b": "pass, return",
    r"(?i)\bwhoever\b|\bnobody\b": "a plain subject, or the passive voice",
    r"\b(goes|go) on (from|where)\b": "continue from",
    r"\bMost (draws|points|steps|products|evaluations)\b(?=[;,.])": "Maximum number of steps",
    r"\b(a|the) (draw|step|sample|chain)s? tells?\b": "information about a step",
    r"\bwith (a|an) \w+ of (its|their) own\b": "with its own stream",
    r"\bas of `": "as in `run`",
}
"""What is wrong -> what to write."""


def prose(path):
    """Yield (line, text) of what a reader sees: strings of a source, a page without its code."""
    if path.suffix == ".py":
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.lineno, node.value
    else:
        source = path.read_text(encoding="utf-8")
        fenced = re.sub(
            r"^```.*?^```", lambda m: "\n" * m[0].count("\n"), source, flags=re.M | re.S
        )
        yield 1, fenced


END = "\0"
"""Between texts of a file, which are searched as one: no phrase goes over it."""


def found(files):
    for path in files:
        lines, texts = zip(*prose(path), strict=True)
        whole = END.join(texts)
        flat = re.sub(r"\s", " ", whole)
        for wrong, right in WRONG.items():
            for match in re.finditer(wrong, flat):
                before = whole[: match.start()].split(END)
                at = lines[len(before) - 1] + before[-1].count("\n")
                yield f"{path.relative_to(ROOT)}:{at}: {match[0]!r}, write {right!r}"


def test_words():
    """Of sources, messages and docstrings; of pages, the prose."""
    assert not (bad := list(found([*sorted((ROOT / "src").rglob("*.py")), *PAGES]))), "\n".join(
        bad
    )


@pytest.mark.parametrize(
    "text",
    [
        "needs y, one a sample",
        "this is no file",
        "take a smaller step size",
        "pass x, give start=",
    ],
)
def test_a_wrong_word_is_found(tmp_path, text, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "a.py").write_text(f"raise ValueError({text!r})\n", encoding="utf-8")
    (tmp_path / "b.md").write_text(f"```\nclass A\n```\n\n{text}\n", encoding="utf-8")
    assert [f.split(":")[0] for f in found(sorted(tmp_path.iterdir()))] == ["a.py", "b.md"]
