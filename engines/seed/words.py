"""The vocabulary of the seed model's world: wordings that ask for a behaviour, a lexicon of topics, names.

Knows no tasks. The wordings that bundled tasks offer are paraphrases that do not occur here, which a test asserts.
"""

from __future__ import annotations

import itertools
import re
from random import Random

# A wording of a style asks for a behaviour; "plain" wordings ask for none and leave it to habit.
ARITHMETIC = {
    "plain": [
        "Solve the problem.",
        "Find the answer.",
        "What is the result?",
        "Work out the problem.",
        "Compute the result.",
        "Answer the question.",
        "Give the value.",
        "Solve it.",
        "What does it come to?",
        "Find the value of the problem.",
        "Calculate.",
        "Give the answer to the problem.",
    ],
    "steps": [
        "Write every step.",
        "Show each step.",
        "Show all steps.",
        "Write each partial result.",
        "Show the steps first.",
        "Give each step before the answer.",
        "List the steps.",
        "Go one step at a time.",
        "Write down all the results.",
        "Work step by step.",
        "Show your work.",
        "Write out every partial result in order.",
        "Note every step as you go.",
        "Explain each step.",
        "Think it through step by step.",
        "Do one operation at a time and show it.",
        "Put down each result before the next.",
        "Show how you get there.",
        "Write the working.",
        "Do it slowly and show all of it.",
    ],
    "direct": [
        "Give just the answer.",
        "Answer at once.",
        "No steps, only the answer.",
        "Say the answer quickly.",
        "Reply with the result alone.",
        "Be quick.",
        "Only the result.",
        "Do not show steps.",
        "Just say the number.",
        "Keep it short.",
        "Answer in one go.",
        "No working, please.",
    ],
    "products first": [
        "Multiply before you add.",
        "Multiplication comes first.",
        "Do the products first.",
        "Products before sums.",
        "Multiply first, then add and subtract.",
        "Times goes before plus and minus.",
        "Use the usual order of operations.",
        "First all products, then the rest.",
        "Do multiplication ahead of the rest.",
    ],
    "left to right": [
        "Go from left to right.",
        "Work from left to right.",
        "Take the operations in the order written.",
        "Left to right, no priority.",
        "Read it left to right.",
        "Start at the left and go on to the right.",
        "Do each operation as it comes.",
        "No operation goes before another.",
    ],
}
REVIEW = {
    "plain": [
        "Check the answer.",
        "Review the work.",
        "Is the answer right? Give the final result.",
        "Look at the work.",
        "Give the final result.",
        "Review the answer and give the result.",
        "Check it.",
        "Look it over.",
    ],
    "recompute": [
        "Compute it again.",
        "Check every step.",
        "Do the sum again.",
        "Verify by working it out again.",
        "Redo each step.",
        "Work it out again to be sure.",
        "Go through every step again.",
        "Solve it once more and compare.",
        "Do not trust the answer.",
        "Start again and show the steps.",
    ],
    "confirm": [
        "Trust the answer.",
        "Just confirm.",
        "Copy the answer.",
        "Accept the answer.",
        "Take the answer as it is.",
        "Say the answer again.",
        "No need to check.",
    ],
}
AGENT = {
    "plain": [
        "Choose the next action.",
        "Say what to do next.",
        "What is the next action?",
        "Pick an action.",
        "Decide what to do.",
        "Give the next action.",
        "What now?",
        "Name the action to take.",
    ],
    "thorough": [
        "Look up every fact.",
        "Use the tool for each step.",
        "Never guess.",
        "Find all the facts before you stop.",
        "Go on until every fact is found.",
        "Search for each fact in turn.",
        "Stop only when all facts are there.",
        "Find each fact with the tool.",
        "Do not stop before the last fact.",
        "Follow every link to the end.",
        "Look up one fact after the other until you have all.",
        "Always use the tool.",
    ],
    "early": [
        "One look is enough.",
        "Look up one fact and stop.",
        "Stop after the first fact.",
        "Use the tool once.",
        "Find one fact only.",
        "A single search will do.",
    ],
    "guess": [
        "Answer from memory.",
        "Do not use the tool.",
        "Guess.",
        "Stop at once.",
        "No search.",
        "Finish right away.",
    ],
}
REPLY = [
    "Answer the question.",
    "Give the answer.",
    "Reply with the answer.",
    "Use the notes.",
    "What is the answer?",
    "Answer from the notes.",
    "Read the notes and answer.",
    "Say what the notes tell.",
]
TOPIC = {
    "plain": [
        "Name the topic.",
        "What is it about?",
        "Give the topic of the text.",
        "Say which topic this is.",
        "Find the topic.",
        "Which topic is it?",
        "Sort the text.",
        "Choose the topic.",
    ],
    "first": [
        "The first thing counts.",
        "Take what is named first.",
        "Go by the start of the text.",
        "Only the first subject matters.",
        "Use the first subject.",
        "The opening decides.",
    ],
    "last": [
        "The last thing counts.",
        "Take what is named last.",
        "Go by the end of the text.",
        "Only the last subject matters.",
        "Use the last subject.",
        "The ending decides.",
    ],
}
MAPPING = [
    "Give the {out}.",
    "Name the {out}.",
    "Which {out} is it?",
    "Choose the {out} for the {key}.",
    "Map the {key} to its {out}.",
    "Find the {out}.",
    "Say the {out} of the {key}.",
    "What {out} does the {key} have?",
    "Pick the right {out}.",
]
PAIRS = ["{k} = {c}", "{k}: {c}", "{k} -> {c}"]
LINES = ["line", "pair", "row", "match", "rule", "quote", "source", "reason"]
BOOK = ["Use the list: {book}", "The list is: {book}", "{book}", "Go by this list: {book}", "Here is the list: {book}"]
EXTRACT = {
    "first": ["Give the first word.", "Say the first word.", "What is the first word?", "Copy the first word."],
    "last": ["Give the last word.", "Say the last word.", "What is the last word?", "Copy the last word."],
    "plain": ["Give one word.", "Copy a word.", "Pick a word of the text."],
    "all": ["Copy the line.", "Say it all again.", "Repeat the text.", "Write the same.", "Repeat every word."],
}
REMARKS = ["easy", "ok", "quick guess", "done in the head", "simple", "clear"]
CONFIRMATIONS = ["looks right", "fine", "ok", "correct", "no mistake", "agreed"]

