//! The program that is carried into every guest. What is wrong with it is told before a sandbox is made, because in a
//! guest it only shows as silence.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use object::{
    LittleEndian, elf,
    read::elf::{FileHeader as _, ProgramHeader as _},
};
use proto::version::{PROTOCOL, ProtocolRange, VERSION};
use sha2::{Digest as _, Sha256};
use tokio::{io::AsyncReadExt as _, process::Command, time::timeout};

use crate::hex::hex;
use crate::sandbox::driver::{AgentFile, DriverError, DriverReason};

/// What `--version` may take.
const ANSWER: Duration = Duration::from_secs(10);
/// The longest answer, in bytes.
const ANSWER_MAX: u64 = 1024;
/// The largest agent, in bytes: it is held in memory for every guest.
const SIZE_MAX: u64 = 256 * 1024 * 1024;

/// The machine on which guests run: this one.
const MACHINE: elf::Machine = if cfg!(target_arch = "aarch64") { elf::EM_AARCH64 } else { elf::EM_X86_64 };

/// Remembers the last agent that was good, for as long as its file stays the same.
#[derive(Debug, Default)]
pub(super) struct Agent {
    good: Mutex<Option<(Stamp, AgentFile)>>,
}

/// By what a file is known again.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    path: PathBuf,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Agent {
    /// The agent at `path`, if guests can be booted with it.
    pub(super) async fn check(&self, path: &Path) -> Result<AgentFile, DriverError> {
        super::check_program("openshell-agent", path)?;
        // Taken first: a file that changes meanwhile is looked at again next time.
        let stamp = Stamp::of(path)?;
        if let Some((known, file)) = &*self.good.lock().unwrap_or_else(PoisonError::into_inner)
            && *known == stamp
        {
            return Ok(file.clone());
        }
        let file = inspect(path, stamp.size).await?;
        *self.good.lock().unwrap_or_else(PoisonError::into_inner) = Some((stamp, file.clone()));
        Ok(file)
    }

    /// The last one that was good.
    pub(super) fn last(&self) -> Option<AgentFile> {
        self.good.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|(_, file)| file.clone())
    }
}

impl Stamp {
    fn of(path: &Path) -> Result<Self, DriverError> {
        let data = fs::metadata(path).map_err(|error| unreadable(path, &error))?;
        let modified = (data.mtime(), data.mtime_nsec());
        Ok(Self { path: path.to_owned(), inode: data.ino(), size: data.size(), modified })
    }
}

async fn inspect(path: &Path, size: u64) -> Result<AgentFile, DriverError> {
    if size > SIZE_MAX {
        return Err(unfit(path, format!("is {size} bytes long, and {SIZE_MAX} are the most")));
    }
    let digest = {
        let place = path.to_owned();
        let read = tokio::task::spawn_blocking(move || {
            let bytes = fs::read(&place).map_err(|error| unreadable(&place, &error))?;
            check_elf(&bytes).map_err(|what| unfit(&place, what))?;
            Ok(hex(&Sha256::digest(&bytes)))
        });
        read.await.map_err(|_| unfit(path, "could not be looked at".to_owned()))??
    };
    let answer = ask(path).await?;
    let (version, protocol) = parse(&answer).ok_or_else(|| {
        let said: String = answer.chars().take(80).flat_map(char::escape_debug).collect();
        unfit(path, format!("answers `{said}` to --version and not `openshell-agent VERSION (protocol A-B)`"))
    })?;
    if PROTOCOL.common(protocol).is_none() {
        let what = format!("is version {version} and speaks protocol {protocol}, gateway {VERSION} speaks {PROTOCOL}");
        return Err(unfit(path, what));
    }
    Ok(AgentFile { path: path.to_owned(), digest, version, protocol })
}

/// Whether a guest of this machine can run it: nothing is there that could load it.
fn check_elf(bytes: &[u8]) -> Result<(), String> {
    let no_elf = |_| "is not a 64-bit ELF program".to_owned();
    let header = elf::FileHeader64::<LittleEndian>::parse(bytes).map_err(no_elf)?;
    let endian = header.endian().map_err(no_elf)?;
    let machine = header.e_machine(endian);
    if machine != MACHINE {
        return Err(format!("is a program for {}, and guests of this machine are {}", name(machine), name(MACHINE)));
    }
    if ![elf::ET_EXEC, elf::ET_DYN].contains(&header.e_type(endian)) {
        return Err("is an ELF file and not a program".to_owned());
    }
    let segments = header.program_headers(endian, bytes).map_err(|_| "is a damaged ELF program".to_owned())?;
    if segments.iter().any(|segment| segment.p_type(endian) == elf::PT_INTERP) {
        return Err("is linked dynamically, and an image need not have its loader".to_owned());
    }
    Ok(())
}

