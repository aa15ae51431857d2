"""The text around a query and a document that a teacher was trained on: a chat template, a prompt, an instruction.

    teacher.template      a name of `KNOWN`, or a Jinja file
    the model's folder    its chat template of pairs, else its default prompt (`retrieval/model_files/chat_templates.py`)

A template is rendered here, and never again: it must put both texts in as they are, so that what stands around them is all there is to it.
A teacher without any of these reads the pair as its tokenizer joins it.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data.config import settings
from data.errors import UserError, first_line
from retrieval.model_files.chat_templates import ChatTemplate, chat_template, chat_template_of, default_prompt, pair_prompts, read_template
from retrieval.model_files.files import read_json, transformer_folder

_SPECIAL = ("bos_token", "eos_token", "sep_token", "cls_token", "pad_token", "unk_token", "mask_token")
# What a template may name besides them, where it reads no messages.
_VARIABLES = ("query", "document", "instruction", "add_generation_prompt", "tools", "documents")
_MARKS = ("qvzqueryqvz", "dvzdocumentdvz")  # that no template holds
_TRIED = ("", "a", " b  c ", "\nd\n", "E. 1,5%?", "<f>&'\"{{ g }}{% h %}", "ï 漢字", "[]", "null", "0", "word " * 40)


@dataclass(frozen=True)
class PairText:
    """A pair as one text: `before`, the query, `between`, the document, `after`. Special tokens are written out in the parts.

    With `pair` these are two texts that the tokenizer joins with its own special tokens: `before` + query, `between` + document + `after`.
    """

    before: str
    between: str
    after: str
    document_first: bool = False  # the two change places
    pair: bool = False

    def of(self, query: str, document: str) -> str:
        """The whole text."""
        return "".join(self.key_halves(query, document))

    def key_halves(self, query: str, document: str) -> tuple[str, str]:
        """What stands before the second of the two, and that with what follows."""
        first, second = (document, query) if self.document_first else (query, document)
        return f"{self.before}{first}{self.between}", f"{second}{self.after}"

    def key(self) -> dict[str, Any]:
        """What the logit namespace holds of it: all of the text, and which part of a long pair is cut."""
        order = {"document_first": True} if self.document_first else {}
        return {"around": [self.before, self.between, self.after], **order, "cut": "pair/longest_first" if self.pair else "text/document"}


# As the models' cards and own code have them. A blank line at an end is one line break: Jinja takes the last one away.
_QWEN3_RERANKER = """<|im_start|>system
Judge whether the Document meets the requirements based on the Query and the Instruct provided. \
Note that the answer can only be "yes" or "no".<|im_end|>
<|im_start|>user
<Instruct>: {{ instruction | default("Given a web search query, retrieve relevant passages that answer the query") }}
<Query>: {{ query }}
<Document>: {{ document }}<|im_end|>
<|im_start|>assistant
<think>

</think>


"""
_MXBAI_RERANK_V2 = """<|im_start|>system
You are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>
<|im_start|>user
{% if instruction %}
instruction: {{ instruction }}
{% endif %}
query: {{ query }}
document: {{ document }}
You are a search relevance expert who evaluates how well documents match search queries. For each query-document pair, \
carefully analyze the semantic relationship between them, then provide your binary relevance judgment \
(0 for not relevant, 1 for relevant).
Relevance:<|im_end|>
<|im_start|>assistant

"""
_BGE_RERANKER_V2_GEMMA = """{{ bos_token }}A: {{ query }}
B: {{ document }}
{{ instruction | default("Given a query A and a passage B, determine whether the passage contains an answer to the query by \
providing a prediction of either 'Yes' or 'No'.") }}"""
_ZERANK_2 = """<|im_start|>system
{{ query }}<|im_end|>
<|im_start|>user
{{ document }}<|im_end|>
<|im_start|>assistant

"""
KNOWN: dict[str, str | PairText] = {
    "qwen3-reranker": _QWEN3_RERANKER,
    "mxbai-rerank-v2": _MXBAI_RERANK_V2,
    "bge-reranker-v2-gemma": _BGE_RERANKER_V2_GEMMA,
    "zerank-2": _ZERANK_2,
    "nemotron-rerank": "{{ bos_token }}question:{{ query }} \n \n passage:{{ document }}",
    "rankllama": PairText("query: ", "document: ", "", pair=True),
}


def find_pair_text(folder: Path, teacher: settings.Teacher, *, option: str = "teacher.model") -> PairText | None:
    """What stands around a teacher's pairs; None where the tokenizer joins them and nothing is added. Reads files, no model.

    Raises UserError: no such template, one that changes its texts or drops one of them, an instruction that nothing takes, and what
    `chat_template` and `default_prompt` find in the folder.
    """
    instruction = teacher.instruction if teacher.instruction is not None else default_prompt(folder, option=option)
    found = _template(folder, teacher, option=option)
    if isinstance(found, ChatTemplate):
        return _rendered(found, teacher, instruction or "", weights=transformer_folder(folder))
    if teacher.instruction and not (found is None and pair_prompts(folder, option=option)):
        raise UserError(
            f"teacher.instruction is given, but the pairs of {teacher.model} have no place for one; leave it out, or give a "
            "teacher.template that has"
        )
    if found is not None:
        return found
    return PairText(instruction, "", "", pair=True) if instruction else None


def _rendered(template: ChatTemplate, teacher: settings.Teacher, instruction: str, *, weights: Path) -> PairText:
    text = _parts(template, instruction, weights=weights)
    if teacher.instruction and text == _parts(template, f"{instruction} x", weights=weights):
        raise UserError(f"teacher.instruction is given, but the template ({template.place}) has no place for it; leave it out")
    return text


def refuse_pair_text(folder: Path, *, option: str) -> None:
    """Raises UserError where something stands around a folder's pairs: a cross-encoder is trained on them as its tokenizer joins them."""
    template = chat_template(folder, option=option)
    if template is not None or (prompts := pair_prompts(folder, option=option)):
        what = f"template for query and document ({template.place})" if template else f"prompt {next(iter(prompts))!r} for its pairs"
        raise UserError(
            f"{option}: {folder} has a {what}, which train.task=cross_encoder does not read; start from another model, or take it out of a "
            "copy of the folder"
        )


