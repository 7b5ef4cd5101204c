#!/usr/bin/env python3
"""A hostile task: tries one thing and says what came of it.

    escape.py ATTEMPT [ARGUMENT...]

Each line is `GOT <what>` for what worked, `DENIED <errno>` for what the system refused, or data of the attempt. It exits with 0
whatever happens: the test decides what is right.
"""

import ctypes
import errno
import mmap
import os
import resource
import socket
import struct
import sys
import time

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
MACHINE = os.uname().machine
# Numbers on x86_64 and on machines with the generic table (aarch64, riscv64); from 424 on they are the same everywhere.
CALLS = {
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97), "setns": (308, 268),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "add_key": (248, 217), "request_key": (249, 218),
    "keyctl": (250, 219), "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "init_module": (175, 105),
    "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104), "reboot": (169, 142), "swapon": (167, 224),
    "swapoff": (168, 225), "sethostname": (170, 161), "setdomainname": (171, 162), "settimeofday": (164, 170),
    "clock_settime": (227, 112), "acct": (163, 89), "quotactl": (179, 60), "syslog": (103, 116), "fanotify_init": (300, 262),
    "process_madvise": (440, 440), "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "open_tree": (428, 428), "move_mount": (429, 429),
    "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "clone3": (435, 435),
    "mount_setattr": (442, 442), "prlimit64": (302, 261), "shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190),
    "clone": (56, 220), "setpriority": (141, 140), "sched_setaffinity": (203, 122), "mq_open": (240, 180),
}


def call(name, *arguments):
    """One system call; its result, or OSError."""
    number = CALLS[name][0 if MACHINE == "x86_64" else 1]
    arguments = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result


def attempt(what, act):
    try:
        got = act()
        print(f"GOT {what}" + ("" if got is None else f" {got}"), flush=True)
        return True
    except OSError as error:
        print(f"DENIED {what} {errno.errorcode.get(error.errno, error.errno)}", flush=True)
        return False


def head(path):
    with open(path, "rb") as file:
        return file.read(65536)


def read(*paths):
    """Files and directories."""
    for path in paths:
        attempt(f"read {path}", lambda: repr(sorted(os.listdir(path)) if os.path.isdir(path) else head(path)[:200]))


def write(*paths):
    """New files, changes of files that are there, removal, other names, other modes. For directories of a test's own only."""
    for path in paths:
        if os.path.isdir(path):
            attempt(f"create {path}", lambda: os.close(os.open(f"{path}/planted", os.O_CREAT | os.O_EXCL | os.O_WRONLY)))
            attempt(f"mkdir {path}", lambda: os.mkdir(f"{path}/planted-dir"))
            attempt(f"link {path}", lambda: os.symlink("/", f"{path}/planted-link"))
        else:
            attempt(f"append {path}", lambda: os.close(os.open(path, os.O_WRONLY | os.O_APPEND)))
            attempt(f"truncate {path}", lambda: os.truncate(path, 0))
            attempt(f"unlink {path}", lambda: os.unlink(path))
        attempt(f"chmod {path}", lambda: os.chmod(path, 0o777))
        attempt(f"chown {path}", lambda: os.chown(path, os.getuid(), -1))
        attempt(f"rename {path}", lambda: os.rename(path, path + ".renamed"))


def touch(*paths):
    """As `write` for places of the machine, where an attempt that succeeds must not hurt it."""
    for path in paths:
        if os.path.isdir(path):
            planted = f"{path}/windlass-planted"
            attempt(f"create {path}", lambda: (os.close(os.open(planted, os.O_CREAT | os.O_EXCL | os.O_WRONLY)), os.unlink(planted))[1])
        else:
            attempt(f"append {path}", lambda: os.close(os.open(path, os.O_WRONLY | os.O_APPEND)))


def vm_read(pid):
    with open(f"/proc/{os.getpid()}/maps") as maps:
        address = int(maps.readline().split("-")[0], 16)
    try:
        with open(f"/proc/{pid}/maps") as maps:
            address = int(maps.readline().split("-")[0], 16)
    except OSError:
        pass
    buffer = ctypes.create_string_buffer(16)
    local = struct.pack("PN", ctypes.addressof(buffer), 16)
    remote = struct.pack("PN", address, 16)
    return call("process_vm_readv", pid, local, 1, remote, 1, 0)


def search(pid, needle):
    """Looks for bytes in a process's memory; true when they are there."""
    needle = needle.encode()
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in maps:
            span, access = line.split()[:2]
            start, end = (int(part, 16) for part in span.split("-"))
            if not access.startswith("rw") or end - start > 1 << 28:
                continue
            try:
                memory.seek(start)
                data = memory.read(end - start)
            except OSError:
                continue
            if data and needle in data:
                return "found"
    return "not found"


