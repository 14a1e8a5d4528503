"""The certificates and private keys of a deployment, made with `cryptography`."""

import datetime
import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedcollm.deploy.fingerprints import grouped
from fedcollm.errors import UserError

PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


def private_pem(key: PrivateKey) -> bytes:
    """Return a private key in PEM. It is not encrypted: the permissions of its file protect it."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@dataclass(frozen=True)
class Authority:
    """The certificate authority of one deployment.

    Attributes:
        key: the authority's private key.
        certificate: the authority's own certificate.
    """

    key: ec.EllipticCurvePrivateKey = field(repr=False)
    certificate: x509.Certificate

    @classmethod
    def make(cls, name: str, days: int) -> "Authority":
        """Return a new authority.

        Args:
            name: name of the deployment.
            days: how long the authority is valid from now.
        """
        key = ec.generate_private_key(ec.SECP384R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"fedcollm {name}")])
        certificate = (
            _unsigned(subject, subject, key.public_key(), days)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
            .sign(key, hashes.SHA384())
        )
        return cls(key, certificate)

    @classmethod
    def load(cls, directory: Path) -> "Authority":
        """Return the authority whose `ca.key` and `ca.crt` are in a directory.

        Raises:
            UserError: they are not there, or don't belong together.
        """
        try:
            key = load_pem_private_key((directory / "ca.key").read_bytes(), None)
            certificate = x509.load_pem_x509_certificate((directory / "ca.crt").read_bytes())
        except (OSError, ValueError, TypeError) as error:
            raise UserError(
                f"--ca {directory}: the authority's ca.key and ca.crt can't be read ({error}). Give the directory ca/ "
                "that `fedcollm deploy init` wrote."
            ) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise UserError(f"--ca {directory}: ca.key is not the key of ca.crt. Give the directory as it was written.")
        return cls(key, certificate)

    def server(self, hosts: list[str], days: int) -> tuple[bytes, bytes]:
        """Return a server's certificate and private key, both in PEM.

        Args:
            hosts: names and addresses by which clients and the proxy reach the server.
            days: how long the certificate is valid from now; if negative, it expired that many days ago.
        """
        key = ec.generate_private_key(ec.SECP384R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0][:64])])
        certificate = (
            _unsigned(subject, self.certificate.subject, key.public_key(), days)
            .add_extension(x509.SubjectAlternativeName([_name(host) for host in hosts]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
            .sign(self.key, hashes.SHA384())
        )
        return certificate.public_bytes(Encoding.PEM), private_pem(key)

    def pem(self) -> bytes:
        """Return the authority's certificate in PEM."""
        return self.certificate.public_bytes(Encoding.PEM)


def authority_fingerprint(certificate: bytes) -> str:
    """Return the fingerprint of an authority, given its certificate in PEM.

    Raises:
        UserError: it is no certificate of an authority of fedcollm.
    """
    try:
        key = x509.load_pem_x509_certificate(certificate).public_key()
    except ValueError as error:
        raise UserError(
            "the authority's certificate is malformed. Ask the operator for the invitation again."
        ) from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise UserError("the authority's key is of another kind than fedcollm makes. Ask for the invitation again.")
    return grouped(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def _unsigned(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    """Return a certificate that is not signed yet, with what the authority's and the server's have in common."""
    now = datetime.datetime.now(datetime.UTC)
    end = now + datetime.timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, end) - datetime.timedelta(hours=1))
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(**granted: bool) -> x509.KeyUsage:
    """Return a key usage extension that allows the given uses and no others."""
    names = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{name: granted.get(name, False) for name in names})


def _name(host: str) -> x509.GeneralName:
    """Return a host's IP address or DNS name for a certificate."""
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def hosts(host: str) -> list[str]:
    """Return the names and addresses that a server's certificate is for.

    >>> hosts("fl.example.org")
    ['fl.example.org', 'localhost', '127.0.0.1']
    """
    return list(dict.fromkeys([host, "localhost", "127.0.0.1"]))
