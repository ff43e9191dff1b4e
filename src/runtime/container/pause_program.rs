//! Program of pause containers, for each architecture.

/// x86-64:
///
/// ```text
/// 0:  push 1;  pop rdx        6a 01 5a
///     mov rsi, rsp            48 89 e6
///     xor edi, edi            31 ff
///     xor eax, eax            31 c0      read(0, stack, 1)
///     syscall                 0f 05
///     test eax, eax           85 c0
///     jg 0                    7f f0      until there is no more
///     push 60; pop rax        6a 3c 58
///     xor edi, edi            31 ff      exit(0)
///     syscall                 0f 05
/// ```
const X86_64: &[u8] = b"\x6a\x01\x5a\x48\x89\xe6\x31\xff\x31\xc0\x0f\x05\x85\xc0\x7f\xf0\
    \x6a\x3c\x58\x31\xff\x0f\x05";

/// AArch64:
///
/// ```text
/// 0:  mov x0, #0              d2800000
///     mov x1, sp              910003e1
///     mov x2, #1              d2800022
///     mov x8, #63             d28007e8   read(0, stack, 1)
///     svc #0                  d4000001
///     cmp x0, #0              f100001f
///     b.gt 0                  54ffff4c   until there is no more
///     mov x0, #0              d2800000
///     mov x8, #93             d2800ba8   exit(0)
///     svc #0                  d4000001
/// ```
const AARCH64: [u32; 10] = [
    0xd280_0000,
    0x9100_03e1,
    0xd280_0022,
    0xd280_07e8,
    0xd400_0001,
    0xf100_001f,
    0x54ff_ff4c,
    0xd280_0000,
    0xd280_0ba8,
    0xd400_0001,
];

/// Program for an architecture (Rust's name). On other architectures, servers in containers cannot
/// have egress.
pub(super) fn program(arch: &str) -> Option<Vec<u8>> {
    match arch {
        "x86_64" => Some(executable(62, X86_64)),
        "aarch64" => Some(executable(183, &AARCH64.map(u32::to_le_bytes).concat())),
        _ => None,
    }
}

/// Static executable by elf(5): its header, one program header that loads the whole file (readable
/// and executable), and the code.
fn executable(machine: u16, code: &[u8]) -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let size = HEADERS + code.len() as u64;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    // ET_EXEC, the machine, version 1.
    for half in [2, machine, 1, 0] {
        file.extend(half.to_le_bytes());
    }
    // Entry point; offset of the program header; no sections.
    for word in [BASE + HEADERS, 64, 0] {
        file.extend(word.to_le_bytes());
    }
    // No flags; sizes of the header and of one program header; no sections.
    for half in [0_u16, 0, 64, 56, 1, 64, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    // PT_LOAD, PF_R | PF_X.
    for half in [1_u32, 5] {
        file.extend(half.to_le_bytes());
    }
    // The whole file at its address, for pages of any size up to 64 KiB.
    for word in [0, BASE, BASE, size, size, 0x1_0000] {
        file.extend(word.to_le_bytes());
    }
    file.extend(code);
    file
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::Write,
        os::unix::fs::PermissionsExt,
        process::{Command, Stdio},
    };

    use super::*;

    #[test]
    fn program_runs_until_its_input_ends() {
        let folder = tempfile::tempdir().unwrap();
        let file_path = folder.path().join("holder");
        fs::write(&file_path, program(std::env::consts::ARCH).expect("an architecture of ours"))
            .unwrap();
        fs::set_permissions(&file_path, fs::Permissions::from_mode(0o755)).unwrap();
        let mut child =
            Command::new(&file_path).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        // More than a pipe's buffer, so the program must have read it.
        input.write_all(&[b'x'; 200_000]).unwrap();
        assert_eq!(child.try_wait().unwrap(), None);
        drop(input);
        let ended = child.wait_with_output().unwrap();
        assert_eq!((ended.status.code(), ended.stdout), (Some(0), Vec::new()));
    }

    #[test]
    fn program_is_one_small_file_for_each_architecture() {
        let (ours, theirs) = (program("x86_64").unwrap(), program("aarch64").unwrap());
        assert_eq!((ours.len(), theirs.len()), (143, 160));
        // The two differ in the machine, their sizes and the code.
        assert_eq!((&ours[..18], &ours[20..96]), (&theirs[..18], &theirs[20..96]));
        assert_eq!(program("riscv64"), None);
    }
}
