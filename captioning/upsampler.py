"""Upsample short prompts to captions in the style of the captioner.

The model trained here is a small language model for both directions (`training/train_upsampler.py`): it writes a
caption from a prompt, and a short prompt from a caption. `upsample` samples several captions and keeps the one that
makes the prompt most probable: a noisy channel (Brown et al. 1993, Computational Linguistics 19:2; between texts Li et
al. 2016, arXiv 1510.03055). A caption that contradicts the prompt, for instance by another colour, makes one of its
tokens less probable than no caption would. Scenes of several objects confuse the model at times, so captions are also
read with lexicons and must keep all attributes of the prompt. The prompt stays unchanged if no caption does, or if the
prompt is not literal enough for the lexicons and the model is not confident.

A language model of transformers, or one behind an endpoint, can replace it; it gets instructions and examples.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from captioning.lexicon_set import LexiconSet, load_lexicon_set
from captioning.text_encoder import capitalize_sentences, load_tokenizer, train_tokenizer
from vae.weights import CONFIG, load_strictly

if TYPE_CHECKING:
    from transformers import GenerationConfig

SUBFOLDERS = ("writer", "tokenizer")
LEXICON_FILE, OLD_LEXICON_FILE = "lexicon.json", "glossary.json"  # optional; the old name is still read
# Special tokens that name the text to write. They are part of trained tokenizers, so their spelling is fixed.
CLIP_CAPTION, IMAGE_CAPTION, SHORT_PROMPT = TASK_TOKENS = ("<clip>", "<picture>", "<short>")
CANDIDATES = 8
TEMPERATURE = 0.7  # below 1, because captions go wrong at improbable tokens; candidates still differ
API_KEY_VARIABLE = "OPENAI_API_KEY"  # environment variable with the key of an endpoint
ENDPOINT_SECONDS, ENDPOINT_TRIES = 30.0, 2  # timeout and attempts
CAPTION_TOKENS, ANSWER_TOKENS = 160, 400  # at most, of the model trained here and of a language model

INSTRUCTIONS = (
    "You turn a short request for a video into the caption that a careful viewer would write of that video. Keep "
    "everything that was asked for and change none of it: every thing, name, colour, number, size, direction and "
    "movement of the request is in the caption. Add no thing or person that was not asked for. Add what was left open: "
    "how big things are and what they are made of, the ground, the light, and what the camera does. Write plain "
    "English whatever the language of the request, in the present tense, two to five sentences, 70 words at most. "
    "Answer with the caption alone."
)
IMAGE_REQUEST = "This one is a single picture: say nothing of movement or of a camera.\nRequest: "
EXAMPLES = {
    "a red ball bounces": "A medium-sized matte red ball bounces up and down while the camera holds still. The ground "
    "is concrete. It is noon, and the sky is clear.",
    "two green cubes side by side, zoom in": "A large glossy green cube rests on a wooden floor. To its right stands "
    "another green cube of the same size. The camera zooms in. The soft light of morning comes from a cloudy sky.",
    "一个蓝色圆柱向左滚动": "A small blue metal cylinder rolls to the left across the sand. The camera stays fixed. It "
    "is sunset, and the sky is clear.",
}


class Upsampler(Protocol):
    """Rewrite short prompts as captions."""

    @property
    def name(self) -> str: ...

    def upsample(self, prompt: str, seed: int, image: bool = False) -> str:
        """Write the caption of a clip, or of an `image`, for a prompt; the same seed gives the same caption."""
        ...


class UpsamplerModel(ModelMixin, ConfigMixin):
    """A small Llama of transformers (Touvron et al. 2023, arXiv 2302.13971), with thresholds of confidence.

    For a prompt that the lexicons cannot read, a caption is kept if it gives each token of the prompt a log-probability
    of at least `min_log_prob` (by default none does), and at least `min_gain` more than the token has without caption.
    A prompt of more than `max_prompt_bytes` bytes is returned unchanged.
    """

    old_config_names: ClassVar = {"least": "min_log_prob", "gain": "min_gain", "longest": "max_prompt_bytes"}

    @register_to_config
    def __init__(
        self,
        vocabulary: int = 2048,
        context: int = 512,
        width: int = 192,
        heads: int = 6,
        layers: int = 4,
        end_id: int = 1,
        pad_id: int = 0,
        min_log_prob: float = 0.0,
        min_gain: float = 0.0,
        max_prompt_bytes: int = 200,
    ):
        super().__init__()
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=32 * round(8 * width / 3 / 32),
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=context,
            eos_token_id=end_id,
            pad_token_id=pad_id,
            bos_token_id=None,
        )
        self.net = LlamaForCausalLM(config)

    def forward(self, ids: Tensor, target_mask: Tensor) -> Tensor:
        """Return the log-probabilities (B, L) of token ids (B, L), given those before them; 0 outside `target_mask` (B,
        L).
        """
        hidden = self.net.model(input_ids=ids, use_cache=False).last_hidden_state
        logits = self.net.lm_head(hidden[:, :-1][target_mask[:, 1:]])  # of targets only, half of all positions
        log_probs = -F.cross_entropy(logits, ids[target_mask], reduction="none")
        return log_probs.new_zeros(ids.shape).masked_scatter(target_mask, log_probs)

    def muon_params(self) -> list[tuple[nn.Linear, int]]:
        """List the linear layers that Muon updates, each with the number of matrices stacked in its weight."""
        return [(part, 1) for part in self.net.model.layers.modules() if isinstance(part, nn.Linear)]


class TrainedUpsampler:
    """The folder that `longtake train upsampler` writes: a model, its tokenizer and lexicons."""

    def __init__(self, tokenizer, model: UpsamplerModel, lexicons: LexiconSet | None = None, name: str = "ours"):
        self.tokenizer, self.model, self.lexicons, self.name = tokenizer, model, lexicons, name
        self.net: Any = model.net  # its `generate` is not typed

    def upsample(self, prompt: str, seed: int, image: bool = False) -> str:
        """Write a caption for a prompt; return the prompt unchanged if it is long or if no caption can be trusted.

        The same seed gives the same text; torch's random state is left as it was.
        """
        prompt, config = prompt.strip(), self.model.config
        if not prompt or len(prompt.encode()) > config["max_prompt_bytes"]:
            return prompt
        texts = self.candidates(prompt, seed, image)
        if self.lexicons:
            texts = [text for text in texts if self.lexicons.is_faithful(prompt, text)]
        if not texts:
            return prompt
        log_probs = self.prompt_log_probs(prompt, texts)
        min_log_prob, min_gain = self.confidence(prompt, log_probs).unbind(1)
        trusted = (min_log_prob >= config["min_log_prob"]) & (min_gain >= config["min_gain"])
        if self.lexicons and self.lexicons.is_literal(prompt):
            trusted[:] = True
        best = log_probs.sum(1).where(trusted, -torch.inf).argmax()
        return texts[best] if trusted.any() else prompt

    def reason_unchanged(self, prompt: str) -> str:
        """Return why `upsample` left a prompt as it is: "long", "unknown" words or phrasing, or "unsure" captions."""
        if len(prompt.strip().encode()) > self.model.config["max_prompt_bytes"]:
            return "long"
        return "unsure" if self.lexicons is None or self.lexicons.is_literal(prompt) else "unknown"

    @torch.no_grad()
    def candidates(self, prompt: str, seed: int, image: bool = False, count: int = CANDIDATES) -> list[str]:
        """Sample captions for a prompt; drop duplicates, and captions without an end token."""
        given = input_ids(self.tokenizer, IMAGE_CAPTION if image else CLIP_CAPTION, prompt)
        net, end = self.net, self.tokenizer.eos_token_id
        ids = torch.tensor([given], device=net.device)
        with seeded(seed, net.device):
            generated = net.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                generation_config=_sampling_config(count, CAPTION_TOKENS, end, self.tokenizer.pad_token_id),
            )[:, len(given) :]
        whole = [row[: row.index(end)] for row in generated.tolist() if end in row]
        texts = (capitalize_sentences(self.tokenizer.decode(row, skip_special_tokens=True)) for row in whole)
        return list(dict.fromkeys(text for text in texts if text))

    @torch.no_grad()
    def prompt_log_probs(self, prompt: str, texts: Sequence[str]) -> Tensor:
        """Return the log-probability (B, L) of each token of a prompt, given each of B captions."""
        rows = [sequence_ids(self.tokenizer, SHORT_PROMPT, text, prompt) for text in texts]
        ids, mask = (part.to(self.model.device) for part in pad_rows(rows, self.tokenizer.pad_token_id))
        log_probs, tokens = self.model(ids, mask), int(mask[0].sum())
        return log_probs[mask].view(len(texts), tokens).cpu()

    def confidence(self, prompt: str, log_probs: Tensor) -> Tensor:
        """Summarize log-probabilities (B, L) of a prompt given captions as (B, 2).

        The first column is the minimum over tokens; the second the minimum of their gain over the log-probability
        without a caption (pointwise mutual information).
        """
        return torch.stack([log_probs.amin(1), (log_probs - self.prompt_log_probs(prompt, [""])).amin(1)], 1)


class TransformersUpsampler:
    """A language model of transformers, by name or folder. Raises ValueError if it cannot be loaded."""

    def __init__(self, name: str):
        import transformers

        from captioning.endpoint import one_line

        self.name = name
        try:
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)
            loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
                name, trust_remote_code=False, use_safetensors=True, dtype="auto", output_loading_info=True
            )
            model, info = loaded
            if missing := sorted(info["missing_keys"]):
                raise ValueError(f"{len(missing)} of its weights are missing, {missing[0]} among them")
        except Exception as error:  # models and tokenizers of many authors raise nearly anything
            raise ValueError(
                f"an upsampler must be a folder with {' and '.join(SUBFOLDERS)}, a language model of transformers, or "
                f"ADDRESS#MODEL; got {name!r} ({one_line(error)})"
            ) from error
        self.model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()

    @torch.no_grad()
    def upsample(self, prompt: str, seed: int, image: bool = False) -> str:
        """Write a caption of one paragraph and whole sentences; return the prompt if the model writes none."""
        tokenizer = self.tokenizer
        if tokenizer.chat_template:
            inputs = tokenizer.apply_chat_template(
                chat_messages(prompt, image),
                add_generation_prompt=True,
                return_tensors="pt",
                return_dict=True,
                sanitize_control_tokens=True,  # a prompt is text, whatever it contains
                enable_thinking=False,  # for templates that have this option
            )
        else:
            lines = [f"{message['content']}\n" for message in chat_messages(prompt, image)]
            inputs = tokenizer("\n".join([*lines, ""]), return_tensors="pt")
        inputs = inputs.to(self.model.device)
        end = tokenizer.eos_token_id
        pad = end if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        with seeded(seed, self.model.device):
            generated = self.model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                generation_config=_sampling_config(
                    1, ANSWER_TOKENS, self.model.generation_config.eos_token_id or end, pad
                ),
            )[0, inputs["input_ids"].shape[1] :]
        text = _first_paragraph(tokenizer.decode(generated, skip_special_tokens=True))
        if len(generated) == ANSWER_TOKENS:  # cut off within a sentence
            text = re.sub(r"[^.!?。！？]*$", "", text)
        return text or prompt


class EndpointUpsampler:
    """A language model behind an OpenAI-compatible endpoint, by ADDRESS#MODEL. Raises ValueError for another name."""

    def __init__(self, name: str, seconds: float = ENDPOINT_SECONDS, tries: int = ENDPOINT_TRIES):
        from captioning.endpoint import Chat

        url, _, model = name.partition("#")
        if not model:
            raise ValueError(f"an endpoint must be given with its model, as {url}#MODEL; got {name!r}")
        self.name, self.chat = name, Chat(url, model, os.environ.get(API_KEY_VARIABLE), seconds, tries)

    def upsample(self, prompt: str, seed: int, image: bool = False) -> str:
        """Write a caption for a prompt. Raises AnswerError if the endpoint gives no usable answer."""
        from captioning.endpoint import CaptionAnswer, Rejected, ask_until_valid, retry_messages

        def answer(rejected: Rejected) -> str:
            messages = [*chat_messages(prompt, image), *retry_messages(rejected)]
            return self.chat.answer(messages, CaptionAnswer, seed=seed % 2**31)

        return (
            _first_paragraph(ask_until_valid(self.chat.name, answer, CaptionAnswer, self.chat.tries).caption) or prompt
        )


