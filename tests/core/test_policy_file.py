"""Policies as TOML: what is written is read back, and what is wrong is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet_onnx.errors import InputError
from bitnet_onnx.policy import HEAD_ROLES, Policy, Precision, Weights
from bitnet_onnx.policy_file import policy_text, read_policy
from bitnet_onnx.quantization.method import MethodName

PRECISIONS = st.builds(
    Precision,
    st.sampled_from([weights for weights in Weights if weights is not Weights.TERNARY]),
    st.sampled_from([0, 32, 64, 128]),
    st.sampled_from([0, 8, 16]),
    st.sampled_from([Weights.INT4, Weights.FLOAT32]),
    st.sampled_from(list(MethodName)),
)
GLOBS = st.text(min_size=1, max_size=20).filter(lambda text: text not in HEAD_ROLES)
POLICIES = st.builds(
    Policy, PRECISIONS, PRECISIONS, st.dictionaries(GLOBS, PRECISIONS, max_size=4).map(lambda d: tuple(d.items()))
)


def _read(folder: Path, text: str | bytes) -> Policy:
    path = folder / "policy.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_policy(path)


@given(policy=POLICIES, comment=st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["C"])))
def test_a_policy_survives_the_file(policy: Policy, comment: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert _read(tmp_path_factory.mktemp("policy"), policy_text(policy, comment)) == policy


def test_later_entries_decide_and_say_only_what_differs(tmp_path: Path) -> None:
    policy = _read(
        tmp_path,
        """
        [blocks]
        weights = "int4"
        group_size = 64
        [layers]
        "layers.*.down_proj" = { weights = "int8", group_size = 0 }
        "layers.3.*" = { weights = "int2", method = "gptq" }
        """,
    )
    assert policy.precision("layers.0.mlp.down_proj") == Precision(Weights.INT8, 0)
    assert policy.precision("layers.3.mlp.down_proj") == Precision(Weights.INT2, 64, method=MethodName.GPTQ)
    assert policy.precision("layers.1.mlp.up_proj") == Precision(Weights.INT4, 64)
    assert policy.precision("lm_head") == Policy().head


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[blocks", "not TOML"),
        (b"\xff", "not TOML"),
        ("[block]", "unknown table 'block'; known are blocks, head, layers"),
        ("blocks = 4", "blocks is 4, expected a table"),
        ("[blocks]\nbits = 4", "blocks: unknown key 'bits'; known are weights, group_size"),
        ('[blocks]\nweights = "int3"', "blocks: weights is 'int3'; known are auto"),
        ("[blocks]\nweights = [1]", r"blocks: weights is \[1\]"),
        ("[blocks]\ngroup_size = 3.5", "group_size is 3.5, expected an integer"),
        ("[blocks]\ngroup_size = true", "group_size is True, expected an integer"),
        ("[blocks]\ngroup_size = 33", "blocks: group size is 33"),
        ('[head]\nweights = "ternary"', "embed_tokens cannot be made ternary"),
        ('[layers]\n"*" = 1', "layers '\\*' is no table"),
        ('[layers]\n"*" = { method = "magic" }', "layers '\\*': method is 'magic'; known are auto"),
        ("[layers]\n" + '"a".' * 3000 + "b = 1", "policy.toml: "),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        _read(tmp_path, text)


def test_a_file_that_is_missing_or_huge_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_policy(tmp_path / "none.toml")
    with pytest.raises(InputError, match="above the limit"):
        _read(tmp_path, "#" * (5 << 20))
