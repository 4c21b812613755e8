import pytest
from pydantic import ValidationError

from alarm_service.settings import Settings


def test_settings_default_to_mini_on_loopback() -> None:
    settings = Settings()
    assert settings.recipe == ("mini",)
    assert (settings.host, settings.port, settings.device) == ("127.0.0.1", 8000, "auto")


def test_settings_every_option_has_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALARM_PORT", "9000")
    monkeypatch.setenv("ALARM_LOG_TEXTS", "true")
    assert Settings().port == 9000
    assert Settings().log_texts


def test_settings_flag_takes_precedence_over_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALARM_PORT", "9000")
    assert Settings(port=9001).port == 9001


def test_settings_variable_has_several_values_between_semicolons(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ALARM_RECIPE", "mini;translation")
    monkeypatch.setenv("ALARM_SET", "holistic.mean=1\nholistic.std=2;")
    assert Settings().recipe == ("mini", "translation")
    assert Settings().set == ("holistic.mean=1", "holistic.std=2")


def test_settings_flag_value_is_not_split() -> None:
    template = "models.rm.template=Human: {prompt};\nAssistant: {completion}"
    assert Settings(set=(template,)).set == (template,)


@pytest.mark.parametrize(
    "wrong",
    [
        {"port": 70000},
        {"device": "tpu"},
        {"device": "cuda:0,"},
        {"traces": "nope"},
        {"traces": "ftp://collector"},
        {"traces": "http://"},
        {"traces": "http://collector:port"},
        {"traces": "http://[::1"},
        {"allowed_host": ("a b",)},
        {"allowed_host": ("fine", "http://rewards")},
        {"allowed_host": ("rewards:8000",)},
        {"allowed_host": ("*.example.org",)},
        {"max_samples": 0},
        {"timeout_s": 0},
        {"drain_s": -1},
        {"log_level": "loud"},
        {"prot": 1},
        {"api_key": " "},
        {"api_key": ["good", ""]},
        {"max_requests_per_minute": 0},
    ],
)
def test_settings_invalid_option_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Settings(**wrong)


def test_settings_key_is_not_shown() -> None:
    assert "sesame" not in repr(Settings(api_key="sesame"))


def test_settings_valid_hosts_are_accepted() -> None:
    hosts = ("rewards.example.org", "reward_1", "10.0.0.7", "[::1]", "fe80::1%eth0", "*", "rätsel")
    assert Settings(allowed_host=hosts).allowed_host == hosts
    address = "http://localhost:4318/v1/traces"
    assert Settings(traces=address).traces == address
    assert Settings(traces="").traces is None
    assert Settings(device="cuda:0,cuda:1,cpu").device == "cuda:0,cuda:1,cpu"


def test_settings_invalid_device_is_explained() -> None:
    with pytest.raises(ValidationError, match="give auto, cpu, cuda or cuda:N, or several") as told:
        Settings(device="tpu")
    assert "pattern" not in str(told.value)