def spy(pid, needle=""):
    """Everything that a process's memory, files and descriptors could give away."""
    pid = int(pid)
    attempt("exists", lambda: os.stat(f"/proc/{pid}").st_uid)
    attempt("environ", lambda: repr(head(f"/proc/{pid}/environ")[:300]))
    attempt("cmdline", lambda: repr(head(f"/proc/{pid}/cmdline")[:60]))
    attempt("maps", lambda: len(head(f"/proc/{pid}/maps")))
    attempt("memory", lambda: search(pid, needle) if needle else os.close(os.open(f"/proc/{pid}/mem", os.O_RDONLY)))
    attempt("memory-write", lambda: os.close(os.open(f"/proc/{pid}/mem", os.O_RDWR)))
    attempt("process_vm_readv", lambda: vm_read(pid))
    attempt("descriptors", lambda: len([os.readlink(f"/proc/{pid}/fd/{n}") for n in os.listdir(f"/proc/{pid}/fd")]))
    attempt("descriptor-0", lambda: os.close(os.open(f"/proc/{pid}/fd/0", os.O_RDONLY | os.O_NONBLOCK)))
    attempt("root", lambda: len(os.listdir(f"/proc/{pid}/root/")))
    attempt("cwd", lambda: os.readlink(f"/proc/{pid}/cwd"))
    attempt("stack", lambda: len(head(f"/proc/{pid}/stack")))
    attempt("auxv", lambda: len(head(f"/proc/{pid}/auxv")))
    attempt("pidfd_getfd", lambda: os.close(call("pidfd_getfd", call("pidfd_open", pid, 0), 0, 0)))
    attempt("setns", lambda: call("setns", os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY), 0))
    attempt("kcmp", lambda: call("kcmp", pid, os.getpid(), 0, 0, 0))
    # PTRACE_SEIZE stops nobody; it is undone when we end.
    attempt("ptrace", lambda: call("ptrace", 0x4206, pid, 0, 0))


def signal(pid, *signals):
    pid = int(pid)
    for number in map(int, signals):
        attempt(f"kill-{number}", lambda: os.kill(pid, number))
        attempt(f"pidfd-{number}", lambda: call("pidfd_send_signal", call("pidfd_open", pid, 0), number, 0, 0))


def handicap(pid, change):
    """What same-user processes may do to one another besides signals."""
    pid = int(pid)
    old = ctypes.create_string_buffer(16)
    attempt("prlimit-get", lambda: call("prlimit64", pid, resource.RLIMIT_NOFILE, 0, old))
    if change == "change":
        low = struct.pack("QQ", 3, 3)
        attempt("prlimit-set", lambda: call("prlimit64", pid, resource.RLIMIT_NOFILE, low, 0))
        attempt("prlimit-cpu", lambda: call("prlimit64", pid, resource.RLIMIT_CPU, struct.pack("QQ", 1, 1), 0))


def own_cgroups():
    """Directories of this task's cgroups, in every hierarchy."""
    found = []
    with open("/proc/self/cgroup") as file:
        for line in file:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            for root in (f"/sys/fs/cgroup/{controllers}", "/sys/fs/cgroup/unified", "/sys/fs/cgroup"):
                if path != "/" and os.path.isdir(root + path):
                    found.append((root, path))
                    break
    return found


def put(path, text):
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def cgroup(what):
    """Out of the cgroup, or more from it."""
    cgroups = own_cgroups()
    print(f"cgroups {len(cgroups)}")
    for root, path in cgroups:
        if what == "leave":
            for name in ("cgroup.procs", "tasks", "cgroup.threads"):
                for up in (root, os.path.dirname(root + path), os.path.dirname(os.path.dirname(root + path))):
                    if os.path.exists(f"{up}/{name}"):
                        attempt(f"enter {up}/{name}", lambda: put(f"{up}/{name}", str(os.getpid())))
            attempt(f"mkdir {path}", lambda: os.mkdir(root + path + "/inner"))
        else:
            for name, text in (
                ("memory.limit_in_bytes", str(1 << 40)), ("memory.max", "max"), ("memory.swap.max", "max"),
                ("memory.memsw.limit_in_bytes", str(1 << 41)), ("pids.max", "max"), ("cpu.max", "max"), ("cpu.cfs_quota_us", "-1"),
                ("cgroup.freeze", "0"), ("memory.oom_control", "1"), ("cgroup.subtree_control", "-memory"), ("notify_on_release", "1"),
                ("cgroup.kill", "0"),
            ):
                if os.path.exists(f"{root}{path}/{name}"):
                    attempt(f"raise {name}", lambda: put(f"{root}{path}/{name}", text))
            if os.path.exists(f"{root}/release_agent"):
                attempt("raise release_agent", lambda: os.close(os.open(f"{root}/release_agent", os.O_WRONLY)))


