"""Whatever a recipe or an override holds, it becomes a configuration or one clear message."""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gan_train import recipes
from gan_train.adversary import ImageShape
from gan_train.errors import UserError
from gan_train.files import plain_yaml
from gan_train.training import schedule

DEMO = recipes.find("demo").read_text(encoding="utf-8")
QUICK = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def refusal(*overrides: str) -> str:
    """What the user is told of these overrides: a few lines without a line of code."""
    with pytest.raises(UserError) as caught:
        config = recipes.load("demo", overrides)
        schedule.world_sizes(config, ImageShape(1, config.data.resolution, tuple("ABCDEFGHIJ")))
    text = str(caught.value)
    assert len(text) < 700 and text.count("\n") <= 2 and text.replace("\n", "").isprintable()
    return text


WRONG_SETTINGS = {
    "train.total_kimg=.inf": "allowed: a number of ordinary size",
    "train.total_kimg=.nan": "allowed: a number above 0",
    "train.total_kimg=1e300": "allowed: a number",
    "train.checkpoint_kimg=0.0001": "allowed: a number at least 0.001",
    "train.total_kimg=1e7": "checkpoints until 1e+07 kimg; allowed: at most 10000",
    "train.batch=true": "train.batch=true: allowed: a whole number at least 1",
    "train.batch=10000000000000000000000": "allowed: a number of ordinary size",
    "data.mirror=1": "allowed: true or false",
    "data.mirror=yes": "allowed: true or false",
    "seed=1234567890123456789012": "allowed: a number of ordinary size",
    "registry.model='..'": "allowed: a text matching",
    "registry.model=' '": "allowed: a text matching",
    "name=" + "n" * 200: "allowed: a text matching",
    'workspace="a\\0b"': "without control characters",
    "workspace=" + "w" * 5000: "the path is too long",
    "data.licence=" + "w" * 5000: "at most 4000 characters",
    "workspace=" + "w" * 300: "the path is too long",
    "workspace=~nouser/runs": "there is no user ~nouser",
    "workspace=http://[": "Invalid IPv6 URL",
    "data.source=~nouser": "there is no user ~nouser",
    "data.source=''": "allowed: the path or address",
    "data.source=[a, b]": "allowed: a text",
    "data.source={a: b}": "allowed: a text",
    "evaluate.weights=" + "w/" * 1500: "the path is too long",
    "cluster.workers=1-1000000000": "allowed: a whole number",
    "cluster.jobs=http://": "matching",
    "flow.server=here": "matching",
    "family.betas=[]": "family.betas.0: missing; allowed: a list of 2",
    "family.betas=[2, 3]": "below 1",
    "family.stable_kimg={4: -1}": "allowed:",
    "family.batch={4: 0}": "allowed:",
    "family.channels={4: true}": "allowed:",
    "family.z_dim=1000000000": "at most 1048576",
    "data.only_classes={a: b}": "allowed: a list",
    ".".join("k" * 5000) + "=1": "a key has few parts",
    "k" * 5000 + "=1": "unknown key",
}


def exploding(first: str, group: str, alias: str) -> str:
    """Nine levels, of which each holds the one before it nine times."""
    text = f"a: &a {first}\n"
    for before, name in pairwise("abcdefghi"):
        text += f"{name}: &{name} {group.format(', '.join([alias.format(before)] * 9))}\n"
    return text


