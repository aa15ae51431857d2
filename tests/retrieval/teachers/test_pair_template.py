"""What stands around a teacher's pairs, found in files: templates, prompts, instructions, and what is refused of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.model_files import change_json, checkpoint, write_json
from support.rerankers import GEMMA_ROLES, ROLES, save_sentence_transformers

from data.config.settings import Teacher
from data.digests import DigestCache
from data.errors import UserError
from retrieval.model_files.checks import check_training_start
from retrieval.teachers.backends import resolve_teacher
from retrieval.teachers.cross_encoder import INPUT_TEMPLATE, CrossEncoderSpec
from retrieval.teachers.pair_template import KNOWN, PairText, find_pair_text

SELECTED = """<Query>: {{ messages | selectattr("role", "eq", "query") | map(attribute="content") | first }}
<Document>: {{ messages | selectattr("role", "eq", "document") | map(attribute="content") | first }}"""
CHAT = """{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content }}{%- endfor %}{# answer the query from the document #}"""
PLAIN = "{{ instruction | default('Find') }}: {{ query }} | {{ document }}"


@pytest.fixture
def folder(models: Any, tmp_path: Path) -> Path:
    return checkpoint(tmp_path / "model", models.teacher)


def found(folder: Path, **given: Any) -> PairText | None:
    return find_pair_text(folder, Teacher(model=str(folder), **given))


def written(folder: Path, template: str) -> str:
    path = folder.parent / "own.jinja"
    path.write_text(template)
    return str(path)


@pytest.mark.parametrize("place", ["jinja", "text", "list"])
def test_the_folder_s_template_is_read_where_transformers_reads_it(folder: Path, place: str) -> None:
    """Prevents: rerankers scored without the text around the pair that they were trained on (rho 0.18 to their own scores)."""
    if place == "jinja":
        (folder / "chat_template.jinja").write_text(SELECTED)
        change_json(folder / "tokenizer_config.json", chat_template=CHAT)  # the file wins
    elif place == "text":
        change_json(folder / "tokenizer_config.json", chat_template=SELECTED)
    else:
        named = [{"name": "chat", "template": CHAT}, {"name": "default", "template": SELECTED}]
        change_json(folder / "tokenizer_config.json", chat_template=named)
    assert found(folder) == PairText("<Query>: ", "\n<Document>: ", "")


@pytest.mark.parametrize("place", ["list", "additional", "chat_template.json", "processor_config.json"])
def test_a_template_that_is_not_the_default_one_is_refused(folder: Path, place: str) -> None:
    """Prevents: a folder's template of pairs passed over for its template of chats."""
    if place == "list":
        named = [{"name": "default", "template": CHAT}, {"name": "rerank", "template": SELECTED}]
        change_json(folder / "tokenizer_config.json", chat_template=named)
    elif place == "additional":
        (folder / "additional_chat_templates").mkdir()
        (folder / "additional_chat_templates" / "rerank.jinja").write_text(SELECTED)
    else:
        write_json(folder / place, {"chat_template": SELECTED})
    with pytest.raises(UserError, match=r"query and document that is not its default one \(.*give that as teacher\.template"):
        found(folder)


def test_a_template_for_chats_is_none_of_pairs(folder: Path) -> None:
    """Prevents: every cross-encoder made of a chat model refused; it was trained on pairs as its tokenizer joins them."""
    change_json(folder / "tokenizer_config.json", chat_template=CHAT)
    (folder / "chat_template.jinja").write_text(CHAT)
    assert found(folder) is None


def test_what_the_folder_says_of_its_messages_is_held(folder: Path) -> None:
    """Prevents: another generation prompt, another form of content, another template, than the folder's cross-encoder is given."""
    body = "{{ messages[0].content }}|{{ messages[1].content }}{% if add_generation_prompt %}>>{% endif %}{{ ending }}"
    save_sentence_transformers(folder, body, add_generation_prompt=True, ending="!", max_length=9)
    assert found(folder) == PairText("", "|", ">>!")
    save_sentence_transformers(folder, body.replace(".content", ".content[0].text"), form="structured")
    assert found(folder) == PairText("", "|", "")
    change_json(folder / "sentence_bert_config.json", modality_config={"text": {}})  # pairs do not go through it
    assert found(folder) is None
    save_sentence_transformers(folder, CHAT)  # passes roles on: the folder says that pairs go through it
    assert found(folder) == PairText("<|im_start|>query\n", "<|im_start|>document\n", "")
    save_sentence_transformers(folder, CHAT, chat_template="rerank")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rerank.jinja").write_text(SELECTED)
    assert found(folder) == PairText("<Query>: ", "\n<Document>: ", "")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"restore_suffix": False}, r"chat_template\.restore_suffix=false"),
        ({"continue_final_message": True}, r"chat_template\.continue_final_message=true"),
        ({"chat_template": "rerank"}, r"modality_config=.*the chat template 'rerank', but the folder has none of that name"),
    ],
)
def test_what_is_not_supported_of_it_is_refused(folder: Path, given: dict[str, Any], words: str) -> None:
    """Prevents: long pairs that end elsewhere than the folder says, or another template than it names."""
    save_sentence_transformers(folder, SELECTED, **given)
    with pytest.raises(UserError, match=words):
        found(folder)


