//! What a workload may not ask of the kernel.
//!
//! The rule exists for AF_VSOCK: vsock has no permission model, and without it any process of the guest could speak
//! to the gateway's port. Around it stand the ways past it (io_uring and the x32 numbers make sockets, too) and the
//! calls that only a kernel's own helpers use. Everything else stays allowed.

use std::collections::BTreeMap;

use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    apply_filter, sock_filter,
};

const REFUSED: [libc::c_long; 7] = [
    libc::SYS_bpf,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_userfaultfd,
];
/// Programs fall back to ordinary calls when these do not exist.
const ABSENT: [libc::c_long; 3] = [libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register];

/// Applies the rules to this process and all that it will start. Sets no_new_privs.
pub fn confine() -> Result<(), String> {
    for program in [refusals()?, absences()?] {
        apply_filter(&program).map_err(|error| format!("failed to apply the system call filter: {error}"))?;
    }
    Ok(())
}

fn refusals() -> Result<BpfProgram, String> {
    let vsock =
        SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, u64::from(libc::AF_VSOCK.unsigned_abs()))
            .and_then(|condition| SeccompRule::new(vec![condition]))
            .map_err(|error| error.to_string())?;
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = REFUSED.into_iter().map(|call| (call, Vec::new())).collect();
    rules.insert(libc::SYS_socket, vec![vsock]);
    compile(rules, libc::EPERM)
}

fn absences() -> Result<BpfProgram, String> {
    let program = compile(ABSENT.into_iter().map(|call| (call, Vec::new())).collect(), libc::ENOSYS)?;
    Ok(without_x32(program))
}

fn compile(rules: BTreeMap<i64, Vec<SeccompRule>>, errno: i32) -> Result<BpfProgram, String> {
    let architecture = std::env::consts::ARCH.try_into().map_err(|error| format!("{error}"))?;
    let refuse = SeccompAction::Errno(errno.unsigned_abs());
    SeccompFilter::new(rules, SeccompAction::Allow, refuse, architecture)
        .and_then(BpfProgram::try_from)
        .map_err(|error| format!("failed to compile the system call filter: {error}"))
}

/// Puts "numbers of the x32 interface do not exist" before a program. They pass for x86_64 and would walk around
/// every rule that names a number.
fn without_x32(program: BpfProgram) -> BpfProgram {
    const X32_BIT: u32 = 0x4000_0000;
    let statement = |code: u32, jt, jf, k| sock_filter { code: code as u16, jt, jf, k };
    let mut guarded = vec![
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        statement(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 0, 1, X32_BIT),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs()),
    ];
    guarded.extend(program);
    guarded
}
