"""The `task` section of the configuration: the data and how it is split."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import Field, field_validator, model_validator

from fedcollm.config.base import NonNegative, Positive, PositiveFloat, Section
from fedcollm.config.cleaning import CleaningConfig

#: Key of `FormatConfig` that names an example's input to what it is for, for messages.
_INPUTS: Mapping[str, str] = {"prompt": "text", "messages": "conversations", "image": "images", "audio": "audio"}

#: Keys of `FormatConfig` that only text has, with their defaults.
_TEXT_KEYS: Mapping[str, object] = {"chat": False, "joiner": " ", "max_new_tokens": 64, "paraphrases": None}

#: Keys of `FormatConfig` that only tables have, with their defaults.
_TABLE_KEYS: Mapping[str, object] = {
    "encoding": "utf-8",
    "delimiter": None,
    "skip_unanswered": False,
    "answer_is": "auto",
}

#: Tasks that ship with fedcollm and whose answers are boxes.
_BOX_TASKS = ("shapes",)

#: Tasks that ship with fedcollm and whose examples are not text.
_OTHER_TASKS = (*_BOX_TASKS, "digits", "spoken_words")


#: Name of the user's own data if the configuration gives it none.
OWN = "custom"

#: Number of clients, unless the configuration or the groups of the data say another one.
_CLIENTS = 4


class PartitionConfig(Section):
    """How the private examples are divided among the clients."""

    kind: Literal["iid", "dirichlet", "shards", "natural", "quantity", "pooled"] = "dirichlet"
    """iid, dirichlet (label skew), shards (few labels), natural (groups), quantity (uneven), pooled (one client)"""
    alpha: PositiveFloat = 0.3
    """dirichlet only: concentration α; the smaller it is, the more the clients' labels differ"""
    shards: Positive = 2
    """shards only: number of shards per client"""
    with_public: bool = False
    """pooled only: whether the one client also holds the labelled public examples"""

    @model_validator(mode="after")
    def _public_part_only_if_pooled(self) -> "PartitionConfig":
        if self.with_public and self.kind != "pooled":
            raise ValueError(f"with_public needs kind: pooled, not {self.kind}")
        return self


