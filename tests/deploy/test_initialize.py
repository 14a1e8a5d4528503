"""What `fedcollm deploy init` writes, and what it refuses to write."""

import datetime
import ipaddress
import re
import ssl
import stat
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509.verification import PolicyBuilder, Store
from tests.transports.small_federation import small_config

from fedcollm.config import RunConfig
from fedcollm.config.loading import load_config
from fedcollm.config.paths import without_places
from fedcollm.data.catalogue import build_client_modality, load_pool
from fedcollm.data.partition import split
from fedcollm.deploy import directories
from fedcollm.deploy.certificates import Authority
from fedcollm.deploy.client import private_examples
from fedcollm.deploy.directories import Deployment, Membership
from fedcollm.deploy.initialize import Choices, Site, initialize
from fedcollm.errors import UserError
from fedcollm.runs.directory import parse_config

DEMO = Choices(demo=True)
SITE = Site("fed.example.org", 9555, 9556, 90)
IDS = ("0", "1", "2", "3")
PRIVATE = {"server/deployment.json", "server/nodes.map"}
SECRETS = {"ca/ca.key", "server/server.key", "server/superlink.key", "server/superexec.key"} | {
    f"clients/{client}/{name}" for client in IDS for name in ("node.key", "signing.key")
}


@pytest.fixture(scope="module")
def config(model_directories, word_data) -> RunConfig:
    return small_config(model_directories, word_data, **{"federation.secure_aggregation.enabled": True})


@pytest.fixture(scope="module")
def out(config, tmp_path_factory) -> Path:
    """A deployment of four clients; tests leave it as it is."""
    place = tmp_path_factory.mktemp("deployment") / "out"
    initialize(config, SITE, place, DEMO)
    return place


def read_deployment(out: Path) -> Deployment:
    return directories.read(out / "server", directories.DEPLOYMENT, Deployment)


def read_membership(out: Path, client: str) -> Membership:
    return directories.read(out / "clients" / client, directories.MEMBERSHIP, Membership)


# --- files ---


def test_files_are_those_that_are_promised(out):
    files = {str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()}
    server = ("config.yaml", "deployment.json", "ca.crt", "server.crt", "server.key", "superexec.key", "nginx.conf",
              "superlink.crt", "superlink.key", "nodes.map", "public/latest.json",
              "compose.yaml", "Dockerfile", ".dockerignore", "systemd/fedcollm-server.service")  # fmt: skip
    client = ("config.yaml", "membership.json", "ca.crt", "node.key", "signing.key", "systemd/fedcollm-client.service",
              "roster.json", "compose.yaml", "Dockerfile", ".dockerignore")  # fmt: skip
    assert files == {"README.txt", "ca/ca.key", "ca/ca.crt"} | {f"server/{name}" for name in server} | {
        f"clients/{number}/{name}" for number in IDS for name in client
    }


def test_secrets_are_for_their_owner_alone(out):
    modes = {str(f.relative_to(out)): stat.S_IMODE(f.stat().st_mode) for f in out.rglob("*") if f.is_file()}
    assert {name for name, mode in modes.items() if mode == 0o600} == SECRETS | PRIVATE
    assert all(mode & 0o022 == 0 for mode in modes.values())
    for name in SECRETS:
        directories.check_private(out / name)
        assert stat.S_IMODE((out / name).parent.stat().st_mode) == 0o700


def test_private_keys_are_nowhere_but_in_their_own_files(out):
    holders = {str(f.relative_to(out)) for f in out.rglob("*") if f.is_file() and b"PRIVATE KEY" in f.read_bytes()}
    assert holders == SECRETS - {"server/superexec.key"}
    secret = (out / "server" / "superexec.key").read_bytes()
    assert len(secret) == 32
    assert not any(secret in f.read_bytes() for f in (out / "clients").rglob("*") if f.is_file())


def test_keys_differ_and_the_rosters_public_ones_belong_to_them(out):
    deployment, seen = read_deployment(out), set()
    for client in IDS:
        place = out / "clients" / client
        node = directories.node_key(place)
        assert isinstance(node.curve, ec.SECP384R1)
        node_public = node.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        signing_public = directories.signing_key(place).public_key().public_bytes_raw().hex()
        assert deployment.clients[client].node == node_public
        assert deployment.clients[client].signing == signing_public
        seen |= {node_public, signing_public}
    assert len(seen) == 2 * len(IDS)


