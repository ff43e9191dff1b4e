"""Tries what a server in the sandbox must not be able to do, and prints what came of it as JSON."""

import ctypes
import json
import os
import resource
import socket
import sys

canary, port = sys.argv[1], int(sys.argv[2])
libc = ctypes.CDLL(None, use_errno=True)


def tried(action):
    try:
        value = action()
        return "ok" if value is None else value
    except OSError as error:
        return os.strerror(error.errno) if error.errno else str(error)


def syscall(number, *arguments):
    result = libc.syscall(number, *arguments)
    if result == -1:
        raise OSError(ctypes.get_errno(), "")


def connected(family, address):
    with socket.socket(family, socket.SOCK_STREAM) as stream:
        stream.settimeout(2)
        stream.connect(address)


def served():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        connected(socket.AF_INET, server.getsockname())


def opened(family, kind=socket.SOCK_DGRAM, protocol=0):
    socket.socket(family, kind, protocol).close()


def written(path):
    with open(path, "w") as file:
        file.write("x")
    os.remove(path)


def readable(path):
    # What is masked may open, and is empty.
    with open(path, "rb") as file:
        if not file.read(1):
            raise OSError("it is empty")


def executed(path):
    with open(path, "w") as file:
        file.write("#!/bin/sh\nexit 0\n")
    os.chmod(path, 0o755)
    pid = os.fork()
    if pid == 0:
        try:
            os.execv(path, [path])
        except OSError as error:
            os._exit(error.errno)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise OSError(code, "")


def status():
    with open("/proc/self/status") as file:
        return dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)


def tree(path):
    return sorted(os.listdir(path))


own = status()
x86 = os.uname().machine == "x86_64"
numbers = {
    "ptrace": 101 if x86 else 117,
    "unshare": 272 if x86 else 97,
    "mount": 165 if x86 else 40,
    "keyctl": 250 if x86 else 219,
    "bpf": 321 if x86 else 280,
    "memfd_create": 319 if x86 else 279,
    "io_uring_setup": 425,
    "clone3": 435,
}
arguments = {"unshare": (0x10000000,), "memfd_create": (b"x", 0)}
found = {
    "ids": [os.getuid(), os.geteuid(), os.getgid(), os.getegid()],
    "capabilities": sorted({own[name] for name in own if name.startswith("Cap")}),
    "no_new_privs": own["NoNewPrivs"],
    "seccomp": own["Seccomp"],
    "environment": dict(os.environ),
    "arguments": sys.argv,
    "hostname": socket.gethostname(),
    "root": tree("/"),
    "home": tried(lambda: tree("/root")),
    "etc": tree("/etc"),
    "processes": sorted(int(name) for name in os.listdir("/proc") if name.isdigit()),
    "parent": tried(lambda: os.listdir("/proc/1/fd")),
    "descriptors": [int(name) for name in tree("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")],
    "interfaces": [name for _, name in socket.if_nameindex()],
    "read": {
        path: tried(lambda: readable(path))
        for path in [canary, "/etc/shadow", "/proc/kcore", "/proc/1/environ", "/sys/kernel"]
    },
    "write": {
        path: tried(lambda: written(path))
        for path in ["/x", "/usr/x", "/etc/x", "/dev/x", "/proc/sys/kernel/domainname", "/tmp/x", "/dev/shm/x"]
    },
    "execute": {path: tried(lambda: executed(path)) for path in ["/tmp/x.sh"]},
    "sockets": {
        "unix": tried(lambda: opened(socket.AF_UNIX)),
        "inet": tried(lambda: opened(socket.AF_INET)),
        "inet6": tried(lambda: opened(socket.AF_INET6)),
        "route": tried(lambda: opened(socket.AF_NETLINK, socket.SOCK_RAW, 0)),
        "audit": tried(lambda: opened(socket.AF_NETLINK, socket.SOCK_RAW, 9)),
        "packet": tried(lambda: opened(socket.AF_PACKET, socket.SOCK_RAW)),
        "vsock": tried(lambda: opened(socket.AF_VSOCK, socket.SOCK_STREAM)),
        "alg": tried(lambda: opened(socket.AF_ALG, socket.SOCK_SEQPACKET)),
    },
    "connect": {
        "host": tried(lambda: connected(socket.AF_INET, ("127.0.0.1", port))),
        "abroad": tried(lambda: connected(socket.AF_INET, ("192.0.2.1", 9))),
        "itself": tried(served),
    },
    "calls": {
        name: tried(lambda: syscall(number, *arguments.get(name, (0, 0, 0, 0))))
        for name, number in numbers.items()
    },
    "limits": {
        name: resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))[1]
        for name in ["NOFILE", "CORE", "NPROC", "DATA"]
    },
    "processors": len(os.sched_getaffinity(0)),
}
print(json.dumps(found))
