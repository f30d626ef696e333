//! The command line on a terminal, as somebody types it.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};

use crate::programs::program;
use crate::wait::until;
use crate::world::World;

/// How long the screen may take to show what is waited for.
const SHOWN: Duration = Duration::from_secs(30);

/// A running `openshell` whose three streams are one terminal.
pub struct Terminal {
    child: Child,
    keyboard: File,
    screen: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    /// Starts it.
    ///
    /// # Panics
    /// If there is no terminal to be had.
    pub fn openshell(world: &World, arguments: &[&str]) -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let ours = openpt(flags).expect("open a terminal");
        grantpt(&ours).expect("grant it");
        unlockpt(&ours).expect("unlock it");
        let theirs = ioctl_tiocgptpeer(&ours, flags).expect("open its other end");
        let theirs = || theirs.try_clone().expect("share it");
        let mut command = Command::new(program("openshell"));
        command.args(arguments).env_clear().envs(world.environment());
        let child = command.stdin(theirs()).stdout(theirs()).stderr(theirs()).spawn().expect("run openshell");
        drop(command);
        let keyboard = File::from(ours);
        let (mut display, screen) = (keyboard.try_clone().expect("share it"), Arc::new(Mutex::new(Vec::new())));
        let shown = screen.clone();
        // Ends with the last process that holds the other end.
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = display.read(&mut buffer) {
                shown.lock().expect("a screen").extend_from_slice(&buffer[..length]);
            }
        });
        Self { child, keyboard, screen }
    }

    /// Types.
    ///
    /// # Panics
    /// If the terminal is gone.
    pub fn type_in(&mut self, keys: &[u8]) {
        self.keyboard.write_all(keys).expect("type");
    }

    /// All that was shown.
    pub fn screen(&self) -> String {
        String::from_utf8_lossy(&self.screen.lock().expect("a screen")).into_owned()
    }

    /// Waits until this is shown.
    pub async fn shows(&self, text: &str) {
        until(&format!("{text:?} on the screen"), SHOWN, async || self.screen().contains(text).then_some(())).await;
    }

    /// Waits for the end, and returns the exit code.
    pub async fn ends(&mut self) -> Option<i32> {
        let child = &mut self.child;
        let status = until("openshell to end", SHOWN, async || child.try_wait().expect("wait")).await;
        status.code()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may have ended.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
