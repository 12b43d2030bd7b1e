"""Every weight of a model by name and shape, and how many of them an input is multiplied by."""

import math

from .config import DecoderConfig, DiaConfig, EncoderConfig


def parameter_shapes(config: DiaConfig) -> dict[str, tuple[int, ...]]:
    """Every weight of a model and its shape, in the order of use. Names that end in `norm.weight` are float32."""
    encoder, decoder = config.encoder, config.decoder
    shapes: dict[str, tuple[int, ...]] = {"encoder.embedding.weight": (encoder.vocab_size, encoder.hidden_size)}
    for index in range(encoder.num_hidden_layers):
        shapes |= _block_shapes(f"encoder.layers.{index}", encoder)
    shapes["encoder.norm.weight"] = (encoder.hidden_size,)
    table = (decoder.num_channels * decoder.vocab_size, decoder.hidden_size)
    shapes["decoder.embedding.weight"] = table
    for index in range(decoder.num_hidden_layers):
        shapes |= _block_shapes(f"decoder.layers.{index}", decoder)
    shapes["decoder.norm.weight"] = (decoder.hidden_size,)
    shapes["decoder.head.weight"] = table
    return shapes


def _block_shapes(name: str, sizes: EncoderConfig | DecoderConfig) -> dict[str, tuple[int, ...]]:
    width, inner = sizes.hidden_size, sizes.intermediate_size
    queries = sizes.num_attention_heads * sizes.head_dim
    keys = sizes.num_key_value_heads * sizes.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "self_norm": (width,),
        "self_attn.qkv": (queries + 2 * keys, width),
        "self_attn.o": (width, queries),
    }
    if isinstance(sizes, DecoderConfig):
        queries = sizes.cross_num_attention_heads * sizes.cross_head_dim
        keys = sizes.cross_num_key_value_heads * sizes.cross_head_dim
        shapes |= {
            "cross_norm": (width,),
            "cross_attn.q": (queries, width),
            "cross_attn.kv": (2 * keys, sizes.cross_hidden_size),
            "cross_attn.o": (width, queries),
        }
    shapes |= {"mlp_norm": (width,), "mlp.gate_up": (2 * inner, width), "mlp.down": (width, inner)}
    return {f"{name}.{part}.weight": shape for part, shape in shapes.items()}


def block_weights(sizes: EncoderConfig | DecoderConfig) -> int:
    """Weights that each row of a layer is multiplied by, but those that project the text."""
    shapes = _block_shapes("", sizes)
    return sum(math.prod(shape) for name, shape in shapes.items() if len(shape) == 2 and "cross_attn.kv" not in name)


def text_projection_weights(sizes: DecoderConfig) -> int:
    """Weights that each position of a text is multiplied by in a layer of the decoder."""
    return math.prod(_block_shapes("", sizes)[".cross_attn.kv.weight"])


def decoder_weights(config: DiaConfig) -> int:
    """Weights that each row is multiplied by in all layers of the decoder."""
    return config.decoder.num_hidden_layers * block_weights(config.decoder)
