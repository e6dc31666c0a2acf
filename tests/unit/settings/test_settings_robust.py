"""Whatever stands in a file or a variable, the loader answers with settings or with faults."""

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as profile
from hypothesis import strategies as st

from balancer.settings import Settings, SettingsError, load

YAML_PIECES = "instances:~- ~  ~\t~\n~{~}~[~]~*a~&a ~<<: ~? ~: ~!!x ~'~\"~health:~listen: ~127.0.0.1:1~null"
OTHER_PIECES = "[health]~[GPU_LoadBalancing]~MaxBatchSize~ = ~#~;~%~\0~\r~\ufeff~---~|~>~metrics:~port:~9~1e9"
URL_PIECES = "url: ~http://a~name: ~[1]"
TEXTS = st.one_of(
    st.text(max_size=200),
    st.lists(st.sampled_from(f"{YAML_PIECES}~{OTHER_PIECES}~{URL_PIECES}".split("~")), max_size=40).map(
        "".join
    ),
)
VALUES = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        ["[", "{}", "[{}]", "[[[]]]", '[{"url":[]}]', '["\\ud800"]', "[" * 9999, "[1e999]", '{"x":NaN}']
    ),
)


@pytest.mark.parametrize("name", ["a.yaml", "a.ini", "a"])
@profile(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXTS)
def test_no_text_crashes_the_loader(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_bytes(text.encode("utf-8", "surrogatepass"))

    with suppress(SettingsError):
        load([path], environ={}, dotenv=path)


@profile(max_examples=150, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(sorted(f"BALANCER_{name.upper()}" for name in Settings.model_fields)), VALUES
    )
)
def test_no_variable_crashes_the_loader(variables: dict[str, str]) -> None:
    with suppress(SettingsError):
        load([], environ=variables)


@profile(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(sorted(Settings.model_fields)),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["url", "name", "gpu_id", "port", "enabled", "x"]), inner, max_size=3
                )
            ),
            max_leaves=12,
        ),
    )
)
def test_no_value_crashes_the_loader(values: dict[str, object]) -> None:
    with suppress(SettingsError):
        load([], environ={}, overrides=values)