def test_all_parties_know_the_same_federation(out, config):
    deployment = read_deployment(out)
    assert re.fullmatch(r"small-[0-9a-f]{16}", deployment.run)
    assert (deployment.host, deployment.port, deployment.superlink_port) == ("fed.example.org", 9555, 9556)
    assert list(deployment.clients) == list(IDS)
    assert parse_config(out / "server" / "config.yaml") == config
    for client in IDS:
        membership = read_membership(out, client)
        assert (membership.client, membership.run) == (client, deployment.run)
        assert membership.address == "fed.example.org:9555"
        roster = deployment.roster.verified((out / "clients" / client / "ca.crt").read_bytes(), deployment.run)
        assert roster.clients == {name: keys.signing for name, keys in deployment.clients.items()}
        assert membership.facts == {"vocabulary_size": 16, "context_length": 32}
        told = parse_config(out / "clients" / client / "config.yaml")
        assert (told.slm, told.client, told.federation) == (config.slm, config.client, config.federation)
        assert told == without_places(config)
        assert config.llm.source not in told.model_dump_json()  # a directory of the server's
        assert (out / "clients" / client / "ca.crt").read_bytes() == (out / "ca" / "ca.crt").read_bytes()


def test_two_deployments_share_no_run_and_no_key(out, config, tmp_path):
    other = initialize(config, SITE, tmp_path / "other", DEMO)
    first = read_deployment(out)
    assert first.run != other.run
    assert not {k.signing for k in first.clients.values()} & {k.signing for k in other.clients.values()}
    for name in SECRETS:
        assert (out / name).read_bytes() != (tmp_path / "other" / name).read_bytes()


def test_names_of_clients_are_the_configurations(config, tmp_path):
    names = ["north", "south-2", "east_3", "w.est"]
    federation = config.federation.model_copy(update={"participants": names})
    deployment = initialize(config.model_copy(update={"federation": federation}), SITE, tmp_path / "out", DEMO)
    assert list(deployment.clients) == names
    assert sorted(path.name for path in (tmp_path / "out" / "clients").iterdir()) == sorted(names)
    readme = (tmp_path / "out" / "README.txt").read_text()
    assert all(f"clients/{name}/  For client {name}:" in readme for name in names)


# --- certificates ---


def certificate(file: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(file.read_bytes())


@pytest.mark.parametrize("host", ["fed.example.org", "localhost", "127.0.0.1"])
def test_certificate_is_the_authoritys_and_names_every_host(out, host):
    authority, own = certificate(out / "ca" / "ca.crt"), certificate(out / "server" / "server.crt")
    name = x509.IPAddress(ipaddress.ip_address(host)) if host[0].isdigit() else x509.DNSName(host)
    builder = PolicyBuilder().store(Store([authority]))
    assert builder.build_server_verifier(name).verify(own, [])[0] == own
    with pytest.raises(x509.verification.VerificationError):
        builder.build_server_verifier(x509.DNSName("other.example.org")).verify(own, [])


def test_certificate_of_another_authority_does_not_verify(out):
    other = Authority.make("other", 10)
    verifier = PolicyBuilder().store(Store([other.certificate])).build_server_verifier(x509.DNSName("localhost"))
    with pytest.raises(x509.verification.VerificationError):
        verifier.verify(certificate(out / "server" / "server.crt"), [])


def test_validity_is_as_asked(out):
    own, authority = certificate(out / "server" / "server.crt"), certificate(out / "ca" / "ca.crt")
    hour = datetime.timedelta(hours=1)
    assert own.not_valid_after_utc - own.not_valid_before_utc == datetime.timedelta(days=90) + hour
    assert own.not_valid_before_utc < datetime.datetime.now(datetime.UTC)
    assert authority.not_valid_after_utc > own.not_valid_after_utc
    assert authority.not_valid_after_utc - authority.not_valid_before_utc == datetime.timedelta(days=3650) + hour


def test_expired_certificate_does_not_verify():
    authority = Authority.make("run", 10)
    expired = x509.load_pem_x509_certificate(authority.server(["localhost"], -1)[0])
    verifier = PolicyBuilder().store(Store([authority.certificate])).build_server_verifier(x509.DNSName("localhost"))
    with pytest.raises(x509.verification.VerificationError):
        verifier.verify(expired, [])


def test_server_certificate_is_no_authority_and_the_authoritys_may_sign_servers_only(out):
    own, authority = certificate(out / "server" / "server.crt"), certificate(out / "ca" / "ca.crt")
    assert not own.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    constraints = authority.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.critical, constraints.value.ca, constraints.value.path_length) == (True, True, 0)
    assert not own.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign


