"""Invitations, requests and the roster: who gets in, and what hostile files do."""

import contextlib
import json
import os
import shutil
import stat
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from tests.transports.small_federation import small_config

from fedcollm.config.loading import load_config
from fedcollm.deploy import admission, directories
from fedcollm.deploy import server as deploy_server
from fedcollm.deploy.agreement import terms
from fedcollm.deploy.certificates import Authority
from fedcollm.deploy.client import serve
from fedcollm.deploy.directories import Deployment, Membership
from fedcollm.deploy.initialize import Choices, Site, initialize
from fedcollm.deploy.invitations import Invitation, Keys, Request, join, read_invitation, read_request
from fedcollm.deploy.joined import state_directory
from fedcollm.deploy.remembered import Remembered
from fedcollm.deploy.roster import Roster, SignedRoster, sign
from fedcollm.deploy.roster_keeper import NotAdmittedError, RemovedError, RosterKeeper
from fedcollm.errors import UserError
from fedcollm.runs.directory import config_text

NAMES = ["north", "south", "east"]


@pytest.fixture(scope="module")
def original(model_directories, word_data, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("invited") / "out"
    changes = {"federation.secure_aggregation.enabled": True, "federation.participants": NAMES, "task.clients": 3}
    initialize(small_config(model_directories, word_data, **changes), Site("localhost"), place, Choices())
    return place


@pytest.fixture
def out(original, tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("FEDCOLLM_STATE", str(tmp_path / "state"))
    return Path(shutil.copytree(original, tmp_path / "out"))


def invitation(out: Path, name: str = "north") -> Invitation:
    return read_invitation(out / "invitations" / f"{name}.json")[0]


def joined(out: Path, name: str = "north") -> Request:
    return join(invitation(out, name), out / "at" / name)


def authority(out: Path) -> Authority:
    return Authority.load(out / "ca")


def deployment(out: Path) -> Deployment:
    return directories.read(out / "server", directories.DEPLOYMENT, Deployment)


# --- joining ---


def test_init_makes_no_key_of_a_client_and_invitations_have_no_secret(out):
    assert not (out / "clients").exists()
    assert sorted(file.name for file in (out / "invitations").iterdir()) == ["east.json", "north.json", "south.json"]
    secrets = [file.name for file in out.rglob("*") if file.is_file() and b"PRIVATE KEY" in file.read_bytes()]
    assert sorted(secrets) == ["ca.key", "server.key", "superlink.key"]
    assert deployment(out).clients == {}


def test_join_makes_keys_that_only_their_owner_can_read_whatever_the_umask(out):
    before = os.umask(0)
    try:
        request = joined(out)
    finally:
        os.umask(before)
    place = out / "at" / "north"
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in place.iterdir()}
    assert modes["node.key"] == modes["signing.key"] == 0o600
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert modes["request.json"] == 0o644
    assert directories.signing_key(place).public_key().public_bytes_raw().hex() == request.keys.signing
    assert read_request(place / "request.json") == request
    assert b"PRIVATE" not in (place / "request.json").read_bytes()


def test_terms_say_what_leaves(out, original):
    read, config = read_invitation(out / "invitations" / "north.json")
    said = dict(terms(read, config))
    assert said["you are"].startswith("client north of run small-")
    assert "the columns text and kind (the answer: colour, animal), put together as the prompt" in said["your data"]
    assert said["work"] == "2 rounds of fine-tuning, 1 epoch each"
    assert "no differential privacy" in said["privacy"]
    leaves = [sentence for subject, sentence in terms(read, config) if subject == "what leaves"]
    assert leaves[0] == "a masked update in every round; the server learns only the sum over at least 3 clients"


def shown(**changes) -> list[tuple[str, str]]:
    """What is shown of a configuration."""
    config = load_config("icd10", **{"federation.secure_aggregation": True, "task.clients": 4, **changes})
    member, ca = (
        Membership(client="north", run="run", address="h:1", facts={"labels": ["x" * 900]}),
        Authority.make("x", 9),
    )
    return terms(Invitation(membership=member, authority=ca.pem().decode(), config=config_text(config)), config)


def test_terms_hide_nothing():
    """Every key of the configuration that differs from its default, whole, however long."""
    long = "is a long sentence " * 200
    columns = {"prompt": "{text} " + long + "{national_id}", "answer": "kind", "choices": ["colour", "animal"]}
    said = shown(
        **{"task.name": "custom", "task.format": columns, "evaluation.clients": "never", "slm.adapter.rank": 3}
    )
    data = dict(said)["your data"]
    assert all(part in data for part in (long, "{national_id}", "answer: kind", "choices: ['colour', 'animal']"))
    leaves = [sentence for subject, sentence in said if subject == "what leaves"]
    assert leaves[1] == "the number of your examples, the training loss, in sums"
    assert ("agreed", "the small model’s adapter has rank 3") in said
    assert ("agreed", "evaluation.clients: never") in said
    assert "x" * 900 in dict(said)["facts"]


@pytest.mark.parametrize(
    ("changes", "subject", "part"),
    [
        ({"slm.adapter.kind": "dora"}, "model", "an adapter of kind dora"),
        ({"slm.adapter.options": {"use_rslora": True}}, "model", "options: {'use_rslora': True}"),
        ({"slm.source": "org/model"}, "model", "DOWNLOADED from the model hub"),
        ({"slm.source": "/models/slm"}, "model", "from your own copy of that model"),
        ({"slm.source": "a/\u202eb\x1b[2J"}, "model", "a/\\u202eb\\x1b[2J"),
        ({"federation.max_loss": None}, "agreed", "federation.max_loss: null"),
        ({"federation.secure_aggregation.threshold": 4}, "what leaves", "over at least 4 clients"),
        ({"federation.min_clients": 2, "federation.secure_aggregation": False}, "agreed", "at least 2 clients"),
        (
            {"task.name": "custom", "task.format": {"audio": "file", "transcript": "note", "group": "patient"}},
            "your data",
            "transcript: note, group: patient",
        ),
    ],
)
def test_terms_name_each_key(changes, subject, part):
    said = shown(**{"slm.layers": None, "slm.heal": None, **changes})
    assert any(part in sentence for about, sentence in said if about == subject)
    assert all(sentence.isprintable() for _, sentence in said)


@pytest.mark.parametrize("what", ["config", "address", "authority", "signature", "none"])
def test_invitation_that_was_changed_on_its_way_is_refused(out, what):
    """The fingerprint is the authority's, so the authority answers for the configuration too."""
    file = out / "invitations" / "north.json"
    values = json.loads(file.read_text())
    if what == "config":
        values["config"] = values["config"].replace("rounds: 2", "rounds: 9")
    elif what == "address":
        values["membership"]["address"] = "other:1"
    elif what == "authority":
        values["authority"] = Authority.make("other", 10).pem().decode()
    elif what == "signature":
        values["signature"] = json.loads((out / "invitations" / "south.json").read_text())["signature"]
    else:
        del values["signature"]
    file.write_text(json.dumps(values))
    with pytest.raises(UserError, match="is not signed by the authority that it names"):
        read_invitation(file)


def test_run_is_joined_once_and_again_with_the_memory_only(out, tmp_path):
    """A second directory would start with a new privacy budget, and with statistics that were never sent."""
    joined(out)
    old, new = out / "at" / "north", tmp_path / "new"
    with pytest.raises(UserError, match=rf"joined run small-\S+ as client north before, in {old}"):
        join(invitation(out), new)
    (old / "state").mkdir(mode=0o700)
    Remembered(old / "state" / "spent.json")["rounds"] = 2
    Remembered(old / "state" / "opened.json")["run/1"] = ["north"]
    with pytest.raises(UserError, match=r"this is client north .* the invitation is for client south"):
        join(invitation(out, "south"), tmp_path / "south", old)
    assert not new.exists()
    join(invitation(out), new, old)
    assert dict(Remembered(new / "state" / "spent.json")) == {"rounds": 2}
    assert dict(Remembered(new / "state" / "opened.json")) == {"run/1": ["north"]}
    with pytest.raises(UserError, match="goes on in another directory"):
        serve(old, old)
    with pytest.raises(UserError, match=f"as client north in {new}. Give that directory"):
        join(invitation(out), tmp_path / "third", old)
    with pytest.raises(UserError, match=f"before, in {new}"):
        join(invitation(out), tmp_path / "third")
    join(invitation(out), tmp_path / "third", new)


def test_directory_without_the_memory_is_not_continued(out, tmp_path):
    joined(out)
    bare = tmp_path / "bare"
    bare.mkdir(mode=0o700)
    (bare / "membership.json").write_bytes((out / "at" / "north" / "membership.json").read_bytes())
    with pytest.raises(UserError, match=f"as client north in {out / 'at' / 'north'}. Give that directory"):
        join(invitation(out), tmp_path / "new", bare)


def test_join_that_ends_before_there_are_keys_leaves_the_old_directory_as_it_was(out, tmp_path, monkeypatch):
    joined(out)
    old, new = out / "at" / "north", tmp_path / "new"
    (old / "state").mkdir(mode=0o700)
    (old / "state" / "opened.json").write_text("{")
    with pytest.raises(UserError, match=r"opened\.json"):
        join(invitation(out), new, old)
    assert not (new / "node.key").exists()
    (old / "state" / "opened.json").unlink()
    with monkeypatch.context() as patched:
        patched.setattr("fedcollm.deploy.invitations.write_client", lambda *_: raised(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            join(invitation(out), tmp_path / "other", old)
    join(invitation(out), tmp_path / "third", old)


def raised(error):
    raise error


def test_first_join_that_was_killed_can_be_repeated(out, tmp_path):
    state_directory().mkdir(parents=True, exist_ok=True)
    Remembered(state_directory() / "joined.json")[f"{invitation(out).membership.run}/north"] = (
        f"begun in {tmp_path / 'never'}"
    )
    joined(out)


def test_join_that_failed_is_no_join(out, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't be written"):
        join(invitation(out), tmp_path / "file" / "north")
    joined(out)


def test_directory_that_others_can_change_is_no_place_for_a_client(out, tmp_path):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(UserError, match=r"can be changed by others \(mode 777\)"):
        join(invitation(out), tmp_path / "open")
    assert not any((tmp_path / "open").iterdir())


def test_directory_in_use_and_a_link_are_refused(out, tmp_path):
    joined(out)
    with pytest.raises(UserError, match="exists already"):
        joined(out)
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    with pytest.raises(UserError, match="exists already"):
        join(invitation(out), tmp_path / "link")
    assert not any((tmp_path / "empty").iterdir())


def spoilt(values: dict, path: str, value: object) -> str:
    *parents, last = path.split(".")
    place = values
    for name in parents:
        place = place[name]
    place[last] = value
    return json.dumps(values)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("membership.client", "../../x"),
        ("membership.client", "a\nUser=root"),
        ("membership.client", ""),
        ("membership.client", "x" * 300),
        ("membership.run", "a/b"),
        ("membership.address", "host:9443/path"),
        ("membership.address", "host"),
        ("membership.facts", {"context_length": 10**400}),
        ("authority", "no certificate"),
        ("config", "[" * 10_000),
        ("config", "name: x"),
        ("more", 1),
    ],
)
def test_hostile_invitation_is_refused_and_nothing_is_written(out, path, value):
    file = out / "invitations" / "north.json"
    file.write_text(spoilt(json.loads(file.read_text()), path, value))
    with pytest.raises(UserError, match=r"Ask for|Ask the operator|not a configuration|Use the version"):
        read_invitation(file)


@pytest.mark.parametrize("kind", ["link", "pipe", "long", "directory", "missing"])
def test_file_that_is_no_ordinary_file_is_refused(out, kind, tmp_path):
    file = tmp_path / "request.json"
    if kind == "link":
        file.symlink_to(out / "invitations" / "north.json")
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "long":
        file.write_bytes(b" " * (2**20 + 1))
    elif kind == "directory":
        file.mkdir()
    with pytest.raises(UserError, match=r"can't be read|no ordinary file|longer than"):
        read_request(file)


# --- admitting ---


def test_admitted_clients_are_on_a_signed_roster_in_the_order_of_the_federation(out):
    for name in ("south", "north"):
        roster = admission.admit(out / "server", joined(out, name), authority(out))
    assert (roster.version, list(roster.clients)) == (3, ["north", "south"])
    now = deployment(out)
    assert list(now.clients) == ["north", "south"]
    assert now.roster.verified((out / "ca" / "ca.crt").read_bytes(), now.run) == roster
    assert (out / "server" / "nodes.map").read_text().count('$" ') == 2
    assert SignedRoster.model_validate_json((out / "server" / "public" / "latest.json").read_bytes()) == now.roster
    assert not (out / "server" / "public" / "roster.json").exists()  # it is in force at the server's next start
    assert list(admission.publish(out / "server", now)) == ["north", "south"]
    assert (out / "server" / "public" / "roster.json").exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"client": "south"}, "the proof is wrong"),
        ({"run": "other"}, "the proof is wrong"),
        ({"keys": {"node": "PEM", "signing": "00" * 32}}, "not valid"),
        ({"proof": "00" * 64}, "the proof is wrong"),
        ({"proof": "00"}, "should match pattern"),
        ({"client": "../x"}, "should match pattern"),
        ({"client": 5}, "valid string"),
        ({"trusted": True}, "not permitted"),
    ],
    ids=str,
)
def test_changed_request_is_refused(out, change, reason):
    joined(out)
    file = out / "at" / "north" / "request.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError, match=reason):
        read_request(file)


