"""Co-tune two networks of your own: a large and a small one that recognize tones with CTC (Graves et al. 2006).

Each example is a noisy recording of three to five notes, and each client hears them at a pitch of its own. Run it with:

    python examples/own_modality.py
"""

import sys
from collections import Counter
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

import fedcollm

NOTES, FRAMES, BANDS = "ABCD", 6, 16  # notes, frames per note, frequency bands per frame


@dataclass(frozen=True, eq=False)
class Tune:
    """A recording as a spectrogram [frames, bands], with its notes as the label."""

    id: str
    spectrogram: Tensor
    label: str | None
    group: str | None = None

    @property
    def content(self) -> str:
        """The bytes of the recording, by which duplicates are found."""
        return self.spectrogram.numpy().tobytes().hex()

    def without_label(self) -> "Tune":
        """Return the recording without its notes."""
        return replace(self, label=None)


def make_tunes(count: int, clients: int, seed: int = 0) -> list[Tune]:
    """Return random tunes, in which client k hears each note k / 2 bands higher."""
    generator, tunes = torch.Generator().manual_seed(seed), []
    for i in range(count):
        notes = torch.randint(len(NOTES), (int(torch.randint(3, 6, (1,), generator=generator)),), generator=generator)
        center = 1.5 + 3.5 * notes.repeat_interleave(FRAMES)[:, None] + (i % clients) / 2
        loudness = torch.ones(FRAMES).index_fill(0, torch.tensor([0]), 0).repeat(len(notes))[:, None]
        spectrogram = loudness * torch.exp(-((torch.arange(BANDS) - center) ** 2) / 2)
        spectrogram = spectrogram + 0.2 * torch.randn(spectrogram.shape, generator=generator)
        tunes.append(Tune(str(i), spectrogram, "".join(NOTES[n] for n in notes), str(i % clients)))
    return tunes


class Recognizer(nn.Module):
    """A network from spectrograms [B, T, bands] to log-probabilities [B, T, 1 + notes]. Column 0 is CTC's blank."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(BANDS, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.head = nn.Linear(width, 1 + len(NOTES))

    def forward(self, spectrograms: Tensor) -> Tensor:
        """Return the log-probabilities of each frame, independently of the other frames."""
        return self.head(self.layers(spectrograms)).log_softmax(-1)


class Tones(fedcollm.Modality):
    """The modality of tunes, in which a row of `logits` is one frame."""

    name, metric = "tones", "tunes recognized"

    def load_model(self, section, role, device, seed):
        """Return a recognizer, whose `source` in the configuration is its width."""
        torch.manual_seed(seed)
        return Recognizer(int(section.source)).to(device)

    def is_pretrained(self, section):
        """Return False, because the run itself creates the weights."""
        return False

    def size(self, example):
        """Return the number of frames."""
        return len(example.spectrogram)

    def collate(self, examples):
        """Return padded spectrograms, their lengths, and the notes as numbers starting at 1."""
        notes = [torch.tensor([1 + NOTES.index(n) for n in e.label or ""], dtype=torch.int64) for e in examples]
        lengths = torch.tensor([len(e.spectrogram) for e in examples])
        return pad_sequence([e.spectrogram for e in examples], batch_first=True), lengths, notes

    def logits(self, model, batch):
        """Return one row per frame, without padding."""
        spectrograms, lengths, _ = batch
        frames = model(spectrograms.to(next(model.parameters()).device))
        return torch.cat([frame[:n] for frame, n in zip(frames, lengths, strict=True)])

    def targets(self, batch):
        """Return unlabelled frames, because CTC does not know which frames a note is in."""
        return torch.full((int(batch[1].sum()),), -100)

    def labelled(self, batch):
        """Return the number of labelled tunes."""
        return sum(len(notes) > 0 for notes in batch[2])

    def loss(self, logits, batch):
        """Return the CTC loss per note, averaged over labelled tunes."""
        pairs = zip(logits.split(batch[1].tolist()), batch[2], strict=True)
        known = [(rows.log_softmax(-1), notes) for rows, notes in pairs if len(notes)]
        if not known:
            return 0 * logits.sum()
        rows, notes = zip(*known, strict=True)
        lengths = [torch.tensor([len(one) for one in many]) for many in (rows, notes)]
        return functional.ctc_loss(pad_sequence(rows), torch.cat(notes), *lengths)  # [T, B, 1 + notes]

    def score(self, model, examples):
        """Return the number of tunes in which every note is recognized."""
        batch = self.collate(examples)
        heard = [decode(rows.argmax(-1)) for rows in self.logits(model, batch).split(batch[1].tolist())]
        right = {e.id: float(h == e.label) for e, h in zip(examples, heard, strict=True)}
        lengths = Counter((str(len(e.label)), str(len(h))) for e, h in zip(examples, heard, strict=True))
        return fedcollm.Score({"recognized": sum(right.values())}, len(examples), lengths, right)


def decode(path: Tensor) -> str:
    """Return the notes of a path of columns, with repeats collapsed and blanks removed."""
    return "".join(NOTES[i - 1] for i in torch.unique_consecutive(path).tolist() if i)


CONFIG = {
    "name": "tones",
    "task": {
        "name": "tones",
        "clients": 3,
        "partition": {"kind": "natural"},
        "private_size": 40,
        "public_size": 40,
        "test_size": 60,
    },
    "llm": {"source": "96", "pretrain_epochs": 100},
    "slm": {"source": "16", "layers": None, "pretrain_epochs": 100},
    "client": {"learning_rate": 1e-2, "batch_size": 4, "epochs": 3},
    "server": {"learning_rate": 1e-2, "batch_size": 4, "epochs": 3},
    "federation": {"rounds": 3},
}

if __name__ == "__main__":
    config = fedcollm.load_config(CONFIG)
    pool = fedcollm.Pool(train=make_tunes(400, clients=3))
    result = fedcollm.run(config, *sys.argv[1:2], modality=Tones(), pool=pool)
    print(result.to_pandas()[["scores.slm", "scores.llm"]])
