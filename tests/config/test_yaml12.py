"""YAML 1.2's core schema, places, and everything the reader refuses."""

import math

import pytest

from vshift.config import yaml12
from vshift.config.yaml12 import parse


def value_of(text: str) -> object:
    return parse(text, "x").to_python()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1e5", 100000.0),
        ("1.", 1.0),
        (".5", 0.5),
        ("-1.5E+2", -150.0),
        ("+.inf", math.inf),
        ("-.Inf", -math.inf),
        ("1e999", math.inf),
        ("012", 12),
        ("-7", -7),
        ("+7", 7),
        ("0o17", 15),
        ("0x1F", 31),
        ("true", True),
        ("True", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("# a comment", None),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("Off", "Off"),
        ("y", "y"),
        ("tRUE", "tRUE"),
        ("2024-01-31", "2024-01-31"),
        ("12:30:45", "12:30:45"),
        ("1_000", "1_000"),
        ("0b11", "0b11"),
        ("-0x1F", "-0x1F"),
        ("1e", "1e"),
        ("inf", "inf"),
        ("nan", "nan"),
        ("=", "="),
        ("'1'", "1"),
        ('"null"', "null"),
        ("'<<'", "<<"),
        ("|\n  12\n", "12\n"),
        (">-\n  a\n  b\n", "a b"),
        ("[]", []),
        ("{}", {}),
        ("{a: , b: [~, no]}", {"a": None, "b": [None, "no"]}),
        ("%YAML 1.2\n---\n3\n...\n", 3),
    ],
)
def test_scalars_follow_the_core_schema(text: str, value: object) -> None:
    read_value = value_of(text)
    assert read_value == value
    assert type(read_value) is type(value)


def test_nan() -> None:
    assert math.isnan(value_of(".nan"))  # type: ignore[arg-type]


def test_places_of_keys_and_values() -> None:
    tree = parse("a:\n  - {é: 1, b: 'two'}\n", "f.yaml")
    item = tree.value["a"].value[0]
    assert str(tree.value["a"].key) == "f.yaml:1:1"
    assert str(item.location) == "f.yaml:2:5"
    assert str(item.value["b"].key) == "f.yaml:2:12"
    assert str(item.value["b"].location) == "f.yaml:2:15"


def test_an_alias_is_its_own_copy_with_its_own_key() -> None:
    tree = parse("a: &x [1]\nb: *x\n", "f")
    values = tree.to_python()
    assert values == {"a": [1], "b": [1]}
    assert values["a"] is not values["b"]
    assert str(tree.value["b"].key) == "f:2:1"


def test_an_alias_can_be_a_key_and_an_anchor_can_be_used_again() -> None:
    assert value_of("a: &x k\n*x : &x 2\nb: *x") == {"a": "k", "k": 2, "b": 2}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\nb: 2\na: 3", "f:3:1: duplicate key `a`; the first is on line 1"),
        ("a: {b: 1, 'b': 2}", "f:1:11: duplicate key `b`; the first is on line 1"),
        ("a: !!python/object:os.system x", "f:1:4: the tag `!!python/object:os.system` is not "
         "allowed; write the plain value"),
        ("a: !x 3", "f:1:4: the tag `!x` is not allowed; write the plain value"),
        ("a: !!str 3", "f:1:4: the tag `!!str` is not allowed; write the plain value"),
        ("a: ! 3", "f:1:4: the tag `!` is not allowed; write the plain value"),
        ("a: !m {}", "f:1:4: the tag `!m` is not allowed; write the plain value"),
        ("a: 1\n<<: {b: 2}", "f:2:1: merge keys (<<) are not supported; put what is shared in a "
         "file under `base:`"),
        ("a: 1\n---\nb: 2", "f:2:1: a second document (`---`); a config is one"),
        ("1: x", "f:1:1: 1 is not text, as keys are; write '1'"),
        ("true: x", "f:1:1: true is not text, as keys are; write 'true'"),
        ("~: x", "f:1:1: null is not text, as keys are; write 'null'"),
        ("[a]: x", "f:1:1: a list cannot be a key"),
        ("? {a: 1}\n: x", "f:1:3: a mapping cannot be a key"),
        ("a: *b", "f:1:4: unknown alias `*b`: there is no anchor `&b` above; text that starts with "
         "`*` needs quotes: \"*b\""),
        ("a: *.b", "f:1:5: a value that starts with `*` needs quotes"),
        ("a: &b [*b]", "f:1:8: the alias `*b` is inside the value it refers to"),
        ("a:\n\tb: 1", "f:2:1: a tab where YAML wants spaces; indent with spaces"),
        ("a: @b", "f:1:4: a value that starts with `@` needs quotes"),
        ("a: 'x\0'", "f:1:6: the character U+0000 is not allowed in YAML; remove it"),
        ("a: 1\nb: \x1b", "f:2:4: the character U+001B is not allowed in YAML; remove it"),
        ("a: \ufeff1", "f:1:4: the character U+FEFF is not allowed in YAML; remove it"),
        ("a: \ud800", "f:1:4: the character U+D800 is not allowed in YAML; remove it"),
        ('a: "\\0"', "f:1:4: '\\x00' contains a character that is not text"),
        ("a: " + "9" * 5000, "f:1:4: a number of 5000 digits; at most 1000"),
        ("%YAML 1.1\n---\na: no", "f:1:1: only YAML 1.2 is supported; remove the directive"),
        ("[" * 100_000, "f:1:51: nested over 50 levels deep"),
        ("- " * 100_000, "f:1:101: nested over 50 levels deep"),
        ("{a: " * 100_000, "f:1:201: nested over 50 levels deep"),
    ],
)  # fmt: skip
def test_refused_with_one_line(text: str, line: str, refused) -> None:
    assert refused(parse, text, "f") == [line]


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("a: [1, 2\nb: 3", "f:2:2: not valid YAML: "),
        ("a: ]", "f:1:4: not valid YAML: "),
        ("a: {b: 1\n", "f:2:1: not valid YAML: "),
        ("a: 'b\n", "f:2:1: not valid YAML: "),
        ("a: 1\n b: 2", "f:2:3: not valid YAML: mapping values are not allowed "),
        ("a: b: c", "f:1:5: not valid YAML: mapping values are not allowed "),
        ('a: "\\q"', "f:1:"),
        ("a: 1\nb", "f:"),
    ],
)
def test_syntax_errors_say_where(text: str, start: str, refused) -> None:
    (line,) = refused(parse, text, "f")
    assert line.startswith(start)


