"""The seed model's tokenizer: a byte-level BPE with single digits, trained on rendered conversations.

The fixed phrases of DSPy's ChatAdapter are added tokens, which cuts a zero-shot prompt with its answer from about
230 tokens to about 70; they are ordinary tokens, so that decoding gives them back exactly.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

PAD, END = "<|pad|>", "<|end|>"
SYSTEM, USER, ASSISTANT = "<|system|>", "<|user|>", "<|assistant|>"
MARKS = (PAD, END, SYSTEM, USER, ASSISTANT)  # the first ids
PHRASES = (
    "Your input fields are:\n",
    "\nYour output fields are:\n",
    "\nAll interactions will be structured in the following way, with the appropriate values filled in.\n\n",
    "[[ ## ",
    " ## ]]\n",
    "\n\n",
    "`: ",
    "` (str):",
    "` (int):",
    "` (Literal[",
    "[[ ## completed ## ]]\n",
    "        # note: the value you produce must be a single int value",
    "        # note: the value you produce must exactly match (no extra characters) one of:",
    "In adhering to this structure, your objective is: \n        ",
    "Respond with the corresponding output fields, starting with the field `[[ ## ",
    " ## ]]`, then `[[ ## ",
    " ## ]]` (must be formatted as a valid Python int), then `[[ ## ",
    " ## ]]`, and then ending with the marker for `[[ ## completed ## ]]`.",
    " ## ]]` (must be formatted as a valid Python int), and then ending with the marker for `[[ ## completed ## ]]`.",
    " ## ]]` (must be formatted as a valid Python Literal[",
    "), and then ending with the marker for `[[ ## completed ## ]]`.",
)
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A tokenizer of ``vocabulary`` entries in all, trained on ``texts``."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("[A-Z](?=[0-9])"), "isolated"),  # K3 is two tokens wherever it stands
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(PHRASES),
        special_tokens=list(MARKS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(map(_without_phrases, texts), trainer)
    bpe.add_tokens([AddedToken(p, normalized=False, special=False) for p in PHRASES])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token=PAD, eos_token=END, clean_up_tokenization_spaces=False
    )
    tokenizer.padding_side = "left"
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def _without_phrases(text: str) -> str:
    for phrase in sorted(PHRASES, key=len, reverse=True):
        text = text.replace(phrase, "\n")
    return text