class FormatConfig(Section):
    """How the rows of your own JSONL, CSV or Parquet files become prompts and answers, or images or audio with labels.

    Without prompt, audio and boxes, the data is images; without image too, they are in a folder of class folders. With
    boxes, it is images with the boxes of their objects.
    """

    prompt: str | None = None
    """text: template of the prompt, with column names in braces, such as "{diagnosis}:" """
    paraphrases: list[str] | None = None
    """text: other templates with the same columns, for client.augmentation; scores and predictions use prompt"""
    messages: str | None = None
    """text: column with a conversation in place of prompt and answer; its last message is the answer"""
    chat: bool = False
    """text: whether the prompt is put into the chat template of the models' tokenizer; always so with messages"""
    joiner: str = " "
    """text: what stands between prompt and answer, unless the prompt ends with white space; "" for Japanese, say"""
    max_new_tokens: Positive = 64
    """text without choices: longest answer, in tokens, that a model generates when it is scored"""
    image: str | None = None
    """images: column with the path of an image, relative to its file; null, without prompt: train/CLASS/ has images"""
    audio: str | None = None
    """audio: column with the path of a recording (WAV, FLAC, OGG or MP3), relative to its file"""
    answer: str | None = None
    """column that holds the right answer, or the class of an image or a recording; null for class folders"""
    answer_is: Literal["auto", "text", "letter", "position", "position_from_1"] = "auto"
    """how an answer names its choice; position: 0, 1, ...; auto: the only way that fits all rows of your files"""
    transcript: str | None = None
    """audio: column that holds what is said, in place of answer; the models then recognize speech"""
    choices: list[str] | str | None = None
    """possible answers, or their column; null: free completion of a prompt, or the classes of the training data"""
    boxes: Literal["coco", "voc"] | None = None
    """detection: coco (train.json, test.json, ... and images/) or voc (Annotations/, JPEGImages/, ImageSets/Main/)"""
    group: str | None = None
    """column that says which client (hospital, bank, ...) a row belongs to; needed for partition kind natural"""
    encoding: str = "utf-8"
    """encoding of CSV, TSV and JSON files, such as shift_jis, cp1252 or utf-16"""
    delimiter: str | None = None
    """what separates the fields of CSV and TSV files; null: a comma, semicolon, tab or |, whichever the header has"""
    skip_unanswered: bool = False
    """whether to leave out rows without an answer, and to count them, instead of refusing the file"""
    longest_seconds: Annotated[float, Field(ge=1)] = 30.0
    """audio: longer recordings are cut off there; Whisper's encoder, made for 30 s, is shortened to it"""
    language: str | None = None
    """transcript: the language that Whisper is told, such as en; null: the one in its tokenizer's files, if any"""

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, name: str) -> str:
        try:
            bytes(4).decode(name)  # four null bytes are text in every encoding of text
        except (LookupError, ValueError):
            raise ValueError(
                f"{name!r} is no encoding of text that Python knows. Give one, such as utf-8, cp1252 or shift_jis"
            ) from None
        return name

    @field_validator("delimiter")
    @classmethod
    def _one_character(cls, sign: str | None) -> str | None:
        if sign is not None and (len(sign) != 1 or sign in '"\r\n\0' or "\ud800" <= sign <= "\udfff"):
            raise ValueError(
                f'{sign!r} can\'t separate fields. Give one character, no quote and no line end, such as ";", or '
                '"\\t" in double quotes for a tab'
            )
        return sign

    @field_validator("choices", mode="before")
    @classmethod
    def _texts(cls, choices: Any) -> Any:
        """Take whole numbers for their digits, and refuse what YAML reads as something else than text."""
        if not isinstance(choices, list | tuple):
            return choices
        values = [str(c) if isinstance(c, int) and not isinstance(c, bool) else c for c in cast("list[Any]", choices)]
        if odd := [value for value in values if isinstance(value, bool | float) or value is None]:
            raise ValueError(f"{odd[0]!r} is no text. Put each choice in quotes")
        return values

    @model_validator(mode="after")
    def _one_kind(self) -> "FormatConfig":
        if self.boxes is not None:
            return self._checked_boxes()
        given = {name: value for name in _INPUTS if (value := getattr(self, name)) is not None}
        if len(given) > 1:
            one, other = list(given)[:2]
            raise ValueError(
                f"{one} is for {_INPUTS[one]} and {other} {given[other]!r} for {_INPUTS[other]}. Remove one of them"
            )
        if self.audio is not None:
            self._check_audio()
        elif self.transcript is not None or self.language is not None:
            raise ValueError("transcript and language are for audio. Set audio to the column of the recordings")
        self._check_text()
        self._check_table()
        if given and self.answer is None and self.transcript is None and self.messages is None:
            raise ValueError("answer is missing. Set it to the column that holds the right answer")
        if self.is_folders and (self.answer is not None or self.group is not None):
            raise ValueError(
                "without prompt (text), image (a column of image files) or audio, images are in class folders, and "
                "there is no column for answer or group. Set prompt, image or audio, or remove answer and group"
            )
        if self.kind != "text" and isinstance(self.choices, str):
            examples = "images" if self.audio is None else "recordings"
            raise ValueError(
                f"choices {self.choices!r} is a column, but all {examples} share their classes. Give a list"
            )
        return self

    def _check_text(self) -> None:
        if self.paraphrases is not None and (self.messages is not None or not self.paraphrases):
            raise ValueError("paraphrases are other templates of prompt. Give at least one, or remove paraphrases")
        if self.messages is not None and (self.answer is not None or self.choices is not None):
            raise ValueError("the answer to messages is their last one. Remove answer and choices")
        odd = next((name for name, default in _TEXT_KEYS.items() if getattr(self, name) != default), None)
        if odd is not None and self.prompt is None and self.messages is None:
            raise ValueError(f"{odd} is for text. Set prompt, or remove {odd}")

    def _check_table(self) -> None:
        if self.answer_is != "auto" and (self.answer is None or self.choices is None):
            raise ValueError(f"answer_is {self.answer_is} is for one of several choices. Set answer and choices")
        if self.is_folders or self.boxes is not None:
            odd = next((name for name, default in _TABLE_KEYS.items() if getattr(self, name) != default), None)
            if odd is not None:
                raise ValueError(f"{odd} is for tables. Set prompt, messages, image or audio, or remove {odd}")

    def _check_audio(self) -> None:
        if self.answer is not None and self.transcript is not None:
            raise ValueError(
                f"answer {self.answer!r} is for classes and transcript {self.transcript!r} for speech recognition. "
                "Remove one of them"
            )
        if self.answer is None and self.transcript is None:
            raise ValueError("answer is missing. Set it to the column of classes, or transcript to what is said")
        if self.transcript is not None and self.choices is not None:
            raise ValueError("choices are for answer, but a transcript is free text. Remove choices")
        if self.language is not None and self.transcript is None:
            raise ValueError(
                f"language {self.language!r} is for speech recognition. Set transcript, or remove language"
            )

    def _checked_boxes(self) -> "FormatConfig":
        for name in ("prompt", "messages", "image", "audio", "answer", "transcript", "language", *_TEXT_KEYS):
            if name in _TEXT_KEYS and getattr(self, name) == _TEXT_KEYS[name]:
                continue
            if (value := getattr(self, name)) is not None:
                raise ValueError(f"boxes {self.boxes} says where images and classes are. Remove {name} {value!r}")
        self._check_table()
        if isinstance(self.choices, str):
            raise ValueError(f"choices {self.choices!r} is a column, but all boxes share their classes. Give a list")
        if self.group is not None and self.boxes == "voc":
            raise ValueError(
                f"group {self.group!r}: the clients of boxes voc are the folders in JPEGImages. Remove group"
            )
        return self

    @property
    def kind(self) -> Literal["text", "image_files", "object_files", "audio_files", "speech_files"]:
        """What an example is: a prompt, an image or a recording, and what is asked of it."""
        if self.boxes is not None:
            return "object_files"
        if self.prompt is not None or self.messages is not None:
            return "text"
        if self.audio is not None:
            return "audio_files" if self.transcript is None else "speech_files"
        return "image_files"

    @property
    def is_folders(self) -> bool:
        """Whether the data is a folder of class folders."""
        return all(value is None for value in (self.prompt, self.messages, self.image, self.audio, self.boxes))

    @property
    def is_free(self) -> bool:
        """Whether answers are free text, such as transcripts, instead of one of several choices."""
        return self.transcript is not None or (self.kind == "text" and self.choices is None)


