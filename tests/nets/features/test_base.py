"""Bundled feature networks."""

from __future__ import annotations

import pytest

from pidistill.core.errors import PidistillError
from pidistill.evaluation.references import load_reference
from pidistill.nets.features.base import load_features


def test_unknown_names_list_the_choices():
    with pytest.raises(PidistillError, match=r"unknown feature network 'digit'; did you mean 'digits'"):
        load_features("digit")
    with pytest.raises(PidistillError, match="no reference statistics"):
        load_reference(None, "digit", None)


def test_loaded_network_is_fixed():
    net = load_features("digits")
    assert not net.training and not any(p.requires_grad for p in net.parameters())