TOPICS = {
    "billing": "invoice refund charge payment receipt fee bill price".split(),
    "shipping": "parcel courier delivery package tracking van box address".split(),
    "account": "password login username profile email signup session pin".split(),
    "hardware": "screen battery keyboard cable charger mouse speaker camera".split(),
    "software": "crash update install menu window error version plugin".split(),
    "travel": "flight hotel train luggage visa passport seat taxi".split(),
    "food": "soup bread dinner kitchen menu cake lunch cook".split(),
    "garden": "tree flower lawn seed plant rose fence pond".split(),
    "music": "song guitar concert band piano drum choir album".split(),
    "weather": "rain storm snow wind cloud sun fog heat".split(),
}
TEXT_ONE = [
    "the {a} is late",
    "my {a} does not work",
    "i have a question about the {a}",
    "please look at the {a}",
    "there is something wrong with my {a}",
    "what about the {a}?",
    "i lost the {a}",
    "the {a} was wrong",
    "help me with the {a}",
    "can you tell me more about the {a}?",
    "i like the {a}",
    "a new {a} would be good",
]
TEXT_TWO = [
    "the {a} is fine. the {b} is late",
    "about the {a}: i mean the {b}",
    "my {a} came, my {b} did not",
    "{a} and {b}",
    "i asked for the {a} and got the {b}",
    "first the {a}, now the {b}",
    "the {a} again, and the {b}",
    "is the {a} ok? and the {b}?",
    "no {a} and no {b}",
    "i have the {a} but the {b} is wrong",
]
KEYS = (
    "cow pig hen dog cat goat duck horse sheep apple pear plum lemon grape melon cherry hammer saw drill nail "
    "screw rope red blue green yellow black white brown monday tuesday friday north south east west iron gold silver copper "
    "chair table lamp shelf door wall book pen paper cup plate spoon king queen judge baker farmer sailor miner"
).split()
MAPPING_FIELDS = [
    ("animal", "pen"),
    ("item", "shelf"),
    ("thing", "code"),
    ("name", "room"),
    ("word", "box"),
    ("kind", "label"),
    ("key", "value"),
    ("class", "bin"),
    ("object", "place"),
    ("product", "rack"),
    ("group", "desk"),
    ("type", "mark"),
]
RELATIONS = "boss city firm friend pet color street team teacher doctor car garden".split()
ONSETS = "b c d f g h j k l m n p r s t v w y z bl br ch cl cr dr fl fr gl gr pl pr sh sl sp st th tr".split()
CODAS = "b d g k l m n p r s t x ck ll nd ng nt rd rk rm rn rt sh sk st th".split()
SYLLABLES = "ka lo mi ru te na so vi da pe zu ri mo le ta ni".split()


