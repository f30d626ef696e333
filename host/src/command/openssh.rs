//! How OpenSSH's clients reach a sandbox: the same options for a printed configuration and for a command line.

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};

use proto::layout::SSH_USER;
use proto::openshell::vm::v1::GetSshHostKeyRequest;

use super::connect::{Gateway, answer};
use super::console::Console;
use super::exit::ExitCode;
use super::failure::CommandError;
use crate::atomic_file;
use crate::config::Environment;

/// The remedy where there is no client.
const INSTALL: &str = "install OpenSSH's client (Debian: openssh-client)";

/// What does not depend on the sandbox.
#[derive(Debug, Default)]
pub(crate) struct Places {
    /// This program.
    program: PathBuf,
    /// The socket of the gateway, where one was named.
    socket: Option<PathBuf>,
    /// One file for each sandbox.
    known_hosts: PathBuf,
}

impl Places {
    /// Of this process.
    pub(crate) fn of(environment: &Environment, socket: Option<&Path>) -> Self {
        let state = environment.base_dir("XDG_STATE_HOME", ".local/state");
        let state = state.unwrap_or_else(|| environment.current_dir.clone());
        Self {
            program: environment.executable_dir.join("openshell"),
            // Clients may be started anywhere.
            socket: socket.map(|socket| environment.current_dir.join(socket)),
            known_hosts: state.join("openshell/ssh"),
        }
    }

    fn known_hosts(&self, name: &str) -> PathBuf {
        self.known_hosts.join(format!("{name}.known_hosts"))
    }
}

/// The name of a sandbox among the hosts of an SSH configuration.
pub(crate) fn host(name: &str) -> String {
    format!("openshell-{name}")
}

/// The options for one sandbox, as `ssh_config` names them.
pub(crate) fn options(places: &Places, name: &str) -> Vec<(&'static str, String)> {
    let mut proxy = vec![shell_word(&places.program)];
    if let Some(socket) = &places.socket {
        proxy.extend(["--gateway-socket".to_owned(), shell_word(socket)]);
    }
    proxy.extend(["sandbox", "ssh-proxy", name].map(str::to_owned));
    let known_hosts = places.known_hosts(name).display().to_string();
    vec![
        ("ProxyCommand", percent(&proxy.join(" "))),
        ("User", SSH_USER.to_owned()),
        // The key belongs to the sandbox, whatever a configuration calls it; it is checked against nothing else.
        ("HostKeyAlias", host(name)),
        ("UserKnownHostsFile", format!("\"{}\"", percent(&known_hosts))),
        ("GlobalKnownHostsFile", "/dev/null".to_owned()),
        ("StrictHostKeyChecking", "yes".to_owned()),
        ("UpdateHostKeys", "no".to_owned()),
        // Whoever reaches the server has been let in by the gateway: there is nothing to ask for and nothing to show.
        ("BatchMode", "yes".to_owned()),
        ("PubkeyAuthentication", "no".to_owned()),
        ("PasswordAuthentication", "no".to_owned()),
        ("KbdInteractiveAuthentication", "no".to_owned()),
        ("ForwardAgent", "no".to_owned()),
        ("ForwardX11", "no".to_owned()),
    ]
}

/// The same on a command line, for a client that reads no configuration.
pub(crate) fn arguments(places: &Places, name: &str) -> Vec<OsString> {
    let options = options(places, name).into_iter();
    let options = options.flat_map(|(key, value)| [OsString::from("-o"), format!("{key}={value}").into()]);
    ["-F", "none"].map(OsString::from).into_iter().chain(options).collect()
}

/// Writes the key that clients have to see. What the gateway says is what counts, so that a sandbox that was made
/// again under its old name is known at once, and a guest that shows another key never is.
pub(crate) async fn know(gateway: &Gateway, name: &str, console: &mut Console) -> Result<(), CommandError> {
    let act = format!("get the SSH host key of sandbox `{name}`");
    let mut operator = gateway.operator(console).await?;
    let request = GetSshHostKeyRequest { sandbox: name.to_owned() };
    let reply = answer(&act, operator.get_ssh_host_key(request)).await?;
    let file = gateway.ssh.known_hosts(name);
    let line = format!("{} {}\n", host(name), reply.public_key);
    if std::fs::read(&file).is_ok_and(|known| known == line.as_bytes()) {
        return Ok(());
    }
    let mut directory = std::fs::DirBuilder::new();
    let written = directory.recursive(true).mode(0o700).create(&gateway.ssh.known_hosts);
    written.and_then(|()| atomic_file::replace(&file, line.as_bytes())).map_err(|cause| {
        let remedy = "set XDG_STATE_HOME to a directory of your own";
        let message =
            format!("failed to write the SSH host key of sandbox `{name}` to {}: {cause}; {remedy}", file.display());
        CommandError::new(ExitCode::StateDir, message)
    })
}

/// Becomes an OpenSSH client. Returns only where that failed.
pub(crate) fn become_client(program: &str, arguments: Vec<OsString>) -> CommandError {
    missing(program, &std::process::Command::new(program).args(arguments).exec())
}

/// A client could not be started.
pub(crate) fn missing(program: &str, cause: &io::Error) -> CommandError {
    CommandError::new(ExitCode::Failed, format!("failed to start {program}: {cause}; {INSTALL}"))
}

/// For the shell that runs a proxy command.
fn shell_word(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', "'\\''"))
}

/// OpenSSH expands what follows a percent sign.
fn percent(text: &str) -> String {
    text.replace('%', "%%")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn option(places: &Places, key: &str) -> String {
        options(places, "dev").into_iter().find(|(name, _)| *name == key).unwrap().1
    }

    #[test]
    fn paths_survive_shell_and_client() {
        let places = Places {
            program: "/opt/it's 100%/openshell".into(),
            socket: Some("/run/a b/gateway.sock".into()),
            known_hosts: "/home/me/a b/%d".into(),
        };
        let proxy = "'/opt/it'\\''s 100%%/openshell' --gateway-socket '/run/a b/gateway.sock' sandbox ssh-proxy dev";
        assert_eq!(option(&places, "ProxyCommand"), proxy);
        assert_eq!(option(&places, "UserKnownHostsFile"), "\"/home/me/a b/%%d/dev.known_hosts\"");
        assert_eq!(option(&places, "HostKeyAlias"), "openshell-dev");
    }

    #[test]
    fn a_gateway_that_was_not_named_is_looked_for() {
        let places = Places { program: "/bin/openshell".into(), ..Places::default() };
        assert_eq!(option(&places, "ProxyCommand"), "'/bin/openshell' sandbox ssh-proxy dev");
        let arguments = arguments(&places, "dev");
        assert_eq!(arguments[..2], ["-F", "none"]);
        assert!(arguments.contains(&OsString::from("StrictHostKeyChecking=yes")));
    }
}
