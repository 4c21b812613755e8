"""Pieces laid end to end: whose character is whose."""

import pytest

from alarm_client.token_offsets import byte_of_letter, join_pieces, read_utf8, read_utf8_or_nothing

EMOJI = "😀".encode()  # f0 9f 98 80


def test_texts_lie_end_to_end():
    assert join_pieces(["Hi", " you", "!"], read_utf8) == ("Hi you!", [(0, 2), (2, 6), (6, 7)])


def test_every_piece_with_a_byte_of_a_character_gets_the_character():
    pieces = ["a", EMOJI[:1], EMOJI[1:3], EMOJI[3:], "b"]
    assert join_pieces(pieces, read_utf8) == ("a😀b", [(0, 1), (1, 2), (1, 2), (1, 2), (2, 3)])


def test_a_piece_that_ends_one_character_and_begins_another_gets_both():
    pieces = [EMOJI[:2], EMOJI[2:] + EMOJI[:1], EMOJI[1:]]
    assert join_pieces(pieces, read_utf8) == ("😀😀", [(0, 1), (0, 2), (1, 2)])


def test_an_empty_piece_is_an_empty_span_at_its_place():
    assert join_pieces(["", "ab", "", "c", ""], read_utf8)[1] == [
        (0, 0),
        (0, 2),
        (2, 2),
        (2, 3),
        (3, 3),
    ]


def test_an_empty_piece_inside_a_character_does_not_turn_back():
    assert join_pieces([EMOJI[:2], "", EMOJI[2:], ""], read_utf8)[1] == [
        (0, 1),
        (0, 0),
        (0, 1),
        (1, 1),
    ]


def test_nothing_has_no_spans():
    assert join_pieces([], read_utf8) == ("", [])


@pytest.mark.parametrize(
    ("data", "text", "owners"),
    [
        (b"ab", "ab", [0, 1]),
        ("é".encode() + b"x", "éx", [0, 0, 1]),
        (b"\xffa", "\ufffda", [0, 1]),
        (b"a\xe2\x82b", "a\ufffdb", [0, 1, 1, 2]),
        (b"\xe2\x82", "\ufffd", [0, 0]),
        (b"\xe2\xe2\x82\xac", "\ufffd€", [0, 1, 1, 1]),
        (b"\x80\x80", "\ufffd\ufffd", [0, 1]),
        (b"", "", []),
    ],
)
def test_each_longest_invalid_part_reads_as_one_mark(data, text, owners):
    assert read_utf8(data) == (text, owners)


def test_fallback_bytes_read_as_one_mark_each_if_any_is_invalid():
    text, owners = read_utf8_or_nothing("é".encode() + b"\xff")
    assert (text, list(owners)) == ("\ufffd" * 3, [0, 1, 2])
    assert read_utf8_or_nothing("é".encode()) == ("é", [0, 0])


def test_byte_level_letters_name_every_byte_once():
    table = byte_of_letter()
    assert sorted(table.values()) == list(range(256))
    assert (table["A"], table["Ġ"], table["Ċ"], table["é"]) == (0x41, 0x20, 0x0A, 0xE9)