def test_the_default_prompt_is_the_instruction(folder: Path) -> None:
    """Prevents: a prompt that the folder names lost, or one that the user gives."""
    save_sentence_transformers(folder, ROLES, prompt="Find insurance")
    text = found(folder)
    assert text is not None and "<Instruct>: Find insurance\n<Query>: " in text.before
    given = found(folder, instruction="Find laws")
    assert given is not None and "<Instruct>: Find laws\n<Query>: " in given.before
    none = found(folder, instruction="")
    assert none is not None and "<Instruct>: Given a web search query, retrieve" in none.before


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"prompts": {"web": "Find: "}, "default_prompt_name": "web"}, PairText("Find: ", "", "", pair=True)),
        ({"prompts": {"query": "", "document": ""}, "default_prompt_name": None}, None),
        ({"prompts": {"web": "Find: "}}, None),
        ({"prompts": {"web": ""}, "default_prompt_name": "web"}, None),
        ({"prompts": None}, None),
        ({}, None),
    ],
)
def test_a_prompt_without_a_template(folder: Path, settings: dict[str, Any], text: PairText | None) -> None:
    """Prevents: a prompt that sentence-transformers puts before every query, left out without a word (three standard deviations off)."""
    write_json(folder / "config_sentence_transformers.json", settings)
    assert found(folder) == text


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"prompts": {"query": "query: ", "document": ""}},
            r'prompts\.query="query: ".*names no default_prompt_name.*teacher\.instruction=',
        ),
        ({"prompts": {"passage": "passage: "}}, r'prompts\.passage="passage: "'),
        (
            {"prompts": {"web": "Find"}, "default_prompt_name": "mail"},
            r'default_prompt_name="mail", but has no prompt \'mail\'; it has web',
        ),
    ],
)
def test_prompts_that_leave_it_open_are_refused(folder: Path, settings: dict[str, Any], words: str) -> None:
    """Prevents: pairs read without a prompt that they may have been trained with, or with one of another side."""
    write_json(folder / "config_sentence_transformers.json", settings)
    with pytest.raises(UserError, match=words):
        found(folder)


def test_an_instruction_decides_between_prompts(folder: Path) -> None:
    """Prevents: a remedy that the message names and that does not help."""
    write_json(folder / "config_sentence_transformers.json", {"prompts": {"query": "query: "}})
    assert found(folder, instruction="query: ") == PairText("query: ", "", "", pair=True)
    assert found(folder, instruction="") is None


def test_a_file_of_one_s_own(folder: Path) -> None:
    """Prevents: a template that replaces another's only in part, and texts that are rendered as if they were Jinja."""
    (folder / "chat_template.jinja").write_text(SELECTED)
    path = written(folder, "{{ cls_token }}Q {{ query }}\nD {{ document }}\n\n")
    assert found(folder, template=path) == PairText("[CLS]Q ", "\nD ", "\n")
    assert found(folder, template=written(folder, "{{ document }} -> {{ query }}.")) == PairText("", " -> ", ".", document_first=True)
    assert found(folder, template=written(folder, PLAIN), instruction="Seek") == PairText("Seek: ", " | ", "")
    assert found(folder, template=written(folder, PLAIN)) == PairText("Find: ", " | ", "")
    change_json(folder / "tokenizer_config.json", bos_token="<b>")
    text = found(folder, template=written(folder, GEMMA_ROLES))
    assert text is not None and text.before == "<b>A: "
    assert text.of("{{ x }}", "{% y %}") == "<b>A: {{ x }}\nB: {% y %}" + text.after


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ query }}", "drops the document"),
        ("{{ query }} {{ query }} {{ document }}", "has 2 times the query"),
        ("{{ query | trim }} {{ document }}", "changes its texts"),
        ("{{ query }} {{ document[:30] }}", "changes its texts"),
        ("{{ query }}{% if document %}: {{ document }}{% endif %}", "changes its texts"),
        ("{{ query }} {{ document | e }}", "changes its texts"),
        (
            "{{ query }} {{ passage }} {{ document }}",
            r"names passage, which it is not given; that is messages \(roles system, query, document",
        ),
        ("{{ eos_token }}{{ query }} {{ document }}", "names eos_token"),
        ("{{ query }} {{ document", "TemplateSyntaxError"),
        ("{{ raise_exception('only chats') }}{{ query }}{{ document }}", "TemplateError: only chats"),
        ("{{ query.__class__.__mro__ }}{{ document }}", "SecurityError"),
        ("{{ strftime_now('%Y') }}{{ query }}{{ document }}", "today's date"),
        (CHAT.replace("m.content", "'x'"), "drops the query"),
    ],
)
def test_a_template_that_cannot_be_held_is_refused(folder: Path, template: str, words: str) -> None:
    """Prevents: pairs put together from parts of a template that does more than put two texts in, and names of variables mistaken."""
    with pytest.raises(UserError, match=rf"teacher\.template=.*own\.jinja: .*{words}"):
        found(folder, template=written(folder, template))