def test_key_written_in_another_way_is_refused(out):
    """Two spellings of one key would be two keys to nginx and to the SuperLink."""
    keys = Keys.make()
    request = keys.request("north", deployment(out).run)
    spelled = request.keys.model_copy(update={"node": request.keys.node.replace("\n", "\r\n")})
    signed = Request(client="north", run=request.run, keys=spelled, proof="00" * 64)
    proof = keys.signing.sign(signed.signed()).hex()
    with pytest.raises(UserError, match="as fedcollm writes it"):
        signed.model_copy(update={"proof": proof}).check()


def test_who_is_not_invited_or_known_already_is_refused(out):
    server, run, by = out / "server", deployment(out).run, authority(out)
    request = joined(out)
    admission.admit(server, request, by)
    with pytest.raises(UserError, match="was admitted with these keys before"):
        admission.admit(server, request, by)
    with pytest.raises(UserError, match="on the roster with other keys"):
        admission.admit(server, Keys.make().request("north", run), by)
    with pytest.raises(UserError, match="was not invited"):
        admission.admit(server, Keys.make().request("west", run), by)
    with pytest.raises(UserError, match="is for run other"):
        admission.admit(server, Keys.make().request("south", "other"), by)
    keys = Keys.make()
    theft = Request(
        client="south", run=run, keys=request.keys.model_copy(update={"signing": "0" * 64}), proof="0" * 128
    )
    with pytest.raises(UserError, match="has a key of client north"):
        admission.admit(server, theft, by)
    assert list(deployment(out).clients) == ["north"]
    assert keys.public() != request.keys


