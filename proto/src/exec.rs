//! The command of an exec, as the one string that an SSH `exec` request carries.
//!
//! A plain string is a shell's command line, as any SSH client sends it. A JSON document is an argument vector,
//! without a shell that could change it.

use serde::{Deserialize, Serialize};

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecCommand {
    /// Program and arguments, exactly. Never empty. The first member of the document: it tells one from a plain string.
    pub argv: Vec<String>,
    /// Where it starts; the user's home where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// As whom, by name or uid of the image's `/etc/passwd`; the sandbox's user where nothing is said. An agent that does
    /// not know this member refuses the document: nothing runs as somebody else than was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Through a login shell of the user, which reads its profile and then becomes the program.
    #[serde(default)]
    pub login: bool,
}

/// The longest encoded command, in bytes: what one SSH packet holds, with room to spare.
pub const ENCODED_MAX: usize = 192 * 1024;

/// The longest name of a user, in bytes.
pub const USER_MAX: usize = 256;

/// The gRPC metadata key by which an exec request says as whom it runs: the request itself has no field for it.
pub const USER_KEY: &str = "openshell-exec-user";

/// The gRPC metadata key by which an attachment (an exec without a command) takes the main process's input from whoever
/// has it. Its value says nothing.
pub const TAKE_INPUT_KEY: &str = "openshell-take-input";

const OPENING: &str = "{\"argv\"";

impl ExecCommand {
    /// The string for the `exec` request.
    pub fn encode(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// The document in an `exec` request; nothing where it is a plain string, an error where it is a broken document.
    pub fn decode(request: &str) -> Result<Option<Self>, String> {
        if !request.starts_with(OPENING) {
            return Ok(None);
        }
        let command: Self = serde_json::from_str(request).map_err(|error| format!("not an exec document: {error}"))?;
        if command.argv.is_empty() {
            return Err("the exec document has no program".to_owned());
        }
        Ok(Some(command))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_decoded() {
        let argv = ["printf", "%s\n", "a b", "\"\\'\u{1}é"].map(str::to_owned).to_vec();
        for command in [
            ExecCommand { argv: argv.clone(), workdir: None, user: None, login: false },
            ExecCommand { argv, workdir: Some("/tmp".to_owned()), user: Some("root".to_owned()), login: true },
        ] {
            assert_eq!(ExecCommand::decode(&command.encode()), Ok(Some(command)));
        }
    }

    #[test]
    fn a_plain_string_is_told_from_a_broken_document() {
        assert_eq!(ExecCommand::decode("echo '{\"argv\":[]}'"), Ok(None));
        assert!(ExecCommand::decode("{\"argv\":[]}").is_err());
        assert!(ExecCommand::decode("{\"argv\":[\"a\"],\"uid\":0}").is_err());
    }
}
