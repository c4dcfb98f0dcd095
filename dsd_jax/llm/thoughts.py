"""Cuts what a model wrote around its answer: thoughts, and the marks of chat templates.

A server removes both when it knows the model. One that does not know it passes them on in the
spelling of the model, of which there are many.
"""

import re

__all__ = ["without_thoughts"]

_NAMES = (
    "think|thinking|thoughts?|reasoning|reflection|analysis|scratchpad|antthinking|inner_monologue"
)
_OPEN, _CLOSE = r"(?:[<◁＜]|&lt;)\|?", r"\|?(?:[>▷＞]|&gt;)"
_SPACE = r"(?:\w{1,20}:)?"  # a prefix, as in <seed:think>
# Every spelling opens or closes thoughts. Channels are those of gpt-oss, where `final` is the
# answer and every other one thoughts, and of Gemma; the pairs in capitals are Cohere's.
_MARK = re.compile(
    rf"(?P<open>{_OPEN}{_SPACE}(?:{_NAMES})(?:_start)?(?:\s[^<>]{{0,200}})?{_CLOSE}"
    r"|\[think\]|<\|begin_of_thought\|>|<\|start_thinking\|>|<unused94>"
    r"|<\|channel\|>(?!final)\w{1,20}[^<]{0,80}<\|message\|>|<\|channel>)"
    rf"|{_OPEN}(?:/{_SPACE}(?:{_NAMES})|(?:{_NAMES})_end)\s{{0,9}}{_CLOSE}"
    r"|\[/think\]|<\|end_of_thought\|>|<\|end_thinking\|>|<unused95>"
    r"|<\|channel\|>final[^<]{0,80}<\|message\|>|<channel\|>",
    re.IGNORECASE,
)
# Words that stand for the marks where a server has dropped these: of gpt-oss, and Granite's own.
_SPOKEN = (
    ("analysis", "assistantfinal"),
    ("Here is my thought process:", "Here is my response:"),
)
# Heads of turns and tokens such as <|im_end|>, which belong to the template.
_TEMPLATE = re.compile(
    r"<\|(?:im_start|start|start_header_id)\|>\s{0,9}assistant|<start_of_turn>model"
    r"|<\|/?\w{1,40}\|>|</?s>|<(?:end_of_turn|eos|bos|pad)>"
)
_ANSWER = re.compile(
    r"\s*(?:<(answer|response|final_answer|output)>(?P<tag>.*)</\1>"
    r"|```[ \t]*\w{0,20}\n(?P<fence>(?:(?!```).)*)```)\s*",
    re.DOTALL | re.IGNORECASE,
)
_INVISIBLE = "\ufeff\u200b\u2060"


def without_thoughts(text: str) -> str:
    """The answer alone; a text with nothing around it is returned as it is.

    A closing mark without an opening one ends thoughts that began with the text, since some
    templates write the opening mark themselves. An opening mark without a closing one starts
    thoughts that never ended. If an answer stands before those, nothing is left: the mark may
    belong to it, and nobody can tell.
    """
    left = _cut(text)
    left = _TEMPLATE.sub("", left).strip() if _TEMPLATE.search(left) else left
    if found := _ANSWER.fullmatch(left):
        left = (found["tag"] if found["fence"] is None else found["fence"]).strip()
    return left.strip(_INVISIBLE)


def _cut(text: str) -> str:
    for begin, end in _SPOKEN:
        if text.lstrip().startswith(begin) and end in text:
            return text.partition(end)[2].strip()
    kept: list[str] = []
    position, thinking = 0, False
    for mark in _MARK.finditer(text):
        if mark["open"]:
            if not thinking:
                kept.append(text[position : mark.start()])
            thinking = True
        else:
            if not thinking:
                kept.clear()
            position, thinking = mark.end(), False
    if not position and not thinking:
        return text
    return "" if thinking else "".join([*kept, text[position:]]).strip()