fn name(machine: elf::Machine) -> String {
    match machine {
        elf::EM_X86_64 => "x86_64".to_owned(),
        elf::EM_AARCH64 => "aarch64".to_owned(),
        elf::EM_386 => "x86".to_owned(),
        elf::EM_ARM => "arm".to_owned(),
        elf::EM_RISCV => "riscv".to_owned(),
        elf::Machine(other) => format!("ELF machine {other}"),
    }
}

/// What it says to `--version`. It learns nothing of this process.
async fn ask(path: &Path) -> Result<String, DriverError> {
    let unable = |cause: String| DriverError {
        reason: DriverReason::ProgramMissing,
        message: format!("failed to run {} --version: {cause}", path.display()),
        remedy: "make it executable, and install it where programs may be run".to_owned(),
    };
    let mut command = Command::new(path);
    command.arg("--version").env_clear().current_dir("/").kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut process = command.spawn().map_err(|error| unable(error.to_string()))?;
    let Some(output) = process.stdout.take() else { return Err(unable("it has no output".to_owned())) };
    let mut text = vec![];
    let answered = async {
        output.take(ANSWER_MAX).read_to_end(&mut text).await?;
        process.wait().await
    };
    match timeout(ANSWER, answered).await {
        Err(_) => Err(unfit(path, format!("does not answer --version within {ANSWER:?}"))),
        Ok(Err(error)) => Err(unable(error.to_string())),
        Ok(Ok(status)) if !status.success() => Err(unfit(path, format!("answers --version with {status}"))),
        Ok(Ok(_)) => Ok(String::from_utf8_lossy(&text).into_owned()),
    }
}

/// `openshell-agent 0.1.0 (protocol 1-1)`
fn parse(answer: &str) -> Option<(String, ProtocolRange)> {
    let (version, range) = answer.trim_end().strip_prefix("openshell-agent ")?.split_once(" (protocol ")?;
    let good = !version.is_empty() && version.len() <= 64 && version.chars().all(|c| c.is_ascii_graphic());
    Some((good.then(|| version.to_owned())?, range.strip_suffix(')')?.parse().ok()?))
}

fn unfit(path: &Path, what: String) -> DriverError {
    DriverError {
        reason: DriverReason::Agent,
        message: format!("the agent {} {what}", path.display()),
        remedy: format!(
            "put the static openshell-agent that came with gateway {VERSION} there, or name it with \
             openshell.gateway.agent_bin"
        ),
    }
}