def test_syntax_errors_say_where_the_open_bracket_is(refused) -> None:
    (line,) = refused(parse, "a: 1\nb: [1,\n  2\nc: 3", "f")
    assert line.endswith("(while parsing a flow sequence, which starts at line 2)")


def test_the_parser_in_python_gives_the_same(monkeypatch: pytest.MonkeyPatch, refused) -> None:
    monkeypatch.setattr(yaml12, "_FAST_PARSER", yaml12.yaml.SafeLoader)
    assert value_of("a: [1e-3, no, 'x', !!s ]".replace(" !!s", " ~")) == {
        "a": [1e-3, "no", "x", None]
    }
    assert refused(parse, "a: \tb:\n\t- 1", "f")[0].startswith("f:")
    assert refused(parse, "a:\n\tb: 1", "f") == [
        "f:2:1: a tab where YAML wants spaces; indent with spaces"
    ]
    assert refused(parse, "%YAML 1." + "1" * 5000, "f")
    assert refused(parse, '"\\UFFFFFFFF"', "f")
    assert refused(parse, '"\\ud800"', "f") == [
        "f:1:1: '\\ud800' contains a character that is not text"
    ]


def test_limits_of_libyaml_are_not_ours(monkeypatch: pytest.MonkeyPatch, refused) -> None:
    """libyaml 0.2.6 has a limit on nesting, with a wording of its own."""

    class Limited(yaml12.yaml.SafeLoader):
        def check_event(self, *choices: type) -> bool:
            raise yaml12.yaml.YAMLError("exceeded maximum nesting depth")

    monkeypatch.setattr(yaml12, "_FAST_PARSER", Limited)
    assert value_of("a: [1, {b: 2}]") == {"a": [1, {"b": 2}]}
    assert refused(parse, "[" * 60, "f") == ["f:1:51: nested over 50 levels deep"]


def test_several_problems_at_once(refused) -> None:
    lines = refused(parse, "1: a\nb: !x 1\nc: 1\nc: 2", "f")
    assert [line[:6] for line in lines] == ["f:1:1:", "f:2:4:", "f:4:1:"]


def test_problems_have_an_end(refused) -> None:
    assert len(refused(parse, "a: 1\n" * 1000, "f")) == yaml12.MAX_PROBLEMS


def test_billion_laughs_ends_at_once(refused) -> None:
    text = "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
    for one, two in zip("abcdefgh", "bcdefghi", strict=True):
        text += f"{two}: &{two} [{', '.join([f'*{one}'] * 10)}]\n"
    (line,) = refused(parse, text, "f")
    assert line == "f:4:4: over 100,000 values, counting aliases as often as they are used"


def test_aliases_cannot_nest_deeper_than_the_limit(refused) -> None:
    text = "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 80))
    (line,) = refused(parse, text, "f")
    assert line.endswith("nested over 50 levels deep")


def test_a_message_cannot_reach_the_terminal(refused) -> None:
    (line,) = refused(parse, '"a\\e[31m\\nb": 1\n"a\\e[31m\\nb": 2', "f\x1b\n")
    assert line == "f\\x1b\\n:2:1: duplicate key `a\\x1b[31m\\nb`; the first is on line 1"