def test_keys_belong_to_the_certificates(out):
    for key, cert in (("ca/ca.key", "ca/ca.crt"), ("server/server.key", "server/server.crt")):
        private = load_pem_private_key((out / key).read_bytes(), None)
        assert private.public_key() == certificate(out / cert).public_key()
    ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(
        out / "server" / "server.crt", out / "server" / "server.key"
    )


def test_host_may_be_an_address(config, tmp_path):
    initialize(config, Site("10.1.2.3"), tmp_path / "out")
    names = certificate(tmp_path / "out" / "server" / "server.crt").extensions
    addresses = names.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.IPAddress)
    assert [str(address) for address in addresses] == ["10.1.2.3", "127.0.0.1"]


# --- services' configurations ---


def test_nginx_passes_the_node_interface_and_nothing_else(out):
    text = re.sub(r"#.*", "", (out / "server" / "nginx.conf").read_text())
    assert re.findall(r"include ([^;]*);", text) == ["state/front.conf", "nodes.map", "state/listen.conf"]
    assert "listen " not in text
    assert re.findall(r"proxy_pass ([^;]*);", text) == ["https://127.0.0.1:9556"] * 3
    parts = [part.partition("{") for part in re.split(r"\blocation\b", text)[1:]]
    locations = {name.strip(): body.rpartition("}")[0] for name, _, body in parts}
    run = read_deployment(out).run
    public = [f"= /roster/{run}/{name}.json" for name in ("roster", "latest")]  # two files, and no directory
    calls = ["/v1/fleet/", "= /v1/fleet/push-messages", "= /v1/fleet/push-object"]
    assert list(locations) == [*calls, *public, "= /unknown", "/"]
    assert [re.findall(r"alias ([^;]*);", locations[name]) for name in public] == [
        ["public/roster.json"],
        ["public/latest.json"],
    ]
    for call in calls:
        assert "proxy_pass" in locations[call]
        assert "if ($admitted = 0) {\n                rewrite ^ /unknown last;" in locations[call]
    for place, code in (("= /unknown", 401), ("/", 404)):
        assert re.findall("limit_req zone=(.*?) |try_files (.*);", locations[place]) == [
            ("strangers", ""),
            ("", f"state/none ={code}"),
        ]
    assert "ssl_protocols TLSv1.3;" in text
    assert "proxy_ssl_verify on;" in text
    for bound in (
        "client_header_timeout 10s;",
        "client_body_timeout 20s;",
        "send_timeout 30s;",
        "proxy_request_buffering off;",
        "client_max_body_size 16k;",
        "client_max_body_size 5m;",
        "limit_conn peers 128;",
        "worker_connections 16384;",
    ):
        assert bound in text
    assert "$time_iso8601" in text  # nginx's own variables survive
    assert text.count("{") == text.count("}")


def test_compose_is_yaml_that_publishes_the_port_alone(out):
    service = yaml.safe_load((out / "server" / "compose.yaml").read_text())["services"]["server"]
    assert service["ports"] == ["9555:9555"]
    assert service["cap_drop"] == ["ALL"]
    assert service["read_only"] is True
    assert not [name for name in service if "9480" in str(service[name])]  # the page


def test_image_has_the_program_and_no_key_and_sees_the_models(out, config):
    server, client = out / "server", out / "clients" / "2"
    for place, command, named in (
        (server, "server", {config.llm.source, config.slm.source, str(config.task.path)}),
        (client, "client", {config.slm.source}),
    ):
        assert (place / ".dockerignore").read_text().splitlines()[1:] == ["*", "!wheels"]
        text = (place / "Dockerfile").read_text()
        assert re.findall("COPY (.*)", text) == ["wheels/ /wheels/"]
        assert '-c /wheels/constraints.txt "${wheel}[deploy]"' in text
        assert "pip install --no-cache-dir 'fedcollm" not in text
        volumes = yaml.safe_load((place / "compose.yaml").read_text())["services"][command]["volumes"]
        bound = [volume for volume in volumes if isinstance(volume, dict)]
        assert {volume["source"] for volume in bound} == {volume["target"] for volume in bound} == named
        assert all(volume["read_only"] for volume in bound)
    assert "HEALTHCHECK" in (server / "Dockerfile").read_text()


