//! The binary as a program: what it refuses.

#![forbid(unsafe_code)]

use std::process::{Command, Output};

fn agent(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_openshell-agent")).args(arguments).output().unwrap()
}

#[test]
fn it_tells_its_version_and_its_protocols() {
    let output = agent(&["--version"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.starts_with("openshell-agent ") && text.contains("(protocol 1-"), "{text}");
}

#[test]
fn it_is_nobody_elses_init() {
    for arguments in [&[][..], &["--help"], &["launch"], &["launch", "1000", "1000"]] {
        assert_eq!(agent(arguments).status.code(), Some(64), "{arguments:?}");
    }
}

#[test]
fn a_program_is_not_started_where_the_token_can_be_seen() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: a launch needs root");
        return;
    }
    // Not a mount point, so that nothing takes it away.
    let identity = tempfile::tempdir().unwrap();
    std::fs::write(identity.path().join(proto::layout::TOKEN_FILE), "a token").unwrap();
    let path = identity.path().to_str().unwrap();
    let output = agent(&["launch", "1000", "1000", "pipes", "", "/", path, "", "", "0", "echo", "started"]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(125), &b""[..]), "{error}");
    assert!(error.contains("identity directory") || error.contains("Operation not permitted"), "{error}");
}

/// The kernel takes this number for "as it is", which is root.
#[test]
fn nobody_is_the_user_with_the_highest_number() {
    let Some(output) = launched(u32::MAX, "", &["id", "-u"]) else { return };
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(125), &b""[..]), "{error}");
    assert!(error.contains("did not come into force"), "{error}");
}

/// What a program gets that is launched as this user, in a namespace where the identity directory is a mount as in a
/// guest. Nothing where this user may not make one.
fn launched(uid: u32, cgroup: &str, program: &[&str]) -> Option<Output> {
    let identity = tempfile::tempdir().unwrap();
    let path = identity.path().to_str().unwrap();
    let uid = uid.to_string();
    let launch = ["launch", &uid, &uid, "pipes", "", "/", path, cgroup, "", "1", "PATH=/usr/bin:/bin"];
    let mounted = ["-m", "--propagation", "private", "sh", "-c", "mount -t tmpfs none \"$0\" && exec \"$@\"", path];
    let output = Command::new("unshare")
        .args(mounted)
        .arg(env!("CARGO_BIN_EXE_openshell-agent"))
        .args(launch)
        .args(program)
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    if error.contains("unshare failed") || error.contains("permission denied") {
        eprintln!("skipped: no namespace to be had here: {error}");
        return None;
    }
    Some(output)
}

/// Name, number on x86_64, and how a program is answered; 0 where the call is made. The first arguments are a family
/// and a type for sockets, and nothing that the others could do anything with.
#[cfg(target_arch = "x86_64")]
const CALLS: [(&str, u32, &str, i32); 25] = [
    ("bpf", 321, "0", EPERM),
    ("kexec_load", 246, "0", EPERM),
    ("kexec_file_load", 320, "0", EPERM),
    ("init_module", 175, "0", EPERM),
    ("finit_module", 313, "0", EPERM),
    ("delete_module", 176, "0", EPERM),
    ("userfaultfd", 323, "1", EPERM),
    ("perf_event_open", 298, "0", EPERM),
    ("open_by_handle_at", 304, "0", EPERM),
    ("socket of vsock", 41, "40", EPERM),
    ("socketpair of vsock", 53, "40", EPERM),
    ("io_uring_setup", 425, "1", ENOSYS),
    ("io_uring_enter", 426, "0", ENOSYS),
    ("io_uring_register", 427, "0", ENOSYS),
    ("add_key", 248, "0", ENOSYS),
    ("request_key", 249, "0", ENOSYS),
    ("keyctl", 250, "0", ENOSYS),
    ("getpid by its x32 number", X32 + 39, "0", ENOSYS),
    ("socket of vsock by its x32 number", X32 + 41, "40", ENOSYS),
    ("ptrace by its x32 number", X32 + 521, "0", ENOSYS),
    ("socket of unix", 41, "1", 0),
    ("socket of inet", 41, "2", 0),
    ("ptrace", 101, "0", 0),
    ("unshare of nothing", 272, "0", 0),
    ("getpid", 39, "0", 0),
];
#[cfg(target_arch = "x86_64")]
const X32: u32 = 0x4000_0000;
#[cfg(target_arch = "x86_64")]
const EPERM: i32 = 1;
#[cfg(target_arch = "x86_64")]
const ENOSYS: i32 = 38;

