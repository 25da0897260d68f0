"""What the benchmarks share: building, servers and load on CPUs of their own, and what /proc tells of them."""

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from clients import upgrade

ROOT = Path(__file__).resolve().parent.parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve()
TOOLS = TARGET / "bench"
SERVER_CPU, LOAD_CPU = "0", "1"
PROGRAM = f"benches/{Path(sys.argv[0]).name}"


def add_arguments(parser):
    """The options that all benchmarks have."""
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared/bench", metavar="DIR",
                        help="where the sources of wsload and rawecho are (../shared/bench)")
    parser.add_argument("--wshd", type=Path, default=TARGET / "release/wshd", metavar="FILE",
                        help="another build of wshd to measure, with handlers/ beside it")
    parser.add_argument("--options", default="", metavar="OPTIONS", help="further options for wshd")


def check_machine():
    if len(os.sched_getaffinity(0)) < 2:
        sys.exit(f"{PROGRAM}: two CPUs are needed, one for the server and one for the load")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def build(args, tools=True):
    """Builds wshd and, unless they are not needed, wsload and rawecho."""
    if args.wshd == TARGET / "release/wshd":
        subprocess.run(["cargo", "build", "--release", "--quiet"], cwd=ROOT, check=True)
    if not tools:
        return
    if not (args.shared / "Makefile").exists():
        sys.exit(f"{PROGRAM}: {args.shared} has no Makefile; --shared DIR says where wsload and rawecho are")
    TOOLS.mkdir(parents=True, exist_ok=True)
    subprocess.run(["make", "--silent", "-f", args.shared / "Makefile"], cwd=TOOLS, check=True, stdout=sys.stderr)


def measure(server, resource_path, options, args, server_cpu=SERVER_CPU, load_cpu=LOAD_CPU, workers=1, beside=None):
    """One run of wsload against a fresh server: what wsload reports. `beside` starts a process that looks on."""
    port = free_port()
    with serving(server, port, args, server_cpu, ["--workers", str(workers)]) as process:
        path = resource_path if server == "wshd" else "/"
        done = load(process, port, path, options, args, load_cpu)
        watcher = beside(process) if beside else None
        try:
            return report_of(done, args)
        finally:
            if watcher:
                watcher.send_signal(signal.SIGINT)
                watcher.wait()


def load(server, port, path, options, args, cpu=LOAD_CPU):
    """Starts wsload against a server."""
    command = [TOOLS / "wsload", "--url", f"ws://127.0.0.1:{port}{path}", "--server-pid", str(server.pid), "--json",
               "--warmup", "0.5", "--duration", str(args.seconds), *options]
    return pinned(command, cpu, stdout=subprocess.PIPE, text=True)


def report_of(done, args):
    """What wsload reports in the end."""
    try:
        output, _ = done.communicate(timeout=120 + args.seconds)
    except subprocess.TimeoutExpired:
        done.kill()
        output, _ = done.communicate()
    if done.returncode != 0:
        sys.exit(f"{PROGRAM}: wsload ended with {done.returncode}: {' '.join(map(str, done.args))}\n{output}")
    return json.loads(output)


@contextmanager
def serving(server, port, args, cpu=SERVER_CPU, options=("--workers", "1"), handlers=None):
    """Starts a server ("wshd", "floor" or the beginning of a command whose last argument is the port), waits until it
    listens, and stops it afterwards, unless it has ended by then."""
    if isinstance(server, list):
        command = [*server, str(port)]
    elif server == "floor":
        command = [TOOLS / "rawecho", str(port)]
    else:
        command = [args.wshd, "--port", str(port), "--websock-handlers", handlers or args.wshd.parent / "handlers",
                   "--log-level", "error", *options, *args.options.split()]
    process = pinned(command, cpu, stdout=subprocess.DEVNULL)
    try:
        wait_for(process, port)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def pinned(command, cpu, **how):
    return subprocess.Popen([shutil.which("taskset"), "-c", cpu, *command], **how)


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def wait_for(process, port):
    """Until it answers: a server may listen before its workers are ready, and before they take memory."""
    for _ in range(500):
        try:
            with socket.create_connection(("127.0.0.1", port), 10) as client:
                client.sendall(upgrade())
                client.recv(1)
            return
        except ConnectionResetError:
            return  # TLS is expected there.
        except ConnectionRefusedError:
            if process.poll() is not None:
                break
            time.sleep(0.01)
    sys.exit(f"{PROGRAM}: {process.args[3]} does not listen on port {port}")


def family(pid):
    """The process and all its descendants."""
    pids = [pid]
    for each in pids:
        try:
            for task in Path(f"/proc/{each}/task").iterdir():
                pids += map(int, (task / "children").read_text().split())
        except OSError:
            pass  # It has ended.
    return pids


def cpu_seconds(pid):
    """CPU time of a process and its descendants, all threads."""
    total = 0
    for each in family(pid):
        try:
            for task in Path(f"/proc/{each}/task").iterdir():
                total += int((task / "schedstat").read_text().split()[0])
        except OSError:
            pass
    return total / 1e9


def user_memory(pid):
    """PSS of a process and its descendants, in bytes."""
    total = 0
    for each in family(pid):
        try:
            lines = Path(f"/proc/{each}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
    return total


def tcp_buffers():
    """What all TCP sockets of the machine hold in buffers, in bytes."""
    for line in Path("/proc/net/sockstat").read_text().splitlines():
        if line.startswith("TCP:"):
            return int(line.split()[-1]) * resource.getpagesize()
    return 0


def slabs():
    """Bytes that the objects of each kernel cache take, and their number; empty if we may not see that."""
    try:
        lines = Path("/proc/slabinfo").read_text().splitlines()[2:]
    except OSError:
        return {}
    rows = (line.split() for line in lines)
    return {row[0]: (int(row[1]) * int(row[3]), int(row[1])) for row in rows}
