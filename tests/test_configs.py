"""Configuration files: what they mean, what is refused, what comes back, and what the preview promises."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import subprocess
import sys
import typing
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tiny.runs import decisions, small_flux
from typer.testing import CliRunner

import cache_dit
from cache_dit import (
    CacheConfig,
    CacheDiTError,
    CalibratorConfig,
    DBCacheConfig,
    DBPruneConfig,
    ParamsModifier,
    Place,
    Preset,
    Schedule,
    ScheduleConfig,
    TaylorSeerCalibratorConfig,
    TeaCacheConfig,
    Trajectory,
    config_schema,
    load_configs,
    presets,
    save_configs,
)
from cache_dit.caching import catalogue
from cache_dit.caching.options import Options
from cache_dit.cli import app
from cache_dit.configs import load_sections, plain_configs
from cache_dit.configs.classes import CACHES, CALIBRATORS, short
from cache_dit.configs.preview import models_of, preview, steps_of
from cache_dit.configs.reading import MOST_BYTES
from cache_dit.configs.sections import HANDLERS
from cache_dit.demo import PROMPTS, generate, load_pipeline, weights_path
from cache_dit.errors import ConfigError, ConfigTypeError, UnsupportedModelError
from cache_dit.quantize import QuantType

KINDS = [kind for kind in vars(catalogue).values() if isinstance(kind, type) and issubclass(kind, Options)]
FREE = {
    name: function
    for name, function in presets.NAMED.items()
    if all(one.default is not one.empty for one in inspect.signature(function).parameters.values())
}


# --- what a file means ---

CACHE = """
cache_config:
  cache_type: DBCache
  Fn_compute_blocks: 1
  residual_diff_threshold: 0.12  # skip below this
calibrator_config:
  taylorseer_order: 1