def inherited():
    """Descriptors that it was started with."""
    for name in sorted(os.listdir("/proc/self/fd"), key=int):
        try:
            print(f"fd {name} {os.readlink(f'/proc/self/fd/{name}')}")
        except FileNotFoundError:
            pass  # the listing's own


def limits():
    """Resource limits and priorities above what was given."""
    for name in ("NOFILE", "CORE", "MEMLOCK", "RTPRIO", "NICE", "MSGQUEUE"):
        number = getattr(resource, f"RLIMIT_{name}", {"NICE": 13, "RTPRIO": 14, "MSGQUEUE": 12}.get(name))
        soft, hard = resource.getrlimit(number)
        if hard == resource.RLIM_INFINITY:
            print(f"UNLIMITED {name}")
            continue

        def more():
            try:
                resource.setrlimit(number, (hard, hard + 1))
            except ValueError as error:
                raise OSError(errno.EPERM, str(error)) from None

        attempt(f"rlimit {name}", more)
    attempt("nice", lambda: os.setpriority(os.PRIO_PROCESS, 0, -5))
    attempt("realtime", lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)))


def kernel():
    """System calls with arguments that harm nobody: what matters is whether they are refused before those are looked at."""
    bad = -1
    ring = ctypes.create_string_buffer(120)
    attr = ctypes.create_string_buffer(128)
    for name, arguments in {
        "mount": (0, 0, 0, 0, 0), "umount2": (0, 0), "pivot_root": (0, 0), "chroot": (0,), "setns": (bad, 0),
        "open_tree": (bad, 0, 0), "move_mount": (bad, 0, bad, 0, 0), "fsopen": (0, 0), "fsconfig": (bad, 0, 0, 0, 0),
        "fsmount": (bad, 0, 0), "fspick": (bad, 0, 0), "mount_setattr": (bad, 0, 0, 0, 0),
        "bpf": (0, attr, 128), "perf_event_open": (0, 0, bad, bad, 0), "userfaultfd": (0x80000000,),
        "io_uring_setup": (0, ring), "io_uring_enter": (bad, 0, 0, 0, 0, 0),
        "add_key": (0, 0, 0, 0, 0), "request_key": (0, 0, 0, 0), "keyctl": (0, 0xFFFFFFFD, 0, 0, 0),
        "name_to_handle_at": (bad, 0, 0, 0, 0), "open_by_handle_at": (bad, 0, 0),
        "init_module": (0, 0, 0), "finit_module": (bad, 0, 0), "delete_module": (0, 0), "kexec_load": (0, bad, 0, 0),
        "reboot": (0, 0, 0, 0), "swapon": (0, 0), "swapoff": (0,), "sethostname": (0, bad), "setdomainname": (0, bad),
        "settimeofday": (1, 0), "clock_settime": (0, 0), "quotactl": (bad, 0, 0, 0), "syslog": (10, 0, 0),
        "fanotify_init": (bad, 0), "process_madvise": (bad, 0, 0, 0, 0), "pidfd_getfd": (bad, 0, 0), "kcmp": (bad, bad, 0, 0, 0),
        "ptrace": (0x4206, 0x7FFFFFFE, 0, 0), "process_vm_readv": (0x7FFFFFFE, 0, 0, 0, 0, 0), "clone3": (0, 0),
    }.items():
        attempt(name, lambda: call(name, *arguments))


def in_child(act):
    """In a child, because it may change the process."""
    pid = os.fork()
    if pid == 0:
        try:
            act()
            os._exit(0)
        except OSError as error:
            os._exit(error.errno)
        except BaseException:
            os._exit(255)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status:
        raise OSError(status if status > 0 else errno.EPERM, "child")


def foreign():
    """System calls by other ways than that of 64-bit programs, whose numbers mean something else."""
    if MACHINE != "x86_64":
        print("NONE")
        return
    # mov eax, 20 (getpid of 32-bit programs); int 0x80; ret
    code = b"\xb8" + struct.pack("<I", 20) + b"\xcd\x80\xc3"
    memory = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    memory.write(code)
    function = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(memory)))
    attempt("int80", lambda: in_child(function))
    attempt("x32", lambda: libc.syscall(ctypes.c_long(0x40000000 | 39)) > 0 or in_child(lambda: os._exit(errno.ENOSYS)))