@pytest.mark.parametrize("name", KNOWN)
def test_the_named_templates_have_both_texts(folder: Path, name: str) -> None:
    """Prevents: a name that cannot be used."""
    change_json(folder / "tokenizer_config.json", bos_token="<b>")
    text = found(folder, template=name)
    assert text is not None and text.of("q", "d").count("q") and not text.document_first
    if name == "qwen3-reranker":
        (folder / "chat_template.jinja").write_text(ROLES)
        assert text == found(folder) and text.after.endswith("</think>\n\n")
    if name == "mxbai-rerank-v2":
        given = found(folder, template=name, instruction="Rank laws")
        assert text.before.endswith("<|im_start|>user\nquery: ") and text.after.endswith("Relevance:<|im_end|>\n<|im_start|>assistant\n")
        assert given is not None and given.before.endswith("<|im_start|>user\ninstruction: Rank laws\nquery: ")
    if name in ("zerank-2", "rankllama", "nemotron-rerank"):
        with pytest.raises(UserError, match=r"teacher\.instruction is given, but .* no place for"):
            found(folder, template=name, instruction="Rank")


def test_settings_that_name_nothing_are_refused(folder: Path, tmp_path: Path) -> None:
    """Prevents: a mistyped name or file, or an instruction, that is passed over."""
    with pytest.raises(UserError, match=r"teacher\.template=qwen3: neither a file nor one of qwen3-reranker, "):
        found(folder, template="qwen3")
    with pytest.raises(UserError, match=r"teacher\.instruction is given, but the pairs of .* have no place for one"):
        found(folder, instruction="Find")
    (tmp_path / "damaged.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"damaged\.jinja cannot be read as a template"):
        found(folder, template=str(tmp_path / "damaged.jinja"))
    for name, value in (("template", "qwen3-reranker"), ("instruction", "Find")):
        with pytest.raises(
            UserError, match=rf"teacher\.{name} is given, which teacher\.backend=support\.plugin_teachers:\w+ does not read"
        ):
            resolve_teacher(Teacher(model="x", backend="support.plugin_teachers:Overlap", **{name: value}), device="cpu")


def test_the_namespace_holds_all_of_the_template(folder: Path, tmp_path: Path) -> None:
    """Prevents: logits of one template taken for those of another, and logits of plain pairs, which are paid for, made again."""

    def key(**given: Any) -> Any:
        spec = resolve_teacher(Teacher(model=str(folder), precision="fp32", max_tokens=64, **given), device="cpu")
        assert isinstance(spec, CrossEncoderSpec)
        return spec.key(DigestCache(tmp_path / "digests.json"))

    plain = key()
    assert plain["template"] == INPUT_TEMPLATE
    variants = [
        PLAIN, "{{ query }} | {{ document }}", "{{ document }} | {{ query }}", "{{ query }} | {{ document }}.",
        " {{ query }} | {{ document }}",
    ]  # fmt: skip
    keys = [key(template=written(folder, variant)) for variant in variants] + [key(template=written(folder, PLAIN), instruction="Seek")]
    assert len({str(each["template"]) for each in [plain, *keys]}) == 7
    assert all({**each, "template": INPUT_TEMPLATE} == plain for each in keys)
    write_json(folder / "config_sentence_transformers.json", {"prompts": {"web": "Find: "}, "default_prompt_name": "web"})
    assert key()["template"] == {"around": ["Find: ", "", ""], "cut": "pair/longest_first"}


def test_a_cross_encoder_is_trained_on_plain_pairs(folder: Path) -> None:
    """Prevents: a training that starts from a reranker with a template, and unlearns it without a word."""
    check_training_start(folder, option="teacher.model")
    write_json(folder / "config_sentence_transformers.json", {"prompts": {"query": "query: "}})
    with pytest.raises(UserError, match=r"has a prompt 'query' for its pairs, which train\.task=cross_encoder does not read"):
        check_training_start(folder, option="teacher.model")
    (folder / "chat_template.jinja").write_text(SELECTED)
    with pytest.raises(UserError, match=r"has a template for query and document \(chat_template\.jinja\)"):
        check_training_start(folder, option="teacher.model")