"""
MEANT = {
    "cache_config": DBCacheConfig(Fn_compute_blocks=1, residual_diff_threshold=0.12),
    "calibrator_config": TaylorSeerCalibratorConfig(taylorseer_order=1),
}


def test_a_file_is_what_enable_cache_takes(tmp_path: Path) -> None:
    (tmp_path / "cache.yaml").write_text(CACHE)
    configs = load_configs(tmp_path / "cache.yaml")
    assert configs == MEANT
    model = cache_dit.enable_cache(small_flux(), **configs)
    assert cache_dit.strify(model) == "DBCache_F1B0_W8I1M0MC0_R0.12_T1O1"


def test_yaml_json_text_and_mapping_are_one(tmp_path: Path) -> None:
    data = {
        "cache_config": {"Fn_compute_blocks": 1, "residual_diff_threshold": 0.12},
        "calibrator_config": {"calibrator_type": "taylorseer", "taylorseer_order": 1},
    }
    (tmp_path / "cache.json").write_text(json.dumps({"$schema": "cache.schema.json", **data}))
    for source in (CACHE, json.dumps(data), data, str(tmp_path / "cache.json")):
        assert load_configs(source) == MEANT


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_class_is_reached_by_its_names(kind: type) -> None:
    choice, section = (
        (CACHES, "cache_config")
        if issubclass(kind, CacheConfig)
        else (
            CALIBRATORS,
            "calibrator_config",
        )
    )
    for name in (short(kind), kind.__name__, kind.__name__.upper()):
        assert type(load_configs({section: {choice.key: name}})[section]) is kind


def test_a_class_is_known_by_an_option_that_it_alone_has() -> None:
    assert type(load_configs("cache_config: {rel_l1_thresh: 0.4}")["cache_config"]) is TeaCacheConfig
    pruned = load_configs("cache_config: {non_prune_block_ids: [1]}")["cache_config"]
    assert pruned == DBPruneConfig(non_prune_block_ids=(1,))
    assert load_configs("cache_config: {}") == {"cache_config": DBCacheConfig()}
    assert load_configs("cache_config:\n") == {}


@pytest.mark.parametrize("name", FREE)
def test_presets_by_name(name: str) -> None:
    expected = FREE[name]()
    for source in (f"preset: {name}", {"preset": {"name": name}}):
        loaded = load_configs(source)
        assert Preset(**loaded) == dataclasses.replace(expected, model="")


def test_a_preset_with_arguments_and_changes() -> None:
    loaded = load_configs("preset: {name: trajectory, compute: 0.4}\ncache_config: {max_warmup_steps: 4}\n")
    assert Preset(**loaded) == presets.trajectory(0.4).with_options(max_warmup_steps=4)
    # Another class than the preset's replaces it whole.
    loaded = load_configs("preset: taylorseer_lite\ncalibrator_config: {calibrator_type: FoCa}")
    assert loaded["calibrator_config"] == cache_dit.FoCaCalibratorConfig()
    assert loaded["cache_config"] == presets.taylorseer_lite().cache_config


def test_words_become_objects() -> None:
    text = """
    cache_config: {place: output, steps_computation_mask: {mask_policy: fast, total_steps: 28}}
    calibrator_config: {cache_dtype: torch.bfloat16, memory_budget: 1000000}
    """
    loaded = load_configs(text)
    assert loaded["cache_config"].place is Place.OUTPUT
    expected = tuple(cache_dit.steps_mask(mask_policy="fast", total_steps=28))
    assert loaded["cache_config"].steps_computation_mask == expected
    assert loaded["calibrator_config"].cache_dtype is torch.bfloat16
    for mask in ("[1, 1, 0]", "'110'", "110"):
        loaded = load_configs(f"cache_config: {{steps_computation_mask: {mask}}}")
        assert loaded["cache_config"].steps_computation_mask == (1, 1, 0)


def test_numbers_in_yaml_may_have_an_exponent() -> None:
    for word, value in (("1e-2", 0.01), ("1.5E+1", 15.0), ("2e0", 2.0), (".5e0", 0.5)):
        loaded = load_configs(f"cache_config: {{residual_diff_threshold: {word}}}")
        assert loaded["cache_config"].residual_diff_threshold == value


def test_schedules_and_trajectories_in_files_of_their_own(tmp_path: Path) -> None:
    schedule = Schedule(total=4, computed=(0, 2), model="Flux", versions={"torch": "2"})
    trajectory = Trajectory((1.0, 0.6, 0.2), torch.eye(2, dtype=torch.float64), "Flux", 3)
    schedule.save(tmp_path / "steps.json")
    trajectory.save(tmp_path / "trajectory.json")
    # Named from the folder of the file, wherever the program runs.
    (tmp_path / "cache.yaml").write_text(
        "cache_config: {schedule: steps.json}\ncalibrator_config: {trajectory: trajectory.json}\n"
    )
    loaded = load_configs(tmp_path / "cache.yaml")
    assert loaded["cache_config"] == ScheduleConfig(schedule=schedule)
    _assert_same(loaded["calibrator_config"].trajectory, trajectory)
    save_configs(tmp_path / "saved.yaml", **loaded)
    again = load_configs(tmp_path / "saved.yaml")
    assert again["cache_config"] == loaded["cache_config"]
    _assert_same(again["calibrator_config"].trajectory, trajectory)


def _assert_same(left: Trajectory, right: Trajectory) -> None:
    assert (left.sigmas, left.model, left.pictures) == (right.sigmas, right.model, right.pictures)
    assert torch.equal(left.gram, right.gram)


def test_modifiers_change_only_what_they_name() -> None:
    text = """
    cache_config: {Fn_compute_blocks: 1, residual_diff_threshold: 0.1}
    params_modifiers:
    - cache_config: {residual_diff_threshold: 0.2}
      calibrator_config: {taylorseer_order: 1}
    - cache_config: {cache_type: DBPrune, Fn_compute_blocks: 1}
    """
    first, second = load_configs(text)["params_modifiers"]
    assert first == ParamsModifier(
        cache_config=DBCacheConfig().reset(residual_diff_threshold=0.2),
        calibrator_config=TaylorSeerCalibratorConfig(taylorseer_order=1),
    )
    assert second == ParamsModifier(cache_config=DBPruneConfig(Fn_compute_blocks=1))
    model = cache_dit.enable_cache(small_flux(), **load_configs(text))
    assert cache_dit.strify(model) == (
        "DBCache_F1B0_W8I1M0MC0_R0.2_T1O1+DBPrune_F1B0_W8I1M0MC0_P0.08_BLOCKS_T0O0"
    )


def test_what_enable_cache_does_not_take_is_said() -> None:
    text = "cache_config: {}\nquantize_config: {quant_type: float8_weight_only, exclude_layers: [proj]}\n"
    with pytest.warns(UserWarning, match="also has quantize_config"):
        assert load_configs(text) == {"cache_config": DBCacheConfig()}
    arguments = load_sections(text)["quantize_config"]
    assert arguments == {"quant_type": QuantType.FLOAT8_WEIGHT_ONLY, "exclude_layers": ("proj",)}


def test_other_sections_come_back() -> None:
    text = """
    parallelism_config: {tp_size: auto, backend: native_pytorch}
    quantize_config: {quant_type: int8_weight_only}
    attention_backend: native
    compile_config: {recompile_limit: 32, cuda_graphs: true}
    """
    loaded = load_sections(text)
    assert loaded["parallelism_config"] == cache_dit.parallelism.ParallelismConfig(
        tp_size="auto", backend=cache_dit.parallelism.ParallelismBackend.NATIVE_PYTORCH
    )
    assert load_sections(plain_configs(**loaded)) == loaded


# --- what is refused ---


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "cache_config: {residual_diff_threshold: -1}",
            "cache_config.residual_diff_threshold is -1; give a number of at least 0",
        ),
        (
            "cache_config: {residual_diff_treshold: 0.1}",
            "cache_config.residual_diff_treshold: DBCacheConfig has no option 'residual_diff_treshold'. "
            "Did you mean 'residual_diff_threshold'?",
        ),
        ("cache_config: {Fn_compute_blocks: '8'}", "cache_config.Fn_compute_blocks is '8', a str"),
        ("cache_config: {per_sample: 1}", "cache_config.per_sample is 1; give True or False"),
        ("cache_config: {place: otput}", "Did you mean 'output'?"),
        ("cache_config: {cache_type: teacach}", "cache_config.cache_type is 'teacach'; allowed are"),
        ("cache_config: {cache_type: teacach}", "Did you mean 'TeaCache'?"),
        ("cache_config: {threshold: 0.1}", "say which is meant, as cache_type: "),
        ("cache_config: [1]", "cache_config is [1]; give a mapping"),
        ("cache_config: {steps_computation_mask: '12'}", "give a list of 0 and 1"),
        ("cache_config: {steps_computation_mask: {mask_policy: fats}}", "'fats'"),
        ("cache_config: {uncond_window: [0.5, 0.2]}", "uncond_window is (0.5, 0.2)"),
        ("calibrator_config: {cache_dtype: float17}", "did you mean 'float16'?"),
        ("calibrator_config: {taylorseer_order: 11}", "calibrator_config: taylorseer_order is 11"),
        ("preset: taylorsear", "preset is 'taylorsear'; allowed are"),
        ("preset: {name: fora, interval: often}", "preset.interval is 'often'"),
        ("preset: {name: fora, often: 1}", "preset.often: fora has no option 'often'"),
        ("preset: {interval: 2}", "give a name, or a mapping with a name"),
        ("preset: magcache", "preset.ratios is missing"),
        ("params_modifiers: [{cache: {}}]", "params_modifiers[0].cache is unknown"),
        ("params_modifiers: [{cache_config: {Fn_compute_blocks: -1}}]", "params_modifiers[0].cache_config."),
        ("parallelism_config: {ulysses_size: 0}", "parallelism_config.ulysses_size is 0"),
        ("quantize_config: {quant_type: float9}", "quantize_config.quant_type is 'float9'"),
        ("compile_config: {recompile_limt: 9}", "Did you mean 'recompile_limit'?"),
        ("attention_backend: flas", "Did you mean 'flash'?"),
        ("cach_config: {a: 1}", "there is no section 'cach_config'; did you mean 'cache_config'?"),
        ("- a\n- b: 1", "is no mapping"),
        ("cache_config: {a: 1, a: 2}", "the key 'a' is there twice"),
        ('{"cache_config": {"a": 1, "a": 2}}', "the key 'a' is there twice"),
        ('{"cache_config": {"residual_diff_threshold": NaN}}', "NaN is no number"),
        ("cache_config: {residual_diff_threshold: .inf}", "cache_config.residual_diff_threshold is inf"),
        ("cache_config: {1: 2}", "the key 1 is no word"),
        ("cache_config: {on: 2}", "the key True is no word"),
        ("cache_config: {a: 2020-01-01}", "is a date"),
        ("cache_config: {a: [}\n", "cannot be read"),
        ("cache_config: !!python/object/apply:os.getcwd []\n", "cannot be read"),
    ],
)
def test_mistakes_are_told_with_their_place(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        load_sections(text)


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "cache.yaml"
    path.write_text("cache_config: {place: otput, Fn: 1}\ncalibrator_config: {calibrator_type: Taylor}\n")
    with pytest.raises(ConfigError) as found:
        load_configs(path)
    lines = str(found.value).splitlines()
    assert lines[0] == f"{path} has 3 mistakes:"
    assert [line.split(" ")[1].rstrip(":") for line in lines[1:]] == [
        "cache_config.place",
        "cache_config.Fn",
        "calibrator_config.calibrator_type",
    ]


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {x: 1, y: 2}\n" + "".join(
    f"{name}: &{name} {{<<: [{', '.join([f'*{before}'] * 9)}]}}\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LAUGHS, "aliases stand for more than"),
        (MERGES, "aliases stand for more than"),
        ("cache_config: &a\n  b: *a\n", "aliases stand for more than"),
        ("cache_config: " + "[" * 40 + "]" * 40, "nested more than 32 deep"),
        ("cache_config: " + "[" * 100_000, "nested more than 32 deep"),
        ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested more than 32 deep"),
        ("a: " + "x" * MOST_BYTES, "give at most 1000000"),
    ],
    ids=["laughs", "merges", "cycle", "deep", "deeper", "deep json", "long"],
)
def test_hostile_files_are_refused_at_once(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_configs(text)


def test_large_files_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "cache.yaml"
    path.write_text("# " + "x" * MOST_BYTES)
    with pytest.raises(ConfigError, match="more than 1000000 bytes"):
        load_configs(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        load_configs(path)
    with pytest.raises(FileNotFoundError):
        load_configs(tmp_path / "absent.yaml")


def test_aliases_and_merges_that_are_small_are_fine() -> None:
    text = "cache_config: &base {Fn_compute_blocks: 1}\nparams_modifiers:\n- cache_config:\n    <<: *base\n"
    text += "    Fn_compute_blocks: 2\n"
    (modifier,) = load_configs(text)["params_modifiers"]
    assert modifier.cache_config == DBCacheConfig().reset(Fn_compute_blocks=2)


# --- writing ---


def _values(hint: Any) -> st.SearchStrategy[Any]:
    """Values that an option of this type may have, most of them allowed."""
    inside = typing.get_args(hint)
    if type(None) in inside:
        return st.none() | _values(typing.Union[tuple(set(inside) - {type(None)})])  # noqa: UP007  # of a tuple
    if isinstance(hint, type) and issubclass(hint, Enum):
        return st.sampled_from(list(hint))
    if hint is torch.dtype:
        return st.sampled_from([torch.bfloat16, torch.float16, torch.float32])
    if hint is str:
        words = ["dynamic", "static", "once", "repeat", "residual", "hidden_states", "step", "sigma"]
        return st.sampled_from([*words, "newton", "published"])
    if hint is Schedule:
        versions = st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2)
        return st.builds(
            Schedule, total=st.just(9), computed=st.just((0, 3)), model=st.text(max_size=8), versions=versions
        )
    if typing.get_origin(hint) in (Sequence, tuple):
        return st.lists(_values(inside[0]), min_size=2, max_size=5).map(tuple)
    kinds = {bool: st.booleans(), int: st.integers(0, 9), float: st.floats(0.0, 1.0) | st.integers(0, 1)}
    return kinds.get(hint, st.nothing())


@st.composite
def _options(draw: st.DrawFn, kind: type) -> Any:
    hints = typing.get_type_hints(kind)
    fields = [field for field in dataclasses.fields(kind) if hints[field.name] != (Trajectory | None)]
    names = draw(st.lists(st.sampled_from([field.name for field in fields]), max_size=6, unique=True))
    chosen = {name: draw(_values(hints[name])) for name in names}
    try:
        return kind(**chosen)
    except CacheDiTError:
        assume(False)


CACHE_KINDS = [kind for kind in KINDS if issubclass(kind, CacheConfig)]
CALIBRATOR_KINDS = [kind for kind in KINDS if issubclass(kind, CalibratorConfig)]


@given(
    cache=st.sampled_from(CACHE_KINDS).flatmap(_options),
    calibrator=st.sampled_from(CALIBRATOR_KINDS).flatmap(_options),
    suffix=st.sampled_from([".yaml", ".json"]),
)
@settings(max_examples=120, deadline=None)
def test_what_is_saved_is_read_back_equal(
    tmp_path_factory: pytest.TempPathFactory, cache: Any, calibrator: Any, suffix: str
) -> None:
    path = tmp_path_factory.mktemp("configs") / f"cache{suffix}"
    fields = {field.name: getattr(cache, field.name) for field in dataclasses.fields(cache)[1:3]}
    saved = {
        "cache_config": cache,
        "calibrator_config": calibrator,
        "params_modifiers": [
            ParamsModifier(cache_config=cache.reset(**fields)),
            ParamsModifier(cache_config=cache),
        ],
    }
    save_configs(path, **saved)
    assert load_configs(path) == saved


def test_only_what_differs_is_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "cache.yaml"
    save_configs(path, **MEANT)
    assert path.read_text() == (
        "# cache-dit configuration\n"
        "cache_config:\n  cache_type: DBCache\n  Fn_compute_blocks: 1\n  residual_diff_threshold: 0.12\n"
        "calibrator_config:\n  calibrator_type: TaylorSeer\n"
    )


def test_a_preset_is_written_out(tmp_path: Path) -> None:
    save_configs(tmp_path / "cache.json", cache_config=presets.taylorseer_lite(4))
    assert Preset(**load_configs(tmp_path / "cache.json")) == presets.taylorseer_lite(4)


def test_a_foreign_file_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "cache.yaml"
    path.write_text("mine: true\n")
    with pytest.raises(ConfigError, match="was not written by this command"):
        save_configs(path, **MEANT)
    assert path.read_text() == "mine: true\n"
    path.unlink()
    save_configs(path, **MEANT)
    save_configs(path, cache_config=DBCacheConfig())
    assert load_configs(path) == {"cache_config": DBCacheConfig()}
    assert [file.name for file in tmp_path.iterdir()] == ["cache.yaml"]


def test_what_has_no_form_in_a_file_is_refused() -> None:
    with pytest.raises(ConfigTypeError, match="cache_config is partial"):
        plain_configs(cache_config=DBCacheConfig().reset(Fn_compute_blocks=1))
    with pytest.raises(ConfigTypeError, match=r"parallelism_config\.process_group is of type object"):
        plain_configs(parallelism_config=cache_dit.parallelism.ParallelismConfig(process_group=object()))
    with pytest.raises(ConfigError, match="did you mean 'cache_config'"):
        plain_configs(cache_conf=DBCacheConfig())

    class Own(DBCacheConfig):
        pass

    with pytest.raises(ConfigTypeError, match="is of type Own, which no file can name"):
        plain_configs(cache_config=Own())


def test_the_schema_describes_every_option() -> None:
    schema = config_schema()
    json.dumps(schema)
    for kind in KINDS:
        properties = schema["$defs"][kind.__name__]["properties"]
        names = {field.name for field in dataclasses.fields(kind)}
        assert names < set(properties)
        assert all(properties[name].get("description") for name in names), kind
        assert schema["$defs"][kind.__name__]["additionalProperties"] is False
    own = schema["$defs"]["DBCacheConfig"]["properties"]
    assert own["Fn_compute_blocks"]["default"] == 8
    assert own["place"]["enum"] == [place.name.lower() for place in Place]
    assert own["cache_type"]["enum"] == ["DBCache", "DBCacheConfig"]
    assert schema["properties"].keys() == {"$schema", "$comment", *HANDLERS}
    referred = set(re.findall(r"#/\$defs/(\w+)", json.dumps(schema)))
    assert referred <= set(schema["$defs"])


def test_nothing_is_imported_before_a_file_is_loaded() -> None:
    code = "import sys, cache_dit.configs; print(*sorted({'pydantic', 'yaml'} & sys.modules.keys()))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


# --- what a file will do ---

STEPS = 12


@pytest.fixture(scope="module")
def pipe() -> Any:
    return load_pipeline()


# Whose steps follow from their number alone.
KNOWN = {
    *("trajectory", "scm", "fora", "taylorseer", "taylorseer_lite", "foca", "hicache"),
    *("freqca", "spectrum", "dmd", "delta_dit"),
}


@pytest.mark.parametrize("name", FREE)
def test_the_preview_says_what_then_happens(name: str, pipe: Any) -> None:
    arguments = (
        {"total_steps": STEPS} if name == "scm" else {"size": "M"} if name.startswith("dbcache") else {}
    )
    configs = {"cache_config": FREE[name](**arguments)}
    effects = preview([pipe.transformer], configs, STEPS)
    (effect,) = effects
    assert (effect.steps is not None) == (name in KNOWN)
    if effect.steps is None or name == "delta_dit":  # whose two regions differ
        cache_dit.disable_cache(pipe)
        return
    cache_dit.enable_cache(pipe, **configs)
    generate(pipe, PROMPTS[0], steps=STEPS, cfg=1.0)
    assert effect.steps == {decisions(pipe): sum(part.skipped for part in effect.parts)}
    (stats,) = cache_dit.summary(pipe, logging=False)
    assert effect.flops is not None
    assert stats.flops_saved is not None
    # Weights stand for FLOPs, which misses the products of attention.
    assert effect.flops == pytest.approx(1.0 - stats.flops_saved, abs=0.03)
    cache_dit.disable_cache(pipe)


def test_limits_count_in_the_preview() -> None:
    config = DBCacheConfig(
        residual_diff_threshold=1.0, max_warmup_steps=2, max_continuous_cached_steps=2, max_cached_steps=5
    )
    assert steps_of(config.policy(), 12) == "CCSSCSSCSCCC"
    assert steps_of(DBCacheConfig().policy(), 12) is None


def test_a_class_and_a_folder_need_no_weights(tmp_path: Path) -> None:
    (model,) = models_of("FluxTransformer2DModel")
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert sum(parameter.numel() for parameter in model.parameters()) > 11_000_000_000
    (effect,) = preview([model], load_configs("preset: {name: trajectory, compute: 0.5}"), 28)
    assert effect.flops == 0.5
    assert effect.kept is None
    config = {"_class_name": "FluxTransformer2DModel", "num_layers": 2, "num_single_layers": 3}
    for part in ("transformer", "transformer_2"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text(json.dumps(config))
    index = {part: ["diffusers", "FluxTransformer2DModel"] for part in ("transformer", "transformer_2")}
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "A", "vae": [None, None], **index}))
    configs = load_configs("params_modifiers: [{cache_config: {Fn_compute_blocks: 1}}, {}]")
    effects = preview(models_of(str(tmp_path)), configs, 28)
    assert [effect.lists for effect in effects] == [
        {"transformer_blocks": 2, "single_transformer_blocks": 3}
    ] * 2


def test_lists_that_decide_for_themselves_are_told_apart(pipe: Any) -> None:
    configs = load_configs("params_modifiers: [{cache_config: {Fn_compute_blocks: 1}}, {}]")
    first, second = preview([pipe.transformer], configs, STEPS)
    assert (first.lists, second.lists) == ({"transformer_blocks": 4}, {"single_transformer_blocks": 12})
    assert first.parts[0].skipped == 3
    cache_dit.disable_cache(pipe)


# --- the command ---


def run(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["models", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def test_the_list() -> None:
    code, out, _ = run("--json")
    found = json.loads(out)
    assert code == 0
    assert {one["model"] for one in found["models"]} >= {"FluxTransformer2DModel", "WanTransformer3DModel"}
    assert "ControlNetModel" in found["unsupported"]
    code, out, _ = run()
    assert code == 0
    assert "transformer classes" in out


def test_one_model() -> None:
    code, out, _ = run("HunyuanDiT2DModel")
    assert code == 0
    assert "Bn_compute_blocks must not exceed Fn_compute_blocks" in out
    code, out, _ = run("FluxTransformer2DModel", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["lists"][0] == {
        "path": "transformer_blocks",
        "streams": ["encoder_hidden_states", "hidden_states"],
        "pattern": "Pattern_1",
    }
    assert (found["context_parallel"], found["tensor_parallel"]) == ("yes", "yes")
    found = json.loads(run("LuminaNextDiT2DModel", "--json")[1])
    assert (found["context_parallel"], found["tensor_parallel"]) == ("no", "no")


def test_answers_that_are_no() -> None:
    code, out, _ = run("ControlNetModel")
    assert (code, "U-Net" in out) == (1, True)
    code, out, error = run("FluxTransformer2DMdel")
    assert (code, out) == (2, "")
    assert "did you mean FluxTransformer2DModel?" in error
    code, _, error = run("--config", "absent.yaml")
    assert code == 2
    assert "absent.yaml" in error


def test_a_file_on_the_demo_model(tmp_path: Path) -> None:
    (tmp_path / "cache.yaml").write_text(
        "preset: {name: taylorseer_lite, interval: 3}\nattention_backend: native\n"
    )
    code, out, _ = run("--config", tmp_path / "cache.yaml", "--steps", STEPS, "--json")
    found = json.loads(out)
    assert code == 0
    (effect,), (measured,) = found["effects"], found["measured"]
    assert effect["steps"] == {measured["steps"]: 1}
    assert measured["steps"] == "CCCSSCSSCSSC"
    assert effect["flops"] == pytest.approx(measured["flops"])
    assert measured["state_bytes"] > 0
    assert found["other_sections"] == {"attention_backend": "native"}
    code, out, _ = run("--config", tmp_path / "cache.yaml", "--model", weights_path())
    assert code == 0
    assert "steps: CCCSSCSS" in out
    assert "measured" not in out


def test_a_file_that_does_not_fit_the_model(tmp_path: Path) -> None:
    (tmp_path / "cache.yaml").write_text("cache_config: {Fn_compute_blocks: 30}\n")
    code, _, error = run("--config", tmp_path / "cache.yaml", "--model", weights_path())
    assert code == 2
    assert "Fn_compute_blocks is 30 but transformer_blocks of FluxTransformer2DModel has 4 blocks" in error


def test_the_schema_on_the_command_line() -> None:
    code, out, _ = run("--schema")
    assert code == 0
    assert json.loads(out) == config_schema()


def test_unknown_classes_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="is not supported, because"):
        models_of("MultiControlNetModel")


# --- the page ---


def test_the_examples_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[1] / "docs" / "configs.md").read_text()
    blocks = re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    for written in [block for language, block in blocks if language == "yaml"]:
        Path(written.split()[1]).write_text(written)  # "# name", its first line
    space = {"pipe": small_flux(), "cache_dit": cache_dit}
    for block in [block for language, block in blocks if language == "python"]:
        exec(compile(block, "docs/configs.md", "exec"), space)
    assert cache_dit.strify(space["pipe"]) == "DBCache_F1B0_W8I1M0MC3_R0.12_T1O1"
    assert load_configs("saved.yaml")["cache_config"].steps_computation_mask == (1, 1, 0, 1)
    mistakes, shown = [block for language, block in blocks if language == "text"]
    Path("wrong.yaml").write_text("cache_config: {Fn_compute_blocks: -1, residual_diff_treshold: 0.1}")
    with pytest.raises(ConfigError) as found:
        load_configs("wrong.yaml")
    assert str(found.value).replace("wrong", "cache") == mistakes.strip()
    assert run("--config", "lite.yaml", "--model", "FluxTransformer2DModel") == (0, shown, "")


def test_every_section_is_on_the_page() -> None:
    text = (Path(__file__).parents[1] / "docs" / "configs.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == set(HANDLERS)
