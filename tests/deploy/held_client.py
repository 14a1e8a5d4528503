"""`fedcollm deploy client ...` that waits in the training of one round until a file is there.

Usage: python held_client.py ROUND FILE deploy client ...; while it waits, there is a file FILE.waiting.
"""

import sys
import time
from pathlib import Path

from fedcollm.cli.app import main
from fedcollm.federation.client import Client
from fedcollm.messages import ClientUpdate, TrainRequest


def hold(round_index: int, gate: Path) -> None:
    """Have clients of this process wait for the file before they train in that round."""
    train = Client.train

    def held(self: Client, request: TrainRequest) -> ClientUpdate:
        if request.round_index == round_index:
            gate.with_suffix(".waiting").touch()
            while not gate.exists():
                time.sleep(0.05)
        return train(self, request)

    Client.train = held


if __name__ == "__main__":
    hold(int(sys.argv.pop(1)), Path(sys.argv.pop(1)))
    main()
