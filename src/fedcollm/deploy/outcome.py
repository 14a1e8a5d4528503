"""What a client has when the run is finished: the final adapter, what reads its input, a model card and a report."""

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedcollm.config import RunConfig
from fedcollm.deploy.audit import totals
from fedcollm.deploy.directories import Membership
from fedcollm.errors import RefusalError
from fedcollm.messages import FinishRequest, all_finite, payload_digest
from fedcollm.models.adapters import save_adapter
from fedcollm.progress import say
from fedcollm.runs.card import Facts, Form, write_card
from fedcollm.runs.identity import base_digests
from fedcollm.runs.portable import copy_input_files, portable_of, write_portable
from fedcollm.storage import make_directory, write_atomically, writing

if TYPE_CHECKING:
    import peft


#: What the card says of a client's copy.
_COPY = (
    "All clients of the run have the same adapter. `report.json`, beside this directory, says what this client sent; "
    "`logs/audit.jsonl` in the client's directory lists every message."
)


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
                self._save_adapter(request, final / "adapter")
            write_atomically(final / "report.json", json.dumps(self._report(request), indent=1) + "\n")
        say(f"the run is finished after round {request.round_index}; the final adapter is in {final}")

    def _save_adapter(self, request: FinishRequest, place: Path) -> None:
        try:
            save_adapter(self.slm, request.adapter, place)
        except ValueError as error:
            raise RefusalError(f"the final adapter does not fit the SLM: {error}") from error
        copy_input_files(str(getattr(self.slm.get_base_model(), "name_or_path", "")), place)
        digests = dict(base_digests("slm", self.slm))
        write_portable(place, portable_of(self.config, "slm", self.membership.facts, digests))
        own = {self.membership.client: self.examples}
        facts = Facts(self.config, request.round_index, own, client=self.membership.client)
        write_card(place, facts, Form(paragraphs=[_COPY]))

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
