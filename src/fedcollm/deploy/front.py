"""What nginx listens on: its stream module, where it has one, counts connections per address before it reads them.

Without it, a peer could hold as many connections as it likes until their header is complete, or its time is over.
"""

import functools
import shlex
import subprocess
from pathlib import Path

from fedcollm.deploy.files import filled
from fedcollm.progress import say
from fedcollm.storage import write_atomically, writing

#: Most connections from one address. Each takes three of nginx's `worker_connections`.
MOST_CONNECTIONS = 256
_SOCKET = "state/nginx.sock"  # relative, because the path of a socket may have 107 bytes at most
_SECONDS = 60.0


@functools.cache
def stream_module(program: str) -> str | None:
    """Return the directive that gives nginx its stream module: empty if it is built in, None if it is not there.

    Args:
        program: path of nginx.
    """
    result = subprocess.run([program, "-V"], capture_output=True, text=True, timeout=_SECONDS)
    words = shlex.split(result.stderr.replace("\n", " "))
    options = {word.partition("=")[0]: word.partition("=")[2] for word in words if word.startswith("--")}
    if "--with-http_realip_module" not in options:
        return None
    if options.get("--with-stream") == "":
        return ""
    module = Path(options.get("--modules-path", "")) / "ngx_stream_module.so"
    return f"load_module {module};" if module.is_absolute() and module.is_file() else None


def write_front(directory: Path, program: str, port: int) -> None:
    """Write the two files that nginx.conf includes, and remove the socket of an nginx that was killed.

    Args:
        directory: the server's directory, in which no nginx runs.
        program: path of nginx.
        port: the port that is open to clients.
    """
    if stream_module(program) is None:
        say(
            "nginx has no stream module (libnginx-mod-stream on Debian and Ubuntu), so that connections whose header "
            "is unfinished are not limited per address. Install it, or limit them in a firewall."
        )
        front, listen = "", f"listen {port} ssl backlog=1024;\n"
    else:
        front = filled("front.conf", {"port": port, "most": MOST_CONNECTIONS})
        listen = f"listen unix:{_SOCKET} ssl proxy_protocol backlog=1024;\n"
        listen += "set_real_ip_from unix:;\nreal_ip_header proxy_protocol;\n"
    with writing(directory):
        (directory / _SOCKET).unlink(missing_ok=True)
        write_atomically(directory / "state" / "front.conf", front, mode=0o600)
        write_atomically(directory / "state" / "listen.conf", listen, mode=0o600)
