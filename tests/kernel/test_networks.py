"""Private networks, by pasta and by slirp4netns, for root and for a user without privileges; and the files about the network.

Everything happens in network, mount and pid namespaces of each test: its default route leads to the namespace of a peer, which has a
TCP server and a name server. So the network of the machine is neither used nor changed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ..support.users import UID
from ..support.waiting import TIME_LIMIT

TOOLS = ("ip", "unshare", "setpriv", "mount")
HELPERS = ("pasta", "slirp4netns")
pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(
        not all(map(shutil.which, TOOLS)), reason="needs ip, unshare, setpriv and mount (Debian: iproute2, util-linux)"
    ),
    pytest.mark.skipif(not os.path.exists("/dev/net/tun"), reason="the kernel has no tun devices"),
]

OUTSIDE = """
import ctypes, os, socket, subprocess, sys, threading
work, helper, who, python, text = sys.argv[1:]
def call(*words): subprocess.run(words, check=True)
def answer_names(address, result):
    names = socket.socket(type=socket.SOCK_DGRAM)
    names.bind((address, 53))
    def serve():
        while True:
            query, client = names.recvfrom(512)
            end = query.index(0, 12) + 5
            found = query[end - 4 : end - 2] == bytes((0, 1))
            answer = b"\\xc0\\x0c\\0\\x01\\0\\x01\\0\\0\\0\\x3c\\0\\x04" + socket.inet_aton(result) if found else b""
            names.sendto(query[:2] + b"\\x81\\x80\\0\\x01\\0" + bytes((found,)) + bytes(4) + query[12:end] + answer, client)
    threading.Thread(target=serve, daemon=True).start()
def greet(address):
    server = socket.create_server((address, 7000))
    def serve():
        while True:
            connection, client = server.accept()
            connection.recv(4096)
            connection.sendall(b"HTTP/1.0 200 OK\\r\\n\\r\\nhello " + client[0].encode())
            connection.close()
    threading.Thread(target=serve, daemon=True).start()
def peer():
    assert ctypes.CDLL(None).unshare(0x40000000) == 0
    print("apart", flush=True)
    sys.stdin.readline()
    call("ip", "addr", "add", "192.0.2.254/24", "dev", "d1")
    call("ip", "link", "set", "d1", "up")
    greet("192.0.2.254")
    answer_names("192.0.2.254", "203.0.113.7")
    print("ready", flush=True)
    sys.stdin.readline()
if helper == "peer":
    sys.exit(peer())
command = [sys.executable, "-P", "-c", sys.orig_argv[3], "", "peer", "", "", ""]
other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
assert other.stdout.readline() == "apart\\n"
call("ip", "link", "set", "lo", "up")
greet("127.0.0.1")
answer_names("127.0.0.53", "203.0.113.8")
call("ip", "link", "add", "d0", "type", "veth", "peer", "name", "d1")
call("ip", "link", "set", "d1", "netns", str(other.pid))
call("ip", "addr", "add", "192.0.2.1/24", "dev", "d0")
call("ip", "link", "set", "d0", "up")
print(file=other.stdin, flush=True)
assert other.stdout.readline() == "ready\\n"
call("ip", "route", "add", "default", "via", "192.0.2.254", "dev", "d0")
os.mknod(f"{work}/tun", 0o20666, os.makedev(10, 200))
os.chmod(f"{work}/tun", 0o666)
call("mount", "--bind", f"{work}/tun", "/dev/net/tun")
for name in ("resolv.conf", "hosts"):
    call("mount", "--bind", f"{work}/{name}", f"/etc/{name}")
ids = ["--reuid", who, "--regid", who, "--clear-groups"]
paths = {"PATH": f"{work}/bin", "HOME": f"{work}/home", "TMPDIR": f"{work}/home"}
done = subprocess.run(["setpriv", *ids, "env", *(f"{k}={v}" for k, v in paths.items()), python, "-P", "-c", text, work], cwd="/")
sys.exit(done.returncode)
"""
INSIDE = """
import ctypes, errno, os, signal, socket, subprocess, sys, threading, time, urllib.request, warnings
import ociruntime as oci
warnings.simplefilter("error")
work, prefix = sys.argv[1], os.path.basename(sys.argv[1])
state, place = f"{work}/home/state", f"{work}/home/bundle"
if not os.path.exists(f"{place}/config.json"):
    oci.Bundle.from_dir(place, oci.RuntimeSpec.default(host=oci.Host.probe()).with_args(["sleep", "1000"]))
