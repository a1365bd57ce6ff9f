"""Short prompts to long ones: what somebody typed, told as the captioner would tell it.

Ours is a small sequence model that was taught in both directions (`training/train_upsampler.py`): to write a prompt
out, and to say in few words what a caption tells. At work it writes several captions and keeps the one that makes the
prompt most probable: a noisy channel (Brown et al. 1993, Computational Linguistics 19:2; between texts Li et al. 2016,
arXiv 1510.03055). A caption of another colour does not make the prompt probable: it makes a word of it less so than no
caption at all would. Of several things it is not always sure which is which; so captions are also read, and must keep
what the prompt says in words of a glossary. Where none does, or the prompt is not plainly said in such words and the
model is not sure of it, it stays as it was typed.

A language model of transformers, or one behind an endpoint, can take its place; each is told what to do, and shown how.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from captioning.glossary import Glossary, load_glossary
from captioning.text_encoder import capitalize_sentences, load_tokenizer, train_tokenizer
from vae.weights import CONFIG, load_strictly

if TYPE_CHECKING:
    from transformers import GenerationConfig

FILES = ("writer", "tokenizer")
GLOSSARY = "glossary.json"  # beside them, where words have meanings that are known
CLIP, PICTURE, SHORT = MARKS = ("<clip>", "<picture>", "<short>")  # what is to be written
CANDIDATES = 8
TEMPERATURE = 0.7  # unlikely words are where a caption goes astray; one is still unlike the next
KEY = "OPENAI_API_KEY"  # the environment variable that holds an endpoint's key
PATIENCE, TRIES = 30.0, 2  # seconds that an endpoint may be silent, and how often it is asked
LONGEST, ROOM = 160, 400  # tokens that ours may write, and a language model

INSTRUCTIONS = (
    "You turn a short request for a video into the caption that a careful viewer would write of that video. Keep "
    "everything that was asked for and change none of it: every thing, name, colour, number, size, direction and "
    "movement of the request is in the caption. Add no thing or person that was not asked for. Add what was left open: "
    "how big things are and what they are made of, the ground, the light, and what the camera does. Write plain "
    "English whatever the language of the request, in the present tense, two to five sentences, 70 words at most. "
    "Answer with the caption alone."
)
OF_A_PICTURE = "This one is a single picture: say nothing of movement or of a camera.\nRequest: "
EXAMPLES = {
    "a red ball bounces": "A medium-sized matte red ball bounces up and down while the camera holds still. The ground "
    "is concrete. It is noon, and the sky is clear.",
    "two green cubes side by side, zoom in": "A large glossy green cube rests on a wooden floor. To its right stands "
    "another green cube of the same size. The camera zooms in. The soft light of morning comes from a cloudy sky.",
    "一个蓝色圆柱向左滚动": "A small blue metal cylinder rolls to the left across the sand. The camera stays fixed. It "
    "is sunset, and the sky is clear.",
}


class Upsampler(Protocol):
    """Whoever writes prompts out."""

    @property
    def name(self) -> str: ...

    def write(self, prompt: str, seed: int, still: bool = False) -> str:
        """Write a prompt out as a caption of a clip, or of a `still`; the seed determines which."""
        ...


class Writer(ModelMixin, ConfigMixin):
    """transformers' Llama (Touvron et al. 2023, arXiv 2302.13971), small, and when to trust it.

    Of a prompt that no glossary knows, a caption is kept where it makes each token at least `least` probable (a
    logarithm, so never by default), and at least `gain` more probable than it is without a caption; a prompt of more
    than `longest` bytes is no short one any more, and passes as it is.
    """

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
        least: float = 0.0,
        gain: float = 0.0,
        longest: int = 200,
    ):
        super().__init__()
        from transformers import LlamaConfig, LlamaForCausalLM

        shape = LlamaConfig(
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
        self.net = LlamaForCausalLM(shape)

    def forward(self, ids: Tensor, said: Tensor) -> Tensor:
        """Return the log-probabilities (B, L) of token ids (B, L) after those before them, 0 where they are not `said`
        (B, L), but given.
        """
        features = self.net.model(input_ids=ids, use_cache=False).last_hidden_state
        logits = self.net.lm_head(features[:, :-1][said[:, 1:]])  # of what is said alone, half of all
        found = -F.cross_entropy(logits, ids[said], reduction="none")
        return found.new_zeros(ids.shape).masked_scatter(said, found)

    def muon_params(self) -> list[tuple[nn.Linear, int]]:
        """List the linear layers of all blocks, each with how many matrices its weight is: what Muon steps on."""
        return [(part, 1) for part in self.net.model.layers.modules() if isinstance(part, nn.Linear)]


class Ours:
    """The writer, its tokenizer and what words mean, as `longtake train upsampler` leaves them in a folder."""

    def __init__(self, tokenizer, writer: Writer, glossary: Glossary | None = None, name: str = "ours"):
        self.tokenizer, self.writer, self.glossary, self.name = tokenizer, writer, glossary, name
        self.net: Any = writer.net  # whose `generate` is not typed

    def write(self, prompt: str, seed: int, still: bool = False) -> str:
        """Write a prompt out; return it as it is where it is long enough, holds words that the writer does not know, or
        is contradicted by all that was written.

        The same seed writes the same text, and torch's own random numbers are left where they were.
        """
        prompt, config = prompt.strip(), self.writer.config
        if not prompt or len(prompt.encode()) > config["longest"]:
            return prompt
        texts = self.candidates(prompt, seed, still)
        if self.glossary:
            texts = [text for text in texts if self.glossary.keeps(prompt, text)]
        if not texts:
            return prompt
        found = self.explained(prompt, texts)
        least, gain = self.doubts(prompt, found).unbind(1)
        known = (least >= config["least"]) & (gain >= config["gain"])
        if self.glossary and self.glossary.knows(prompt):
            known[:] = True
        best = found.sum(1).where(known, -torch.inf).argmax()
        return texts[best] if known.any() else prompt

    @torch.no_grad()
    def candidates(self, prompt: str, seed: int, still: bool = False, count: int = CANDIDATES) -> list[str]:
        """Write different captions of a prompt; one that comes to no end within the context is left out."""
        given = opening(self.tokenizer, PICTURE if still else CLIP, prompt)
        net, end = self.net, self.tokenizer.eos_token_id
        ids = torch.tensor([given], device=net.device)
        with seeded(seed, net.device):
            written = net.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                generation_config=_sampling(count, LONGEST, end, self.tokenizer.pad_token_id),
            )[:, len(given) :]
        whole = [row[: row.index(end)] for row in written.tolist() if end in row]
        texts = (capitalize_sentences(self.tokenizer.decode(row, skip_special_tokens=True)) for row in whole)
        return list(dict.fromkeys(text for text in texts if text))

    @torch.no_grad()
    def explained(self, prompt: str, texts: Sequence[str]) -> Tensor:
        """Return how probable each token of a prompt is, given each of some captions: logarithms (B, L)."""
        rows = [sequence(self.tokenizer, SHORT, text, prompt) for text in texts]
        ids, said = (part.to(self.writer.device) for part in batched(rows, self.tokenizer.pad_token_id))
        found, tokens = self.writer(ids, said), int(said[0].sum())
        return found[said].view(len(texts), tokens).cpu()

    def doubts(self, prompt: str, explained: Tensor) -> Tensor:
        """Return of captions that `explained` (B, L) a prompt how probable its least probable token is, and how much
        more so the token that gains least by a caption (pointwise mutual information): logarithms (B, 2).
        """
        return torch.stack([explained.amin(1), (explained - self.explained(prompt, [""])).amin(1)], 1)


class Chosen:
    """A language model of transformers, by name or folder; raises ValueError where there is none."""

    def __init__(self, name: str):
        import transformers

        from captioning.endpoint import shortened

        self.name = name
        try:
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)
            loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
                name, trust_remote_code=False, use_safetensors=True, dtype="auto", output_loading_info=True
            )
            model, found = loaded
            if missing := sorted(found["missing_keys"]):
                raise ValueError(f"{len(missing)} of its weights are missing, {missing[0]} among them")
        except Exception as error:  # models and tokenizers of many makers raise nearly anything
            raise ValueError(
                f"an upsampler must be a folder with {' and '.join(FILES)}, a language model of transformers, or "
                f"ADDRESS#MODEL; got {name!r} ({shortened(error)})"
            ) from error
        self.model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()

    @torch.no_grad()
    def write(self, prompt: str, seed: int, still: bool = False) -> str:
        """Write a prompt out, in one paragraph of whole sentences; return it as it is where the model writes none."""
        tokenizer = self.tokenizer
        if tokenizer.chat_template:
            given = tokenizer.apply_chat_template(
                told(prompt, still),
                add_generation_prompt=True,
                return_tensors="pt",
                return_dict=True,
                sanitize_control_tokens=True,  # a prompt is words, whatever it says
                enable_thinking=False,  # to templates that know of it
            )
        else:
            shown = [f"{part['content']}\n" for part in told(prompt, still)]
            given = tokenizer("\n".join([*shown, ""]), return_tensors="pt")
        given = given.to(self.model.device)
        end = tokenizer.eos_token_id
        pad = end if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        with seeded(seed, self.model.device):
            written = self.model.generate(
                input_ids=given["input_ids"],
                attention_mask=given["attention_mask"],
                generation_config=_sampling(1, ROOM, self.model.generation_config.eos_token_id or end, pad),
            )[0, given["input_ids"].shape[1] :]
        text = _paragraph(tokenizer.decode(written, skip_special_tokens=True))
        if len(written) == ROOM:  # it came to no end
            text = re.sub(r"[^.!?。！？]*$", "", text)
        return text or prompt


class Asked:
    """A language model behind an OpenAI-compatible endpoint, by ADDRESS#MODEL; raises ValueError for another name."""

    def __init__(self, name: str, seconds: float = PATIENCE, tries: int = TRIES):
        from captioning.endpoint import Chat

        url, _, model = name.partition("#")
        if not model:
            raise ValueError(f"an endpoint must be given with its model, as {url}#MODEL; got {name!r}")
        self.name, self.chat = name, Chat(url, model, os.environ.get(KEY), seconds, tries)

    def write(self, prompt: str, seed: int, still: bool = False) -> str:
        """Write a prompt out. Raises AnswerError where no answer is of use."""
        from captioning.endpoint import Told, Wrong, fitting, returned

        def answer(wrong: Wrong) -> str:
            return self.chat.answer([*told(prompt, still), *returned(wrong)], Told, seed=seed % 2**31)

        return _paragraph(fitting(self.chat.name, answer, Told, self.chat.tries).caption) or prompt


