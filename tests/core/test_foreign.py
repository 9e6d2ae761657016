"""What code of the user's raises is one line with its name, its input and its own words; what is no error passes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch._dynamo.exc import TorchRuntimeError
from torch._subclasses.fake_tensor import DataDependentOutputException

from pidistill.core.errors import WHOLE, ForeignError, PidistillError, words_of
from pidistill.core.foreign import call_foreign, check_answer, describe_inputs

X, T, Y = torch.zeros(2, 3, 4, 4), torch.ones(2), torch.zeros(2, dtype=torch.int64)


def raising(error: BaseException):
    def function(*_):
        raise error

    return function


class Mute(Exception):
    def __str__(self):
        raise RuntimeError("no words")


def with_note() -> Exception:
    error = ValueError("first")
    error.add_note("second\nthird")
    return error


@pytest.mark.parametrize("error, words", [
    (ValueError("no such layer\n  and\tmore\n\nat the end"), "ValueError: no such layer and more at the end"),
    (KeyError("mid_block"), "KeyError: 'mid_block'"), (AssertionError(), "AssertionError"), (Mute(), "Mute"),
    (with_note(), "ValueError: first second third"), (RuntimeError("x" * 5000 + "\nend"), f"RuntimeError: {'x' * 5000} end"),
    (StopIteration("s"), "StopIteration: s"), (OSError(2, "No such file", "a"), "[Errno 2] No such file: 'a'"),
    (SystemExit("no GPU"), "SystemExit: no GPU"), (SystemExit(0), "SystemExit: 0"),
    (ExceptionGroup("two", [ValueError("a\nb"), ExceptionGroup("b", [KeyError(3)])]),
     "ExceptionGroup: two (2 sub-exceptions) ValueError: a b; ExceptionGroup: b (1 sub-exception) KeyError: 3"),
    (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "CUDA out of memory. Tried to allocate 2 GiB"),
    (RuntimeError("\x1b[31mred"), "?[31mred")])
def test_an_exception_is_one_line_with_all_its_words(error, words):
    with pytest.raises(ForeignError) as caught:
        call_foreign(raising(error), "the teacher T", X, T, Y)
    line = str(caught.value)
    start = "the teacher T failed on x (2, 3, 4, 4) float32, t (2,) float32, labels (2,) int64: "
    assert line.startswith(start) and line.endswith(words) and line.isprintable() and len(line) < WHOLE
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [
    KeyboardInterrupt(), GeneratorExit(), PidistillError("ours"), TorchRuntimeError("the compiler's"),
    DataDependentOutputException("no values")], ids=lambda error: type(error).__name__)
def test_what_is_no_error_of_theirs_passes_as_it_is(error):
    with pytest.raises(type(error)) as caught:
        call_foreign(raising(error), "the teacher T", X)
    assert caught.value is error


def test_lack_of_memory_stays_what_smaller_batches_are_tried_for():
    with pytest.raises(torch.OutOfMemoryError) as caught:
        call_foreign(raising(torch.OutOfMemoryError("Tried to allocate\n2 GiB")), "the teacher T", X)
    assert isinstance(caught.value, ForeignError) and "T failed on x" in str(caught.value)


def test_words_without_end_are_cut_in_the_middle():
    line = str(ForeignError("a" * 2 * WHOLE + "end"))
    assert len(line) <= WHOLE and line.endswith("end") and len(str(PidistillError("a" * 2 * WHOLE))) < 600
    assert words_of(ValueError("a\nb")) == "a b"


def test_inputs_are_described():
    assert describe_inputs(X, 80.0) == "x (2, 3, 4, 4) float32, t = 80" and describe_inputs(X) == "x (2, 3, 4, 4) float32"
    assert describe_inputs(X.to("meta").half(), None, None) == "x (2, 3, 4, 4) float16 on meta"


@pytest.mark.parametrize("D, words", [
    ((X, 1), "a tuple of 2: return D alone"), ([X], "a list of 1"), (None, "None"), (X.numpy(), "numpy.ndarray"),
    ({"sample": X}, "builtins.dict"), (np.float32(1), "numpy.float32"), (X[:, :1], "(2, 1, 4, 4) float32"),
    (X[:1], "(1, 3, 4, 4)"), (X.mean(), "() float32"), (X[..., None], "(2, 3, 4, 4, 1)"), (X.long(), "int64"),
    (X.to(torch.uint8), "uint8"), (X > 0, "bool"), (X.to(torch.complex64), "complex64"), (X.to("meta"), "on meta"),
    (X.to_sparse(), "float32 sparse_coo")])
def test_what_is_no_answer_is_refused(D, words):
    with pytest.raises(ForeignError, match=r"of the shape of x, \(2, 3, 4, 4\) float32; it gives ") as caught:
        check_answer(D, X, "the teacher T")
    assert words in str(caught.value) and str(caught.value).startswith("the teacher T must give D")


@pytest.mark.parametrize("D", [X, X.half(), X.double(), X.bfloat16()])
def test_decimal_numbers_of_any_size_are_answers(D):
    check_answer(D, X, "the teacher T")