def test_fingerprint_depends_on_name_run_and_both_keys(out):
    one, two = Keys.make(), Keys.make()
    seen = {pair.request(name, run).fingerprint() for pair in (one, two) for name in ("a", "b") for run in ("r", "s")}
    mixed = one.request("a", "r").model_copy(
        update={"keys": one.public().model_copy(update={"node": two.public().node})}
    )
    assert len(seen | {mixed.fingerprint()}) == 9
    assert one.request("a", "r").fingerprint() == one.request("a", "r").fingerprint()


def test_another_authority_changes_nothing(out):
    request = joined(out)
    with pytest.raises(UserError, match="another deployment's authority"):
        admission.admit(out / "server", request, Authority.make("other", 10))
    with pytest.raises(UserError, match=r"--ca .*can't be read"):
        Authority.load(out / "server")
    assert deployment(out).clients == {}


def test_removed_client_is_out_and_may_join_again_with_new_keys(out):
    server, by = out / "server", authority(out)
    for name in NAMES:
        admission.admit(server, joined(out, name), by)
    admitted = admission.Admitted(server)
    keys = {name: known.node.encode() for name, known in deployment(out).clients.items()}
    assert admitted() == {*keys.values()}
    roster = admission.remove(server, "south", by)
    assert admitted() == {keys["north"], keys["east"]}
    assert (roster.version, list(roster.clients)) == (5, ["north", "east"])
    assert (server / "nodes.map").read_text().count('$" ') == 2
    assert admission.remove(server, "south", by) == roster  # again: the services are told once more
    with pytest.raises(UserError, match=r"not on the roster. On it: north, east"):
        admission.remove(server, "west", by)
    with pytest.raises(UserError, match=r"were removed before\. Let client south run"):
        admission.admit(server, read_request(out / "at" / "south" / "request.json"), by)
    again = join(invitation(out, "south"), out / "at" / "again", out / "at" / "south")
    with pytest.raises(UserError, match="client south was part of this run before"):
        admission.admit(server, again, by)
    assert list(admission.admit(server, again, by, again=True).clients) == NAMES


