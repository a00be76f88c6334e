"""Recipes: what is read from TOML, what is refused, and how the message helps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from llmconv import Recipe, RecipeError, Registry
from llmconv.errors import LlmconvError
from llmconv.plugins.options import required_options
from llmconv.recipe import shipped
from llmconv.recipe.schema import json_schema

SHIPPED = shipped.folder() / "tiny_llama.toml"
MINIMAL = """
[model]
source = "decoder"
checkpoint = "weights"

[target]
name = "SM8550"

[graphs.token]
ar = 1
context = 16

[backend]
name = "onnx"
"""

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_recipe(text: str) -> Path:
        file = tmp_path / "small.toml"
        file.write_text(text)
        return file

    return write_recipe


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.load()


def message_of(call: Callable[[], object]) -> str:
    with pytest.raises(LlmconvError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_shipped_recipe_loads() -> None:
    recipe = Recipe.load(SHIPPED)
    assert recipe.name == "tiny_llama"
    assert recipe.model.checkpoint == SHIPPED.parent / "tiny_llama"
    assert {name: (g.ar, g.context) for name, g in recipe.graphs.items()} == {"prompt": (32, 128), "token": (1, 128)}
    assert [(p.name, p.options) for p in recipe.passes][-2:] == [
        ("split_model", {"parts": 2}),
        ("w4a16", {"quantizer": "gptq"}),
    ]


def test_paths_are_relative_to_the_recipe_file(write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = write(MINIMAL + '[calibration]\ntext = "../text.txt"\n[output]\nfolder = "out"\n')
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    recipe = Recipe.load(file)
    assert recipe.model.checkpoint == tmp_path / "weights"
    assert recipe.calibration is not None
    assert recipe.calibration.text == tmp_path.parent / "text.txt"
    assert recipe.folder == tmp_path / "out"


def test_paths_in_overrides_are_relative_to_the_current_folder(
    write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file, elsewhere = write(MINIMAL), tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert Recipe.load(file, ["model.checkpoint=mine"]).model.checkpoint == elsewhere / "mine"


@pytest.mark.parametrize("there", [True, False])
def test_a_link_to_the_output_folder_is_followed(write: Write, tmp_path: Path, there: bool) -> None:
    if there:
        (tmp_path / "large").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "large")
    assert Recipe.load(write(MINIMAL), [f"output.folder={tmp_path / 'out'}"]).folder == tmp_path / "large"


def test_bundle_goes_to_build_in_the_current_folder(
    write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Recipe.load(write(MINIMAL)).folder == tmp_path / "build" / "small"


def test_home_is_expanded(write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert Recipe.load(write(MINIMAL.replace('"weights"', '"~/weights"'))).model.checkpoint == (
        tmp_path / "home" / "weights"
    )


def test_environment_variables_are_substituted(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELS", "/data/models")
    recipe = Recipe.load(write(MINIMAL.replace('"weights"', '"${MODELS}/llama"')))
    assert recipe.model.checkpoint == Path("/data/models/llama")


def test_missing_environment_variable_is_named(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MODELS", raising=False)
    file = write(MINIMAL.replace('"weights"', '"${MODELS}/llama"'))
    message = message_of(lambda: Recipe.load(file))
    assert message == f"{file}: model.checkpoint: environment variable MODELS is not set"


def test_overrides_reach_sections_and_passes() -> None:
    recipe = Recipe.load(SHIPPED, ["graphs.prompt.ar=16", "passes.w4a16.kv_bits=16", "verify.passes=false"])
    assert recipe.graphs["prompt"].ar == 16
    assert recipe.passes[-1].options == {"quantizer": "gptq", "kv_bits": 16}
    assert not recipe.verify.passes


def test_wrong_override_names_the_file() -> None:
    assert message_of(lambda: Recipe.load(SHIPPED, ["nonsense"])).startswith(f"{SHIPPED}: --set nonsense: ")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param(("context = 16", "contxt = 16"), "graphs.token.context: missing", id="missing key"),
        pytest.param(("ar = 1", "ar = 1\nrow = 2"), "unknown key 'graphs.token.row'", id="unknown key of a graph"),
        pytest.param(("[target]", "[taget]"), "target: missing", id="missing section"),
        pytest.param(("ar = 1", "ar = 32"), "context = 16 is below ar = 32", id="ar above context"),
        pytest.param(("ar = 1", "ar = 0"), "graphs.token.ar: ", id="no tokens"),
        pytest.param(("ar = 1", 'ar = "one"'), "graphs.token.ar: ", id="wrong type"),
        pytest.param(("[graphs.token]", "[graphs.Token]"), "graphs.Token: ", id="graph name"),
        pytest.param(('[target]\nname = "SM8550"', "[target.name]"), "target.name: ", id="section for a value"),
        pytest.param(
            ("[backend]", 2 * '[[passes]]\nname = "decompose"\n' + "[backend]"),
            "passes: 'decompose' stands twice; options go by its name, so remove one",
            id="a pass twice",
        ),
    ],
)
def test_what_is_wrong_is_said(write: Write, change: tuple[str, str], expected: str) -> None:
    file = write(MINIMAL.replace(*change, 1))
    message = message_of(lambda: Recipe.load(file))
    assert message.startswith(f"{file}: ")
    assert expected in message


@pytest.mark.parametrize(
    ("extra", "wrong", "nearest"),
    [
        ('[calibration]\ntext = "t"\nsample = 4\n', "calibration.sample", "samples"),
        ('[outputs]\nfolder = "x"\n', "outputs", "output"),
        ("[verify]\npass = true\n", "verify.pass", "passes"),
    ],
)
def test_unknown_key_comes_with_the_nearest(write: Write, extra: str, wrong: str, nearest: str) -> None:
    message = message_of(lambda: Recipe.load(write(MINIMAL + extra)))
    assert f"unknown key '{wrong}'; did you mean '{nearest}'?" in message


def test_wrong_type_shows_what_was_given(write: Write) -> None:
    message = message_of(lambda: Recipe.load(write(MINIMAL.replace("context = 16", 'context = "wide"'))))
    assert message.endswith("not 'wide'")


def test_value_where_a_section_belongs(write: Write) -> None:
    file = write("target = 3\n" + MINIMAL.replace('[target]\nname = "SM8550"\n', ""))
    message = message_of(lambda: Recipe.load(file))
    assert message.startswith(f"{file}: target: ")
    assert message.endswith("not 3")


def test_recipe_needs_a_graph(write: Write) -> None:
    file = write(MINIMAL.replace("[graphs.token]\nar = 1\ncontext = 16", "[graphs]"))
    assert "graphs: " in message_of(lambda: Recipe.load(file))


def test_not_toml(write: Write) -> None:
    assert "not TOML: " in message_of(lambda: Recipe.load(write("[model\n")))


def test_not_there(tmp_path: Path) -> None:
    assert "no such recipe" in message_of(lambda: Recipe.load(tmp_path / "none.toml"))


def test_folder(tmp_path: Path) -> None:
    assert "cannot be read" in message_of(lambda: Recipe.load(tmp_path))


def test_not_utf8(tmp_path: Path) -> None:
    file = tmp_path / "latin.toml"
    file.write_bytes('name = "Zürich"'.encode("latin-1"))
    assert "cannot be read" in message_of(lambda: Recipe.load(file))


def test_dict_and_back() -> None:
    recipe = Recipe.load(SHIPPED, ["passes.w4a16.weights={'lm_head.weight' = {bits = 4}}", "output.folder=/tmp/out"])
    assert Recipe.from_dict(recipe.to_dict()) == recipe


def test_from_dict_leaves_its_argument_alone() -> None:
    values: dict[str, Any] = {
        "model": {"source": "decoder", "checkpoint": "weights"},
        "target": {"name": "SM8550"},
        "graphs": {"token": {"ar": 1, "context": 16}},
        "backend": {"name": "onnx"},
    }
    assert Recipe.from_dict(values).model.checkpoint == Path.cwd() / "weights"
    assert values["model"]["checkpoint"] == "weights"


def test_shipped_recipe_means_something(registry: Registry) -> None:
    Recipe.load(SHIPPED).check(registry)


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("passes.decompose.name=decompos", "no pass named 'decompos'; did you mean 'decompose'?"),
        ("passes.split_model.part=2", "pass 'split_model': no option 'part'; did you mean 'parts'?"),
        ("passes.w4a16.kv_bits=9", "pass 'w4a16': option 'kv_bits'"),
        ("passes.w4a16.quantizer=gptk", "no quantizer named 'gptk'; did you mean 'gptq'?"),
        ("passes.w4a16.options={damp = 0.1}", "quantizer 'gptq': no option 'damp'; did you mean 'damping'?"),
        ("passes.w4a16.weights={'lm_*' = {quantizer = 'clip'}}", "no quantizer named 'clip'"),
        ("backend.name=qn", "no backend named 'qn'; did you mean 'qnn'?"),
        ("backend.twin=never", "backend 'qnn': no option 'twin'; did you mean 'twins'?"),
        ("model.source=decoders", "no source named 'decoders'; did you mean 'decoder'?"),
        ("model.options.heads=3", "source 'decoder': no option 'heads'"),
        ("target.name=Galaxy S23 Ulta", "did you mean 'Samsung Galaxy S23 Ultra'?"),
    ],
)
def test_check_names_what_means_nothing(registry: Registry, assignment: str, expected: str) -> None:
    recipe = Recipe.load(SHIPPED, [assignment])
    assert expected in message_of(lambda: recipe.check(registry))


def test_check_raises_a_recipe_error_for_an_option(registry: Registry) -> None:
    with pytest.raises(RecipeError, match="option 'parts'"):
        Recipe.load(SHIPPED, ["passes.split_model.parts=two"]).check(registry)


def references(schema: object) -> Iterator[str]:
    if isinstance(schema, dict):
        yield from (value for key, value in schema.items() if key == "$ref")
        yield from (ref for value in schema.values() for ref in references(value))
    elif isinstance(schema, list):
        yield from (ref for value in schema for ref in references(value))


def test_schema_holds_every_option_of_every_pass_and_backend(registry: Registry) -> None:
    properties = json_schema(registry)["properties"]
    for kind, place in (("pass", properties["passes"]["items"]), ("backend", properties["backend"])):
        known = registry.of_kind(kind)  # type: ignore[arg-type]
        by_name = {item["properties"]["name"]["const"]: item for item in place["oneOf"]}
        assert by_name.keys() == known.keys()
        for name, entry in known.items():
            options = [f.name for f in fields(entry.plugin) if not f.name.startswith("_")]
            assert set(by_name[name]["properties"]) == {"name", *options}
            assert by_name[name]["required"] == ["name", *required_options(entry.plugin)]
            assert by_name[name]["description"]
            for option in options:
                assert by_name[name]["properties"][option]["description"], f"{name}.{option}: say it under Attributes"


def test_schema_says_what_every_key_means(registry: Registry) -> None:
    schema = json_schema(registry)
    sections = [schema, *(schema["$defs"][name] for name in schema["$defs"] if name.endswith("Section"))]
    assert len(sections) == 8
    for section in sections:
        assert section["description"]
        for key, found in section["properties"].items():
            said = found.get("description") or "oneOf" in found or "$ref" in str(found)
            assert said, f"{section['title']}.{key}: say it under Attributes"


def test_schema_has_defaults_and_the_options_of_sources(registry: Registry) -> None:
    schema = json_schema(registry)
    w4a16 = next(one for one in schema["properties"]["passes"]["items"]["oneOf"] if one["title"] == "w4a16")
    assert w4a16["properties"]["block"]["default"] == 0
    assert "columns" in w4a16["properties"]["block"]["description"]
    model = schema["$defs"]["ModelSection"]
    assert "decoder" in model["properties"]["source"]["examples"]
    assert {one["if"]["properties"]["source"]["const"] for one in model["allOf"]} == set(registry.of_kind("source"))
    assert "Samsung Galaxy S23 Ultra" in schema["$defs"]["TargetSection"]["properties"]["name"]["examples"]


def test_schema_refers_to_nothing_that_it_lacks(registry: Registry) -> None:
    schema = json_schema(registry)
    found = set(references(schema))
    assert found
    assert found <= {f"#/$defs/{name}" for name in schema["$defs"]}


def test_schema_accepts_the_shipped_recipe(registry: Registry) -> None:
    """By hand: sections and keys are known, what is required is there, passes and backend match one entry each."""
    schema, values = json_schema(registry), Recipe.load(SHIPPED).to_dict()
    assert set(schema["required"]) <= set(values) <= set(schema["properties"])
    for section, definition in {"model": "ModelSection", "target": "TargetSection", "verify": "VerifySection"}.items():
        item = schema["$defs"][definition]
        assert set(item.get("required", ())) <= set(values[section]) <= set(item["properties"])
    named = [(entry, schema["properties"]["passes"]["items"]["oneOf"]) for entry in values["passes"]]
    for entry, options in [*named, (values["backend"], schema["properties"]["backend"]["oneOf"])]:
        (match,) = [o for o in options if o["properties"]["name"]["const"] == entry["name"]]
        assert set(match["required"]) <= set(entry) <= set(match["properties"])


def test_recipe_that_begins_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "marked.toml").write_bytes(b"\xef\xbb\xbf" + SHIPPED.read_bytes())  # as some editors save it
    assert Recipe.load(tmp_path / "marked.toml").passes == Recipe.load(SHIPPED).passes