def load_upsampler(name: str | Path) -> Upsampler:
    """Load an upsampler: ours from its folder, a model behind an endpoint by ADDRESS#MODEL, or a language model of
    transformers by name. Raises ValueError where it is none of them, and WeightsError where it is damaged.
    """
    if str(name).startswith(("http://", "https://")):
        return Asked(str(name))
    folder = Path(name)
    if (folder / FILES[0] / CONFIG).is_file():
        glossary = load_glossary(path) if (path := folder / GLOSSARY).is_file() else None
        return Ours(load_tokenizer(folder / FILES[1]), load_strictly(Writer, folder / FILES[0]), glossary, str(name))
    return Chosen(str(name))


def save_upsampler(upsampler: Ours, folder: Path) -> None:
    """Write the folder that `load_upsampler` loads."""
    upsampler.writer.save_pretrained(folder / FILES[0])
    upsampler.tokenizer.save_pretrained(folder / FILES[1])
    if upsampler.glossary:
        upsampler.glossary.save(folder / GLOSSARY)


def tokenizer_of(texts, vocabulary: int, context: int):
    """Learn a tokenizer that also knows the marks."""
    tokenizer = train_tokenizer(texts, vocabulary - len(MARKS), context)
    tokenizer.add_tokens(list(MARKS), special_tokens=True)
    return tokenizer