def load_upsampler(name: str | Path) -> Upsampler:
    """Load an upsampler: one trained here from its folder, a model behind an endpoint by ADDRESS#MODEL, or a language
    model of transformers by name. Raises ValueError if it is none of them, and WeightsError if its folder is damaged.
    """
    if str(name).startswith(("http://", "https://")):
        return EndpointUpsampler(str(name))
    folder = Path(name)
    if (folder / SUBFOLDERS[0] / CONFIG).is_file():
        path = next((folder / file for file in (LEXICON_FILE, OLD_LEXICON_FILE) if (folder / file).is_file()), None)
        lexicons = load_lexicon_set(path) if path else None
        model = load_strictly(UpsamplerModel, folder / SUBFOLDERS[0])
        return TrainedUpsampler(load_tokenizer(folder / SUBFOLDERS[1]), model, lexicons, str(name))
    return TransformersUpsampler(str(name))


def save_upsampler(upsampler: TrainedUpsampler, folder: Path) -> None:
    """Write the folder that `load_upsampler` reads."""
    upsampler.model.save_pretrained(folder / SUBFOLDERS[0])
    upsampler.tokenizer.save_pretrained(folder / SUBFOLDERS[1])
    if upsampler.lexicons:
        upsampler.lexicons.save(folder / LEXICON_FILE)


