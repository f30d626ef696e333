//! What is to run: from the string of an `exec` request, a `shell` request, or the boot spec.

use proto::boot::MainProcess;
use proto::exec::ExecCommand;

use super::launch;
use super::passwd::User;
use crate::sftp;

/// A program, ready to be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// The program's name for itself, where it is not `argv[0]`: a login shell's begins with `-`.
    pub arg0: Option<String>,
    /// Where it starts; the user's home where nothing is said.
    pub workdir: Option<String>,
}

impl Command {
    /// From an SSH `exec` request.
    pub fn from_exec(request: &[u8], user: &User) -> Result<Self, String> {
        let request = std::str::from_utf8(request).map_err(|_| "the exec request is not UTF-8".to_owned())?;
        if request.contains('\0') {
            return Err("the exec request contains a NUL".to_owned());
        }
        let Some(command) = ExecCommand::decode(request)? else {
            let argv = ["/bin/sh", "-lc", request].map(str::to_owned).to_vec();
            return Ok(Self { argv, arg0: None, workdir: None });
        };
        if command.argv.iter().chain(&command.workdir).chain(&command.user).any(|text| text.contains('\0')) {
            return Err("the exec document contains a NUL".to_owned());
        }
        let mut argv = command.argv;
        if command.login {
            let shell = [&user.shell, "-lc", "exec \"$@\"", &user.shell].map(str::to_owned);
            argv.splice(0..0, shell);
        }
        Ok(Self { argv, arg0: None, workdir: command.workdir })
    }

    /// As whom an SSH `exec` request is to run, if not as the sandbox's user: a name or a uid.
    pub fn user_of_exec(request: &[u8]) -> Option<String> {
        ExecCommand::decode(std::str::from_utf8(request).ok()?).ok()??.user
    }

    /// From an SSH `shell` request.
    pub fn login_shell(user: &User) -> Self {
        let name = user.shell.rsplit('/').next().unwrap_or_default();
        Self { argv: vec![user.shell.clone()], arg0: Some(format!("-{name}")), workdir: None }
    }

    /// From the boot spec.
    pub fn main(main: &MainProcess) -> Self {
        Self { argv: main.argv.clone(), arg0: None, workdir: None }
    }

    /// The agent's own SFTP server, as a program like any other: it has the rights of the workload and no more.
    pub fn sftp_server() -> Self {
        let argv = [launch::SELF, sftp::VERB].map(str::to_owned).to_vec();
        Self { argv, arg0: Some("openshell-agent".to_owned()), workdir: None }
    }
}

#[cfg(test)]
mod tests {
    use proto::boot::DEFAULT_USER;

    use super::*;

    fn argv(request: &str) -> Result<Vec<String>, String> {
        let user = User::find("me:x:1000:1000::/home/me:/bin/bash", DEFAULT_USER);
        Command::from_exec(request.as_bytes(), &user).map(|command| command.argv)
    }

    #[test]
    fn an_exec_string_is_a_command_line_or_a_document() {
        assert_eq!(argv("echo 'a  b'").unwrap(), ["/bin/sh", "-lc", "echo 'a  b'"]);
        assert_eq!(argv(r#"{"argv":["echo","a  b"]}"#).unwrap(), ["echo", "a  b"]);
        let login = argv(r#"{"argv":["env","-0"],"login":true}"#).unwrap();
        assert_eq!(login, ["/bin/bash", "-lc", "exec \"$@\"", "/bin/bash", "env", "-0"]);
        for broken in [r#"{"argv":[]}"#, r#"{"argv":"echo"}"#, r#"{"argv":["a\u0000b"]}"#, "a\0b"] {
            assert!(argv(broken).is_err(), "{broken:?}");
        }
    }

    #[test]
    fn a_login_shell_knows_that_it_is_one() {
        let user = User::find("me:x:1000:1000::/home/me:/bin/bash", DEFAULT_USER);
        assert_eq!(Command::login_shell(&user).arg0.as_deref(), Some("-bash"));
    }
}
