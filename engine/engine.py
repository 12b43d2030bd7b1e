"""Load a model once, then turn scripts into sound."""

import logging
from collections.abc import Iterable, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from .codec import DEFAULT_CODEC, Codec
from .codec.windowed import CodeWindows, SoundWindows
from .device import checked_device, checked_dtype, default_dtype
from .files.audio import write_audio
from .files.hub import DEFAULT_MODEL, find_model
from .kernels.cpu.onednn import PackedInt8Weight, fastest
from .kernels.quantized import Weight
from .model.config import DiaConfig
from .model.dia import DiaModel
from .runtime.generation import finished_codes, start_requests, warm_up
from .runtime.prompts import encode_prompt, read_prompt
from .runtime.request import Draft, read_requests
from .runtime.runner import Stepper
from .runtime.stream import Stream
from .runtime.streaming import ChunkSizes, speak, window_lengths
from .sampling_params import REFERENCE_DEFAULTS, GenerationOptions, require_integer
from .weights.load import stream_weights
from .weights.recipes import checked_recipe
from .weights.source import own_codec, own_defaults
from .weights.synthetic import is_synthetic, stream_random_weights, synthetic_codec, synthetic_config

logger = logging.getLogger(__name__)


class Engine:
    """A Dia model and its codec, ready to speak.

    Attributes:
        config: sizes and special ids of the model.
        model, codec: what computes; codec is None after `load_dac=False`.
        device, dtype: where and in what the model computes.
        defaults: the model's own defaults for `generate`, by name; what is not in it is as the signature says.
    """

    def __init__(
        self,
        config: DiaConfig,
        weights: Mapping[str, Weight | PackedInt8Weight],
        codec: Codec | None = None,
        *,
        graph: bool = True,
        defaults: Mapping[str, float | int | None] | None = None,
    ):
        """Build from weights named as in `parameter_shapes`; `load`, `from_pretrained` and `from_local` read them."""
        with torch.no_grad():
            self.model = DiaModel(config, weights)
        self.config, self.weights, self.codec = config, weights, codec
        self.device, self.dtype = self.model.device, self.model.dtype
        self.defaults = dict(defaults or {})
        self._stepper = Stepper(self.model, graph)
        # Threads of a CPU would share its cores, and each brings a pool of its own: steps get slower by a third.
        self._runs_ahead = self.device.type == "cuda"
        self._windows = CodeWindows(self.device) if codec is None else SoundWindows(codec)

    @classmethod
    def load(
        cls,
        model: str | Path = DEFAULT_MODEL,
        *,
        quant: str | Mapping[str, str] | None = None,
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        codec: str | Path | Codec | None = None,
        codec_dtype: str | torch.dtype | None = None,
        load_dac: bool = True,
        revision: str | None = None,
        graph: bool = True,
    ) -> "Engine":
        """Load a model from the hub or a folder, the one that comes with the engine, or make one up.

        Args:
            model: hub id or folder, weights in transformers' or nari-labs' layout; "talker", a small one that comes
                with the engine; or random weights, `synthetic:tiny` and `synthetic:full`.
            quant: "int8", "nf4" (also "4bit") or a recipe of one's own, see `quant.checked_recipe`: quantises while
                loading. None leaves the weights as they are stored; a quantised checkpoint needs no more than that.
            dtype: "float32", "bfloat16" or "float16". Default: on a GPU bfloat16, or float16 where the GPU lacks it; on
                a CPU float32 for a model under 100 million parameters, else bfloat16 if the CPU multiplies it natively.
            device: default "cuda" if there is one, else "cpu".
            codec: hub id, folder or file of the audio codec, or a loaded one. Default: the folder `codec` in the
                model's own folder if there is one, else `descript/dac_44khz`.
            codec_dtype: of the codec's convolutions, as `dtype`; default "float32". Half precision is for GPUs; at full
                size the sound is then off by 1.4 % (bfloat16) or 0.2 % (float16) of its own size.
            load_dac: False leaves the codec out, and `generate` returns codes.
            revision: of the hub repository.
            graph: False runs the step's kernels one by one, instead of many steps captured in a CUDA graph. The sound
                is the same; on a CPU there is no graph.

        Raises:
            FileNotFoundError: no such model, or a file of it is missing.
            ValueError: unusable files, an unknown dtype, device or quant, or files that are quantised otherwise.
        """
        recipe = None if quant is None else checked_recipe(quant)
        device = checked_device(device)
        dtype = None if dtype is None else checked_dtype(dtype)
        codec_dtype = None if codec_dtype is None else checked_dtype(codec_dtype, "codec_dtype")
        defaults = {}
        if is_synthetic(model):
            config = synthetic_config(model, revision)
            dtype = dtype or default_dtype(config, device)
            stream = stream_random_weights(config, dtype=dtype, device=device, recipe=recipe)
        else:
            files = find_model(model, revision)
            config, defaults = DiaConfig.from_file(files.config), own_defaults(files.config)
            dtype = dtype or default_dtype(config, device)
            stream = stream_weights(files.weights, config, dtype=dtype, device=device, recipe=recipe)
        # The files are checked by now and read after the codec: neither a bad file nor a codec that is missing or does
        # not fit should cost the time to read everything.
        codec = open_codec(codec, model, config, device, codec_dtype) if load_dac else None
        return cls(config, _ready(stream), codec, graph=graph, defaults=defaults)

    @classmethod
    def from_pretrained(
        cls,
        model_name: str = DEFAULT_MODEL,
        compute_dtype: str | torch.dtype = "float32",
        device: str | torch.device | None = None,
        load_dac: bool = True,
    ) -> "Engine":
        """`load` with the reference's argument names and its default of float32."""
        return cls.load(model_name, dtype=compute_dtype, device=device, load_dac=load_dac)

    @classmethod
    def from_local(
        cls,
        config_path: str | Path,
        checkpoint_path: str | Path,
        compute_dtype: str | torch.dtype = "float32",
        device: str | torch.device | None = None,
        load_dac: bool = True,
    ) -> "Engine":
        """Load from a config.json and one checkpoint file (.safetensors, .pth or .bin), as the reference does."""
        device, dtype = checked_device(device), checked_dtype(compute_dtype)
        checkpoint = Path(checkpoint_path)
        if not checkpoint.is_file():
            raise FileNotFoundError(f"no checkpoint file at {checkpoint}")
        config = DiaConfig.from_file(config_path)
        stream = stream_weights([checkpoint], config, dtype=dtype, device=device)
        codec = open_codec(None, checkpoint, config, device) if load_dac else None
        return cls(config, _ready(stream), codec)

    @property
    def sample_rate(self) -> int:
        """Samples a second of the sound that `generate` returns.

        Raises:
            ValueError: the engine was loaded without a codec.
        """
        return self._require_codec().sample_rate

    @torch.no_grad()
    def prepare(self, slots: int = 1) -> None:
        """Do ahead of the first request what it would otherwise wait for. A server calls this before it listens.

        On a GPU: allocates the memory of `slots` requests at once, compiles the kernels and captures the graphs of
        every batch up to that size, and those of a stream's windows of sound in its default sizes. Larger batches
        still work; the first one allocates and captures anew. On a CPU: reads a text and makes a step for `slots`
        requests, which loads what they need. Waits for a generation that is in progress; changes no result.

        Args:
            slots: requests at once, at least 1.

        Raises:
            TypeError: slots is not an integer.
            ValueError: slots is under 1.
            torch.OutOfMemoryError: so many do not fit the GPU's memory; it says how many do, and the engine still
                works with those.
            RuntimeError: this thread is in the middle of a stream, on a CPU.
        """
        require_integer("slots", slots)
        if slots < 1:
            raise ValueError(f"slots must be at least 1, got {slots}")
        with self._on_device(), self._stepper.lock:
            warm_up(self._stepper, slots)
            self._windows.prepare(window_lengths(ChunkSizes(), self._windows.reach))

    @torch.no_grad()
    def generate(
        self,
        text: str | list[str],
        max_tokens: int = REFERENCE_DEFAULTS["max_tokens"],
        cfg_scale: float = REFERENCE_DEFAULTS["cfg_scale"],
        temperature: float = REFERENCE_DEFAULTS["temperature"],
        top_p: float = REFERENCE_DEFAULTS["top_p"],
        use_torch_compile: bool = False,
        cfg_filter_top_k: int | None = REFERENCE_DEFAULTS["cfg_filter_top_k"],
        audio_prompt=None,
        audio_prompt_path=None,
        use_cfg_filter: bool | None = None,
        verbose: bool = False,
        *,
        audio_prompt_text: str | list[str | None] | None = None,
        seed: int | list[int] | None = None,
    ) -> np.ndarray | list[np.ndarray]:
        """Turn a script, or a list of scripts at once, into sound. Names, order and defaults are the reference's.

        A model may have defaults of its own, which stand for what a caller leaves out (`Engine.defaults`: "talker" has,
        the published Dia has not). An item of a list gives the very sound that it gives alone with the same seed.

        Args:
            text: the script, with the tags [S1] and [S2] and sounds such as (laughs).
            max_tokens: decoder rows, prompt frames + 1 + delay included. The default of 3072 stands for the model's own
                limit where that is smaller.
            cfg_scale: strength of guidance by the text; 0 means unguided.
            temperature: 0 takes the likeliest token.
            top_p: in (0, 1], share of the probability that is drawn from.
            use_torch_compile: accepted and without effect: this engine has its own compiled step.
            cfg_filter_top_k: candidates that guidance lets through, None for all.
            audio_prompt: a voice to go on with: a path, integer codes [P, C], or (waveform, sample rate). For a list of
                texts a list of them, None where there is none.
            audio_prompt_path: older name of audio_prompt.
            use_cfg_filter: accepted and without effect, as in the reference.
            verbose: show progress, steps/s and x real time on standard error.
            audio_prompt_text: transcript of the prompt; it is put before the text.
            seed: in [0, 2^63); the same seed and text give the same sound. A list has one for each text. None draws one
                from torch's global generator.

        Returns:
            sound [samples] float32, without the prompt; or codes [T, C] int64 if the engine has no codec. A list of
            texts gives a list. Empty if the model ends at once.

        Raises:
            FileNotFoundError, TypeError, ValueError: an argument that cannot work, before any work is done.
            RuntimeError: this thread is in the middle of a stream, on a CPU.
        """
        options = self._options(max_tokens, cfg_scale, temperature, top_p, cfg_filter_top_k)
        _note_ignored(use_torch_compile, use_cfg_filter)
        drafts = self._read(text, audio_prompt, audio_prompt_path, audio_prompt_text, seed, options)
        requests = [draft.finished(self.codec) for draft in drafts]
        real_time = self._frames_per_second / len(requests)
        with self._on_device(), self._stepper.lock, _progress(verbose, real_time) as progress:
            state = start_requests(self._stepper, requests, options)
            self._stepper.run(state, progress)
            codes = finished_codes(state, requests)
        results = [self._sound(each) for each in codes]
        return results if isinstance(text, (list, tuple)) else results[0]

    def stream(
        self,
        text: str | list[str],
        max_tokens: int = REFERENCE_DEFAULTS["max_tokens"],
        cfg_scale: float = REFERENCE_DEFAULTS["cfg_scale"],
        temperature: float = REFERENCE_DEFAULTS["temperature"],
        top_p: float = REFERENCE_DEFAULTS["top_p"],
        use_torch_compile: bool = False,
        cfg_filter_top_k: int | None = REFERENCE_DEFAULTS["cfg_filter_top_k"],
        audio_prompt=None,
        audio_prompt_path=None,
        use_cfg_filter: bool | None = None,
        verbose: bool = False,
        *,
        audio_prompt_text: str | list[str | None] | None = None,
        seed: int | list[int] | None = None,
        chunk_frames: int | None = None,
        first_chunk_frames: int | None = None,
    ) -> Stream[np.ndarray] | Stream[tuple[int, np.ndarray]]:
        """`generate`, with the sound given out as it is made: the chunks joined are the same sound.

        One generation at a time: another `stream` or `generate`, from whatever thread, waits until this sound is made
        or given up. To give up: `close` the stream, leave a `with` over it, drop it, or raise out of the loop over it;
        the engine is free again after the step that is in progress.

        On a GPU, and in `async for`, the work is done in a thread that starts with the first chunk that is asked for
        and does not wait for the reader, who may play a chunk meanwhile; what is not read yet is kept. On a CPU, where
        a second thread would only take the first one's time, `for` does the work in the reader's thread, and that
        thread cannot start another generation in between.

        Args:
            text, ..., seed: as in `generate`, and checked in this call. A prompt in the form of sound is encoded when
                the first chunk is asked for; codes (see `load_audio`) cost nothing.
            chunk_frames: frames a chunk, 512 samples each for the published codec. Each chunk is decoded together with
                the frames around it that its sound depends on, so that small chunks cost more work. Default: 48, or
                more where a codec depends on so many that this would cost half as much again.
            first_chunk_frames: of the first chunk; from then on chunks double up to chunk_frames, and the last may be
                smaller. Default: 8, or chunk_frames where that is less.

        Returns:
            an iterator, and asynchronous iterator, over what `generate` would give in pieces: sound [samples] float32,
            or codes [n, C] int64 if the engine has no codec, none of it empty. For a list of texts (index, piece): the
            pieces of a text in order, those of different texts as they come.

        Raises:
            FileNotFoundError, TypeError, ValueError: an argument that cannot work, before any work is done.
            RuntimeError: at the first chunk; this thread is in the middle of another stream, on a CPU.
        """
        sizes = ChunkSizes(chunk_frames, first_chunk_frames)
        options = self._options(max_tokens, cfg_scale, temperature, top_p, cfg_filter_top_k)
        _note_ignored(use_torch_compile, use_cfg_filter)
        drafts = self._read(text, audio_prompt, audio_prompt_path, audio_prompt_text, seed, options)
        numbered = isinstance(text, (list, tuple))
        return Stream(lambda: self._pieces(drafts, options, sizes, numbered, verbose), self._runs_ahead)

    astream = stream  # for `async for`: a stream is both kinds of iterator

    @torch.no_grad()
    def _pieces(self, drafts: list[Draft], options: GenerationOptions, sizes: ChunkSizes, numbered, verbose):
        """The generator behind `stream`, see `streaming.speak`."""
        requests = []
        for draft in drafts:
            requests.append(draft.finished(self.codec))
            yield None  # a reader that has left stops the work here
        real_time = self._frames_per_second / len(requests)
        with self._on_device(), _progress(verbose, real_time) as progress:
            for item in speak(self._stepper, requests, options, self._windows, sizes, progress):
                yield item if item is None or numbered else item[1]

    def load_audio(self, audio_path: str | Path) -> torch.Tensor:
        """Encode a sound file as a prompt: codes [P, C] int64 on the CPU."""
        capacity = self.config.decoder.max_position_embeddings
        codec = self._require_codec()
        return encode_prompt(read_prompt(Path(audio_path), self.config, codec, capacity), codec)

    def save_audio(self, path: str | Path, audio: np.ndarray) -> None:
        """Write sound [samples] float32 to a file; the extension decides the format. See `audio.write_audio`."""
        write_audio(path, audio, self.sample_rate)

    def _read(self, text, prompt, prompt_path, prompt_text, seed, options: GenerationOptions) -> list[Draft]:
        prompt = _merge_prompt_names(prompt, prompt_path)
        return read_requests(text, prompt, prompt_text, seed, options, self.config, self.codec)

    def _options(self, max_tokens, cfg_scale, temperature, top_p, cfg_filter_top_k) -> GenerationOptions:
        return GenerationOptions.resolve(
            self.defaults, max_tokens=max_tokens, cfg_scale=cfg_scale, temperature=temperature, top_p=top_p,
            cfg_filter_top_k=cfg_filter_top_k,
        )  # fmt: skip

    def _on_device(self):
        """Makes the engine's GPU the current one: streams, graphs and kernel launches ask for that."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    @property
    def _frames_per_second(self) -> float:
        return self.codec.sample_rate / self.codec.hop_length if self.codec else 44100 / 512

    def _sound(self, codes: torch.Tensor) -> np.ndarray:
        if self.codec is None:
            return codes.numpy()
        if not len(codes):
            return np.zeros(0, dtype=np.float32)
        return self.codec.decode(codes).cpu().numpy()

    def _require_codec(self) -> Codec:
        if self.codec is None:
            raise ValueError("this engine has no codec; load it with load_dac=True")
        return self.codec


def _ready(stream: Iterable[tuple[str, Weight]]) -> dict[str, Weight | PackedInt8Weight]:
    """The weights of a stream, each made ready for its device before the next is read."""
    return {name: fastest(weight) for name, weight in stream}


def open_codec(
    codec: str | Path | Codec | None,
    model: str | Path,
    config: DiaConfig,
    device: torch.device,
    dtype: torch.dtype | None = None,
) -> Codec:
    """The codec for a model, in float32 unless told: a loaded one, the one named, or the one that goes with the model.

    Raises:
        FileNotFoundError, ValueError: as `Codec.load`, or a codec that does not fit the model.
    """
    if isinstance(codec, Codec):
        if dtype not in (None, codec.dtype):
            raise ValueError(f"codec_dtype is {dtype}, but the loaded codec that was given is in {codec.dtype}")
    elif codec is None and is_synthetic(model):
        codec = synthetic_codec(config, model, device, dtype or torch.float32)
    else:
        codec = Codec.load(codec or own_codec(model) or DEFAULT_CODEC, device=device, dtype=dtype or torch.float32)
    _check_codec_fits(config, codec)
    return codec


def _check_codec_fits(config: DiaConfig, codec: Codec) -> None:
    channels, codes = config.decoder.num_channels, config.eos_token_id
    if codec.num_codebooks != channels or codec.codebook_size < codes:
        raise ValueError(
            f"the codec has {codec.num_codebooks} codebooks of {codec.codebook_size}, the model speaks {channels} "
            f"channels of {codes} codes; name the codec that belongs to the model"
        )


def _merge_prompt_names(audio_prompt, audio_prompt_path):
    if audio_prompt_path is None:
        return audio_prompt
    if audio_prompt is not None:
        raise ValueError("audio_prompt and audio_prompt_path are two names of one argument; give only audio_prompt")
    logger.warning("audio_prompt_path is an old name; use audio_prompt")
    return audio_prompt_path


def _note_ignored(use_torch_compile: bool, use_cfg_filter: bool | None) -> None:
    if use_torch_compile:
        logger.info("use_torch_compile has no effect: the engine's own step is used")
    if use_cfg_filter is not None:
        logger.warning("use_cfg_filter has no effect; cfg_filter_top_k sets the filter")


@contextmanager
def _progress(verbose: bool, real_time: float):
    """A callback that counts steps on a bar with steps/s and x real time, or None; `real_time` is steps/s at 1x."""
    if not verbose:
        yield None
        return
    with tqdm(unit=" steps", desc="generate") as bar:

        def count(steps: int) -> None:
            bar.update(steps)
            rate = bar.format_dict["rate"] or bar.n / max(bar.format_dict["elapsed"], 1e-9)
            bar.set_postfix_str(f"{rate / real_time:.2f}x real time", refresh=False)

        yield count
