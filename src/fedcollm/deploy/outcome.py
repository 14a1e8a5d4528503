"""What a client has when the run is finished: the final adapter, what reads its input, a model card and a report."""

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedcollm.config import RunConfig
from fedcollm.deploy.audit import totals
from fedcollm.deploy.directories import Membership
from fedcollm.deploy.files import filled
from fedcollm.errors import RefusalError
from fedcollm.messages import Adapter, FinishRequest, all_finite, payload_digest
from fedcollm.models.adapters import save_adapter
from fedcollm.progress import say
from fedcollm.runs.identity import base_digests
from fedcollm.runs.portable import copy_input_files, portable_of, write_portable
from fedcollm.storage import make_directory, write_atomically, writing

if TYPE_CHECKING:
    import peft


@dataclass(frozen=True)
class Outcome:
    """Where a client saves the outcome of its run: `final/` in its directory.

    Attributes:
        directory: the client's directory.
        membership: what the client knows about the deployment.
        config: the configuration of the run.
        slm: the SLM with its adapter.
        examples: number of the client's training examples.
    """

    directory: Path
    membership: Membership
    config: RunConfig
    slm: "peft.PeftModel" = field(repr=False)
    examples: int

    def save(self, request: FinishRequest) -> None:
        """Save the final adapter with all that it takes to use it.

        Raises:
            RefusalError: the message is of another run, or its adapter does not fit the SLM.
            UserError: the directory can't be written.
        """
        if request.run != self.membership.run:
            raise RefusalError(f"the end of run {request.run!r}, and this client is part of {self.membership.run!r}")
        if type(request.round_index) is not int or not all_finite(request.adapter.values()):
            raise RefusalError("the last message of the run has no valid round or adapter")
        final = self.directory / "final"
        with writing(self.directory):
            make_directory(final)
            if self.config.control is None:
                self._save_adapter(request.adapter, final)
            write_atomically(final / "README.md", self._card(request))
            write_atomically(final / "report.json", json.dumps(self._report(request), indent=1) + "\n")
        say(f"the run is finished after round {request.round_index}; the final adapter is in {final}")

    def _save_adapter(self, adapter: Adapter, final: Path) -> None:
        try:
            save_adapter(self.slm, adapter, final / "adapter")
        except ValueError as error:
            raise RefusalError(f"the final adapter does not fit the SLM: {error}") from error
        (final / "adapter" / "README.md").unlink(missing_ok=True)  # PEFT's empty form of a model card
        place = final / "adapter"
        copy_input_files(str(getattr(self.slm.get_base_model(), "name_or_path", "")), place)
        digests = dict(base_digests("slm", self.slm))
        write_portable(place, portable_of(self.config, "slm", self.membership.facts, digests))

    def _card(self, request: FinishRequest) -> str:
        """Return the model card."""
        federation, privacy = self.config.federation, self.config.federation.privacy
        hidden = "under secure aggregation" if federation.secure_aggregation.enabled else "without secure aggregation"
        promised = "no differential privacy"
        if privacy is not None:
            promised = f"differential privacy ({privacy.level} level, δ = {privacy.delta:g})"
        facts = {
            "run": self.membership.run,
            "client": self.membership.client,
            "base": self.config.slm.source,
            "task": self.config.task.name,
            "rounds": str(request.round_index),
            "how": f"{hidden}, with {promised}",
        }
        return filled("model-card.md", facts)

    def _report(self, request: FinishRequest) -> dict[str, Any]:
        """Return the numbers of the client's own report."""
        messages, sent = totals(self.directory / "logs" / "audit.jsonl")
        return {
            "run": self.membership.run,
            "client": self.membership.client,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "rounds": request.round_index,
            "examples": self.examples,
            "messages_sent": messages,
            "bytes_sent": sent,
            "adapter_sha256": payload_digest(request.adapter, {}),
        }