def test_removal_that_nginx_does_not_take_is_finished_by_the_next_attempt(out, monkeypatch):
    server, by, told = out / "server", authority(out), list[tuple[str, int]]()
    for name in NAMES:
        admission.admit(server, joined(out, name), by)
    link = SimpleNamespace(is_up=lambda: True, register=lambda keys: told.append(("superlink", len(list(keys)))))
    nginx = iter([UserError("nginx did not take the change"), None])

    def reload(*_):
        told.append(("nginx", (server / "nodes.map").read_text().count('$" ')))
        if error := next(nginx):
            raise error

    monkeypatch.setattr(admission, "running", lambda *_: True)
    monkeypatch.setattr(admission, "superlink", lambda *_: link)
    monkeypatch.setattr(admission, "reload_proxy", reload)
    with pytest.raises(UserError, match="did not take"):
        admission.remove(server, "south", by)
    assert list(admission.remove(server, "south", by).clients) == ["north", "east"]
    assert told == [("superlink", 2), ("nginx", 2)] * 2


def test_removal_while_the_server_starts_is_not_undone(out, monkeypatch):
    place, by = out / "server", authority(out)
    for name in NAMES:
        admission.admit(place, joined(out, name), by)

    class EndError(Exception):
        pass

    @contextlib.contextmanager
    def starting(directory, now):
        assert "south" in now.clients
        admission.remove(place, "south", by)
        yield SimpleNamespace(run=lambda: raising()), SimpleNamespace(trouble="")

    def raising():
        raise EndError

    monkeypatch.setattr(deploy_server, "kept_running", starting)
    with pytest.raises(EndError), deploy_server.serving(place):
        pass
    assert list(deployment(out).clients) == ["north", "east"]
    assert (place / "nodes.map").read_text().count('$" ') == 2
    newest = SignedRoster.model_validate_json((place / "public" / "latest.json").read_text())
    assert '"south"' not in newest.text


