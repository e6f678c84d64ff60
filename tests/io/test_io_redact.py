"""No secret leaves, and little else is blanked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lit_restore.io.redact import redact, redact_tree

CANARY = "c4n4ryc4n4ry"
KEY40 = "0123456789abcdef0123456789abcdef01234567"

TEXTS = {
    "userinfo": (f"https://ann:{CANARY}@host/x.tar", "https://***@host/x.tar"),
    "token": (f"https://h/x.tar?a=1&token={CANARY}&b=2", "https://h/x.tar?a=1&token=***&b=2"),
    "sig": (f"https://h/x.tar?sig={CANARY}", "https://h/x.tar?sig=***"),
    "amz": (f"https://h/x?X-Amz-Signature={CANARY}&v=1", "https://h/x?X-Amz-Signature=***&v=1"),
    "goog": (
        f"see https://h/x?X-Goog-Credential={CANARY}.",
        "see https://h/x?X-Goog-Credential=***",
    ),
    "hugging face": (f"hf_{CANARY} expired", "*** expired"),
    "wandb": (f"wandb: login {KEY40}", "wandb: login ***"),
    "option": (f"train.py --data.hf_token {CANARY} fit", "train.py --data.hf_token *** fit"),
    "yaml": (f"lr: 1\n  password: {CANARY}\nx: 2", "lr: 1\n  password: ***\nx: 2"),
    "json": (f'{{"api_key": "{CANARY}", "a": 1}}', '{"api_key": "***", "a": 1}'),
    "shell": (f"WANDB_API_KEY={CANARY} python", "WANDB_API_KEY=*** python"),
    "bearer": (f"Authorization: Bearer {CANARY}", "Authorization: Bearer ***"),
}


@pytest.mark.parametrize("case", TEXTS)
def test_secret_in_text_is_blanked_and_the_rest_kept(case: str) -> None:
    text, expected = TEXTS[case]
    assert redact(text) == expected
    assert redact(expected) == expected


def test_values_of_secret_variables_are_blanked_wherever_they_stand(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("MY_TOKEN", "B_KEY", "C_SECRET", "PGPASSWORD"):
        monkeypatch.setenv(name, f"{name}-va/lue")
        assert redact(f"x{name}-va/luey") == "x***y"
        assert redact(f"x{name}-va%2Fluey") == "x***y"
    monkeypatch.setenv("SHORT_KEY", "abc")
    monkeypatch.setenv("HARMLESS", "longenough")
    assert redact("abc longenough") == "abc longenough"


def test_nine_canaries_in_a_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORE_SECRET", "env" + CANARY)
    tree = {
        "urls": [f"https://a:{CANARY}@h/x", f"pipe:curl 'https://h/?token={CANARY}'"],
        "signed": (f"https://h/?sig={CANARY}", f"https://h/?X-Amz-Security-Token={CANARY}"),
        "goog": {"url": f"https://h/?X-Goog-Signature={CANARY}"},
        "hub": f"hf_{CANARY}",
        "wandb": {"note": KEY40},
        "env": f"s3://env{CANARY}/b",
        "hf_token": CANARY,
    }
    text = json.dumps(redact_tree(tree))
    assert CANARY not in text
    assert KEY40 not in text
    assert json.dumps(tree).count(CANARY) + json.dumps(tree).count(KEY40) == 9  # the control


def test_option_names_that_say_secret_lose_their_text_and_nothing_else() -> None:
    tree = {
        "password": "x",
        "wandb.api_key": "x",
        "accessKey": "x",
        "Token": "x",
        "n_tokens": 5,
        "token": None,
        "key": "0001",
        "tokens": "a b",
    }
    assert redact_tree(tree) == dict(tree, password="***", Token="***", accessKey="***") | {
        "wandb.api_key": "***"
    }


INNOCENT = (
    "step 100 loss 0.5 key=0001 max_tokens=512",
    "sha256 " + "ab" * 32,
    f"commit {KEY40}",
    '{"commit": "' + KEY40 + '"}',
    "error: a.yaml: class_path os.system is not allowed",
    "s3://bucket/train-{0000..0009}.tar?versionId=3",
    "design=3 monkey=4",
    "mail ann@example.org",
    "token: null is allowed",
)


@pytest.mark.parametrize("text", INNOCENT)
def test_ordinary_lines_stay(text: str) -> None:
    assert redact(text) == text


def test_tree_keeps_its_shape_and_is_a_copy() -> None:
    tree = {"a": [1, 2.5, None, True, ("x",)], "path": Path("/data"), "commit": KEY40}
    found = redact_tree(tree)
    assert found == tree
    assert found is not tree
    assert redact_tree([Path(f"/data/hf_{CANARY}")]) == ["/data/***"]


def test_long_text_is_redacted_in_linear_time() -> None:
    for text in ("a." * 100_000, "-" * 200_000, "://" * 60_000, "?key" * 50_000, " " * 200_000):
        assert redact(text) == text
