"""Facts of a Dia model: sizes, special token ids and the delay pattern, as its config.json states them.

Symbols used in shape comments across the engine:
    B slots (requests), R = 2B rows, T decoder positions, S text positions, C channels (codebooks), V ids a channel,
    D decoder width, E encoder width, F MLP width, H query heads, G key/value heads, Dh head width, L layers
"""

import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from ..files.paths import read_json
from ..messages import shown

# Far above any Dia, and low enough that nothing is built or allocated for long before weights are found not to fit.
MAX_SIZES = {"num_hidden_layers": 512, "num_channels": 256, "max_position_embeddings": 65_536}
MAX_SIZE = 1_048_576
MAX_FLOAT, MIN_FLOAT = 1e30, 1e-30  # what float32 holds, and its reciprocal

OLD_SCHEMA_HINT = (
    "this is the schema of the first release (nari-labs/Dia-1.6B); use nari-labs/Dia-1.6B-0626, "
    "which holds config.json and weights in the present schema"
)


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of the text encoder. Field names and defaults are those of `encoder_config` in config.json."""

    num_hidden_layers: int = 12
    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_attention_heads: int = 16
    num_key_value_heads: int = 16
    head_dim: int = 128
    vocab_size: int = 256
    max_position_embeddings: int = 1024
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0

    def __post_init__(self) -> None:
        _check_positive(self, "encoder_config")
        _check_heads("encoder_config", self.num_attention_heads, self.num_key_value_heads)
        _check_rotates("encoder_config", self.head_dim)


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of the audio decoder. Field names and defaults are those of `decoder_config` in config.json."""

    num_hidden_layers: int = 18
    hidden_size: int = 2048
    intermediate_size: int = 8192
    num_attention_heads: int = 16
    num_key_value_heads: int = 4
    head_dim: int = 128
    cross_num_attention_heads: int = 16
    cross_num_key_value_heads: int = 16
    cross_head_dim: int = 128
    cross_hidden_size: int = 1024
    num_channels: int = 9
    vocab_size: int = 1028
    max_position_embeddings: int = 3072
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0

    def __post_init__(self) -> None:
        _check_positive(self, "decoder_config")
        _check_heads("decoder_config", self.num_attention_heads, self.num_key_value_heads)
        _check_heads("decoder_config.cross", self.cross_num_attention_heads, self.cross_num_key_value_heads)
        _check_rotates("decoder_config", self.head_dim)


@dataclass(frozen=True)
class DiaConfig:
    """A whole Dia model.

    `eos_token_id` ends channel 0 and is also the number of audio codes: ids below it are codes, ids above it are
    never drawn. `delay_pattern[c]` is the number of rows by which channel c lags behind.

    Raises:
        ValueError: a size, token id or delay that no model can have; the message names it.
    """

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    delay_pattern: tuple[int, ...] = (0, 8, 9, 10, 11, 12, 13, 14, 15)
    bos_token_id: int = 1026
    eos_token_id: int = 1024
    pad_token_id: int = 1025

    def __post_init__(self) -> None:
        channels, vocab = self.decoder.num_channels, self.decoder.vocab_size
        if len(self.delay_pattern) != channels:
            raise ValueError(
                f"config: delay_pattern {shown(list(self.delay_pattern))} has {len(self.delay_pattern)} entries "
                f"but decoder_config.num_channels is {channels}"
            )
        if any(type(d) is not int or d < 0 for d in self.delay_pattern):
            raise ValueError(f"config: delay_pattern must hold integers >= 0, got {shown(list(self.delay_pattern))}")
        if self.delay_pattern[0] != 0:
            raise ValueError(
                "config: delay_pattern must begin with 0, as channel 0 tells the end, "
                f"got {shown(list(self.delay_pattern))}"
            )
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            value = getattr(self, name)
            if type(value) is not int or not 0 <= value < vocab:
                raise ValueError(f"config: {name} must be an integer in [0, {vocab}), got {shown(value)}")
        if self.encoder.hidden_size != self.decoder.cross_hidden_size:
            raise ValueError(
                f"config: decoder_config.cross_hidden_size {self.decoder.cross_hidden_size} must equal "
                f"encoder_config.hidden_size {self.encoder.hidden_size}"
            )
        if self.max_delay + 2 > self.decoder.max_position_embeddings:
            raise ValueError(
                f"config: decoder_config.max_position_embeddings {self.decoder.max_position_embeddings} "
                f"leaves no row for audio beside a delay of {shown(self.max_delay)}"
            )

    @property
    def is_published_size(self) -> bool:
        """Whether this is Dia-1.6B or a fine-tuned copy of it, to judge by its sizes."""
        ours, published = (self.encoder, self.decoder), (EncoderConfig(), DecoderConfig())
        return [(part.num_hidden_layers, part.hidden_size) for part in ours] == [
            (part.num_hidden_layers, part.hidden_size) for part in published
        ]

    @property
    def max_delay(self) -> int:
        """Rows between the first and the last channel of one frame."""
        return max(self.delay_pattern)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> "DiaConfig":
        """Read the content of a config.json, in nari-labs' or transformers' spelling.

        Raises:
            ValueError: not a Dia config, an old schema, or a setting that this engine does not compute.
        """
        if not isinstance(raw, dict):
            raise ValueError(f"config: expected a JSON object, got {type(raw).__name__}")
        if "decoder_config" not in raw or "encoder_config" not in raw:
            if isinstance(raw.get("model"), dict):
                raise ValueError(f"config: no encoder_config and decoder_config; {OLD_SCHEMA_HINT}")
            missing = [key for key in ("encoder_config", "decoder_config") if key not in raw]
            raise ValueError(f"config: {' and '.join(missing)} missing; this is not the config.json of a Dia model")
        encoder, decoder = raw["encoder_config"], raw["decoder_config"]
        tokens = {}
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            # transformers 5 moved the ids into decoder_config; an id at the top still wins, as it does there.
            value = raw.get(name)
            value = decoder.get(name) if value is None and isinstance(decoder, dict) else value
            if value is not None:
                tokens[name] = value
        if raw.get("delay_pattern") is not None:
            if not isinstance(raw["delay_pattern"], list):
                raise ValueError(f"config: delay_pattern must be a list, got {shown(raw['delay_pattern'])}")
            tokens["delay_pattern"] = tuple(raw["delay_pattern"])
        return cls(
            encoder=_part(EncoderConfig, "encoder_config", encoder),
            decoder=_part(DecoderConfig, "decoder_config", decoder),
            **tokens,
        )

    @classmethod
    def from_file(cls, path: str | Path) -> "DiaConfig":
        """Read a config.json.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not JSON, or not the config of a Dia model; the message names the file.
        """
        path = Path(path)
        content = read_json(path)
        try:
            return cls.from_dict(content)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """The content of a config.json that `from_dict`, nari-labs/dia and transformers all read."""

        def part(config: EncoderConfig | DecoderConfig, model_type: str) -> dict[str, Any]:
            return {"model_type": model_type, "hidden_act": "silu", **vars(config)}

        return {
            "architectures": ["DiaForConditionalGeneration"],
            "model_type": "dia",
            "is_encoder_decoder": True,
            "encoder_config": part(self.encoder, "dia_encoder"),
            "decoder_config": part(self.decoder, "dia_decoder"),
            "delay_pattern": list(self.delay_pattern),
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_id,
            "pad_token_id": self.pad_token_id,
            "norm_eps": self.decoder.norm_eps,
        }


