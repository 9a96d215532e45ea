"""The program of the self-test's sample: a web server in machine code, which needs nothing from outside."""

from __future__ import annotations

import platform
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

# What it does, one connection after the other: read the head of a request; send the first argument, or to
# paths that begin with w the second one, then take one short WebSocket frame with a mask of zeros and send
# its text back; close. In both listings: bytes, instruction, what it is about.
_X86_64: Final = """
4c 8b 64 24 10        mov r12, [rsp+16]      the first argument
4c 89 e7              mov rdi, r12
e8 06 01 00 00        call length
49 89 c5              mov r13, rax
4c 8b 74 24 18        mov r14, [rsp+24]      the second one
4c 89 f7              mov rdi, r14
e8 f6 00 00 00        call length
49 89 c7              mov r15, rax
6a 29                 push 41                socket(AF_INET, SOCK_STREAM, 0)
58                    pop rax
6a 02                 push 2
5f                    pop rdi
6a 01                 push 1
5e                    pop rsi
31 d2                 xor edx, edx
0f 05                 syscall
89 c3                 mov ebx, eax
6a 01                 push 1                 setsockopt(_, SOL_SOCKET, SO_REUSEADDR, {1}, 4)
49 89 e2              mov r10, rsp
89 df                 mov edi, ebx
6a 01                 push 1
5e                    pop rsi
6a 02                 push 2
5a                    pop rdx
6a 04                 push 4
41 58                 pop r8
6a 36                 push 54
58                    pop rax
0f 05                 syscall
6a 00                 push 0                 bind(_, {AF_INET, port, 0.0.0.0}, 16)
b8 02 00 PP PP        mov eax, 2 + port << 16
50                    push rax
89 df                 mov edi, ebx
48 89 e6              mov rsi, rsp
6a 10                 push 16
5a                    pop rdx
6a 31                 push 49
58                    pop rax
0f 05                 syscall
85 c0                 test eax, eax
0f 85 82 00 00 00     jne exit
89 df                 mov edi, ebx           listen(_, 16)
6a 10                 push 16
5e                    pop rsi
6a 32                 push 50
58                    pop rax
0f 05                 syscall
48 81 ec 00 10 00 00  sub rsp, 4096          the buffer
89 df                 mov edi, ebx           next: accept(_, 0, 0)
31 f6                 xor esi, esi
31 d2                 xor edx, edx
6a 2b                 push 43
58                    pop rax
0f 05                 syscall
85 c0                 test eax, eax
78 f1                 js next
89 c5                 mov ebp, eax
e8 63 00 00 00        call read
7e 50                 jle close              somebody only looked whether we listen
80 7c 24 05 77        cmp byte [rsp+5], 'w'  after "GET /"
74 0d                 je websocket
4c 89 e6              mov rsi, r12
4c 89 ea              mov rdx, r13
e8 62 00 00 00        call send
eb 2b                 jmp finish
4c 89 f6              mov rsi, r14           websocket:
4c 89 fa              mov rdx, r15
e8 55 00 00 00        call send
e8 3d 00 00 00        call read              two bytes, a mask of four, and the text
83 f8 06              cmp eax, 6
7e 16                 jle finish
48 8d 74 24 04        lea rsi, [rsp+4]       the mask's last two bytes become the answer's first ones
8d 48 fa              lea ecx, [rax-6]
c6 06 81              mov byte [rsi], 0x81   the last frame of a text
88 4e 01              mov [rsi+1], cl
8d 50 fc              lea edx, [rax-4]
e8 35 00 00 00        call send
89 ef                 mov edi, ebp           finish: shutdown(_, SHUT_WR), or unread bytes would reset
6a 01                 push 1
5e                    pop rsi
6a 30                 push 48
58                    pop rax
0f 05                 syscall
e8 13 00 00 00        call read              drain:
7f f9                 jg drain
89 ef                 mov edi, ebp           close: close(_)
6a 03                 push 3
58                    pop rax
0f 05                 syscall
eb 8f                 jmp next
6a 01                 push 1                 exit: exit(1)
5f                    pop rdi
6a 3c                 push 60
58                    pop rax
0f 05                 syscall
89 ef                 mov edi, ebp           read: read(_, buffer, 4096)
48 8d 74 24 08        lea rsi, [rsp+8]
ba 00 10 00 00        mov edx, 4096
31 c0                 xor eax, eax
0f 05                 syscall
85 c0                 test eax, eax
c3                    ret
89 ef                 mov edi, ebp           send: sendto(_, rsi, rdx, MSG_NOSIGNAL, 0, 0)
41 ba 00 40 00 00     mov r10d, 0x4000
45 31 c0              xor r8d, r8d
45 31 c9              xor r9d, r9d
6a 2c                 push 44
58                    pop rax
0f 05                 syscall
c3                    ret
31 c0                 xor eax, eax           length:
80 3c 07 00           cmp byte [rdi+rax], 0
74 05                 je .+7
48 ff c0              inc rax
eb f5                 jmp .-9
c3                    ret
"""
_AARCH64: Final = """
f5 0b 40 f9  ldr x21, [sp, #16]   the first argument
e0 03 15 aa  mov x0, x21
5c 00 00 94  bl length
f6 03 00 aa  mov x22, x0
f7 0f 40 f9  ldr x23, [sp, #24]   the second one
e0 03 17 aa  mov x0, x23
58 00 00 94  bl length
f8 03 00 aa  mov x24, x0
40 00 80 d2  mov x0, #2
21 00 80 d2  mov x1, #1
02 00 80 d2  mov x2, #0
c8 18 80 d2  mov x8, #198         socket(AF_INET, SOCK_STREAM, 0)
01 00 00 d4  svc #0
f3 03 00 aa  mov x19, x0
ff 07 40 d1  sub sp, sp, #4096    the buffer
22 00 80 52  mov w2, #1
e2 03 00 b9  str w2, [sp]
21 00 80 d2  mov x1, #1
42 00 80 d2  mov x2, #2
e3 03 00 91  mov x3, sp
84 00 80 d2  mov x4, #4
08 1a 80 d2  mov x8, #208         setsockopt(_, SOL_SOCKET, SO_REUSEADDR, {1}, 4)
01 00 00 d4  svc #0
e0 03 13 aa  mov x0, x19
42 00 80 52  mov w2, #2
e2 03 00 f9  str x2, [sp]
ff 07 00 f9  str xzr, [sp, #8]
22 09 00 18  ldr w2, port
e2 07 00 79  strh w2, [sp, #2]
e1 03 00 91  mov x1, sp
02 02 80 d2  mov x2, #16
08 19 80 d2  mov x8, #200         bind(_, {AF_INET, port, 0.0.0.0}, 16)
01 00 00 d4  svc #0
80 05 00 35  cbnz w0, exit
e0 03 13 aa  mov x0, x19
01 02 80 d2  mov x1, #16
28 19 80 d2  mov x8, #201         listen(_, 16)
01 00 00 d4  svc #0
e0 03 13 aa  mov x0, x19          next:
01 00 80 d2  mov x1, #0
02 00 80 d2  mov x2, #0
48 19 80 d2  mov x8, #202         accept(_, 0, 0)
01 00 00 d4  svc #0
60 ff ff 37  tbnz w0, #31, next
f4 03 00 aa  mov x20, x0
23 00 00 94  bl read
6d 03 00 54  b.le close           somebody only looked whether we listen
e2 17 40 39  ldrb w2, [sp, #5]
5f dc 01 71  cmp w2, #0x77        'w', after "GET /"
a0 00 00 54  b.eq websocket
e1 03 15 aa  mov x1, x21
e2 03 16 aa  mov x2, x22
23 00 00 94  bl send
0e 00 00 14  b finish
e1 03 17 aa  mov x1, x23          websocket:
e2 03 18 aa  mov x2, x24
1f 00 00 94  bl send
17 00 00 94  bl read
1f 18 00 71  cmp w0, #6
0d 01 00 54  b.le finish
e1 13 00 91  add x1, sp, #4       the mask's last two bytes become the answer's first ones
03 18 00 51  sub w3, w0, #6
22 10 80 52  mov w2, #0x81        the last frame of a text
22 00 00 39  strb w2, [x1]
23 04 00 39  strb w3, [x1, #1]
02 10 00 51  sub w2, w0, #4
15 00 00 94  bl send
e0 03 14 aa  mov x0, x20          finish:
21 00 80 d2  mov x1, #1
48 1a 80 d2  mov x8, #210         shutdown(_, SHUT_WR), or unread bytes would reset
01 00 00 d4  svc #0
09 00 00 94  bl read              drain:
ec ff ff 54  b.gt drain
e0 03 14 aa  mov x0, x20          close:
28 07 80 d2  mov x8, #57          close(_)
01 00 00 d4  svc #0
da ff ff 17  b next
20 00 80 d2  mov x0, #1           exit:
a8 0b 80 d2  mov x8, #93          exit(1)
01 00 00 d4  svc #0
e0 03 14 aa  mov x0, x20          read:
e1 03 00 91  mov x1, sp
02 00 82 d2  mov x2, #4096
e8 07 80 d2  mov x8, #63          read(_, buffer, 4096)
01 00 00 d4  svc #0
1f 00 00 71  cmp w0, #0
c0 03 5f d6  ret
e0 03 14 aa  mov x0, x20          send:
03 00 88 d2  mov x3, #0x4000
04 00 80 d2  mov x4, #0
05 00 80 d2  mov x5, #0
c8 19 80 d2  mov x8, #206         sendto(_, x1, x2, MSG_NOSIGNAL, 0, 0)
01 00 00 d4  svc #0
c0 03 5f d6  ret
e1 03 00 aa  mov x1, x0           length:
22 14 40 38  ldrb w2, [x1], #1    again:
e2 ff ff 35  cbnz w2, again
20 00 00 cb  sub x0, x1, x0
00 04 00 d1  sub x0, x0, #1
c0 03 5f d6  ret
PP PP 00 00                       port:
"""