def test_units_name_the_commands(out):
    server = (out / "server" / "systemd" / "fedcollm-server.service").read_text()
    assert f'deploy server "{out / "server"}" --log-json\n' in server
    client = (out / "clients" / "2" / "systemd" / "fedcollm-client.service").read_text()
    home = out / "clients" / "2"
    assert f'fedcollm" deploy client "{home}" --data "{home / "data"}"\n' in client
    for file in out.rglob("*"):
        if file.suffix in (".service", ".txt", ".conf", ".yaml") or file.name == "Dockerfile":
            text = (
                file.read_text().replace("${DATA:-", "").replace('"${wheel}[', "")
            )  # compose and the shell read these
            assert "${" not in text


def test_units_of_a_place_with_signs_that_mean_something_to_systemd(config, tmp_path):
    place = tmp_path / 'my 100% "data" $x'
    initialize(config, SITE, place, DEMO)
    unit = (place / "clients" / "2" / "systemd" / "fedcollm-client.service").read_text()
    written = f'{tmp_path}/my 100%% \\"data\\" $x/clients/2'
    assert f'deploy client "{written.replace("$", "$$")}" --data' in unit
    assert f'ReadWritePaths="{written}"\n' in unit
    assert f'"FEDCOLLM_CACHE={written}/state/cache"' in unit
    for name in ("ProtectHome=read-only", "SuccessExitStatus=130", "Restart=on-failure", "RestartPreventExitStatus=2"):
        assert f"{name}\n" in unit
    with pytest.raises(UserError, match="control characters"):
        initialize(config, SITE, tmp_path / "a\nUser=root", DEMO)


# --- the operator's data ---


@pytest.fixture
def servers_data(config, tmp_path) -> RunConfig:
    """The configuration of a server whose public part and test set have one label, and no training data."""
    (tmp_path / "data").mkdir()
    for part, count in (("public", 8), ("test", 12)):
        rows = (f'{{"text": "{part} {i}", "kind": "animal"}}\n' for i in range(count))
        (tmp_path / "data" / f"{part}.jsonl").write_text("".join(rows))
    return changed(config, **{"task.path": str(tmp_path / "data"), "task.format.group": "ward"})


