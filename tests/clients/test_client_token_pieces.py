"""Joining token pieces: the text, and the span of each piece."""

import pytest

from alarm_client.token_offsets import byte_of_letter, join_pieces, read_utf8, read_utf8_or_nothing

EMOJI = "😀".encode()  # f0 9f 98 80


def test_join_pieces_of_texts_concatenates():
    assert join_pieces(["Hi", " you", "!"], read_utf8) == ("Hi you!", [(0, 2), (2, 6), (6, 7)])


def test_join_pieces_sharing_a_character_all_get_it():
    pieces = ["a", EMOJI[:1], EMOJI[1:3], EMOJI[3:], "b"]
    assert join_pieces(pieces, read_utf8) == ("a😀b", [(0, 1), (1, 2), (1, 2), (1, 2), (2, 3)])


def test_join_pieces_across_characters_gets_both():
    pieces = [EMOJI[:2], EMOJI[2:] + EMOJI[:1], EMOJI[1:]]
    assert join_pieces(pieces, read_utf8) == ("😀😀", [(0, 1), (0, 2), (1, 2)])


def test_join_pieces_empty_piece_is_empty_span():
    assert join_pieces(["", "ab", "", "c", ""], read_utf8)[1] == [
        (0, 0),
        (0, 2),
        (2, 2),
        (2, 3),
        (3, 3),
    ]


def test_join_pieces_empty_piece_inside_character_is_monotonic():
    assert join_pieces([EMOJI[:2], "", EMOJI[2:], ""], read_utf8)[1] == [
        (0, 1),
        (0, 0),
        (0, 1),
        (1, 1),
    ]


def test_join_pieces_of_nothing_is_empty():
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
def test_read_utf8_longest_invalid_part_is_one_replacement(data, text, owners):
    assert read_utf8(data) == (text, owners)


def test_read_utf8_or_nothing_invalid_bytes_are_one_replacement_each():
    text, owners = read_utf8_or_nothing("é".encode() + b"\xff")
    assert (text, list(owners)) == ("\ufffd" * 3, [0, 1, 2])
    assert read_utf8_or_nothing("é".encode()) == ("é", [0, 0])


def test_byte_of_letter_maps_every_byte_once():
    table = byte_of_letter()
    assert sorted(table.values()) == list(range(256))
    assert (table["A"], table["Ġ"], table["Ċ"], table["é"]) == (0x41, 0x20, 0x0A, 0xE9)