PORT_BYTES: Final = "PP PP"
"""Stand in a listing for the port, in network order."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """A kind of CPU: the ELF header's number for it, and the program's listing."""

    machine: int
    listing: str


ARCHITECTURES: Final[Mapping[str, Architecture]] = {
    "x86_64": Architecture(62, _X86_64),
    "aarch64": Architecture(183, _AARCH64),
}
"""By the name that uname(2) has for them."""
PAGE: Final = 64 * 1024
"""Bytes: the largest page of any kernel that runs them."""

_BASE: Final = 0x400000
_ELF_HEADER: Final = struct.Struct("<4s5B7x2HI3QI6H")
_PROGRAM_HEADER: Final = struct.Struct("<2I6Q")


def find_architecture() -> Architecture | None:
    """That of this machine; None where the program was not written for it."""
    return ARCHITECTURES.get(platform.machine())


def build_program(architecture: Architecture, port: int) -> bytes:
    """An executable without libraries (elf(5)): two headers and the code, mapped as one segment."""
    code = _assemble(architecture.listing, port)
    start = _ELF_HEADER.size + _PROGRAM_HEADER.size
    size = start + len(code)
    elf = _ELF_HEADER.pack(
        b"\x7fELF",
        *(2, 1, 1, 0, 0),  # 64 bits, little-endian, version 1, System V
        *(2, architecture.machine, 1, _BASE + start),  # an executable, and where it begins
        *(_ELF_HEADER.size, 0, 0),  # program headers follow; no sections, no flags
        *(_ELF_HEADER.size, _PROGRAM_HEADER.size, 1, 0, 0, 0),
    )
    readable_and_executable = 5
    segment = _PROGRAM_HEADER.pack(1, readable_and_executable, 0, _BASE, _BASE, size, size, PAGE)
    return elf + segment + code


def _assemble(listing: str, port: int) -> bytes:
    code = " ".join(line.split("  ", 1)[0] for line in listing.strip().splitlines())
    return bytes.fromhex(code.replace(PORT_BYTES, port.to_bytes(2, "big").hex(" ")))