def namespaces():
    for name, flag in {
        "user": 0x10000000, "mount": 0x20000, "pid": 0x20000000, "net": 0x40000000, "ipc": 0x8000000, "uts": 0x4000000,
        "cgroup": 0x2000000, "time": 0x80, "user+mount": 0x10020000,
    }.items():
        attempt(f"unshare-{name}", lambda: in_child(lambda: call("unshare", flag)))
        if flag != 0x80:

            def clone():
                pid = call("clone", flag | 17, 0, 0, 0, 0)
                if pid == 0:
                    os._exit(0)
                os.waitpid(pid, 0)

            attempt(f"clone-{name}", clone)


def become():
    """Other users, more rights, devices of its own."""
    attempt("setuid-0", lambda: in_child(lambda: os.setresuid(0, 0, 0)))
    attempt("setuid-other", lambda: in_child(lambda: os.setresuid(4242, 4242, 4242)))
    attempt("setgid-0", lambda: in_child(lambda: os.setresgid(0, 0, 0)))
    attempt("setgroups", lambda: in_child(lambda: os.setgroups([0])))
    attempt("mknod", lambda: os.mknod("device", 0o20666, os.makedev(1, 1)))
    attempt("chown", lambda: (open("given", "w").close(), os.chown("given", 4242, 4242))[1])
    attempt("raw-socket", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).close())
    attempt("packet-socket", lambda: socket.socket(17, socket.SOCK_RAW, 0).close())
    attempt("vsock", lambda: socket.socket(40, socket.SOCK_STREAM, 0).close())
    attempt("alg-socket", lambda: socket.socket(38, socket.SOCK_SEQPACKET, 0).close())
    attempt("low-port", lambda: socket.socket().bind(("127.0.0.1", 1)))
    attempt("kmsg", lambda: os.close(os.open("/dev/kmsg", os.O_RDONLY)))
    attempt("memory-device", lambda: os.close(os.open("/dev/mem", os.O_RDONLY)))
    attempt("core_pattern", lambda: os.close(os.open("/proc/sys/kernel/core_pattern", os.O_WRONLY)))
    attempt("sysrq", lambda: os.close(os.open("/proc/sysrq-trigger", os.O_WRONLY)))


def connect(*names):
    """Sockets in the file system, or with @ abstract ones."""
    for name in names:
        address = "\0" + name[1:] if name.startswith("@") else name

        def reach():
            with socket.socket(socket.AF_UNIX) as s:
                s.settimeout(5)
                s.connect(address)

        attempt(f"connect {name}", reach)


def daemon(path):
    """Two forks and a session of its own; beats its heart in a file until it is killed."""
    sys.stdout.flush()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for fd in range(3):
                os.close(fd)
            for number in range(1, 64):
                if number not in (9, 19, 32, 33):
                    libc.signal(number, ctypes.c_void_p(1))
            while True:
                with open(path, "a") as file:
                    file.write(f"{os.getpid()}\n")
                time.sleep(0.02)
        os._exit(0)
    os.wait()
    while not os.path.exists(path):
        time.sleep(0.01)
    print("GOT started")


def fill(*directories):
    """Until nothing more goes in, or 96 MiB are there."""
    for directory in directories:
        path = f"{directory}/fill"

        def more():
            with open(path, "wb", 0) as file:
                for _ in range(96):
                    file.write(b"x" * (1 << 20))
            return os.stat(path).st_size

        attempt(f"fill {directory}", more)


def ipc(key):
    """What System V and POSIX keep when their processes are gone."""
    key = int(key)
    IPC_CREAT = 0o1000
    attempt("shm", lambda: call("shmget", key, 1 << 20, IPC_CREAT | 0o666))
    attempt("msg", lambda: call("msgget", key, IPC_CREAT | 0o666))
    attempt("sem", lambda: call("semget", key, 1, IPC_CREAT | 0o666))
    attempt("mqueue", lambda: call("mq_open", f"windlass-{key}".encode(), os.O_CREAT | os.O_RDWR, 0o666, 0))


def processes(*pids):
    seen = {int(name) for name in os.listdir("/proc") if name.isdigit()}
    for pid in map(int, pids):
        print(f"{'GOT' if pid in seen else 'DENIED'} see {pid}")


def crash():
    os.kill(os.getpid(), 11)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
    sys.stdout.flush()
