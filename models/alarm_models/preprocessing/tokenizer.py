"""The tokenizer of a checkpoint: token ids, special tokens, truncation and chat templates."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import count, pairwise
from pathlib import Path
from typing import Any, SupportsIndex

from tokenizers import Encoding
from tokenizers import Tokenizer as FastTokenizer
from transformers import AutoTokenizer

from alarm_models.cancellation import check_cancelled
from alarm_models.errors import CheckpointError, RecipeError, SampleError, quoted
from alarm_models.preprocessing.chat_layout import (
    common_ends,
    skeleton,
)
from alarm_models.preprocessing.chat_templates import (
    ChatFormat,
    render_chat_template,
    require_jinja,
)
from alarm_models.preprocessing.chunked_tokenization import can_cut, cut
from alarm_models.preprocessing.find_thoughts import DEFAULT_TAGS, Tags, find_thoughts
from alarm_models.preprocessing.internlm2 import is_internlm2, read_internlm2
from alarm_models.preprocessing.templates import Rendered, TypedSpan
from alarm_models.preprocessing.truncation import TokenIds, Truncation
from alarm_models.types import Message, Span, ToolCall

__all__ = ["Tokenizer"]

#: The tokenizer's own chat template, with no arguments.
_OWN = ChatFormat()

#: Messages of words that no template has.
_PROBE = (Message("user", "quaestio"), Message("assistant", "responsum"))

#: What SentencePiece writes for a space: a vocabulary of a class alone may have it.
_WORD_START = "▁"

#: Roles whose messages hold a plain text in every template.
_PLAIN_ROLES = frozenset({"system", "user", "assistant"})

_WHITE = re.compile(r"\s")

#: Longer texts are tokenized in parts if possible: encodings take some hundred bytes per
#: character.
_MAX_WHOLE = 64 << 10
#: The longest text that is tokenized at once: more would take gigabytes.
_MAX_AT_ONCE = 1 << 20
#: Characters of a part; for pretokenized texts, words that are tokenized at once.
_PART = 32 << 10
_WORDS_AT_ONCE = 32 << 10

#: What a decoder writes for the first tokens of a character, and how many tokens it may have.
_INCOMPLETE = "\ufffd"
_MAX_PARTS = 8
#: Tokens that are decoded before cancellation is checked.
_TOKENS_AT_ONCE = 1024


class Tokenizer:
    """A checkpoint's tokenizer, safe to use from several threads."""

    def __init__(self, folder: Path, *, trust_remote_code: bool = False) -> None:
        # transformers' loader is untyped.
        try:
            loaded: Any = (
                read_internlm2(folder)
                if not trust_remote_code and is_internlm2(folder)
                else AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
            )
        except Exception as error:  # invalid files, or custom code, may raise anything
            raise CheckpointError(_unreadable(folder, error)) from error
        if not loaded.is_fast:
            raise CheckpointError(
                f"{folder}: the tokenizer has no fast form; save it with a tokenizer.json"
            )
        if _has_no_vocabulary(loaded):
            raise CheckpointError(_unreadable(folder, ValueError("it has no vocabulary")))
        self._loaded = loaded
        self._has_types = "token_type_ids" in loaded.model_input_names
        # A copy, so that no other code can enable truncation or padding while it encodes.
        self._fast = FastTokenizer.from_str(loaded.backend_tokenizer.to_str())
        self._fast.no_truncation()
        self._fast.no_padding()
        self._can_cut = can_cut(json.loads(self._fast.to_str()))
        # Encode one letter to find the special tokens around a text.
        probe = self._fast.encode("a")
        inside = [index for index, owner in enumerate(probe.sequence_ids) if owner is not None]
        self._prefix = probe.ids[: inside[0]] if inside else []
        self._suffix = probe.ids[inside[-1] + 1 :] if inside else []
        self._split_bos = self._bos_read_apart()

    @property
    def num_prefix(self) -> int:
        """The number of special tokens before a text."""
        return len(self._prefix)

    @property
    def num_suffix(self) -> int:
        """The number of special tokens after a text."""
        return len(self._suffix)

    @property
    def model_max_length(self) -> int:
        """The tokenizer's own limit; very large if it has none."""
        limit = self._loaded.model_max_length
        is_known = isinstance(limit, int | float) and 0 < limit < 1 << 60
        return int(limit) if is_known else 1 << 60

    @property
    def chat_template(self) -> str | None:
        """The chat template of the checkpoint: the default one if there are several."""
        template = self._loaded.chat_template
        return template.get("default") if isinstance(template, dict) else template

    def require_chat_template(
        self, checkpoint: str, chat: ChatFormat = _OWN, *, asks: bool = False
    ) -> None:
        """Raise unless there is a deterministic chat template that can be used.

        Raises `CheckpointError` for the checkpoint's, `RecipeError` for the recipe's own, which
        must write the completion, or the prompt if the model is asked (``asks``).
        """
        template = chat.template or self.chat_template
        if not template:
            raise CheckpointError(
                f"{checkpoint} brings no chat template; give a text in `template` as its card "
                'writes it, such as "Human: {prompt}\\n\\nAssistant: {completion}" '
                "(`--template` beside `--model`), or `turns` for chats"
            )
        require_jinja(template, None if chat.template else checkpoint)
        if chat.template:
            self._require_shown(chat, _PROBE[0 if asks else 1])

    def _require_shown(self, chat: ChatFormat, message: Message) -> None:
        """Raise `RecipeError` unless a recipe's chat template writes one of two messages."""
        try:
            text = self._apply(_PROBE, chat, False)
        except SampleError as error:
            raise RecipeError(f"chat_template cannot be used: {error}") from error
        if message.content not in text.casefold():
            raise RecipeError(
                f"chat_template does not write the content of the {message.role}'s message: use "
                "`{% for message in messages %}{{ message.content }}{% endfor %}`"
            )

    def bos_left_out(self, chat: ChatFormat = _OWN) -> str | None:
        """Return the BOS that precedes texts if the chat template does not write it."""
        if not self._prefix:
            return None
        messages = [Message("user", "A prompt."), Message("assistant", "A completion.")]
        try:
            text = self._apply(messages, chat, False)
        except SampleError:
            return None
        ids = self._fast.encode(text, add_special_tokens=False).ids
        return None if ids[:1] == self._prefix[:1] else self.text_of(self._prefix[0])

    def separator_id(self, token: str | None) -> int:
        """Return the id of the separator: the given token, else the tokenizer's."""
        name = token or self._loaded.sep_token or self._loaded.eos_token
        token_id = None if name is None else self._fast.token_to_id(name)
        if token_id is None:
            raise CheckpointError(f"the tokenizer has no separator token {name!r}; set `separator`")
        return int(token_id)

    def only_id(self, text: str) -> int:
        """Return the id of a text that is one token; raise `CheckpointError` otherwise."""
        ids = self._fast.encode(text, add_special_tokens=False).ids
        if len(ids) == 1:
            return int(ids[0])
        token_id = self._fast.token_to_id(text)
        if token_id is None:
            tokens = [self._fast.id_to_token(one) for one in ids]
            raise CheckpointError(f"{text!r} is not a single token of this tokenizer, but {tokens}")
        return int(token_id)

    def text_of(self, token_id: int) -> str:
        """Return a token as text, special tokens included."""
        return str(self._fast.decode([token_id], skip_special_tokens=False))

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens, special tokens included."""
        return str(self._fast.decode(list(ids), skip_special_tokens=False))

    def token_texts(self, ids: Sequence[int]) -> list[str]:
        """Return what each token adds to the decoded text, special tokens included.

        The parts of a character that several tokens encode are with the last of them.
        """
        texts: list[str] = []
        known = start = 0
        for end in range(1, len(ids) + 1):
            if end % _TOKENS_AT_ONCE == 0:
                check_cancelled()
            before, text = self.decode(ids[known:start]), self.decode(ids[known:end])
            if text.endswith(_INCOMPLETE) and end < len(ids) and end - start < _MAX_PARTS:
                texts.append("")
                continue
            # Decoders that join words differently may change the text before.
            is_longer = text.startswith(before)
            texts.append(text[len(before) :] if is_longer else self.decode(ids[start:end]))
            known, start = start, end
        return texts

    @property
    def end_id(self) -> int | None:
        """The id of the tokenizer's end of text."""
        end = self._loaded.eos_token
        return None if end is None else self._fast.token_to_id(end)

    @property
    def added_tokens(self) -> tuple[str, ...]:
        """The tokens that are found in any text before it is tokenized, such as special ones."""
        return tuple(str(one) for one in self._fast.get_added_tokens_decoder().values())

    def ids(self, text: str) -> tuple[int, ...]:
        """Return the ids of a text without added special tokens."""
        return tuple(self._fast.encode(text, add_special_tokens=False).ids)

    def encode_alone(self, text: str) -> tuple[tuple[int, ...], tuple[Span, ...]]:
        """Return the ids of a text with special tokens around it, and their places in it.

        Raises `SampleError` (``too_long``) for a text that cannot be tokenized at once.
        """
        if len(text) > _MAX_AT_ONCE:
            raise SampleError(
                "too_long", f"a text has {len(text)} characters; at most {_MAX_AT_ONCE} are read"
            )
        (encoding,) = self._fast.encode_batch([text])
        return tuple(encoding.ids), tuple(Span(*place) for place in encoding.offsets)

    def render_turn(
        self, turn: Rendered, *, add_generation_prompt: bool = True, chat: ChatFormat = _OWN
    ) -> Rendered:
        """Apply the chat template to a single user message."""
        text = self._apply([Message("user", turn.text)], chat, add_generation_prompt)
        start = text.find(turn.text.strip())
        lead = len(turn.text) - len(turn.text.lstrip())
        return (
            Rendered(text, Span(0, 0), Span(0, 0)) if start < 0 else turn.within(text, start - lead)
        )

    def render_chat(
        self,
        messages: Sequence[Message],
        *,
        num_prompt: int | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
        tags: Tags = DEFAULT_TAGS,
        add_generation_prompt: bool = False,
        chat: ChatFormat = _OWN,
    ) -> Rendered:
        """Apply the checkpoint's chat template to a conversation that ends with a completion.

        The first ``num_prompt`` messages are the prompt, by default all but the last. Raises
        `SampleError` (``invalid_sample``) if the template refuses the messages, or leaves out one
        because of a role that it does not know.
        """
        if num_prompt is None:
            num_prompt = len(messages) - 1
        write = partial(self._written, chat=chat, tags=tags, begins_turn=add_generation_prompt)
        try:
            text = write(messages, tools)
        except SampleError as error:
            raise _naming_malformed_call(error, messages) from error
        omitted = set()
        if tools and write(messages, ()) == text:
            omitted.add("tools")
        if any(message.tool_calls for message in messages):
            plain = [replace(message, tool_calls=()) for message in messages]
            if self._is_written(plain, tools, text, write):
                omitted.add("tool_calls")
        if 0 < num_prompt < len(messages) and not any(_has_parts(one, tags) for one in messages):
            found = _find_plain(text, messages, num_prompt)
            if found is not None:
                return Rendered(text, *found, omitted=tuple(sorted(omitted)))
        marked = skeleton(messages, num_prompt, tags)
        try:
            places = marked.places(write(marked.messages, tools), text)
        except SampleError:  # the template looks at what messages say
            places = marked.places("", text)
        pairs = list(zip(marked.parts, places, strict=True))
        _require_known_roles(messages, [part.message for part, place in pairs if place is None])
        prompt = _around([place for part, place in pairs if part.message < num_prompt])
        completion = _around([place for part, place in pairs if part.message >= num_prompt])
        omitted |= {part.name for part, place in pairs if place is None}
        if completion is None and messages and _is_said(messages[-1]):
            completion = self._differing(messages, tools, text, write)
        return Rendered(
            text,
            prompt or Span(0, 0),
            completion or Span(0, 0),
            omitted=tuple(sorted(omitted)),
        )

    def _is_written(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]],
        text: str,
        write: Callable[..., str],
    ) -> bool:
        """Say whether the template makes the same text of other messages."""
        try:
            return write(messages, tools) == text
        except SampleError:
            return False

    def _differing(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]],
        text: str,
        write: Callable[..., str],
    ) -> Span | None:
        """Return the part of a text that another last message would change."""
        last = Message(messages[-1].role, "")
        try:
            return common_ends(text, write([*messages[:-1], last], tools))
        except SampleError:
            return None

    def _written(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]],
        *,
        chat: ChatFormat,
        tags: Tags,
        begins_turn: bool,
    ) -> str:
        """Apply the chat template, without the empty thought that it may put before a thought.

        Templates do so for a last message that has no closing tag: its thought is not finished.
        """
        text = self._apply(messages, chat, begins_turn, tools)
        if not messages or not _has_parts(messages[-1], tags):
            return text
        last = messages[-1].content
        thoughts = find_thoughts(last, tags) if messages[-1].is_of_policy else []
        if not thoughts or thoughts[-1].is_finished:
            return text
        mark = next(name for at in count() if (name := f"Xq{at}z") not in text)
        marked = self._apply(
            [*messages[:-1], replace(messages[-1], content=mark)], chat, begins_turn, tools
        )
        before, _, after = marked.partition(mark)
        for opening, closing in tags:
            empty = re.search(rf"{re.escape(opening)}\s*{re.escape(closing)}\s*$", before)
            if empty is not None:
                return before[: empty.start()] + last + after
        return text

    def require_tokenizable(self, text: Rendered) -> None:
        """Raise `SampleError` (``too_long``) for a long text that cannot be tokenized in parts."""
        longest = len(text.text) + len(text.pair or "")
        if longest > _MAX_AT_ONCE and self._is_cut(text, Truncation.ERROR):
            longest = max(end - start for start, end in cut(text, _PART))
        if longest > _MAX_AT_ONCE:
            raise SampleError(
                "too_long",
                f"the text has {longest} characters that can only be tokenized at once; the "
                f"limit is {_MAX_AT_ONCE}",
            )

    def encode(
        self,
        rendered: Sequence[Rendered],
        *,
        with_special: bool,
        may_repeat: bool = False,
        max_tokens: int | None = None,
        truncation: Truncation = Truncation.ERROR,
    ) -> list[TokenIds]:
        """Tokenize whole texts, or pairs joined as in transformers.

        Unless ``may_repeat``, a text that already starts with the first special token gets no
        second one. Of a long text, parts that `fit` would drop for ``max_tokens`` and
        ``truncation`` are skipped if possible; the result is still longer than ``max_tokens``.
        """
        is_cut = [self._is_cut(one, truncation) for one in rendered]
        # transformers treats an empty second text as absent.
        whole = [
            (one.text, one.pair) if one.pair else one.text
            for one, cut_it in zip(rendered, is_cut, strict=True)
            if not cut_it
        ]
        encodings = iter(self._fast.encode_batch(whole, add_special_tokens=with_special))
        tokens = []
        for text, cut_it in zip(rendered, is_cut, strict=True):
            if cut_it:
                ids, offsets = self._encode_long(text, with_special, max_tokens, truncation)
                tokens.append(self._token_ids(ids, offsets, text, with_special, may_repeat))
            else:
                tokens.append(self._read(next(encodings), text, with_special, may_repeat))
        return tokens

    def _is_cut(self, text: Rendered, truncation: Truncation) -> bool:
        """Whether a text is tokenized in parts: it is long, and truncation drops whole parts."""
        return (
            self._can_cut
            and len(text.text) > _MAX_WHOLE
            and text.pair is None
            and not text.copies
            and not text.cuts
            and not (text.kept and truncation is Truncation.RIGHT)
            and not (self._split_bos and text.text.startswith(self._split_bos))
        )

    def _encode_long(
        self, text: Rendered, with_special: bool, max_tokens: int | None, truncation: Truncation
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Tokenize a text in parts, without those that truncation drops entirely."""
        parts = cut(text, _PART)
        prefix, suffix = (self._prefix, self._suffix) if with_special else ([], [])
        encoded: dict[int, tuple[list[int], list[tuple[int, int]]]] = {}
        num_tokens = 0
        enough = math.inf if max_tokens is None else max_tokens + len(suffix)
        # The parts that may be skipped, in the order in which truncation keeps them: parts entirely
        # in the prompt from the last one, else all parts from the first.
        middle = list(range(len(parts)))
        if truncation is Truncation.PROMPT:
            start, end = text.prompt
            middle = [at for at in middle if start <= parts[at].start and parts[at].end <= end]
            middle.reverse()
        outside = sorted(set(range(len(parts))).difference(middle))
        for at in outside:
            encoded[at] = self._encode_part(text, parts[at])
        for at in middle:
            if truncation is not Truncation.ERROR and num_tokens > enough:
                break
            encoded[at] = self._encode_part(text, parts[at])
            num_tokens += len(encoded[at][0])
        ids, offsets = [*prefix], [(0, 0)] * len(prefix)
        for at in sorted(encoded):
            ids += encoded[at][0]
            offsets += encoded[at][1]
        ids += suffix
        offsets += [(0, 0)] * len(suffix)
        return ids, offsets

    def _encode_part(self, text: Rendered, part: Span) -> tuple[list[int], list[tuple[int, int]]]:
        check_cancelled()
        # A batch of one releases the GIL, unlike encoding a single text.
        (encoding,) = self._fast.encode_batch(
            [text.text[part.start : part.end]], add_special_tokens=False
        )
        start = part.start
        return encoding.ids, [(begin + start, end + start) for begin, end in encoding.offsets]

    def _read(
        self, encoding: Encoding, text: Rendered, with_special: bool, may_repeat: bool
    ) -> TokenIds:
        if text.pair is not None:
            return self._pair_ids(encoding)
        is_behind_bos = bool(self._split_bos) and text.text.startswith(self._split_bos)
        if is_behind_bos and not with_special and not text.cuts:
            return self._after_bos(text)
        ids, offsets = (
            self._in_parts(text, with_special) if text.cuts else (encoding.ids, encoding.offsets)
        )
        return self._token_ids(ids, offsets, text, with_special, may_repeat)

    def _bos_read_apart(self) -> str:
        """Return the BOS if text after a literal BOS is tokenized differently, else "".

        transformers 5 does so for Llama 2's sentencepiece tokenizers: it adds no leading space
        after a literal ``<s>``. The models were trained with that space.
        """
        bos = self._loaded.bos_token
        if not bos or self._suffix or self._prefix != [self._fast.token_to_id(bos)]:
            return ""
        written = self._fast.encode(f"{bos}a", add_special_tokens=False).ids
        return "" if written == self._fast.encode("a").ids else str(bos)

    def _after_bos(self, text: Rendered) -> TokenIds:
        """Tokenize a text without its literal BOS, which the tokenizer then adds itself."""
        start = len(self._split_bos)
        encoding = self._fast.encode(text.text[start:])
        offsets = [(first + start, last + start) for first, last in encoding.offsets]
        return self._located(encoding.ids, [(0, start), *offsets[1:]], text, 0, 0)

    def _located(
        self,
        ids: Sequence[int],
        offsets: Sequence[tuple[int, int]],
        text: Rendered,
        num_prefix: int,
        num_suffix: int,
    ) -> TokenIds:
        """Locate the tokens of the prompt and of the anchor positions."""
        inside = range(num_prefix, len(ids) - num_suffix)
        cuttable, *copies = (
            _tokens_within(span, offsets, inside) for span in (text.prompt, *text.copies)
        )
        if text.kept:
            start = len(text.text) - text.kept
            num_suffix += sum(offsets[index][0] >= start for index in inside)
        types = () if text.typed_spans is None else _token_types(offsets, text.typed_spans)
        places = _tokens_at(offsets, text.anchor_positions)
        return TokenIds(tuple(ids), cuttable, num_prefix, num_suffix, types, places, tuple(copies))

    def encode_words(self, texts: Sequence[Sequence[str]]) -> list[tuple[list[int], list[int]]]:
        """Tokenize pretokenized texts; return ids and the word index of each id."""
        encoded: list[tuple[list[int], list[int]]] = [([], []) for _ in texts]
        for parts in _in_batches(texts):
            check_cancelled()
            encodings = self._fast.encode_batch(
                [list(texts[text][words.start : words.end]) for text, words in parts],
                is_pretokenized=True,
                add_special_tokens=False,
            )
            for (text, words), encoding in zip(parts, encodings, strict=True):
                ids, owners = encoded[text]
                ids += encoding.ids
                owners += (words.start + word for word in encoding.word_ids if word is not None)
        return encoded

    def shorten_words(self, prefix: Rendered, max_tokens: int, *, size: int = _PART) -> Rendered:
        """Drop words of a long prompt that truncation to ``max_tokens`` would drop.

        For pretokenized texts. ``size`` is the number of characters to try first.
        """
        text, (start, end) = prefix.text, prefix.prompt
        # The first word of the prompt may include text of the template.
        first = _WHITE.search(text, start, end)
        while first is not None and end - first.start() > 2 * size:
            found = _WHITE.search(text, end - size, end)
            if found is None:
                return prefix
            at = found.start()
            # The last word may extend past the prompt.
            ((ids, _),) = self.encode_words([text[at:end].split()[:-1]])
            if len(ids) > max_tokens:
                kept = text[: first.start()] + text[at:]
                return Rendered(kept, Span(start, len(kept) - len(text) + end), prefix.completion)
            size *= 2
        return prefix

    def with_special(self, ids: Sequence[int]) -> list[int]:
        """Add the tokenizer's special tokens to ids that were tokenized in parts."""
        return [*self._prefix, *ids, *self._suffix]

    def _apply(
        self,
        messages: Sequence[Message],
        chat: ChatFormat,
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> str:
        return render_chat_template(
            self._loaded,
            chat.template or self.chat_template or "",
            _Turns(map(_turn, messages)),
            tools=list(tools) or None,
            add_generation_prompt=add_generation_prompt,
            **chat.arguments,
        )

    def _in_parts(
        self, text: Rendered, with_special: bool
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Tokenize the parts of a text separately; return all ids and their spans in the text."""
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        for start, end in pairwise((0, *text.cuts, len(text.text))):
            part = self._fast.encode(text.text[start:end], add_special_tokens=False)
            ids += part.ids
            offsets += [(first + start, last + start) for first, last in part.offsets]
        if with_special:
            ids = self.with_special(ids)
            offsets = [(0, 0)] * self.num_prefix + offsets + [(0, 0)] * self.num_suffix
        return ids, offsets

    def _token_ids(
        self,
        ids: Sequence[int],
        offsets: Sequence[tuple[int, int]],
        text: Rendered,
        with_special: bool,
        may_repeat: bool,
    ) -> TokenIds:
        num_prefix = self.num_prefix if with_special else 0
        num_suffix = self.num_suffix if with_special else 0
        if num_prefix == 1 and len(ids) > 1 and ids[0] == ids[1] and not may_repeat:
            ids, offsets = ids[1:], offsets[1:]
        return self._located(ids, offsets, text, num_prefix, num_suffix)

    def _pair_ids(self, encoding: Encoding) -> TokenIds:
        owners = encoding.sequence_ids
        inside = [index for index, owner in enumerate(owners) if owner is not None]
        first = inside[0] if inside else len(owners)
        prompt = [index for index in inside if owners[index] == 0]
        types = encoding.type_ids if self._has_types else ()
        return TokenIds(
            tuple(encoding.ids),
            Span(prompt[0], prompt[-1] + 1) if prompt else Span(first, first),
            first,
            len(owners) - inside[-1] - 1 if inside else 0,
            tuple(types),
        )


def _has_no_vocabulary(loaded: Any) -> bool:
    """Say whether it has special tokens alone.

    transformers makes one of a class's name where the file of the vocabulary is missing: it reads
    every text as nothing, or as unknown, and all samples would score alike.
    """
    added = {_WORD_START} | {str(token) for token in loaded.added_tokens_decoder.values()}
    vocabulary = loaded.backend_tokenizer.get_vocab(with_added_tokens=False)
    return not vocabulary.keys() - added


def _unreadable(folder: Path, error: Exception) -> str:
    """Return why the tokenizer cannot be loaded, which files exist, and what to write."""
    patterns = ("tokenizer*", "vocab*", "merges.txt", "*.model", "spiece*", "special_tokens_map*")
    files = sorted({path.name for pattern in patterns for path in folder.glob(pattern)})
    said = " ".join(str(error).split())[:200]
    return (
        f"{folder}: the tokenizer cannot be read ({type(error).__name__}: {said}); tokenizer "
        f"files found: {', '.join(files) or 'none'}. Write `tokenizer`, the folder or hub id of "
        "one with a tokenizer.json (the base model's), or copy its files here"
    )


class _Turns(list[dict[str, Any]]):
    """Messages that stop a chat template once the caller has disconnected."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for turn in super().__iter__():
            check_cancelled()
            yield turn

    def __getitem__(self, index: SupportsIndex | slice) -> Any:
        check_cancelled()
        return super().__getitem__(index)


def _turn(message: Message) -> dict[str, Any]:
    """Return a message as chat templates read it; what it does not have is left out."""
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning:
        turn["reasoning_content"] = message.reasoning
    if message.tool_calls:
        turn["tool_calls"] = list(map(_tool_call, message.tool_calls))
    names = {"tool_call_id": message.tool_call_id, "name": message.name}
    return turn | {key: name for key, name in names.items() if name is not None}


def _tool_call(call: ToolCall) -> dict[str, Any]:
    """Return a call as chat templates read it: with its arguments as an object, where they are."""
    arguments = _arguments_object(call)
    function = {"name": call.name, "arguments": call.arguments if arguments is None else arguments}
    written: dict[str, Any] = {"type": "function", "function": function}
    return written if call.id is None else {"id": call.id, **written}


def _arguments_object(call: ToolCall) -> dict[str, Any] | None:
    """Return the arguments of a call; None where they are no JSON object, such as unfinished."""
    try:
        arguments = json.loads(call.arguments)
    except (ValueError, RecursionError):
        return None
    return arguments if isinstance(arguments, dict) else None


def _naming_malformed_call(error: SampleError, messages: Sequence[Message]) -> SampleError:
    """Return a template's error with the first call whose arguments are no object, if any."""
    for index, message in enumerate(messages):
        for call in message.tool_calls:
            if _arguments_object(call) is None:
                return SampleError(
                    error.code,
                    f"message {index + 1} of {len(messages)} (role {quoted(message.role)}) calls "
                    f"{quoted(call.name)} with arguments that are no JSON object, "
                    f"{quoted(call.arguments)}; {error.message}",
                )
    return error


def _require_known_roles(messages: Sequence[Message], left_out: Sequence[int]) -> None:
    """Raise `SampleError` if the template left out what a message of an unknown role says."""
    for index in left_out:
        role = messages[index].role
        if messages[index].is_of_policy and role != "assistant":
            raise SampleError(
                "invalid_sample",
                f"the chat template writes nothing of messages of role {quoted(role)}: what the "
                "policy wrote has the role 'assistant', and other messages 'user', 'system' or "
                "'tool'",
            )


def _has_parts(message: Message, tags: Tags) -> bool:
    """Say whether a template may take a message apart, or leave it out."""
    if message.reasoning or message.tool_calls or message.role not in _PLAIN_ROLES:
        return True
    return any(tag in message.content for pair in tags for tag in pair)


def _find_plain(
    text: str, messages: Sequence[Message], num_prompt: int
) -> tuple[Span, Span] | None:
    """Return the spans of prompt and completion where every message is in a text, in order, once.

    None where that is not so, or cannot be seen at once, as of an empty message.
    """
    contents = [message.content.strip() for message in messages]
    if not (contents[0] and contents[num_prompt - 1]):
        return None
    at = 0
    for content in contents:
        found = text.find(content, at)
        if found < 0:
            return None
        at = found + len(content)
    first, before = contents[0], contents[num_prompt - 1]
    begun, last = contents[num_prompt], contents[-1]
    if any(one and text.count(one) != 1 for one in {first, before, begun, last}):
        return None
    start = text.find(first)
    end = text.find(last) if last else len(text)
    completion = Span(text.find(begun) if begun and num_prompt + 1 < len(messages) else end, end)
    completion = Span(completion.start, end + len(last))
    return Span(start, max(start, text.find(before) + len(before))), completion


def _is_said(message: Message) -> bool:
    return bool(message.text.strip() or message.tool_calls)


def _around(places: Sequence[Span | None]) -> Span | None:
    """Return the span from the first to the last; None where there are none."""
    found = [place for place in places if place is not None]
    if not found:
        return None
    return Span(min(place.start for place in found), max(place.end for place in found))


def _in_batches(texts: Sequence[Sequence[str]]) -> Iterator[list[tuple[int, Span]]]:
    """Yield ranges of words, with the index of their text, to tokenize at once.

    Words are tokenized independently, so a long text can be split into ranges.
    """
    batch: list[tuple[int, Span]] = []
    num_words = 0
    for text, words in enumerate(texts):
        for start in range(0, len(words), _WORDS_AT_ONCE):
            part = Span(start, min(start + _WORDS_AT_ONCE, len(words)))
            if batch and num_words + part.end - start > _WORDS_AT_ONCE:
                yield batch
                batch, num_words = [], 0
            batch.append((text, part))
            num_words += part.end - start
    if batch:
        yield batch


def _tokens_within(span: Span, offsets: Sequence[tuple[int, int]], inside: range) -> Span:
    """Return the range of tokens within a span of characters."""
    within = [
        index
        for index in inside
        if span.start <= offsets[index][0] and offsets[index][1] <= span.end
    ]
    return Span(within[0], within[-1] + 1) if within else Span(inside.start, inside.start)


def _token_types(offsets: Sequence[tuple[int, int]], typed: Sequence[TypedSpan]) -> tuple[int, ...]:
    """Return each token's type: that of its first character within a typed span, else 0."""
    types = {at: one.token_type for one in typed for at in range(one.start, one.end)}
    return tuple(next((types[at] for at in range(*offset) if at in types), 0) for offset in offsets)


def _tokens_at(offsets: Sequence[tuple[int, int]], places: Sequence[int]) -> tuple[int, ...]:
    """Return the token of each character; characters are sorted."""
    tokens: list[int] = []
    token = 0
    for place in places:
        while token < len(offsets) and not offsets[token][0] <= place < offsets[token][1]:
            token += 1
        if token < len(offsets):
            tokens.append(token)
    return tuple(tokens)