def train_upsampler_tokenizer(texts, vocabulary: int, context: int):
    """Train a tokenizer that has the TASK_TOKENS as special tokens."""
    tokenizer = train_tokenizer(texts, vocabulary - len(TASK_TOKENS), context)
    tokenizer.add_tokens(list(TASK_TOKENS), special_tokens=True)
    return tokenizer


def input_ids(tokenizer, task: str, text: str) -> list[int]:
    """Return the token ids of a task token and a text, up to the start token of the text to write."""
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    return [tokenizer.convert_tokens_to_ids(task), *ids, tokenizer.bos_token_id]


def sequence_ids(tokenizer, task: str, text: str, target: str) -> tuple[list[int], int]:
    """Return the token ids of a text and its target, and the number of ids before the target."""
    given = input_ids(tokenizer, task, text)
    ids = tokenizer(target, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    return [*given, *ids, tokenizer.eos_token_id], len(given)


def pad_rows(rows: Sequence[tuple[list[int], int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Batch the results of `sequence_ids`: ids (B, L), padded on the right, and the mask (B, L) of their targets."""
    ids = nn.utils.rnn.pad_sequence([torch.tensor(row) for row, _ in rows], batch_first=True, padding_value=pad_id)
    positions = torch.arange(ids.shape[1])
    masks = [(positions >= given) & (positions < len(row)) for row, given in rows]
    return ids, torch.stack(masks)


def chat_messages(prompt: str, image: bool) -> list[dict[str, str]]:
    """Return the messages for a language model: the instructions, the examples and the prompt."""
    messages = [{"role": "system", "content": INSTRUCTIONS}]
    for request, caption in EXAMPLES.items():
        messages += [{"role": "user", "content": f"Request: {request}"}, {"role": "assistant", "content": caption}]
    prefix = IMAGE_REQUEST if image else "Request: "
    return [*messages, {"role": "user", "content": prefix + prompt.strip()}]


def _first_paragraph(text: str) -> str:
    """Return the first paragraph of an answer, without the thoughts, code fences and quotes that models add."""
    text = re.sub(r"<think>.*?(</think>|$)", "", text, flags=re.DOTALL).strip().strip("`").strip()
    return " ".join(text.split("\n\n")[0].split()).strip('"“”')


def _sampling_config(count: int, max_new_tokens: int, end_id: int | list[int], pad_id: int | None) -> GenerationConfig:
    from transformers import GenerationConfig

    return GenerationConfig(
        do_sample=True,
        temperature=TEMPERATURE,
        top_k=0,
        num_return_sequences=count,
        max_new_tokens=max_new_tokens,
        eos_token_id=end_id,
        pad_token_id=pad_id,
    )


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's random generator within the block, and restore its state afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        (torch.cuda.manual_seed if device.type == "cuda" else torch.default_generator.manual_seed)(seed)
        yield
