//! What a workload may not ask of the kernel: one fixed list, applied by the launch shim to every program.
//!
//! It is a list of refusals, not of permissions: a sandbox runs whatever its user brings, and ids without capabilities
//! bound the rest. What is refused leads out of that bound: to the gateway's port (vsock has no permissions), into
//! the kernel (much code that needs no capability), or past names and namespaces. Each with the answer that programs
//! know how to live with: `EPERM` where they expect that it may be forbidden, `ENOSYS` where they then do without.
//!
//! Allowed on purpose: `ptrace`, because debuggers and strace are what coding agents work with; the kernel lets it
//! reach nothing but the workload's own processes, and these rules hold for whatever is traced. User namespaces and
//! mounts in them, because browsers and build tools make sandboxes of their own.

use std::collections::BTreeMap;

use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    apply_filter, sock_filter,
};

/// `EPERM`.
const REFUSED: [libc::c_long; 9] = [
    // Programs inside the kernel, whoever loads them and by whichever right.
    libc::SYS_bpf,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    // The kernel waits for a program in the middle of an access to memory: what exploits of races are made of. This is
    // how a kernel answers that forbids it to users.
    libc::SYS_userfaultfd,
    // A large interface with a long history, and it measures other processes of the same processor.
    libc::SYS_perf_event_open,
    // Opens files by number, past every directory that leads to them.
    libc::SYS_open_by_handle_at,
];
/// `ENOSYS`.
const ABSENT: [libc::c_long; 6] = [
    // Makes sockets, vsock too, past a filter of system calls. Programs fall back to epoll.
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    // Keyrings belong to a uid, not to a namespace or a session. Kernels without them are known to programs.
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
];
/// Where the first argument is a family of addresses.
const SOCKETS: [libc::c_long; 2] = [libc::SYS_socket, libc::SYS_socketpair];

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
    rules.extend(SOCKETS.map(|call| (call, vec![vsock.clone()])));
    compile(rules, libc::EPERM)
}

fn absences() -> Result<BpfProgram, String> {
    let program = compile(ABSENT.into_iter().map(|call| (call, Vec::new())).collect(), libc::ENOSYS)?;
    Ok(without_x32(program))
}

/// A call by the numbers of another architecture (32-bit, through `int 0x80`) ends the process, by SIGSYS: those
/// numbers mean other calls, and this list does not know them.
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