HOSTILE_YAML = {
    "aliases that explode": exploding("[x, x, x, x, x, x, x, x, x]", "[{}]", "*{}"),
    "aliases in merges": exploding("{x: 1}", "{{<<: [{}]}}", "*{}"),
    "an alias of what it is in": "name: &a [*a]",
    "a key that is a list": "? [a, b]\n: 1",
    "a key that is a mapping": "? {a: b}\n: 1",
    "a key that is itself": "&a {*a: 1}",
    "an empty key": "~: 1",
    "a number that is none": "seed: !!int x",
    "a date that is none": "seed: 2001-99-99",
    "a time zone that is none": "seed: 2001-01-01T00:00:00+99:99",
    "a tag that runs code": "name: !!python/object/apply:os.system [ls]",
    "5,000 digits": "seed: " + "9" * 5000,
    "5,000 digits in base 16": "seed: 0x" + "f" * 5000,
    "deep lists": "[" * 100_000,
    "deep mappings": "{a: " * 3000 + "1" + "}" * 3000,
    "deep blocks": "".join(" " * n + "a:\n" for n in range(300)),
    "many values": "a: [" + "1, " * 60_000 + "]",
    "many keys": DEMO + "".join(f"\nk{n}: 1" for n in range(3000)),
    "a long text": "name: " + "x" * 3_000_000,
    "a character that is none": 'name: "\\Uffffffff"',
    "half a character": 'name: "\\ud800"',
    "a control character": "name: \x01",
    "two documents": "a: 1\n---\nb: 2",
    "no mapping": "- a",
    "nothing": "",
}


@pytest.mark.fault("wrong settings", "refused before anything starts, in one message")
@pytest.mark.parametrize("override", WRONG_SETTINGS, ids=lambda override: override[:40])
def test_a_wrong_setting_is_refused(override: str) -> None:
    assert WRONG_SETTINGS[override] in refusal(override)


@pytest.mark.fault("hostile YAML", "refused in one message, in bounded time and memory")
@pytest.mark.parametrize("kind", HOSTILE_YAML)
def test_hostile_yaml_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "hostile.yaml"
    path.write_text(HOSTILE_YAML[kind], encoding="utf-8", errors="surrogatepass")
    start = time.process_time()
    with pytest.raises(UserError) as caught:
        recipes.load(str(path))
    assert time.process_time() - start < 10  # a tenth of it is usual
    assert len(str(caught.value)) < 3000


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-le", "utf-32"])
def test_other_encodings_than_utf_8_are_refused_with_a_remedy(
    encoding: str, tmp_path: Path
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes((DEMO + "\n# ä").encode(encoding))
    with pytest.raises(UserError, match=r"UTF-8 .*; save it in that encoding|not valid YAML"):
        recipes.load(str(path))
    path.write_bytes((DEMO + "\n# ä").encode("utf-8-sig"))
    assert recipes.load(str(path)) == recipes.load("demo")


@pytest.mark.parametrize(
    "recipe", ["n" * 5000, "n" * 5000 + ".yaml", "a\0b.yaml", "", "..", "/dev/zero.yaml"]
)
def test_a_recipe_that_cannot_be_a_file_is_refused(recipe: str) -> None:
    with pytest.raises(UserError, match="no such recipe"):
        recipes.load(recipe)


def test_networks_too_large_for_the_memory_are_refused_by_their_size() -> None:
    widths = ["family.z_dim=1000000", "family.fmap_max=1000000", "family.fmap_base=1000000"]
    text = refusal(*widths)
    assert "GB of weights and need" in text and "this machine has" in text


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["..", "~nouser", "a\0", "x" * 5000, 10**22, float("inf"), 1e300, "s3://"])
)
VALUES = st.recursive(
    LEAVES,
    lambda inside: (
        st.lists(inside, max_size=3)
        | st.dictionaries(st.text(max_size=5) | st.integers(), inside, max_size=3)
    ),
    max_leaves=8,
)
KEYS = sorted(recipes._fields("progan"))


@QUICK
@given(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=3))
def test_any_values_become_a_configuration_or_a_message(changes: dict[str, Any]) -> None:
    tree = recipes.load("demo").model_dump(mode="json")
    try:
        for key, value in changes.items():
            recipes._set(tree, key.split("."), value, key)
        recipes.dump(recipes.with_absolute_paths(recipes.check(tree)))
    except UserError as error:
        assert str(error)


@QUICK
@given(st.dictionaries(st.text(max_size=8) | st.sampled_from(KEYS), VALUES, max_size=4))
def test_any_mapping_becomes_a_configuration_or_a_message(tree: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        recipes.check(tree)


@QUICK
@given(st.text(alphabet="ab:-?!&*<>[]{},'\"|#%@~ \n\t\\0x19._", max_size=60) | st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        plain_yaml.parse(text, "text")
    except UserError as error:
        assert "\n" not in str(error)
