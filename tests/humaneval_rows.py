"""Twelve rows in HumanEval's form, written for the tests: simple functions, with the features that its rows have."""

from __future__ import annotations

# name, signature and docstring, body, asserts
ROWS = [
    ("double", "def double(x: int) -> int:\n    \"\"\" Twice x.\n    >>> double(2)\n    4\n    \"\"\"\n",
     "    return 2 * x\n",
     ["candidate(2) == 4", "candidate(0) == 0", "candidate(-3) == -6"]),
    ("total", "from typing import List\n\n\ndef total(numbers: List[int]) -> int:\n    \"\"\" The sum.\"\"\"\n",
     "    result = 0\n    for n in numbers:\n        result += n\n    return result\n",
     ["candidate([]) == 0", "candidate([1, 2, 3]) == 6", "candidate([-1]) == -1"]),
    ("pairs", "from typing import Dict, Tuple\n\n\ndef pairs(d: Dict[str, int]) -> Tuple[Tuple[str, int], ...]:\n"
     "    \"\"\" The items, sorted.\"\"\"\n", "    return tuple(sorted(d.items()))\n",
     ["candidate({}) == ()", "candidate({'b': 1, 'a': 2}) == (('a', 2), ('b', 1))"]),
    ("encode", "def rotate(text: str, by: int):\n    return text[by:] + text[:by]\n\n\ndef encode(text: str):\n"
     "    \"\"\" Undoes rotate(text, 1).\"\"\"\n", "    return rotate(text, -1)\n",
     ["candidate(rotate('abc', 1)) == 'abc'", "candidate('') == ''"]),
    ("root", "import math\n\n\ndef root(x: float) -> float:\n    \"\"\" The square root.\"\"\"\n",
     "    return math.sqrt(x)\n",
     ["math.isclose(candidate(2.0), 1.41421356, rel_tol=1e-6)", "candidate(9.0) == 3.0"]),
    ("unique", "def unique(items: list) -> set:\n    \"\"\" The distinct items.\"\"\"\n", "    return set(items)\n",
     ["candidate([]) == set()", "candidate([1, 1, 2]) == {1, 2}"]),
    ("longest", "from typing import List, Optional\n\n\ndef longest(words: List[str]) -> Optional[str]:\n"
     "    \"\"\" The first longest word, None of none.\"\"\"\n", "    return max(words, key=len) if words else None\n",
     ["candidate([]) is None", "candidate(['a', 'bb', 'cc']) == 'bb'"]),
    ("even", "def even(x):\n    \"\"\" Whether x is even.\"\"\"\n", "    return x % 2 == 0\n",
     ["candidate(2) is True", "candidate(3) is False"]),
    ("factorial", "def factorial(n):\n    \"\"\" n!\"\"\"\n", "    return n * factorial(n - 1) if n else 1\n",
     ["candidate(0) == 1", "candidate(25) == 15511210043330985984000000"]),
    ("flatten", "def flatten(rows):\n    \"\"\" One list of all.\"\"\"\n",
     "    return [x for row in rows for x in row]\n",
     ["candidate([]) == []", "candidate([[1], [], [2, 3]]) == [1, 2, 3]"]),
    ("half", "def half(x):\n    \"\"\" Half of an even number; ValueError for an odd one.\"\"\"\n",
     "    if x % 2:\n        raise ValueError('odd')\n    return x // 2\n", ["candidate(4) == 2", "candidate(0) == 0"]),
    ("reverse", "def reverse(text):\n    \"\"\" Backwards.\"\"\"\n", "    return text[::-1]\n",
     ["candidate('') == ''", "candidate('añb') == 'bña'"]),
]  # fmt: skip


def rows() -> list[dict[str, str]]:
    """With METADATA and a constant assert, as HumanEval has them."""
    return [
        {
            "task_id": f"Own/{place}",
            "prompt": prompt,
            "canonical_solution": body,
            "test": "\n\nMETADATA = {\n    'author': 'tests'\n}\n\n\ndef check(candidate):\n    assert True, 'good'\n"
            + "".join(f"    assert {line}\n" for line in asserts),
            "entry_point": name,
        }
        for place, (name, prompt, body, asserts) in enumerate(ROWS)
    ]
