"""The roster: which clients belong to a deployment, with their public signing keys, signed by its authority.

The claims of secure aggregation rest on every client knowing the true signing keys of the others. The server is not
trusted with that, so the roster is signed with the key of the certificate authority, which is kept offline. A client
verifies it with the `ca.crt` that came in its invitation, and never goes back to an older version.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from fedcollm.errors import UserError

#: Longest roster that is accepted, in bytes: some ten thousand clients.
LONGEST_BYTES = 2**20
_DOMAIN = b"fedcollm roster 1\n"

#: The name of a client, of a run or of a host: it stands in paths, units and pages.
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", max_length=200)]
SigningKey = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class File(BaseModel):
    """A JSON file. The names of its fields are its format, which the parties of a deployment must agree on."""

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid", strict=True)


class Roster(File):
    """Who belongs to a deployment.

    Attributes:
        run: identity of the run.
        version: it is raised by every change.
        clients: client id to public signing key, 32 bytes in hexadecimal, in the order of the federation.
    """

    run: Name
    version: Annotated[int, Field(ge=1)]
    clients: dict[Name, SigningKey]


class SignedRoster(File):
    """A roster with the authority's signature.

    Attributes:
        text: the roster as JSON, exactly as it was signed.
        signature: ECDSA with SHA-384 by the authority's key, in hexadecimal.
    """

    text: Annotated[str, StringConstraints(max_length=LONGEST_BYTES)]
    signature: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]*$", max_length=400)]

    def verified(self, authority: bytes, run: str) -> Roster:
        """Return the roster.

        Args:
            authority: the authority's certificate in PEM.
            run: the run that the roster must be of.

        Raises:
            UserError: the authority did not sign it, or it is another run's.
        """
        key = x509.load_pem_x509_certificate(authority).public_key()
        try:
            assert isinstance(key, ec.EllipticCurvePublicKey)
            key.verify(bytes.fromhex(self.signature), _DOMAIN + self.text.encode(), ec.ECDSA(hashes.SHA384()))
            roster = Roster.model_validate_json(self.text)
        except (InvalidSignature, ValidationError, ValueError, AssertionError) as error:
            raise UserError(
                "the roster is not signed by this deployment's authority, so that its keys may be anybody's. Ask the "
                "operator."
            ) from error
        if roster.run != run:
            raise UserError(f"the roster is of run {roster.run}, and this is run {run}. Ask the operator.")
        return roster


def sign(roster: Roster, key: ec.EllipticCurvePrivateKey) -> SignedRoster:
    """Return a roster with the signature of the authority's key."""
    text = json.dumps(roster.model_dump(mode="json"))
    signature = key.sign(_DOMAIN + text.encode(), ec.ECDSA(hashes.SHA384()))
    return SignedRoster(text=text, signature=signature.hex())


def in_order(clients: Mapping[str, Any], invited: Sequence[str]) -> dict[str, Any]:
    """Return a mapping by client id in the order in which the clients were invited.

    >>> in_order({"south": 2, "north": 1}, ["north", "south", "east"])
    {'north': 1, 'south': 2}
    """
    return {name: clients[name] for name in invited if name in clients}
