"""The tree of errors: stable codes, wire form, and that errors survive a pipe."""

import pickle

from app.domain import errors
from app.domain.errors import AmalgamError, FieldProblem, InvalidParameters, near_match


def test_codes_are_unique_and_every_class_of_the_tree_has_its_own() -> None:
    pending: list[type[AmalgamError]] = [AmalgamError]
    codes: list[str] = []
    while pending:
        kind = pending.pop()
        assert "code" in vars(kind), f"{kind.__name__} has no code of its own"
        assert "title" in vars(kind), f"{kind.__name__} has no title of its own"
        codes.append(kind.code)
        # Others may refine a class for their own use under its code; what is told is the tree's.
        pending.extend(refined for refined in kind.__subclasses__() if refined.__module__ == errors.__name__)
    assert len(codes) == len(set(codes))


def test_all_errors_lists_every_code_once_sorted() -> None:
    codes = [kind.code for kind in errors.all_errors()]
    assert codes == sorted(set(codes))
    assert {"checkpoint_not_found", "worker_lost", "out_of_memory", "input_changed"} <= set(codes)


def test_wire_form_names_field_problems_and_leaves_out_absent_hints() -> None:
    error = InvalidParameters(
        "ties: unknown parameter 'densty'",
        errors=[FieldProblem("/parameters/densty", "unknown", "density"), FieldProblem("/parameters/t", "too big")],
    )
    assert error.to_json() == {
        "code": "invalid_parameters",
        "title": "The method's parameters are not valid",
        "detail": "ties: unknown parameter 'densty'",
        "retryable": False,
        "errors": [
            {"pointer": "/parameters/densty", "message": "unknown", "did_you_mean": "density"},
            {"pointer": "/parameters/t", "message": "too big"},
        ],
    }


def test_an_error_survives_pickling_with_its_facts() -> None:
    error = InvalidParameters("no", errors=[FieldProblem("/a", "b")])
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is InvalidParameters
    assert copy.to_json() == error.to_json()


def test_near_match_finds_the_misspelt_name_and_nothing_far() -> None:
    assert near_match("densty", ["density", "scaling_coefficient"]) == "density"
    assert near_match("zzz", ["density"]) is None