def test_edited_deployment_is_refused(out):
    server = out / "server"
    admission.admit(server, joined(out), authority(out))
    now = deployment(out)
    keys = now.clients["north"].model_copy(update={"signing": "1" * 64})
    with pytest.raises(UserError, match="not those of the signed roster"):
        admission.publish(server, now.model_copy(update={"clients": {"north": keys}}))
    with pytest.raises(UserError, match="not signed by this deployment's authority"):
        admission.publish(server, now.model_copy(update={"roster": now.roster.model_copy(update={"signature": "00"})}))


def test_renewed_certificate_has_a_new_key_and_the_old_names(out):
    server = out / "server"
    before = {name: (server / name).read_bytes() for name in ("server.crt", "server.key", "superlink.crt")}
    certificate = admission.renew(server, authority(out), 30)
    assert (certificate.not_valid_after_utc - certificate.not_valid_before_utc).days == 30
    changed = [name for name, content in before.items() if (server / name).read_bytes() != content]
    assert changed == ["server.crt", "server.key"]
    assert stat.S_IMODE((server / "server.key").stat().st_mode) == 0o600


# --- the roster at a client ---


class Served:
    """Gives a client what a server may give it."""

    def __init__(self, out: Path, name: str = "north"):
        self.by, self.run, self.keys = authority(out), deployment(out).run, Keys.make()
        self.own = self.keys.public().signing
        self.place = out / "at" / "client"
        self.place.mkdir(parents=True)
        shutil.copy(out / "ca" / "ca.crt", self.place)
        member = Membership(client=name, run=self.run, address="localhost:1", facts={})
        self.content: dict[str, bytes] = {}
        self.keeper = RosterKeeper(self.place, member, self.own, lambda member, ca, file: self.content[file])

    def give(self, version: int, *others: str, own: str | None = "", run: str = "", file: str = "roster.json") -> None:
        clients = dict.fromkeys(others, "2" * 64) | ({} if own is None else {"north": own or self.own})
        roster = sign(Roster(run=run or self.run, version=version, clients=clients), self.by.key)
        self.content[file] = roster.model_dump_json().encode()