#[cfg(target_arch = "x86_64")]
#[test]
fn each_call_of_the_list_is_answered_as_programs_expect_it() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: a launch needs root");
        return;
    }
    let calls: String = CALLS
        .iter()
        .map(|(_, number, first, _)| format!("print syscall({number}, {first}, 1, 0, 0, 0) < 0 ? $!+0 : 0, \"\\n\";"))
        .collect();
    for uid in [1000, 0] {
        let Some(output) = launched(uid, "", &["perl", "-e", &calls]) else { return };
        let answers = String::from_utf8(output.stdout).unwrap();
        let answers: Vec<_> = CALLS.iter().map(|(name, ..)| *name).zip(answers.lines().map(str::to_owned)).collect();
        let expected: Vec<_> = CALLS.iter().map(|(name, _, _, errno)| (*name, errno.to_string())).collect();
        assert_eq!(answers, expected, "uid {uid}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// A program of 64 bits that ends with 7, by a 32-bit call: `mov eax, 1; mov ebx, 7; int 0x80`.
#[cfg(target_arch = "x86_64")]
fn program_of_a_32_bit_call() -> Vec<u8> {
    const CODE: [u8; 12] = [0xb8, 1, 0, 0, 0, 0xbb, 7, 0, 0, 0, 0xcd, 0x80];
    const HEADER: u64 = 64;
    const SEGMENT: u64 = 56;
    const BASE: u64 = 0x40_0000;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    for word in [BASE + HEADER + SEGMENT, HEADER, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend(0_u32.to_le_bytes());
    for half in [HEADER as u16, SEGMENT as u16, 1, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    // One segment, to be read and executed: all of the file.
    let size = HEADER + SEGMENT + CODE.len() as u64;
    file.extend([1_u32, 5].map(u32::to_le_bytes).concat());
    file.extend([0, BASE, BASE, size, size, 4096].map(u64::to_le_bytes).concat());
    file.extend(CODE);
    file
}

#[cfg(target_arch = "x86_64")]
#[test]
fn calls_by_the_numbers_of_another_architecture_end_the_program() {
    use std::os::unix::fs::PermissionsExt as _;

    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: a launch needs root");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let program = directory.path().join("program");
    std::fs::write(&program, program_of_a_32_bit_call()).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    if Command::new(&program).status().unwrap().code() != Some(7) {
        eprintln!("skipped: this kernel knows no 32-bit calls");
        return;
    }
    let script = format!("{}; echo $?", program.display());
    let Some(output) = launched(1000, "", &["sh", "-c", &script]) else { return };
    // SIGSYS is 31.
    assert_eq!(String::from_utf8_lossy(&output.stdout), "159\n", "{output:?}");
}

#[test]
fn a_program_is_started_in_its_control_group_or_not_at_all() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: a launch needs root");
        return;
    }
    // A directory takes what is written to a group.
    let group = tempfile::tempdir().unwrap();
    let Some(output) = launched(1000, group.path().to_str().unwrap(), &["echo", "started"]) else { return };
    assert_eq!(output.stdout, b"started\n", "{output:?}");
    assert_eq!(std::fs::read(group.path().join("cgroup.procs")).unwrap(), b"0");
    let Some(output) = launched(1000, "/none", &["echo", "started"]) else { return };
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(125), &b""[..]));
    assert!(String::from_utf8_lossy(&output.stderr).contains("control group"), "{output:?}");
}

#[test]
fn uid_0_owns_files_of_the_kernel_and_cannot_open_them_for_writing() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: a launch needs root");
        return;
    }
    // Opened, and nothing written.
    let open = "for file in /proc/sys/kernel/domainname /proc/sysrq-trigger; do (: >> $file) && echo $file; done
        cat /proc/sys/kernel/ostype; grep CapEff /proc/self/status";
    let Some(output) = launched(0, "", &["sh", "-c", open]) else { return };
    assert_eq!(String::from_utf8_lossy(&output.stdout), "Linux\nCapEff:\t0000000000000000\n", "{output:?}");
}