def _name_of(path: object) -> str:
    """Return the name of the user's own data: that of its file without endings, or of its directory."""
    stem = Path(str(path)).name.split(".")[0] if isinstance(path, str | Path) else ""
    return stem if stem.strip() and stem.isprintable() else OWN


class TaskConfig(Section):
    """The data and how it is split."""

    name: str = "icd10"
    """arc_easy, arc_challenge, commonsense_qa, digits, icd10, openbookqa, professions, shapes, spoken_words, custom"""
    path: Path | None = None
    """your file, or a directory with a train file (or folder), and possibly test (or validation), public, unlabelled"""
    format: FormatConfig | None = None
    """custom only: prompt, image, audio or boxes, answer or transcript, choices, group: how rows become examples"""
    clients: Positive | None = None
    """number of clients K; null: the number of groups for partition kind natural, otherwise 4"""
    partition: PartitionConfig = PartitionConfig()
    private_size: Positive = 320
    """private training examples per client; the mean, if the partition makes the clients unequal"""
    public_size: NonNegative = 320
    """labelled examples in the server's public set D_a"""
    unlabelled_size: NonNegative = 0
    """unlabelled examples in D_a, for distillation, and for training too if pseudo_labels label them"""
    test_size: Positive = 300
    """examples for evaluation, which nobody trains on"""
    max_length: Positive | None = None
    """text: longest sequence in tokens; longer prompts lose their oldest; null: the models' context"""
    cleaning: CleaningConfig | None = None
    """how each client cleans its own training examples before anything is trained on them; null: not at all"""

    @model_validator(mode="before")
    @classmethod
    def _with_defaults(cls, values: Any) -> Any:
        """Fill in the number of clients, unless the data decides it, and the name of the user's own data."""
        if not isinstance(values, Mapping):
            return values
        given = dict(cast("Mapping[str, Any]", values))
        partition: Any = given.get("partition")
        section = cast("Mapping[str, Any]", partition)
        kind = section.get("kind") if isinstance(partition, Mapping) else getattr(partition, "kind", None)
        if given.get("clients") is None and kind != "natural":
            given["clients"] = _CLIENTS
        if given.get("name") is None and given.get("format") is not None:
            given["name"] = _name_of(given.get("path"))
        return given

    @property
    def is_own(self) -> bool:
        """Whether the data is the user's own files, which have a `format`, and not a task that ships with fedcollm."""
        return self.format is not None or self.name == OWN

    @property
    def is_text(self) -> bool:
        """Whether the examples are text."""
        return self.format.kind == "text" if self.format is not None else self.name not in _OTHER_TASKS

    @property
    def has_boxes(self) -> bool:
        """Whether the answers are boxes, as in detection."""
        return self.name in _BOX_TASKS or (self.format is not None and self.format.boxes is not None)

    @property
    def no_choices(self) -> str | None:
        """Why an example has no choices, in words; None if it has some."""
        if self.format is not None and self.format.is_free:
            key = "task.format.choices is null" if self.format.transcript is None else "task.format has a transcript"
            return f"{key}: free answers"
        if self.has_boxes:
            return "the answers of detection are boxes, which"
        return None