Part = TypeVar("Part", EncoderConfig, DecoderConfig)


def _part(cls: type[Part], name: str, raw: Any) -> Part:
    """Build one sub-config, refusing what would change the arithmetic if it were ignored."""
    if not isinstance(raw, dict):
        raise ValueError(f"config: {name} must be a JSON object, got {type(raw).__name__}")
    activation = raw.get("hidden_act", "silu")
    if activation != "silu":
        raise ValueError(f"config: {name}.hidden_act must be 'silu', got {shown(activation)}")
    rope = raw.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise ValueError(f"config: {name}.rope_parameters must be a JSON object, got {shown(rope)}")
    for scaling in (rope, raw.get("rope_scaling")):
        if _scales_positions(scaling):
            raise ValueError(f"config: {name} asks for RoPE scaling ({shown(scaling)}), which Dia does not use")
    known = {item.name: raw[item.name] for item in fields(cls) if raw.get(item.name) is not None}
    if "rope_theta" in rope:
        known["rope_theta"] = rope["rope_theta"]
    if "num_attention_heads" in known and raw.get("num_key_value_heads", 0) is None:
        known["num_key_value_heads"] = known["num_attention_heads"]
    return cls(**known)


def _scales_positions(rope: Any) -> bool:
    """Whether a `rope_scaling` or `rope_parameters` asks for anything but plain rotary embedding."""
    if isinstance(rope, dict):
        return any(rope.get(key, "default") not in ("default", None) for key in ("rope_type", "type"))
    return rope not in (None, 1, 1.0)


def _check_positive(config: EncoderConfig | DecoderConfig, name: str) -> None:
    for item in fields(config):
        value, integer = getattr(config, item.name), item.type in (int, "int")
        wanted = (int,) if integer else (int, float)
        if isinstance(value, bool) or not isinstance(value, wanted) or not 0 < value < math.inf:
            kind = "integer" if integer else "number"
            raise ValueError(f"config: {name}.{item.name} must be a positive {kind}, got {shown(value)}")
        least, most = (1, MAX_SIZES.get(item.name, MAX_SIZE)) if integer else (MIN_FLOAT, MAX_FLOAT)
        if not least <= value <= most:
            raise ValueError(f"config: {name}.{item.name} must be between {least} and {most}, got {shown(value)}")


def _check_heads(name: str, query_heads: int, key_value_heads: int) -> None:
    if query_heads % key_value_heads:
        raise ValueError(
            f"config: {name}: {query_heads} attention heads cannot share {key_value_heads} key/value heads"
        )


def _check_rotates(name: str, head_dim: int) -> None:
    if head_dim % 2:
        raise ValueError(f"config: {name}.head_dim must be even for rotary embedding, got {head_dim}")