def test_server_needs_a_public_part_and_a_test_set_alone(servers_data, tmp_path):
    initialize(servers_data, SITE, tmp_path / "out")
    assert parse_config(tmp_path / "out" / "server" / "config.yaml").task == servers_data.task


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("test", "", "test.jsonl has no rows"),
        ("test", None, "has no train file.*the server of a deployment needs none beside a public and a test part"),
        ("public", '{"text": "a", "kind": "animal"}\n', "8 public examples are needed .*but there are 1"),
        ("public", '{"text": "a", "kind": "fish"}\n', "fish"),
    ],
)
def test_data_that_the_server_could_not_start_with_is_refused(servers_data, tmp_path, file, content, reason):
    place = tmp_path / "data" / f"{file}.jsonl"
    place.unlink() if content is None else place.write_text(content)
    with pytest.raises(UserError, match=reason):
        initialize(servers_data, SITE, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- what is refused ---


def changed(config: RunConfig, **changes) -> RunConfig:
    return load_config("icd10", **config.model_dump(mode="json"), **changes)


HEAL = "slm.heal: each machine would heal an SLM of its own"
SHRINK = r"fedcollm shrink \S+ --layers"
REFUSED = {
    "healed SLM": ({"slm.layers": [1], "slm.heal": {}}, {}, f"{HEAL}.*{SHRINK} 1, --out DIR"),
    "healed SLM with settings": (
        {"slm.layers": [1], "slm.mlp_share": 0.5, "slm.heal": {"text": "my notes.txt", "betas": [0.5, 0.5]}},
        {},
        SHRINK + r" 1, --set mlp_share=0\.5 --set 'heal\.betas=\[0\.5, 0\.5\]' --set 'heal\.text=my notes\.txt' --out",
    ),
    "measured layers": (
        {"slm.layers": 1, "slm.layer_choice": "block", "slm.heal": {"epochs": 0}},
        {},
        SHRINK + r" 1 --set layer_choice=block --set heal\.epochs=0 --out DIR",
    ),
    "image task": ({"task.name": "digits", "task.path": None, "task.format": None}, {}, "digits can't be deployed"),
    "plain updates": (
        {"federation.secure_aggregation.enabled": False},
        {},
        "the server would see every single client's",
    ),
    "threshold": (
        {"federation.secure_aggregation.threshold": 2},
        {},
        "threshold 2 of 4 clients: it must be from 3 to 4",
    ),
    "name with a slash": ({"federation.participants": ["a", "b", "../c"]}, {}, r"name '../c': use letters"),
    "name with a space": ({"federation.participants": ["a", "b", "c d"]}, {}, "name 'c d': use letters"),
    "name with a newline": ({"federation.participants": ["a", "b", "c\nd"]}, {}, "use letters"),
    "empty name": ({"federation.participants": ["a", "b", ""]}, {}, "name '': use letters"),
    "hidden name": ({"federation.participants": ["a", "b", ".c"]}, {}, "name '.c': use letters"),
    "option as a name": ({"federation.participants": ["a", "b", "-c"]}, {}, "name '-c': use letters"),
    "name that stands twice": ({"federation.participants": ["a", "b", "c", "a"]}, {}, "name 'a' occurs twice"),
    "start with a frozen half": (
        {"slm.adapter.start": "trained", "slm.adapter.freeze_a": True},
        {},
        r"slm\.adapter\.start: .*trained has another A than the clients",
    ),
    "no clients": ({"federation.participants": [], "server.epochs": 1}, {}, "a deployment needs clients"),
    "host with a semicolon": ({}, {"site": Site("a; rm")}, "name 'a; rm': use letters"),
    "no host": ({}, {"site": Site("")}, "name '': use letters"),
    "demo data of one's own": ({}, {"choices": Choices(demo_data=True)}, "your own data has no parts to write"),
    "demo data with names": (
        {"federation.participants": ["a", "b", "c"]},
        {"choices": Choices(demo_data=True)},
        "the preset's parts have no names",
    ),
    "too coarse": ({"federation.secure_aggregation.value_range": 1e6}, {}, "don't fit 32 bits"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refusal_leaves_nothing_behind(config, tmp_path, kind):
    changes, options, reason = REFUSED[kind]
    arguments = {"config": changed(config, **changes), "site": SITE, "out": tmp_path / "out", **options}
    with pytest.raises(UserError, match=reason):
        initialize(**arguments)
    assert not (tmp_path / "out").exists()


def test_existing_deployment_is_never_overwritten(config, out):
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    with pytest.raises(UserError, match=r"exists already.*--out"):
        initialize(config, SITE, out)
    assert before == {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}


def test_file_in_the_way_is_refused_and_an_empty_directory_is_not(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="exists already"):
        initialize(config, SITE, tmp_path / "file")
    (tmp_path / "empty").mkdir()
    initialize(config, SITE, tmp_path / "empty")


def test_place_that_cannot_be_written_is_named(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"can't be written: .*--out"):
        initialize(config, SITE, tmp_path / "file" / "out")


def test_demo_data_is_each_clients_own_part(config, model_directories, tmp_path):
    preset = load_config(
        "icd10",
        **{f"{role}.source": model_directories[role] for role in ("llm", "slm")},
        **{"slm.layers": None, "slm.heal": None, "federation.secure_aggregation.enabled": True, "task.test_size": 20},
    )
    deployment = initialize(preset, SITE, tmp_path / "out", Choices(demo_data=True))
    parts = split(load_pool(preset.task, preset.seed), preset.task, preset.seed)
    assert list(deployment.clients) == list(parts.private)
    for client in deployment.clients:
        modality = build_client_modality(preset.task, preset.slm, read_membership(tmp_path / "out", client).facts)
        train, test = private_examples(preset, modality, tmp_path / "out" / "clients" / client / "data")
        assert (train, test) == (parts.private[client], parts.test)


def test_plain_updates_with_the_flag(config, tmp_path):
    plain = changed(config, **{"federation.secure_aggregation.enabled": False})
    assert list(initialize(plain, SITE, tmp_path / "out", Choices(plain_updates=True)).invited) == list(IDS)
