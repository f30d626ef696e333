//! The little network that a sandbox has of itself.

use std::path::Path;

use super::{Fault, Machine};
use crate::sys::image_file;

const HOSTS: &str = "/etc/hosts";

pub(super) fn name_host(machine: &mut Machine) -> Result<(), Fault> {
    let Some(spec) = &machine.spec else { return Ok(()) };
    rustix::system::sethostname(spec.hostname.as_bytes()).map_err(|errno| Fault::new(&spec.hostname, errno))?;
    let hosts = image_file::read(Path::new(HOSTS), image_file::MAX).unwrap_or_default();
    let missing = missing_lines(&String::from_utf8_lossy(&hosts), &spec.hostname);
    if let Err(error) = image_file::append(Path::new(HOSTS), missing.as_bytes()) {
        tracing::warn!(%error, "failed to write {HOSTS}: the sandbox does not find itself by name");
    }
    Ok(())
}

fn missing_lines(hosts: &str, hostname: &str) -> String {
    let has = |name: &str| {
        hosts.lines().any(|line| {
            let names = line.split('#').next().unwrap_or_default();
            names.split_ascii_whitespace().skip(1).any(|other| other == name)
        })
    };
    let mut lines = if hosts.is_empty() || hosts.ends_with('\n') { String::new() } else { "\n".to_owned() };
    if !has("localhost") {
        lines.push_str("127.0.0.1 localhost\n::1 localhost\n");
    }
    if !has(hostname) {
        lines.push_str(&format!("127.0.1.1 {hostname}\n"));
    }
    lines
}

pub(super) fn loopback(_: &mut Machine) -> Result<(), Fault> {
    crate::sys::loopback::bring_up().map_err(|error| Fault::new("lo", error))
}

#[cfg(test)]
mod tests {
    use super::missing_lines;

    #[test]
    fn only_what_is_missing_is_written() {
        assert_eq!(missing_lines("", "dev"), "127.0.0.1 localhost\n::1 localhost\n127.0.1.1 dev\n");
        assert_eq!(missing_lines("127.0.0.1 localhost # dev", "dev"), "\n127.0.1.1 dev\n");
        assert_eq!(missing_lines("127.0.0.1\tlocalhost dev\n", "dev"), "");
    }
}