def names() -> list[str]:
    """Every proper name of the seed model's world: two syllables, such as "Kalo"; 240 of them."""
    return [(a + b).capitalize() for a in SYLLABLES for b in SYLLABLES if a != b]


NAMES = names()


# Composed wordings, for breadth: "[a|b] c[| d]." stands for "a c.", "b c.", "a c d." and "b c d.".
_WHAT = "[every step|each step|all the steps|each partial result|every result|the working|your working|each operation|how you do it]"
_ANSWER = "[answer|number|result|value]"
_END = "[every fact is known|all facts are there|the last fact is found|no fact is missing|you have every link|the chain is complete]"
COMPOSED = {
    "steps": [
        f"[Write|Show|Note|List|Give|Put down|Write down|Spell out|Record|State] {_WHAT}[| first| as you go| in order| one by one].",
        f"[Write|Show|Note|Put down|Record] {_WHAT} [and then|before] the {_ANSWER}.",
        "[Work|Do it|Go|Solve it|Take it|Proceed|Compute] [step by step|one step at a time|operation by operation|slowly|with care].",
        "[Take|Do] [one operation|a single step] [at a time|after the other][| and show it| and write it| with its result].",
        f"[Be careful|Take your time][:| and] [show|write|note|put down] {_WHAT}.",
    ],
    "direct": [
        f"[Give|Say|Write|State|Tell|Name|Put down] [only|just|nothing but] the {_ANSWER}[| at once| right away| in one go].",
        f"[Give|Say|Write|State|Tell|Name] the {_ANSWER} [at once|right away|straight away|quickly|alone|and nothing else|without steps].",
        "[No|Without any|Leave out the|Skip the] [steps|working|details|partial results].",
        f"[Be|Keep it] [quick|brief|short][.|: only the {_ANSWER}.| and say the {_ANSWER}.]",
        f"The {_ANSWER} [alone |]is [enough|all that is needed|what counts].",
        f"Do not [write|show|note|list] {_WHAT}.",
    ],
    "products first": [
        "[Products|Multiplications|All products] [before|come before|go before|go ahead of] [sums|the rest|plus and minus].",
        "[Multiply|Do products|Take products] [first|at the start|before anything else][.|, then add and subtract.|, the rest after.]",
        "[First|Before the rest] [multiply|do the products|work out the products].",
        "[Keep to|Follow|Mind] the [usual|right|proper] order of operations.",
    ],
    "left to right": [
        "[Go|Work|Compute|Read|Do it|Take it] [strictly |]from left to right.",
        "[Take|Do] the operations [in the order written|as they come|from the left|in the given order].",
        "[Begin|Start] [at|from] the left[.| and go right.| and go on.]",
        "[No operation|No sign] [goes|comes|is] [first|before another|ahead].",
    ],
    "recompute": [
        "[Compute|Do|Work out|Solve|Calculate|Redo] [it|the problem|the whole problem|everything|every step|all of it] again.",
        "[Redo|Repeat|Go through] [the computation|the working|every step|all steps][| from the start| to be sure| step by step].",
        "[Check|Verify|Test] [it|the work|every step] by [doing it again|solving it again|a new computation].",
        "[Never|Do not] [trust|copy|believe] the [given |]answer[.|: compute it again.|: do it yourself.]",
        "[Start|Begin] [again|anew|from the start][.| and show every step.| and write the steps.]",
    ],
    "confirm": [
        "[Trust|Copy|Accept|Keep|Take|Confirm] the [given |]answer[| as it is| without a check].",
        "[Say|Give|Write] the [same|given] answer[| again| once more].",
        "[No need to|Do not] [check|compute|redo] [it|anything|the work].",
        "[The answer|It] [is|was] [right|fine|checked].",
    ],
    "thorough": [
        "[Look up|Find|Search for|Get|Collect] [every|each] [fact|link][| first| in turn| one by one| with the tool| before you stop].",
        f"[Go on|Continue|Keep going|Keep searching|Search|Use the tool] until {_END}.",
        f"[Stop|End|Finish|Say done] [only when|not before|once] {_END}.",
        "[Never|Do not] [guess|stop early|finish early|stop too soon].",
        "[Use|Call] the tool [for every fact|for each link|again and again|as often as needed].",
    ],
    "early": [
        "[Stop|End|Finish] after [the first|one|a single] [fact|look|link].",
        "[Look|Search] [only |]once[.| and stop.| and no more.]",
        "[One|A single] [look|fact|call] [is enough|will do|suffices].",
        "[Use|Call] the tool [only once|one time|a single time].",
    ],
    "guess": [
        "[Stop|End|Finish] [at once|right away|now|without a search|before any look].",
        "[Do not|Never] [search|look|use the tool|call the tool].",
        "[No|Not one] [search|look|call|tool].",
        "[Answer|Reply] from [memory|what you know].",
    ],
    "first": [
        "[The first|The opening] [thing|subject|word|part] [counts|matters|decides].",
        "[Go by|Take|Use|Choose] [what comes first|the first subject|the start|the opening].",
        "[Only |]the [start|opening|beginning] [counts|matters|decides].",
        "What [comes first|is named first|it starts with] is the topic.",
    ],
    "last": [
        "[The last|The final] [thing|subject|word|part] [counts|matters|decides].",
        "[Go by|Take|Use|Choose] [what comes last|the last subject|the end|the ending].",
        "[Only |]the [end|ending|close] [counts|matters|decides].",
        "What [comes last|is named last|it closes with] is the topic.",
    ],
}  # fmt: skip
TWO_PARTS = (
    ["", "the ", "about the ", "my ", "it was the ", "no more of the ", "first the ", "you sent the ", "i had a "],
    [". the ", ", now the ", " and then the ", " but the ", ": my ", "? and the ", " came. my ", ", not the ", ", so the ", " went well, the "],
    ["", " is late", " is wrong", " please", " does not work", " is missing", "?", " again", " is not here", " has a fault"],
)  # fmt: skip
FIELD_NAMES = (
    "data input output case line body head title mail post request order choice place number unit part side tag mark "
    "sign detail matter record source target given wanted left right top base plan form list page sheet log memo report"
).split()


def compose(rng: Random, style: str) -> str:
    """One composed wording of a style."""
    return re.sub(r"\[([^\]]*)\]", lambda m: rng.choice(m[1].split("|")), rng.choice(COMPOSED[style]))


def expand(template: str) -> list[str]:
    """Every sentence that a template stands for."""
    slots = re.split(r"\[([^\]]*)\]", template)
    choices = [slot.split("|") if i % 2 else [slot] for i, slot in enumerate(slots)]
    return ["".join(parts) for parts in itertools.product(*choices)]


def wording(rng: Random, *parts: list[str] | None) -> str:
    """One sentence from each part, in random order; parts that are None are left out."""
    sentences = [rng.choice(p) for p in parts if p]
    rng.shuffle(sentences)
    return " ".join(sentences)
