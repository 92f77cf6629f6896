"""Names of state dicts and modules without what wrappers put into them."""

from vshift.auditing.names import find_prefix, fit_to_names, in_quotes, plain_name


def test_what_compile_puts_into_a_name_is_left_out():
    assert plain_name("_orig_mod.layer._orig_mod.weight") == "layer.weight"
    assert in_quotes("") == "the model"
    assert in_quotes("a.b") == '"a.b"'


def test_the_shortest_of_several_prefixes_is_taken():
    assert find_prefix(["model.fc.weight", "ema.model.fc.weight"], ["fc.weight"]) == "model."


def test_a_prefix_is_what_stands_before_the_models_own_names():
    state = {"a.b.fc.weight": 1, "a.b.fc.bias": 2, "other.weight": 3}
    assert fit_to_names(state, ["fc.weight", "fc.bias"]) == {"fc.weight": 1, "fc.bias": 2}
    assert fit_to_names({"fc.weight": 1, "x.fc.weight": 2}, ["fc.weight"]) == {
        "fc.weight": 1,
        "x.fc.weight": 2,
    }