fn unreadable(path: &Path, error: &std::io::Error) -> DriverError {
    DriverError {
        reason: DriverReason::ProgramMissing,
        message: format!("failed to read the agent {}: {error}", path.display()),
        remedy: "make it readable for the gateway's user".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// A real program; no agent.
    const DYNAMIC: &str = "/bin/true";

    struct Place(tempfile::TempDir);

    impl Place {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn put(&self, name: &str, bytes: &[u8]) -> PathBuf {
            let path = self.0.path().join(name);
            fs::write(&path, bytes).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            path
        }
    }

    async fn refused(path: &Path) -> DriverError {
        let error = Agent::default().check(path).await.unwrap_err();
        assert!(error.message.contains(&path.display().to_string()) && !error.remedy.is_empty(), "{error}");
        error
    }

    #[tokio::test]
    async fn what_no_guest_can_run_is_named() {
        let place = Place::new();
        let program = fs::read(DYNAMIC).unwrap();
        let with = |at: usize, bytes: [u8; 2]| {
            let mut program = program.clone();
            program[at..at + 2].copy_from_slice(&bytes);
            program
        };
        for (name, bytes, what) in [
            ("text", b"hello\n".to_vec(), "is not a 64-bit ELF program"),
            ("empty", vec![], "is not a 64-bit ELF program"),
            ("script", b"#!/bin/sh\necho 'openshell-agent 0.1.0 (protocol 1-1)'\n".to_vec(), "is not a 64-bit ELF"),
            ("cut", program[..200].to_vec(), "is a damaged ELF program"),
            ("dynamic", program.clone(), "is linked dynamically"),
            // `e_machine`, `e_type` and the class.
            ("other", with(18, 243_u16.to_le_bytes()), "is a program for riscv"),
            ("object", with(16, 1_u16.to_le_bytes()), "is an ELF file and not a program"),
            ("short", with(4, [1, 1]), "is not a 64-bit ELF program"),
        ] {
            let error = refused(&place.put(name, &bytes)).await;
            assert_eq!(error.reason, DriverReason::Agent, "{name}: {error}");
            assert!(error.message.contains(what), "{name}: {error}");
            assert!(error.remedy.contains("agent_bin"), "{name}: {error}");
        }
        for path in [place.0.path().join("none"), place.0.path().to_owned()] {
            assert_eq!(refused(&path).await.reason, DriverReason::ProgramMissing);
        }
    }

    #[test]
    fn a_version_is_read_in_its_one_form() {
        let range = |oldest, newest| ProtocolRange { oldest, newest };
        assert_eq!(parse("openshell-agent 0.1.0 (protocol 1-1)\n"), Some(("0.1.0".into(), range(1, 1))));
        assert_eq!(parse("openshell-agent 2.0.0-rc.1 (protocol 2-7)"), Some(("2.0.0-rc.1".into(), range(2, 7))));
        for other in [
            "",
            "openshell-agent",
            "openshell-agent 0.1.0",
            "openshell-agent  (protocol 1-1)",
            "openshell-agent 0.1.0 (protocol 2-1)",
            "openshell-agent 0.1.0 (protocol 1)",
            "openshell-gateway 0.1.0 (protocol 1-1)",
            "openshell-agent 0.1.0 (protocol 1-1) and more",
        ] {
            assert_eq!(parse(other), None, "{other}");
        }
    }

    /// A static program that answers `--version` with this; nothing where this machine cannot make one.
    fn answering(place: &Place, name: &str, answer: &str) -> Option<PathBuf> {
        let source = place.0.path().join(format!("{name}.c"));
        fs::write(&source, format!("#include <stdio.h>\nint main(void) {{ puts(\"{answer}\"); return 0; }}\n"))
            .unwrap();
        let program = place.0.path().join(name);
        let mut compiler = std::process::Command::new("cc");
        compiler.arg("-static").arg("-o").arg(&program).arg(&source).stderr(Stdio::null());
        compiler.status().is_ok_and(|status| status.success()).then_some(program)
    }

    #[tokio::test]
    async fn an_agent_is_asked_once_until_its_file_changes() {
        let place = Place::new();
        let ours = format!("openshell-agent 7.0.0 (protocol {PROTOCOL})");
        let Some(good) = answering(&place, "good", &ours) else {
            eprintln!("not run: no C compiler here makes a static program");
            return;
        };
        let agent = Agent::default();
        assert_eq!(agent.last(), None);
        let file = agent.check(&good).await.unwrap();
        assert_eq!((file.version.as_str(), file.protocol, file.digest.len()), ("7.0.0", PROTOCOL, 64));
        assert_eq!(agent.last(), Some(file.clone()));
        // Not run again: it could not be.
        fs::set_permissions(&good, fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(agent.check(&good).await.unwrap(), file);
        let changed = answering(&place, "changed", "openshell-agent 6.0.0 (protocol 90-99)").unwrap();
        fs::rename(&changed, &good).unwrap();
        let error = agent.check(&good).await.unwrap_err();
        assert_eq!(error.reason, DriverReason::Agent);
        let words = ["is version 6.0.0 and speaks protocol 90-99", &format!("gateway {VERSION} speaks {PROTOCOL}")];
        assert!(words.iter().all(|words| error.message.contains(words)), "{error}");
        assert_eq!(agent.last(), Some(file), "what runs now was the good one");

        let silent = answering(&place, "silent", "hello").unwrap();
        assert!(refused(&silent).await.message.contains("answers `hello\\n` to --version"));
        fs::set_permissions(&silent, fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(refused(&silent).await.reason, DriverReason::ProgramMissing);
    }
}