def test_client_keeps_the_newest_roster_and_refuses_an_older_one(out):
    served = Served(out)
    assert served.keeper.kept() is None
    served.give(3, "south")
    assert served.keeper.refreshed().version == 3
    served.give(2, "south", "thrown-out")
    with pytest.raises(UserError, match="version 2 of the roster, and this client has seen version 3"):
        served.keeper.refreshed()
    kept = served.keeper.kept()
    assert kept is not None
    assert list(kept.clients) == ["south", "north"]
    assert stat.S_IMODE((served.place / "roster.json").stat().st_mode) == 0o600


def test_roster_of_another_authority_or_run_is_refused(out):
    served = Served(out)
    served.give(1, run="other")
    with pytest.raises(UserError, match="is of run other"):
        served.keeper.refreshed()
    served.by = Authority.make("thief", 10)
    served.give(1)
    with pytest.raises(UserError, match="not signed"):
        served.keeper.refreshed()
    for content in (b"", b"{}", b"[" * 10_000, b'{"text": "{}", "signature": "00"}'):
        served.content["roster.json"] = content
        with pytest.raises(UserError, match="roster is not"):
            served.keeper.refreshed()
    assert served.keeper.kept() is None


def test_client_that_is_not_on_the_roster_is_told_whether_it_was_removed(out):
    served = Served(out)
    served.give(1, "south", own=None)
    with pytest.raises(NotAdmittedError, match="client north is not admitted yet"):
        served.keeper.refreshed()
    served.give(2, "south")
    served.keeper.refreshed()
    served.give(2, "south", file="latest.json")
    served.keeper.check_newest()
    served.give(3, "south", own=None, file="latest.json")
    with pytest.raises(RemovedError, match="has removed client north from run"):
        served.keeper.check_newest()
    served.give(3, own="3" * 64)
    with pytest.raises(UserError, match="another key for client north"):
        served.keeper.refreshed()


def test_member_is_built_anew_for_a_new_roster_and_stops_when_it_is_removed(out):
    from fedcollm.deploy.member import Member
    from fedcollm.messages import TrainRequest

    served, built = Served(out), []

    class Inner:
        def answer(self, request):
            return request

    member = Member(served.keeper, lambda roster: built.append(roster.version) or Inner(), lambda request: None)
    request = TrainRequest(1, {}, run=served.run)
    for version in (1, 1, 2):
        served.give(version, "south")
        assert member.answer(request) is request
    assert built == [1, 2]
    del served.content["roster.json"]
    served.keeper.fetch = gone
    assert member.answer(request) is request  # the server's files can't be reached, so the last roster counts
    served.keeper.fetch = lambda member, ca, file: served.content[file]
    served.give(3, "south", own=None)
    with pytest.raises(RemovedError):
        member.answer(request)
    assert member.stopped.is_set()
    assert isinstance(member.ended, RemovedError)


def gone(member: Membership, ca: Path, file: str) -> bytes:
    raise httpx.ConnectError("refused")
