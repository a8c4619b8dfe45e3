"""The names that `bn_graph` hands out say their types; mypy reads `typed_user.py` for what those mean."""

import inspect

import pytest

import bn_graph

FUNCTIONS = [name for name in bn_graph.__all__ if inspect.isfunction(getattr(bn_graph, name))]
CLASSES = [name for name in bn_graph.__all__ if inspect.isclass(getattr(bn_graph, name))]


def untyped(function):
    """What a function doesn't say the type of; options that are passed on, and ``self``, need none."""
    signature = inspect.signature(function)
    options = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    missing = [name for name, each in signature.parameters.items() if each.annotation is each.empty]
    missing = [name for name in missing if name != "self" and signature.parameters[name].kind not in options]
    return missing + ["return"] * (signature.return_annotation is signature.empty)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_public_function_says_the_types_of_its_arguments_and_of_what_it_returns(name):
    assert untyped(getattr(bn_graph, name)) == []


@pytest.mark.parametrize("name", CLASSES)
def test_so_do_the_public_methods_of_a_public_class(name):
    methods = inspect.getmembers(getattr(bn_graph, name), inspect.isfunction)
    own = {method: function for method, function in methods if function.__module__.startswith("bn_graph")}
    assert {
        method: missing for method, function in own.items() if method[0] != "_" and (missing := untyped(function))
    } == {}
