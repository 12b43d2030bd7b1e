"""What a config.json may say, and every refusal."""

import json

import pytest

from dia_engine.model.config import DecoderConfig, DiaConfig, EncoderConfig


def published() -> dict:
    """The content of a config.json in the published schema, sizes of the real model."""
    return DiaConfig().to_dict()


def test_defaults_are_the_published_sizes():
    config = DiaConfig.from_dict({"encoder_config": {}, "decoder_config": {}})
    assert config == DiaConfig()
    assert (config.encoder.hidden_size, config.decoder.hidden_size, config.max_delay) == (1024, 2048, 15)


def test_what_is_written_is_read_back(tmp_path):
    config = DiaConfig(
        encoder=EncoderConfig(hidden_size=48, head_dim=6, norm_eps=1e-6),
        decoder=DecoderConfig(cross_hidden_size=48, num_channels=3, rope_theta=500.0, cross_head_dim=7),
        delay_pattern=(0, 4, 2),
        eos_token_id=900,
    )
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.to_dict()))
    assert DiaConfig.from_file(path) == config


def test_transformers_5_spelling():
    raw = published()
    for name in ("eos_token_id", "pad_token_id", "bos_token_id"):
        raw["decoder_config"][name] = raw[name] - 4
        raw[name] = None
    raw["decoder_config"]["rope_parameters"] = {"rope_type": "default", "rope_theta": 77.0}
    raw["decoder_config"]["num_key_value_heads"] = None
    config = DiaConfig.from_dict(raw)
    assert (config.eos_token_id, config.pad_token_id, config.bos_token_id) == (1020, 1021, 1022)
    assert config.decoder.rope_theta == 77.0
    assert config.decoder.num_key_value_heads == config.decoder.num_attention_heads


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw.pop("decoder_config"), "decoder_config missing"),
        (lambda raw: raw.update(decoder_config=3), "decoder_config must be a JSON object"),
        (lambda raw: raw.update(delay_pattern=[0, 1]), "delay_pattern .* has 2 entries but .*num_channels is 9"),
        (lambda raw: raw.update(delay_pattern=[0] * 8 + [-1]), "delay_pattern must hold integers >= 0"),
        (lambda raw: raw.update(delay_pattern=[0] * 8 + [4000]), "leaves no row for audio"),
        (lambda raw: raw.update(delay_pattern=[1] * 9), "delay_pattern must begin with 0"),
        (lambda raw: raw["encoder_config"].update(rope_parameters=[1]), "rope_parameters must be a JSON object"),
        (lambda raw: raw["encoder_config"].update(norm_eps=float("inf")), "norm_eps must be a positive number"),
        (lambda raw: raw.update(eos_token_id=1028), r"eos_token_id must be an integer in \[0, 1028\), got 1028"),
        (lambda raw: raw["decoder_config"].update(hidden_size=0), "decoder_config.hidden_size .* got 0"),
        (lambda raw: raw["decoder_config"].update(hidden_size="2048"), "hidden_size must be a positive integer"),
        (lambda raw: raw["decoder_config"].update(num_key_value_heads=3), "16 attention heads cannot share 3"),
        (lambda raw: raw["decoder_config"].update(hidden_act="gelu"), "hidden_act must be 'silu', got 'gelu'"),
        (lambda raw: raw["encoder_config"].update(rope_scaling={"type": "linear"}), "asks for RoPE scaling"),
        (lambda raw: raw["encoder_config"].update(head_dim=9), "head_dim must be even"),
        (lambda raw: raw["encoder_config"].update(hidden_size=512), "cross_hidden_size 1024 must equal .* 512"),
    ],
)
def test_impossible_configs_are_refused_by_name(change, message):
    raw = published()
    change(raw)
    with pytest.raises(ValueError, match=message):
        DiaConfig.from_dict(raw)


def test_old_schema_names_the_repository_to_use():
    with pytest.raises(ValueError, match="nari-labs/Dia-1.6B-0626"):
        DiaConfig.from_dict({"version": "0.1", "model": {"encoder": {"n_layer": 12}}, "training": {}, "data": {}})


def test_file_errors_name_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent.json"):
        DiaConfig.from_file(tmp_path / "absent.json")
    broken = tmp_path / "broken.json"
    for content in (b"{", b"[]", b"\xff\xfe"):
        broken.write_bytes(content)
        with pytest.raises(ValueError, match="broken.json"):
            DiaConfig.from_file(broken)
