"""A filter of system calls: one process that reads, computes and answers, and can reach no other.

Refused with EPERM: sockets, processes and programs, signals to others, tracing, changes of files' rights and times,
namespaces and mounts, keys, kernel modules, shared memory, other processes' priorities. Calls that are newer than this
list are told not to exist. Threads are allowed.
"""

from __future__ import annotations

import ctypes
import os
import struct

from . import kernel

# name: numbers on x86_64 and aarch64 (None: it has no such call). Sources: asm/unistd_64.h, asm-generic/unistd.h.
_REFUSED: dict[str, tuple[int | None, int | None]] = {
    # the network; io_uring opens sockets too
    "socket": (41, 198), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    # processes and programs
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281), "ptrace": (101, 117),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "process_madvise": (440, 440),
    "process_mrelease": (448, 448), "kcmp": (312, 272), "pidfd_open": (434, 434), "pidfd_getfd": (438, 438),
    # signals to others
    "pidfd_send_signal": (424, 424), "tkill": (200, 130), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    # others' share of the machine
    "setpriority": (141, 140), "ioprio_set": (251, 30), "sched_setscheduler": (144, 119), "sched_setparam": (142, 118),
    "sched_setattr": (314, 274), "sched_setaffinity": (203, 122), "migrate_pages": (256, 238), "move_pages": (279, 239),
    # memory that no limit of a process counts
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "msgget": (68, 186),
    "semget": (64, 190), "mq_open": (240, 180),
    # namespaces and mounts
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "move_mount": (429, 429), "open_tree": (428, 428), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264), "mknod": (133, None), "mknodat": (259, 33),
    # rights, owners, times and attributes of files, which Landlock does not speak of
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "chown": (92, None), "fchown": (93, 55),
    "lchown": (94, None), "fchownat": (260, 54), "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16), "utime": (132, None),
    "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88), "truncate": (76, 45),
    # the kernel itself
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "keyctl": (250, 219),
    "add_key": (248, 217), "request_key": (249, 218), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "kexec_load": (246, 104), "kexec_file_load": (320, 294), "reboot": (169, 142),
    "swapon": (167, 224), "swapoff": (168, 225), "settimeofday": (164, 170), "clock_settime": (227, 112),
    "clock_adjtime": (305, 266), "adjtimex": (159, 171), "acct": (163, 89), "quotactl": (179, 60),
    "quotactl_fd": (443, 443), "ioperm": (173, None), "iopl": (172, None), "personality": (135, 92),
    "syslog": (103, 116), "fanotify_init": (300, 262), "sethostname": (170, 161), "setdomainname": (171, 162),
}  # fmt: skip
_LOOKED_AT = {  # calls that are judged by an argument
    "clone": (56, 220), "clone3": (435, 435), "kill": (62, 129), "tgkill": (234, 131), "prlimit64": (302, 261),
    "fcntl": (72, 25), "ioctl": (16, 29), "socketpair": (53, 199),
}  # fmt: skip
_NEWEST = 450  # the last number that this list has looked at
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}

_LOAD, _AND, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _REFUSE, _UNKNOWN = 0x7FFF0000, 0x80000000, 0x00050000 | 1, 0x00050000 | 38  # EPERM, ENOSYS

Instruction = tuple[int, int, int, int]


def available() -> bool:
    """Whether there is a list for this architecture."""
    return kernel.MACHINE in _ARCHITECTURES


def install() -> None:
    """On this process, for good; needs no_new_privs. Raises OSError where it cannot be."""
    if not available():
        raise OSError(f"no filter of system calls for {kernel.MACHINE}; there is one for {', '.join(_ARCHITECTURES)}")
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in _program(os.getpid()))
    buffer = ctypes.create_string_buffer(code, len(code))
    filters = struct.pack("HxxxxxxQ", len(code) // 8, ctypes.addressof(buffer))
    kernel.prctl(kernel.PR_SET_SECCOMP, 2, filters)


def _program(own: int) -> list[Instruction]:
    column, architecture = _ARCHITECTURES[kernel.MACHINE]
    rules = [
        (_LOAD, 0, 0, 4),
        (_EQUAL, 1, 0, architecture),
        _answer(_KILL),
        (_LOAD, 0, 0, 0),
        (_AT_LEAST, 0, 1, _NEWEST + 1),  # the x32 calls of x86_64 too
        _answer(_UNKNOWN),
    ]
    for numbers in _REFUSED.values():
        if (number := numbers[column]) is not None:
            rules += [(_EQUAL, 0, 1, number), _answer(_REFUSE)]
    looked_at = {name: numbers[column] for name, numbers in _LOOKED_AT.items()}
    rules += [(_EQUAL, 0, 1, looked_at["clone3"]), _answer(_UNKNOWN)]  # its flags are out of sight: clone is asked next
    rules += _only(looked_at["clone"], 0, [(_ANY_BIT, 0, 1, 0x10000)])  # a thread
    for name in ("kill", "tgkill"):
        rules += _only(looked_at[name], 0, [(_EQUAL, 0, 1, own)])
    rules += _only(looked_at["prlimit64"], 0, [(_EQUAL, 1, 0, 0), (_EQUAL, 0, 1, own)])
    rules += _only(looked_at["socketpair"], 1, [(_AND, 0, 0, 15), (_EQUAL, 0, 1, 1)])  # a stream has one other end
    rules += _never(looked_at["fcntl"], 1, (8, 10, 15))  # F_SETOWN, F_SETSIG, F_SETOWN_EX: signals to others
    rules += _never(looked_at["ioctl"], 1, (0x8901, 0x8902, 0x5412))  # FIOSETOWN, SIOCSPGRP, TIOCSTI
    return [*rules, _answer(_ALLOW)]


def _answer(value: int) -> Instruction:
    return (_RETURN, 0, 0, value)


def _argument(place: int) -> Instruction:
    return (_LOAD, 0, 0, 16 + 8 * place)  # the low half: the kernel reads no more of these


def _only(number: int, place: int, test: list[Instruction]) -> list[Instruction]:
    """Allowed where ``test`` on an argument falls through or jumps to the instruction after it."""
    body = [_argument(place), *test, _answer(_ALLOW), _answer(_REFUSE)]
    return [(_EQUAL, 0, len(body), number), *body]


def _never(number: int, place: int, values: tuple[int, ...]) -> list[Instruction]:
    tests = [i for value in values for i in ((_EQUAL, 0, 1, value), _answer(_REFUSE))]
    body = [_argument(place), *tests, _answer(_ALLOW)]
    return [(_EQUAL, 0, len(body), number), *body]
