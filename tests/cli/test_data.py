"""`vshift data`."""

from tests.cli.conftest import refused


def test_data_list_names_every_set(vshift):
    _, out, _ = vshift("data", "list")
    for name in ("shapes", "patterns", "cifar10", "cifar100", "imagefolder"):
        assert name in out


def test_data_fetch_of_an_unknown_set(vshift):
    err = refused(vshift, "data", "fetch", "cifar")
    assert "did you mean `cifar10`?" in err
    assert "shapes and patterns are drawn by code" in refused(vshift, "data", "fetch", "shapes")