bundle = oci.Bundle.load(place).fresh()
SERVE = "mkdir -p /tmp/www && echo served > /tmp/www/index.html && exec busybox httpd -f -p 80 -h /tmp/www"
def private(script, **options):
    options = {"network": "private", "stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "state_root": state} | options
    return oci.run(bundle, ["sh", "-c", script], **options)
def until(condition, what):
    end = time.monotonic() + TIME_LIMIT
    while not (found := condition()):
        assert time.monotonic() < end, what
        time.sleep(0.01)
    return found
def running():
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat") as file: name, _, rest = file.read().partition("(")[2].rpartition(")")
        except (FileNotFoundError, ProcessLookupError): continue
        if rest.split()[0] != "Z" and name.startswith(("oci-init", "pas", "slirp4netns")): found.append((name, int(pid)))
    return sorted(found)
def fetch(address="127.0.0.1:8080"):
    def ask():
        try: return urllib.request.urlopen(f"http://{address}/", timeout=2).read().decode()
        except OSError: return ""
    return until(ask, f"no answer from {address}")
def is_free(number, address="127.0.0.1"):
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try: probe.bind((address, number))
        except OSError as error:
            assert error.errno == errno.EADDRINUSE
            return False
    return True
def nothing_left():
    until(lambda: not running(), f"processes are left: {running()}")
    assert oci.Container.list(state_root=state) == []
    runs = f"{state}/.runs"
    assert not os.path.isdir(runs) or not os.listdir(runs), os.listdir(runs)
    # A process that is killed while Python looks for a directory for temporary files leaves a file there, with a name of its choice.
    assert not [name for name in os.listdir(f"{work}/home") if name.startswith("ociruntime")], os.listdir(f"{work}/home")
    assert is_free(8080)
class Serving:
    def __enter__(self):
        def body():
            try: private(SERVE, ports={8080: 80}, container_id=prefix)
            except oci.OCIRuntimeError as error: self.error = error
        self.error = None
        self.thread = threading.Thread(target=body, daemon=True)
        self.thread.start()
        fetch()
        return oci.Container.load(prefix, state_root=state)
    def __exit__(self, *error):
        try: oci.Container.load(prefix, state_root=state).kill("KILL")
        except oci.StateError: pass
        self.thread.join(TIME_LIMIT)
        assert not self.thread.is_alive()
"""
Net = Callable[..., str]


@pytest.fixture(params=["root", "user"])
def who(request: pytest.FixtureRequest) -> int:
    return 0 if request.param == "root" else UID


@pytest.fixture
def net(busybox_rootfs: Path, user_python: str, who: int, prefix: str) -> Iterator[Net]:
    """Runs Python text in the namespaces, as root or the user, with one of the programs in PATH."""
    with tempfile.TemporaryDirectory(prefix=prefix, dir="/var/tmp") as name:
        work = Path(name)
        work.chmod(0o755)
        (work / "bin").mkdir()
        (work / "hosts").write_text("127.0.0.1 localhost\n192.0.2.254 peer\n")
        home = work / "home"
        (home / "state").mkdir(parents=True)
        home.chmod(0o700)
        shutil.copytree(busybox_rootfs, home / "bundle/rootfs", symlinks=True)
        for path in (home, *home.rglob("*")):
            os.chown(path, who, who, follow_symlinks=False)

        def run(text: str, *helpers: str, resolver: str = "192.0.2.254") -> str:
            (work / "resolv.conf").write_text(f"# made by a test\nnameserver {resolver}\nsearch example.net\n")
            for helper in helpers:
                if (found := shutil.which(helper)) is None:
                    pytest.skip(f"no {helper} (Debian: {'passt' if helper == 'pasta' else helper})")
                (work / "bin" / helper).symlink_to(found)
            space = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
            command = [*space, shutil.which("python3", path="/usr/bin") or user_python, "-P", "-c", OUTSIDE, name]
            inside = f"TIME_LIMIT = {TIME_LIMIT}\n{INSIDE}{text}"
            done = subprocess.run(
                [*command, "outside", str(who), user_python, inside], capture_output=True, text=True, timeout=3 * TIME_LIMIT
            )
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout

        yield run


@pytest.fixture(params=HELPERS)
def private(net: Net, request: pytest.FixtureRequest) -> Net:
    """As `net`, with each of the programs."""
    helper: str = request.param
    return lambda text: net(text, helper)


def test_a_published_port_and_connections_to_the_outside(private: Net) -> None:
    private("""
with Serving() as container:
    assert fetch() == "served\\n"
    assert is_free(8080, "192.0.2.1"), "published for the host alone"
    def inside(*words):
        return container.exec(["busybox", *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIME_LIMIT)
    assert inside("wget", "-qO-", "192.0.2.254:7000").stdout == "hello 192.0.2.1"
    assert "203.0.113.7" in inside("nslookup", "some.test").stdout
    assert "203.0.113.7" in inside("nslookup", "other").stdout, "the search list of the host"
    names = [name for name, _ in running()]
    assert names.count("oci-init") == 1 and len(names) == 2, names
    session = {os.getsid(pid) for _, pid in running()}
    assert os.getsid(0) not in session, "an interrupt of the terminal would reach it"
nothing_left()
""")


def test_a_user_namespace_without_root(private: Net) -> None:
    """The program does not need the uid 0 in the user namespace of the container."""
    private("""
result = private("id -u; busybox wget -qO- 192.0.2.254:7000", user="caller", ports={8080: 80})
assert result.stdout == f"{os.geteuid()}\\nhello 192.0.2.1", result
nothing_left()
""")


def test_the_loopback_device_of_the_host_cannot_be_reached(private: Net) -> None:
    private("""
assert fetch("127.0.0.1:7000") == "hello 127.0.0.1"
for address in ("127.0.0.1", "10.0.2.2", "10.0.2.3"):
    result = private(f"timeout 2 busybox wget -qO- {address}:7000; echo $?")
    assert result.stdout.strip() not in ("", "0") and "hello" not in result.stdout, result
nothing_left()
""")


@pytest.mark.skipif(not os.path.exists("/usr/bin/python3"), reason="needs /usr/bin/python3")
def test_udp_addresses_and_several_ports(private: Net) -> None:
    private("""
echo = "import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('0.0.0.0', 53)); [s.sendto(*s.recvfrom(9)) for _ in range(99)]"
serve = f'/usr/bin/python3 -I -c "{echo}" & {SERVE}'
done = threading.Thread(target=private, args=(serve,), daemon=True, kwargs=dict(
    ports=["0.0.0.0:8080:80", "127.0.0.1:8081:80/tcp", "192.0.2.1:5353:53/udp"], container_id=prefix,
    mounts=[f"{path}:{path}:ro" for path in ("/usr", "/lib", "/lib64") if os.path.exists(path)]))
done.start()
assert fetch() == fetch("127.0.0.1:8081") == fetch("192.0.2.1:8080") == "served\\n"
with socket.socket(type=socket.SOCK_DGRAM) as peer:
    peer.settimeout(0.2)
    def ask():
        try:
            peer.sendto(b"ping", ("192.0.2.1", 5353))
            return peer.recv(10)
        except OSError: return b""
    assert until(ask, "no answer by udp") == b"ping"
oci.Container.load(prefix, state_root=state).kill("KILL")
done.join(TIME_LIMIT)
nothing_left()
""")


def test_udp_at_the_loopback_device_without_pasta(net: Net) -> None:
    net(
        """
try: private("true", ports=["5353:53/udp"])
except oci.UnsupportedError as error: assert "127.0.0.1:5353/udp: slirp4netns does not pass answers" in str(error), error
else: raise AssertionError("no error")
nothing_left()
""",
        "slirp4netns",
    )


def test_a_taken_port(private: Net) -> None:
    private("""
for kind, protocol in ((socket.SOCK_STREAM, "tcp"), (socket.SOCK_DGRAM, "udp")):
    with socket.socket(type=kind) as taken:
        taken.bind(("0.0.0.0", 8080))
        if kind == socket.SOCK_STREAM: taken.listen()
        try: private("true", ports=[f"192.0.2.1:8080:80/{protocol}"])
        except oci.StepError as error:
            assert error.errno == errno.EADDRINUSE
            assert f"192.0.2.1:8080/{protocol} cannot be published: the port is taken" in str(error), error
        else: raise AssertionError("no error")
    nothing_left()
try: private("true", ports=["192.0.2.9:8080:80"])
except oci.StepError as error: assert "192.0.2.9:8080/tcp cannot be published: no network device of this host" in str(error), error
else: raise AssertionError("no error")
if os.geteuid():
    try: private("true", ports={80: 80})
    except oci.StepError as error: assert "ports below 1024 need root" in str(error), error
    else: raise AssertionError("no error")
nothing_left()
""")


def test_the_program_is_killed(private: Net) -> None:
    """The container goes on without its network, and is removed as usual."""
    private("""
for name in ("oci-init", "program"):
    with Serving() as container:
        [victim] = [pid for found, pid in running() if (found == "oci-init") is (name == "oci-init")]
        os.kill(victim, signal.SIGKILL)
        until(lambda: not running(), "the guard and the program end together")
        assert container.exec(["true"]).returncode == 0
        assert is_free(8080)
    nothing_left()
""")


def test_the_caller_is_killed(private: Net) -> None:
    """A caller that is killed at any time leaves neither a guard nor a program; what is left of the container, prune removes."""
    private("""
os.environ["REST"] = "private('sleep 100', ports={8080: 80})"
with open("/proc/self/cmdline") as file: text = file.read().split("\\0")[3].partition("os.environ")[0]
for delay in (0.15, 0.2, 0.22, 0.24, 0.26, 0.28, 0.3, 0.35, 0.5, 1):
    caller = subprocess.Popen([sys.executable, "-P", "-c", text + "exec(os.environ['REST'])", work])
    time.sleep(delay)
    caller.kill()
    caller.wait()
    until(lambda: not running(), f"killed after {delay} s: {running()}")
    # A child of the caller that has not executed the init yet holds the lock of the container for a moment.
    until(lambda: oci.prune(state_root=state) or not oci.Container.list(state_root=state), "the container stays")
    nothing_left()
""")


def test_the_caller_is_killed_after_the_first_file(net: Net) -> None:
    """What a call writes to the state directory before it compiles the plan is removed too."""
    net(
        """
from ociruntime.lifecycle import create
make = create._file
def make_one(*values):
    make(*values)
    os.kill(os.getpid(), signal.SIGKILL)
for options in (dict(network="private"), dict(network="none"), dict(network=None, user="caller")):
    child = os.fork()
    if not child:
        create._file = make_one
        private("true", **options)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert [name for name in os.listdir(state) if name.startswith("run-")], "killed too early"
    assert len(oci.prune(state_root=state)) == 1
    nothing_left()
""",
        "pasta",
    )


def test_created_containers_outlive_their_caller(private: Net) -> None:
    """The guard belongs to the container: it is recorded, survives the caller, and ends with the container."""
    private("""
command = [sys.executable, "-P", "-m", "ociruntime", "--root", state]
subprocess.run([*command, "create", prefix, "-b", place, "--network", "private", "--publish", "8080:80"], check=True,
    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
container = oci.Container.load(prefix, state_root=state)
assert len(running()) == 3, running()
container.start()
assert container.exec(["sh", "-c", SERVE.replace(" -f", "").replace("exec", "")]).returncode == 0
assert fetch() == "served\\n"
container.kill("KILL")
until(lambda: not running(), "the guard ends with the container")
container.delete()
nothing_left()
subprocess.run([*command, "create", prefix, "-b", place, "--net"], check=True,
    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
oci.Container.load(prefix, state_root=state).delete(force=True)
assert running() == []
nothing_left()
""")


def test_many_at_once(private: Net) -> None:
    private("""
failures = []
def one(number):
    try:
        result = private("busybox wget -qO- 192.0.2.254:7000", ports={9000 + number: 80}, timeout=2 * TIME_LIMIT)
        assert result.stdout == "hello 192.0.2.1", result
    except BaseException as error: failures.append(error)
descriptors = len(os.listdir("/proc/self/fd"))
threads = [threading.Thread(target=one, args=(number,), daemon=True) for number in range(20)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert not failures, failures
nothing_left()
oci.close_images()
assert len(os.listdir("/proc/self/fd")) <= descriptors + 2, subprocess.getoutput(f"/bin/ls -l /proc/{os.getpid()}/fd")
""")


def test_calls_that_are_given_up(private: Net) -> None:
    """A coroutine that is cancelled, and a call that takes too long, while the network is connected or later."""
    private("""
import asyncio
from ociruntime import aio
async def cancel(delay):
    options = dict(network="private", ports={8080: 80}, state_root=state, stdin=subprocess.DEVNULL)
    task = asyncio.create_task(aio.run(bundle, ["sleep", "100"], **options))
    await asyncio.sleep(delay)
    task.cancel()
    try: await task
    except asyncio.CancelledError: return
    raise AssertionError("no cancellation")
for delay in (0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5):
    asyncio.run(cancel(delay))
    nothing_left()
for limit in (0.02, 0.05, 0.1, 0.3):
    try: private("sleep 100", ports={8080: 80}, timeout=limit)
    except oci.ProcessTimeout: pass
    else: raise AssertionError("no error")
    nothing_left()
""")


def test_sandboxes(private: Net) -> None:
    """A sandbox publishes its ports while it lives, and leaves nothing when its process is killed."""
    private("""
options = dict(network="private", ports={8080: 80}, state_root=state)
with oci.Sandbox(bundle, **options) as sandbox:
    assert sandbox.run(["sh", "-c", SERVE.replace(" -f", "").replace("exec", "")]).returncode == 0
    assert fetch() == "served\\n"
    assert sandbox.run(["busybox", "wget", "-qO-", "192.0.2.254:7000"], text=True).stdout == "hello 192.0.2.1"
    try: oci.Sandbox(bundle, **options)
    except oci.StepError as error: assert "127.0.0.1:8080/tcp cannot be published: the port is taken" in str(error), error
    else: raise AssertionError("no error")
    assert len(running()) == 3, "its own init, the guard and the program"
    sandbox.reset()
    assert sandbox.run(["sh", "-c", SERVE.replace(" -f", "").replace("exec", "")]).returncode == 0
    assert fetch() == "served\\n"
    assert len(running()) == 3, running()
nothing_left()
child = os.fork()
if not child:
    sandbox = oci.Sandbox(bundle, **options)
    os.kill(os.getpid(), signal.SIGKILL)
os.waitpid(child, 0)
until(lambda: not running(), f"processes are left: {running()}")
oci.prune(state_root=state)
nothing_left()
""")


def test_a_program_that_fails(private: Net) -> None:
    """Its messages are in the error, and nothing is left."""
    private("""
[helper] = os.listdir(f"{work}/bin")
directory = f"{work}/home/bin"
os.mkdir(directory)
os.chmod(f"{work}/home", 0o755)
with open(f"{directory}/{helper}", "w") as file: file.write("#!/bin/sh\\necho it broke >&2\\nexit 3\\n")
os.chmod(f"{directory}/{helper}", 0o755)
before, os.environ["PATH"] = os.environ["PATH"], directory
for content, message in (("", f"network 'private': {helper} failed: it has ended (it broke)"), ("#!/missing", "failed: ")):
    if content:
        with open(f"{directory}/{helper}", "w") as file: file.write(content)
    try: private("true")
    except oci.UnsupportedError as error: assert message in str(error), error
    else: raise AssertionError("no error")
from ociruntime.engine import networks
networks._START_TIMEOUT = 1
with open(f"{directory}/{helper}", "w") as file: file.write("#!/bin/sh\\necho slow >&2\\nexec /bin/sleep 1000")
try: private("true")
except oci.LaunchTimeout as error: assert f"{helper} failed: it did not connect the network within 1 s (slow)" in str(error), error
else: raise AssertionError("no error")
os.unlink(f"{directory}/{helper}")
os.rmdir(directory)
nothing_left()
""")


def test_no_program(net: Net) -> None:
    net("""
try: private("true")
except oci.UnsupportedError as error: assert "passt or slirp4netns" in str(error), error
else: raise AssertionError("no error")
nothing_left()
""")


def test_the_step_in_the_plan(net: Net) -> None:
    net(
        """
from ociruntime.options import RunOptions
plan = bundle.with_overrides(RunOptions(network="private", ports={8080: 80}).overrides).plan()
[step] = [step for step in plan.steps if step.op == "network"]
assert step.side == "host" and step.text.endswith("/pasta; 127.0.0.1:8080/tcp -> 80"), step
assert step.text in str(plan)
""",
        *HELPERS,
    )


FILES = """
def files(**options):
    out = private("cat /etc/resolv.conf; echo -; cat /etc/hosts; readlink /proc/self/ns/net", **options).stdout
    resolver, _, rest = out.partition("-\\n")
    names, _, space = rest.rstrip().rpartition("\\n")
    return resolver, names.splitlines(), space
LOCAL = ["127.0.0.1\\tlocalhost", "::1\\tlocalhost ip6-localhost"]
own = os.readlink("/proc/self/ns/net")
with open(f"{place}/rootfs/etc/resolv.conf", "w") as file: file.write("nameserver 203.0.113.1\\n")
with open(f"{place}/rootfs/etc/hosts", "w") as file: file.write("203.0.113.2 image\\n")
assert files(network=None)[:2] == ("nameserver 203.0.113.1\\n", ["203.0.113.2 image"])
resolver, names, space = files(network="none")
assert (resolver, names) == ("nameserver 203.0.113.1\\n", LOCAL) and space != own
resolver, names, space = files(network="host")
assert "192.0.2.254" in resolver and names == ["127.0.0.1 localhost", "192.0.2.254 peer"] and space == own
resolver, names, space = files(network="private", hostname="box")
assert resolver == "nameserver 192.0.2.254\\nsearch example.net\\n" and names == [*LOCAL, "10.0.2.100\\tbox"] and space != own
if not os.geteuid():
    resolver, names, space = files(network=own and f"/proc/{os.getpid()}/ns/net")
    assert "192.0.2.254" in resolver and space == own
assert files(network="private")[1] == [*LOCAL, f"10.0.2.100\\t{bundle.spec.hostname or os.uname().nodename}"]
with open(f"{work}/home/mine", "w") as file: file.write("mine\\n")
resolver, names, _ = files(network="private", mounts=[f"{work}/home/mine:/etc/resolv.conf:ro"])
assert resolver == "mine\\n" and names[:2] == LOCAL
os.unlink(f"{work}/home/mine")
for name in ("resolv.conf", "hosts"): os.unlink(f"{place}/rootfs/etc/{name}")
assert files(network="private")[0] == "nameserver 192.0.2.254\\nsearch example.net\\n"
assert not os.path.exists(f"{place}/rootfs/etc/resolv.conf"), "made in the upper layer"
assert private("echo more >> /etc/hosts").returncode != 0
nothing_left()
"""


def test_resolv_conf_and_hosts(net: Net) -> None:
    net(FILES, "pasta")


def test_a_resolver_on_the_loopback_device(net: Net) -> None:
    """pasta forwards queries to it, and nothing else."""
    net(
        """
result = private("cat /etc/resolv.conf; busybox nslookup other", timeout=TIME_LIMIT)
assert "203.0.113.8" in result.stdout and "nameserver 10.0.2.3\\n" in result.stdout, result
nothing_left()
""",
        "pasta",
        resolver="127.0.0.53",
    )


def test_a_resolver_on_the_loopback_device_without_pasta(net: Net) -> None:
    """slirp4netns would open every port of its address."""
    net(
        """
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    result = private("cat /etc/resolv.conf; timeout 2 busybox nc 10.0.2.3 53; echo $?", timeout=TIME_LIMIT)
assert ["install the package passt" in str(warning.message) for warning in caught] == [True], caught
assert "nameserver" not in result.stdout and result.stdout.split()[-1] != "0", result
nothing_left()
""",
        "slirp4netns",
        resolver="127.0.0.53",
    )
