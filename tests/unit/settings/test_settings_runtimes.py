"""The settings of managed instances' programs: added variables, refused ones, and memory shares."""

import json
from pathlib import Path

import pytest

from balancer.settings import Settings, SettingsError, load
from balancer.settings.process_environment import RESERVED


def from_yaml(folder: Path, text: str) -> Settings:
    file = folder / "balancer.yaml"
    file.write_text(text)
    return load([file], environ={})


def faults(folder: Path, text: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        from_yaml(folder, text)
    return [f"{each.key}: {each.problem}, {each.allowed}" for each in caught.value.faults]


def test_added_variables_are_text_however_they_are_written(tmp_path: Path) -> None:
    found = from_yaml(
        tmp_path,
        "runtimes:\n  ollama:\n    environment: {A: on, B: false, C: 3, D: 0.5, E: 'x y', http_proxy: ''}\n",
    )

    assert (found.runtimes.ollama.environment) == {
        "A": "1",
        "B": "0",
        "C": "3",
        "D": "0.5",
        "E": "x y",
        "http_proxy": "",
    }


def test_added_variables_are_json_in_a_variable() -> None:
    text = json.dumps({"VLLM_LOGGING_LEVEL": "WARNING"})

    found = load([], environ={"BALANCER_RUNTIMES__VLLM__ENVIRONMENT": text})

    assert found.runtimes.vllm.environment == {"VLLM_LOGGING_LEVEL": "WARNING"}


@pytest.mark.parametrize("runtime", ["ollama", "vllm", "llama_server"])
@pytest.mark.parametrize("name", [*RESERVED, "BALANCER_LISTEN", "cuda_visible_devices"])
def test_what_would_break_the_balancers_hold_is_refused_with_a_reason(
    tmp_path: Path, runtime: str, name: str
) -> None:
    told = faults(tmp_path, f"runtimes:\n  {runtime}:\n    environment: {{{name}: '1'}}\n")

    reason = RESERVED.get(name.upper(), "no variable of the balancer itself")
    assert [f"runtimes.{runtime}.environment: '{name}' cannot be set here, {reason}"] == told


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("[A]", "is not a mapping, "),
        ("{A B: c}", "'A B' is not a variable's name, "),
        ("{A: [secret]}", "'A' has no usable value, "),
        ("{A: null}", "'A' has no usable value, "),
    ],
)
def test_what_is_no_environment_is_refused_without_a_value_quoted(
    tmp_path: Path, value: str, problem: str
) -> None:
    told = faults(tmp_path, f"runtimes:\n  ollama:\n    environment: {value}\n")

    assert len(told) == 1
    assert f"runtimes.ollama.environment: {problem}" in told[0]
    assert "secret" not in told[0]


def test_a_broken_json_text_is_not_quoted() -> None:
    with pytest.raises(SettingsError) as caught:
        load([], environ={"BALANCER_RUNTIMES__OLLAMA__ENVIRONMENT": '{"A": "hunter2'})

    assert "hunter2" not in str(caught.value)


def test_shares_of_one_gpu_that_come_to_1_are_refused(tmp_path: Path) -> None:
    told = faults(
        tmp_path,
        """
runtimes:
  vllm:
    models:
      - {name: a, path: /a, devices: [0, 1], memory_share: 0.6}
      - {name: b, path: /b, devices: ["1"], memory_share: 0.4}
      - {name: c, path: /c, memory_share: 0.9}
""",
    )

    problem = "the shares of GPU '1' come to 1.00 with this one"
    assert [f"runtimes.vllm.models[1].memory_share: {problem}, less than 1 together"] == told


def test_shares_below_1_pass(tmp_path: Path) -> None:
    found = from_yaml(
        tmp_path,
        """
runtimes:
  vllm:
    models:
      - {name: a, path: /a, devices: [0], memory_share: 0.6}
      - {name: b, path: /b, devices: [0], memory_share: 0.39}
      - {name: c, path: /c, devices: [1], memory_share: 0.6}
""",
    )

    assert [each.name for each in found.runtimes.vllm.models] == ["a", "b", "c"]


def test_modeliums_switch_is_that_of_vllm_and_has_no_other_keys(tmp_path: Path) -> None:
    assert from_yaml(tmp_path, "vllm: {enabled: true}\n").runtimes.vllm.enabled
    assert faults(tmp_path, "vllm: {command: x}\n") == ["vllm.command: unknown key, known are enabled"]