def opening(tokenizer, mark: str, text: str) -> list[int]:
    """Return the token ids of a mark and a text, up to where what is to be written begins."""
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    return [tokenizer.convert_tokens_to_ids(mark), *ids, tokenizer.bos_token_id]


def sequence(tokenizer, mark: str, text: str, written: str) -> tuple[list[int], int]:
    """Return the token ids of a text and of what is written of it, and how many of them are given."""
    given = opening(tokenizer, mark, text)
    ids = tokenizer(written, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    return [*given, *ids, tokenizer.eos_token_id], len(given)


def batched(rows: Sequence[tuple[list[int], int]], pad: int) -> tuple[Tensor, Tensor]:
    """Return sequences as ids (B, L), padded on the right, where nothing looks, and which of them are said (B, L)."""
    ids = nn.utils.rnn.pad_sequence([torch.tensor(row) for row, _ in rows], batch_first=True, padding_value=pad)
    places = torch.arange(ids.shape[1])
    said = [(places >= given) & (places < len(row)) for row, given in rows]
    return ids, torch.stack(said)


def told(prompt: str, still: bool) -> list[dict[str, str]]:
    """Return what a language model is told: the instructions, some examples, and the prompt."""
    messages = [{"role": "system", "content": INSTRUCTIONS}]
    for request, caption in EXAMPLES.items():
        messages += [{"role": "user", "content": f"Request: {request}"}, {"role": "assistant", "content": caption}]
    asked = OF_A_PICTURE if still else "Request: "
    return [*messages, {"role": "user", "content": asked + prompt.strip()}]


def _paragraph(text: str) -> str:
    """Take the first paragraph of an answer, without what models put around it: thoughts, fences and quotes."""
    text = re.sub(r"<think>.*?(</think>|$)", "", text, flags=re.DOTALL).strip().strip("`").strip()
    return " ".join(text.split("\n\n")[0].split()).strip('"“”')


def _sampling(count: int, tokens: int, end: int | list[int], pad: int | None) -> GenerationConfig:
    from transformers import GenerationConfig

    return GenerationConfig(
        do_sample=True,
        temperature=TEMPERATURE,
        top_k=0,
        num_return_sequences=count,
        max_new_tokens=tokens,
        eos_token_id=end,
        pad_token_id=pad,
    )


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's random numbers for a while; they go on afterwards as if nothing had been."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        (torch.cuda.manual_seed if device.type == "cuda" else torch.default_generator.manual_seed)(seed)
        yield
