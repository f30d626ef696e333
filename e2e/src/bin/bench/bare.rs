//! A VM by libkrun alone, in which `guest-probe` is PID 1.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use e2e::programs::{guest_probe, program, test_image};
use e2e::wait::PATIENCE;
use e2e::world::World;
use tokio::time::timeout;

use crate::{MEMORY_MIB, VCPUS};

/// The program, and the files that its VM is made of.
pub(crate) struct Bare {
    program: PathBuf,
    directory: PathBuf,
}

impl Bare {
    /// One in which the probe does `what`.
    pub(crate) fn new(world: &World, what: &str) -> Self {
        let here = std::env::current_exe().expect("this program's path");
        let program = here.with_file_name("examples").join("bare");
        assert!(program.exists(), "{} is not built; run `make bench`", program.display());
        let directory = world.runtime().join(format!("bare-{what}"));
        std::fs::create_dir_all(directory.join("share")).expect("make a directory");
        let mut bytes = std::fs::read(guest_probe()).expect("read the probe");
        bytes.extend(format!("\n{what}").as_bytes());
        std::fs::write(directory.join("init"), bytes).expect("write the probe");
        Self { program, directory }
    }

    /// Where its vsock port for the gateway leads to.
    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.join("gateway.sock")
    }

    /// Its console is a pipe.
    pub(crate) fn start(&self) -> Child {
        let file = |name: &str| self.directory.join(name);
        let firmware = program("libkrunfw.so.5");
        let files: [&Path; 5] = [&firmware, &file("init"), &test_image(), &file("share"), &self.socket()];
        let mut command = Command::new(&self.program);
        command.args(files).args([VCPUS, MEMORY_MIB]).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("run the bare VM")
    }

    /// Until it ends by itself: what its console says, and how long it took.
    pub(crate) async fn run(&self) -> (String, Duration) {
        let began = Instant::now();
        let vm = self.start();
        let running = tokio::task::spawn_blocking(move || {
            let output = vm.wait_with_output().expect("wait for the bare VM");
            (String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(), began.elapsed())
        });
        let ended = timeout(PATIENCE, running).await.unwrap_or_else(|_| panic!("waited {PATIENCE:?} for the bare VM"));
        ended.expect("the bare VM's thread")
    }
}