def _template(folder: Path, teacher: settings.Teacher, *, option: str) -> ChatTemplate | PairText | None:
    if teacher.template is None:
        return chat_template(folder, option=option)
    known = KNOWN.get(teacher.template)
    path = Path(teacher.template).expanduser()
    if isinstance(known, PairText):
        return known
    if known is None and not path.is_file():
        raise UserError(f"teacher.template={teacher.template}: neither a file nor one of {', '.join(KNOWN)}")
    text = read_template(path) if known is None else known
    return chat_template_of(text, f"teacher.template={teacher.template}", weights=transformer_folder(folder))


def _parts(template: ChatTemplate, instruction: str, *, weights: Path) -> PairText:
    """What a template puts around its texts. Raises UserError where that depends on the texts."""
    _check_variables(template, weights)
    whole = _render(template, *_MARKS, instruction)
    for role, mark in zip(("query", "document"), _MARKS, strict=True):
        if whole.count(mark) != 1:
            times = "drops the" if mark not in whole else f"has {whole.count(mark)} times the"
            raise UserError(
                f"{template.place}: the template {times} {role}; one is needed that has query and document once each, as they are"
            )
    first, second = sorted(_MARKS, key=whole.index)
    before, _, rest = whole.partition(first)
    between, _, after = rest.partition(second)
    text = PairText(before, between, after, document_first=first == _MARKS[1])
    for query, document in _tried_pairs():
        if _render(template, query, document, instruction) != text.of(query, document):
            changed = replace(text, before="…", after="…").of(query[:20], document[:20])
            raise UserError(
                f"{template.place}: the template changes its texts, or what stands around them, by what they are (as for "
                f"{changed!r}); take out what strips, cuts, escapes or compares them"
            )
    return text


def _tried_pairs() -> Iterator[tuple[str, str]]:
    for place, query in enumerate(_TRIED):
        yield query, _TRIED[-1 - place]
        yield query, query


def _check_variables(template: ChatTemplate, weights: Path) -> None:
    """Raises UserError for a variable that nothing gives: Jinja puts nothing in its place."""
    environment = _environment()
    try:
        from jinja2 import meta

        named = meta.find_undeclared_variables(environment.parse(template.text)) - environment.globals.keys()
    except Exception as error:  # a fault of the template, of whatever kind
        raise _broken(template, error) from error
    config = read_json(weights / "tokenizer_config.json")
    unknown = {name for name in named if name in _SPECIAL and name not in template.variables and name not in config}
    if "messages" not in named:
        unknown |= named - {*_VARIABLES, *_SPECIAL, *template.variables}
    if unknown:
        raise UserError(
            f"{template.place}: the template names {', '.join(sorted(unknown))}, which it is not given; that is messages (roles "
            "system, query, document), query, document, instruction, and the special tokens of tokenizer_config.json"
        )


def _render(template: ChatTemplate, query: str, document: str, instruction: str) -> str:
    roles = [("system", instruction)] * bool(instruction) + [("query", query), ("document", document)]
    messages = [
        {"role": role, "content": [{"type": "text", "text": content}] if template.structured else content} for role, content in roles
    ]
    given = {"messages": messages, "query": query, "document": document, "add_generation_prompt": False, "tools": None, "documents": None}
    try:
        own = {"instruction": instruction} if instruction else {}
        return str(_compiled(template.text).render({**given, **own, **template.variables}))
    except Exception as error:
        raise _broken(template, error) from error


@functools.lru_cache(maxsize=8)
def _compiled(text: str) -> Any:
    return _environment().from_string(text)


def _broken(template: ChatTemplate, error: Exception) -> UserError:
    return UserError(f"{template.place}: no template of query and document: {type(error).__name__}: {first_line(error)}")


def _environment() -> Any:
    """Jinja as transformers sets it up for chat templates, in its sandbox: a template is other people's code."""
    from jinja2 import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> str:
        raise TemplateError(message)

    def of_today(form: str) -> str:
        raise TemplateError("it writes today's date, so its logits would differ from day to day")

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = lambda value, **how: json.dumps(value, **{"ensure_ascii": False, **how})
    environment.globals |= {"raise_exception": refuse, "strftime_now": of_today}
    return environment
